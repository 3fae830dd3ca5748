# SPDX-License-Identifier: Apache-2.0
"""Read a saved model without trusting it: a .keras or .h5 file, or a SavedModel directory.

A SavedModel is a program. Nothing of it runs here, and its graphs are not so much as read: the model is rebuilt from
the config that Keras 2 leaves beside them, and its weights come from the checkpoint. Read in tf_keras 2.21.0:
keras_metadata.pb (tf_keras/protobuf/saved_metadata.proto), and before TensorFlow 2.5 the `metadata` of the objects in
saved_model.pb (tensorflow/core/protobuf/saved_object_graph.proto).

The format is told by the first bytes, never by the file's name. Everything that is read has a limit, and a file that
points outside of itself is refused.
"""

import io
import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfq import artifacts
from tfq.errors import InputError

_UNZIPPED = ("config.json", "metadata.json", "model.weights.h5")
_GRAPH_NETWORKS = ("Functional", "Model", "Sequential")
_WANTED = "a .keras or .h5 file, or a SavedModel directory that Keras 2's model.save wrote"


HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

MAX_FILE_BYTES = 4 << 30
MAX_JSON_BYTES = 64 << 20
MAX_MEMBERS = 100_000
# Keras stores members uncompressed; a member that is large and shrinks a hundredfold is a bomb (DEFLATE reaches 1032).
MAX_EXPANSION, BOMB_FLOOR_BYTES = 100, 64 << 20
# The header of an array in an .npz tells its dtype within these.
_NPY_HEADER_BYTES = 4096

WANTED = "a Keras model (.keras or .h5)"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A Keras model file before any Keras has seen it.

    container: "keras" (a zip), "h5", or "saved_model" (a directory of Keras 2). keras_version: as written inside, ""
    when it is not (Keras 1 and early 2). config: the model's own config, without what only compiling would read.
    content: the file's bytes. members: the files of a SavedModel's checkpoint instead.
    """

    path: Path
    container: str
    keras_version: str
    config: dict[str, Any]
    content: bytes
    members: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """All that is in it, unpacked: no more weights than these can be."""
        if self.container == "keras":
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                return sum(member.file_size for member in archive.infolist())
        return len(self.content) + sum(map(len, self.members.values()))

    @property
    def kind(self) -> str:
        """Which Keras wrote the file and is to read it: "tf_keras" or "keras"."""
        major = self.keras_version.partition(".")[0]
        if major in ("", "1", "2"):
            return "tf_keras"
        if major == "3":
            return "keras"
        raise InputError(
            f"{self.path} was written by Keras {self.keras_version!r}: expected 1, 2 or 3",
            field="model",
            expected="Keras 1, 2 or 3",
            got=self.keras_version,
        )


def read_model_file(path: str | os.PathLike) -> ModelFile:
    """The content of the Keras model at `path`: a file, or a directory (model_directory.py).

    Raises InputError, each with its own message, when it is missing, empty, too large, damaged, no Keras model, weights
    alone, or refers to other files.
    """
    path = Path(path)
    if path.is_dir():
        return read_model_directory(path)
    content = _content(path)
    if content.startswith(HDF5_MAGIC):
        return _from_h5(path, content)
    if content.startswith(ZIP_MAGIC):
        return from_zip(path, content)
    if content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05":
        raise InputError(
            f"{path} is a Python pickle, which runs code when it is read: expected {WANTED}",
            field="model",
            expected=WANTED,
        )
    if content[4:8] == b"TFL3":
        raise InputError(
            f"{path} is a TFLite flatbuffer: expected {WANTED}: convert starts from the Keras model",
            field="model",
            expected=WANTED,
        )
    raise InputError(
        f"{path} is neither a .keras zip nor an HDF5 file (it begins with {content[:8]!r}): expected {WANTED}",
        field="model",
        expected=WANTED,
    )


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
    except OSError:
        return artifacts.read_bytes(path, WANTED, field="model")
    return _regular_content(path, status, WANTED)


def _regular_content(path: Path, status: os.stat_result, expected: str) -> bytes:
    """Return the bytes of a regular file of at most MAX_FILE_BYTES; `expected` says what it should have been."""
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is no regular file: expected {expected}", field="model", expected=expected)
    if status.st_size > MAX_FILE_BYTES:
        raise InputError(
            f"{path} has {status.st_size} bytes, more than the {MAX_FILE_BYTES} that tfq loads",
            field="model",
            expected=MAX_FILE_BYTES,
        )
    return artifacts.read_bytes(path, expected, field="model")


def _from_h5(path: Path, content: bytes) -> ModelFile:
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            _check_h5(path, file)
            config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            if config is None:
                hint = "weights alone" if "layer_names" in file.attrs or "layers" in file else "no Keras model"
                raise InputError(
                    f"{path} is an HDF5 file without model_config: {hint}: expected {WANTED}: save the whole model "
                    "(model.save, not save_weights)",
                    field="model",
                    expected=WANTED,
                )
            if "model_weights" not in file:
                raise InputError(
                    f"{path} has a model_config but no model_weights group: expected {WANTED} with weights",
                    field="model",
                    expected=WANTED,
                )
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is a damaged HDF5 file ({error}): expected {WANTED}", field="model", expected=WANTED
        ) from error
    return ModelFile(
        path=path,
        container="h5",
        keras_version=_text(version),
        config=json_object(path, "model_config", config),
        content=content,
    )


def from_zip(path: Path, content: bytes) -> ModelFile:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_members(path, archive)
            names = set(archive.namelist())
            if "config.json" not in names or "metadata.json" not in names:
                raise InputError(
                    f"{path} is a zip without config.json and metadata.json, so no .keras file: expected {WANTED}",
                    field="model",
                    expected=WANTED,
                )
            config = json_object(path, "config.json", archive.read("config.json"))
            metadata = json_object(path, "metadata.json", archive.read("metadata.json"))
            if "model.weights.h5" in names:
                _check_inner_h5(path, archive.read("model.weights.h5"))
            elif "model.weights.npz" in names:
                with zipfile.ZipFile(io.BytesIO(archive.read("model.weights.npz"))) as inner:
                    _check_members(path, inner)
                    _check_no_pickle(path, inner)
            else:
                raise InputError(
                    f"{path} holds no model.weights.h5: expected {WANTED} with weights", field="model", expected=WANTED
                )
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path} is a damaged or encrypted zip ({error}): expected {WANTED}", field="model", expected=WANTED
        ) from error
    version = metadata.get("keras_version")
    if not isinstance(version, str) or not version:
        raise InputError(
            f"{path}: metadata.json has no keras_version: expected a .keras file as Keras writes it", field="model"
        )
    # Loading without compiling drops it, so nothing in it can run.
    config.pop("compile_config", None)
    return ModelFile(path=path, container="keras", keras_version=version, config=config, content=content)


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_FILE_BYTES:
        raise InputError(
            f"{path} unpacks to more than tfq loads ({len(members)} members, {MAX_FILE_BYTES} bytes at most)",
            field="model",
        )
    if len(set(names)) != len(names):
        raise InputError(
            f"{path}: two members of the zip have one name: what is looked at may not be what is loaded", field="model"
        )
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in parts[0]:
            raise InputError(
                f"{path}: the zip's member {member.filename!r} points outside of the archive", field="model"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: the zip's member {member.filename!r} is a symbolic link", field="model")
        if member.file_size > BOMB_FLOOR_BYTES and member.file_size > MAX_EXPANSION * member.compress_size:
            raise InputError(
                f"{path}: the zip's member {member.filename!r} expands from {member.compress_size} to "
                f"{member.file_size} bytes: a decompression bomb",
                field="model",
            )


def _check_no_pickle(path: Path, npz: zipfile.ZipFile) -> None:
    """Refuse arrays of Python objects, which NumPy keeps as pickles."""
    for name in npz.namelist():
        with npz.open(name) as member:
            header = member.read(_NPY_HEADER_BYTES).replace(b'"', b"'")
        if b"'|O'" in header or b"'O'" in header:
            raise InputError(
                f"{path}: {name} in its model.weights.npz is a pickle, which runs code when it is read", field="model"
            )


def _check_inner_h5(path: Path, content: bytes) -> None:
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            _check_h5(path, file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: its model.weights.h5 is damaged ({error})", field="model") from error


def _check_h5(path: Path, file: Any) -> None:
    """Refuse links and data that lie in other files, and data sets declared larger than tfq loads."""
    import h5py

    declared, seen, groups = 0, set(), [file]
    while groups:
        group = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            where = f"{path}: {group.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                raise InputError(
                    f"{where} is a link to another file ({link.filename!r}): such a model is not loaded", field="model"
                )
            if not isinstance(link, h5py.HardLink):
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > MAX_MEMBERS:
                raise InputError(f"{path} holds more than {MAX_MEMBERS} HDF5 objects", field="model")
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise InputError(
                        f"{where} keeps its data in another file: such a model is not loaded", field="model"
                    )
                declared += item.size * item.dtype.itemsize if item.size else 0
                if declared > MAX_FILE_BYTES:
                    raise InputError(
                        f"{where}: the data sets up to here declare {declared} bytes: more than tfq loads",
                        field="model",
                    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def json_object(path: Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, (str, bytes)):
        raise InputError(f"{path}: {what} is {type(value).__name__}: expected JSON text", field="model")
    if len(value) > MAX_JSON_BYTES:
        raise InputError(
            f"{path}: {what} has {len(value)} bytes: more than the {MAX_JSON_BYTES} that tfq reads",
            field="model",
            expected=MAX_JSON_BYTES,
        )
    try:
        config = json.loads(value)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: {what} is not JSON ({error}): expected {WANTED}", field="model", expected=WANTED
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: {what} is nested too deeply to be a model", field="model") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: {what} is a JSON {type(config).__name__}: expected an object", field="model")
    return config


def read_model_directory(path: Path) -> ModelFile:
    """The config and the weights in the directory at `path`, as bytes; nothing in it runs.

    Raises InputError, each with its own message, when it is no model, an exported SavedModel (no config is left in
    it), a subclassed model, damaged, too large, or holds a link.
    """
    if (path / "saved_model.pb").exists():
        return _from_saved_model(path)
    if all((path / name).exists() for name in _UNZIPPED[:2]):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name in _UNZIPPED:
                if (path / name).exists():
                    archive.writestr(name, _member(path, name))
        return from_zip(path, content.getvalue())
    raise InputError(
        f"{path} is a directory without saved_model.pb: expected {_WANTED}",
        field="model",
        expected=_WANTED,
        got=str(path),
    )


def _from_saved_model(path: Path) -> ModelFile:
    metadata = _root_metadata(path)
    name = metadata.get("class_name")
    if name not in _GRAPH_NETWORKS or not isinstance(metadata.get("config"), dict):
        raise InputError(
            f"{path} is a SavedModel of the subclassed model {name!r}, whose layers only its own Python code tells: "
            "wanted a functional or Sequential model: load it where its class is, rebuild it as one, and save that",
            field="model",
        )
    members = _variables(path)
    version = metadata.get("keras_version", "")
    return ModelFile(
        path=path,
        container="saved_model",
        keras_version=version if isinstance(version, str) else "",
        config={"class_name": name, "config": metadata["config"]},
        content=b"",
        members=members,
    )


def _root_metadata(path: Path) -> dict:
    """What Keras 2 says of the model itself."""
    texts: list[bytes] = []
    if (path / "keras_metadata.pb").exists():
        for node in _messages(path, "keras_metadata.pb", _member(path, "keras_metadata.pb"), (1,)):
            fields = dict(_fields(path, "keras_metadata.pb", node))
            text = fields.get(5)
            if fields.get(3) == b"root" and isinstance(text, bytes):
                texts.append(text)
    else:
        # meta_graphs[].object_graph_def.nodes[0].user_object.metadata: the first object is the root.
        graph = _member(path, "saved_model.pb")
        root = next(_messages(path, "saved_model.pb", graph, (2, 7, 1)), b"")
        texts.extend(text for text in _messages(path, "saved_model.pb", root, (4, 3)) if text.startswith(b"{"))
    if not texts:
        raise InputError(
            f"{path} is a SavedModel without Keras' config: exported for serving (model.export, tf.saved_model.save), "
            f"so its layers can no longer be told, pruned or trained: expected {_WANTED}: give what it was exported "
            f"from",
            field="model",
            expected=_WANTED,
        )
    return json_object(path, "the SavedModel's Keras metadata", texts[0])


def _variables(path: Path) -> dict[str, bytes]:
    try:
        names = sorted(item.name for item in (path / "variables").iterdir() if item.name.startswith("variables."))
    except OSError as error:
        raise InputError(
            f"{path} is a SavedModel without its variables directory ({error.strerror})", field="model"
        ) from error
    if "variables.index" not in names or len(names) < 2 or len(names) > MAX_MEMBERS:
        raise InputError(
            f"{path}/variables holds {names[:5]}: expected variables.index and variables.data-*", field="model"
        )
    members: dict[str, bytes] = {}
    for name in names:
        members[name] = _member(path, f"variables/{name}")
        if sum(map(len, members.values())) > MAX_FILE_BYTES:
            raise InputError(
                f"{path}/variables has more than the {MAX_FILE_BYTES} bytes that tfq loads",
                field="model",
                expected=MAX_FILE_BYTES,
            )
    return members


def _member(path: Path, name: str) -> bytes:
    file = path / name
    try:
        status = file.lstat()
        inside = (path / Path(name).parts[0]).lstat()
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}): expected {_WANTED}", field="model", expected=_WANTED
        ) from error
    if stat.S_ISLNK(status.st_mode) or stat.S_ISLNK(inside.st_mode):
        raise InputError(f"{file} is a symbolic link or lies behind one: such a model is not loaded", field="model")
    return _regular_content(file, status, _WANTED)


def _messages(path: Path, name: str, data: bytes, numbers: tuple[int, ...]) -> Iterator[bytes]:
    """The submessages that lie under the field numbers `numbers`, one within the other."""
    for number, value in _fields(path, name, data):
        if number != numbers[0] or not isinstance(value, bytes):
            continue
        if len(numbers) == 1:
            yield value
        else:
            yield from _messages(path, name, value, numbers[1:])


def _fields(path: Path, name: str, data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of one protobuf message: (number, its bytes or its integer). Source: protobuf's wire format."""
    position = 0
    while position < len(data):
        key, position = _varint(path, name, data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(path, name, data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(path, name, data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise InputError(
                f"{path}/{name} is damaged (wire type {kind} at byte {position}): expected {_WANTED}",
                field="model",
                expected=_WANTED,
            )
        if position + length > len(data):
            raise InputError(
                f"{path}/{name} is truncated: a field of {length} bytes at {position} of {len(data)}", field="model"
            )
        yield key >> 3, data[position : position + length]
        position += length


def _varint(path: Path, name: str, data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise InputError(
        f"{path}/{name} is truncated or damaged at byte {position}: expected {_WANTED}", field="model", expected=_WANTED
    )


def rebuilt_json(file: ModelFile) -> str:
    """The config of a SavedModel as tf_keras' model_from_json takes it."""
    return json.dumps({**file.config, "keras_version": file.keras_version, "backend": "tensorflow"})

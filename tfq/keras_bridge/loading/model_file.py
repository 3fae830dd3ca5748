# SPDX-License-Identifier: Apache-2.0
"""Read a saved model without trusting it: a .keras or .h5 file, or a SavedModel directory.

A SavedModel is a program, so its graphs are never loaded. The model is rebuilt from the config that Keras 2 stores next
to them, and its weights come from the checkpoint. The config is in keras_metadata.pb
(tf_keras/protobuf/saved_metadata.proto); before TensorFlow 2.5 it is the `metadata` of the objects in saved_model.pb
(tensorflow/core/protobuf/saved_object_graph.proto). Read in tf_keras 2.21.0.

The first bytes decide the format, not the file's name. Everything that is read has a size limit, and a file that refers
to other files is refused.
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

from tfq import artifacts, hdf5
from tfq.errors import InputError

_UNZIPPED = ("config.json", "metadata.json", "model.weights.h5")
_GRAPH_NETWORKS = ("Functional", "Model", "Sequential")
_EXPECTED_DIRECTORY = "a .keras or .h5 file, or a SavedModel directory that Keras 2's model.save wrote"

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

MAX_FILE_BYTES = artifacts.MAX_FILE_BYTES
MAX_JSON_BYTES = artifacts.MAX_JSON_BYTES
MAX_MEMBERS = 100_000
# Keras unpacks the members into files.
_MAX_NAME_BYTES = 255
# An array in an .npz begins with a header that contains its dtype within this many bytes.
_NPY_HEADER_BYTES = 4096

EXPECTED_FILE = "a Keras model (.keras or .h5)"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The content of a Keras model file, before Keras reads it.

    Attributes:
        path: The file or directory.
        container: "keras" (a zip), "h5", or "saved_model" (a directory of Keras 2).
        keras_version: The version inside the file; "" if there is none (Keras 1 and early 2).
        config: The model's own config, without the part that only compiling would read.
        content: The file's bytes; empty for a SavedModel.
        members: Name -> content of the checkpoint's files; only for a SavedModel.
    """

    path: Path
    container: str
    keras_version: str
    config: dict[str, Any]
    content: bytes
    members: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """The unpacked size in bytes, an upper bound of the size of the weights."""
        if self.container == "keras":
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                return sum(member.file_size for member in archive.infolist())
        return len(self.content) + sum(map(len, self.members.values()))

    @property
    def kind(self) -> str:
        """The Keras version that wrote the file and has to load it, "tf_keras" or "keras", from `keras_version`."""
        major = self.keras_version.partition(".")[0]
        if major in ("", "1", "2"):
            return "tf_keras"
        if major == "3":
            return "keras"
        raise InputError(
            f"{self.path}: expected a model of Keras 1, 2 or 3, got one of Keras {self.keras_version!r}",
            field="model",
            expected="Keras 1, 2 or 3",
            got=self.keras_version,
        )


def read_model_file(path: str | os.PathLike) -> ModelFile:
    """Return the content of the Keras model at `path`, a file or a directory. Nothing in it runs.

    Raises:
        InputError: It is missing, empty, too large, damaged, not a Keras model, only weights, or refers to other files.
            Each case has its own message.
    """
    path = Path(path)
    with artifacts.decoding(path, EXPECTED_FILE, field="model"):
        return _read_directory(path) if path.is_dir() else _read_file(path)


def _read_file(path: Path) -> ModelFile:
    content = artifacts.read_bytes(path, EXPECTED_FILE, field="model", max_bytes=MAX_FILE_BYTES)
    if content.startswith(HDF5_MAGIC):
        return _from_h5(path, content)
    if content.startswith(ZIP_MAGIC):
        return _from_zip(path, content)
    if content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05":
        raise InputError(
            f"{path} is a Python pickle, which runs code when it is read. Expected {EXPECTED_FILE}",
            field="model",
            expected=EXPECTED_FILE,
            limit="pickles",
        )
    if content[4:8] == b"TFL3":
        raise InputError(
            f"{path} is a TFLite flatbuffer. Expected {EXPECTED_FILE}: conversion starts from the Keras model",
            field="model",
            expected=EXPECTED_FILE,
            limit="tflite-training",
        )
    raise InputError(
        f"{path} is neither a .keras zip nor an HDF5 file (it begins with {content[:8]!r}). Expected {EXPECTED_FILE}",
        field="model",
        expected=EXPECTED_FILE,
    )


def _from_h5(path: Path, content: bytes) -> ModelFile:
    file = hdf5.check(str(path), content, ("model_config", "keras_version"))
    config = file.attributes.get("model_config")
    if config is None:
        is_weights = "layer_names" in file.attribute_names or "layers" in file.members
        hint = "only weights" if is_weights else "not a Keras model"
        raise InputError(
            f"{path} is an HDF5 file without model_config, so it is {hint}. Expected {EXPECTED_FILE}: save the "
            "complete model (model.save, not save_weights)",
            field="model",
            expected=EXPECTED_FILE,
            limit="weights-only",
        )
    if "model_weights" not in file.members:
        raise InputError(
            f"{path} has a model_config but no model_weights group. Expected {EXPECTED_FILE} with weights",
            field="model",
            expected=EXPECTED_FILE,
        )
    return ModelFile(
        path=path,
        container="h5",
        keras_version=_to_text(file.attributes.get("keras_version", "")),
        config=_json_object(path, "model_config", config),
        content=content,
    )


def _from_zip(path: Path, content: bytes) -> ModelFile:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_members(path, archive)
            names = set(archive.namelist())
            if "config.json" not in names or "metadata.json" not in names:
                raise InputError(
                    f"{path} is a zip without config.json and metadata.json, so it is not a .keras file. "
                    f"Expected {EXPECTED_FILE}",
                    field="model",
                    expected=EXPECTED_FILE,
                )
            config = _json_object(path, "config.json", archive.read("config.json"))
            metadata = _json_object(path, "metadata.json", archive.read("metadata.json"))
            if "model.weights.h5" in names:
                hdf5.check(f"{path}: its model.weights.h5", archive.read("model.weights.h5"))
            elif "model.weights.npz" in names:
                with zipfile.ZipFile(io.BytesIO(archive.read("model.weights.npz"))) as inner:
                    _check_members(path, inner)
                    _check_no_pickle(path, inner)
            else:
                raise InputError(
                    f"{path} has no model.weights.h5. Expected {EXPECTED_FILE} with weights",
                    field="model",
                    expected=EXPECTED_FILE,
                )
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path} is a damaged or encrypted zip ({error}). Expected {EXPECTED_FILE}",
            field="model",
            expected=EXPECTED_FILE,
        ) from error
    version = metadata.get("keras_version")
    if not isinstance(version, str) or not version:
        raise InputError(
            f"{path}: metadata.json has no keras_version. Expected a .keras file that Keras wrote", field="model"
        )
    # Models are loaded without compiling, which ignores this part, so nothing in it can run.
    config.pop("compile_config", None)
    return ModelFile(path=path, container="keras", keras_version=version, config=config, content=content)


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_FILE_BYTES:
        raise InputError(
            f"{path} is too large when unpacked. tfq loads at most {MAX_MEMBERS} members and {MAX_FILE_BYTES} bytes",
            field="model",
            limit="large-files",
        )
    if len(set(names)) != len(names):
        raise InputError(
            f"{path}: two members of the zip have the same name, so the inspected one may not be the loaded one",
            field="model",
        )
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in parts[0]:
            raise InputError(
                f"{path}: the zip member {member.filename!r} has a path outside of the archive", field="model"
            )
        if max(len(os.fsencode(part)) for part in parts) > _MAX_NAME_BYTES:
            raise InputError(
                f"{path}: a zip member has a name that no file can have: {member.filename[:100]!r}...", field="model"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: the zip member {member.filename!r} is a symbolic link", field="model")
        artifacts.check_expansion(f"{path}: the zip member {member.filename!r}", member.compress_size, member.file_size)


def _check_no_pickle(path: Path, npz: zipfile.ZipFile) -> None:
    """Raise InputError if an array has Python objects, which NumPy stores as pickles."""
    for name in npz.namelist():
        with npz.open(name) as member:
            header = member.read(_NPY_HEADER_BYTES).replace(b'"', b"'")
        if b"'|O'" in header or b"'O'" in header:
            raise InputError(
                f"{path}: {name} in model.weights.npz is a pickle, which runs code when it is read",
                field="model",
                limit="pickles",
            )


def _to_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _json_object(path: Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, (str, bytes)):
        raise InputError(f"{path}: expected JSON text in {what}, got {type(value).__name__}", field="model")
    if len(value) > MAX_JSON_BYTES:
        raise InputError(
            f"{path}: {what} has {len(value)} bytes. tfq reads at most {MAX_JSON_BYTES}",
            field="model",
            expected=MAX_JSON_BYTES,
            limit="large-files",
        )
    try:
        config = json.loads(value)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: {what} is not JSON ({error}). Expected {EXPECTED_FILE}", field="model", expected=EXPECTED_FILE
        ) from error
    except RecursionError as error:
        raise InputError(
            f"{path}: {what} is nested too deeply. Expected the config of a Keras model", field="model"
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object in {what}, got a {type(config).__name__}", field="model")
    return config


def _read_directory(path: Path) -> ModelFile:
    """Return the config and the weights in the directory at `path`. Nothing in it runs.

    Raises:
        InputError: It is not a model, an exported SavedModel (which has no config), a subclassed model, damaged, too
            large, or contains a link. Each case has its own message.
    """
    if (path / "saved_model.pb").exists():
        return _from_saved_model(path)
    if all((path / name).exists() for name in _UNZIPPED[:2]):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name in _UNZIPPED:
                if (path / name).exists():
                    archive.writestr(name, _member(path, name))
        return _from_zip(path, content.getvalue())
    raise InputError(
        f"{path} is a directory without saved_model.pb. Expected {_EXPECTED_DIRECTORY}",
        field="model",
        expected=_EXPECTED_DIRECTORY,
        got=str(path),
    )


def _from_saved_model(path: Path) -> ModelFile:
    metadata = _root_metadata(path)
    name = metadata.get("class_name")
    if not metadata:
        raise InputError(
            f"{path} is a SavedModel without a Keras config. It was exported for serving (model.export or "
            "tf.saved_model.save), so its layers cannot be recovered, pruned or trained. It can be converted: pass the "
            "directory to tfq.convert, or load it with tfq.load_saved_model. To compress the model by training, pass "
            f"the model that it was exported from. Expected {_EXPECTED_DIRECTORY}",
            field="model",
            expected=_EXPECTED_DIRECTORY,
            limit="exported-model",
        )
    if not _is_graph_network(metadata):
        raise InputError(
            f"{path} is a SavedModel of the subclassed model {name!r}, whose layers exist only in its Python code."
            " It can be converted: pass the directory to tfq.convert, or load it with tfq.load_saved_model. To "
            "compress the model by training, build it with the functional API where its class is available, and save "
            "that",
            field="model",
            limit="no-graph",
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


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Check whether `path` is a SavedModel from which no Keras model can be built, so that its graph is the model.

    Raises:
        InputError: It is a damaged SavedModel.
    """
    directory = Path(path)
    return (directory / "saved_model.pb").exists() and not _is_graph_network(_root_metadata(directory))


def read_saved_model_files(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return the content of saved_model.pb, and name -> content of the files of the checkpoint.

    Raises:
        InputError: The directory is not a SavedModel, is damaged or too large, or contains a link.
    """
    graph = _member(path, "saved_model.pb")
    return graph, _variables(path) if (path / "variables").exists() else {}


def _is_graph_network(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("class_name") in _GRAPH_NETWORKS and isinstance(metadata.get("config"), dict)


def _root_metadata(path: Path) -> dict:
    """Return the metadata that Keras 2 wrote for the model itself; {} if there is none."""
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
        return {}
    return _json_object(path, "the SavedModel's Keras metadata", texts[0])


def _variables(path: Path) -> dict[str, bytes]:
    try:
        names = sorted(item.name for item in (path / "variables").iterdir() if item.name.startswith("variables."))
    except OSError as error:
        raise InputError(
            f"{path} is a SavedModel without its variables directory ({error.strerror})", field="model"
        ) from error
    if "variables.index" not in names or len(names) < 2 or len(names) > MAX_MEMBERS:
        raise InputError(
            f"{path}/variables: expected variables.index and variables.data-*, got {names[:5]}", field="model"
        )
    members: dict[str, bytes] = {}
    for name in names:
        members[name] = _member(path, f"variables/{name}")
        if sum(map(len, members.values())) > MAX_FILE_BYTES:
            raise InputError(
                f"{path}/variables is too large. tfq loads at most {MAX_FILE_BYTES} bytes",
                field="model",
                expected=MAX_FILE_BYTES,
                limit="large-files",
            )
    return members


def _member(path: Path, name: str) -> bytes:
    file = path / name
    try:
        status = file.lstat()
        inside = (path / Path(name).parts[0]).lstat()
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}). Expected {_EXPECTED_DIRECTORY}",
            field="model",
            expected=_EXPECTED_DIRECTORY,
        ) from error
    if stat.S_ISLNK(status.st_mode) or stat.S_ISLNK(inside.st_mode):
        raise InputError(
            f"{file} is a symbolic link or inside of one. tfq does not load such a model",
            field="model",
            limit="external-data",
        )
    return artifacts.read_bytes(file, _EXPECTED_DIRECTORY, field="model", max_bytes=MAX_FILE_BYTES)


def _messages(path: Path, name: str, data: bytes, numbers: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the protobuf submessages at the path of field numbers `numbers`."""
    for number, value in _fields(path, name, data):
        if number != numbers[0] or not isinstance(value, bytes):
            continue
        if len(numbers) == 1:
            yield value
        else:
            yield from _messages(path, name, value, numbers[1:])


def _fields(path: Path, name: str, data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield (number, value) for each field of a protobuf message; the value is bytes or an integer.

    Source: protobuf's wire format.
    """
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
                f"{path}/{name} is damaged (wire type {kind} at byte {position}). Expected {_EXPECTED_DIRECTORY}",
                field="model",
                expected=_EXPECTED_DIRECTORY,
            )
        if position + length > len(data):
            raise InputError(
                f"{path}/{name} is truncated: it has {len(data)} bytes, and a field of {length} bytes begins at byte "
                f"{position}",
                field="model",
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
        f"{path}/{name} is truncated or damaged at byte {position}. Expected {_EXPECTED_DIRECTORY}",
        field="model",
        expected=_EXPECTED_DIRECTORY,
    )


def model_json(file: ModelFile) -> str:
    """Return the config of a SavedModel in the form that tf_keras' model_from_json reads."""
    return json.dumps({**file.config, "keras_version": file.keras_version, "backend": "tensorflow"})

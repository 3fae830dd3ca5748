# SPDX-License-Identifier: Apache-2.0
"""Models that are directories: Keras 2's SavedModel, and Keras 3's `.keras` saved without its zip.

A SavedModel is a program. Nothing of it runs here, and its graphs are not so much as read: the model is rebuilt from
the config that Keras 2 leaves beside them, and its weights come from the checkpoint. Read in tf_keras 2.21.0:
keras_metadata.pb (tf_keras/protobuf/saved_metadata.proto), and before TensorFlow 2.5 the `metadata` of the objects in
saved_model.pb (tensorflow/core/protobuf/saved_object_graph.proto).
"""

import io
import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tfq import artifacts
from tfq.errors import InputError
from tfq.keras_bridge.loading.model_file import MAX_FILE_BYTES, MAX_MEMBERS, ModelFile, from_zip, json_object

_UNZIPPED = ("config.json", "metadata.json", "model.weights.h5")
_GRAPH_NETWORKS = ("Functional", "Model", "Sequential")
_WANTED = "a .keras or .h5 file, or a SavedModel directory that Keras 2's model.save wrote"


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
    raise InputError(f"{path} is a directory without saved_model.pb: wanted {_WANTED}")


def _from_saved_model(path: Path) -> ModelFile:
    metadata = _root_metadata(path)
    name = metadata.get("class_name")
    if name not in _GRAPH_NETWORKS or not isinstance(metadata.get("config"), dict):
        raise InputError(
            f"{path} is a SavedModel of the subclassed model {name!r}, whose layers only its own Python code tells: "
            "wanted a functional or Sequential model: load it where its class is, rebuild it as one, and save that"
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
            f"so its layers can no longer be told, pruned or trained: wanted {_WANTED}: give what it was exported from"
        )
    return json_object(path, "the SavedModel's Keras metadata", texts[0])


def _variables(path: Path) -> dict[str, bytes]:
    try:
        names = sorted(item.name for item in (path / "variables").iterdir() if item.name.startswith("variables."))
    except OSError as error:
        raise InputError(f"{path} is a SavedModel without its variables directory ({error.strerror})") from error
    if "variables.index" not in names or len(names) < 2 or len(names) > MAX_MEMBERS:
        raise InputError(f"{path}/variables holds {names[:5]}: wanted variables.index and variables.data-*")
    members: dict[str, bytes] = {}
    for name in names:
        members[name] = _member(path, f"variables/{name}")
        if sum(map(len, members.values())) > MAX_FILE_BYTES:
            raise InputError(f"{path}/variables has more than the {MAX_FILE_BYTES} bytes that tfq loads")
    return members


def _member(path: Path, name: str) -> bytes:
    file = path / name
    try:
        status = file.lstat()
        inside = (path / Path(name).parts[0]).lstat()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): wanted {_WANTED}") from error
    if stat.S_ISLNK(status.st_mode) or stat.S_ISLNK(inside.st_mode):
        raise InputError(f"{file} is a symbolic link or lies behind one: such a model is not loaded")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file} is no regular file: wanted {_WANTED}")
    if status.st_size > MAX_FILE_BYTES:
        raise InputError(f"{file} has {status.st_size} bytes, more than the {MAX_FILE_BYTES} that tfq loads")
    return artifacts.read_bytes(file, _WANTED)


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
            raise InputError(f"{path}/{name} is damaged (wire type {kind} at byte {position}): wanted {_WANTED}")
        if position + length > len(data):
            raise InputError(f"{path}/{name} is truncated: a field of {length} bytes at {position} of {len(data)}")
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
    raise InputError(f"{path}/{name} is truncated or damaged at byte {position}: wanted {_WANTED}")


def rebuilt_json(file: ModelFile) -> str:
    """The config of a SavedModel as tf_keras' model_from_json takes it."""
    return json.dumps({**file.config, "keras_version": file.keras_version, "backend": "tensorflow"})

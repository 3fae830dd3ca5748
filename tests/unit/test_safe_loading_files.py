# SPDX-License-Identifier: Apache-2.0
"""Files without a Keras model or with a dangerous one: each has its own message, without TensorFlow."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from messages import key_word, refused

from tfq.errors import InputError
from tfq.keras_bridge.loading import model_file
from tfq.keras_bridge.loading.model_file import read_model_file

CONFIG = {"class_name": "Sequential", "config": {"name": "s", "layers": []}, "compile_config": {"loss": "mine"}}


def h5_bytes(change=lambda file: None):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["keras_version"] = b"2.4.0"
        file.attrs["model_config"] = json.dumps(CONFIG)
        file.create_group("model_weights").create_dataset("kernel", data=np.ones((2, 2), "float32"))
        change(file)
    return content.getvalue()


def zip_bytes(members=None, **changes):
    members = {
        "metadata.json": json.dumps({"keras_version": "3.4.1"}),
        "config.json": json.dumps(CONFIG),
        "model.weights.h5": h5_bytes(),
        **(members or {}),
        **changes,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            if value is not None:
                archive.writestr(name, value)
    return content.getvalue()


def put(tmp_path, content, name="m.keras"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refuses(path, word, limit=None):
    """Check that the file is refused with its path and, elsewhere in the message, `word`."""
    with refused(InputError, field="model", word=str(path), limit=limit) as caught:
        read_model_file(path)
    assert key_word(word) in str(caught.value).replace(str(path), "")


def test_an_h5_file_gives_version_and_config(tmp_path):
    file = read_model_file(put(tmp_path, h5_bytes(), "m.h5"))
    assert (file.container, file.keras_version, file.kind, file.config) == ("h5", "2.4.0", "tf_keras", CONFIG)


def test_a_keras_file_yields_version_and_config_without_compile_settings(tmp_path):
    file = read_model_file(put(tmp_path, zip_bytes()))
    assert (file.container, file.keras_version, file.kind) == ("keras", "3.4.1", "keras")
    assert file.config == {"class_name": "Sequential", "config": {"name": "s", "layers": []}}


def test_the_suffix_does_not_decide(tmp_path):
    assert read_model_file(put(tmp_path, h5_bytes(), "m.keras")).container == "h5"
    assert read_model_file(put(tmp_path, zip_bytes(), "m.h5")).container == "keras"


def test_the_keras_that_wrote_the_file_is_found_by_version(tmp_path):
    def version(text):
        content = zip_bytes({"metadata.json": json.dumps({"keras_version": text})})
        return read_model_file(put(tmp_path, content)).kind

    assert version("2.15.0") == "tf_keras"
    assert version("3.0.0.dev20240101") == "keras"
    with refused(InputError, field="model", expected="Keras 1, 2 or 3", got="4.0"):
        version("4.0")


def test_an_h5_file_before_versions_were_written_is_keras_2(tmp_path):
    def change(file):
        del file.attrs["keras_version"]

    assert read_model_file(put(tmp_path, h5_bytes(change))).kind == "tf_keras"


def test_missing_files_directories_and_empty_files_are_distinguished(tmp_path):
    refuses(tmp_path / "none.keras", "exist")
    refuses(tmp_path, "directory")
    refuses(put(tmp_path, b""), "empty")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    refuses(tmp_path / "pipe.h5", "regular")


def test_text_and_a_flatbuffer_are_distinguished(tmp_path):
    refuses(put(tmp_path, b"once upon a time"), "HDF5")
    refuses(put(tmp_path, b"\x1c\0\0\0TFL3....", "m.h5"), "TFLite", limit="tflite-training")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_called_that_and_never_read(tmp_path, protocol):
    content = pickle.dumps(Trap(str(tmp_path / "marker")), protocol=protocol)
    for suffix in ("h5", "keras"):
        refuses(put(tmp_path, content, f"m.{suffix}"), "pickle", limit="pickles")
    assert not (tmp_path / "marker").exists()
    # Check that the trap works.
    pickle.loads(content)
    assert (tmp_path / "marker").exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_arrays_in_npz_weights_are_refused_and_numbers_taken(tmp_path):
    def npz(**arrays):
        content = io.BytesIO()
        np.savez(content, **arrays)
        return {"model.weights.h5": None, "model.weights.npz": content.getvalue()}

    marker = tmp_path / "marker"
    trap = np.empty(1, object)
    trap[0] = Trap(str(marker))
    refuses(put(tmp_path, zip_bytes(npz(kernel=trap))), "pickle", limit="pickles")
    refuses(put(tmp_path, zip_bytes(npz(kernel=np.zeros(1, [("a", object)])))), "pickle", limit="pickles")
    assert not marker.exists()
    assert read_model_file(put(tmp_path, zip_bytes(npz(kernel=np.ones(3))))).kind == "keras"


def test_a_file_larger_than_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "MAX_FILE_BYTES", 10)
    refuses(put(tmp_path, h5_bytes()), "most")


@pytest.mark.parametrize("length", [9, 100, 800])
def test_a_truncated_h5_file_is_damaged(tmp_path, length):
    refuses(put(tmp_path, h5_bytes()[:length]), "damaged")


def test_a_truncated_zip_is_damaged(tmp_path):
    refuses(put(tmp_path, zip_bytes()[:-40]), "damaged")


def test_a_zip_with_a_changed_byte_is_damaged(tmp_path):
    content = bytearray(zip_bytes())
    content[content.index(b"Sequential")] ^= 1
    refuses(put(tmp_path, bytes(content)), "damaged")


def test_weights_alone_are_called_that(tmp_path):
    def change(file):
        del file.attrs["model_config"]
        file.attrs["layer_names"] = [b"dense"]

    refuses(put(tmp_path, h5_bytes(change)), "only", limit="weights-only")


def test_other_h5_files_are_not_keras_models(tmp_path):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["table"] = np.arange(3)
    refuses(put(tmp_path, content.getvalue()), "Keras", limit="weights-only")


def test_an_h5_model_without_weights_is_reported(tmp_path):
    def change(file):
        del file["model_weights"]

    refuses(put(tmp_path, h5_bytes(change)), "model_weights")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (b"{not json", "JSON"),
        (b"[1]", "list"),
        ("", "JSON"),
        (7, "text"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_a_model_config_that_is_not_a_json_object_is_reported(tmp_path, value, word):
    def change(file):
        file.attrs["model_config"] = value

    refuses(put(tmp_path, h5_bytes(change)), word)


def test_json_nested_too_deeply_is_reported(tmp_path):
    refuses(put(tmp_path, zip_bytes({"config.json": "[" * 200_000})), "nested")


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"config.json": None}, "config.json"),
        ({"metadata.json": None}, "metadata.json"),
        ({"model.weights.h5": None}, "model.weights.h5"),
        ({"metadata.json": "{}"}, "keras_version"),
        ({"metadata.json": '{"keras_version": 3}'}, "keras_version"),
        ({"config.json": "nope"}, "JSON"),
        ({"../../outside": "x"}, "outside"),
        ({"/etc/outside": "x"}, "outside"),
        ({"assets\\..\\..\\x": "x"}, "outside"),
        ({"model.weights.h5": b"not hdf5"}, "damaged"),
    ],
)
def test_a_zip_that_is_not_a_keras_file_is_reported(tmp_path, members, word):
    refuses(put(tmp_path, zip_bytes(members)), word)


def test_two_members_of_one_name_are_refused(tmp_path):
    content = io.BytesIO(zip_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(content, "a") as archive:
        archive.writestr("config.json", "{}")
    refuses(put(tmp_path, content.getvalue()), "name")


def test_a_symbolic_link_in_the_zip_is_refused(tmp_path):
    content = io.BytesIO(zip_bytes())
    with zipfile.ZipFile(content, "a") as archive:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    refuses(put(tmp_path, content.getvalue()), "symbolic")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    content = io.BytesIO(zip_bytes())
    with zipfile.ZipFile(content, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/bomb", b"\0" * (65 << 20))
    assert len(content.getvalue()) < 1 << 20
    refuses(put(tmp_path, content.getvalue()), "bomb")


def test_an_h5_link_to_another_file_is_refused_in_both_containers(tmp_path):
    def change(file):
        file["model_weights"]["leak"] = h5py.ExternalLink("/etc/passwd", "/x")

    refuses(put(tmp_path, h5_bytes(change)), "link", limit="external-data")
    refuses(put(tmp_path, zip_bytes({"model.weights.h5": h5_bytes(change)})), "link", limit="external-data")


def test_h5_data_that_lies_in_another_file_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"\0" * 16)

    def external(file):
        file.create_dataset("leak", (4,), "float32", external=[(str(tmp_path / "secret"), 0, 16)])

    def virtual(file):
        layout = h5py.VirtualLayout((4,), "float32")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
        file.create_virtual_dataset("leak", layout)

    for change in (external, virtual):
        path = tmp_path / "made.h5"
        with h5py.File(path, "w") as file:
            change(file)
        refuses(path, "another", limit="external-data")


def test_an_h5_data_set_declared_larger_than_the_limit_is_refused(tmp_path):
    def change(file):
        file.create_dataset("bomb", (1 << 20, 1 << 20), "float32", chunks=(64, 64))

    content = h5_bytes(change)
    assert len(content) < 1 << 20
    refuses(put(tmp_path, content), "most", limit="large-files")


def test_soft_links_that_run_in_circles_end(tmp_path):
    def change(file):
        file["model_weights"]["round"] = h5py.SoftLink("/model_weights")
        file["model_weights"]["hard"] = file["/"]

    assert read_model_file(put(tmp_path, h5_bytes(change))).kind == "tf_keras"


def test_looking_into_a_file_imports_neither_tensorflow_nor_keras(tmp_path):
    path = put(tmp_path, zip_bytes())
    code = (
        "import sys; from tfq.keras_bridge.loading.model_file import read_model_file; "
        "from tfq.keras_bridge.loading.inspection import find_code; "
        f"find_code(read_model_file({str(path)!r}).config); "
        "assert not {'tensorflow', 'keras', 'tf_keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

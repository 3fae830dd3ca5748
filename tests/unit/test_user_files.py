# SPDX-License-Identifier: Apache-2.0
"""Files that are none, never end or do not decode: an InputError at once, in bounded memory."""

import io
import json
import resource
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from container_mutations import container_mutant, container_mutants
from hostile_files import PATHS, as_ordinary_user
from messages import refused

from tfq import artifacts, hdf5, registry
from tfq.auditing import audit_model
from tfq.config import DataConfig
from tfq.data import load_split
from tfq.data.sources.tfrecord import count_records
from tfq.errors import InputError, ModelError, TfqError
from tfq.keras_bridge.loading.inspection import find_code
from tfq.keras_bridge.loading.model_file import read_model_file

TESTS = Path(__file__).resolve().parent.parent
HOSTILE, CONTAINERS = TESTS / "hostile", TESTS / "containers"


KINDS = (
    "named pipe", "device", "socket", "directory", "link to /", "dangling link", "link to itself", "link to memory",
    "unreadable", "unreadable directory", "below a file", "missing", "not UTF-8, missing", "long name", "long path",
    "null",
)  # fmt: skip


def hostile_paths(directory):
    """Return {kind: path} of things that are not regular files or cannot be opened."""
    paths = {"surrogate": "\ud800.py"}
    for number, kind in enumerate(KINDS):
        (directory / str(number)).mkdir()
        paths[kind] = PATHS[kind](directory / str(number), ".py")
    return paths


READERS = {
    "bytes": lambda path: artifacts.read_bytes(path, "a file"),
    "JSON": artifacts.read_json,
    "hash": artifacts.sha256_file,
    "model": read_model_file,
    "plugin": lambda path: registry.load_plugin(str(path)),
    "npz": lambda path: load_split(DataConfig(source=f"npz:{path}"), "test"),
    "tfrecord": lambda path: load_split(DataConfig(source=f"tfrecord:{path}"), "test"),
    "folder": lambda path: load_split(DataConfig(source=f"folder:{path}"), "test"),
    "eembc": lambda path: load_split(DataConfig(source=f"eembc:{path}"), "test"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_path_that_is_not_a_file_is_an_input_error(reader, tmp_path):
    for kind, path in hostile_paths(tmp_path).items():
        with registry.temporary(), as_ordinary_user(), pytest.raises(InputError):
            READERS[reader](path)
            pytest.fail(f"{kind} was read")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"\\ud800"', "\0", "\udcff", '{"a": 1, "a": 2}', "[NaN]"],
    ids=["deep list", "deep object", "digits", "surrogate", "null", "not UTF-8", "duplicate key", "NaN"],
)
def test_json_that_python_cannot_represent_is_an_input_error(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError):
        artifacts.read_json(path)


@pytest.mark.parametrize("name", ["damaged_lzma", "paren", "tuple_descr"])
def test_a_damaged_npz_is_an_input_error(name):
    with pytest.raises(InputError) as caught:
        load_split(DataConfig(source=f"npz:{HOSTILE / name}.npz"), "test")
    assert f"{name}.npz" in str(caught.value)


def test_a_damaged_keras_file_is_an_input_error():
    for name in ("trunc", "big_dataset_2gb"):
        with pytest.raises(InputError):
            read_model_file(HOSTILE / f"{name}.keras")


def test_a_class_name_that_is_a_list_is_found():
    assert find_code({"class_name": "Dense", "module": "keras", "registered_name": ["a"], "config": {}})


def test_a_few_kilobytes_do_not_become_gigabytes(tmp_path):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps({"class_name": "Model"}), "2.15.0"
        shape = (1 << 15, 1 << 14)
        file.create_dataset("model_weights/kernel", shape, "float32", chunks=shape, compression="gzip", fillvalue=0)
    path = tmp_path / "model.h5"
    path.write_bytes(content.getvalue())
    with pytest.raises(InputError) as caught:
        read_model_file(path)
    assert caught.value.got == 4 << 29


@pytest.mark.parametrize("container", ["h5", "keras"])
def test_a_file_that_crashes_the_hdf5_library_is_refused(container, tmp_path):
    # In this process, h5py would end it with SIGSEGV when it reads an attribute.
    content = container_mutant("tf_keras.h5", (CONTAINERS / "tf_keras.h5").read_bytes(), 416, "benchmark")
    path = tmp_path / f"model.{container}"
    if container == "h5":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(CONTAINERS / "keras.keras") as source, zipfile.ZipFile(path, "w") as archive:
            for name in source.namelist():
                archive.writestr(name, content if name.endswith(".h5") else source.read(name))
    with refused(InputError, field="model", word=str(path)):
        read_model_file(path)


def test_an_attribute_larger_than_the_file_is_not_allocated():
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.create("large", np.zeros(100))
    data = content.getvalue()
    assert hdf5.check("model.h5", data).attribute_names == {"large"}
    # The dimension of the attribute, and its maximum.
    data = data.replace(struct.pack("<QQ", 100, 100), struct.pack("<QQ", 1 << 30, 1 << 30))
    with refused(InputError, field="model", word="model.h5"):
        hdf5.check("model.h5", data)


def test_the_values_of_an_npz_must_be_in_the_file(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 8)})
    with zipfile.ZipFile(tmp_path / "test.npz", "w") as archive:
        archive.writestr("x_test.npy", header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="shape"):
        load_split(DataConfig(source=f"npz:{tmp_path / 'test.npz'}"), "test")


def test_an_input_of_gigabytes_is_refused_before_it_is_allocated(monkeypatch):
    from tfq import tflite
    from tfq.backends.limits import memory_limit

    parsed = tflite.read((HOSTILE / "slow_benchmark.tflite").read_bytes())
    assert memory_limit(parsed) > 0
    monkeypatch.setenv("TFQ_MAX_INPUT_MB", "60")
    with pytest.raises(ModelError) as caught:
        memory_limit(parsed)
    assert caught.value.got == 67_108_867


def test_a_scale_of_a_complex_tensor_does_not_make_it_quantized():
    report = audit_model((HOSTILE / "quantized_odd_type.tflite").read_bytes())
    assert report.to_dict()


@pytest.mark.parametrize(
    ("name", "count", "read"),
    [
        ("keras.keras", 200, read_model_file),
        ("tf_keras.h5", 200, read_model_file),  # number 8 makes HDF5 run forever
        ("digits.npz", 800, lambda path: load_split(DataConfig(source=f"npz:{path}"), "test")),
        ("digits.tfrecord", 800, lambda path: count_records([path])),
    ],
)
def test_damaged_containers_are_read_or_refused(name, count, read, tmp_path):
    data, outcomes, peak = (CONTAINERS / name).read_bytes(), {"read": 0, "refused": 0}, peak_kilobytes()
    path = tmp_path / name
    for mutant in container_mutants(name, data, count, "unit"):
        path.write_bytes(mutant)
        try:
            read(path)
            outcomes["read"] += 1
        except TfqError as error:
            assert error.exit_code == 2, error
            outcomes["refused"] += 1
    # Both must occur, otherwise this tests nothing.
    assert min(outcomes.values()) > 15, outcomes
    assert peak_kilobytes() - peak < 500_000


def peak_kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

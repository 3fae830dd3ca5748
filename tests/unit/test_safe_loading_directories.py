# SPDX-License-Identifier: Apache-2.0
"""Directories with a model, without one, or with a dangerous one: read without TensorFlow or running anything."""

import json
import os

import pytest
from messages import refused
from test_safe_loading_files import CONFIG, h5_bytes, refuses

from tfq.errors import InputError
from tfq.keras_bridge.loading.inspection import refuse_impossible_sizes
from tfq.keras_bridge.loading.model_file import ModelFile, read_model_file

ROOT = {"class_name": "Sequential", "keras_version": "2.15.0", "config": {"name": "s", "layers": []}}


def field(number, content):
    """Return a length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def keras_metadata(root=ROOT, path=b"root"):
    layer = field(3, b"root.layer-0") + field(4, b"_tf_keras_layer") + field(5, b"{}")
    network = varint(2 << 3) + varint(7) + field(3, path) + field(4, b"_tf_keras_network")
    return field(1, layer) + field(1, network + field(5, json.dumps(root).encode()))


def saved_model(tmp_path, metadata=None, graph=b"", **variables):
    directory = tmp_path / "saved"
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(graph)
    if metadata is not None:
        (directory / "keras_metadata.pb").write_bytes(metadata)
    for name, content in (variables or {"index": b"i", "data-00000-of-00001": b"d"}).items():
        (directory / "variables" / f"variables.{name}").write_bytes(content)
    return directory


def test_a_saved_model_of_keras_2_gives_version_config_and_checkpoint(tmp_path):
    file = read_model_file(saved_model(tmp_path, keras_metadata()))
    assert (file.container, file.kind, file.keras_version) == ("saved_model", "tf_keras", "2.15.0")
    assert file.config == {"class_name": "Sequential", "config": ROOT["config"]}
    assert file.members == {"variables.index": b"i", "variables.data-00000-of-00001": b"d"}


def test_configs_of_saved_models_before_tensorflow_2_5_are_read(tmp_path):
    user_object = field(1, b"_tf_keras_network") + field(3, json.dumps(ROOT).encode())
    layer = field(4, field(1, b"_tf_keras_layer") + field(3, b'{"class_name": "Dense"}'))
    objects = field(1, field(4, user_object)) + field(1, layer)
    file = read_model_file(saved_model(tmp_path, graph=varint(8) + b"\x01" + field(2, field(7, objects))))
    assert file.config["class_name"] == "Sequential"


def test_exported_and_saved_models_are_distinguished(tmp_path):
    refuses(saved_model(tmp_path, graph=varint(8) + b"\x01"), "exported", "exported-model")


def test_a_subclassed_model_is_called_by_its_class(tmp_path):
    refuses(saved_model(tmp_path, keras_metadata({**ROOT, "class_name": "Mine"})), "'Mine'", "no-graph")


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_truncated_metadata_is_reported(tmp_path, cut):
    refuses(saved_model(tmp_path, keras_metadata()[:-cut]), "truncated")


def test_metadata_that_is_not_a_protobuf_is_reported(tmp_path):
    refuses(saved_model(tmp_path, b"\x0f\x0f\x0f"), "damaged")
    refuses(saved_model(tmp_path / "2", b"\xff" * 30), "truncated")


def test_metadata_without_a_root_is_an_export(tmp_path):
    refuses(saved_model(tmp_path, keras_metadata(path=b"root.layer-1")), "exported", "exported-model")


def test_a_missing_checkpoint_is_reported(tmp_path):
    refuses(saved_model(tmp_path, keras_metadata(), index=b"i"), "variables.index")
    other = saved_model(tmp_path / "2", keras_metadata())
    for file in (other / "variables").iterdir():
        file.unlink()
    (other / "variables").rmdir()
    refuses(other, "variables")


def test_symbolic_links_inside_are_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"password")
    directory = saved_model(tmp_path, keras_metadata())
    data = directory / "variables" / "variables.data-00000-of-00001"
    data.unlink()
    data.symlink_to(secret)
    refuses(directory, "symbolic", "external-data")
    elsewhere = saved_model(tmp_path / "2", keras_metadata())
    (elsewhere / "variables").rename(tmp_path / "moved")
    (elsewhere / "variables").symlink_to(tmp_path / "moved")
    refuses(elsewhere, "symbolic", "external-data")


def test_a_pipe_inside_is_not_waited_for(tmp_path):
    directory = saved_model(tmp_path, keras_metadata())
    (directory / "keras_metadata.pb").unlink()
    os.mkfifo(directory / "keras_metadata.pb")
    refuses(directory, "regular")


def test_keras_3s_directory_is_its_zip_unpacked(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "metadata.json").write_text('{"keras_version": "3.4.1"}')
    refuses(tmp_path, "model.weights.h5")
    (tmp_path / "model.weights.h5").write_bytes(h5_bytes())
    file = read_model_file(tmp_path)
    assert (file.container, file.kind, file.config["class_name"]) == ("keras", "keras", "Sequential")


@pytest.mark.parametrize(
    "asked",
    [
        {"units": 10**12},
        {"filters": float("nan")},
        {"kernel_size": [10**6, 10**6]},
        {"input_dim": 1e30, "output_dim": 2},
    ],
)
def test_a_layer_with_more_weights_than_file_bits_is_refused(tmp_path, asked):
    def file(**settings):
        layers = [{"class_name": "Dense", "config": {"name": "greedy", **settings}}]
        config = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
        return ModelFile(path=tmp_path / "m.h5", container="h5", keras_version="2", config=config, content=b"x" * 1000)

    refuse_impossible_sizes(file(units=250, kernel_size=[3, 3], filters="many", input_dim=None))
    with refused(InputError, field="model", expected=1000, word="'s/greedy'"):
        refuse_impossible_sizes(file(**asked))

# SPDX-License-Identifier: Apache-2.0
"""Model files of both Kerases in both formats: harmless ones load, hostile ones never run."""

import json
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from messages import refused

from tfq.errors import InputError
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot, load_model, model_kind

KINDS = ("tf_keras", "keras")
SUFFIXES = ("h5", "keras")
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def module_of(kind):
    return import_tf_keras() if kind == "tf_keras" else import_keras()


def saved(model, path):
    with pytest.warns() if path.suffix == ".h5" and model_kind(model) == "tf_keras" else nothing():
        model.save(path)
    return path


class nothing:
    def __enter__(self):
        return self

    def __exit__(self, *raised):
        return None


def small_model(keras):
    inputs = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(3, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-4), name="conv")(
        inputs
    )
    x = keras.layers.BatchNormalization(name="bn")(x)
    shortcut = keras.layers.DepthwiseConv2D(1, name="depthwise")(x)
    x = keras.layers.Add(name="sum")([x, shortcut])
    x = keras.layers.TimeDistributed(keras.layers.Dense(2), name="rows")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    inner = keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dropout(0.1)], name="inner")
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="head")(inner(x)), name="small")


def lambda_model(keras, marker, nested=False):
    # From a string, so that the path is in the bytecode itself.
    payload = eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]")
    layer = keras.layers.Lambda(payload, output_shape=(3,), name="payload")
    inputs = keras.Input((3,), name="x")
    if nested:
        inside = keras.Input((3,), name="inside")
        layer = keras.Model(inside, layer(inside), name="inner")
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(layer(inputs)))
    # Building the model has already called the payload.
    marker.unlink(missing_ok=True)
    return model


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_loads_with_the_keras_that_wrote_it(tmp_path, kind, suffix):
    model = small_model(module_of(kind))
    model.compile("adam", "sparse_categorical_crossentropy")
    loaded = load_model(saved(model, tmp_path / f"m.{suffix}"))
    assert model_kind(loaded) == kind and not getattr(loaded, "optimizer", None)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_another_suffix_is_loaded_by_content(tmp_path, kind):
    model = small_model(module_of(kind))
    h5 = saved(model, tmp_path / "m.h5").rename(tmp_path / "h5.keras")
    zipped = saved(model, tmp_path / "m.keras").rename(tmp_path / "zip.bin")
    assert model_kind(load_model(h5)) == model_kind(load_model(str(zipped))) == kind


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_lambda_never_runs_unless_code_is_allowed(tmp_path, kind, suffix, nested):
    marker = tmp_path / "marker"
    path = saved(lambda_model(module_of(kind), marker, nested), tmp_path / f"m.{suffix}")
    with refused(InputError, field="model", expected="no code", word="payload"):
        load_model(path)
    assert not marker.exists()
    loaded = load_model(path, allow_code=True)
    loaded(np.zeros((1, 3), "float32"))
    assert marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_stock_tf_keras_does_run_the_lambda_of_an_h5_file(tmp_path):
    # Check that the marker works: the loader that the FACTS warn of triggers it.
    tf_keras, marker = import_tf_keras(), tmp_path / "marker"
    path = saved(lambda_model(tf_keras, marker), tmp_path / "m.h5")
    tf_keras.models.load_model(path)
    assert marker.exists()


def changed_config(path, change):
    """Change the config of the `.keras` or `.h5` file at `path` by `change(config)`."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return path


def hostile_module(tmp_path, monkeypatch):
    """Return the name of an importable module, and the file that importing or calling it creates."""
    marker, name = tmp_path / "marker", f"hostile_{tmp_path.name.replace('-', '_')}"
    source = f"open({str(marker)!r}, 'w').close()\ndef act(x): return x\nclass Thing:\n    pass\n"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return name, marker


def layer_named(config, name):
    return next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == name)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_the_file_names_is_never_imported(tmp_path, monkeypatch, kind, suffix):
    module, marker = hostile_module(tmp_path, monkeypatch)
    function = {"module": module, "class_name": "function", "config": "act", "registered_name": "act"}

    def in_activation(config):
        layer_named(config, "head")["config"]["activation"] = function

    def as_layer(config):
        layer_named(config, "bn").update(module=module, class_name="Thing", registered_name=None)

    def as_function_class(config):
        layer_named(config, "bn").update(module=module, class_name="act", registered_name="act")

    def as_model(config):
        config.update(module=module, class_name="Thing", registered_name=None)

    def in_build_config(config):
        layer_named(config, "flatten")["build_config"] = {"input_shape": [None, 4], "x": function}

    def in_compile_config_of_a_nested_model(config):
        layer_named(config, "inner")["compile_config"] = {"loss": function}

    changes = (
        in_activation,
        as_layer,
        as_model,
        as_function_class,
        in_build_config,
        in_compile_config_of_a_nested_model,
    )
    for number, change in enumerate(changes):
        path = saved(small_model(module_of(kind)), tmp_path / f"{number}.{suffix}")
        with refused(InputError, field="model", expected="no code", word=module):
            load_model(changed_config(path, change))
    assert not marker.exists() and module not in sys.modules


def test_stock_tf_keras_imports_a_module_named_by_a_file(tmp_path, monkeypatch):
    module, marker = hostile_module(tmp_path, monkeypatch)

    def change(config):
        config.update(module=module, class_name="Thing", registered_name=None)

    tf_keras = import_tf_keras()
    path = changed_config(saved(small_model(tf_keras), tmp_path / "m.keras"), change)
    with pytest.raises(TypeError):
        tf_keras.models.load_model(path)
    assert marker.exists()


def test_a_file_that_calls_itself_another_keras_gets_no_further(tmp_path, monkeypatch):
    # Keras 3 itself refuses foreign modules; a Keras 3 file that claims 2.0 would reach tf_keras, which does not.
    module, marker = hostile_module(tmp_path, monkeypatch)
    path = saved(small_model(import_keras()), tmp_path / "m.keras")

    def change(config):
        config.update(module=module, class_name="Thing", registered_name=None)

    changed_config(path, change)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["metadata.json"] = json.dumps({"keras_version": "2.0.0"})
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    with refused(InputError, field="model", word=module):
        load_model(path)
    assert not marker.exists()


def test_tensorflow_functions_that_write_files_are_refused_and_arithmetic_loads(tmp_path):
    tf_keras = import_tf_keras()
    import tensorflow as tf

    inputs = tf_keras.Input((3,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(1)(tf.nn.relu6(inputs * 2.0 + 1.0)[:, :2]))
    path = saved(model, tmp_path / "m.h5")
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(load_model(path)(x), model(x))

    def change(config):
        next(layer for layer in config["config"]["layers"] if layer["class_name"] == "TFOpLambda")["config"][
            "function"
        ] = "io.write_file"

    with refused(InputError, field="model", expected="no code", word="io.write_file"):
        load_model(changed_config(path, change))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_custom_layer_loads_once_its_class_is_registered(tmp_path, kind, suffix):
    keras = module_of(kind)

    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return inputs * 2

    inputs = keras.Input((3,), name="x")
    path = saved(keras.Model(inputs, Doubled(name="doubled")(inputs)), tmp_path / f"m.{suffix}")
    with refused(InputError, field="model", expected="no code", word="Doubled"):
        load_model(path)
    before = dict(keras.saving.get_custom_objects())
    try:
        registered = keras.saving.register_keras_serializable(package="tests")(Doubled)
        inputs = keras.Input((3,), name="x")
        path = saved(keras.Model(inputs, registered(name="doubled")(inputs)), tmp_path / f"registered.{suffix}")
        np.testing.assert_array_equal(load_model(path)(np.ones((1, 3), "float32")), [[2, 2, 2]])
    finally:
        keras.saving.get_custom_objects().clear()
        keras.saving.get_custom_objects().update(before)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_shape_are_an_error_with_kerass_reason(tmp_path, kind, suffix):
    path = saved(small_model(module_of(kind)), tmp_path / f"m.{suffix}")

    def change(config):
        layer_named(config, "conv")["config"]["filters"] = 5

    with refused(InputError, field="model", got=str(path)) as caught:
        load_model(changed_config(path, change))
    assert caught.value.__cause__ is not None


def test_keras_2_depthwise_files_load_with_tf_keras_only(tmp_path):
    path = saved(small_model(import_tf_keras()), tmp_path / "m.h5")
    with pytest.raises((TypeError, ValueError)):
        import_keras().saving.load_model(path, compile=False)
    assert model_kind(load_model(path)) == "tf_keras"


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared")
def test_the_reference_model_of_mlperf_tiny_loads():
    model = load_model(SHARED / "models" / "mlperf_tiny_resnet8_cifar10.h5")
    assert model_kind(model) == "tf_keras" and model.count_params() == 78_666


def test_safe_mode_of_tf_keras_is_where_we_touch_it():
    import_tf_keras()
    from tf_keras.src.saving import serialization_lib

    assert serialization_lib.in_safe_mode() is None
    with serialization_lib.SafeModeScope(True):
        assert serialization_lib.in_safe_mode() is True
    assert serialization_lib.in_safe_mode() is None


@pytest.mark.parametrize("name", ["qat.h5", "qat.keras"])
def test_a_quantization_aware_model_comes_back_from_its_file(tmp_path, name):
    tf_keras = import_tf_keras()
    plain = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, activation="relu")])
    model = import_tfmot().quantization.keras.quantize_model(plain)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    model(x, training=True)
    model.save(str(tmp_path / name))
    np.testing.assert_array_equal(load_model(tmp_path / name)(x), model(x))

# SPDX-License-Identifier: Apache-2.0
"""SavedModels, live models, custom objects, old versions of .h5: which ones load; hostile code never runs."""

import json
import shutil
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from messages import refused
from test_keras_bridge_loading import changed_config, lambda_model, layer_named, saved, small_model

from tfq import registry
from tfq.errors import InputError
from tfq.keras_bridge import import_keras, import_tf_keras, load_model, model_kind
from tfq.keras_bridge.loading.custom_objects import custom_objects_of

IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")


@pytest.fixture(autouse=True)
def no_warning_of_old_formats():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def keras_2(tmp_path_factory):
    """Return a model with a nested one, a wrapper, moved statistics and an optimizer; and its SavedModel."""
    model = small_model(import_tf_keras())
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(1)
    model.set_weights([weights + rng.uniform(0, 1, weights.shape) for weights in model.get_weights()])
    path = tmp_path_factory.mktemp("keras_2") / "saved"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path, save_format="tf")
    return model, path


def test_a_keras_2_saved_model_loads_with_weights_and_runs_nothing(keras_2, tmp_path):
    model, path = keras_2
    shutil.copytree(path, tmp_path / "saved")
    # Graphs that no TensorFlow could load, because they are not read.
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"not a graph")
    loaded = load_model(tmp_path / "saved")
    assert model_kind(loaded) == "tf_keras" and [a.name for a in loaded.layers] == [a.name for a in model.layers]
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_a_checkpoint_that_lacks_a_weight_or_is_damaged_is_refused(keras_2, tmp_path):
    def check(name, old, new):
        path = shutil.copytree(keras_2[1], tmp_path / new.strip(b' :"').decode())
        content = (path / name).read_bytes()
        assert old in content and len(old) == len(new)
        (path / name).write_bytes(content.replace(old, new))
        with refused(InputError, field="model", got=str(path)):
            load_model(path)

    # The same length, so that the lengths in the protobuf stay valid.
    check("keras_metadata.pb", b'"class_name": "Flatten"', b'"class_name":   "PReLU"')
    check("keras_metadata.pb", b'"filters": 3', b'"filters": 5')
    check("variables/variables.index", b"layer_with_weights-0", b"layer_with_weights-7")


def test_a_saved_model_with_python_code_never_runs_it(tmp_path):
    import tensorflow as tf

    marker, tf_keras = tmp_path / "marker", import_tf_keras()
    lambda_model(tf_keras, marker).save(tmp_path / "lambda", save_format="tf")
    marker.unlink(missing_ok=True)
    with refused(InputError, field="model", expected="no code", word="Lambda", limit="code-in-files"):
        load_model(tmp_path / "lambda")

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((2,))])
        def serve(self, x):
            tf.io.write_file(str(marker), "x")
            return tf.py_function(lambda y: y, [x], tf.float32)

    tf.saved_model.save(Module(), str(tmp_path / "py_function"))
    with refused(InputError, field="model", word="serving"):
        load_model(tmp_path / "py_function")
    assert not marker.exists()


def test_a_keras_3_export_is_distinguished_from_a_prunable_model(tmp_path):
    small_model(import_keras()).export(tmp_path / "exported", verbose=False)
    with refused(InputError, field="model", word="serving", limit="exported-model"):
        load_model(tmp_path / "exported")


def test_keras_3s_unzipped_directory_loads(tmp_path):
    model = small_model(import_keras())
    with zipfile.ZipFile(saved(model, tmp_path / "m.keras")) as archive:
        archive.extractall(tmp_path / "unzipped")
    np.testing.assert_array_equal(load_model(tmp_path / "unzipped")(IMAGES), model(IMAGES))


def test_a_live_model_is_itself_and_anything_else_is_refused():
    for keras in (import_tf_keras(), import_keras()):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        assert load_model(model) is model
    with refused(InputError, field="model", expected=("tf_keras", "keras"), got="builtins.int"):
        load_model(3)


@pytest.mark.parametrize("suffix", ["h5", "keras", "saved"])
@pytest.mark.parametrize("kind", ["tf_keras", "keras"])
def test_custom_objects_of_a_file_are_found_and_without_them_refused(tmp_path, kind, suffix):
    if (kind, suffix) == ("keras", "saved"):
        pytest.skip("Keras 3 writes no SavedModel with a config")
    (tmp_path / "mine.py").write_text(
        f"from tfq.keras_bridge import import_{kind}\n"
        f"keras = import_{kind}()\n"
        "class Tripled(keras.layers.Layer):\n"
        "    def call(self, inputs):\n"
        "        return inputs * 3\n"
        "def shifted(x):\n"
        "    return x + 1\n"
    )
    with registry.temporary():
        objects = custom_objects_of(registry.load_plugin(str(tmp_path / "mine.py")).module, "mine.py")
    keras = import_tf_keras() if kind == "tf_keras" else import_keras()
    inputs = keras.Input((2,), name="x")
    x = keras.layers.Activation(objects["shifted"], name="act")(objects["Tripled"](name="tripled")(inputs))
    path = tmp_path / (f"m.{suffix}" if suffix != "saved" else "saved")
    keras.Model(inputs, x).save(path, **({"save_format": "tf"} if suffix == "saved" else {}))
    with refused(InputError, field="model", expected="no code", word="plugin", limit="code-in-files"):
        load_model(path)
    np.testing.assert_array_equal(load_model(path, custom_objects=objects)(np.ones((1, 2), "float32")), [[4, 4]])


def test_a_registered_class_name_does_not_admit_an_arbitrary_module(tmp_path):
    tf_keras = import_tf_keras()

    def change(config):
        layer_named(config, "flatten").update(module="antigravity", class_name="Mine", registered_name=None)

    path = changed_config(saved(small_model(tf_keras), tmp_path / "m.keras"), change)
    with refused(InputError, field="model", expected="no code", word="antigravity"):
        load_model(path, custom_objects={"Mine": tf_keras.layers.Flatten})


def rewritten(path, version, change=lambda config: None):
    """Rewrite the .h5 at `path` as another version of Keras 2 wrote it."""
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        strip_new_format(config)
        file.attrs["model_config"] = json.dumps(config)
        if version is None:
            del file.attrs["keras_version"]
        else:
            file.attrs["keras_version"] = version
    return path


def strip_new_format(node):
    """Remove the modules and registered names of 2.13, the DTypePolicy dicts and the later build configs."""
    if isinstance(node, dict):
        for key in ("module", "registered_name", "build_config"):
            node.pop(key, None)
        for value in node.values():
            strip_new_format(value)
    elif isinstance(node, list):
        for value in node:
            strip_new_format(value)


def with_groups(config):
    layer_named(config, "depthwise")["config"]["groups"] = 1


@pytest.mark.parametrize("version", ["2.15.0", "2.12.0", "2.7.0", "2.4.0", "2.2.4-tf", "2.1.6-tf"])
def test_the_generations_of_keras_2_load_and_compute_the_same(tmp_path, version):
    # DepthwiseConv2D's own `groups` was added in 2.3 with TensorFlow 2.3's.
    model = small_model(import_tf_keras())
    change = with_groups if version >= "2.4" else (lambda config: None)
    path = rewritten(saved(model, tmp_path / "m.h5"), version, change)
    np.testing.assert_array_equal(load_model(path)(IMAGES), model(IMAGES))


def test_a_keras_2_0_sequential_model_with_a_list_config_loads(tmp_path):
    tf_keras = import_tf_keras()
    model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(2,), name="a"), tf_keras.layers.Dense(1)])

    def change(config):
        config["config"] = [layer for layer in config["config"]["layers"] if layer["class_name"] != "InputLayer"]
        config["config"][0]["config"]["batch_input_shape"] = [None, 2]

    path = rewritten(saved(model, tmp_path / "m.h5"), None, change)
    x = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(load_model(path)(x), model(x))


@pytest.mark.parametrize(
    ("layer", "setting", "value"),
    [
        ("image", "shape", [None, float("nan"), 6, 2]),
        ("image", "shape", [None, -6, 6, 2]),
        ("image", "shape", [None, "six", 6, 2]),
        ("image", "shape", [None, 10**18, 10**18, 2]),
        ("conv", "filters", 10**12),
        ("conv", "kernel_size", [10**9, 10**9]),
        ("conv", "filters", -1),
        ("conv", "strides", [0, 0]),
        ("conv", "dtype", "float1024"),
        ("conv", "kernel_initializer", {"class_name": "Constant", "config": {"value": {"a": 1}}}),
        ("conv", "name", 7),
    ],
)
@pytest.mark.parametrize("kind", ["tf_keras", "keras"])
def test_settings_that_make_no_layer_are_an_input_error(tmp_path, kind, layer, setting, value):
    def change(config):
        settings = layer_named(config, layer)["config"]
        if setting == "shape":
            settings["batch_input_shape" if "batch_input_shape" in settings else "batch_shape"] = value
        else:
            settings[setting] = value

    path = saved(small_model(import_tf_keras() if kind == "tf_keras" else import_keras()), tmp_path / "m.h5")
    with pytest.raises(InputError):
        load_model(changed_config(path, change))

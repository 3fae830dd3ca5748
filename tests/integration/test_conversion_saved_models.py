# SPDX-License-Identifier: Apache-2.0
"""SavedModels without a Keras config are converted; TensorFlow's own loader is the oracle."""

import shutil

import numpy as np
import pytest
from interpreted import outputs_by_name, sqnr_db
from messages import refused, warned

import tfq
from tfq.keras_bridge import import_keras, import_tensorflow, import_tf_keras

tf = import_tensorflow()
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (16, 8, 8, 3)).astype("float32")
ROWS = RANDOM.uniform(-1, 1, (16, 4)).astype("float32")
FLOAT = tfq.ConversionConfig(scheme="float32")
ROW_SPEC = tf.TensorSpec((None, 4), tf.float32, name="row")


class Several(tf.Module):
    """Signatures with several inputs and outputs, a fixed batch, integers, unknown sizes, and shared variables."""

    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(RANDOM.normal(size=(4, 3)).astype("float32"))
        self.bias = tf.Variable([1.0, 2.0, 3.0])

    @tf.function(input_signature=[ROW_SPEC, tf.TensorSpec((None, 3), tf.float32, name="extra")])
    def pair(self, row, extra):
        product = row @ self.weights + self.bias
        return {"sum": product + extra, "product": product}

    @tf.function(input_signature=[tf.TensorSpec((2, 4), tf.float32, name="row")])
    def fixed(self, row):
        return tf.nn.relu(row @ self.weights)

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.int32, name="ids")])
    def lookup(self, ids):
        return tf.reduce_sum(tf.gather(self.weights, ids), axis=1)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, name="image")])
    def pooled(self, image):
        return tf.reduce_mean(image, axis=(1, 2)) * self.bias


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "several"
    module = Several()
    names = ("pair", "fixed", "lookup", "pooled")
    tf.saved_model.save(module, str(path), signatures={name: getattr(module, name) for name in names})
    return path


def by_tensorflow(path, signature, inputs, batch_size=16):
    function = tf.saved_model.load(str(path)).signatures[signature]
    pieces = [
        function(**{name: tf.constant(array[start : start + batch_size]) for name, array in inputs.items()})
        for start in range(0, 16, batch_size)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


# Signature -> (inputs, settings).
SIGNATURES = {
    "pair": ({"row": ROWS, "extra": ROWS[:, :3]}, {}),
    "fixed": ({"row": ROWS}, {"batch_size": 2}),
    "lookup": ({"ids": RANDOM.integers(0, 4, (16, 3)).astype("int32")}, {}),
    "pooled": ({"image": IMAGES}, {"input_shapes": ("image=8x8x3",)}),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_computes_what_tensorflow_does(several, name):
    inputs, settings = SIGNATURES[name]
    batch_size = settings.get("batch_size", 1)
    expected = by_tensorflow(several, name, inputs, batch_size if name == "fixed" else 16)
    for scheme in ("float32", "int8"):
        config = tfq.ConversionConfig(scheme=scheme, signature=name, **settings)
        content = tfq.convert(several, inputs, config)
        assert {spec.name for spec in tfq.data.input_specs(content)} == inputs.keys()
        outputs = outputs_by_name(content, inputs, batch_size=batch_size)
        assert outputs.keys() == expected.keys()
        for output, array in expected.items():
            if scheme == "float32":
                np.testing.assert_allclose(outputs[output], array, atol=1e-5)
            else:
                assert sqnr_db(array, outputs[output]) > 25


def small_model(keras):
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("module", "how"), [(import_keras, "export"), (import_tf_keras, "export"), (import_tf_keras, "save")]
)
def test_an_exported_keras_model_is_converted_with_its_layer_names(module, how, tmp_path):
    model = small_model(module())
    if how == "export":
        model.export(str(tmp_path / "saved"))
    else:
        tf.saved_model.save(model, str(tmp_path / "saved"))
    content = tfq.convert(tmp_path / "saved", IMAGES)
    graph = tfq.tflite.read(content).main_subgraph
    assert {op.keras_layer for op in graph.ops} >= {"conv", "head"}
    (spec,) = tfq.data.input_specs(content)
    assert spec.name == "image"
    (output,) = outputs_by_name(content, {spec.name: IMAGES}).values()
    assert sqnr_db(np.asarray(model(IMAGES)), output) > 25


def test_several_signatures_without_a_default_are_listed(several):
    names = ("fixed", "lookup", "pair", "pooled")
    with refused(tfq.InputError, field="conversion.signature", expected=names, got=""):
        tfq.convert(several, ROWS)
    with refused(tfq.InputError, field="conversion.signature", expected=names, got="pairs"):
        tfq.convert(several, ROWS, tfq.ConversionConfig(signature="pairs"))


def test_another_batch_size_and_unknown_sizes_of_a_signature_are_refused(several):
    with refused(tfq.InputError, field="conversion.batch_size", expected=2, got=1, limit="batch-size"):
        tfq.convert(several, None, tfq.ConversionConfig(scheme="float32", signature="fixed"))
    with refused(tfq.InputError, field="conversion.input_shapes", word="image=NxNx3", limit="open-sizes"):
        tfq.convert(several, None, tfq.ConversionConfig(scheme="float32", signature="pooled"))


def saved(tmp_path, function, *specs, **tracked):
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    module.call = tf.function(function, input_signature=list(specs) or [ROW_SPEC])
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.call)
    return tmp_path / "saved"


def test_ops_that_reach_the_host_are_refused_before_anything_runs(tmp_path):
    target = tmp_path / "written"

    def call(row):
        tf.io.write_file(str(target), "content")
        secret = tf.strings.length(tf.io.read_file(str(tmp_path / "secret")))
        more = tf.numpy_function(lambda x: x, [row], tf.float32)
        return row * tf.cast(secret, tf.float32) + tf.reshape(more, (-1, 4))

    (tmp_path / "secret").write_text("password")
    path = saved(tmp_path, call)
    target.unlink(missing_ok=True)
    with refused(tfq.InputError, field="model", word="WriteFile", limit="saved-model-ops") as caught:
        tfq.convert(path, ROWS)
    assert set(caught.value.got) == {"WriteFile", "ReadFile", "PyFunc"}
    assert not target.exists()
    with pytest.raises(tfq.InputError) as caught:  # allowed code is left to TensorFlow's converter
        tfq.convert(tfq.load_saved_model(path, allow_code=True), ROWS, FLOAT)
    assert caught.value.expected != "ops that only compute"


def test_an_initializer_of_a_saved_model_does_not_run(tmp_path):
    path = saved(tmp_path, lambda row: row * 2.0)
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = message.meta_graphs[0].graph_def
    with tf.Graph().as_default() as attack:
        tf.io.write_file(str(tmp_path / "written"), "content", name="attack")
    graph.node.extend(attack.as_graph_def().node)
    initializer = message.meta_graphs[0].signature_def["__saved_model_init_op"]
    initializer.outputs["__saved_model_init_op"].name = "attack"
    (path / "saved_model.pb").write_bytes(message.SerializeToString())
    tfq.convert(path, ROWS, FLOAT)
    assert not (tmp_path / "written").exists()


def test_lookup_tables_and_text_are_refused(tmp_path):
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [10.0, 20.0], tf.int64), -1.0)
    path = saved(tmp_path / "a", table.lookup, tf.TensorSpec((None, 3), tf.int64, name="ids"), table=table)
    with refused(tfq.InputError, field="model", word="LookupTableFindV2", limit="saved-model-ops"):
        tfq.convert(path, np.ones((16, 3), "int64"))
    text = saved(tmp_path / "b", tf.strings.length, tf.TensorSpec((None,), tf.string, name="text"))
    with refused(tfq.InputError, field="model", expected="numbers", got="string", limit="text-input"):
        tfq.convert(text, None, FLOAT)


def test_a_state_that_the_outputs_depend_on_is_refused(tmp_path):
    counter = tf.Variable(0.0, name="counter")

    def call(row):
        counter.assign_add(1.0)
        return row * counter

    with refused(tfq.InputError, field="model", word="counter", limit="state"):
        tfq.convert(saved(tmp_path, call, counter=counter), None, FLOAT)


def test_damaged_and_foreign_directories_are_refused(several, tmp_path):
    def copy(name):
        return shutil.copytree(several, tmp_path / name)

    config = tfq.ConversionConfig(scheme="float32", signature="pair")
    no_variables, no_graph, damaged = copy("no_variables"), copy("no_graph"), copy("damaged")
    shutil.rmtree(no_variables / "variables")
    (no_graph / "saved_model.pb").unlink()
    (damaged / "saved_model.pb").write_bytes((several / "saved_model.pb").read_bytes()[:-100])
    cut = copy("cut")
    data = cut / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:10])
    (tmp_path / "foreign").mkdir()
    for path in (no_variables, no_graph, damaged, cut, tmp_path / "foreign"):
        with refused(tfq.InputError, field="model", word=str(path)):
            tfq.convert(path, None, config)


def test_training_and_load_model_refuse_an_exported_model(several):
    with refused(tfq.InputError, field="model", word="tfq.load_saved_model", limit="exported-model"):
        tfq.load_model(several)
    with refused(tfq.InputError, field="model", got="SavedModel", limit="exported-model"):
        tfq.to_tf_keras(tfq.load_saved_model(several))


def test_a_signature_of_a_keras_model_is_refused():
    with refused(tfq.InputError, field="conversion.signature", got="pair"):
        tfq.convert(small_model(import_keras()), IMAGES, tfq.ConversionConfig(signature="pair"))


def test_a_subclassed_model_is_converted_from_its_files(tmp_path):
    keras = import_keras()

    class Scaled(keras.Model):
        def __init__(self, factor=2.0, **settings):
            super().__init__(**settings)
            self.factor, self.head = factor, keras.layers.Dense(3)

        def call(self, row):
            return self.head(row) * self.factor

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    model = Scaled(3.0)
    expected = np.asarray(model(ROWS))
    model.save(tmp_path / "model.keras")
    model.export(str(tmp_path / "saved"), verbose=False)
    loaded = tfq.load_model(tmp_path / "model.keras", custom_objects={"Scaled": Scaled})
    for source in (loaded, tmp_path / "saved"):
        content = tfq.convert(source, ROWS, FLOAT)
        (spec,) = tfq.data.input_specs(content)
        (output,) = outputs_by_name(content, {spec.name: ROWS}).values()
        np.testing.assert_allclose(output, expected, atol=1e-5)
    with refused(tfq.InputError, field="model", expected="no code", limit="code-in-files"):
        tfq.load_model(tmp_path / "model.keras")


def test_a_saved_model_of_unknown_sizes_gets_those_of_the_data(several):
    config = tfq.ConversionConfig(signature="pooled")
    with warned("image=8x8x3"):
        content = tfq.convert(several, IMAGES, config)
    assert tfq.data.input_specs(content)[0].shape == (1, 8, 8, 3)


def test_a_float64_signature_is_computed_in_float32(tmp_path):
    path = saved(tmp_path, lambda row: tf.nn.softmax(row * 3.0), tf.TensorSpec((None, 4), tf.float64, name="row"))
    (output,) = outputs_by_name(tfq.convert(path, None, FLOAT), {"row": ROWS}).values()
    np.testing.assert_allclose(output, tf.nn.softmax(ROWS * 3.0), atol=1e-5)


def test_a_recurrent_layer_in_a_saved_model_is_refused_with_the_remedy(tmp_path):
    keras = import_keras()
    inputs = keras.Input((6, 4))
    keras.Model(inputs, keras.layers.GRU(3)(inputs)).export(str(tmp_path / "saved"), verbose=False)
    with refused(
        tfq.InputError, field="model", expected="a model without loops of open shapes", limit="saved-model-loop"
    ):
        tfq.convert(tmp_path / "saved", None, FLOAT)

# SPDX-License-Identifier: Apache-2.0
"""Models whose class overrides `call` are converted; their own call in arrays is the oracle."""

import warnings

import numpy as np
import pytest
from interpreted import outputs_by_name, sqnr_db
from messages import refused, warned

import tfq
from tfq.keras_bridge import import_keras, import_tf_keras

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (16, 8, 8, 3)).astype("float32")
EXTRA = RANDOM.uniform(-1, 1, (16, 3)).astype("float32")
FLOAT = tfq.ConversionConfig(scheme="float32")
LIBRARIES = pytest.mark.parametrize("module", [import_keras, import_tf_keras])


def classes(module):
    """Return subclassed models by the form of their inputs and outputs."""
    layers = module.layers

    class Single(module.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.Conv2D(4, 3, activation="relu", bias_initializer="ones")
            self.pool = layers.GlobalAveragePooling2D()
            self.head = layers.Dense(3)

        def features(self, x):
            return self.head(self.pool(self.conv(x)))

        def call(self, image, training=False):
            return self.features(image) + (1.0 if training else 0.0)

    class Positional(Single):
        def call(self, image, extra):
            return {"sum": self.features(image) + extra, "scaled": extra * 2.0}

    class Dictionary(Single):
        def call(self, inputs):
            return [self.features(inputs["image"]), (inputs["extra"] + 1.0, None)]

    class Listed(Single):
        def call(self, inputs):
            return self.features(inputs[0]) * inputs[1]

    return {"single": Single, "positional": Positional, "dictionary": Dictionary, "listed": Listed}


# Form -> (arguments of the model, representative data, {input of the signature: array}, outputs of the signature).
FORMS = {
    "single": ((IMAGES,), IMAGES, {"image": IMAGES}, ["output_0"]),
    "positional": (
        (IMAGES, EXTRA),
        {"image": IMAGES, "extra": EXTRA},
        {"image": IMAGES, "extra": EXTRA},
        ["scaled", "sum"],
    ),
    "dictionary": (
        ({"image": IMAGES, "extra": EXTRA},),
        {"image": IMAGES, "extra": EXTRA},
        {"image": IMAGES, "extra": EXTRA},
        ["output_0", "output_1_0"],
    ),
    "listed": (
        ([IMAGES, EXTRA],),
        lambda: ([IMAGES[i : i + 1], EXTRA[i : i + 1]] for i in range(16)),
        {"inputs_0": IMAGES, "inputs_1": EXTRA},
        ["output_0"],
    ),
}


def leaves(outputs):
    if isinstance(outputs, dict):
        return [np.asarray(outputs[name]) for name in sorted(outputs)]
    if isinstance(outputs, (list, tuple)):
        return [array for item in outputs if item is not None for array in leaves(item)]
    return [np.asarray(outputs)]


@LIBRARIES
@pytest.mark.parametrize("form", FORMS)
def test_a_subclassed_model_computes_what_its_call_does(module, form):
    arguments, data, inputs, names = FORMS[form]
    model = classes(module())[form]()
    expected = leaves(model(*arguments))
    floating = outputs_by_name(tfq.convert(model, data, FLOAT), inputs)
    quantized = outputs_by_name(tfq.convert(model, data), inputs)
    assert sorted(floating) == sorted(quantized) == names
    for name, array in zip(names, expected, strict=True):
        np.testing.assert_allclose(floating[name], array, atol=1e-5)
        assert sqnr_db(array, quantized[name]) > 25


@LIBRARIES
def test_a_model_that_was_never_built_gets_its_shapes_from_the_data(module):
    model = classes(module())["positional"]()
    with warned("initial"), warned("representative"):
        content = tfq.convert(model, FORMS["positional"][1], FLOAT)
    for name, array in zip(["scaled", "sum"], leaves(model(IMAGES, EXTRA)), strict=True):
        np.testing.assert_allclose(outputs_by_name(content, FORMS["positional"][2])[name], array, atol=1e-5)


@LIBRARIES
@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("single", ("8x8x3",)),
        ("positional", ("extra=3", "image=8x8x3")),
        ("dictionary", ("image=8x8x3", "extra=3")),
        ("listed", ("inputs_0=8x8x3", "inputs_1=3")),
    ],
)
def test_input_shapes_build_a_model_without_data(module, form, shapes):
    arguments, _, inputs, names = FORMS[form]
    model = classes(module())[form]()
    config = tfq.ConversionConfig(scheme="float32", input_shapes=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tfq.TfqWarning)
        floating = outputs_by_name(tfq.convert(model, None, config), inputs)
    for name, array in zip(names, leaves(model(*arguments)), strict=True):
        np.testing.assert_allclose(floating[name], array, atol=1e-5)


@LIBRARIES
def test_without_shapes_and_data_the_error_says_how_to_give_them(module):
    model = classes(module())["positional"]()
    with refused(
        tfq.InputError, field="conversion.input_shapes", got=("image", "extra"), word="'image'", limit="unknown-inputs"
    ):
        tfq.convert(model, None, FLOAT)
    model(IMAGES, EXTRA)
    wrong = tfq.ConversionConfig(scheme="float32", input_shapes=("picture=8x8x3", "extra=3"))
    with refused(tfq.InputError, field="conversion.input_shapes", got="picture"):
        tfq.convert(model, None, wrong)


@LIBRARIES
def test_inputs_that_call_does_not_accept_are_named(module):
    model = classes(module())["single"]()
    model(IMAGES)
    config = tfq.ConversionConfig(scheme="float32", input_shapes=("image=8x8x5",))
    with refused(tfq.InputError, field="model", word="image"):
        tfq.convert(model, None, config)


def test_integer_inputs_keep_the_dtype_of_the_data():
    keras = import_keras()

    class Tokens(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = keras.layers.Embedding(20, 6), keras.layers.Dense(2)

        def call(self, tokens):
            return self.head(keras.ops.mean(self.embedding(tokens), axis=1))

    model, tokens = Tokens(), RANDOM.integers(0, 20, (16, 5)).astype("int32")
    expected = np.asarray(model(tokens))
    content = tfq.convert(model, tokens)
    (spec,) = tfq.data.input_specs(content)
    assert (spec.name, spec.dtype) == ("tokens", np.int32)
    assert sqnr_db(expected, outputs_by_name(content, {"tokens": tokens})["output_0"]) > 25


def test_stock_and_tfq_convert_a_subclassed_model_to_the_same_function():
    import tensorflow as tf

    model = classes(import_tf_keras())["single"]()
    model(IMAGES)
    model.predict(IMAGES, verbose=0)
    stock = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    expected = outputs_by_name(stock, {tfq.data.input_specs(stock)[0].name: IMAGES})
    ours = outputs_by_name(tfq.convert(model, IMAGES, FLOAT), {"image": IMAGES})
    np.testing.assert_allclose(ours["output_0"], *expected.values(), atol=1e-6)


@LIBRARIES
def test_callbacks_evaluate_a_subclassed_model_with_its_own_train_step(module, tmp_path):
    keras = module()

    class Own(classes(keras)["single"]):
        def train_step(self, data):
            return super().train_step((data[0], data[1] * 1.0))

    model = Own()
    model.compile("sgd", "mse")
    labels = RANDOM.integers(0, 3, 16)
    evaluation = tfq.Int8Evaluation((IMAGES, labels), IMAGES)
    export = tfq.TFLiteExport(tmp_path / "model.tflite", IMAGES, monitor="val_int8_agreement")
    history = model.fit(IMAGES, np.eye(3, dtype="float32")[labels], epochs=1, verbose=0, callbacks=[evaluation, export])
    assert history.history["val_int8_sqnr_db"][0] > 25
    exported = outputs_by_name((tmp_path / "model.tflite").read_bytes(), {"image": IMAGES})["output_0"]
    assert sqnr_db(np.asarray(model(IMAGES)), exported) > 25


@LIBRARIES
def test_training_based_compression_refuses_a_subclassed_model(module):
    model = classes(module())["single"]()
    model(IMAGES)
    with refused(tfq.InputError, field="model", word="functional", limit="no-graph"):
        tfq.to_tf_keras(model)


@LIBRARIES
def test_a_sequential_model_that_was_never_built_is_built(module):
    layers = module().layers
    model = module().Sequential([layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(2)])
    with warned("initial"):
        content = tfq.convert(model, IMAGES, FLOAT)
    (name,) = [spec.name for spec in tfq.data.input_specs(content)]
    (output,) = outputs_by_name(content, {name: IMAGES}).values()
    np.testing.assert_allclose(output, np.asarray(model(IMAGES)), atol=1e-5)

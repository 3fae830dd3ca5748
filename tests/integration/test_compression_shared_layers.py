# SPDX-License-Identifier: Apache-2.0
"""QAT of layers that a model calls several times: one range for all calls, and the function of the float model."""

from collections import Counter

import numpy as np
import pytest
from messages import refused

import tfq
from tfq import tflite
from tfq.compression import quantized, untrained_qat_model
from tfq.compression._tfmot.tfmot_symbols import fake_quant_as_identity, output_range
from tfq.compression.graph import reconnected
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras

tf_keras = import_tf_keras()
layers = tf_keras.layers
pytestmark = pytest.mark.filterwarnings("ignore::tfq.errors.TfqWarning")
RNG = np.random.default_rng(0)
SIGNS = np.where(RNG.random(64) > 0.5, 1, -1)
# The wide input is called first, so that a moving average over the calls ends at the range of the narrow one.
A = (5 * (RNG.normal(size=(64, 6, 6, 1)) + SIGNS[:, None, None, None])).astype("float32")
B = RNG.normal(size=A.shape).astype("float32")
DATA, LABELS = {"a": A, "b": B}, (SIGNS > 0).astype(int)


def two_inputs(tower):
    """Return a model that applies `tower`, a function, to inputs of different ranges."""
    inputs = [tf_keras.Input((6, 6, 1), name=name) for name in DATA]
    first, second = (layers.Flatten()(tower(item)) for item in inputs)
    joined = layers.Concatenate(name="joined")([first, second, layers.Multiply(name="product")([first, second])])
    return tf_keras.Model(inputs, layers.Dense(2, activation="softmax", name="head")(joined))


def nested_tower():
    x = tf_keras.Input((6, 6, 1))
    h = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    h = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.8, name="norm")(h))
    return tf_keras.Model(x, layers.Dense(4, activation="relu", name="embedding")(layers.Flatten(name="flat")(h)))


def fit(model, callbacks, epochs=1):
    model.compile(tf_keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(DATA, LABELS, batch_size=16, epochs=epochs, verbose=0, callbacks=callbacks)


@pytest.fixture(scope="module")
def siamese():
    """Return a trained siamese model, flat, and its QAT model."""
    tf_keras.utils.set_random_seed(1)
    model = two_inputs(nested_tower())
    fit(model, [], epochs=10)
    flat = tfq.to_tf_keras(model).model
    return flat, tfq.qat(flat, fit, calibration=DATA)


def test_all_layers_of_a_siamese_tower_are_fake_quantized(siamese):
    flat, _ = siamese
    annotated = quantized(flat)  # raises if it does not compute the same function without rounding
    assert annotated.skipped == {}
    assert {"quant_conv", "quant_norm", "quant_relu", "quant_embedding"} <= {x.name for x in annotated.model.layers}


def test_a_siamese_model_converts_without_data_and_agrees(siamese):
    flat, trained = siamese
    content = tfq.convert(trained)
    assert tfq.audit(content).scheme == "full_int8"
    assert tfq.qat_parity(trained, content, DATA).first_departure is None
    expected = flat.predict(DATA, verbose=0).argmax(axis=1)
    assert (expected == LABELS).mean() > 0.9  # otherwise the agreement says nothing
    assert tfq.evaluate(content, (DATA, expected)).accuracy > 0.9


def test_the_range_of_a_shared_layer_contains_its_widest_call(siamese):
    _, trained = siamese
    relu = trained.get_layer("quant_relu")
    model = tf_keras.Model(trained.inputs, [relu.get_output_at(index) for index in range(2)])
    with fake_quant_as_identity():  # otherwise values beyond the range are clipped
        narrow, wide = sorted(float(np.max(output)) for output in model(DATA, training=False))
    assert wide > 2 * narrow
    assert output_range(relu)[1] >= 0.9 * wide  # the range shrinks slowly after the widest batch


def new_activations_in_each_call():
    conv, norm_conv = layers.Conv2D(2, 3, name="conv"), layers.Conv2D(2, 1, use_bias=False, name="norm_conv")
    return lambda x: layers.BatchNormalization()(norm_conv(layers.ReLU()(conv(x))))


def residual_with_hard_swish():
    conv, join, flat = layers.Conv2D(1, 3, padding="same", name="conv"), layers.Add(name="join"), layers.Flatten()
    plus, relu, sixth = layers.Rescaling(1.0, 3.0), layers.ReLU(6.0), layers.Rescaling(1 / 6)
    times = layers.Multiply()

    def tower(x):
        h = join([conv(x), x])
        return flat(times([h, sixth(relu(plus(h)))]))

    return tower


@pytest.mark.parametrize(
    ("tower", "ops"),
    [(new_activations_in_each_call, {"CONV_2D": 4}), (residual_with_hard_swish, {"CONV_2D": 2, "HARD_SWISH": 2})],
)
def test_the_flatbuffer_fuses_each_call_as_without_qat(tower, ops):
    model = two_inputs(tower())
    content = tfq.convert(untrained_qat_model(model, DATA))
    kinds = Counter(op.name for op in tflite.read(content).main_subgraph.ops)
    assert kinds == Counter(op.name for op in tflite.read(tfq.convert(model, DATA)).main_subgraph.ops)
    assert {name: kinds[name] for name in ops} == ops


def one_relu_after_two_convolutions():
    relu = layers.ReLU(name="shared")
    return lambda x: relu(layers.Conv2D(2, 3)(x))


def a_relu_after_one_of_two_calls():
    conv, calls = layers.Conv2D(2, 3, name="shared"), []

    def tower(x):
        calls.append(x)
        return layers.ReLU()(conv(x)) if len(calls) == 1 else layers.MaxPooling2D(3, 1, padding="same")(conv(x))

    return tower


def a_norm_after_two_convolutions():
    norm = layers.BatchNormalization(name="shared")
    return lambda x: norm(layers.Conv2D(2, 3)(x))


def a_convolution_of_itself():
    conv = layers.Conv2D(1, 3, padding="same", activation="relu", name="shared")
    return lambda x: conv(conv(x))


@pytest.mark.parametrize(
    ("tower", "is_skipped"),
    [
        (one_relu_after_two_convolutions, True),
        (a_relu_after_one_of_two_calls, True),
        (a_norm_after_two_convolutions, False),
        (a_convolution_of_itself, False),
    ],
)
def test_layers_whose_calls_cannot_have_one_range_are_reported(tower, is_skipped):
    annotated = quantized(two_inputs(tower()))
    assert list(annotated.skipped) == (["shared"] if is_skipped else [])


def test_a_layer_that_another_model_also_calls_is_an_error_when_the_graph_is_rebuilt():
    image, foreign = layers.Input((4,)), layers.Input((4,))
    shared = layers.Dense(4, name="shared")
    model = tf_keras.Model(image, shared(image))

    def copied(layer):
        return [] if isinstance(layer, layers.InputLayer) else [type(layer).from_config(layer.get_config())]

    assert reconnected(model, copied).output_shape == (None, 4)
    shared(foreign)
    with refused(TfqError, field="model", got=("shared",)):
        reconnected(model, copied)

# SPDX-License-Identifier: Apache-2.0
"""Tensors with one scale in the flatbuffer have one range in the QAT model, before, during and after training."""

import numpy as np
import pytest

import tfq
from tfq.compression import qat_parity
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat import qat, ranges
from tfq.compression.qat.layer_facts import kind, preserves_range
from tfq.compression.qat.qat import untrained_qat_model
from tfq.compression.qat.ranges import calibrate_ranges
from tfq.compression.training import deterministic
from tfq.keras_bridge import import_keras, import_tf_keras


def images(n=64):
    return np.random.default_rng(0).normal(size=(n, 8, 8, 4)).astype(np.float32)


def convolution(name, filters=4, kernel=1, **settings):
    return import_tf_keras().layers.Conv2D(filters, kernel, padding="same", name=name, **settings)


def a_dense_block(x):
    """Return a block that joins the output of each of three layers to all before it."""
    layers = import_tf_keras().layers
    x = layers.MaxPooling2D(name="pool")(convolution("stem", 6, 3)(x))
    for number in range(3):
        y = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization(name=f"bn{number}")(x))
        x = layers.Concatenate(name=f"join{number}")([x, convolution(f"conv{number}", 4, 3)(y)])
    return x


def inception_blocks(x):
    layers = import_tf_keras().layers
    pooled = convolution("behind_pool", activation="relu")(layers.AveragePooling2D(3, 1, "valid", name="average")(x))
    pooled = layers.ZeroPadding2D(name="padded")(pooled)
    x = layers.Concatenate(name="mixed")([convolution("small", activation="relu")(x), convolution("wide")(x), pooled])
    strided = layers.Conv2D(6, 3, 2, name="strided")(x)
    return layers.Concatenate(name="reduced")([strided, layers.MaxPooling2D(3, 2, name="pooled")(x)])


def an_input_joined(x):
    return import_tf_keras().layers.Concatenate(name="join")([x, convolution("conv")(x)])


def a_gelu_joined(x):
    sides = [convolution("gelu", activation="gelu")(x), convolution("swish", activation="swish")(x)]
    return convolution("last")(import_tf_keras().layers.Concatenate(name="join")(sides))


def the_largest(x):
    joined = import_tf_keras().layers.Maximum(name="join")([convolution("left")(x), convolution("right")(x)])
    return convolution("last")(joined)


def joined_and_added(x):
    left = convolution("left")(x)
    return import_tf_keras().layers.Concatenate(name="join")(
        [left, import_tf_keras().layers.Add(name="sum")([left, x])]
    )


def a_mean_of_one_place(x):
    """Return the end of a MobileNet for small images: the mean of one position."""
    layers = import_tf_keras().layers
    return layers.GlobalAveragePooling2D(keepdims=True, name="mean")(
        layers.Conv2D(6, 8, activation="relu", name="whole")(x)
    )


def a_gate_in_two_joins(x):
    layers = import_tf_keras().layers
    gate = convolution("gate", activation="sigmoid")(x)
    sides = [layers.Concatenate(name=f"join_{side}")([gate, convolution(side)(x)]) for side in ("left", "right")]
    return layers.Add(name="sum")(sides)


def split_and_joined(x):
    """Split and join by TensorFlow's own operations, as in a Keras 2 model."""
    import tensorflow as tf

    layers = import_tf_keras().layers
    left, right = tf.split(convolution("wide", 8)(x), 2, axis=-1)
    x = layers.Concatenate(name="join")([convolution("conv")(left), right])
    return convolution("last")(x[:, :, 2:, :])


NETWORKS = {
    # function: the layers of the groups
    a_dense_block: [{"stem", "conv0", "conv1", "conv2", "join0", "join1", "join2"}],
    inception_blocks: [{"small", "wide", "behind_pool", "mixed", "strided", "reduced"}, {"quantize_layer", "average"}],
    an_input_joined: [{"quantize_layer", "conv", "join"}],
    a_gelu_joined: [{"gelu", "swish", "join"}],
    the_largest: [{"left", "right", "join"}],
    joined_and_added: [{"left", "sum", "join"}],
    split_and_joined: [{"wide", "conv", "join"}],
    a_mean_of_one_place: [],
}


def network(build):
    keras = import_tf_keras()
    with deterministic(0):
        image = keras.Input((8, 8, 4), name="image")
        x = keras.layers.GlobalAveragePooling2D(name="squeeze")(build(image))
        model = keras.Model(image, keras.layers.Dense(3, name="head")(x))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(6):
        model(images(), training=True)
    return model


def fit(model, callbacks):
    model.compile("adam", "mse")
    labels = np.random.default_rng(1).normal(size=(64, 3))
    model.fit(images(), labels, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)


@pytest.fixture(params=NETWORKS, ids=lambda build: build.__name__)
def build(request):
    return request.param


def groups_of(model):
    names = {id(result): layer.name for layer in model.layers if (result := tfmot_symbols.output_variables(layer))}
    return [{names[id(pair)].removeprefix("quant_") for pair in group} for group in ranges.shared_ranges(model)]


def parity_of(quantized):
    return qat_parity(quantized, tfq.convert(quantized, images()), images())


def test_the_groups_are_what_joins_and_pooling_connect(build):
    result = groups_of(qat.quantized(network(build)).model)
    assert sorted(map(sorted, result)) == sorted(map(sorted, NETWORKS[build]))


def test_a_groups_range_covers_all_its_members_on_calibration_data(build):
    model, x = network(build), images()
    quantized = qat.quantized(model).model
    calibrate_ranges(quantized, x, len(x))
    for group in NETWORKS[build]:
        ends = []
        for name in group:
            # A kernel layer before its own activation has no separate layer; here no range is wider than after it.
            values = (
                x
                if name == "quantize_layer"
                else import_tf_keras().Model(model.inputs, model.get_layer(name).output).predict(x, verbose=0)
            )
            ends.append((float(values.min()), float(values.max())))
        expected = min(0.0, *(low for low, _ in ends)), max(high for _, high in ends)
        for name in group:
            layer = quantized.get_layer(name if name == "quantize_layer" else f"quant_{name}")
            assert tfmot_symbols.output_range(layer) == pytest.approx(expected, rel=1e-5)


def check_parity(parity):
    assert parity.first_departure is None
    # A few quantized values may lie between two.
    assert min(layer.agreement for layer in parity.layers) > 0.95, parity.to_text()
    assert parity.logit_sqnr_db > 40


def test_the_flatbuffer_computes_what_the_qat_model_does(build):
    check_parity(parity_of(untrained_qat_model(network(build), images())))


@pytest.mark.parametrize("build", [an_input_joined, inception_blocks])
def test_after_training_it_still_does(build):
    check_parity(parity_of(tfq.qat(network(build), fit, calibration=images())))


def test_fixed_ranges_stay_and_are_requantized_once_for_all_joins():
    quantized = untrained_qat_model(network(a_gate_in_two_joins), images())
    assert groups_of(quantized) == [{"left", "right", "join_left", "join_right"}]
    result = parity_of(quantized)
    agreement = {name: layer.agreement for layer in result.layers for name in layer.layers}
    # XNNPACK converts one scale to another with a factor of eight bits.
    assert result.departures == () and agreement["gate"] > 0.999 and agreement["join_left"] > 0.8


def test_with_separate_ranges_it_does_not(monkeypatch):
    model = network(a_dense_block)
    for module in (ranges, ranges):
        monkeypatch.setattr(module, "shared_ranges", lambda model: [])
    agreement = {
        name: layer.agreement
        for layer in parity_of(untrained_qat_model(model, images())).layers
        for name in layer.layers
    }
    assert max(agreement[name] for name in ("stem", "conv0", "conv1", "join1", "head")) < 0.9


def test_in_training_a_group_is_rounded_to_one_range():
    quantized = qat.quantized(network(a_dense_block)).model
    x = images()
    calibrate_ranges(quantized, x, len(x))
    variables = {
        name: tfmot_symbols.output_variables(quantized.get_layer(f"quant_{name}")) for name in ("stem", "join2")
    }
    with ranges.ema_ranges(quantized, 1):
        variables["stem"]["max_var"].assign(0.1)
        probe = import_tf_keras().Model(quantized.inputs, quantized.get_layer("quant_stem").output)
        assert np.max(probe(x, training=False)) > 0.5
    assert np.max(probe(x, training=False)) <= 0.11


def test_keras_3_operations_that_move_values_keep_the_scale():
    keras = import_keras()
    ops, image = keras.ops, keras.Input((6, 8, 4))
    moved = [
        ops.flip(image, axis=1),
        ops.tile(image, [1, 1, 2, 1]),
        ops.repeat(image, 2, axis=1),
        image[:, 1:4, :, ::2],
        *ops.split(image, 2, axis=2),
        *ops.unstack(image, 6, axis=1),
    ]
    others = [ops.exp(image), ops.cumsum(image, axis=1)]
    bridged = tfq.to_tf_keras(keras.Model(image, [*moved, *others])).model
    operations = [layer for layer in bridged.layers if kind(layer) == "KerasOperation"]
    assert {layer.operation: preserves_range(layer) for layer in operations} == {
        **dict.fromkeys(("numpy.Flip", "numpy.Tile", "numpy.Repeat", "numpy.GetItem"), True),
        **dict.fromkeys(("numpy.Split", "core.Unstack"), True),
        "numpy.Cumsum": False,
    }

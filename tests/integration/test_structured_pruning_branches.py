# SPDX-License-Identifier: Apache-2.0
"""Structured pruning without branches: the model that is left computes what the same layers do without them."""

import numpy as np
import pytest
from messages import refused

from tfq.compression.structured_pruning.prune import count_macs, prune_structured
from tfq.config import StructuredPruningConfig
from tfq.errors import InputError
from tfq.keras_bridge import import_tf_keras

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(40, 8, 8, 3)).astype(np.float32)


def config(**values):
    return StructuredPruningConfig(enabled=True, **{"channel_multiple": 2, **values})


def two_blocks(branches=(True, True)):
    """Return a model of two residual blocks, without the branches of some; the second block has a projection."""
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    source = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(source)
    if branches[0]:
        y = layers.Conv2D(8, 3, padding="same", activation="relu", name="inner0")(x)
        y = layers.BatchNormalization(name="norm0")(layers.Conv2D(8, 1, name="outer0")(y))
        x = layers.Add(name="sum0")([x, y])
        x = layers.ReLU(name="relu0")(x)  # without the branch, it changes nothing after the stem's
    shortcut = layers.Conv2D(12, 1, strides=2, name="projection")(x)
    if branches[1]:
        y = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="inner1")(x)
        shortcut = layers.Add(name="sum1")([layers.Conv2D(12, 3, padding="same", name="outer1")(y), shortcut])
    x = layers.GlobalAveragePooling2D(name="mean")(layers.ReLU(name="relu1")(shortcut))
    return keras.Model(source, layers.Dense(3, name="head")(x))


def outputs(model):
    return model.predict(IMAGES, verbose=0)


@pytest.mark.parametrize(("name", "left"), [("sum0", (False, True)), ("sum1", (True, False)), ("sum*", (False, False))])
def test_the_model_computes_what_its_other_layers_do(name, left):
    model, expected = two_blocks(), two_blocks(left)
    for layer in expected.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    before = outputs(model)
    result = prune_structured(model, config=config(branches=(name,), target_cost=0.99))
    assert [layer.name for layer in result.model.layers] == [layer.name for layer in expected.layers]
    np.testing.assert_allclose(outputs(result.model), outputs(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs(model), before)
    assert result.removed == {}
    branches = {"sum0": ("inner0", "outer0", "norm0", "relu0"), "sum1": ("inner1", "outer1")}
    assert result.branches == {sum_: layers for sum_, layers in branches.items() if name in (sum_, "sum*")}
    macs = tuple(sum(count_macs(item).values()) for item in (model, expected))
    assert (result.macs_before, result.macs_after) == macs
    assert "sum" in result.to_text() and list(result.to_dict()["branches"]) == list(result.branches)


def test_filters_are_removed_until_both_reach_the_target():
    model = two_blocks()
    result = prune_structured(model, config=config(branches=("sum0",), target_cost=0.4))
    alone = prune_structured(model, config=config(branches=("sum0",), target_cost=0.99))
    assert alone.cost_before == result.cost_before == sum(count_macs(model).values())
    assert result.cost_after <= 0.4 * result.cost_before < alone.cost_after
    assert result.removed and result.max_difference < 1e-4


def test_the_layers_that_read_the_sum_are_refit():
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    source = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(source)
    y = layers.Conv2D(8, 1, name="second")(layers.Conv2D(8, 1, name="first")(x))  # linear: the next layers can do it
    total = layers.Add(name="sum")([x, y])
    x = layers.Concatenate()([layers.Conv2D(5, 3, name="one")(total), layers.Conv2D(5, 3, name="other")(total)])
    model = keras.Model(source, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))
    expected = outputs(model)
    plain = prune_structured(model, config=config(branches=("sum",), target_cost=0.99))
    refit = prune_structured(model, config=config(branches=("sum",), target_cost=0.99), data=IMAGES)
    assert set(refit.refit) == {"one", "other"} and plain.refit == {}
    assert np.abs(outputs(plain.model) - expected).max() > 0.1 * np.ptp(expected)
    assert np.abs(outputs(refit.model) - expected).max() < 0.01 * np.ptp(expected)


def test_a_layer_of_the_branch_that_something_else_needs_stays():
    keras = import_tf_keras()
    layers = keras.layers
    source = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="stem")(source)
    shared = layers.Conv2D(8, 1, name="shared")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(8, 1, name="own")(shared)])
    x = layers.Concatenate(name="both")([layers.Conv2D(8, 3, name="next")(x), layers.Conv2D(8, 3, name="tap")(shared)])
    result = prune_structured(keras.Model(source, x), config=config(branches=("sum",), target_cost=0.99))
    assert result.branches == {"sum": ("own",)}
    assert [layer.name for layer in result.model.layers if "shared" in layer.name] == ["shared"]


@pytest.mark.parametrize(
    ("before", "after", "is_removed"),
    [("relu", "relu", True), ("softplus", "relu", True), ("relu", "tanh", False), ("linear", "relu", False),
     ("tanh", "tanh", False)],
)  # fmt: skip
def test_only_an_activation_that_changes_nothing_is_removed_with_the_branch(before, after, is_removed):
    keras = import_tf_keras()
    layers = keras.layers
    source = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation=before, name="stem")(source)
    x = layers.Add(name="sum")([x, layers.Conv2D(8, 1, name="own")(x)])
    x = layers.Activation(after, name="after")(x)
    model = keras.Model(source, layers.Conv2D(4, 3, name="next")(x))
    result = prune_structured(model, config=config(branches=("sum",), target_cost=0.99))
    assert result.branches == {"sum": ("own", "after") if is_removed else ("own",)}
    by_name = {layer.name: layer for layer in model.layers}
    values = by_name["next"](by_name["after"](by_name["stem"](IMAGES)))
    np.testing.assert_allclose(outputs(result.model), values, rtol=1e-5, atol=1e-6)


def equal_inputs():
    keras = import_tf_keras()
    layers = keras.layers
    source = keras.Input((8, 8, 3))
    x = layers.Add(name="sum")([layers.Conv2D(4, 3, name="one")(source), layers.Conv2D(4, 3, name="other")(source)])
    return keras.Model(source, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("model", "pattern", "word"),
    [(two_blocks, "sum9", "'sum1'?"), (two_blocks, "stem", "'stem'"), (equal_inputs, "sum", "'sum'")],
)
def test_what_is_no_branch_is_refused(model, pattern, word):
    with refused(InputError, field="compression.structured_pruning.branches", word=word):
        prune_structured(model(), config=config(branches=(pattern,)))

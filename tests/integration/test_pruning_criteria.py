# SPDX-License-Identifier: Apache-2.0
"""Taylor and OBS scores: against finite differences of the loss, and against least squares without each weight."""

import numpy as np
import pytest
from messages import refused, warned

import tfq
from tfq import registry
from tfq.compression import measure_sparsity, prune_model, prune_structured
from tfq.compression.criteria import Examples, PruningCriterion
from tfq.compression.pruning.masks import Masks
from tfq.compression.structured_pruning.channels import groups_of
from tfq.compression.structured_pruning.trace import trace_channels
from tfq.compression.training import deterministic
from tfq.config import PruneConfig
from tfq.errors import InputError, TfqError
from tfq.keras_bridge import import_tf_keras

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(16, 5, 5, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 16)


def small_model(**first):
    layers = import_tf_keras().layers
    with deterministic(0):
        return import_tf_keras().Sequential(
            [
                layers.Conv2D(4, 3, name="first", input_shape=(5, 5, 2), **first),
                layers.ReLU(name="relu"),
                layers.Conv2D(3, 2, name="second"),
                layers.GlobalAveragePooling2D(name="mean"),
                layers.Dense(3, name="head"),
            ]
        )


def criterion(name):
    return registry.get(PruningCriterion, name)


def loss_of(model):
    """Return the mean cross-entropy from logits in float64."""
    logits = np.asarray(model(IMAGES), np.float64)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), LABELS]))


def change_by_scaling(model, layer, select, step=1e-2):
    """Return the derivative of the loss by a factor on selected weights: a central difference."""
    kernel = model.get_layer(layer).get_weights()
    values = []
    for sign in (1, -1):
        model.get_layer(layer).set_weights([select(weight, 1 + sign * step) for weight in kernel])
        values.append(loss_of(model))
    model.get_layer(layer).set_weights(kernel)
    return (values[0] - values[1]) / (2 * step)


def test_taylor_scores_of_weights_are_squared_finite_differences():
    model = small_model()
    kernels = {"second": [model.get_layer("second").kernel]}
    scores = criterion("taylor").of_weights(model, kernels, Examples((IMAGES, LABELS), 16, "prune"))()["second"][0]
    for place in [(0, 0, 0, 0), (1, 0, 3, 2), (1, 1, 2, 1)]:

        def scaled(weight, factor, place=place):
            copy = weight.copy()
            if weight.ndim == 4:
                copy[place] *= factor
            return copy

        assert scores[place] == pytest.approx(change_by_scaling(model, "second", scaled) ** 2, rel=0.05, abs=1e-9)


def test_taylor_scores_of_channels_square_the_sum_over_a_filter_and_its_bias():
    model = small_model(bias_initializer="random_normal")
    trace = trace_channels(model, "l1")
    examples = Examples((IMAGES, LABELS), 16, "structured_pruning")
    scores = criterion("taylor").of_channels(model, trace.graph, trace.channels, examples)
    first = next(site for site in trace.sites if site.layer == "first")
    for channel in range(4):

        def scaled(weight, factor, channel=channel):
            copy = weight.copy()
            copy[..., channel] *= factor
            return copy

        expected = change_by_scaling(model, "first", scaled) ** 2
        assert scores[trace.channels.root(int(first.outputs[channel]))] == pytest.approx(expected, rel=0.05, abs=1e-9)


def patches_of_second(model):
    """Return the inputs of the layer `second` as rows, cut out one by one, with a column of ones."""
    maps = np.maximum(np.asarray(model.get_layer("first")(IMAGES), np.float64), 0)
    rows = [maps[:, y : y + 2, x : x + 2].reshape(16, -1) for y in range(2) for x in range(2)]
    rows = np.concatenate(rows)
    return np.hstack([rows, np.ones((len(rows), 1))])


def error_without(rows, outputs, gone):
    """Return the mean squared error of the best linear map that does not read some columns."""
    kept = np.delete(rows, gone, axis=1)
    best, *_ = np.linalg.lstsq(kept, outputs, rcond=None)
    return ((outputs - kept @ best) ** 2).sum(axis=0) / len(rows)


def test_obs_scores_of_weights_are_errors_of_least_squares_without_each():
    model = small_model()
    kernel = model.get_layer("second").kernel
    scores = criterion("obs").of_weights(model, {"second": [kernel]}, Examples(IMAGES, 16, "prune"))()["second"][0]
    rows = patches_of_second(model)
    weights = kernel.numpy().reshape(16, 3)
    outputs = rows @ np.vstack([weights, model.get_layer("second").bias.numpy()])
    for place in (0, 5, 15):
        expected = error_without(rows, outputs, [place])
        np.testing.assert_allclose(scores.reshape(16, 3)[place], expected, rtol=0.1, atol=2e-4)


def test_obs_scores_of_channels_are_errors_of_least_squares_without_all_their_taps():
    model = small_model()
    trace = trace_channels(model, "l1")
    scores = criterion("obs").of_channels(
        model, trace.graph, trace.channels, Examples(IMAGES, 16, "structured_pruning")
    )
    first = next(site for site in trace.sites if site.layer == "first")
    rows = patches_of_second(model)
    outputs = rows[:, :16] @ model.get_layer("second").kernel.numpy().reshape(16, 3)
    power = ((outputs - outputs.mean(axis=0)) ** 2).sum() / len(rows)
    for channel in range(4):
        expected = error_without(rows, outputs, [tap * 4 + channel for tap in range(4)]).sum() / power
        got = scores[trace.channels.root(int(first.outputs[channel]))]
        assert got == pytest.approx(expected, rel=0.1, abs=1e-3)


def test_obs_keeps_a_small_weight_of_a_large_input_that_magnitude_removes():
    keras = import_tf_keras()
    model = keras.Sequential([keras.layers.Dense(1, name="dense", input_shape=(2,), use_bias=False)])
    model.get_layer("dense").set_weights([np.array([[1.0], [0.1]], np.float32)])
    x = (RNG.normal(size=(64, 2)) * [0.01, 100]).astype(np.float32)

    def fit(model, callbacks):
        model.compile(keras.optimizers.SGD(0.0), "mse")
        model.fit(x, np.zeros((64, 1)), batch_size=8, callbacks=callbacks, verbose=0)

    kept = {
        name: prune_model(model, fit, tfq.PruneConfig(criterion=name), x).get_layer("dense").kernel.numpy().ravel() != 0
        for name in ("magnitude", "obs")
    }
    assert kept["magnitude"].tolist() == [True, False] and kept["obs"].tolist() == [False, True]


def train(model, callbacks):
    model.compile(import_tf_keras().optimizers.SGD(0.01), "mse")
    model.fit(IMAGES, np.eye(3)[LABELS], batch_size=4, epochs=2, callbacks=callbacks, verbose=0)


@pytest.mark.parametrize("name", ["taylor", "obs"])
def test_every_criterion_prunes_weights_and_channels(name):
    model, data = small_model(), (IMAGES, LABELS)
    pruned = prune_model(model, train, tfq.PruneConfig(criterion=name), data)
    assert measure_sparsity(pruned) == {"first": 0.5, "second": 0.5, "head": pytest.approx(5 / 9)}
    config = tfq.StructuredPruningConfig(criterion=name, target_cost=0.8, channel_multiple=1)
    small = prune_structured(model, None, config, data=data)
    trace = trace_channels(model, "l1")
    scores = criterion(name).of_channels(model, trace.graph, trace.channels, Examples(data, 16, "structured_pruning"))
    site = next(site for site in trace.sites if site.layer == "first")
    ranked = sorted(range(4), key=lambda at: scores[trace.channels.root(int(site.outputs[at]))])
    kept, _ = small.removed["first"]
    kernel, before = small.model.get_layer("first").kernel.numpy(), model.get_layer("first").kernel.numpy()
    np.testing.assert_array_equal(kernel, before[..., sorted(ranked[4 - kept :])])


def test_a_criterion_without_its_data_is_refused_or_names_what_it_ranks_otherwise():
    with refused(InputError, field="compression.prune.criterion", got="obs"):
        prune_model(small_model(), train, tfq.PruneConfig(criterion="obs"))
    with refused(InputError, field="compression.structured_pruning.criterion", got="taylor", word="labels"):
        prune_structured(small_model(), None, tfq.StructuredPruningConfig(criterion="taylor"))
    with refused(InputError, field="data", word="labels"):
        prune_structured(small_model(), None, tfq.StructuredPruningConfig(criterion="taylor"), data=IMAGES)
    with refused(InputError, field="compression.prune.criterion", got="obs", word="sensitivity"):
        prune_model(small_model(), train, tfq.PruneConfig(criterion="obs", allocation="sensitivity"), IMAGES)
    layers = import_tf_keras().layers
    model = import_tf_keras().Sequential([layers.LSTM(4, name="lstm", input_shape=(3, 2)), layers.Dense(2)])
    kernels = {"lstm": [model.get_layer("lstm").cell.kernel]}
    with warned("lstm"):
        scores = criterion("obs").of_weights(model, kernels, Examples(np.ones((4, 3, 2), np.float32), 4, "prune"))()
    np.testing.assert_array_equal(scores["lstm"][0], np.abs(kernels["lstm"][0].numpy()))


def read_by(kind):
    """Return a model whose convolution `first` (8 filters) is read by layers of a kind."""
    layers = import_tf_keras().layers
    image = layers.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, name="first", activation="relu")(image)
    if kind == "grouped":
        y = layers.Conv2D(4, 2, groups=2)(layers.Conv2D(8, 1, name="between")(x))
    elif kind == "Conv1D":
        y = layers.Conv1D(4, 3)(layers.Conv1D(8, 3, name="between")(layers.Reshape((16, 8))(x)))
    else:
        y = layers.Concatenate()(
            [layers.Flatten()(item) for item in (getattr(layers, kind)(4, 2)(x), layers.Conv2D(4, 2)(x))]
        )
    y = layers.Flatten()(y)
    return import_tf_keras().Model(image, layers.Dense(3, name="head")(y))


@pytest.mark.parametrize("kind", ["SeparableConv2D", "Conv2DTranspose", "grouped", "Conv1D"])
def test_obs_ranks_filters_by_magnitude_if_it_does_not_know_all_their_readers(kind):
    with deterministic(0):
        model = read_by(kind)
    name = "between" if kind in ("grouped", "Conv1D") else "first"
    layer = model.get_layer(name)
    kernel = layer.kernel.numpy()
    order = RNG.permutation(8)
    layer.set_weights([kernel / np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1))) * (1 + order), np.zeros(8)])
    data = RNG.normal(size=(16, 6, 6, 2)).astype(np.float32)
    trace = trace_channels(model, "l1")
    scores = criterion("obs").of_channels(model, trace.graph, trace.channels, Examples(data, 16, "structured_pruning"))
    groups, _ = groups_of(trace.channels, trace.sites, ("*",), 1, (), scores)
    group = next(group for group in groups if name in group.layers)
    site = next(site for site in trace.sites if site.layer == name)
    assert group.by_magnitude
    if kind != "grouped":
        assert group.roots.tolist() == trace.channels.roots(site.outputs[np.argsort(order)]).tolist()
    assert (np.diff(group.scores) > 0).all()


def test_obs_keeps_the_strong_filters_of_a_model_of_conv1d_and_says_how_it_ranks_them():
    layers = import_tf_keras().layers
    with deterministic(0):
        model = import_tf_keras().Sequential(
            [
                layers.Conv1D(8, 3, name="a", activation="relu", input_shape=(8, 4)),
                layers.Conv1D(8, 3, name="b", activation="relu"),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3, name="head"),
            ]
        )
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., :4] *= 100
    model.get_layer("a").set_weights([kernel, bias])
    config = tfq.StructuredPruningConfig(criterion="obs", target_cost=0.5, channel_multiple=1, refit_examples=0)
    with warned("magnitude") as caught:
        small = prune_structured(model, None, config, data=RNG.normal(size=(16, 8, 4)).astype(np.float32))
    (message,) = [str(item.message) for item in caught if "magnitude" in str(item.message)]
    assert "filters of a are" in message
    kept, _ = small.removed["a"]
    strong = np.abs(small.model.get_layer("a").kernel.numpy()).max(axis=(0, 1)) > 1
    assert strong.sum() == min(kept, 4)


def mlp(first=16):
    layers = import_tf_keras().layers
    with deterministic(0):
        return import_tf_keras().Sequential(
            [layers.Dense(8, name="a", activation="relu", input_shape=(first,)), layers.Dense(3, name="head")]
        )


def trained_on(x, y):
    def fit(model, callbacks):
        model.compile("sgd", import_tf_keras().losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, batch_size=8, callbacks=callbacks, verbose=0)

    return fit


def test_taylor_reaches_the_sparsity_if_more_inputs_than_that_are_always_zero():
    x, y = RNG.normal(size=(32, 16)).astype(np.float32), RNG.integers(0, 3, 32)
    x[:, :10] = 0
    config = PruneConfig(criterion="taylor", schedule="constant", begin_step=0, frequency=1, final_sparsity=0.5)
    kernel = prune_model(mlp(), trained_on(x, y), config, (x, y)).get_layer("a").kernel.numpy()
    assert np.count_nonzero(kernel == 0) == 64 and (kernel[10:] != 0).all()


@pytest.mark.parametrize(("name", "layer"), [("taylor", "a"), ("obs", "head")])
def test_examples_that_overflow_the_model_are_refused_by_the_criteria_that_read_them(name, layer):
    x, y = RNG.normal(size=(32, 16)).astype(np.float32), RNG.integers(0, 3, 32)
    spoiled = x.copy()
    spoiled[3] = 3e38
    with refused(InputError, field="calibration", got=layer):
        prune_model(mlp(), trained_on(x, y), PruneConfig(criterion=name), (spoiled, y))
    config = tfq.StructuredPruningConfig(criterion=name, target_cost=0.5, channel_multiple=1)
    with refused(InputError, field="data", got=name):
        prune_structured(mlp(), None, config, data=(spoiled, y))


def test_masks_of_weights_that_are_nan_are_refused_with_the_layer():
    model = mlp()
    model.get_layer("a").kernel.assign(np.full((16, 8), np.nan))
    with refused(TfqError, field="model", got=("a",)):
        Masks({"a": [model.get_layer("a").kernel]}, PruneConfig()).update({"a": 0.5})

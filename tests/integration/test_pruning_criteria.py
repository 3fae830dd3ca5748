# SPDX-License-Identifier: Apache-2.0
"""Taylor and OBS scores: against finite differences of the loss, and against least squares without each weight."""

import numpy as np
import pytest
from messages import refused, warned

import tfq
from tfq import registry
from tfq.compression import measure_sparsity, prune_model, prune_structured
from tfq.compression.criteria import Examples, PruningCriterion
from tfq.compression.structured_pruning.trace import trace_channels
from tfq.compression.training import deterministic
from tfq.errors import InputError
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

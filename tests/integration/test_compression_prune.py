# SPDX-License-Identifier: Apache-2.0
"""Pruning: which layers, how far, and protection against mistakes of the user's training loop."""

import json

import numpy as np
import pytest
from messages import refused, warned

from tfq.compression import measure_sparsity, prune_model, pruning_plan
from tfq.compression.pruning import prune as prune_room
from tfq.compression.pruning.masks import Schedule
from tfq.compression.training import deterministic
from tfq.config import PruneConfig
from tfq.errors import InputError, TfqError, TfqWarning
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, 64)


def small_model(keras=None, name="small"):
    keras = keras or import_tf_keras()
    layers = keras.layers
    with deterministic(0):
        image = keras.Input((6, 6, 2), name="image")
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
        x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
        y = layers.BatchNormalization(name="depthwise_bn")(
            layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
        )
        x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="sum")([x, y]))
        return keras.Model(image, layers.Dense(3, "softmax", name="head")(x), name=name)


def fit_for(epochs, batch_size=8, seen=None):
    def fit(model, callbacks):
        if seen is not None:
            seen.append(model)
        # Eager for a single epoch, because tracing the training takes longer than running it.
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=epochs == 1)
        model.fit(X, Y, epochs=epochs, batch_size=batch_size, callbacks=callbacks, verbose=0)

    return fit


def test_chosen_layers_reach_the_sparsity_and_the_input_model_is_unchanged():
    model, seen = small_model(), []
    before = [weight.copy() for weight in model.get_weights()]
    nodes = [len(layer.inbound_nodes) for layer in model.layers]
    pruned = prune_model(model, fit_for(2, seen=seen))
    assert measure_sparsity(pruned) == {"conv": 0.5, "depthwise": 0.0, "head": 0.5}
    assert measure_sparsity(model) == {"conv": 0.0, "depthwise": 0.0, "head": 0.0}
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert nodes == [len(layer.inbound_nodes) for layer in model.layers]
    assert pruned is not model and pruned.optimizer is None
    assert [layer.name for layer in pruned.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("order", ["lamp", "erk"])
def test_larger_layers_become_sparser_and_the_total_is_as_requested(order):
    model, config = small_model(), PruneConfig(allocation=order, final_sparsity=0.5)
    plan = pruning_plan(model, config)
    assert plan.sparsities["conv"] > plan.sparsities["head"] >= 0
    result = measure_sparsity(prune_model(model, fit_for(2), config, plan=plan))
    sizes = {"conv": 3 * 3 * 2 * 8, "head": 8 * 3}
    assert {name: result[name] for name in sizes} == pytest.approx(plan.sparsities, abs=0.03)
    assert sum(result[name] * size for name, size in sizes.items()) / sum(sizes.values()) == pytest.approx(
        0.5, abs=0.02
    )
    with refused(InputError, field="compression.prune.targets", got=("conv=0.5",), word=order):
        pruning_plan(model, PruneConfig(allocation=order, targets=("conv=0.5",)))


def test_the_model_computes_what_the_trained_one_does():
    seen = []
    pruned = prune_model(small_model(), fit_for(2, seen=seen))
    np.testing.assert_array_equal(pruned(X, training=False), seen[0](X, training=False))


def test_the_smallest_weights_are_the_ones_that_go():
    model = small_model()

    def fit(wrapped, callbacks):
        # A step size of 0: the remaining weights must be bit-identical.
        wrapped.compile(import_tf_keras().optimizers.SGD(0.0), "sparse_categorical_crossentropy", run_eagerly=True)
        wrapped.fit(X, Y, epochs=2, batch_size=8, callbacks=callbacks, verbose=0)

    kernel = model.get_layer("conv").get_weights()[0]
    got = prune_model(model, fit).get_layer("conv").get_weights()[0]
    median = np.sort(np.abs(kernel).ravel())[kernel.size // 2]
    np.testing.assert_array_equal(got, np.where(np.abs(kernel) >= median, kernel, 0))


@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
@pytest.mark.parametrize(("frequency", "epochs"), [(100, 1), (5, 1)])
def test_the_final_sparsity_is_reached_whatever_the_frequency(schedule, frequency, epochs):
    config = PruneConfig(schedule=schedule, frequency=frequency, final_sparsity=0.75)
    assert measure_sparsity(prune_model(small_model(), fit_for(epochs), config))["conv"] == 0.75


def test_stock_tfmot_schedules_miss_an_end_step_between_updates():
    stock = import_tfmot().sparsity.keras.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=12, frequency=10)
    assert not bool(stock(12)[0])
    ours = Schedule(PruneConfig(end_step=12, frequency=10))
    assert ours.is_due(12) and ours.sparsity(12) == 0.5


def test_the_polynomial_is_that_of_tfmot():
    ours = Schedule(PruneConfig(initial_sparsity=0.2, final_sparsity=0.8, begin_step=10, end_step=50, frequency=10))
    stock = import_tfmot().sparsity.keras.PolynomialDecay(0.2, 0.8, begin_step=10, end_step=50, frequency=10)
    assert all(ours.sparsity(step) == pytest.approx(float(stock(step)[1]), abs=1e-6) for step in range(0, 70, 7))


def test_end_step_is_learned_as_three_quarters_of_the_training(monkeypatch):
    built = []
    monkeypatch.setattr(prune_room, "Schedule", lambda config: built.append(Schedule(config)) or built[0])
    prune_model(small_model(), fit_for(3))
    # 64 examples in batches of 8, three times: 24 steps.
    assert built[0].end_step == 18


def test_a_training_of_unknown_length_asks_for_end_step():
    import tensorflow as tf

    data = tf.data.Dataset.from_generator(
        lambda: iter([(X[:8], Y[:8])] * 6),
        output_signature=(tf.TensorSpec((8, 6, 6, 2), tf.float32), tf.TensorSpec((8,), tf.int64)),
    )

    def fit(model, callbacks):
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(data, epochs=1, callbacks=callbacks, verbose=0)

    with refused(InputError, field="compression.prune.end_step", got=-1):
        prune_model(small_model(), fit)
    pruned = prune_model(small_model(), fit, PruneConfig(end_step=4))
    assert measure_sparsity(pruned)["conv"] == 0.5


def test_a_training_too_short_for_begin_step_is_refused():
    with refused(InputError, field="compression.prune.begin_step", got=100):
        prune_model(small_model(), fit_for(1), PruneConfig(begin_step=100))


def test_a_sparsity_that_was_missed_is_a_warning_for_each_layer():
    with warned("1000") as caught:
        prune_model(small_model(), fit_for(1), PruneConfig(end_step=1000))
    assert len([warning for warning in caught if issubclass(warning.category, TfqWarning)]) == 2


def test_several_calls_of_fit_go_on_where_they_stopped():
    def fit(model, callbacks):
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        for _ in range(3):
            model.fit(X, Y, epochs=1, batch_size=8, callbacks=callbacks, verbose=0)

    assert measure_sparsity(prune_model(small_model(), fit, PruneConfig(end_step=20)))["conv"] == 0.5


def test_a_fit_without_the_callbacks_is_an_error():
    with refused(TfqError, field="fit", expected="a fit that passes on the callbacks"):
        prune_model(small_model(), lambda model, callbacks: fit_for(1)(model, []))


@pytest.mark.parametrize("fit", [lambda model, callbacks: None, lambda model, callbacks: fit_for(1)(small_model(), [])])
def test_a_fit_that_trains_nothing_or_another_model_is_an_error(fit):
    with refused(TfqError, field="fit", expected="a fit that trains the model"):
        prune_model(small_model(), fit)


def test_the_users_own_errors_come_through():
    def fit(model, callbacks):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        prune_model(small_model(), fit)


def test_weights_that_became_nan_are_an_error_with_the_layers_names():
    def fit(model, callbacks):
        fit_for(1)(model, callbacks)
        head = model.layers[-1]
        head.set_weights([np.full((8, 3), np.nan), np.zeros(3)])

    with refused(TfqError, field="model", got=("head",)):
        prune_model(small_model(), fit)


def test_the_plan_lists_every_layer_and_reasons_for_exclusion():
    plan = pruning_plan(small_model(), PruneConfig(layers=("c*",)))
    assert plan.pruned == ("conv",)
    assert plan.skipped["head"] == "no pattern in layers matches its name"
    assert plan.skipped["depthwise"] == "tfmot prunes no weight of DepthwiseConv2D"
    assert plan.skipped["relu"] == "ReLU has no weights"
    assert set(plan.skipped) | set(plan.pruned) == {layer.name for layer in small_model().layers}
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()


def test_only_layers_that_a_pattern_names_are_pruned():
    pruned = prune_model(small_model(), fit_for(1), PruneConfig(layers=("head",)))
    assert measure_sparsity(pruned) == {"conv": 0.0, "depthwise": 0.0, "head": 0.5}


@pytest.mark.parametrize(
    ("pattern", "word"),
    [("heat", "'head'"), ("depth*", "'depthwise'")],
)
def test_a_pattern_that_fits_nothing_prunable_is_refused(pattern, word):
    with refused(InputError, field="compression.prune.layers", got=pattern, word=word):
        pruning_plan(small_model(), PruneConfig(layers=("conv", pattern)))


def test_layers_that_tfmot_refuses_are_left_as_they_are():
    keras = import_tf_keras()
    model = keras.Sequential(
        [keras.layers.Rescaling(0.5, input_shape=(6, 6, 2)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    stock = import_tfmot().sparsity.keras.prune_low_magnitude
    with pytest.raises(ValueError, match="Rescaling"):
        stock(model)
    pruned = prune_model(model, fit_for(1))
    assert list(measure_sparsity(pruned).values()) == [0.5]


def test_a_model_inside_the_model_is_pruned_too():
    keras = import_tf_keras()
    inner = small_model(name="inner")
    image = keras.Input((6, 6, 2))
    model = keras.Model(image, keras.layers.Dense(3, "softmax", name="last")(inner(image)))
    fractions = measure_sparsity(prune_model(model, fit_for(1)))
    assert fractions == {
        "inner/conv": 0.5,
        "inner/depthwise": 0.0,
        "inner/head": 0.5,
        "last": pytest.approx(0.5, abs=0.06),
    }


def test_settings_that_contradict_each_other_are_refused():
    for field, wrong in (
        ("end_step", {"begin_step": 9, "end_step": 9}),
        ("initial_sparsity", {"initial_sparsity": 0.6}),
    ):
        with refused(InputError, field=f"compression.prune.{field}", got=wrong[field]):
            prune_model(small_model(), fit_for(1), PruneConfig(**wrong))


def test_models_that_cannot_be_walked_are_refused():
    keras = import_tf_keras()
    with refused(InputError, field="model", word="pruning"):
        prune_model(small_model(import_keras()), fit_for(1))
    with refused(InputError, field="model", expected="a built model", limit="never-built"):
        prune_model(keras.Sequential([keras.layers.Dense(1)]), fit_for(1))

    class Own(keras.Model):
        pass

    with refused(InputError, field="model", got="Own", limit="no-graph"):
        prune_model(Own(), fit_for(1))
    with refused(InputError, field="model", expected="a Dense or a convolution", limit="nothing-to-compress"):
        prune_model(keras.Sequential([keras.layers.ReLU(input_shape=(2,))]), fit_for(1))


@pytest.mark.parametrize("make", [import_tf_keras, import_keras])
def test_sparsity_is_the_fraction_of_exact_zeros_in_the_kernel(make):
    keras = make()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(1, name="b")])
    weights = [[[0, 1, 1e-30, -0.0], [1, 1, 1, 1]], [0, 0, 0, 0], [[1], [1], [1], [0]], [0]]
    model.set_weights([np.array(weight, "float32") for weight in weights])
    assert measure_sparsity(model) == {"a": 0.25, "b": 0.25}

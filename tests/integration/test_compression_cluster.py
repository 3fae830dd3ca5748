# SPDX-License-Identifier: Apache-2.0
"""Clustering: few distinct values in the flatbuffer, regardless of factors folded into a channel, and nothing lost."""

import gzip

import numpy as np
import pytest
from messages import refused, warned
from small_models import fit_briefly, fit_for, noise, small_classifier, small_model

from tfq.compression import (
    cluster_model,
    clustering_plan,
    measure_clusters,
    measure_sparsity,
    prune_model,
    qat_model,
    unique_weights_in_flatbuffer,
)
from tfq.compression.clustering.codebook import Codebook, count_quantized_values, least_squares, nearest_levels
from tfq.compression.pruning.sparsity import kernels_of
from tfq.compression.training import deterministic, train_model
from tfq.config import ClusterConfig, ConversionConfig, DataConfig, DistillationConfig, PruneConfig, TrainConfig
from tfq.conversion import convert_model
from tfq.data import load_split
from tfq.errors import InputError, TfqError
from tfq.evaluation import evaluate_model
from tfq.keras_bridge import import_tf_keras
from tfq.tflite import constant_values, read


def variable(values):
    import tensorflow as tf

    return tf.Variable(np.asarray(values, np.float32))


def kernel(shape=(3, 3, 16, 32), seed=0):
    """Return a Gaussian kernel with channels of very different widths."""
    rng = np.random.default_rng(seed)
    return variable(rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1])))


def uneven_norms(model):
    """Set different factors, some negative, that BatchNormalization folds into the channels."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights([rng.uniform(0.1, 3, gamma.shape), beta, mean, rng.uniform(0.5, 2, variance.shape)])
    return model


def test_channels_of_any_width_share_one_codebook_and_lose_little():
    weights = kernel()
    before = weights.numpy()
    Codebook(weights, -1, 16)
    after = weights.numpy()
    assert count_quantized_values(before, -1) is None and count_quantized_values(after, -1) == 16
    # 16 levels of the least squared error for a Gaussian leave 0.95% of its variance (Max 1960).
    assert np.square(after - before).sum() / np.square(before).sum() < 0.0105


def test_a_kernel_of_few_distinct_values_is_left_unchanged():
    rng = np.random.default_rng(0)
    levels = np.array([-127, -64, -10, 3, 50, 127]) / 127
    values = (levels[rng.integers(0, 6, (40, 8))] * np.exp2(rng.integers(-3, 3, 8))).astype(np.float32)
    values[0] = np.abs(values).max(axis=0)
    weights = variable(values)
    Codebook(weights, -1, 6)
    np.testing.assert_allclose(weights.numpy(), values, rtol=1e-5)


def test_levels_and_scales_are_those_of_the_least_squared_error():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 50)).astype(np.float32)
    scales, levels = np.abs(rows).max(axis=1), np.linspace(-1, 1, 8).astype(np.float32)
    fixed = np.isin(levels, [-1, 1])
    nearest = np.asarray(nearest_levels(rows, scales, levels))
    assert np.array_equal(nearest, np.abs(rows[..., None] / scales[:, None, None] - levels).argmin(axis=-1))
    new_levels, new_scales = (np.asarray(item) for item in least_squares(rows, scales, levels, nearest, fixed))
    design = np.zeros((150, 8))
    design[np.arange(150), nearest.ravel()] = np.repeat(scales, 50)
    free = ~fixed
    expected, *_ = np.linalg.lstsq(design[:, free], rows.ravel() - design[:, fixed] @ levels[fixed], rcond=None)
    np.testing.assert_allclose(new_levels[free], expected, rtol=1e-4)
    np.testing.assert_array_equal(new_levels[fixed], levels[fixed])
    chosen = new_levels[nearest]
    for row, one, scale in zip(rows, chosen, new_scales, strict=True):
        best = float(np.linalg.lstsq(one[:, None], row, rcond=None)[0][0])
        assert scale == pytest.approx(min(best, np.abs(row).max()), rel=1e-4)


@pytest.mark.parametrize(("axis", "shape"), [(-2, (3, 3, 8, 4)), (None, (20, 16)), (-1, (5, 6, 10))])
def test_quantized_values_are_shared_along_the_quantization_axis(axis, shape):
    weights = variable(np.random.default_rng(0).normal(size=shape))
    Codebook(weights, axis, 8)
    assert count_quantized_values(weights.numpy(), axis) == 8


def test_the_flatbuffer_has_the_clusters_though_channels_are_folded_differently():
    model = uneven_norms(small_model())
    clustered = cluster_model(model, fit_for(), ClusterConfig(number_of_clusters=6, layers=("conv",)))
    samples = noise(model).take(16)
    before, after = (unique_weights_in_flatbuffer(convert_model(item, samples)) for item in (model, clustered))
    assert before["conv"] > 60 and after["conv"] == 6
    assert measure_clusters(clustered) == {"conv": 6} and not measure_clusters(model)


def test_rounding_to_int8_adds_no_error_to_clustered_weights():
    keras = import_tf_keras()
    image = keras.Input((16,))
    model = keras.Model(image, keras.layers.Dense(12, name="head")(image))

    def fit(model, callbacks):
        x = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
        model.compile("adam", "mse", run_eagerly=True)
        model.fit(x, np.zeros((32, 12)), batch_size=8, verbose=0, callbacks=callbacks)

    clustered = cluster_model(model, fit, ClusterConfig(number_of_clusters=8))
    built = convert_model(clustered, [{"x": np.full((1, 16), value, np.float32)} for value in (-1, 1)])
    weights = next(item for item in read(built).main_subgraph.tensors if item.is_constant and item.shape == (12, 16))
    quantized = constant_values(built, weights).astype(np.float64)
    expected = clustered.layers[-1].kernel.numpy().T
    np.testing.assert_allclose(quantized * np.asarray(weights.scale).reshape(-1, 1), expected, rtol=1e-5, atol=1e-9)


def test_training_moves_values_and_weights_between_them_and_keeps_the_accuracy():
    train, test = (load_split(DataConfig(source="digits"), split) for split in ("train", "test"))
    with deterministic(0):
        model = small_classifier(import_tf_keras())
        train_model(model, train, None, TrainConfig(epochs=4, learning_rate=0.01))
        seen = []

        def fit(student, callbacks):
            seen.append(student.get_layer("head").kernel.numpy())
            train_model(student, train, None, TrainConfig(epochs=2, learning_rate=0.003), callbacks=callbacks)
            seen.append(student.get_layer("head").kernel.numpy())

        config = ClusterConfig(number_of_clusters=4)
        clustered = cluster_model(model, fit, config)
        again = cluster_model(model, fit, config)
    first, last = seen[:2]
    assert count_quantized_values(first, -1) == count_quantized_values(last, -1) == 4
    assert np.mean(np.sign(first) != np.sign(last)) > 0
    assert all(np.array_equal(a, b) for a, b in zip(clustered.get_weights(), again.get_weights(), strict=True))
    files = [convert_model(item, train.take(100)) for item in (model, clustered)]
    dense, small = (evaluate_model(item, test).accuracy for item in files)
    assert small > dense - 0.03
    sizes = [len(gzip.compress(item, mtime=0)) for item in files]
    assert sizes[1] < sizes[0]


def test_from_end_step_on_clusters_are_fixed_and_values_keep_learning():
    kernels = []

    def fit(model, callbacks):
        kernel = model.get_layer("conv").kernel
        see = import_tf_keras().callbacks.LambdaCallback(on_batch_end=lambda *_, **__: kernels.append(kernel.numpy()))
        data = noise(model, 80)
        model.compile(import_tf_keras().optimizers.Adam(0.03), "sparse_categorical_crossentropy", run_eagerly=True)
        model.fit(data.inputs["x"], data.labels, batch_size=8, verbose=0, callbacks=[*callbacks, see])

    def partition(kernel):
        return [np.unique(item, return_inverse=True)[1].ravel().tolist() for item in np.moveaxis(kernel, -1, 0)]

    for end_step, fixed in ((-1, 5), (3, 3), (0, 0)):
        kernels.clear()
        cluster_model(small_model(), fit, ClusterConfig(number_of_clusters=6, layers=("conv",), end_step=end_step))
        partitions = [partition(kernel) for kernel in kernels]
        assert len(partitions) == 10
        assert all(item == partitions[-1] for item in partitions[max(fixed - 1, 0) :])
        assert not np.allclose(kernels[-1], kernels[max(fixed - 1, 0)])
        if fixed:
            assert partitions[0] != partitions[-1]


def test_zeros_of_a_pruned_model_stay_and_are_one_cluster():
    pruned = prune_model(small_model(), fit_for(), PruneConfig(final_sparsity=0.5, end_step=2, layers=("conv",)))
    clustered = cluster_model(pruned, fit_for(2), ClusterConfig(number_of_clusters=5, layers=("conv",)))
    before, after = pruned.get_layer("conv").kernel.numpy(), clustered.get_layer("conv").kernel.numpy()
    assert count_quantized_values(after, -1) == 5
    assert not after[before == 0].any()
    assert measure_sparsity(clustered)["conv"] >= measure_sparsity(pruned)["conv"] >= 0.5


def test_qat_keeps_clusters_together_and_lets_their_values_move():
    model = uneven_norms(small_model())
    clustered = cluster_model(model, fit_for(), ClusterConfig(number_of_clusters=6, layers=("conv",)))
    trained = qat_model(clustered, fit_for(2), calibration=noise(model))
    before = clustered.get_layer("conv").kernel.numpy()
    (after,) = (weight.numpy() for weight in kernels_of(trained.get_layer("quant_conv")))
    assert not np.allclose(before, after)
    for channel in range(before.shape[-1]):
        for value in np.unique(before[..., channel]):
            assert np.unique(after[..., channel][before[..., channel] == value]).size == 1
    assert unique_weights_in_flatbuffer(convert_model(trained, noise(model).take(16)))["conv"] <= 6


def test_qat_without_the_callbacks_would_leave_the_clusters_and_is_refused():
    clustered = cluster_model(small_model(), fit_for(), ClusterConfig(number_of_clusters=6, layers=("conv",)))

    def forgetful(model, callbacks):
        fit_briefly(model, callbacks[:-1])

    with refused(TfqError, field="fit", got=("conv",), word="clustered"):
        qat_model(clustered, forgetful, calibration=noise(clustered))


def test_a_freshly_initialized_kernel_is_not_considered_clustered():
    model = small_model()
    for value in (0, 1):
        model.get_layer("conv").set_weights([np.full((3, 3, 2, 8), value, np.float32)])
        assert measure_clusters(model) == {}
    trained = qat_model(model, fit_for(), calibration=noise(model))
    (after,) = (weight.numpy() for weight in kernels_of(trained.get_layer("quant_conv")))
    assert np.unique(after[..., 0]).size > 3


def test_weights_of_an_earlier_step_stay_and_averages_are_clustered_again():
    kept = []

    def restoring(model, callbacks):
        fit_briefly(model, callbacks)
        kept.append(model.get_layer("conv").kernel.numpy())
        weights = model.get_weights()
        fit_briefly(model, callbacks)
        model.set_weights(weights)

    config = ClusterConfig(number_of_clusters=6, layers=("conv",))
    restored = cluster_model(small_model(), restoring, config)
    np.testing.assert_array_equal(restored.get_layer("conv").kernel.numpy(), kept[0])

    def averaging(model, callbacks):
        fit_briefly(model, callbacks)
        conv = model.get_layer("conv").kernel
        conv.assign(conv + 0.01 * np.random.default_rng(0).normal(size=conv.shape))

    with warned("conv"):
        averaged = cluster_model(small_model(), averaging, config)
    assert count_quantized_values(averaged.get_layer("conv").kernel.numpy(), -1) == 6


def test_layers_that_cannot_be_clustered_are_reported_and_wrong_patterns_refused():
    plan = clustering_plan(small_model(), ClusterConfig(layers=("conv",), number_of_clusters=6))
    assert plan.clustered == ("conv",)
    assert "depthwise" not in plan.clustered and "few weights" in plan.skipped["depthwise"]
    assert plan.skipped["bn"] == "BatchNormalization has no kernel"
    assert "24 weights" in clustering_plan(small_model()).skipped["head"]
    with refused(InputError, field="compression.cluster.layers", got="cnv", word="conv"):
        clustering_plan(small_model(), ClusterConfig(layers=("cnv",)))
    with refused(InputError, field="model", got="small", word="head", limit="nothing-to-compress"):
        clustering_plan(small_model(), ClusterConfig(number_of_clusters=64))
    with refused(InputError, expected=64, got=256, word="number_of_clusters"):
        ClusterConfig(number_of_clusters=256)


def test_a_fit_without_training_and_an_unused_teacher_are_errors():
    config = ClusterConfig(number_of_clusters=6, layers=("conv",))
    with refused(TfqError, field="fit", expected="a fit that passes on the callbacks", word="cluster"):
        cluster_model(small_model(), lambda model, callbacks: fit_briefly(model), config)
    with refused(TfqError, field="fit", expected="a fit that trains the model", word="cluster"):
        cluster_model(small_model(), lambda model, callbacks: None, config)
    with refused(InputError, field="compression.cluster.distillation.enabled"):
        cluster_model(small_model(), fit_for(), config, teacher=small_model())


def test_distillation_draws_a_clustered_model_towards_its_teacher():
    histories = []

    def fit(model, callbacks):
        data = noise(model)
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        history = model.fit(data.inputs["x"], data.labels, epochs=2, verbose=0, callbacks=callbacks)
        histories.append(history.history["distillation_loss"])

    config = ClusterConfig(
        number_of_clusters=4, layers=("conv",), distillation=DistillationConfig(enabled=True, weight=1.0)
    )
    cluster_model(small_model(), fit, config)
    assert 0 < histories[0][-1] < histories[0][0]


def test_a_plain_conversion_has_the_clusters_too():
    model = cluster_model(small_model(), fit_for(), ClusterConfig(number_of_clusters=6, layers=("conv",)))
    floating = convert_model(model, config=ConversionConfig(scheme="float32"))
    assert unique_weights_in_flatbuffer(floating) == {}

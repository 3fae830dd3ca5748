# SPDX-License-Identifier: Apache-2.0
"""Models in tfmot's wrappers: resumed or stripped, in memory and from files, with the same outputs."""

import importlib

import numpy as np
import pytest
from messages import refused

import tfq
from tfq.compression import untrained_qat_model
from tfq.compression.gate import check_same_function
from tfq.errors import InputError, TfqError, TfqWarning
from tfq.keras_bridge import import_tf_keras, import_tfmot
from tfq.keras_bridge.wrapped import unwrapped

tf_keras, tfmot = import_tf_keras(), import_tfmot()
pytestmark = pytest.mark.filterwarnings("ignore::tfq.errors.TfqWarning")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 8)).astype("float32"), RNG.integers(0, 3, 32)


def float_model():
    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(1)
    inputs = tf_keras.Input((8,), name="x")
    hidden = layers.ReLU(name="relu")(layers.Dense(16, name="hidden")(inputs))
    return tf_keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(hidden))


def fit(model, callbacks):
    model.compile(tf_keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=callbacks)


def pruned(schedule, **options):
    """Return a model as it is after an update of the optimizer: pruned weights are not zero in the variables."""
    model = tfmot.sparsity.keras.prune_low_magnitude(float_model(), schedule, **options)
    for _, mask, _ in model.get_layer("prune_low_magnitude_hidden").pruning_vars:
        mask.assign(RNG.integers(0, 2, mask.shape))
    return model


def clustered():
    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    options = {"number_of_clusters": 4, "cluster_centroids_init": linear}
    return tfmot.clustering.keras.cluster_weights(float_model(), **options)


def stock_qat():
    model = tfmot.quantization.keras.quantize_model(float_model())
    for _ in range(3):
        model(X, training=True)  # updates the ranges
    return model


def cluster_preserving():
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme()
    quantization = tfmot.quantization.keras
    return quantization.quantize_apply(quantization.quantize_annotate_model(unwrapped(clustered())), scheme)


SCHEDULES = tfmot.sparsity.keras
BUILDERS = {
    "annotated": lambda: tfmot.quantization.keras.quantize_annotate_model(float_model()),
    "constant": lambda: pruned(SCHEDULES.ConstantSparsity(0.5, 0, frequency=1)),
    "polynomial": lambda: pruned(SCHEDULES.PolynomialDecay(0.0, 0.5, 0, 2, frequency=1)),
    "m_by_n": lambda: pruned(SCHEDULES.ConstantSparsity(0.5, 0, frequency=1), sparsity_m_by_n=(2, 4)),
    "clustered": clustered,
    "stock_qat": stock_qat,
    "qat": lambda: untrained_qat_model(float_model(), X),
}


@pytest.fixture(scope="module")
def models():
    return {name: build() for name, build in BUILDERS.items()}


def outputs(model):
    return np.asarray(model(X, training=False))


def saved(model, path):
    model.save(path)
    return tfq.load_model(path)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_stripped_model_computes_the_same(models, name):
    # Before the call that applies masks to the wrapped model's variables.
    stripped = unwrapped(models[name])
    check_same_function(models[name], stripped)
    assert [layer.name for layer in stripped.layers] == [layer.name for layer in float_model().layers]
    assert not [layer for layer in stripped.layers if hasattr(layer, "layer")]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, suffix) for name in ("constant", "clustered") for suffix in (".h5", ".keras")),
        *(("polynomial", ".h5"), ("qat", "")),
    ],
)
def test_wrapped_models_load_without_allow_code(models, name, suffix, tmp_path):
    np.testing.assert_array_equal(outputs(saved(models[name], tmp_path / f"model{suffix}")), outputs(models[name]))


def test_a_schedule_of_the_user_is_refused(tmp_path):
    class Mine(SCHEDULES.ConstantSparsity):
        pass

    SCHEDULES.prune_low_magnitude(float_model(), Mine(0.5, 0)).save(tmp_path / "model.h5")
    with refused(InputError, field="model", word="Mine"):
        tfq.load_model(tmp_path / "model.h5")


@pytest.mark.parametrize("name", ["qat", "stock_qat"])
@pytest.mark.parametrize("suffix", [None, ".h5"])
def test_resumed_training_starts_with_the_same_outputs(models, name, suffix, tmp_path):
    model = models[name] if suffix is None else saved(models[name], tmp_path / f"model{suffix}")
    resumed = untrained_qat_model(model, 100 * X)  # a calibration that would change the ranges
    step = 1 / 256 if name == "stock_qat" else 0  # biases and ranges of stock tfmot are rounded for the flatbuffer
    np.testing.assert_allclose(outputs(resumed), outputs(models[name]), rtol=0, atol=step)
    restarted = untrained_qat_model(unwrapped(model), 100 * X)
    assert np.abs(outputs(restarted) - outputs(models[name])).max() > 4 / 256


def test_resumed_training_changes_weights_and_converts(models):
    with pytest.warns(TfqWarning, match="calibration"):
        result = tfq.qat(models["qat"], fit, calibration=X)
    kernels = [model.get_layer("quant_hidden").layer for model in (models["qat"], result)]
    assert [layer.name for layer in result.layers] == [layer.name for layer in models["qat"].layers]
    assert not np.array_equal(kernels[0].bias, kernels[1].bias)
    assert tfq.audit(tfq.convert(result)).scheme == "full_int8"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("qat", lambda model: tfq.prune(model, fit, tfq.PruneConfig(final_sparsity=0.6, end_step=1))),
        ("qat", lambda model: tfq.prune_structured(model, config=tfq.StructuredPruningConfig(target_cost=0.6)).model),
        ("clustered", lambda model: tfq.to_tf_keras(model).model),
        ("constant", lambda model: tfq.qat(model, fit, tfq.QATConfig(layers=("head",)), calibration=X)),
    ],
)
def test_steps_strip_wrapped_models(models, name, step):
    result = step(models[name])
    names = {"quant_hidden": "hidden", "quant_head": "head"}
    kept = [names.get(layer.name, layer.name) for layer in result.layers if "quantize" not in layer.name]
    assert kept == [layer.name for layer in float_model().layers]


def test_plans_name_the_layers_inside_wrappers(models):
    config = tfq.ClusterConfig(number_of_clusters=4)
    assert tfq.compression.clustering_plan(models["qat"], config).clustered == ("hidden", "head")
    assert tfq.compression.pruning_plan(models["clustered"]).pruned == ("hidden", "head")


def test_preflight_reports_on_the_model_inside_wrappers(models):
    for name in BUILDERS:
        report = tfq.preflight(models[name])
        assert [layer.name for layer in report.layers] == ["hidden", "relu", "head"], name
        assert any("tfq.qat" in note for note in report.notes) == name.endswith("qat")


def test_a_pruned_model_converts_like_the_stripped_one(models):
    with pytest.warns(TfqWarning, match="PruneLowMagnitude"):
        content = tfq.convert(models["constant"], X)
    assert content == tfq.convert(unwrapped(models["constant"]), X)


def test_callbacks_export_the_current_weights_of_a_pruned_model():
    model = pruned(SCHEDULES.ConstantSparsity(0.5, 0))
    export = tfq.Int8Evaluation((X, Y), X)
    export.set_model(model)
    first = export.export()
    bias = model.get_layer("prune_low_magnitude_head").layer.bias
    bias.assign_add([1.0, 0.0, -1.0])
    assert export.export() != first
    assert export.export() == tfq.convert(unwrapped(model), X)


def test_what_cannot_be_resumed_is_refused_with_a_remedy(models):
    with refused(InputError, field="model", word="tfq.cluster", limit="qat-resume"):
        tfq.qat(cluster_preserving(), fit)
    config = tfq.QATConfig(distillation=tfq.DistillationConfig(enabled=True))
    with refused(InputError, field="teacher"):
        tfq.qat(models["qat"], fit, config)


def test_the_comparison_of_stripped_models_notices_another_weight(models):
    stripped = unwrapped(models["qat"])
    stripped.get_layer("head").bias.assign([1.0, 0.0, 0.0])
    with pytest.raises(TfqError):
        check_same_function(models["qat"], stripped)


def test_clusters_that_preserve_sparsity_cannot_be_loaded(tmp_path):
    module = importlib.import_module("tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster")
    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    options = {"number_of_clusters": 4, "cluster_centroids_init": linear, "preserve_sparsity": True}
    module.cluster_weights(float_model(), **options).save(tmp_path / "model.h5")
    with refused(InputError, field="model", word="strip_clustering", limit="tfmot-masks"):
        tfq.load_model(tmp_path / "model.h5")
    cluster_preserving().save(tmp_path / "qat.h5")
    with refused(InputError, field="model", word="SavedModel"):
        tfq.load_model(tmp_path / "qat.h5")

# SPDX-License-Identifier: Apache-2.0
"""A model that reconstructs its input: trained without labels, compressed, converted, evaluated by its error."""

import json

import numpy as np
import pytest
from messages import warned
from sklearn.metrics import roc_auc_score

from tfq.auditing import audit_model
from tfq.compression import measure_sparsity, prune_model, qat_model
from tfq.compression.output_losses import reconstructs
from tfq.compression.training import deterministic, predict, train_model
from tfq.config import ConversionConfig, PruneConfig, TrainConfig
from tfq.conversion import convert_model
from tfq.data import Split
from tfq.keras_bridge import import_keras, import_tf_keras

KINDS = {"tf_keras": import_tf_keras, "keras": import_keras}
FEATURES = 32


def sounds(n, rng, causes):
    return (rng.normal(size=(n, len(causes))) @ causes + 0.1 * rng.normal(size=(n, FEATURES))).astype(np.float32)


def data():
    """Return (train, test): four causes generate normal examples; half of the test also has others."""
    rng = np.random.default_rng(0)
    causes, others = rng.normal(size=(2, 4, FEATURES))
    normal, odd = sounds(100, rng, causes), sounds(100, rng, causes) + 0.7 * sounds(100, rng, others)
    labels = np.repeat([0, 1], 100)
    train = Split(name="train", inputs={"x": sounds(600, rng, causes)}, labels=None, source="arrays")
    return train, Split(name="test", inputs={"x": np.concatenate([normal, odd])}, labels=labels, source="arrays")


def small(keras, last=None):
    layers = keras.layers
    x = features = keras.Input((FEATURES,), name="features")
    for index, units in enumerate((24, 6, 24)):
        x = layers.Dense(units, use_bias=index != 1, name=f"dense{index}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{index}")(x)
        x = layers.Activation("relu", name=f"relu{index}")(x)
    return keras.Model(features, layers.Dense(FEATURES, last, name="out")(x), name="small_autoencoder")


def fit(model, callbacks=(), epochs=8):
    return train_model(model, data()[0], None, TrainConfig(epochs=epochs, learning_rate=5e-3), callbacks=callbacks)


def fit_briefly(model, callbacks):
    fit(model, callbacks, epochs=3)


def auc(model, test):
    errors = ((predict(model, test)[0] - test.inputs["x"]) ** 2).mean(axis=1)
    return roc_auc_score(test.labels, errors)


@pytest.mark.parametrize("kind", KINDS)
def test_an_autoencoder_learns_its_input_without_labels(kind):
    with deterministic(0):
        model = small(KINDS[kind]())
    history = fit(model)
    assert history.pop("loss_function") == "mean_squared_error of the reconstruction"
    assert set(history) == {"loss"} and history["loss"][-1] < history["loss"][0] / 4
    assert auc(model, data()[1]) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_is_distinguished_from_classification(kind):
    keras = KINDS[kind]()
    assert reconstructs(small(keras)) and reconstructs(small(keras, "sigmoid"))
    assert not reconstructs(small(keras, "softmax"))
    one = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    tokens = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(9, 1), keras.layers.Flatten()])
    assert not reconstructs(one) and not reconstructs(tokens)


def test_unused_classes_are_reported():
    train, _ = data()
    classes = Split(name="train", inputs=train.inputs, labels=np.arange(600) % FEATURES, source="arrays")
    with warned("labels"):
        train_model(small(import_tf_keras()), classes, None, TrainConfig(epochs=1))


def pruned_and_quantized():
    with deterministic(0):
        model = small(import_tf_keras())
        fit(model)
        pruned = prune_model(model, fit_briefly, PruneConfig(final_sparsity=0.5, frequency=2))
        return model, qat_model(pruned, fit_briefly)


def test_pruned_and_quantized_it_still_detects_anomalies_in_int8():
    model, quantized = pruned_and_quantized()
    _, test = data()
    assert auc(quantized, test) > auc(model, test) - 0.05
    assert all(fraction >= 0.49 for fraction in measure_sparsity(quantized).values())
    content = convert_model(quantized, None, ConversionConfig())
    assert audit_model(content).scheme == "full_int8"


def test_a_whole_run_of_the_autoencoder_holds_both_roc_aucs(tfq_here, tmp_path):
    train, test = data()
    x = {"x_train": train.inputs["x"], "x_test": test.inputs["x"], "y_test": test.labels}
    np.savez(tmp_path / "sounds.npz", **x)
    result = tfq_here(
        "run",
        "--model=fc_autoencoder",
        f"--data=npz:{tmp_path}/sounds.npz",
        f"--out={tmp_path}/out",
        "--training.epochs=12",
        "--training.batch_size=8",
        "--training.learning_rate=0.003",
        "--compression.prune=False",
        "--compression.qat=False",
        "--evaluation.num_runs=0",
        "--benchmark.min_secs=0",
        "--benchmark.num_runs=1",
        "--nobenchmark.ops",
        "--audit.require=full_int8",
    )
    assert result.returncode == 0, result.stderr
    assert "fc_autoencoder" in result.stderr
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    for model in record["models"]:
        evaluation = model["evaluation"]
        assert evaluation["metric"] == "roc_auc" and evaluation["accuracy"] > 0.85
        assert evaluation["scores"].keys() == {"roc_auc", "mae"}
        assert abs(evaluation["accuracy_drop"]) < 0.05
    (trained,) = [stage for stage in record["stages"] if stage["name"] == "train"]
    assert trained["details"]["test_metric"] == "roc_auc"
    assert trained["details"]["test_accuracy"] == pytest.approx(record["models"][0]["evaluation"]["accuracy"], abs=1e-4)

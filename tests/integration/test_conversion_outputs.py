# SPDX-License-Identifier: Apache-2.0
"""Models whose outputs are special: one tensor under two names, labels for each output."""

import keras
import numpy as np
import pytest
import tf_keras
from interpreted import answers_of
from messages import refused

import tfq

X = np.random.default_rng(0).normal(size=(24, 4)).cumsum(1).astype(np.float32)


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_one_tensor_under_two_names_is_two_outputs(library):
    library.utils.set_random_seed(0)
    x = library.Input((4,), name="x")
    logits = library.layers.Dense(3, name="logits")(x)
    model = library.Model(x, {"a": logits, "b": logits, "c": library.layers.Dropout(0.5)(logits)})
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    config = tfq.ConversionConfig(num_calibration_samples=24)
    for content in (tfq.convert(model, X, config), floating):
        assert tfq.tflite.read(content).output_names == ("a", "b", "c")
        for output in range(3):
            expected = model.predict(X, verbose=0)["abc"[output]]
            assert np.abs(answers_of(content, X, output) - expected).max() < 0.05 * np.abs(expected).max()
    record = tfq.evaluate(tfq.convert(model, X, config), X, reference=floating)
    assert [item["name"] for item in record.outputs] == ["a", "b", "c"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Return a model with three outputs, its float and int8 files, labels for each output, and an .npz file of them."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = np.kron(rng.uniform(size=(30, 2, 2, 1)), np.ones((1, 2, 2, 1))).astype(np.float32)
    image = keras.Input((4, 4, 1), name="image")
    features = keras.layers.Conv2D(3, 3, padding="same", activation="relu")(image)
    flat = keras.layers.Flatten()(features)
    outputs = {
        "boxes": keras.layers.Dense(4)(flat),
        "classes": keras.layers.Dense(3, activation="softmax")(flat),
        "mask": keras.layers.Conv2D(2, 1)(features),
    }
    model = keras.Model(image, outputs)
    labels = {
        "boxes": rng.random((30, 4)).astype(np.float32),
        "classes": rng.integers(0, 3, 30),
        "mask": rng.integers(0, 2, (30, 4, 4)).astype(np.uint8),
    }
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    path = tmp_path_factory.mktemp("data") / "examples.npz"
    np.savez(path, x_test=x, **{f"y_test.{name}": values for name, values in labels.items()})
    return model.predict(x, verbose=0), floating, x, labels, path


def test_every_output_is_scored_with_its_own_labels(detector):
    predicted, floating, x, labels, path = detector
    expected = {
        "boxes": ("mae", np.abs(predicted["boxes"] - labels["boxes"]).mean()),
        "classes": ("top1", (predicted["classes"].argmax(-1) == labels["classes"]).mean()),
        "mask": ("pixel_accuracy", (predicted["mask"].argmax(-1) == labels["mask"]).mean()),
    }
    for data in ((x, labels), f"npz:{path}"):
        record = tfq.evaluate(floating, data, reference=floating)
        for output in record.outputs:
            metric, value = expected[output["name"]]
            assert output["metric"] == metric and output["accuracy"] == pytest.approx(value, abs=1e-5)
            assert output["reference_accuracy"] == output["accuracy"] and output["accuracy_drop"] == 0
        assert (record.metric, record.accuracy) == ("mae", pytest.approx(expected["boxes"][1], abs=1e-5))
        assert "classes" in record.to_text()


def test_output_and_metric_choose_what_the_record_has(detector):
    _, floating, x, labels, _ = detector
    record = tfq.evaluate(floating, (x, labels), tfq.EvaluationConfig(output="classes"))
    assert record.metric == "top1"
    config = tfq.EvaluationConfig(output="mask", output_metrics=("mask=mean_iou",))
    assert tfq.evaluate(floating, (x, labels), config).metric == "mean_iou"
    assert tfq.evaluate(floating, (x, {"classes": labels["classes"]})).metric == "top1"
    assert tfq.evaluate(floating, (x, labels), metric=lambda outputs, own: own["classes"].mean()).accuracy == (
        pytest.approx(labels["classes"].mean())
    )


def test_labels_that_fit_no_output_are_refused(detector):
    _, floating, x, labels, path = detector
    with refused(tfq.InputError, field="labels", got="class", word="'classes'"):
        tfq.evaluate(floating, (x, {"class": labels["classes"]}))
    with refused(tfq.InputError, field="labels"):
        tfq.evaluate(floating, (x, {**labels, "classes": labels["classes"][:3]}))
    with refused(tfq.InputError, field="evaluation.metric", got="top5"):
        tfq.evaluate(floating, (x, labels), metric="top5")
    both = path.parent / "both.npz"
    np.savez(both, x_test=x, y_test=labels["classes"], **{"y_test.classes": labels["classes"]})
    with refused(tfq.InputError, field="data.source", got=("y_test", "y_test.classes")):
        tfq.load_split(tfq.DataConfig(source=f"npz:{both}"), "test")

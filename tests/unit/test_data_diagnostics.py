# SPDX-License-Identifier: Apache-2.0
"""Problems that are reported in a calibration set, and data without problems."""

import json

import numpy as np
import pytest

from tfq.config import DataConfig
from tfq.data import Split, SplitStream, count_classes, diagnose, example_shape, load_split
from tfq.data.diagnostics import judge_noise

IMAGES = [(8, 8, 1), (32, 32, 3)]
NOISE = {
    "uniform": lambda rng, shape: rng.uniform(0, 1, shape),
    "uniform of pixels": lambda rng, shape: rng.uniform(0, 255, shape),
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "normal far out": lambda rng, shape: rng.normal(-40, 7, shape),
    "pixels": lambda rng, shape: rng.integers(0, 256, shape),
    "few levels": lambda rng, shape: rng.integers(0, 17, shape),
}


def split(x, labels=None, class_names=()):
    labels = None if labels is None else np.asarray(labels)
    return Split(name="train", inputs={"x": x}, labels=labels, source="arrays", class_names=class_names)


def smooth(rng, n, length, features, weight):
    """Return autocorrelated features: x[t] = weight x[t - 1] plus noise, each of variance 1."""
    x = rng.normal(size=(n, length, features))
    for t in range(1, length):
        x[:, t] = weight * x[:, t - 1] + np.sqrt(1 - weight**2) * x[:, t]
    return x


REAL = {
    "features of a spectrogram": lambda rng, n: smooth(rng, n, 49, 10, 0.9)[..., None],
    "features that hardly follow": lambda rng, n: smooth(rng, n, 49, 10, 0.2),
    "features of few causes": lambda rng, n: rng.normal(size=(n, 5)) @ rng.normal(size=(5, 640)),
    "few causes under much noise": lambda rng, n: (
        0.4 * rng.normal(size=(n, 5)) @ rng.normal(size=(5, 640)) + rng.normal(size=(n, 640))
    ),
    "loud and quiet": lambda rng, n: rng.normal(size=(n, 640)) * rng.uniform(0.5, 2, (n, 1)),
    "features of different scales": lambda rng, n: rng.normal(size=(n, 640)) * np.linspace(0.5, 2, 640),
    "features of different means": lambda rng, n: rng.normal(size=(n, 640)) + np.linspace(-1, 1, 640),
    "one-hot": lambda rng, n: np.eye(100)[rng.integers(0, 100, n)],
    "one-hot words": lambda rng, n: np.eye(20)[rng.integers(0, 20, (n, 30))],
    "words by their frequency": lambda rng, n: rng.zipf(1.3, (n, 640)).clip(0, 9999).astype(np.float32),
    "silence and clicks": lambda rng, n: (rng.random((n, 640)) < 0.02) * rng.normal(size=(n, 640)),
}


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("shape", [*IMAGES, (640,), (49, 10, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_recognised_at_any_scale(kind, shape, seed):
    x = NOISE[kind](np.random.default_rng(seed), (20, *shape)).astype(np.float32)
    assert judge_noise(x).is_noise
    (finding,) = [result for result in diagnose(split(x)).findings if "noise" in result]
    assert "real" in finding


def test_normalized_or_clipped_noise_is_still_noise():
    rng = np.random.default_rng(0)
    x = (rng.uniform(0, 1, (30, 32, 32, 3)) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert judge_noise(x.astype(np.float32)).is_noise
    assert judge_noise(np.clip(rng.normal(128, 90, (30, 32, 32, 3)), 0, 255).astype(np.float32)).is_noise


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("n", [12, 50, 200])
def test_structured_data_is_not_reported_as_noise(kind, n):
    for seed in range(5):
        x = REAL[kind](np.random.default_rng(seed), n).astype(np.float32)
        verdict = judge_noise(x)
        assert not verdict.is_noise, verdict


@pytest.mark.parametrize("n", [8, 20, 100])
def test_digits_in_any_layout_are_not_reported_as_noise(n):
    x = load_split(DataConfig(source="digits"), "train").inputs["x"]
    flat = x.reshape(len(x), -1)
    flat = ((flat - flat.mean(0)) / (flat.std(0) + 1e-6))[:, np.random.default_rng(0).permutation(64)]
    for array in (x, x / 16, flat):
        for start in range(0, len(x) - n, max(n, 50)):
            assert not judge_noise(array[start : start + n]).is_noise


def test_indices_and_a_handful_of_values_are_not_judged():
    rng = np.random.default_rng(0)
    assert judge_noise(rng.integers(0, 1000, (200, 40))).is_noise is None
    assert judge_noise(rng.normal(size=(4, 32, 32, 3))).is_noise is None
    assert judge_noise(rng.normal(size=(500, 4))).is_noise is None
    assert diagnose(split(rng.integers(0, 1000, (200, 40)))).noise["is_noise"] is None
    assert judge_noise(np.ones((20, 32, 32, 3), np.float32)).is_noise is False


def digits(n=200):
    return load_split(DataConfig(source="digits"), "train", limit=n)


def test_good_data_has_no_findings_and_counts_of_its_classes():
    result = diagnose(digits())
    assert result.findings == ()
    assert result.class_counts == {str(label): int((digits().labels == label).sum()) for label in range(10)}
    assert result.noise["is_noise"] is False and "neighbors" in result.noise["x"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()


def whole():
    return load_split(DataConfig(source="digits"), "train")


def test_sorted_data_that_begins_with_one_class_is_reported():
    every = whole()
    order = np.argsort(every.labels, kind="stable")[:100]
    x, labels = every.inputs["x"][order], every.labels[order]
    alone = diagnose(split(x, labels)).findings
    assert len(alone) == 1 and "100" in alone[0]
    (missing, many) = diagnose(split(x, labels), whole).findings
    assert "9" in missing and "10.1" in many
    named = diagnose(split(x, labels, class_names=tuple("abcdefghij")))
    assert named.class_counts["a"] == 100 and named.class_counts["j"] == 0
    assert "(b," in named.findings[0]


def test_sorted_data_that_begins_with_some_classes_is_reported():
    every = whole()
    order = np.argsort(every.labels, kind="stable")
    x, labels = every.inputs["x"][order], every.labels[order]
    first = int((labels < 3).sum())
    (missing,) = diagnose(split(x[:first], labels[:first]), lambda: split(x, labels)).findings
    assert "7" in missing and str(first) in missing
    assert not diagnose(split(x, labels), lambda: split(x, labels)).findings


def test_one_class_is_all_there_is_to_an_autoencoder():
    normal = split(digits().inputs["x"], np.zeros(200, int))
    assert diagnose(normal, lambda: normal).findings == ()


def test_natural_or_random_imbalance_is_not_a_finding():
    rng = np.random.default_rng(0)
    x = digits().inputs["x"]
    labels = np.where(rng.random(200) < 0.95, 1, rng.integers(0, 10, 200))
    assert any("fraction" in result for result in diagnose(split(x, labels)).findings)
    assert not any("fraction" in result for result in diagnose(split(x, labels), lambda: split(x, labels)).findings)
    for seed in range(20):
        fair = np.random.default_rng(seed).integers(0, 10, 200)
        assert diagnose(split(x, fair)).findings == ()


def test_too_few_examples_for_their_classes_are_reported():
    labels = np.random.default_rng(0).integers(0, 100, 100)
    x = digits(100).inputs["x"]
    (finding,) = diagnose(split(x, labels)).findings
    assert "num_calibration_samples" in finding
    few = diagnose(split(digits(20).inputs["x"])).findings[0]
    assert "20" in few


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (None, "labels"),
        (np.linspace(0, 1, 200), "float64"),
        (np.arange(200) * 1000, "199000"),
    ],
)
def test_labels_that_are_not_classes_have_a_reason(labels, word):
    result = diagnose(split(digits().inputs["x"], labels))
    assert (result.class_counts, result.findings) == (None, ()) and word in result.class_counts_reason


def test_duplicate_and_constant_examples_are_reported():
    x = digits().inputs["x"]
    (copies,) = diagnose(split(np.concatenate([x[:100], x[:100]]))).findings
    assert "same" in copies and "100" in copies
    black = np.where(np.arange(200).reshape(-1, 1, 1, 1) < 20, np.arange(200).reshape(-1, 1, 1, 1), x)
    (constant,) = diagnose(split(black.astype(np.float32))).findings
    assert "20" in constant


def test_images_of_two_scales_are_reported():
    x = np.clip(digits().inputs["x"] * 16, 0, 255)
    x[:3] /= 255
    (finding,) = diagnose(split(x)).findings
    assert "255" in finding and "'x'" in finding


def test_outliers_are_reported_and_sparse_data_is_not():
    x = digits().inputs["x"].copy()
    x[7, 3, 3] = 1e5
    (finding,) = diagnose(split(x)).findings
    assert "outliers" in finding
    one_hot = np.eye(5000, dtype=np.float32)[np.arange(3000)]
    assert not any("outliers" in result for result in diagnose(split(one_hot)).findings)


def test_each_input_is_looked_at():
    noise = np.random.default_rng(0).normal(size=(100, 640)).astype(np.float32)
    both = Split(name="train", inputs={"a": digits(100).inputs["x"], "b": noise}, labels=None, source="arrays")
    result = diagnose(both)
    assert result.noise["is_noise"] is True and set(result.noise) == {"is_noise", "a", "b"}
    assert [finding[:9] for finding in result.findings] == ["input 'b'"]
    assert example_shape(both) is None


def test_a_stream_is_diagnosed_as_what_it_holds():
    every = digits()

    def read(start, stop):
        for first in range(start, stop, 30):
            chosen = slice(first, min(first + 30, stop))
            yield split(every.inputs["x"][chosen], every.labels[chosen])

    stream = SplitStream(name="train", source="arrays", num_examples=200, read=read, piece_examples=30, seekable=True)
    assert diagnose(stream) == diagnose(every)
    assert example_shape(stream) == example_shape(every) == (8, 8, 1)
    assert count_classes([stream, every.take(2)]) == 10
    assert count_classes([split(every.inputs["x"])]) is None
    assert count_classes([split(every.inputs["x"], class_names=("a", "b", "c"))]) == 3

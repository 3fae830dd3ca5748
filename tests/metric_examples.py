# SPDX-License-Identifier: Apache-2.0
"""Outputs and labels for every registered metric, with ties: a new metric needs an entry here."""

import numpy as np

NUM_EXAMPLES = 97
_RNG = np.random.default_rng(0)
TIED_SCORES = _RNG.integers(0, 20, (NUM_EXAMPLES, 9)).astype(np.float32) / 20
CLASS_LABELS = _RNG.integers(0, 9, NUM_EXAMPLES)
PIXELS = _RNG.normal(size=(NUM_EXAMPLES, 3, 5, 4)).astype(np.float32)
MASKS = _RNG.integers(0, 4, (NUM_EXAMPLES, 3, 5), np.uint8)
VALUES = _RNG.normal(size=(NUM_EXAMPLES, 3, 5))
NOISY_VALUES = (VALUES + _RNG.normal(size=VALUES.shape)).astype(np.float32)


def _boxes() -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the four outputs of TFLite's detection op, and labels: two boxes in each image, one of them found."""
    corners = _RNG.uniform(0, 0.5, (NUM_EXAMPLES, 2, 2))
    true = np.concatenate([corners, corners + 0.3], axis=2).astype(np.float32)
    classes = _RNG.integers(0, 3, (NUM_EXAMPLES, 2)).astype(np.float32)
    labels = np.concatenate([classes[..., None], true, np.zeros((NUM_EXAMPLES, 2, 1))], axis=2).astype(np.float32)
    found = true + _RNG.normal(scale=0.03, size=true.shape).astype(np.float32)
    scores = _RNG.integers(1, 20, (NUM_EXAMPLES, 2)).astype(np.float32) / 20
    return (found, classes, scores, np.full(NUM_EXAMPLES, 2, np.float32)), labels


_BOXES = _boxes()
PROBABILITIES = TIED_SCORES + 1 / 20
PROBABILITIES = (PROBABILITIES / PROBABILITIES.sum(axis=1, keepdims=True)).astype(np.float32)
LABELS = _RNG.random((NUM_EXAMPLES, 9)) < 0.3
EXAMPLES: dict[str, tuple[tuple[np.ndarray, ...], np.ndarray]] = {
    "top1": ((TIED_SCORES,), CLASS_LABELS),
    "top5": ((TIED_SCORES,), CLASS_LABELS),
    # The first examples look like probabilities, all of them together do not.
    "roc_auc": (
        (np.where(np.arange(NUM_EXAMPLES)[:, None] < 30, [[0.3, 0.7]], TIED_SCORES[:, :2] * 8),),
        _RNG.integers(0, 2, NUM_EXAMPLES),
    ),
    "precision": ((TIED_SCORES,), LABELS),
    "recall": ((TIED_SCORES,), CLASS_LABELS),
    "f1": ((TIED_SCORES,), CLASS_LABELS),
    "pr_auc": ((PROBABILITIES,), CLASS_LABELS),
    "ece": ((PROBABILITIES,), CLASS_LABELS),
    "nll": ((TIED_SCORES * 8 - 4,), CLASS_LABELS),
    "rmse": ((NOISY_VALUES,), VALUES),
    "r2": ((NOISY_VALUES,), VALUES),
    "mae": ((NOISY_VALUES,), VALUES),
    "pixel_accuracy": ((PIXELS,), MASKS),
    "dice": ((PIXELS,), np.where(MASKS == 3, -1, MASKS.astype(np.int16))),
    "mean_iou": ((PIXELS.argmax(-1).astype(np.uint8),), MASKS.astype(np.int16)),
    "coco_map": _BOXES,
    "coco_ap50": _BOXES,
    "coco_ap75": _BOXES,
}

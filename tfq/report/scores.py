# SPDX-License-Identifier: Apache-2.0
"""What a metric's number means: a share of examples, an area under a curve, or a user's own."""

from collections.abc import Mapping
from typing import Any

from tfq.report.formatting import DASH, is_number, percent, plain, points

# Shares of examples, which read as percentages.
_SHARES = ("top1", "top5")
_WORDS = {"top1": "top-1", "top5": "top-5", "roc_auc": "ROC AUC", "mae": "MAE"}
_BETTER = {"top1": "higher", "top5": "higher", "roc_auc": "higher", "mae": "lower"}


def is_share(evaluation: Mapping[str, Any]) -> bool:
    """Whether the accuracy is a fraction of examples, and not an area, an error or what a user's own metric gave."""
    return (evaluation.get("metric") or "top1") in _SHARES


def metric_word(name: Any) -> str:
    """What a reader calls a metric: "roc_auc" -> "ROC AUC"; a user's own by its own name."""
    return _WORDS.get(plain(name or "top1"), plain(name))


def better(evaluation: Mapping[str, Any]) -> str | None:
    """Whether a "higher" or a "lower" value is better; None of a user's own metric that is not said to be an error."""
    if evaluation.get("lower_is_better"):
        return "lower"
    return _BETTER.get(plain(evaluation.get("metric") or "top1"))


def score_text(name: Any, value: Any) -> str:
    """A percentage such as "97.22%" of a share; else the number: four digits, of an area after the point."""
    if name in _SHARES:
        return percent(value)
    if not is_number(value):
        return DASH
    return f"{value:.4f}" if name == "roc_auc" else f"{value:.4g}"


def accuracy_text(evaluation: Mapping[str, Any]) -> str:
    """A percentage such as "97.22%", or the plain number and name of another metric: "12.35 MAE"."""
    value, metric = evaluation.get("accuracy"), evaluation.get("metric") or "top1"
    text = score_text(metric, value)
    return text if is_share(evaluation) or text == DASH else f"{text} {metric_word(metric)}"


def change_text(evaluation: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """How far the accuracy is from the float model's, signed: "-0.28 points" of shares, else in the metric's unit."""
    ours, theirs = evaluation.get("accuracy"), evaluation.get("reference_accuracy")
    theirs = reference.get("accuracy") if theirs is None else theirs
    if not (is_number(ours) and is_number(theirs)):
        return DASH
    if is_share(evaluation):
        return f"{points(ours - theirs)} points"
    return f"{ours - theirs:+.{4 if evaluation.get('metric') == 'roc_auc' else 3}g}".replace("-", "−")

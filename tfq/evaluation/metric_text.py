# SPDX-License-Identifier: Apache-2.0
"""Values of metrics and their paired differences as text, by their unit."""

from collections.abc import Mapping
from typing import Any


def paired_text(difference: Mapping[str, Any] | None, unit: str) -> str | None:
    """Return a `PairedDifference` as text; a fraction in percentage points. None for None."""
    if difference is None:
        return None
    text = f"{change_text(unit, difference['difference'])}{' points' if unit == 'fraction' else ''}"
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return f"{text} (no interval)"
    return f"{text} (95% interval {change_text(unit, low)} to {change_text(unit, high)})"


def change_text(unit: str, value: float) -> str:
    """Return a signed difference as text: of a fraction in percentage points, without the word; else in the unit."""
    if unit == "fraction":
        return f"{100 * value:+.2f}"
    return f"{value:+.4f}" if unit == "score" else f"{value:+.4g}"


def score_text(unit: str, value: float | None) -> str | None:
    """Return a value as text, by its unit: a fraction as a percentage, a score with four decimals; None for None."""
    if value is None:
        return None
    if unit == "fraction":
        return f"{value:.2%}"
    return f"{value:.4f}" if unit == "score" else f"{value:.6g}"

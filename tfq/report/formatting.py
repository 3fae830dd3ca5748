# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as a reader wants them: each with its unit, a dash for what is not known."""

import math
from typing import Any, TypeGuard

DASH = "—"

# What a run calls its models, and what a reader does.
_WORDS = {"ptq": "PTQ", "qat": "QAT"}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number (and no boolean)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(fraction: Any) -> str:
    """0.97222 -> "97.22%"."""
    return f"{100 * fraction:.2f}%" if is_number(fraction) else DASH


def points(fraction: Any) -> str:
    """A difference of two fractions in percentage points, signed: -0.0028 -> "-0.28"."""
    return f"{100 * fraction:+.2f}".replace("-", "−") if is_number(fraction) else DASH


def count(number: Any) -> str:
    """12345 -> "12,345"."""
    return f"{number:,}" if is_number(number) else DASH


def kilobytes(number: Any) -> str:
    """12345 -> "12.3 kB", of 1,000 bytes."""
    return f"{number / 1000:,.1f} kB" if is_number(number) else DASH


def significant(number: Any) -> str:
    """Three significant digits, and every digit before the point: 0.04215 -> "0.0421", 1234.5 -> "1,234"."""
    if not is_number(number):
        return DASH
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def seconds(number: Any) -> str:
    """A duration: "0.35 s", "12.3 s", "2 min 05 s"."""
    if not is_number(number):
        return DASH
    if number >= 60:
        return f"{int(number) // 60} min {int(number) % 60:02d} s"
    return f"{number:.1f} s" if number >= 10 else f"{number:.2f} s"


def plain(value: Any) -> str:
    """`value` as one line of printable text: control characters, newlines and stray surrogates become spaces."""
    return "".join(character if character.isprintable() else " " for character in str(value)).strip()


def model_label(name: Any) -> str:
    """What a reader calls a model of the record: "pruned_qat_int8" -> "pruned + QAT int8", "ptq_int8" -> "PTQ int8"."""
    words = [_WORDS.get(word, word) for word in plain(name).split("_")]
    if words[-1] == "int8" and len(words) > 1:
        return f"{' + '.join(words[:-1])} int8"
    return plain(name)


def scalar(value: Any) -> str:
    """Any plain JSON value on one line: numbers short, lists of numbers by their ends, nested objects as key value."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if is_number(value):
        return f"{value:.4g}"
    if isinstance(value, list):
        if len(value) > 4 and all(is_number(item) for item in value):
            return f"{scalar(value[0])} … {scalar(value[-1])} ({len(value)} values)"
        return ", ".join(scalar(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{plain(key)} {scalar(item)}" for key, item in value.items()) or "none"
    return plain(value)

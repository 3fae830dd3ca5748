# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as a reader wants them: each with its unit, a dash for what is not known."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from tfq.backends import find_kind

NOT_A_TIME = "a count, not a time"


def metric_facts(evaluation: Mapping[str, Any], name: Any = None) -> Mapping[str, Any]:
    """Return what the record says about a metric: its title, direction and unit; name: the evaluation's own if None."""
    facts = (evaluation.get("metrics") or {}).get(evaluation.get("metric") if name is None else name)
    return facts if isinstance(facts, Mapping) else {}


def is_fraction(evaluation: Mapping[str, Any]) -> bool:
    """Return whether the accuracy is a fraction of examples, and not an area, an error or another number."""
    return metric_facts(evaluation).get("unit") == "fraction"


def metric_word(evaluation: Mapping[str, Any], name: Any = None) -> str:
    """Return a metric's name for readers: "ROC AUC" for "roc_auc"; name: the evaluation's own if None."""
    name = evaluation.get("metric") if name is None else name
    return plain(metric_facts(evaluation, name).get("title") or name)


def better(evaluation: Mapping[str, Any]) -> str | None:
    """Return whether a "higher" or a "lower" value is better; None if the metric does not declare it."""
    return metric_facts(evaluation).get("direction")


def score_text(evaluation: Mapping[str, Any], value: Any, name: Any = None) -> str:
    """Return a metric's value in its unit: a fraction as "97.22%", a score with four decimals, else four digits."""
    unit = metric_facts(evaluation, name).get("unit")
    if unit == "fraction":
        return percent(value)
    if not is_number(value):
        return DASH
    return f"{value:.4f}" if unit == "score" else f"{value:.4g}"


def accuracy_text(evaluation: Mapping[str, Any]) -> str:
    """Return a percentage such as "97.22%", or the number and name of another metric: "12.35 MAE"."""
    text = score_text(evaluation, evaluation.get("accuracy"))
    return text if is_fraction(evaluation) or text == DASH else f"{text} {metric_word(evaluation)}"


def change_text(evaluation: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Return the signed difference from the float model: "-0.28 points" of a fraction, else in the metric's unit."""
    ours, theirs = evaluation.get("accuracy"), evaluation.get("reference_accuracy")
    theirs = reference.get("accuracy") if theirs is None else theirs
    if not (is_number(ours) and is_number(theirs)):
        return DASH
    if is_fraction(evaluation):
        return f"{points(ours - theirs)} points"
    digits = 4 if metric_facts(evaluation).get("unit") == "score" else 3
    return f"{ours - theirs:+.{digits}g}".replace("-", "−")


DASH = "—"

# What a run calls its models, and what a reader does.
_TITLE_WORDS = {"ptq": "PTQ", "qat": "QAT"}
_SCHEMES = ("weight_only_int8", "int8", "int16x8", "dynamic_range", "float16", "float32")


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


def significant(number: Any, digits: int = 3) -> str:
    """Three significant digits, and every digit before the point: 0.04215 -> "0.0421", 1234.5 -> "1,234"."""
    if not is_number(number):
        return DASH
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.{digits}g}"


def millions(number: Any) -> str:
    """1512345 -> "1.51": instructions read in millions."""
    return significant(number / 1e6) if is_number(number) else DASH


def decibels(number: Any) -> str:
    """31.42 -> "31.4 dB". An infinite one, where nothing differs, is "inf" in a record."""
    return f"{number:.1f} dB" if is_number(number) else "no difference" if number == "inf" else DASH


def ratio(number: Any) -> str:
    """How many times: 1.5234 -> "1.52x"."""
    return f"{number:.2f}x" if is_number(number) else DASH


@dataclass(frozen=True, kw_only=True)
class TimeUnit:
    """What times of one table are told in. per_ms: how many of it a millisecond has."""

    short: str
    word: str
    per_ms: int

    def text(self, milliseconds: Any, digits: int = 3) -> str:
        """The number alone, of `digits` significant ones."""
        return significant(milliseconds * self.per_ms, digits) if is_number(milliseconds) else DASH


MILLISECONDS = TimeUnit(short="ms", word="Milliseconds", per_ms=1)
MICROSECONDS = TimeUnit(short="µs", word="Microseconds", per_ms=1000)


def time_unit(milliseconds: Iterable[Any]) -> TimeUnit:
    """The unit in which the longest of these times has digits before its point."""
    longest = max((value for value in milliseconds if is_number(value)), default=1.0)
    return MICROSECONDS if longest < 0.1 else MILLISECONDS


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
    text = plain(name)
    for scheme in _SCHEMES:
        if text.endswith(f"_{scheme}"):
            words = [_TITLE_WORDS.get(word, word) for word in text.removesuffix(f"_{scheme}").split("_")]
            return f"{' + '.join(words)} {scheme.replace('weight_only', 'weight-only').replace('_', ' ')}"
    return text


def cpu_label(backend: Any) -> str:
    """Return the short name of a backend: "qemu:cortex-a53" -> "cortex-a53"."""
    name = plain(backend)
    kind = find_kind(name)
    return name if kind is None else kind.label(name.partition(":")[2])


def is_emulated(backend: str) -> bool:
    """Check whether a backend of a record is an emulator."""
    kind = find_kind(backend)
    return kind is not None and kind.emulated


def number_of(value: Any, noun: str) -> str:
    """A count and its noun: "1 warning", "2 warnings"."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


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

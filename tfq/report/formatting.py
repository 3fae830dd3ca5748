# SPDX-License-Identifier: Apache-2.0
"""Format the numbers and names of a record: with their units, and a dash for missing values."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from tfq.backends import find_kind
from tfq.evaluation import classes

NOT_A_TIME = "a count, not a time"


def metric_facts(evaluation: Mapping[str, Any], name: Any = None) -> Mapping[str, Any]:
    """Return the facts that the record has about a metric: title, direction, unit and interval.

    Args:
        evaluation: The evaluation of a model.
        name: The metric's name; None is the metric of the evaluation.
    """
    facts = (evaluation.get("metrics") or {}).get(evaluation.get("metric") if name is None else name)
    return facts if isinstance(facts, Mapping) else {}


def is_fraction(evaluation: Mapping[str, Any]) -> bool:
    """Check whether the accuracy is a fraction of the examples, and not an area, an error or another number."""
    return metric_facts(evaluation).get("unit") == "fraction"


def metric_title(evaluation: Mapping[str, Any], name: Any = None) -> str:
    """Return a metric's name for readers: "ROC AUC" for "roc_auc". `name` is as in `metric_facts`."""
    name = evaluation.get("metric") if name is None else name
    return plain(metric_facts(evaluation, name).get("title") or name)


def better(evaluation: Mapping[str, Any]) -> str | None:
    """Return whether a "higher" or a "lower" value is better; None if the metric does not declare it."""
    return metric_facts(evaluation).get("direction")


def score_text(evaluation: Mapping[str, Any], value: Any, name: Any = None) -> str:
    """Return a metric's value in its unit: a fraction as "97.22%", a score with 4 decimals, else 4 digits."""
    return value_text(value, str(metric_facts(evaluation, name).get("unit")))


def value_text(value: Any, unit: str) -> str:
    """Return a number in a unit of `tfq.evaluation.metric`: a fraction as "97.22%", a score with 4 decimals."""
    if unit == "fraction":
        return percent(value)
    if not is_number(value):
        return DASH
    return f"{value:.4f}" if unit == "score" else f"{value:.4g}"


def difference_text(value: Any, unit: str) -> str:
    """Return a signed difference: of a fraction in percentage points, without the word."""
    if unit == "fraction":
        return points(value)
    if not is_number(value):
        return DASH
    return f"{value:+.4f}".replace("-", "−") if unit == "score" else f"{value:+.3g}".replace("-", "−")


def difference_with_interval(difference: Mapping[str, Any], unit: str) -> str:
    """Return a paired difference with its 95% interval, as its record has it."""
    word = " points" if unit == "fraction" else ""
    text = difference_text(difference.get("difference"), unit)
    ends = [difference.get(key) for key in ("low", "high")]
    if text == DASH or not all(map(is_number, ends)):
        return text if text == DASH else f"{text}{word} ({NO_INTERVAL})"
    return f"{text}{word} (95% interval {difference_text(ends[0], unit)} to {difference_text(ends[1], unit)})"


def accuracy_text(evaluation: Mapping[str, Any]) -> str:
    """Return a percentage such as "97.22%", or the number and name of another metric: "12.35 MAE"."""
    text = score_text(evaluation, evaluation.get("accuracy"))
    return text if is_fraction(evaluation) or text == DASH else f"{text} {metric_title(evaluation)}"


NO_INTERVAL = "no interval"


def interval_text(evaluation: Mapping[str, Any], name: Any = None) -> str:
    """Return the 95% interval of a metric, "97.00% to 99.10%"; `NO_INTERVAL` if it has none, a dash if no value."""
    scores = evaluation.get("scores") or {}
    value = evaluation.get("accuracy") if name is None else scores.get(name)
    if not is_number(value):
        return DASH
    ends = metric_facts(evaluation, name).get("interval")
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or not all(map(is_number, ends)):
        return NO_INTERVAL
    return f"{score_text(evaluation, ends[0], name)} to {score_text(evaluation, ends[1], name)}"


def with_interval(evaluation: Mapping[str, Any], name: Any = None) -> str:
    """Return a metric's value and its interval: "98.31% (96.0% to 99.3%)"; a dash if it has no value."""
    value = (evaluation.get("scores") or {}).get(name) if name is not None else None
    text = accuracy_text(evaluation) if name is None else score_text(evaluation, value, name)
    return text if text == DASH else f"{text} ({interval_text(evaluation, name)})"


def is_within_noise(evaluation: Mapping[str, Any]) -> bool:
    """Check whether the paired interval of the difference from the float model contains 0."""
    return bool((evaluation.get("accuracy_difference") or {}).get("is_noise"))


def paired_interval_text(evaluation: Mapping[str, Any]) -> str:
    """Return the paired 95% interval of the difference from the float model in its unit, or `NO_INTERVAL`."""
    difference = evaluation.get("accuracy_difference") or {}
    ends = [difference.get(key) for key in ("low", "high")]
    unit = str(metric_facts(evaluation).get("unit") or "fraction")
    ends_text = [difference_text(end, unit) for end in ends]
    return f"{ends_text[0]} to {ends_text[1]}" if all(map(is_number, ends)) else NO_INTERVAL


def change_text(evaluation: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Return the signed difference from the float model: "−0.28 points" of a fraction, else in the metric's unit."""
    ours, theirs = evaluation.get("accuracy"), evaluation.get("reference_accuracy")
    theirs = reference.get("accuracy") if theirs is None else theirs
    if not (is_number(ours) and is_number(theirs)):
        return DASH
    if is_fraction(evaluation):
        return f"{points(ours - theirs)} points"
    digits = 4 if metric_facts(evaluation).get("unit") == "score" else 3
    return f"{ours - theirs:+.{digits}g}".replace("-", "−")


DASH = "—"

# The words for steps in the names of a run's models, and how readers know them. Names of files have other words.
_STEPS = {
    "ptq": "PTQ",
    "filtered": "filtered",
    "pruned": "pruned",
    "clustered": "clustered",
    "qat": "QAT",
}
_SCHEMES = (
    *("weight_only_int8", "weight_only_int4", "weight_only_int2", "int8", "int16x8"),
    *("dynamic_range", "float16", "float32"),
)


def is_number(value: Any) -> TypeGuard[float]:
    """Check whether `value` is a finite number, and not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(fraction: Any) -> str:
    """Return a fraction in percent: 0.97222 -> "97.22%"."""
    return f"{100 * fraction:.2f}%" if is_number(fraction) else DASH


def points(fraction: Any) -> str:
    """Return the difference of two fractions in percentage points, signed: -0.0028 -> "−0.28"."""
    return f"{100 * fraction:+.2f}".replace("-", "−") if is_number(fraction) else DASH


def count(number: Any) -> str:
    """Return a number with all its digits: 12345 -> "12,345"."""
    return f"{number:,}" if is_number(number) else DASH


def kilobytes(number: Any) -> str:
    """Return bytes in kilobytes of 1,000 bytes: 12345 -> "12.3 kB"."""
    return f"{number / 1000:,.1f} kB" if is_number(number) else DASH


def significant(number: Any, digits: int = 3) -> str:
    """Return `digits` significant digits, and all digits before the point: 0.04215 -> "0.0421", 1234.5 -> "1,234"."""
    if not is_number(number):
        return DASH
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.{digits}g}"


def millions(number: Any) -> str:
    """Return a count in millions: 1512345 -> "1.51"."""
    return significant(number / 1e6) if is_number(number) else DASH


def decibels(number: Any) -> str:
    """Return a ratio in decibels: 31.42 -> "31.4 dB". "inf", which a record has if nothing differs, is written out."""
    return f"{number:.1f} dB" if is_number(number) else "no difference" if number == "inf" else DASH


def ratio(number: Any) -> str:
    """Return a ratio: 1.5234 -> "1.52x"."""
    return f"{number:.2f}x" if is_number(number) else DASH


@dataclass(frozen=True, kw_only=True)
class TimeUnit:
    """The unit of all times in a table.

    Attributes:
        short: Its symbol.
        word: Its name, capitalized, in the plural.
        per_ms: How many of it are in a millisecond.
    """

    short: str
    word: str
    per_ms: int

    def text(self, milliseconds: Any, digits: int = 3) -> str:
        """Return the number alone, with `digits` significant digits."""
        return significant(milliseconds * self.per_ms, digits) if is_number(milliseconds) else DASH


MILLISECONDS = TimeUnit(short="ms", word="Milliseconds", per_ms=1)
MICROSECONDS = TimeUnit(short="µs", word="Microseconds", per_ms=1000)


def time_unit(milliseconds: Iterable[Any]) -> TimeUnit:
    """Return the unit in which the longest of these times has digits before its point."""
    longest = max((value for value in milliseconds if is_number(value)), default=1.0)
    return MICROSECONDS if longest < 0.1 else MILLISECONDS


def seconds(number: Any) -> str:
    """Return a duration: "0.35 s", "12.3 s", "2 min 05 s"."""
    if not is_number(number):
        return DASH
    if number >= 60:
        return f"{int(number) // 60} min {int(number) % 60:02d} s"
    return f"{number:.1f} s" if number >= 10 else f"{number:.2f} s"


def plain(value: Any) -> str:
    """Return `value` as one line of printable text: control characters, newlines and surrogates become spaces."""
    return "".join(character if character.isprintable() else " " for character in str(value)).strip()


def class_text(number: Any, name: Any) -> str:
    """Return a class as `tfq.evaluation.classes.class_text` does: "3 cat", "3 (2)" or "3"; a dash for None."""
    if number is None:
        return DASH
    return classes.class_text(plain(number), plain(name or ""))


def model_label(name: Any) -> str:
    """Return a model's name for readers: "pruned_qat_int8" -> "pruned + QAT int8", "ptq_int8" -> "PTQ int8".

    Other names, such as "small_unet_int8", stay as they are.
    """
    text = plain(name)
    for scheme in _SCHEMES:
        if text.endswith(f"_{scheme}"):
            words = text.removesuffix(f"_{scheme}").split("_")
            if all(word in _STEPS for word in words):
                steps = " + ".join(_STEPS[word] for word in words)
                return f"{steps} {scheme.replace('weight_only', 'weight-only').replace('_', ' ')}"
    return text


def cpu_label(backend: Any) -> str:
    """Return the short name of a backend: "qemu:cortex-a53" -> "cortex-a53"."""
    name = plain(backend)
    kind = find_kind(name)
    return name if kind is None else kind.label(name.partition(":")[2])


def counts_instructions(backend: str) -> bool:
    """Check whether a backend of a record counts instructions."""
    kind = find_kind(backend)
    return kind is not None and kind.counts_instructions


def number_of(value: Any, noun: str) -> str:
    """Return a count and its noun: "1 warning", "2 warnings"."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def scalar(value: Any) -> str:
    """Return any JSON value on one line: short numbers, the ends of long lists, "key value" for nested objects."""
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

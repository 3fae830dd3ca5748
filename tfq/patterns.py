# SPDX-License-Identifier: Apache-2.0
"""Patterns of names by which the user chooses layers: what they fit, and the error where that is nothing."""

import fnmatch
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tfq.errors import InputError, did_you_mean


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Check whether a layer's name fits one of `patterns` (`*`, `?`, `[...]`; upper and lower case differ)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def op_address(subgraph: int, op: int) -> str:
    """Return how patterns address one op by its number: `op:12`, and `op:1:12` in subgraph 1."""
    return f"op:{subgraph}:{op}" if subgraph else f"op:{op}"


def parse_address(pattern: str) -> tuple[int, int] | None:
    """Return (subgraph, op) of a pattern that addresses an op by its number; None for any other pattern."""
    match = re.fullmatch(r"op:(?:(\d{1,9}):)?(\d{1,9})", pattern)
    return None if match is None else (int(match[1] or 0), int(match[2]))


_SOURCE = "float:"


def in_source(pattern: str) -> str:
    """Return `pattern` for a file converted from the one that it is for: an address becomes `float:op:12`."""
    return pattern if parse_address(pattern) is None else f"{_SOURCE}{pattern}"


def of_source(pattern: str) -> str | None:
    """Return the address in the float file, `op:12`, of a pattern by `in_source`; None for any other pattern."""
    address = pattern.removeprefix(_SOURCE)
    return address if address != pattern and parse_address(address) else None


def fits_op(layer: str, outputs: Iterable[str], patterns: Iterable[str]) -> bool:
    """Return whether one of `patterns` fits the layer of an op, or is the exact name of one of its output tensors."""
    patterns, outputs = tuple(patterns), frozenset(outputs)
    return fits(layer, patterns) or any(pattern in outputs for pattern in patterns)


def check_fits(
    what: str,
    pattern: str,
    reasons: Mapping[str, str | None],
    *,
    field: str | None = None,
    layers: str = "layer",
    tensors: Container[str] = (),
) -> None:
    """Raise InputError unless `pattern` fits a layer that can be chosen, or is in `tensors`, names of op outputs.

    what: how the error calls the pattern, with the step that it is for. reasons: every layer's name -> why it cannot
    be chosen, None where it can. field: the config path that holds the pattern. layers: what the pattern looks for, as
    in "fits no layer".
    The error says why what fits cannot be chosen, and which name was probably meant.
    """
    if pattern in tensors:
        return
    able = [name for name, reason in reasons.items() if reason is None]
    if any(fits(name, (pattern,)) for name in able):
        return
    unable = next((name for name in reasons if fits(name, (pattern,))), None)
    why = f"fits no {layers}" if unable is None else f"fits only {unable!r} ({reasons[unable]})"
    raise InputError(f"{what} {why}: {did_you_mean(pattern, able)}", field=field, expected=tuple(able), got=pattern)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number for the layers whose names fit `pattern`; `text` is what the user wrote."""

    pattern: str
    value: float
    text: str


def parse_targets(texts: Sequence[str], what: str, called: str, highest: float) -> tuple[Target, ...]:
    """Return pattern and number of each PATTERN=NUMBER, split at its last "=". Raises InputError on anything else.

    what: the step, with which errors begin. called: what the number is. highest: of it; the lowest is 0.
    """
    results = []
    for text in texts:
        begin, field = f"{what}: target {text!r}", f"compression.{what}.targets"
        pattern, equals, number = (part.strip() for part in text.rpartition("="))
        if not equals or not pattern or not number:
            raise InputError(
                f"{begin}: expected PATTERN={called.upper()}, as in 'conv*=0.8'",
                field=field,
                expected=f"PATTERN={called.upper()}",
                got=text,
            )
        wanted = f"wanted a fraction from 0 to {highest:g}"
        try:
            value = float(number)
        except ValueError as error:
            hint = _as_fraction(number.removesuffix("%")) if number.endswith("%") else ""
            raise InputError(
                f"{begin}: {number!r} is no number: {wanted}{hint}", field=field, expected=(0, highest), got=text
            ) from error
        # Not `<` and `>`, which a NaN would pass.
        if not 0 <= value <= highest:
            hint = _as_fraction(number) if 1 < value < 100 else ""
            raise InputError(
                f"{begin}: {number} is no {called}: {wanted}{hint}", field=field, expected=(0, highest), got=text
            )
        results.append(Target(pattern=pattern, value=value, text=text))
    return tuple(results)


def _as_fraction(percent: str) -> str:
    try:
        return f": did you mean {float(percent) / 100:g}?"
    except ValueError:
        return ""

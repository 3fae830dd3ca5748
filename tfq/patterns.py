# SPDX-License-Identifier: Apache-2.0
"""Name patterns that select layers, and PATTERN=NUMBER settings.

A pattern that begins with `!` excludes the layers that it matches. The last pattern that matches a layer decides, and a
list that begins with an exclusion selects all other layers: `!conv2d,!dense` is `*,!conv2d,!dense`.
"""

import fnmatch
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tfq.errors import InputError, did_you_mean

_EXCLUSION = "!"


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Check whether `patterns` select a layer's name (`*`, `?`, `[...]`, `!` before an exclusion; case-sensitive)."""
    return fits_op(name, (), patterns)


def explicit(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns, after a `*` if the first one is an exclusion."""
    patterns = tuple(patterns)
    return ("*", *patterns) if patterns and is_exclusion(patterns[0]) else patterns


def is_exclusion(pattern: str) -> bool:
    """Check whether a pattern begins with `!`."""
    return pattern.startswith(_EXCLUSION)


def included(pattern: str) -> str:
    """Return the pattern without the `!` of an exclusion."""
    return pattern.removeprefix(_EXCLUSION)


def like(pattern: str, other: str) -> str:
    """Return `other`, as an exclusion if `pattern` is one."""
    return f"{_EXCLUSION}{other}" if is_exclusion(pattern) else other


def op_address(subgraph: int, op: int) -> str:
    """Return the pattern that addresses one op by its number: `op:12`, or `op:1:12` in subgraph 1."""
    return f"op:{subgraph}:{op}" if subgraph else f"op:{op}"


def parse_address(pattern: str) -> tuple[int, int] | None:
    """Return (subgraph, op) of a pattern that selects or excludes an op by its number, or None for any other."""
    match = re.fullmatch(r"op:(?:(\d{1,9}):)?(\d{1,9})", included(pattern))
    return None if match is None else (int(match[1] or 0), int(match[2]))


_SOURCE = "float:"


def in_source(pattern: str) -> str:
    """Return `pattern` for use on a converted file: an address `op:12` of the source file becomes `float:op:12`."""
    return pattern if parse_address(pattern) is None else like(pattern, f"{_SOURCE}{included(pattern)}")


def of_source(pattern: str) -> str | None:
    """Return the address `op:12` in the source file for a pattern from `in_source`, or None for any other pattern."""
    address = included(pattern).removeprefix(_SOURCE)
    return address if address != included(pattern) and parse_address(address) else None


def fits_op(layer: str, outputs: Iterable[str], patterns: Iterable[str]) -> bool:
    """Check whether `patterns` select an op: by its layer, or by the exact name of one of its output tensors."""
    outputs = frozenset(outputs)
    for pattern in reversed(explicit(patterns)):
        name = included(pattern)
        if name in outputs or fnmatch.fnmatchcase(layer, name):
            return not is_exclusion(pattern)
    return False


def check_fits(
    what: str,
    pattern: str,
    reasons: Mapping[str, str | None],
    *,
    field: str | None = None,
    layers: str = "layer",
    tensors: Container[str] = (),
) -> None:
    """Raise InputError unless a pattern matches a layer that can be selected.

    The error says why a matching layer cannot be selected, or which name was probably meant.

    Args:
        what: The subject of the error: the step and the pattern.
        pattern: The pattern.
        reasons: Name of each layer -> why it cannot be selected, or None if it can.
        field: The config path of the pattern, for the error.
        layers: The kind of layer that the pattern selects, as in "matches no layer".
        tensors: Names of op outputs, which are accepted as well.
    """
    if is_exclusion(pattern):
        raise InputError(
            f"{what} begins with {_EXCLUSION!r}, but only a list of layers has exclusions: name the layers",
            field=field,
            expected="a pattern that selects layers",
            got=pattern,
        )
    if pattern in tensors:
        return
    able = [name for name, reason in reasons.items() if reason is None]
    if any(fits(name, (pattern,)) for name in able):
        return
    unable = next((name for name in reasons if fits(name, (pattern,))), None)
    why = f"matches no {layers}" if unable is None else f"matches only {unable!r} ({reasons[unable]})"
    raise InputError(f"{what} {why}: {did_you_mean(pattern, able)}", field=field, expected=tuple(able), got=pattern)


def check_selection(
    setting: str,
    patterns: Sequence[str],
    reasons: Mapping[str, str | None],
    *,
    field: str,
    layers: str = "layer",
    tensors: Collection[str] = (),
) -> None:
    """Raise InputError unless each of `patterns` matches a layer, as in `check_fits`, and some layer is selected.

    An exclusion may also match a layer that cannot be selected.

    Args:
        setting: The setting for errors, such as "prune: layers".
        patterns: The patterns.
        reasons: As in `check_fits`.
        field: The config path of the patterns.
        layers: As in `check_fits`.
        tensors: As in `check_fits`.
    """
    for pattern in patterns:
        what = f"{setting}: the pattern {pattern!r}"
        known = dict.fromkeys(reasons) if is_exclusion(pattern) else reasons
        check_fits(what, included(pattern), known, field=field, layers=layers, tensors=tensors)
    able = [name for name, reason in reasons.items() if reason is None]
    if any(map(is_exclusion, patterns)) and not any(fits(name, patterns) for name in (*able, *tensors)):
        raise InputError(
            f"{setting}: {','.join(patterns)!r} excludes every {layers}: the last pattern that matches a layer decides",
            field=field,
            expected=tuple(able),
            got=tuple(patterns),
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number for the layers whose names match a pattern.

    Attributes:
        pattern: The pattern.
        value: The number.
        text: The setting as the user wrote it.
    """

    pattern: str
    value: float
    text: str


def parse_targets(texts: Sequence[str], what: str, called: str, highest: float) -> tuple[Target, ...]:
    """Parse settings of the form PATTERN=NUMBER; the last "=" separates them.

    Args:
        texts: The settings.
        what: The compression step, which begins the errors and is part of the field's path.
        called: The name of the number, such as "sparsity".
        highest: The largest allowed number; the smallest is 0.

    Raises:
        InputError: A setting has another form, or its number is out of range.
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
        expected = f"expected a fraction from 0 to {highest:g}"
        try:
            value = float(number)
        except ValueError as error:
            hint = _as_fraction(number.removesuffix("%")) if number.endswith("%") else ""
            raise InputError(
                f"{begin}: {number!r} is not a number: {expected}{hint}", field=field, expected=(0, highest), got=text
            ) from error
        # A negated comparison also refuses NaN.
        if not 0 <= value <= highest:
            hint = _as_fraction(number) if 1 < value < 100 else ""
            raise InputError(
                f"{begin}: {called} {number} is out of range: {expected}{hint}",
                field=field,
                expected=(0, highest),
                got=text,
            )
        results.append(Target(pattern=pattern, value=value, text=text))
    return tuple(results)


def _as_fraction(percent: str) -> str:
    try:
        return f": did you mean {float(percent) / 100:g}?"
    except ValueError:
        return ""

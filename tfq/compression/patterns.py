# SPDX-License-Identifier: Apache-2.0
"""Patterns of names by which the user chooses layers: what they fit, and the error where that is nothing."""

import fnmatch
from collections.abc import Iterable, Mapping

from tfq.errors import InputError, did_you_mean


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name fits one of `patterns` (`*`, `?`, `[...]`; upper and lower case differ)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_fits(what: str, pattern: str, reasons: Mapping[str, str | None], *, layers: str = "layer") -> None:
    """Raises InputError unless `pattern` fits a layer that can be chosen.

    what: how the error calls the pattern, with the step that it is for. reasons: every layer's name -> why it cannot
    be chosen, None where it can. layers: what the pattern looks for, as in "fits no layer".
    The error says why what fits cannot be chosen, and which name was probably meant.
    """
    able = [name for name, reason in reasons.items() if reason is None]
    if any(fits(name, (pattern,)) for name in able):
        return
    unable = next((name for name in reasons if fits(name, (pattern,))), None)
    why = f"fits no {layers}" if unable is None else f"fits only {unable!r} ({reasons[unable]})"
    raise InputError(f"{what} {why}: {did_you_mean(pattern, able)}")

# SPDX-License-Identifier: Apache-2.0
"""A requirement on a result: its bound, the measured value, and whether it is met."""

from dataclasses import asdict, dataclass
from typing import Any

# Tolerance for the rounding of ratios of counts.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A requirement and its verdict, as records list them in `requirements`.

    Attributes:
        name: The config field that asks for it: "max_accuracy_drop", "min_agreement", "max_bytes", "require".
        bound: The value of that field: a number in the field's unit, or the scheme or target that an audit requires.
        value: The measured value, in the unit of `bound`; for an audit the scheme of the flatbuffer. None if missing.
        holds: Whether the requirement is met. It never holds if there is no value, except
            `min_sqnr_db` of outputs without any noise.
        reason: Why `value` is missing, or why it does not meet the bound if comparing the two does not show it.
    """

    name: str
    bound: float | str
    value: float | str | None
    holds: bool
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def at_least(name: str, bound: float, value: float | None, reason: str | None = None) -> Requirement:
    """Return the requirement that `value` is not below `bound`; `reason` says why a value is missing."""
    holds = value is not None and value >= bound - ROUNDING
    return Requirement(name=name, bound=bound, value=value, holds=holds, reason=reason if value is None else None)


def at_most(name: str, bound: float, value: float | None, reason: str | None = None) -> Requirement:
    """Return the requirement that `value` is not above `bound`; `reason` says why a value is missing."""
    holds = value is not None and value <= bound + ROUNDING
    return Requirement(name=name, bound=bound, value=value, holds=holds, reason=reason if value is None else None)

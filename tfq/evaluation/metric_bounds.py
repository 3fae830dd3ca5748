# SPDX-License-Identifier: Apache-2.0
"""Bounds on single metrics: "f1>=0.8", "ece<=0.05", "drop:f1<=0.01"."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.errors import InputError
from tfq.requirement import Requirement, at_least, at_most

_FORM = re.compile(r"(?P<drop>drop:)?(?P<name>[^<>=:]+)(?P<sign>>=|<=)(?P<bound>[^<>=]+)")
_DROP = "drop:"


@dataclass(frozen=True, kw_only=True)
class MetricBound:
    """A bound on a metric.

    Attributes:
        metric: The name of the metric.
        is_lowest: Whether the value must be at least `bound`, else at most.
        bound: The bound, in the metric's unit.
        of_drop: Whether it bounds by how much the model is worse than the reference, instead of the metric itself.
    """

    metric: str
    is_lowest: bool
    bound: float
    of_drop: bool = False

    @classmethod
    def parse(cls, text: str) -> "MetricBound":
        """Return the bound that a text says.

        Raises:
            InputError: It has another form.
        """
        match = _FORM.fullmatch(text.replace(" ", ""))
        try:
            bound = float(match["bound"]) if match else float("nan")
        except ValueError:
            bound = float("nan")
        if match is None or bound != bound or (match["drop"] and match["sign"] == ">="):
            raise InputError(
                f"evaluation.require.metrics={text}: expected METRIC>=NUMBER, METRIC<=NUMBER or drop:METRIC<=NUMBER, "
                "such as f1>=0.8",
                field="evaluation.require.metrics",
                expected="METRIC>=NUMBER",
                got=text,
            )
        return cls(
            metric=match["name"], is_lowest=match["sign"] == ">=", bound=bound, of_drop=match["drop"] is not None
        )

    def check(self, evaluation: Mapping[str, Any]) -> Requirement:
        """Return the requirement for an evaluation, as its `to_dict()`. A metric that was not computed misses it."""
        facts = (evaluation.get("metrics") or {}).get(self.metric) or {}
        value = facts.get("drop" if self.of_drop else "value")
        reason = None
        if value is None:
            reason = facts.get("difference_reason") if facts else None
            reason = reason or f"evaluation.metric does not name {self.metric}"
        name = f"{'min' if self.is_lowest else 'max'}_{self.metric}{'_drop' if self.of_drop else ''}"
        return (at_least if self.is_lowest else at_most)(name, self.bound, value, reason)


def metric_bounds(settings: Sequence[str]) -> list[MetricBound]:
    """Return the bounds of `evaluation.require.metrics`.

    Raises:
        InputError: One has another form.
    """
    return [MetricBound.parse(text) for text in settings]

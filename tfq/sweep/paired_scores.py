# SPDX-License-Identifier: Apache-2.0
"""A metric of the points of a sweep with what pairs it by example, and differences of groups of points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tfq.evaluation.paired import num_draws
from tfq.evaluation.per_example import unpacked
from tfq.sweep.statistics import (
    SeedDifference,
    SeedSpread,
    difference_without_interval,
    resampled_difference,
    seed_difference,
)

OTHER_EXAMPLES = "the models were evaluated on different numbers of examples"
NOT_KEPT = "the record has neither the score of each example nor draws of a bootstrap"


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedScore:
    """A metric of one point on one split.

    Attributes:
        value: The metric.
        num_examples: The number of examples, n.
        scores: (n,) whether each example is right, or its score; None if the metric is not their mean.
        replicates: (num_draws,) its values for the draws of a bootstrap; None for a mean over the examples.
        reason: Why there is neither.
    """

    value: float
    num_examples: int
    scores: NDArray | None = None
    replicates: NDArray | None = None
    reason: str | None = None

    @classmethod
    def of(
        cls,
        value: float | None,
        num_examples: int,
        scores: Mapping[str, Any] | None,
        replicates: Mapping[str, Any] | None,
        reason: str | None,
    ) -> "PairedScore | None":
        """Return the score in packed arrays of a record; None without a value.

        Raises:
            InputError: The arrays are damaged.
        """
        if value is None:
            return None
        return cls(
            value=value,
            num_examples=num_examples,
            scores=unpacked(scores, num_examples, "per_example"),
            replicates=unpacked(replicates, num_draws(num_examples), "replicates"),
            reason=reason,
        )


def difference_of(
    scores: Sequence[PairedScore],
    base_scores: Sequence[PairedScore],
    *,
    comparisons: int = 1,
    pooled: SeedSpread | None = None,
) -> SeedDifference:
    """Return the difference of two groups of points; without an interval, and why, if they cannot be paired.

    Args:
        scores: For each seed the score of the first group.
        base_scores: The same for the second group, with the seeds in the same order.
        comparisons: The number of intervals that shall hold together.
        pooled: The spread over seeds of all groups of the sweep; None uses only that of these two.

    Raises:
        InputError: The numbers of seeds differ, or there are none.
    """
    everything = (*scores, *base_scores)
    counts = {each.num_examples for each in everything}
    if len(counts) == 1:
        own, others = ([each.scores for each in group if each.scores is not None] for group in (scores, base_scores))
        if len(own) + len(others) == len(everything):
            return seed_difference(own, others, comparisons=comparisons, pooled=pooled)
        draws, other_draws = (
            [each.replicates for each in group if each.replicates is not None] for group in (scores, base_scores)
        )
        if len(draws) + len(other_draws) == len(everything):
            return resampled_difference(
                [each.value for each in scores],
                [each.value for each in base_scores],
                draws,
                other_draws,
                next(iter(counts)),
                comparisons=comparisons,
                pooled=pooled,
            )
    reasons = [each.reason or NOT_KEPT for each in everything if each.scores is None and each.replicates is None]
    return difference_without_interval(
        [each.value for each in scores],
        [each.value for each in base_scores],
        min(counts),
        OTHER_EXAMPLES if len(counts) > 1 else next(iter(reasons), NOT_KEPT),
        comparisons=comparisons,
    )

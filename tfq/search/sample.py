# SPDX-License-Identifier: Apache-2.0
"""The score of a model on a split, with what a paired difference from another model on the same examples needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.evaluation.paired import PairedDifference, bootstrap_difference, mean_difference, num_draws
from tfq.evaluation.per_example import packed, unpacked


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A score of n examples.

    Attributes:
        value: The score.
        num_examples: n.
        scores: (n,) whether each example is right, or its score, if `value` is their mean.
        replicates: The values for the draws of a bootstrap, if it is not.
    """

    value: float
    num_examples: int
    scores: NDArray | None = None
    replicates: NDArray | None = None

    @classmethod
    def of_examples(cls, scores: NDArray) -> "Sample":
        """Return the mean of (n,) scores."""
        return cls(value=float(scores.mean()), num_examples=len(scores), scores=scores)

    def minus(self, base: "Sample") -> PairedDifference:
        """Return the difference from another model on the same examples, if possible with an interval."""
        pair = None
        if self.scores is not None and base.scores is not None:
            pair = mean_difference(self.scores, base.scores)
        elif self.replicates is not None and base.replicates is not None:
            pair, _ = bootstrap_difference(self.value, base.value, self.replicates, base.replicates, self.num_examples)
        return pair or PairedDifference(
            difference=self.value - base.value, low=None, high=None, num_examples=self.num_examples, method="none"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        scores = self.scores if self.scores is None or self.scores.dtype.kind == "b" else self.scores.astype(np.float32)
        return {
            "value": self.value,
            "num_examples": self.num_examples,
            "scores": None if scores is None else packed(scores),
            "replicates": None if self.replicates is None else packed(self.replicates.astype(np.float32)),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Sample":
        """Return what `to_dict` returned as JSON values."""
        count = values["num_examples"]
        return cls(
            value=values["value"],
            num_examples=count,
            scores=unpacked(values["scores"], count, "scores"),
            replicates=unpacked(values["replicates"], num_draws(count), "replicates"),
        )

# SPDX-License-Identifier: Apache-2.0
"""The spread over seeds of the difference of two groups, pooled over pairs of groups of the same kind.

Two or three seeds cannot tell the spread of a single pair of groups. Groups of one family of compression vary about
alike, and other families much more or less: the accuracy of a model that lost 90% of its weights varies by points, and
that of the dense one by tenths. So the variance of a difference is pooled over the pairs of groups of the same two
families. Pairs that are converted from the same trained model are pooled apart from others, because the noise of the
training cancels in their difference.

A pool with fewer than `MIN_FREEDOM` degrees of freedom is not used: the spread that is pooled over all groups
(`pooled_seed_std`) is used instead.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.sweep.statistics import FAMILIES, SeedSpread, pooled_seed_std

# With one degree of freedom, the width of an interval is mostly chance: its quantiles 5% and 95% differ 31-fold.
MIN_FREEDOM = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A group of seeds in a pool.

    Attributes:
        name: The name of the group.
        family: The family of its compression, such as "pruned".
        model: Identifies the trained models that its files are converted from: equal for groups that share them.
        scores: (seeds,) its mean score for each seed; None if a seed is missing, so that only its kind counts.
    """

    name: str
    family: str
    model: object
    scores: NDArray[np.float64] | None


@dataclass(frozen=True, order=True)
class Kind:
    """A kind of pairs of groups.

    Attributes:
        families: The two families, in alphabetical order.
        same_model: Whether both groups of a pair are converted from the same trained model.
    """

    families: tuple[str, str]
    same_model: bool

    @classmethod
    def of(cls, one: Member, other: Member) -> "Kind":
        """Return the kind of a pair."""
        first, second = sorted((one.family, other.family))
        return cls((first, second), one.model == other.model)


class SeedPool:
    """The spreads over seeds of all kinds of pairs, and that of all groups."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Estimate them from the groups of which no seed is missing."""
        self._members = {member.name: member for member in members}
        complete = [member for member in members if member.scores is not None]
        scores = [member.scores for member in complete]
        self._all = pooled_seed_std(np.array(scores, np.float64)) if scores else None
        self._kinds: dict[Kind, SeedSpread] = {} if self._all is None else _spreads(complete)

    def spread(self, one: str, other: str) -> SeedSpread | None:
        """Return the spread of the difference of two groups by name; None if there is none."""
        if one not in self._members or other not in self._members:
            return self._all
        own = self._kinds.get(Kind.of(self._members[one], self._members[other]))
        return self._all if own is None or own.freedom < MIN_FREEDOM else own

    def to_dict(self) -> dict[str, Any] | None:
        """Return all spreads as JSON values; None if there are none.

        `all` has the `std` and the `freedom` of all groups, `families` for each kind of pairs `families`, `same_model`,
        `std`, `freedom` and `used`: whether differences of this kind use it, and not that of all groups.
        """
        if self._all is None:
            return None
        return {
            "all": {"std": self._all.std, "freedom": self._all.freedom},
            "min_freedom": MIN_FREEDOM,
            "families": [
                {
                    "families": list(kind.families),
                    "same_model": kind.same_model,
                    "std": spread.std,
                    "freedom": spread.freedom,
                    "used": spread.freedom >= MIN_FREEDOM,
                }
                for kind, spread in sorted(self._kinds.items(), key=lambda item: item[0])
            ],
        }


def _spreads(members: Sequence[Member]) -> dict[Kind, SeedSpread]:
    """Return the spread of each kind of pairs.

    The variance of a kind is the mean of the sample variances over seeds of the differences of its pairs, in which what
    a seed adds to all groups cancels. Pairs of the same two trained models count once, by their mean. The degrees of
    freedom are at most those of the family with fewer models: for the pairs of one family, (models - 1)(seeds - 1), as
    in a two-way analysis of variance; for families without a common model, (fewer models)(seeds - 1), a lower bound of
    those of Satterthwaite 1946; for pairs of the same model, (models)(seeds - 1).
    """
    scores = np.array([member.scores for member in members], np.float64)
    covariances = np.atleast_2d(np.cov(scores))
    own = covariances.diagonal()
    variances = np.maximum(own[:, None] + own - 2 * covariances, 0)
    pairs: dict[Kind, dict[frozenset[object], list[float]]] = {}
    for (row, one), (column, other) in itertools.combinations(enumerate(members), 2):
        of_kind = pairs.setdefault(Kind.of(one, other), {})
        of_kind.setdefault(frozenset((one.model, other.model)), []).append(float(variances[row, column]))
    models, results = _models(members), {}
    for kind, of_models in pairs.items():
        first, second = (models[family] for family in kind.families)
        count = len(of_models) if kind.same_model else min(len(first), len(second)) - bool(first & second)
        variance = sum(sum(values) / len(values) for values in of_models.values()) / len(of_models)
        freedom = count * (scores.shape[1] - 1)
        results[kind] = SeedSpread(std=math.sqrt(variance), freedom=freedom, over=FAMILIES)
    return results


def _models(members: Sequence[Member]) -> Mapping[str, set[object]]:
    results: dict[str, set[object]] = {}
    for member in members:
        results.setdefault(member.family, set()).add(member.model)
    return results

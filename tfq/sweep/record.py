# SPDX-License-Identifier: Apache-2.0
"""The record of a sweep: points, groups of seeds, Pareto fronts, and the best point within the budget.

`sweep.json` has the fields of `SweepResult.to_dict` next to those of every record. A missing number is null, and the
field with the suffix `_reason` or the key `reason` says why. Times are only in `timing`, and in the cost `latency_ms`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfq.notebook import NotebookRecord
from tfq.sweep.paired_scores import PairedScore

DONE, FAILED, NOT_RUN = "done", "failed", "not_run"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One cost of a point.

    Attributes:
        value: The cost in the unit that its name ends with; None if it is missing.
        how: "measured", "emulated" or "estimated"; None if it is missing.
        reason: Why it is missing.
    """

    value: float | None = None
    how: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class OtherMetric:
    """A metric of a point other than the main one.

    Attributes:
        unit: Its unit.
        direction: "higher" or "lower" is better; None if the metric does not declare it.
        value: Its value; None if there is none.
        interval: [low, high] of 95% confidence over the examples, or None.
        per_example: As in `SplitScore`, like the next two.
        replicates: The values for the draws of a bootstrap.
        unpaired_reason: Why there is neither.
    """

    unit: str
    direction: str | None
    value: float | None
    interval: tuple[float, float] | None
    per_example: Mapping[str, Any] | None = None
    replicates: Mapping[str, Any] | None = None
    unpaired_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """The evaluation of a point on one split.

    Attributes:
        metric: The name of the main metric.
        unit: Its unit: "fraction", "score" or another.
        direction: "higher" or "lower" is better; None if the metric does not declare it.
        value: Its value; None if there is none.
        reason: Why there is none.
        interval: [low, high] of 95% confidence over the examples, or None.
        num_examples: The number of examples.
        scores: The values of all metrics by name.
        agreement: The fraction of examples with the class that the reference point predicts; None if there is none.
        agreement_reason: Why there is none.
        difference: The value minus that of the reference point, paired by example (`SeedDifference` of one seed); None
            for the reference itself, or without a value.
        difference_reason: Why there is none.
        per_example: Whether each example is right, or its score, packed as in `tfq.evaluation.per_example`; None if the
            metric is not a mean over the examples.
        replicates: The values of another metric for the draws of a bootstrap, packed in the same way. All points use
            the same draws, so that the differences of their replicates are paired by example.
        unpaired_reason: Why there is neither, so that differences of this point have no interval.
        others: The other metrics by name. They do not decide fronts or the best group.
    """

    metric: str
    unit: str
    direction: str | None
    value: float | None
    reason: str | None
    interval: tuple[float, float] | None
    num_examples: int
    scores: Mapping[str, float]
    agreement: float | None
    agreement_reason: str | None
    difference: Mapping[str, Any] | None
    difference_reason: str | None
    per_example: Mapping[str, Any] | None
    replicates: Mapping[str, Any] | None = None
    unpaired_reason: str | None = None
    others: Mapping[str, OtherMetric] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SplitScore":
        """Return the evaluation in JSON values."""
        others = {
            name: OtherMetric(**{**item, "interval": _ends(item["interval"])})
            for name, item in (values.get("others") or {}).items()
        }
        return cls(**{**values, "interval": _ends(values["interval"]), "others": others})

    def paired(self, metric: str = "") -> PairedScore | None:
        """Return a metric with what pairs it by example; None without a value.

        Args:
            metric: The name of one of `others`; "" for the main metric.

        Raises:
            InputError: The packed arrays are damaged.
        """
        item = self.others.get(metric) if metric else self
        if item is None:
            return None
        return PairedScore.of(item.value, self.num_examples, item.per_example, item.replicates, item.unpaired_reason)


def _ends(interval: Any) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """One point of a sweep.

    Attributes:
        id: The names of its values and its seed: "pruned80/int8/seed0".
        group: The names of its values, which all seeds share.
        axes: Axis -> name of the point's value; {"reference": "float32"} for a reference outside of the grid.
        seed: The seed.
        status: "done", "failed" or "not_run".
        reason: Why it is not done.
        failed_stage: The stage that failed.
        reference: The id of the point that it is compared with; None for a reference.
        stages: Stage ("train", "compress", "convert", "evaluate val", "costs tflm" ...) -> its key in the store.
        sha256: The SHA-256 of the flatbuffer; None if there is none.
        scores: Split -> the evaluation on it.
        costs: Name -> the cost: model_bytes, gzip_bytes, arena_bytes, instructions (of the first backend that counts
            them), instructions of each such backend as "instructions BACKEND", latency_ms,
            and corruption_drop: the loss of the metric on corrupted test examples, if evaluation.robustness is enabled.
        family: The family of its compression: "dense", "pruned", "structured", "clustered", "QAT", several joined by
            " + ", and ", int4" if it has int4 weights. Spreads over seeds are pooled by family.
        training_epochs: The epochs that the stages of the point train, shared ones included.
        warnings: The warnings of its stages.
        robustness: The results on corrupted test examples (`RobustnessRecord` of one model, without examples); or None.
        robustness_reason: Why there is none.
    """

    id: str
    group: str
    axes: Mapping[str, str]
    seed: int
    status: str
    reason: str | None = None
    failed_stage: str | None = None
    reference: str | None = None
    stages: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    scores: Mapping[str, SplitScore] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    family: str = ""
    training_epochs: int = 0
    warnings: tuple[str, ...] = ()
    robustness: Mapping[str, Any] | None = None
    robustness_reason: str | None = "evaluation.robustness is not enabled"

    @property
    def trained_model(self) -> str | None:
        """The key of the stage that trained the model to convert; None if a file is converted unchanged."""
        return self.stages.get("compress") or self.stages.get("train")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PointRecord":
        """Return the point in JSON values of `to_dict`."""
        scores = {split: SplitScore.from_dict(score) for split, score in values["scores"].items()}
        costs = {name: Cost(**cost) for name, cost in values["costs"].items()}
        return cls(**{**values, "scores": scores, "costs": costs, "warnings": tuple(values["warnings"])})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return _plain(self)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over the seeds of a group.

    Attributes:
        mean: The mean; None if a seed has no value.
        std: The sample standard deviation; None for fewer than two seeds.
        low: The lowest value.
        high: The highest value.
        reason: Why there is no mean.
    """

    mean: float | None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class OtherSpread:
    """A metric other than the main one over the seeds of a group.

    Attributes:
        unit: Its unit.
        direction: "higher" or "lower" is better; None if the metric does not declare it.
        value: The metric over the seeds.
        difference: The difference from the reference group (`SeedDifference`), or None without values to compare.
    """

    unit: str
    direction: str | None
    value: Spread
    difference: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """All seeds of one combination of the axes.

    Attributes:
        group: The names of its values: "pruned80/int8".
        axes: Axis -> name of the value.
        seeds: The seeds that are done.
        missing: Seed -> why it is not done.
        scores: Split -> the main metric over the seeds.
        costs: Name -> the cost over the seeds.
        differences: Split -> the difference from the reference group, with an interval over examples and seeds
            (`SeedDifference`, whose `reason` says why one has no interval), or None without values to compare.
        is_reference: Whether the other groups are compared with it.
        others: Split -> metric -> the metrics other than the main one.
    """

    group: str
    axes: Mapping[str, str]
    seeds: tuple[int, ...]
    missing: Mapping[str, str]
    scores: Mapping[str, Spread]
    costs: Mapping[str, Spread]
    differences: Mapping[str, Mapping[str, Any] | None]
    is_reference: bool = False
    others: Mapping[str, Mapping[str, OtherSpread]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FrontMember:
    """A group on a Pareto front.

    Attributes:
        group: The group.
        cost: Its mean cost.
        score: Its mean score on the split that chooses.
        gain: The score minus that of the next cheaper member (`SeedDifference` with Bonferroni's correction for all
            steps of this front); None for the cheapest member.
        within_noise: Groups of any cost below or equal to this one that are within noise of it: the interval of
            the difference (with Bonferroni's correction for all these groups) contains 0.
        without_interval: Groups of any cost below or equal to this one whose difference has no interval, so that it is
            not known whether they are within noise -> why.
    """

    group: str
    cost: float
    score: float
    gain: Mapping[str, Any] | None
    within_noise: tuple[str, ...]
    without_interval: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Front:
    """The groups of which no other one is at least as good in score and cost, and better in one of them.

    Attributes:
        cost: The name of the cost.
        split: The split of the scores.
        members: The members, the cheapest first.
        possible: Dominated groups that are within noise of the best member that costs at most as much: group ->
            {"member": that member, "difference": the group's score minus its (`SeedDifference`, with Bonferroni's
            correction for all dominated groups)}. With other examples or seeds they may be on the front. So may those
            whose difference has no interval, which are listed too.
        left_out: Group -> why it is not compared: a missing cost or score.
        reason: Why there is no front.
    """

    cost: str
    split: str
    members: tuple[FrontMember, ...]
    possible: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best group within the budget.

    Attributes:
        sentence: What is best under this budget, and by how much more than noise.
        group: The group with the best mean score on the split `chosen_on` that meets all bounds; among equals the one
            with the smaller `size`. None if no group does.
        chosen_on: The split that chose.
        reported_on: The split of the scores and intervals below: test. It was not used for the choice, unless
            `chosen_on` is test.
        bounds: The bounds of the budget that are set.
        score: The mean score of the best group on `reported_on`, over the seeds.
        against: The other groups that meet all bounds, each with the difference of the best group from it
            (`SeedDifference`; the intervals hold together with confidence 0.95, by Bonferroni's correction).
        indistinguishable: The groups in `against` that are within noise of the best one: the interval contains 0.
        without_interval: The groups in `against` whose difference has no interval, so that it is not known whether it
            is noise -> why.
        cheapest: The group with the smallest `size` among the best one, `indistinguishable` and `without_interval`.
        size: The cost that "smallest" compares: "gzip_bytes" if the budget bounds that and not the file, else
            "model_bytes".
        missed: Group -> the bounds that it misses, as sentences.
    """

    sentence: str
    group: str | None
    chosen_on: str
    reported_on: str
    bounds: Mapping[str, float]
    score: Mapping[str, Any] | None
    against: Mapping[str, Mapping[str, Any] | None]
    indistinguishable: tuple[str, ...]
    cheapest: str | None
    size: str
    missed: Mapping[str, tuple[str, ...]]
    without_interval: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SweepResult(NotebookRecord):
    """The results of a sweep.

    Attributes:
        grid: The grid, as JSON values.
        grid_sha256: The hash of the grid and of all settings that determine the results: equal in all shards.
        axes: Axis -> the names of its values.
        seeds: The seeds.
        num_threads: The threads of every stage.
        points: The points in the order of the grid.
        references: References outside of the grid, one for each seed and model: see `PointRecord.reference`.
        groups: The points without their seeds.
        reference_groups: The references without their seeds.
        fronts: Pareto fronts: score against each cost that some group has.
        best: The best group within the budget.
        seed_spreads: Split -> the standard deviations over seeds of differences: that of all groups, and that of each
            kind of pairs (`tfq.sweep.seed_pool.SeedPool.to_dict`); null for one seed or one group.
        settings: What the analysis reads of `sweep`: choose_on, budget and cost_backends.
        order: The ids of all references and points of the whole sweep, in the order of the grid.
        stages: Kind of stage -> {"distinct": number of different stages, "used": how often the points use them}.
        shard: [I, N] of a partial record, which has no groups, fronts and best group; None for a whole one.
        timing: elapsed_seconds of the sweep, and for each stage by key the seconds that it took when it ran and whether
            it was stored before. This and latency_ms are all that differs between two equal sweeps on one machine.
    """

    grid: Mapping[str, Any]
    grid_sha256: str
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    num_threads: int
    points: tuple[PointRecord, ...]
    references: tuple[PointRecord, ...] = ()
    groups: tuple[GroupRecord, ...] = ()
    reference_groups: tuple[GroupRecord, ...] = ()
    fronts: tuple[Front, ...] = ()
    best: Best | None = None
    seed_spreads: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    stages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    shard: tuple[int, int] | None = None
    timing: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return _plain(self)


def _plain(value: Any) -> Any:
    """Return JSON values of nested dataclasses, mappings and tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value

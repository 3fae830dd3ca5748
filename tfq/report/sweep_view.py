# SPDX-License-Identifier: Apache-2.0
"""Read the record of a sweep for its page: groups, fronts and axes, tolerating missing and damaged parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.evaluation.metric_text import change_text
from tfq.report.formatting import is_number, kilobytes, millions, percent, plain, significant
from tfq.report.record import Record, part


@dataclass(frozen=True, kw_only=True)
class CostFormat:
    """How a cost of a sweep is shown.

    Attributes:
        title: Its name for readers.
        axis: The label of a plot's axis.
        per_unit: How many units of the record one unit of that axis has.
        text: (value) -> its text with unit.
    """

    title: str
    axis: str
    per_unit: float
    text: Any


_COSTS = {
    "model_bytes": CostFormat(title="file", axis="file, kB", per_unit=1000, text=kilobytes),
    "gzip_bytes": CostFormat(title="file, gzip", axis="gzip size, kB", per_unit=1000, text=kilobytes),
    "arena_bytes": CostFormat(title="arena", axis="tensor arena, kB", per_unit=1000, text=kilobytes),
    "latency_ms": CostFormat(
        title="latency", axis="median latency, ms", per_unit=1, text=lambda value: f"{significant(value)} ms"
    ),
}


def cost_format(name: str) -> CostFormat:
    """Return how a cost is shown; instructions and costs that this version does not know included."""
    if name in _COSTS:
        return _COSTS[name]
    if name.startswith("instructions"):
        backend = name.removeprefix("instructions").strip()
        title = f"instructions{f' on {backend}' if backend else ''}"
        return CostFormat(
            title=title, axis=f"{title}, millions", per_unit=1e6, text=lambda value: f"{millions(value)} million"
        )
    title = plain(name).replace("_", " ")
    return CostFormat(title=title, axis=title, per_unit=1, text=significant)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of seeds.

    Attributes:
        name: The names of its values.
        axes: Axis -> name of the value.
        record: Its record.
        is_reference: Whether others are compared with it.
        is_in_grid: Whether it is a combination of the grid.
    """

    name: str
    axes: Mapping[str, str]
    record: Record
    is_reference: bool
    is_in_grid: bool

    def number(self, kind: str, name: str, key: str = "mean") -> float | None:
        """Return a number over the seeds, or None. kind: "scores" or "costs"; key: "mean", "std", "low" or "high"."""
        value = part(part(self.record, kind), name).get(key)
        return value if is_number(value) else None

    def reason(self, kind: str, name: str) -> str:
        """Return why there is no mean."""
        missing = next(iter(part(self.record, "missing").values()), "")
        return plain(part(part(self.record, kind), name).get("reason") or missing or "")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The main metric of a sweep: its name, unit, and which values are better."""

    name: str
    unit: str
    direction: str

    @property
    def factor(self) -> float:
        """Factor of the shown numbers: 100 for fractions, which are shown in percent."""
        return 100.0 if self.unit == "fraction" else 1.0

    @property
    def axis(self) -> str:
        """The label of a plot's axis."""
        return f"{self.name}, %" if self.unit == "fraction" else self.name

    def text(self, value: Any) -> str:
        """Return a value with its unit."""
        return percent(value) if self.unit == "fraction" else significant(value, 4)

    def change(self, value: Any) -> str:
        """Return a difference with its sign, in points for fractions, else in the metric's unit."""
        return change_text(self.unit, value).replace("-", "−") if is_number(value) else "–"

    def spread(self, value: float) -> str:
        """Return a standard deviation, in points for fractions, else in the metric's unit."""
        return change_text(self.unit, value).lstrip("+")


def objects(record: Record, key: str) -> list[Record]:
    """Return the objects in a list of the record; [] if it is missing."""
    value = record.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def groups_of(record: Record) -> list[Group]:
    """Return the references outside of the grid, then the groups of the grid, in their order."""
    return [
        Group(
            name=plain(item.get("group", "?")),
            axes={plain(axis): plain(value) for axis, value in part(item, "axes").items()},
            record=item,
            is_reference=item.get("is_reference") is True,
            is_in_grid=key == "groups",
        )
        for key in ("reference_groups", "groups")
        for item in objects(record, key)
    ]


def points_of(record: Record) -> list[Record]:
    """Return all points, the references outside of the grid first."""
    return [*objects(record, "references"), *objects(record, "points")]


def metric_of(record: Record) -> Metric:
    """Return the main metric; "score" without a unit if no point has one."""
    for point in points_of(record):
        for score in part(point, "scores").values():
            if isinstance(score, Mapping) and score.get("metric"):
                return Metric(
                    name=plain(score["metric"]),
                    unit=plain(score.get("unit") or "none"),
                    direction=plain(score.get("direction") or ""),
                )
    return Metric(name="score", unit="none", direction="")


def splits_of(record: Record) -> list[str]:
    """Return the names of the splits that any point was evaluated on."""
    return list(dict.fromkeys(plain(split) for point in points_of(record) for split in part(point, "scores")))


def costs_of(groups: Sequence[Group]) -> list[str]:
    """Return the names of the costs that any group has, each once."""
    names = dict.fromkeys(name for group in groups for name in part(group.record, "costs"))
    known = [name for name in names if any(group.number("costs", name) is not None for group in groups)]
    return without_repeated(known)


def without_repeated(costs: Sequence[str]) -> list[str]:
    """Return the costs without "instructions", which repeats "instructions BACKEND" of the first backend."""
    has_backend = any(name.startswith("instructions ") for name in costs)
    return [name for name in costs if name != "instructions" or not has_backend]


def fronts_of(record: Record) -> dict[str, Record]:
    """Return {cost: its front}, of the fronts that have members."""
    fronts = {plain(front.get("cost")): front for front in objects(record, "fronts") if objects(front, "members")}
    return {cost: fronts[cost] for cost in without_repeated([*fronts])}


def axes_that_set(record: Record, section: str) -> Iterator[str]:
    """Yield the axes of the grid with a value that sets something in a section of the config, such as "conversion"."""
    for axis, values in part(part(record, "grid"), "axes").items():
        settings = (
            [value for value in values.values() if isinstance(value, Mapping)] if isinstance(values, Mapping) else []
        )
        if any(section in value for value in settings):
            yield plain(axis)


def reported_split(record: Record) -> str:
    """Return the split whose scores the page shows first: that of the best group's score, else the last one."""
    splits = splits_of(record)
    reported = plain(part(record, "best").get("reported_on") or "test")
    return reported if reported in splits else (splits[-1] if splits else reported)

# SPDX-License-Identifier: Apache-2.0
"""The grid of a sweep: named axes whose values are named parts of the config tree, seeds, and excluded combinations.

    {
      "base": {"compression": {"prune": false, "qat": false}},
      "axes": {
        "compression": {"dense": {}, "pruned80": {"compression": {"prune": {"enabled": true, "final_sparsity": 0.8}}}},
        "scheme": {"int8": {}, "int4": {"conversion": {"int4_layers": ["*"]}}}
      },
      "seeds": [0, 1],
      "exclude": [{"compression": "dense", "scheme": "int4"}],
      "reference": {"compression": "dense", "scheme": "int8"}
    }

Every combination of one value of each axis and one seed is a point. Its config is the config of the command, then
`base`, then the values in the order of the axes: the last one that sets a field counts.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfq import artifacts
from tfq.config import RunConfig
from tfq.config.base import field_types, is_section, section_field
from tfq.errors import InputError, did_you_mean

KEYS = ("base", "axes", "seeds", "exclude", "reference")
# What a sweep reads of the config tree; a grid that sets anything else would have no effect.
SECTIONS = ("model", "data", "training", "compression", "conversion", "evaluation", "sweep")
# What a value of an axis may set of `sweep`: the other fields are about the whole sweep.
OF_POINTS = ("fine_tune",)
# What is about the command and not about the study.
OF_COMMAND = ("action", "grid", "store", "shard", "dry_run")
_NOT_USED = {
    "evaluation.reference": "name the reference in the grid's own key `reference`",
    "evaluation.backends": "set sweep.cost_backends, or make evaluation.backend an axis",
    "evaluation.require": "set bounds in sweep.budget",
    "evaluation.num_threads": "set sweep.num_threads, which every stage uses",
    "evaluation.num_workers": "set executor.num_workers for the command",
    "conversion.strict": "a collapsed output is reported in the row of its point",
}
_NAME = re.compile(r"[\w.+-]+")
MAX_POINTS = 100_000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One combination of a grid.

    Attributes:
        axes: Axis -> name of its value, in the order of the grid.
        seed: The seed.
        config: The whole config of the point.
    """

    axes: Mapping[str, str]
    seed: int
    config: RunConfig = field(repr=False)

    @property
    def group(self) -> str:
        """The names of the values, which all seeds of the combination share: "pruned80/int8"."""
        return "/".join(self.axes.values()) or "all"

    @property
    def id(self) -> str:
        """The name of the point: "pruned80/int8/seed0"."""
        return f"{self.group}/seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A validated grid; see the module for the JSON.

    Attributes:
        base: Settings of all points, as a tree of JSON values without shorthands.
        axes: Axis -> {name of a value: its settings, as `base`}.
        seeds: The seeds; () uses that of the config.
        exclude: Combinations that are left out: axis -> names of values. Axes that are not named match all values.
        reference: Axis -> name of a value: the point that all points with the same other values are compared with. None
            compares with the float32 conversion of the model before compression.
    """

    base: Mapping[str, Any]
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    seeds: tuple[int, ...] = ()
    exclude: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    reference: Mapping[str, str] | None = None

    @classmethod
    def load(cls, path: str) -> "Grid":
        """Return the grid in a JSON file.

        Raises:
            InputError: There is no such file, or as `from_dict`; the message names the file.
        """
        if not path:
            raise InputError(
                "sweep.grid is missing: expected a JSON file with the axes of the sweep",
                field="sweep.grid",
                expected="a JSON file",
                got="",
            )
        values = artifacts.read_json(path, field="sweep.grid")
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(
                f"{artifacts.shown(path)}: {error}", field=error.field, expected=error.expected, got=error.got
            ) from error

    @classmethod
    def from_dict(cls, values: object) -> "Grid":
        """Return the grid in JSON values.

        Raises:
            InputError: A key or a name is unknown, a setting has no effect in a sweep, or an exclusion matches nothing.
                `field` is the path in the grid.
        """
        tree = _object(values, "the grid")
        for key in tree:
            if key not in KEYS:
                raise InputError(f"unknown key {key!r}: {did_you_mean(key, KEYS)}", field=key, expected=KEYS, got=key)
        axes = {
            _name(axis, "axes"): {
                _name(name, f"axes.{axis}"): _settings(part, f"axes.{axis}.{name}", of_axis=True)
                for name, part in _filled(_object(named, f"axes.{axis}"), f"axes.{axis}").items()
            }
            for axis, named in _filled(_object(tree.get("axes"), "axes"), "axes").items()
        }
        grid = cls(
            base=_settings(tree.get("base", {}), "base", of_axis=False),
            axes=axes,
            seeds=_seeds(tree.get("seeds", [])),
            exclude=tuple(
                _selection(item, axes, f"exclude[{place}]") for place, item in enumerate(_list(tree, "exclude"))
            ),
            reference=_reference(tree.get("reference"), axes),
        )
        grid.check_exclusions()
        return grid

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that `from_dict` accepts."""
        values: dict[str, Any] = {"base": self.base, "axes": self.axes, "seeds": list(self.seeds)}
        if self.exclude:
            values["exclude"] = [{axis: list(names) for axis, names in item.items()} for item in self.exclude]
        if self.reference is not None:
            values["reference"] = dict(self.reference)
        return values

    def combinations(self) -> Iterator[dict[str, str]]:
        """Yield every combination that is not excluded, as {axis: name of its value}; the last axis varies first."""
        for names in itertools.product(*self.axes.values()):
            combination = dict(zip(self.axes, names, strict=True))
            if not any(_matches(combination, item) for item in self.exclude):
                yield combination

    def check_exclusions(self) -> None:
        """Raise InputError if no combination is left, or if there are too many."""
        total = 1
        for named in self.axes.values():
            total *= len(named)
        if total * max(1, len(self.seeds)) > MAX_POINTS:
            raise InputError(
                f"axes: the grid has {total * max(1, len(self.seeds)):,} points, expected at most {MAX_POINTS:,}",
                field="axes",
                expected=MAX_POINTS,
                got=total,
            )
        if next(self.combinations(), None) is None:
            raise InputError(
                "exclude: all combinations are excluded", field="exclude", expected="at least one point", got=0
            )

    def base_config(self, config: RunConfig) -> RunConfig:
        """Return the config of the command with `base`.

        Raises:
            InputError: Both set a field, to different values.
        """
        _check_conflicts(self.base, config.to_dict(), RunConfig().to_dict(), "")
        return RunConfig.from_dict(_merged(config.to_dict(), self.base))

    def points(self, config: RunConfig) -> tuple[Point, ...]:
        """Return all points in the order of the grid, the seeds of a combination next to each other.

        Args:
            config: The settings of the command.

        Raises:
            InputError: The settings of a point are not valid together; the message names the point.
        """
        base = self.base_config(config).to_dict()
        return tuple(
            self.point(base, combination, seed)
            for combination in self.combinations()
            for seed in self.seeds or (config.seed,)
        )

    def point(self, base: Mapping[str, Any], combination: Mapping[str, str], seed: int) -> Point:
        """Return the point of one combination.

        Args:
            base: `base_config` as JSON values.
            combination: Axis -> name of its value.
            seed: The seed.

        Raises:
            InputError: As `points`.
        """
        tree: dict[str, Any] = dict(base)
        for axis, name in combination.items():
            tree = _merged(tree, self.axes[axis][name])
        try:
            config = RunConfig.from_dict({**tree, "seed": seed})
        except InputError as error:
            raise InputError(
                f"the point {'/'.join(combination.values())} of the grid: {error}",
                field=error.field,
                expected=error.expected,
                got=error.got,
            ) from error
        return Point(axes=dict(combination), seed=seed, config=config)


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected an object, got {value!r:.60}", field=where, expected="an object")
    return value


def _filled(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if not value:
        raise InputError(f"{where}: expected at least one name", field=where, expected="at least one name", got=0)
    return value


def _list(tree: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = tree.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"{key}: expected a list, got {value!r:.60}", field=key, expected="a list", got=value)
    return value


def _name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{where}: the name {name!r} is not allowed: expected letters, digits, and _ . + - without spaces",
            field=where,
            expected="letters, digits, _ . + -",
            got=name,
        )
    return name


def _seeds(value: object) -> tuple[int, ...]:
    is_valid = isinstance(value, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in value
    )
    if not isinstance(value, list) or not is_valid or len(set(value)) < len(value):
        raise InputError(
            f"seeds: expected a list of different integers from 0 to {2**32 - 1}, got {value!r:.60}",
            field="seeds",
            expected="a list of integers",
            got=value,
        )
    return tuple(value)


def _settings(value: object, where: str, *, of_axis: bool) -> dict[str, Any]:
    """Return a part of the config tree without shorthands, after checking its keys and that each has an effect."""
    tree = _expanded(_object(value, where), RunConfig, where)
    for key in tree:
        if key not in SECTIONS:
            advice = {"seed": "use the grid's own key `seeds`", "plugin": "pass plugin to the command"}.get(
                key, f"a sweep reads {', '.join(SECTIONS)}"
            )
            raise InputError(
                f"{where}.{key} has no effect in a sweep: {advice}",
                field=f"{where}.{key}",
                expected=SECTIONS,
                got=key,
            )
    for path, advice in _NOT_USED.items():
        section, _, name = path.partition(".")
        if name in tree.get(section, {}):
            raise InputError(f"{where}.{path} has no effect in a sweep: {advice}", field=f"{where}.{path}", got=name)
    refused = [name for name in tree.get("sweep", {}) if (of_axis and name not in OF_POINTS) or name in OF_COMMAND]
    if refused:
        place = "base, or to the command" if refused[0] not in OF_COMMAND else "the command"
        raise InputError(
            f"{where}.sweep.{refused[0]} is a setting of the whole sweep: move it to {place}",
            field=f"{where}.sweep.{refused[0]}",
            expected=OF_POINTS,
            got=refused[0],
        )
    return tree


def _expanded(tree: Mapping[str, Any], cls: Any, where: str) -> dict[str, Any]:
    """Return a tree whose sections are all objects, after checking its keys."""
    hints = field_types(cls)
    results: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{where}.{key}"
        if key not in hints:
            raise InputError(
                f"unknown key {path!r}: {did_you_mean(key, hints)}", field=path, expected=tuple(hints), got=key
            )
        if is_section(hints[key]):
            name = section_field(hints[key])
            if not isinstance(value, Mapping) and name is not None:
                value = {name: value}
            value = _expanded(_object(value, path), hints[key], path)
        results[key] = value
    return results


def _selection(value: object, axes: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, tuple[str, ...]]:
    """Return {axis: names of values} of JSON values, in which a name may stand for a list of one."""
    results = {}
    for axis, names in _filled(_object(value, where), where).items():
        if axis not in axes:
            raise InputError(
                f"{where}: unknown axis {axis!r}: {did_you_mean(axis, axes)}",
                field=where,
                expected=tuple(axes),
                got=axis,
            )
        chosen = [names] if isinstance(names, str) else names
        for name in chosen if isinstance(chosen, list) and chosen else [chosen]:
            if not isinstance(name, str) or name not in axes[axis]:
                raise InputError(
                    f"{where}.{axis}: unknown value {name!r}: {did_you_mean(str(name), axes[axis])}",
                    field=f"{where}.{axis}",
                    expected=tuple(axes[axis]),
                    got=name,
                )
        results[axis] = tuple(chosen)
    return results


def _reference(value: object, axes: Mapping[str, Mapping[str, Any]]) -> dict[str, str] | None:
    if value is None:
        return None
    chosen = _selection(value, axes, "reference")
    for axis, names in chosen.items():
        if len(names) != 1:
            raise InputError(
                f"reference.{axis}: expected one name, got {len(names)}",
                field=f"reference.{axis}",
                expected="one name",
                got=names,
            )
    return {axis: names[0] for axis, names in chosen.items()}


def _matches(combination: Mapping[str, str], selection: Mapping[str, tuple[str, ...]]) -> bool:
    return all(combination[axis] in names for axis, names in selection.items())


def _merged(tree: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree in which the leaves of `part` replace those of `tree`."""
    results = dict(tree)
    for key, value in part.items():
        old = results.get(key)
        results[key] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return results


def _check_conflicts(
    part: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any], where: str
) -> None:
    """Raise InputError if `config` sets a leaf of `part` to another value that is not the default."""
    for key, value in part.items():
        path = f"{where}.{key}" if where else key
        if isinstance(value, Mapping):
            _check_conflicts(value, config[key], defaults[key], path)
        elif config[key] != defaults[key] and config[key] != value:
            raise InputError(
                f"{path}={config[key]} is set for the command, and {value} in base of the grid: set it in one place",
                field=path,
                expected=value,
                got=config[key],
            )


def without_seed(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return {group: its points}, in the order of the points."""
    results: dict[str, list[Point]] = {}
    for point in points:
        results.setdefault(point.group, []).append(point)
    return results


def reference_of(point: Point, grid: Grid, base: Mapping[str, Any]) -> Point:
    """Return the point that a point is compared with, which has the same seed.

    Without `reference` in the grid, it is the float32 conversion of the model without compression; its axes have the
    value "float32 without compression".

    Raises:
        InputError: The settings of the reference are not valid.
    """
    if grid.reference is not None:
        return grid.point(base, {**point.axes, **grid.reference}, point.seed)
    from tfq.config import ConversionConfig

    config = point.config
    conversion = config.conversion
    off = {
        name: dataclasses.replace(getattr(config.compression, name), enabled=False)
        for name in ("structured_pruning", "prune", "cluster", "qat")
    }
    return Point(
        axes={"reference": FLOAT},
        seed=point.seed,
        config=dataclasses.replace(
            config,
            compression=dataclasses.replace(config.compression, **off),
            conversion=ConversionConfig(
                scheme="float32",
                batch_size=conversion.batch_size,
                input_shapes=conversion.input_shapes,
                signature=conversion.signature,
            ),
        ),
    )


FLOAT = "float32"

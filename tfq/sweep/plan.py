# SPDX-License-Identifier: Apache-2.0
"""The plan of a sweep: each point as a chain of tasks. Points with the same settings of a stage share its task."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfq import artifacts, data, workflows
from tfq.backends import kind_of, make_backend
from tfq.config import FEW_BIT_SCHEMES, ConversionConfig, ExecutorConfig, RobustnessConfig, RunConfig
from tfq.errors import InputError
from tfq.executors import Task
from tfq.sweep.grid import Grid, Point, reference_of
from tfq.sweep.stages import CONVERTED, MODEL
from tfq.workflows.stage_keys import settings_for_key

_STAGES = "tfq.sweep.stages"
# The steps of compression, in the order in which they run.
STEPS = ("structured_pruning", "prune", "cluster", "qat")
# The names of their families.
_FAMILIES = ("structured", "pruned", "clustered", "QAT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """The tasks of a point.

    Attributes:
        point: The point.
        tasks: Stage -> its task, in the order of their dependencies: train, compress (if there is something to do),
            convert, evaluate SPLIT, costs BACKEND, latency.
        reference: The id of the point that it is compared with; None for a reference.
        not_measured: Stage of a cost -> why it is not measured here.
    """

    point: Point
    tasks: Mapping[str, Task]
    reference: str | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)

    def keys(self) -> dict[str, str]:
        """Return stage -> the key of its task."""
        return {stage: task.key for stage, task in self.tasks.items()}

    @property
    def training_epochs(self) -> int:
        """The epochs that the chain trains, those of shared stages included."""
        return sum(epochs for _, epochs in self.trainings())

    def trainings(self) -> Iterator[tuple[Task, int]]:
        """Yield each task that trains, with its epochs: every enabled step of compression trains as many."""
        config = self.point.config
        if "train" in self.tasks:
            yield self.tasks["train"], config.training.epochs
        if "compress" in self.tasks:
            steps = sum(getattr(config.compression, name).enabled for name in STEPS)
            yield self.tasks["compress"], config.compression.train.epochs * steps


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """All chains of a sweep.

    Attributes:
        chains: Those of the points, in the order of the grid.
        references: Those of references outside of the grid.
    """

    chains: tuple[Chain, ...]
    references: tuple[Chain, ...]

    def stages(self) -> dict[str, dict[str, int]]:
        """Return kind of stage -> {"distinct": different tasks, "used": uses by points and references}."""
        used: dict[str, list[Task]] = {}
        for chain in (*self.references, *self.chains):
            for stage, task in chain.tasks.items():
                used.setdefault(stage, []).append(task)
        return {
            stage: {"distinct": len({task.key for task in tasks}), "used": len(tasks)} for stage, tasks in used.items()
        }

    def epochs(self) -> tuple[int, int]:
        """Return the epochs that the distinct stages train, and those that all chains would without sharing."""
        distinct = {
            task.key: epochs for chain in (*self.references, *self.chains) for task, epochs in chain.trainings()
        }
        return sum(distinct.values()), sum(chain.training_epochs for chain in (*self.references, *self.chains))


def plan_of(grid: Grid, config: RunConfig, *, allow_code: bool = False) -> Plan:
    """Return the chains of all points of a grid.

    Args:
        grid: The grid.
        config: The settings of the command.
        allow_code: Whether code in model files may run.

    Raises:
        InputError: The settings of a point do not work together, or a model or the data cannot be read.
    """
    base = grid.base_config(config)
    tree, planner = base.to_dict(), _Planner(base, allow_code)
    chains: list[Chain] = []
    references: dict[str, Chain] = {}
    points = grid.points(config)
    inside = {point.id for point in points}
    for point in points:
        other = reference_of(point, grid, tree)
        chain = planner.chain(point)
        outside = other.id not in inside
        reference_id = other.id if other.id != point.id else None
        if outside:
            of_reference = planner.chain(other)
            # Points of several models have different references with one name.
            place = of_reference.tasks["convert"].key[:8]
            known = next((each for each in references.values() if _same(each, of_reference)), None)
            if known is None:
                taken = other.id in references
                named = dataclasses.replace(other, axes={**other.axes, "model": place}) if taken else other
                known = references[named.id] = dataclasses.replace(of_reference, point=named)
            reference_id = known.point.id
        chains.append(dataclasses.replace(chain, reference=reference_id))
    return Plan(chains=tuple(chains), references=tuple(references.values()))


def _same(one: Chain, other: Chain) -> bool:
    return one.point.seed == other.point.seed and one.keys() == other.keys()


class _Planner:
    """Makes the chains, and reads models and data once."""

    def __init__(self, base: RunConfig, allow_code: bool) -> None:
        self._sweep, self._allow_code = base.sweep, allow_code
        self._data_sha256: dict[str, str] = {}
        self._model_sha256: dict[str, str] = {}

    def chain(self, point: Point) -> Chain:
        """Return the tasks of a point.

        Raises:
            InputError: Its settings do not work together.
        """
        check_point(point)
        config = self._resolved(point.config)
        tasks: dict[str, Task] = {}
        model = self._model_task(config, tasks)
        tasks["convert"] = self._task(
            "convert",
            config,
            {**self._source(config, model), "conversion": settings_for_key(config.conversion), **self._data(config)},
            {MODEL: model} if model else {},
            allow_code=self._allow_code,
        )
        needs = {CONVERTED: tasks["convert"]}
        for split in dict.fromkeys((self._sweep.choose_on, "test")):
            inputs = {
                "split": split,
                "evaluation": settings_for_key(config.evaluation),
                "backend": make_backend(config.evaluation.backend).fingerprint(),
                **self._data(config),
            }
            tasks[f"evaluate {split}"] = self._task("evaluate", config, inputs, needs, split=split)
        not_measured = {}
        for backend in self._cost_backends():
            reason = _unavailable(backend)
            if reason:
                not_measured[f"costs {backend}"] = reason
                continue
            inputs = {"backend": backend, "fingerprint": make_backend(backend).fingerprint(), **self._data(config)}
            tasks[f"costs {backend}"] = self._task("costs", config, inputs, needs, backend=backend)
        if point.config.evaluation.robustness.enabled:
            corrupted = dataclasses.replace(config.evaluation, robustness=point.config.evaluation.robustness)
            tasks["robustness"] = self._task(
                "robustness",
                dataclasses.replace(config, evaluation=corrupted),
                {"evaluation": settings_for_key(corrupted), **self._data(config)},
                needs,
            )
        if self._sweep.latency:
            from tfq.provenance import cpu

            inputs = {"evaluation": settings_for_key(config.evaluation), "cpu": cpu(), **self._data(config)}
            tasks["latency"] = self._task("latency", config, inputs, needs)
        return Chain(point=point, tasks=tasks, not_measured=not_measured)

    def _resolved(self, config: RunConfig) -> RunConfig:
        """Return the config of a task: every interpreter has the threads of the sweep, and nothing else is measured."""
        evaluation = dataclasses.replace(
            config.evaluation,
            backends=("none",),
            num_threads=self._sweep.num_threads,
            num_workers=1,
            num_runs=config.evaluation.num_runs if self._sweep.latency else 0,
            differing_examples=0,
            robustness=RobustnessConfig(),
        )
        # A task is not divided further.
        return dataclasses.replace(config, evaluation=evaluation, executor=ExecutorConfig())

    def _model_task(self, config: RunConfig, tasks: dict[str, Task]) -> Task | None:
        """Add the tasks that make the model to convert, and return the last one; None if it is a file unchanged."""
        model = None
        if not workflows.is_file(config.model) or config.sweep.fine_tune:
            inputs = {
                **self._source(config, None),
                "training": settings_for_key(config.training),
                **self._seeded(config),
            }
            model = tasks["train"] = self._task("train", config, inputs, {}, allow_code=self._allow_code)
        if workflows.is_compressed(config):
            inputs = {
                **self._source(config, model),
                "compression": _enabled_only(settings_for_key(config.compression)),
                **self._seeded(config),
            }
            needs = {MODEL: model} if model else {}
            model = tasks["compress"] = self._task("compress", config, inputs, needs, allow_code=self._allow_code)
        return model

    def _task(
        self, name: str, config: RunConfig, inputs: Mapping[str, Any], needs: Mapping[str, Task], **arguments: Any
    ) -> Task:
        return Task(
            name=name,
            function=f"{_STAGES}:{name}",
            arguments={"config": config.to_dict(), **arguments},
            inputs={**inputs, **({"allow_code": True} if arguments.get("allow_code") else {})},
            needs=needs,
            num_threads=self._sweep.num_threads,
        )

    def _source(self, config: RunConfig, model: Task | None) -> dict[str, Any]:
        """Return what determines the model that a task starts from, besides the task that it needs."""
        if model is not None:
            return {}
        if not workflows.is_file(config.model):
            return {"model": config.model}
        if config.model not in self._model_sha256:
            self._model_sha256[config.model] = artifacts.sha256_path(config.model)
        return {"model_sha256": self._model_sha256[config.model]}

    def _data(self, config: RunConfig) -> dict[str, Any]:
        values = settings_for_key(config.data)
        key = json.dumps(config.data.to_dict(), sort_keys=True)
        if key not in self._data_sha256:
            self._data_sha256[key] = data.source_fingerprint(config.data)
        return {"data": values, "data_sha256": self._data_sha256[key]}

    def _seeded(self, config: RunConfig) -> dict[str, Any]:
        return {"seed": config.seed, **self._data(config)}

    def _cost_backends(self) -> tuple[str, ...]:
        chosen = self._sweep.cost_backends
        if "none" not in chosen:
            return tuple(dict.fromkeys(chosen))
        if len(chosen) > 1:
            raise InputError(
                "sweep.cost_backends contains none and other backends: remove one of them",
                field="sweep.cost_backends",
                got=chosen,
            )
        return ()


@functools.cache
def _unavailable(backend: str) -> str | None:
    """Return why a backend measures nothing here, or None."""
    kind = kind_of(backend)
    if not (kind.counts_instructions or kind.reports_memory):
        return f"{backend} reports neither memory nor instructions"
    return make_backend(backend, field="sweep.cost_backends").unavailable()


def _enabled_only(compression: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of compression without those of steps that are off, which do not change the result."""
    return {
        name: {"enabled": False} if isinstance(values, dict) and values.get("enabled") is False else values
        for name, values in compression.items()
    }


def check_point(point: Point) -> None:
    """Check, before any work, that the settings of a point work together.

    Raises:
        InputError: They do not; the message says which combination to exclude.
    """
    config = point.config
    problem = _problem(config)
    if problem is not None:
        field_name, sentence, got = problem
        chosen = ", ".join(f'"{axis}": "{name}"' for axis, name in point.axes.items())
        raise InputError(
            f"the point {point.group} of the grid: {sentence}; or exclude such points: {{{chosen}}} in exclude",
            field=field_name,
            got=got,
        )
    data.check_readable(config.data)
    if workflows.is_file(config.model):
        workflows.check_path(config.model, "model", "model")


def _problem(config: RunConfig) -> tuple[str, str, object] | None:
    """Return (field, sentence, value) about settings of which one would be ignored; None if there are none."""
    conversion, qat = config.conversion, config.compression.qat.enabled
    if not config.model:
        return "model", "model is empty: name it in base or in an axis, or pass it to the command", ""
    if config.sweep.fine_tune and not workflows.is_file(config.model):
        return "sweep.fine_tune", "sweep.fine_tune is for a model from a file: one with a name is trained anyway", True
    if config.model.endswith(".tflite") and (config.sweep.fine_tune or workflows.is_compressed(config)):
        return "model", f"model={artifacts.shown(config.model)} is a .tflite, which cannot be trained", config.model
    if qat and conversion.scheme != "int8":
        return "conversion.scheme", f"conversion.scheme={conversion.scheme}: QAT trains for int8", conversion.scheme
    if qat and not conversion.per_channel:
        return "conversion.per_channel", "conversion.per_channel=False: QAT trains a scale for each channel", False
    if qat and (conversion.int4_layers or conversion.techniques):
        name = "int4_layers" if conversion.int4_layers else "techniques"
        return (
            f"conversion.{name}",
            f"conversion.{name} would change weights that QAT trained for int8",
            getattr(conversion, name),
        )
    if conversion.scheme == "float32" and conversion.int4_layers != ConversionConfig().int4_layers:
        return "conversion.int4_layers", "conversion.scheme=float32 quantizes no layer", conversion.int4_layers
    return None


def family_of(config: RunConfig) -> str:
    """Return the family of a point's compression, such as "dense", "pruned + QAT" or "dense, int4".

    The accuracy of the groups of one family varies about alike over seeds. Weights of int4 and of int2 are families
    apart, because what they cost varies much more than what int8 costs.
    """
    steps = [name for step, name in zip(STEPS, _FAMILIES, strict=True) if getattr(config.compression, step).enabled]
    qat = config.compression.qat
    has_int4 = config.conversion.int4_layers or (qat.enabled and qat.int4_layers)
    bits = FEW_BIT_SCHEMES.get(config.conversion.scheme, 4 if has_int4 else 8)
    return (" + ".join(steps) or "dense") + (f", int{bits}" if bits < 8 else "")


def cheapest_first(chains: Sequence[Chain]) -> list[Chain]:
    """Return the chains with the fewest training epochs first; those with as many stay in the order of the grid."""
    return sorted(chains, key=lambda chain: chain.training_epochs)

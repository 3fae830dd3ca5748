# SPDX-License-Identifier: Apache-2.0
"""Run a sweep, or a shard of it.

The tasks are stages of a store that several sweeps and shards may share at the same time. An interrupted sweep resumes.
"""

import dataclasses
import json
import re
import time
from collections.abc import Iterable, Sequence

from tfq import artifacts, progress
from tfq.config import RunConfig
from tfq.config.base import check_fraction
from tfq.errors import InputError, TfqError, warn
from tfq.evaluation.metric import BOUNDED_UNITS, as_metrics
from tfq.executors import Executor, Task, open_executor
from tfq.store import StageStore
from tfq.sweep.grid import Grid
from tfq.sweep.plan import Chain, Plan, cheapest_first, plan_of
from tfq.sweep.points import Outcomes, point_record
from tfq.sweep.record import PointRecord, SweepResult
from tfq.sweep.summary import summarized

_CLAIMS = ".claims"


def parse_shard(text: str) -> tuple[int, int] | None:
    """Return (I, N) of "I/N", or None for "".

    Raises:
        InputError: It is not of this form, or I is not between 1 and N.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise InputError(
            f"sweep.shard={text}: expected I/N with 1 <= I <= N, such as 1/4",
            field="sweep.shard",
            expected="I/N with 1 <= I <= N",
            got=text,
        )
    return index, count


def shards_of(chains: Sequence[Chain], count: int) -> list[list[Chain]]:
    """Return a partition of chains into `count` shards, the same for every shard that computes it.

    Chains with the same last training stage are in one shard, so that only models that are trained before compression
    are shared between shards. The largest sets are distributed first, each to the shard with the fewest epochs.
    """
    sets: dict[str, list[Chain]] = {}
    for chain in chains:
        tasks = [task for task, _ in chain.trainings()]
        sets.setdefault(tasks[-1].key if tasks else chain.tasks["convert"].key, []).append(chain)
    places = {id(chain): place for place, chain in enumerate(chains)}
    shards: list[list[Chain]] = [[] for _ in range(count)]
    work = [(0.0, 0) for _ in range(count)]
    for members in sorted(sets.values(), key=lambda each: -each[0].training_epochs):
        index = min(range(count), key=lambda place: (work[place], place))
        shards[index] += members
        epochs, conversions = work[index]
        work[index] = (epochs + members[0].training_epochs, conversions + len(members))
    return [sorted(members, key=lambda chain: places[id(chain)]) for members in shards]


def dry_run(config: RunConfig, *, allow_code: bool = False) -> str:
    """Return the points of a sweep, its stages and an estimate of the work, as text.

    Raises:
        InputError: The grid, the settings of a point, the models or the data cannot be used.
    """
    from tfq.sweep.estimate import estimate_text

    grid = Grid.load(config.sweep.grid)
    plan = plan_of(grid, config, allow_code=allow_code)
    base = grid.base_config(config)
    settings = base.sweep
    _check_budget(base)
    store = _store(settings.store or config.out) if config.out else None
    return estimate_text(plan, settings, store, config.executor.num_workers or 1)


def run_sweep(config: RunConfig, *, allow_code: bool = False) -> SweepResult:
    """Run the points of a grid, or those of one shard, and analyze them.

    A point that fails is a row with its reason. The result of a shard has points only: `merge` analyzes them.

    Examples:
        >>> sweep = tfq.SweepConfig(grid="grid.json")
        >>> result = tfq.run_sweep(tfq.RunConfig(model="model.keras", data=data, out="out/sweep", sweep=sweep))
        >>> print(result.best.sentence)

    Args:
        config: config.sweep, and everything that the grid does not set: the model, the data and other settings.
        allow_code: Whether code inside model files may run; see `load_model`.

    Returns:
        The points, their groups, the fronts and the best group.

    Raises:
        InputError: The grid, the settings of a point, the models or the data cannot be used. This is checked before any
            work starts.
        TfqError: The store cannot be written, or workers cannot be started.
    """
    grid = Grid.load(config.sweep.grid)
    base = grid.base_config(config)
    settings = base.sweep
    _check_budget(base)
    shard = parse_shard(settings.shard)
    out = artifacts.make_out_dir(config.out)
    with progress.stage("planning the sweep"):
        plan = plan_of(grid, config, allow_code=allow_code)
    store = _store(settings.store or str(out))
    selected = cheapest_first(plan.chains)[: settings.budget.max_points or None]
    own = plan.chains if shard is None else shards_of(plan.chains, shard[1])[shard[0] - 1]
    to_run = [chain for chain in selected if any(chain is each for each in own)]
    outcomes, start = Outcomes(), time.monotonic()
    with open_executor(config.executor.name or "local", num_workers=config.executor.num_workers or None) as executor:
        budget = _Budget(start, settings.budget.max_hours)
        if shard is not None:
            _run_shared(plan, shard, to_run, executor, store, outcomes, budget)
        _run(_tasks(plan, to_run), executor, store, outcomes, budget)
    _check_any_done(outcomes)
    result = _result(grid, base, plan, own, shard, outcomes)
    timing = {
        "elapsed_seconds": round(time.monotonic() - start, 3),
        "stages": dict(sorted(outcomes.times.items())),
    }
    result = dataclasses.replace(result, timing=timing)
    return result if shard is not None else summarized(result)


def _check_budget(base: RunConfig) -> None:
    """Raise InputError if the bound on the loss of a metric in [0, 1] is larger than 1, such as a percentage."""
    bound, metric = base.sweep.budget.max_accuracy_drop, next(iter(as_metrics(base.evaluation.metric)), None)
    if bound is not None and (metric is None or metric.unit in BOUNDED_UNITS):
        check_fraction("sweep.budget.max_accuracy_drop", bound)


def _check_any_done(outcomes: Outcomes) -> None:
    """Raise the first error if every task failed: then the sweep itself is wrong, and not a point of it."""
    if outcomes.results or not outcomes.failures:
        return
    first = next(iter(outcomes.failures.values()))
    message = f"every stage of the sweep failed: {first.message}"
    raise InputError(message) if first.exit_code == InputError.exit_code else TfqError(message)


def _store(path: str) -> StageStore:
    return StageStore(artifacts.make_out_dir(path))


class _Budget:
    """The hours that a sweep may take."""

    def __init__(self, start: float, hours: float) -> None:
        self._start, self._hours = start, hours

    def is_spent(self) -> bool:
        """Return whether no time is left."""
        return bool(self._hours) and time.monotonic() - self._start > 3600 * self._hours

    @property
    def reason(self) -> str:
        """Why the remaining tasks do not run."""
        return f"sweep.budget.max_hours={self._hours:g} had passed; start the sweep again to go on"


def _tasks(plan: Plan, chains: Sequence[Chain]) -> list[Task]:
    """Return the tasks of chains and of the points that they are compared with, chain by chain."""
    by_id = {chain.point.id: chain for chain in (*plan.references, *plan.chains)}
    tasks: dict[str, Task] = {}
    for chain in chains:
        compared = by_id.get(chain.reference or "")
        for each in (chain, *([compared] if compared else [])):
            tasks.update({task.key: task for task in each.tasks.values()})
    return list(tasks.values())


def _run(tasks: Iterable[Task], executor: Executor, store: StageStore, outcomes: Outcomes, budget: "_Budget") -> None:
    """Run tasks until the budget is spent, which is checked whenever a task ends."""
    if budget.is_spent():
        outcomes.not_run = budget.reason
        return
    running = executor.run(tasks, store)
    try:
        for ended in running:
            outcomes.add(ended)
            if budget.is_spent():
                outcomes.not_run = budget.reason
                break
    finally:
        close = getattr(running, "close", None)
        if close is not None:
            close()


def _run_shared(
    plan: Plan,
    shard: tuple[int, int],
    to_run: Sequence[Chain],
    executor: Executor,
    store: StageStore,
    outcomes: Outcomes,
    budget: "_Budget",
) -> None:
    """Run the trainings that other shards need too, each under a lock, so that only one shard makes it.

    Shards begin with different ones. If the file system has no locks, two shards may make the same result: the first
    one stays.
    """
    index, count = shard
    needed_by: dict[str, set[int]] = {}
    trainings: dict[str, Task] = {}
    for place, members in enumerate(shards_of(plan.chains, count)):
        for task in _tasks(plan, members):
            if task.name in ("train", "compress"):
                needed_by.setdefault(task.key, set()).add(place)
                trainings[task.key] = task
    own = {task.key for task in _tasks(plan, to_run)}
    shared = [trainings[key] for key, places in needed_by.items() if len(places) > 1 and key in own]
    offset = (index - 1) * len(shared) // count
    claims = artifacts.make_out_dir(store.out / _CLAIMS)
    for task in [*shared[offset:], *shared[:offset]]:
        try:
            with artifacts.locked(claims / task.key, lambda: progress.note("waiting for another shard's training")):
                _run([task], executor, store, outcomes, budget)
        except TfqError as error:
            warn(f"{error}: another shard may train the same model, which only takes time")
            _run([task], executor, store, outcomes, budget)


def _result(
    grid: Grid,
    base: RunConfig,
    plan: Plan,
    own: Sequence[Chain],
    shard: tuple[int, int] | None,
    outcomes: Outcomes,
) -> SweepResult:
    by_id = {chain.point.id: chain for chain in (*plan.references, *plan.chains)}
    needed = {chain.reference for chain in own}
    references = [chain for chain in plan.references if chain.point.id in needed]

    def record(chain: Chain) -> PointRecord:
        return point_record(chain, by_id.get(chain.reference or ""), outcomes)

    return SweepResult(
        grid=grid.to_dict(),
        grid_sha256=_fingerprint(plan, base),
        axes={axis: tuple(named) for axis, named in grid.axes.items()},
        seeds=tuple(dict.fromkeys(chain.point.seed for chain in plan.chains)),
        num_threads=base.sweep.num_threads,
        settings={
            "choose_on": base.sweep.choose_on,
            "budget": base.sweep.budget.to_dict(),
            "cost_backends": list(base.sweep.cost_backends),
        },
        order=tuple(chain.point.id for chain in (*plan.references, *plan.chains)),
        points=tuple(record(chain) for chain in own),
        references=tuple(record(chain) for chain in references),
        stages=plan.stages(),
        shard=shard,
    )


def _fingerprint(plan: Plan, base: RunConfig) -> str:
    """Return the hash of the keys of all stages whose results do not depend on what is installed on one machine."""
    keys = [
        [chain.point.id, {stage: key for stage, key in chain.keys().items() if not stage.startswith(("costs", "lat"))}]
        for chain in (*plan.references, *plan.chains)
    ]
    settings = {"keys": keys, "choose_on": base.sweep.choose_on, "budget": base.sweep.budget.to_dict()}
    return artifacts.sha256(json.dumps(settings, sort_keys=True).encode())

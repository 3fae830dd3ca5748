# SPDX-License-Identifier: Apache-2.0
"""What a sweep would do: its points, the stages that they share, and an estimate of the time."""

import statistics
from collections.abc import Mapping

from tfq.config.sweep import SweepConfig
from tfq.executors import Task
from tfq.store import StageStore
from tfq.sweep.plan import Chain, Plan, cheapest_first
from tfq.text_table import aligned

TRAININGS = ("train", "compress")


def estimate_text(plan: Plan, settings: SweepConfig, store: StageStore | None, num_workers: int = 1) -> str:
    """Return the points in the order in which they run, the stages, and an estimate of the time, as text.

    The estimate is made from the stages that the store has: the mean time of an epoch of training, and the mean time of
    each other kind of stage. Without such a stage there is no estimate.

    Args:
        plan: The plan of the sweep.
        settings: Its settings.
        store: The store of the sweep; with None, no time is known.
        num_workers: Tasks that run at the same time.
    """
    ordered = cheapest_first(plan.chains)
    limit = settings.budget.max_points or len(ordered)
    rows = [["point", "epochs", ""]]
    rows += [
        [chain.point.id, str(chain.training_epochs), "" if place < limit else "not run: sweep.budget.max_points"]
        for place, chain in enumerate(ordered)
    ]
    stages = plan.stages()
    stage_rows = [["stage", "different", "uses"]]
    stage_rows += [[name, f"{count['distinct']:,}", f"{count['used']:,}"] for name, count in stages.items()]
    distinct, used = plan.epochs()
    missing = sorted({reason for chain in plan.chains for reason in _not_measured(chain)})
    return "\n".join(
        [
            *aligned(rows, 1),
            "",
            *aligned(stage_rows, 1),
            "",
            f"{len(plan.chains):,} points in the order in which they start: the fewest epochs of training first",
            f"{distinct:,} epochs of training; {used:,} without shared stages",
            *missing,
            _time_text(plan, ordered[:limit], store, num_workers),
        ]
    )


def _not_measured(chain: Chain) -> list[str]:
    return [f"{stage.removeprefix('costs ')} is not used: {reason}" for stage, reason in chain.not_measured.items()]


def _time_text(plan: Plan, chains: list[Chain], store: StageStore | None, num_workers: int) -> str:
    epochs: dict[str, int] = {}
    tasks: dict[str, Task] = {}
    for chain in (*plan.references, *chains):
        tasks |= {task.key: task for task in chain.tasks.values()}
        epochs |= {task.key: number for task, number in chain.trainings()}
    stored = {key: result.seconds for key in tasks if store is not None and (result := store.find(key)) is not None}
    rates: dict[str, list[float]] = {}
    for key, seconds in stored.items():
        rates.setdefault(_kind(tasks[key]), []).append(seconds / max(1, epochs.get(key, 1)))
    unknown = sorted({_kind(task) for key, task in tasks.items() if key not in stored} - set(rates))
    start = f"{len(stored):,} of {len(tasks):,} stages are stored"
    if len(stored) == len(tasks):
        return f"{start}: nothing is left to run"
    if unknown:
        return (
            f"{start}; no time is known yet for: {', '.join(unknown)}. Run one point (sweep.budget.max_points=1) to "
            "get an estimate"
        )
    seconds = _left(tasks, epochs, stored, {kind: statistics.fmean(each) for kind, each in rates.items()})
    hours = seconds / 3600 / num_workers
    return f"{start}; the others take about {hours:.2g} hours with {num_workers} at the same time, as measured so far"


def _left(
    tasks: Mapping[str, Task], epochs: Mapping[str, int], stored: Mapping[str, float], rates: Mapping[str, float]
) -> float:
    return sum(rates[_kind(task)] * max(1, epochs.get(key, 1)) for key, task in tasks.items() if key not in stored)


def _kind(task: Task) -> str:
    """Return what tasks of similar length have in common."""
    return "an epoch of training" if task.name in TRAININGS else task.name

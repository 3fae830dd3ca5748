# SPDX-License-Identifier: Apache-2.0
"""The record of a point from the results of its tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfq.evaluation.per_example import ExampleResults, packed
from tfq.executors import TaskFailure, TaskResult
from tfq.store import StageResult
from tfq.sweep.paired_scores import NOT_KEPT, PairedScore, difference_of
from tfq.sweep.plan import Chain, family_of
from tfq.sweep.record import DONE, FAILED, NOT_RUN, Cost, OtherMetric, PointRecord, SplitScore

NO_REFERENCE = "it is a reference"


@dataclass(kw_only=True)
class Outcomes:
    """What has become of the tasks so far.

    Attributes:
        results: Key of a task -> its result.
        failures: Key of a task -> why it failed.
        not_run: Why tasks without an outcome did not run.
        times: Key of a task -> {"seconds": how long it took when it ran, "stored": whether it was stored before}.
    """

    results: dict[str, StageResult] = field(default_factory=dict)
    failures: dict[str, TaskFailure] = field(default_factory=dict)
    not_run: str = "sweep.budget.max_points leaves it out"
    times: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, ended: TaskResult) -> None:
        """Note the end of a task."""
        if ended.failure is not None:
            self.failures[ended.task.key] = ended.failure
        if ended.result is not None and ended.task.key not in self.results:
            self.results[ended.task.key] = ended.result
            self.times[ended.task.key] = {"seconds": ended.result.seconds, "stored": ended.result.resumed}


def point_record(chain: Chain, reference: Chain | None, outcomes: Outcomes) -> PointRecord:
    """Return the record of a point.

    Args:
        chain: Its tasks.
        reference: The tasks of the point that it is compared with; None for a reference.
        outcomes: The results so far.
    """
    point, tasks = chain.point, chain.tasks
    record = PointRecord(
        id=point.id,
        group=point.group,
        axes=point.axes,
        seed=point.seed,
        status=DONE,
        reference=chain.reference,
        stages=chain.keys(),
        family=family_of(point.config),
        training_epochs=chain.training_epochs,
    )
    values = {**vars(record)}
    for stage, task in tasks.items():
        failure = outcomes.failures.get(task.key)
        if failure is not None and _is_needed(stage):
            # The first stage in the order of dependencies is the one that failed itself.
            return PointRecord(**{**values, "status": FAILED, "reason": failure.message, "failed_stage": stage})
    if any(task.key not in outcomes.results for stage, task in tasks.items() if _is_needed(stage)):
        return PointRecord(**{**values, "status": NOT_RUN, "reason": outcomes.not_run})
    results = {stage: outcomes.results[task.key] for stage, task in tasks.items() if task.key in outcomes.results}
    warnings = [sentence for result in results.values() for sentence in result.warnings]
    splits = [stage.removeprefix("evaluate ") for stage in results if stage.startswith("evaluate ")]
    return PointRecord(
        **{
            **values,
            "sha256": results["convert"].details["sha256"],
            "scores": {split: _score(chain, reference, split, outcomes) for split in splits},
            "costs": _costs(chain, results, outcomes),
            "warnings": tuple(dict.fromkeys(warnings)),
            **_robustness(chain, outcomes),
        }
    )


def _robustness(chain: Chain, outcomes: Outcomes) -> dict[str, Any]:
    """Return the fields of a point about corrupted examples."""
    if "robustness" not in chain.tasks:
        return {}
    details = _details(chain, "robustness", outcomes)
    if "models" not in details:
        return {"robustness_reason": details.get("reason")}
    return {"robustness": details, "robustness_reason": None}


def _is_needed(stage: str) -> bool:
    """Return whether a point without this stage has no result: not so for costs, which may be missing."""
    return not stage.startswith(("costs ", "latency", "robustness"))


def _score(chain: Chain, reference: Chain | None, split: str, outcomes: Outcomes) -> SplitScore:
    details = outcomes.results[chain.tasks[f"evaluate {split}"].key].details
    metric = details["metric"]
    facts = details["metrics"].get(metric, {})
    mine = _examples(details)
    base, stored, why = None, None, NO_REFERENCE
    if reference is not None:
        task = reference.tasks.get(f"evaluate {split}")
        stored = None if task is None else outcomes.results.get(task.key)
        base, why = (_examples(stored.details), "") if stored is not None else (None, "the reference has no result")
    agreement, agreement_reason = _agreement(mine, base) if base is not None or not why else (None, why)
    own = _paired(details, mine)
    theirs = None if stored is None or reference is None else _paired(stored.details, base)
    difference, difference_reason = None, why or "there is no value to compare"
    if own is not None and theirs is not None:
        difference, difference_reason = difference_of([own], [theirs]).to_dict(), ""
    interval = facts.get("interval")
    return SplitScore(
        metric=metric,
        unit=str(facts.get("unit", "none")),
        direction=facts.get("direction"),
        value=details["accuracy"],
        reason=details["accuracy_reason"],
        interval=None if interval is None else (interval[0], interval[1]),
        num_examples=details["num_examples"],
        scores=details["scores"],
        agreement=agreement,
        agreement_reason=agreement_reason,
        difference=difference,
        difference_reason=difference_reason or None,
        per_example=None if own is None or own.scores is None else packed(own.scores),
        replicates=None if own is None or own.replicates is None else packed(own.replicates),
        unpaired_reason=None if own is None else own.reason,
        others={
            name: _other(facts, _paired(details, mine, name))
            for name, facts in details["metrics"].items()
            if name != metric
        },
    )


def _other(facts: Mapping[str, Any], own: PairedScore | None) -> OtherMetric:
    interval = facts.get("interval")
    return OtherMetric(
        unit=str(facts.get("unit", "none")),
        direction=facts.get("direction"),
        value=None if own is None else own.value,
        interval=None if interval is None else (interval[0], interval[1]),
        per_example=None if own is None or own.scores is None else packed(own.scores),
        replicates=None if own is None or own.replicates is None else packed(own.replicates),
        unpaired_reason=None if own is None else own.reason,
    )


def _paired(details: Mapping[str, Any], examples: ExampleResults | None, metric: str = "") -> PairedScore | None:
    """Return a metric of an evaluation, "" for the main one, with what pairs it by example; None without a value."""
    value = details["metrics"][metric].get("value") if metric else details["accuracy"]
    metric = metric or details["metric"]
    if value is None:
        return None
    if examples is None:
        reason = "the backend returned no results of each example"
        return PairedScore(value=value, num_examples=details["num_examples"], reason=reason)
    scores, replicates = examples.scores.get(metric), examples.replicates.get(metric)
    has_any = scores is not None or replicates is not None
    return PairedScore(
        value=value,
        num_examples=examples.num_examples,
        scores=scores,
        replicates=replicates,
        reason=None if has_any else examples.unpaired.get(metric, NOT_KEPT),
    )


def _examples(details: Mapping[str, Any]) -> ExampleResults | None:
    values = details["per_example"]
    return None if values is None else ExampleResults.from_dict(values)


def _agreement(mine: ExampleResults | None, base: ExampleResults | None) -> tuple[float | None, str | None]:
    """Return the lowest fraction of examples with the class of the reference, of all outputs that predict a class."""
    if mine is None or base is None:
        return None, "there are no results of each example"
    fractions = []
    for name, output in mine.outputs.items():
        other = base.outputs.get(name)
        # A conversion may rename an only output.
        if other is None and len(mine.outputs) == len(base.outputs) == 1:
            other = next(iter(base.outputs.values()))
        theirs = None if other is None else other.predicted
        if output.predicted is not None and theirs is not None and output.predicted.shape == theirs.shape:
            fractions.append(float(np.mean(output.predicted == theirs)))
    return (min(fractions), None) if fractions else (None, "no output predicts a class")


def _costs(chain: Chain, results: Mapping[str, StageResult], outcomes: Outcomes) -> dict[str, Cost]:
    """Return the costs of a point: of arenas and instructions the first that a backend reports."""
    sizes = next(result.details for stage, result in results.items() if stage.startswith("evaluate "))
    costs = {name: Cost(value=sizes[name], how="measured") for name in ("model_bytes", "gzip_bytes")}
    arena = instructions = None
    for stage in dict.fromkeys((*chain.not_measured, *(name for name in chain.tasks if name.startswith("costs ")))):
        backend = stage.removeprefix("costs ")
        details = _details(chain, stage, outcomes)
        reason = chain.not_measured.get(stage) or details.get("reason")
        if "instructions" in details:
            costs[f"instructions {backend}"] = Cost(
                value=details["instructions"], how=details.get("how"), reason=details.get("reason")
            )
            instructions = instructions or costs[f"instructions {backend}"]
        elif "arena_bytes" in details:
            found = Cost(value=details["arena_bytes"], how=details["how"], reason=reason)
            arena = found if arena is None or arena.value is None else arena
        elif _counts_instructions(backend):
            instructions = instructions or Cost(reason=f"{backend}: {reason}")
        else:
            arena = arena or Cost(reason=f"{backend}: {reason}")
    costs["arena_bytes"] = arena or Cost(reason="no backend in sweep.cost_backends reports it")
    costs["instructions"] = instructions or Cost(reason="no backend in sweep.cost_backends counts them")
    costs["latency_ms"] = Cost(reason="sweep.latency is off")
    if "robustness" in chain.tasks:
        details = _details(chain, "robustness", outcomes)
        drop = details["models"][0]["drop"]["value"] if "models" in details else None
        reason = details.get("reason") or details.get("accuracy_reason")
        costs["corruption_drop"] = Cost(value=drop, how=None if drop is None else "measured", reason=reason)
    if "latency" in chain.tasks:
        details = _details(chain, "latency", outcomes)
        costs["latency_ms"] = Cost(
            value=details.get("latency_ms"), how=details.get("how"), reason=details.get("reason")
        )
    return costs


def _counts_instructions(backend: str) -> bool:
    from tfq.backends import kind_of

    return kind_of(backend).counts_instructions


def _details(chain: Chain, stage: str, outcomes: Outcomes) -> Mapping[str, Any]:
    """Return the details of a stage that may be missing; else {"reason": why}."""
    task = chain.tasks.get(stage)
    if task is None:
        return {}
    if task.key in outcomes.results:
        return outcomes.results[task.key].details
    failure = outcomes.failures.get(task.key)
    return {"reason": outcomes.not_run if failure is None else failure.message}

# SPDX-License-Identifier: Apache-2.0
"""The results of a benchmark, as JSON and as text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tfq.config import CostRequireConfig
from tfq.errors import RequirementError
from tfq.evaluation.costs import Costs, cost_requirements, cost_rows
from tfq.evaluation.figure_readers import Measured
from tfq.evaluation.op_costs import OpCost
from tfq.evaluation.requirements import figure_requirements, missed_sentence
from tfq.notebook import NotebookRecord, NotebookTable
from tfq.requirement import Requirement
from tfq.text_table import aligned
from tfq.tflite.workload import Workload

NUM_EXPENSIVE_OPS = 5


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    """The latencies of one model with one set of kernels, in milliseconds.

    A number that was not measured is None, and a field that ends in `_reason` says why.

    Args:
        name: The name of the model.
        kernels: "xnnpack" or "builtin"; "" for a backend with other kernels.
        model_bytes: The size of the flatbuffer.
        inputs: The inputs of the model: the user's examples or random numbers.
        inputs_reason: Why the user's examples were not used.
        initialization_ms: The time to create an interpreter and allocate its tensors, the median of up to five.
        first_ms: The first inference.
        mean_ms: The mean of `invoke` alone over `num_runs` inferences, as the next seven.
        std_ms: Their sample standard deviation.
        p50_ms: Their median.
        p90_ms: Their 90th percentile.
        p99_ms: Their 99th percentile.
        min_ms: The fastest.
        max_ms: The slowest.
        num_runs: The number of timed inferences.
        overhead_ms: The additional time per inference to set inputs, fetch outputs and run the loop.
        quantiles_ms: Their quantiles from 0 to 100% in steps of 5.
        time_reason: Why no time was measured.
        total_ops: The number of ops.
        delegated_ops: The number of ops that XNNPACK ran.
        ops: The time of each op, measured in separate inferences.
        ops_by: How the ops were measured.
        ops_reason: Why they were not measured.
        instructions: {backend: instruction counts} of an emulator. A count is not a time.
        costs: Memory, cycles and ops on the CPU, of a backend that reports them; of one that measures times, the memory
            in a separate run of one inference.
        workload: Multiply-adds and bytes of each op, counted from the shapes.
    """

    name: str
    kernels: str
    model_bytes: int
    inputs: str
    inputs_reason: str | None = None
    initialization_ms: float | None = None
    first_ms: float | None = None
    mean_ms: float | None = None
    std_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    num_runs: int = 0
    overhead_ms: float | None = None
    quantiles_ms: Sequence[float] | None = None
    time_reason: str | None = None
    total_ops: int | None = None
    delegated_ops: int | None = None
    ops: tuple[OpCost, ...] | None = None
    ops_by: str | None = None
    ops_reason: str | None = None
    instructions: dict[str, Any] | None = None
    costs: Costs | None = None
    workload: Workload | None = None

    @property
    def examples_per_second(self) -> float | None:
        """Examples per second at this batch size and number of threads, without the overhead; None if not timed."""
        return 1000 * self.workload.batch / self.mean_ms if self.mean_ms and self.workload else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **vars(self),
            "quantiles_ms": self.quantiles_ms and list(self.quantiles_ms),
            "ops": None if self.ops is None else [op.to_dict() for op in self.ops],
            "costs": None if self.costs is None else self.costs.to_dict(),
            "workload": None if self.workload is None else self.workload.to_dict(),
            "examples_per_second": self.examples_per_second,
        }


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The throughput of one model with one set of kernels, at one batch size and number of threads.

    Args:
        name: The name of the model.
        kernels: "xnnpack", "builtin" or "reference".
        batch: Examples in each inference.
        num_threads: Threads of the interpreter.
        mean_ms: The mean time of an inference (`invoke` alone) in milliseconds; None if it was not measured.
        num_runs: The number of timed inferences.
        reason: Why it was not measured.
    """

    name: str
    kernels: str
    batch: int
    num_threads: int
    mean_ms: float | None = None
    num_runs: int = 0
    reason: str | None = None

    @property
    def examples_per_second(self) -> float | None:
        """Examples per second; None if it was not measured."""
        return 1000 * self.batch / self.mean_ms if self.mean_ms else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "examples_per_second": self.examples_per_second}


@dataclass(frozen=True, kw_only=True)
class TimeRatio:
    """The time of `against` on `kernels` divided by that of `model` on `model_kernels`: 2 means twice as long.

    Args:
        model: The model in the denominator.
        model_kernels: Its kernels.
        against: The model in the numerator.
        kernels: Its kernels.
        ratio: The ratio of the times.
        low: The lower end of the confidence interval; None if there were too few blocks.
        high: Its upper end.
        confidence: The confidence level of the interval.
        reason: Why there is no interval.
    """

    model: str
    model_kernels: str
    against: str
    kernels: str
    ratio: float
    low: float | None
    high: float | None
    confidence: float
    reason: str | None

    def to_text(self) -> str:
        """Return one line for the terminal."""
        if self.model == self.against:
            pair = f"{self.against}, {self.kernels} / {self.model_kernels}"
        else:
            pair = f"{self.against} / {self.model}, {self.kernels}"
        interval = f"no interval: {self.reason}"
        if self.low is not None and self.high is not None:
            interval = f"{self.low:.3f} to {self.high:.3f} ({self.confidence:.0%})"
        return f"{pair}: {self.ratio:.3f}x the time, {interval}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord(NotebookRecord):
    """The latencies of one or more models, and their ratios to the first model.

    Attributes:
        backend: The backend that ran the models, such as "local".
        num_threads: Threads of the interpreter.
        models: The timings of each model with each set of kernels.
        ratios: The time of each other model relative to the first one with the same kernels, and of the first one with
            other kernels relative to it with `kernels[0]`.
        throughput: Examples per second at the batch sizes and numbers of threads that were requested.
        machine: The machine and the versions of the software that ran the models.
    """

    backend: str
    num_threads: int
    models: tuple[ModelTimes, ...]
    ratios: tuple[TimeRatio, ...]
    throughput: tuple[Throughput, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "backend": self.backend,
            "num_threads": self.num_threads,
            "models": [model.to_dict() for model in self.models],
            "ratios": [dict(vars(ratio)) for ratio in self.ratios],
            "throughput": [item.to_dict() for item in self.throughput],
            "machine": self.machine,
        }

    def to_record(self) -> dict[str, Any]:
        """Return the keys for a record: "benchmark", and "instructions" of the first model if they were counted."""
        first = self.models[0].instructions
        return {"benchmark": self.to_dict(), **({} if first is None else {"instructions": first})}

    @property
    def input_mismatches(self) -> dict[str, str]:
        """{model that could not use the user's examples: why}."""
        return {model.name: model.inputs_reason for model in self.models if model.inputs_reason is not None}

    def to_text(self) -> str:
        """Return text for the terminal: a table, the ratios, and the most expensive ops."""
        timed = [model for model in self.models if model.mean_ms is not None]
        lines = _table(timed, self.num_threads) if timed else []
        lines += [
            f"{model.name}, {model.kernels}: {count['instructions']:,} instructions per inference on {backend} "
            f"({count['note']})"
            for model in self.models
            for backend, count in (model.instructions or {}).items()
        ]
        for model in self.models:
            if model.costs is not None and model.mean_ms is None:
                lines += [*([""] if lines else []), *_costs_text(model, self.backend)]
        lines += [ratio.to_text() for ratio in self.ratios]
        lines += [_work_text(model) for model in self.models if model.workload is not None]
        lines += [_memory_text(model) for model in timed if model.costs is not None]
        lines += ["", *_throughput_lines(self.throughput)] if self.throughput else []
        for model in timed:
            lines += ["", *_expensive(model)]
        return "\n".join(lines)

    def notebook_tables(self) -> list[NotebookTable]:
        """Return a row for each model and its kernels, then the ratios."""
        rows = [
            [
                model.name,
                model.kernels,
                model.time_reason or "",
                f"{model.model_bytes:,}",
                *map(_ms, (model.mean_ms, model.p50_ms, model.p90_ms, model.p99_ms)),
            ]
            for model in self.models
        ]
        columns = ("model", "kernels", "", "bytes", "mean ms", "p50 ms", "p90 ms", "p99 ms")
        caption = f"{self.backend}, {self.num_threads} thread{'' if self.num_threads == 1 else 's'}"
        tables = [NotebookTable(columns=columns, rows=rows, caption=caption, left=3)]
        ratios = [ratio.to_text().split(": ", 1) for ratio in self.ratios]
        return [*tables, NotebookTable(rows=ratios, left=2, caption="ratios of times")] if ratios else tables


_COLUMNS = ("init", "first", "mean", "std", "p50", "p90", "p99", "min", "max", "overhead")


def _table(models: Sequence[ModelTimes], num_threads: int) -> list[str]:
    rows = [["model", "kernels", *_COLUMNS, "runs"]]
    for model in models:
        values = (
            model.initialization_ms,
            model.first_ms,
            model.mean_ms,
            model.std_ms,
            model.p50_ms,
            model.p90_ms,
            model.p99_ms,
            model.min_ms,
            model.max_ms,
            model.overhead_ms,
        )
        rows.append([model.name, model.kernels, *map(_ms, values), f"{model.num_runs:,}"])
    threads = f"{num_threads} thread{'' if num_threads == 1 else 's'}"
    inputs_by_model = {model.name: model.inputs for model in models}
    messages = sorted(set(inputs_by_model.values()))
    inputs = (
        messages[0] if len(messages) == 1 else "; ".join(f"{name}: {what}" for name, what in inputs_by_model.items())
    )
    note = f"ms per inference, {threads}; times of the interpreter alone, without `overhead`; inputs: {inputs}"
    return [note, *aligned(rows, left=2)]


def _work_text(model: ModelTimes) -> str:
    """Return the counted work of a model, and its throughput if it was timed, as one line."""
    assert model.workload is not None
    work, rate = model.workload, model.examples_per_second
    parts = [f"{work.multiply_adds:,} multiply-adds and {work.bytes_moved:,} bytes moved per inference (counted)"]
    parts += [f"{work.intensity:.3g} multiply-adds per byte"] if work.intensity else []
    parts += [f"{rate:,.0f} examples per second at batch size {work.batch}"] if rate else []
    parts += [f"without {', '.join(work.unknown)}"] if work.unknown else []
    return f"{model.name}{f', {model.kernels}' if model.kernels else ''}: {'; '.join(parts)}"


def _memory_text(model: ModelTimes) -> str:
    """Return the memory of a model that was timed as one line."""
    assert model.costs is not None
    costs = model.costs.to_dict()
    items = [f"{name} {text}" for name, text in cost_rows({**costs, "figures": {}, "unaccelerated": {}, "caveats": ()})]
    items += [costs["memory_reason"]] if costs["memory_reason"] else []
    return f"{model.name}, {model.kernels}: {'; '.join([*items, *costs['notes']])}"


def _throughput_lines(throughput: Sequence[Throughput]) -> list[str]:
    """Return a table with a row for each model, kernels and batch size, and a column for each number of threads."""
    threads = list(dict.fromkeys(item.num_threads for item in throughput))
    cells = {(item.name, item.kernels, item.batch, item.num_threads): item for item in throughput}
    rows = [["model", "kernels", "batch", *(f"{count} thread{'' if count == 1 else 's'}" for count in threads)]]
    for name, kernels, batch in dict.fromkeys(key[:3] for key in cells):
        rates = [cells[name, kernels, batch, count].examples_per_second for count in threads]
        rows.append([name, kernels, f"{batch:,}", *("-" if rate is None else f"{rate:,.0f}" for rate in rates)])
    reasons = dict.fromkeys(f"{item.name}, batch {item.batch}: {item.reason}" for item in throughput if item.reason)
    return ["examples per second by batch size and threads", *aligned(rows, left=2), *reasons]


def _expensive(model: ModelTimes) -> list[str]:
    title = f"{model.name}, {model.kernels}"
    if model.ops is None:
        return [f"{title}: no time per op: {model.ops_reason}"]
    most_expensive = sorted(model.ops, key=lambda op: -op.ms)[:NUM_EXPENSIVE_OPS]
    lines = [f"{title}: the most expensive of {len(model.ops)} ops, by LiteRT's profiler"]
    for op in most_expensive:
        layer = op.keras_layer or ("" if op.index is not None else "(several ops)")
        position = "" if op.index is None else f"#{op.index} "
        lines.append(f"  {op.fraction:6.1%}  {_ms(op.ms)} ms  {position}{op.name}  {layer}".rstrip())
    return lines


def _costs_text(model: ModelTimes, backend: str) -> list[str]:
    assert model.costs is not None
    costs = model.costs.to_dict()
    accelerated = f"{model.delegated_ops} of {model.total_ops} ops accelerated" if model.total_ops is not None else ""
    rows = [("size", f"{model.model_bytes:,} bytes"), ("ops", accelerated), *cost_rows(costs)]
    if costs["memory_reason"]:
        rows.append(("memory", costs["memory_reason"]))
    op_cycles = {op: figures["cycles"] for op, figures in costs["op_figures"].items() if "cycles" in figures}
    most_expensive = sorted(op_cycles, key=lambda op: -op_cycles[op])[:NUM_EXPENSIVE_OPS]
    rows += [("cycles", f"{op_cycles[op]:,} ({costs['how']}) {op}") for op in most_expensive]
    return [f"{model.name} on {backend}", *(f"  {name:<18} {text}" for name, text in rows if text)]


def benchmark_requirements(record: BenchmarkRecord, require: CostRequireConfig) -> dict[str, list[Requirement]]:
    """Return for each model every bound of `require`, with the value and the verdict."""
    results: dict[str, list[Requirement]] = {}
    for model in record.models:
        costs = {
            "memory_reason": "this backend reports no memory",
            **({} if model.costs is None else model.costs.to_dict()),
            "total_ops": model.total_ops,
            "delegated_ops": model.delegated_ops,
        }
        # Bounds apply to each set of kernels.
        measured = Measured(name=model.name, times=model.to_dict(), backend=record.backend)
        items = [*cost_requirements(costs, record.backend, require), *figure_requirements(measured, require)]
        results.setdefault(model.name, []).extend(items)
    return results


def check_benchmark_requirements(record: BenchmarkRecord, require: CostRequireConfig) -> None:
    """Raise RequirementError with every bound of `require` that a model misses, or that cannot be checked."""
    missed = [
        f"{name}: {missed_sentence(item)}"
        for name, items in benchmark_requirements(record, require).items()
        for item in items
        if not item.holds
    ]
    if missed:
        raise RequirementError("; ".join(missed), field="require", got=tuple(missed))


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.1 or not value else f"{value:.3g}"

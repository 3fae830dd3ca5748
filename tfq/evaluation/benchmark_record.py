# SPDX-License-Identifier: Apache-2.0
"""What a benchmark found, and how it reads on a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tfq.evaluation.op_costs import OpCost
from tfq.text_table import aligned

MOST_EXPENSIVE = 5


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    """One model on one kind of kernels, in milliseconds; None, and a reason beside it, where nothing was measured.

    inputs: what it was fed; inputs_reason: why not the examples that were given.
    initialization_ms: to make and allocate an interpreter, median of up to five. first_ms: its first inference.
    mean_ms, std_ms, percentiles, min_ms, max_ms, quantiles_ms (0 to 100 % in steps of 5): of `invoke` alone, over
        `num_runs` inferences. overhead_ms: what is ours of an inference, on top: inputs set, outputs fetched, the loop.
    total_ops, delegated_ops: ops, and those that XNNPACK took.
    ops: the time of each, in inferences of their own, measured as ops_by says.
    instructions: {backend: count} of an emulator: a count, not a time.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ops = None if self.ops is None else [op.to_dict() for op in self.ops]
        return {**vars(self), "quantiles_ms": self.quantiles_ms and list(self.quantiles_ms), "ops": ops}


@dataclass(frozen=True, kw_only=True)
class TimeRatio:
    """The time of `against` on `kernels` over that of `model` on `model_kernels`: 2 takes twice as long.

    low, high: the interval of `confidence`; None where there were too few blocks, and then `reason` says so.
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
        """For the terminal: one line."""
        if self.model == self.against:
            pair = f"{self.against}, {self.kernels} / {self.model_kernels}"
        else:
            pair = f"{self.against} / {self.model}, {self.kernels}"
        interval = f"no interval: {self.reason}"
        if self.low is not None and self.high is not None:
            interval = f"{self.low:.3f} to {self.high:.3f} ({self.confidence:.0%})"
        return f"{pair}: {self.ratio:.3f}x the time, {interval}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """The latencies of one or more models, and their ratios to the first model.

    Attributes:
        backend: The backend that ran the models, such as "local".
        num_threads: Threads of the interpreter.
        models: The timings of each model with each set of kernels.
        ratios: The time of each other model relative to the first one with the same kernels, and of the first one with
            other kernels relative to it with `kernels[0]`.
        machine: The machine and the versions of the software that ran the models.
    """

    backend: str
    num_threads: int
    models: tuple[ModelTimes, ...]
    ratios: tuple[TimeRatio, ...]
    machine: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "backend": self.backend,
            "num_threads": self.num_threads,
            "models": [model.to_dict() for model in self.models],
            "ratios": [dict(vars(ratio)) for ratio in self.ratios],
            "machine": self.machine,
        }

    def to_record(self) -> dict[str, Any]:
        """The keys of a record: "benchmark", and "instructions" of the first model where an emulator counted them."""
        first = self.models[0].instructions
        return {"benchmark": self.to_dict(), **({} if first is None else {"instructions": first})}

    @property
    def unfitting(self) -> dict[str, str]:
        """{model that did not take the examples that were given: why}."""
        return {model.name: model.inputs_reason for model in self.models if model.inputs_reason is not None}

    def to_text(self) -> str:
        """For the terminal: a table, the ratios, the most expensive ops."""
        timed = [model for model in self.models if model.mean_ms is not None]
        lines = _table(timed, self.num_threads) if timed else []
        lines += [
            f"{model.name}, {model.kernels}: {count['instructions']:,} instructions an inference on {backend} "
            f"({count['note']})"
            for model in self.models
            for backend, count in (model.instructions or {}).items()
        ]
        lines += [ratio.to_text() for ratio in self.ratios]
        for model in timed:
            lines += ["", *_expensive(model)]
        return "\n".join(lines)


_COLUMNS = ("init", "first", "mean", "std", "p50", "p90", "p99", "min", "max", "ours")


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
    fed = {model.name: model.inputs for model in models}
    messages = sorted(set(fed.values()))
    inputs = messages[0] if len(messages) == 1 else "; ".join(f"{name}: {what}" for name, what in fed.items())
    note = f"ms an inference, {threads}; the interpreter alone, and `ours` on top of it; inputs: {inputs}"
    return [*aligned(rows, left=2), note]


def _expensive(model: ModelTimes) -> list[str]:
    title = f"{model.name}, {model.kernels}"
    if model.ops is None:
        return [f"{title}: no time of each op: {model.ops_reason}"]
    dearest = sorted(model.ops, key=lambda op: -op.ms)[:MOST_EXPENSIVE]
    lines = [f"{title}: the most expensive of {len(model.ops)} ops, by LiteRT's profiler"]
    for op in dearest:
        layer = op.keras_layer or ("" if op.index is not None else "(of no one op)")
        place = "" if op.index is None else f"#{op.index} "
        lines.append(f"  {op.share:6.1%}  {_ms(op.ms)} ms  {place}{op.name}  {layer}".rstrip())
    return lines


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.1 or not value else f"{value:.3g}"

# SPDX-License-Identifier: Apache-2.0
"""Read access to the record of a run. Parts that the record does not have are empty; nothing is computed twice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfq.report.formatting import counts_instructions, is_number, model_label, plain

Record = Mapping[str, Any]

# The label of the model that the others are compared with.
REFERENCE = "float"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A model of the record.

    Attributes:
        name: Its name in the record, such as "ptq_int8".
        label: Its name for readers, such as "PTQ int8".
        series: Its position in the record, which decides its color.
        file: The name of its .tflite file.
        evaluation: Part of the record; empty if it is missing. The same applies to all following attributes.
        audit: See docs/records.md.
        portability: The table of its backends; see docs/records.md.
        verification: See docs/records.md.
        qat_parity: See docs/records.md.
        digest: See docs/records.md.
        sha256: Of the file and of the data.
    """

    name: Any
    label: str
    series: int
    file: Any
    evaluation: Record
    audit: Record
    portability: Record
    verification: Record
    qat_parity: Record
    digest: Record
    sha256: Record

    @property
    def backends(self) -> Record:
        """The rows of the portability table by backend."""
        return part(self.portability, "rows")

    @property
    def instructions(self) -> Record:
        """The instructions by backend that counts them, or {"not_run": the reason}."""
        return {
            backend: row.get("instructions") or {"not_run": reason}
            for backend, row in self.backends.items()
            if ((reason := row.get("instructions_reason") or row.get("reason") or "") and counts_instructions(backend))
            or row.get("instructions")
        }


def models_of(record: Record) -> list[Reported]:
    """Return all models of the record, in its order."""
    return [
        Reported(
            name=model.get("name", "?"),
            label=model_label(model.get("name", "?")),
            series=series,
            file=model.get("file"),
            evaluation=part(model, "evaluation"),
            audit=part(model, "audit"),
            portability=part(model, "portability"),
            verification=part(model, "verification"),
            qat_parity=part(model, "qat_parity"),
            digest=part(model, "digest"),
            sha256=part(model, "sha256"),
        )
        for series, model in enumerate(record.get("models") or [])
    ]


def reference_of(models: Sequence[Reported]) -> Reported | None:
    """Return the float model, or None if the record has none."""
    return next((model for model in models if model.label == REFERENCE), None)


def part(record: Record, key: str) -> Record:
    """Return an object of the record; empty if it is missing or null."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def stages_of(record: Record) -> list[Record]:
    """Return the stages of the record, in the order in which they ran."""
    return [stage for stage in record.get("stages") or [] if isinstance(stage, Mapping)]


def backends_of(models: Sequence[Reported], key: str) -> list[str]:
    """Return the backends for which any model has an entry in `key` ("backends" or "instructions"), each once."""
    return list(dict.fromkeys(backend for model in models for backend in getattr(model, key)))


def benchmark_of(record: Record) -> tuple[Record, list[Record]]:
    """Return the benchmark of the record, and those of its models that have a median."""
    benchmark = part(record, "benchmark")
    timed = [model for model in benchmark.get("models") or [] if is_number(model.get("p50_ms"))]
    return benchmark, timed


def series_of(record: Record, name: Any) -> int:
    """Return the position of the model of that name in the record; one past the last if it is not there."""
    names = [model.get("name") for model in record.get("models") or []]
    return names.index(name) if name in names else len(names)


def title_of(record: Record) -> str:
    """Return the heading of the report: "tfq run: digits_cnn"."""
    command, model = plain(record.get("command", "run")), plain(part(record, "config").get("model") or "")
    # The grid of a sweep may name the models.
    name = model.rstrip("/").rpartition("/")[2] or ("" if isinstance(record.get("points"), list) else "a model")
    return f"tfq {command}: {name}" if name else f"tfq {command}"


def warnings_of(record: Record) -> list[str]:
    """Return each warning once: those of the run, then those of the evaluations, with the model's label."""
    messages = [plain(warning) for warning in record.get("warnings") or []]
    for model in models_of(record):
        for warning in model.evaluation.get("warnings") or []:
            if plain(warning) not in messages:
                messages.append(f"{model.label}: {plain(warning)}")
    return list(dict.fromkeys(messages))


def data_notes_of(record: Record) -> list[str]:
    """Return each sentence about how the splits were made once, such as that val was held out of train."""
    notes = [part(stage, "details").get("data_notes") for stage in stages_of(record)]
    return list(dict.fromkeys(plain(note) for item in notes if isinstance(item, list) for note in item))


BENCHMARK, EVALUATION = "benchmark", "evaluation"


def self_tests_of(record: Record) -> list[Mapping[str, Any]]:
    """Return the self-tests of the record's bundle; [] if there are none."""
    tests = part(record, "bundle").get("self_tests")
    return [test for test in tests if isinstance(test, Mapping)] if isinstance(tests, Sequence) else []


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """The one latency of each model that all parts of a report show.

    Attributes:
        source: BENCHMARK if the run timed its models in turns, else EVALUATION.
        medians_ms: Model name -> median milliseconds of one inference on this machine.
        rows: Model name -> the entry of the benchmark that the median is from; empty without a benchmark.
        reasons: Model name -> why there is no median.
    """

    source: str
    medians_ms: Mapping[Any, float]
    rows: Mapping[Any, Record] = field(default_factory=dict)
    reasons: Mapping[Any, str] = field(default_factory=dict)


def latencies_of(record: Record) -> Latencies:
    """Return the latency to show for each model.

    A run measures latency twice: while it evaluates a model, and in the benchmark, which times all models in turns. The
    benchmark is the better comparison. If it has any time, only its times are shown, so that no two are mixed. If it
    timed several kernels, the times are those of the kernels that the evaluation used.
    """
    benchmark, timed = benchmark_of(record)
    medians: dict[Any, float] = {}
    rows: dict[Any, Record] = {}
    reasons: dict[Any, str] = {}
    untimed = {item.get("name"): item.get("time_reason") for item in benchmark.get("models") or []}
    for model in models_of(record):
        if timed:
            row = _benchmark_row(model, timed)
            if row is None:
                reasons[model.name] = plain(untimed.get(model.name) or "not in the benchmark")
            else:
                rows[model.name], medians[model.name] = row, row["p50_ms"]
        elif is_number(median := model.evaluation.get("latency_p50_ms")):
            medians[model.name] = median
        else:
            reasons[model.name] = plain(model.evaluation.get("latency_reason") or "")
    return Latencies(source=BENCHMARK if timed else EVALUATION, medians_ms=medians, rows=rows, reasons=reasons)


def _benchmark_row(model: Reported, timed: Sequence[Record]) -> Record | None:
    rows = [row for row in timed if row.get("name") == model.name]
    kernels = "builtin" if model.evaluation.get("xnnpack") is False else "xnnpack"
    return next((row for row in rows if row.get("kernels") == kernels), rows[0] if rows else None)


def histories_of(stages: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    """Yield (step, its training history) of all stages: "train", then each step of a compression, such as "qat"."""
    for stage in stages:
        history = part(part(stage, "details"), "history")
        steps = {step: curves for step, curves in history.items() if isinstance(curves, Mapping)}
        if steps:
            yield from ((plain(step), curves) for step, curves in steps.items())
        elif history:
            yield plain(stage.get("name", "?")), history


def curves_of(history: Record) -> dict[str, list[float]]:
    """Return the curves of a training history that have at least one value: name -> a value for each epoch."""
    return {
        plain(name): values
        for name, values in history.items()
        if isinstance(values, list) and values and all(map(is_number, values))
    }


def further_epochs(record: Record, model: Reported) -> dict[str, int]:
    """Return step -> epochs that `model` was trained for after the float model's training: {"prune": 8, "qat": 8}.

    Empty for the float model and for models that were only converted from it.
    """
    if model.label == REFERENCE or str(model.name).startswith("ptq_"):
        return {}
    steps: dict[str, int] = {}
    for stage in stages_of(record):
        history = part(part(stage, "details"), "history")
        for step, curves in history.items():
            if isinstance(curves, Mapping):
                steps[plain(step)] = max((len(values) for values in curves_of(curves).values()), default=0)
    return {step: epochs for step, epochs in steps.items() if epochs}

# SPDX-License-Identifier: Apache-2.0
"""Read the figures of a model in a record: each function yields (place, reading) for each place where it has one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.layer_digest import num_float_ops
from tfq.evaluation.per_example import ExampleResults, OutputNoise
from tfq.evaluation.portability_record import NOT_COUNTED
from tfq.evaluation.record import IDENTICAL, NO_DIRECTION

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """A figure in a record.

    Attributes:
        value: The figure; None if it is missing.
        reason: Why it is missing.
        interval: Its 95% interval, or None.
        direction: Which values are better; None: as registered.
        unit: Its unit; "" as registered.
        pairs: The results of each example that the value is the mean of, or None.
        ungated: Why this figure cannot be compared with that of another record; "" if it can.
        depends_on_cpu: Whether it cannot be compared with that of a record from another CPU.
        is_unsupported: Whether the backend ran the model, and never reports this figure.
    """

    value: float | None
    reason: str | None = None
    interval: tuple[float, float] | None = None
    direction: Direction | None = None
    unit: str = ""
    pairs: Any = None
    ungated: str = ""
    depends_on_cpu: bool = False
    is_unsupported: bool = False

    def __post_init__(self) -> None:
        """Raise InputError if the value is not a number, in a damaged record."""
        if self.value is not None and (isinstance(self.value, bool) or not isinstance(self.value, (int, float))):
            raise InputError(
                f"a record is damaged: a figure is {str(self.value)[:50]!r}, expected a number. Write the record again",
                field="record",
                expected="a number",
                got=type(self.value).__name__,
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The parts of a record about one model; empty if the record does not have them.

    Attributes:
        name: The model's name in the record, such as "ptq_int8".
        file: The path or the name of its file; "" if unknown.
        evaluation: `EvaluationRecord.to_dict()`.
        rows: `BackendRow.to_dict()` of each backend of the portability table.
        digest: `digest_of` the file.
        times: `ModelTimes.to_dict()`, of a benchmark.
        ratios: The `TimeRatio` entries of a benchmark in which the model is the numerator.
        backend: The backend of the benchmark.
        sha256: The hashes of the model, the data and the reference.
        data: The settings of the data.
        settings: The settings of the evaluation.
        cpu: The model of the CPU and its extensions, or None.
    """

    name: str
    file: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    digest: Mapping[str, Any] = field(default_factory=dict)
    times: Mapping[str, Any] = field(default_factory=dict)
    ratios: tuple[Mapping[str, Any], ...] = ()
    backend: str = ""
    sha256: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    cpu: str | None = None

    def evaluations(self) -> Iterator[tuple[str, Mapping[str, Any], str]]:
        """Yield (place, evaluation, reason) of the evaluation itself (place "") and of each other backend ("on gpu").

        The evaluation is empty if the model did not run there, for the reason.
        """
        if self.evaluation:
            yield "", self.evaluation, ""
        for name, row in self.rows.items():
            if name != self.evaluation.get("backend"):
                yield f"on {name}", row.get("evaluation") or {}, str(row.get("reason") or "it did not run")


# The item of a process's peak memory that it had before the model was loaded.
_BEFORE = "before_the_model"
Read = Callable[[Measured], Iterator[tuple[str, Reading]]]


def per_example_of(evaluation: Mapping[str, Any]) -> ExampleResults | None:
    """Return the results for each example of an evaluation; None if its record has none.

    Raises:
        InputError: They are damaged.
    """
    values = evaluation.get("per_example")
    return ExampleResults.from_dict(values) if isinstance(values, Mapping) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricPairs:
    """What pairs a metric of two evaluations of the same examples; both arrays are None if the record has neither.

    Attributes:
        value: The metric; None if it is missing.
        num_examples: The number of examples.
        scores: (n,) the score of each example.
        replicates: The values for the draws of a bootstrap.
    """

    value: float | None
    num_examples: int
    scores: NDArray | None = None
    replicates: NDArray | None = None


def metric_pairs(results: ExampleResults | None, metric: str, value: float | None) -> MetricPairs | None:
    """Return what a record keeps to pair a metric; None if it has no results for each example."""
    if results is None:
        return None
    return MetricPairs(
        value=value,
        num_examples=results.num_examples,
        scores=results.scores.get(metric),
        replicates=results.replicates.get(metric),
    )


def accuracy(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the metric against the labels, of the evaluation and of each other backend."""
    for place, evaluation, reason in measured.evaluations():
        facts = (evaluation.get("metrics") or {}).get(evaluation.get("metric")) or {}
        results, undirected = per_example_of(evaluation), facts.get("direction") not in ("higher", "lower")
        yield (
            place,
            Reading(
                value=evaluation.get("accuracy"),
                reason=evaluation.get("accuracy_reason") or reason,
                interval=_pair(facts.get("interval")),
                direction=None if undirected else facts["direction"],
                unit=facts.get("unit") or "",
                pairs=metric_pairs(results, str(evaluation.get("metric")), evaluation.get("accuracy")),
                ungated=NO_DIRECTION if facts and undirected else "",
            ),
        )


def other_scores(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the metrics other than the main one, by name."""
    evaluation = measured.evaluation
    results = per_example_of(evaluation)
    for name, value in (evaluation.get("scores") or {}).items():
        facts = (evaluation.get("metrics") or {}).get(name) or {}
        if name != evaluation.get("metric") and facts.get("direction") in ("higher", "lower"):
            yield (
                f"{name}",
                Reading(
                    value=value,
                    interval=_pair(facts.get("interval")),
                    direction=facts["direction"],
                    unit=facts.get("unit") or "",
                    pairs=metric_pairs(results, name, value),
                ),
            )


def output_accuracies(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the metric of each output with separate labels."""
    for output in measured.evaluation.get("outputs") or ():
        if output.get("metric"):
            undirected = output.get("direction") not in ("higher", "lower")
            yield (
                f"of {output['name']}",
                Reading(
                    value=output.get("accuracy"),
                    unit=output.get("unit") or "",
                    direction=None if undirected else output["direction"],
                    ungated=NO_DIRECTION if undirected else "",
                ),
            )


def agreement_with_reference(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the agreement with the reference, of the evaluation and of each other backend."""
    for place, evaluation, reason in measured.evaluations():
        results = per_example_of(evaluation)
        own = None if results is None else results.outputs.get(_output_with(evaluation, "agreement", "agreement"))
        yield (
            place,
            Reading(
                value=evaluation.get("agreement"),
                reason=evaluation.get("agreement_reason") or reason,
                pairs=None if own is None else own.agrees,
            ),
        )


def sqnr(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the SQNR of the worst output; infinity if all outputs are identical to those of the reference."""
    for place, evaluation, reason in measured.evaluations():
        name = _output_with(evaluation, "sqnr_db", "output_sqnr_db")
        results = per_example_of(evaluation)
        noise = None if results is None or name not in results.outputs else results.outputs[name].noise_db
        reference = measured.sha256.get("reference")
        value, missing = evaluation.get("output_sqnr_db"), evaluation.get("output_sqnr_db_reason")
        if value is None and missing == IDENTICAL:
            value = float("inf")
        yield (
            place,
            Reading(
                value=value,
                reason=missing or reason,
                pairs=None if noise is None else OutputNoise(output=name, reference=reference, noise_db=noise),
            ),
        )


def _output_with(evaluation: Mapping[str, Any], key: str, figure: str) -> str:
    """Return the name of the output that a figure of the evaluation comes from; "" without outputs.

    It is the worst output, except if `evaluation.output` chose one for the agreement.
    """
    outputs = evaluation.get("outputs") or ()
    return next((str(item["name"]) for item in outputs if item.get(key) == evaluation.get(figure)), "")


def size(key: str) -> Read:
    """Return a reader of a size of the file: "model_bytes" or "gzip_bytes"."""

    def read(measured: Measured) -> Iterator[tuple[str, Reading]]:
        holder = measured.evaluation if key in measured.evaluation else measured.times
        if key in holder:
            yield "", Reading(value=holder[key])

    return read


def _costs_by_place(measured: Measured) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield (place, costs, reason), of evaluations and of the backend of a benchmark."""
    yield from measured.evaluations()
    if measured.times:
        costs = measured.times.get("costs") or measured.times
        yield f"on {measured.backend}", costs, str(measured.times.get("time_reason") or "")


def total_ops(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the number of ops in the file."""
    if measured.digest:
        yield "", Reading(value=len(measured.digest["layers"]))


def float_ops(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the number of ops that compute in floating point."""
    if measured.digest:
        yield "", Reading(value=num_float_ops(measured.digest))


def accelerated_fraction(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the fraction of the ops on an accelerator, of each backend."""
    for place, costs, reason in _costs_by_place(measured):
        total, delegated = costs.get("total_ops"), costs.get("delegated_ops")
        value = delegated / total if total and delegated is not None else None
        yield place, Reading(value=value, reason=reason or "the backend does not report which ops it accelerates")


def memory(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the bytes for each purpose, of each backend that reports them; without the memory of processes."""
    for place, costs, reason in _costs_by_place(measured):
        sizes = costs.get("memory_bytes") or {}
        for purpose, size in sizes.items():
            if "." not in purpose and f"{purpose}.{_BEFORE}" not in sizes:
                # The kernels of another CPU pack weights into other blocks.
                is_measured = costs.get("how") == "measured"
                yield f"{purpose} {place}".strip(), Reading(value=size, depends_on_cpu=is_measured)
        if not costs:
            yield place, Reading(value=None, reason=reason)


def process_memory(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the memory that a process needs for the model: its peak minus what it had before."""
    for place, costs, _ in _costs_by_place(measured):
        sizes = costs.get("memory_bytes") or {}
        for purpose, size in sizes.items():
            before = sizes.get(f"{purpose}.{_BEFORE}")
            if before is not None:
                yield f"{purpose} {place}".strip(), Reading(value=size - before, depends_on_cpu=True)


def costs(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the other costs of each backend, by name."""
    for place, costs, _ in _costs_by_place(measured):
        for name, value in (costs.get("figures") or {}).items():
            yield f"{name} {place}".strip(), Reading(value=value)


def instructions(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the instructions of one inference, of each backend that counts them."""
    for name, row in measured.rows.items():
        counted = row.get("instructions")
        if counted:
            yield f"on {name}", Reading(value=counted["instructions"])
        elif row.get("status") != "ran":
            yield f"on {name}", Reading(value=None, reason=row.get("reason"))
        else:
            reason = row.get("instructions_reason")
            yield f"on {name}", Reading(value=None, reason=reason, is_unsupported=reason == NOT_COUNTED)
    for name, counted in (measured.times.get("instructions") or {}).items():
        yield f"on {name}", Reading(value=counted["instructions"])


def difference_from_xnnpack(key: Literal["lsb", "fraction"]) -> Read:
    """Return a reader of the largest difference in LSB, or of the fraction of values that differ, of each backend."""

    def read(measured: Measured) -> Iterator[tuple[str, Reading]]:
        for name, row in _computing(measured):
            compared = row.get("difference") or {}
            value = compared.get("max_abs_error_lsb")
            if key == "fraction" and compared.get("compared"):
                value = compared["num_different"] / compared["compared"]
            reason = row.get("reason") or row.get("difference_reason") or "the outputs are not quantized"
            yield f"on {name}", Reading(value=value, reason=reason)

    return read


def _computing(measured: Measured) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of backends that compute outputs; estimators do not."""
    yield from ((name, row) for name, row in measured.rows.items() if row.get("how") != "estimated")


def same_class(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the fraction of examples with XNNPACK's class, of each backend."""
    for name, row in _computing(measured):
        reason = row.get("reason") or row.get("agreement_reason")
        yield f"on {name}", Reading(value=row.get("agreement"), reason=reason)


def clipped_inputs(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the fraction of the input values outside of the quantized range."""
    value = measured.evaluation.get("clipped_input_fraction")
    if value is not None:
        yield "", Reading(value=value)


def robustness(key: str) -> Read:
    """Return a function that yields a mean over corrupted inputs: "mean" (the metric), "drop" or "extra_drop"."""

    def read(measured: Measured) -> Iterator[tuple[str, Reading]]:
        evaluation = measured.evaluation
        values = evaluation.get("robustness") or {}
        item = values.get(key) or {}
        low, high = item.get("low"), item.get("high")
        facts = (evaluation.get("metrics") or {}).get(evaluation.get("metric")) or {}
        direction = facts.get("direction") if key == "mean" else None
        missing = values.get("reason") or f"the evaluation on corrupted inputs has no {key.replace('_', ' ')}"
        missing = missing if values else str(evaluation.get("robustness_reason"))
        if values or evaluation.get("robustness_reason"):
            yield (
                "",
                Reading(
                    value=item.get("value"),
                    reason=None if item.get("value") is not None else missing,
                    interval=None if low is None or high is None else (low, high),
                    direction=direction if direction in ("higher", "lower") else None,
                    unit=facts.get("unit", ""),
                ),
            )

    return read


NOT_SIDE_BY_SIDE = (
    "times of two sessions cannot be compared: the speed of a machine changes by more than a model does. Compare "
    "times side by side (comparison.baseline_model), or gate instructions"
)


def latency(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the median time of an inference, which cannot be compared with that of another session."""
    for holder, key, reason in (
        (measured.evaluation, "latency_p50_ms", "latency_reason"),
        (measured.times, "p50_ms", "time_reason"),
    ):
        if key in holder:
            yield "", Reading(value=holder[key], reason=holder.get(reason), ungated=NOT_SIDE_BY_SIDE)
            return


def time(key: str) -> Read:
    """Return a reader of a time, or of another measure of speed, in a benchmark."""

    def read(measured: Measured) -> Iterator[tuple[str, Reading]]:
        if measured.times.get(key) is not None:
            yield "", Reading(value=measured.times[key], ungated=NOT_SIDE_BY_SIDE)

    return read


def latency_ratio(measured: Measured) -> Iterator[tuple[str, Reading]]:
    """Yield the time relative to each model that the same benchmark timed in turns."""
    for ratio in measured.ratios:
        interval = _pair([ratio.get("low"), ratio.get("high")])
        yield (
            f"to {ratio['model']}, {ratio['kernels']}",
            Reading(
                value=ratio["ratio"],
                interval=interval,
                ungated="" if interval else str(ratio.get("reason") or "it has no interval"),
                depends_on_cpu=not ratio.get("same_session"),
            ),
        )


def _pair(values: Any) -> tuple[float, float] | None:
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        return None
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    return float(values[0]), float(values[1])

# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation, and checks of them against requirements."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tfq.evaluation.costs import cost_rows
from tfq.evaluation.metric_text import paired_text, score_text
from tfq.evaluation.record_tables import confusions_text, metric_tables
from tfq.notebook import NotebookRecord, NotebookTable
from tfq.text_table import aligned

NO_REFERENCE = "there is no reference model"
IDENTICAL = "the outputs are identical to the reference's, so there is no noise"
NO_DIRECTION = "the metric does not declare whether higher or lower is better"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(NotebookRecord):
    """The results of evaluating a flatbuffer.

    A missing number is None. The field with the suffix `_reason`, or `skipped`, says why it is missing. No number is
    NaN or infinite: an output without any noise has output_sqnr_db None with the reason "identical".

    Attributes:
        accuracy: The value of `metric` against the labels, in the metric's unit.
        accuracy_reason: Why there is no accuracy.
        metric: The name of the metric.
        agreement: Fraction of examples (of positions, in a segmentation) with the reference's class. It is the lowest
            of the outputs that predict a class (see `tfq.evaluation.classes`), or that of `evaluation.output`.
        agreement_reason: Why there is no agreement.
        output_sqnr_db: Signal-to-quantization-noise ratio of the worst output against the reference, in dB.
        output_sqnr_db_reason: Why there is none.
        reference_accuracy: The accuracy of the reference.
        accuracy_drop: How much worse the model is than the reference, in the metric's unit; positive if it is worse.
        accuracy_difference: The accuracy minus the reference's, with a paired 95% interval (`PairedDifference`).
        accuracy_difference_reason: Why there is none.
        num_examples: Number of evaluated examples.
        compared: Number of examples compared with the reference.
        missing: Number of examples that were requested but are not in the data.
        skipped: Measurement that was not made -> why.
        model_bytes: Size of the flatbuffer in bytes.
        gzip_bytes: Size after gzip compression, in bytes.
        latency_p50_ms: Median of the timed inferences at the model's batch size, interpreter only, in milliseconds.
        latency_p90_ms: 90th percentile of the same.
        latency_p99_ms: 99th percentile of the same.
        latency_reason: Why no latency was measured.
        num_threads: Threads of each interpreter.
        backend: The backend that ran the model, such as "local".
        xnnpack: Whether XNNPACK was used; None for a backend that does not run LiteRT's CPU kernels.
        total_ops: Number of ops; None if unknown.
        delegated_ops: Number of ops that XNNPACK or the backend's accelerator executed; None if unknown.
        clipped_input_fraction: Fraction of the input values that lie outside the quantized range by more than half a
            step; None if no input is quantized.
        unused_range_fraction: Fraction of the quantized input range that the data never reaches; None if no input is
            quantized.
        how: How the backend obtained its figures: "measured", "emulated" or "estimated".
        memory_bytes: Bytes by purpose, such as {"arena": 23_456}; None if the backend does not report them.
        memory_reason: Why there is no memory_bytes.
        figures: Other costs that the backend reports, by name and unit.
        op_figures: Costs of single ops: title of the op -> {name: value}.
        unaccelerated: Ops that the backend's accelerator leaves to the CPU: title of the op -> reason, or "".
        caveats: What the figures of this backend leave out or assume, for every model.
        metrics: Metric -> facts, of `metric`, the other metrics that the user chose, and those reported with them, such
            as top5: `title`, `direction` ("higher" or "lower" is better, None if not declared), `unit` (see
            `tfq.evaluation.metric`), `value`, `interval` ([low, high] of 95% confidence, or None), `reference`, `drop`,
            `difference` (`PairedDifference`, or None for `difference_reason`), `note` (how it was computed), and
            `table` and `reference_table` (`MetricTable`).
        scores: Metric -> value, of the metrics that could be computed.
        latency_mean_ms: Mean of the timed inferences.
        latency_std_ms: Sample standard deviation of the timed inferences.
        latency_first_ms: The first timed inference after the warm-up.
        outputs: For each output its comparison with the reference: name, sqnr_db, agreement, and a reason for each that
            is None. With labels for several outputs, also metric, unit, accuracy, reference_accuracy and accuracy_drop.
        per_example: The results for each example, packed (`tfq.evaluation.per_example`), so that a later evaluation can
            be compared with this one example by example. None if the backend computes no outputs.
        classes: The examples and the correct ones of each class, see `tfq.evaluation.class_differences`; None if the
            output does not predict a class, or without labels.
        classes_reason: Why there is none.
        differing_examples: Examples for which the model and the reference predict different classes, maps of classes or
            boxes, up to `evaluation.differing_examples`; see `class_differences`, `position_differences` and
            `detection.differences`.
        differing_examples_reason: Why there are none.
        robustness: The means over corrupted inputs (`tfq.robustness.record.ModelRobustness`).
        robustness_reason: Why there are none.
        warnings: The warnings that were issued during the evaluation.
        machine: The machine and the versions of the software that ran the model.
    """

    accuracy: float | None
    accuracy_reason: str | None
    metric: str
    agreement: float | None
    agreement_reason: str | None
    output_sqnr_db: float | None
    output_sqnr_db_reason: str | None
    reference_accuracy: float | None
    accuracy_drop: float | None
    num_examples: int
    compared: int
    missing: int
    skipped: dict[str, str]
    model_bytes: int
    gzip_bytes: int
    latency_p50_ms: float | None
    latency_p90_ms: float | None
    latency_p99_ms: float | None
    latency_reason: str | None
    num_threads: int
    backend: str
    xnnpack: bool | None
    total_ops: int | None
    delegated_ops: int | None
    clipped_input_fraction: float | None
    unused_range_fraction: float | None
    how: str = "measured"
    memory_bytes: dict[str, int] | None = None
    memory_reason: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    op_figures: dict[str, dict[str, float]] = field(default_factory=dict)
    unaccelerated: dict[str, str] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    accuracy_difference: dict[str, Any] | None = None
    accuracy_difference_reason: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    latency_mean_ms: float | None = None
    latency_std_ms: float | None = None
    latency_first_ms: float | None = None
    outputs: tuple[dict[str, Any], ...] = ()
    per_example: dict[str, Any] | None = None
    classes: dict[str, Any] | None = None
    classes_reason: str | None = "listed only for evaluation.backend"
    differing_examples: dict[str, Any] | None = None
    differing_examples_reason: str | None = "listed only for evaluation.backend"
    robustness: dict[str, Any] | None = None
    robustness_reason: str | None = "evaluation.robustness is not enabled"
    warnings: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        return {**values, **{name: list(values[name]) for name in ("outputs", "warnings", "caveats")}}

    def to_text(self) -> str:
        """Return lines for the terminal, one per number, then the tables of the metrics.

        The warnings are left out, because they were already printed.
        """
        lines = [f"{name:<12} {value}" for name, value in self._rows()]
        for table in metric_tables(self.metrics):
            cells = aligned([list(table.columns), *map(list, table.rows)], left=1)
            lines += ["", table.caption, *(f"  {line}" for line in cells)]
        return "\n".join(lines)

    def notebook_tables(self) -> list[NotebookTable]:
        """Return the parts of `to_text` as tables."""
        return [NotebookTable(rows=self._rows(), left=2), *metric_tables(self.metrics)]

    def _rows(self) -> list[tuple[str, str]]:
        """Return the name and the text of each number."""
        rows = [
            (self.metric or "accuracy", self._score(self.metric, self.accuracy) or self.accuracy_reason),
            ("reference", score_text(self._unit(self.metric), self.reference_accuracy)),
            ("difference", self._difference()),
            *self._other_metrics(),
            *self._outputs(),
            ("agreement", score_text("fraction", self.agreement) or _shown_reason(self.agreement_reason)),
            ("confusions", confusions_text(self.classes)),
            ("output SQNR", _number(self.output_sqnr_db, "dB") or _shown_reason(self.output_sqnr_db_reason)),
            ("examples", f"{self.num_examples:,}"),
            ("size", f"{self.model_bytes:,} bytes, gzip {self.gzip_bytes:,}"),
            ("latency", self._latency() or self.latency_reason),
            ("backend", self._backend()),
            *cost_rows(vars(self)),
            ("inputs", self._inputs()),
        ]
        return [(name, value) for name, value in rows if value]

    def _outputs(self) -> list[tuple[str, str]]:
        """Return a row for each output with separate labels."""
        rows = []
        for output in self.outputs:
            if output.get("metric"):
                unit, reference = output["unit"], output["reference_accuracy"]
                text = f"{output['metric']} {score_text(unit, output['accuracy'])}"
                text += "" if reference is None else f", reference {score_text(unit, reference)}"
                rows.append((f"output {output['name']}", text))
        return rows

    def _other_metrics(self) -> list[tuple[str, str | None]]:
        """Return a row for each metric but the main one, and the notes of all."""
        rows = []
        for name, value in self.scores.items():
            if name != self.metric:
                difference = paired_text(self.metrics.get(name, {}).get("difference"), self._unit(name))
                rows.append(
                    (name, (self._score(name, value) or "") + (f", difference {difference}" if difference else ""))
                )
        notes = [(name, facts["note"]) for name, facts in self.metrics.items() if facts.get("note")]
        return [*rows, *(("note", f"{name}: {note}") for name, note in notes)]

    def _score(self, metric: str, value: float | None) -> str | None:
        """Return a value with its 95% interval, or with "no interval"; None if there is no value."""
        unit = self._unit(metric)
        interval = self.metrics.get(metric, {}).get("interval")
        low, high = (score_text(unit, end) for end in interval or (None, None))
        suffix = f"95% interval {low} to {high}" if interval else "no interval"
        return None if value is None else f"{score_text(unit, value)} ({suffix})"

    def _difference(self) -> str | None:
        """Return the accuracy minus the reference's, with its interval; a fraction in percentage points."""
        return paired_text(self.accuracy_difference, self._unit(self.metric))

    def _unit(self, metric: str) -> str:
        return str(self.metrics.get(metric, {}).get("unit", "none"))

    def _latency(self) -> str | None:
        if self.latency_p50_ms is None:
            return None
        values = (self.latency_p50_ms, self.latency_p90_ms, self.latency_p99_ms)
        threads = f"{self.num_threads} thread{'' if self.num_threads == 1 else 's'}"
        text = f"{' / '.join(f'{value:.3f}' for value in values)} ms (p50 / p90 / p99, {threads})"
        if self.latency_mean_ms is None:
            return text
        spread = "" if self.latency_std_ms is None else f" ± {self.latency_std_ms:.3f}"
        return f"{text}, mean {self.latency_mean_ms:.3f}{spread}"

    def _backend(self) -> str:
        kernels = {None: "", True: ", XNNPACK", False: ", builtin kernels"}[self.xnnpack]
        where = f"{self.backend}{kernels}{'' if self.how == 'measured' else f', {self.how}'}"
        return where if self.total_ops is None else f"{where}: {self.delegated_ops} of {self.total_ops} ops delegated"

    def _inputs(self) -> str | None:
        if self.clipped_input_fraction is None or self.unused_range_fraction is None:
            return None
        return (
            f"{self.clipped_input_fraction:.2%} of values clipped, {self.unused_range_fraction:.0%} of the range unused"
        )


def _shown_reason(reason: str | None) -> str | None:
    """Return the reason why a comparison is missing; None if no reference was requested."""
    return None if reason == NO_REFERENCE else reason


def _number(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:.1f} {unit}"

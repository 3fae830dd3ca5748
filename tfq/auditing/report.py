# SPDX-License-Identifier: Apache-2.0
"""The report of an audit, and its text."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tfq.auditing.io_table import IoTable
from tfq.config import AuditConfig
from tfq.errors import AuditError, InputError
from tfq.notebook import NotebookRecord, NotebookTable
from tfq.requirement import Requirement
from tfq.text_table import shown
from tfq.tflite.records import Op, Subgraph


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant that an op reads as its weight, directly or through a DEQUANTIZE.

    Attributes:
        tensor: Its name.
        keras_layer: The Keras layer of the op; None if unknown.
        op: The name of the op.
        dtype: The stored type.
        bytes: Its size in the file.
        values: The number of its values.
        zeros: The number of values that represent exactly 0; None if they cannot be counted (sparse, below 8 bits).
        channels: The number of output channels; 1 if the op's weights have none.
        scales: 0 if unquantized, 1 for per_tensor, otherwise one per channel.
    """

    tensor: str
    keras_layer: str | None
    op: str
    dtype: str
    bytes: int
    values: int
    zeros: int | None
    channels: int
    scales: int

    def to_dict(self) -> dict[str, Any]:
        """Return the weight as JSON values."""
        return asdict(self)


def op_title(graph: Subgraph, op: Op) -> str:
    """Return the title of an op, such as `op #5 CONV_2D (conv1)`.

    It has the op's number, name and `origin`, and the subgraph if that is not the main one.
    """
    prefix = f"subgraph {graph.index}, " if graph.index else ""
    return f"{prefix}op #{op.index} {op.name} ({origin(graph, op)})"


def origin(graph: Subgraph, op: Op) -> str:
    """Return the name by which `audit.allow_float` selects an op: its Keras layer, or else its output tensor."""
    return shown(graph.layer_of(op))


FAILS, NOTE = "fails", "note"

_LINES_ON_SCREEN = 40
_SCALES = {"per_channel": "one scale per channel", "per_tensor": "one scale per tensor"}
_STATES = {"runs": "the file runs here", "fails": "the file fails here", "not tried": "the file was not run here"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A violation, or something else that a reader of the audit should know.

    Attributes:
        kind: About the types of an op's tensors: float_op, hybrid_op, qdq, int16, uint8, int32_data, not_an_index,
            narrow_weights, other_type. About ops: custom_op, flex_op, compiled_op, unknown_op, not_on_target (the
            required target cannot run it), narrow_hybrid (LiteRT cannot run it), other_scheme (its types are not those
            of the required scheme). About inputs and outputs: io_type, index_io. About single tensors:
            missing_quantization, quantized_index, bad_scale, bad_zero_point, buffer_size, dynamic_shape,
            per_tensor_weights. About parameters that the op's kernel does not honor: weight_zero_point, weight_axis,
            bias_type, bias_zero_point, bias_scale, activation_scale, fixed_scale, unequal_scales. About the model:
            scheme, missing_signature, several_signatures, no_ops, does_not_run. About the target: deprecated_target.
            About patterns that match nothing: unused_allow_float, unused_allow_int16, unused_allow_int4.
        severity: "fails" violates the requirement; "note" does not.
        message: The finding in words, with what to do about it.
        subgraph: The index of the subgraph; None if the finding is not about one.
        op_index: The number of the op, or None.
        op: The name of the op, or None.
        keras_layer: The Keras layer of the op, or None.
        tensor: The name of the tensor, or None.
        allowed: Whether it would fail, but a pattern of allow_float, allow_int16 or allow_int4 allows it.
    """

    kind: str
    severity: str
    message: str
    subgraph: int | None = None
    op_index: int | None = None
    op: str | None = None
    keras_layer: str | None = None
    tensor: str | None = None
    allowed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The result of running a flatbuffer once on an interpreter of this machine.

    Attributes:
        state: "runs", "fails" or "not tried".
        reason: The runtime's message if it fails, or why it was not tried.
        op_index: Number of the first failing op of subgraph 0; None if unknown.
        op: The title of that op, such as "op #5 ADD (add_1)".
    """

    state: str
    reason: str | None = None
    op_index: int | None = None
    op: str | None = None

    def to_text(self) -> str:
        """Return one line for the terminal."""
        where = f" at {self.op}" if self.op else ""
        return f"{_STATES[self.state]}{where}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, kw_only=True)
class AuditReport(NotebookRecord):
    """The composition of a flatbuffer, and whether it meets the requirement.

    Attributes:
        scheme: The scheme of the tensors, independent of the requirement: full_int8, int8_float_io and int8_uint8_io
            (int8 with other input or output types), float32, float16, dynamic_range (int8 weights in float ops),
            weight_only (int8 weights that are dequantized for float ops), weight_only_int4, weight_only_int2, int16x8,
            full_uint8, int4_weights, mixed, or no_data (no op computes on real values).
        findings: The violations of the requirement and other possible problems.
        subgraphs: Number of subgraphs.
        ops_visited: Number of ops in all subgraphs.
        tensors_visited: Number of tensors that an op reads or writes, or that are an input or output.
        op_counts: Op name -> count; a custom op is CUSTOM:<code>.
        weights_per_channel: Number of quantized weight tensors with one scale per channel.
        weights_per_tensor: Number of quantized weight tensors with a single scale.
        weight_types: Data type of weights -> number of tensors.
        input_types: Data types of the inputs of the main subgraph.
        output_types: Data types of the outputs of the main subgraph.
        model_bytes: Size of the flatbuffer in bytes.
        requirement: The scheme or target that the file was audited as: `AuditConfig.require`, or else its own scheme.
        is_required: Whether `AuditConfig.require` named it.
        dense_per_channel: Number of weight tensors of fully connected layers in `weights_per_channel`.
        dense_per_tensor: Number of weight tensors of fully connected layers in `weights_per_tensor`.
        weights: The weight tensors.
        op_types: Op name -> type that it computes in -> count.
        execution: Whether an interpreter of this machine runs the flatbuffer; None if that was not tried.
        io: The inputs and outputs, and the TFLite Metadata.
    """

    scheme: str
    findings: tuple[Finding, ...]
    subgraphs: int
    ops_visited: int
    tensors_visited: int
    op_counts: Mapping[str, int]
    weights_per_channel: int
    weights_per_tensor: int
    weight_types: Mapping[str, int]
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]
    model_bytes: int
    requirement: str = "full_int8"
    is_required: bool = True
    dense_per_channel: int = 0
    dense_per_tensor: int = 0
    weights: tuple[Weight, ...] = ()
    op_types: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    execution: Execution | None = None
    io: IoTable | None = None

    def with_execution(self, execution: Execution) -> "AuditReport":
        """Return the report with the result of running the flatbuffer. A failed run becomes a finding that fails."""
        findings = self.findings
        if execution.state == "fails":
            where = f"{execution.op}: " if execution.op else ""
            message = f"{where}the model does not run: {execution.reason}: convert it again and check the warnings"
            finding = Finding(
                kind="does_not_run", severity=FAILS, message=message, subgraph=0, op_index=execution.op_index
            )
            findings = (*findings, finding)
        return dataclasses.replace(self, execution=execution, findings=findings)

    @property
    def ok(self) -> bool:
        """Whether the flatbuffer meets the requirement."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that violate the requirement."""
        return tuple(finding for finding in self.findings if finding.severity == FAILS)

    @property
    def granularity(self) -> str | None:
        """The granularity of the weights' scales: per_channel, per_tensor or mixed; None without quantized weights."""
        return _granularity(self.weights_per_channel, self.weights_per_tensor)

    @property
    def dense_granularity(self) -> str | None:
        """The granularity of the weights of fully connected layers."""
        return _granularity(self.dense_per_channel, self.dense_per_tensor)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        values: dict[str, Any] = {"ok": self.ok, "granularity": self.granularity}
        values["dense_granularity"] = self.dense_granularity
        values |= {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {
            "findings": [finding.to_dict() for finding in self.findings],
            "op_counts": dict(self.op_counts),
            "weight_types": dict(self.weight_types),
            "weights": [weight.to_dict() for weight in self.weights],
            "input_types": list(self.input_types),
            "output_types": list(self.output_types),
            "execution": None if self.execution is None else asdict(self.execution),
            "io": None if self.io is None else self.io.to_dict(),
        }
        return values

    def to_text(self) -> str:
        """Return the report for the terminal, failures first; at most 40 findings are listed."""
        rows, verdict = self._rows()
        lines = [*(f"{name:8} {text}" for name, text in rows), verdict]
        return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)

    def notebook_tables(self) -> list[NotebookTable]:
        """Return the lines of `to_text` as a table with the verdict as its caption."""
        rows, verdict = self._rows()
        return [NotebookTable(rows=rows, left=2, caption=verdict)]

    def _rows(self) -> tuple[list[tuple[str, str]], str]:
        """Return name and text of each part of the report and of each finding, and the verdict."""
        ops = ", ".join(f"{count} {name}" for name, count in self.op_counts.items())
        weights = ", ".join(f"{count} {dtype}" for dtype, count in self.weight_types.items()) or "none"
        if self.granularity:
            weights += f", {self._scales_text()}"
        rows = [
            ("scheme", self.scheme),
            (
                "visited",
                f"{_count(self.ops_visited, 'op')} and {_count(self.tensors_visited, 'tensor')} in "
                f"{_count(self.subgraphs, 'subgraph')}, {self.model_bytes:,} bytes",
            ),
            ("ops", ops or "none"),
            ("weights", weights),
        ]
        if self.io is None:
            rows += [("inputs", ", ".join(self.input_types) or "none")]
            rows += [("outputs", ", ".join(self.output_types) or "none")]
        if self.execution is not None:
            rows.append(("run", self.execution.to_text()))
        rows += self.io.to_rows() if self.io is not None else []
        ordered = sorted(self.findings, key=lambda finding: finding.severity != FAILS)
        for finding in ordered[:_LINES_ON_SCREEN]:
            mark = "FAIL" if finding.severity == FAILS else "allowed" if finding.allowed else "note"
            rows.append((mark, finding.message))
        if len(ordered) > _LINES_ON_SCREEN:
            further = _count(len(ordered) - _LINES_ON_SCREEN, "more finding")
            rows.append(("...", f"{further} in the record"))
        allowed = sum(finding.allowed for finding in self.findings)
        verdict = f"NOT met, {_count(len(self.failures), 'finding')} against it" if self.failures else "met"
        own = "" if self.is_required else " (the file's own scheme; nothing was required)"
        return rows, f"{self.requirement}{own}: {verdict}{f', {allowed} allowed' if allowed else ''}"

    def _scales_text(self) -> str:
        """Return how many scales the quantized weights have; those of fully connected layers too if they differ."""
        if self.granularity != "mixed":
            return _SCALES[str(self.granularity)]
        counts = {"per_channel": self.weights_per_channel, "per_tensor": self.weights_per_tensor}
        text = ", ".join(f"{count} with {_SCALES[name]}" for name, count in counts.items())
        if self.dense_granularity in _SCALES:
            text += f" (fully connected layers: {_SCALES[self.dense_granularity]})"
        return text


def requirements_of(report: AuditReport | Mapping[str, Any], config: AuditConfig) -> tuple[Requirement, ...]:
    """Return the requirement of `config.require` and whether it is met; nothing if it is empty.

    Args:
        report: The report of an audit by `config`, or its `to_dict()`.
        config: The config of that audit.

    Raises:
        InputError: The report is of an audit with another requirement.
    """
    if not config.require:
        return ()
    values = report.to_dict() if isinstance(report, AuditReport) else report
    if values["requirement"] != config.require:
        raise InputError(
            f"the report is of an audit with require={values['requirement']}, expected {config.require}: audit again",
            field="require",
            expected=config.require,
            got=values["requirement"],
        )
    failures = [finding["message"] for finding in values["findings"] if finding["severity"] == FAILS]
    requirement = Requirement(
        name="require",
        bound=config.require,
        value=values["scheme"],
        holds=not failures,
        reason=failures[0] if failures else None,
    )
    return (requirement,)


def require(report: AuditReport, config: AuditConfig) -> AuditReport:
    """Return `report` if it meets the requirement of `config`, the config of its audit.

    Raises:
        AuditError: It does not. The message has the first failure, and the ops and layers of all others.
        InputError: The report is of an audit with another requirement.
    """
    return _require(report) if requirements_of(report, config) else report


def _require(report: AuditReport) -> AuditReport:
    if report.ok:
        return report
    first, *others = report.failures
    more = f" (and {_count(len(others), 'more finding')}{_ops(others)})" if others else ""
    raise AuditError(
        f"not {report.requirement}: {first.message}{more}",
        field="require",
        expected=report.requirement,
        got=report.scheme,
    )


def _ops(findings: Sequence[Finding]) -> str:
    """Return the ops that the findings are about, each with its layer."""
    titles = dict.fromkeys(
        f"{f'subgraph {finding.subgraph}, ' if finding.subgraph else ''}#{finding.op_index} {finding.op}"
        f" ({shown(finding.keras_layer or finding.tensor or 'no layer')})"
        for finding in findings
        if finding.op_index is not None
    )
    listed = list(titles)[:_LINES_ON_SCREEN]
    if len(titles) > len(listed):
        listed.append(f"and {len(titles) - len(listed)} more")
    return f": {', '.join(listed)}" if listed else ""


def _granularity(per_channel: int, per_tensor: int) -> str | None:
    if per_channel and per_tensor:
        return "mixed"
    if per_channel:
        return "per_channel"
    return "per_tensor" if per_tensor else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

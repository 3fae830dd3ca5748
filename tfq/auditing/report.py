# SPDX-License-Identifier: Apache-2.0
"""What an audit found, and how it reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tfq.config import AuditConfig
from tfq.errors import AuditError, InputError
from tfq.requirement import Requirement
from tfq.tflite.records import Op, Subgraph


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant that an op (`op`, of `keras_layer`) reads as its weight, directly or behind a DEQUANTIZE.

    dtype: as it is stored. bytes: of its content in the file. values: how many. zeros: how many of them stand for
    exactly 0, None where they cannot be counted (sparse, below 8 bits). channels: output channels, 1 where the op's
    weights have none. scales: 0 unquantized, 1 per_tensor, else one for each channel.
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
        """Plain JSON values."""
        return asdict(self)


_LONGEST = 200


def shown(name: str) -> str:
    """`name` on one line of at most 200 printable characters."""
    cut = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut) or "(no name)"


def op_title(graph: Subgraph, op: Op) -> str:
    """`op #5 CONV_2D (conv1)`: its layer, else its output tensor, and its subgraph where that is not the main one."""
    prefix = f"subgraph {graph.index}, " if graph.index else ""
    return f"{prefix}op #{op.index} {op.name} ({origin(graph, op)})"


def origin(graph: Subgraph, op: Op) -> str:
    """The name that tells the user most of `op`, as `audit.allow_float` takes it: its layer, else its output tensor."""
    return shown(graph.layer_of(op))


FAILS, NOTE = "fails", "note"

_LINES_ON_SCREEN = 40


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a reader of the audit should know.

    kind: float_op, hybrid_op, qdq, int16, uint8, int32_data, not_an_index, narrow_weights, other_type (types of an op's
        tensors); custom_op, flex_op, unknown_op; io_type, index_io; missing_quantization, bad_scale, bad_zero_point,
        buffer_size; weight_zero_point, weight_axis, bias_type, bias_zero_point, bias_scale, activation_scale,
        fixed_scale, unequal_scales (parameters that the op's kernel does not honor); per_tensor_weights,
        dynamic_shape, missing_signature, several_signatures, no_ops; unused_allow_float, unused_allow_int16,
        unused_allow_int4 (a pattern matches nothing of its kind); other_scheme (an op's types are not those of the
        scheme required), not_on_target (the target required cannot run the op), scheme.
    severity: "fails" breaks what is required, "note" does not. allowed: it would have failed, but a pattern of
        allow_float, allow_int16 or allow_int4 names it.
    op_index, op, keras_layer, tensor: where it is, None where that has no meaning. tensor is a name.
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
        """Plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Whether an interpreter of this machine runs a flatbuffer.

    Args:
        state: "runs", "fails" or "not tried".
        reason: The runtime's words if it fails; why it was not tried.
        op_index: Index of the first op in subgraph 0 that fails, None if it is not known.
        op: That op for people, such as "op #5 ADD (add_1)".
    """

    state: str
    reason: str | None = None
    op_index: int | None = None
    op: str | None = None

    def to_text(self) -> str:
        """Return one line for the terminal."""
        where = f" at {self.op}" if self.op else ""
        return f"{self.state}{where}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The composition of a flatbuffer, and whether it meets the requirement.

    Attributes:
        scheme: The scheme of the tensors, independent of the requirement: full_int8, int8_float_io and int8_uint8_io
            (int8 with other input or output types), float32, float16, dynamic_range (int8 weights in float ops),
            weight_only (int8 weights that are dequantized for float ops), int16x8, full_uint8, int4_weights, mixed, or
            no_data (no op computes on real values).
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
        requirement: The required scheme or target (`AuditConfig.require`); full_int8 if none was required.
        dense_per_channel: Number of weight tensors of fully connected layers in `weights_per_channel`.
        dense_per_tensor: Number of weight tensors of fully connected layers in `weights_per_tensor`.
        weights: The quantized weight tensors.
        op_types: Op name -> type that it computes in -> count.
        execution: Whether an interpreter of this machine runs the flatbuffer; None if that was not tried.
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
    dense_per_channel: int = 0
    dense_per_tensor: int = 0
    weights: tuple[Weight, ...] = ()
    op_types: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    execution: Execution | None = None

    def with_execution(self, execution: Execution) -> "AuditReport":
        """Return the report with the result of running the flatbuffer; one that fails is a finding against it."""
        findings = self.findings
        if execution.state == "fails":
            where = f"{execution.op}: " if execution.op else ""
            message = f"{where}the model does not run: {execution.reason}: convert it again, and see the warnings"
            finding = Finding(
                kind="does_not_run", severity=FAILS, message=message, subgraph=0, op_index=execution.op_index
            )
            findings = (*findings, finding)
        return dataclasses.replace(self, execution=execution, findings=findings)

    @property
    def ok(self) -> bool:
        """Whether the flatbuffer meets what was required."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that break what was required."""
        return tuple(finding for finding in self.findings if finding.severity == FAILS)

    @property
    def granularity(self) -> str | None:
        """per_channel, per_tensor or mixed: how the weights are quantized; None without quantized weights."""
        return _granularity(self.weights_per_channel, self.weights_per_tensor)

    @property
    def dense_granularity(self) -> str | None:
        """The same of the weights of fully connected layers alone."""
        return _granularity(self.dense_per_channel, self.dense_per_tensor)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
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
        }
        return values

    def to_text(self) -> str:
        """The report for a terminal; failures come first, and what does not fit is counted."""
        ops = ", ".join(f"{count} {name}" for name, count in self.op_counts.items())
        weights = ", ".join(f"{count} {dtype}" for dtype, count in self.weight_types.items()) or "none"
        if self.granularity:
            dense = f"; dense {self.dense_granularity}" if self.dense_granularity else ""
            weights += f" ({self.weights_per_channel} per_channel, {self.weights_per_tensor} per_tensor{dense})"
        lines = [
            f"scheme   {self.scheme}",
            f"visited  {_count(self.ops_visited, 'op')} and {_count(self.tensors_visited, 'tensor')} "
            f"in {_count(self.subgraphs, 'subgraph')}, {self.model_bytes} bytes",
            f"ops      {ops or 'none'}",
            f"weights  {weights}",
            f"inputs   {', '.join(self.input_types) or 'none'}",
            f"outputs  {', '.join(self.output_types) or 'none'}",
        ]
        if self.execution is not None:
            lines.append(f"runs     {self.execution.to_text()}")
        ordered = sorted(self.findings, key=lambda finding: finding.severity != FAILS)
        for finding in ordered[:_LINES_ON_SCREEN]:
            mark = "FAIL" if finding.severity == FAILS else "allowed" if finding.allowed else "note"
            lines.append(f"{mark:8} {finding.message}")
        if len(ordered) > _LINES_ON_SCREEN:
            further = _count(len(ordered) - _LINES_ON_SCREEN, "further finding")
            lines.append(f"...      {further}: the record has all")
        allowed = sum(finding.allowed for finding in self.findings)
        verdict = f"NOT met, {_count(len(self.failures), 'finding')} against it" if self.failures else "met"
        lines.append(f"{self.requirement}: {verdict}{f', {allowed} allowed' if allowed else ''}")
        return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)


def requirements_of(report: AuditReport | Mapping[str, Any], config: AuditConfig) -> tuple[Requirement, ...]:
    """Return what config.require asks of the flatbuffer and whether it is met; nothing if it asks nothing.

    Args:
        report: The report of an audit by `config`, or its `to_dict()`.
        config: What the audit was asked to require.

    Raises:
        InputError: The report is of an audit that required something else.
    """
    if not config.require:
        return ()
    values = report.to_dict() if isinstance(report, AuditReport) else report
    if values["requirement"] != config.require:
        raise InputError(
            f"the report is of an audit for {values['requirement']}, expected one for {config.require}: audit again",
            field="require",
            expected=config.require,
            got=values["requirement"],
        )
    failures = [finding["message"] for finding in values["findings"] if finding["severity"] == FAILS]
    asked = Requirement(
        name="require",
        bound=config.require,
        value=values["scheme"],
        holds=not failures,
        reason=failures[0] if failures else None,
    )
    return (asked,)


def require(report: AuditReport, config: AuditConfig) -> AuditReport:
    """`report`, unchanged, of an audit that config.require was given to.

    Raises AuditError with its first failure, and the ops and layers of all others, if it has any; nothing is raised
    where nothing is required.
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
    """The ops that the findings are about, each with its layer."""
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

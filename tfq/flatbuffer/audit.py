# SPDX-License-Identifier: Apache-2.0
"""Is a flatbuffer full int8? Every op of every subgraph is looked at, and each exception named with its reason.

int8 must carry scale and zero_point. int32 is taken as bias, as index or shape, in arithmetic on whole numbers, and in
ops outside REAL_OPS as long as no scale makes reals of it; as data of a kernel that computes on reals, or beside
quantized data, it is a mistake that no interpreter runs. bool and int64 are taken as indices and conditions, in
arithmetic on whole numbers alone, and where control flow passes them on.
"""

import collections
import fnmatch
import re
from collections.abc import Callable, Iterator
from typing import Any

from tfq.config import AuditConfig
from tfq.flatbuffer import audit_tensors
from tfq.flatbuffer.audit_reasons import Reasons
from tfq.flatbuffer.audit_report import FAILS, NOTE, AuditReport, Finding
from tfq.flatbuffer.audit_types import Offence, TypeRules, finding_kind
from tfq.flatbuffer.op_roles import WEIGHT, roles
from tfq.flatbuffer.reader import read
from tfq.flatbuffer.records import ABSENT, Model, Op, Subgraph
from tfq.flatbuffer.scheme import Composition
from tfq.flatbuffer.words import op_title, shown

_WHOLE_NUMBERS = ("int32", "int64", "bool")


def audit_model(data: bytes, config: AuditConfig | None = None) -> AuditReport:
    """What the flatbuffer `data` is made of, and each thing that keeps it from full int8.

    config: the types that inputs and outputs must have, and `allow_float`: shell-style patterns on an op's Keras layer
        or output tensor name, whose findings about types are reported without failing. Custom, Flex and unknown ops
        are never allowed. `config.require` is for the caller to act on: see require_full_int8.
    Raises FlatbufferError when the bytes are no flatbuffer, or a damaged one.
    """
    config = config or AuditConfig()
    model = read(data)
    composition = Composition(model)
    allowed = _Patterns(config.allow_float)
    findings = [*_border_findings(model, config)]
    for graph in model.subgraphs:
        findings += _op_findings(model, graph, config, composition, allowed)
        findings += audit_tensors.tensor_findings(model, graph)
    findings += audit_tensors.weight_findings(model)
    findings += [*_model_findings(model, allowed)]
    return AuditReport(
        scheme=composition.scheme,
        findings=tuple(findings),
        subgraphs=len(model.subgraphs),
        ops_visited=sum(len(graph.ops) for graph in model.subgraphs),
        tensors_visited=sum(len(audit_tensors.touched(graph)) for graph in model.subgraphs),
        op_counts=dict(collections.Counter(_counted_name(op) for graph in model.subgraphs for op in graph.ops)),
        input_types=tuple(tensor.dtype for tensor in model.main_subgraph.input_tensors),
        output_types=tuple(tensor.dtype for tensor in model.main_subgraph.output_tensors),
        model_bytes=model.model_bytes,
        **_weight_counts(model),
    )


class _Patterns:
    """allow_float, and which of its patterns have matched something."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = {pattern: re.compile(fnmatch.translate(pattern)).match for pattern in patterns}
        self._cache: dict[str, bool] = {}
        self.unused = dict.fromkeys(patterns)

    def __call__(self, graph: Subgraph, op: Op) -> bool:
        names = [op.keras_layer] if op.keras_layer else []
        return any(self._match(name) for name in (*names, *(graph.tensors[index].name for index in op.outputs)))

    def _match(self, name: str) -> bool:
        if name not in self._cache:
            hits = [pattern for pattern, match in self._patterns.items() if match(name)]
            for pattern in hits:
                self.unused.pop(pattern, None)
            self._cache[name] = bool(hits)
        return self._cache[name]


def _border_findings(model: Model, config: AuditConfig) -> Iterator[Finding]:
    """Inputs and outputs of every subgraph that a caller can run."""
    for graph in audit_tensors.entries(model):
        for place, tensors, wanted in (
            ("input", graph.input_tensors, config.inference_input_type),
            ("output", graph.output_tensors, config.inference_output_type),
        ):
            for tensor in tensors:
                subject = f"{place} {shown(tensor.name)} of subgraph {graph.index} is {tensor.dtype}"
                where: dict[str, Any] = {"subgraph": graph.index, "tensor": shown(tensor.name)}
                if tensor.dtype in _WHOLE_NUMBERS and not tensor.is_quantized:
                    message = f"{subject}: whole numbers (indices, classes), which have no int8 form"
                    yield Finding(kind="index_io", severity=NOTE, message=message, **where)
                elif tensor.dtype != wanted:
                    flag = f"inference_{place}_type"
                    message = f"{subject}, wanted {wanted}: convert with --{flag}={wanted}"
                    if tensor.dtype in ("int8", "uint8", "float32"):
                        message += f", or ask for --{flag}={tensor.dtype}"
                    yield Finding(kind="io_type", severity=FAILS, message=message, **where)


def _op_findings(
    model: Model,
    graph: Subgraph,
    config: AuditConfig,
    composition: Composition,
    allowed: Callable[[Subgraph, Op], bool],
) -> Iterator[Finding]:
    rules = TypeRules(graph, config, is_entry=audit_tensors.is_entry(model, graph))
    offences = {op.index: found for op in graph.ops if (found := rules.offences(op))}
    permitted = {op.index for op in graph.ops if op.index in offences and allowed(graph, op)}
    reasons = Reasons(graph, composition)
    # A Q/DQ pair is there for the float ops between: it is allowed when all of them are.
    permitted |= reasons.shores_of(permitted)
    for op in graph.ops:
        foreign = _foreign_finding(graph, op)
        if foreign:
            yield foreign
        if op.index in offences:
            yield _type_finding(graph, op, offences[op.index], reasons, op.index in permitted)


def _foreign_finding(graph: Subgraph, op: Op) -> Finding | None:
    """The finding about an op that TFLite's builtin kernels do not include."""
    if op.name == "CUSTOM":
        flex = op.custom_code.startswith("Flex")
        kind = "flex_op" if flex else "custom_op"
        who = "TensorFlow's own kernels (the Flex delegate)" if flex else "kernels of the application"
        what = f"is custom {shown(op.custom_code)}, wanted a builtin op: {who} run it, never XNNPACK"
    elif op.name.startswith("UNKNOWN_"):
        kind = "unknown_op"
        what = "has an operator code beyond this schema, wanted a builtin op: nothing is known of its int8 kernel"
    else:
        return None
    message = f"{op_title(graph, op)} {what}: replace the layer; --allow_float does not cover it"
    return Finding(kind=kind, severity=FAILS, message=message, **_where(graph, op))


def _type_finding(graph: Subgraph, op: Op, offences: list[Offence], reasons: Reasons, permit: bool) -> Finding:
    kind = finding_kind(graph, op, offences)
    by_type: dict[tuple[str, str], list[str]] = {}
    for offence in offences[:16]:
        by_type.setdefault((offence.dtype, offence.wanted), []).append(f"{offence.place} {offence.slot}")
    parts = [
        f"{', '.join(places)} {'is' if len(places) == 1 else 'are'} {dtype}, wanted {wanted}"
        for (dtype, wanted), places in by_type.items()
    ]
    if len(offences) > 16:
        parts.append(f"and {len(offences) - 16} more")
    first = shown(graph.tensors[offences[0].tensor].name)
    message = f"{op_title(graph, op)}: {'; '.join(parts)}: {reasons.reason(op, kind)}: {reasons.advice(op, kind)}"
    severity = NOTE if permit else FAILS
    return Finding(kind=kind, severity=severity, message=message, allowed=permit, **_where(graph, op), tensor=first)


def _where(graph: Subgraph, op: Op) -> dict[str, Any]:
    return {"subgraph": graph.index, "op_index": op.index, "op": op.name, "keras_layer": op.keras_layer}


def _model_findings(model: Model, allowed: _Patterns) -> Iterator[Finding]:
    if not any(graph.ops for graph in model.subgraphs):
        message = "the model has no ops, wanted at least one: there is nothing to prove: convert the model again"
        yield Finding(kind="no_ops", severity=FAILS, message=message)
    if not model.signatures:
        message = (
            "the model has no signature, wanted serving_default: callers must go by tensor order: "
            "convert with tfq, or add one with tfq.flatbuffer.add_signature"
        )
        yield Finding(kind="missing_signature", severity=NOTE, message=message)
    for pattern in allowed.unused:
        message = f"--allow_float {pattern!r} matches no op that is not int8: a typo, or no longer needed"
        yield Finding(kind="unused_allow_float", severity=NOTE, message=message)


def _weight_counts(model: Model) -> dict[str, Any]:
    types: collections.Counter[str] = collections.Counter()
    per_channel = per_tensor = 0
    for graph in model.subgraphs:
        # Where a weight is stored behind a DEQUANTIZE (float16, weight_only), what is stored counts.
        stored = {
            op.outputs[0]: op.inputs[0] for op in graph.ops if op.name == "DEQUANTIZE" and op.inputs and op.outputs
        }
        slots = {tensor for op in graph.ops for _, _, tensor, role in roles(op) if role == WEIGHT}
        weights = {stored.get(tensor, tensor) for tensor in slots} - {ABSENT}
        for tensor in (graph.tensors[index] for index in sorted(weights)):
            if tensor.is_constant:
                types[tensor.dtype] += 1
                per_channel += len(tensor.scale) > 1
                per_tensor += len(tensor.scale) == 1
    return {"weights_per_channel": per_channel, "weights_per_tensor": per_tensor, "weight_types": dict(types)}


def _counted_name(op: Op) -> str:
    return f"CUSTOM:{op.custom_code[:80]}" if op.name == "CUSTOM" else op.name

# SPDX-License-Identifier: Apache-2.0
"""Audit a flatbuffer: check every op of every subgraph and name each violation, with the reason.

Unless something else is required, that is full int8: int8 must carry scale and zero_point; int32 is taken as bias, as
index or shape, in arithmetic on whole numbers, and in ops outside REAL_OPS as long as no scale makes reals of it; as
data of a kernel that computes on reals, or beside quantized data, it is a mistake that no interpreter runs. bool and
int64 are taken as indices and conditions, in arithmetic on whole numbers alone, and where control flow passes them on.
"""

import collections
import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from tfq.artifacts import content_of
from tfq.auditing import tensors
from tfq.auditing.composition import CONVERTED, Composition
from tfq.auditing.reasons import Reasons
from tfq.auditing.report import FAILS, NOTE, AuditReport, Finding, op_title, origin, shown
from tfq.auditing.schemes import (
    FLOATS,
    WHOLE_NUMBERS,
    Borders,
    Offence,
    SchemeRules,
    TypeRules,
    border_types,
    finding_kind,
    is_hybrid,
)
from tfq.auditing.targets import Target, find_target
from tfq.auditing.tensors import DENSE, weight_counts, weights_of
from tfq.config import AUDIT_SCHEMES, SCHEME_IO_TYPES, AuditConfig
from tfq.errors import FlatbufferError
from tfq.patterns import of_source, op_address, parse_address
from tfq.tflite.metadata import ADDRESSED_OPS, METADATA_NAME, decode_metadata
from tfq.tflite.op_types import CONTROL_FLOW, INDEX, RANGE, WEIGHT, WIDE, op_types, roles
from tfq.tflite.reader import read
from tfq.tflite.records import Model, Op, Subgraph
from tfq.tflite.signatures import main_subgraph_note
from tfq.typing import PathOrBytes


class TargetRules:
    """The rules of one target for the ops of one subgraph."""

    def __init__(self, graph: Subgraph, target: Target, borders: Borders) -> None:
        self._graph, self._target, self._borders = graph, target, borders

    def findings(self, op: Op, allowed: Callable[[Subgraph, Op, Set[str]], bool]) -> Iterator[Finding]:
        """What is wrong with `op`; custom and unknown ops are for the caller to name."""
        if op.name == "CUSTOM" or op.name.startswith("UNKNOWN_"):
            return
        for severity, reason, advice in self._reasons(op):
            permit = severity == FAILS and allowed(self._graph, op, frozenset())
            message = f"{op_title(self._graph, op)}: {reason}: {advice}"
            yield Finding(
                kind="not_on_target",
                severity=NOTE if permit else severity,
                message=message,
                allowed=permit,
                subgraph=self._graph.index,
                op_index=op.index,
                op=op.name,
                keras_layer=op.keras_layer,
                tensor=shown(self._graph.tensors[op.outputs[0]].name) if op.outputs else None,
            )

    def _reasons(self, op: Op) -> Iterator[tuple[str, str, str]]:
        """(severity, reason, what to do)."""
        target, kind = self._target, self._kind(op)
        replace = f"replace the layer, or name {origin(self._graph, op)!r} in audit.allow_float if another runs it"
        at_border = self._borders.is_border(op)
        if reason := self._foreign_numbers(op, kind):
            yield FAILS, reason, f"convert with conversion.scheme={target.schemes[0]}"
            return
        if kind == "float" and is_hybrid(self._graph, op):
            kind = "hybrid"
        if missing := self._missing_kernel(op, kind):
            what = f"{target.title} has no {missing} {op.name}"
            if target.has_builtin_kernels or at_border:
                yield NOTE, what, "TFLite's own kernel runs it on the CPU"
            else:
                yield FAILS, what, replace
            return
        newest = target.max_versions.get(op.name)
        if newest and op.version > newest:
            reason = f"{target.title} knows {op.name} up to version {newest}, and this is version {op.version}"
            yield FAILS, reason, "convert with another scheme, or replace the layer"
        yield from self._shape_reasons(op, kind)

    def _missing_kernel(self, op: Op, kind: str) -> str | None:
        """The kind or type of numbers that the target has no kernel of `op` for; None if it has all."""
        target = self._target
        if op.name in CONTROL_FLOW:
            everything = target.integer_ops | target.float_ops | target.whole_ops
            return None if op.name in everything else "control flow such as"
        supported = {
            "whole": target.whole_ops,
            "integer": target.integer_ops,
            "hybrid": target.hybrid_ops,
            "float": target.float_ops | target.integer_ops,
        }[kind]
        if op.name not in supported:
            return "whole-number" if kind == "whole" else kind
        types = sorted(self._data_types(op)) if kind != "hybrid" else []
        return next((dtype for dtype in types if op.name not in target.ops_by_type.get(dtype, {op.name})), None)

    def _foreign_numbers(self, op: Op, kind: str) -> str | None:
        """Why its numbers are none that the target computes with, by itself or in the form of its weights."""
        target, tensors = self._target, self._graph.tensors
        types = {
            tensors[index].dtype
            for _, _, index, role in roles(op)
            if role not in (WIDE, RANGE) and not tensors[index].is_constant
        }
        if "int16" in types and "int16x8" not in target.schemes:
            return f"{target.title} has no kernel for 16-bit activations"
        if kind == "float" and target.schemes == ("int8",) and not self._borders.is_border(op):
            return f"it computes on floats, and {target.title} on 8-bit integers alone"
        if is_hybrid(self._graph, op) and "dynamic_range" not in target.schemes:
            return f"{target.title} has no kernel for float activations with integer weights"
        if op.name == "DEQUANTIZE" and op.inputs and op.inputs[0] >= 0 and tensors[op.inputs[0]].is_constant:
            scheme = "float16" if tensors[op.inputs[0]].dtype == "float16" else "weight_only_int8"
            if scheme not in target.schemes:
                return f"it expands {tensors[op.inputs[0]].dtype} weights, which {target.title} cannot"
        return None

    def _shape_reasons(self, op: Op, kind: str) -> Iterator[tuple[str, str, str]]:
        target, tensors = self._target, self._graph.tensors
        if op.name == DENSE and not target.per_channel_dense:
            weights = [tensors[index] for _, _, index, role in roles(op) if role == WEIGHT]
            if any(len(weight.scale) > 1 for weight in weights):
                reason = f"its weights have a scale for each channel, expected one: {target.per_channel_dense_reason}"
                yield FAILS, reason, "convert with conversion.per_channel_dense=False"
        touched = [tensors[index] for index in op.tensors]
        if target.static_shapes and any(tensor.is_dynamic for tensor in touched):
            reason = f"it has a dynamic shape, and {target.title} wants all of them fixed"
            yield FAILS, reason, "convert with conversion.batch_size=1"
        if target.only_inner_axes:
            long = [
                tensor for tensor in touched if not tensor.is_constant and any(size > 1 for size in tensor.shape[:-3])
            ]
            if long:
                reason = f"its tensor {shown(long[0].name)} has shape {long[0].shape[:16]}"
                wanted = f"of more than 3 axes {target.title} wants all but the innermost three to be 1"
                yield FAILS, f"{reason}: {wanted}", "convert with conversion.batch_size=1, or replace the layer"
        classes = touched[0].shape[-1] if op.name == "SOFTMAX" and touched and touched[0].shape else 0
        if target.max_softmax and classes > target.max_softmax:
            reason = f"{target.title} takes at most {target.max_softmax:,} classes, and it has {classes:,}"
            yield FAILS, reason, "leave the softmax out of the model"

    def _kind(self, op: Op) -> str:
        """integer, float or whole: the numbers that it computes with."""
        types = self._data_types(op)
        if types & FLOATS:
            # A QUANTIZE or DEQUANTIZE is where floats end or begin.
            return "integer" if op.name in ("QUANTIZE", "DEQUANTIZE") and types - FLOATS else "float"
        return "whole" if types <= set(WHOLE_NUMBERS) else "integer"

    def _data_types(self, op: Op) -> set[str]:
        """The types of its activations, indices and states left out."""
        return {
            self._graph.tensors[index].dtype
            for _, _, index, role in roles(op)
            if role not in (INDEX, WIDE, RANGE) and not self._graph.tensors[index].is_constant
        }


# (subgraph, op, types that it should not have): whether the user allows it.
Allowed = Callable[[Subgraph, Op, Set[str]], bool]


class OpRules:
    """What config.require wants of the ops of one subgraph."""

    def __init__(self, graph: Subgraph, config: AuditConfig, composition: Composition, *, is_entry: bool) -> None:
        """is_entry: whether a caller can run the subgraph, so that its inputs and outputs are the model's borders."""
        borders = Borders(graph, config, is_entry)
        required = config.require or "full_int8"
        target = find_target(required)
        self._target = TargetRules(graph, target, borders) if target else None
        self._scheme = AUDIT_SCHEMES.get(required)
        self._types: TypeRules | SchemeRules | None = None
        if self._scheme == "int8" or (target and target.schemes == ("int8",)):
            self._types, self._scheme = TypeRules(graph, borders), "int8"
        elif self._scheme:
            self._types = SchemeRules(graph, self._scheme, borders)
        self._graph, self._composition = graph, composition

    def findings(self, allowed: Allowed) -> Iterator[Finding]:
        """Every op's, in order."""
        graph = self._graph
        offences = {op.index: result for op in graph.ops if self._types and (result := self._types.offences(op))}
        dtypes = {index: {offence.dtype for offence in result} for index, result in offences.items()}
        permitted = {op.index for op in graph.ops if op.index in dtypes and allowed(graph, op, dtypes[op.index])}
        reasons = Reasons(graph, self._composition)
        # A Q/DQ pair is there for the float or 16-bit ops between: it is allowed when all of them are.
        permitted |= reasons.shores_of(permitted)
        for op in graph.ops:
            foreign = _foreign_finding(graph, op)
            if foreign:
                yield foreign
            if op.index in offences:
                yield self._type_finding(op, offences[op.index], reasons, op.index in permitted)
            elif self._target:
                yield from self._target.findings(op, allowed)

    def _type_finding(self, op: Op, offences: list[Offence], reasons: Reasons, permit: bool) -> Finding:
        graph = self._graph
        if self._scheme == "int8":
            kind = finding_kind(graph, op, offences)
            reason = f"{reasons.reason(op, kind)}: {reasons.advice(op, kind)}"
        else:
            kind = "other_scheme"
            # A mixed model may well be what the quantizer makes of this scheme where an op has no kernel for it.
            left = " (where that has left it so, replace the layer)" if self._composition.scheme == "mixed" else ""
            reason = f"the model is {self._composition.scheme}: convert with conversion.scheme={self._scheme}{left}"
            reason += f", or name {origin(graph, op)!r} in audit.allow_float"
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
        message = f"{op_title(graph, op)}: {'; '.join(parts)}: {reason}"
        severity = NOTE if permit else FAILS
        return Finding(kind=kind, severity=severity, message=message, allowed=permit, **_where(graph, op), tensor=first)


def _foreign_finding(graph: Subgraph, op: Op) -> Finding | None:
    """The finding about an op that TFLite's builtin kernels do not include."""
    if op.name == "CUSTOM":
        flex = op.custom_code.startswith("Flex")
        kind = "flex_op" if flex else "custom_op"
        who = "TensorFlow's own kernels (the Flex delegate)" if flex else "kernels of the application"
        what = f"is custom {shown(op.custom_code)}, expected a builtin op: {who} run it, never XNNPACK"
    elif op.name.startswith("UNKNOWN_"):
        kind = "unknown_op"
        what = "has an operator code beyond this schema, expected a builtin op: nothing is known of its int8 kernel"
    else:
        return None
    message = f"{op_title(graph, op)} {what}: replace the layer; audit.allow_float does not cover it"
    return Finding(kind=kind, severity=FAILS, message=message, **_where(graph, op))


def _where(graph: Subgraph, op: Op) -> dict[str, Any]:
    return {"subgraph": graph.index, "op_index": op.index, "op": op.name, "keras_layer": op.keras_layer}


def audit_model(model: PathOrBytes, config: AuditConfig | None = None) -> AuditReport:
    """Audit the flatbuffer `model`: its composition, and each finding against what `config.require` names.

    model: the bytes of a `.tflite`, or its path.
    config: the scheme or the target to hold it against (full_int8 where nothing is required), the types that inputs and
        outputs must have, and `allow_float`: shell-style patterns on an op's Keras layer or output tensor name, whose
        findings about types are reported without failing; `allow_int16` and `allow_int4` likewise, where these types
        are all that there is to find. Custom, Flex and unknown ops are never allowed.
        The report of a model that fails is as good as another; to have an AuditError of it, see `require`.
    Raises FlatbufferError when the bytes are no flatbuffer, or a damaged one.
    """
    config = config or AuditConfig()
    content = content_of(model, "model")
    parsed = read(content)
    composition = Composition(parsed)
    allowed = _Allowed(config, _addressed_ops(content, parsed))
    findings = [*_border_findings(parsed, config)]
    for graph in parsed.subgraphs:
        rules = OpRules(graph, config, composition, is_entry=tensors.is_entry(parsed, graph))
        findings += rules.findings(allowed)
        findings += tensors.tensor_findings(parsed, graph)
        findings += tensors.parameter_findings(content, graph)
    findings += tensors.weight_findings(parsed)
    findings += [*_model_findings(parsed, allowed)]
    findings += [*_scheme_findings(config, composition.scheme, findings)]
    weights = weights_of(content, parsed)
    return AuditReport(
        requirement=config.require or "full_int8",
        scheme=composition.scheme,
        findings=tuple(findings),
        subgraphs=len(parsed.subgraphs),
        ops_visited=sum(len(graph.ops) for graph in parsed.subgraphs),
        tensors_visited=sum(len(tensors.touched(graph)) for graph in parsed.subgraphs),
        op_counts=dict(collections.Counter(_counted_name(op) for graph in parsed.subgraphs for op in graph.ops)),
        op_types=op_types(parsed, _counted_name),
        input_types=tuple(tensor.dtype for tensor in parsed.main_subgraph.input_tensors),
        output_types=tuple(tensor.dtype for tensor in parsed.main_subgraph.output_tensors),
        model_bytes=parsed.model_bytes,
        weights=weights,
        **weight_counts(weights),
    )


def _addressed_ops(content: bytes, model: Model) -> dict[str, frozenset[str]]:
    """Return {"op:12": output tensors} of ops of the float flatbuffer that the conversion to `content` addressed."""
    offset, size = model.metadata.get(METADATA_NAME, (0, 0))
    try:
        values = decode_metadata(content[offset : offset + size]).get(ADDRESSED_OPS) if size else None
    except FlatbufferError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: frozenset(map(str, names)) for key, names in values.items() if isinstance(names, list)}


class _Allowed:
    """What the config's patterns allow, and which of them have matched something."""

    def __init__(self, config: AuditConfig, addressed: Mapping[str, frozenset[str]]) -> None:
        """addressed: the output tensors of ops that patterns address by their number in the float flatbuffer."""
        self._any = _Patterns("allow_float", config.allow_float, addressed)
        # int64 are the biases of 16 bits' activations.
        self._by_types = {
            frozenset({"int16", "int64"}): _Patterns("allow_int16", config.allow_int16, addressed),
            frozenset({"int4"}): _Patterns("allow_int4", config.allow_int4, addressed),
        }

    def __call__(self, graph: Subgraph, op: Op, dtypes: Set[str] = frozenset()) -> bool:
        """Whether `op` may be as it is. dtypes: what of it is against the rules; empty where it is not its types."""
        names = [*([op.keras_layer] if op.keras_layer else []), *(graph.tensors[index].name for index in op.outputs)]
        address = op_address(graph.index, op.index)
        covered: set[str] = set()
        for types, patterns in self._by_types.items():
            if dtypes & types and patterns.match(names, address):
                covered |= types
        return self._any.match(names, address) or bool(dtypes and dtypes <= covered)

    @property
    def unused(self) -> Iterator[tuple[str, str]]:
        """(flag, pattern) of each that has matched nothing of its kind."""
        for patterns in (self._any, *self._by_types.values()):
            for pattern in patterns.unused:
                yield patterns.flag, pattern


class _Patterns:
    """The patterns of one flag, and which of them have matched something."""

    def __init__(self, flag: str, patterns: tuple[str, ...], addressed: Mapping[str, frozenset[str]]) -> None:
        self.flag = flag
        self._exact = {pattern: addressed.get(of_source(pattern) or "", frozenset()) for pattern in patterns}
        self._patterns = {pattern: re.compile(fnmatch.translate(pattern)).match for pattern in patterns}
        self._cache: dict[str, bool] = {}
        self.unused = dict.fromkeys(patterns)

    def match(self, names: list[str], address: str) -> bool:
        """Whether one of them fits one of `names`, or is the `address` of the op that has them."""
        subgraph = parse_address(address) or (0, 0)
        exact = [
            pattern
            for pattern, own in self._exact.items()
            if pattern == address
            or (not own.isdisjoint(names) and (parse_address(of_source(pattern) or "") or (0, 0))[0] == subgraph[0])
        ]
        for pattern in exact:
            self.unused.pop(pattern, None)
        return bool(exact) or any(self._match(name) for name in names)

    def _match(self, name: str) -> bool:
        if name not in self._cache:
            hits = [pattern for pattern, match in self._patterns.items() if match(name)]
            for pattern in hits:
                self.unused.pop(pattern, None)
            self._cache[name] = bool(hits)
        return self._cache[name]


def _border_findings(model: Model, config: AuditConfig) -> Iterator[Finding]:
    """Inputs and outputs of every subgraph that a caller can run."""
    input_types, output_types = border_types(config)
    scheme = AUDIT_SCHEMES.get(config.require or "full_int8")
    possible = SCHEME_IO_TYPES[scheme] if scheme else ()
    for graph in tensors.entries(model):
        for place, ends, wanted in (
            ("input", graph.input_tensors, input_types),
            ("output", graph.output_tensors, output_types),
        ):
            for tensor in ends:
                subject = f"{place} {shown(tensor.name)} of subgraph {graph.index} is {tensor.dtype}"
                where: dict[str, Any] = {"subgraph": graph.index, "tensor": shown(tensor.name)}
                if tensor.dtype in WHOLE_NUMBERS and not tensor.is_quantized:
                    message = f"{subject}: whole numbers (indices, classes), which have no int8 form"
                    yield Finding(kind="index_io", severity=NOTE, message=message, **where)
                elif tensor.dtype not in wanted:
                    flag = f"inference_{place}_type"
                    message = f"{subject}, wanted {' or '.join(wanted)}: convert with conversion.{flag}={wanted[0]}"
                    if tensor.dtype in possible:
                        message += f", or ask for audit.{flag}={tensor.dtype}"
                    yield Finding(kind="io_type", severity=FAILS, message=message, **where)


def _model_findings(model: Model, allowed: _Allowed) -> Iterator[Finding]:
    if not any(graph.ops for graph in model.subgraphs):
        message = "the model has no ops, expected at least one: there is nothing to prove: convert the model again"
        yield Finding(kind="no_ops", severity=FAILS, message=message)
    if not model.signatures:
        message = (
            "the model has no signature, wanted serving_default: callers must go by tensor order: "
            "convert with tfq, or add one with tfq.tflite.add_signature"
        )
        yield Finding(kind="missing_signature", severity=NOTE, message=message)
    if note := main_subgraph_note(model, "run and reported as the file's inputs and outputs; the rules cover all"):
        yield Finding(kind="several_signatures", severity=NOTE, message=note)
    for flag, pattern in allowed.unused:
        other = {"allow_int16": "has 16 bits", "allow_int4": "has weights of 4 bits"}.get(flag, "is not int8")
        message = f"audit.{flag} {pattern!r} matches no op that {other}: a typo, or no longer needed"
        yield Finding(kind=f"unused_{flag}", severity=NOTE, message=message)


def _scheme_findings(config: AuditConfig, scheme: str, findings: list[Finding]) -> Iterator[Finding]:
    """That the model as a whole is another scheme, where no op of it told so."""
    if target := find_target(config.require):
        wanted, title = target.schemes, f" for {target.title}"
    elif config.require == "full_int8" or not config.require:
        return
    else:
        wanted, title = (AUDIT_SCHEMES[config.require],), ""
        if any(finding.severity == FAILS or finding.allowed for finding in findings):
            return
    built = CONVERTED.get(scheme, "" if title else scheme)
    if built and built not in wanted:
        message = f"the model is {scheme}, wanted {' or '.join(wanted)}{title}"
        message += f": convert with conversion.scheme={wanted[0]}"
        yield Finding(kind="scheme", severity=FAILS, message=message)


def _counted_name(op: Op) -> str:
    return f"CUSTOM:{op.custom_code[:80]}" if op.name == "CUSTOM" else op.name

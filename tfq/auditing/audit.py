# SPDX-License-Identifier: Apache-2.0
"""Audit a flatbuffer: check every op of every subgraph, and report each violation with its reason.

Without a requirement, a file is audited as the scheme that it has (`basis`). In full int8, int8 tensors must have scale
and zero point. int32 is accepted as a bias, as an index or shape, in index arithmetic, and in ops outside REAL_OPS if
it has no scale. As data of a kernel that computes on real values, or together with quantized data, int32 is an error
that no interpreter runs. bool, int64 and strings are accepted as indices and conditions, in index arithmetic, and in
control flow. Handles of variables and tables have no values.
"""

import collections
import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from tfq.artifacts import content_of
from tfq.auditing import tensors
from tfq.auditing.basis import Basis
from tfq.auditing.composition import CONVERTED, Composition
from tfq.auditing.io_table import table_of
from tfq.auditing.reasons import Reasons
from tfq.auditing.report import FAILS, NOTE, AuditReport, Finding, op_title, origin
from tfq.auditing.schemes import (
    FLOATS,
    HANDLES,
    INDEX_TYPES,
    NARROW,
    NARROW_HYBRID,
    Borders,
    TypeRules,
    Violation,
    finding_kind,
    has_raw_scale,
    is_hybrid,
    is_strided_pointwise,
    narrow_hybrid_weights,
)
from tfq.auditing.targets import Target
from tfq.auditing.tensors import DENSE, weight_counts, weights_of
from tfq.config import SCHEME_IO_TYPES, AuditConfig
from tfq.errors import FlatbufferError
from tfq.patterns import explicit, included, is_exclusion, of_source, op_address, parse_address
from tfq.text_table import alternatives, shown
from tfq.tflite.index_values import unquantized_integers
from tfq.tflite.metadata import ADDRESSED_OPS, METADATA_NAME, decode_metadata
from tfq.tflite.op_types import COMPILED_OPS, CONTROL_FLOW, CUSTOM_KERNELS, INDEX, RANGE, WEIGHT, WIDE, op_types, roles
from tfq.tflite.reader import read
from tfq.tflite.records import Model, Op, Subgraph
from tfq.tflite.signatures import main_subgraph_note
from tfq.typing import PathOrBytes


class TargetRules:
    """The rules of one target for the ops of one subgraph."""

    def __init__(self, graph: Subgraph, target: Target, borders: Borders) -> None:
        """Prepare the rules of `target` for `graph`."""
        self._graph, self._target, self._borders = graph, target, borders
        self._read = frozenset(graph.outputs).union(*(op.inputs for op in graph.ops))

    def findings(self, op: Op, allowed: Callable[[Subgraph, Op, Set[str]], bool]) -> Iterator[Finding]:
        """Yield what the target cannot run of `op`. Custom and unknown ops are not reported here."""
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
        """Yield (severity, reason, what to do)."""
        target, kind = self._target, self._kind(op)
        replace = f"replace the layer, or name {origin(self._graph, op)!r} in audit.allow_float to run it elsewhere"
        at_border = self._borders.is_border(op)
        if reason := self._foreign_numbers(op, kind):
            yield FAILS, reason, f"convert with conversion.scheme={target.schemes[0]}"
            return
        if kind == "float" and is_hybrid(self._graph, op):
            kind = "hybrid"
        if missing := self._missing_kernel(op, kind):
            reason = f"{target.title} does not support {op.name} {missing}"
            if target.has_builtin_kernels or at_border:
                yield NOTE, reason, "TFLite's builtin kernel runs it on the CPU"
            else:
                yield FAILS, reason, replace
            return
        newest = target.max_versions.get(op.name)
        if newest and op.version > newest:
            reason = f"{target.title} supports {op.name} up to version {newest}, and this is version {op.version}"
            yield FAILS, reason, "convert with another scheme, or replace the layer"
        yield from self._shape_reasons(op, kind)

    def _missing_kernel(self, op: Op, kind: str) -> str | None:
        """Return what the target has no kernel of `op` for, such as "on int16", or None if it has all kernels."""
        target = self._target
        if op.name in CONTROL_FLOW:
            everything = target.integer_ops | target.float_ops | target.index_ops
            return None if op.name in everything else "and other control flow"
        wrong = [dtype for dtype in sorted(self._data_types(op)) if op.name in target.wrong_ops.get(dtype, ())]
        if wrong:
            return f"on {wrong[0]}: it computes wrong values"
        supported = {
            "index": target.index_ops,
            "integer": target.integer_ops,
            "hybrid": target.hybrid_ops,
            "float": target.float_ops | target.integer_ops,
        }[kind]
        if op.name not in supported:
            return {"index": "on int32, int64 and bool", "hybrid": "with integer weights and float activations"}.get(
                kind, f"on {kind}s"
            )
        types = sorted(self._data_types(op)) if kind != "hybrid" else []
        return next((f"on {dtype}" for dtype in types if op.name not in target.ops_by_type.get(dtype, {op.name})), None)

    def _foreign_numbers(self, op: Op, kind: str) -> str | None:
        """Return why the target does not compute with the types of the op or of its weights, or None."""
        target, tensors = self._target, self._graph.tensors
        types = {
            tensors[index].dtype
            for _, _, index, role in roles(op)
            if role not in (WIDE, RANGE) and not tensors[index].is_constant
        }
        if "int16" in types and "int16x8" not in target.schemes:
            return f"{target.title} has no kernel for 16-bit activations"
        if kind == "float" and target.schemes == ("int8",) and not self._borders.is_border(op):
            return f"it computes on floats, and {target.title} only on 8-bit integers"
        if is_hybrid(self._graph, op) and "dynamic_range" not in target.schemes:
            return f"{target.title} has no kernel for float activations with integer weights"
        narrow = narrow_hybrid_weights(self._graph, op) - target.narrow_hybrid.get(op.name, frozenset())
        if narrow:
            return f"{target.title} has no correct kernel for float activations with {min(narrow)} weights"
        if op.name == "DEQUANTIZE" and op.inputs and op.inputs[0] >= 0 and tensors[op.inputs[0]].is_constant:
            stored = tensors[op.inputs[0]].dtype
            scheme = "float16" if stored == "float16" else f"weight_only_{stored if stored in NARROW else 'int8'}"
            if scheme not in target.schemes:
                return f"it dequantizes {tensors[op.inputs[0]].dtype} weights, which {target.title} does not support"
        return None

    def _shape_reasons(self, op: Op, kind: str) -> Iterator[tuple[str, str, str]]:
        target, tensors = self._target, self._graph.tensors
        if op.name == DENSE and not target.per_channel_dense:
            weights = [tensors[index] for _, _, index, role in roles(op) if role == WEIGHT]
            if any(len(weight.scale) > 1 for weight in weights):
                reason = (
                    f"its weights have one scale per channel, expected a single one: {target.per_channel_dense_reason}"
                )
                yield FAILS, reason, "convert with conversion.per_channel_dense=False"
        indices = [tensors[index] for _, _, index, role in roles(op) if role == INDEX]
        if op.name in target.int32_index_ops and any(tensor.dtype == "int64" for tensor in indices):
            reason = f"it has int64 indices, sizes or axes, and {target.title} supports only int32 there"
            yield FAILS, reason, "use int32 in the model, such as output_type=tf.int32 of tf.argmax"
        if not target.strided_pointwise and is_strided_pointwise(self._graph, op):
            reason = (
                f"{target.title} computes integer 1x1 convolutions with a stride wrongly, without an error "
                f"({target.source})"
            )
            yield FAILS, reason, f"convert with conversion.target={target.name}, which replaces the stride exactly"
        touched = [tensors[index] for index in op.tensors]
        if target.static_shapes and any(tensor.is_dynamic for tensor in touched):
            reason = f"it has a dynamic shape, and {target.title} requires fixed shapes"
            yield FAILS, reason, "convert with conversion.batch_size=1"
        yield from self._axes_reasons(op)
        if not target.unread_results and any(
            index not in self._read and tensors[index].dtype == "int8" for index in op.outputs
        ):
            reason = f"nothing reads its int8 result, and {target.title} crashes on such a model ({target.source})"
            yield FAILS, reason, f"remove it; conversion.target={target.name} does, unless another result is read"
        if target.only_inner_axes:
            long = [
                tensor for tensor in touched if not tensor.is_constant and any(size > 1 for size in tensor.shape[:-3])
            ]
            if long:
                reason = f"its tensor {shown(long[0].name)} has shape {long[0].shape[:16]}"
                rule = f"{target.title} requires all axes except the innermost three to be 1"
                yield FAILS, f"{reason}: {rule}", "convert with conversion.batch_size=1, or replace the layer"
        classes = touched[0].shape[-1] if op.name == "SOFTMAX" and touched and touched[0].shape else 0
        if target.max_softmax and classes > target.max_softmax:
            reason = f"{target.title} supports at most {target.max_softmax:,} classes, and it has {classes:,}"
            yield FAILS, reason, "leave the softmax out of the model"

    def _axes_reasons(self, op: Op) -> Iterator[tuple[str, str, str]]:
        target, tensors = self._target, self._graph.tensors
        many = [tensors[index] for index in op.tensors if len(tensors[index].shape) > target.max_axes]
        if target.max_axes and many:
            reason = (
                f"its tensor {shown(many[0].name)} has {len(many[0].shape)} axes, and {target.title} supports at most "
                f"{target.max_axes}"
            )
            yield FAILS, reason, "merge axes with a reshape, such as height and width of a channel shuffle"
        if op.name == "STRIDED_SLICE" and not target.removes_axes and op.inputs and op.inputs[0] >= 0:
            source, output = tensors[op.inputs[0]], tensors[op.outputs[0]]
            if len(output.shape) < len(source.shape):
                reason = f"it removes an axis, as x[:, 0] does, and {target.title} does not support that"
                yield FAILS, reason, "keep the axis and reshape, such as x[:, :1]"

    def _kind(self, op: Op) -> str:
        """Return what the op computes with: "integer", "float" or "index"."""
        types = self._data_types(op)
        if types & FLOATS:
            # A QUANTIZE or DEQUANTIZE has floats on one side only.
            return "integer" if op.name in ("QUANTIZE", "DEQUANTIZE") and types - FLOATS else "float"
        return "index" if types <= set(INDEX_TYPES) else "integer"

    def _data_types(self, op: Op) -> set[str]:
        """Return the types of the op's activations, without indices and states."""
        return {
            self._graph.tensors[index].dtype
            for _, _, index, role in roles(op)
            if role not in (INDEX, WIDE, RANGE)
            and not self._graph.tensors[index].is_constant
            and self._graph.tensors[index].dtype not in HANDLES
        }


# (subgraph, op, its violating types) -> whether the user allows it.
Allowed = Callable[[Subgraph, Op, Set[str]], bool]


class OpRules:
    """The rules for the ops of one subgraph."""

    def __init__(self, graph: Subgraph, basis: Basis, composition: Composition, *, is_entry: bool) -> None:
        """Choose the rules.

        Args:
            graph: The subgraph.
            basis: What the file is audited as.
            composition: The composition of the whole model.
            is_entry: Whether a caller can run the subgraph, so that its inputs and outputs are those of the model.
        """
        borders = basis.borders(graph, is_entry=is_entry)
        self._target = TargetRules(graph, basis.target, borders) if basis.target else None
        self._types = basis.type_rules(graph, borders)
        self._basis, self._graph, self._composition = basis, graph, composition

    def findings(self, allowed: Allowed) -> Iterator[Finding]:
        """Yield the findings about all ops, in order."""
        graph = self._graph
        violations = {op.index: result for op in graph.ops if self._types and (result := self._types.violations(op))}
        dtypes = {index: {violation.dtype for violation in result} for index, result in violations.items()}
        permitted = {op.index for op in graph.ops if op.index in dtypes and allowed(graph, op, dtypes[op.index])}
        reasons = Reasons(graph, self._composition)
        # A Q/DQ pair is allowed if all float or 16-bit ops between its two ops are allowed.
        permitted |= reasons.converters_of(permitted)
        permitted |= {op.index for op in graph.ops if op.index in violations and _only_feeds(graph, op, permitted)}
        for op in graph.ops:
            foreign = _foreign_finding(graph, op, self._basis.target)
            if foreign:
                yield foreign
            if op.index in violations:
                yield self._type_finding(op, violations[op.index], reasons, op.index in permitted)
            elif self._target:
                yield from self._target.findings(op, allowed)
            if not self._target:
                yield from _narrow_hybrid_findings(graph, op)

    def _type_finding(self, op: Op, violations: list[Violation], reasons: Reasons, permit: bool) -> Finding:
        graph = self._graph
        if isinstance(self._types, TypeRules):
            kind = finding_kind(graph, op, violations)
            reason = f"{reasons.reason(op, kind)}: {reasons.advice(op, kind)}"
        else:
            kind = "other_scheme"
            # The quantizer produces a mixed model if an op has no kernel for this scheme.
            left = (
                " (if that already gave this result, replace the layer)" if self._composition.scheme == "mixed" else ""
            )
            scheme = self._basis.scheme
            reason = f"the model is {self._composition.scheme}: convert with conversion.scheme={scheme}{left}"
            reason += f", or name {origin(graph, op)!r} in audit.allow_float"
        by_type: dict[tuple[str, str], list[str]] = {}
        for violation in violations[:16]:
            by_type.setdefault((violation.dtype, violation.expected), []).append(f"{violation.place} {violation.slot}")
        parts = [
            f"{', '.join(places)} {'is' if len(places) == 1 else 'are'} {dtype}, expected {expected}"
            for (dtype, expected), places in by_type.items()
        ]
        if len(violations) > 16:
            parts.append(f"and {len(violations) - 16} more")
        first = shown(graph.tensors[violations[0].tensor].name)
        message = f"{op_title(graph, op)}: {'; '.join(parts)}: {reason}"
        severity = NOTE if permit else FAILS
        return Finding(kind=kind, severity=severity, message=message, allowed=permit, **_where(graph, op), tensor=first)


def _only_feeds(graph: Subgraph, op: Op, permitted: Set[int]) -> bool:
    """Check whether `op` is a DEQUANTIZE of a constant that only ops among the indices `permitted` read."""
    if op.name != "DEQUANTIZE" or not op.inputs or op.inputs[0] < 0 or not graph.tensors[op.inputs[0]].is_constant:
        return False
    readers = {reader.index for reader in graph.ops if set(op.outputs) & set(reader.inputs)}
    return bool(readers) and readers <= permitted and not set(op.outputs) & set(graph.outputs)


def _narrow_hybrid_findings(graph: Subgraph, op: Op) -> Iterator[Finding]:
    """Yield a finding if LiteRT rejects the weights of `op`, crashes on them or computes wrong values."""
    narrow = narrow_hybrid_weights(graph, op) - NARROW_HYBRID.get(op.name, frozenset())
    if narrow:
        message = (
            f"{op_title(graph, op)}: LiteRT has no correct kernel for float activations with {min(narrow)} weights: "
            f"convert with conversion.scheme=weight_only_{min(narrow)}, which expands them first"
        )
        yield Finding(kind="narrow_hybrid", severity=FAILS, message=message, **_where(graph, op))


def _foreign_finding(graph: Subgraph, op: Op, target: Target | None) -> Finding | None:
    """Return the finding about an op that is not one of TFLite's builtin ops, or None."""
    advice, severity = "replace the layer; audit.allow_float does not cover it", FAILS
    if op.name == "CUSTOM":
        kind, what, runs = _custom_op(op, target)
        severity = NOTE if runs else FAILS
    elif op.name.startswith("UNKNOWN_"):
        kind = "unknown_op"
        what = "has an operator code that is newer than this schema, expected a builtin op: its int8 support is unknown"
    else:
        return None
    message = f"{op_title(graph, op)} {what}" + ("" if severity == NOTE else f": {advice}")
    return Finding(kind=kind, severity=severity, message=message, **_where(graph, op))


def _custom_op(op: Op, target: Target | None) -> tuple[str, str, bool]:
    """Return (kind of the finding, what the custom op is, whether the target, or LiteRT without one, runs it)."""
    code = op.custom_code
    what = f"is the custom op {shown(code)}"
    if code in COMPILED_OPS:
        device = COMPILED_OPS[code]
        what += f", code that was compiled for {device}; what it computes is not visible in the file"
        if target and code not in target.custom_ops:
            return "compiled_op", f"{what}, and {target.title} cannot run it", False
        return "compiled_op", what, True
    if code in CUSTOM_KERNELS:
        owner = CUSTOM_KERNELS[code]
        what += f", which computes on float32; {owner} has a kernel for it, and other runtimes may have none"
        if target and not target.has_builtin_kernels and code not in target.custom_ops:
            return "custom_op", f"{what}, such as {target.title}", False
        return "custom_op", what, True
    is_flex = code.startswith("Flex")
    who = "TensorFlow (the Flex delegate)" if is_flex else "the application"
    what += f", expected a builtin op: only {who} has a kernel for it"
    return ("flex_op" if is_flex else "custom_op"), what, False


def _where(graph: Subgraph, op: Op) -> dict[str, Any]:
    return {"subgraph": graph.index, "op_index": op.index, "op": op.name, "keras_layer": op.keras_layer}


def audit_model(model: PathOrBytes, config: AuditConfig | None = None) -> AuditReport:
    """Audit a flatbuffer: list its composition, and all violations of `config.require` or of its own scheme's rules.

    Args:
        model: The flatbuffer: its bytes or its path.
        config: The required scheme or target, the types that inputs and outputs must have, and exceptions. If nothing
            is required, the file is audited as the scheme that it has, and a mixed file as that of its integer
            activations. `allow_float` has shell-style patterns for an op's Keras layer or output tensor; findings about
            the types of such ops do not fail. `allow_int16` and `allow_int4` are the same for ops that violate the
            rules only with these types. Custom ops without a kernel in LiteRT, Flex
            ops and unknown ops are never allowed.

    Returns:
        The report. A violation does not raise; `require` raises an AuditError for it.

    Raises:
        FlatbufferError: The bytes are not a flatbuffer, or it is damaged.
    """
    config = config or AuditConfig()
    content = content_of(model, "model")
    parsed = read(content)
    composition = Composition(parsed)
    basis = Basis.of(config, composition)
    allowed = _Allowed(config, _addressed_ops(content, parsed))
    findings = [*_deprecation_findings(basis), *_border_findings(parsed, basis)]
    for graph in parsed.subgraphs:
        rules = OpRules(graph, basis, composition, is_entry=tensors.is_entry(parsed, graph))
        findings += rules.findings(allowed)
        findings += tensors.tensor_findings(parsed, graph)
        findings += tensors.parameter_findings(content, graph)
    findings += tensors.weight_findings(parsed)
    findings += [*_model_findings(parsed, allowed)]
    findings += [*_scheme_findings(basis, composition.scheme, findings)]
    weights = weights_of(content, parsed)
    return AuditReport(
        requirement=basis.name,
        is_required=basis.is_required,
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
        io=table_of(content, parsed),
        **weight_counts(weights),
    )


def _deprecation_findings(basis: Basis) -> Iterator[Finding]:
    if basis.target is not None and basis.target.deprecated:
        message = f"target {basis.target.name}: {basis.target.deprecated}"
        yield Finding(kind="deprecated_target", severity=NOTE, message=message)


def _addressed_ops(content: bytes, model: Model) -> dict[str, frozenset[str]]:
    """Return {"op:12": output tensors} of the ops that the conversion addressed in the float flatbuffer."""
    offset, size = model.metadata.get(METADATA_NAME, (0, 0))
    try:
        values = decode_metadata(content[offset : offset + size]).get(ADDRESSED_OPS) if size else None
    except FlatbufferError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: frozenset(map(str, names)) for key, names in values.items() if isinstance(names, list)}


class _Allowed:
    """The ops that the config's patterns allow, and the patterns that have matched something."""

    def __init__(self, config: AuditConfig, addressed: Mapping[str, frozenset[str]]) -> None:
        """Compile the patterns.

        Args:
            config: The patterns.
            addressed: Address of an op in the float flatbuffer -> its output tensors.
        """
        self._any = _Patterns("allow_float", config.allow_float, addressed)
        # int64 is the type of biases with 16-bit activations.
        self._by_types = {
            frozenset({"int16", "int64"}): _Patterns("allow_int16", config.allow_int16, addressed),
            frozenset({"int4"}): _Patterns("allow_int4", config.allow_int4, addressed),
        }

    def __call__(self, graph: Subgraph, op: Op, dtypes: Set[str] = frozenset()) -> bool:
        """Check whether `op` is allowed.

        Args:
            graph: The subgraph.
            op: The op.
            dtypes: The violating types; empty if the violation is not about types.
        """
        names = [*([op.keras_layer] if op.keras_layer else []), *(graph.tensors[index].name for index in op.outputs)]
        address = op_address(graph.index, op.index)
        covered: set[str] = set()
        for types, patterns in self._by_types.items():
            if dtypes & types and patterns.match(names, address):
                covered |= types
        return self._any.match(names, address) or bool(dtypes and dtypes <= covered)

    @property
    def unused(self) -> Iterator[tuple[str, str]]:
        """(field, pattern) of each pattern that has matched nothing."""
        for patterns in (self._any, *self._by_types.values()):
            for pattern in patterns.unused:
                yield patterns.flag, pattern


class _Patterns:
    """The patterns of one config field, and those that have matched something."""

    def __init__(self, flag: str, patterns: tuple[str, ...], addressed: Mapping[str, frozenset[str]]) -> None:
        self.flag = flag
        self._patterns = explicit(patterns)
        self._addressed = [addressed.get(of_source(pattern) or "", frozenset()) for pattern in self._patterns]
        self._compiled = [re.compile(fnmatch.translate(included(pattern))).match for pattern in self._patterns]
        self._cache: dict[str, frozenset[int]] = {}
        self.unused = dict.fromkeys(pattern for pattern in patterns if not is_exclusion(pattern))

    def match(self, names: list[str], address: str) -> bool:
        """Check whether the patterns select an op by one of its `names` or by its `address`; the last match decides."""
        subgraph = (parse_address(address) or (0, 0))[0]
        hits = set().union(*map(self._matching, names))
        for place, (pattern, own) in enumerate(zip(self._patterns, self._addressed, strict=True)):
            is_own = not own.isdisjoint(names) and (parse_address(of_source(pattern) or "") or (0, 0))[0] == subgraph
            if is_own or included(pattern) == address:
                hits.add(place)
        for place in hits:
            self.unused.pop(self._patterns[place], None)
        return bool(hits) and not is_exclusion(self._patterns[max(hits)])

    def _matching(self, name: str) -> frozenset[int]:
        """Return the places of the patterns that match a name."""
        if name not in self._cache:
            self._cache[name] = frozenset(place for place, match in enumerate(self._compiled) if match(name))
        return self._cache[name]


def _border_findings(model: Model, basis: Basis) -> Iterator[Finding]:
    """Yield findings about the inputs and outputs of every subgraph that a caller can run."""
    possible = SCHEME_IO_TYPES[basis.scheme] if basis.scheme and not basis.target else ()
    for graph in tensors.entries(model):
        plain = unquantized_integers(graph)
        for place, ends, allowed in (
            ("input", graph.input_tensors, basis.input_types),
            ("output", graph.output_tensors, basis.output_types),
        ):
            for tensor in ends:
                subject = f"{place} {shown(tensor.name)} of subgraph {graph.index} is {tensor.dtype}"
                where: dict[str, Any] = {"subgraph": graph.index, "tensor": shown(tensor.name)}
                is_raw = place == "input" and has_raw_scale(tensor) and basis.accepts_raw_inputs
                if is_raw and not (basis.is_required and tensor.dtype in allowed):
                    message = f"{subject} with scale 1 and zero point 0: raw integers, such as the bytes of an image"
                    yield Finding(kind="raw_input", severity=NOTE, message=message, **where)
                elif (tensor.dtype in INDEX_TYPES and not tensor.is_quantized) or tensor.index in plain:
                    message = f"{subject}: indices, classes or text, which are not quantized"
                    yield Finding(kind="index_io", severity=NOTE, message=message, **where)
                elif tensor.dtype not in allowed:
                    flag = f"inference_{place}_type"
                    message = (
                        f"{subject}, expected {alternatives(allowed)}: convert with conversion.{flag}={allowed[0]}"
                    )
                    if tensor.dtype in possible:
                        message += f", or require audit.{flag}={tensor.dtype}"
                    yield Finding(kind="io_type", severity=FAILS, message=message, **where)


def _model_findings(model: Model, allowed: _Allowed) -> Iterator[Finding]:
    if not any(graph.ops for graph in model.subgraphs):
        message = "the model has no ops, expected at least one: convert the model again"
        yield Finding(kind="no_ops", severity=FAILS, message=message)
    if not model.signatures:
        message = (
            "the model has no signature, expected serving_default: callers must use the order of the tensors. "
            "Convert with tfq, or add one with tfq.tflite.add_signature"
        )
        yield Finding(kind="missing_signature", severity=NOTE, message=message)
    if note := main_subgraph_note(
        model, "run and reported as the file's inputs and outputs; the rules cover all subgraphs"
    ):
        yield Finding(kind="several_signatures", severity=NOTE, message=note)
    for flag, pattern in allowed.unused:
        other = {"allow_int16": "has 16 bits", "allow_int4": "has weights of 4 bits"}.get(flag, "is not int8")
        message = f"audit.{flag} {pattern!r} matches no op that {other}: correct or remove it"
        yield Finding(kind=f"unused_{flag}", severity=NOTE, message=message)


def _scheme_findings(basis: Basis, scheme: str, findings: list[Finding]) -> Iterator[Finding]:
    """Yield a finding if the model as a whole has another scheme than required, and no op of it violates the rules."""
    if basis.target:
        expected, title = basis.target.schemes, f" for {basis.target.title}"
    elif not basis.is_required or not basis.scheme or basis.scheme == "int8":
        return
    else:
        expected, title = (basis.scheme,), ""
        if any(finding.severity == FAILS or finding.allowed for finding in findings):
            return
    built = CONVERTED.get(scheme, "" if title else scheme)
    if built and built not in expected:
        message = f"the model is {scheme}, expected {alternatives(expected)}{title}"
        message += f": convert with conversion.scheme={expected[0]}"
        yield Finding(kind="scheme", severity=FAILS, message=message)


def _counted_name(op: Op) -> str:
    return f"CUSTOM:{op.custom_code[:80]}" if op.name == "CUSTOM" else op.name

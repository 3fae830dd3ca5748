# SPDX-License-Identifier: Apache-2.0
"""The findings about the ops of one subgraph: by their types, by what a target runs, and by whose kernels they need."""

from collections.abc import Callable, Iterator, Set
from typing import Any

from tfq.auditing.composition import Composition
from tfq.auditing.reasons import Reasons
from tfq.auditing.report import FAILS, NOTE, Finding
from tfq.auditing.schemes import SchemeRules
from tfq.auditing.target_rules import TargetRules
from tfq.auditing.targets import TARGETS
from tfq.auditing.types import Borders, Offence, TypeRules, finding_kind
from tfq.auditing.words import op_title, origin, shown
from tfq.config import AUDIT_SCHEMES, AuditConfig
from tfq.tflite.records import Op, Subgraph

# (subgraph, op, types that it should not have): whether the user allows it.
Allowed = Callable[[Subgraph, Op, Set[str]], bool]


class OpRules:
    """What config.require wants of the ops of one subgraph."""

    def __init__(self, graph: Subgraph, config: AuditConfig, composition: Composition, *, is_entry: bool) -> None:
        """is_entry: whether a caller can run the subgraph, so that its inputs and outputs are the model's borders."""
        borders = Borders(graph, config, is_entry)
        required = config.require or "full_int8"
        target = TARGETS.get(required)
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
        offences = {op.index: found for op in graph.ops if self._types and (found := self._types.offences(op))}
        dtypes = {index: {offence.dtype for offence in found} for index, found in offences.items()}
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
            reason = f"the model is {self._composition.scheme}: convert with --scheme={self._scheme}{left}"
            reason += f", or name {origin(graph, op)!r} in --allow_float"
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
        what = f"is custom {shown(op.custom_code)}, wanted a builtin op: {who} run it, never XNNPACK"
    elif op.name.startswith("UNKNOWN_"):
        kind = "unknown_op"
        what = "has an operator code beyond this schema, wanted a builtin op: nothing is known of its int8 kernel"
    else:
        return None
    message = f"{op_title(graph, op)} {what}: replace the layer; --allow_float does not cover it"
    return Finding(kind=kind, severity=FAILS, message=message, **_where(graph, op))


def _where(graph: Subgraph, op: Op) -> dict[str, Any]:
    return {"subgraph": graph.index, "op_index": op.index, "op": op.name, "keras_layer": op.keras_layer}

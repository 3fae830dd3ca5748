# SPDX-License-Identifier: Apache-2.0
"""What keeps a target from running a flatbuffer, op by op."""

from collections.abc import Callable, Iterator, Set

from tfq.auditing.report import FAILS, NOTE, Finding
from tfq.auditing.targets import Target
from tfq.auditing.types import FLOATS, WHOLE_NUMBERS, Borders, is_hybrid
from tfq.auditing.weights import DENSE
from tfq.auditing.words import op_title, origin, shown
from tfq.tflite.op_roles import CONTROL_FLOW, INDEX, WEIGHT, roles
from tfq.tflite.records import Op, Subgraph


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
        replace = f"replace the layer, or name {origin(self._graph, op)!r} in --allow_float if another runs it"
        at_border = self._borders.is_border(op)
        if reason := self._foreign_numbers(op, kind):
            yield FAILS, reason, f"convert with --scheme={target.schemes[0]}"
            return
        supported = target.integer_ops if kind == "integer" else target.float_ops | target.integer_ops
        if kind == "float" and is_hybrid(self._graph, op):
            kind, supported = "hybrid", target.hybrid_ops
        if kind != "whole" and op.name not in (*supported, *CONTROL_FLOW):
            what = f"{target.title} has no {kind} {op.name}"
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

    def _foreign_numbers(self, op: Op, kind: str) -> str | None:
        """Why its numbers are none that the target computes with, by itself or in the form of its weights."""
        target, tensors = self._target, self._graph.tensors
        types = {tensors[index].dtype for index in op.tensors if not tensors[index].is_constant}
        if "int16" in types and "int16x8" not in target.schemes:
            return f"{target.title} has no kernel for 16-bit activations"
        if kind == "float" and target.schemes == ("int8",) and not self._borders.is_border(op):
            return f"it computes on floats, and {target.title} on 8-bit integers alone"
        if is_hybrid(self._graph, op) and "dynamic" not in target.schemes:
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
                reason = f"its weights have a scale for each channel, wanted one: {target.per_channel_dense_reason}"
                yield FAILS, reason, "convert with --noper_channel_dense"
        touched = [tensors[index] for index in op.tensors]
        if target.static_shapes and any(tensor.is_dynamic for tensor in touched):
            reason = f"it has a dynamic shape, and {target.title} wants all of them fixed"
            yield FAILS, reason, "convert with --batch_size=1"
        if target.only_inner_axes:
            long = [
                tensor for tensor in touched if not tensor.is_constant and any(size > 1 for size in tensor.shape[:-3])
            ]
            if long:
                reason = f"its tensor {shown(long[0].name)} has shape {long[0].shape[:16]}"
                wanted = f"of more than 3 axes {target.title} wants all but the innermost three to be 1"
                yield FAILS, f"{reason}: {wanted}", "convert with --batch_size=1, or replace the layer"
        classes = touched[0].shape[-1] if op.name == "SOFTMAX" and touched and touched[0].shape else 0
        if target.max_softmax and classes > target.max_softmax:
            reason = f"{target.title} takes at most {target.max_softmax:,} classes, and it has {classes:,}"
            yield FAILS, reason, "leave the softmax out of the model"

    def _kind(self, op: Op) -> str:
        """integer, float or whole: the numbers that it computes with."""
        types = {
            self._graph.tensors[index].dtype
            for _, _, index, role in roles(op)
            if role != INDEX and not self._graph.tensors[index].is_constant
        }
        if types & FLOATS:
            # A QUANTIZE or DEQUANTIZE is where floats end or begin.
            return "integer" if op.name in ("QUANTIZE", "DEQUANTIZE") and types - FLOATS else "float"
        return "whole" if types <= set(WHOLE_NUMBERS) else "integer"

# SPDX-License-Identifier: Apache-2.0
"""Explain why an op is not int8, as far as the flatbuffer shows it, and what to do about it."""

from collections.abc import Collection

from tfq.auditing.composition import Composition
from tfq.auditing.report import op_title, origin
from tfq.auditing.schemes import FLOATS
from tfq.tflite.op_types import INDEX, LEFT_FLOAT_BY_QUANTIZER, WEIGHT, roles
from tfq.tflite.records import Op, Subgraph

_CONVERTERS = ("QUANTIZE", "DEQUANTIZE")
_OF_ISLANDS = FLOATS | {"int16"}
_ALLOWED_BY = {"int16": "allow_int16", "narrow_weights": "allow_int4"}

# Schemes of a whole model, where no single layer is the cause.
_WHOLE_MODEL = (
    *("float32", "float16", "dynamic_range", "weight_only", "weight_only_int4", "weight_only_int2"),
    *("int16x8", "full_uint8"),
)

_BY_KIND = {
    "int16": "its activations have 16 bits, and XNNPACK has no kernel for them",
    "uint8": "it is quantized to uint8, as in TensorFlow 1",
    "narrow_weights": "its weights have fewer than 8 bits",
    "int32_data": "its kernel accepts int32 only as a bias or index",
    "not_an_index": "int64 and bool are valid only as indices and conditions",
    "other_type": "no int8 kernel accepts that type",
}


class Reasons:
    """The islands of one subgraph: ops connected by float or 16-bit activations, with the Q/DQ ops around them."""

    def __init__(self, graph: Subgraph, composition: Composition) -> None:
        """Find the islands of `graph`, a subgraph of a model with this composition."""
        self._graph, self._composition = graph, composition
        self._islands = _islands(graph)
        self._inputs, self._outputs = frozenset(graph.inputs), frozenset(graph.outputs)

    def converters_of(self, permitted: Collection[int]) -> set[int]:
        """Return the Q/DQ ops around the islands whose float ops are all among the op indices `permitted`."""
        islands = {id(island): island for island in self._islands.values() if island}
        complete = {key for key, island in islands.items() if all(op.index in permitted for op in island)}
        return {
            op.index for op in self._graph.ops if op.name in _CONVERTERS and id(self._islands[op.index]) in complete
        }

    def reason(self, op: Op, kind: str) -> str:
        """Return the likely reason for a finding of `kind` about `op`."""
        scheme = self._composition.scheme
        if kind == "int16" and op.name in _CONVERTERS and self._islands[op.index]:
            return f"it leads to or from the 16-bit activations of {self._titles(op)}"
        if kind in _BY_KIND:
            lstm = " (its cell state)" if kind == "int16" and "LSTM" in op.name else ""
            return _BY_KIND[kind] + lstm
        if kind == "qdq":
            return self._qdq_reason(op)
        if kind == "hybrid_op":
            return "it has integer weights and float activations, as dynamic-range quantization produces"
        if scheme == "float32":
            return "the model was never quantized"
        weights = self._dequantized_weights(op)
        if weights:
            return f"its {weights} weights are dequantized before use"
        if scheme in _WHOLE_MODEL:
            return f"the model is {scheme}, which quantizes only weights"
        if op.name in LEFT_FLOAT_BY_QUANTIZER:
            return "TensorFlow's quantizer does not support it in int8"
        if any(self._graph.tensors[index].dtype == "int8" for index in op.tensors):
            return "only some of its tensors are quantized"
        return "it was not quantized: it has no range, or (in QAT) its layer is not annotated"

    def advice(self, op: Op, kind: str) -> str:
        """Return what to do about a finding of `kind` about `op`."""
        if kind == "qdq" and not self._islands[op.index]:
            if self._inputs.intersection(op.inputs):
                return "give the model int8 inputs, or request its type with conversion.inference_input_type"
            if self._outputs.intersection(op.outputs):
                return "give the model int8 outputs, or request its type with conversion.inference_output_type"
        if self._composition.scheme in _WHOLE_MODEL:
            return "convert with conversion.scheme=int8 and a representative dataset"
        flag = _ALLOWED_BY.get(kind, "allow_float")
        if op.name in _CONVERTERS and kind in ("qdq", "int16") and self._islands[op.index]:
            names = " ".join(sorted({origin(self._graph, other) for other in self._islands[op.index][:3]}))
            return f"fix the {'float' if kind == 'qdq' else '16-bit'} island, or name its ops in audit.{flag}: {names}"
        remedy = "convert with a representative dataset" if kind == "hybrid_op" else "replace the layer"
        return f"{remedy}, or name {origin(self._graph, op)!r} in audit.{flag}"

    def _qdq_reason(self, op: Op) -> str:
        if any(index >= 0 and self._graph.tensors[index].is_constant for index in op.inputs):
            return "it dequantizes constants that are stored in another type"
        if self._islands[op.index]:
            return f"it leads to or from the float island of {self._titles(op)}"
        if self._inputs.intersection(op.inputs):
            return "the model's input is converted inside the model"
        if self._outputs.intersection(op.outputs):
            return "the model's output is converted inside the model"
        return "it is part of a Q/DQ pair with nothing in between, as at layers that QAT did not annotate"

    def _titles(self, op: Op) -> str:
        """Return the titles of the ops in the island that `op` leads to."""
        between = self._islands[op.index]
        titles = ", ".join(op_title(self._graph, other) for other in between[:3])
        return titles + (f" and {len(between) - 3} more" if len(between) > 3 else "")

    def _dequantized_weights(self, op: Op) -> str:
        """Return the stored type of the op's weights if a DEQUANTIZE is between them and the op; empty otherwise."""
        for _, _, index, role in roles(op):
            source = self._graph.producers.get(index)
            if role == WEIGHT and source and source.name == "DEQUANTIZE" and source.inputs and source.inputs[0] >= 0:
                stored = self._graph.tensors[source.inputs[0]]
                if stored.is_constant:
                    return stored.dtype
        return ""


def _islands(graph: Subgraph) -> dict[int, list[Op]]:
    """Return op index -> the ops, without Q/DQ, that are connected to it by float or 16-bit activations."""
    parents = list(range(len(graph.ops)))

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    seen: dict[int, int] = {}
    for op in graph.ops:
        for _, _, index, role in roles(op):
            tensor = graph.tensors[index]
            if role != INDEX and tensor.dtype in _OF_ISLANDS and not tensor.is_constant:
                parents[root(op.index)] = root(seen.setdefault(index, op.index))
    members: dict[int, list[Op]] = {}
    for op in graph.ops:
        if op.name not in _CONVERTERS:
            members.setdefault(root(op.index), []).append(op)
    return {op.index: members.setdefault(root(op.index), []) for op in graph.ops}

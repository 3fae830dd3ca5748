# SPDX-License-Identifier: Apache-2.0
"""Explain why an op is not int8, as far as the flatbuffer tells, and what to do about it."""

from collections.abc import Collection

from tfq.auditing.composition import Composition
from tfq.auditing.report import op_title, origin
from tfq.auditing.schemes import FLOATS
from tfq.tflite.op_types import INDEX, LEFT_FLOAT_BY_QUANTIZER, WEIGHT, roles
from tfq.tflite.records import Op, Subgraph

_CONVERTERS = ("QUANTIZE", "DEQUANTIZE")
_OF_ISLANDS = FLOATS | {"int16"}
_ALLOWED_BY = {"int16": "allow_int16", "narrow_weights": "allow_int4"}

# Schemes that a whole model is converted to: no layer is to blame.
_WHOLE_MODEL = ("float32", "float16", "dynamic_range", "weight_only", "int16x8", "full_uint8")

_BY_KIND = {
    "int16": "its activations have 16 bits, for which XNNPACK has no kernel",
    "uint8": "it is quantized in the unsigned form of TensorFlow 1",
    "narrow_weights": "its weights have fewer than 8 bits",
    "int32_data": "an int32 there is neither bias nor index, and its kernel takes none",
    "not_an_index": "whole numbers stand for indices and conditions alone",
    "other_type": "no int8 kernel takes that type",
}


class Reasons:
    """The islands of one subgraph: ops joined by float or 16-bit activations, and the Q/DQ ops on their shores."""

    def __init__(self, graph: Subgraph, composition: Composition) -> None:
        self._graph, self._composition = graph, composition
        self._islands = _islands(graph)
        self._inputs, self._outputs = frozenset(graph.inputs), frozenset(graph.outputs)

    def shores_of(self, permitted: Collection[int]) -> set[int]:
        """The Q/DQ ops of the islands whose every float op is among the op indices `permitted`."""
        islands = {id(island): island for island in self._islands.values() if island}
        whole = {key for key, island in islands.items() if all(op.index in permitted for op in island)}
        return {op.index for op in self._graph.ops if op.name in _CONVERTERS and id(self._islands[op.index]) in whole}

    def reason(self, op: Op, kind: str) -> str:
        """The likely reason for a finding of `kind` about `op`."""
        scheme = self._composition.scheme
        if kind == "int16" and op.name in _CONVERTERS and self._islands[op.index]:
            return f"it leads to or from the 16-bit activations of {self._titles(op)}"
        if kind in _BY_KIND:
            lstm = " (its cell state)" if kind == "int16" and "LSTM" in op.name else ""
            return _BY_KIND[kind] + lstm
        if kind == "qdq":
            return self._qdq_reason(op)
        if kind == "hybrid_op":
            return "integer weights in a float op, as dynamic-range quantization makes them"
        if scheme == "float32":
            return "the model was never quantized"
        weights = self._dequantized_weights(op)
        if weights:
            return f"its {weights} weights are dequantized before use"
        if scheme in _WHOLE_MODEL:
            return f"the model is {scheme}, which quantizes weights alone"
        if op.name in LEFT_FLOAT_BY_QUANTIZER:
            return "TensorFlow's quantizer has no int8 form of it"
        if any(self._graph.tensors[index].dtype == "int8" for index in op.tensors):
            return "only a part of its tensors is quantized"
        return "it was left out of quantization: no range reached it, or (in QAT) its layer is not annotated"

    def advice(self, op: Op, kind: str) -> str:
        """What to do about it."""
        if kind == "qdq" and not self._islands[op.index]:
            if self._inputs.intersection(op.inputs):
                return "give the model int8 inputs, or ask for its own type with conversion.inference_input_type"
            if self._outputs.intersection(op.outputs):
                return "give the model int8 outputs, or ask for its own type with conversion.inference_output_type"
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
            return "it expands constants that are stored in another type than they are used in"
        if self._islands[op.index]:
            return f"it leads to or from the float island of {self._titles(op)}"
        if self._inputs.intersection(op.inputs):
            return "the model's input is converted inside the model"
        if self._outputs.intersection(op.outputs):
            return "the model's output is converted inside the model"
        return "a Q/DQ pair with nothing between, as layers leave that QAT did not annotate"

    def _titles(self, op: Op) -> str:
        """Of the ops on the island to which `op` leads."""
        between = self._islands[op.index]
        titles = ", ".join(op_title(self._graph, other) for other in between[:3])
        return titles + (f" and {len(between) - 3} more" if len(between) > 3 else "")

    def _dequantized_weights(self, op: Op) -> str:
        """The stored type of the op's weights where a DEQUANTIZE stands between them and it."""
        for _, _, index, role in roles(op):
            source = self._graph.producers.get(index)
            if role == WEIGHT and source and source.name == "DEQUANTIZE" and source.inputs and source.inputs[0] >= 0:
                stored = self._graph.tensors[source.inputs[0]]
                if stored.is_constant:
                    return stored.dtype
        return ""


def _islands(graph: Subgraph) -> dict[int, list[Op]]:
    """Op index -> the ops, without Q/DQ, that float or 16-bit activations join it to."""
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

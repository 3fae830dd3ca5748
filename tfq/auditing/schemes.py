# SPDX-License-Identifier: Apache-2.0
"""Which dtypes an op's tensors may have in a flatbuffer of each scheme but int8, whose rules are in types.py.

Weights of fewer than 1,024 values may be float32 in dynamic and weight_only_int8: TensorFlow's converter leaves them.
"""

import math
from dataclasses import dataclass

from tfq.auditing.types import WHOLE_NUMBERS, Borders, Offence
from tfq.tflite.op_roles import BIAS, INDEX, WEIGHT, roles
from tfq.tflite.records import Op, Subgraph, Tensor

SMALL_WEIGHT = 1024


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Types of one scheme. stored: of constants that a DEQUANTIZE expands. weights, biases: as the op reads them."""

    activations: str
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    stored: tuple[str, ...] = ()
    has_small_float_weights: bool = False


_FLOAT = ("float32",)
_RULES = {
    "float32": _Rule(activations="float32", weights=_FLOAT, biases=_FLOAT),
    "float16": _Rule(activations="float32", weights=("float16",), biases=("float32", "float16"), stored=("float16",)),
    "dynamic": _Rule(
        activations="float32", weights=("int8",), biases=_FLOAT, stored=("int8",), has_small_float_weights=True
    ),
    "weight_only_int8": _Rule(
        activations="float32", weights=(), biases=_FLOAT, stored=("int8",), has_small_float_weights=True
    ),
    "int16x8": _Rule(activations="int16", weights=("int8",), biases=("int64", "int32")),
}


class SchemeRules:
    """The rules of one scheme for the ops of one subgraph."""

    def __init__(self, graph: Subgraph, scheme: str, borders: Borders) -> None:
        """borders: the types of the model's own inputs and outputs, where a caller can run the subgraph."""
        self._graph, self._rule, self._borders = graph, _RULES[scheme], borders
        self._sources = {
            op.outputs[0]: graph.tensors[op.inputs[0]]
            for op in graph.ops
            if op.name == "DEQUANTIZE" and op.inputs and op.outputs and op.inputs[0] >= 0
        }

    def offences(self, op: Op) -> list[Offence]:
        """Every tensor of `op` that breaks the rules."""
        found = []
        for place, slot, index, role in roles(op):
            tensor = self._graph.tensors[index]
            # Of a DEQUANTIZE's two ends the stored one tells all.
            expanded = op.name == "DEQUANTIZE" and place == "output" and self._stored(tensor)
            wanted = None if expanded else self._wanted(op, tensor, role)
            if wanted and not self._borders.is_converter(op, place, tensor):
                shown = self._stored(tensor) or tensor
                found.append(Offence(place=place, slot=slot, tensor=shown.index, dtype=shown.dtype, wanted=wanted))
        return found

    def _stored(self, tensor: Tensor) -> Tensor | None:
        """The constant that a DEQUANTIZE makes `tensor` from."""
        source = self._sources.get(tensor.index)
        return source if source and source.is_constant else None

    def _wanted(self, op: Op, tensor: Tensor, role: str) -> str | None:
        """The type that the tensor should have, None when it has it."""
        rule = self._rule
        if role == INDEX or (tensor.dtype in WHOLE_NUMBERS and not tensor.is_quantized and role != BIAS):
            return None
        stored = self._stored(tensor)
        if stored or (op.name == "DEQUANTIZE" and tensor.is_constant):
            dtype = (stored or tensor).dtype
            return None if dtype in rule.stored else _either((*rule.stored, *rule.weights))
        if role == WEIGHT and tensor.is_constant:
            small = rule.has_small_float_weights and math.prod(tensor.shape) < SMALL_WEIGHT
            if tensor.dtype in rule.weights or (small and tensor.dtype == "float32"):
                return None
            return _either(rule.weights) if rule.weights else "int8 behind a DEQUANTIZE"
        if role == BIAS:
            return None if tensor.dtype in rule.biases else _either(rule.biases)
        if tensor.is_constant and rule.activations == "int16" and tensor.dtype == "int8":
            return None
        return None if tensor.dtype == rule.activations else rule.activations


def _either(dtypes: tuple[str, ...]) -> str:
    return " or ".join(dict.fromkeys(dtypes))

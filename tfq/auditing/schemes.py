# SPDX-License-Identifier: Apache-2.0
"""The dtypes that an op's tensors may have, scheme by scheme.

Weights of fewer than 1,024 values may be float32 in dynamic_range and weight_only_int8: TensorFlow's converter leaves
them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tfq.auditing.targets import find_target
from tfq.config import AUDIT_SCHEMES, SCHEME_IO_TYPES, AuditConfig
from tfq.tflite.op_types import BIAS, CONTROL_FLOW, INDEX, INTEGER_OPS, RANGE, REAL_OPS, WEIGHT, WIDE, roles
from tfq.tflite.records import Op, Subgraph, Tensor

FLOATS = frozenset(
    {"float32", "float16", "bfloat16", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"}
)
NARROW = frozenset({"int4", "uint4", "int2"})
WHOLE_NUMBERS = ("int32", "int64", "bool")


@dataclass(frozen=True, kw_only=True)
class Offence:
    """One tensor of an op whose type full int8 does not have there."""

    place: str
    slot: int
    tensor: int
    dtype: str
    wanted: str


def border_types(config: AuditConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The types that a model's inputs, and its outputs, may have: as asked for, else those of what is required."""
    if target := find_target(config.require):
        own = target.io_types
    else:
        own = SCHEME_IO_TYPES[AUDIT_SCHEMES[config.require or "full_int8"]][:1]
    asked = (config.inference_input_type, config.inference_output_type)
    return ((asked[0],) if asked[0] else own, (asked[1],) if asked[1] else own)


class Borders:
    """The inputs and outputs of a subgraph, where they are the model's own, and the types that they may have."""

    def __init__(self, graph: Subgraph, config: AuditConfig, is_entry: bool) -> None:
        """is_entry: whether a caller can run the subgraph, so that its inputs and outputs are the model's borders."""
        self._inputs = frozenset(graph.inputs) if is_entry else frozenset()
        self._outputs = frozenset(graph.outputs) if is_entry else frozenset()
        self._input_types, self._output_types = border_types(config)

    def is_converter(self, op: Op, place: str, tensor: Tensor) -> bool:
        """Whether `op` turns a type that was asked for at the model's border into the one inside, or back."""
        if place == "input":
            return tensor.index in self._inputs and tensor.dtype in self._input_types and op.name == "QUANTIZE"
        last = "DEQUANTIZE" if tensor.dtype == "float32" else "QUANTIZE"
        return tensor.index in self._outputs and tensor.dtype in self._output_types and op.name == last

    def is_border(self, op: Op) -> bool:
        """Whether `op` converts an input or output of the model."""
        converts = op.name in ("QUANTIZE", "DEQUANTIZE")
        return converts and bool(self._inputs.intersection(op.inputs) or self._outputs.intersection(op.outputs))


class TypeRules:
    """The rules for the ops of one subgraph."""

    def __init__(self, graph: Subgraph, borders: Borders) -> None:
        self._graph, self._borders = graph, borders

    def offences(self, op: Op) -> list[Offence]:
        """Every tensor of `op` that breaks the rules."""
        tensors = self._graph.tensors
        touched = roles(op)
        data = [tensors[index] for _, _, index, role in touched if role != INDEX]
        whole = op.name in CONTROL_FLOW or (op.name in INTEGER_OPS and all(_is_whole(tensor) for tensor in data))
        results = []
        for place, slot, index, role in touched:
            tensor = tensors[index]
            wanted = _wanted(op, tensor, role, whole)
            if wanted and not self._borders.is_converter(op, place, tensor):
                results.append(Offence(place=place, slot=slot, tensor=index, dtype=tensor.dtype, wanted=wanted))
        return results


def _is_whole(tensor: Tensor) -> bool:
    return tensor.dtype in WHOLE_NUMBERS and not tensor.is_quantized


def _wanted(op: Op, tensor: Tensor, role: str, whole: bool) -> str | None:
    """The type that the tensor should have, None when it has it. whole: all data of the op are whole numbers."""
    dtype = tensor.dtype
    if dtype == "int8" or role == RANGE or (role == WIDE and dtype == "int16"):
        return None
    if role == INDEX:
        return None if dtype in WHOLE_NUMBERS else "an index or condition (int32, int64 or bool)"
    if role == BIAS:
        return None if dtype == "int32" else "int32"
    if dtype not in WHOLE_NUMBERS:
        return "int8"
    if whole and not tensor.is_quantized:
        return None
    if dtype != "int32" or op.name in REAL_OPS or op.name in INTEGER_OPS:
        return "int8"
    # QUANTIZE is what brings an int32 accumulator down to int8.
    return "int8" if tensor.is_quantized and not tensor.is_constant and op.name != "QUANTIZE" else None


def finding_kind(graph: Subgraph, op: Op, offences: Sequence[Offence]) -> str:
    """The one word for what is wrong with the types of `op`."""
    dtypes = {offence.dtype for offence in offences}
    if op.name in ("QUANTIZE", "DEQUANTIZE"):
        borders = {*graph.inputs, *graph.outputs}
        if dtypes & FLOATS or any(offence.tensor in borders for offence in offences):
            return "qdq"
    if dtypes & FLOATS:
        return "hybrid_op" if is_hybrid(graph, op) else "float_op"
    for kind, members in (
        ("int16", {"int16"}),
        ("uint8", {"uint8"}),
        ("narrow_weights", NARROW),
        ("int32_data", {"int32"}),
        ("not_an_index", {"int64", "bool"}),
    ):
        if dtypes & members:
            return kind
    return "other_type"


def is_hybrid(graph: Subgraph, op: Op) -> bool:
    """Whether `op` computes on float activations with integer weights (what dynamic-range quantization makes)."""
    if op.name in ("QUANTIZE", "DEQUANTIZE", *CONTROL_FLOW):
        return False
    tensors = [(graph.tensors[index], role) for place, _, index, role in roles(op) if place == "input"]
    weights = any(
        tensor.is_constant and tensor.dtype in ("int8", "uint8", *NARROW) and role not in (INDEX, BIAS)
        for tensor, role in tensors
    )
    return weights and any(tensor.dtype in FLOATS and not tensor.is_constant for tensor, _ in tensors)


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
    "dynamic_range": _Rule(
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
        results = []
        for place, slot, index, role in roles(op):
            tensor = self._graph.tensors[index]
            # Of a DEQUANTIZE's two ends the stored one tells all.
            expanded = op.name == "DEQUANTIZE" and place == "output" and self._stored(tensor)
            wanted = None if expanded else self._wanted(op, tensor, role)
            if wanted and not self._borders.is_converter(op, place, tensor):
                shown = self._stored(tensor) or tensor
                results.append(Offence(place=place, slot=slot, tensor=shown.index, dtype=shown.dtype, wanted=wanted))
        return results

    def _stored(self, tensor: Tensor) -> Tensor | None:
        """The constant that a DEQUANTIZE makes `tensor` from."""
        source = self._sources.get(tensor.index)
        return source if source and source.is_constant else None

    def _wanted(self, op: Op, tensor: Tensor, role: str) -> str | None:
        """The type that the tensor should have, None when it has it."""
        rule = self._rule
        if role == RANGE or (role == WIDE and tensor.dtype == "int16"):
            return None
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

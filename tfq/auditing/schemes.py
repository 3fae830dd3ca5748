# SPDX-License-Identifier: Apache-2.0
"""The types that an op's tensors may have in each scheme.

In dynamic_range and the weight-only schemes, weights with fewer than 1,024 values may be float32, because TensorFlow's
converter does not quantize them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tfq.text_table import alternatives
from tfq.tflite.index_values import unquantized_integers
from tfq.tflite.op_types import (
    BIAS,
    CONTROL_FLOW,
    COPIED_SLOTS,
    INDEX,
    INTEGER_OPS,
    RANGE,
    REAL_OPS,
    WEIGHT,
    WIDE,
    roles,
)
from tfq.tflite.records import ABSENT, Op, Subgraph, Tensor

FLOATS = frozenset(
    {"float32", "float16", "bfloat16", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"}
)
NARROW = frozenset({"int4", "uint4", "int2"})
# Op -> the types with fewer than 8 bits that its weights may have with float activations in LiteRT. Other kernels
# reject them, and CONV_2D crashes on int2 or computes NaN. Measured on ai-edge-litert 2.3.0 with models of one op.
NARROW_HYBRID = {"CONV_2D": frozenset({"int4"}), "FULLY_CONNECTED": frozenset({"int4", "int2"})}
INDEX_TYPES = ("int32", "int64", "bool", "string")
# Types of references to a variable, a table or a list, which have no values.
HANDLES = frozenset({"resource", "variant"})


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A tensor of an op with a type that the scheme does not allow there.

    Attributes:
        place: "input", "output" or "intermediate".
        slot: Its number among the op's inputs or outputs.
        tensor: Its index in the subgraph.
        dtype: Its type.
        expected: The type that it should have.
    """

    place: str
    slot: int
    tensor: int
    dtype: str
    expected: str


def has_raw_scale(tensor: Tensor) -> bool:
    """Check whether the values of an integer tensor are the integers themselves: scale 1 and zero point 0."""
    return tensor.scale == (1.0,) and tensor.zero_point == (0,)


class Borders:
    """The inputs and outputs of the model in one subgraph, and the types that they may have."""

    def __init__(
        self,
        graph: Subgraph,
        input_types: Sequence[str],
        output_types: Sequence[str],
        *,
        accepts_raw: bool,
        is_entry: bool,
    ) -> None:
        """Collect them.

        Args:
            graph: The subgraph.
            input_types: The types that the model's inputs may have.
            output_types: The types that the model's outputs may have.
            accepts_raw: Whether inputs with raw integers of any type are allowed.
            is_entry: Whether a caller can run the subgraph, so that its inputs and outputs are those of the model.
        """
        self._inputs = frozenset(graph.inputs) if is_entry else frozenset()
        self._outputs = frozenset(graph.outputs) if is_entry else frozenset()
        self._input_types, self._output_types, self._accepts_raw = input_types, output_types, accepts_raw

    def is_converter(self, op: Op, place: str, tensor: Tensor) -> bool:
        """Check whether `op` converts an allowed type of the model's input or output to or from the type inside."""
        if place == "input":
            if tensor.index not in self._inputs:
                return False
            if self._accepts_raw and has_raw_scale(tensor) and op.name in ("QUANTIZE", "CAST"):
                return True
            return tensor.dtype in self._input_types and op.name == "QUANTIZE"
        last = "DEQUANTIZE" if tensor.dtype == "float32" else "QUANTIZE"
        return tensor.index in self._outputs and tensor.dtype in self._output_types and op.name == last

    def is_border(self, op: Op) -> bool:
        """Check whether `op` quantizes or dequantizes an input or output of the model."""
        converts = op.name in ("QUANTIZE", "DEQUANTIZE")
        return converts and bool(self._inputs.intersection(op.inputs) or self._outputs.intersection(op.outputs))


class TypeRules:
    """The rules of full int8, or of another integer type, for the ops of one subgraph."""

    def __init__(
        self, graph: Subgraph, borders: Borders, real: str = "int8", weights: frozenset[str] = frozenset()
    ) -> None:
        """Prepare the rules for `graph`.

        Args:
            graph: The subgraph.
            borders: The model's inputs and outputs in it.
            real: The type of real values.
            weights: Further types that constant weights may have.
        """
        self._graph, self._borders, self._real, self._weights = graph, borders, real, weights
        self._plain = unquantized_integers(graph)

    def violations(self, op: Op) -> list[Violation]:
        """Return all tensors of `op` that violate the rules."""
        tensors = self._graph.tensors
        touched = roles(op)
        data = [tensors[index] for _, _, index, role in touched if role != INDEX and index not in self._plain]
        is_index_op = op.name in CONTROL_FLOW or (op.name in INTEGER_OPS and all(_is_index(tensor) for tensor in data))
        results = []
        for place, slot, index, role in touched:
            tensor = tensors[index]
            if is_index_op and index in self._plain:
                continue
            if role == WEIGHT and tensor.is_constant and tensor.dtype in self._weights:
                continue
            expected = _expected(op, tensor, role, is_index_op, self._real)
            if expected and not self._borders.is_converter(op, place, tensor):
                results.append(Violation(place=place, slot=slot, tensor=index, dtype=tensor.dtype, expected=expected))
        return results


def _is_index(tensor: Tensor) -> bool:
    return (tensor.dtype in INDEX_TYPES and not tensor.is_quantized) or tensor.dtype in HANDLES


def _expected(op: Op, tensor: Tensor, role: str, is_index_op: bool, real: str) -> str | None:
    """Return the type that the tensor should have, or None if it is allowed.

    Args:
        op: The op that uses the tensor.
        tensor: The tensor.
        role: Its role in the op.
        is_index_op: Whether all data of the op are unquantized integers, booleans, strings or handles.
        real: The type of real values.
    """
    dtype = tensor.dtype
    if dtype == real or dtype in HANDLES or role == RANGE or (role == WIDE and dtype == "int16"):
        return None
    if role == INDEX:
        return None if dtype in INDEX_TYPES else "an index or condition (int32, int64 or bool)"
    if role == BIAS:
        return None if dtype == "int32" else "int32"
    if dtype not in INDEX_TYPES:
        return real
    if is_index_op and not tensor.is_quantized:
        return None
    if dtype != "int32" or op.name in REAL_OPS or op.name in INTEGER_OPS:
        return real
    # QUANTIZE requantizes an int32 accumulator to int8.
    return real if tensor.is_quantized and not tensor.is_constant and op.name != "QUANTIZE" else None


def finding_kind(graph: Subgraph, op: Op, violations: Sequence[Violation]) -> str:
    """Return the kind of the finding about the types of `op`."""
    dtypes = {violation.dtype for violation in violations}
    if op.name in ("QUANTIZE", "DEQUANTIZE"):
        borders = {*graph.inputs, *graph.outputs}
        if dtypes & FLOATS or any(violation.tensor in borders for violation in violations):
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
    """Check whether `op` computes on float activations with integer weights, as dynamic-range quantization produces."""
    if op.name in ("QUANTIZE", "DEQUANTIZE", *CONTROL_FLOW):
        return False
    tensors = [(graph.tensors[index], role) for place, _, index, role in roles(op) if place == "input"]
    weights = any(
        tensor.is_constant and tensor.dtype in ("int8", "uint8", *NARROW) and role not in (INDEX, BIAS)
        for tensor, role in tensors
    )
    return weights and any(tensor.dtype in FLOATS and not tensor.is_constant for tensor, _ in tensors)


def narrow_hybrid_weights(graph: Subgraph, op: Op) -> frozenset[str]:
    """Return the types with fewer than 8 bits of the weights that `op` multiplies with float activations."""
    if not is_hybrid(graph, op):
        return frozenset()
    return NARROW & {graph.tensors[index].dtype for _, _, index, role in roles(op) if role == WEIGHT}


def is_strided_pointwise(graph: Subgraph, op: Op) -> bool:
    """Check whether `op` is a CONV_2D with integer weights of size 1x1 and a stride, which its shapes show."""
    if op.name != "CONV_2D" or len(op.inputs) < 2 or ABSENT in op.inputs[:2]:
        return False
    source, weights = (graph.tensors[index] for index in op.inputs[:2])
    output = graph.tensors[op.outputs[0]]
    if len(weights.shape) != 4 or len(source.shape) != 4 or len(output.shape) != 4:
        return False
    is_integer = weights.dtype in ("int8", "uint8", *NARROW)
    return is_integer and weights.shape[1:3] == (1, 1) and source.shape[1:3] != output.shape[1:3]


def lookups(graph: Subgraph) -> frozenset[int]:
    """Return the tensors whose values are copied from constants, such as the rows of an embedding table."""
    results: set[int] = set()
    for op in graph.ops:
        slots = COPIED_SLOTS.get(op.name, ())
        sources = [op.inputs[slot] for slot in slots if slot < len(op.inputs) and op.inputs[slot] != ABSENT]
        if sources and all(graph.tensors[index].is_constant or index in results for index in sources):
            results.update(op.outputs)
    return frozenset(results)


SMALL_WEIGHT = 1024


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """The types of one scheme.

    Attributes:
        activations: The type of activations.
        weights: The types of weights as the op reads them.
        biases: The types of biases as the op reads them.
        stored: The types of constants that a DEQUANTIZE expands.
        has_small_float_weights: Whether small weights may be float32.
    """

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
    "weight_only_int4": _Rule(
        activations="float32", weights=(), biases=_FLOAT, stored=("int4",), has_small_float_weights=True
    ),
    "weight_only_int2": _Rule(
        activations="float32", weights=(), biases=_FLOAT, stored=("int2",), has_small_float_weights=True
    ),
    "int16x8": _Rule(activations="int16", weights=("int8",), biases=("int64", "int32")),
}


class SchemeRules:
    """The rules of one scheme for the ops of one subgraph."""

    def __init__(self, graph: Subgraph, scheme: str, borders: Borders) -> None:
        """Prepare the rules.

        Args:
            graph: The subgraph.
            scheme: A conversion scheme other than int8.
            borders: The model's inputs and outputs in this subgraph.
        """
        self._graph, self._rule, self._borders = graph, _RULES[scheme], borders
        self._plain, self._lookups = unquantized_integers(graph), lookups(graph)
        self._sources = {
            op.outputs[0]: graph.tensors[op.inputs[0]]
            for op in graph.ops
            if op.name == "DEQUANTIZE" and op.inputs and op.outputs and op.inputs[0] >= 0
        }

    def violations(self, op: Op) -> list[Violation]:
        """Return all tensors of `op` that violate the rules."""
        results = []
        for place, slot, index, role in roles(op):
            tensor = self._graph.tensors[index]
            # The stored constant is reported, not the output of the DEQUANTIZE.
            expanded = op.name == "DEQUANTIZE" and place == "output" and self._stored(tensor)
            expected = None if expanded or index in self._plain else self._expected(op, tensor, role)
            if expected and not self._borders.is_converter(op, place, tensor):
                shown = self._stored(tensor) or tensor
                results.append(
                    Violation(place=place, slot=slot, tensor=shown.index, dtype=shown.dtype, expected=expected)
                )
        return results

    def _stored(self, tensor: Tensor) -> Tensor | None:
        """Return the constant that a DEQUANTIZE expands to `tensor`, or None."""
        source = self._sources.get(tensor.index)
        return source if source and source.is_constant else None

    def _expected(self, op: Op, tensor: Tensor, role: str) -> str | None:
        """Return the type that the tensor should have, or None if it is allowed."""
        rule = self._rule
        if tensor.dtype in HANDLES or role == RANGE or (role == WIDE and tensor.dtype == "int16"):
            return None
        if role == INDEX or (tensor.dtype in INDEX_TYPES and not tensor.is_quantized and role != BIAS):
            return None
        if tensor.index in self._lookups and tensor.dtype in rule.stored:
            return None
        stored = self._stored(tensor)
        if stored or (op.name == "DEQUANTIZE" and tensor.is_constant):
            dtype = (stored or tensor).dtype
            return None if dtype in rule.stored else alternatives((*rule.stored, *rule.weights))
        if role == WEIGHT and tensor.is_constant:
            small = rule.has_small_float_weights and math.prod(tensor.shape) < SMALL_WEIGHT
            if tensor.dtype in rule.weights or (small and tensor.dtype == "float32"):
                return None
            return alternatives(rule.weights) if rule.weights else f"{rule.stored[0]} with a DEQUANTIZE"
        if role == BIAS:
            return None if tensor.dtype in rule.biases else alternatives(rule.biases)
        if tensor.is_constant and rule.activations == "int16" and tensor.dtype == "int8":
            return None
        return None if tensor.dtype == rule.activations else rule.activations

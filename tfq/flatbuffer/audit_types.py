# SPDX-License-Identifier: Apache-2.0
"""Which dtypes each of an op's tensors may have in a full-int8 flatbuffer."""

from collections.abc import Sequence
from dataclasses import dataclass

from tfq.config import AuditConfig
from tfq.flatbuffer.op_roles import BIAS, CONTROL_FLOW, INDEX, INTEGER_OPS, REAL_OPS, roles
from tfq.flatbuffer.records import Op, Subgraph, Tensor

FLOATS = frozenset(
    {"float32", "float16", "bfloat16", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"}
)
NARROW = frozenset({"int4", "uint4", "int2"})
_INDEX_TYPES = ("int32", "int64", "bool")


@dataclass(frozen=True, kw_only=True)
class Offence:
    """One tensor of an op whose type full int8 does not have there."""

    place: str
    slot: int
    tensor: int
    dtype: str
    wanted: str


class TypeRules:
    """The rules for the ops of one subgraph."""

    def __init__(self, graph: Subgraph, config: AuditConfig, is_entry: bool) -> None:
        """is_entry: whether a caller can run the subgraph, so that its inputs and outputs are the model's borders."""
        self._graph, self._config = graph, config
        self._inputs = frozenset(graph.inputs) if is_entry else frozenset()
        self._outputs = frozenset(graph.outputs) if is_entry else frozenset()

    def offences(self, op: Op) -> list[Offence]:
        """Every tensor of `op` that breaks the rules."""
        tensors = self._graph.tensors
        touched = roles(op)
        data = [tensors[index] for _, _, index, role in touched if role != INDEX]
        whole = op.name in CONTROL_FLOW or (op.name in INTEGER_OPS and all(_is_whole(tensor) for tensor in data))
        found = []
        for place, slot, index, role in touched:
            tensor = tensors[index]
            wanted = _wanted(op, tensor, role, whole)
            if wanted and not self._is_border(op, place, tensor):
                found.append(Offence(place=place, slot=slot, tensor=index, dtype=tensor.dtype, wanted=wanted))
        return found

    def _is_border(self, op: Op, place: str, tensor: Tensor) -> bool:
        """Whether `op` turns the type that was asked for at the model's border into int8, or back."""
        if place == "input":
            asked = self._config.inference_input_type
            return tensor.index in self._inputs and tensor.dtype == asked and op.name == "QUANTIZE"
        asked = self._config.inference_output_type
        last = "DEQUANTIZE" if asked == "float32" else "QUANTIZE"
        return tensor.index in self._outputs and tensor.dtype == asked and op.name == last


def _is_whole(tensor: Tensor) -> bool:
    return tensor.dtype in _INDEX_TYPES and not tensor.is_quantized


def _wanted(op: Op, tensor: Tensor, role: str, whole: bool) -> str | None:
    """The type that the tensor should have, None when it has it. whole: all data of the op are whole numbers."""
    dtype = tensor.dtype
    if dtype == "int8":
        return None
    if role == INDEX:
        return None if dtype in _INDEX_TYPES else "an index or condition (int32, int64 or bool)"
    if role == BIAS:
        return None if dtype == "int32" else "int32"
    if dtype not in _INDEX_TYPES:
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

# SPDX-License-Identifier: Apache-2.0
"""Audit rules for tensors: scales, sizes, shapes and granularity; and the weights with their stored types and zeros."""

import collections
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfq.auditing.parameters import SMALLEST_NORMAL, parameter_faults
from tfq.auditing.report import FAILS, NOTE, Finding, Weight, op_title
from tfq.errors import InputError
from tfq.text_table import shown
from tfq.tflite.index_values import quantized_indices, unquantized_integers
from tfq.tflite.op_types import CHANNEL_AXES, INDEX, WEIGHT, roles
from tfq.tflite.records import ABSENT, Model, Op, Subgraph, Tensor, constant_values

DENSE = "FULLY_CONNECTED"


def weights_of(data: bytes, model: Model) -> tuple[Weight, ...]:
    """Return every weight of the model, once, in the order of the ops that read them; `model` was read from `data`."""
    # In a malicious file many tensors may share one buffer; the budget limits the work.
    budget = 2 * len(data)
    results = []
    for op, tensor in _stored_weights(model):
        zeros = None
        if tensor.buffer_bytes <= budget:
            budget -= tensor.buffer_bytes
            zeros = _zeros(data, tensor)
        axis = CHANNEL_AXES.get(op.name)
        results.append(
            Weight(
                tensor=tensor.name,
                keras_layer=op.keras_layer,
                op=op.name,
                dtype=tensor.dtype,
                bytes=tensor.buffer_bytes,
                values=math.prod(tensor.shape),
                zeros=zeros,
                channels=tensor.shape[axis] if axis is not None and tensor.shape else 1,
                scales=len(tensor.scale),
            )
        )
    return tuple(results)


def weight_counts(weights: tuple[Weight, ...]) -> dict[str, Any]:
    """Return the counts of weights for a report: by granularity (of all, and of dense layers) and by type."""
    dense = [weight for weight in weights if weight.op == DENSE]
    return {
        "weights_per_channel": _count(weights, many=True),
        "weights_per_tensor": _count(weights, many=False),
        "dense_per_channel": _count(dense, many=True),
        "dense_per_tensor": _count(dense, many=False),
        "weight_types": dict(collections.Counter(weight.dtype for weight in weights)),
    }


def _count(weights: Any, *, many: bool) -> int:
    # A weight with one channel has one scale either way, so it shows nothing if there are other weights.
    return sum(weight.scales > 1 if many else weight.scales == 1 for weight in weights)


def _stored_weights(model: Model) -> Iterator[tuple[Op, Tensor]]:
    for graph in model.subgraphs:
        stored = _dequantized_from(graph)
        seen = {ABSENT}
        for op in graph.ops:
            for _, _, index, role in roles(op):
                index = stored.get(index, index)
                if role == WEIGHT and index not in seen and graph.tensors[index].is_constant:
                    seen.add(index)
                    yield op, graph.tensors[index]


def _dequantized_from(graph: Subgraph) -> dict[int, int]:
    """Return output -> input of each DEQUANTIZE."""
    return {op.outputs[0]: op.inputs[0] for op in graph.ops if op.name == "DEQUANTIZE" and op.inputs and op.outputs}


def _zeros(data: bytes, tensor: Tensor) -> int | None:
    try:
        values = constant_values(data, tensor)
    except InputError:
        return None
    zero_point: Any = 0
    if len(set(tensor.zero_point)) > 1:
        shape = [1] * values.ndim
        shape[tensor.quantized_dimension] = -1
        zero_point = np.reshape(tensor.zero_point, shape)
    elif tensor.zero_point:
        zero_point = tensor.zero_point[0]
    return int(np.count_nonzero(values == zero_point))


_VALUE_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int32": (-(2**31), 2**31 - 1)}
_BITS = {"int4": 4, "uint4": 4, "int2": 2, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8}
_UNSIZED = ("string", "resource", "variant")


def entries(model: Model) -> tuple[Subgraph, ...]:
    """Return the subgraphs that a caller can run: the main one, and those with a signature."""
    return tuple(graph for graph in model.subgraphs if is_entry(model, graph))


def is_entry(model: Model, graph: Subgraph) -> bool:
    """Check whether a caller can run `graph`, so that its inputs and outputs are those of the model."""
    return graph.index == 0 or any(signature.subgraph == graph.index for signature in model.signatures)


def touched(graph: Subgraph) -> dict[int, Op | None]:
    """Return tensor index -> an op that uses it, for all tensors in use.

    It is the op that computes the tensor, or else the first one that reads it, or None for an unused input or output.
    """
    owners: dict[int, Op | None] = {}
    for op in graph.ops:
        owners.update(dict.fromkeys((index for index in op.outputs if index not in owners), op))
    for op in graph.ops:
        owners.update(dict.fromkeys((index for index in op.tensors if index not in owners), op))
    return {**dict.fromkeys((*graph.inputs, *graph.outputs)), **owners}


def tensor_findings(model: Model, graph: Subgraph) -> Iterator[Finding]:
    """Yield findings about scales, zero points and sizes that interpreters refuse, and about dynamic shapes."""
    borders = {*graph.inputs, *graph.outputs} if is_entry(model, graph) else set()
    indices = {tensor for op in graph.ops for _, _, tensor, role in roles(op) if role == INDEX}
    indices |= unquantized_integers(graph)
    owners = touched(graph)
    for index in quantized_indices(graph):
        tensor = graph.tensors[index]
        wrong = (
            f"is {tensor.dtype} with scale {tensor.scale[0]:.4g} and is used as an index, which must be exact: "
            "convert again with tfq, or feed indices as int32"
        )
        yield _finding(graph, owners.get(index), tensor, "quantized_index", FAILS, wrong)
    dynamic = []
    for index, op in owners.items():
        tensor = graph.tensors[index]
        for kind, wrong in _tensor_faults(tensor, is_index=index in indices):
            yield _finding(graph, op, tensor, kind, FAILS, wrong)
        if tensor.is_dynamic:
            dynamic.append(index)
    at_border = [index for index in dynamic if index in borders]
    for index in at_border:
        tensor = graph.tensors[index]
        wrong = (
            f"has the dynamic shape {tensor.shape_signature[:16]}, expected fixed dimensions, which browsers and "
            "delegates require: convert with conversion.batch_size=1"
        )
        yield _finding(graph, None, tensor, "dynamic_shape", NOTE, wrong)
    if len(dynamic) > len(at_border):
        tensor = graph.tensors[next(index for index in dynamic if index not in borders)]
        others = len(dynamic) - len(at_border) - 1
        wrong = f"and {others} other inner tensors have dynamic shapes, so delegates skip their ops"
        yield _finding(graph, owners[tensor.index], tensor, "dynamic_shape", NOTE, wrong)


def _tensor_faults(tensor: Tensor, is_index: bool) -> Iterator[tuple[str, str]]:
    """Yield (kind, fault) of the tensor, independent of the ops that use it."""
    if tensor.dtype == "int8" and not tensor.is_quantized and not is_index:
        wrong = "is int8 without scale and zero_point, so its values cannot be interpreted: convert again"
        yield "missing_quantization", wrong
    if tensor.dtype in _VALUE_RANGES and tensor.is_quantized:
        # XNNPACK ignores the scale of a bias, which is a product of two scales and may be subnormal.
        least = SMALLEST_NORMAL if tensor.dtype != "int32" else math.ulp(0.0)
        bad = [scale for scale in tensor.scale if not (least <= scale < math.inf)]
        if bad:
            wrong = (
                f"has {len(bad)} of {len(tensor.scale)} scales like {bad[0]:g}, expected positive normal "
                "numbers, which XNNPACK requires: give all-zero channels and ranges a minimum width before conversion"
            )
            yield "bad_scale", wrong
        lowest, highest = _VALUE_RANGES[tensor.dtype]
        off = [zero for zero in tensor.zero_point if not lowest <= zero <= highest]
        if off:
            wrong = f"has the zero_point {off[0]}, expected {lowest} to {highest} for {tensor.dtype}: convert again"
            yield "bad_zero_point", wrong
    expected = _expected_bytes(tensor)
    if expected is not None and expected != tensor.buffer_bytes:
        wrong = (
            f"has {tensor.buffer_bytes} bytes, expected {expected} for {tensor.dtype} {tensor.shape[:16]}: "
            "the interpreter refuses it: convert again"
        )
        yield "buffer_size", wrong


def _expected_bytes(tensor: Tensor) -> int | None:
    if not tensor.is_constant or tensor.is_sparse or tensor.dtype in _UNSIZED:
        return None
    return math.ceil(math.prod(tensor.shape) * _bits(tensor.dtype) / 8)


@functools.cache
def _bits(dtype: str) -> int:
    return _BITS.get(dtype) or np.dtype(dtype).itemsize * 8


def parameter_findings(data: bytes, graph: Subgraph) -> Iterator[Finding]:
    """Yield findings about quantization parameters that the op's kernel does not honor, each tensor once per kind."""
    seen = set()
    for op in graph.ops:
        for tensor, kind, wrong in parameter_faults(data, graph, op):
            if (tensor.index, kind) not in seen:
                seen.add((tensor.index, kind))
                yield _finding(graph, op, tensor, kind, FAILS, wrong)


def weight_findings(model: Model) -> Iterator[Finding]:
    """Yield a note if convolution weights have only one scale, because per_channel weights lose less accuracy."""
    results: dict[tuple[int, int], tuple[Subgraph, Op, Tensor]] = {}
    for graph in model.subgraphs:
        for op in graph.ops:
            if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"):
                continue
            for _, _, index, role in roles(op):
                tensor = graph.tensors[index]
                channels = tensor.shape[-1 if op.name == "DEPTHWISE_CONV_2D" else 0] if tensor.shape else 1
                if role == WEIGHT and tensor.is_constant and len(tensor.scale) == 1 and channels > 1:
                    results.setdefault((graph.index, index), (graph, op, tensor))
    if results:
        graph, op, tensor = next(iter(results.values()))
        others = f"and {len(results) - 1} other convolution weights have"
        wrong = f"{others if len(results) > 1 else 'has'} one scale (per_tensor); per_channel scales lose less accuracy"
        yield _finding(graph, op, tensor, "per_tensor_weights", NOTE, wrong)


def _finding(graph: Subgraph, op: Op | None, tensor: Tensor, kind: str, severity: str, wrong: str) -> Finding:
    where: dict[str, Any] = {"subgraph": graph.index, "tensor": shown(tensor.name)}
    title = f"subgraph {graph.index}"
    if op:
        where |= {"op_index": op.index, "op": op.name, "keras_layer": op.keras_layer}
        title = op_title(graph, op)
    message = f"{title}: tensor {shown(tensor.name)} {wrong}"
    return Finding(kind=kind, severity=severity, message=message, **where)

# SPDX-License-Identifier: Apache-2.0
"""Find the tensors of a graph that contain indices: positions, class numbers, sizes.

They must not be quantized. For example, one step of an int8 tensor with scale 7.84 is eight rows of a lookup table.
"""

from collections.abc import Callable

from tfq.tflite.op_types import COPYING_OPS, INDEX, names, roles
from tfq.tflite.records import Op, Subgraph, Tensor

# Ops that move integers or compute on them, and ops that round real values to integers. Other ops compute new values:
# comparisons, ARG_MAX, and ops that compute on weights.
_KEEP_INDICES = COPYING_OPS | names("""
    CAST CONCATENATION PACK UNPACK SPLIT SPLIT_V GATHER_ND SCATTER_ND PAD PADV2 MIRROR_PAD BROADCAST_TO
    REVERSE_SEQUENCE SELECT SELECT_V2 TOPK_V2 DYNAMIC_UPDATE_SLICE QUANTIZE DEQUANTIZE ADD ADD_N SUB MUL DIV FLOOR_DIV
    FLOOR_MOD MINIMUM MAXIMUM NEG ABS SQUARE POW RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 CUMSUM SUM REDUCE_MAX REDUCE_MIN
    REDUCE_PROD FLOOR CEIL ROUND BUCKETIZE BITWISE_XOR RIGHT_SHIFT BITCAST
    """)


def index_tensors(graph: Subgraph, op: Op | None = None) -> frozenset[int]:
    """Return the tensors of `graph` whose values become indices: those that an op reads as indices, and their sources.

    Sources are followed through ops that move values or compute on them, in any type. Constants and conditions (bool)
    are left out. The output of an op that computes on weights is a source; its inputs are not.

    Args:
        graph: The subgraph.
        op: Consider only the indices that this op reads; None means those of all ops.
    """
    ops = graph.ops if op is None else (op,)
    pending = [tensor for item in ops for place, _, tensor, role in roles(item) if place == "input" and role == INDEX]
    results: set[int] = set()
    while pending:
        index = pending.pop()
        tensor = graph.tensors[index]
        if index in results or tensor.is_constant or tensor.dtype == "bool":
            continue
        results.add(index)
        source = graph.producers.get(index)
        if source is None or source.name not in _KEEP_INDICES:
            continue
        own_indices = {tensor for place, _, tensor, role in roles(source) if place == "output" and role == INDEX}
        if index not in own_indices or source.name == "BUCKETIZE":
            pending += [tensor for place, _, tensor, role in roles(source) if place == "input" and role != INDEX]
    return frozenset(results)


def inputs_read_by_casts(graph: Subgraph, accepts: Callable[[Tensor, Tensor], bool]) -> dict[int, list[int]]:
    """Return {input: its readers' op indices} for the inputs that only CAST ops read.

    Args:
        graph: The subgraph.
        accepts: (input, output of a CAST) -> whether this CAST may read the input. All of them must be accepted.
            Outputs of the graph never are.
    """
    outputs, results = set(graph.outputs), {}
    for index in graph.inputs:
        readers = graph.readers.get(index, ())
        tensors = [graph.tensors[op.outputs[0]] for op in readers if op.name == "CAST"]
        if (
            readers
            and len(tensors) == len(readers)
            and index not in outputs
            and not any(tensor.index in outputs for tensor in tensors)
            and all(accepts(graph.tensors[index], tensor) for tensor in tensors)
        ):
            results[index] = [op.index for op in readers]
    return results


_INTEGERS = ("int32", "int64", "bool", "int8", "uint8", "int16", "uint16", "uint32")


def unquantized_integers(graph: Subgraph) -> frozenset[int]:
    """Return the 8-bit and 16-bit tensors that have plain integers, such as class numbers, and need no scale.

    They are inputs that only CAST reads, what CAST computes from other unquantized integers, and copies of these.
    """
    small = {
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.dtype in _INTEGERS[3:] and not tensor.is_quantized and not tensor.is_constant
    }
    results = set()
    for index in small.intersection(graph.inputs):
        readers = graph.readers.get(index, ())
        if readers and all(op.name == "CAST" for op in readers):
            results.add(index)
    for op in graph.ops:
        if op.name != "CAST" and op.name not in COPYING_OPS:
            continue
        source = graph.tensors[op.inputs[0]]
        is_plain = source.dtype in _INTEGERS[:3] and not source.is_quantized and op.name == "CAST"
        if is_plain or source.index in results:
            results |= small.intersection(op.outputs)
    return frozenset(results)


def quantized_indices(graph: Subgraph, op: Op | None = None) -> tuple[int, ...]:
    """Return the tensors of `index_tensors` that have a scale, in ascending order."""
    return tuple(index for index in sorted(index_tensors(graph, op)) if graph.tensors[index].is_quantized)

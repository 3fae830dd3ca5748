# SPDX-License-Identifier: Apache-2.0
"""Replace ops that TensorFlow's quantizer (2.21) handles badly by ops that compute the same function.

In the float flatbuffer, before the quantizer:

- Ops that the quantizer leaves in float are replaced by equivalent ops with integer kernels, bit-exact: a square
  becomes a product.
- Unbounded exponentials are replaced by bounded ones. The converter writes softplus as log(1 + exp(x)). In int8, the
  range of the exponential would be that of the largest x. One step of it would exceed all values that the logarithm can
  distinguish, and a "full int8" model would have lost its function. The same applies to exp(x) - 1 in SELU, which is
  only used for x < 0.

In the integer flatbuffer, after the quantizer: ops that the quantizer does not support, but that have an int8 kernel,
read and write the quantized values around their float island.

In the frozen graph: Keras 3's argmax and argmin test the sign bit of floats with a BitwiseAnd, and replace -0.0 by the
smallest normal float, so that it sorts before 0.0. TFLite has no op for this test, so a model that ends in an argmax
could not be converted. The test is removed. An int8 tensor has no -0.0. In float, both zeros are then equal, and the
first of equal values wins, as in TensorFlow's own argmax.
"""

import collections
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq import tflite
from tfq.conversion.graph_editing import (
    add_constant,
    add_tensor,
    constant_of,
    name_of,
    new_op,
    remove_unread_ops,
    replace_op,
    scale_of,
    sizes_of,
)
from tfq.quant_math import dequantize, quantize
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES

_FLOAT32, _BOOL, _INT8 = (TENSOR_TYPES.index(name) for name in ("float32", "bool", "int8"))
# A metadata entry of litert-torch, as of 0.10.0.
_HIDES_CONSTANTS = b"keep_stablehlo_constant"
# Ops with several outputs. The quantizer leaves varying ones of them in float: quantizing the same bytes in one process
# gave three different results for the gates of an unrolled LSTM.
_DIVIDING = ("SPLIT", "SPLIT_V", "UNPACK")
_REWRITTEN = ("SQUARE", "NEG", "CAST", *_DIVIDING)
# Ops with an int8 kernel that the quantizer does not support.
_HAVE_KERNEL = ("ELU",)
# Ops that only output an index, which is the same for quantized and real values.
_INDEXING = ("ARG_MAX", "ARG_MIN")
# Ops that copy the quantized values of constants, to which the quantizer gives separate scales -> their positions.
_COPYING = {"ONE_HOT": (2, 3)}


def with_quantizable_ops(model: bytes) -> bytes:
    """Replace ops of a float flatbuffer by equivalent ops that the quantizer supports.

    Bit-exact: x² becomes x * x, -x becomes x * -1, a cast of a condition becomes a SELECT of 1 and 0, and SPLIT and
    UNPACK become one SLICE or STRIDED_SLICE for each part. Within float32 rounding: exponentials become bounded. All
    tensors keep their indices.
    """
    if tflite.operator_names(model).isdisjoint((*_REWRITTEN, "EXP")):
        return model
    edited = tflite.unpack(model)
    for graph in edited.subgraphs:
        bound_exponentials(edited, graph)
        parts = [_parts(edited, graph, op) for op in graph.operators]
        graph.operators = [op for ops in parts for op in ops]
        for op in graph.operators:
            _rewrite(edited, graph, op)
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model))


def with_visible_constants(model: bytes) -> bytes:
    """Return the float flatbuffer without the metadata entry that hides its constants from TensorFlow's quantizer.

    litert-torch writes `keep_stablehlo_constant`. TensorFlow's importer then represents constants as StableHLO ops. The
    quantizer does not find the weights there, and leaves the layers in float.
    """
    if _HIDES_CONSTANTS not in model:  # bytes in bytes: most files end here, without being parsed
        return model
    edited = tflite.unpack(model)
    edited.metadata = [entry for entry in edited.metadata or [] if entry.name != _HIDES_CONSTANTS]
    return tflite.pack(edited, len(model))


def without_unread_ops(model: bytes) -> bytes:
    """Return the flatbuffer without the ops whose outputs are not read, such as the unused part of a split.

    litert-quantizer 0.11 quantizes the input of such an op but leaves its output in float, so the file cannot run.
    """
    edited = tflite.unpack(model)
    if not sum([remove_unread_ops(graph) for graph in edited.subgraphs]):
        return model
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model))


def with_int8_kernels(model: bytes) -> bytes:
    """Make ELU, ARG_MAX and ARG_MIN of an integer flatbuffer compute in int8, and fix the constants of ONE_HOT.

    ELU uses the scales around its float island. ARG_MAX and ARG_MIN come after a DEQUANTIZE in QAT models. The
    constants of ONE_HOT get the scale of its output, because its kernel copies quantized values: a 0 copied from an
    operand with another scale would mean 0.5.
    """
    if tflite.operator_names(model).isdisjoint((*_HAVE_KERNEL, *_INDEXING, *_COPYING)):
        return model
    edited = tflite.unpack(model)
    if sum(_use_int8_kernels(edited, graph) + _rescale_constants(edited, graph) for graph in edited.subgraphs) == 0:
        return model
    tflite.remove_unused_operator_codes(edited)
    tflite.remove_unused_tensors(edited)
    return tflite.pack(edited, len(model))


def _parts(edited: Any, graph: Any, op: Any) -> list[Any]:
    """Return one op for each output of an op that divides a float tensor; any other op unchanged."""
    name, outputs = tflite.operator_name(edited, op), [graph.tensors[int(index)] for index in op.outputs]
    if name not in _DIVIDING or any(tensor.type != _FLOAT32 for tensor in outputs):
        return [op]
    divided = int(op.inputs[1 if name == "SPLIT" else 0])
    sizes = np.array(sizes_of(graph.tensors[divided]), np.int32)
    axis = op.builtinOptions.axis if name == "UNPACK" else _axis(edited, graph, op.inputs[0 if name == "SPLIT" else 2])
    lengths = [1 if name == "UNPACK" or axis is None else sizes_of(tensor)[axis] for tensor in outputs]
    if axis is None or min(lengths) < 0:
        return [op]
    result, begin = [], np.zeros_like(sizes)
    for index, length in zip(op.outputs, lengths, strict=True):
        sizes[axis] = length
        if name == "UNPACK":
            result.append(_strided_slice(edited, graph, divided, int(index), begin, axis % len(sizes)))
        else:
            result.append(_slice(edited, graph, divided, int(index), begin, sizes))
        begin[axis] += length
    return result


def _slice(edited: Any, graph: Any, divided: int, part: int, begin: Any, sizes: Any) -> Any:
    from ai_edge_litert import schema_py_generated as generated

    inputs = [divided, *(add_constant(edited, graph, item, np.int32) for item in (begin, sizes))]
    return new_op(edited, "SLICE", inputs, part, generated.BuiltinOptions.SliceOptions, generated.SliceOptionsT())


def _strided_slice(edited: Any, graph: Any, divided: int, part: int, begin: Any, axis: int) -> Any:
    """Return a STRIDED_SLICE of one index along `axis`, which the output does not have."""
    from ai_edge_litert import schema_py_generated as generated

    options = generated.StridedSliceOptionsT()
    options.shrinkAxisMask = 1 << axis
    options.beginMask = options.endMask = (1 << len(begin)) - 1 - options.shrinkAxisMask
    numbers = (begin, begin + 1, np.ones_like(begin))
    inputs = [divided, *(add_constant(edited, graph, item, np.int32) for item in numbers)]
    return new_op(edited, "STRIDED_SLICE", inputs, part, generated.BuiltinOptions.StridedSliceOptions, options)


def _axis(edited: Any, graph: Any, index: Any) -> int | None:
    """Return the value of a constant int32 scalar; None if the tensor is not a constant."""
    values = constant_of(edited, graph, index, "int32")
    return None if values is None else int(values[0])


def _rewrite(edited: Any, graph: Any, op: Any) -> None:
    from ai_edge_litert import schema_py_generated as generated

    name, first = tflite.operator_name(edited, op), int(op.inputs[0])
    is_float = graph.tensors[int(op.outputs[0])].type == _FLOAT32
    if not is_float or (name != "CAST" and graph.tensors[first].type != _FLOAT32):
        return
    if name in ("SQUARE", "NEG"):
        factor = first if name == "SQUARE" else add_constant(edited, graph, -1.0)
        options = generated.MulOptionsT()
        replace_op(edited, op, "MUL", [first, factor], generated.BuiltinOptions.MulOptions, options)
    elif name == "CAST" and graph.tensors[first].type == _BOOL:
        one, zero = add_constant(edited, graph, 1.0), add_constant(edited, graph, 0.0)
        options = generated.SelectV2OptionsT()
        replace_op(edited, op, "SELECT_V2", [first, one, zero], generated.BuiltinOptions.SelectV2Options, options)


def _use_int8_kernels(edited: Any, graph: Any) -> int:
    """Let ops read and write the int8 tensors around them if no other op needs the float ones; return how many do."""
    named = [(tflite.operator_name(edited, op), op) for op in graph.operators]
    quantizes = [op for name, op in named if name == "QUANTIZE" and _is_int8(graph, op.outputs)]
    dequantizes = [op for name, op in named if name == "DEQUANTIZE" and _is_int8(graph, op.inputs)]
    dequantized_from = {int(op.outputs[0]): int(op.inputs[0]) for op in dequantizes}
    quantized_to = {int(op.inputs[0]): int(op.outputs[0]) for op in quantizes}
    chosen = {int(op.outputs[0]): op for name, op in named if name in _HAVE_KERNEL}

    def is_free(tensor: int, op: Any) -> bool:
        source, readers = int(op.inputs[0]), [item for item in graph.operators if tensor in map(int, item.inputs)]
        others = [item for item in readers if int(item.outputs[0]) not in chosen]
        return (
            (source in dequantized_from or source in chosen)
            and [int(item.outputs[0]) for item in others] == [quantized_to.get(tensor)]
            and tensor not in map(int, graph.outputs)
        )

    while blocked := [tensor for tensor, op in chosen.items() if not is_free(tensor, op)]:
        for tensor in blocked:
            del chosen[tensor]
    graph.operators = [op for op in graph.operators if not (op in quantizes and int(op.inputs[0]) in chosen)]
    for tensor, op in chosen.items():
        source, quantized = int(op.inputs[0]), graph.tensors[quantized_to[tensor]]
        # Layers are identified by the names of their output tensors.
        graph.tensors[tensor].name, quantized.name = quantized.name, graph.tensors[tensor].name
        op.inputs = [dequantized_from[source] if source in dequantized_from else quantized_to[source]]
        op.outputs = [quantized_to[tensor]]
    indexing = [(name, op) for name, op in named if name in _INDEXING and int(op.inputs[0]) in dequantized_from]
    for name, op in indexing:
        op.inputs = [dequantized_from[int(op.inputs[0])], *op.inputs[1:]]
        op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index(name), 2)
    needed = {int(index) for op in graph.operators for index in op.inputs} | set(map(int, graph.outputs))
    graph.operators = [op for op in graph.operators if op not in dequantizes or int(op.outputs[0]) in needed]
    return len(chosen) + len(indexing)


def _rescale_constants(edited: Any, graph: Any) -> int:
    """Quantize constants that ops copy with the scale of the output; return how many constants changed."""
    changed = 0
    for op in graph.operators:
        places = _COPYING.get(tflite.operator_name(edited, op), ())
        if not places or not _is_int8(graph, op.outputs):
            continue
        op.inputs = [int(index) for index in op.inputs]
        for place in places:
            stored = constant_of(edited, graph, op.inputs[place], "int8")
            if stored is None:
                continue
            values = dequantize(stored, *scale_of(graph, op.inputs[place]))
            shape = graph.tensors[op.inputs[place]].shape
            quantized = quantize(values.reshape(shape), *scale_of(graph, op.outputs[0]))
            constant = add_constant(edited, graph, quantized, np.int8)
            graph.tensors[constant].quantization = graph.tensors[int(op.outputs[0])].quantization
            op.inputs[place] = constant
            changed += 1
    return changed


def _is_int8(graph: Any, tensors: Any) -> bool:
    return bool(graph.tensors[int(tensors[0])].type == _INT8)


# Elementwise ops with a constant that may lie between the exponential and the SELECT.
_ELEMENTWISE = ("ADD", "SUB", "MUL", "DIV")
# The comparison op in "x op 0" -> the input (1 or 2) of the SELECT that is used for x < 0.
_BELOW = {"GREATER": 2, "GREATER_EQUAL": 2, "LESS": 1, "LESS_EQUAL": 1}


def bound_exponentials(edited: Any, graph: Any) -> None:
    """Replace unbounded exponentials of a float graph in place.

    - log(1 + exp(x)) becomes relu(x) - log(sigmoid(|x|)), equal within float32 rounding.
    - exp(x) that a SELECT only uses for x < 0 or x <= 0 becomes exp(min(x, 0)). The SELECT's output is bit-exact.
    """
    connections = _Graph(edited, graph)
    replaced: dict[int, list[Any]] = {}
    for op in graph.operators:
        if connections.name(op) != "EXP" or graph.tensors[int(op.outputs[0])].type != _FLOAT32:
            continue
        if softplus := connections.softplus(op):
            replaced |= {id(item): [] for item in softplus}
            replaced[id(softplus[-1])] = _bounded_softplus(edited, graph, int(op.inputs[0]), softplus[-1])
        elif connections.is_selected_below_zero(op):
            replaced[id(op)] = [_minimum(edited, graph, op), op]
    graph.operators = [item for op in graph.operators for item in replaced.get(id(op), [op])]


@dataclass
class _Graph:
    """The producers and readers of the tensors of a graph."""

    edited: Any
    graph: Any

    def __post_init__(self) -> None:
        """Index the graph."""
        self.outputs = {int(index) for index in self.graph.outputs}
        self.readers: dict[int, list[Any]] = collections.defaultdict(list)
        self.producers = {int(index): op for op in self.graph.operators for index in op.outputs}
        for op in self.graph.operators:
            for index in op.inputs:
                self.readers[int(index)].append(op)

    def name(self, op: Any) -> str:
        """Return the type of an op, such as "EXP"."""
        return str(tflite.operator_name(self.edited, op))

    def only_reader(self, op: Any) -> Any:
        """Return the only reader of the output of `op`; None if there are several, or it is an output of the model."""
        tensor = int(op.outputs[0])
        readers = self.readers[tensor]
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def softplus(self, exp: Any) -> list[Any]:
        """Return the ops of log(1 + exp(x)) if `exp` is the first of them; otherwise an empty list."""
        add = self.only_reader(exp)
        log = self.only_reader(add) if add is not None and self.name(add) == "ADD" else None
        if log is None or self.name(log) != "LOG" or add.builtinOptions.fusedActivationFunction:
            return []
        one = self._constant(next((index for index in add.inputs if int(index) != int(exp.outputs[0])), -1))
        return [exp, add, log] if one is not None and np.all(one == 1) else []

    def is_selected_below_zero(self, exp: Any) -> bool:
        """Check whether a SELECT only uses the result of `exp` if its input is below 0."""
        last, reader = exp, self.only_reader(exp)
        while reader is not None and self.name(reader) in _ELEMENTWISE and self._other_is_constant(reader, last):
            last, reader = reader, self.only_reader(reader)
        if reader is None or self.name(reader) not in ("SELECT", "SELECT_V2"):
            return False
        condition = self.producers.get(int(reader.inputs[0]))
        if condition is None or self.name(condition) not in _BELOW:
            return False
        place = [int(index) for index in reader.inputs].index(int(last.outputs[0]))
        zero = self._constant(condition.inputs[1])
        return (
            place == _BELOW[self.name(condition)]
            and int(condition.inputs[0]) == int(exp.inputs[0])
            and zero is not None
            and bool(np.all(zero == 0))
        )

    def _other_is_constant(self, op: Any, source: Any) -> bool:
        others = [index for index in op.inputs if int(index) != int(source.outputs[0])]
        return len(others) == 1 and self._constant(others[0]) is not None

    def _constant(self, index: int) -> Any:
        return None if index < 0 else constant_of(self.edited, self.graph, index)


def _bounded_softplus(edited: Any, graph: Any, x: int, log: Any) -> list[Any]:
    from ai_edge_litert import schema_py_generated as generated

    output = int(log.outputs[0])
    size, fraction, below, above = (
        add_tensor(graph, output, f"{name_of(graph, output)}/{part}")
        for part in ("absolute", "sigmoid", "logarithm", "relu")
    )
    kinds = generated.BuiltinOptions
    return [
        new_op(edited, "ABS", [x], size, kinds.AbsOptions, generated.AbsOptionsT()),
        new_op(edited, "LOGISTIC", [size], fraction),
        new_op(edited, "LOG", [fraction], below),
        new_op(edited, "RELU", [x], above),
        new_op(edited, "SUB", [above, below], output, kinds.SubOptions, generated.SubOptionsT()),
    ]


def _minimum(edited: Any, graph: Any, exp: Any) -> Any:
    """Let `exp` read min(x, 0); return the new MINIMUM."""
    from ai_edge_litert import schema_py_generated as generated

    x, output = int(exp.inputs[0]), int(exp.outputs[0])
    below = add_tensor(graph, x, f"{name_of(graph, output)}/minimum")
    exp.inputs = [below]
    options = generated.MaximumMinimumOptionsT()
    kind = generated.BuiltinOptions.MaximumMinimumOptions
    return new_op(edited, "MINIMUM", [x, add_constant(edited, graph, 0.0)], below, kind, options)


_LEAST = -float(np.finfo(np.float32).tiny)
_SIGN = np.iinfo(np.int32).min


def without_negative_zeros(graph_def: Any) -> Any:
    """Replace each `where(x == 0 and signbit(x), tiny, x)` of a frozen graph by x; return the graph."""
    nodes = {node.name: node for node in graph_def.node}
    for node in graph_def.node:
        if node.op == "SelectV2" and _is_for_negative_zeros(nodes, node):
            node.op = "Identity"
            del node.input[:2]
    return graph_def


def _is_for_negative_zeros(nodes: dict[str, Any], select: Any) -> bool:
    condition, least, x = select.input[:3]
    both = _inputs(nodes, condition, "LogicalAnd")
    if len(both) != 2:
        return False
    equal, less = _inputs(nodes, both[0], "Equal"), _inputs(nodes, both[1], "Less")
    masked = _inputs(nodes, less[0], "BitwiseAnd") if less else []
    bits = _inputs(nodes, masked[0], "Bitcast") if masked else []
    return (
        len(equal) == 2
        and equal[0] == x
        and bits == [x]
        and _is_constant(nodes, equal[1], 0)
        and _is_constant(nodes, less[1], 0)
        and _is_constant(nodes, masked[1], _SIGN)
        and _is_constant(nodes, least, _LEAST)
    )


def _inputs(nodes: dict[str, Any], source: str, op: str) -> list[str]:
    """Return the inputs of the node that computes `source` if it is an `op`; otherwise an empty list."""
    node = nodes.get(source)
    return [item for item in node.input if not item.startswith("^")] if node is not None and node.op == op else []


def _is_constant(nodes: dict[str, Any], source: str, value: float) -> bool:
    import tensorflow as tf

    node = nodes.get(source)
    return node is not None and node.op == "Const" and bool(np.all(tf.make_ndarray(node.attr["value"].tensor) == value))


def with_distinct_outputs(model: bytes) -> bytes:
    """Return a flatbuffer in which no tensor is an output twice: a RESHAPE to its own shape copies it.

    A signature has one name for each tensor. Layers that compute nothing in inference, such as Dropout, also return
    their input.
    """
    outputs = tflite.read(model).main_subgraph.outputs
    if len(set(outputs)) == len(outputs):
        return model
    from ai_edge_litert import schema_py_generated as generated

    edited = tflite.unpack(model)
    graph, distinct = edited.subgraphs[0], list[int]()
    entries = [entry for item in edited.signatureDefs or [] if item.subgraphIndex == 0 for entry in item.outputs]
    for index in outputs:
        if index in distinct:
            named = [entry for entry in entries if entry.tensorIndex == index]
            copy = add_tensor(graph, index, f"{name_of(graph, index)}_copy_{len(distinct)}")
            graph.tensors[copy].quantization = graph.tensors[index].quantization
            sizes, options = sizes_of(graph.tensors[index]), generated.ReshapeOptionsT()
            options.newShape = sizes
            shape = add_constant(edited, graph, sizes, np.int32)
            kind = generated.BuiltinOptions.ReshapeOptions
            graph.operators.append(new_op(edited, "RESHAPE", [index, shape], copy, kind, options))
            if len(named) > 1:
                named[1].tensorIndex = copy
            index = copy
        distinct.append(index)
    graph.outputs = distinct
    return tflite.pack(edited, len(model))

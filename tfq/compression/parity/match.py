# SPDX-License-Identifier: Apache-2.0
"""Match the tensors of a flatbuffer with the values of the QAT model that it was converted from.

A tensor has the names of the TensorFlow ops that were fused into it
("model/quant_relu/Relu;model/quant_bn/FusedBatchNormV3;..."). The traced model has ops of the same names. The tensor
corresponds to the last of them, after its fake quantization. Conversion adds the names of weights as well, which do
not depend on the model's inputs.
"""

import itertools
import math
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.conversion.freeze import frozen_graph
from tfq.conversion.tracing import Trace
from tfq.errors import InputError
from tfq.native_stderr import captured_stderr
from tfq.tflite import Subgraph, Tensor

# The range is an input of the first op, and an attribute of the second.
_FAKE_QUANT_OPS = _WITH_VARIABLES, _WITH_ATTRIBUTES = "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs"
_ADDITIONS = ("Add", "AddV2", "BiasAdd", "Sub")
_SCATTERS, _GATHERS = "SpaceToBatchND", "BatchToSpaceND"
# IdentityN wraps ops that define their own gradient, such as swish: its first output is its first input.
_IDENTITY_OPS = ("Identity", "IdentityN", "StopGradient", "PreventGradient", "CheckNumerics")
# Ops before and after the main op of a layer, such as a Conv1D or a Dense on sequences, that keep values and order.
_RESHAPES = ("Reshape", "ExpandDims", "Squeeze")


class ReferenceGraph:
    """The frozen graph of a traced QAT model.

    A value is the name of an op and the index of its output, such as "model/relu/Relu:0".

    Attributes:
        inputs: Values of the model's inputs.
        outputs: Values of the model's outputs.
    """

    def __init__(self, traced: Trace) -> None:
        """Freeze the graph of a trace."""
        self._graph_def = frozen_graph(traced)
        self._nodes = {node.name: node for node in self._graph_def.node}
        self._layers = traced.layer_names
        self.inputs = [tensor.name for tensor in traced.function.inputs[: len(traced.input_names)]]
        self.outputs = [tensor.name for tensor in traced.function.outputs]
        self._position = {name: index for index, name in enumerate(_topological_order(self._nodes))}
        self._consumers: dict[str, list[str]] = {}
        self._data = {_op(value) for value in self.inputs}
        # Ops of dilated convolutions on interleaved images. No tensor of the flatbuffer has this order.
        self._scattered: set[str] = set()
        for name in self._position:
            sources, kind = _inputs(self._nodes[name]), self._nodes[name].op
            for source in sources:
                self._consumers.setdefault(source, []).append(name)
                if _op(source) in self._data:
                    self._data.add(name)
            if kind == _SCATTERS or (kind != _GATHERS and not self._scattered.isdisjoint(map(_op, sources))):
                self._scattered.add(name)

    def named_in(self, tensor_name: str, output: int = 0) -> list[str]:
        """Return the values of the ops in a tensor's name that depend on the model's inputs, in topological order.

        Args:
            tensor_name: Name of a tensor of the flatbuffer.
            output: Index of the output, for ops with several outputs if the name does not contain it.
        """
        results = {self._value_named(part, output) for part in tensor_name.split(";")}
        return sorted((value for value in results if value), key=self._order_of)

    def computed(self, value: str) -> str:
        """Return the value that `value` is computed from by fake quantization and identity ops only."""
        while source := _inputs(self._node(value))[0] if self._is_fake_quant(value) else self._identity_source(value):
            value = source
        return value

    def forms(self, value: str) -> list[str]:
        """Return `value` and all fake quantizations of it, in topological order."""
        result, pending = {value}, [value]
        while pending:
            source = pending.pop()
            for name in self._consumers.get(source, ()):
                consumer = f"{name}:0"
                if self._is_fake_quant(consumer):
                    result.add(consumer)
                if self._is_fake_quant(consumer) or self._identity_source(consumer) == source:
                    pending.append(consumer)
        return sorted(result, key=self._order_of)

    def grid(self, value: str) -> tuple[float, float] | None:
        """Return (scale, zero_point) of the int8 tensor for an 8-bit fake quantization; None for other values.

        scale = (max - min) / (2^8 - 1), or / (2^8 - 2) with a narrow range. The zero point is not rounded. Source:
        FakeQuantWithMinMaxVars.
        """
        node = self._node(value)
        if not self._is_fake_quant(value) or node.attr["num_bits"].i not in (0, 8):
            return None
        if node.op == _WITH_ATTRIBUTES:
            low, high = node.attr["min"].f, node.attr["max"].f
        else:
            ends = [self._constant(source) for source in _inputs(node)[1:3]]
            low, high = (float("nan") if end is None or end.size != 1 else float(end.reshape(())) for end in ends)
        narrow = int(node.attr["narrow_range"].b)
        scale = (high - low) / (255 - narrow)
        return (scale, -128 + narrow - low / scale) if scale > 0 else None

    def layer_of(self, value: str) -> str | None:
        """Return the name of the Keras layer that the value belongs to, without the prefix of its QAT wrapper."""
        for scope in reversed(_op(value).split("/")[:-1] or [_op(value)]):
            for candidate in (scope, re.sub(r"_\d+$", "", scope)):
                if candidate in self._layers:
                    return self._layers[candidate]
        return None

    def layers_between(self, value: str, cuts: Iterable[str]) -> list[str]:
        """Return the Keras layers of the ops that compute `value` from the values `cuts`, in topological order."""
        stops, seen, pending = set(cuts), {_op(value)}, [_op(value)]
        while pending:
            for source in _inputs(self._nodes[pending.pop()]):
                if _op(source) in self._data and _op(source) not in seen and source not in stops:
                    seen.add(_op(source))
                    pending.append(_op(source))
        layers = (self.layer_of(f"{name}:0") for name in sorted(seen, key=self._position.__getitem__))
        return list(dict.fromkeys(layer for layer in layers if layer))

    def has_fake_quant(self) -> bool:
        """Check whether the graph has any fake quantization."""
        return any(node.op in _FAKE_QUANT_OPS for node in self._nodes.values())

    def evaluator(self, cuts: Sequence[str] = ()) -> "Evaluator":
        """Return an evaluator of the graph, in which fed arrays replace the values `cuts`."""
        return Evaluator(self._graph_def, self.inputs, cuts)

    def _value_named(self, part: str, output: int) -> str | None:
        """Return the value of this name. Conversion appends numbers to equal names: Conv2D, Conv2D1."""
        name, _, number = part.partition(":")
        while name not in self._nodes and name[-1:].isdigit():
            name = name[:-1]
        if name not in self._data or name in self._scattered:
            return None
        return f"{name}:{number if number.isdigit() else output}"

    def _order_of(self, value: str) -> int:
        return self._position[_op(value)]

    def _node(self, value: str) -> Any:
        return self._nodes[_op(value)]

    def _is_fake_quant(self, value: str) -> bool:
        return self._node(value).op in _FAKE_QUANT_OPS

    def _identity_source(self, value: str) -> str | None:
        """Return the input that an op passes through: identities, reshapes inside a layer, additions of zero."""
        node = self._node(value)
        if node.op in _IDENTITY_OPS:
            return _inputs(node)[0]
        if node.op in _RESHAPES:
            source = _inputs(node)[0]
            return source if _op(source) in self._data and self.layer_of(source) == self.layer_of(value) else None
        if node.op not in _ADDITIONS:
            return None
        first, second = _inputs(node)
        if self._is_zero(second):
            return first
        return second if node.op != "Sub" and self._is_zero(first) else None

    def _is_zero(self, value: str) -> bool:
        constant = self._constant(value)
        return constant is not None and not np.any(constant)

    def _constant(self, value: str) -> NDArray | None:
        from tensorflow import make_ndarray

        while self._node(value).op in _IDENTITY_OPS:
            value = _inputs(self._node(value))[0]
        node = self._node(value)
        return np.asarray(make_ndarray(node.attr["value"].tensor)) if node.op == "Const" else None


class Evaluator:
    """A TensorFlow session with a graph, to be closed by `with`."""

    def __init__(self, graph_def: Any, inputs: Sequence[str], cuts: Sequence[str]) -> None:
        """Create the session.

        Args:
            graph_def: The graph.
            inputs: Values of the model's inputs.
            cuts: Values that are replaced by fed arrays.
        """
        import tensorflow as tf

        with tf.Graph().as_default() as graph:
            fed_values = {value: tf.compat.v1.placeholder(tf.float32, name=f"cut_{n}") for n, value in enumerate(cuts)}
            tf.import_graph_def(graph_def, input_map=fed_values, name="model")
        self._fed = [*(graph.get_tensor_by_name(f"model/{value}") for value in inputs), *fed_values.values()]
        self._graph = graph
        config = tf.compat.v1.ConfigProto()
        # The ops must run as they were trained, without Grappler's rewrites.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.compat.v1.Session(graph=graph, config=config)

    def __enter__(self) -> "Evaluator":
        """Return the evaluator."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the session."""
        self._session.close()

    def run(self, values: Sequence[str], inputs: Sequence[NDArray], fed: Sequence[NDArray] = ()) -> list[NDArray]:
        """Return the `values` for k examples, shapes (k, ...).

        Args:
            values: The values to compute.
            inputs: The model's inputs, shapes (k, ...).
            fed: An array (k, ...) for each cut.
        """
        feed = {
            tensor: np.asarray(array, tensor.dtype.as_numpy_dtype)
            for tensor, array in zip(self._fed, (*inputs, *fed), strict=True)
        }
        tensors = [self._graph.get_tensor_by_name(f"model/{value}") for value in values]
        with captured_stderr():
            return list(self._session.run(tensors, feed))


def _op(value: str) -> str:
    return value.partition(":")[0]


def _inputs(node: Any) -> list[str]:
    """Return the values that an op reads, without control dependencies."""
    return [name if ":" in name else f"{name}:0" for name in node.input if not name.startswith("^")]


def _topological_order(nodes: dict[str, Any]) -> Iterator[str]:
    """Yield the names of the ops in topological order."""
    done: set[str] = set()
    for root in nodes:
        pending = [root]
        while pending:
            name = pending[-1]
            missing = [] if name in done else [op for op in map(_op, _inputs(nodes[name])) if op not in done]
            if missing:
                pending += missing
                continue
            pending.pop()
            if name not in done:
                done.add(name)
                yield name


# The types of quantized activations. int32 tensors are biases and shapes.
_QUANTIZED_TYPES = ("int8", "uint8")
# Tolerances for rounding in float32: of a scale (relative), and of an unrounded zero point.
_SCALE_TOLERANCE, _ZERO_POINT_TOLERANCE = 1e-4, 0.51
# Ops whose inputs and outputs have one scale and zero point.
_SAME_SCALE_OPS = {
    "CONCATENATION",
    "PACK",
    "UNPACK",
    "SPLIT",
    "SPLIT_V",
    "PAD",
    "PADV",
    "MIRROR_PAD",
    "RESHAPE",
    "SQUEEZE",
}
_SAME_SCALE_OPS |= {"EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND", "TILE", "BROADCAST_TO"}
_SAME_SCALE_OPS |= {"SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "REVERSE_V2"}
_SAME_SCALE_OPS |= {"MAX_POOL_2D", "AVERAGE_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM"}
_SAME_SCALE_OPS |= {"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"}
_SELECT_OPS = {"SELECT", "SELECT_V2"}


@dataclass(frozen=True, kw_only=True)
class Match:
    """A tensor of the flatbuffer, and the value of the QAT model that it corresponds to.

    Attributes:
        tensor: The tensor.
        value: The value.
        values_per_example: Number of elements per example.
        rounded: Whether the value is fake-quantized.
        step: Smallest scale of a fake quantization of the same value, here or later; None without any.
        expected_grid: (scale, zero_point) of the value's fake quantization, if those of the tensor differ and no op
            couples the tensor to another one that has them; otherwise None.
        op: The op that produces the tensor, or "input".
        layers: The Keras layers that are fused into the tensor, in topological order.
        is_clipped: Whether the QAT model does not round the value, and all readers in the flatbuffer clip it to the
            range of its integers.
    """

    tensor: Tensor
    value: str
    values_per_example: int
    rounded: bool
    step: float | None
    expected_grid: tuple[float, float] | None
    op: str
    layers: tuple[str, ...]
    is_clipped: bool = False

    @property
    def layer(self) -> str:
        """The last of its layers, which names the tensor in reports."""
        return self.layers[-1]


def activation_tensors(graph: Subgraph) -> Iterator[tuple[Tensor, str, int]]:
    """Yield (tensor, op that produces it, index of the op's output) of each activation: inputs first, then by op."""
    for position, tensor in enumerate(graph.input_tensors):
        yield tensor, "input", position
    for op in graph.ops:
        for position, index in enumerate(op.outputs):
            yield graph.tensors[index], op.name, position


def candidates(graph: Subgraph, reference: ReferenceGraph, inputs: Sequence[str]) -> dict[int, list[str]]:
    """Return tensor index -> values that a tensor may correspond to, in topological order.

    Args:
        graph: The flatbuffer's graph.
        reference: The QAT model's graph.
        inputs: The value of each input of the flatbuffer.
    """
    results = {}
    for tensor, op, position in activation_tensors(graph):
        if tensor.dtype not in _QUANTIZED_TYPES or not tensor.is_quantized:
            continue
        if op == "input":
            results[tensor.index] = [inputs[position]]
        else:
            results[tensor.index] = reference.named_in(tensor.name, position)
    return results


def match(
    graph: Subgraph, reference: ReferenceGraph, named: Mapping[int, list[str]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Match], dict[str, str]]:
    """Match the tensors of a flatbuffer with values of the QAT model.

    Args:
        graph: The flatbuffer's graph.
        reference: The QAT model's graph.
        named: The result of `candidates`.
        shapes: Shape of each candidate value for one example.

    Returns:
        (matches in the order of `activation_tensors`, tensor name -> why it has no match).
    """
    ops = {tensor.index: op for tensor, op, _ in activation_tensors(graph)}
    origins: dict[str, list[Tensor]] = {}
    skipped = {}
    for index, values in named.items():
        tensor = graph.tensors[index]
        fitting = [value for value in values if value in shapes and _same_order(graph, tensor, shapes[value])]
        if fitting:
            origins.setdefault(reference.computed(fitting[-1]), []).append(tensor)
        elif values:
            layer = reference.layer_of(values[-1])
            skipped[tensor.name] = f"{layer} has another number or order of values in the QAT model"
        else:
            skipped[tensor.name] = "the QAT model has no op of this name"
    chosen: dict[int, str] = {}
    for value, tensors in origins.items():
        begin = _first_with_result([ops[tensor.index] for tensor in tensors])
        forms = _assign_forms(tensors[begin:], reference.forms(value), reference)
        chosen |= forms
        for tensor in tensors[:begin]:
            skipped[tensor.name] = (
                f"an intermediate result of tensor {tensors[begin].index}, which one op of the QAT model computes"
            )
        for tensor in tensors[begin:]:
            if tensor.index not in forms:
                skipped[tensor.name] = f"a requantization of tensor {tensors[begin].index}"
    other_grids = _with_other_grid(
        graph, {index: grid for index, value in chosen.items() if (grid := reference.grid(value))}
    )
    is_clipped = _clipped_tensors(graph)
    matches = [
        Match(
            tensor=graph.tensors[index],
            value=chosen[index],
            values_per_example=_values_per_example(graph, graph.tensors[index]),
            rounded=reference.grid(chosen[index]) is not None,
            step=_step(chosen[index], chosen.values(), reference),
            expected_grid=other_grids.get(index),
            op=ops[index],
            layers=_layers(chosen[index], list(chosen.values()), reference, graph.tensors[index].name),
            is_clipped=index in is_clipped and _step(chosen[index], chosen.values(), reference) is None,
        )
        for index in named
        if index in chosen
    ]
    return matches, skipped


def check_origin(matches: list[Match], named: Mapping[int, list[str]], model: str) -> None:
    """Raise InputError if the flatbuffer has no quantized activations, or was not converted from this model."""
    if not named:
        raise InputError(
            "the flatbuffer has no int8 activations: expected the int8 flatbuffer that was converted from this QAT "
            "model, got a float one, or one with quantized weights only",
            field="model",
            expected="int8 activations",
        )
    if not any(match.op != "input" for match in matches):
        raise InputError(
            f"no tensor of the flatbuffer has the name and size of a layer of {model!r}: expected the flatbuffer that "
            "was converted from this QAT model. Convert it again with tfq.convert(model)",
            field="model",
            expected=f"a flatbuffer of {model!r}",
        )


def _first_with_result(ops: list[str]) -> int:
    """Return the index of the first tensor that holds the result of an op, among tensors that are named after it.

    The result is the output of the last op that computes anything. Later ops move or requantize it.

    Args:
        ops: The op that produces each tensor.
    """
    computing = [index for index, op in enumerate(ops) if op not in _SAME_SCALE_OPS and op != "QUANTIZE"]
    return computing[-1] if computing else 0


def _assign_forms(tensors: list[Tensor], forms: list[str], reference: ReferenceGraph) -> dict[int, str]:
    """Assign the fake quantizations of one value to the tensors that hold it: by scale and zero point, else in order.

    Args:
        tensors: The tensors, in the order of the ops.
        forms: The value without rounding, followed by its fake quantizations.
        reference: The QAT model's graph.

    Returns:
        Tensor index -> value. A single tensor that has none of the grids is assigned the last form.
    """
    free, assigned = list(forms), {}
    for tensor in tensors:
        fitting = [form for form in free if (grid := reference.grid(form)) and _on_grid(tensor, grid)]
        if fitting:
            assigned[tensor.index] = fitting[0]
            free.remove(fitting[0])
    remaining = [tensor.index for tensor in tensors]
    if assigned:
        # Tensors before the first assigned one hold the value without rounding. Later ones are requantized for ops
        # such as CONCATENATION, which have another scale.
        remaining = list(itertools.takewhile(lambda index: index not in assigned, remaining))
        free = free[:1] if free[:1] == forms[:1] else []
    return assigned | dict(zip(remaining, free[-len(remaining) :] if remaining else [], strict=False))


def _with_other_grid(graph: Subgraph, grids: Mapping[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Return the `grids` of the tensors that have another scale or zero point, unless an op requires that.

    Ops that move or select values have one scale and zero point for all inputs and outputs, whatever the QAT model has.
    Source: TFLite 8-bit quantization specification, "Restriction: Inputs and outputs must all have same scale".
    """
    coupled: dict[int, set[int]] = {}
    for op in graph.ops:
        if op.name in _SAME_SCALE_OPS:
            indices = {index for index in (*op.inputs, *op.outputs) if index >= 0 and graph.tensors[index].is_quantized}
            for index in indices:
                coupled.setdefault(index, set()).update(indices)
    good = {index for index, grid in grids.items() if _on_grid(graph.tensors[index], grid)}
    results = {}
    for index in set(grids) - good:
        seen, pending = {index}, [index]
        while pending:
            for other in coupled.get(pending.pop(), set()) - seen:
                if _quantization(graph.tensors[other]) == _quantization(graph.tensors[index]):
                    seen.add(other)
                    pending.append(other)
        if not seen & good:
            results[index] = grids[index]
    return results


def _clipped_tensors(graph: Subgraph) -> set[int]:
    """Return the tensors that only MINIMUM and MAXIMUM read, which therefore have the scale of the clipped output.

    The same applies to the operands and outputs of the SELECT ops that mask the input of a softmax: their range ends at
    the masked values.
    """
    readers = {index: {op.name for op in ops} for index, ops in graph.readers.items()}
    masks = [op for op in graph.ops if op.name in _SELECT_OPS and readers.get(op.outputs[0]) == {"SOFTMAX"}]
    masked = {index for op in masks for index in op.inputs[1:] if readers[index] <= _SELECT_OPS}
    cut = {index for index, names in readers.items() if names <= {"MINIMUM", "MAXIMUM"}}
    return (cut | masked | {op.outputs[0] for op in masks}) - {*graph.outputs}


def _quantization(tensor: Tensor) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return tensor.scale, tensor.zero_point


def _on_grid(tensor: Tensor, grid: tuple[float, float]) -> bool:
    scale, zero_point = grid
    own = tensor.zero_point[0] - (128 if tensor.dtype == "uint8" else 0)
    return (
        len(tensor.scale) == 1
        and abs(tensor.scale[0] / scale - 1) < _SCALE_TOLERANCE
        and abs(own - zero_point) < _ZERO_POINT_TOLERANCE
    )


def _step(value: str, chosen: Collection[str], reference: ReferenceGraph) -> float | None:
    grids = [reference.grid(form) for form in reference.forms(reference.computed(value)) if form in chosen]
    return min((grid[0] for grid in grids if grid), default=None)


def _layers(value: str, cuts: list[str], reference: ReferenceGraph, name: str) -> tuple[str, ...]:
    layers = reference.layers_between(value, cuts)
    own = reference.layer_of(value)
    if own in layers:  # the tensor's layer is last, also after parallel branches
        layers.remove(own)
    return (*layers, own or name)


def _values_per_example(graph: Subgraph, tensor: Tensor) -> int:
    shapes = [item.shape for item in graph.input_tensors if item.shape]
    return math.prod(tensor.shape) // max(1, shapes[0][0] if shapes else 1)


def _same_order(graph: Subgraph, tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Check whether a tensor and a value of this shape have the same number and order of elements per example.

    The order is the same if the products of the trailing dimensions of one shape include those of the other: for
    (4, 6, 1) and (1, 24), but not for (4, 6) and (6, 4).
    """
    size = _values_per_example(graph, tensor)
    sizes, other_sizes = ({item for item in _trailing_sizes(dims) if item < size} for dims in (tensor.shape, shape))
    return math.prod(shape) == size and (sizes <= other_sizes or other_sizes <= sizes)


def _trailing_sizes(shape: tuple[int, ...]) -> set[int]:
    return set(itertools.accumulate(reversed(shape), operator.mul))

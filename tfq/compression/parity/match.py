# SPDX-License-Identifier: Apache-2.0
"""Match the tensors of a flatbuffer with the values of the QAT model that it was converted from.

A tensor is called after the TensorFlow ops fused into it ("model/quant_relu/Relu;model/quant_bn/FusedBatchNormV3;..."),
and a trace of the model has ops of just these names. The tensor is the last of them, behind its fake quantization.
Conversion puts names of weights in as well, which the data does not flow through.
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

# The ends of its range are inputs of the first, attributes of the second.
_FAKE_QUANTS = _LEARNED, _FIXED = "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs"
_ADDITIONS = ("Add", "AddV2", "BiasAdd", "Sub")
_SCATTERS, _GATHERS = "SpaceToBatchND", "BatchToSpaceND"
# IdentityN wraps ops that define their own gradient, such as swish: its first output is its first input.
_PASSES_ON = ("Identity", "IdentityN", "StopGradient", "PreventGradient", "CheckNumerics")
# Around the op that a layer is, as a Dense over sequences and a Conv1D have it: the same numbers in the same order.
_RESHAPES = ("Reshape", "ExpandDims", "Squeeze")


class ReferenceGraph:
    """The frozen graph of a trace. A value is an op's name and the number of its output: "model/relu/Relu:0"."""

    def __init__(self, traced: Trace) -> None:
        self._graph_def = frozen_graph(traced)
        self._nodes = {node.name: node for node in self._graph_def.node}
        self._layers = traced.layer_names
        self.inputs = [tensor.name for tensor in traced.function.inputs[: len(traced.input_names)]]
        self.outputs = [tensor.name for tensor in traced.function.outputs]
        self._place = {name: place for place, name in enumerate(_in_order(self._nodes))}
        self._consumers: dict[str, list[str]] = {}
        self._data = {_op(value) for value in self.inputs}
        # A dilated convolution's, cut into images of their own: no tensor of the flatbuffer has that order.
        self._scattered: set[str] = set()
        for name in self._place:
            sources, kind = _inputs(self._nodes[name]), self._nodes[name].op
            for source in sources:
                self._consumers.setdefault(source, []).append(name)
                if _op(source) in self._data:
                    self._data.add(name)
            if kind == _SCATTERS or (kind != _GATHERS and not self._scattered.isdisjoint(map(_op, sources))):
                self._scattered.add(name)

    def named_in(self, tensor_name: str, output: int = 0) -> list[str]:
        """Values of the ops in a tensor's name that compute something of the inputs, in the order of the graph.

        output: which output of an op that has several, where the name does not tell.
        """
        results = {self._value_named(part, output) for part in tensor_name.split(";")}
        return sorted((value for value in results if value), key=self._order_of)

    def computed(self, value: str) -> str:
        """What `value` is before any fake quantization and what passes its input on."""
        while source := _inputs(self._node(value))[0] if self._is_fake_quant(value) else self._passed_on(value):
            value = source
        return value

    def forms(self, value: str) -> list[str]:
        """`value` and each fake quantization of it, in the order of the graph."""
        result, pending = {value}, [value]
        while pending:
            known = pending.pop()
            for name in self._consumers.get(known, ()):
                consumer = f"{name}:0"
                if self._is_fake_quant(consumer):
                    result.add(consumer)
                if self._is_fake_quant(consumer) or self._passed_on(consumer) == known:
                    pending.append(consumer)
        return sorted(result, key=self._order_of)

    def grid(self, value: str) -> tuple[float, float] | None:
        """(scale, zero_point) that an int8 tensor of this 8-bit fake quantization has; None of other values.

        The zero_point is not rounded. Source: FakeQuantWithMinMaxVars, 2^8 - 1 steps from min to max.
        """
        node = self._node(value)
        if not self._is_fake_quant(value) or node.attr["num_bits"].i not in (0, 8):
            return None
        if node.op == _FIXED:
            low, high = node.attr["min"].f, node.attr["max"].f
        else:
            ends = [self._constant(source) for source in _inputs(node)[1:3]]
            low, high = (float("nan") if end is None or end.size != 1 else float(end.reshape(())) for end in ends)
        narrow = int(node.attr["narrow_range"].b)
        scale = (high - low) / (255 - narrow)
        return (scale, -128 + narrow - low / scale) if scale > 0 else None

    def layer_of(self, value: str) -> str | None:
        """The Keras layer that the value belongs to, without the name of its QAT wrapper."""
        for scope in reversed(_op(value).split("/")[:-1] or [_op(value)]):
            for candidate in (scope, re.sub(r"_\d+$", "", scope)):
                if candidate in self._layers:
                    return self._layers[candidate]
        return None

    def layers_between(self, value: str, cuts: Iterable[str]) -> list[str]:
        """Keras layers of the ops that `value` is computed by from the values `cuts`, in the order of the graph."""
        stops, seen, pending = set(cuts), {_op(value)}, [_op(value)]
        while pending:
            for source in _inputs(self._nodes[pending.pop()]):
                if _op(source) in self._data and _op(source) not in seen and source not in stops:
                    seen.add(_op(source))
                    pending.append(_op(source))
        layers = (self.layer_of(f"{name}:0") for name in sorted(seen, key=self._place.__getitem__))
        return list(dict.fromkeys(layer for layer in layers if layer))

    def has_fake_quant(self) -> bool:
        """Whether anything is fake-quantized."""
        return any(node.op in _FAKE_QUANTS for node in self._nodes.values())

    def evaluator(self, cuts: Sequence[str] = ()) -> "Evaluator":
        """Runs the graph; whatever reads one of the values `cuts` reads what is fed in its place."""
        return Evaluator(self._graph_def, self.inputs, cuts)

    def _value_named(self, part: str, output: int) -> str | None:
        """The value of this name; conversion tells two tensors of one name apart by a number: Conv2D, Conv2D1."""
        plain, _, number = part.partition(":")
        while plain not in self._nodes and plain[-1:].isdigit():
            plain = plain[:-1]
        if plain not in self._data or plain in self._scattered:
            return None
        return f"{plain}:{number if number.isdigit() else output}"

    def _order_of(self, value: str) -> int:
        return self._place[_op(value)]

    def _node(self, value: str) -> Any:
        return self._nodes[_op(value)]

    def _is_fake_quant(self, value: str) -> bool:
        return self._node(value).op in _FAKE_QUANTS

    def _passed_on(self, value: str) -> str | None:
        """What an op gives out as it came in, also in another shape of its layer's own, or as the sum with zeros."""
        node = self._node(value)
        if node.op in _PASSES_ON:
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

        while self._node(value).op in _PASSES_ON:
            value = _inputs(self._node(value))[0]
        node = self._node(value)
        return np.asarray(make_ndarray(node.attr["value"].tensor)) if node.op == "Const" else None


class Evaluator:
    """A session with a graph; close it by `with`."""

    def __init__(self, graph_def: Any, inputs: Sequence[str], cuts: Sequence[str]) -> None:
        import tensorflow as tf

        with tf.Graph().as_default() as graph:
            places = {value: tf.compat.v1.placeholder(tf.float32, name=f"cut_{n}") for n, value in enumerate(cuts)}
            tf.import_graph_def(graph_def, input_map=places, name="model")
        self._fed = [*(graph.get_tensor_by_name(f"model/{value}") for value in inputs), *places.values()]
        self._graph = graph
        config = tf.compat.v1.ConfigProto()
        # Op by op as the model has them: an optimizer's rewriting is not what was trained.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.compat.v1.Session(graph=graph, config=config)

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def run(self, values: Sequence[str], inputs: Sequence[NDArray], fed: Sequence[NDArray] = ()) -> list[NDArray]:
        """The `values`, (k, ...) each. inputs: (k, ...) for each of the model's; fed: likewise for each of the cuts."""
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
    """The values that an op reads, without control dependencies."""
    return [name if ":" in name else f"{name}:0" for name in node.input if not name.startswith("^")]


def _in_order(nodes: dict[str, Any]) -> Iterator[str]:
    """Names of the ops, each behind all that it reads."""
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


# Codes stand for reals in these; int32 is for biases and shapes.
_CODES = ("int8", "uint8")
# How far a scale computed in another order in float32 may be off, and a zero_point from its half.
_SCALE_TOLERANCE, _ZERO_POINT_TOLERANCE = 1e-4, 0.51
_MOVING = {"CONCATENATION", "PACK", "UNPACK", "SPLIT", "SPLIT_V", "PAD", "PADV", "MIRROR_PAD", "RESHAPE", "SQUEEZE"}
_MOVING |= {"EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND", "TILE", "BROADCAST_TO"}
_MOVING |= {"SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "REVERSE_V2"}
_MOVING |= {"MAX_POOL_2D", "AVERAGE_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM"}
_MOVING |= {"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"}
_SELECTS = {"SELECT", "SELECT_V2"}


@dataclass(frozen=True, kw_only=True)
class Match:
    """A tensor, the value that it stands for, the op that gives it out, and the Keras layers that it holds.

    numbers: that it holds of each example.
    rounded: whether the value is behind fake quantization. step: that of this value's fake quantization, here or later;
    None where there is none. wanted_grid: (scale, zero_point) of the fake quantization where the tensor has others, and
    no op excuses them. cut_off: whether the value is not rounded in the QAT model, and all that the flatbuffer reads of
    it is cut off where its codes end.
    """

    tensor: Tensor
    value: str
    numbers: int
    rounded: bool
    step: float | None
    wanted_grid: tuple[float, float] | None
    op: str
    layers: tuple[str, ...]
    cut_off: bool = False

    @property
    def layer(self) -> str:
        """The last of its layers, by which it is called."""
        return self.layers[-1]


def code_tensors(graph: Subgraph) -> Iterator[tuple[Tensor, str, int]]:
    """(tensor, op that gives it out, which of its outputs) of each activation, inputs first, then op by op."""
    for place, tensor in enumerate(graph.input_tensors):
        yield tensor, "input", place
    for op in graph.ops:
        for place, index in enumerate(op.outputs):
            yield graph.tensors[index], op.name, place


def candidates(graph: Subgraph, reference: ReferenceGraph, inputs: Sequence[str]) -> dict[int, list[str]]:
    """Tensor index -> values that it may stand for, in the order of the graph. inputs: that of each input."""
    results = {}
    for tensor, op, place in code_tensors(graph):
        if tensor.dtype not in _CODES or not tensor.is_quantized:
            continue
        if op == "input":
            results[tensor.index] = [inputs[place]]
        else:
            results[tensor.index] = reference.named_in(tensor.name, place)
    return results


def match(
    graph: Subgraph, reference: ReferenceGraph, named: Mapping[int, list[str]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Match], dict[str, str]]:
    """(matches in the order of `code_tensors`, {name of a tensor: why it has none}).

    named: `candidates`. shapes: of each of their values, for one example.
    """
    ops = {tensor.index: op for tensor, op, _ in code_tensors(graph)}
    origins: dict[str, list[Tensor]] = {}
    skipped = {}
    for index, values in named.items():
        tensor = graph.tensors[index]
        fitting = [value for value in values if value in shapes and _same_order(graph, tensor, shapes[value])]
        if fitting:
            origins.setdefault(reference.computed(fitting[-1]), []).append(tensor)
        elif values:
            layer = reference.layer_of(values[-1])
            skipped[tensor.name] = f"{layer} gives another number of values in the QAT model, or in another order"
        else:
            skipped[tensor.name] = "the QAT model has no op of this name"
    chosen: dict[int, str] = {}
    for value, tensors in origins.items():
        begin = _first_holding([ops[tensor.index] for tensor in tensors])
        forms = _assigned(tensors[begin:], reference.forms(value), reference)
        chosen |= forms
        for tensor in tensors[:begin]:
            skipped[tensor.name] = f"on the way to what tensor {tensors[begin].index} holds: one op there, several here"
        for tensor in tensors[begin:]:
            if tensor.index not in forms:
                skipped[tensor.name] = f"another rounding of what tensor {tensors[begin].index} holds"
    strange = _off_grid(graph, {index: grid for index, value in chosen.items() if (grid := reference.grid(value))})
    cut_off = _cut_off(graph)
    matches = [
        Match(
            tensor=graph.tensors[index],
            value=chosen[index],
            numbers=_numbers(graph, graph.tensors[index]),
            rounded=reference.grid(chosen[index]) is not None,
            step=_step(chosen[index], chosen.values(), reference),
            wanted_grid=strange.get(index),
            op=ops[index],
            layers=_layers(chosen[index], list(chosen.values()), reference, graph.tensors[index].name),
            cut_off=index in cut_off and _step(chosen[index], chosen.values(), reference) is None,
        )
        for index in named
        if index in chosen
    ]
    return matches, skipped


def check_origin(matches: list[Match], named: Mapping[int, list[str]], model: str) -> None:
    """Raises InputError where the flatbuffer is not full of codes, or not of this model."""
    if not named:
        raise InputError(
            "the flatbuffer holds no int8 activation: expected the int8 one that was converted from this QAT model, "
            "got a float one, or one of which only the weights are quantized",
            field="model",
            expected="int8 activations",
        )
    if not any(match.op != "input" for match in matches):
        raise InputError(
            f"no tensor of the flatbuffer is called after a layer of {model!r}, or has its layer's size: expected the "
            "flatbuffer that was converted from just this QAT model: convert it again with tfq.convert(model)",
            field="model",
            expected=f"a flatbuffer of {model!r}",
        )


def _first_holding(ops: list[str]) -> int:
    """Of the tensors that these `ops` give, called after one op: the place of the first that holds its result.

    What is computed last is the result; behind it, it is moved or rounded otherwise.
    """
    computing = [place for place, op in enumerate(ops) if op not in _MOVING and op != "QUANTIZE"]
    return computing[-1] if computing else 0


def _assigned(tensors: list[Tensor], forms: list[str], reference: ReferenceGraph) -> dict[int, str]:
    """Tensor index -> value, of tensors that hold one value in several roundings: by their grids, else in order.

    forms: the value unrounded, then rounded. A tensor alone with a grid of its own is still the last one, which
    the QAT model means.
    """
    free, assigned = list(forms), {}
    for tensor in tensors:
        fitting = [form for form in free if (grid := reference.grid(form)) and _on_grid(tensor, grid)]
        if fitting:
            assigned[tensor.index] = fitting[0]
            free.remove(fitting[0])
    left = [tensor.index for tensor in tensors]
    if assigned:
        # The rounding that was meant has its tensor; what is left is what was there before it. What comes behind is
        # for a join, which has another scale.
        left = list(itertools.takewhile(lambda index: index not in assigned, left))
        free = free[:1] if free[:1] == forms[:1] else []
    return assigned | dict(zip(left, free[-len(left) :] if left else [], strict=False))


def _off_grid(graph: Subgraph, grids: Mapping[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Of the tensors with `grids` that have others: these, but for those that an op gives another tensor's.

    Ops that move or choose values have one scale and zero_point for what they take and give, whatever the QAT model
    has. Source: TFLite 8-bit quantization specification, "Restriction: Inputs and outputs must all have same scale".
    """
    ties: dict[int, set[int]] = {}
    for op in graph.ops:
        if op.name in _MOVING:
            tied = {index for index in (*op.inputs, *op.outputs) if index >= 0 and graph.tensors[index].is_quantized}
            for index in tied:
                ties.setdefault(index, set()).update(tied)
    good = {index for index, grid in grids.items() if _on_grid(graph.tensors[index], grid)}
    results = {}
    for index in set(grids) - good:
        seen, pending = {index}, [index]
        while pending:
            for other in ties.get(pending.pop(), set()) - seen:
                if _quantization(graph.tensors[other]) == _quantization(graph.tensors[index]):
                    seen.add(other)
                    pending.append(other)
        if not seen & good:
            results[index] = grids[index]
    return results


def _cut_off(graph: Subgraph) -> set[int]:
    """The tensors that nothing but MINIMUM and MAXIMUM reads, which give them their output's scale.

    So do masks of a softmax: what they choose from ends where the masked values are, and so does what they give.
    """
    readers = {index: {op.name for op in ops} for index, ops in graph.readers.items()}
    masks = [op for op in graph.ops if op.name in _SELECTS and readers.get(op.outputs[0]) == {"SOFTMAX"}]
    masked = {index for op in masks for index in op.inputs[1:] if readers[index] <= _SELECTS}
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
    if own in layers:  # last, whatever else is computed beside it
        layers.remove(own)
    return (*layers, own or name)


def _numbers(graph: Subgraph, tensor: Tensor) -> int:
    shapes = [item.shape for item in graph.input_tensors if item.shape]
    return math.prod(tensor.shape) // max(1, shapes[0][0] if shapes else 1)


def _same_order(graph: Subgraph, tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an example's numbers are as many, and one behind the other, as in a value of this shape for one example.

    By what is counted of them from the last axis on: (4, 6, 1) and (1, 24) are one order, (4, 6) and (6, 4) two.
    """
    numbers = _numbers(graph, tensor)
    ours, theirs = ({count for count in _from_the_end(item) if count < numbers} for item in (tensor.shape, shape))
    return math.prod(shape) == numbers and (ours <= theirs or theirs <= ours)


def _from_the_end(shape: tuple[int, ...]) -> set[int]:
    return set(itertools.accumulate(reversed(shape), operator.mul))

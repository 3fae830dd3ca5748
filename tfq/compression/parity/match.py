# SPDX-License-Identifier: Apache-2.0
"""Which value of the QAT model each tensor of the flatbuffer stands for."""

import itertools
import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfq.compression.parity.graph import ReferenceGraph
from tfq.errors import InputError
from tfq.tflite import Subgraph, Tensor

# Codes stand for reals in these; int32 is for biases and shapes.
_CODES = ("int8", "uint8")
# How far a scale computed in another order in float32 may be off, and a zero_point from its half.
_SCALE_TOLERANCE, _ZERO_POINT_TOLERANCE = 1e-4, 0.51
_MOVING = {"CONCATENATION", "PACK", "UNPACK", "SPLIT", "SPLIT_V", "PAD", "PADV", "MIRROR_PAD", "RESHAPE", "SQUEEZE"}
_MOVING |= {"EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND", "TILE", "BROADCAST_TO"}
_MOVING |= {"SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "REVERSE_V2"}
_MOVING |= {"MAX_POOL_2D", "AVERAGE_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM"}
_MOVING |= {"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"}


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
    found = {}
    for tensor, op, place in code_tensors(graph):
        if tensor.dtype not in _CODES or not tensor.is_quantized:
            continue
        if op == "input":
            found[tensor.index] = [inputs[place]]
        else:
            found[tensor.index] = reference.named_in(tensor.name, place)
    return found


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
            "the flatbuffer holds no int8 activation: wanted the int8 one that was converted from this QAT model, "
            "got a float one, or one of which only the weights are quantized"
        )
    if not any(match.op != "input" for match in matches):
        raise InputError(
            f"no tensor of the flatbuffer is called after a layer of {model!r}, or has its layer's size: wanted the "
            "flatbuffer that was converted from just this QAT model: convert it again with tfq.convert(model)"
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
    found = {}
    for index in set(grids) - good:
        seen, pending = {index}, [index]
        while pending:
            for other in ties.get(pending.pop(), set()) - seen:
                if _quantization(graph.tensors[other]) == _quantization(graph.tensors[index]):
                    seen.add(other)
                    pending.append(other)
        if not seen & good:
            found[index] = grids[index]
    return found


def _cut_off(graph: Subgraph) -> set[int]:
    """The tensors that nothing but MINIMUM and MAXIMUM reads, which give them their output's scale."""
    cutting = {index for op in graph.ops if op.name in ("MINIMUM", "MAXIMUM") for index in op.inputs}
    others = {index for op in graph.ops if op.name not in ("MINIMUM", "MAXIMUM") for index in op.inputs}
    return cutting - others - {*graph.outputs}


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
    shapes = [each.shape for each in graph.input_tensors if each.shape]
    return math.prod(tensor.shape) // max(1, shapes[0][0] if shapes else 1)


def _same_order(graph: Subgraph, tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an example's numbers are as many, and one behind the other, as in a value of this shape for one example.

    By what is counted of them from the last axis on: (4, 6, 1) and (1, 24) are one order, (4, 6) and (6, 4) two.
    """
    numbers = _numbers(graph, tensor)
    ours, theirs = ({count for count in _from_the_end(each) if count < numbers} for each in (tensor.shape, shape))
    return math.prod(shape) == numbers and (ours <= theirs or theirs <= ours)


def _from_the_end(shape: tuple[int, ...]) -> set[int]:
    return set(itertools.accumulate(reversed(shape), operator.mul))

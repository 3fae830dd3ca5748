# SPDX-License-Identifier: Apache-2.0
"""Find where masks act in a float graph, and to which interval they can be clipped without effect.

A mask is a value of large magnitude that excludes positions from a softmax, a maximum or a max pool, such as -1e9 that
is added to a score or replaces it. In int8 it shares one scale with the scores, so a step becomes millions wide.

The analysis makes two passes of interval arithmetic on observed ranges:

1. Forward: find the tensors with mask values, and the range of their other values, called real values. A mask that
   replaces a score does not belong to this range. A score that a mask is added to does, with its value before the mask.
2. Backward, from each op whose result does not depend on how large a mask is: compute the interval to which a tensor
   can be clipped. A softmax ignores values 12 below the lowest real score (weight exp(-12) relative to any other), a
   maximum ignores values below the lowest real value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.tflite.op_types import COPYING_OPS

Interval = tuple[float, float]

# Constants of at least this magnitude are masks if they are added to smaller values or replace them.
MIN_MASK_CONSTANT = 1e3
# An input is a mask if its range ends at 0 on one side and reaches at least this far on the other.
_MIN_MASK_INPUT = 1e4

# Ops whose result does not depend on how large a mask is -> (absolute margin, margin as a fraction of the width of the
# real values) beyond the real values. exp(-12) = 6e-6; LOG_SOFTMAX ends at -16 in int8; ARG_MAX needs some steps.
_MARGINS: dict[str, tuple[float, float]] = {
    "SOFTMAX": (12.0, 0.0),
    "LOG_SOFTMAX": (16.0, 0.0),
    "ARG_MAX": (0.0, 1 / 64),
    "ARG_MIN": (0.0, 1 / 64),
    "TOPK_V2": (0.0, 1 / 64),
    "MAX_POOL_2D": (0.0, 0.0),
    "REDUCE_MAX": (0.0, 0.0),
    "REDUCE_MIN": (0.0, 0.0),
}
# Ops that output one of their input values, so that a clipped mask could be visible in the output.
_VALUES = frozenset(("TOPK_V2", "MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN"))
# Margin for exp(x - max(x)) in a softmax made of single ops: exp(-17) = 4e-8, compared with a 1.
_EXP_MARGIN = 17.0

_MOVES = COPYING_OPS | {"BROADCAST_TO", "GATHER_ND"}
# Op -> the positions of the inputs that it selects from.
_SELECTED = {"SELECT": (1, 2), "SELECT_V2": (1, 2), "MAXIMUM": (0, 1), "MINIMUM": (0, 1), "PADV2": (0, 2)}
# The converter folds masks of channels into the bias of these ops.
_WEIGHTED = frozenset(("CONV_2D", "FULLY_CONNECTED"))
_JOINS = frozenset(("CONCATENATION", "PACK"))
_SUMS = frozenset(("ADD", "SUB"))
_PRODUCTS = frozenset(("MUL", "DIV"))
# Ops whose outputs are integers if their inputs are.
_KEEP_INTEGERS = frozenset(
    (*_MOVES, *_SELECTED, *_JOINS, *_SUMS, "MUL", "BATCH_MATMUL", "REDUCE_MAX", "REDUCE_MIN", "SUM")
)
# Ops whose outputs are always integers.
_MAKE_INTEGERS = frozenset(("CEIL", "FLOOR", "ONE_HOT", "ROUND", "SIGN"))


@dataclass(kw_only=True)
class MaskFlow:
    """The masks of one subgraph.

    The first eight attributes are the inputs of the analysis, the others its results.

    Attributes:
        graph: A float subgraph.
        constant: Returns the values of a float32 constant, None for any other tensor.
        observed: {tensor: observed range}, from which masks are recognized.
        ranges: {tensor: range of the real values of a tensor without masks}; the default is the observed range.
        has_activation: Tells whether the op with this index has a fused activation.
        symmetric: Whether activations are quantized symmetrically (int16).
        even: Whether the softmax of a fully masked row must be uniform. Otherwise, integers distinguish the scores that
            the mask is added to, as float does if the mask is small.
        extra: Added to the margin of softmaxes.
        masked: {tensor with mask values: range of its real values, None if unknown}.
        limits: {masked tensor: interval to which it can be clipped}, for those that can.
        constant_limits: {(op, position of an input): the same for a constant}.
        sinks: Ops whose input is masked and can be clipped.
        unbounded: Ops in which a mask that cannot be clipped shares a scale with real values.
    """

    graph: tflite.Subgraph
    constant: Callable[[int], NDArray | None]
    observed: Mapping[int, Interval]
    ranges: Mapping[int, Interval]
    has_activation: Callable[[int], bool]
    symmetric: bool = False
    even: bool = True
    extra: float = 0.0
    masked: dict[int, Interval | None] = field(default_factory=dict)
    limits: dict[int, Interval] = field(default_factory=dict)
    constant_limits: dict[tuple[int, int], Interval] = field(default_factory=dict)
    sinks: list[tflite.Op] = field(default_factory=list)
    unbounded: list[tflite.Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Run both passes."""
        self._integers: set[int] = set()
        for index in self.graph.inputs:
            self._add_input(index)
        for op in self.graph.ops:
            self._go_forward(op)
        if self.masked:
            self._go_backward()

    # -- forward -------------------------------------------------------------------------------------------------

    def _add_input(self, index: int) -> None:
        """Record whether an input of the graph is a mask, or probably has only the values 0 and 1 (or -1)."""
        if self.graph.tensors[index].dtype != "float32":
            return
        low, high = self.observed.get(index, (0.0, 0.0))
        if (low <= -_MIN_MASK_INPUT and high == 0) or (high >= _MIN_MASK_INPUT and low == 0):
            self.masked[index] = 0.0, 0.0
        elif 0 <= low < high == 1 or -1 == low < high <= 0:
            self._integers.add(index)  # an assumption, which only matters if the input is multiplied with a mask

    def _go_forward(self, op: tflite.Op) -> None:
        if len(op.outputs) != 1 or self.graph.tensors[op.outputs[0]].dtype != "float32":
            return
        if self._outputs_integers(op):
            self._integers.add(op.outputs[0])
        places = self.value_places(op)
        if any(self.is_mask(op, place) for place in places) and not self.has_activation(op.index):
            self.masked[op.outputs[0]] = self._real_of_op(op, places)

    def value_places(self, op: tflite.Op) -> tuple[int, ...]:
        """Return the positions of the inputs whose masks reach the op's output."""
        if op.name in _MOVES:
            return (0,)
        if op.name in _SELECTED:
            return _SELECTED[op.name]
        if op.name in _JOINS:
            return tuple(range(len(op.inputs)))
        if op.name in _WEIGHTED:
            return (2,) if len(op.inputs) > 2 and op.inputs[2] != tflite.ABSENT else ()
        return (0, 1) if op.name in _SUMS | _PRODUCTS else ()

    def is_mask(self, op: tflite.Op, place: int) -> bool:
        """Check whether the input at `place` has mask values for this op."""
        index = op.inputs[place]
        values = self.constant(index)
        if values is None:
            return index in self.masked
        if not values.size or np.abs(values).max() < MIN_MASK_CONSTANT:
            return False
        if op.name in _PRODUCTS:
            # A factor is a mask if the other factor only switches it on and off. Operands of DIV are not masks.
            return op.name == "MUL" and self._switch(op.inputs[1 - place]) is not None
        return True

    def real(self, index: int) -> Interval | None:
        """Return the range of a tensor's real values: (inf, -inf) if there are none, None if it is unknown."""
        values = self.constant(index)
        if values is not None:
            values = values[np.abs(values) < MIN_MASK_CONSTANT]
            return (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
        return self.masked[index] if index in self.masked else self.ranges.get(index, self.observed.get(index))

    def _real_of_op(self, op: tflite.Op, places: tuple[int, ...]) -> Interval | None:
        if op.name in _WEIGHTED:
            return self._real_of_weighted(op)
        ranges = [self.real(op.inputs[place]) for place in places]
        if op.name in _PRODUCTS:
            return self._real_of_product(op, ranges)
        if any(ends is None for ends in ranges):
            return None
        lows, highs = zip(*(ends for ends in ranges if ends is not None), strict=True)
        if op.name not in _SUMS:
            return min(lows), max(highs)
        if np.inf in lows:
            return np.inf, -np.inf
        return (
            (lows[0] + lows[1], highs[0] + highs[1]) if op.name == "ADD" else (lows[0] - highs[1], highs[0] - lows[1])
        )

    def _real_of_product(self, op: tflite.Op, ranges: list[Interval | None]) -> Interval | None:
        place = next(place for place in (0, 1) if self.is_mask(op, place))
        own, other = ranges[place], op.inputs[1 - place]
        if own is None or (op.name == "DIV" and place == 1):
            return None
        factor = self._factor(op, 1 - place)
        if factor is not None:
            return _ordered(own[0] * factor, own[1] * factor) if own[0] <= own[1] else own
        switch = self._switch(other)
        if switch is None or op.name == "DIV":
            return None
        products = [end * by for end in own for by in switch] if own[0] <= own[1] else []
        return min((0.0, *products)), max((0.0, *products))

    def _real_of_weighted(self, op: tflite.Op) -> Interval | None:
        """Return the range of weights * real data + bias, where the bias is not a mask."""
        ends, weights, bias = self.real(op.inputs[0]), self.constant(op.inputs[1]), self.constant(op.inputs[2])
        if ends is None or weights is None or bias is None or (np.abs(bias) >= MIN_MASK_CONSTANT).all():
            return None
        by_channel = weights.reshape(len(bias), -1)
        up, down = np.maximum(by_channel, 0).sum(axis=1), np.minimum(by_channel, 0).sum(axis=1)
        small = np.where(np.abs(bias) < MIN_MASK_CONSTANT, bias, 0)
        low, high = up * ends[0] + down * ends[1] + small, up * ends[1] + down * ends[0] + small
        minimum, maximum = self.observed.get(op.outputs[0], (-np.inf, np.inf))
        return max(float(low.min()), minimum), min(float(high.max()), maximum)

    def _factor(self, op: tflite.Op, place: int) -> float | None:
        """Return the factor that MUL or DIV applies if its input at `place` is a single small constant, else None."""
        values = self.constant(op.inputs[place])
        if values is None or not values.size or np.ptp(values) or values[0] == 0 or abs(values[0]) >= MIN_MASK_CONSTANT:
            return None
        return float(values[0]) if op.name == "MUL" else 1 / float(values[0])

    def _switch(self, index: int) -> Interval | None:
        """Return the range of a tensor whose values are all -1, 0 or 1; None for any other tensor."""
        values = self.constant(index)
        if values is not None:
            return (float(values.min()), float(values.max())) if np.isin(values, (-1, 0, 1)).all() else None
        low, high = self.observed.get(index, (-np.inf, np.inf))
        return (low, high) if index in self._integers and -1 <= low <= high <= 1 else None

    def _outputs_integers(self, op: tflite.Op) -> bool:
        if op.name == "CAST":
            return self.graph.tensors[op.inputs[0]].dtype != "float32"
        if op.name in _KEEP_INTEGERS:
            places = self.value_places(op) or range(2 if op.name == "BATCH_MATMUL" else 1)
            return all(self._is_integer(op.inputs[place]) for place in places)
        return op.name in _MAKE_INTEGERS

    def _is_integer(self, index: int) -> bool:
        values = self.constant(index)
        return index in self._integers if values is None else bool((values == np.round(values)).all())

    # -- backward ------------------------------------------------------------------------------------------------

    def _go_backward(self) -> None:
        # An output of the model, or a tensor whose clipping would change the result of an op, has no limit.
        unlimited = set(self.graph.outputs)
        requested: dict[int, Interval] = {}
        for op in reversed(self.graph.ops):
            for place, index in enumerate(op.inputs):
                is_constant = index != tflite.ABSENT and self.constant(index) is not None
                if not is_constant and index not in self.masked:
                    continue
                limit = self._limit(op, place, requested, unlimited)
                if is_constant:
                    if limit is not None and place in self.value_places(op) and self.is_mask(op, place):
                        self.constant_limits[op.index, place] = limit
                elif limit is None:
                    unlimited.add(index)
                else:
                    other = requested.get(index, limit)
                    requested[index] = min(other[0], limit[0]), max(other[1], limit[1])
        self.limits = {index: limit for index, limit in requested.items() if index not in unlimited}
        self.sinks = [op for op in self.graph.ops if self._sink_limit(op, 0) and op.inputs[0] in self.limits]
        self.unbounded = [op for op in self.graph.ops if self._is_unbounded(op)]

    def _limit(
        self, op: tflite.Op, place: int, requested: Mapping[int, Interval], unlimited: set[int]
    ) -> Interval | None:
        """Return the interval to which the op's input at `place` can be clipped; None if it cannot."""
        if (sink := self._sink_limit(op, place)) is not None:
            return sink
        output = op.outputs[0] if len(op.outputs) == 1 else tflite.ABSENT
        if place not in self.value_places(op) or output not in self.masked or output in unlimited:
            return None
        limit = requested.get(output)
        if limit is None or op.name not in _SUMS | _PRODUCTS | _WEIGHTED:
            return limit
        low, high = limit
        if op.name in _WEIGHTED:
            real = self.masked[output] or limit
            return low - real[1], high - real[0]
        if op.name in _PRODUCTS:
            factor = self._factor(op, 1 - place)
            if factor is not None:
                return _ordered(low / factor, high / factor)
            down, up = self._switch(op.inputs[1 - place]) or (0.0, 0.0)
            sides = [limit] * (up > 0) + [(-high, -low)] * (down < 0)
            return (min(side[0] for side in sides), max(side[1] for side in sides)) if sides else None
        other = self.real(op.inputs[1 - place])
        if other is None or other[0] > other[1]:
            return None
        if op.name == "ADD":
            return low - other[1], high - other[0]
        return (low + other[0], high + other[1]) if place == 0 else (other[0] - high, other[1] - low)

    def _sink_limit(self, op: tflite.Op, place: int) -> Interval | None:
        """Return the interval to which the input of an op in _MARGINS (or EXP in a softmax) can be clipped."""
        ends = self.masked.get(op.inputs[place]) if place < len(op.inputs) else None
        if ends is None or ends[0] > ends[1]:
            return None
        low, high = ends
        if place == 0 and op.name == "EXP" and self._is_below_its_maximum(op.inputs[0]):
            return low - _EXP_MARGIN - self.extra, high
        if place or op.name not in _MARGINS or (op.name in _VALUES and self._outputs_mask(op, ends)):
            return None
        absolute, fraction = _MARGINS[op.name]
        margin = absolute + fraction * (high - low) + (self.extra if absolute else 0)
        low, high = low - margin, high + margin
        if op.name in _VALUES:
            return low, high
        if not self.even:
            return low - (ends[1] - ends[0]), high + (ends[1] - ends[0])
        # Quantized ranges include 0, and are symmetric in int16. Values beyond saturate, so that fully masked rows get
        # a uniform softmax.
        return min(low, -ends[1] if self.symmetric else 0.0), max(high, -ends[0] if self.symmetric else 0.0)

    def _is_below_its_maximum(self, index: int) -> bool:
        """Check whether a tensor is x - y, where y is computed from max(x): the maximum, or a log-sum-exp."""
        sub = self.graph.producers.get(index)
        if sub is None or sub.name != "SUB":
            return False
        waiting, seen = [sub.inputs[1]], set()
        while waiting:
            op = self.graph.producers.get(waiting.pop())
            if op is None or op.index in seen:
                continue
            if op.name == "REDUCE_MAX" and op.inputs[0] == sub.inputs[0]:
                return True
            seen.add(op.index)
            waiting += op.inputs
        return False

    def _outputs_mask(self, op: tflite.Op, real: Interval) -> bool:
        """Check whether a mask is visible in the op's output."""
        low, high = self.observed.get(op.outputs[0], real)
        return max(-low, high) >= MIN_MASK_CONSTANT and max(-low, high) > 2 * max(map(abs, real))

    def _is_unbounded(self, op: tflite.Op) -> bool:
        """Check whether real values fit into one step of the output's scale, because a mask there has no limit."""
        output = op.outputs[0] if op.outputs else tflite.ABSENT
        if output not in self.masked or output in self.limits or op.name in _MOVES | _PRODUCTS:
            return False
        ends = self.masked[output]
        low, high = self.observed.get(output, (0.0, 0.0))
        return ends is not None and 0 < ends[1] - ends[0] < (high - low) / 255


def _ordered(one: float, other: float) -> Interval:
    return min(one, other), max(one, other)

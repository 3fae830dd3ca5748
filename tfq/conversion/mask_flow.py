# SPDX-License-Identifier: Apache-2.0
"""Where masks act in a float graph, and how far they can be cut off without effect.

A mask is a value of large magnitude that excludes positions from a softmax, a maximum or a max pool: -1e9 that is added
to a score, or stands in its place. In int8 it shares one scale with the scores, whose steps become millions wide.

Two passes over the graph, both by interval arithmetic on observed ranges:

1. Forward: which tensors hold mask values, and the range of their other ("real") values. A mask value that replaces a
   score adds nothing to that range; one that is added to a score leaves it where it is.
2. Backward, from each op whose result does not depend on how large a mask value is: the interval to which a tensor can
   be clipped. A softmax ignores what lies 12 below the lowest real score (weight exp(-12) of any other), a maximum what
   lies below the lowest real value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfq import tflite

Interval = tuple[float, float]

# Constants of at least this magnitude are masks where they are added to, or stand in place of, smaller values.
HUGE = 1e3
# An input is a mask if it ends at 0 on one side and reaches this far on the other.
HUGE_INPUT = 1e4

# Ops whose result is the same however large a mask value is: their margin beyond the real values, absolute and as a
# fraction of the real values' span. exp(-12) = 6e-6; LOG_SOFTMAX ends at -16 in int8; an ARG_MAX needs a
# distance of some steps.
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
# Ops whose result is one of the values themselves: a mask value that was cut off would show in it.
_VALUES = frozenset(("TOPK_V2", "MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN"))
# exp(x - max(x)) in a softmax that is spelled out: exp(-17) = 4e-8 next to a 1.
_EXP_MARGIN = 17.0

_MOVES = frozenset(
    (
        *("BROADCAST_TO", "EXPAND_DIMS", "GATHER", "GATHER_ND", "RESHAPE", "REVERSE_V2", "SLICE", "SQUEEZE"),
        *("STRIDED_SLICE", "TILE", "TRANSPOSE"),
    )
)
# Op -> the places of the values that it chooses from.
_CHOICES = {"SELECT": (1, 2), "SELECT_V2": (1, 2), "MAXIMUM": (0, 1), "MINIMUM": (0, 1), "PADV2": (0, 2)}
# Masks of channels, which the converter adds to the bias of the layer before.
_WEIGHTED = frozenset(("CONV_2D", "FULLY_CONNECTED"))
_JOINS = frozenset(("CONCATENATION", "PACK"))
_SUMS = frozenset(("ADD", "SUB"))
_PRODUCTS = frozenset(("MUL", "DIV"))
# Of whole numbers they give whole numbers.
_KEEP_WHOLE = frozenset((*_MOVES, *_CHOICES, *_JOINS, *_SUMS, "MUL", "BATCH_MATMUL", "REDUCE_MAX", "REDUCE_MIN", "SUM"))
_GIVE_WHOLE = frozenset(("CEIL", "FLOOR", "ONE_HOT", "ROUND", "SIGN"))


@dataclass(kw_only=True)
class MaskFlow:
    """The masks of one subgraph.

    graph: float. constant: the values of a float32 constant by tensor, None of all else.
    ends: observed range by tensor, by which masks are recognized. spans: the range of real values of a tensor without
    masks; the observed one of those that are left out. has_activation: whether an op (by index) has a fused activation.
    symmetric: whether the grid of activations is (int16). even: whether a row in which all is masked gives an even
    softmax; otherwise the scores that the mask is added to show through, as they do in float if it is small.
    extra: added to the margin of softmaxes.

    masked: tensor -> range of its real values; None where that is unknown. limits: tensor -> the interval to which it
    can be clipped, of the masked ones that have one. constant_limits: (op, place of an input) -> the same of constants.
    sinks: ops whose input is masked and can be clipped. swallowed: ops that put a mask and real values on one scale
    without an op that would allow to cut it off.
    """

    graph: tflite.Subgraph
    constant: Callable[[int], NDArray | None]
    ends: Mapping[int, Interval]
    spans: Mapping[int, Interval]
    has_activation: Callable[[int], bool]
    symmetric: bool = False
    even: bool = True
    extra: float = 0.0
    masked: dict[int, Interval | None] = field(default_factory=dict)
    limits: dict[int, Interval] = field(default_factory=dict)
    constant_limits: dict[tuple[int, int], Interval] = field(default_factory=dict)
    sinks: list[tflite.Op] = field(default_factory=list)
    swallowed: list[tflite.Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._whole: set[int] = set()
        for index in self.graph.inputs:
            self._see_input(index)
        for op in self.graph.ops:
            self._go_forward(op)
        if self.masked:
            self._go_back()

    # -- forward -------------------------------------------------------------------------------------------------

    def _see_input(self, index: int) -> None:
        if self.graph.tensors[index].dtype != "float32":
            return
        low, high = self.ends.get(index, (0.0, 0.0))
        if (low <= -HUGE_INPUT and high == 0) or (high >= HUGE_INPUT and low == 0):
            self.masked[index] = 0.0, 0.0
        elif 0 <= low < high == 1 or -1 == low < high <= 0:
            self._whole.add(index)  # taken to be 0 and 1: only a factor of a mask depends on it

    def _go_forward(self, op: tflite.Op) -> None:
        if len(op.outputs) != 1 or self.graph.tensors[op.outputs[0]].dtype != "float32":
            return
        if self._gives_whole(op):
            self._whole.add(op.outputs[0])
        places = self.value_places(op)
        if any(self.is_mask(op, place) for place in places) and not self.has_activation(op.index):
            self.masked[op.outputs[0]] = self._real_of_op(op, places)

    def value_places(self, op: tflite.Op) -> tuple[int, ...]:
        """The inputs of an op of which its output's values are made; none of an op that no mask passes."""
        if op.name in _MOVES:
            return (0,)
        if op.name in _CHOICES:
            return _CHOICES[op.name]
        if op.name in _JOINS:
            return tuple(range(len(op.inputs)))
        if op.name in _WEIGHTED:
            return (2,) if len(op.inputs) > 2 and op.inputs[2] != tflite.ABSENT else ()
        return (0, 1) if op.name in _SUMS | _PRODUCTS else ()

    def is_mask(self, op: tflite.Op, place: int) -> bool:
        """Whether the input at `place` holds mask values, as this op reads it."""
        index = op.inputs[place]
        values = self.constant(index)
        if values is None:
            return index in self.masked
        if not values.size or np.abs(values).max() < HUGE:
            return False
        if op.name in _PRODUCTS:
            # A factor is a mask if the other one only switches it on and off. A quotient is none.
            return op.name == "MUL" and self._switch(op.inputs[1 - place]) is not None
        return True

    def real(self, index: int) -> Interval | None:
        """The range of a tensor's real values: (inf, -inf) where there are none, None where it is unknown."""
        values = self.constant(index)
        if values is not None:
            values = values[np.abs(values) < HUGE]
            return (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
        return self.masked[index] if index in self.masked else self.spans.get(index, self.ends.get(index))

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
        """What the products can give, and the bias where it is no mask."""
        ends, weights, bias = self.real(op.inputs[0]), self.constant(op.inputs[1]), self.constant(op.inputs[2])
        if ends is None or weights is None or bias is None or (np.abs(bias) >= HUGE).all():
            return None
        by_channel = weights.reshape(len(bias), -1)
        up, down = np.maximum(by_channel, 0).sum(axis=1), np.minimum(by_channel, 0).sum(axis=1)
        small = np.where(np.abs(bias) < HUGE, bias, 0)
        low, high = up * ends[0] + down * ends[1] + small, up * ends[1] + down * ends[0] + small
        least, most = self.ends.get(op.outputs[0], (-np.inf, np.inf))
        return max(float(low.min()), least), min(float(high.max()), most)

    def _factor(self, op: tflite.Op, place: int) -> float | None:
        """What the op multiplies by, where its input at `place` is one small number."""
        values = self.constant(op.inputs[place])
        if values is None or not values.size or np.ptp(values) or values[0] == 0 or abs(values[0]) >= HUGE:
            return None
        return float(values[0]) if op.name == "MUL" else 1 / float(values[0])

    def _switch(self, index: int) -> Interval | None:
        """The range of a tensor that is 0, 1 or -1 everywhere; None of any other."""
        values = self.constant(index)
        if values is not None:
            return (float(values.min()), float(values.max())) if np.isin(values, (-1, 0, 1)).all() else None
        low, high = self.ends.get(index, (-np.inf, np.inf))
        return (low, high) if index in self._whole and -1 <= low <= high <= 1 else None

    def _gives_whole(self, op: tflite.Op) -> bool:
        if op.name == "CAST":
            return self.graph.tensors[op.inputs[0]].dtype != "float32"
        if op.name in _KEEP_WHOLE:
            places = self.value_places(op) or range(2 if op.name == "BATCH_MATMUL" else 1)
            return all(self._is_whole(op.inputs[place]) for place in places)
        return op.name in _GIVE_WHOLE

    def _is_whole(self, index: int) -> bool:
        values = self.constant(index)
        return index in self._whole if values is None else bool((values == np.round(values)).all())

    # -- backward ------------------------------------------------------------------------------------------------

    def _go_back(self) -> None:
        # A tensor that leaves the model, or that an op reads whose result would change, has no limit.
        unlimited = set(self.graph.outputs)
        wanted: dict[int, Interval] = {}
        for op in reversed(self.graph.ops):
            for place, index in enumerate(op.inputs):
                is_constant = index != tflite.ABSENT and self.constant(index) is not None
                if not is_constant and index not in self.masked:
                    continue
                limit = self._limit(op, place, wanted, unlimited)
                if is_constant:
                    if limit is not None and place in self.value_places(op) and self.is_mask(op, place):
                        self.constant_limits[op.index, place] = limit
                elif limit is None:
                    unlimited.add(index)
                else:
                    before = wanted.get(index, limit)
                    wanted[index] = min(before[0], limit[0]), max(before[1], limit[1])
        self.limits = {index: limit for index, limit in wanted.items() if index not in unlimited}
        self.sinks = [op for op in self.graph.ops if self._sink_limit(op, 0) and op.inputs[0] in self.limits]
        self.swallowed = [op for op in self.graph.ops if self._swallows(op)]

    def _limit(self, op: tflite.Op, place: int, wanted: Mapping[int, Interval], unlimited: set[int]) -> Interval | None:
        """The interval to which the op's input at `place` can be clipped."""
        if (sink := self._sink_limit(op, place)) is not None:
            return sink
        output = op.outputs[0] if len(op.outputs) == 1 else tflite.ABSENT
        if place not in self.value_places(op) or output not in self.masked or output in unlimited:
            return None
        limit = wanted.get(output)
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
        """The interval to which the input of an op that looks for the largest can be clipped."""
        ends = self.masked.get(op.inputs[place]) if place < len(op.inputs) else None
        if ends is None or ends[0] > ends[1]:
            return None
        low, high = ends
        if place == 0 and op.name == "EXP" and self._is_below_its_maximum(op.inputs[0]):
            return low - _EXP_MARGIN - self.extra, high
        if place or op.name not in _MARGINS or (op.name in _VALUES and self._gives_mask(op, ends)):
            return None
        absolute, fraction = _MARGINS[op.name]
        margin = absolute + fraction * (high - low) + (self.extra if absolute else 0)
        low, high = low - margin, high + margin
        if op.name in _VALUES:
            return low, high
        if not self.even:
            return low - (ends[1] - ends[0]), high + (ends[1] - ends[0])
        # Every grid holds 0, and that of int16 as much below it as above: what lies outside saturates, so that rows
        # in which all is masked are even.
        return min(low, -ends[1] if self.symmetric else 0.0), max(high, -ends[0] if self.symmetric else 0.0)

    def _is_below_its_maximum(self, index: int) -> bool:
        """Whether a tensor is x less something that was made of max(x): its maximum, or the logarithm of a sum."""
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

    def _gives_mask(self, op: tflite.Op, real: Interval) -> bool:
        low, high = self.ends.get(op.outputs[0], real)
        return max(-low, high) >= HUGE and max(-low, high) > 2 * max(map(abs, real))

    def _swallows(self, op: tflite.Op) -> bool:
        """Whether a mask of no limit shares the output's scale with real values that fit into one step of it."""
        output = op.outputs[0] if op.outputs else tflite.ABSENT
        if output not in self.masked or output in self.limits or op.name in _MOVES | _PRODUCTS:
            return False
        ends = self.masked[output]
        low, high = self.ends.get(output, (0.0, 0.0))
        return ends is not None and 0 < ends[1] - ends[0] < (high - low) / 255


def _ordered(one: float, other: float) -> Interval:
    return min(one, other), max(one, other)

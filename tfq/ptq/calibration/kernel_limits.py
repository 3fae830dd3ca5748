# SPDX-License-Identifier: Apache-2.0
"""Widen activation ranges that are too narrow for the integer kernels, such as those of dead layers.

A dead layer is 0 on all calibration data (a ReLU after a large negative bias, a zero gamma, an unused branch), so its
range is [0, 0]. The quantizers write a scale of 0 or 8e-9 for it. Then the runtime rejects the file, or the process
aborts.

The limits below are ratios of scales. They were measured on one-op files whose scales were lowered by powers of two
(XNNPACK and the built-in kernels of ai-edge-litert 2.3). Nearly every op rejects a scale of exactly 0.

| op | limit | what happens beyond it |
|---|---|---|
| CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, TRANSPOSE_CONV (int8) | input * weight / output < 2^8 | XNNPACK refuses |
| ADD, SUB | max(inputs) / output < 2^19 (int8), 2^14 (int16) | SIGABRT |
| HARD_SWISH (int8) | input / output < 2^7 | the op refuses |
| SQUARED_DIFFERENCE (int8) | 4 max(inputs)^2 / output < 2^14 | SIGABRT |
| fused RELU6, RELU_N1_TO_1 | bound / output < 2^31 | the op refuses |
| biases, in steps of input * weight | < 2^31 | the bias saturates, or TensorFlow makes the weights coarser |

A range below the limit is widened to it (to half of the ratio, for rounding). All other ranges stay unchanged. Nothing
is lost, because a range below the limit is smaller than one step of the kernel's accumulator.
"""

import collections
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tfq import tflite
from tfq.tflite.op_types import FIXED_OUTPUT_SCALES, SAME_SCALE_OPS, WEIGHTED_SLOTS

RangeMap = Mapping[tuple[int, int], tuple[float, float]]

_SUMS = ("ADD", "SUB")
# Ops whose inputs and outputs share one scale. The quantizer may take it from any of them.
_SHARED_SCALE = SAME_SCALE_OPS | {
    *("AVERAGE_POOL_2D", "CONCATENATION", "MAXIMUM", "MINIMUM", "PACK", "PADV2", "RESIZE_BILINEAR"),
    *("SELECT", "SELECT_V2", "SPLIT", "SPLIT_V", "UNPACK"),
}
# Widths of outputs whose scale is fixed by the op.
_FIXED = {name: 256 * scales["int8"][0] for name, scales in FIXED_OUTPUT_SCALES.items()}
# Steps of an activation's range, and of a weight's largest magnitude.
_STEPS = {"int8": 255, "int16x8": 65534}
WEIGHT_STEPS = 127
# Output scale / accumulator step: twice the smallest ratio that XNNPACK accepts.
_FINEST_OUTPUT = 2.0**-7
# Output scale / largest input scale: twice the smallest ratio of the int16 kernel. The int8 kernel accepts 2^-19.
_FINEST_SUM = 2.0**-13
_FINEST_SQUARE = 2.0**-11
# Just above the limit. Twice the limit would change tensors that work.
_FINEST_HARD_SWISH = 1 / 127
# Output width / largest input width for ops whose only limit is that the scale is not 0.
_FINEST_OTHER = 2.0**-13
# In steps of input * weight, with a margin. litert-quantizer clips the 64-bit biases of int16x8 to 32 bits as well.
LARGEST_BIAS = 2.0**30
# The smallest output scale for a fused activation with a bound of 6, with a margin.
_FINEST_BOUNDED = 6 / 2.0**30
# RELU_N1_TO_1 and RELU6 in ActivationFunctionType.
_BOUNDED_ACTIVATIONS = (2, 3)
# Lower limit of widths, so that scales are normal float32 numbers.
_TINY = 1e-30
# The width for a model input that is 0 on all data, because its real width is unknown.
_UNKNOWN = 1.0


def with_kernel_limits(
    model: bytes, ranges: RangeMap, scheme: str
) -> tuple[dict[tuple[int, int], tuple[float, float]], tuple[str, ...]]:
    """Widen the ranges that are too narrow for the kernels, and find the dead layers.

    Args:
        model: A float flatbuffer.
        ranges: {(subgraph, tensor): (minimum, maximum)} in real units.
        scheme: "int8" or "int16x8".

    Returns:
        The ranges, and the names of the dead layers and model inputs: their outputs are 0 or below the limit on all
        data, although their inputs are not.
    """
    results, dead = dict(ranges), []
    for graph in tflite.read(model).subgraphs:
        own = {tensor: ends for (number, tensor), ends in ranges.items() if number == graph.index}
        if own:
            limits = _Limits(model, graph, own, scheme)
            dead += limits.dead_layers()
            results |= {(graph.index, tensor): ends for tensor, ends in limits.widened().items()}
    return results, tuple(dict.fromkeys(dead))


def grid_width(minimum: float, maximum: float, scheme: str) -> float:
    """Return the width of the quantized range: it includes zero, and is symmetric for int16x8."""
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    return 2 * max(-low, high) if scheme == "int16x8" else high - low


def grid_step(minimum: float, maximum: float, scheme: str) -> float:
    """Return the scale of an activation with this range."""
    return grid_width(minimum, maximum, scheme) / _STEPS[scheme]


class _Limits:
    """The widths of one subgraph's activations. They are only ever increased."""

    def __init__(self, model: bytes, graph: tflite.Subgraph, ranges: dict[int, tuple[float, float]], scheme: str):
        """Compute the widths of `ranges`, which maps tensors of `graph` to (minimum, maximum)."""
        self._model, self._graph, self._ranges = model, graph, ranges
        self._scheme, self._steps = scheme, _STEPS[scheme]
        self._widths = {tensor: self._width(*ends) for tensor, ends in ranges.items()}
        self._before = dict(self._widths)
        self._fixed = {op.outputs[0]: _FIXED[op.name] for op in graph.ops if op.name in _FIXED}
        self._constants = {
            index: tflite.constant_values(model, graph.tensors[index])
            for op in graph.ops
            for index in self._float_constants(op)
        }

    def widened(self) -> dict[int, tuple[float, float]]:
        """Return {tensor: new range} for the ranges that are too narrow."""
        groups = list(self._groups())
        while self._grow(self._floors()) or self._tie(groups):
            pass
        return {
            tensor: _scaled(*self._ranges[tensor], width, self._before[tensor])
            for tensor, width in self._widths.items()
            if width > self._before[tensor]
        }

    def dead_layers(self) -> list[str]:
        """Return the dead model inputs, and the layers whose outputs are all dead although an input is not."""
        graph, layers = self._graph, self._graph.layers_by_output
        dead = {tensor for tensor, width in self._widths.items() if width < max(self._own_floor(tensor), _TINY)}
        # The range of a tanh can be that of its fixed scale, whatever its values are.
        dead |= {op.outputs[0] for op in graph.ops if op.name == "TANH" and op.inputs[0] in dead}
        readers: dict[int, list[str]] = collections.defaultdict(list)
        alive_in: dict[str, bool] = {}
        leaving: dict[str, list[int]] = collections.defaultdict(list)
        for op in graph.ops:
            for index in op.inputs:
                readers[index] += [layers[output] for output in op.outputs]
        for op in graph.ops:
            layer = layers[op.outputs[0]]
            read = [index for index in op.inputs if index in self._widths and layers.get(index) != layer]
            only_dead_inputs = bool(read) and all(index in dead for index in read)
            alive_in[layer] = alive_in.get(layer, False) or not only_dead_inputs
            leaving[layer] += [
                index
                for index in op.outputs
                if index in self._widths and (index in graph.outputs or any(item != layer for item in readers[index]))
            ]
        inputs = [graph.tensors[index].name for index in graph.inputs if index in dead]
        return inputs + [
            layer for layer, outputs in leaving.items() if outputs and alive_in[layer] and dead.issuperset(outputs)
        ]

    def _own_floor(self, tensor: int) -> float:
        return self._floor_of(op) if (op := self._graph.producers.get(tensor)) else 0.0

    def _floors(self) -> Iterator[tuple[int, float]]:
        """Yield (tensor, its smallest width), which depends on the widths at the time of the call."""
        for op in self._graph.ops:
            for output in op.outputs:
                if output in self._widths:
                    floor = self._floor_of(op)
                    yield output, floor if self._widths[output] or floor else self._widest(op.inputs) * _FINEST_OTHER
        for index in self._graph.inputs:
            if index in self._widths and not self._widths[index]:
                yield index, _UNKNOWN
        for op in reversed(self._graph.ops):
            if op.name in WEIGHTED_SLOTS:
                yield from self._for_bias(op)

    def _grow(self, floors: Iterator[tuple[int, float]]) -> bool:
        changed = False
        for tensor, floor in floors:
            if floor > self._widths[tensor]:
                self._widths[tensor], changed = max(floor, _TINY), True
        return changed

    def _tie(self, groups: Sequence[list[int]]) -> bool:
        """Widen the other tensors of a group to the widest one that was widened."""
        changed = False
        for group in groups:
            grown = [self._widths[index] for index in group if self._widths[index] > self._before[index]]
            changed |= self._grow((index, max(grown)) for index in group if grown)
        return changed

    def _groups(self) -> Iterator[list[int]]:
        """Yield the activations of each op whose input and output share a scale."""
        for op in self._graph.ops:
            if op.name in _SHARED_SCALE:
                yield [index for index in (*op.inputs, *op.outputs) if index in self._widths]

    def _floor_of(self, op: tflite.Op) -> float:
        """Return the smallest output width that the kernel of `op` accepts."""
        steps = self._steps
        floor = _FINEST_BOUNDED * steps if op.index in self._bounded_ops else 0.0
        if op.name in WEIGHTED_SLOTS and self._scheme == "int8":
            data, weights, _ = WEIGHTED_SLOTS[op.name]
            step = self._reach(op.inputs[data]) * self._weight_step(op.inputs[weights])
            return max(floor, step * _FINEST_OUTPUT)
        if op.name in _SUMS:
            return max(floor, self._widest(op.inputs) * _FINEST_SUM)
        if op.name == "HARD_SWISH":
            return max(floor, self._widest(op.inputs) * _FINEST_HARD_SWISH)
        if op.name == "SQUARED_DIFFERENCE":
            return max(floor, self._widest(op.inputs) ** 2 / steps * _FINEST_SQUARE)
        return floor

    @functools.cached_property
    def _bounded_ops(self) -> frozenset[int]:
        """Ops with a fused activation that has a bound other than 0; empty if no range is small enough to matter."""
        if all(width >= _FINEST_BOUNDED * self._steps for width in self._before.values()):
            return frozenset()
        ops = tflite.unpack(self._model).subgraphs[self._graph.index].operators
        fused = [getattr(op.builtinOptions, "fusedActivationFunction", 0) for op in ops]
        return frozenset(index for index, activation in enumerate(fused) if activation in _BOUNDED_ACTIVATIONS)

    def _for_bias(self, op: tflite.Op) -> Iterator[tuple[int, float]]:
        """Yield (data input, its smallest width), so that the bias of `op` fits into int32."""
        data, weights, bias = (op.inputs[place] if place < len(op.inputs) else -1 for place in WEIGHTED_SLOTS[op.name])
        if data not in self._widths or bias not in self._constants or weights not in self._constants:
            return
        largest, step = float(np.abs(self._constants[bias]).max(initial=0.0)), self._weight_step(weights)
        if largest and step:
            yield data, largest / step / LARGEST_BIAS * self._steps

    def _weight_step(self, index: int) -> float:
        """Return the scale of a weight tensor, which may be an activation."""
        if index in self._constants:
            return float(np.abs(self._constants[index]).max(initial=0.0)) / WEIGHT_STEPS
        return self._width_of(index) / self._steps

    def _widest(self, tensors: Sequence[int]) -> float:
        """Return the largest width of the tensors and of those that share their scales."""
        widest = max((self._reach(index) for index in tensors), default=0.0)
        return widest or _UNKNOWN

    def _reach(self, index: int) -> float:
        """Return the largest width of the tensors that may share the scale of `index`.

        For example, a time step that is padding in all samples is a dead slice, but has the scale of the sequence.
        """
        return max(self._width_of(item) for item in self._tied_with.get(index, (index,)))

    @functools.cached_property
    def _tied_with(self) -> dict[int, list[int]]:
        """{tensor: all tensors that share its scale through ops whose input and output share one}."""
        results: dict[int, list[int]] = {}
        for group in self._groups():
            parts = {id(part): part for part in (results.get(index, [index]) for index in group)}
            joined = [index for part in parts.values() for index in part]
            results |= dict.fromkeys(joined, joined)
        return results

    def _width_of(self, index: int) -> float:
        """Return the width of an activation or a constant; 0 if it is not quantized."""
        if index in self._constants:
            values = self._constants[index]
            return self._width(float(values.min(initial=0.0)), float(values.max(initial=0.0)))
        return max(self._widths.get(index, 0.0), self._fixed.get(index, 0.0))

    def _width(self, minimum: float, maximum: float) -> float:
        return grid_width(minimum, maximum, self._scheme)

    def _float_constants(self, op: tflite.Op) -> list[int]:
        if op.name not in WEIGHTED_SLOTS and op.name not in _SUMS:
            return []
        tensors = [self._graph.tensors[index] for index in op.inputs if index != tflite.ABSENT]
        return [tensor.index for tensor in tensors if tensor.is_constant and tensor.dtype == "float32"]


def _scaled(minimum: float, maximum: float, width: float, before: float) -> tuple[float, float]:
    """Scale a range from the width `before` to the width `width`. Zero keeps its relative position."""
    if not before or not math.isfinite(width / before):
        return 0.0, width
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    return low * width / before, high * width / before

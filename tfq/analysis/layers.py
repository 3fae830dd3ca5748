# SPDX-License-Identifier: Apache-2.0
"""An int8 flatbuffer beside the float one that it was made of, tensor by tensor: how large the error is, and why."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.ptq.calibration.observer import Sample, look_at_each
from tfq.ptq.layer_pairs import Beside
from tfq.tflite import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """What one activation of the int8 flatbuffer is off by over all samples: by its own rounding, and all before it.

    layer, op: that give it out. sqnr_db: signal to error, in dB; inf where there is no error.
    expected_sqnr_db: the same if each value were off by its own rounding alone, spread evenly over a step: an error of
        step² / 12 a value (Widrow and Kollár 2008, "Quantization Noise").
    cosine: of the two tensors. max_abs_error_lsb: the largest error, in steps.
    saturated: share of the float values that lie beyond the range, by more than a step: softmax's 1.0 does not.
    range_use: share of the codes between the lowest and the highest that came up.
    dead_channels: channels (of the last axis) whose float values never reach half a step: all of it is one code.
    saturated_channels: channels of which more than one value in a hundred is beyond the range.
    channel_spread: range of the channel in the middle, by size, as a share of the tensor's; None where there is no more
        than one channel. Small means that one scale serves channels of very different size.
    """

    name: str
    layer: str
    op: str
    channels: int
    scale: float
    zero_point: int
    sqnr_db: float
    expected_sqnr_db: float
    cosine: float
    max_abs_error_lsb: float
    saturated: float
    range_use: float
    dead_channels: tuple[int, ...]
    saturated_channels: tuple[int, ...]
    channel_spread: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: infinities are null."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isinf(value) else value for name, value in values.items()
        }


SATURATED_CHANNEL = 0.01


def layer_errors(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> tuple[LayerError, ...]:
    """One record for each activation that both flatbuffers have, in the order of the ops.

    quantized: int8 activations. floating: the float flatbuffer that it was made of. samples: by input name, real
    values, each of batch 1.
    Raises InputError where the two do not belong together, and where there are no samples.
    """
    pair = Beside(floating, quantized)
    graph = pair.quantized.main_subgraph
    origin = {output: op for op in graph.ops for output in op.outputs}
    tensors = [graph.tensors[index] for index in pair.of_float]
    tallies = [_Tally(tensor) for tensor in tensors]
    reals = look_at_each(floating, list(pair.of_float.values()), samples, _copied)
    quantized_values = look_at_each(quantized, list(pair.of_float), pair.codes(samples), _copied, total=len(samples))
    for wanted, got in zip(reals, quantized_values, strict=True):
        for tally, one, other in zip(tallies, wanted, got, strict=True):
            tally.add(one, other)
    if not samples:
        raise InputError("no samples to compare the flatbuffers on: expected at least one")
    return tuple(
        tally.record(origin[tensor.index].keras_layer or tensor.name, origin[tensor.index].name)
        for tally, tensor in zip(tallies, tensors, strict=True)
    )


def _copied(values: list[NDArray]) -> list[NDArray]:
    return [array.copy() for array in values]


class _Tally:
    """Sums of one tensor over all samples."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._scale, self._zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
        limits = np.iinfo(tensor.dtype)
        # And a hair, for the float's own rounding.
        self._lowest = (limits.min - self._zero_point - 1.001) * self._scale
        self._highest = (limits.max - self._zero_point + 1.001) * self._scale
        self._levels = limits.max - limits.min
        channels = tensor.shape[-1] if tensor.shape else 1
        self._minimum, self._maximum = np.full(channels, np.inf), np.full(channels, -np.inf)
        self._beyond = np.zeros(channels, np.int64)
        self._lowest_code, self._highest_code = limits.max, limits.min
        self._count = 0
        self._signal = self._noise = self._product = self._power = self._largest = 0.0

    def add(self, reals: NDArray[np.float32], codes: NDArray) -> None:
        """Take the next sample's float values and codes, of one shape."""
        wanted = reals.reshape(-1, len(self._minimum)).astype(np.float64)
        got = (codes.reshape(wanted.shape).astype(np.float64) - self._zero_point) * self._scale
        error = got - wanted
        self._count += wanted.size
        self._signal += float((wanted**2).sum())
        self._power += float((got**2).sum())
        self._product += float((wanted * got).sum())
        self._noise += float((error**2).sum())
        self._largest = max(self._largest, float(np.abs(error).max(initial=0)))
        self._minimum = np.minimum(self._minimum, wanted.min(axis=0, initial=np.inf))
        self._maximum = np.maximum(self._maximum, wanted.max(axis=0, initial=-np.inf))
        self._beyond += ((wanted < self._lowest) | (wanted > self._highest)).sum(axis=0)
        self._lowest_code = min(self._lowest_code, int(codes.min()))
        self._highest_code = max(self._highest_code, int(codes.max()))

    def record(self, layer: str, op: str) -> LayerError:
        """What the sums say."""
        channels = len(self._minimum)
        sizes = np.maximum(np.abs(self._minimum), np.abs(self._maximum))
        norms = math.sqrt(self._signal) * math.sqrt(self._power)
        return LayerError(
            name=self._tensor.name,
            layer=layer,
            op=op,
            channels=channels,
            scale=self._scale,
            zero_point=self._zero_point,
            sqnr_db=decibels(self._signal, self._noise),
            expected_sqnr_db=decibels(self._signal, self._count * self._scale**2 / 12),
            cosine=self._product / norms if norms else float(self._signal == self._power),
            max_abs_error_lsb=self._largest / self._scale,
            saturated=float(self._beyond.sum()) / self._count,
            range_use=(self._highest_code - self._lowest_code) / self._levels,
            dead_channels=tuple(np.flatnonzero(sizes < self._scale / 2).tolist()),
            saturated_channels=tuple(
                np.flatnonzero(self._beyond > SATURATED_CHANNEL * self._count / channels).tolist()
            ),
            channel_spread=float(np.median(sizes) / sizes.max()) if channels > 1 and sizes.max() > 0 else None,
        )


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise): inf of no noise, -inf of noise without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@dataclass(frozen=True, kw_only=True)
class Join:
    """Tensors that an op brings to one scale, of very different ranges: the small ones have few codes left.

    ranges: {layer that gives an input: width of its float values}. codes: {the same: how many codes it can take}.
    """

    layer: str
    op: str
    ranges: dict[str, float]
    codes: dict[str, int]

    @property
    def ratio(self) -> float:
        """The widest range over the narrowest."""
        widths = [width for width in self.ranges.values() if width > 0]
        return max(widths) / min(widths) if widths else 1.0


_ONE_SCALE = ("CONCATENATION", "PACK", "ADD", "SUB", "MAXIMUM", "MINIMUM", "ADD_N")


def joins(quantized: bytes, floating: bytes, samples: Iterable[Sample]) -> tuple[Join, ...]:
    """The ops that bring several activations to one scale, with the range that each input has by itself."""
    pair = Beside(floating, quantized)
    graph = pair.quantized.main_subgraph
    ops = [op for op in graph.ops if op.name in _ONE_SCALE]
    wanted = sorted({index for op in ops for index in op.inputs if index in pair.of_float})
    ends: dict[int, tuple[float, float]] = {}
    if not wanted:
        return ()

    def look(values: list[NDArray]) -> list[tuple[float, float]]:
        return [(float(array.min(initial=0)), float(array.max(initial=0))) for array in values]

    for result in look_at_each(floating, [pair.of_float[index] for index in wanted], samples, look):
        for index, (low, high) in zip(wanted, result, strict=True):
            before = ends.get(index, (0.0, 0.0))
            ends[index] = min(before[0], low), max(before[1], high)
    layers = graph.layers_by_output
    built = []
    for op in ops:
        inputs = [index for index in op.inputs if index in ends]
        if len(inputs) < 2:
            continue
        scale = graph.tensors[op.outputs[0]].scale[0]
        widths = {index: ends[index][1] - ends[index][0] for index in inputs}
        names = _unique([layers[index] for index in inputs])
        built.append(
            Join(
                layer=layers[op.outputs[0]],
                op=op.name,
                ranges={name: widths[index] for name, index in zip(names, inputs, strict=True)},
                codes={
                    name: min(256, int(widths[index] / scale) + 1) for name, index in zip(names, inputs, strict=True)
                },
            )
        )
    return tuple(built)


def _unique(names: Sequence[str]) -> list[str]:
    counted = itertools.count(2)
    results: list[str] = []
    for name in names:
        results.append(name if name not in results else f"{name} ({next(counted)})")
    return results

# SPDX-License-Identifier: Apache-2.0
"""Histograms of op outputs and weights, with the range of the quantized values, for plots."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.analysis.op_errors import graph_with_output_names, output_label
from tfq.ptq.calibration import observe
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.layer_pairs import ModelPair
from tfq.ptq.weight_scales import QUANTIZED_LIMITS
from tfq.ptq.weighted_ops import weighted_ops
from tfq.tflite.stored_values import PACKED_BITS

_BARS = 40


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A histogram with bars of equal width.

    Args:
        low: The lower end of the first bar.
        high: The upper end of the last bar.
        counts: The number of values in each bar.
        range: The real values that the quantized values span. For weights with one scale per channel, this is the
            widest channel's range.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    range: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class OpHistogram:
    """The histograms of an op's output on the samples and of its float weights.

    Args:
        op_index: As in `OpError`.
        op: As in `OpError`.
        layer: As in `OpError`.
        tensor: As in `OpError`.
        label: As in `OpError`.
        activations: The output's values.
        weights: The weights in the float flatbuffer; None if there are none.
    """

    op_index: int
    op: str
    layer: str
    tensor: str
    label: str
    activations: Bars
    weights: Bars | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def op_histograms(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> tuple[OpHistogram, ...]:
    """Return a histogram for each activation that both flatbuffers have; the arguments are those of `op_errors`."""
    pair = ModelPair(floating, quantized, by_layer=True)
    observations = observe(floating, samples, total=len(samples)).tensors
    float_graph, graph = pair.floating.main_subgraph, graph_with_output_names(pair.quantized)
    weights = {item.output: item for item in weighted_ops(tflite.unpack(floating), pair.floating)}
    results = []
    for index, float_index in pair.float_tensors.items():
        tensor, op = graph.tensors[index], graph.producers[index]
        observed, weighted = observations[float_graph.index, float_index], weights.get(float_index)
        bins = observed.bins()
        stored = graph.tensors[op.inputs[1]] if weighted is not None else None
        results.append(
            OpHistogram(
                op_index=op.index,
                op=op.name,
                layer=op.keras_layer or tensor.name,
                tensor=tensor.name,
                label=output_label(graph, op, index),
                activations=_bars(bins.centers, bins.counts, (observed.minimum, observed.maximum), _span(tensor)),
                weights=None
                if weighted is None or stored is None or not stored.scale
                else _weight_bars(weighted.weights, stored),
            )
        )
    return tuple(results)


def _span(tensor: tflite.Tensor) -> tuple[float, float]:
    limits = np.iinfo(tensor.dtype)
    scale, zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
    return (limits.min - zero_point) * scale, (limits.max - zero_point) * scale


def _weight_bars(weights: NDArray, stored: tflite.Tensor) -> Bars:
    values = weights.reshape(-1).astype(np.float64)
    lowest, highest = (limit * max(stored.scale) for limit in QUANTIZED_LIMITS[PACKED_BITS.get(stored.dtype, 8)])
    return _bars(values, np.ones(values.size, np.int64), (float(values.min()), float(values.max())), (lowest, highest))


def _bars(values: NDArray, counts: NDArray, ends: tuple[float, float], span: tuple[float, float]) -> Bars:
    low, high = ends if ends[1] > ends[0] else (ends[0] - 0.5, ends[0] + 0.5)
    result, _ = np.histogram(np.clip(values, low, high), _BARS, (low, high), weights=counts)
    return Bars(low=low, high=high, counts=tuple(map(int, result)), range=span)

# SPDX-License-Identifier: Apache-2.0
"""An int8 flatbuffer next to the float one that it was made of, op by op: how large the error is, and of what kind."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.analysis.weight_errors import WeightError, weight_errors
from tfq.errors import InputError
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.causes import Diagnosis, TensorFacts, op_label
from tfq.ptq.layer_pairs import ModelPair
from tfq.tflite import Op, Subgraph, Tensor

# The op of a record about one of the model's inputs.
INPUT = "INPUT"
SATURATED_CHANNEL = 0.01
# Single values beyond a range say nothing on few samples.
_FEW_VALUES = 2
# Values kept of each tensor and sample for its median, and channels whose SQNR a record of an input has.
_KEPT, _MOST_CHANNELS = 512, 512
# Part of a tensor's power that its variance must have; below it, it is a constant.
_CONSTANT = 1e-10


@dataclass(frozen=True, kw_only=True)
class OpError:
    """The error of one op's output, or of one input of the model, over all samples: its own and all that it inherits.

    The signal of an SQNR is the variance of the float values (their power if they are constant): an offset carries no
    information. Infinite values mean no error.

    Attributes:
        op_index: Position of the op in the int8 flatbuffer, None for an input of the model.
        op: The op's name, "INPUT" for an input.
        layer: The Keras layer, or the tensor's name if that is not known.
        tensor_index: Index of the output tensor in the int8 flatbuffer.
        tensor: Name of that tensor.
        label: A name that distinguishes the record from all others: "logpower/LOG (#4)".
        channels: Size of the last axis.
        scale: Of the output.
        zero_point: Of the output.
        sqnr_db: Signal to error, in dB.
        expected_sqnr_db: Signal to the error of rounding to the output's own grid alone, step^2 / 12 for each value
            (Widrow and Kollar 2008, "Quantization Noise").
        rounding_sqnr_db: Signal to the error of the values that the range covers: rounding, and what is inherited.
        clipping_sqnr_db: Signal to the error of the values that the range cuts off. The powers of the two errors add
            up to that of the whole.
        mean_shift_lsb: Mean of the error, in steps.
        mean_shift: Largest mean of a channel's error, divided by the standard deviation of the tensor: what
            `bias_correction` removes. None if the tensor is constant.
        worst_channel: The channel (of the last axis) with the lowest SQNR, of those that vary. None if none does.
        worst_channel_sqnr_db: Its SQNR.
        channel_sqnr_db: The SQNR of each channel of an input, None for channels that are constant; empty for ops and
            for inputs with more than 512 channels.
        cosine: Cosine similarity of the two tensors.
        max_abs_error_lsb: The largest error, in steps.
        saturated: Fraction of the float values that lie beyond the range by more than a step.
        range_use: Fraction of the range that the float values span.
        dead: Whether the float tensor is 0 on all samples.
        never_taken: Whether only a MAXIMUM or MINIMUM reads it, which always takes its other operand: errors are
            harmless.
        dead_channels: Channels whose float values never reach half a step.
        saturated_channels: Channels with more than 1% of their values beyond the range.
        channel_spread: Median magnitude of the channels as a fraction of the largest; None if there is one channel.
        weights: The error of the op's quantized weights, None if it has none.
    """

    op_index: int | None
    op: str
    layer: str
    tensor_index: int
    tensor: str
    label: str
    channels: int
    scale: float
    zero_point: int
    sqnr_db: float
    expected_sqnr_db: float
    rounding_sqnr_db: float
    clipping_sqnr_db: float
    mean_shift_lsb: float
    mean_shift: float | None
    worst_channel: int | None
    worst_channel_sqnr_db: float | None
    channel_sqnr_db: tuple[float | None, ...]
    cosine: float
    max_abs_error_lsb: float
    saturated: float
    range_use: float
    dead: bool
    never_taken: bool
    dead_channels: tuple[int, ...]
    saturated_channels: tuple[int, ...]
    channel_spread: float | None
    weights: WeightError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: infinities are null."""
        values = {name: _finite(value) for name, value in asdict(self).items()}
        weights = None if self.weights is None else self.weights.to_dict()
        return {**values, "channel_sqnr_db": [_finite(value) for value in self.channel_sqnr_db], "weights": weights}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The errors of all activations, inputs first, and the int8 graph with what the float tensors held."""

    errors: tuple[OpError, ...]
    diagnosis: Diagnosis


def op_errors(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> tuple[OpError, ...]:
    """Return a record for each quantized input and each activation of both flatbuffers, in the order of the ops.

    Args:
        quantized: The int8 (or int16x8) flatbuffer.
        floating: The float flatbuffer that it was made of.
        samples: By input name, real values, each of batch 1.

    Raises:
        InputError: The two do not belong together, or there are no samples.
    """
    return measure(quantized, floating, samples).errors


def measure(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> Measurement:
    """Return what `op_errors` does, with the facts that causes are found by."""
    pair = ModelPair(floating, quantized)
    graph = pair.quantized.main_subgraph
    if not samples:
        raise InputError("no samples to compare the flatbuffers on: expected at least one", field="samples")
    inputs = dict(zip(pair.quantized.input_names, graph.input_tensors, strict=True))
    inputs = {name: tensor for name, tensor in inputs.items() if tensor.is_quantized}
    tallies = {tensor.index: _Tally(tensor) for tensor in inputs.values()}
    tallies |= {index: _Tally(graph.tensors[index]) for index in pair.float_tensors}
    reals = map_activations(floating, list(pair.float_tensors.values()), samples, _copied)
    codes = list(pair.quantize_samples(samples))
    quantized_values = map_activations(quantized, list(pair.float_tensors), codes, _copied, total=len(samples))
    for sample, coded, wanted, got in zip(samples, codes, reals, quantized_values, strict=True):
        for name, tensor in inputs.items():
            if sample[name].dtype.kind == "f":
                tallies[tensor.index].add(sample[name], coded[name])
        for index, one, other in zip(pair.float_tensors, wanted, got, strict=True):
            tallies[index].add(one, other)
    weights = weight_errors(quantized, floating, pair)
    names = {tensor.index: name for name, tensor in inputs.items()}
    tallies = {index: tally for index, tally in tallies.items() if tally.count}
    diagnosis = Diagnosis(graph, {index: tally.facts() for index, tally in tallies.items()})
    records = []
    for index, tally in tallies.items():
        op = graph.producers.get(index)
        tensor = graph.tensors[index]
        records.append(
            tally.record(
                op_index=None if op is None else op.index,
                op=INPUT if op is None else op.name,
                layer=names[index] if op is None else op.keras_layer or tensor.name,
                label=f"input {names[index]!r}" if op is None else output_label(graph, op, index),
                never_taken=not diagnosis.affects_output(index),
                weights=None if op is None else weights.get(op.index),
            )
        )
    return Measurement(errors=tuple(records), diagnosis=diagnosis)


def output_label(graph: Subgraph, op: Op, tensor: int) -> str:
    """Return a name that distinguishes an output of an op: of several, "parts/SPLIT (#3):1" is the second."""
    return op_label(graph, op.index) + (f":{op.outputs.index(tensor)}" if len(op.outputs) > 1 else "")


def _copied(values: list[NDArray]) -> list[NDArray]:
    return [array.copy() for array in values]


class _Tally:
    """Sums of one tensor over all samples."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._scale, self._zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
        limits = np.iinfo(tensor.dtype)
        # Half a step beyond the outermost codes rounds to them; the float's own rounding adds a hair.
        self._low, self._high = ((end - self._zero_point) * self._scale for end in (limits.min, limits.max))
        channels = tensor.shape[-1] if tensor.shape else 1
        self._minimum, self._maximum = np.full(channels, np.inf), np.full(channels, -np.inf)
        self._beyond = np.zeros(channels, np.int64)
        self._sum, self._power, self._shift, self._noise = (np.zeros(channels) for _ in range(4))
        self._clipped_noise = self._product = self._got_power = self._largest = 0.0
        self._random, self._kept = np.random.default_rng(0), list[NDArray]()
        self.count = 0

    def add(self, reals: NDArray[np.float32], codes: NDArray) -> None:
        """Take the next sample's float values and quantized values, of one shape."""
        wanted = reals.reshape(-1, len(self._minimum)).astype(np.float64)
        got = (codes.reshape(wanted.shape).astype(np.float64) - self._zero_point) * self._scale
        error = got - wanted
        self.count += wanted.size
        self._sum += wanted.sum(axis=0)
        self._power += (wanted**2).sum(axis=0)
        self._shift += error.sum(axis=0)
        self._noise += (error**2).sum(axis=0)
        self._got_power += float((got**2).sum())
        self._product += float((wanted * got).sum())
        self._largest = max(self._largest, float(np.abs(error).max(initial=0)))
        self._minimum = np.minimum(self._minimum, wanted.min(axis=0, initial=np.inf))
        self._maximum = np.maximum(self._maximum, wanted.max(axis=0, initial=-np.inf))
        self._beyond += ((wanted < self._low - 1.001 * self._scale) | (wanted > self._high + 1.001 * self._scale)).sum(
            axis=0
        )
        cut = (wanted < self._low - 0.501 * self._scale) | (wanted > self._high + 0.501 * self._scale)
        self._clipped_noise += float((error[cut] ** 2).sum()) if cut.any() else 0.0
        if wanted.size:
            self._kept.append(self._random.choice(wanted.reshape(-1), min(_KEPT, wanted.size)))

    def facts(self) -> TensorFacts:
        """Return what the float tensor held."""
        sizes = np.abs(np.concatenate(self._kept))
        return TensorFacts(
            minimum=float(self._minimum.min()),
            maximum=float(self._maximum.max()),
            channel_minima=self._minimum,
            channel_maxima=self._maximum,
            median_magnitude=float(np.median(sizes[sizes > 0])) if sizes.any() else 0.0,
        )

    def record(
        self,
        *,
        op_index: int | None,
        op: str,
        layer: str,
        label: str,
        never_taken: bool = False,
        weights: WeightError | None = None,
    ) -> OpError:
        """Return the record that the sums amount to."""
        channels, count = len(self._minimum), self.count
        each = count / channels
        sizes = np.maximum(np.abs(self._minimum), np.abs(self._maximum))
        power, noise = float(self._power.sum()), float(self._noise.sum())
        signal = _signal(power, float(self._sum.sum()), count)
        norms = math.sqrt(power) * math.sqrt(self._got_power)
        shifts = np.abs(self._shift) / each
        by_channel = self._channel_sqnr_db()
        varying = {place: value for place, value in enumerate(by_channel) if value is not None}
        worst = min(varying, key=varying.__getitem__) if varying else None
        seen = min(float(self._maximum.max()), self._high) - max(float(self._minimum.min()), self._low)
        return OpError(
            op_index=op_index,
            op=op,
            layer=layer,
            tensor_index=self._tensor.index,
            tensor=self._tensor.name,
            label=label,
            channels=channels,
            scale=self._scale,
            zero_point=self._zero_point,
            sqnr_db=decibels(signal, noise),
            expected_sqnr_db=decibels(signal, count * self._scale**2 / 12),
            rounding_sqnr_db=decibels(signal, max(noise - self._clipped_noise, 0.0)),
            clipping_sqnr_db=decibels(signal, self._clipped_noise),
            mean_shift_lsb=float(self._shift.sum()) / count / self._scale,
            mean_shift=float(shifts.max()) / math.sqrt(signal / count) if varying else None,
            worst_channel=worst,
            worst_channel_sqnr_db=None if worst is None else varying[worst],
            channel_sqnr_db=tuple(by_channel) if op_index is None and channels <= _MOST_CHANNELS else (),
            cosine=self._product / norms if norms else float(power == self._got_power),
            max_abs_error_lsb=self._largest / self._scale,
            saturated=float(self._beyond.sum()) / count,
            range_use=max(seen, 0.0) / (self._high - self._low),
            dead=power == 0,
            never_taken=never_taken,
            dead_channels=tuple(np.flatnonzero(sizes < self._scale / 2).tolist()),
            saturated_channels=tuple(
                np.flatnonzero(self._beyond > max(SATURATED_CHANNEL * each, _FEW_VALUES)).tolist()
            ),
            channel_spread=float(np.median(sizes) / sizes.max()) if channels > 1 and sizes.max() > 0 else None,
            weights=weights,
        )

    def _channel_sqnr_db(self) -> list[float | None]:
        each = self.count / len(self._minimum)
        return [
            decibels(_signal(power, total, each), noise) if high > low else None
            for power, total, noise, low, high in zip(
                self._power, self._sum, self._noise, self._minimum, self._maximum, strict=True
            )
        ]


def _signal(power: float, total: float, count: float) -> float:
    """Return the sum of squared deviations from the mean; of squares, if that is nothing."""
    variance = power - total**2 / count
    return float(variance) if variance > _CONSTANT * power else float(power)


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): inf of no noise, -inf of noise without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value

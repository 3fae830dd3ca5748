# SPDX-License-Identifier: Apache-2.0
"""Compare an int8 flatbuffer with its float flatbuffer op by op: the size and the kind of each error."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.analysis.weight_errors import WeightError, weight_errors
from tfq.errors import InputError, ModelError
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.causes import Diagnosis, TensorFacts, op_label
from tfq.ptq.layer_pairs import ModelPair
from tfq.tflite import Model, Op, Subgraph, Tensor

# The value of `OpError.op` for an input of the model.
INPUT = "INPUT"
SATURATED_CHANNEL = 0.01
# On few samples, single values outside of a range are not significant.
_FEW_VALUES = 2
# Values to store per tensor and sample for the median, and the most channels of an input with an SQNR per channel.
_RESERVOIR, _MAX_CHANNELS = 512, 512
# A tensor is constant if its variance is a smaller fraction of its power than this.
_CONSTANT = 1e-10


@dataclass(frozen=True, kw_only=True)
class OpError:
    """The error of one op's output, or of one input of the model, over all samples.

    The error includes what the op inherits from its inputs. The signal of an SQNR is the variance of the float values
    (or their power if they are constant), because an offset carries no information. An infinite SQNR means no error.

    Attributes:
        op_index: The position of the op in the int8 flatbuffer, None for an input of the model.
        op: The op's name, "INPUT" for an input.
        layer: The Keras layer, or the tensor's name if the layer is not known.
        tensor_index: The index of the output tensor in the int8 flatbuffer.
        tensor: The name of that tensor.
        label: A unique name of the record: "logpower/LOG (#4)".
        channels: The size of the last axis.
        scale: The scale of the output.
        zero_point: The zero point of the output.
        sqnr_db: The SQNR (signal to quantization noise ratio) in dB.
        expected_sqnr_db: The SQNR that rounding to the output's grid alone would cause: step^2 / 12 for each value
            (Widrow and Kollar 2008, "Quantization Noise").
        rounding_sqnr_db: The SQNR with only the errors of values inside of the range: rounding, and inherited errors.
        clipping_sqnr_db: The SQNR with only the errors of values that the range clips. The powers of these two errors
            add up to the total.
        mean_shift_lsb: The mean of the error, in steps.
        mean_shift: The largest mean error of a channel, divided by the standard deviation of the tensor.
            `bias_correction` removes it. None if the tensor is constant.
        worst_channel: The channel (of the last axis) with the lowest SQNR, among those that vary. None if none does.
        worst_channel_sqnr_db: The SQNR of that channel.
        channel_sqnr_db: The SQNR of each channel of an input, None for channels that are constant. Empty for ops and
            for inputs with more than 512 channels.
        cosine: The cosine similarity of the two tensors.
        max_abs_error_lsb: The largest error, in steps.
        saturated: The fraction of the float values that are outside of the range by more than a step.
        range_use: The fraction of the range that the float values span.
        dead: Whether the float tensor is 0 on all samples.
        never_selected: Whether the tensor is only read by a MAXIMUM or MINIMUM that always selects its other operand,
            so that errors do no harm.
        dead_channels: Channels whose float values never reach half a step.
        saturated_channels: Channels with more than 1% of their values outside of the range.
        channel_spread: The median magnitude of the channels as a fraction of the largest. None if there is one channel.
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
    never_selected: bool
    dead_channels: tuple[int, ...]
    saturated_channels: tuple[int, ...]
    channel_spread: float | None
    weights: WeightError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; infinities are null."""
        values = {name: _finite(value) for name, value in asdict(self).items()}
        weights = None if self.weights is None else self.weights.to_dict()
        return {**values, "channel_sqnr_db": [_finite(value) for value in self.channel_sqnr_db], "weights": weights}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The errors of all activations, inputs first, and the int8 graph with statistics of the float tensors."""

    errors: tuple[OpError, ...]
    diagnosis: Diagnosis


def op_errors(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> tuple[OpError, ...]:
    """Return a record for each quantized input and each activation of both flatbuffers, in the order of the ops.

    Args:
        quantized: The int8 (or int16x8) flatbuffer.
        floating: The float flatbuffer that it was converted from.
        samples: Real values by input name, each with a batch size of 1.

    Raises:
        InputError: The flatbuffers do not belong together, or there are no samples.
    """
    return measure(quantized, floating, samples).errors


def measure(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> Measurement:
    """Return the records of `op_errors`, and the facts that `find` needs to find causes."""
    pair = ModelPair(floating, quantized, by_layer=True)
    graph = graph_with_output_names(pair.quantized)
    if not samples:
        raise InputError(
            "samples is empty: expected at least one sample to compare the flatbuffers on", field="samples"
        )
    inputs = dict(zip(pair.quantized.input_names, graph.input_tensors, strict=True))
    inputs = {name: tensor for name, tensor in inputs.items() if tensor.is_quantized}
    tallies = {tensor.index: _Tally(tensor) for tensor in inputs.values()}
    tallies |= {index: _Tally(graph.tensors[index]) for index in pair.float_tensors}
    float_values = map_activations(floating, list(pair.float_tensors.values()), samples, _copies)
    quantized_inputs = list(pair.quantize_samples(samples))
    quantized_values = map_activations(
        quantized, list(pair.float_tensors), quantized_inputs, _copies, total=len(samples)
    )
    for sample, quantized_sample, expected, dequantized in zip(
        samples, quantized_inputs, float_values, quantized_values, strict=True
    ):
        for name, tensor in inputs.items():
            if sample[name].dtype.kind == "f":
                tallies[tensor.index].add(sample[name], quantized_sample[name])
        for index, float_array, quantized_array in zip(pair.float_tensors, expected, dequantized, strict=True):
            tallies[index].add(float_array, quantized_array)
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
                never_selected=not diagnosis.affects_output(index),
                weights=None if op is None else weights.get(op.index),
            )
        )
    return Measurement(errors=tuple(records), diagnosis=diagnosis)


def graph_with_output_names(model: Model) -> Subgraph:
    """Return the main graph, in which ops of an unknown layer that compute an output are named after the output.

    The converter calls the tensors of outputs "Identity", but the signature has the names of the output layers.
    """
    graph = model.main_subgraph
    names = dict(zip(graph.outputs, model.output_names, strict=True))
    ops = tuple(
        replace(op, keras_layer=names[op.outputs[0]])
        if op.keras_layer is None and len(op.outputs) == 1 and op.outputs[0] in names
        else op
        for op in graph.ops
    )
    return replace(graph, ops=ops)


def output_label(graph: Subgraph, op: Op, tensor: int) -> str:
    """Return a unique name of an op's output; the second of several is "parts/SPLIT (#3):1"."""
    return op_label(graph, op.index) + (f":{op.outputs.index(tensor)}" if len(op.outputs) > 1 else "")


def _copies(values: list[NDArray]) -> list[NDArray]:
    return [array.copy() for array in values]


class _Tally:
    """Sums over all samples of one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._scale, self._zero_point = float(tensor.scale[0]), int(tensor.zero_point[0])
        limits = np.iinfo(tensor.dtype)
        # Values up to half a step outside still round to the outermost values; float rounding may add a little.
        self._low, self._high = ((end - self._zero_point) * self._scale for end in (limits.min, limits.max))
        # The first values show how many channels there are. A damaged file may declare any number.
        self._minimum = self._maximum = self._sum = self._power = self._shift = self._noise = np.zeros(0)
        self._beyond = np.zeros(0, np.int64)
        self._clipped_noise = self._product = self._dequantized_power = self._largest = 0.0
        self._random, self._reservoir = np.random.default_rng(0), list[NDArray]()
        self.count = 0

    def add(self, float_values: NDArray[np.float32], quantized_values: NDArray) -> None:
        """Add the float values and the quantized values of the next sample; both have the same shape."""
        channels = self._tensor.shape[-1] if self._tensor.shape else 1
        size = float_values.size
        if size != quantized_values.size or (size and (not channels or size % channels)):
            raise ModelError(
                f"tensor {self._tensor.name!r} has shape {list(float_values.shape)} in the float flatbuffer and "
                f"{list(quantized_values.shape)} in the int8 flatbuffer, which declares {channels:,} channels. "
                "A file is damaged. Convert the model again",
                field="model",
                expected=float_values.shape,
                got=quantized_values.shape,
            )
        if not size:
            return
        if not self.count:
            self._minimum, self._maximum = np.full(channels, np.inf), np.full(channels, -np.inf)
            self._beyond = np.zeros(channels, np.int64)
            self._sum, self._power, self._shift, self._noise = (np.zeros(channels) for _ in range(4))
        expected = float_values.reshape(-1, len(self._minimum)).astype(np.float64)
        dequantized = (quantized_values.reshape(expected.shape).astype(np.float64) - self._zero_point) * self._scale
        error = dequantized - expected
        self.count += expected.size
        self._sum += expected.sum(axis=0)
        self._power += (expected**2).sum(axis=0)
        self._shift += error.sum(axis=0)
        self._noise += (error**2).sum(axis=0)
        self._dequantized_power += float((dequantized**2).sum())
        self._product += float((expected * dequantized).sum())
        self._largest = max(self._largest, float(np.abs(error).max(initial=0)))
        self._minimum = np.minimum(self._minimum, expected.min(axis=0, initial=np.inf))
        self._maximum = np.maximum(self._maximum, expected.max(axis=0, initial=-np.inf))
        self._beyond += (
            (expected < self._low - 1.001 * self._scale) | (expected > self._high + 1.001 * self._scale)
        ).sum(axis=0)
        cut = (expected < self._low - 0.501 * self._scale) | (expected > self._high + 0.501 * self._scale)
        self._clipped_noise += float((error[cut] ** 2).sum()) if cut.any() else 0.0
        if expected.size:
            self._reservoir.append(self._random.choice(expected.reshape(-1), min(_RESERVOIR, expected.size)))

    def facts(self) -> TensorFacts:
        """Return statistics of the float tensor."""
        magnitudes = np.abs(np.concatenate(self._reservoir))
        return TensorFacts(
            minimum=float(self._minimum.min()),
            maximum=float(self._maximum.max()),
            channel_minima=self._minimum,
            channel_maxima=self._maximum,
            median_magnitude=float(np.median(magnitudes[magnitudes > 0])) if magnitudes.any() else 0.0,
        )

    def record(
        self,
        *,
        op_index: int | None,
        op: str,
        layer: str,
        label: str,
        never_selected: bool = False,
        weights: WeightError | None = None,
    ) -> OpError:
        """Return the record for the sums."""
        channels, count = len(self._minimum), self.count
        values_per_channel = count / channels
        magnitudes = np.maximum(np.abs(self._minimum), np.abs(self._maximum))
        power, noise = float(self._power.sum()), float(self._noise.sum())
        signal = _signal(power, float(self._sum.sum()), count)
        norms = math.sqrt(power) * math.sqrt(self._dequantized_power)
        shifts = np.abs(self._shift) / values_per_channel
        channel_sqnr = self._channel_sqnr_db()
        varying = {channel: value for channel, value in enumerate(channel_sqnr) if value is not None}
        worst = min(varying, key=varying.__getitem__) if varying else None
        covered = min(float(self._maximum.max()), self._high) - max(float(self._minimum.min()), self._low)
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
            channel_sqnr_db=tuple(channel_sqnr) if op_index is None and channels <= _MAX_CHANNELS else (),
            cosine=self._product / norms if norms else float(power == self._dequantized_power),
            max_abs_error_lsb=self._largest / self._scale,
            saturated=float(self._beyond.sum()) / count,
            range_use=max(covered, 0.0) / (self._high - self._low),
            dead=power == 0,
            never_selected=never_selected,
            dead_channels=tuple(np.flatnonzero(magnitudes < self._scale / 2).tolist()),
            saturated_channels=tuple(
                np.flatnonzero(self._beyond > max(SATURATED_CHANNEL * values_per_channel, _FEW_VALUES)).tolist()
            ),
            channel_spread=float(np.median(magnitudes) / magnitudes.max())
            if channels > 1 and magnitudes.max() > 0
            else None,
            weights=weights,
        )

    def _channel_sqnr_db(self) -> list[float | None]:
        values_per_channel = self.count / len(self._minimum)
        return [
            decibels(_signal(power, total, values_per_channel), noise) if high > low else None
            for power, total, noise, low, high in zip(
                self._power, self._sum, self._noise, self._minimum, self._maximum, strict=True
            )
        ]


def _signal(power: float, total: float, count: float) -> float:
    """Return the sum of squared deviations from the mean; for a constant, the sum of squares."""
    variance = power - total**2 / count
    return float(variance) if variance > _CONSTANT * power else float(power)


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): inf without noise, -inf if there is noise but no signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value

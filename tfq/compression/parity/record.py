# SPDX-License-Identifier: Apache-2.0
"""Results of the comparison of a QAT model with its flatbuffer: batch-wise tallies and per-layer records."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.parity.match import Match
from tfq.errors import InputError, RequirementError
from tfq.evaluation.classes import is_class_vector
from tfq.evaluation.inputs import scale_of
from tfq.notebook import NotebookRecord
from tfq.quant_math import dequantize, quantize
from tfq.text_table import aligned
from tfq.tflite import Model, Subgraph, Tensor

# Tolerance for float32: a difference of whole steps is not an exact integer after dequantization.
_FLOAT_SLACK_LSB = 0.01
_PROBABILITY_OPS = ("SOFTMAX", "LOGISTIC", "LOG_SOFTMAX")
_RESHAPE_OPS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_DEQUANTIZE_OPS = ("DEQUANTIZE",)
_SAME_VALUE_OPS = (*_RESHAPE_OPS, "DEQUANTIZE", "QUANTIZE")


@dataclass(frozen=True, kw_only=True)
class LayerParity:
    """The comparison of one tensor of the flatbuffer with the corresponding value of the QAT model, over all examples.

    Cumulative errors compare with the QAT model run as a whole, and include the errors of all previous layers. Local
    errors compare with the QAT model's ops fed with the flatbuffer's values, and are errors of this layer only. An LSB
    is one quantization step.

    Attributes:
        layer: The last of `layers`.
        layers: All Keras layers that are fused into the tensor, in topological order.
        op: The op that produces the tensor, or "input".
        tensor: Index of the tensor.
        scale: Scale of the tensor.
        zero_point: Zero point of the tensor.
        fake_quantized: Whether the QAT model rounds this value. If not, a local error of half an LSB is the rounding
            of the flatbuffer.
        compared: Number of compared elements.
        agreement: Cumulative: fraction of equal integers, with the QAT model's value quantized by `scale` and
            `zero_point`.
        max_lsb: Cumulative: largest difference of integers.
        mean_lsb: Cumulative: mean difference of integers.
        sqnr_db: Cumulative: signal-to-quantization-noise ratio of the real values.
        local_max_lsb: Local: largest difference of the real values, in units of `scale`, or of the step that the QAT
            model rounds this value to, if it is finer.
        local_mean_lsb: Local: mean difference, in the same units.
        local_sqnr_db: Local: signal-to-quantization-noise ratio. The layer with the lowest one adds the most noise.
        departs: Why the layer departs from the QAT model, or None; see `qat_parity`.
    """

    layer: str
    layers: tuple[str, ...]
    op: str
    tensor: int
    scale: float
    zero_point: int
    fake_quantized: bool
    compared: int
    agreement: float
    max_lsb: int
    mean_lsb: float
    sqnr_db: float
    local_max_lsb: float
    local_mean_lsb: float
    local_sqnr_db: float
    departs: str | None = None


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An example that the flatbuffer and the QAT model classify differently.

    Attributes:
        example: Index of the example.
        expected: Class of the QAT model.
        got: Class of the flatbuffer.
        margin_lsb: Margin of the QAT model between its best and second best class, in LSB of the flatbuffer's output;
            inf if the output has no scale.
        logit_margin_lsb: The same margin of the logits before a final softmax, in LSB of the logits. One LSB there may
            become many LSB of the softmax. None if there is no final softmax.
    """

    example: int
    expected: int
    got: int
    margin_lsb: float
    logit_margin_lsb: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """The comparison of one output of the model, as users run it.

    Attributes:
        name: Name of the output.
        lsb: Scale of the output, or of the quantized tensor that a float output is dequantized from.
        sqnr_db: Signal-to-quantization-noise ratio of the real values.
        logit_sqnr_db: The same for the input of a final softmax or sigmoid; for the output itself without one.
        logits_of: What `logit_sqnr_db` refers to: "output", or the input of its last op, such as "input of SOFTMAX".
        top1_agreement: Fraction of examples with the same class; None if the output is not a classification (see
            `tfq.evaluation.classes`).
        disagreements: The examples with another class.
    """

    name: str
    lsb: float | None
    sqnr_db: float
    logit_sqnr_db: float
    logits_of: str
    top1_agreement: float | None = None
    disagreements: tuple[Disagreement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QATParity(NotebookRecord):
    """The layer-by-layer comparison of a QAT model with its flatbuffer.

    Attributes:
        num_examples: The number of examples that were compared.
        kernels: The kernels that ran the flatbuffer.
        tolerance_lsb: The largest accepted local error, in quantization steps.
        layers: The compared tensors, in the order of the flatbuffer's ops.
        outputs: The comparison of each output of the model.
        skipped: Keras layer -> why none of the flatbuffer's tensors belongs to it; and quantized tensor without a known
            layer -> why it was not compared.
        notes: Remarks about the comparison as a whole.
    """

    num_examples: int
    kernels: str
    tolerance_lsb: float
    layers: tuple[LayerParity, ...]
    outputs: tuple[OutputParity, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def departures(self) -> tuple[LayerParity, ...]:
        """All layers that depart. They are judged by local errors, so that no departure hides another."""
        return tuple(layer for layer in self.layers if layer.departs)

    @property
    def first_departure(self) -> LayerParity | None:
        """The first of `departures`, or None."""
        return next(iter(self.departures), None)

    @property
    def noisiest(self) -> LayerParity:
        """The layer that adds the most noise relative to its signal, with the lowest local_sqnr_db."""
        return min(self.layers, key=lambda layer: layer.local_sqnr_db)

    @property
    def top1_agreement(self) -> float | None:
        """The lowest top1_agreement of the outputs; None if no output is a classification."""
        return min((o.top1_agreement for o in self.outputs if o.top1_agreement is not None), default=None)

    @property
    def logit_sqnr_db(self) -> float:
        """The lowest logit_sqnr_db of the outputs."""
        return min(output.logit_sqnr_db for output in self.outputs)

    @property
    def largest_margin_lsb(self) -> float:
        """The QAT model's largest margin, in LSB of the output, among examples with another class; 0 without any."""
        return max((item.margin_lsb for output in self.outputs for item in output.disagreements), default=0.0)

    def missed(self, *, min_logit_sqnr_db: float = 20.0, max_margin_lsb: float = 4.0) -> tuple[str, ...]:
        """Return the requirements that the flatbuffer misses, in words; empty if it meets them all.

        Args:
            min_logit_sqnr_db: Smallest accepted `logit_sqnr_db` of an output.
            max_margin_lsb: The margin of the QAT model must be below this in every disagreement.
        """
        results = []
        for output in self.outputs:
            if not output.logit_sqnr_db >= min_logit_sqnr_db:
                results.append(
                    f"output {output.name!r}: SQNR of the {output.logits_of} is {output.logit_sqnr_db:.1f} dB, "
                    f"expected at least {min_logit_sqnr_db:g}"
                )
            clear = [item for item in output.disagreements if not item.margin_lsb < max_margin_lsb]
            if clear:
                worst = max(clear, key=lambda item: item.margin_lsb)
                results.append(
                    f"output {output.name!r}: {len(clear)} example(s) have another class although the QAT model's "
                    f"margin is {max_margin_lsb:g} LSB or more (example {worst.example}: {worst.margin_lsb:.1f} LSB)"
                )
        return tuple(results)

    def require(self, *, min_logit_sqnr_db: float = 20.0, max_margin_lsb: float = 4.0) -> None:
        """Raise RequirementError if requirements are `missed`, with the first departing layer.

        Args:
            min_logit_sqnr_db: See `missed`.
            max_margin_lsb: See `missed`.
        """
        missed = self.missed(min_logit_sqnr_db=min_logit_sqnr_db, max_margin_lsb=max_margin_lsb)
        if missed:
            first = self.first_departure
            raise RequirementError(
                "; ".join((*missed, self.departure_text())),
                field="model",
                expected=(min_logit_sqnr_db, max_margin_lsb),
                got=first.layer if first else None,
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values. An infinite sqnr_db (no difference) is "inf"."""
        first = self.first_departure
        values = {
            **dataclasses.asdict(self),
            "first_departure": first.layer if first else None,
            "departures": [layer.layer for layer in self.departures],
            "noisiest": self.noisiest.layer,
            "top1_agreement": self.top1_agreement,
            "logit_sqnr_db": self.logit_sqnr_db,
            "largest_margin_lsb": self.largest_margin_lsb,
        }
        return {name: _json_value(value) for name, value in values.items()}

    def to_text(self) -> str:
        """Return the comparison as text: a table of layers, the departures, and the outputs."""
        rows = [
            ("layer", "op", "agreement", "max LSB", "mean LSB", "SQNR dB", "local max", "local mean", "local dB", "")
        ]
        rows += [
            (
                " + ".join(layer.layers),
                layer.op,
                f"{layer.agreement:.2%}",
                f"{layer.max_lsb}",
                f"{layer.mean_lsb:.3f}",
                f"{layer.sqnr_db:.1f}",
                f"{layer.local_max_lsb:.2f}",
                f"{layer.local_mean_lsb:.3f}",
                f"{layer.local_sqnr_db:.1f}",
                "DEPARTS" if layer.departs else "",
            )
            for layer in self.layers
        ]
        lines = aligned(rows, left=2)
        compared = {name for layer in self.layers for name in layer.layers}
        lines += ["", self.departure_text(), *(f"  {item.layer}: {item.departs}" for item in self.departures[1:])]
        lines += [_output_text(output, self.num_examples) for output in self.outputs]
        lines += [f"not compared: {name}: {reason}" for name, reason in self.skipped.items() if name not in compared]
        return "\n".join([*lines, *self.notes])

    def departure_text(self) -> str:
        """Return the first departure with its reason, or without one the layer that adds the most noise."""
        first, noisy = self.first_departure, self.noisiest
        if first is None:
            message = f"no layer departs from the QAT model by a local error above {self.tolerance_lsb:g} LSB"
            message += f"; {noisy.layer} ({noisy.op}) adds the most noise, local SQNR {noisy.local_sqnr_db:.1f} dB"
            return message if noisy.fake_quantized else f"{message}, because the QAT model does not round there"
        return f"first departure: {first.layer} ({first.op}, tensor {first.tensor}): {first.departs}"


def _output_text(output: OutputParity, num_examples: int) -> str:
    message = f"output {output.name}: SQNR {output.sqnr_db:.1f} dB"
    if output.logits_of != "output":
        message += f", {output.logits_of} {output.logit_sqnr_db:.1f} dB"
    if output.top1_agreement is None:
        return message
    message += f", same class in {output.top1_agreement:.2%} of {num_examples} examples"
    if output.disagreements:
        margin = max(item.margin_lsb for item in output.disagreements)
        message += f"; in the others the QAT model's margin is at most {margin:.1f} LSB"
        logits = [item.logit_margin_lsb for item in output.disagreements if item.logit_margin_lsb is not None]
        message += f" ({max(logits):.1f} LSB of the logits)" if logits else ""
    return message


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


@dataclass(kw_only=True)
class NoiseTally:
    """Accumulates the signal and noise power of `quant_math.sqnr_db` over batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: NDArray, got: NDArray) -> None:
        """Add two arrays of the same shape."""
        exact = reference.astype(np.float64)
        self.signal += float(np.sum(exact**2))
        self.noise += float(np.sum((exact - got) ** 2))

    @property
    def sqnr_db(self) -> float:
        """10 * log10(signal / noise); inf without noise."""
        if self.noise == 0:
            return math.inf
        return -math.inf if self.signal == 0 else 10 * math.log10(self.signal / self.noise)


class LayerTally:
    """Accumulates the cumulative and local errors of one tensor."""

    def __init__(self, matched: Match) -> None:
        """Start with no examples.

        Args:
            matched: The tensor and its value in the QAT model.

        Raises:
            InputError: The tensor has no single scale to dequantize with.
        """
        self.match = matched
        self.scale, self.zero_point = scale_of(f"tensor {matched.tensor.name!r}", matched.tensor)
        # A flatbuffer that rounds more coarsely than the QAT model is measured in the finer steps.
        self._step = min(self.scale, matched.step or self.scale)
        self._values = self._equal = self._largest = self._distance = self._num_not_finite = 0
        self._local_largest = self._local_distance = 0.0
        self._noise, self._local_noise = NoiseTally(), NoiseTally()

    def reals(self, quantized_values: NDArray) -> NDArray[np.float32]:
        """Dequantize integers of this tensor."""
        return dequantize(quantized_values, self.scale, self.zero_point)

    def add(self, quantized_values: NDArray, reference_values: NDArray, local_values: NDArray) -> None:
        """Add a batch.

        Args:
            quantized_values: Integers of the flatbuffer.
            reference_values: Values of the QAT model run as a whole.
            local_values: Values of the QAT model's ops fed with the flatbuffer's values.
        """
        self._check_finite(reference_values)
        reals = self.reals(quantized_values)
        reference_values, local_values = (
            reference_values.reshape(quantized_values.shape),
            local_values.reshape(quantized_values.shape),
        )
        if self.match.is_clipped:
            limits = np.iinfo(quantized_values.dtype)
            ends = self.reals(np.array([limits.min, limits.max], quantized_values.dtype))
            reference_values, local_values = np.clip(reference_values, *ends), np.clip(local_values, *ends)
        expected = quantize(reference_values, self.scale, self.zero_point, quantized_values.dtype)
        distance = np.abs(quantized_values.astype(np.int32) - expected)
        self._values += quantized_values.size
        self._equal += int(np.count_nonzero(distance == 0))
        self._largest = max(self._largest, int(distance.max(initial=0)))
        self._distance += int(distance.sum())
        self._noise.add(reference_values, reals)
        # For example 1/sqrt(variance), if the flatbuffer quantizes a small variance to 0.
        is_number = np.isfinite(local_values)
        self._num_not_finite += int(np.count_nonzero(~is_number))
        local_values, reals = local_values[is_number], reals[is_number]
        error = np.abs(reals - local_values) / np.float32(self._step)
        self._local_noise.add(local_values, reals)
        self._local_largest = max(self._local_largest, float(error.max(initial=0)))
        self._local_distance += float(error.sum(dtype=np.float64))

    def record(self, tolerance_lsb: float) -> LayerParity:
        """Return the errors, and whether the layer departs.

        Args:
            tolerance_lsb: Largest accepted local error.
        """
        tensor, grid, message = self.match.tensor, self.match.expected_grid, None
        if grid:
            offset = 128 if tensor.dtype == "uint8" else 0
            message = (
                f"scale {self.scale:.6g} and zero_point {self.zero_point} differ from those of the QAT model's range, "
                f"{grid[0]:.6g} and {round(grid[1]) + offset}"
            )
        elif self._num_not_finite:
            message = (
                f"on the flatbuffer's values, the QAT model computes infinity or NaN in {self._num_not_finite:,} of "
                f"{self._values:,} elements, because the flatbuffer quantizes small values to 0"
            )
        elif self._local_largest > tolerance_lsb + _FLOAT_SLACK_LSB:
            message = (
                f"for equal inputs, it differs by up to {self._local_largest:.1f} LSB from the QAT model (mean "
                f"{self._local_distance / self._values:.3f})"
            )
            if self._step < 0.999 * self.scale:
                message += f": it rounds to steps of {self.scale:.4g}, the QAT model to steps of {self._step:.4g}"
            elif not self.match.step:
                message += ": the QAT model has no fake quantization there"
        return LayerParity(
            layer=self.match.layer,
            layers=self.match.layers,
            op=self.match.op,
            tensor=tensor.index,
            scale=self.scale,
            zero_point=self.zero_point,
            fake_quantized=self.match.rounded,
            compared=self._values,
            agreement=self._equal / self._values,
            max_lsb=self._largest,
            mean_lsb=self._distance / self._values,
            sqnr_db=self._noise.sqnr_db,
            local_max_lsb=math.inf if self._num_not_finite else self._local_largest,
            local_mean_lsb=self._local_distance / max(1, self._values - self._num_not_finite),
            local_sqnr_db=self._local_noise.sqnr_db,
            departs=message,
        )

    def _check_finite(self, reference_values: NDArray) -> None:
        if not np.isfinite(reference_values).all():
            raise InputError(
                f"the QAT model computes NaN or infinity in layer {self.match.layer!r}, so its weights or ranges are "
                "invalid: train it again with a lower learning rate",
                field="qat_model",
                expected="finite values",
                got=self.match.layer,
            )


class OutputTally:
    """Accumulates the errors of one output of the flatbuffer, as users run it."""

    def __init__(self, name: str, tensor: Tensor, graph: Subgraph) -> None:
        """Start with no examples.

        Args:
            name: Name of the output.
            tensor: Its tensor.
            graph: The flatbuffer's graph.
        """
        self._name = name
        self._lsb = _scale(graph.tensors[_origin(graph, tensor.index, _DEQUANTIZE_OPS)])
        op, index = logits_of(graph, tensor.index)
        self._activation, self._logits = op, graph.tensors[index] if op else None
        self._noise = NoiseTally()
        self._examples, self._has_classes = 0, False
        self._graph, self._output = graph, tensor.index
        self._disagreements: list[Disagreement] = []

    def add(self, reference_values: NDArray, got: NDArray, layers: Mapping[int, NDArray]) -> None:
        """Add a batch.

        Args:
            reference_values: The output of the QAT model.
            got: The output of the flatbuffer.
            layers: Tensor index -> value of the QAT model.
        """
        if reference_values.size != got.size:
            raise InputError(
                f"output {self._name!r} has shape {list(reference_values.shape[1:])} in the QAT model and "
                f"{list(got.shape[1:])} in the flatbuffer: it was converted from another model",
                field="model",
                expected=reference_values.shape[1:],
                got=got.shape[1:],
            )
        reference_values = reference_values.reshape(got.shape)
        self._noise.add(reference_values, got)
        if not self._examples:
            is_matrix = got.ndim == 2 and got.shape[1] > 1
            self._has_classes = is_matrix and is_class_vector(self._graph, self._output, reference_values)
        if self._has_classes:
            expected, classes = reference_values.argmax(axis=1), got.argmax(axis=1)
            logits = layers.get(self._logits.index) if self._logits else None
            for index in map(int, np.flatnonzero(expected != classes)):
                self._disagreements.append(
                    Disagreement(
                        example=self._examples + index,
                        expected=int(expected[index]),
                        got=int(classes[index]),
                        margin_lsb=_margin(reference_values[index], self._lsb),
                        logit_margin_lsb=None
                        if logits is None or logits.shape != reference_values.shape
                        else _margin(logits[index], _scale(self._logits)),
                    )
                )
        self._examples += len(got)

    def record(self, layers: Sequence[LayerParity]) -> OutputParity:
        """Return the errors.

        Args:
            layers: All layers, among them the input of a final softmax.
        """
        logits = next((layer for layer in layers if self._logits and layer.tensor == self._logits.index), None)
        return OutputParity(
            name=self._name,
            lsb=self._lsb,
            sqnr_db=self._noise.sqnr_db,
            logit_sqnr_db=logits.sqnr_db if logits else self._noise.sqnr_db,
            logits_of=f"input of {self._activation}" if logits else "output",
            top1_agreement=1 - len(self._disagreements) / self._examples if self._has_classes else None,
            disagreements=tuple(self._disagreements),
        )


def output_tallies(model: Model) -> list[OutputTally]:
    """Return a tally for each output of the flatbuffer."""
    graph = model.main_subgraph
    return [
        OutputTally(name, tensor, graph) for name, tensor in zip(model.output_names, graph.output_tensors, strict=True)
    ]


def logits_of(graph: Subgraph, output: int) -> tuple[str | None, int]:
    """Return (name, input tensor) of the softmax or sigmoid that computes an output; (None, output) without one."""
    index = _origin(graph, output, _SAME_VALUE_OPS)
    producer = graph.producers.get(index)
    if producer is None or producer.name not in _PROBABILITY_OPS:
        return None, output
    return producer.name, _origin(graph, producer.inputs[0], _RESHAPE_OPS)


def _margin(values: NDArray, lsb: float | None) -> float:
    second, first = np.sort(values)[-2:]
    # Rounded, because margins of quantized outputs are integers: 4, not 3.999999 as computed in float32.
    return round(float(first - second) / lsb, 4) if lsb else math.inf


def _scale(tensor: Tensor | None) -> float | None:
    return tensor.scale[0] if tensor and len(tensor.scale) == 1 else None


def _origin(graph: Subgraph, index: int, passing: Collection[str]) -> int:
    """Return the tensor that this one is computed from by ops in `passing` only."""
    while (producer := graph.producers.get(index)) is not None and producer.name in passing:
        index = producer.inputs[0]
    return index

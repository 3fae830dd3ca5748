# SPDX-License-Identifier: Apache-2.0
"""What the comparison of a QAT model with its flatbuffer finds: counted batch by batch, recorded layer by layer."""

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
from tfq.quant_math import dequantize, quantize
from tfq.text_table import aligned
from tfq.tflite import Model, Subgraph, Tensor

# Whole steps are not whole numbers once they are reals in float32.
_FLOAT_SLACK_LSB = 0.01
_TO_PROBABILITIES = ("SOFTMAX", "LOGISTIC", "LOG_SOFTMAX")
_SHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_ROUNDINGS = ("DEQUANTIZE",)
_PASSING = (*_SHAPING, "DEQUANTIZE", "QUANTIZE")


@dataclass(frozen=True, kw_only=True)
class LayerParity:
    """One tensor of the flatbuffer beside the value of the QAT model that it stands for, over all examples.

    layer: the last of the Keras layers that the tensor holds; layers: all of them, in the order of the graph.
    op: that gives the tensor out, "input" of an input. tensor: its index. scale, zero_point: its own.
    fake_quantized: whether the QAT model rounds this value; where it does not, a difference of half an LSB is the
        rounding itself, and codes differ only where both roundings do.

    Against the QAT model run on its own, so that errors of all layers before are in it:
    agreement: share of equal codes, the QAT model's value quantized with `scale` and `zero_point`.
    max_lsb, mean_lsb: largest and mean distance of codes. sqnr_db: of the reals.

    Against the QAT model's ops fed with the flatbuffer's own values, so that only this layer's errors are in it:
    local_max_lsb, local_mean_lsb: distance of the reals in units of `scale`, or of the step that the QAT model rounds
    this value to, where that is finer. local_sqnr_db: of the reals; the lowest tells where most noise comes in.
    departs: why the layer itself departs from the QAT model, or None. See `qat_parity`.
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
    """An example whose class is another one in the flatbuffer: `expected` in the QAT model, `got` in the flatbuffer.

    margin_lsb: what the QAT model's best class is ahead of its second best, in LSB of the flatbuffer's output; inf
        of an output that has none. logit_margin_lsb: the same before a final softmax, in LSB of what enters it, one of
        which softmax may turn into many of its own. None where there is none.
    """

    example: int
    expected: int
    got: int
    margin_lsb: float
    logit_margin_lsb: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output of the whole model, as users run it.

    lsb: the scale of its codes (of those that a float output is made of). sqnr_db: of the reals.
    logit_sqnr_db: the same of what enters a final softmax or sigmoid; where there is none (logits_of is "output"), of
        the output itself.
    top1_agreement, disagreements: of outputs (n, classes) that say a class (see `tfq.evaluation.classes`); None and ()
        of others.
    """

    name: str
    lsb: float | None
    sqnr_db: float
    logit_sqnr_db: float
    logits_of: str
    top1_agreement: float | None = None
    disagreements: tuple[Disagreement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QATParity:
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
        """Every layer that departs by itself; each is judged on the flatbuffer's own inputs, so none hides another."""
        return tuple(layer for layer in self.layers if layer.departs)

    @property
    def first_departure(self) -> LayerParity | None:
        """The first of them."""
        return next(iter(self.departures), None)

    @property
    def noisiest(self) -> LayerParity:
        """The layer that adds most noise of its own, as a share of its signal: the lowest local_sqnr_db."""
        return min(self.layers, key=lambda layer: layer.local_sqnr_db)

    @property
    def top1_agreement(self) -> float | None:
        """The lowest of the outputs; None where no output has classes."""
        return min((o.top1_agreement for o in self.outputs if o.top1_agreement is not None), default=None)

    @property
    def logit_sqnr_db(self) -> float:
        """The lowest of the outputs."""
        return min(output.logit_sqnr_db for output in self.outputs)

    @property
    def largest_margin_lsb(self) -> float:
        """The QAT model's largest lead, in LSB of the output, where the flatbuffer says another class; else 0."""
        return max((item.margin_lsb for output in self.outputs for item in output.disagreements), default=0.0)

    def missed(self, *, min_logit_sqnr_db: float = 20.0, max_margin_lsb: float = 4.0) -> tuple[str, ...]:
        """What keeps the flatbuffer from computing what the QAT model does; empty where it does.

        Every disagreement in top-1 must be one where the QAT model's lead is below max_margin_lsb.
        """
        results = []
        for output in self.outputs:
            if not output.logit_sqnr_db >= min_logit_sqnr_db:
                results.append(
                    f"output {output.name!r}: SQNR of the {output.logits_of} {output.logit_sqnr_db:.1f} dB, "
                    f"wanted at least {min_logit_sqnr_db:g}"
                )
            clear = [item for item in output.disagreements if not item.margin_lsb < max_margin_lsb]
            if clear:
                worst = max(clear, key=lambda item: item.margin_lsb)
                results.append(
                    f"output {output.name!r}: {len(clear)} example(s) get another class though the QAT model's lead is "
                    f"{max_margin_lsb:g} LSB or more (example {worst.example}: {worst.margin_lsb:.1f} LSB)"
                )
        return tuple(results)

    def require(self, *, min_logit_sqnr_db: float = 20.0, max_margin_lsb: float = 4.0) -> None:
        """Raises RequirementError with what is `missed` and the layer that departs first."""
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
        """Plain JSON values; an infinite sqnr_db (nothing differs) is "inf"."""
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
        return {name: _plain(value) for name, value in values.items()}

    def to_text(self) -> str:
        """For the terminal: a line a layer, then the departures, then the outputs."""
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
        held = {name for layer in self.layers for name in layer.layers}
        lines += ["", self.departure_text(), *(f"  {item.layer}: {item.departs}" for item in self.departures[1:])]
        lines += [_told_output(output, self.num_examples) for output in self.outputs]
        lines += [f"not compared: {name}: {reason}" for name, reason in self.skipped.items() if name not in held]
        return "\n".join([*lines, *self.notes])

    def departure_text(self) -> str:
        """The first departure with its reason; where there is none, where most noise comes in."""
        first, noisy = self.first_departure, self.noisiest
        if first is None:
            message = f"no layer departs from the QAT model by more than {self.tolerance_lsb:g} LSB by itself"
            message += f"; most noise comes in at {noisy.layer} ({noisy.op}), {noisy.local_sqnr_db:.1f} dB"
            return message if noisy.fake_quantized else f"{message}: the QAT model does not round there"
        return f"first departure: {first.layer} ({first.op}, tensor {first.tensor}): {first.departs}"


def _told_output(output: OutputParity, num_examples: int) -> str:
    message = f"output {output.name}: SQNR {output.sqnr_db:.1f} dB"
    if output.logits_of != "output":
        message += f", of the {output.logits_of} {output.logit_sqnr_db:.1f} dB"
    if output.top1_agreement is None:
        return message
    message += f", same class in {output.top1_agreement:.2%} of {num_examples} examples"
    if output.disagreements:
        margin = max(item.margin_lsb for item in output.disagreements)
        message += f", where not the QAT model's lead is at most {margin:.1f} LSB"
        logits = [item.logit_margin_lsb for item in output.disagreements if item.logit_margin_lsb is not None]
        message += f" ({max(logits):.1f} LSB of the logits)" if logits else ""
    return message


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


@dataclass(kw_only=True)
class NoiseTally:
    """The sums of `quant_math.sqnr_db`, over arrays that come one after the other."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: NDArray, got: NDArray) -> None:
        """Takes two arrays of one shape."""
        wide = reference.astype(np.float64)
        self.signal += float(np.sum(wide**2))
        self.noise += float(np.sum((wide - got) ** 2))

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise); inf without noise."""
        if self.noise == 0:
            return math.inf
        return -math.inf if self.signal == 0 else 10 * math.log10(self.signal / self.noise)


class LayerTally:
    """One tensor's codes against what the QAT model gives there by itself, and fed with the flatbuffer's values."""

    def __init__(self, matched: Match) -> None:
        """Raises InputError where the tensor has no scale that its codes can be turned back with."""
        self.match = matched
        self.scale, self.zero_point = scale_of(f"tensor {matched.tensor.name!r}", matched.tensor)
        # Steps that the QAT model does not have are no excuse for errors of their size.
        self._step = min(self.scale, matched.step or self.scale)
        self._values = self._equal = self._largest = self._distance = self._numberless = 0
        self._local_largest = self._local_distance = 0.0
        self._noise, self._local_noise = NoiseTally(), NoiseTally()

    def reals(self, codes: NDArray) -> NDArray[np.float32]:
        """What codes of this tensor stand for."""
        return dequantize(codes, self.scale, self.zero_point)

    def add(self, codes: NDArray, own: NDArray, local: NDArray) -> None:
        """codes: the flatbuffer's. own, local: the QAT model's reals by itself and fed with the flatbuffer's values."""
        self._check_number(own)
        reals = self.reals(codes)
        own, local = own.reshape(codes.shape), local.reshape(codes.shape)
        if self.match.cut_off:
            limits = np.iinfo(codes.dtype)
            ends = self.reals(np.array([limits.min, limits.max], codes.dtype))
            own, local = np.clip(own, *ends), np.clip(local, *ends)
        wanted = quantize(own, self.scale, self.zero_point, codes.dtype)
        distance = np.abs(codes.astype(np.int32) - wanted)
        self._values += codes.size
        self._equal += int(np.count_nonzero(distance == 0))
        self._largest = max(self._largest, int(distance.max(initial=0)))
        self._distance += int(distance.sum())
        self._noise.add(own, reals)
        # As of 1/sqrt(variance), where the flatbuffer's code for a small variance is that of 0.
        is_number = np.isfinite(local)
        self._numberless += int(np.count_nonzero(~is_number))
        local, reals = local[is_number], reals[is_number]
        error = np.abs(reals - local) / np.float32(self._step)
        self._local_noise.add(local, reals)
        self._local_largest = max(self._local_largest, float(error.max(initial=0)))
        self._local_distance += float(error.sum(dtype=np.float64))

    def record(self, tolerance_lsb: float) -> LayerParity:
        """What was found, and whether the layer departs."""
        tensor, grid, message = self.match.tensor, self.match.wanted_grid, None
        if grid:
            offset = 128 if tensor.dtype == "uint8" else 0
            message = (
                f"scale {self.scale:.6g} and zero_point {self.zero_point} are not those of the range that the QAT "
                f"model rounds to there, {grid[0]:.6g} and {round(grid[1]) + offset}"
            )
        elif self._numberless:
            message = (
                f"given the flatbuffer's values, the QAT model computes infinity or NaN in {self._numberless:,} of "
                f"{self._values:,} places: what is small there has no code but that of 0"
            )
        elif self._local_largest > tolerance_lsb + _FLOAT_SLACK_LSB:
            message = (
                f"given the same inputs, it is up to {self._local_largest:.1f} LSB from what the QAT model computes "
                f"(mean {self._local_distance / self._values:.3f})"
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
            local_max_lsb=math.inf if self._numberless else self._local_largest,
            local_mean_lsb=self._local_distance / max(1, self._values - self._numberless),
            local_sqnr_db=self._local_noise.sqnr_db,
            departs=message,
        )

    def _check_number(self, own: NDArray) -> None:
        if not np.isfinite(own).all():
            raise InputError(
                f"the QAT model gives NaN or infinity in layer {self.match.layer!r}: its weights or ranges are broken: "
                "train it again with a lower learning rate",
                field="qat_model",
                expected="finite values",
                got=self.match.layer,
            )


class OutputTally:
    """One output of the whole model: of the flatbuffer, as users run it, against the QAT model."""

    def __init__(self, name: str, tensor: Tensor, graph: Subgraph) -> None:
        """name, tensor: of the output."""
        self._name = name
        self._lsb = _scale(graph.tensors[_origin(graph, tensor.index, _ROUNDINGS)])
        op, index = logits_of(graph, tensor.index)
        self._activation, self._logits = op, graph.tensors[index] if op else None
        self._noise = NoiseTally()
        self._examples, self._has_classes = 0, False
        self._graph, self._output = graph, tensor.index
        self._disagreements: list[Disagreement] = []

    def add(self, own: NDArray, got: NDArray, layers: Mapping[int, NDArray]) -> None:
        """own: the QAT model's reals of the next examples; got: the flatbuffer's. layers: the former's, by tensor."""
        if own.size != got.size:
            raise InputError(
                f"output {self._name!r}: the QAT model gives {list(own.shape[1:])}, the flatbuffer "
                f"{list(got.shape[1:])}: it was converted from another model",
                field="model",
                expected=own.shape[1:],
                got=got.shape[1:],
            )
        own = own.reshape(got.shape)
        self._noise.add(own, got)
        if not self._examples:
            is_matrix = got.ndim == 2 and got.shape[1] > 1
            self._has_classes = is_matrix and is_class_vector(self._graph, self._output, own)
        if self._has_classes:
            expected, classes = own.argmax(axis=1), got.argmax(axis=1)
            logits = layers.get(self._logits.index) if self._logits else None
            for place in map(int, np.flatnonzero(expected != classes)):
                self._disagreements.append(
                    Disagreement(
                        example=self._examples + place,
                        expected=int(expected[place]),
                        got=int(classes[place]),
                        margin_lsb=_margin(own[place], self._lsb),
                        logit_margin_lsb=None
                        if logits is None or logits.shape != own.shape
                        else _margin(logits[place], _scale(self._logits)),
                    )
                )
        self._examples += len(got)

    def record(self, layers: Sequence[LayerParity]) -> OutputParity:
        """What was found; the logits are those of the layer that enters the final softmax."""
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
    """One for each output of the flatbuffer."""
    graph = model.main_subgraph
    return [
        OutputTally(name, tensor, graph) for name, tensor in zip(model.output_names, graph.output_tensors, strict=True)
    ]


def logits_of(graph: Subgraph, output: int) -> tuple[str | None, int]:
    """(op, tensor): the softmax or sigmoid that gives the output, and what enters it; (None, output) without one."""
    index = _origin(graph, output, _PASSING)
    producer = graph.producers.get(index)
    if producer is None or producer.name not in _TO_PROBABILITIES:
        return None, output
    return producer.name, _origin(graph, producer.inputs[0], _SHAPING)


def _margin(values: NDArray, lsb: float | None) -> float:
    second, first = np.sort(values)[-2:]
    # Of outputs that are whole codes it is a whole number: four, not 3.999999 as float32 has it.
    return round(float(first - second) / lsb, 4) if lsb else math.inf


def _scale(tensor: Tensor | None) -> float | None:
    return tensor.scale[0] if tensor and len(tensor.scale) == 1 else None


def _origin(graph: Subgraph, index: int, passing: Collection[str]) -> int:
    """The tensor that this one is made of by ops in `passing` alone."""
    while (producer := graph.producers.get(index)) is not None and producer.name in passing:
        index = producer.inputs[0]
    return index

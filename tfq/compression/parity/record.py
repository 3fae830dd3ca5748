# SPDX-License-Identifier: Apache-2.0
"""What the comparison of a QAT model with its flatbuffer found."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from tfq.errors import RequirementError
from tfq.text_table import aligned


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
    top1_agreement, disagreements: of outputs with several classes along the last axis; None and () of others.
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
    """A QAT model and its flatbuffer, compared. layers: in the order of the flatbuffer's ops.

    skipped: {Keras layer: why none of the flatbuffer's tensors is its own}; {tensor: why it was not compared} of
        quantized tensors whose origin was not found.
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
        return max((each.margin_lsb for output in self.outputs for each in output.disagreements), default=0.0)

    def missed(self, *, min_logit_sqnr_db: float = 20.0, max_margin_lsb: float = 4.0) -> tuple[str, ...]:
        """What keeps the flatbuffer from computing what the QAT model does; empty where it does.

        Every disagreement in top-1 must be one where the QAT model's lead is below max_margin_lsb.
        """
        found = []
        for output in self.outputs:
            if not output.logit_sqnr_db >= min_logit_sqnr_db:
                found.append(
                    f"output {output.name!r}: SQNR of the {output.logits_of} {output.logit_sqnr_db:.1f} dB, "
                    f"wanted at least {min_logit_sqnr_db:g}"
                )
            clear = [each for each in output.disagreements if not each.margin_lsb < max_margin_lsb]
            if clear:
                worst = max(clear, key=lambda each: each.margin_lsb)
                found.append(
                    f"output {output.name!r}: {len(clear)} example(s) get another class though the QAT model's lead is "
                    f"{max_margin_lsb:g} LSB or more (example {worst.example}: {worst.margin_lsb:.1f} LSB)"
                )
        return tuple(found)

    def require(self, *, min_logit_sqnr_db: float = 20.0, max_margin_lsb: float = 4.0) -> None:
        """Raises RequirementError with what is `missed` and the layer that departs first."""
        missed = self.missed(min_logit_sqnr_db=min_logit_sqnr_db, max_margin_lsb=max_margin_lsb)
        if missed:
            raise RequirementError("; ".join((*missed, self.told_departure())))

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
        lines += ["", self.told_departure(), *(f"  {each.layer}: {each.departs}" for each in self.departures[1:])]
        lines += [_told_output(output, self.num_examples) for output in self.outputs]
        lines += [f"not compared: {name}: {reason}" for name, reason in self.skipped.items() if name not in held]
        return "\n".join([*lines, *self.notes])

    def told_departure(self) -> str:
        """The first departure with its reason; where there is none, where most noise comes in."""
        first, noisy = self.first_departure, self.noisiest
        if first is None:
            told = f"no layer departs from the QAT model by more than {self.tolerance_lsb:g} LSB by itself"
            told += f"; most noise comes in at {noisy.layer} ({noisy.op}), {noisy.local_sqnr_db:.1f} dB"
            return told if noisy.fake_quantized else f"{told}: the QAT model does not round there"
        return f"first departure: {first.layer} ({first.op}, tensor {first.tensor}): {first.departs}"


def _told_output(output: OutputParity, num_examples: int) -> str:
    told = f"output {output.name}: SQNR {output.sqnr_db:.1f} dB"
    if output.logits_of != "output":
        told += f", of the {output.logits_of} {output.logit_sqnr_db:.1f} dB"
    if output.top1_agreement is None:
        return told
    told += f", same class in {output.top1_agreement:.2%} of {num_examples} examples"
    if output.disagreements:
        margin = max(each.margin_lsb for each in output.disagreements)
        told += f", where not the QAT model's lead is at most {margin:.1f} LSB"
        logits = [each.logit_margin_lsb for each in output.disagreements if each.logit_margin_lsb is not None]
        told += f" ({max(logits):.1f} LSB of the logits)" if logits else ""
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value

# SPDX-License-Identifier: Apache-2.0
"""Find why an op of a quantized flatbuffer loses its information, and which settings avoid it.

`cause_of` compares the scales in the flatbuffer with the values of the float model's tensors. It runs no model.
Remedies are fields of `ConversionConfig`, so that a caller can convert with them and measure the result.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.ptq.kernel_faults import COARSE_COMPARISON, UNEQUAL_COPY, ZERO_FILL, kernel_fault
from tfq.ptq.saturation import clipped_sides, is_clipping_harmless, max_magnitude, representable_range
from tfq.tflite import ABSENT, Op, Subgraph
from tfq.tflite.op_types import DATA, INDEX, INDEX_OUTPUTS, INTEGER_OPS, SAME_SCALE_OPS, roles

UNEQUAL_JOIN, MASK_CONSTANT, WIDE_DYNAMIC_RANGE = "unequal_join", "mask_constant", "wide_dynamic_range"
MIXED_INPUT_SCALES, INDEX_QUANTIZED, DEAD = "mixed_input_scales", "index_quantized", "dead"
CLIPPED, WEIGHTS, UNEVEN_CHANNELS, UNKNOWN = "clipped", "weights", "uneven_channels", "unknown"
KINDS = (
    *(INDEX_QUANTIZED, DEAD, MASK_CONSTANT, UNEQUAL_JOIN, WIDE_DYNAMIC_RANGE),
    *(MIXED_INPUT_SCALES, COARSE_COMPARISON, UNEQUAL_COPY, ZERO_FILL),
    *(WEIGHTS, CLIPPED, UNEVEN_CHANNELS, UNKNOWN),
)

# Activations of trained models are smaller than this. Mask constants are 1e4 (float16) to the lowest float32.
MASK_MAGNITUDE = 1e4
# If the widths of two tensors with one scale differ by this factor, the narrower one has less than 4 of 8 bits.
MIN_WIDTH_RATIO = 16.0
# A tensor that spans fewer steps of its scale than this has lost its information.
_FEW_STEPS = 16
# Cross-layer equalization cannot scale channels before these ops.
_GATES = frozenset({"LOGISTIC", "TANH", "HARD_SWISH", "MUL"})
# SQNR of weights in dB below which the weights, and not the activations, are usually the cause.
_MIN_WEIGHT_SQNR_DB = 20.0
# The number of ops to follow from an op to its cause.
_MAX_OPS = 12

# Ops that only move values. Their data is input 0, unless they have several data inputs.
MOVING_OPS = SAME_SCALE_OPS | {
    *("BROADCAST_TO", "GATHER_ND", "PADV2", "RESIZE_BILINEAR", "REVERSE_SEQUENCE", "SPLIT", "SPLIT_V", "UNPACK"),
}
_REQUANTIZING = frozenset({"QUANTIZE", "DEQUANTIZE"})
# Ops whose inputs are requantized to the scale of the output.
_SHARED_SCALE = frozenset(
    {"CONCATENATION", "PACK", "SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM", "DYNAMIC_UPDATE_SLICE"}
)
JOINS = (*("CONCATENATION", "PACK", "SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM"), "ADD", "SUB", "ADD_N")
_MASKING = frozenset({"ADD", "SUB", "SELECT", "SELECT_V2", "PADV2", "MAXIMUM", "MINIMUM"})
# Ops that compute indices from values, without those whose output is a new index (INDEX_OUTPUTS).
_TO_INDEX = MOVING_OPS | _REQUANTIZING | {"CAST", "FLOOR", "CEIL", "ROUND"} | (INTEGER_OPS - INDEX_OUTPUTS.keys())
_SCALING = frozenset({"ADD", "SUB", "MUL", "DIV"})
# Ops that are steep near zero, where small inputs matter as much as large ones. DIV is steep in its denominator.
_STEEP = frozenset({"LOG", "SQRT", "RSQRT", "DIV", "POW"})
# Ops whose outputs span more orders of magnitude than their inputs.
_SPREADING = frozenset({"SQUARE", "SQUARED_DIFFERENCE", "POW", "EXP", "MUL"})


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorFacts:
    """Statistics of a tensor of the float model over all samples.

    Attributes:
        minimum: The smallest value.
        maximum: The largest value.
        channel_minima: The smallest value of each slice of the last axis; empty if not known.
        channel_maxima: The largest value of each slice of the last axis; empty if not known.
        median_magnitude: The median of the absolute values that are not 0 (0 if all are), None if not known. A median
            far below the maximum means a wide dynamic range.
    """

    minimum: float
    maximum: float
    channel_minima: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    channel_maxima: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    median_magnitude: float | None = None

    @classmethod
    def of(cls, values: NDArray) -> "TensorFacts":
        """Return the statistics of a tensor's values, stacked over samples. The last axis is the channel axis."""
        rows = np.asarray(values, np.float64).reshape(-1, values.shape[-1] if values.ndim else 1)
        low, high = rows.min(axis=0), rows.max(axis=0)
        magnitudes = np.abs(rows[rows != 0])
        return cls(
            minimum=float(low.min()),
            maximum=float(high.max()),
            channel_minima=low,
            channel_maxima=high,
            median_magnitude=float(np.median(magnitudes)) if magnitudes.size else 0.0,
        )

    @property
    def width(self) -> float:
        """The width of the range including zero, which a scale has to cover."""
        return max(self.maximum, 0.0) - min(self.minimum, 0.0)

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def channel_magnitudes(self) -> NDArray[np.float64]:
        """The largest absolute value of each slice of the last axis."""
        return np.maximum(np.abs(self.channel_minima), np.abs(self.channel_maxima))


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why an op loses its information.

    Attributes:
        kind: One of KINDS.
        message: One or two sentences: the cause with its numbers, then what to do. It names config fields by path.
        op_index: The op where the cause is. It may lie before or after the op that was asked about.
        remedies: Alternatives, the most promising first; each maps fields of `ConversionConfig` to new values. Empty
            if no conversion setting helps.
    """

    kind: str
    message: str
    op_index: int
    remedies: tuple[Mapping[str, Any], ...] = ()


def op_label(graph: Subgraph, op_index: int) -> str:
    """Return a unique name of an op in the graph: "logpower/LOG (#7)"."""
    op = graph.ops[op_index]
    name = op.keras_layer or (graph.tensors[op.outputs[0]].name if op.outputs else "")
    return f"{name}/{op.name} (#{op.index})"


def tensor_label(graph: Subgraph, tensor: int) -> str:
    """Return a unique name of a tensor: that of the op that computes it, or "input 'x'"."""
    if tensor in graph.producers:
        return op_label(graph, graph.producers[tensor].index)
    return f"{'input' if tensor in graph.inputs else 'constant'} {graph.tensors[tensor].name!r}"


def cause_of(
    graph: Subgraph, op_index: int, facts: Mapping[int, TensorFacts], *, weight_sqnr_db: float | None = None
) -> Cause:
    """Return why the op loses its information.

    Args:
        graph: The main subgraph of the quantized flatbuffer.
        op_index: The first op whose output is wrong.
        facts: {tensor index in `graph`: facts of the corresponding float tensor}. At least the op's inputs and output
            and the model's inputs are needed; more tensors find more causes. Tensors without a float counterpart,
            such as the output of a QUANTIZE, may be missing.
        weight_sqnr_db: The SQNR of the op's weights (of the tensor, or of its worst channel); None if the op has no
            weights or the SQNR is not known.

    Returns:
        The cause. Its kind is "unknown" if no rule applies.
    """
    return Diagnosis(graph, facts).cause_of(op_index, weight_sqnr_db)


def rejected_scale(graph: Subgraph, op_index: int, facts: Mapping[int, TensorFacts]) -> Cause | None:
    """Return why a kernel rejects the scales of an op, if a dead tensor is the cause; None otherwise.

    A dead tensor is 0 on all samples in float, so its scale is close to 0.

    Args:
        graph: The main subgraph of the quantized flatbuffer.
        op_index: The op that does not run.
        facts: As in `cause_of`.
    """
    diagnosis, op = Diagnosis(graph, facts), graph.ops[op_index]
    for tensor in (*op.outputs, *diagnosis.data_inputs(op)):
        record = graph.tensors[tensor]
        known = None if record.is_constant or not record.is_quantized else diagnosis.facts(tensor)
        if known is None or known.magnitude > 0:
            continue
        source = graph.producers.get(diagnosis.source(tensor), op)
        return Cause(
            kind=DEAD,
            op_index=source.index,
            message=f"{op_label(graph, source.index)} is 0 on all samples, also in float, and its scale of "
            f"{record.scale[0]:.2g} is too small for the kernel of {op_label(graph, op_index)}. Check the layer's bias "
            "and activation, or remove the layer from the model",
            remedies=diagnosis.float_layer_remedies(source.index),
        )
    return None


class Diagnosis:
    """A quantized graph with the facts of its float tensors, to ask about several ops."""

    def __init__(self, graph: Subgraph, facts: Mapping[int, TensorFacts]) -> None:
        """Use the main subgraph of a quantized flatbuffer and the facts as in `cause_of`."""
        self.graph, self._facts = graph, facts

    def cause_of(self, op_index: int, weight_sqnr_db: float | None = None) -> Cause:
        """Return the cause from the first rule that applies, as the function `cause_of` does."""
        op = self.graph.ops[op_index]
        cause = self.structural_cause(op) or self._weights(op, weight_sqnr_db)
        cause = cause or self._clipped(op) or self._uneven_channels(op)
        if cause is not None:
            return cause
        # No rule applies to the op itself: look at the ops before it.
        for source in self.upstream_ops(op, through=MOVING_OPS | _REQUANTIZING | {"SOFTMAX"}):
            cause = self.structural_cause(source)
            if cause is not None and cause.kind != DEAD:
                return cause
        scalable = () if op.name in _GATES else self.upstream_ops(op, through=MOVING_OPS | _REQUANTIZING)
        for source in scalable:
            cause = self._uneven_channels(source)
            if cause is not None:
                return cause
        label = op_label(self.graph, op_index)
        return Cause(
            kind=UNKNOWN,
            op_index=op_index,
            message=f"{label} loses accuracy, and no known cause applies. Try conversion.techniques="
            "cross_layer_equalization,gptq,bias_correction or another conversion.calibration.method, or keep the layer "
            "in float (conversion.float_layers)",
            remedies=(*self.float_layer_remedies(op_index), {"scheme": "int16x8"}),
        )

    def structural_cause(self, op: Op) -> Cause | None:
        """Return the cause from the first rule about the graph and its scales that applies; None if none does."""
        rules: tuple[Callable[[Op], Cause | None], ...] = (
            *(self._index_quantized, self._dead, self._mask_constant, self._unequal_join),
            *(self._wide_dynamic_range, self._mixed_input_scales, self._kernel_fault),
        )
        return next((cause for rule in rules if (cause := rule(op)) is not None), None)

    # Navigation.

    def facts(self, tensor: int) -> TensorFacts | None:
        """Return the facts of a tensor or, if it has none, of the tensor that it is a copy of."""
        for _ in range(_MAX_OPS):
            if tensor in self._facts:
                return self._facts[tensor]
            op = self.graph.producers.get(tensor)
            if op is None or op.name not in MOVING_OPS | _REQUANTIZING:
                return None
            tensor = op.inputs[0]
        return None

    def width(self, tensor: int) -> float | None:
        """Return the width of the float tensor's range; for a constant, the largest magnitude it can represent."""
        if self.graph.tensors[tensor].is_constant:
            return max_magnitude(self.graph.tensors[tensor])
        known = self.facts(tensor)
        return None if known is None else known.width

    def scale(self, tensor: int) -> float | None:
        """Return the scale of an activation; None if it has no valid scale, or several."""
        scales = self.graph.tensors[tensor].scale
        return scales[0] if len(scales) == 1 and math.isfinite(scales[0]) and scales[0] > 0 else None

    def data_inputs(self, op: Op) -> list[int]:
        """Return the inputs that hold values, including constants, but not indices, shapes and other parameters."""
        return [tensor for place, _, tensor, role in roles(op) if place == "input" and role == DATA]

    def upstream_ops(self, op: Op, through: frozenset[str] | set[str]) -> Iterator[Op]:
        """Yield the ops that compute the inputs of `op`, nearest first.

        Args:
            op: An op.
            through: Names of ops whose own inputs are followed as well.
        """
        waiting, seen = [tensor for tensor in op.inputs if tensor != ABSENT], set()
        for _ in range(_MAX_OPS):
            following = []
            for tensor in waiting:
                producer = self.graph.producers.get(tensor)
                if producer is not None and producer.index not in seen:
                    seen.add(producer.index)
                    yield producer
                    if producer.name in through:
                        following += [index for index in producer.inputs if index != ABSENT]
            waiting = following

    def source(self, tensor: int) -> int:
        """Return the tensor that `tensor` is a copy of, through ops that only move or requantize values."""
        for _ in range(_MAX_OPS):
            op = self.graph.producers.get(tensor)
            if op is None or op.name not in MOVING_OPS | _REQUANTIZING:
                return tensor
            tensor = op.inputs[0]
        return tensor

    def affects_output(self, tensor: int) -> bool:
        """Check whether a tensor can affect an output: a MAXIMUM or MINIMUM may always take its other operand."""
        readers = self.graph.readers.get(tensor, ())
        return tensor in self.graph.outputs or not readers or any(self._takes(op, tensor) for op in readers)

    def _takes(self, op: Op, tensor: int) -> bool:
        known, result = self.facts(tensor), self.facts(op.outputs[0]) if op.outputs else None
        if known is None or result is None or op.name not in ("MAXIMUM", "MINIMUM"):
            return True
        return known.maximum >= result.minimum if op.name == "MAXIMUM" else known.minimum <= result.maximum

    def float_layer_remedies(self, *op_indices: int) -> tuple[Mapping[str, Any], ...]:
        """Return the remedy of keeping the layers of ops in float; an empty tuple if a layer is not known."""
        layers = [self.graph.ops[index].keras_layer for index in op_indices]
        return ({"float_layers": tuple(dict.fromkeys(layers))},) if all(layers) else ()

    # Rules.

    def _index_quantized(self, op: Op) -> Cause | None:
        indices = [tensor for place, _, tensor, role in roles(op) if place == "input" and role == INDEX]
        for index in indices:
            for tensor in self._upstream(index, _TO_INDEX):
                scale = self.scale(tensor)
                if scale is None or scale == 1.0 or self.graph.tensors[tensor].is_constant:
                    continue
                label = op_label(self.graph, op.index)
                return Cause(
                    kind=INDEX_QUANTIZED,
                    op_index=op.index,
                    message=f"{label} uses {tensor_label(self.graph, tensor)} as an index, but this tensor is "
                    f"quantized in steps of {scale:.3g}, so wrong rows are read. Pass ids as int32, or keep the tensor "
                    "in float (conversion.inference_input_type=float32 and conversion.float_layers)",
                    remedies=tuple(
                        {"inference_input_type": "float32", **item} for item in self.float_layer_remedies(op.index)
                    ),
                )
        return None

    def _upstream(self, tensor: int, through: frozenset[str]) -> Iterator[int]:
        """Yield `tensor` and the tensors that it is computed from by ops whose names are in `through`."""
        waiting, seen = [tensor], set()
        for _ in range(_MAX_OPS):
            following = []
            for index in waiting:
                if index in seen or index == ABSENT:
                    continue
                seen.add(index)
                yield index
                op = self.graph.producers.get(index)
                if op is not None and op.name in through:
                    following += self.data_inputs(op)
            waiting = following

    def _dead(self, op: Op) -> Cause | None:
        known = self.facts(op.outputs[0]) if op.outputs else None
        if known is None or known.magnitude > 0:
            return None
        label = op_label(self.graph, op.index)
        return Cause(
            kind=DEAD,
            op_index=op.index,
            message=f"{label} is dead: it is 0 on all samples, also in float, so quantization loses nothing. Check the "
            "layer's bias and activation, or remove the layer from the model",
        )

    def _mask_constant(self, op: Op) -> Cause | None:
        for join, inputs in self._joins_around(op, _MASKING):
            reaches = {tensor: self.width(tensor) or 0.0 for tensor in inputs}
            known = [width for width in reaches.values() if 0 < width < MASK_MAGNITUDE]
            for tensor, width in reaches.items():
                constant = self._mask_constant_of(tensor) if width >= MASK_MAGNITUDE else None
                if constant is None or not known:
                    continue
                scale = self.scale(join.outputs[0])
                if scale is None or max(known) >= scale * _FEW_STEPS * 8:
                    continue
                mask = max_magnitude(self.graph.tensors[constant])
                return Cause(
                    kind=MASK_CONSTANT,
                    op_index=join.index,
                    message=f"{op_label(self.graph, join.index)} has one scale for a mask of {mask:.2g} and values "
                    f"with a range of {max(known):.3g}. One step is {scale:.2g}, so only the mask survives. "
                    "Use a mask constant near the scores (their range + 12) in the model, or convert the float model "
                    "with tfq, which bounds mask constants",
                    remedies=self.float_layer_remedies(join.index),
                )
        return None

    def _mask_constant_of(self, tensor: int) -> int | None:
        """Return the mask constant that `tensor` is or is computed from, through ops that move, scale or mask."""
        through = MOVING_OPS | _REQUANTIZING | _MASKING | _SCALING | {"CAST", "NEG"}
        for index in self._upstream(tensor, through):
            record = self.graph.tensors[index]
            if record.is_constant and max_magnitude(record) >= MASK_MAGNITUDE:
                return index
        return None

    def _joins_around(self, op: Op, names: frozenset[str] | set[str]) -> Iterator[tuple[Op, list[int]]]:
        """Yield (op, its data inputs) for `op` and the ops that share the scale of its output, if `names` has them."""
        reached, waiting, seen = {op.index}, list(op.outputs), set()
        if op.name in _SHARED_SCALE | MOVING_OPS:
            waiting += self.data_inputs(op)
        if op.name in names:
            yield op, self.data_inputs(op)
        while waiting:
            tensor = waiting.pop(0)
            if tensor in seen or self.scale(tensor) is None:
                continue
            seen.add(tensor)
            for other in (*self.graph.readers.get(tensor, ()), *filter(None, [self.graph.producers.get(tensor)])):
                joins = other.name in _SHARED_SCALE
                same = [item for item in (*self.data_inputs(other), *other.outputs) if self._same(item, tensor)]
                if other.index in reached or not (joins or other.name in MOVING_OPS) or len(same) < 2:
                    continue
                reached.add(other.index)
                waiting += same
                if other.name in names:
                    yield other, self.data_inputs(other)

    def _same(self, one: int, other: int) -> bool:
        scales = self.scale(one), self.scale(other)
        return None not in scales and scales[0] == scales[1]

    def _unequal_join(self, op: Op) -> Cause | None:
        for join, inputs in self._joins_around(op, set(JOINS)):
            tensors = [tensor for tensor in inputs if not self.graph.tensors[tensor].is_constant]
            widths = {tensor: width for tensor in tensors if (width := self.width(tensor))}
            scale = self.scale(join.outputs[0])
            if len(widths) < 2 or scale is None:
                continue
            narrow, wide = min(widths, key=widths.__getitem__), max(widths, key=widths.__getitem__)
            if widths[wide] < MIN_WIDTH_RATIO * widths[narrow] or widths[narrow] >= scale * _FEW_STEPS:
                continue
            names = [tensor_label(self.graph, self.source(tensor)) for tensor in (narrow, wide)]
            return Cause(
                kind=UNEQUAL_JOIN,
                op_index=join.index,
                message=f"{op_label(self.graph, join.index)} has one scale of {scale:.3g} for inputs whose ranges "
                f"differ by a factor of {widths[wide] / widths[narrow]:.0f}: {names[0]} spans {widths[narrow]:.3g} and "
                f"keeps {int(widths[narrow] / scale) + 1} quantized values, {names[1]} spans {widths[wide]:.3g}. "
                "Return them as separate outputs, or scale them to similar ranges before the join",
                remedies=({"scheme": "int16x8"}, *self.float_layer_remedies(join.index)),
            )
        return None

    def _wide_dynamic_range(self, op: Op) -> Cause | None:
        if op.name in _STEEP:
            tensor = op.inputs[-1] if op.name == "DIV" else op.inputs[0]
            known, scale = self.facts(tensor), self.scale(tensor)
            if known is None or scale is None or self.graph.tensors[tensor].is_constant:
                known = None
            elif 0 <= known.minimum < scale and known.maximum > 0:
                return self._wide(op, tensor, known.maximum, known.minimum, scale)
        if op.name in _SPREADING and (op.name != "MUL" or len(set(op.inputs)) == 1):
            tensor = op.outputs[0]
            known, scale = self.facts(tensor), self.scale(tensor)
            if known is None or scale is None or known.median_magnitude is None:
                return None
            if 0 < known.median_magnitude < 2 * scale:
                return self._wide(op, tensor, known.magnitude, known.median_magnitude, scale)
        return None

    def _wide(self, op: Op, tensor: int, largest: float, small: float, scale: float) -> Cause:
        layers = self.float_layer_remedies(op.index)
        named = f"conversion.float_layers={op.keras_layer}" if layers else "conversion.float_layers"
        side = "reads" if tensor in op.inputs else "computes"
        # Zero has no order of magnitude, so a thousandth of a step is the lower limit.
        orders = math.log10(largest / max(small, scale / 1000))
        spans = f"more than {orders:.0f}" if small < scale / 1000 else f"{orders:.1f}"
        return Cause(
            kind=WIDE_DYNAMIC_RANGE,
            op_index=op.index,
            message=f"The values that {op_label(self.graph, op.index)} {side} span {spans} orders of magnitude, "
            f"but have one scale of {scale:.3g}, so the small ones become 0. Keep this part in float: {named}",
            remedies=(*layers, {"scheme": "int16x8"}),
        )

    def _mixed_input_scales(self, op: Op) -> Cause | None:
        channels = self.graph.tensors[op.outputs[0]].shape[-1:] if op.outputs else ()
        for tensor in self._upstream(op.outputs[0], _SCALING | _REQUANTIZING) if op.outputs else ():
            record, known, scale = self.graph.tensors[tensor], self.facts(tensor), self.scale(tensor)
            if tensor not in self.graph.inputs or known is None or scale is None or record.shape[-1:] != channels:
                continue
            result = self.mixed_scales(tensor, known, scale)
            if result is not None:
                layers = self.float_layer_remedies(op.index)
                return Cause(
                    kind=MIXED_INPUT_SCALES,
                    op_index=op.index,
                    message=f"{result}. Use conversion.scheme=int16x8 or dynamic_range, keep the input in float "
                    "(conversion.inference_input_type=float32 with conversion.float_layers for the first layers), or "
                    "normalize the columns before the model",
                    remedies=(
                        {"scheme": "int16x8"},
                        {"scheme": "dynamic_range"},
                        *({"inference_input_type": "float32", **item} for item in layers),
                    ),
                )
        return None

    def mixed_scales(self, tensor: int, known: TensorFacts, scale: float) -> str | None:
        """Return a sentence about a tensor whose columns have very different magnitudes; None if they do not."""
        magnitudes = known.channel_magnitudes
        alive = np.flatnonzero(magnitudes > 0)
        if alive.size < 2:
            return None
        coarse = alive[2 * magnitudes[alive] < _FEW_STEPS * scale]
        if not coarse.size or magnitudes.max() < MIN_WIDTH_RATIO * magnitudes[alive].min():
            return None
        worst = int(alive[np.argmin(magnitudes[alive])])
        return (
            f"{tensor_label(self.graph, tensor)} has one scale of {scale:.3g} for columns whose magnitudes differ by a "
            f"factor of {magnitudes.max() / magnitudes[worst]:.0f} ({magnitudes[worst]:.3g} to "
            f"{magnitudes.max():.3g}): {coarse.size} of {magnitudes.size} columns have fewer than {_FEW_STEPS} "
            f"quantized values, column {worst} has {int(2 * magnitudes[worst] / scale) + 1}"
        )

    def _weights(self, op: Op, sqnr_db: float | None) -> Cause | None:
        if sqnr_db is None or sqnr_db >= _MIN_WEIGHT_SQNR_DB:
            return None
        return Cause(
            kind=WEIGHTS,
            op_index=op.index,
            message=f"the weights of {op_label(self.graph, op.index)} have an SQNR of only {sqnr_db:.0f} dB, because "
            "weights of very different magnitude share a scale. Use per-channel scales (conversion.per_channel=True), "
            "or conversion.techniques=cross_layer_equalization",
            remedies=({"techniques": ("cross_layer_equalization",)}, *self.float_layer_remedies(op.index)),
        )

    def _kernel_fault(self, op: Op) -> Cause | None:
        fault = kernel_fault(self.graph, op)
        if fault is None:
            return None
        message = f"{op_label(self.graph, op.index)} {fault[1]}"
        return Cause(kind=fault[0], op_index=op.index, message=message, remedies=self.float_layer_remedies(op.index))

    def _clipped(self, op: Op) -> Cause | None:
        inputs = [index for index in op.inputs if index in self.graph.inputs]
        clipped = [index for index in (*inputs, *op.outputs[:1]) if any(clipped_sides(self, index))]
        tensor = next((index for index in clipped if not is_clipping_harmless(self, index)), None)
        known = None if tensor is None else self.facts(tensor)
        if tensor is None or known is None:
            return None
        low, high = representable_range(self.graph.tensors[tensor])
        return Cause(
            kind=CLIPPED,
            op_index=op.index,
            message=f"{tensor_label(self.graph, tensor)} is clipped: its values are in [{known.minimum:.3g}, "
            f"{known.maximum:.3g}] in float, but its quantized range is [{low:.3g}, {high:.3g}]. Calibrate with more "
            "representative data, or with conversion.calibration.method=min_max",
            remedies=({"calibration": {"method": "min_max"}},),
        )

    def _uneven_channels(self, op: Op) -> Cause | None:
        tensor = op.outputs[0] if op.outputs else ABSENT
        known, scale = (None, None) if tensor == ABSENT else (self.facts(tensor), self.scale(tensor))
        if known is None or scale is None or known.channel_minima.size < 2:
            return None
        magnitudes = known.channel_magnitudes
        coarse = int((2 * magnitudes < _FEW_STEPS * scale).sum())
        if coarse <= magnitudes.size // 2:
            return None
        return Cause(
            kind=UNEVEN_CHANNELS,
            op_index=op.index,
            message=f"{coarse} of {magnitudes.size} channels of {op_label(self.graph, op.index)} have fewer than "
            f"{_FEW_STEPS} quantized values, because all channels share one scale. Use "
            "conversion.techniques=cross_layer_equalization",
            remedies=({"techniques": ("cross_layer_equalization",)}, *self.float_layer_remedies(op.index)),
        )

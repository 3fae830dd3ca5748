# SPDX-License-Identifier: Apache-2.0
"""Why an op of a quantized flatbuffer loses its information: the cause, and the settings that avoid it.

`cause_of` reads scales from the flatbuffer and takes what the float model's tensors held; it runs nothing. Remedies
are fields of `ConversionConfig`, so that a caller can convert again and measure them.
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
from tfq.tflite.op_types import DATA, INDEX, INDEX_OUTPUTS, INTEGER_OPS, roles

UNEQUAL_JOIN, MASK_CONSTANT, WIDE_DYNAMIC_RANGE = "unequal_join", "mask_constant", "wide_dynamic_range"
MIXED_INPUT_SCALES, INDEX_QUANTIZED, DEAD = "mixed_input_scales", "index_quantized", "dead"
CLIPPED, WEIGHTS, UNEVEN_CHANNELS, UNKNOWN = "clipped", "weights", "uneven_channels", "unknown"
KINDS = (
    *(INDEX_QUANTIZED, DEAD, MASK_CONSTANT, UNEQUAL_JOIN, WIDE_DYNAMIC_RANGE),
    *(MIXED_INPUT_SCALES, COARSE_COMPARISON, UNEQUAL_COPY, ZERO_FILL),
    *(WEIGHTS, CLIPPED, UNEVEN_CHANNELS, UNKNOWN),
)

# No trained activation is this large; masks are 1e4 (float16) to float32's lowest.
MASK_MAGNITUDE = 1e4
# Widths that are so many times apart leave the narrower tensor less than four bits of eight.
MIN_WIDTH_RATIO = 16.0
# Steps that the narrower tensor spans then.
_FEW_STEPS = 16
# Cross-layer equalization does not reach through them: channels before them cannot be made alike.
_GATES = frozenset({"LOGISTIC", "TANH", "HARD_SWISH", "MUL"})
# Signal to error of weights at which a layer is worse than its activations usually are, in dB.
_WEIGHTS_DB = 20.0
# Ops between an op and the tensor that is its cause.
_FARTHEST = 12

# Ops that hand values on as they are; the data is input 0 unless the op has several.
PASSING = frozenset(
    {
        *("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "UNPACK"),
        *(
            "PAD",
            "PADV2",
            "MIRROR_PAD",
            "GATHER",
            "GATHER_ND",
            "TILE",
            "BROADCAST_TO",
            "REVERSE_V2",
            "REVERSE_SEQUENCE",
        ),
        *("SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "MAX_POOL_2D"),
        *("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR", "REDUCE_MAX", "REDUCE_MIN"),
    }
)
_REQUANTIZING = frozenset({"QUANTIZE", "DEQUANTIZE"})
# Ops that bring several tensors to the scale of the output.
_SHARED_SCALE = frozenset(
    {"CONCATENATION", "PACK", "SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM", "DYNAMIC_UPDATE_SLICE"}
)
JOINS = (*("CONCATENATION", "PACK", "SELECT", "SELECT_V2", "MAXIMUM", "MINIMUM"), "ADD", "SUB", "ADD_N")
_MASKING = frozenset({"ADD", "SUB", "SELECT", "SELECT_V2", "PADV2", "MAXIMUM", "MINIMUM"})
# Ops between a tensor and the index that it becomes: integer arithmetic, but for what finds positions by itself.
_TO_INDEX = PASSING | _REQUANTIZING | {"CAST", "FLOOR", "CEIL", "ROUND"} | (INTEGER_OPS - INDEX_OUTPUTS.keys())
_SCALING = frozenset({"ADD", "SUB", "MUL", "DIV"})
# Ops that are steep near zero: small inputs matter as much as large ones. DIV by its denominator.
_STEEP = frozenset({"LOG", "SQRT", "RSQRT", "DIV", "POW"})
# Ops whose outputs span more orders of magnitude than their inputs.
_SPREADING = frozenset({"SQUARE", "SQUARED_DIFFERENCE", "POW", "EXP", "MUL"})


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorFacts:
    """What a tensor of the float model held over all samples.

    Attributes:
        minimum: The smallest value.
        maximum: The largest value.
        channel_minima: The smallest value of each slice of the last axis; empty if not known.
        channel_maxima: The largest value of each slice of the last axis; empty if not known.
        median_magnitude: The median of the absolute values that are not 0 (0 if all are), None if not known. It tells
            a tensor of a wide dynamic range from others.
    """

    minimum: float
    maximum: float
    channel_minima: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    channel_maxima: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    median_magnitude: float | None = None

    @classmethod
    def of(cls, values: NDArray) -> "TensorFacts":
        """Return the facts of all values of a tensor, stacked over samples: the last axis is the tensor's own."""
        rows = np.asarray(values, np.float64).reshape(-1, values.shape[-1] if values.ndim else 1)
        low, high = rows.min(axis=0), rows.max(axis=0)
        sizes = np.abs(rows[rows != 0])
        return cls(
            minimum=float(low.min()),
            maximum=float(high.max()),
            channel_minima=low,
            channel_maxima=high,
            median_magnitude=float(np.median(sizes)) if sizes.size else 0.0,
        )

    @property
    def width(self) -> float:
        """The width of the range, zero included: what a scale has to cover."""
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
        op_index: The op where the cause is, which may lie before or after the op that was asked about.
        remedies: Fields of `ConversionConfig` to replace, each a remedy by itself, the most promising first. Empty if
            no conversion setting helps.
    """

    kind: str
    message: str
    op_index: int
    remedies: tuple[Mapping[str, Any], ...] = ()


def op_label(graph: Subgraph, op_index: int) -> str:
    """Return a name that distinguishes an op from all others of the graph: "logpower/LOG (#7)"."""
    op = graph.ops[op_index]
    name = op.keras_layer or (graph.tensors[op.outputs[0]].name if op.outputs else "")
    return f"{name}/{op.name} (#{op.index})"


def tensor_label(graph: Subgraph, tensor: int) -> str:
    """Return a name that distinguishes a tensor: the op that computes it, or "input 'x'"."""
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
        facts: By tensor index in `graph`, of the float tensor of the same name; the more the better: at least the op's
            inputs and output and the model's inputs. Tensors without a float twin (copies that a QUANTIZE makes) may
            be missing.
        weight_sqnr_db: The signal to error of the op's weights, of the tensor or of its worst channel; None if it has
            none or it is not known.

    Returns:
        The cause. Its kind is "unknown" if no rule applies.
    """
    return Diagnosis(graph, facts).cause_of(op_index, weight_sqnr_db)


def rejected_scale(graph: Subgraph, op_index: int, facts: Mapping[int, TensorFacts]) -> Cause | None:
    """Return why kernels refuse the scales of an op that does not run: a tensor of it is 0 in float; None otherwise.

    Args:
        graph: The main subgraph of the quantized flatbuffer.
        op_index: The op that fails.
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
            message=f"{op_label(graph, source.index)} is 0 on all samples, in float too, and its scale of "
            f"{record.scale[0]:.2g} is finer than the kernel of {op_label(graph, op_index)} takes. Check the layer "
            "(its bias, its activation), or take it out of the model",
            remedies=diagnosis.float_layer_remedies(source.index),
        )
    return None


class Diagnosis:
    """A quantized graph next to what the float tensors held: for callers that ask about several ops."""

    def __init__(self, graph: Subgraph, facts: Mapping[int, TensorFacts]) -> None:
        self.graph, self._facts = graph, facts

    def cause_of(self, op_index: int, weight_sqnr_db: float | None = None) -> Cause:
        """Return the cause by the first rule that applies, as the function `cause_of` does."""
        op = self.graph.ops[op_index]
        cause = self.structural_cause(op) or self._weights(op, weight_sqnr_db)
        cause = cause or self._clipped(op) or self._uneven_channels(op)
        if cause is not None:
            return cause
        # The op itself is right; what it reads may not be.
        for before in self.upstream_ops(op, through=PASSING | _REQUANTIZING | {"SOFTMAX"}):
            cause = self.structural_cause(before)
            if cause is not None and cause.kind != DEAD:
                return cause
        uneven = () if op.name in _GATES else self.upstream_ops(op, through=PASSING | _REQUANTIZING)
        for before in uneven:
            cause = self._uneven_channels(before)
            if cause is not None:
                return cause
        label = op_label(self.graph, op_index)
        return Cause(
            kind=UNKNOWN,
            op_index=op_index,
            message=f"{label} loses accuracy for no single reason: try conversion.techniques="
            "cross_layer_equalization,gptq,bias_correction, another conversion.calibration.method, or keep it in float "
            "(conversion.float_layers)",
            remedies=(*self.float_layer_remedies(op_index), {"scheme": "int16x8"}),
        )

    def structural_cause(self, op: Op) -> Cause | None:
        """Return the cause by the first rule on the structure of the graph that applies."""
        rules: tuple[Callable[[Op], Cause | None], ...] = (
            *(self._index_quantized, self._dead, self._mask_constant, self._unequal_join),
            *(self._wide_dynamic_range, self._mixed_input_scales, self._kernel_fault),
        )
        return next((cause for rule in rules if (cause := rule(op)) is not None), None)

    # Navigation.

    def facts(self, tensor: int) -> TensorFacts | None:
        """Return the facts of a tensor; those of the tensor that it is a copy of, if it has none."""
        for _ in range(_FARTHEST):
            if tensor in self._facts:
                return self._facts[tensor]
            op = self.graph.producers.get(tensor)
            if op is None or op.name not in PASSING | _REQUANTIZING:
                return None
            tensor = op.inputs[0]
        return None

    def width(self, tensor: int) -> float | None:
        """Return the width of what the float tensor held; of a constant, of what its codes can express."""
        if self.graph.tensors[tensor].is_constant:
            return max_magnitude(self.graph.tensors[tensor])
        known = self.facts(tensor)
        return None if known is None else known.width

    def scale(self, tensor: int) -> float | None:
        """Return the scale of an activation; None if it has none, or several."""
        scales = self.graph.tensors[tensor].scale
        return scales[0] if len(scales) == 1 and math.isfinite(scales[0]) and scales[0] > 0 else None

    def data_inputs(self, op: Op) -> list[int]:
        """Return the inputs that hold values, constants included."""
        return [tensor for place, _, tensor, role in roles(op) if place == "input" and role == DATA]

    def upstream_ops(self, op: Op, through: frozenset[str] | set[str]) -> Iterator[Op]:
        """Yield the ops that compute the inputs of `op`, nearest first, and those before them if `through` has them."""
        waiting, seen = [tensor for tensor in op.inputs if tensor != ABSENT], set()
        for _ in range(_FARTHEST):
            following = []
            for tensor in waiting:
                before = self.graph.producers.get(tensor)
                if before is not None and before.index not in seen:
                    seen.add(before.index)
                    yield before
                    if before.name in through:
                        following += [index for index in before.inputs if index != ABSENT]
            waiting = following

    def source(self, tensor: int) -> int:
        """Return the tensor that `tensor` is a copy of, through ops that only move or requantize values."""
        for _ in range(_FARTHEST):
            op = self.graph.producers.get(tensor)
            if op is None or op.name not in PASSING | _REQUANTIZING:
                return tensor
            tensor = op.inputs[0]
        return tensor

    def affects_output(self, tensor: int) -> bool:
        """Check whether a tensor can reach an output: what a maximum or minimum never takes may be wrong."""
        readers = self.graph.readers.get(tensor, ())
        return tensor in self.graph.outputs or not readers or any(self._takes(op, tensor) for op in readers)

    def _takes(self, op: Op, tensor: int) -> bool:
        known, result = self.facts(tensor), self.facts(op.outputs[0]) if op.outputs else None
        if known is None or result is None or op.name not in ("MAXIMUM", "MINIMUM"):
            return True
        return known.maximum >= result.minimum if op.name == "MAXIMUM" else known.minimum <= result.maximum

    def float_layer_remedies(self, *op_indices: int) -> tuple[Mapping[str, Any], ...]:
        """Return the remedy of keeping the layers of ops in float; none if a layer is not known."""
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
                    message=f"{label} uses {tensor_label(self.graph, tensor)} as an index, which is quantized in steps "
                    f"of {scale:.3g}: rows next to the right ones are read. Feed ids as int32, or keep the tensor in "
                    "float (conversion.inference_input_type=float32 and conversion.float_layers)",
                    remedies=tuple(
                        {"inference_input_type": "float32", **item} for item in self.float_layer_remedies(op.index)
                    ),
                )
        return None

    def _upstream(self, tensor: int, through: frozenset[str]) -> Iterator[int]:
        """Yield `tensor` and those that it is computed from by ops of the names `through`."""
        waiting, seen = [tensor], set()
        for _ in range(_FARTHEST):
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
            message=f"{label} is dead: it is 0 on all samples, in float too. Nothing is lost in int8; check the layer "
            "(its bias, its activation), or take it out of the model",
        )

    def _mask_constant(self, op: Op) -> Cause | None:
        for join, inputs in self._joins_around(op, _MASKING):
            reaches = {tensor: self.width(tensor) or 0.0 for tensor in inputs}
            known = [width for width in reaches.values() if 0 < width < MASK_MAGNITUDE]
            for tensor, width in reaches.items():
                constant = self._mask_behind(tensor) if width >= MASK_MAGNITUDE else None
                if constant is None or not known:
                    continue
                scale = self.scale(join.outputs[0])
                if scale is None or max(known) >= scale * _FEW_STEPS * 8:
                    continue
                mask = max_magnitude(self.graph.tensors[constant])
                return Cause(
                    kind=MASK_CONSTANT,
                    op_index=join.index,
                    message=f"{op_label(self.graph, join.index)} has a mask of {mask:.2g} and values within "
                    f"{max(known):.3g} on one scale: a step is {scale:.2g}, so that only the mask is left. Mask with "
                    "a constant near the scores (their range + 12) in the model, or convert the float model with tfq, "
                    "which bounds such constants",
                    remedies=self.float_layer_remedies(join.index),
                )
        return None

    def _mask_behind(self, tensor: int) -> int | None:
        """Return the constant of a mask's magnitude that `tensor` is, or is computed from by a few simple ops."""
        through = PASSING | _REQUANTIZING | _MASKING | _SCALING | {"CAST", "NEG"}
        for index in self._upstream(tensor, through):
            record = self.graph.tensors[index]
            if record.is_constant and max_magnitude(record) >= MASK_MAGNITUDE:
                return index
        return None

    def _joins_around(self, op: Op, names: frozenset[str] | set[str]) -> Iterator[tuple[Op, list[int]]]:
        """Yield (op of the names, its data inputs): `op`, and those that share the scale of its output."""
        reached, waiting, seen = {op.index}, list(op.outputs), set()
        if op.name in _SHARED_SCALE | PASSING:
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
                if other.index in reached or not (joins or other.name in PASSING) or len(same) < 2:
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
                message=f"{op_label(self.graph, join.index)} brings ranges {widths[wide] / widths[narrow]:.0f} times "
                f"apart to one scale of {scale:.3g}: {names[0]} spans {widths[narrow]:.3g}, {names[1]} "
                f"{widths[wide]:.3g}; {int(widths[narrow] / scale) + 1} quantized values are left of the first. Return "
                "them as separate outputs, or bring them to one size before the join",
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
        # Zero has no order of magnitude: a thousandth of a step is small enough to make the point.
        orders = math.log10(largest / max(small, scale / 1000))
        spans = f"more than {orders:.0f}" if small < scale / 1000 else f"{orders:.1f}"
        return Cause(
            kind=WIDE_DYNAMIC_RANGE,
            op_index=op.index,
            message=f"The values that {op_label(self.graph, op.index)} {side} span {spans} orders of magnitude, "
            f"and one scale of {scale:.3g} serves all: the small ones become 0. Keep this part in float: {named}",
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
                named, layers = result, self.float_layer_remedies(op.index)
                return Cause(
                    kind=MIXED_INPUT_SCALES,
                    op_index=op.index,
                    message=f"{named}. Use conversion.scheme=int16x8 or dynamic_range, feed it in float "
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
        """Return a sentence on a tensor whose columns have very different magnitudes; None if they have not."""
        sizes = known.channel_magnitudes
        alive = np.flatnonzero(sizes > 0)
        if alive.size < 2:
            return None
        few = alive[2 * sizes[alive] < _FEW_STEPS * scale]
        if not few.size or sizes.max() < MIN_WIDTH_RATIO * sizes[alive].min():
            return None
        worst = int(alive[np.argmin(sizes[alive])])
        return (
            f"{tensor_label(self.graph, tensor)} has one scale of {scale:.3g} for columns whose magnitudes are "
            f"{sizes.max() / sizes[worst]:.0f} times apart ({sizes[worst]:.3g} to {sizes.max():.3g}): {few.size} of "
            f"{sizes.size} columns have fewer than {_FEW_STEPS} quantized values, column {worst} "
            f"{int(2 * sizes[worst] / scale) + 1}"
        )

    def _weights(self, op: Op, sqnr_db: float | None) -> Cause | None:
        if sqnr_db is None or sqnr_db >= _WEIGHTS_DB:
            return None
        return Cause(
            kind=WEIGHTS,
            op_index=op.index,
            message=f"the weights of {op_label(self.graph, op.index)} have a signal to error of {sqnr_db:.0f} dB: "
            "weights of very different size share a scale. Use a scale for each channel "
            "(conversion.per_channel=True), or conversion.techniques=cross_layer_equalization",
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
            message=f"{tensor_label(self.graph, tensor)} is clipped: it reaches [{known.minimum:.3g}, "
            f"{known.maximum:.3g}] in float and its range is [{low:.3g}, {high:.3g}]. Calibrate with more and other "
            "data, or conversion.calibration.method=min_max",
            remedies=({"calibration": {"method": "min_max"}},),
        )

    def _uneven_channels(self, op: Op) -> Cause | None:
        tensor = op.outputs[0] if op.outputs else ABSENT
        known, scale = (None, None) if tensor == ABSENT else (self.facts(tensor), self.scale(tensor))
        if known is None or scale is None or known.channel_minima.size < 2:
            return None
        sizes = known.channel_magnitudes
        few = int((2 * sizes < _FEW_STEPS * scale).sum())
        if few <= sizes.size // 2:
            return None
        return Cause(
            kind=UNEVEN_CHANNELS,
            op_index=op.index,
            message=f"{few} of {sizes.size} channels of {op_label(self.graph, op.index)} have fewer than {_FEW_STEPS} "
            "quantized values of the one scale that all share: conversion.techniques=cross_layer_equalization",
            remedies=({"techniques": ("cross_layer_equalization",)}, *self.float_layer_remedies(op.index)),
        )

# SPDX-License-Identifier: Apache-2.0
"""Schemes with float32 activations, which need no data: integer or float16 weights.

- dynamic_range: convolutions, dense layers and fused LSTMs have int8 weights. Their hybrid kernels quantize the
  activations at every inference.
  With config.int4_layers, layers have int4 weights.
- weight_only_int8, float16: a DEQUANTIZE before each op converts the weights to float32 once, when the interpreter
  starts.
- weight_only_int4, weight_only_int2: the same with packed weights, which a builtin kernel expands at every inference.

Depthwise convolutions have a DEQUANTIZE in dynamic_range as well: their hybrid kernel in LiteRT 2.1.6 computes wrong
results with per-tensor weights, and XNNPACK does not support it, but supports the float kernel with a DEQUANTIZE.
So do all ops with int4 weights except CONV_2D and FULLY_CONNECTED: their hybrid kernels reject int4 (LiteRT 2.3.0). No
op has hybrid int2 weights, because CONV_2D crashes on them or computes NaN.

Source of the number format: TFLite 8-bit quantization specification (symmetric weights, values from -127 to 127).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import quant_math, tflite
from tfq.config import FEW_BIT_SCHEMES, ConversionConfig
from tfq.errors import InputError, warn
from tfq.patterns import check_selection, fits_op
from tfq.ptq.weight_scales import quantize_to_few_bits
from tfq.tflite.op_types import BIAS, CHANNEL_AXES, WEIGHT, roles
from tfq.tflite.records import Model, Op, Subgraph, Tensor
from tfq.tflite.schema import TENSOR_TYPES
from tfq.tflite.stored_values import packed_values

# Op -> versions of its hybrid kernel for per-tensor and for per-channel weights.
# Source: tflite/tools/versioning/op_version.cc, and the files that TensorFlow 2.21's converter writes.
_HYBRID_VERSIONS = {
    "CONV_2D": (2, 5),
    "FULLY_CONNECTED": (9, 12),
    "TRANSPOSE_CONV": (3, 3),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (3, 3),
}
# Versions of DEQUANTIZE, from the same source.
_DEQUANTIZE_VERSIONS = {"per_tensor": 2, "per_channel": 5, "float16": 3, "few_bits": 6}
# Ops whose hybrid kernels accept int4 weights. Measured on ai-edge-litert 2.3.0.
_HYBRID_INT4 = frozenset({"CONV_2D", "FULLY_CONNECTED"})

# {tensor of the main subgraph: (its quantized values, its scales)} for weights that were rounded by data.
RoundedWeights = Mapping[int, tuple[NDArray[np.int8], NDArray[np.float32]]]

# Ops whose weights cannot come from a DEQUANTIZE.
_LEFT_FLOAT = frozenset({"LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"})

_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)  # XNNPACK rejects smaller scales
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How to quantize one constant.

    Attributes:
        tensor: The constant.
        axis: The axis of its channels; None for one scale.
        in_place: Whether its readers accept integers. Otherwise it gets a DEQUANTIZE.
        bits: 8, 4 or 2; 16 in the scheme float16.
    """

    tensor: Tensor
    axis: int | None
    in_place: bool
    bits: int

    def merged_with(self, other: "_Plan") -> "_Plan":
        """Return the plan for a constant that ops need in two forms.

        One scale works for both axes, a DEQUANTIZE for all kernels.
        """
        axis = self.axis if self.axis == other.axis else None
        in_place = self.in_place and other.in_place and self.bits == other.bits
        return _Plan(tensor=self.tensor, axis=axis, in_place=in_place, bits=max(self.bits, other.bits))


def quantize_weights(model: bytes, config: ConversionConfig, rounded: RoundedWeights | None = None) -> bytes:
    """Quantize the weights of a float32 flatbuffer. Embedding tables count as weights.

    int8: scale = max|w| / 127 per channel (config.per_channel, config.per_channel_dense), rounded half to even.
    int4, int2: the scale with the least squared error, rounded half to even.
    float16: rounded to nearest, including biases.

    There is a TfqWarning for weights that must stay float32.

    Args:
        model: A float32 flatbuffer.
        config: Its scheme is dynamic_range, float16 or a weight-only one.
        rounded: Weights of 4 or 2 bits that were rounded by data.

    Raises:
        InputError: A weight is not finite, or a pattern in config.int4_layers matches no layer.
    """
    parsed = tflite.read(model)
    _check_patterns(parsed, config)
    rewriter = _Rewriter(model, config.scheme, rounded or {})
    left, count = [], 0
    for graph in parsed.subgraphs:
        plans, skipped = _plans(graph, config)
        count += len(plans)
        rewriter.rewrite(graph, plans)
        left += skipped
    left += rewriter.left
    if not count and not left:
        warn(
            f"{config.scheme}: the model has no constant weights that this scheme stores in fewer bits, so the file "
            "stays float32. Weights that are passed into loops and branches are not constants there"
        )
    if left:
        warn(f"{config.scheme}: {len(left)} weights stay float32: {'; '.join(dict.fromkeys(left))}")
    return tflite.pack(rewriter.finished(), len(model))


def few_bit_weights(model: bytes, config: ConversionConfig) -> dict[int, tuple[int, bool]]:
    """Return {tensor of the main subgraph: (4 or 2 bits, whether it gets one scale)} as `quantize_weights` does it."""
    graph = tflite.read(model).main_subgraph
    plans = [plan for plan in _plans(graph, config)[0] if plan.bits < 8]
    return {plan.tensor.index: (plan.bits, plan.axis is None) for plan in plans}


def _check_patterns(model: Model, config: ConversionConfig) -> None:
    """Raise InputError if a pattern in config.int4_layers matches no layer with constant weights."""
    layers: dict[str, None] = {}
    outputs: set[str] = set()
    for graph in model.subgraphs:
        for op, _, role in _constants(graph):
            if role == WEIGHT and op.name not in _LEFT_FLOAT:
                layers[graph.layer_of(op)] = None
                outputs.update(graph.tensors[index].name for index in op.outputs)
    check_selection("int4_layers", config.int4_layers, layers, field="conversion.int4_layers", tensors=outputs)


def _bits(graph: Subgraph, op: Op, config: ConversionConfig) -> int:
    """Return the bits of the op's weights."""
    if config.scheme == "float16":
        return 16
    outputs = [graph.tensors[index].name for index in op.outputs]
    if config.int4_layers and op.name not in _LEFT_FLOAT and fits_op(graph.layer_of(op), outputs, config.int4_layers):
        return 4
    return FEW_BIT_SCHEMES.get(config.scheme, 8)


def symmetric_int8(values: NDArray, axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize symmetrically to int8.

    Args:
        values: Real values.
        axis: The axis of the channels; None for one scale.

    Returns:
        Quantized values from -127 to 127 in the same shape, and the scales: one for each index along `axis`, or one.
        The smallest possible scale is the smallest normal float32, which channels of zeros have.
    """
    axes = None if axis is None else tuple(other for other in range(values.ndim) if other != axis)
    largest = np.abs(values).max(axis=axes, keepdims=True).astype(np.float64)
    scales = np.maximum(largest / 127, _SMALLEST_SCALE).astype(np.float32)
    return np.maximum(quant_math.quantize(values, scales, 0), -127), scales.ravel()


def _plans(graph: Subgraph, config: ConversionConfig) -> tuple[list[_Plan], list[str]]:
    """Return the plans for the constants of the graph, and the reasons why others stay float."""
    results: dict[int, _Plan] = {}
    left = []
    real = _read_as_float(graph)
    for op, index, role in _constants(graph):
        tensor = graph.tensors[index]
        bits = _bits(graph, op, config)
        hybrid_ops = _HYBRID_VERSIONS if bits == 8 else _HYBRID_INT4
        is_hybrid = config.scheme == "dynamic_range" and op.name in hybrid_ops
        if role == BIAS and config.scheme != "float16":
            continue
        if op.name in _LEFT_FLOAT and not (is_hybrid and index not in real):
            left.append(f"{op.name} ({op.keras_layer or tensor.name}) does not support dequantized weights")
        else:
            axis = _axis(op, tensor, config)
            in_place = is_hybrid and index not in real and not (axis is None and _is_grouped(graph, op))
            plan = _Plan(tensor=tensor, axis=axis, in_place=in_place, bits=bits)
            results[index] = plan.merged_with(results.get(index, plan))
    return list(results.values()), left


def _constants(graph: Subgraph) -> Iterator[tuple[Op, int, str]]:
    """Yield (op, tensor, role) for the constant float32 weights and biases; an embedding table is a weight."""
    for op in graph.ops:
        for place, slot, index, role in roles(op):
            tensor = graph.tensors[index]
            is_table = op.name == "GATHER" and (place, slot) == ("input", 0)
            is_float = tensor.is_constant and tensor.dtype == "float32" and not tensor.is_sparse
            if is_float and (role in (WEIGHT, BIAS) or is_table):
                yield op, index, BIAS if role == BIAS else WEIGHT


def _read_as_float(graph: Subgraph) -> set[int]:
    """Return the tensors that are data or bias of an op, or an output, which cannot be int8 instead of float32."""
    read = {index for op in graph.ops for place, _, index, role in roles(op) if place == "input" and role != WEIGHT}
    return read | set(graph.outputs)


def _is_grouped(graph: Subgraph, op: Op) -> bool:
    """Check whether `op` is a grouped convolution, whose hybrid kernel requires a scale for each channel."""
    return op.name == "CONV_2D" and graph.tensors[op.inputs[0]].shape[-1] != graph.tensors[op.inputs[1]].shape[-1]


def _axis(op: Op, tensor: Tensor, config: ConversionConfig) -> int | None:
    """Return the axis of the weight's channels; None if it gets one scale."""
    per_channel = config.per_channel and (config.per_channel_dense or op.name != "FULLY_CONNECTED")
    axis = CHANNEL_AXES.get(op.name)
    return axis % len(tensor.shape) if per_channel and axis is not None and tensor.shape else None


class _Rewriter:
    """Replaces constants of a flatbuffer."""

    def __init__(self, data: bytes, scheme: str, rounded: RoundedWeights) -> None:
        """Unpack the flatbuffer `data`."""
        from ai_edge_litert import schema_py_generated as generated

        self._data, self._scheme, self._generated, self._rounded = data, scheme, generated, rounded
        self._model = tflite.unpack(data)
        # Tensors of different shapes may share a buffer: (buffer, axis, shape, bits, tensor if it was rounded by data)
        # -> (new buffer, scales).
        self._stored: dict[tuple[object, ...], tuple[int, list[float]]] = {}
        self.left: list[str] = []

    def rewrite(self, graph: Subgraph, plans: list[_Plan]) -> None:
        """Apply the plans to one subgraph."""
        edited = self._model.subgraphs[graph.index]
        dequantize = []
        for plan in plans:
            values = self._values(plan)
            if values is None:
                continue
            if plan.in_place:
                self._store(edited.tensors[plan.tensor.index], plan, values, graph)
                continue
            stored = self._generated.TensorT()
            old = edited.tensors[plan.tensor.index]
            stored.name, stored.shape, stored.buffer = old.name, old.shape, old.buffer
            stored.hasRank = old.hasRank
            self._store(stored, plan, values, graph)
            old.name, old.buffer, old.quantization = old.name + b";dequantized", 0, None
            edited.tensors.append(stored)
            dequantize.append(self._dequantize_op(len(edited.tensors) - 1, plan.tensor.index, stored))
        for op in graph.ops:
            self._set_hybrid(edited, op)
        edited.operators = [*dequantize, *edited.operators]

    def finished(self) -> Any:
        """Return the ModelT without unused constants."""
        model = self._model
        tflite.remove_min_runtime_version(model)
        tflite.remove_unused_constants(model)
        return model

    def _values(self, plan: _Plan) -> NDArray | None:
        values = tflite.constant_values(self._data, plan.tensor)
        if not np.isfinite(values).all():
            raise InputError(
                f"weight {plan.tensor.name!r} has NaN or infinite values, expected finite ones. Load a valid "
                "checkpoint, or train the model again",
                field="model",
                expected="finite weights",
                got=plan.tensor.name,
            )
        if values.size == 0:
            return None
        if self._scheme == "float16" and np.abs(values).max() > _FLOAT16_MAX:
            self.left.append(f"{plan.tensor.name!r} has values beyond float16's maximum of {_FLOAT16_MAX:g}")
            return None
        return values

    def _store(self, tensor: Any, plan: _Plan, values: NDArray, graph: Subgraph) -> None:
        """Set the type, the content and the quantization of `tensor` for the scheme."""
        rounded = self._rounded.get(plan.tensor.index) if graph.index == 0 and plan.bits < 8 else None
        key = (tensor.buffer, plan.axis, plan.tensor.shape, plan.bits, plan.tensor.index if rounded else None)
        if key not in self._stored:
            content, scales = self._quantized(plan, values) if rounded is None else rounded
            if plan.bits < 8:
                content = packed_values(content, plan.bits)
            buffer = self._generated.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            self._stored[key] = (len(self._model.buffers) - 1, [float(scale) for scale in scales])
        tensor.buffer, built = self._stored[key]
        tensor.type = TENSOR_TYPES.index("float16" if plan.bits == 16 else f"int{plan.bits}")
        tensor.quantization = None if plan.bits == 16 else self._quantization(built, plan.axis)

    def _quantized(self, plan: _Plan, values: NDArray) -> tuple[NDArray, NDArray]:
        """Return the quantized values and their scales; float16 values have none."""
        if plan.bits == 16:
            return values.astype("<f2"), np.zeros(0, np.float32)
        if plan.bits == 8:
            return symmetric_int8(values, plan.axis)
        quantized, scales = quantize_to_few_bits(values, plan.axis, plan.bits)
        return quantized, np.maximum(scales, np.float32(_SMALLEST_SCALE))

    def _quantization(self, scales: list[float], axis: int | None) -> Any:
        quantization = self._generated.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = scales, [0] * len(scales)
        quantization.quantizedDimension = axis or 0
        return quantization

    def _dequantize_op(self, source: int, target: int, stored: Any) -> Any:
        generated = self._generated
        if stored.quantization is None:
            version = _DEQUANTIZE_VERSIONS["float16"]
        else:
            many = len(stored.quantization.scale) > 1
            form = "per_channel" if many else "per_tensor"
            version = _DEQUANTIZE_VERSIONS[form if TENSOR_TYPES[stored.type] == "int8" else "few_bits"]
        op = generated.OperatorT()
        op.opcodeIndex = tflite.operator_code(self._model, generated.BuiltinOperator.DEQUANTIZE, version)
        op.inputs, op.outputs = [source], [target]
        op.builtinOptionsType = generated.BuiltinOptions.DequantizeOptions
        op.builtinOptions = generated.DequantizeOptionsT()
        return op

    def _set_hybrid(self, edited: Any, op: Op) -> None:
        """Select the hybrid kernel for an op whose weights are int8 or int4 now."""
        if op.name not in _HYBRID_VERSIONS:
            return
        weight = next(edited.tensors[index] for _, _, index, role in roles(op) if role == WEIGHT)
        if TENSOR_TYPES[weight.type] not in ("int8", "int4"):
            return
        changed = edited.operators[op.index]
        version = _HYBRID_VERSIONS[op.name][len(weight.quantization.scale) > 1]
        changed.opcodeIndex = tflite.operator_code(
            self._model, getattr(self._generated.BuiltinOperator, op.name), version
        )
        if op.name in ("FULLY_CONNECTED", "UNIDIRECTIONAL_SEQUENCE_LSTM"):
            changed.builtinOptions.asymmetricQuantizeInputs = True

# SPDX-License-Identifier: Apache-2.0
"""Weight-only schemes, which need no data: int8 or float16 weights, float32 activations.

- dynamic_range: convolutions, dense layers and fused LSTMs have int8 weights. Their hybrid kernels quantize the
  activations at every inference.
- weight_only_int8, float16: a DEQUANTIZE before each op converts the weights to float32 once, when the interpreter
  starts.

Depthwise convolutions have a DEQUANTIZE in dynamic_range as well: their hybrid kernel in LiteRT 2.1.6 computes wrong
results with per-tensor weights, and XNNPACK does not support it, but supports the float kernel with a DEQUANTIZE.

Source of the number format: TFLite 8-bit quantization specification (symmetric weights, values from -127 to 127).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import quant_math, tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError, warn
from tfq.tflite.op_types import BIAS, CHANNEL_AXES, WEIGHT, roles
from tfq.tflite.records import Op, Subgraph, Tensor

# Op -> versions of its hybrid kernel for per-tensor and for per-channel weights.
# Source: tflite/tools/versioning/op_version.cc, and the files that TensorFlow 2.21's converter writes.
_HYBRID_VERSIONS = {
    "CONV_2D": (2, 5),
    "FULLY_CONNECTED": (9, 12),
    "TRANSPOSE_CONV": (3, 3),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (3, 3),
}
# Versions of DEQUANTIZE, from the same source.
_DEQUANTIZE_VERSIONS = {"per_tensor": 2, "per_channel": 5, "float16": 3}

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
        in_place: Whether its readers accept int8. Otherwise it gets a DEQUANTIZE.
    """

    tensor: Tensor
    axis: int | None
    in_place: bool


def quantize_weights(model: bytes, config: ConversionConfig) -> bytes:
    """Quantize the weights of a float32 flatbuffer. Embedding tables count as weights.

    int8: scale = max|w| / 127 per channel (config.per_channel, config.per_channel_dense), rounded half to even.
    float16: rounded to nearest, including biases.

    There is a TfqWarning for weights that must stay float32.

    Args:
        model: A float32 flatbuffer.
        config: Its scheme is dynamic_range, float16 or weight_only_int8.

    Raises:
        InputError: A weight is not finite.
    """
    parsed = tflite.read(model)
    rewriter = _Rewriter(model, config.scheme)
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
        is_hybrid = config.scheme == "dynamic_range" and op.name in _HYBRID_VERSIONS
        if role == BIAS and config.scheme != "float16":
            continue
        if op.name in _LEFT_FLOAT and not (is_hybrid and index not in real):
            left.append(f"{op.name} ({op.keras_layer or tensor.name}) does not support dequantized weights")
        else:
            in_place = is_hybrid and index not in real
            plan = _Plan(tensor=tensor, axis=_axis(op, tensor, config), in_place=in_place)
            # If ops need the constant in different forms: one scale works for both axes, a DEQUANTIZE for all kernels.
            other = results.get(index, plan)
            axis = plan.axis if plan.axis == other.axis else None
            results[index] = _Plan(tensor=tensor, axis=axis, in_place=plan.in_place and other.in_place)
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


def _axis(op: Op, tensor: Tensor, config: ConversionConfig) -> int | None:
    """Return the axis of the weight's channels; None if it gets one scale."""
    per_channel = config.per_channel and (config.per_channel_dense or op.name != "FULLY_CONNECTED")
    axis = CHANNEL_AXES.get(op.name)
    return axis % len(tensor.shape) if per_channel and axis is not None and tensor.shape else None


class _Rewriter:
    """Replaces constants of a flatbuffer."""

    def __init__(self, data: bytes, scheme: str) -> None:
        """Unpack the flatbuffer `data`."""
        from ai_edge_litert import schema_py_generated as generated

        self._data, self._scheme, self._generated = data, scheme, generated
        self._model = tflite.unpack(data)
        # Tensors of different shapes may share a buffer: (buffer, axis, shape) -> (new buffer, scales).
        self._stored: dict[tuple[int, int | None, tuple[int, ...]], tuple[int, list[float]]] = {}
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
                self._store(edited.tensors[plan.tensor.index], plan, values)
                continue
            stored = self._generated.TensorT()
            old = edited.tensors[plan.tensor.index]
            stored.name, stored.shape, stored.buffer = old.name, old.shape, old.buffer
            stored.hasRank = old.hasRank
            self._store(stored, plan, values)
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

    def _store(self, tensor: Any, plan: _Plan, values: NDArray) -> None:
        """Set the type, the content and the quantization of `tensor` for the scheme."""
        types = self._generated.TensorType
        key = (tensor.buffer, plan.axis, plan.tensor.shape)
        half = self._scheme == "float16"
        if key not in self._stored:
            quantized: NDArray = values.astype("<f2")
            built: list[float] = []
            if not half:
                quantized, item = symmetric_int8(values, plan.axis)
                built = [float(scale) for scale in item]
            buffer = self._generated.BufferT()
            buffer.data = np.frombuffer(quantized.tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            self._stored[key] = (len(self._model.buffers) - 1, built)
        tensor.buffer, scales = self._stored[key]
        tensor.type = types.FLOAT16 if half else types.INT8
        tensor.quantization = None if half else self._quantization(scales, plan.axis)

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
            version = _DEQUANTIZE_VERSIONS["per_channel" if many else "per_tensor"]
        op = generated.OperatorT()
        op.opcodeIndex = tflite.operator_code(self._model, generated.BuiltinOperator.DEQUANTIZE, version)
        op.inputs, op.outputs = [source], [target]
        op.builtinOptionsType = generated.BuiltinOptions.DequantizeOptions
        op.builtinOptions = generated.DequantizeOptionsT()
        return op

    def _set_hybrid(self, edited: Any, op: Op) -> None:
        """Select the hybrid kernel for an op whose weights are int8 now."""
        if op.name not in _HYBRID_VERSIONS:
            return
        weight = next(edited.tensors[index] for _, _, index, role in roles(op) if role == WEIGHT)
        if weight.type != self._generated.TensorType.INT8:
            return
        changed = edited.operators[op.index]
        version = _HYBRID_VERSIONS[op.name][len(weight.quantization.scale) > 1]
        changed.opcodeIndex = tflite.operator_code(
            self._model, getattr(self._generated.BuiltinOperator, op.name), version
        )
        if op.name in ("FULLY_CONNECTED", "UNIDIRECTIONAL_SEQUENCE_LSTM"):
            changed.builtinOptions.asymmetricQuantizeInputs = True

# SPDX-License-Identifier: Apache-2.0
"""Ops with weights, in a flatbuffer that is edited: weights and biases as arrays, inputs as patches."""

import collections
import copy
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import FlatbufferError
from tfq.tflite.op_types import WEIGHT, roles
from tfq.tflite.schema import TENSOR_TYPES
from tfq.tflite.stored_values import PACKED_BITS, packed_values, stored_values

# Padding.SAME in the TFLite schema.
_SAME_PADDING = 0
# Positions of an image that are used per sample: neighboring patches are similar.
_MAX_POSITIONS = 256
# Op -> (axis of the output channels, axis of the input channels) of its weights. A depthwise op has one axis for both.
_AXES = {"CONV_2D": (0, 3), "FULLY_CONNECTED": (0, 1), "DEPTHWISE_CONV_2D": (3, 3)}
# Positions among the op's inputs.
_WEIGHTS, _BIAS = 1, 2


@dataclass(frozen=True, eq=False)
class WeightedOp:
    """An op whose weights are a constant that no other op reads.

    Arrays that its properties return are copies. The setters write to the flatbuffer.

    Attributes:
        model: The flatbuffer in its object form, which the setters change.
        op: The op in its object form.
        name: The op's type, such as "CONV_2D".
        layer: The Keras layer, or the name of the output tensor if the layer is not known.
        key: The unique name of the op in records: `layer`, with the output tensor if an earlier op has the same layer.
        num_inputs: The number of channels of the data.
    """

    model: Any
    op: Any
    name: str
    layer: str
    key: str
    num_inputs: int

    @property
    def data(self) -> int:
        """The tensor index of the data input."""
        return int(self.op.inputs[0])

    @property
    def output(self) -> int:
        """The tensor index of the output."""
        return int(self.op.outputs[0])

    @property
    def output_name(self) -> str:
        """The name of the output tensor."""
        name = self.model.subgraphs[0].tensors[self.output].name
        return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name or "")

    @property
    def num_outputs(self) -> int:
        """The number of output channels."""
        return int(self._tensor(_WEIGHTS).shape[_AXES[self.name][0]])

    @property
    def is_depthwise(self) -> bool:
        """Whether the op is a depthwise convolution."""
        return self.name == "DEPTHWISE_CONV_2D"

    @property
    def activation(self) -> int:
        """The fused activation, as ActivationFunctionType in the TFLite schema."""
        return int(self.op.builtinOptions.fusedActivationFunction)

    @property
    def pads(self) -> bool:
        """Whether the op pads its data with zeros."""
        options = self.op.builtinOptions
        return self.name != "FULLY_CONNECTED" and options.padding == _SAME_PADDING and self.weights.shape[1:3] != (1, 1)

    @property
    def weights(self) -> NDArray:
        """The weights as stored: OHWI (convolution), 1HWO (depthwise convolution), OI (fully connected)."""
        return self._constant(_WEIGHTS)

    @property
    def bias(self) -> NDArray:
        """The bias: (output channels,). The op must have one (`has_bias`)."""
        return self._constant(_BIAS)

    @property
    def scales(self) -> NDArray[np.float64]:
        """The scale of the weights of each output channel."""
        return self._scales(_WEIGHTS)

    @property
    def has_own_scales(self) -> bool:
        """Whether each output channel has a scale, instead of one for all."""
        return len(self._tensor(_WEIGHTS).quantization.scale) == self.num_outputs

    @property
    def bits(self) -> int:
        """The number of bits of a quantized weight."""
        return PACKED_BITS.get(TENSOR_TYPES[self._tensor(_WEIGHTS).type], 8)

    @property
    def bias_scale(self) -> NDArray[np.float64]:
        """The scale of the bias of each output channel."""
        return self._scales(_BIAS)

    @property
    def data_scale(self) -> NDArray[np.float64]:
        """The scale of the data, once for each output channel; 1 if the layer has no bias, which needs it."""
        return self.bias_scale / self.scales if self.has_bias else np.ones(self.num_outputs)

    @property
    def has_bias(self) -> bool:
        """Whether the op has a bias."""
        return len(self.op.inputs) > _BIAS and int(self.op.inputs[_BIAS]) != tflite.ABSENT

    def weights_by_output(self) -> NDArray:
        """Return the weights as (output channels, all weights of a channel)."""
        return np.moveaxis(self.weights, _AXES[self.name][0], 0).reshape(self.num_outputs, -1)

    def weights_by_input(self, channels: int) -> NDArray:
        """Return the weights as (channels of the data, all weights that multiply a channel).

        Args:
            channels: The number of channels of the data. A fully connected layer after a flatten reads each channel
                once per position; a depthwise convolution may have several outputs per channel.
        """
        weights = np.moveaxis(self.weights, _AXES[self.name][1], 0)
        if self.is_depthwise:
            return weights.reshape(channels, -1)
        return np.moveaxis(weights.reshape(-1, channels, *weights.shape[1:]), 1, 0).reshape(channels, -1)

    def constant_response(self, values: NDArray) -> NDArray[np.float64]:
        """Return the outputs without bias and activation, if channel i of the data is the constant `values[i]`."""
        weights = self.weights.astype(np.float64)
        if self.is_depthwise:
            return weights.sum(axis=(0, 1, 2)) * np.repeat(values, self.num_outputs // len(values))
        rows = weights.reshape(self.num_outputs, -1, len(values))
        return np.asarray(rows.sum(axis=1) @ values)

    def scale_outputs(self, factors: NDArray) -> None:
        """Multiply the weights and the bias of each output channel by its factor."""
        axis = _AXES[self.name][0]
        shape = [1] * self.weights.ndim
        shape[axis] = -1
        self._write(_WEIGHTS, self.weights * factors.reshape(shape).astype(np.float32))
        if self.has_bias:
            self._write(_BIAS, self.bias * factors.astype(np.float32))

    def scale_inputs(self, factors: NDArray) -> None:
        """Multiply the weights for each channel of the data by its factor."""
        axis, weights = _AXES[self.name][1], self.weights
        repeats = weights.shape[axis] // len(factors)
        spread = np.repeat(factors, repeats) if self.is_depthwise else np.tile(factors, repeats)
        shape = [1] * weights.ndim
        shape[axis] = -1
        self._write(_WEIGHTS, weights * spread.reshape(shape).astype(np.float32))

    def ordered_by_output(self, weights: NDArray) -> NDArray:
        """Return `weights`, in the layout of `weights_by_output`, in the shape of the tensor."""
        axis = _AXES[self.name][0]
        return np.moveaxis(weights.reshape(np.moveaxis(self.weights, axis, 0).shape), 0, axis)

    def set_weights_by_output(self, weights: NDArray) -> None:
        """Set the weights; `weights` has the layout of `weights_by_output`."""
        self._write(_WEIGHTS, self.ordered_by_output(weights))

    def set_bias(self, bias: NDArray) -> None:
        """Set the bias; `bias` has the shape of the present one and is cast to its type."""
        self._write(_BIAS, bias)

    def set_int4(self, quantized_values: NDArray, scales: NDArray, bias_scale: NDArray) -> None:
        """Make the weights of an int8 layer 4-bit, and change the scales. The caller sets the bias afterwards.

        Args:
            quantized_values: Integers from -8 to 7, in the layout of `weights_by_output`.
            scales: The scales of the weights, as many as before.
            bias_scale: The scales of the bias, as many as before.
        """
        ordered = self.ordered_by_output(quantized_values)
        self._write(_WEIGHTS, ordered)
        tensor = self._tensor(_WEIGHTS)
        tensor.type = TENSOR_TYPES.index("int4")
        self.model.buffers[tensor.buffer].data = packed_values(ordered, 4)
        self.set_scales(scales, bias_scale)

    def set_scales(self, scales: NDArray, bias_scale: NDArray) -> None:
        """Set the scales of the weights and of the bias, as many as before. Quantized values stay as they are."""
        for slot, values in ((_WEIGHTS, scales), (_BIAS, bias_scale)):
            if slot == _WEIGHTS or self.has_bias:
                tensor = self._own_tensor(slot)
                tensor.quantization = copy.copy(tensor.quantization)
                tensor.quantization.scale = np.asarray(values, np.float32)  # packed like those of an unpacked file

    def _scales(self, slot: int) -> NDArray[np.float64]:
        quantization = self._tensor(slot).quantization
        return np.broadcast_to(np.asarray(quantization.scale, np.float64), self.num_outputs)

    def _tensor(self, slot: int) -> Any:
        return self.model.subgraphs[0].tensors[int(self.op.inputs[slot])]

    def _constant(self, slot: int) -> NDArray:
        tensor = self._tensor(slot)
        data = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8)
        shape = [int(size) for size in tensor.shape]
        if TENSOR_TYPES[tensor.type] in PACKED_BITS:
            return stored_values(self.model.buffers, tensor, tuple(shape)).astype(np.int8)
        dtype = np.dtype(TENSOR_TYPES[tensor.type])
        if data.nbytes != math.prod(shape) * dtype.itemsize:
            expected = math.prod(shape) * dtype.itemsize
            raise FlatbufferError(
                f"input {slot} of {self.name} ({self.layer}) has {data.nbytes:,} bytes, but its shape {shape} needs "
                f"{expected:,}: the file is damaged. Convert the model again",
                field="model",
                expected=expected,
                got=data.nbytes,
            )
        return data.view(dtype).reshape(shape).copy()

    def _write(self, slot: int, values: NDArray) -> None:
        """Replace the values of a constant input. Other ops and tensors that share it keep the old values."""
        from ai_edge_litert import schema_py_generated as generated

        old = self._constant(slot)
        assert values.shape == old.shape, (values.shape, old.shape)
        tensor = self._own_tensor(slot)
        if sum(item.buffer == tensor.buffer for other in self.model.subgraphs for item in other.tensors) > 1:
            self.model.buffers.append(generated.BufferT())
            tensor.buffer = len(self.model.buffers) - 1
        bits = PACKED_BITS.get(TENSOR_TYPES[tensor.type])
        data = np.ascontiguousarray(values.astype(old.dtype)).reshape(-1).view(np.uint8)
        self.model.buffers[tensor.buffer].data = packed_values(values, bits) if bits else data

    def _own_tensor(self, slot: int) -> Any:
        """Return the tensor of a constant input, after a copy of it if other ops read it as well.

        The converter stores equal constants, such as zero biases, once: as one tensor, or as one buffer for several.
        """
        graph, index = self.model.subgraphs[0], int(self.op.inputs[slot])
        if sum(index in map(int, op.inputs) for op in graph.operators) > 1:
            graph.tensors.append(copy.copy(graph.tensors[index]))
            index = len(graph.tensors) - 1
            self.op.inputs = np.array([*self.op.inputs[:slot], index, *self.op.inputs[slot + 1 :]], np.int32)
        return graph.tensors[index]


def weighted_ops(model: Any, parsed: tflite.Model) -> Iterator[WeightedOp]:
    """Yield the ops of the main subgraph whose weights and bias are constants, and whose weights no other op reads.

    Other ops with weights are left out, such as grouped convolutions: see `left_out`.

    Args:
        model: `parsed` in its object form.
        parsed: A flatbuffer.
    """
    graph = parsed.main_subgraph
    for record, key, reason in _ops_with_weights(graph):
        if not reason:
            op = model.subgraphs[0].operators[record.index]
            yield WeightedOp(model, op, record.name, graph.layer_of(record), key, _num_inputs(graph, record))


def left_out(parsed: tflite.Model, weights: Container[int] | None = None) -> dict[str, str]:
    """Return {`WeightedOp.key`: the reason} of the ops with weights that `weighted_ops` leaves out.

    Args:
        parsed: A flatbuffer.
        weights: Only ops that read one of these tensors of the main subgraph as their weights; None for all.
    """
    return {
        key: reason
        for record, key, reason in _ops_with_weights(parsed.main_subgraph)
        if reason and (weights is None or any(index in weights for index in _weights(record)))
    }


def _ops_with_weights(graph: tflite.Subgraph) -> Iterator[tuple[tflite.Op, str, str]]:
    """Yield (op, its unique name, why `weighted_ops` leaves it out or "") for each op with constant weights."""
    readers = collections.Counter(index for op in graph.ops for index in set(op.inputs))
    seen = set()
    for op in graph.ops:
        weights = _weights(op)
        if not any(graph.tensors[index].is_constant for index in weights):
            continue
        key = layer = graph.layer_of(op)
        if layer in seen:
            key = f"{layer} ({graph.tensors[op.outputs[0]].name})"
        seen.add(layer)
        reason = ""
        if op.name not in _AXES:
            reason = f"{op.name} is not supported"
        elif not all(graph.tensors[index].is_constant for index in op.inputs[_WEIGHTS:] if index != tflite.ABSENT):
            reason = "its bias is not a constant"
        elif readers[weights[0]] > 1:
            reason = "other ops read its weights too"
        elif op.name == "CONV_2D" and graph.tensors[weights[0]].shape[3] != _num_inputs(graph, op):
            reason = "it is a grouped convolution"
        yield op, key, reason


def _weights(op: tflite.Op) -> list[int]:
    """Return the tensors of the op's weights. An embedding table counts as weights."""
    table = op.inputs[:1] if op.name == "GATHER" else ()
    return [*table, *(index for place, _, index, role in roles(op) if (place, role) == ("input", WEIGHT))]


def _num_inputs(graph: tflite.Subgraph, op: tflite.Op) -> int:
    place, axis = (_WEIGHTS, 1) if op.name == "FULLY_CONNECTED" else (0, -1)
    return int(graph.tensors[op.inputs[place]].shape[axis])


def extract_patches(layer: WeightedOp, data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the input patches that the weights of a layer multiply (im2col).

    Args:
        layer: A layer.
        data: Its data input for one sample: NHWC for a convolution, (..., inputs) for a fully connected layer.

    Returns:
        (groups, positions, K), where K is ordered as in `WeightedOp.weights_by_output`. A depthwise convolution has
        one group per channel of its data, other ops have one group. If an image has more than 256 positions, 256
        evenly spaced ones are used.
    """
    if layer.name == "FULLY_CONNECTED":
        return data.reshape(1, -1, layer.weights.shape[1])
    options, weights = layer.op.builtinOptions, layer.weights
    kernel = weights.shape[1:3]
    stride = options.strideH, options.strideW
    dilation = options.dilationHFactor, options.dilationWFactor
    padded = data
    if options.padding == _SAME_PADDING:
        sizes = [
            same_padding(size, *item) for size, *item in zip(data.shape[1:3], kernel, stride, dilation, strict=True)
        ]
        padded = np.pad(data, ((0, 0), *sizes, (0, 0)))
    dilated = [(size - 1) * by + 1 for size, by in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, dilated, (1, 2))
    # (batch, rows, columns, channels, kernel rows, kernel columns)
    windows = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    rows, columns = np.unravel_index(_positions(windows.shape[1] * windows.shape[2]), windows.shape[1:3])
    chosen = windows[:, rows, columns].reshape(-1, *windows.shape[3:])
    if layer.is_depthwise:
        return np.ascontiguousarray(chosen.transpose(1, 0, 2, 3)).reshape(chosen.shape[1], len(chosen), -1)
    return chosen.transpose(0, 2, 3, 1).reshape(1, len(chosen), -1)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return (before, after), the SAME padding of one dimension. An odd total pads one more after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _positions(count: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, min(count, _MAX_POSITIONS)).astype(np.int64)

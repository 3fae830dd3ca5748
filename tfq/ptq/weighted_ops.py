# SPDX-License-Identifier: Apache-2.0
"""The ops with weights of a flatbuffer under edit: weights and biases as arrays, inputs as patches."""

import collections
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.tflite.schema import TENSOR_TYPES

# SAME among the paddings of the schema.
_SAME_PADDING = 0
# Places of an image that are taken of each sample; neighbours tell little more.
_MOST_PLACES = 256
# Op -> the axis of its weights' output channels, and of its input channels. A depthwise one has them on one axis.
_AXES = {"CONV_2D": (0, 3), "FULLY_CONNECTED": (0, 1), "DEPTHWISE_CONV_2D": (3, 3)}
_WEIGHTS, _BIAS = 1, 2


@dataclass(frozen=True, eq=False)
class WeightedOp:
    """An op with constant weights of its own; arrays are copies until they are written back.

    data, output: tensor indices of what it computes on, and of what it gives. num_inputs: channels of the data. layer:
    the Keras layer, or the tensor's name where that is not known.
    """

    model: Any
    op: Any
    name: str
    layer: str
    num_inputs: int

    @property
    def data(self) -> int:
        return int(self.op.inputs[0])

    @property
    def output(self) -> int:
        return int(self.op.outputs[0])

    @property
    def output_name(self) -> str:
        """The name of the tensor that it gives."""
        name = self.model.subgraphs[0].tensors[self.output].name
        return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name or "")

    @property
    def num_outputs(self) -> int:
        return int(self._tensor(_WEIGHTS).shape[_AXES[self.name][0]])

    @property
    def is_depthwise(self) -> bool:
        return self.name == "DEPTHWISE_CONV_2D"

    @property
    def activation(self) -> int:
        """The fused one, by its number in the schema."""
        return int(self.op.builtinOptions.fusedActivationFunction)

    @property
    def pads(self) -> bool:
        """Whether it reads zeros beyond the edges of the data."""
        options = self.op.builtinOptions
        return self.name != "FULLY_CONNECTED" and options.padding == _SAME_PADDING and self.weights.shape[1:3] != (1, 1)

    @property
    def weights(self) -> NDArray:
        """As they are stored: OHWI of a convolution, 1HWO of a depthwise one, OI of a fully connected layer."""
        return self._constant(_WEIGHTS)

    @property
    def bias(self) -> NDArray:
        """One number an output channel, of a layer that has_bias."""
        return self._constant(_BIAS)

    @property
    def scales(self) -> NDArray[np.float64]:
        """Of the codes of each output channel's weights."""
        return self._scales(_WEIGHTS)

    @property
    def bias_scale(self) -> NDArray[np.float64]:
        """Of the codes of each output channel's bias."""
        return self._scales(_BIAS)

    @property
    def has_bias(self) -> bool:
        return len(self.op.inputs) > _BIAS and int(self.op.inputs[_BIAS]) != tflite.ABSENT

    def weights_by_output(self) -> NDArray:
        """The weights as (output channel, all that it weighs)."""
        return np.moveaxis(self.weights, _AXES[self.name][0], 0).reshape(self.num_outputs, -1)

    def weights_by_input(self, channels: int) -> NDArray:
        """The weights as (channel of the data, all that weighs it), of data with `channels` of them.

        A fully connected layer may lie behind a flattened image, whose channels come again for each of its places; a
        depthwise convolution has several outputs of each channel.
        """
        weights = np.moveaxis(self.weights, _AXES[self.name][1], 0)
        if self.is_depthwise:
            return weights.reshape(channels, -1)
        return np.moveaxis(weights.reshape(-1, channels, *weights.shape[1:]), 1, 0).reshape(channels, -1)

    def constant_response(self, values: NDArray) -> NDArray[np.float64]:
        """What each output channel gives, but for bias and activation, of data that is `values` (channels) all over."""
        weights = self.weights.astype(np.float64)
        if self.is_depthwise:
            return weights.sum(axis=(0, 1, 2)) * np.repeat(values, self.num_outputs // len(values))
        rows = weights.reshape(self.num_outputs, -1, len(values))
        return np.asarray(rows.sum(axis=1) @ values)

    def scale_outputs(self, factors: NDArray) -> None:
        """Multiply what each output channel gives, but for the fused activation."""
        axis = _AXES[self.name][0]
        shape = [1] * self.weights.ndim
        shape[axis] = -1
        self._write(_WEIGHTS, self.weights * factors.reshape(shape).astype(np.float32))
        if self.has_bias:
            self._write(_BIAS, self.bias * factors.astype(np.float32))

    def scale_inputs(self, factors: NDArray) -> None:
        """Multiply the weights of each channel of the data."""
        axis, weights = _AXES[self.name][1], self.weights
        repeats = weights.shape[axis] // len(factors)
        spread = np.repeat(factors, repeats) if self.is_depthwise else np.tile(factors, repeats)
        shape = [1] * weights.ndim
        shape[axis] = -1
        self._write(_WEIGHTS, weights * spread.reshape(shape).astype(np.float32))

    def set_weights_by_output(self, weights: NDArray) -> None:
        """The weights, arranged as `weights_by_output` gives them."""
        axis = _AXES[self.name][0]
        shape = np.moveaxis(self.weights, axis, 0).shape
        self._write(_WEIGHTS, np.moveaxis(weights.reshape(shape), 0, axis))

    def set_bias(self, bias: NDArray) -> None:
        """Of the same shape and type as it is."""
        self._write(_BIAS, bias)

    def set_int4(self, codes: NDArray, scales: NDArray, bias_scale: NDArray) -> None:
        """4-bit codes of an int8 layer's weights, ordered as in `weights_by_output`, and their scales.

        scales, bias_scale: as many as there were; the bias's own codes are left to be set.
        """
        axis = _AXES[self.name][0]
        ordered = np.moveaxis(codes.reshape(np.moveaxis(self.weights, axis, 0).shape), 0, axis)
        self._write(_WEIGHTS, ordered)
        tensor = self._tensor(_WEIGHTS)
        tensor.type = TENSOR_TYPES.index("int4")
        # Two a byte, the first one in its lower half.
        pairs = np.append(ordered.reshape(-1), np.zeros(ordered.size % 2)).astype(np.int8).reshape(-1, 2).view(np.uint8)
        self.model.buffers[tensor.buffer].data = (pairs[:, 0] & 15) | (pairs[:, 1] << 4)
        for slot, values in ((_WEIGHTS, scales), (_BIAS, bias_scale)):
            if slot == _WEIGHTS or self.has_bias:
                tensor = self._tensor(slot)
                tensor.quantization = copy.copy(tensor.quantization)
                tensor.quantization.scale = [float(value) for value in values]

    def _scales(self, slot: int) -> NDArray[np.float64]:
        quantization = self._tensor(slot).quantization
        return np.broadcast_to(np.asarray(quantization.scale, np.float64), self.num_outputs)

    def _tensor(self, slot: int) -> Any:
        return self.model.subgraphs[0].tensors[int(self.op.inputs[slot])]

    def _constant(self, slot: int) -> NDArray:
        tensor = self._tensor(slot)
        data = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8)
        return data.view(TENSOR_TYPES[tensor.type]).reshape([int(size) for size in tensor.shape]).copy()

    def _write(self, slot: int, values: NDArray) -> None:
        """Give the constant in an input's slot other values; what else reads the old ones keeps them."""
        from ai_edge_litert import schema_py_generated as generated

        old = self._constant(slot)
        assert values.shape == old.shape, (values.shape, old.shape)
        graph, index = self.model.subgraphs[0], int(self.op.inputs[slot])
        # The converter keeps equal constants (biases of zero, say) once: in one tensor, or in one buffer of several.
        if sum(index in map(int, op.inputs) for op in graph.operators) > 1:
            graph.tensors.append(copy.copy(graph.tensors[index]))
            index = len(graph.tensors) - 1
            self.op.inputs = np.array([*self.op.inputs[:slot], index, *self.op.inputs[slot + 1 :]], np.int32)
        tensor = graph.tensors[index]
        if sum(item.buffer == tensor.buffer for other in self.model.subgraphs for item in other.tensors) > 1:
            self.model.buffers.append(generated.BufferT())
            tensor.buffer = len(self.model.buffers) - 1
        data = np.ascontiguousarray(values.astype(old.dtype)).reshape(-1).view(np.uint8)
        self.model.buffers[tensor.buffer].data = data


def weighted_ops(model: Any, parsed: tflite.Model) -> Iterator[WeightedOp]:
    """Those of the main subgraph, in its order, whose weights and bias are constants, and whose weights no
    other op reads.

    model: `parsed` in its object form. Convolutions of groups are left out.
    """
    graph = model.subgraphs[0]
    readers = collections.Counter(int(index) for op in graph.operators for index in set(op.inputs))
    for op, record in zip(graph.operators, parsed.main_subgraph.ops, strict=True):
        if record.name not in _AXES:
            continue
        constants = [index for index in record.inputs[_WEIGHTS:] if index != tflite.ABSENT]
        tensors = [parsed.main_subgraph.tensors[index] for index in constants]
        data, weights = parsed.main_subgraph.tensors[record.inputs[0]], tensors[0]
        if not all(tensor.is_constant for tensor in tensors) or readers[weights.index] > 1:
            continue
        num_inputs = weights.shape[1] if record.name == "FULLY_CONNECTED" else data.shape[-1]
        if record.name == "CONV_2D" and weights.shape[3] != num_inputs:
            continue
        layer = parsed.main_subgraph.layer_of(record)
        yield WeightedOp(model, op, record.name, layer, num_inputs)


def extract_patches(layer: WeightedOp, data: NDArray[np.float32]) -> NDArray[np.float32]:
    """(groups, places, K): what each output channel of a group weighs, in the order of `WeightedOp.weights_by_output`.

    data: of a sample: NHWC of a convolution, (..., inputs) of a fully connected layer. A convolution and a fully
    connected layer are one group; a depthwise convolution has a group for each channel of its data.
    Of an image with more than 256 places, evenly spaced ones are taken.
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
    reach = [(size - 1) * by + 1 for size, by in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (1, 2))
    # (batch, rows, columns, channels, kernel rows, kernel columns)
    windows = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    rows, columns = np.unravel_index(_places(windows.shape[1] * windows.shape[2]), windows.shape[1:3])
    chosen = windows[:, rows, columns].reshape(-1, *windows.shape[3:])
    if layer.is_depthwise:
        return np.ascontiguousarray(chosen.transpose(1, 0, 2, 3)).reshape(chosen.shape[1], len(chosen), -1)
    return chosen.transpose(0, 2, 3, 1).reshape(1, len(chosen), -1)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, behind) of one dimension, where padding is SAME: the odd one lies behind."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _places(count: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, min(count, _MOST_PLACES)).astype(np.int64)

# SPDX-License-Identifier: Apache-2.0
"""Prevent the overflow of quantized biases with litert-quantizer.

The scale of a bias is input scale * weight scale. If all weights of a channel are 0 (a pruned channel, a zero gamma),
litert-quantizer 0.11 gives them a scale of 8e-12. The bias then overflows, and the channel outputs 0 instead of it
(measured). TensorFlow's quantizer widens the weight scale in this case.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.ptq.calibration.kernel_limits import LARGEST_BIAS, WEIGHT_STEPS, grid_step
from tfq.tflite.op_types import CHANNEL_AXES, WEIGHTED_SLOTS


def with_bias_headroom(
    model: bytes, ranges: Mapping[tuple[int, int], tuple[float, float]], config: ConversionConfig
) -> bytes:
    """Widen the scales of weights so that no bias overflows.

    In each channel that needs it, one weight gets a larger magnitude. This changes the output by at most 3e-5 of the
    bias (int8; 4e-3 in int16x8). All other weights stay unchanged.

    Args:
        model: A float flatbuffer.
        ranges: {(subgraph, tensor): (minimum, maximum)} of its activations.
        config: The scheme and the granularity of the weights.
    """
    changes = dict(_changes(model, ranges, config))
    if not changes:
        return model
    from ai_edge_litert import schema_py_generated as generated

    edited = tflite.unpack(model)
    for (number, index), values in changes.items():
        buffer = generated.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        edited.buffers.append(buffer)
        edited.subgraphs[number].tensors[index].buffer = len(edited.buffers) - 1
    tflite.remove_unused_constants(edited)
    return tflite.pack(edited, len(model))


def _changes(model: bytes, ranges: Any, config: ConversionConfig) -> Iterator[tuple[tuple[int, int], NDArray]]:
    """Yield (subgraph, tensor of weights) and its new values, once for each op that reads the tensor, in order."""
    done: dict[int, NDArray] = {}
    for graph in tflite.read(model).subgraphs:
        for op in graph.ops:
            slots = WEIGHTED_SLOTS.get(op.name)
            if slots is None or len(op.inputs) <= max(slots):
                continue
            data, weights, bias = (op.inputs[slot] for slot in slots)
            constants = [graph.tensors[index] for index in (weights, bias) if index != tflite.ABSENT]
            low, high = ranges.get((graph.index, data), (0.0, 0.0))
            step = grid_step(low, high, config.scheme)
            if len(constants) < 2 or not all(tensor.is_constant for tensor in constants) or not step:
                continue
            values, biases = (tflite.constant_values(model, tensor) for tensor in constants)
            least = np.abs(biases).reshape(-1) / LARGEST_BIAS * WEIGHT_STEPS / step
            per_tensor = not config.per_channel or (op.name == "FULLY_CONNECTED" and not config.per_channel_dense)
            result = _widened(
                done.get(weights, values), CHANNEL_AXES[op.name], least.astype(np.float32), per_tensor=per_tensor
            )
            if result is not None:
                done[weights] = result
                yield (graph.index, weights), result
        done.clear()


def _widened(values: NDArray, axis: int, least: NDArray, *, per_tensor: bool) -> NDArray | None:
    """Return weights in which each channel has at least a given magnitude; None if they already have it.

    Args:
        values: The weights.
        axis: The axis of the channels.
        least: The smallest magnitude of each channel's largest weight.
        per_tensor: Whether all channels share one scale, so that the largest weight of all channels counts.
    """
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    magnitudes = np.abs(rows).max(axis=1, initial=0.0)
    short = np.full(len(rows), magnitudes.max(initial=0.0)) < least if per_tensor else magnitudes < least
    if not rows.size or not short.any():
        return None
    result = rows.copy()
    for channel in np.flatnonzero(short):
        largest = int(np.argmax(np.abs(rows[channel])))
        result[channel, largest] = np.copysign(least[channel], rows[channel, largest])
    moved = np.moveaxis(values, axis, 0)
    return np.ascontiguousarray(np.moveaxis(result.reshape(moved.shape), 0, axis))

# SPDX-License-Identifier: Apache-2.0
"""Keep biases within their integers, for a quantizer that lets them overflow.

A bias is stored in steps of input scale * weight scale. A channel whose weights are all 0 (a pruned one, a zero gamma)
gets a weight scale of 8e-12 from litert-quantizer 0.11; its bias overflows, and the channel outputs 0 in place of it
(measured). TensorFlow's quantizer widens the weight scale by itself.
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
    """Return the float flatbuffer `model` with weights whose scales let every bias fit its integers.

    One weight of each channel that needs it gets a value that makes its scale wide enough, which adds at most 3e-5 of
    the bias to the output (int8; 4e-3 of it in int16x8). All other weights stay as they are.
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
    """(subgraph, tensor of weights) and its new values; once for each op that reads the tensor, in order."""
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
            coarse = not config.per_channel or (op.name == "FULLY_CONNECTED" and not config.per_channel_dense)
            result = _widened(done.get(weights, values), CHANNEL_AXES[op.name], least.astype(np.float32), coarse=coarse)
            if result is not None:
                done[weights] = result
                yield (graph.index, weights), result
        done.clear()


def _widened(values: NDArray, axis: int, least: NDArray, *, coarse: bool) -> NDArray | None:
    """`values` where each channel along `axis` reaches its `least` magnitude; None where each does already.

    coarse: one scale serves all channels, so that the largest weight of all counts.
    """
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    reached = np.abs(rows).max(axis=1, initial=0.0)
    short = np.full(len(rows), reached.max(initial=0.0)) < least if coarse else reached < least
    if not rows.size or not short.any():
        return None
    result = rows.copy()
    for channel in np.flatnonzero(short):
        largest = int(np.argmax(np.abs(rows[channel])))
        result[channel, largest] = np.copysign(least[channel], rows[channel, largest])
    moved = np.moveaxis(values, axis, 0)
    return np.ascontiguousarray(np.moveaxis(result.reshape(moved.shape), 0, axis))

# SPDX-License-Identifier: Apache-2.0
"""Read the values of constants in every form in which flatbuffers store them: packed, sparse, float16, with scales.

The functions work on the tensors and buffers of a ModelT (`tfq.tflite.unpack`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import FlatbufferError, InputError
from tfq.tflite.binary import DAMAGED
from tfq.tflite.schema import TENSOR_TYPES
from tfq.tflite.sparse import densify

# Types whose values are packed into bytes -> their bits.
PACKED_BITS = {"int4": 4, "int2": 2, "uint4": 4}
# In the schema: 0 no details, 1 custom, 2 a scale for each block, 3 for several axes.
BLOCKWISE = 2


def stored_values(buffers: Sequence[Any], source: Any, shape: tuple[int, ...]) -> NDArray:
    """Return the stored values of a constant as an array of `shape`; bfloat16 as uint16.

    Args:
        buffers: The buffers of the file.
        source: The constant.
        shape: Its dense shape. The caller limits its size, because a sparse constant may declare any.

    Raises:
        InputError: It has fewer values than its shape, or values of a type that NumPy does not have.
        FlatbufferError: Its sparsity parameters are damaged.
    """
    name, dtype = tensor_name(source), TENSOR_TYPES[source.type]
    values = _unpacked(np.asarray(buffers[source.buffer].data, np.uint8), dtype)
    if source.sparsity is not None:
        return densify(source.sparsity, values, shape, name)
    if values.size < math.prod(shape):
        raise InputError(
            f"tensor {name!r} has {values.size} values, expected {math.prod(shape)} for shape {shape}: {dtype}",
            field=name,
            expected=math.prod(shape),
            got=values.size,
        )
    return values.reshape(-1)[: math.prod(shape)].reshape(shape)


def real_values(buffers: Sequence[Any], source: Any, shape: tuple[int, ...], tensors: Sequence[Any]) -> NDArray:
    """Return the real values of a constant: float64 of integers with a scale, float32 of float16 and bfloat16.

    Rounded to float32, they are the values that the interpreter's DEQUANTIZE computes. Values without a scale are
    returned as they are stored.

    Args:
        buffers: The buffers of the file.
        source: The constant.
        shape: Its dense shape; see `stored_values`.
        tensors: The tensors of its subgraph, which may contain its scales.

    Raises:
        InputError: As in `stored_values`.
        FlatbufferError: As in `stored_values`, or its scales are damaged.
    """
    values, dtype = stored_values(buffers, source, shape), TENSOR_TYPES[source.type]
    if has_blocks(source):
        return values * _block_scales(buffers, source, shape, tensors)
    if dtype == "float16":
        return values.astype(np.float32)
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    quantization = source.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale) or values.dtype.kind == "f":
        return values
    scale = np.asarray(quantization.scale, np.float32)
    zero_point = np.asarray([] if quantization.zeroPoint is None else quantization.zeroPoint, np.int64)
    if zero_point.size != scale.size:
        zero_point = np.zeros(scale.size, np.int64)
    if scale.size > 1:
        along = [1] * values.ndim
        along[quantization.quantizedDimension] = -1
        scale, zero_point = scale.reshape(along), zero_point.reshape(along)
    return (values.astype(np.int64) - zero_point).astype(np.float64) * scale


def _block_scales(
    buffers: Sequence[Any], source: Any, shape: tuple[int, ...], tensors: Sequence[Any]
) -> NDArray[np.float64]:
    """Return the scale of each value of a constant with one for each block of its last axis."""
    details = source.quantization.details
    size, index = details.blockSize, details.scales
    scales, zero_points = (tensors[at] if 0 <= at < len(tensors) else None for at in (index, details.zeroPoints))
    expected = (*shape[:-1], shape[-1] // size) if shape and size > 0 and shape[-1] % size == 0 else None
    dtype = TENSOR_TYPES[scales.type] if scales is not None else None
    content = np.asarray([] if scales is None else buffers[scales.buffer].data, np.uint8)
    # The default index of the zero points is 0, which is an input of the model in files without them.
    if zero_points is not None and buffers[zero_points.buffer].data is not None:
        expected = None
    if expected is None or dtype not in ("float16", "float32"):
        raise FlatbufferError(
            f"tensor {tensor_name(source)!r} of shape {list(shape)} has blocks of {size} values, whose scales are "
            f"tensor {index} ({dtype}): expected blocks that divide the last axis, float16 or float32 scales, and no "
            f"zero points: {DAMAGED}",
            field=tensor_name(source),
        )
    values = _unpacked(content, dtype)
    if values.size != math.prod(expected):
        raise FlatbufferError(
            f"tensor {tensor_name(source)!r} has {values.size} scales, expected {math.prod(expected)}, one for each "
            f"block of {size} values: {DAMAGED}",
            field=tensor_name(source),
            expected=math.prod(expected),
            got=values.size,
        )
    return np.repeat(values.astype(np.float64).reshape(expected), size, axis=-1)


def _unpacked(content: NDArray, dtype: str) -> NDArray:
    """Return the stored values as a flat array; those of fewer than 8 bits are packed from the lowest bits upwards."""
    bits = PACKED_BITS.get(dtype)
    if bits is None:
        stored = np.uint16 if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
        return content[: content.size // np.dtype(stored).itemsize * np.dtype(stored).itemsize].view(stored)
    parts = np.stack([content >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], axis=-1).reshape(-1)
    parts = parts.astype(np.int8)
    return parts if dtype.startswith("u") else parts - ((parts >> (bits - 1)) << bits)


def packed_values(values: NDArray, bits: int) -> NDArray[np.uint8]:
    """Return the bytes of signed integers of `bits` (4 or 2) each, packed from the lowest bits upwards.

    Args:
        values: Integers from -2^(bits - 1) to 2^(bits - 1) - 1, of any shape.
        bits: Bits of a value.
    """
    count = 8 // bits
    padded = np.zeros(-(-values.size // count) * count, np.uint8)
    padded[: values.size] = values.reshape(-1).astype(np.int8).view(np.uint8) & ((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(padded.reshape(-1, count) << shifts, axis=1)


def has_blocks(tensor: Any) -> bool:
    """Check whether a tensor has a scale for each block of its values."""
    return tensor.quantization is not None and tensor.quantization.detailsType == BLOCKWISE


def tensor_name(tensor: Any) -> str:
    """Return the name of a tensor of a ModelT."""
    return tensor.name.decode("utf-8", "replace") if isinstance(tensor.name, bytes) else str(tensor.name)

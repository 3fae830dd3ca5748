# SPDX-License-Identifier: Apache-2.0
"""Operations of `keras.ops` that move, pool or resize, where an ordinary tf_keras layer does the same."""

import math
from collections.abc import Callable

import numpy as np

from tfq.keras_bridge.operations.keras_operation import Call, Made, axes_of, is_graph_tensor


def _reshaped(call: Call, sizes: list[int | None]) -> Made:
    """A Reshape of all but the batch, which every size after the first must tell."""
    before, after = _known(call.sizes("x")[1:]), _known(sizes)
    if not after or -1 in after or before is None or math.prod(after) != math.prod(before):
        return None
    return call.layers.Reshape(after, name=call.name), call["x"]


def _known(sizes: list[int | None]) -> tuple[int, ...] | None:
    return None if None in sizes else tuple(int(size) for size in sizes if size is not None)


def _reshape(call: Call) -> Made:
    shape = call["newshape"]
    if not isinstance(shape, (tuple, list)) or not all(isinstance(size, (int, np.integer)) for size in shape):
        return None
    return _reshaped(call, list(shape[1:])) if call.rank("x") > 1 and len(shape) > 1 and shape[0] == -1 else None


def _expand_dims(call: Call) -> Made:
    new = len(call["axis"]) if isinstance(call["axis"], (tuple, list)) else 1
    axes = axes_of(call["axis"], call.rank("x") + new) if call.rank("x") > 0 else None
    if axes is None or 0 in axes:
        return None
    sizes = call.sizes("x")
    for axis in sorted(axes):
        sizes.insert(axis, 1)
    return _reshaped(call, sizes[1:])


def _squeeze(call: Call) -> Made:
    axes = axes_of(call["axis"], call.rank("x"))
    if axes is None or 0 in axes:
        return None
    return _reshaped(call, [size for axis, size in enumerate(call.sizes("x")) if axis and axis not in axes])


def _permuted(call: Call, order: list[int]) -> Made:
    if order[0] != 0 or len(order) < 2:
        return None
    return call.layers.Permute(tuple(order[1:]), name=call.name), call["x"]


def _transpose(call: Call) -> Made:
    axes = axes_of(call["axes"], call.rank("x"))
    return None if axes is None else _permuted(call, list(axes))


def _swapaxes(call: Call) -> Made:
    axes = axes_of((call["axis1"], call["axis2"]), call.rank("x"))
    if axes is None:
        return None
    order = list(range(call.rank("x")))
    order[axes[0]], order[axes[1]] = axes[1], axes[0]
    return _permuted(call, order)


def _moveaxis(call: Call) -> Made:
    source, destination = (axes_of(call[key], call.rank("x")) for key in ("source", "destination"))
    if source is None or destination is None:
        return None
    order = [axis for axis in range(call.rank("x")) if axis not in source]
    for to, axis in sorted(zip(destination, source, strict=True)):
        order.insert(to, axis)
    return _permuted(call, order)


def _concatenate(call: Call) -> Made:
    tensors = list(call["xs"]) if isinstance(call["xs"], (list, tuple)) else []
    if len(tensors) < 2 or not all(is_graph_tensor(tensor) for tensor in tensors):
        return None
    axes = axes_of(call["axis"], tensors[0].shape.rank or -1)
    twice = len({id(tensor) for tensor in tensors}) < len(tensors)
    if not axes or 0 in axes or twice or len({(tensor.dtype, tensor.shape.rank) for tensor in tensors}) > 1:
        return None
    return call.layers.Concatenate(axis=axes[0], name=call.name), tensors


def _global_pooling(layer: str) -> Callable[[Call], Made]:
    def translate(call: Call) -> Made:
        axes = axes_of(call["axis"], call.rank("x")) if call["axis"] is not None else None
        if not call.is_float("x") or call.rank("x") != 4 or axes is None or sorted(axes) != [1, 2]:
            return None
        if call.values.get("initial") is not None:
            return None
        return (
            getattr(call.layers, layer)(keepdims=bool(call["keepdims"]), data_format="channels_last", name=call.name),
            call["x"],
        )

    return translate


def _pooling(layer: str) -> Callable[[Call], Made]:
    def translate(call: Call) -> Made:
        if not call.is_float("inputs") or call.rank("inputs") != 4 or call["data_format"] != "channels_last":
            return None
        return (
            getattr(call.layers, layer)(
                pool_size=call["pool_size"],
                strides=call["strides"],
                padding=call["padding"],
                data_format="channels_last",
                name=call.name,
            ),
            call["inputs"],
        )

    return translate


def _pad(call: Call) -> Made:
    pads, fill = call["pad_width"], call["constant_values"]
    if call["mode"] != "constant" or fill not in (None, 0) or not call.is_float("x") or call.rank("x") != 4:
        return None
    pads = [tuple(int(size) for size in pair) for pair in pads]
    if len(pads) != 4 or pads[0] != (0, 0) or pads[3] != (0, 0):
        return None
    return call.layers.ZeroPadding2D((pads[1], pads[2]), data_format="channels_last", name=call.name), call["x"]


def _resize(call: Call) -> Made:
    plain = not (call["antialias"] or call["crop_to_aspect_ratio"] or call["pad_to_aspect_ratio"])
    before = _known(call.sizes("images")[1:3]) if call.rank("images") == 4 else None
    if not plain or before is None or call["data_format"] != "channels_last" or not call.is_float("images"):
        return None
    factors = [after / size for after, size in zip(call["size"], before, strict=True)]
    if call["interpolation"] not in ("nearest", "bilinear") or not all(factor.is_integer() for factor in factors):
        return None
    size = tuple(int(factor) for factor in factors)
    return (
        call.layers.UpSampling2D(
            size, interpolation=call["interpolation"], data_format="channels_last", name=call.name
        ),
        call["images"],
    )


SHAPES: dict[str, Callable[[Call], Made]] = {
    "image.Resize": _resize,
    "nn.AveragePool": _pooling("AveragePooling2D"),
    "nn.MaxPool": _pooling("MaxPooling2D"),
    "numpy.Amax": _global_pooling("GlobalMaxPooling2D"),
    "numpy.Concatenate": _concatenate,
    "numpy.ExpandDims": _expand_dims,
    "numpy.Max": _global_pooling("GlobalMaxPooling2D"),
    "numpy.Mean": _global_pooling("GlobalAveragePooling2D"),
    "numpy.Moveaxis": _moveaxis,
    "numpy.Pad": _pad,
    "numpy.Reshape": _reshape,
    "numpy.Squeeze": _squeeze,
    "numpy.Swapaxes": _swapaxes,
    "numpy.Transpose": _transpose,
}

# SPDX-License-Identifier: Apache-2.0
"""Operations of `keras.ops` that move, pool or resize, if an ordinary tf_keras layer computes the same."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tfq.keras_bridge.operations.data import BatchSize
from tfq.keras_bridge.operations.keras_operation import Call, LayerCall, axes_of, is_graph_tensor
from tfq.keras_bridge.untranslatable import Untranslatable


def _reshaped(call: Call, sizes: list[int | None]) -> LayerCall:
    """Return a Reshape to `sizes`, which exclude the batch; all sizes after the batch must be known."""
    input_sizes, output_sizes = _fixed_sizes(call.sizes("x")[1:]), _fixed_sizes(sizes)
    if (
        not output_sizes
        or -1 in output_sizes
        or input_sizes is None
        or math.prod(output_sizes) != math.prod(input_sizes)
    ):
        return None
    return call.layers.Reshape(output_sizes, name=call.name), call["x"]


def _fixed_sizes(sizes: list[int | None]) -> tuple[int, ...] | None:
    return None if None in sizes else tuple(int(size) for size in sizes if size is not None)


def _reshape(call: Call) -> LayerCall:
    shape = call["newshape"]
    if not isinstance(shape, (tuple, list)) or not all(isinstance(size, (int, np.integer)) for size in shape):
        return None
    return _reshaped(call, list(shape[1:])) if call.rank("x") > 1 and len(shape) > 1 and shape[0] == -1 else None


def _expand_dims(call: Call) -> LayerCall:
    num_new = len(call["axis"]) if isinstance(call["axis"], (tuple, list)) else 1
    axes = axes_of(call["axis"], call.rank("x") + num_new) if call.rank("x") > 0 else None
    if axes is None or 0 in axes:
        return None
    sizes = call.sizes("x")
    for axis in sorted(axes):
        sizes.insert(axis, 1)
    return _reshaped(call, sizes[1:])


def _squeeze(call: Call) -> LayerCall:
    axes = axes_of(call["axis"], call.rank("x"))
    if axes is None or 0 in axes:
        return None
    return _reshaped(call, [size for axis, size in enumerate(call.sizes("x")) if axis and axis not in axes])


def _permuted(call: Call, order: list[int]) -> LayerCall:
    if order[0] != 0 or len(order) < 2:
        return None
    return call.layers.Permute(tuple(order[1:]), name=call.name), call["x"]


def _transpose(call: Call) -> LayerCall:
    axes = axes_of(call["axes"], call.rank("x"))
    return None if axes is None else _permuted(call, list(axes))


def _swapaxes(call: Call) -> LayerCall:
    axes = axes_of((call["axis1"], call["axis2"]), call.rank("x"))
    if axes is None:
        return None
    order = list(range(call.rank("x")))
    order[axes[0]], order[axes[1]] = axes[1], axes[0]
    return _permuted(call, order)


def _moveaxis(call: Call) -> LayerCall:
    source, destination = (axes_of(call[key], call.rank("x")) for key in ("source", "destination"))
    if source is None or destination is None:
        return None
    order = [axis for axis in range(call.rank("x")) if axis not in source]
    for target, axis in sorted(zip(destination, source, strict=True)):
        order.insert(target, axis)
    return _permuted(call, order)


def _concatenate(call: Call) -> LayerCall:
    tensors = list(call["xs"]) if isinstance(call["xs"], (list, tuple)) else []
    if len(tensors) < 2 or not all(is_graph_tensor(tensor) for tensor in tensors):
        return None
    axes = axes_of(call["axis"], tensors[0].shape.rank or -1)
    has_duplicates = len({id(tensor) for tensor in tensors}) < len(tensors)
    if not axes or 0 in axes or has_duplicates or len({(tensor.dtype, tensor.shape.rank) for tensor in tensors}) > 1:
        return None
    return call.layers.Concatenate(axis=axes[0], name=call.name), tensors


def _global_pooling(layer: str) -> Callable[[Call], LayerCall]:
    def translate(call: Call) -> LayerCall:
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


def _pooling(layer: str) -> Callable[[Call], LayerCall]:
    def translate(call: Call) -> LayerCall:
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


def _pad(call: Call) -> LayerCall:
    padding, padding_value = call["pad_width"], call["constant_values"]
    if call["mode"] != "constant" or padding_value not in (None, 0) or not call.is_float("x") or call.rank("x") != 4:
        return None
    padding = [tuple(int(size) for size in pair) for pair in padding]
    if len(padding) != 4 or padding[0] != (0, 0) or padding[3] != (0, 0):
        return None
    return call.layers.ZeroPadding2D((padding[1], padding[2]), data_format="channels_last", name=call.name), call["x"]


def _resize(call: Call) -> LayerCall:
    is_plain = not (call["antialias"] or call["crop_to_aspect_ratio"] or call["pad_to_aspect_ratio"])
    input_sizes = _fixed_sizes(call.sizes("images")[1:3]) if call.rank("images") == 4 else None
    if not is_plain or input_sizes is None or call["data_format"] != "channels_last" or not call.is_float("images"):
        return None
    factors = [output_size / size for output_size, size in zip(call["size"], input_sizes, strict=True)]
    if call["interpolation"] not in ("nearest", "bilinear") or not all(factor.is_integer() for factor in factors):
        return None
    size = tuple(int(factor) for factor in factors)
    return (
        call.layers.UpSampling2D(
            size, interpolation=call["interpolation"], data_format="channels_last", name=call.name
        ),
        call["images"],
    )


SHAPES: dict[str, Callable[[Call], LayerCall]] = {
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


# Operation -> the parameter that is a shape. `ops.shape(x)[0]` is None in a functional graph, which Keras 3 cannot run:
# TensorFlow does not accept None as a size.
_SHAPE_PARAMETERS = {"Reshape": "newshape", "BroadcastTo": "shape", "Full": "shape"}


def shape_with_none(operation: Any) -> tuple[Any, ...] | None:
    """Return the shape that is a parameter of an operation if it contains None; otherwise None."""
    shape = getattr(operation, _SHAPE_PARAMETERS.get(type(operation).__name__, ""), None)
    return tuple(shape) if isinstance(shape, (list, tuple)) and None in shape else None


def without_none(operation: Any, values: dict[str, Any], output: Any, batch: Any) -> dict[str, Any]:
    """Return the parameters of an operation with a size for the batch instead of None.

    Args:
        operation: The operation.
        values: Its parameters.
        output: Its symbolic output.
        batch: A tensor of the graph whose axis 0 is the batch.

    Raises:
        Untranslatable: Another size than the batch is None.
    """
    shape = shape_with_none(operation)
    if shape is None:
        return values
    if type(operation).__name__ == "Reshape":
        sizes = reshape_target(tuple(output.shape), tuple(output.shape))
        if sizes is not None:
            return {**values, "newshape": sizes}
    if shape.index(None) > 0 or shape.count(None) > 1:
        raise Untranslatable(
            f"its shape {shape} has an unknown size that is not the batch. Build the model with a fixed size"
        )
    name = _SHAPE_PARAMETERS[type(operation).__name__]
    return {**values, name: (BatchSize(batch, 1, 1), *shape[1:])}


def reshape_target(shape: tuple[int | None, ...], other: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Return the target of a reshape: -1 for the one size that is unknown or depends on the batch size.

    Args:
        shape: The shape of the output.
        other: Its shape with another batch size.

    Returns:
        The target; None if several sizes are unknown.
    """
    sizes = [-1 if size is None or size != other_size else size for size, other_size in zip(shape, other, strict=True)]
    return tuple(sizes) if sizes.count(-1) < 2 else None


@contextlib.contextmanager
def with_batch_size(operations: Iterable[Any], batch_size: int) -> Iterator[None]:
    """Replace None in the shapes of the user's operations by a batch size, so that Keras 3 can run them."""
    shapes = [(operation, shape) for operation in operations if (shape := shape_with_none(operation)) is not None]
    names = [_SHAPE_PARAMETERS[type(operation).__name__] for operation, _ in shapes]
    before = [getattr(operation, name) for (operation, _), name in zip(shapes, names, strict=True)]
    try:
        for (operation, shape), name in zip(shapes, names, strict=True):
            setattr(operation, name, tuple(batch_size if size is None else size for size in shape))
        yield
    finally:
        for (operation, _), name, value in zip(shapes, names, before, strict=True):
            setattr(operation, name, value)

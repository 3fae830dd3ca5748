# SPDX-License-Identifier: Apache-2.0
"""Replace the None that `ops.shape(x)[0]` is in a functional graph, where a shape is a parameter of an operation.

Keras 3 itself cannot run such a graph: TensorFlow does not accept None as a size.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from tfq.keras_bridge.operations.data import BatchSize
from tfq.keras_bridge.untranslatable import Untranslatable

# Operation -> the parameter that is a shape.
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

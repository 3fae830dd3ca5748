# SPDX-License-Identifier: Apache-2.0
"""Serialize the arguments of an operation to plain JSON: tensors by number, everything else by value.

This module imports neither TensorFlow nor Keras. Values that JSON cannot represent become dicts with a tag of tfq. No
tag is `class_name`, so that Keras does not treat a tagged dict as a serialized object when it saves a model.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.keras_bridge.untranslatable import Untranslatable

# Limit of the bytes of one constant. Keras writes larger JSON configs too slowly.
MAX_CONSTANT_BYTES = 64 << 20
_NUMBER_KINDS = "biufc"


@dataclass(frozen=True)
class BatchSize:
    """A number that is proportional to the size of axis 0 of a tensor: size * multiple // divisor.

    Attributes:
        tensor: A tensor of the graph.
        multiple: The number that belongs to the size `divisor`.
        divisor: A size.
    """

    tensor: Any
    multiple: int
    divisor: int


@dataclass(frozen=True, eq=False)
class BatchConstant:
    """A constant with the same values for each example of a batch.

    Attributes:
        row: The values, with size 1 in the axis of the batch.
        shape: The shape, with a `BatchSize`.
    """

    row: np.ndarray
    shape: tuple[Any, ...]


def encode(value: Any, index_of: Callable[[Any], int | None]) -> Any:
    """Return `value` as JSON.

    None, bool, int, float and str stay unchanged. Containers, slices, arrays and tensors become tagged dicts.

    Args:
        value: The value.
        index_of: Returns the number of a tensor of the graph, and None for every other value.

    Raises:
        Untranslatable: The value is not data, but a variable, a function or another object.
    """
    index = index_of(value)
    if index is not None:
        return {"tensor": index}
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, BatchSize):
        return {"batch_size": [index_of(value.tensor), value.multiple, value.divisor]}
    if isinstance(value, (tuple, list)):
        tag = "tuple" if isinstance(value, tuple) else "list"
        return {tag: [encode(item, index_of) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, index_of), encode(item, index_of)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(part, index_of) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    return _encoded_array(value)


def has_batch_size(value: Any) -> bool:
    """Check whether an encoded value contains a BatchSize."""
    if isinstance(value, dict):
        return "batch_size" in value or any(map(has_batch_size, value.values()))
    return isinstance(value, (list, tuple)) and any(map(has_batch_size, value))


def _is_batch_size(content: Any, num_tensors: int) -> bool:
    is_triple = isinstance(content, (list, tuple)) and len(content) == 3
    return is_triple and all(type(n) is int for n in content) and 0 <= content[0] < num_tensors and content[2] > 0


def decode(value: Any, tensors: Sequence[Any], size_of: Callable[[Any], Any] = lambda tensor: tensor.shape[0]) -> Any:
    """Return the value that was passed to `encode`, with `tensors[i]` for tensor number i.

    Args:
        value: The result of `encode`.
        tensors: The tensors.
        size_of: Returns the size of axis 0 of a tensor.

    Raises:
        InputError: `encode` does not write such a value.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "tensor" and isinstance(content, int) and 0 <= content < len(tensors):
            return tensors[content]
        if tag == "batch_size" and _is_batch_size(content, len(tensors)):
            index, multiple, divisor = content
            return size_of(tensors[index]) * multiple // divisor
        if tag == "ellipsis":
            return Ellipsis
        if tag == "array":
            return _decoded_array(content)
        if tag in ("tuple", "list", "dict", "slice") and isinstance(content, (list, tuple)):
            return _decoded_container(tag, content, lambda item: decode(item, tensors, size_of))
    raise InputError(
        f"the file is damaged: the arguments of an operation contain {str(value)[:100]!r}, which tfq does not write",
        field="model",
        got=value,
    )


def _decoded_container(tag: str, content: Sequence[Any], inner: Callable[[Any], Any]) -> Any:
    if tag == "dict":
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in content):
            raise InputError(
                "the file is damaged: expected a list of pairs for a dict in the arguments of an operation",
                field="model",
                expected="a list of pairs",
                got=content,
            )
        return {inner(key): inner(item) for key, item in content}
    items = [inner(item) for item in content]
    if tag == "slice":
        if len(items) != 3:
            raise InputError(
                f"the file is damaged: expected 3 parts for a slice in the arguments of an operation, got {len(items)}",
                field="model",
                expected=3,
                got=len(items),
            )
        return slice(*items)
    return tuple(items) if tag == "tuple" else items


def _encoded_array(value: Any) -> dict[str, Any]:
    # A variable of TensorFlow or Keras: training would change its value, so it cannot become a constant.
    if callable(getattr(value, "assign", None)):
        raise Untranslatable(
            f"it uses the variable {getattr(value, 'name', '?')!r} outside of a layer. Make it a weight of a layer"
        )
    if callable(value) or not (hasattr(value, "__array__") or isinstance(value, np.generic)):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise Untranslatable(f"one of its arguments is a {kind}, which is not data. Use a layer instead")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Untranslatable(
            f"one of its arguments is a {type(value).__name__} that has no value ({error}). Use a layer instead"
        ) from error
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in _NUMBER_KINDS:
        raise Untranslatable(f"one of its arguments is an array of {array.dtype}. Expected numbers")
    if array.nbytes > MAX_CONSTANT_BYTES:
        raise Untranslatable(
            f"it has a constant of {array.nbytes} bytes. At most {MAX_CONSTANT_BYTES} are supported: make it a "
            "weight of a layer"
        )
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"array": {"dtype": array.dtype.str, "shape": list(array.shape), "base64": content}}


def _decoded_array(content: Any) -> np.ndarray:
    try:
        dtype = np.dtype(content["dtype"])
        if dtype.kind not in _NUMBER_KINDS:
            raise ValueError(f"dtype {dtype}")
        flat = np.frombuffer(base64.b64decode(content["base64"], validate=True), dtype)
        return flat.reshape([int(size) for size in content["shape"]])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"the file is damaged: a constant in the arguments of an operation is invalid ({error})",
            field="model",
            got=str(error),
        ) from error

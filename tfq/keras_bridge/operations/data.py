# SPDX-License-Identifier: Apache-2.0
"""What an operation is called with, as plain JSON and back: the tensors by number, all else by value.

No TensorFlow and no Keras. A tag of ours stands for what JSON lacks, and none is called `class_name`, so that neither
Keras takes it for an object of its own when a model is saved.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.keras_bridge.untranslatable import Untranslatable

# Raw bytes of the constants of one operation: what Keras' JSON config can still carry in good time.
MAX_CONSTANT_BYTES = 64 << 20
_NUMBERS = "biufc"


def encode(value: Any, index_of: Callable[[Any], int | None]) -> Any:
    """`value` as JSON: None, bool, int, float, str as they are; containers, slices, arrays and tensors as tagged dicts.

    index_of: the number of a tensor of the graph, or None for all that is no such tensor.
    Raises Untranslatable for what is no data: a variable, a function, an object.
    """
    index = index_of(value)
    if index is not None:
        return {"tensor": index}
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic)):
        return value
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


def decode(value: Any, tensors: Sequence[Any]) -> Any:
    """What `encode` was given, with `tensors[i]` where tensor number i stood.

    Raises InputError when it is nothing that `encode` writes.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "tensor" and isinstance(content, int) and 0 <= content < len(tensors):
            return tensors[content]
        if tag == "ellipsis":
            return Ellipsis
        if tag == "array":
            return _decoded_array(content)
        if tag in ("tuple", "list", "dict", "slice") and isinstance(content, (list, tuple)):
            return _decoded_container(tag, content, tensors)
    raise InputError(
        f"the arguments of an operation hold {str(value)[:100]!r}, which tfq does not write: damaged file",
        field="model",
        got=value,
    )


def _decoded_container(tag: str, content: Sequence[Any], tensors: Sequence[Any]) -> Any:
    if tag == "dict":
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in content):
            raise InputError(
                "a dict among the arguments of an operation is no list of pairs: damaged file",
                field="model",
                expected="a list of pairs",
                got=content,
            )
        return {decode(key, tensors): decode(item, tensors) for key, item in content}
    items = [decode(item, tensors) for item in content]
    if tag == "slice":
        if len(items) != 3:
            raise InputError(
                f"a slice among the arguments of an operation has {len(items)} parts, expected 3",
                field="model",
                expected=3,
                got=len(items),
            )
        return slice(*items)
    return tuple(items) if tag == "tuple" else items


def _encoded_array(value: Any) -> dict[str, Any]:
    # Variables of TensorFlow and of either Keras: their value now is not what training would make of it.
    if callable(getattr(value, "assign", None)):
        raise Untranslatable(
            f"it uses the variable {getattr(value, 'name', '?')!r} outside of any layer: make it a weight of a layer"
        )
    if callable(value) or not (hasattr(value, "__array__") or isinstance(value, np.generic)):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise Untranslatable(f"it is called with a {kind}, which is no data: use a layer in its place")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Untranslatable(
            f"it is called with a {type(value).__name__} that has no value ({error}): use a layer in its place"
        ) from error
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in _NUMBERS:
        raise Untranslatable(f"it is called with an array of {array.dtype}: expected numbers")
    if array.nbytes > MAX_CONSTANT_BYTES:
        raise Untranslatable(
            f"it holds a constant of {array.nbytes} bytes, more than {MAX_CONSTANT_BYTES}: make it a weight of a layer"
        )
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"array": {"dtype": array.dtype.str, "shape": list(array.shape), "base64": content}}


def _decoded_array(content: Any) -> np.ndarray:
    try:
        dtype = np.dtype(content["dtype"])
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"dtype {dtype}")
        flat = np.frombuffer(base64.b64decode(content["base64"], validate=True), dtype)
        return flat.reshape([int(size) for size in content["shape"]])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"a constant among the arguments of an operation is damaged ({error})", field="model", got=str(error)
        ) from error

# SPDX-License-Identifier: Apache-2.0
"""Translate an operation of `keras.ops` in a functional graph to a tf_keras layer that computes the same.

If an ordinary tf_keras layer is equivalent, which tfmot supports, the result is that layer: see `ORDINARY`. Every other
operation becomes a KerasOperation (keras_operation.py), which tfmot can clone and .h5 files can store.
"""

import inspect
from collections.abc import Callable
from typing import Any

from tfq.keras_bridge.operations.elementwise import ELEMENTWISE
from tfq.keras_bridge.operations.keras_operation import (
    Call,
    LayerCall,
    is_graph_tensor,
    operation_kind,
    operation_layer,
    parameters,
    scalar_constant,
)
from tfq.keras_bridge.operations.shapes import SHAPES

# Operations that an ordinary tf_keras layer may compute. A function returns None if it cannot for the arguments.
ORDINARY: dict[str, Callable[[Call], LayerCall]] = {**ELEMENTWISE, **SHAPES}


def translate_operation(
    operation: Any, args: tuple, kwargs: dict[str, Any], name: str, values: dict[str, Any] | None = None
) -> Any:
    """Return the tf_keras tensors that one call of `operation` gives, in the operation's structure.

    Args:
        operation: A `keras.Operation` of a Keras 3 functional graph that is not a layer.
        args: Positional arguments of its node, with a tf_keras symbolic tensor for each Keras 3 tensor.
        kwargs: Keyword arguments of its node, likewise.
        name: The name of the layer.
        values: The operation's `parameters`, if they are not the recorded ones.

    Raises:
        Untranslatable: The operation runs Python functions, is not part of Keras, or uses a variable.
    """
    kind = operation_kind(operation)
    values = parameters(operation) if values is None else values
    bound = inspect.signature(type(operation).call).bind(operation, *args, **kwargs)
    bound.apply_defaults()
    call_arguments = dict(list(bound.arguments.items())[1:])
    kind, call_arguments, args, kwargs = _square_to_product(kind, call_arguments, args, kwargs)
    ordinary = ORDINARY.get(kind)
    # An operation of Keras 3 does not pass on a mask, but tf_keras' layers would.
    if ordinary is not None and not _has_mask((args, kwargs)):
        built = ordinary(Call(values={**values, **call_arguments}, name=name))
        if built is not None:
            layer, inputs = built
            return layer(inputs)
    return operation_layer(kind, values, args, kwargs, name)


def _square_to_product(kind: str, call_arguments: dict[str, Any], args: tuple, kwargs: dict[str, Any]) -> tuple:
    """Replace a square by x * x, because TFLite has an int8 kernel for the product and none for the square."""
    squared = kind == "numpy.Square" or (kind == "numpy.Power" and scalar_constant(call_arguments["x2"]) == 2)
    base = call_arguments.get("x", call_arguments.get("x1"))
    if squared and is_graph_tensor(base):
        return "numpy.Multiply", {"x1": base, "x2": base}, (base, base), {}
    return kind, call_arguments, args, kwargs


def _has_mask(nest: Any) -> bool:
    if isinstance(nest, dict):
        return any(_has_mask(item) for item in nest.values())
    if isinstance(nest, (tuple, list)):
        return any(_has_mask(item) for item in nest)
    return is_graph_tensor(nest) and getattr(nest, "_keras_mask", None) is not None

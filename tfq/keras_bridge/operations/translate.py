# SPDX-License-Identifier: Apache-2.0
"""Translate an operation of `keras.ops` in a functional graph to a tf_keras layer that computes the same.

Where tf_keras has a layer of its own it is that one, which tfmot knows: `ORDINARY` says which, and when. Everything
else becomes a KerasOperation (keras_operation.py), which tfmot can clone and .h5 can hold all the same.
"""

import inspect
from collections.abc import Callable
from typing import Any

from tfq.keras_bridge.operations.elementwise import ELEMENTWISE
from tfq.keras_bridge.operations.keras_operation import (
    Call,
    Made,
    is_graph_tensor,
    number_of,
    operation_kind,
    operation_layer,
    parameters,
)
from tfq.keras_bridge.operations.shapes import SHAPES

# Operations that an ordinary tf_keras layer may compute; each says None where its arguments are not such.
ORDINARY: dict[str, Callable[[Call], Made]] = {**ELEMENTWISE, **SHAPES}


def translate_operation(operation: Any, args: tuple, kwargs: dict[str, Any], name: str) -> Any:
    """The tf_keras tensors (nested as the operation nests its outputs) that one call of `operation` gives.

    operation: a `keras.Operation` of a Keras 3 functional graph that is no layer. args, kwargs: its node's arguments,
    with a tf_keras symbolic tensor in place of each Keras 3 one. name: of the one layer that is made.
    Raises Untranslatable for operations that run Python functions, that the user wrote, or that use a variable.
    """
    kind = operation_kind(operation)
    made_with = parameters(operation)
    bound = inspect.signature(type(operation).call).bind(operation, *args, **kwargs)
    bound.apply_defaults()
    provided = dict(list(bound.arguments.items())[1:])
    kind, provided, args, kwargs = _as_product(kind, provided, args, kwargs)
    ordinary = ORDINARY.get(kind)
    # A mask ends at an operation of Keras 3, and tf_keras' layers would hand it on.
    if ordinary is not None and not _masked((args, kwargs)):
        built = ordinary(Call(values={**made_with, **provided}, name=name))
        if built is not None:
            layer, inputs = built
            return layer(inputs)
    return operation_layer(kind, made_with, args, kwargs, name)


def _as_product(kind: str, provided: dict[str, Any], args: tuple, kwargs: dict[str, Any]) -> tuple:
    """x * x for a square, which TFLite has no int8 kernel for, and it has one for the product."""
    squared = kind == "numpy.Square" or (kind == "numpy.Power" and number_of(provided["x2"]) == 2)
    base = provided.get("x", provided.get("x1"))
    if squared and is_graph_tensor(base):
        return "numpy.Multiply", {"x1": base, "x2": base}, (base, base), {}
    return kind, provided, args, kwargs


def _masked(nest: Any) -> bool:
    if isinstance(nest, dict):
        return any(_masked(item) for item in nest.values())
    if isinstance(nest, (tuple, list)):
        return any(_masked(item) for item in nest)
    return is_graph_tensor(nest) and getattr(nest, "_keras_mask", None) is not None

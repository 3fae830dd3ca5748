# SPDX-License-Identifier: Apache-2.0
"""Copy the weights of the user's layers to the rebuilt model, and trained weights back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfq.errors import TfqError


def short_name(variable: Any) -> str:
    """Return the last part of a variable's name: "kernel" for "conv/kernel:0"."""
    return variable.name.split("/")[-1].split(":")[0]


def matched(source: Sequence[Any], target: Sequence[Any], where: str) -> list[int]:
    """Return, for each variable of `target`, the index of the corresponding variable of `source`.

    Variables correspond if they have the same short name; equal names correspond in order. If the names of the two
    lists differ, all variables correspond in order.

    Args:
        source: Variables of the user's layer.
        target: Variables of the tf_keras layer.
        where: The layer, for messages.

    Raises:
        TfqError: The numbers or the shapes of the variables do not match.
    """
    if len(source) != len(target):
        raise TfqError(
            f"{where}: expected the {len(source)} weights of the user's layer in its tf_keras layer, got {len(target)}",
            field="model",
            expected=len(source),
            got=len(target),
        )
    if sorted(map(short_name, source)) == sorted(map(short_name, target)):
        indices: dict[str, list[int]] = {}
        for index, variable in enumerate(source):
            indices.setdefault(short_name(variable), []).append(index)
        order = [indices[short_name(variable)].pop(0) for variable in target]
    else:
        order = list(range(len(target)))
    for index, variable in zip(order, target, strict=True):
        if tuple(source[index].shape) != tuple(variable.shape):
            raise TfqError(
                f"{where}: expected the shape {tuple(source[index].shape)} for the weight {short_name(source[index])} "
                f"of the tf_keras layer, got {tuple(variable.shape)}",
                field="model",
                expected=tuple(source[index].shape),
                got=tuple(variable.shape),
            )
    return order


def array_of(variable: Any) -> Any:
    """Return the variable's value with the same shape; other float dtypes become float32."""
    import tensorflow as tf

    value = tf.convert_to_tensor(variable)
    if value.dtype in (tf.bfloat16, tf.float16, tf.float64):
        value = tf.cast(value, tf.float32)
    return np.asarray(value)


def copy_weights(source: Any, translation: Any, where: str) -> None:
    """Copy the weights of the user's layer to the tf_keras layers that it became."""
    if not translation.weighted:
        return
    source = source if translation.owner is None else translation.owner
    arrays = [array_of(variable) for variable in source.weights]
    if translation.forward is not None:
        arrays = translation.forward(arrays)
    else:
        [target] = translation.weighted
        arrays = [arrays[index] for index in matched(source.weights, target.weights, where)]
    for target in translation.weighted:
        count = len(target.weights)
        target.set_weights(arrays[:count])
        arrays = arrays[count:]


def trained_weights(trained: Any, target: Any, where: str) -> list[Any]:
    """Return the variables of `trained` that correspond to those of `target`, in the order of `target`.

    A wrapper also has its own variables, and a fake-quantized layer has moved its kernel to the wrapper. Therefore
    variables are matched by short name and shape.

    Args:
        trained: A layer of a trained copy, or tfmot's wrapper of it.
        target: The layer of the bridged model.
        where: The layer, for messages.

    Raises:
        TfqError: A variable is missing.
    """
    candidates = list({id(v): v for v in [*trained.weights, *_inner(trained)]}.values())
    results = []
    for variable in target.weights:
        match = next(
            (
                c
                for c in candidates
                if short_name(c) == short_name(variable) and tuple(c.shape) == tuple(variable.shape)
            ),
            None,
        )
        if match is None:
            raise TfqError(
                f"{where}: the trained layer {trained.name!r} has no weight {short_name(variable)} of the shape "
                f"{tuple(variable.shape)}. Expected a copy of the bridged model's layer",
                field="trained",
                expected=tuple(variable.shape),
                got=trained.name,
            )
        candidates = [candidate for candidate in candidates if candidate is not match]
        results.append(match)
    return results


def _inner(layer: Any) -> list[Any]:
    inner = getattr(layer, "layer", None)
    return list(inner.weights) if inner is not None else []


def returned_weights(source: Any, arrays: list[Any], translation: Any, where: str) -> list[tuple[Any, Any]]:
    """Return (variable of the user's layer, new value) for the trained weights of `translation.weighted`."""
    source = source if translation.owner is None else translation.owner
    if translation.back is not None:
        return list(zip(source.weights, translation.back(arrays), strict=True))
    [target] = translation.weighted
    order = matched(source.weights, target.weights, where)
    return [(source.weights[index], value) for index, value in zip(order, arrays, strict=True)]


def assign(pairs: list[tuple[Any, Any]]) -> None:
    """Assign a value to each variable.

    Raises:
        TfqError: A variable has two different values. Nothing has been assigned then.
    """
    planned: dict[int, Any] = {}
    for variable, value in pairs:
        other = planned.setdefault(id(variable), value)
        if not np.allclose(other, value, rtol=1e-4, atol=1e-6):
            raise TfqError(
                f"weight {variable.name!r} is shared by several layers of the user's model, and training changed its "
                "copies differently. Freeze them (trainable=False) in the bridged model, or use one layer",
                field="trained",
                expected="equal copies of a weight",
                got=variable.name,
            )
    for variable, value in pairs:
        variable.assign(value)


def model_weights(source: Any, target: Any, rebuilt: Any) -> tuple[Callable, Callable]:
    """Return `forward` and `back` of the Translation of a layer around a model.

    A weight that became a constant stays unchanged when weights are copied back.

    Args:
        source: The user's layer.
        target: The tf_keras layer around `rebuilt.model`.
        rebuilt: The translation of the inner model.
    """

    def order() -> list[int]:
        positions = {id(variable): index for index, variable in enumerate(source.weights)}
        source_indices: dict[int, int] = {}
        for layer, built in rebuilt.by_layer.values():
            translation = built.translation
            if not translation.weighted:
                continue
            if translation.forward is not None:
                raise TfqError(
                    f"layer {source.name!r}: its inner layer {built.path!r} has a translation with a `forward` "
                    "function, which tfq does not support inside another layer",
                    field="model",
                    got=built.path,
                )
            owner, [inner] = translation.owner or layer, translation.weighted
            for index, variable in zip(matched(owner.weights, inner.weights, built.path), inner.weights, strict=True):
                source_indices[id(variable)] = positions[id(owner.weights[index])]
        return [source_indices[id(variable)] for variable in target.weights]

    def forward(arrays: list[Any]) -> list[Any]:
        return [arrays[index] for index in order()]

    def back(arrays: list[Any]) -> list[Any]:
        values = [array_of(variable) for variable in source.weights]
        for index, array in zip(order(), arrays, strict=True):
            values[index] = array
        return values

    return forward, back

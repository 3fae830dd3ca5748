# SPDX-License-Identifier: Apache-2.0
"""Weights of the user's layers into those of the rebuilt model, and back again from what was trained."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfq.errors import TfqError


def tail(variable: Any) -> str:
    """The last word of a variable's name: "conv/kernel:0" -> "kernel"."""
    return variable.name.split("/")[-1].split(":")[0]


def matched(theirs: Sequence[Any], ours: Sequence[Any], where: str) -> list[int]:
    """For each variable of `ours` the index of its equal in `theirs`: by its last word, equal words in their order.

    Where the words differ altogether the order alone decides. Raises TfqError when the shapes do not agree.
    """
    if len(theirs) != len(ours):
        raise TfqError(
            f"{where}: {len(theirs)} weights in the user's layer and {len(ours)} in tf_keras' one",
            field="model",
            expected=len(theirs),
            got=len(ours),
        )
    if sorted(map(tail, theirs)) == sorted(map(tail, ours)):
        waiting: dict[str, list[int]] = {}
        for index, variable in enumerate(theirs):
            waiting.setdefault(tail(variable), []).append(index)
        order = [waiting[tail(variable)].pop(0) for variable in ours]
    else:
        order = list(range(len(ours)))
    for index, variable in zip(order, ours, strict=True):
        if tuple(theirs[index].shape) != tuple(variable.shape):
            raise TfqError(
                f"{where}: its weight {tail(theirs[index])} has the shape {tuple(theirs[index].shape)}, and "
                f"{tuple(variable.shape)} in tf_keras' layer",
                field="model",
                expected=tuple(theirs[index].shape),
                got=tuple(variable.shape),
            )
    return order


def array_of(variable: Any) -> Any:
    """The variable's value, (its shape), float32 where it was a narrower or wider float."""
    import tensorflow as tf

    value = tf.convert_to_tensor(variable)
    if value.dtype in (tf.bfloat16, tf.float16, tf.float64):
        value = tf.cast(value, tf.float32)
    return np.asarray(value)


def copy_weights(theirs: Any, translation: Any, where: str) -> None:
    """The weights of the user's layer into the tf_keras layers that it became."""
    if not translation.weighted:
        return
    theirs = theirs if translation.owner is None else translation.owner
    arrays = [array_of(variable) for variable in theirs.weights]
    if translation.forward is not None:
        arrays = translation.forward(arrays)
    else:
        [ours] = translation.weighted
        arrays = [arrays[index] for index in matched(theirs.weights, ours.weights, where)]
    for ours in translation.weighted:
        count = len(ours.weights)
        ours.set_weights(arrays[:count])
        arrays = arrays[count:]


def carried_weights(trained: Any, ours: Any, where: str) -> list[Any]:
    """The variables in `trained` (a layer of a trained copy, or a wrapper of tfmot's around it) that are those of
    `ours`, the layer of the bridged model, in its order.

    A wrapper has variables of its own as well, and a fake-quantized layer has given its kernel to the wrapper: they
    are found by their last word and shape. Raises TfqError when one is missing.
    """
    candidates = list({id(v): v for v in [*trained.weights, *_inner(trained)]}.values())
    results = []
    for variable in ours.weights:
        match = next(
            (c for c in candidates if tail(c) == tail(variable) and tuple(c.shape) == tuple(variable.shape)), None
        )
        if match is None:
            raise TfqError(
                f"{where}: the trained layer {trained.name!r} has no weight {tail(variable)} of the shape "
                f"{tuple(variable.shape)}: it is not a copy of the bridged model's layer",
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


def given_back(theirs: Any, arrays: list[Any], translation: Any, where: str) -> list[tuple[Any, Any]]:
    """(variable of the user's layer, its new value) for `arrays`, the trained weights of `translation.weighted`."""
    theirs = theirs if translation.owner is None else translation.owner
    if translation.back is not None:
        return list(zip(theirs.weights, translation.back(arrays), strict=True))
    [ours] = translation.weighted
    order = matched(theirs.weights, ours.weights, where)
    return [(theirs.weights[index], value) for index, value in zip(order, arrays, strict=True)]


def assign(pairs: list[tuple[Any, Any]]) -> None:
    """Each variable becomes its value. Raises TfqError, before any does, when one is given two that differ."""
    planned: dict[int, Any] = {}
    for variable, value in pairs:
        other = planned.setdefault(id(variable), value)
        if not np.allclose(other, value, rtol=1e-4, atol=1e-6):
            raise TfqError(
                f"weight {variable.name!r} belongs to several layers of the user's model, and their copies were "
                "trained apart: freeze them (trainable=False) in the bridged model, or use one layer for them",
                field="trained",
                expected="equal copies of a weight",
                got=variable.name,
            )
    for variable, value in pairs:
        variable.assign(value)


def model_weights(theirs: Any, ours: Any, rebuilt: Any) -> tuple[Callable, Callable]:
    """The two functions of a Translation for a layer around a model: `theirs` around the user's, `ours` around
    `rebuilt.model`. A weight that became a constant is left as it is on the way back."""

    def order() -> list[int]:
        places = {id(variable): index for index, variable in enumerate(theirs.weights)}
        of_ours: dict[int, int] = {}
        for layer, built in rebuilt.by_layer.values():
            translation = built.translation
            if not translation.weighted:
                continue
            if translation.forward is not None:
                raise TfqError(
                    f"layer {theirs.name!r}: its inner layer {built.path!r} has a separate translator",
                    field="model",
                    got=built.path,
                )
            owner, [twin] = translation.owner or layer, translation.weighted
            for index, variable in zip(matched(owner.weights, twin.weights, built.path), twin.weights, strict=True):
                of_ours[id(variable)] = places[id(owner.weights[index])]
        return [of_ours[id(variable)] for variable in ours.weights]

    def forward(arrays: list[Any]) -> list[Any]:
        return [arrays[index] for index in order()]

    def back(arrays: list[Any]) -> list[Any]:
        values = [array_of(variable) for variable in theirs.weights]
        for index, array in zip(order(), arrays, strict=True):
            values[index] = array
        return values

    return forward, back

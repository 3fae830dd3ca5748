# SPDX-License-Identifier: Apache-2.0
"""Remove the branches of residual sums, so that a block passes its input on.

A residual sum adds two tensors: what a branch of layers computes, and the input of the branch, unchanged or after a
projection. Without the branch, the sum is the other tensor. Kernels compute several channels at once, so that a layer
with fewer channels may cost as much as before; a removed branch costs nothing.

If the sum is followed by an activation that the other tensor already has, as in ResNet, this activation is removed too:
a second ReLU changes nothing, but in a quantized model it is an op that may take as long as a convolution.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tfq.compression.graph import cloned, reconnected
from tfq.errors import InputError
from tfq.keras_bridge import import_tf_keras
from tfq.patterns import check_selection, fits

_FIELD = "compression.structured_pruning.branches"


def without_branches(model: Any, patterns: Sequence[str]) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """Return a model without the branches of some residual sums, and {sum: layers that are gone}.

    Without patterns it is the model itself, otherwise a copy.

    The branch is the input of the sum that depends on more layers of which the other input is independent.

    Args:
        model: A functional or sequential tf_keras model. Its layers must not be called in any other graph.
        patterns: Name patterns of the sums: Add layers with two inputs.

    Raises:
        InputError: A pattern matches no residual sum, both inputs of a sum have as many of these layers, or the
            inputs do not have the same shape.
    """
    if not patterns:
        return model, {}
    sums = {layer.name: layer for layer in model.layers if _is_sum(layer)}
    reasons = {layer.name: None if layer.name in sums else "it does not add two tensors" for layer in model.layers}
    check_selection(
        "structured_pruning: branches",
        patterns,
        reasons,
        field=_FIELD,
        layers="residual sum (an Add layer with two inputs)",
    )
    shortcuts = {name: _shortcut(layer) for name, layer in sums.items() if fits(name, patterns)}
    repeated = {name: after for name, place in shortcuts.items() if (after := _repeated(sums[name], place))}

    def replaced(layer: Any) -> list[Any]:
        if isinstance(layer, import_tf_keras().layers.InputLayer):
            return []
        if layer.name in repeated.values():
            return [lambda tensor: tensor]
        place = shortcuts.get(layer.name)
        return [layer] if place is None else [lambda tensors: tensors[place]]

    small, _ = cloned(reconnected(model, replaced))
    remaining = {layer.name for layer in small.layers}
    gone = [layer.name for layer in model.layers if layer.name not in remaining and layer.name not in shortcuts]
    before = {name: _ancestors(layer.input) for name, layer in sums.items()}
    removed: dict[str, tuple[str, ...]] = {}
    for name in shortcuts:  # in the order of the graph: a layer belongs to the first sum that it led to
        counted = set(itertools.chain(*removed.values()))
        own = before[name] | {repeated.get(name)}
        removed[name] = tuple(item for item in gone if item in own and item not in counted)
    return small, removed


def readers_of(model: Any, names: Iterable[str], is_reader: Callable[[Any], bool]) -> set[str]:
    """Return the layers with `is_reader(layer)` that the outputs of layers reach without passing another such layer."""
    waiting = [model.get_layer(name) for name in names]
    seen, found = {id(layer) for layer in waiting}, set[str]()
    while waiting:
        for node in waiting.pop().outbound_nodes:
            if id(node.layer) in seen:
                continue
            seen.add(id(node.layer))
            if is_reader(node.layer):
                found.add(node.layer.name)
            else:
                waiting.append(node.layer)
    return found


def _is_sum(layer: Any) -> bool:
    is_add = type(layer) is import_tf_keras().layers.Add and len(layer.inbound_nodes) == 1
    return is_add and len(layer.inbound_nodes[0].keras_inputs) == 2


def _shortcut(layer: Any) -> int:
    """Return which input of a sum remains: 0 or 1."""
    tensors = layer.inbound_nodes[0].keras_inputs
    if tuple(tensors[0].shape) != tuple(tensors[1].shape):
        raise _ambiguous(layer, f"its inputs have the shapes {tensors[0].shape} and {tensors[1].shape}")
    one, other = (_ancestors(tensor) for tensor in tensors)
    if len(one - other) == len(other - one):
        raise _ambiguous(layer, f"each of its inputs has {len(one - other)} layers that the other does not need")
    return int(len(one - other) > len(other - one))


def _repeated(layer: Any, place: int) -> str | None:
    """Return the activation after a sum that does not change input `place` of the sum, or None."""
    import tensorflow as tf

    tensor, nodes = layer.inbound_nodes[0].keras_inputs[place], layer.outbound_nodes
    after = nodes[0].layer if len(nodes) == 1 else None
    if after is None or type(after).__name__ not in ("Activation", "ReLU") or len(after.inbound_nodes) != 1:
        return None
    maker = tensor.node.layer
    activation = getattr(maker, "activation", None) or (maker if type(maker).__name__ == "ReLU" else None)
    if activation is None:
        return None
    values = activation(tf.constant(np.random.default_rng(0).normal(0, 4, (64, tensor.shape[-1])), tf.float32))
    return after.name if np.array_equal(after(values), values) else None


def _ambiguous(layer: Any, reason: str) -> InputError:
    return InputError(
        f"structured_pruning: {layer.name!r} has no branch that can be removed: {reason}. Leave it out of branches",
        field=_FIELD,
        expected="a sum of a branch and its input",
        got=layer.name,
    )


def _ancestors(tensors: Any) -> set[str]:
    """Return the names of the layers that tensors depend on."""
    import tensorflow as tf

    waiting, seen, names = list(tf.nest.flatten(tensors)), set[int](), set[str]()
    while waiting:
        node = waiting.pop().node
        if id(node) not in seen:
            seen.add(id(node))
            names.add(node.layer.name)
            waiting.extend(node.keras_inputs)
    return names

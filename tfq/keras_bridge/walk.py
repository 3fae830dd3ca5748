# SPDX-License-Identifier: Apache-2.0
"""Walk the functional graph of either Keras: the calls of layers and operations, and their names.

The functions read the nodes, not the config. A config does not contain the arguments of operations and which node of a
shared layer is used. Private symbols, read in keras 3.15.1 and tf_keras 2.21.0: `_nodes_by_depth`, `_keras_history` and
`_flatten_layers` of both; in Keras 3 `_functional` of a Sequential, `_inputs_struct` and `_outputs_struct`,
`node.operation`, `node.arguments.{args,kwargs,keras_tensors}`, `node.outputs`, and `_keras_mask` of a tensor; in
tf_keras `node.layer`, `node.call_args`, `node.call_kwargs`, `node.outputs`, `_nested_inputs` and `_nested_outputs`.
test_keras_bridge_refusals.py fails if one of them changes.
"""

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_keras, import_tf_keras, model_kind

# Matches characters that are not valid in a TensorFlow name scope, and the slash: tf_keras uses layer names in variable
# names and in .h5 groups.
_INVALID_CHARACTERS = re.compile(r"[^A-Za-z0-9_.>-]")


class Names:
    """Assigns unique layer names. The names of the outermost model's layers are reserved for these layers."""

    def __init__(self, graph: Any) -> None:
        """Reserve the names of the layers and inputs of `graph`, the outermost model."""
        self._reserved = {fit(call.operation.name) for call in graph.calls}
        self._reserved |= {fit(layer_of(tensor).name) for tensor in graph.inputs}
        self._taken: set[str] = set()

    def take(self, name: str, path: str, *, with_path: bool = False) -> str:
        """Return the name for the user's layer `name`.

        The name is the layer's own name if it is free, otherwise it includes the path, and if necessary a number.

        Args:
            name: The layer's own name.
            path: The path of its model: "" for the outermost, "outer/" for an inner one.
            with_path: Whether the name includes the path in any case.
        """
        long_name = fit(f"{path}{name}".replace("/", "_"))
        short_name = long_name if with_path else fit(name)
        candidates = itertools.chain(
            [short_name, long_name], (f"{long_name}_{number}" for number in itertools.count(1))
        )
        # Layers of nested models cannot have the names of the outermost model's layers.
        return self._first_free(candidates, self._taken | self._reserved if path else self._taken)

    def part(self, layer_name: str, part: str) -> str:
        """Return the name for one of the layers that replace the layer called `layer_name`."""
        short_name = fit(f"{layer_name}_{part}")
        candidates = itertools.chain([short_name], (f"{short_name}_{number}" for number in itertools.count(1)))
        return self._first_free(candidates, self._taken | self._reserved)

    def _first_free(self, candidates: Iterable[str], unavailable: set[str]) -> str:
        chosen = next(candidate for candidate in candidates if candidate not in unavailable)
        self._taken.add(chosen)
        return chosen

    def model_name(self, name: str) -> str:
        """Return the model's name in a valid form."""
        return fit(name)


def fit(name: str) -> str:
    """Return the name with every character that is not valid in a TensorFlow scope replaced by an underscore."""
    name = _INVALID_CHARACTERS.sub("_", name)
    return name if name[:1].isalnum() or name[:1] == "." else f"layer{name}"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One node: one call of a layer, a nested model or an operation of Keras 3.

    Attributes:
        operation: What is called.
        args: The recorded positional arguments, with symbolic tensors of the model's Keras version.
        kwargs: The recorded keyword arguments, without `training` and without masks that Keras 3 added.
        training: The recorded `training`, or None.
        outputs: The flat symbolic outputs.
        masks: The masks that Keras 3 added to the keyword arguments.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool | None
    outputs: tuple[Any, ...]
    masks: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A functional model.

    Attributes:
        kind: "keras" or "tf_keras".
        inputs: The flat input tensors.
        input_structure: The input tensors in their structure.
        output_structure: The output tensors in their structure.
        calls: The calls in execution order.
    """

    kind: str
    inputs: tuple[Any, ...]
    input_structure: Any
    output_structure: Any
    calls: tuple[Call, ...]

    def flat(self, structure: Any) -> list[Any]:
        """Return the leaves of a structure, in the order in which this Keras version flattens it."""
        return _flatten(self.kind)(structure)


def is_model(operation: Any) -> bool:
    """Check whether a layer is a model of either Keras."""
    return isinstance(operation, (import_keras().Model, import_tf_keras().Model))


def graph_of(model: Any) -> Graph:
    """Return the graph of a built functional or sequential model.

    Raises:
        InputError: It is a subclassed model, which has no graph, or it was never built.
    """
    kind = model_kind(model)
    reason = why_no_graph(model)
    if reason:
        raise InputError(
            f"model {model.name!r} {reason}",
            field="model",
            expected="a built functional or Sequential model",
            got=model.name,
            limit="no-graph",
        )
    return _keras_graph(model) if kind == "keras" else _tf_keras_graph(model)


def all_calls(graph: Graph) -> list[Call]:
    """Return the calls of a graph, including the calls in inner models."""
    calls = []
    for call in graph.calls:
        calls.append(call)
        if is_model(call.operation) and not why_no_graph(call.operation):
            calls += all_calls(graph_of(call.operation))
    return calls


@functools.cache
def _functional_class(kind: str) -> type:
    keras = import_keras() if kind == "keras" else import_tf_keras()
    return type(keras.Model(*[keras.Input((1,), name="probe")] * 2))


def why_no_graph(model: Any) -> str | None:
    """Return why `graph_of` would refuse the model, as words after its name; None if it would not."""
    keras = import_keras() if model_kind(model) == "keras" else import_tf_keras()
    functional: Any = _functional_class(model_kind(model))
    if isinstance(model, keras.Sequential):
        built = getattr(model, "_functional", None) if keras is import_keras() else getattr(model, "_nodes_by_depth", 0)
        own_call = type(model).call is not keras.Sequential.call
        if not own_call and not built:
            return "was never built. Add a keras.Input before its first layer, or call it once with data"
    else:
        own_call = not isinstance(model, functional) or type(model).call is not functional.call
    if own_call:
        return (
            f"is a subclassed model ({type(model).__name__} overrides call()). Its graph is Python code, which tfmot "
            "and tfq cannot read. Build the model from its layers with the functional API"
        )
    return None


def inputs_by_reference(graph: Graph, arguments: Any) -> list[Any]:
    """Return the arguments of a nested model's call in the order of its `inputs`, by name if both have names."""
    names = [layer_of(tensor).name for tensor in graph.inputs]
    if isinstance(arguments, dict):
        if isinstance(graph.input_structure, dict) and set(graph.input_structure) <= set(arguments):
            chosen = {key: arguments[key] for key in graph.input_structure}
            return graph.flat(chosen)
        if set(names) <= set(arguments):
            return [arguments[name] for name in names]
    return graph.flat(arguments)


def _keras_graph(model: Any) -> Graph:
    functional = getattr(model, "_functional", None) or model
    calls = []
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            calls.append(_keras_call(node))
    return Graph(
        kind="keras",
        inputs=tuple(functional.inputs),
        input_structure=functional._inputs_struct,
        output_structure=functional._outputs_struct,
        calls=tuple(calls),
    )


def _keras_call(node: Any) -> Call:
    args, kwargs = tuple(node.arguments.args), dict(node.arguments.kwargs)
    tensors = _flatten("keras")((args, kwargs))
    # Keras 3 adds the implicit masks of its tensors to the recorded arguments. In tf_keras they stay implicit, so they
    # are removed here. A mask that the user passed as an argument is kept.
    implicit_masks = {id(mask) for mask in (getattr(t, "_keras_mask", None) for t in tensors) if mask is not None}
    masks = {}
    for name in [name for name in kwargs if name == "mask" or name.endswith("_mask")]:
        leaves = _flatten("keras")(kwargs[name])
        if all(leaf is None or id(leaf) in implicit_masks for leaf in leaves):
            masks[name] = kwargs.pop(name)
    training = kwargs.pop("training", None)
    if implicit_masks and _ignores_mask(node.operation, args, kwargs):
        kwargs["mask"] = None
    return Call(
        operation=node.operation, args=args, kwargs=kwargs, training=training, outputs=tuple(node.outputs), masks=masks
    )


def keras_calls_between(outputs: Iterable[Any], inputs: Iterable[Any]) -> tuple[Call, ...]:
    """Return the calls that lead from symbolic tensors of Keras 3 to others, in execution order."""
    visited = {id(tensor._keras_history.operation._inbound_nodes[0]) for tensor in inputs}
    ordered: list[Any] = []
    stack = [(node, False) for node in map(_node_of, outputs)]
    while stack:
        node, are_parents_done = stack.pop()
        if are_parents_done:
            ordered.append(node)
        elif id(node) not in visited:
            visited.add(id(node))
            stack.append((node, True))
            stack.extend((_node_of(tensor), False) for tensor in node.arguments.keras_tensors)
    return tuple(map(_keras_call, ordered))


def _node_of(tensor: Any) -> Any:
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def _ignores_mask(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Check whether Keras 3 calls the layer without the mask of its input.

    Keras 3 only passes `mask` to a layer that is called with a single tensor, so not to an RNN with an initial state.
    tf_keras does, unless it receives mask=None.
    """
    if not isinstance(layer, import_keras().layers.Layer) or "mask" not in inspect.signature(layer.call).parameters:
        return False
    flatten, tensor = _flatten("keras"), import_keras().KerasTensor
    with_tensors = [a for a in (*args, *kwargs.values()) if any(isinstance(leaf, tensor) for leaf in flatten(a))]
    return "mask" not in kwargs and len(with_tensors) > 1


def _tf_keras_graph(model: Any) -> Graph:
    calls = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            kwargs = dict(node.call_kwargs)
            training = kwargs.pop("training", None)
            args, outputs = tuple(node.call_args), tuple(_flatten("tf_keras")(node.outputs))
            calls.append(Call(operation=node.layer, args=args, kwargs=kwargs, training=training, outputs=outputs))
    return Graph(
        kind="tf_keras",
        inputs=tuple(model.inputs),
        input_structure=model._nested_inputs,
        output_structure=model._nested_outputs,
        calls=tuple(calls),
    )


def _flatten(kind: str) -> Callable[[Any], list[Any]]:
    if kind == "keras":
        return import_keras().tree.flatten
    import tensorflow as tf

    return tf.nest.flatten


def layer_of(tensor: Any) -> Any:
    """Return the layer or operation that a symbolic tensor of either Keras comes from."""
    history = tensor._keras_history
    return history.operation if hasattr(history, "operation") else history.layer


def layers_between(outputs: list[Any], inputs: list[Any]) -> list[Any]:
    """Return the tf_keras layers that were called between two lists of symbolic tensors, in call order."""
    ends = {id(tensor) for tensor in inputs}
    results: dict[int, Any] = {}
    stack = list(outputs)
    while stack:
        tensor = stack.pop()
        if id(tensor) in ends:
            continue
        layer, index, _ = tensor._keras_history
        if id(layer) not in results:
            results[id(layer)] = layer
            stack.extend(layer.inbound_nodes[index].keras_inputs)
    return list(results.values())[::-1]


def all_layers(model: Any) -> list[Any]:
    """Return every layer of a model of either Keras, including inner layers and the model itself."""
    return list(model._flatten_layers())


def takes_training(layer: Any) -> bool:
    """Check whether the layer's `call` has an argument `training`."""
    return "training" in inspect.signature(layer.call).parameters


def called_with_training(model: Any) -> list[str]:
    """Return the names of the layers that a functional model calls with training=True, also in nested models.

    Augmentation layers of Keras 3, which have training=True as their default, are not counted.
    """
    if why_no_graph(model):
        return []
    names: list[str] = []
    for call in graph_of(model).calls:
        if is_model(call.operation):
            names += called_with_training(call.operation)
        if call.training is True and takes_training(call.operation):
            default = inspect.signature(call.operation.call).parameters["training"].default
            names += [] if default is True else [call.operation.name]
    return list(dict.fromkeys(names))

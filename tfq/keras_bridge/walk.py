# SPDX-License-Identifier: Apache-2.0
"""Walk the functional graph of either Keras: which layer or operation is called on what, under which name.

The nodes are walked, not the config: a config loses the arguments of operations and which node of a shared layer is
meant. Private symbols, read in keras 3.15.1 and tf_keras 2.21.0: `_nodes_by_depth`, `_keras_history` and
`_flatten_layers` of both; in Keras 3 `_functional` of a Sequential, `_inputs_struct` and `_outputs_struct`,
`node.operation`, `node.arguments.{args,kwargs}`, `node.outputs`, and `_keras_mask` of a tensor; in tf_keras
`node.layer`, `node.call_args`, `node.call_kwargs`, `node.outputs`, `_nested_inputs` and `_nested_outputs`.
test_keras_bridge_refusals.py fails when one of them moves.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_keras, import_tf_keras, model_kind

# What TensorFlow takes as a name scope, without the slash: tf_keras builds variable names of it, and .h5 groups.
_UNFIT = re.compile(r"[^A-Za-z0-9_.>-]")


class Names:
    """Hands out each name once. Those of the outermost model are kept for its own layers."""

    def __init__(self, graph: Any) -> None:
        self._reserved = {fit(call.operation.name) for call in graph.calls}
        self._reserved |= {fit(layer_of(tensor).name) for tensor in graph.inputs}
        self._taken: set[str] = set()

    def take(self, name: str, path: str) -> str:
        """The name for the user's layer `name` that stands at `path` ("" at the top, "outer/" inside the model outer).

        The layer's own when no other has it, else with the models around it, else numbered.
        """
        own = fit(name)
        long = fit(f"{path}{name}".replace("/", "_"))
        candidates = itertools.chain([own, long], (f"{long}_{number}" for number in itertools.count(1)))
        # Inside a nested model the names of the outermost model's layers are not to be had.
        return self._first_free(candidates, self._taken | self._reserved if path else self._taken)

    def part(self, whole: str, part: str) -> str:
        """The name for a part of the user's layer that was given the name `whole`."""
        own = fit(f"{whole}_{part}")
        candidates = itertools.chain([own], (f"{own}_{number}" for number in itertools.count(1)))
        return self._first_free(candidates, self._taken | self._reserved)

    def _first_free(self, candidates: Iterable[str], refused: set[str]) -> str:
        chosen = next(candidate for candidate in candidates if candidate not in refused)
        self._taken.add(chosen)
        return chosen

    def model_name(self, name: str) -> str:
        """The model's own name, made fit."""
        return fit(name)


def fit(name: str) -> str:
    """The name with every character that TensorFlow does not take in a scope replaced by an underscore."""
    name = _UNFIT.sub("_", name)
    return name if name[:1].isalnum() or name[:1] == "." else f"layer{name}"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One node: `operation` (a layer, a nested model, or a Keras 3 operation) called once.

    args, kwargs: as recorded, tensors being symbolic ones of the model's own Keras; masks and `training` that Keras 3
    itself put there are left out. training: what was recorded of it, or None. outputs: the flat symbolic results.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool | None
    outputs: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A functional model: flat `inputs`, the structures that it takes and gives, and its calls in running order."""

    kind: str
    inputs: tuple[Any, ...]
    input_structure: Any
    output_structure: Any
    calls: tuple[Call, ...]

    def flat(self, structure: Any) -> list[Any]:
        """The leaves of a nest, in the order in which this Keras flattens one."""
        return _flatten(self.kind)(structure)


def is_model(operation: Any) -> bool:
    """Whether a layer is a model of either Keras: something with layers of its own."""
    return isinstance(operation, (import_keras().Model, import_tf_keras().Model))


def graph_of(model: Any) -> Graph:
    """The graph of a built functional or sequential model.

    Raises InputError when it is a subclassed model, which has no graph, or one that was never built.
    """
    kind = model_kind(model)
    reason = why_no_graph(model)
    if reason:
        raise InputError(
            f"model {model.name!r} {reason}",
            field="model",
            expected="a built functional or Sequential model",
            got=model.name,
        )
    return _keras_graph(model) if kind == "keras" else _tf_keras_graph(model)


def why_no_graph(model: Any) -> str | None:
    """Why `graph_of` would refuse the model, as words that follow its name; None when it would not."""
    keras = import_keras() if model_kind(model) == "keras" else import_tf_keras()
    functional = type(keras.Model(*[keras.Input((1,), name="probe")] * 2))
    if isinstance(model, keras.Sequential):
        built = getattr(model, "_functional", None) if keras is import_keras() else getattr(model, "_nodes_by_depth", 0)
        own_call = type(model).call is not keras.Sequential.call
        if not own_call and not built:
            return "was never built: give its first layer an Input, or call it once with data"
    else:
        own_call = not isinstance(model, functional) or type(model).call is not functional.call
    if own_call:
        return (
            f"is a subclassed model ({type(model).__name__} has a call() of its own): its graph is Python code, and "
            "neither tfmot nor the bridge can see into it. Build it with the functional API from its layers"
        )
    return None


def inputs_by_reference(graph: Graph, given: Any) -> list[Any]:
    """The tensors `given` to a nested model, in the order of its `inputs`: matched by name where both have names."""
    names = [layer_of(tensor).name for tensor in graph.inputs]
    if isinstance(given, dict):
        if isinstance(graph.input_structure, dict) and set(graph.input_structure) <= set(given):
            chosen = {key: given[key] for key in graph.input_structure}
            return graph.flat(chosen)
        if set(names) <= set(given):
            return [given[name] for name in names]
    return graph.flat(given)


def _keras_graph(model: Any) -> Graph:
    functional = getattr(model, "_functional", None) or model
    calls = []
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = tuple(node.arguments.args), dict(node.arguments.kwargs)
            tensors = _flatten("keras")((args, kwargs))
            # Keras 3 writes the masks that travelled with its tensors into the recorded arguments; in tf_keras they
            # travel by themselves. What the user passed as a mask is not a travelling one, and stays.
            travelling = {id(mask) for mask in (getattr(t, "_keras_mask", None) for t in tensors) if mask is not None}
            for name in [name for name in kwargs if name == "mask" or name.endswith("_mask")]:
                leaves = _flatten("keras")(kwargs[name])
                if all(leaf is None or id(leaf) in travelling for leaf in leaves):
                    del kwargs[name]
            training = kwargs.pop("training", None)
            if travelling and _overlooks_mask(node.operation, args, kwargs):
                kwargs["mask"] = None
            calls.append(
                Call(operation=node.operation, args=args, kwargs=kwargs, training=training, outputs=tuple(node.outputs))
            )
    return Graph(
        kind="keras",
        inputs=tuple(functional.inputs),
        input_structure=functional._inputs_struct,
        output_structure=functional._outputs_struct,
        calls=tuple(calls),
    )


def _overlooks_mask(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether Keras 3 calls the layer without the mask of its input: it gives `mask` only to one called with one
    tensor alone, so not to an RNN called with its initial state. tf_keras does, unless told that there is none."""
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
    """The layer or operation that a symbolic tensor of either Keras comes from."""
    history = tensor._keras_history
    return history.operation if hasattr(history, "operation") else history.layer


def layers_between(outputs: list[Any], inputs: list[Any]) -> list[Any]:
    """The tf_keras layers that were called between two lists of symbolic tensors, the first called first."""
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
    """Every layer of a model of either Keras, those inside others too, and the model itself."""
    return list(model._flatten_layers())


def takes_training(layer: Any) -> bool:
    """Whether the layer's `call` has an argument `training`."""
    return "training" in inspect.signature(layer.call).parameters

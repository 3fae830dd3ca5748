# SPDX-License-Identifier: Apache-2.0
"""Reduce a traced graph to inference in float32: no variable updates, no random numbers that nothing reads.

Keras 3 draws random numbers also where inference does not use them: an RNN cell creates its dropout masks in every
call. Each draw updates the state of a seed generator, which a `.tflite` cannot do. An update is removed if no output
depends on the updated variable. If one does, the model is random or has a state, and the conversion refuses it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfq.errors import InputError, warn

_UPDATES = frozenset(
    [
        *("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"),
        *("ResourceScatterAdd", "ResourceScatterSub", "ResourceScatterUpdate"),
        *("ResourceScatterNdAdd", "ResourceScatterNdSub", "ResourceScatterNdUpdate"),
    ]
)
# Ops that draw from a generator which is a variable. The first input is the variable.
_GENERATORS = frozenset(
    [
        *("RngReadAndSkip", "RngSkip", "StatefulUniform", "StatefulUniformInt", "StatefulUniformFullInt"),
        *("StatefulStandardNormalV2", "StatefulTruncatedNormal", "StatefulRandomBinomial"),
    ]
)
# Ops that draw different numbers in each call. Stateless ops draw the same numbers for the same seed.
_RANDOM = _GENERATORS | frozenset(
    [
        *(
            "RandomUniform",
            "RandomUniformInt",
            "RandomStandardNormal",
            "TruncatedNormal",
            "ParameterizedTruncatedNormal",
        ),
        *("RandomShuffle", "Multinomial", "RandomGamma", "RandomPoisson", "RandomPoissonV2"),
    ]
)
_LOOPS, _BRANCHES = ("While", "StatelessWhile"), ("If", "StatelessIf", "Case", "StatelessCase")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Ops whose result does not depend on the values of their input.
_OF_SHAPES = frozenset(["Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"])


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable of the traced model.

    Attributes:
        layer: The user's name of the layer that owns it; "" if it is unknown.
        name: Its name.
        is_seed: Whether it is the state of a random generator.
    """

    layer: str
    name: str
    is_seed: bool

    def __str__(self) -> str:
        return f"{self.name} of layer {self.layer!r}" if self.layer else self.name


def remove_updates(graph_def: Any, outputs: Iterable[str], variables: Mapping[str, Variable], layers: set[str]) -> None:
    """Remove the variable updates from an inlined inference graph, in place. A graph without updates stays as it is.

    Args:
        graph_def: The graph; variables are placeholders.
        outputs: The names of the output tensors.
        variables: Placeholder -> the variable.
        layers: The user's names of the layers, for messages.

    Raises:
        InputError: An output depends on a variable that the graph updates, or on a random generator.
    """
    flow = _Dataflow(graph_def)
    updated = flow.updated_placeholders()
    needed, random_nodes = flow.needed(outputs)
    _check_random(random_nodes, needed & updated, variables, layers)
    if not updated:
        return
    states = sorted({str(variables[name]) for name in updated - needed if not _is_seed(variables, name)})
    if states:
        warn(
            f"the model updates {', '.join(states)} in inference. A .tflite file cannot, and no output depends on it: "
            "the updates are left out"
        )
    _drop_updates(graph_def, needed)


def _is_seed(variables: Mapping[str, Variable], placeholder: str) -> bool:
    return placeholder not in variables or variables[placeholder].is_seed


def _check_random(nodes: dict[str, str], state: set[str], variables: Mapping[str, Variable], layers: set[str]) -> None:
    """Raise InputError if outputs depend on variables that change; warn if a random op of TFLite remains."""
    seeds = [name for name in state if _is_seed(variables, name)]
    in_file = {name: op for name, op in nodes.items() if op in _RANDOM - _GENERATORS}
    if seeds or any(op in _GENERATORS for op in nodes.values()):
        owners = {variables[name].layer for name in seeds if name in variables}
        owners |= {owner_of(name, layers) for name in nodes}
        random_layers = sorted(owners - {""})
        listed = f"layers {', '.join(random_layers)} draw" if random_layers else "it draws"
        raise InputError(
            f"the outputs of the model are random in inference: {listed} random numbers that the outputs depend on. A "
            ".tflite file has no generator for them. Apply the noise or the dropout only if training is true (in "
            "call(), pass on the argument `training`), or remove it from the model that you convert",
            field="model",
            expected="outputs that are not random in inference",
            got=tuple(random_layers),
            limit="random-outputs",
        )
    if state:
        listed = ", ".join(sorted(str(variables[name]) for name in state))
        raise InputError(
            f"the model has a state: its outputs depend on {listed}, which it changes in inference. A .tflite file "
            "does not keep it. Make the state an input and an output of the model",
            field="model",
            expected="a model without a state",
            got=tuple(sorted(variables[name].name for name in state)),
            limit="state",
        )
    if in_file:
        listed = ", ".join(sorted({owner_of(name, layers) or name for name in in_file}))
        warn(
            f"the outputs of the model are random in inference, and the file stays random: {listed}. To make it "
            "deterministic, call the layer without training=True, or draw random numbers only if training is true"
        )


def owner_of(node: str, layers: set[str]) -> str:
    """Return the innermost layer in a node's name ("model/noise_1/random_uniform" -> "noise"); "" if there is none."""
    for part in reversed(node.split("/")):
        stem, _, number = part.rpartition("_")
        for name in (part, stem if number.isdigit() else part):
            if name in layers:
                return name
    return ""


def _drop_updates(graph_def: Any, needed: set[str]) -> None:
    """Remove the nodes that no output reads, and the updates in the functions of loops and branches."""
    kept = [node for node in graph_def.node if node.name in needed or node.op == "Placeholder"]
    names = {node.name for node in kept}
    for node in kept:
        _keep_control_inputs(node, names)
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph_def.node[:]
    graph_def.node.extend(copies)
    for function in graph_def.library.function:
        removed = {node.name for node in function.node_def if node.op in _UPDATES}
        if not removed:
            continue
        names = {node.name for node in function.node_def} - removed
        remaining = [type(node).FromString(node.SerializeToString()) for node in function.node_def]
        del function.node_def[:]
        function.node_def.extend(node for node in remaining if node.name in names)
        for node in function.node_def:
            _keep_control_inputs(node, names)
        for key in [key for key, value in function.control_ret.items() if value in removed]:
            del function.control_ret[key]
            function.signature.control_output.remove(key)


def _keep_control_inputs(node: Any, names: set[str]) -> None:
    kept = [item for item in node.input if not item.startswith("^") or item[1:].split(":")[0] in names]
    del node.input[:]
    node.input.extend(kept)


@dataclass
class _Dataflow:
    """The data dependencies of a graph, through the functions of its loops and branches."""

    graph_def: Any
    functions: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.functions = {function.signature.name: function for function in self.graph_def.library.function}

    def needed(self, outputs: Iterable[str]) -> tuple[set[str], dict[str, str]]:
        """Return the names of the nodes that the output tensors depend on, and {node: op} of the random ones."""
        random_nodes: dict[str, str] = {}
        nodes = {node.name: node for node in self.graph_def.node}
        reached, _ = self._reached(nodes, outputs, random_nodes)
        return reached, random_nodes

    def _reached(
        self, nodes: dict[str, Any], tensors: Iterable[str], random_nodes: dict[str, str]
    ) -> tuple[set[str], set[str]]:
        """Return the nodes that the tensors depend on, and the names of function arguments that they depend on."""
        reached: set[str] = set()
        arguments: set[str] = set()
        stack, seen = list(tensors), set()
        while stack:
            tensor = stack.pop()
            if tensor in seen or tensor.startswith("^"):
                continue
            seen.add(tensor)
            name, _, port = tensor.partition(":")
            node = nodes.get(name)
            if node is None:
                arguments.add(name)
                continue
            if node.op in _RANDOM or node.op.startswith("StatelessRandom"):
                random_nodes[name] = node.op
            inputs = [item for item in node.input if not item.startswith("^")]
            index = int(port.rpartition(":")[2]) if port else 0
            if node.op in _LOOPS + _BRANCHES + _CALLS:
                stack += [inputs[position] for position in self._inputs_of_call(node, index, random_nodes)]
            elif name not in reached:
                stack += inputs
            reached.add(name)
        return reached, arguments

    def _inputs_of_call(self, node: Any, output: int, random_nodes: dict[str, str]) -> set[int]:
        """Return the positions of the inputs that an output of a loop, a branch or a call depends on."""
        if node.op in _BRANCHES:
            bodies = _functions_of(node)
            return {0} | {1 + place for body in bodies for place in self._arguments(body, {output}, random_nodes)}
        if node.op in _CALLS:
            return self._arguments(node.attr["f"].func.name, {output}, random_nodes)
        needed = {output} | self._arguments(node.attr["cond"].func.name, {0}, random_nodes)
        while True:
            more = needed | self._arguments(node.attr["body"].func.name, needed, random_nodes)
            if more == needed:
                return needed
            needed = more

    def _arguments(self, function_name: str, outputs: set[int], random_nodes: dict[str, str]) -> set[int]:
        """Return the positions of the arguments that outputs of a function depend on."""
        function = self.functions[function_name]
        signature = function.signature
        tensors = [function.ret[signature.output_arg[index].name] for index in outputs]
        nodes = {node.name: node for node in function.node_def}
        _, arguments = self._reached(nodes, tensors, random_nodes)
        return {place for place, item in enumerate(signature.input_arg) if item.name in arguments}

    def updated_placeholders(self) -> set[str]:
        """Return the placeholders of the variables that the graph updates."""
        nodes = {node.name: node for node in self.graph_def.node}
        return {
            name
            for tensor in self._updated(self.graph_def.node)
            for name in _resource(nodes, tensor)
            if nodes[name].op == "Placeholder"
        }

    def _updated(self, nodes: Iterable[Any]) -> Iterator[str]:
        """Yield the resource tensors that nodes update, directly or in a function that they call."""
        for node in nodes:
            inputs = [item for item in node.input if not item.startswith("^")]
            if node.op in _UPDATES | _GENERATORS:
                yield inputs[0]
            offset = 1 if node.op in _BRANCHES else 0
            for name in _functions_of(node):
                yield from (inputs[offset + place] for place in self._updated_arguments(name))

    def _updated_arguments(self, function_name: str) -> set[int]:
        function = self.functions.get(function_name)
        if function is None:
            return set()
        nodes = {node.name: node for node in function.node_def}
        names = {name for tensor in self._updated(function.node_def) for name in _resource(nodes, tensor)}
        return {place for place, item in enumerate(function.signature.input_arg) if item.name in names}


def _functions_of(node: Any) -> list[str]:
    """Return the functions that a loop, a branch or a call runs."""
    if node.op not in _LOOPS + _BRANCHES + _CALLS:
        return []
    values = [node.attr[key] for key in sorted(node.attr) if not key.startswith("_")]
    return [item.name for value in values for item in ([value.func] if value.HasField("func") else value.list.func)]


def _resource(nodes: Mapping[str, Any], tensor: str) -> Iterator[str]:
    """Yield the placeholder or the function argument that a resource tensor is."""
    name = tensor.partition(":")[0]
    node = nodes.get(name)
    if node is not None and node.op in ("Identity", "Enter") and node.input:
        yield from _resource(nodes, node.input[0])
    else:
        yield name


def in_float32(graph_def: Any) -> list[str]:
    """Replace float16, bfloat16 and float64 by float32 in a frozen graph, in place.

    float64 stays if no value of an input reaches it, as in the computation of a size: the converter folds it.

    Returns:
        The names of the nodes that computed in another float type with values of the inputs.
    """
    from tensorflow.core.framework import types_pb2

    halves, double = {types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}, types_pb2.DT_DOUBLE
    computed = _nodes_on_values(graph_def)
    named = [node.name for node in computed if _types_of(node) & (halves | {double})]
    others = halves | ({double} if any(double in _types_of(node) for node in computed) else set())
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        for node in nodes:
            if not _types_of(node) & others:
                continue
            for attribute in node.attr.values():
                _set_float32(attribute, others)
            if node.op == "Cast" and node.attr["SrcT"].type == node.attr["DstT"].type:
                node.op = "Identity"
                node.attr["T"].type = types_pb2.DT_FLOAT
                for key in ("SrcT", "DstT", "Truncate"):
                    node.attr.pop(key, None)
    for function in graph_def.library.function:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = types_pb2.DT_FLOAT if argument.type in others else argument.type
    return named


def _nodes_on_values(graph_def: Any) -> list[Any]:
    """Return the nodes of a graph and of its functions that compute with values of the inputs, not with shapes."""
    on_values: set[str] = set()
    nodes = list(graph_def.node)
    size = -1
    while size < len(on_values):  # Grappler does not sort the nodes, so a second pass may find more
        size = len(on_values)
        for node in nodes:
            is_source = node.op in ("Placeholder", "PlaceholderWithDefault")
            reads = not on_values.isdisjoint(item.split(":")[0] for item in node.input)
            if (is_source or reads) and node.op not in _OF_SHAPES:
                on_values.add(node.name)
    return [node for node in nodes if node.name in on_values] + [
        node for function in graph_def.library.function for node in function.node_def
    ]


def _types_of(node: Any) -> set[int]:
    types = {item for value in node.attr.values() for item in (value.type, *value.list.type) if item}
    return types | {value.tensor.dtype for value in node.attr.values() if value.HasField("tensor")}


def _set_float32(attribute: Any, others: set[int]) -> None:
    import numpy as np
    import tensorflow as tf

    float32 = tf.float32.as_datatype_enum
    kind = attribute.WhichOneof("value")
    if kind == "type" and attribute.type in others:
        attribute.type = float32
    elif kind == "tensor" and attribute.tensor.dtype in others:
        attribute.tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(attribute.tensor).astype(np.float32)))
    elif kind == "list" and not others.isdisjoint(attribute.list.type):
        attribute.list.type[:] = [float32 if item in others else item for item in attribute.list.type]

# SPDX-License-Identifier: Apache-2.0
"""Expand a Keras 3 layer that is written in Python into the layers and operations that its `call` uses.

`call` runs once on symbolic tensors, as Keras does it for the functional API. Every layer and every function of
`keras.ops` that it calls becomes a node of a graph, which is translated like the graph of a nested model. The layer's
own weights are symbolic tensors in this run, so that they stay weights and do not become constants.

An unknown batch size is None in a symbolic tensor, and `ops.shape(x)[0]` would be None too. Therefore `call` runs with
two different batch sizes. Numbers that are proportional to the batch size in both runs become a `BatchSize`.

Private symbols, read in keras 3.15.1: `_inbound_nodes`, `_outbound_nodes` and `_losses` of a layer, `_keras_mask` of a
tensor, `get_current_value` of a StatelessScope, and `Node` in the module of Layer. test_keras_bridge_composites.py
fails if one of them changes.
"""

import contextlib
import dataclasses
import functools
import inspect
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_keras
from tfq.keras_bridge.layers.config import OTHER_FLOATS
from tfq.keras_bridge.layers.translate import is_expanded
from tfq.keras_bridge.operations.data import BatchConstant, BatchSize
from tfq.keras_bridge.operations.shapes import reshape_target
from tfq.keras_bridge.precision import compute_in_float32
from tfq.keras_bridge.untranslatable import Untranslatable, reason_of
from tfq.keras_bridge.walk import Call, Graph, all_layers, keras_calls_between, takes_training

# The batch sizes of the two runs. Two primes, so that sizes of the model are rarely multiples of them.
_BATCH_SIZES = (61, 67)
_NUMBER = re.compile(r"_\d+$")
# The key of a call's masks that are attached to its inputs and not passed as arguments.
_OTHER_MASKS = "<attached>"
# Attributes of a layer that list its weights a second time.
_WEIGHT_LISTS = ("_trainable_variables", "_non_trainable_variables")


# (tensor of the call, batch size) -> the shape of the input in a run
_Resized = Callable[[Any, int], tuple[int | None, ...]]


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """The graph of one call of a layer.

    Attributes:
        graph: The graph of symbolic tensors that belong to this expansion.
        inputs: (tensor of the call, tensor of `graph`) for each input and each mask.
        weights: (tensor of `graph`, variable) for each weight of the layer itself.
        constants: (tensor of `graph`, array or `BatchConstant`) for each constant that an inner layer is called with.
        outputs: The flat outputs: tensors of `graph`, arrays, or `BatchConstant`s.
        masks: (tensor of `graph`, its implicit mask) for each input that has a mask.
        differs_in_training: Whether `call` uses other operations if `training` is True.
    """

    graph: Graph
    inputs: tuple[tuple[Any, Any], ...]
    weights: tuple[tuple[Any, Any], ...]
    constants: tuple[tuple[Any, Any], ...]
    outputs: tuple[Any, ...]
    masks: tuple[tuple[Any, Any], ...]
    differs_in_training: bool


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run of `call` on symbolic tensors."""

    inputs: dict[int, tuple[Any, Any]]
    weights: tuple[tuple[Any, Any], ...]
    constants: tuple[tuple[Any, Any], ...]
    calls: tuple[Call, ...]
    outputs: tuple[Any, ...]


def expand(call: Call, bridged: Mapping[int, Any], *, is_nested: bool) -> Expansion:
    """Return the graph of one call of a Keras 3 layer.

    Args:
        call: The call, in the user's graph or in the graph of another expansion.
        bridged: id of a tensor -> its translation, which may have sizes that the tensor does not have. Implicit masks
            that are not in it are ignored.
        is_nested: Whether it is in the graph of another expansion.

    Raises:
        Untranslatable: `call` cannot run on symbolic tensors, or what it computes depends on more than its inputs.
    """
    layer = call.operation
    if call.training is True:
        raise Untranslatable(
            "it is called with training=True, so the model is random or depends on its batch. Call it without "
            "training=True"
        )
    call = _without_unknown_masks(call, bridged)
    if is_default_training(call):
        call = dataclasses.replace(call, training=None)

    def resized(tensor: Any, batch_size: int) -> tuple[int | None, ...]:
        return _fixed_shape(tensor, bridged[id(tensor)], batch_size, is_nested)

    with _unchanged(layer), compute_in_float32(layer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = _run(call, _BATCH_SIZES[0], resized)
        batch_axis = next((inner for _, inner in first.inputs.values() if _depends_on_batch(inner)), None)
        calls, outputs, constants = first.calls, first.outputs, first.constants
        if batch_axis is not None:
            second = _run(call, _BATCH_SIZES[1], resized)
            calls, outputs, constants = _without_batch_size(first, second, batch_axis)
        differs = _differs_in_training(call, first, resized)
    _number_operations(calls)
    tensor = import_keras().KerasTensor
    graph = Graph(
        kind="keras",
        inputs=tuple(inner for _, inner in first.inputs.values()),
        input_structure=[inner for _, inner in first.inputs.values()],
        output_structure=[output for output in outputs if isinstance(output, tensor)],
        calls=calls,
    )
    masks = [(inner, mask) for _, inner in first.inputs.values() if (mask := _mask_of(inner)) is not None]
    return Expansion(
        graph=graph,
        inputs=tuple(first.inputs.values()),
        weights=first.weights,
        constants=constants,
        outputs=outputs,
        masks=tuple(masks),
        differs_in_training=differs,
    )


def with_symbolic_constants(call: Call, translated: Callable[[BatchConstant], Any], bridged: dict[int, Any]) -> Call:
    """Return a call in the graph of another expansion with symbolic tensors instead of its `BatchConstant`s.

    Args:
        call: The call.
        translated: Returns the tensor of the bridged model for a constant.
        bridged: Receives id of a symbolic tensor -> its translation.
    """

    def symbolic(leaf: Any) -> Any:
        if not isinstance(leaf, BatchConstant):
            return leaf
        shape = tuple(size.multiple if isinstance(size, BatchSize) else size for size in leaf.shape)
        tensor = _input(shape, import_keras().backend.standardize_dtype(leaf.row.dtype))
        bridged[id(tensor)] = translated(leaf)
        return tensor

    args, kwargs = import_keras().tree.map_structure(symbolic, (call.args, call.kwargs))
    return dataclasses.replace(call, args=args, kwargs=kwargs)


def is_default_training(call: Call) -> bool:
    """Check whether `training` is recorded only because False is its default. Keras trains such a layer in `fit`."""
    parameter = inspect.signature(call.operation.call).parameters.get("training")
    return call.training is False and parameter is not None and parameter.default is False


def masks_of(call: Call) -> list[Any]:
    """Return the symbolic masks of a call: those of its arguments, and those that Keras 3 attached to its inputs."""
    leaves = import_keras().tree.flatten((call.args, call.kwargs, call.masks))
    tensors = [leaf for leaf in leaves if isinstance(leaf, import_keras().KerasTensor)]
    recorded = [leaf for leaf in import_keras().tree.flatten(call.masks) if leaf is not None]
    return [*recorded, *(mask for mask in map(_mask_of, tensors) if mask is not None)]


def _without_unknown_masks(call: Call, available: Container[int]) -> Call:
    """Return the call with all masks that are available: those that `call` takes, and the others as _OTHER_MASKS."""
    tree = import_keras().tree
    known = {
        name: tree.map_structure(lambda mask: mask if id(mask) in available else None, value)
        for name, value in call.masks.items()
    }
    others = [mask for mask in masks_of(call) if id(mask) in available]
    return dataclasses.replace(call, masks={**known, _OTHER_MASKS: others})


def nodes_of(layer: Any) -> list[tuple[Any, list[Any], list[Any]]]:
    """Return the layers inside of `layer` with copies of their nodes, so that `restore_nodes` can restore them."""
    return [(inner, list(inner._inbound_nodes), list(inner._outbound_nodes)) for inner in all_layers(layer)]


def restore_nodes(nodes: list[tuple[Any, list[Any], list[Any]]]) -> None:
    """Remove the nodes that expansions have added to the user's layers."""
    for inner, inbound, outbound in nodes:
        inner._inbound_nodes[:], inner._outbound_nodes[:] = inbound, outbound


@contextlib.contextmanager
def _unchanged(layer: Any) -> Iterator[None]:
    """Restore the losses that `call` adds to its layers; refuse a `call` that creates weights."""
    layers = all_layers(layer)
    losses = [(inner, list(inner._losses)) for inner in layers]
    weights = list(map(id, layer.weights))
    try:
        yield
    finally:
        for inner, items in losses:
            inner._losses[:] = items
    if list(map(id, layer.weights)) != weights:
        raise Untranslatable("its call creates weights. Create them in __init__ or build")


def _run(call: Call, batch_size: int, resized: _Resized, training: bool | None = None) -> _Run:
    """Run `call` with symbolic weights; if that fails, with the weights as variables."""
    try:
        return _run_once(call, batch_size, resized, training, symbolic_weights=True)
    except Exception as error:
        first_error = _refused(error, call.operation)
    if not _own_weights(call.operation):
        raise first_error
    try:
        return _run_once(call, batch_size, resized, training, symbolic_weights=False)
    except Exception:
        raise first_error from None


def _refused(error: Exception, layer: Any) -> Untranslatable:
    if isinstance(error, Untranslatable):
        return error
    return Untranslatable(
        f"its call does not run on symbolic tensors: {reason_of(error)}. Write it with Keras layers and keras.ops, or "
        f"register a tfq.BridgedLayer(keras_class={type(layer).__name__}, translate=...) for it"
    )


def _run_once(call: Call, batch_size: int, resized: _Resized, training: bool | None, *, symbolic_weights: bool) -> _Run:
    keras, layer = import_keras(), call.operation
    inputs: dict[int, tuple[Any, Any]] = {}
    masks = {id(mask) for mask in keras.tree.flatten(call.masks) if mask is not None}

    def symbolic(leaf: Any) -> Any:
        if isinstance(leaf, BatchSize):
            return leaf.multiple // _BATCH_SIZES[0] * batch_size
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        if id(leaf) not in inputs:
            inner = _input(resized(leaf, batch_size), leaf.dtype)
            inputs[id(leaf)] = (leaf, inner)
            if id(_mask_of(leaf)) in masks:
                inner._keras_mask = symbolic(_mask_of(leaf))
        return inputs[id(leaf)][1]

    args, kwargs = keras.tree.map_structure(symbolic, (call.args, {**call.kwargs, **call.masks}))
    kwargs = {name: value for name, value in kwargs.items() if name != _OTHER_MASKS}
    if takes_training(layer):
        kwargs["training"] = call.training if training is None else training
    with (
        _optional_outputs(),
        _plain_slices(),
        _traced_shapes(layer),
        _reads_of_variables() as reads,
        _symbolic_constants() as constants,
        _symbolic_weights(layer, symbolic_weights) as weights,
    ):
        outputs = tuple(item for item in keras.tree.flatten(layer.call(*args, **kwargs)) if item is not None)
    _check_reads(list(reads.values()))
    results = [output for output in outputs if isinstance(output, keras.KerasTensor)]
    starts = [*(inner for _, inner in inputs.values()), *(inner for inner, _ in [*weights, *constants])]
    calls = keras_calls_between(results, starts)
    _check_weights(layer, calls)
    return _Run(inputs=inputs, weights=tuple(weights), constants=tuple(constants), calls=calls, outputs=outputs)


def _input(shape: tuple[int | None, ...], dtype: str) -> Any:
    return import_keras().Input(batch_shape=shape, dtype="float32" if dtype in OTHER_FLOATS else dtype)


def _fixed_shape(tensor: Any, translated: Any, batch_size: int, is_nested: bool) -> tuple[int | None, ...]:
    """Return the shape of an input of the run.

    Args:
        tensor: The tensor of the call.
        translated: Its translation; it has the sizes that are unknown in a nested model, and known in the outer one.
        batch_size: Replaces an unknown batch size, and the batch size of the outer expansion.
        is_nested: Whether there is an outer expansion.
    """
    shape = [a if a is not None else b for a, b in zip(tensor.shape, translated.shape, strict=True)]
    if not shape:
        return ()
    size, outer = tensor.shape[0], _BATCH_SIZES[0]
    if size is None:
        size = batch_size
    elif is_nested and size % outer == 0:
        size = size // outer * batch_size
    return (size, *shape[1:])


def _depends_on_batch(tensor: Any) -> bool:
    return bool(tensor.shape) and tensor.shape[0] is not None and tensor.shape[0] % _BATCH_SIZES[0] == 0


def _mask_of(tensor: Any) -> Any:
    return getattr(tensor, "_keras_mask", None)


def _own_weights(layer: Any) -> dict[str, Any]:
    """Return the attributes of a layer that are variables, or lists or dicts of variables."""
    variable = import_keras().Variable

    def has_weights(value: Any) -> bool:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        return any(isinstance(item, variable) for item in items)

    return {name: value for name, value in vars(layer).items() if name not in _WEIGHT_LISTS and has_weights(value)}


@contextlib.contextmanager
def _symbolic_weights(layer: Any, enabled: bool) -> Iterator[list[tuple[Any, Any]]]:
    """Replace the attributes of a layer that are variables by symbolic tensors; yield (tensor, variable)."""
    variable = import_keras().Variable
    replaced: dict[int, tuple[Any, Any]] = {}

    def symbolic(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: symbolic(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [symbolic(item) for item in value]
        if not isinstance(value, variable):
            return value
        if id(value) not in replaced:
            replaced[id(value)] = (_input(tuple(value.shape), value.dtype), value)
        return replaced[id(value)][0]

    attributes = _own_weights(layer) if enabled else {}
    values = vars(layer)
    for name, value in attributes.items():
        values[name] = symbolic(value)
    try:
        yield list(replaced.values())
    finally:
        values.update(attributes)


@contextlib.contextmanager
def _optional_outputs() -> Iterator[None]:
    """Let inner layers return None next to tensors, as blocks do that return their attention scores on request."""
    keras = import_keras()
    module: Any = sys.modules[keras.layers.Layer.__module__]
    base: Any = module.Node

    class Node(base):
        def __init__(self, operation: Any, call_args: Any = None, call_kwargs: Any = None, outputs: Any = None) -> None:
            tensors = [item for item in keras.tree.flatten(outputs) if item is not None]
            super().__init__(operation, call_args, call_kwargs, tensors)

    module.Node = Node
    try:
        yield
    finally:
        module.Node = base


@contextlib.contextmanager
def _plain_slices() -> Iterator[None]:
    """Let symbolic tensors take x[:n], for which Keras 3 needs x[(slice(n),)]; tensors and variables take both."""
    tensor: Any = import_keras().KerasTensor
    getitem = tensor.__getitem__
    tensor.__getitem__ = lambda self, key: getitem(self, (key,) if isinstance(key, slice) or key is Ellipsis else key)
    try:
        yield
    finally:
        tensor.__getitem__ = getitem


@contextlib.contextmanager
def _reads_of_variables() -> Iterator[dict[int, Any]]:
    """Yield a dict that receives the variables whose values are read; updates of variables have no effect."""
    base: Any = import_keras().StatelessScope
    reads: dict[int, Any] = {}

    class Scope(base):
        def get_current_value(self, variable: Any) -> Any:
            reads[id(variable)] = variable
            return super().get_current_value(variable)

    with Scope():
        yield reads


@contextlib.contextmanager
def _traced_shapes(layer: Any) -> Iterator[None]:
    """Determine the output shapes of inner layers that are written in Python from what they compute.

    A subclass may take other arguments than the compute_output_spec that it inherits.
    """
    operation: Any = import_keras().Operation
    inner_layers = [inner for inner in all_layers(layer) if inner is not layer and is_expanded(inner)]
    for inner in inner_layers:
        vars(inner)["compute_output_spec"] = functools.partial(operation.compute_output_spec, inner)
    try:
        yield
    finally:
        for inner in inner_layers:
            del vars(inner)["compute_output_spec"]


@contextlib.contextmanager
def _symbolic_constants() -> Iterator[list[tuple[Any, Any]]]:
    """Call inner layers with weights on symbolic tensors instead of constants, so that their weights stay weights.

    Yields a list that receives (symbolic tensor, array) for each constant. A position embedding is an example: it is
    called with the constant `ops.arange(length)`.
    """
    import tensorflow as tf

    keras, constants = import_keras(), []
    call_layer = keras.layers.Layer.__call__

    def symbolic(leaf: Any) -> Any:
        if not (isinstance(leaf, np.ndarray) or tf.is_tensor(leaf)):
            return leaf
        array = np.asarray(leaf)
        constants.append((_input(array.shape, keras.backend.standardize_dtype(array.dtype)), array))
        return constants[-1][0]

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = keras.tree.flatten((args, kwargs))
        is_symbolic = any(isinstance(leaf, keras.KerasTensor) for leaf in leaves)
        if tf.executing_eagerly() and layer.weights and not is_symbolic:
            args, kwargs = keras.tree.map_structure(symbolic, (args, kwargs))
        return call_layer(layer, *args, **kwargs)

    keras.layers.Layer.__call__ = call
    try:
        yield constants
    finally:
        keras.layers.Layer.__call__ = call_layer


def _check_weights(layer: Any, calls: tuple[Call, ...]) -> None:
    known = set(map(id, layer.weights))
    for call in calls:
        if any(id(variable) not in known for variable in getattr(call.operation, "weights", ())):
            raise Untranslatable(
                f"its call uses the layer {call.operation.name!r}, whose weights are not its own. Create that layer in "
                "__init__ and assign it to an attribute"
            )


def _check_reads(variables: list[Any]) -> None:
    """Raise Untranslatable if the values of these variables must not become constants."""
    for variable in variables:
        if "seed_generator" in variable.path:
            raise Untranslatable("it draws random numbers in inference. Draw them only if training is True")
    names = ", ".join(variable.path for variable in variables if variable.trainable)
    if names:
        raise Untranslatable(
            f"its call computes with the value of the weight {names}, which would become a constant. Use the weight "
            "in keras.ops, in the layer that it belongs to"
        )


def _differs_in_training(call: Call, inference: _Run, resized: _Resized) -> bool:
    if call.training is False or not takes_training(call.operation):
        return False
    try:
        training = _run(call, _BATCH_SIZES[0], resized, training=True)
    except Untranslatable:
        return True
    return _kinds(training.calls) != _kinds(inference.calls)


def _number_operations(calls: tuple[Call, ...]) -> None:
    """Give the operations names that are numbered within this call, because Keras numbers them within the process."""
    numbers: Counter[str] = Counter()
    for call in calls:
        operation = call.operation
        if not isinstance(operation, import_keras().layers.Layer):
            name = _NUMBER.sub("", operation.name)
            operation.name = f"{name}_{numbers[name]}" if numbers[name] else name
            numbers[name] += 1


def _kinds(calls: tuple[Call, ...]) -> list[Any]:
    """Return what is called: layers with weights themselves, and the classes of other layers and operations."""
    operations = [call.operation for call in calls]
    return [id(item) if getattr(item, "weights", None) else type(item) for item in operations]


def _without_batch_size(
    first: _Run, second: _Run, batch_axis: Any
) -> tuple[tuple[Call, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Return the calls, outputs and constants of the first run.

    They have a BatchSize instead of each number that depends on the batch size. The parameters of operations, which
    were created in this run, are changed in place.
    """
    if _kinds(first.calls) != _kinds(second.calls) or len(first.outputs) != len(second.outputs):
        raise Untranslatable("what its call computes depends on the batch size. Use the same operations for each size")
    calls = []
    for one, two in zip(first.calls, second.calls, strict=True):
        args, kwargs = _merged((one.args, one.kwargs), (two.args, two.kwargs), batch_axis)
        if not isinstance(one.operation, import_keras().layers.Layer):
            _merge_parameters(one, two, batch_axis)
        calls.append(dataclasses.replace(one, args=args, kwargs=kwargs))
    constants = tuple(_merged(first.constants, second.constants, batch_axis))
    return tuple(calls), tuple(_merged(first.outputs, second.outputs, batch_axis)), constants


def _merge_parameters(one: Call, two: Call, batch_axis: Any) -> None:
    operation, other = one.operation, two.operation
    for name in inspect.signature(type(operation).__init__).parameters:
        if name not in ("self", "name") and name in vars(operation):
            value = _merged(vars(operation)[name], vars(other)[name], batch_axis)
            if type(operation).__name__ == "Reshape" and name == "newshape":
                shapes = tuple(one.outputs[0].shape), tuple(two.outputs[0].shape)
                value = reshape_target(*shapes) or value
            setattr(operation, name, value)


def _merged(one: Any, two: Any, batch_axis: Any) -> Any:
    """Return a value of the first run, with a BatchSize for each number that depends on the batch size."""

    def merge(a: Any, b: Any) -> Any:
        return _merged(a, b, batch_axis)

    keras = import_keras()
    if isinstance(one, (keras.KerasTensor, keras.Variable)) or one is two:
        return one
    if type(one) is not type(two):
        raise _dependent()
    if isinstance(one, dict):
        if one.keys() != two.keys():
            raise _dependent()
        return {key: merge(item, two[key]) for key, item in one.items()}
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):
            raise _dependent()
        items = [merge(a, b) for a, b in zip(one, two, strict=True)]
        return items if isinstance(one, list) else tuple(items)
    if isinstance(one, slice):
        return slice(*(merge(getattr(one, part), getattr(two, part)) for part in ("start", "stop", "step")))
    if isinstance(one, (int, np.integer)):
        return one if one == two else _batch_size(int(one), int(two), batch_axis)
    if hasattr(one, "__array__"):
        return _merged_arrays(one, np.asarray(one), np.asarray(two), batch_axis)
    if isinstance(one, (float, str)) and one != two:
        raise _dependent()
    return one


def _merged_arrays(value: Any, one: np.ndarray, two: np.ndarray, batch_axis: Any) -> Any:
    if one.shape == two.shape:
        if np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
            return value
        if one.ndim > 1 or one.dtype.kind not in "iu":
            raise _dependent()
        sizes: Callable[[Any], list[int]] = lambda array: [int(size) for size in array.reshape(-1)]  # noqa: E731
        merged = tuple(_merged(sizes(one), sizes(two), batch_axis))
        return merged[0] if one.ndim == 0 else merged
    axes = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=False)) if a != b]
    if one.ndim != two.ndim or len(axes) != 1:
        raise _dependent()
    row, other = np.take(one, [0], axes[0]), np.take(two, [0], axes[0])
    if not (np.array_equal(row, other) and (one == row).all() and (two == row).all()):
        raise _dependent()
    shape = [_batch_size(a, b, batch_axis) if a != b else a for a, b in zip(one.shape, two.shape, strict=True)]
    return BatchConstant(row, tuple(shape))


def _batch_size(one: int, two: int, batch_axis: Any) -> BatchSize:
    first, second = _BATCH_SIZES
    if one % first or two % second or one // first != two // second:
        raise _dependent()
    return BatchSize(batch_axis, one, batch_axis.shape[0])


def _dependent() -> Untranslatable:
    return Untranslatable(
        "its call computes with the batch size, and not only as a size of a tensor. Make it independent of the batch "
        "size, or register a tfq.BridgedLayer for it"
    )

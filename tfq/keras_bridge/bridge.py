# SPDX-License-Identifier: Apache-2.0
"""Translate a functional or sequential model to an equivalent flat tf_keras model, and return trained weights to it."""

from dataclasses import dataclass, field, replace
from typing import Any

from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge.environment import import_keras, import_tf_keras, model_kind
from tfq.keras_bridge.layers.attention import attention_options, splittable_call
from tfq.keras_bridge.operations.shapes import with_batch_size
from tfq.keras_bridge.precision import compute_in_float32, layers_not_in_float32, warn_of_float32
from tfq.keras_bridge.rebuild import BuiltLayer, RebuiltModel, rebuild
from tfq.keras_bridge.strategies import in_strategy, strategy_scope
from tfq.keras_bridge.untranslatable import reason_of
from tfq.keras_bridge.verification import (
    MAX_NOISE,
    TOLERANCE,
    difference,
    next_floats,
    outputs_of,
    provided_inputs,
    random_inputs,
    random_inputs_by_kind,
    rounded_to,
)
from tfq.keras_bridge.walk import all_calls, called_with_training, graph_of, is_model
from tfq.keras_bridge.weights import array_of, assign, copy_weights, returned_weights, trained_weights
from tfq.keras_bridge.wrapped import QUANTIZED, unwrapped, wrapper_kinds
from tfq.notebook import NotebookRecord
from tfq.progress import stage
from tfq.typing import Data, KerasModel

# The names that tfmot gives to the wrapper of a layer.
_WRAPPER_NAMES = ("quant_{}", "prune_low_magnitude_{}")


@dataclass(frozen=True, kw_only=True)
class BridgeResult(NotebookRecord):
    """A tf_keras model that is equivalent to the user's model and that tfmot accepts.

    Attributes:
        model: A flat functional tf_keras model.
        layer_map: The user's layer ("outer/inner" in a nested model) -> names of the tf_keras layers that it became;
            empty if it was left out.
        origins: tf_keras layer -> the user's layer.
        notes: What was left out or changed.
        max_difference: The largest difference between the outputs of both models, as a fraction of the output's range,
            in float32.
        source: The user's model.
    """

    model: KerasModel
    layer_map: dict[str, tuple[str, ...]]
    origins: dict[str, str]
    notes: tuple[str, ...]
    max_difference: float
    source: KerasModel = field(repr=False)
    _built_layers: tuple[tuple[object, BuiltLayer], ...] = field(repr=False, default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the record's entries; the models are left out."""
        return {
            "model": self.model.name,
            "layer_map": {layer: list(names) for layer, names in self.layer_map.items()},
            "notes": list(self.notes),
            "max_difference": self.max_difference,
        }


@in_strategy
def to_tf_keras(model: KerasModel, *, data: Data = None) -> BridgeResult:
    """Translate a model to an equivalent flat tf_keras model with the same weights, in float32.

    Pruning, clustering and quantization-aware training need a tf_keras model. The result is compared with the user's
    model on random data, and on `data` if provided. An example on which rounding the inputs in float32's last bit
    changes the user's own outputs too much is left out of the comparison if the two models differ on it; a note says
    so.

    Examples:
        >>> result = tfq.to_tf_keras(keras.models.load_model("model.keras"))
        >>> pruned = tfq.prune(result.model, fit)

    Args:
        model: A built functional or sequential model of Keras 3 or tf_keras. A flat tf_keras model is returned as it
            is, unless it has attention layers, which are split into their parts. So is a quantization-aware model. The
            wrappers of tfmot's pruning and clustering are removed from a copy.
        data: Examples to compare on, in addition to random data: an array, a list or dict of arrays, or a `Split`. The
            first 32 are used.

    Returns:
        The tf_keras model, and which of its layers each of the user's layers became.

    Raises:
        UnbridgeableError: Layers cannot be translated. It is an InputError that lists all of them in `problems`.
        TfqError: The outputs differ by more than 1e-4 of an output's range.
    """
    is_tf_keras = model_kind(model) == "tf_keras"
    kinds = wrapper_kinds(model) if is_tf_keras else frozenset()
    if QUANTIZED in kinds:
        return _unchanged(model)
    if kinds:
        result = to_tf_keras(unwrapped(model), data=data)
        note = (
            f"the wrappers of tfmot ({', '.join(sorted(kinds))}) were removed, and `source` is the model without them"
        )
        return replace(result, notes=(note, *result.notes))
    rebuilt = None if is_tf_keras and _is_flat(model) else rebuild(model)
    if rebuilt is None or (is_tf_keras and _is_flat(model, count_attention=False) and not _has_split_layers(rebuilt)):
        return _unchanged(model)
    warn_of_float32(model)
    ignored = [] if is_tf_keras else called_with_training(model)
    if ignored:
        rebuilt.notes.append(
            f"{', '.join(ignored)}: called with training=True, which Keras 3 ignores in model.predict. The translated "
            "model ignores it too"
        )
        warn(f"to_tf_keras: {rebuilt.notes[-1]}")
    _copy_weights(rebuilt)
    try:
        worst, not_compared = _verify(model, rebuilt, data)
    except TfqError:
        # tf_keras adds masks to scores, so rows that are masked completely may differ after a split.
        if not (is_tf_keras and _has_split_layers(rebuilt)):
            raise
        if _is_flat(model, count_attention=False):
            return _unchanged(model)
        rebuilt = rebuild(model, single_layers=True)
        _copy_weights(rebuilt)
        worst, not_compared = _verify(model, rebuilt, data)
    return BridgeResult(
        model=rebuilt.model,
        layer_map={path: tuple(names) for path, names in rebuilt.layer_map.items()},
        origins=rebuilt.origins,
        notes=tuple(dict.fromkeys([*rebuilt.notes, *_shared_weights(rebuilt), *not_compared])),
        max_difference=worst,
        source=model,
        _built_layers=tuple(rebuilt.by_layer.values()),
    )


def _unchanged(model: Any) -> BridgeResult:
    names: dict[str, tuple[str, ...]] = {layer.name: (layer.name,) for layer in model.layers}
    origins = {name: name for name in names}
    return BridgeResult(model=model, layer_map=names, origins=origins, notes=(), max_difference=0.0, source=model)


def _copy_weights(rebuilt: RebuiltModel) -> None:
    for layer, built in rebuilt.by_layer.values():
        copy_weights(layer, built.translation, f"layer {built.path!r}")


def return_weights(result: BridgeResult, trained: KerasModel | None = None) -> None:
    """Copy trained weights back into the model that was passed to `to_tf_keras`.

    Examples:
        >>> result = tfq.to_tf_keras(model)
        >>> tfq.return_weights(result, tfq.prune(result.model, fit))
        >>> model.save("pruned.keras")

    Args:
        result: The result of `to_tf_keras`; its `source` is changed in place.
        trained: A trained copy of `result.model` with the same layers: a pruned one (with or without tfmot's wrappers),
            or a quantization-aware one (layers named quant_NAME). None means `result.model` itself.

    Raises:
        InputError: `trained` lacks layers, which the message names; or it is not a tf_keras model. Nothing is changed
            then.
    """
    trained = result.model if trained is None else trained
    if model_kind(trained) != "tf_keras":
        raise InputError(
            f"return_weights expected a trained copy of the tf_keras model {result.model.name!r}, got the Keras 3 "
            f"model {trained.name!r}",
            field="trained",
            expected=result.model.name,
            got=getattr(trained, "name", None),
        )
    layers = {layer.name: layer for layer in trained.layers}
    pairs: list[tuple[Any, BuiltLayer | None]] = list(result._built_layers) or [
        (layer, None) for layer in result.source.layers
    ]
    matches, missing = [], []
    for user_layer, built in pairs:
        weighted = [user_layer] if built is None else built.translation.weighted
        trained_layers = [
            (bridged_layer, _layer_or_wrapper(bridged_layer, layers))
            for bridged_layer in weighted
            if bridged_layer.weights
        ]
        missing += [bridged_layer.name for bridged_layer, trained_layer in trained_layers if trained_layer is None]
        if trained_layers:
            matches.append((user_layer, built, trained_layers))
    if missing:
        raise InputError(
            f"model {trained.name!r} has no layer {', '.join(missing)}. Expected a trained copy of the bridged model "
            f"{result.model.name!r}, whose layers have the same names or quant_NAME",
            field="trained",
            expected=tuple(missing),
            got=trained.name,
        )
    provided: list[tuple[Any, Any]] = []
    for user_layer, built, trained_layers in matches:
        arrays = [
            array_of(variable)
            for bridged_layer, trained_layer in trained_layers
            for variable in trained_weights(trained_layer, bridged_layer, f"layer {bridged_layer.name!r}")
        ]
        if built is None:
            provided += zip(user_layer.weights, arrays, strict=True)
        else:
            provided += returned_weights(user_layer, arrays, built.translation, f"layer {built.path!r}")
    with strategy_scope(result.source):
        assign(provided)


def _layer_or_wrapper(bridged_layer: Any, layers: dict[str, Any]) -> Any:
    """Return the layer of a trained copy, or tfmot's wrapper of it, for a layer of the bridged model."""
    names = [bridged_layer.name, *(pattern.format(bridged_layer.name) for pattern in _WRAPPER_NAMES)]
    return next((layers[name] for name in names if name in layers), None)


def _has_split_layers(rebuilt: RebuiltModel) -> bool:
    return any(len(built.translation.layers) != 1 for _, built in rebuilt.by_layer.values())


def _is_flat(model: Any, *, count_attention: bool = True) -> bool:
    """Check whether a tf_keras model can stay unchanged.

    Args:
        model: The model.
        count_attention: Whether attention that can be split counts as a reason to change it.
    """
    graph_of(model)
    return not (
        any(is_model(layer) for layer in model.layers)
        or layers_not_in_float32(model)
        or (count_attention and any(_can_be_split(layer) for layer in model.layers))
    )


def _can_be_split(layer: Any) -> bool:
    """Check whether a tf_keras layer is attention that can be split."""
    if type(layer).__name__ != "MultiHeadAttention" or len(layer.inbound_nodes) != 1:
        return False
    [node] = layer.inbound_nodes
    return splittable_call(attention_options(layer), (node.call_args, node.call_kwargs), implicit=True) is not None


@stage("comparing the rebuilt model with the original")
def _verify(model: Any, rebuilt: RebuiltModel, data: Any) -> tuple[float, list[str]]:
    """Return the largest difference over random and provided data, and notes.

    Raises:
        TfqError: The difference is too large.
    """

    def representable(inputs: list[Any]) -> list[Any]:
        return rounded_to(graph.flat(graph.input_structure), inputs)

    graph = graph_of(model)
    provided = {} if data is None else {"the provided data": representable(provided_inputs(rebuilt.model, data))}
    random = [representable(inputs) for inputs in random_inputs(rebuilt.model)]
    worst = _difference(model, rebuilt.model, [*random, *provided.values()])
    if worst <= TOLERANCE:
        return worst, []
    by_kind = {kind: representable(inputs) for kind, inputs in random_inputs_by_kind(rebuilt.model).items()}
    compared = {**by_kind, **provided}
    noise = {
        kind: difference(_outputs(model, [inputs]), _outputs(model, [next_floats(inputs)]))
        for kind, inputs in compared.items()
    }
    informative = [inputs for kind, inputs in compared.items() if noise[kind] <= MAX_NOISE]
    notes = [
        f"not compared on {kind}: a change of these inputs in the last bit of float32 changes the output by "
        f"{fraction:.1g} of its range"
        for kind, fraction in noise.items()
        if not fraction <= MAX_NOISE
    ]
    if informative:
        worst = _difference(model, rebuilt.model, informative)
        if worst <= TOLERANCE:
            return worst, notes
        advice = "This is a bug of tfq: please report the layer. Until it is fixed, register a tfq.BridgedLayer for it"
    else:
        advice = f"The comparison is inconclusive on this data ({'; '.join(notes)}). Pass examples of the training data"
    location = _first_difference(model, rebuilt, informative or list(compared.values()))
    raise TfqError(
        f"model {model.name!r}: the outputs of the translated model differ by {worst:.2g} of the output range, "
        f"expected at most {TOLERANCE:g}{location}. {advice}",
        field="model",
        expected=TOLERANCE,
        got=worst,
    )


def _difference(model: Any, rebuilt: Any, input_sets: list[list[Any]]) -> float:
    return difference(_outputs(model, input_sets), _outputs(rebuilt, input_sets))


def _outputs(model: Any, input_sets: list[list[Any]]) -> list[list[Any]]:
    """Return a list of float32 outputs for each set of inputs.

    Raises:
        InputError: The model does not run on them.
    """
    import tensorflow as tf

    graph = graph_of(model)
    operations = [call.operation for call in all_calls(graph)]
    with compute_in_float32(model):
        try:
            results = []
            for inputs in input_sets:
                with with_batch_size(operations, len(inputs[0])):
                    results.append(outputs_of(model, graph.input_structure, inputs))
            return results
        except (tf.errors.OpError, ValueError) as error:
            shapes = ", ".join(str(array.shape) for array in input_sets[0])
            raise InputError(
                f"model {model.name!r} does not run on inputs of {shapes}, on which tfq compares it. Expected a model "
                f"that runs on any number of examples: {reason_of(error)}",
                field="model",
                expected="a model that runs on any number of examples",
                got=model.name,
            ) from error


def _first_difference(model: Any, rebuilt: RebuiltModel, input_sets: list[list[Any]]) -> str:
    """Return the first layer whose outputs differ, as the end of a message; "" if it is unknown."""
    if model_kind(model) != "keras":
        return ""
    keras, tf_keras = import_keras(), import_tf_keras()
    graph, names = graph_of(model), [name for name, _, _ in rebuilt.tensors]
    user_model = keras.Model(graph.input_structure, [tensor for _, tensor, _ in rebuilt.tensors])
    bridged_model = tf_keras.Model(
        graph_of(rebuilt.model).input_structure, [tensor for _, _, tensor in rebuilt.tensors]
    )
    a, b = _outputs(user_model, input_sets), _outputs(bridged_model, input_sets)
    for index, name in enumerate(names):
        worst = difference([[outputs[index]] for outputs in a], [[outputs[index]] for outputs in b])
        if not worst <= TOLERANCE:
            return f"; the first layer that differs is {name!r} ({worst:.2g})"
    return ""


def _shared_weights(rebuilt: RebuiltModel) -> list[str]:
    """Return a note for each weight that several of the user's layers share: it became one weight for each layer."""
    owners: dict[int, list[str]] = {}
    for layer, built in rebuilt.by_layer.values():
        for variable in layer.weights:
            owners.setdefault(id(variable), []).append(built.path)
    shared = [paths for paths in owners.values() if len(paths) > 1]
    return [f"{' and '.join(paths)} share a weight; in tf_keras each has a copy of it" for paths in shared]

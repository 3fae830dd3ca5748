# SPDX-License-Identifier: Apache-2.0
"""From any functional or sequential model, of either Keras, to an equal flat tf_keras model, and the weights back."""

from dataclasses import dataclass, field
from typing import Any

from tfq.errors import InputError, TfqError
from tfq.keras_bridge.environment import import_keras, import_tf_keras, model_kind
from tfq.keras_bridge.layers.attention import attention_options, splittable_call
from tfq.keras_bridge.rebuild import Made, Rebuilt, reason_of, rebuild
from tfq.keras_bridge.verification import (
    MOST_NOISE,
    TOLERANCE,
    computing_in_float32,
    difference,
    given_inputs,
    narrow_layers,
    one_step_up,
    outputs_of,
    random_inputs,
    random_inputs_by_kind,
)
from tfq.keras_bridge.walk import graph_of, is_model
from tfq.keras_bridge.weights import array_of, assign, carried_weights, copy_weights, given_back
from tfq.typing import Data, KerasModel

# How tfmot names the wrapper around a layer.
_WRAPPED = ("quant_{}", "prune_low_magnitude_{}")


@dataclass(frozen=True, kw_only=True)
class BridgeResult:
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
    _made: tuple[tuple[object, Made], ...] = field(repr=False, default=())

    def to_dict(self) -> dict[str, Any]:
        """For the record: all but the models."""
        return {
            "model": self.model.name,
            "layer_map": {layer: list(names) for layer, names in self.layer_map.items()},
            "notes": list(self.notes),
            "max_difference": self.max_difference,
        }


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
            is, unless it has attention layers, which are split into their parts.
        data: Examples to compare on, in addition to random data: an array, a list or dict of arrays, or a `Split`. The
            first 32 are used.

    Returns:
        The tf_keras model, and which of its layers each of the user's layers became.

    Raises:
        UnbridgeableError: Layers cannot be translated. It is an InputError that lists all of them in `problems`.
        TfqError: The outputs differ by more than 1e-4 of an output's range.
    """
    is_tf_keras = model_kind(model) == "tf_keras"
    rebuilt = None if is_tf_keras and _is_flat(model) else rebuild(model)
    if rebuilt is None or (is_tf_keras and _is_flat(model, parts=False) and not _in_parts(rebuilt)):
        return _unchanged(model)
    _copy_weights(rebuilt)
    try:
        worst, not_compared = _verified(model, rebuilt, data)
    except TfqError:
        # tf_keras adds masks to scores: in parts, rows that are masked throughout may differ.
        if not (is_tf_keras and _in_parts(rebuilt)):
            raise
        if _is_flat(model, parts=False):
            return _unchanged(model)
        rebuilt = rebuild(model, whole=True)
        _copy_weights(rebuilt)
        worst, not_compared = _verified(model, rebuilt, data)
    return BridgeResult(
        model=rebuilt.model,
        layer_map={path: tuple(names) for path, names in rebuilt.layer_map.items()},
        origins=rebuilt.origins,
        notes=tuple(dict.fromkeys([*rebuilt.notes, *_tied(rebuilt), *not_compared])),
        max_difference=worst,
        source=model,
        _made=tuple(rebuilt.by_layer.values()),
    )


def _unchanged(model: Any) -> BridgeResult:
    names: dict[str, tuple[str, ...]] = {layer.name: (layer.name,) for layer in model.layers}
    origins = {name: name for name in names}
    return BridgeResult(model=model, layer_map=names, origins=origins, notes=(), max_difference=0.0, source=model)


def _copy_weights(rebuilt: Rebuilt) -> None:
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
            f"return_weights takes a trained copy of the tf_keras model {result.model.name!r}",
            field="trained",
            expected=result.model.name,
            got=getattr(trained, "name", None),
        )
    layers = {layer.name: layer for layer in trained.layers}
    pairs: list[tuple[Any, Made | None]] = list(result._made) or [(layer, None) for layer in result.source.layers]
    match, missing = [], []
    for theirs, built in pairs:
        weighted = [theirs] if built is None else built.translation.weighted
        carried = [(ours, _carrier(ours, layers)) for ours in weighted if ours.weights]
        missing += [ours.name for ours, carrier in carried if carrier is None]
        if carried:
            match.append((theirs, built, carried))
    if missing:
        raise InputError(
            f"model {trained.name!r} has no layer {', '.join(missing)}: expected a trained copy of the bridged model "
            f"{result.model.name!r}, with its layers under their names or quant_NAME",
            field="trained",
            expected=tuple(missing),
            got=trained.name,
        )
    provided: list[tuple[Any, Any]] = []
    for theirs, built, carried in match:
        arrays = [
            array_of(variable)
            for ours, carrier in carried
            for variable in carried_weights(carrier, ours, f"layer {ours.name!r}")
        ]
        if built is None:
            provided += zip(theirs.weights, arrays, strict=True)
        else:
            provided += given_back(theirs, arrays, built.translation, f"layer {built.path!r}")
    assign(provided)


def _carrier(ours: Any, layers: dict[str, Any]) -> Any:
    """The layer that `ours` is in a trained copy, or the wrapper of tfmot's around it; None where it has none."""
    names = [ours.name, *(wrapped.format(ours.name) for wrapped in _WRAPPED)]
    return next((layers[name] for name in names if name in layers), None)


def _in_parts(rebuilt: Rebuilt) -> bool:
    return any(len(built.translation.layers) != 1 for _, built in rebuilt.by_layer.values())


def _is_flat(model: Any, *, parts: bool = True) -> bool:
    """Check whether a tf_keras model can stay as it is; `parts`: whether attention that has parts counts."""
    graph_of(model)
    return not (
        any(is_model(layer) for layer in model.layers)
        or narrow_layers(model)
        or (parts and any(_has_parts(layer) for layer in model.layers))
    )


def _has_parts(layer: Any) -> bool:
    """Whether the layer, of tf_keras, is attention that is brought over in its parts."""
    if type(layer).__name__ != "MultiHeadAttention" or len(layer.inbound_nodes) != 1:
        return False
    [node] = layer.inbound_nodes
    return splittable_call(attention_options(layer), (node.call_args, node.call_kwargs), implicit=True) is not None


def _verified(model: Any, rebuilt: Rebuilt, data: Any) -> tuple[float, list[str]]:
    """The largest difference over random and given data, and notes. Raises TfqError when it is too large."""
    provided = {} if data is None else {"the given data": given_inputs(rebuilt.model, data)}
    worst = _difference(model, rebuilt.model, [*random_inputs(rebuilt.model), *provided.values()])
    if worst <= TOLERANCE:
        return worst, []
    compared = {**random_inputs_by_kind(rebuilt.model), **provided}
    noise = {
        kind: difference(_outputs(model, [inputs]), _outputs(model, [one_step_up(inputs)]))
        for kind, inputs in compared.items()
    }
    telling = [inputs for kind, inputs in compared.items() if noise[kind] <= MOST_NOISE]
    notes = [
        f"not compared on {kind}: float32's last bit in these inputs alone makes {fraction:.1g} of the output range"
        for kind, fraction in noise.items()
        if not fraction <= MOST_NOISE
    ]
    if telling:
        worst = _difference(model, rebuilt.model, telling)
        if worst <= TOLERANCE:
            return worst, notes
        message = (
            "This is a mistake of tfq's: please report the layer, and meanwhile give a translator of your own for it"
        )
    else:
        message = (
            f"And nothing can be told on this data ({'; '.join(notes)}): give examples of what the model was trained on"
        )
    departure = _first_departure(model, rebuilt, telling or list(compared.values()))
    raise TfqError(
        f"model {model.name!r} became a tf_keras model that differs by {worst:.2g} of the output range, expected at "
        f"most "
        f"{TOLERANCE:g}{departure}. {message}",
        field="model",
        expected=TOLERANCE,
        got=worst,
    )


def _difference(model: Any, rebuilt: Any, sets: list[list[Any]]) -> float:
    return difference(_outputs(model, sets), _outputs(rebuilt, sets))


def _outputs(model: Any, sets: list[list[Any]]) -> list[list[Any]]:
    """In float32, for each set of inputs a list of outputs. Raises InputError where the model does not run on them."""
    import tensorflow as tf

    structure = graph_of(model).input_structure
    with computing_in_float32(model):
        try:
            return [outputs_of(model, structure, inputs) for inputs in sets]
        except (tf.errors.OpError, ValueError) as error:
            shapes = ", ".join(str(array.shape) for array in sets[0])
            raise InputError(
                f"model {model.name!r} does not run on inputs of {shapes}, on which it was to be compared: expected a "
                f"model that runs on any number of examples: {reason_of(error)}",
                field="model",
                expected="a model that runs on any number of examples",
                got=model.name,
            ) from error


def _first_departure(model: Any, rebuilt: Rebuilt, sets: list[list[Any]]) -> str:
    """Where the two begin to differ, as words; empty where that cannot be told."""
    if model_kind(model) != "keras":
        return ""
    keras, tf_keras = import_keras(), import_tf_keras()
    graph, names = graph_of(model), [name for name, _, _ in rebuilt.tensors]
    theirs = keras.Model(graph.input_structure, [tensor for _, tensor, _ in rebuilt.tensors])
    ours = tf_keras.Model(graph_of(rebuilt.model).input_structure, [tensor for _, _, tensor in rebuilt.tensors])
    a, b = _outputs(theirs, sets), _outputs(ours, sets)
    for index, name in enumerate(names):
        worst = difference([[outputs[index]] for outputs in a], [[outputs[index]] for outputs in b])
        if not worst <= TOLERANCE:
            return f"; they part at layer {name!r} ({worst:.2g})"
    return ""


def _tied(rebuilt: Rebuilt) -> list[str]:
    """A note for each weight that several of the user's layers own together: it became one weight for each."""
    owners: dict[int, list[str]] = {}
    for layer, built in rebuilt.by_layer.values():
        for variable in layer.weights:
            owners.setdefault(id(variable), []).append(built.path)
    shared = [paths for paths in owners.values() if len(paths) > 1]
    return [f"{' and '.join(paths)} own one weight together; in tf_keras each has its own" for paths in shared]

# SPDX-License-Identifier: Apache-2.0
"""Models that tfmot has wrapped: for quantization-aware training, for pruning, or for clustering.

tfmot replaces a layer by a wrapper, which changes the weights or the outputs of the layer inside. This module finds the
wrappers, and returns a model of the layers inside with the weights that the wrapped model computes with.

Private symbols, read in tf_keras 2.21.0 and tensorflow-model-optimization 0.8.1:

- tf_keras.src.engine.functional: get_network_config, reconstruct_from_config
- PruneLowMagnitude.pruning_vars, ClusterWeights.update_clustered_weights_associations, position_original_weights and
  get_weight_from_layer
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfq.errors import InputError, warn
from tfq.keras_bridge.copies import full_config, is_adapted, keep_class, keep_names
from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.quantize_configs import quantize_config_classes
from tfq.keras_bridge.weights import trained_weights

QUANTIZED, ANNOTATED, PRUNED, CLUSTERED = "fake quantization", "QuantizeAnnotate", "PruneLowMagnitude", "ClusterWeights"
_KINDS = {
    "QuantizeLayer": QUANTIZED,
    "QuantizeWrapper": QUANTIZED,
    "QuantizeWrapperV2": QUANTIZED,
    "QuantizeAnnotate": ANNOTATED,
    "PruneLowMagnitude": PRUNED,
    "ClusterWeights": CLUSTERED,
    "ClusterWeightsRNN": CLUSTERED,
    "ClusterWeightsMHA": CLUSTERED,
}


def wrapper_kind(layer: Any) -> str | None:
    """Return the kind of a tfmot wrapper (or QuantizeLayer), or None for any other layer."""
    is_tfmot = type(layer).__module__.startswith("tensorflow_model_optimization.")
    return _KINDS.get(type(layer).__name__) if is_tfmot else None


def wrapper_kinds(model: Any) -> frozenset[str]:
    """Return the kinds of tfmot's wrappers in a model, including its nested models."""
    return frozenset(kind for layer in _layers(model) if (kind := wrapper_kind(layer)))


def _layers(model: Any) -> Iterator[Any]:
    for layer in getattr(model, "layers", None) or ():
        yield layer
        yield from _layers(layer)


def unwrapped(model: Any, context: str = "model") -> Any:
    """Return a copy of a functional or sequential tf_keras model without tfmot's wrappers.

    The copy computes the same outputs; those of a quantization-aware model, without the rounding of fake quantization.
    The weights are those that the wrapped model computes with: masked by pruning, or the centroids of clusters. Layers
    have the names of the layers inside the wrappers.

    Args:
        model: The model. It does not change.
        context: Start of error messages.

    Raises:
        InputError: tfq cannot copy the layer in a wrapper.
    """
    from tf_keras.src.engine import functional

    tf_keras = import_tf_keras()
    removed = {layer.name for layer in model.layers if type(layer).__name__ == "QuantizeLayer" and wrapper_kind(layer)}
    pairs: list[tuple[Any, Any]] = []
    new_layers: dict[str, Any] = {}

    def copy(layer: Any) -> dict[str, Any]:
        if layer.name not in removed:
            new_layers[layer.name] = new = _copied_layer(layer)
            pairs.append((layer, new))
        return {}

    config = functional.get_network_config(model, serialize_layer_fn=copy)
    sources = {entry["name"]: entry["inbound_nodes"] for entry in config["layers"] if entry["name"] in removed}
    config["layers"] = [entry for entry in config["layers"] if entry["name"] not in removed]
    for key, value in config.items():
        config[key] = _without(sources, value)
    inputs, outputs, _ = functional.reconstruct_from_config(config, created_layers=new_layers)
    result = tf_keras.Model(inputs, outputs, name=model.name)
    for old, new in pairs:
        _copy_weights(old, new)
    keep_names(model, result)
    keep_class(model, result, {id(old): new for old, new in pairs}, context)
    return result


def _copied_layer(layer: Any) -> Any:
    tf_keras = import_tf_keras()
    if isinstance(layer, tf_keras.layers.InputLayer):
        return tf_keras.layers.InputLayer.from_config(layer.get_config())
    if isinstance(layer, tf_keras.Model):
        if wrapper_kinds(layer):
            return unwrapped(layer)
        return tf_keras.models.clone_model(layer)
    if wrapper_kind(layer) is None:
        return type(layer).from_config(full_config(layer))
    inner = layer.layer
    if type(layer).__name__ == "ClusterWeightsMHA":
        raise InputError(
            f"layer {layer.name!r} is attention in a ClusterWeights wrapper, which tfq cannot remove: pass "
            "tfmot.clustering.keras.strip_clustering(model)",
            field="model",
            expected="a model without ClusterWeightsMHA",
            got=layer.name,
            limit="tfmot-attention",
        )
    config = inner.get_config()
    activation = getattr(inner, "activation", None)
    plain = _plain_activation(activation)
    if plain is not activation:
        config["activation"] = "linear"
    stand_ins = set(quantize_config_classes().values())
    # A layer whose class fake quantization replaced gets its own class again.
    base: Any = next(
        cls for cls in type(inner).__mro__ if cls not in stand_ins and issubclass(cls, tf_keras.layers.Layer)
    )
    new = base.from_config(config)
    new.trainable = inner.trainable
    if plain is not activation:
        new.activation = plain
    return new


def _plain_activation(activation: Any) -> Any:
    """Return the activation function without tfmot's objects around it."""
    while type(activation).__name__ == "QuantizeAwareActivation":
        activation = activation.activation
    return import_tf_keras().activations.linear if type(activation).__name__ == "NoOpActivation" else activation


def _without(sources: dict[str, Any], value: Any) -> Any:
    """Return a part of a network's config in which references to removed layers are those to the layers before them.

    Args:
        sources: Removed layer -> its inbound nodes, each a reference [layer, node, tensor, ...].
        value: The part of the config.
    """
    if isinstance(value, dict):
        return {key: _without(sources, item) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) >= 3 and isinstance(value[0], str) and value[0] in sources and isinstance(value[1], int):
        source = sources[value[0]][value[1]]
        while isinstance(source[0], (list, tuple)):
            source = source[0]
        return [*source[:3], *(_without(sources, item) for item in value[3:])]
    return type(value)(_without(sources, item) for item in value)


def _copy_weights(old: Any, new: Any) -> None:
    kind = wrapper_kind(old)
    if kind is None:
        if new.weights and not is_adapted(old) and not wrapper_kinds(old):
            new.set_weights(old.get_weights())
        return
    if kind == CLUSTERED:
        new.set_weights(_clustered_values(old))
        return
    computed = computed_weights(old)
    variables = trained_weights(old, new, f"layer {old.name!r}")
    new.set_weights([computed.get(id(variable), np.asarray(variable)) for variable in variables])


def computed_weights(wrapper: Any) -> dict[int, Any]:
    """Return id of a variable -> the value that a pruning or quantizing wrapper computes with, if it differs.

    Fake quantization counts as the identity, but the quantizers of tfmot's pruning and cluster preserving schemes
    change weights before they quantize.
    """
    if wrapper_kind(wrapper) == PRUNED:
        return {id(weight): np.asarray(weight) * np.asarray(mask) for weight, mask, _ in wrapper.pruning_vars}
    return {
        id(weight): np.asarray(preserve(weight, variables))
        for weight, quantizer, variables in getattr(wrapper, "_weight_vars", ())
        if (preserve := _preserving(quantizer)) is not None
    }


def _preserving(quantizer: Any) -> Any:
    """Return (weight, variables) -> preserved weight of tfmot's schemes that preserve zeros or clusters, or None."""
    name = type(quantizer).__name__
    if name.startswith("PrunePreserve"):
        return lambda weight, variables: np.asarray(weight) * np.asarray(variables["sparsity_mask"])
    return None


def _clustered_values(wrapper: Any) -> list[Any]:
    """Return the weights of the layer in a ClusterWeights wrapper, with the values of their clusters."""
    wrapper.update_clustered_weights_associations()
    values = wrapper.layer.get_weights()
    for position, name in sorted(wrapper.position_original_weights.items()):
        values.insert(position, np.asarray(wrapper.get_weight_from_layer(name)))
    return values


def is_cluster_preserving(model: Any) -> bool:
    """Check for a quantization-aware model of tfmot's cluster preserving scheme."""
    return any(
        type(quantizer).__name__.startswith("ClusterPreserve")
        for layer in _layers(model)
        for _, quantizer, _ in getattr(layer, "_weight_vars", ())
    )


def without_wrappers(model: Any, context: str, *, keep: frozenset[str] = frozenset()) -> Any:
    """Return the model, or a copy without tfmot's wrappers if it has any; a TfqWarning says what was removed.

    Args:
        model: A tf_keras model.
        context: Start of the warning.
        keep: Kinds of wrappers that remain. A model that has only these is returned unchanged.
    """
    kinds = wrapper_kinds(model)
    if not kinds - keep:
        return model
    advice = ". Call tfq.qat again afterwards: its ranges are calibrated again" if QUANTIZED in kinds else ""
    warn(
        f"{context}: {model.name!r} has wrappers of tfmot ({', '.join(sorted(kinds))}), which are removed from a copy. "
        f"The copy computes the same{' without rounding' if QUANTIZED in kinds else ''}{advice}"
    )
    return unwrapped(model, context)

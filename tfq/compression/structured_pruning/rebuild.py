# SPDX-License-Identifier: Apache-2.0
"""The smaller model, and the proof that it computes what the given one computes with the removed filters at zero."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.graph import cloned
from tfq.compression.structured_pruning import rules
from tfq.compression.structured_pruning.channels import Channels, Site
from tfq.compression.structured_pruning.rules import BETWEEN, IN, OUT
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras

# Share of a tensor's largest value. Only the order of summation differs, over up to a few hundred layers.
_TOLERANCE = 1e-4

# For each layer the kept places of its input and output channels, see rules.kept_places.
Kept = Mapping[str, dict[str, NDArray]]


def kept_channels(model: Any, channels: Channels, sites: list[Site], removed: set[int]) -> Kept:
    """The places that stay in each layer that loses any of its channels, by its name.

    removed: roots of the sets of channels that go.
    """
    kept = {}
    for site in sites:
        ins, outs = (~np.isin(channels.roots(ends), list(removed)) for ends in (site.inputs, site.outputs))
        if not (ins.all() and outs.all()):
            layer = model.get_layer(site.layer)
            kept[site.layer] = rules.kept_places(layer, np.flatnonzero(ins), np.flatnonzero(outs))
    return kept


def smaller(model: Any, kept: Kept) -> Any:
    """A model of new layers with the same names and only these channels, with the weights of `model` that remain."""

    def resized(layer: Any) -> Any:
        config = layer.get_config()
        rule = rules.rule_of(layer)
        if layer.name in kept and rule is not None:
            config = {**config, **rule.resized(layer, kept[layer.name])}
        return type(layer).from_config(config)

    new = import_tf_keras().models.clone_model(model, clone_function=resized)
    for layer in new.layers:
        old = model.get_layer(layer.name)
        layer.set_weights(cut_weights(old, kept[layer.name]) if layer.name in kept else old.get_weights())
    return new


def cut_weights(layer: Any, kept: dict[str, NDArray]) -> list[NDArray]:
    """The weights of a layer without the places that go."""
    rule = rules.rule_of(layer)
    assert rule is not None
    weights = []
    for weight, (_, axes) in zip(layer.get_weights(), rules.weight_axes(layer, rule), strict=True):
        for at, role in enumerate(axes):
            weight = weight if role is None else np.take(weight, kept[role], axis=at)
        weights.append(weight)
    return weights


def masked(model: Any, kept: Kept, sites: list[Site]) -> Any:
    """A copy of `model`, all of its size, where the filters that go are zero, and all that is added to them.

    Where a removed channel would come in as another constant than zero (behind a sigmoid, say), the weights that it
    meets are zero as well.
    """
    copy, pairs = cloned(model)
    own = {id(layer) for layer in model.layers}  # a model inside may have layers of the same names
    constant = {site.layer for site in sites if not site.input_is_zero}
    for old, new in pairs:
        rule = rules.rule_of(old)
        if id(old) not in own or old.name not in kept or rule is None:
            continue
        weights = new.get_weights()
        for weight, (name, axes) in zip(weights, rules.weight_axes(old, rule), strict=True):
            for at, role in enumerate(axes):
                is_met = role in (IN, BETWEEN) and (old.name in constant or not rule.makes_channels)
                if name in rule.zeroed and (role == OUT or is_met):
                    gone = np.setdiff1d(np.arange(weight.shape[at]), kept[old.name][role or OUT])
                    np.moveaxis(weight, at, 0)[gone] = 0
        new.set_weights(weights)
    return copy


def check_equal(before: Any, after: Any, channels: dict[str, NDArray]) -> float:
    """The largest difference between two models on random inputs, as a share of the tensor's largest value.

    before, after: the masked model and the small one. channels: for each layer to compare, the places of the channels
    of `before` that `after` has; the models' outputs are compared as well.
    Raises TfqError naming the first layer that computes something else, by more than rounding.
    """
    names = [layer.name for layer in before.layers if layer.name in channels]
    inputs = _random_inputs(before)
    theirs, ours = (_values(model, names, inputs) for model in (before, after))
    worst = 0.0
    labels = names + [f"output {at}" for at in range(len(before.outputs))]
    for label, whole, part in zip(labels, theirs, ours, strict=True):
        wanted = whole[..., channels[label]] if label in channels else whole
        told = f"filters: the smaller model is wrong, which is a fault of tfq, at layer {label!r}: wanted "
        if part.shape != wanted.shape:
            raise TfqError(f"{told}a tensor of shape {wanted.shape}, got {part.shape}")
        if not np.isfinite(wanted).all():
            raise TfqError(f"filters: {label!r} gives NaN or infinity for random inputs, so nothing can be compared")
        largest, apart = float(np.max(np.abs(wanted), initial=0)), float(np.max(np.abs(part - wanted), initial=0))
        share = apart / largest if largest else (0.0 if apart == 0 else float("inf"))
        if not share <= _TOLERANCE:
            raise TfqError(
                f"{told}what the given model computes with the removed filters at zero, got a difference of "
                f"{share:.2g} of its largest value (up to {_TOLERANCE:g} is rounding). Name other layers in `layers`"
            )
        worst = max(worst, share)
    return worst


def _values(model: Any, names: list[str], inputs: Any) -> list[NDArray]:
    outputs = [model.get_layer(name).output for name in names] + list(model.outputs)
    found = import_tf_keras().Model(model.inputs, outputs)(inputs, training=False)
    return [np.asarray(value) for value in (found if isinstance(found, (list, tuple)) else [found])]


def _random_inputs(model: Any) -> Any:
    import tensorflow as tf

    random = np.random.default_rng(0)

    def one(tensor: Any) -> Any:
        shape = (2, *(size or 1 for size in tensor.shape[1:]))
        values = random.normal(size=shape) if tensor.dtype.is_floating else random.integers(0, 2, shape)
        return tf.cast(values, tensor.dtype)

    return [one(tensor) for tensor in model.inputs]

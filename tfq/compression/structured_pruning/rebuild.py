# SPDX-License-Identifier: Apache-2.0
"""Rebuild a model with fewer channels, and refit its weights to the outputs that it had.

What a removed channel said is partly in the others: least squares over examples finds the kernel and the bias that make
the most of those. Source: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), 3.1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.graph import cloned
from tfq.compression.structured_pruning import rules
from tfq.compression.structured_pruning.channels import Channels, Site
from tfq.compression.structured_pruning.rules import BETWEEN, IN, OUT
from tfq.compression.training import batches_of
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.copies import keep_names

# Of the mean of the normal matrix's diagonal: what the old weights weigh against the data.
_RIDGE = 1e-4
# Rows of a least-squares problem that are taken of one batch, spread over its examples and positions.
_ROWS = 1 << 15
# The normal matrix has the square of that: half a gigabyte.
_MOST_UNKNOWNS = 8192


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
    keep_names(model, new)
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
        message = (
            f"structured_pruning: the smaller model is wrong, which is a fault of tfq, at layer {label!r}: expected "
        )
        if part.shape != wanted.shape:
            raise TfqError(
                f"{message}a tensor of shape {wanted.shape}, got {part.shape}",
                field="model",
                expected=wanted.shape,
                got=label,
            )
        if not np.isfinite(wanted).all():
            raise TfqError(
                f"structured_pruning: {label!r} gives NaN or infinity for random inputs, so nothing can be compared",
                field="model",
                expected="finite outputs",
                got=label,
            )
        largest, apart = float(np.max(np.abs(wanted), initial=0)), float(np.max(np.abs(part - wanted), initial=0))
        fraction = apart / largest if largest else (0.0 if apart == 0 else float("inf"))
        if not fraction <= _TOLERANCE:
            raise TfqError(
                f"{message}what the given model computes with the removed filters at zero, got a difference of "
                f"{fraction:.2g} of its largest value (up to {_TOLERANCE:g} is rounding). Name other layers in "
                f"`layers`",
                field="model",
                expected=_TOLERANCE,
                got=label,
            )
        worst = max(worst, fraction)
    return worst


def _values(model: Any, names: list[str], inputs: Any) -> list[NDArray]:
    outputs = [model.get_layer(name).output for name in names] + list(model.outputs)
    result = import_tf_keras().Model(model.inputs, outputs)(inputs, training=False)
    return [np.asarray(value) for value in (result if isinstance(result, (list, tuple)) else [result])]


def _random_inputs(model: Any) -> Any:
    import tensorflow as tf

    random = np.random.default_rng(0)

    def one(tensor: Any) -> Any:
        shape = (2, *(size or 1 for size in tensor.shape[1:]))
        values = random.normal(size=shape) if tensor.dtype.is_floating else random.integers(0, 2, shape)
        return tf.cast(values, tensor.dtype)

    return [one(tensor) for tensor in model.inputs]


def refit(given: Any, small: Any, kept: Kept, data: Any, examples: int) -> dict[str, tuple[float, float]]:
    """Changes the weights of `small` in place; {layer: (error before, error after)}, in the order of the graph.

    given: the model that filters were taken out of. small, kept: what rebuild made of it. data: inputs, as
    `tfq.data.as_split` takes them; examples: how many of them.
    Fit are convolutions and Dense layers that have lost inputs, one after the other, each on what comes out of those
    before it by then: their errors are made good as well. Others keep the weights that they had; of those that are too
    wide for least squares a TfqWarning tells.
    An error is the root mean square of what differs before the activation, as a share of the given layer's own.
    Raises InputError where the data do not fit the model, or give NaN.
    """
    batches = list(batches_of(given, data, examples, "structured_pruning:"))
    results = {}
    for layer in small.layers:
        old = given.get_layer(layer.name)
        if layer.name not in kept or not _can_be_fit(layer) or len(layer.inbound_nodes) != 1:
            continue
        if len(kept[layer.name][IN]) == old.kernel.shape[-2]:
            continue
        unknowns = int(np.prod(layer.kernel.shape[:-1])) + 1
        if unknowns > _MOST_UNKNOWNS:
            warn(
                f"structured_pruning: {layer.name!r} keeps the weights that it had: {unknowns:,} of one filter are "
                f"too many to be "
                "refit"
            )
        else:
            results[layer.name] = _fit_anew(layer, old, kept[layer.name][OUT], small, given, batches)
    return results


def _fit_anew(
    layer: Any, old: Any, outputs: NDArray, small: Any, provided: Any, batches: list[list[NDArray]]
) -> tuple[float, float]:
    theirs, ours = _inputs_of(provided, old), _inputs_of(small, layer)
    kernel = np.asarray(layer.kernel, np.float64)
    weights = kernel.reshape(-1, kernel.shape[-1])
    wanted_weights = np.asarray(old.kernel, np.float64)[..., outputs].reshape(-1, len(outputs))
    if layer.use_bias:
        weights = np.vstack([weights, np.asarray(layer.bias, np.float64)])
        wanted_weights = np.vstack([wanted_weights, np.asarray(old.bias, np.float64)[outputs]])
    size = len(weights)
    normal, right, energy, lost = np.zeros((size, size)), np.zeros_like(weights), 0.0, 0.0
    for batch in batches:
        seen, meant = _rows(layer, ours(batch)), _rows(old, theirs(batch)) @ wanted_weights
        if not (np.isfinite(seen).all() and np.isfinite(meant).all()):
            raise InputError(
                f"structured_pruning: layer {layer.name!r} gets NaN or infinity on the data: look at its scale",
                field="data",
                expected="finite values",
                got=layer.name,
            )
        missing = meant - seen @ weights
        normal += seen.T @ seen
        right += seen.T @ missing
        spread = meant - meant.mean(0)
        energy, lost = energy + float((spread**2).sum()), lost + float((missing**2).sum())
    ridge = _RIDGE * np.trace(normal) / size or 1.0
    change = np.linalg.solve(normal + ridge * np.eye(size), right)
    # |missing - seen @ change|^2, without another pass over the data.
    after = lost - 2 * float((change * right).sum()) + float((change * (normal @ change)).sum())
    weights = weights + change
    if layer.use_bias:
        layer.bias.assign(weights[-1])
        weights = weights[:-1]
    layer.kernel.assign(weights.reshape(kernel.shape))
    scale = energy or 1.0
    return float(np.sqrt(lost / scale)), float(np.sqrt(max(after, 0.0) / scale))


def _can_be_fit(layer: Any) -> bool:
    keras = import_tf_keras()
    if type(layer) is keras.layers.Conv2D:
        return layer.groups == 1 and layer.data_format == "channels_last"
    return type(layer) is keras.layers.Dense


def _inputs_of(model: Any, layer: Any) -> Any:
    """batch -> what goes into the layer, an array."""
    part = import_tf_keras().Model(model.inputs, layer.input)

    def inputs(batch: list[NDArray]) -> NDArray:
        return np.asarray(part(batch if len(batch) > 1 else batch[0], training=False))

    return inputs


def _rows(layer: Any, inputs: NDArray) -> NDArray:
    """(rows, weights of one filter, with a 1 for the bias): what the kernel is multiplied with, at some places."""
    import tensorflow as tf

    if type(layer) is import_tf_keras().layers.Dense:
        rows = inputs.reshape(-1, inputs.shape[-1])
    else:
        height, width = layer.kernel_size
        patches = tf.image.extract_patches(
            inputs,
            (1, height, width, 1),
            (1, *layer.strides, 1),
            (1, *layer.dilation_rate, 1),
            layer.padding.upper(),
        )
        rows = np.asarray(patches).reshape(-1, patches.shape[-1])
    rows = rows[:: max(1, len(rows) // _ROWS)].astype(np.float64)
    return np.hstack([rows, np.ones((len(rows), 1))]) if layer.use_bias else rows

# SPDX-License-Identifier: Apache-2.0
"""Rebuild a model with fewer channels, and refit its weights to the outputs of the original model.

The remaining channels carry part of the information of the removed ones. Linear least squares over examples finds the
kernel and bias W of a layer that best reproduce its original outputs Y from its remaining inputs X:

    minimize ||Y - X W||^2 + ridge * ||W - W0||^2

where W0 are the weights after the removal. Source: He, Zhang and Sun 2017, "Channel Pruning for Accelerating Very Deep
Neural Networks", section 3.1.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.graph import cloned
from tfq.compression.layer_inputs import inputs_of, is_matrix_product, rows_of
from tfq.compression.structured_pruning import rules
from tfq.compression.structured_pruning.channels import Channels, Site
from tfq.compression.structured_pruning.rules import BETWEEN, IN, OUT
from tfq.compression.training import batches_of
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.copies import keep_names

# Ridge penalty, as a fraction of the mean diagonal element of the normal matrix.
_RIDGE = 1e-4
# The normal matrix has the square of this number of elements: half a gigabyte.
_MAX_UNKNOWNS = 8192


# Fraction of a tensor's largest value. Only the order of summation differs, over up to a few hundred layers.
_TOLERANCE = 1e-4

# Layer -> indices of its kept channels on each kind of axis, see rules.kept_indices.
Kept = Mapping[str, dict[str, NDArray]]


def kept_channels(model: Any, channels: Channels, sites: list[Site], removed: set[int]) -> Kept:
    """Return the indices of the kept channels of each layer that loses any.

    Args:
        model: The original model.
        channels: The sets of coupled channels.
        sites: All calls of layers with weights.
        removed: Roots of the sets to remove.
    """
    kept = {}
    for site in sites:
        ins, outs = (~np.isin(channels.roots(ends), list(removed)) for ends in (site.inputs, site.outputs))
        if not (ins.all() and outs.all()):
            layer = model.get_layer(site.layer)
            kept[site.layer] = rules.kept_indices(layer, np.flatnonzero(ins), np.flatnonzero(outs))
    return kept


def without_channels(model: Any, kept: Kept) -> Any:
    """Return a new model with the same layer names, only the kept channels, and their weights from `model`."""

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
    """Return the weights of a layer, restricted to the kept channels."""
    rule = rules.rule_of(layer)
    assert rule is not None
    weights = []
    for weight, (_, axes) in zip(layer.get_weights(), rules.weight_axes(layer, rule), strict=True):
        for axis, role in enumerate(axes):
            weight = weight if role is None else np.take(weight, kept[role], axis=axis)
        weights.append(weight)
    return weights


def masked(model: Any, kept: Kept, sites: list[Site]) -> Any:
    """Return a copy of `model`, with all channels, that sets removed filters and the terms added to them to zero.

    If a removed channel would reach a layer as a constant other than zero (after a sigmoid, for example), the weights
    of that layer that read the channel are zero as well.
    """
    copy, pairs = cloned(model)
    own = {id(layer) for layer in model.layers}  # a nested model may have layers of the same names
    constant = {site.layer for site in sites if not site.input_is_zero}
    for old, new in pairs:
        rule = rules.rule_of(old)
        if id(old) not in own or old.name not in kept or rule is None:
            continue
        weights = new.get_weights()
        for weight, (name, axes) in zip(weights, rules.weight_axes(old, rule), strict=True):
            for axis, role in enumerate(axes):
                reads_channel = role in (IN, BETWEEN) and (old.name in constant or not rule.makes_channels)
                if name in rule.zeroed and (role == OUT or reads_channel):
                    removed = np.setdiff1d(np.arange(weight.shape[axis]), kept[old.name][role or OUT])
                    np.moveaxis(weight, axis, 0)[removed] = 0
        new.set_weights(weights)
    return copy


def check_equal(before: Any, after: Any, channels: dict[str, NDArray]) -> float:
    """Compare the masked model with the small one, layer by layer, on random inputs.

    Args:
        before: The masked model.
        after: The small model.
        channels: For each layer to compare, the indices of the channels of `before` that `after` has. The outputs of
            the models are always compared.

    Returns:
        The largest difference of a tensor, as a fraction of the tensor's largest absolute value.

    Raises:
        TfqError: A layer differs by more than rounding. The error names the first one.
    """
    names = [layer.name for layer in before.layers if layer.name in channels]
    inputs = _random_inputs(before)
    masked_outputs, outputs = (_outputs_of(model, names, inputs) for model in (before, after))
    worst = 0.0
    labels = names + [f"output {index}" for index in range(len(before.outputs))]
    for label, full, output in zip(labels, masked_outputs, outputs, strict=True):
        expected = full[..., channels[label]] if label in channels else full
        message = f"structured_pruning: the small model is wrong at layer {label!r}, which is a bug of tfq: expected "
        if output.shape != expected.shape:
            raise TfqError(
                f"{message}a tensor of shape {expected.shape}, got {output.shape}",
                field="model",
                expected=expected.shape,
                got=label,
            )
        if not np.isfinite(expected).all():
            raise TfqError(
                f"structured_pruning: {label!r} returns NaN or infinity for random inputs, so that the models cannot "
                "be compared",
                field="model",
                expected="finite outputs",
                got=label,
            )
        largest = float(np.max(np.abs(expected), initial=0))
        difference = float(np.max(np.abs(output - expected), initial=0))
        fraction = difference / largest if largest else (0.0 if difference == 0 else float("inf"))
        if not fraction <= _TOLERANCE:
            raise TfqError(
                f"{message}the outputs of the original model with the removed filters at zero, got a difference of "
                f"{fraction:.2g} of the largest value (up to {_TOLERANCE:g} is rounding). Select other layers with "
                "`layers`",
                field="model",
                expected=_TOLERANCE,
                got=label,
            )
        worst = max(worst, fraction)
    return worst


def _outputs_of(model: Any, names: list[str], inputs: Any) -> list[NDArray]:
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


def refit(
    original: Any, small: Any, kept: Kept, data: Any, examples: int, changed: Container[str] = ()
) -> dict[str, tuple[float, float]]:
    """Refit the weights of the small model in place, by least squares over examples.

    Convolutions and Dense layers whose inputs have changed are refit in the order of the graph. A layer reads the
    outputs of the layers that were refit before, so that it also corrects their errors. Other layers keep their
    weights.

    Args:
        original: The model before the removal of channels.
        small: The model after the removal.
        kept: Indices of the kept channels.
        data: Inputs, in any form that `tfq.data.as_split` accepts.
        examples: Number of examples to use.
        changed: Names of layers whose inputs have changed in another way than by lost channels.

    Returns:
        Layer -> (error before, error after). An error is the root mean square of the difference before the activation,
        divided by the standard deviation of the original layer's values there.

    Raises:
        InputError: The data do not match the model's inputs, or a layer gets NaN or infinity.

    Warns:
        TfqWarning: A layer is too wide for least squares, and keeps its weights.
    """
    batches = list(batches_of(original, data, examples, "structured_pruning:"))
    results = {}
    for layer in small.layers:
        old = original.get_layer(layer.name)
        if not is_matrix_product(layer) or len(layer.inbound_nodes) != 1:
            continue
        if layer.name not in changed and layer.kernel.shape[-2] == old.kernel.shape[-2]:
            continue
        outputs = kept[layer.name][OUT] if layer.name in kept else np.arange(old.kernel.shape[-1])
        unknowns = int(np.prod(layer.kernel.shape[:-1])) + 1
        if unknowns > _MAX_UNKNOWNS:
            warn(
                f"structured_pruning: {layer.name!r} is not refit, because it has {unknowns:,} weights per filter (at "
                f"most {_MAX_UNKNOWNS:,})"
            )
        else:
            results[layer.name] = _refit_layer(layer, old, outputs, small, original, batches)
    return results


def _refit_layer(
    layer: Any, old: Any, outputs: NDArray, small: Any, original: Any, batches: list[list[NDArray]]
) -> tuple[float, float]:
    old_inputs, new_inputs = inputs_of(original, old), inputs_of(small, layer)
    kernel = np.asarray(layer.kernel, np.float64)
    weights = kernel.reshape(-1, kernel.shape[-1])
    old_weights = np.asarray(old.kernel, np.float64)[..., outputs].reshape(-1, len(outputs))
    if layer.use_bias:
        weights = np.vstack([weights, np.asarray(layer.bias, np.float64)])
        old_weights = np.vstack([old_weights, np.asarray(old.bias, np.float64)[outputs]])
    size = len(weights)
    normal, right, variance, squared_error = np.zeros((size, size)), np.zeros_like(weights), 0.0, 0.0
    for batch in batches:
        rows, target = rows_of(layer, new_inputs(batch)), rows_of(old, old_inputs(batch)) @ old_weights
        if not (np.isfinite(rows).all() and np.isfinite(target).all()):
            raise InputError(
                f"structured_pruning: layer {layer.name!r} gets NaN or infinity on the data: check the scale of the "
                "data",
                field="data",
                expected="finite values",
                got=layer.name,
            )
        residual = target - rows @ weights
        normal += rows.T @ rows
        right += rows.T @ residual
        deviation = target - target.mean(0)
        variance += float((deviation**2).sum())
        squared_error += float((residual**2).sum())
    ridge = _RIDGE * np.trace(normal) / size or 1.0
    change = np.linalg.solve(normal + ridge * np.eye(size), right)
    # ||residual - rows @ change||^2, without another pass over the data.
    after = squared_error - 2 * float((change * right).sum()) + float((change * (normal @ change)).sum())
    weights = weights + change
    if layer.use_bias:
        layer.bias.assign(weights[-1])
        weights = weights[:-1]
    layer.kernel.assign(weights.reshape(kernel.shape))
    scale = variance or 1.0
    return float(np.sqrt(squared_error / scale)), float(np.sqrt(max(after, 0.0) / scale))

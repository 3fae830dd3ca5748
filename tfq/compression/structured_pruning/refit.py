# SPDX-License-Identifier: Apache-2.0
"""The layers behind removed filters, fit anew so that they give what they gave before, as far as the rest allows.

What a removed channel said is partly in the others: least squares over examples finds the kernel and the bias that make
the most of those. Source: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), 3.1.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.examples import batches_of
from tfq.compression.structured_pruning.rebuild import Kept
from tfq.compression.structured_pruning.rules import IN, OUT
from tfq.errors import InputError, TfqWarning
from tfq.keras_bridge import import_tf_keras

# Of the mean of the normal matrix's diagonal: what the old weights weigh against the data.
_RIDGE = 1e-4
# Rows of a least-squares problem that are taken of one batch, spread over its examples and positions.
_ROWS = 1 << 15
# The normal matrix has the square of that: half a gigabyte.
_MOST_UNKNOWNS = 8192


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
    batches = list(batches_of(given, data, examples, "filters:"))
    found = {}
    for layer in small.layers:
        old = given.get_layer(layer.name)
        if layer.name not in kept or not _can_be_fit(layer) or len(layer.inbound_nodes) != 1:
            continue
        if len(kept[layer.name][IN]) == old.kernel.shape[-2]:
            continue
        unknowns = int(np.prod(layer.kernel.shape[:-1])) + 1
        if unknowns > _MOST_UNKNOWNS:
            warnings.warn(
                f"filters: {layer.name!r} keeps the weights that it had: {unknowns:,} of one filter are too many to be "
                "fit anew",
                TfqWarning,
                stacklevel=3,
            )
        else:
            found[layer.name] = _fit_anew(layer, old, kept[layer.name][OUT], small, given, batches)
    return found


def _fit_anew(
    layer: Any, old: Any, outputs: NDArray, small: Any, given: Any, batches: list[list[NDArray]]
) -> tuple[float, float]:
    theirs, ours = _inputs_of(given, old), _inputs_of(small, layer)
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
            raise InputError(f"filters: layer {layer.name!r} gets NaN or infinity on the data: look at its scale")
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

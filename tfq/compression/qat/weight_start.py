# SPDX-License-Identifier: Apache-2.0
"""Choose the 4-bit weights that quantization-aware training starts from.

With weights that are rounded to nearest, a model with 4-bit weights is often far worse than the float model, and
training spends its first epochs on that. Here the weights and steps of convolutions and Dense layers are chosen layer
by layer on calibration data, as in `tfq.ptq.reconstruction`: the outputs of a layer for its quantized inputs come close
to those of the float model.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import progress
from tfq.compression._tfmot.tfmot_symbols import wrapped
from tfq.compression.graph import cloned
from tfq.compression.layer_inputs import inputs_of, is_matrix_product, rows_of
from tfq.compression.qat.weight_steps import HIGHEST, assign_steps, int4_weights, steps_of
from tfq.compression.training import batches_of
from tfq.keras_bridge import import_tf_keras
from tfq.ptq.reconstruction import Halves, LayerMoments, choose_weights

# How far the trained weights are from their quantized values at most, in steps: half of what changes the latter.
_FROM_QUANTIZED = 0.25


def reconstruct_weights(
    model: Any, original: Any, calibration: Any, examples: int, leave_out: Collection[str] = ()
) -> None:
    """Choose the 4-bit weights and steps of a QAT model's convolutions and Dense layers, in place.

    The weights that are trained become those of the float model, moved to their quantized values as far as necessary.
    The mean error of a layer is corrected in its bias, or in the moving mean of the BatchNormalization after it.
    Weights of exactly zero stay zero. Depthwise convolutions keep their weights.

    Args:
        model: The QAT model, with calibrated ranges.
        original: The float model.
        calibration: Inputs in the model's real units, in any form that `tfq.data.as_split` accepts.
        examples: How many of them to use.
        leave_out: Names of layers of `original` that keep their weights.
    """
    layers = {layer.name: layer for layer in model.layers if is_matrix_product(wrapped(layer))}
    chosen = [
        (layers[name], weight, quantizer, variables)
        for name, weight, quantizer, variables in int4_weights(model)
        if name in layers and wrapped(layers[name]).name not in leave_out
    ]
    if not chosen:
        return
    original, _ = cloned(original)
    batches = list(batches_of(original, calibration, examples, "qat: calibration"))
    for layer, kernel, quantizer, variables in progress.counted(chosen, "choosing 4-bit weights", "layer"):
        _choose(model, original, layer, kernel, quantizer, variables, batches)


def _choose(
    model: Any,
    original: Any,
    layer: Any,
    kernel: Any,
    quantizer: Any,
    variables: dict[str, Any],
    batches: list[list[NDArray]],
) -> None:
    inner, old = wrapped(layer), original.get_layer(wrapped(layer).name)
    normalization = _normalization_behind(layer)
    rows = np.asarray(quantizer.rows(kernel)).T.astype(np.float64)
    steps = steps_of(variables)
    halves = _moments(model, original, layer, old, rows, batches)
    found = choose_weights(
        rows,
        np.clip(np.rint(rows / steps[:, None]), -HIGHEST, HIGHEST),
        steps,
        halves,
        limits=(-HIGHEST, HIGHEST),
        centered=inner.use_bias or normalization is not None,
        tries_scales=True,
    )
    ends = ((found.quantized + side * _FROM_QUANTIZED) * found.scales[:, None] for side in (-1, 1))
    kernel.assign(np.clip(rows, *ends).T.reshape(kernel.shape))
    assign_steps(variables, found.scales)
    moments = sum(halves[1:], start=halves[0])
    missing = moments.mean_targets[0] - (found.quantized * found.scales[:, None]) @ moments.inputs.mean[0]
    if inner.use_bias:
        inner.bias.assign_add(missing.astype(np.float32))
    elif normalization is not None:
        normalization.moving_mean.assign_sub(missing.astype(np.float32))


def _moments(model: Any, original: Any, layer: Any, old: Any, rows: NDArray, batches: list[list[NDArray]]) -> Halves:
    """Return the moments of the layer's inputs in the QAT model and of its outputs in the float model.

    Examples with even and with odd numbers are the two halves.
    """
    exact, rounded = inputs_of(original, old), inputs_of(model, layer)
    halves: list[LayerMoments] = []
    for batch in batches:
        arrays = rounded(batch), exact(batch)
        for place in range(min(2, len(arrays[0]))):
            patches, expected = (rows_of(old, array[place::2])[:, : rows.shape[1]] for array in arrays)
            moments = LayerMoments.of(
                patches[None].astype(np.float32),
                (expected @ rows.T)[None].astype(np.float32),
                halves[0] if halves else None,
            )
            if place < len(halves):
                halves[place] += moments
            else:
                halves.append(moments)
    return tuple(halves)


def _normalization_behind(layer: Any) -> Any | None:
    """Return the BatchNormalization that alone reads a layer, or None."""
    nodes = layer.outbound_nodes
    only = wrapped(nodes[0].layer) if len(nodes) == 1 else None
    return only if isinstance(only, import_tf_keras().layers.BatchNormalization) else None

# SPDX-License-Identifier: Apache-2.0
"""Choose the 4-bit weights that quantization-aware training starts from.

With weights that are rounded to nearest, a model with 4-bit weights is often far worse than the float model, and
training spends its first epochs on that. Here the weights and steps of convolutions and Dense layers are chosen layer
by layer on calibration data, as in `tfq.ptq.reconstruction`: the outputs of a layer for its quantized inputs come close
to those of the float model. Layers with 8-bit weights get the best real weights for their quantized inputs, so that
they correct errors of the layers before them too.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfq import progress
from tfq.compression._tfmot import tfmot_symbols
from tfq.compression._tfmot.tfmot_symbols import wrapped
from tfq.compression.graph import cloned
from tfq.compression.layer_inputs import inputs_of_layers, is_matrix_product, rows_of
from tfq.compression.qat.weight_steps import HIGHEST, assign_steps, has_int4, steps_of
from tfq.compression.training import batches_of
from tfq.keras_bridge import import_tf_keras
from tfq.ptq.reconstruction import Halves, LayerMoments, choose_weights, regressed_weights

# How far the trained weights are from their quantized values at most, in steps. From half a step on, they would
# round to other values.
_FROM_QUANTIZED = 0.25
# Passes of both models over the examples. Only one layer of a pass corrects errors of the layers before it.
_MOST_PASSES = 16
# Examples do not count for a layer if the mean square of its inputs is above this multiple of the median.
_MOST_ENERGY = 16.0


class _Place(NamedTuple):
    """A layer of the QAT model whose weights are chosen, the same layer of the float model, and its kernel."""

    layer: Any
    old: Any
    kernel: Any
    quantizer: Any
    variables: dict[str, Any]

    @property
    def rows(self) -> NDArray[np.float64]:
        """The weights: (outputs, K)."""
        return np.asarray(self.kernel).reshape(-1, self.kernel.shape[-1]).T.astype(np.float64)


def reconstruct_weights(
    model: Any, original: Any, calibration: Any, examples: int, leave_out: Collection[str] = ()
) -> None:
    """Choose the weights and 4-bit steps of a QAT model's convolutions and Dense layers, in place.

    Nothing changes in a model without 4-bit weights.

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
    original, _ = cloned(original)
    layers = {layer.name: layer for layer in model.layers if _can_be_chosen(layer)}
    places = [
        _Place(layers[name], original.get_layer(wrapped(layers[name]).name), weight, quantizer, variables)
        for name, weight, quantizer, variables in tfmot_symbols.weight_ranges(model)
        if name in layers and wrapped(layers[name]).name not in leave_out
    ]
    if not any(has_int4(place.quantizer) for place in places):
        return
    batches = list(batches_of(original, calibration, examples, "qat: calibration"))
    usual = _usual_examples(original, places, batches)
    together = math.ceil(len(places) / _MOST_PASSES)
    passes = [slice(start, start + together) for start in range(0, len(places), together)]
    for group in progress.counted(passes, "choosing 4-bit weights", "pass"):
        moments = _moments(model, original, places[group], batches, usual[group])
        for place, halves in zip(places[group], moments, strict=True):
            _choose(place, halves)


def _can_be_chosen(layer: Any) -> bool:
    inner = wrapped(layer)
    return is_matrix_product(inner) and getattr(inner, "groups", 1) == 1 and len(layer.inbound_nodes) == 1


def _choose(place: _Place, halves: Halves) -> None:
    """Change the weights and bias of a layer, and the steps of 4-bit weights."""
    inner, normalization = wrapped(place.layer), _normalization_after(place.layer)
    is_centered = inner.use_bias or normalization is not None
    if has_int4(place.quantizer):
        weights = _chosen_int4(place, halves, is_centered)
    else:
        weights = regressed_weights(place.rows, halves, centered=is_centered)
        place.kernel.assign(weights.T.reshape(place.kernel.shape))
        place.quantizer(place.kernel, True, weights=place.variables)
    moments = sum(halves[1:], start=halves[0])
    missing = moments.mean_targets[0] - weights @ moments.inputs.mean[0]
    if inner.use_bias:
        inner.bias.assign_add(missing.astype(np.float32))
    elif normalization is not None:
        normalization.moving_mean.assign_sub(missing.astype(np.float32))


def _chosen_int4(place: _Place, halves: Halves, is_centered: bool) -> NDArray[np.float64]:
    """Change the 4-bit weights and steps of a layer; return the quantized weights: (outputs, K)."""
    rows, steps = place.rows, steps_of(place.variables)
    found = choose_weights(
        rows,
        np.clip(np.rint(rows / steps[:, None]), -HIGHEST, HIGHEST),
        steps,
        halves,
        limits=(-HIGHEST, HIGHEST),
        centered=is_centered,
        tries_scales=True,
    )
    ends = ((found.quantized + side * _FROM_QUANTIZED) * found.scales[:, None] for side in (-1, 1))
    place.kernel.assign(np.clip(rows, *ends).T.reshape(place.kernel.shape))
    assign_steps(place.variables, found.scales)
    return found.quantized * found.scales[:, None]


def _usual_examples(original: Any, places: Sequence[_Place], batches: list[list[NDArray]]) -> list[NDArray[np.bool_]]:
    """Return which examples count, for each layer: (examples,); see `_MOST_ENERGY`."""
    inputs = inputs_of_layers(original, [place.old for place in places])
    energies = np.concatenate(
        [
            np.stack([np.square(item.reshape(len(item), -1), dtype=np.float64).mean(axis=1) for item in inputs(batch)])
            for batch in batches
        ],
        axis=1,
    )
    return list(energies <= _MOST_ENERGY * np.median(energies, axis=1, keepdims=True))


def _moments(
    model: Any,
    original: Any,
    places: Sequence[_Place],
    batches: list[list[NDArray]],
    usual: Sequence[NDArray[np.bool_]],
) -> list[Halves]:
    """Return the moments of the layers' inputs in the QAT model and of their outputs in the float model.

    As in `tfq.ptq.reconstruction`, only the first layer gets the outputs of the float model. Those of the others are
    the outputs for their inputs in the QAT model. Examples with even and with odd numbers are the two halves.
    """
    exact = inputs_of_layers(original, [places[0].old])
    rounded = inputs_of_layers(model, [place.layer for place in places])
    all_rows = [place.rows for place in places]
    found: list[list[LayerMoments]] = [[] for _ in places]
    first = 0
    for batch in batches:
        (expected,), actual = exact(batch), rounded(batch)
        for number, (place, rows, halves) in enumerate(zip(places, all_rows, found, strict=True)):
            counts = usual[number][first : first + len(expected)]
            targets = actual[number] if number else expected
            pairs = (array[counts] for array in (actual[number], targets))
            _add_halves(halves, place.old, rows, *pairs)
        first += len(expected)
    return [tuple(halves) for halves in found]


def _add_halves(
    halves: list[LayerMoments], layer: Any, rows: NDArray[np.float64], actual: NDArray, targets: NDArray
) -> None:
    """Add the moments of some examples, given the layer's inputs in the QAT model and those that targets are from."""
    for place in range(min(2, len(actual))):
        patches, expected = (rows_of(layer, array[place::2])[:, : rows.shape[1]] for array in (actual, targets))
        moments = LayerMoments.of(
            patches[None].astype(np.float32),
            (expected @ rows.T)[None].astype(np.float32),
            halves[0] if halves else None,
        )
        if place < len(halves):
            halves[place] += moments
        else:
            halves.append(moments)


def _normalization_after(layer: Any) -> Any | None:
    """Return the BatchNormalization that alone reads a layer, or None."""
    nodes = layer.outbound_nodes
    only = wrapped(nodes[0].layer) if len(nodes) == 1 else None
    return only if isinstance(only, import_tf_keras().layers.BatchNormalization) else None

# SPDX-License-Identifier: Apache-2.0
"""Reconstruction: choose the weights of each layer for the rounded inputs that it gets.

GPTQ rounds the weights w of a float layer as if its inputs x were exact. In the quantized model they are x', with the
errors of all layers before. Layer by layer, in the order of execution, the quantized weights q minimize

    E[(w^T x - q^T x')^2]

over the representative dataset. The best real weights are those of a linear regression of w^T x on x',

    w' = w + (H + r D)^-1 (E[x' x^T] - H) w,    H = E[x' x'^T],    D = I times the mean of H's diagonal,

where cross-validation over two halves of the samples chooses the strength r of the regularization; it may be infinite.
Without it, a layer would learn errors that only these samples have. Then q rounds w' as GPTQ does, with H. So a layer
also corrects what the layers before it did wrong. If the layer has a bias, H and E[x' x^T] are covariances, and the
bias corrects the mean error. For 4-bit weights, scales near the present one are tried for each output channel.

Samples with outputs of the layer far larger than usual count less, because few of them would decide for all others.

Sources: Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration" (the target of a
layer with its rounded inputs); Frantar et al. 2022, "GPTQ".
"""

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfq import artifacts, tflite
from tfq.progress import stage
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.gptq import (
    InputMoments,
    Rounding,
    damped,
    hash_of_samples,
    mean_patch,
    pair_layers,
    pairs_in_memory,
    round_weights,
)
from tfq.ptq.layer_pairs import ModelPair, check_samples
from tfq.ptq.weight_scales import QUANTIZED_LIMITS
from tfq.ptq.weighted_ops import WeightedOp, extract_patches
from tfq.store import in_parts

# What may be added to the diagonal of H in the regression, relative to its mean.
_RIDGES = (0.01, 0.1, 1.0)
# A sample counts less if the mean square of a layer's outputs is above this multiple of the median of all samples.
_MOST_ENERGY = 4.0
# Passes over the samples, unless memory needs more. Only one layer of a pass corrects errors of the layers before it.
_MOST_PASSES = 64
# Scales that are tried for 4-bit weights, relative to the present one.
_SCALE_FACTORS = (1.0, *np.arange(0.76, 1.0, 0.03), *np.arange(1.03, 1.16, 0.03))
# Weights that are rounded at the same time, with all their scales.
_TOGETHER = 1 << 23


@stage("reconstruction")
def reconstruct(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> Rounding:
    """Choose the weights and biases of a quantized flatbuffer again, layer by layer.

    Weights of exactly zero stay zero, so a pruned model stays pruned. A channel with such weights does not correct the
    errors of the layers before it.

    Args:
        quantized: A flatbuffer with integer activations. Weights may have 8 or 4 bits.
        floating: The float flatbuffer that it was converted from.
        samples: {input name: array of real values, batch size 1}.

    Returns:
        The flatbuffer with other weights and biases. The errors of a layer are relative to the variance of its outputs
        (to their mean square if the layer has no bias). Both are measured on the samples, with the rounded inputs of
        the layer, apart from the error of the mean, which the bias corrects.

    Raises:
        InputError: The flatbuffers do not belong together, or there are no samples.
    """
    check_samples(samples)
    pair, layers = ModelPair(floating, quantized), _Layers(quantized, floating)
    weights = functools.cache(lambda: _weights(floating, layers.of(quantized), samples))
    together = math.ceil(len(layers.of(quantized)) / _MOST_PASSES)
    batches = [{layer.key for layer, _ in batch} for batch in pairs_in_memory(layers.of(quantized), together)]

    def advance(number: int, content: bytes, errors: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        sample_weights, present = weights(), layers.of(content)
        places = [place for place, (layer, _) in enumerate(present) if layer.key in batches[number]]
        batch = [present[place] for place in places]
        moments = _moments(pair, floating, content, batch, samples, sample_weights[:, places])
        found = {item[0].key: _reconstruct_layer(*item, sums) for item, sums in zip(batch, moments, strict=True)}
        return layers.packed(), {**errors, **found}

    def inputs() -> dict[str, Any]:
        models = {"quantized": artifacts.sha256(quantized), "floating": artifacts.sha256(floating)}
        return {**models, "samples": hash_of_samples(samples)}

    content, errors = in_parts("reconstruction", len(batches), inputs, (quantized, {}), advance)
    known = {key: (before, after) for key, (before, after) in errors.items()}
    return Rounding(model=content, layers=known, skipped=layers.skipped)


class _Layers:
    """The layers of a quantized flatbuffer that is changed step by step."""

    def __init__(self, quantized: bytes, floating: bytes) -> None:
        self._content, self._floating = quantized, floating
        self._edited, self._pairs, self.skipped = pair_layers(quantized, floating)

    def of(self, content: bytes) -> list["Layer"]:
        """Return the layers of `content`, which may be the result of a step that ran in another process."""
        if content != self._content:
            self._content, (self._edited, self._pairs, _) = content, pair_layers(content, self._floating)
        return self._pairs

    def packed(self) -> bytes:
        """Return the flatbuffer with the changes of its layers."""
        self._content = tflite.pack(self._edited, len(self._content))
        return self._content


Layer = tuple[WeightedOp, WeightedOp]
"""A layer of the quantized flatbuffer, and the same layer of the float one."""


@dataclass(eq=False)
class LayerMoments:
    """Sums over all positions and samples: x' are the rounded inputs of a layer, y its float outputs without bias.

    As in `InputMoments`, both are taken relative to references near their means.

    Attributes:
        inputs: The moments of x'.
        reference: The reference of y: (groups, outputs per group).
        targets: Sums of y: (groups, outputs per group).
        cross: Sums of x' y^T: (groups, K, outputs per group).
        squares: Sums of y^2: (groups, outputs per group).
    """

    inputs: InputMoments
    reference: NDArray[np.float32]
    targets: NDArray[np.float64]
    cross: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(
        cls, rounded: NDArray[np.float32], outputs: NDArray[np.float32], first: "LayerMoments | None"
    ) -> "LayerMoments":
        """Return the moments of patches (groups, positions, K) and outputs (groups, positions, outputs per group).

        They have the references of `first`, or their own means.
        """
        center = mean_patch(rounded) if first is None else first.inputs.reference
        reference = mean_patch(outputs) if first is None else first.reference
        outputs = outputs - reference[:, None]
        return cls(
            InputMoments.of(rounded, center),
            reference,
            outputs.sum(axis=1, dtype=np.float64),
            np.matmul((rounded - center[:, None]).transpose(0, 2, 1), outputs).astype(np.float64),
            np.square(outputs).sum(axis=1, dtype=np.float64),
        )

    def __add__(self, other: "LayerMoments") -> "LayerMoments":
        """Return the sums of both sets of positions, which have the same references."""
        return LayerMoments(
            self.inputs + other.inputs,
            self.reference,
            self.targets + other.targets,
            self.cross + other.cross,
            self.squares + other.squares,
        )

    def weighted(self, weight: float) -> "LayerMoments":
        """Return the sums of positions that count `weight` times."""
        values = (self.targets * weight, self.cross * weight, self.squares * weight)
        return LayerMoments(self.inputs.weighted(weight), self.reference, *values)

    @property
    def mean_targets(self) -> NDArray[np.float64]:
        """E[y]: (groups, outputs per group)."""
        return self.reference + self.targets / self.inputs.count

    def covariances(self, centered: bool) -> tuple[NDArray, NDArray, NDArray]:
        """Return E[x' x'^T], E[x' y^T] and E[y^2] of all groups, or the covariances and variances if `centered`."""
        count = self.inputs.count
        offset, target = self.inputs.sums / count, self.targets / count
        cross = self.cross / count - offset[:, :, None] * target[:, None, :]
        squares = self.squares / count - target**2
        if not centered:
            mean, target = self.inputs.mean, self.mean_targets
            cross, squares = cross + mean[:, :, None] * target[:, None, :], squares + target**2
        return self.inputs.gram(centered), cross, np.maximum(squares, 0)


def _weights(floating: bytes, layers: Sequence[Layer], samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return how much each sample counts for each layer: (samples, layers), at most 1; see `_MOST_ENERGY`."""

    def energies(values: list[NDArray]) -> list[float]:
        return [float(np.square(array, dtype=np.float64).mean()) for array in values]

    found = np.array(list(map_activations(floating, [source.output for _, source in layers], samples, energies)))
    most = _MOST_ENERGY * np.median(found, axis=0)
    return np.where((found > most) & (most > 0), most / np.maximum(found, 1e-30), 1.0)


# The moments of one layer: those of the samples with even numbers and, from two samples on, those of the others.
Halves = tuple[LayerMoments, ...]


def _moments(
    pair: ModelPair,
    floating: bytes,
    content: bytes,
    batch: Sequence[Layer],
    samples: Sequence[Sample],
    weights: NDArray[np.float64],
) -> list[Halves]:
    """Run both models on the samples, and return the moments of each layer on both halves of the samples.

    Only the first layer of the batch gets the float model's outputs as its targets. Those of the others are the outputs
    for their rounded inputs: otherwise all of them would correct the errors that the first one corrects.

    Args:
        pair: Both models.
        floating: The float flatbuffer.
        content: The quantized flatbuffer, with the changes of the passes before.
        batch: The layers, in the order of execution.
        samples: The samples.
        weights: How much each sample counts: (samples, layers).
    """

    def copies(values: list[NDArray]) -> list[NDArray]:
        return [array.copy() for array in values]

    floats = map_activations(floating, [batch[0][1].data], samples, copies)
    rounded = map_activations(content, [layer.data for layer, _ in batch], pair.quantize_samples(samples), copies)
    kernels = [
        source.weights_by_output().reshape(source.num_inputs if source.is_depthwise else 1, -1, _patch_size(source))
        for _, source in batch
    ]
    halves: list[list[LayerMoments]] = [[], []]
    for number, ((exact,), actual) in enumerate(zip(floats, rounded, strict=True)):
        items, totals = [], halves[number % 2]
        for place, ((layer, source), kernel) in enumerate(zip(batch, kernels, strict=True)):
            real = pair.dequantize(layer.data, actual[place]).astype(np.float32)
            patches = extract_patches(source, real)
            targets = np.matmul(patches if place else extract_patches(source, exact), kernel.transpose(0, 2, 1))
            item = LayerMoments.of(patches, targets, halves[0][place] if halves[0] else None)
            items.append(item.weighted(weights[number][place]))
        halves[number % 2] = [one + other for one, other in zip(totals, items, strict=True)] if totals else items
    return [tuple(items) for items in zip(*filter(None, halves), strict=True)]


def _patch_size(layer: WeightedOp) -> int:
    return layer.weights_by_output().shape[1]


def _reconstruct_layer(layer: WeightedOp, source: WeightedOp, halves: Halves) -> tuple[float, float]:
    """Change the layer's weights and bias; return its relative errors before and after."""
    chosen = choose_weights(
        source.weights_by_output().astype(np.float64),
        layer.weights_by_output().astype(np.float64),
        layer.scales,
        halves,
        limits=QUANTIZED_LIMITS[layer.bits],
        centered=layer.has_bias,
        tries_scales=layer.has_own_scales and layer.bits < 8,
    )
    _write(layer, source, functools.reduce(operator.add, halves), chosen.quantized, chosen.scales)
    return chosen.errors


class ChosenWeights(NamedTuple):
    """Quantized weights and their scales.

    Attributes:
        quantized: Integers: (outputs, K).
        scales: (outputs,).
        errors: The relative errors of the layer before and after; see `reconstruct`.
    """

    quantized: NDArray[np.float64]
    scales: NDArray[np.float64]
    errors: tuple[float, float]


def choose_weights(
    rows: NDArray[np.float64],
    quantized: NDArray[np.float64],
    scales: NDArray[np.float64],
    halves: Halves,
    *,
    limits: tuple[int, int],
    centered: bool,
    tries_scales: bool,
) -> ChosenWeights:
    """Choose the quantized weights of a layer, as in the module docstring.

    Args:
        rows: The real weights: (outputs, K); with groups of channels, the outputs of one group after the other.
        quantized: The present quantized weights, which stay where nothing better is found.
        scales: The present scales: (outputs,).
        halves: The moments of the layer.
        limits: The smallest and the largest quantized value.
        centered: Whether something after the weights, such as a bias, corrects the mean error.
        tries_scales: Whether scales near the present ones are tried.
    """
    moments = functools.reduce(operator.add, halves)
    scales, quantized, before = scales.copy(), quantized.copy(), quantized
    factors = np.array(_SCALE_FACTORS if tries_scales else (1.0,))
    per_group = len(rows) // len(moments.reference)
    step = max(1, _TOGETHER // (len(factors) * rows.shape[1]))
    ridge, errors = _chosen_ridge(rows, halves, centered), np.zeros(3)
    for group, (gram, cross, squares) in enumerate(zip(*moments.covariances(centered), strict=True)):
        channels = slice(group * per_group, (group + 1) * per_group)
        target = _regressed(rows[channels], gram, cross, ridge)
        present = _errors(before[channels] * scales[channels, None], gram, cross, squares)
        best = present.copy()
        for start in range(0, per_group, step):
            inside = slice(start, min(start + step, per_group))
            outputs = slice(channels.start + inside.start, channels.start + inside.stop)
            chosen, tried, found = _rounded(
                target[inside], scales[outputs], factors, limits, gram, cross[:, inside], squares[inside]
            )
            better = found < best[inside]
            quantized[outputs][better] = chosen[better]
            scales[outputs] = np.where(better, tried, scales[outputs])
            best[inside] = np.where(better, found, best[inside])
        errors += [present.sum(), best.sum(), squares.sum()]
    before_and_after = float(errors[0] / max(errors[2], 1e-30)), float(errors[1] / max(errors[2], 1e-30))
    return ChosenWeights(quantized, scales, before_and_after)


def regressed_weights(rows: NDArray[np.float64], halves: Halves, *, centered: bool) -> NDArray[np.float64]:
    """Return the w' of the module docstring, the best real weights of a layer: (outputs, K).

    Args:
        rows: The real weights, as in `choose_weights`.
        halves: The moments of the layer.
        centered: As in `choose_weights`.
    """
    moments, ridge = functools.reduce(operator.add, halves), _chosen_ridge(rows, halves, centered)
    groups = zip(np.split(rows, len(moments.reference)), *moments.covariances(centered)[:2], strict=True)
    return np.concatenate([_regressed(group, gram, cross, ridge) for group, gram, cross in groups])


def _rounded(
    target: NDArray,
    scales: NDArray,
    factors: NDArray,
    limits: tuple[int, int],
    gram: NDArray,
    cross: NDArray,
    squares: NDArray,
) -> tuple[NDArray, NDArray, NDArray]:
    """Round each row of `target` at its scale times the factor with the least error; return values, scales, errors."""
    tried = factors[:, None] * scales
    values = (target / tried[:, :, None]).reshape(-1, target.shape[1])
    rounded = round_weights(values, gram, *limits)
    weights = rounded * tried.reshape(-1, 1)
    errors = _errors(weights, gram, np.tile(cross, len(factors)), np.tile(squares, len(factors))).reshape(tried.shape)
    best = errors.argmin(axis=0), np.arange(len(target))
    return rounded.reshape(*tried.shape, -1)[best], tried[best], errors[best]


def _chosen_ridge(rows: NDArray, halves: Halves, centered: bool) -> float:
    """Return the r of the module docstring: the one of a regression on one half with the least error on the other."""
    if len(halves) < 2:
        return math.inf
    ridges = (*_RIDGES, math.inf)
    errors = np.zeros(len(ridges))
    for fitted, other in (halves, halves[::-1]):
        known, unknown = (zip(*moments.covariances(centered), strict=True) for moments in (fitted, other))
        for group, (gram, cross, _), test in zip(np.split(rows, len(fitted.reference)), known, unknown, strict=True):
            for place, ridge in enumerate(ridges):
                errors[place] += _errors(_regressed(group, gram, cross, ridge), *test).sum()
    return ridges[int(errors.argmin())]


def _regressed(rows: NDArray, gram: NDArray, cross: NDArray, ridge: float) -> NDArray[np.float64]:
    """Return w' for each row w; a row with zeros stays as it is."""
    if math.isinf(ridge):
        return rows
    moved = rows + np.linalg.solve(damped(gram, ridge), cross - gram @ rows.T).T
    return np.where((rows == 0).any(axis=1, keepdims=True), rows, moved)


def _errors(weights: NDArray, gram: NDArray, cross: NDArray, squares: NDArray) -> NDArray[np.float64]:
    """Return E[(y - q^T x')^2] for each row q of `weights`."""
    return (
        squares
        - 2 * np.einsum("ok,ko->o", weights, cross)
        + np.einsum("ok,kl,ol->o", weights, gram, weights, optimize=True)
    )


def _write(layer: WeightedOp, source: WeightedOp, moments: LayerMoments, quantized: NDArray, scales: NDArray) -> None:
    data_scale = layer.data_scale
    layer.set_weights_by_output(quantized)
    if layer.has_own_scales:
        scales = scales.astype(np.float32).astype(np.float64)
        layer.set_scales(scales, data_scale * scales)
    if layer.has_bias:
        mean = np.repeat(moments.inputs.mean, len(scales) // len(moments.reference), axis=0)
        bias = source.bias + moments.mean_targets.reshape(-1) - (quantized * scales[:, None] * mean).sum(axis=1)
        limits = np.iinfo(layer.bias.dtype)
        layer.set_bias(np.clip(np.rint(bias / (data_scale * scales)), limits.min, limits.max))

# SPDX-License-Identifier: Apache-2.0
"""GPTQ: round weights to minimize the error of a layer's outputs, not that of the weights.

For the weights w of one output channel, the quantized weights q minimize
    (w - q)^T H (w - q),    H = E[x x^T], the Gram matrix of the layer's inputs on the representative dataset.
Rounding errors of correlated inputs can cancel.

1. Weights are rounded one input at a time, in descending order of the diagonal of H. The weights that are not rounded
   yet compensate each rounding error, by the Cholesky factor of the inverse of H.
2. Coordinate descent then moves single weights to other quantized values while that reduces the error.

If the layer has a bias, the bias corrects the mean of the error, so H is the covariance of the inputs instead.

Sources: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (step
1); Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon" (its base).
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import artifacts, tflite
from tfq.patterns import check_selection, fits_op
from tfq.progress import stage
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.layer_pairs import ModelPair, check_samples
from tfq.ptq.weight_scales import QUANTIZED_LIMITS, least_error_scales, nearest, widest_scales
from tfq.ptq.weighted_ops import WeightedOp, extract_patches, left_out, weighted_ops

# Added to the diagonal of H, relative to its mean: an input that is always zero makes H singular.
_DAMPING = 0.01
# Columns whose errors reach the columns after them in one product.
_COLUMNS = 64
# Passes of coordinate descent.
_SWEEPS = 4
# How far weights may be from a grid, in steps: the error of float32.
_GRID_TOLERANCE = 1e-3
# Times that the scales of few-bit weights are fitted to the rounded weights, which are then rounded again.
_SCALE_FITS = 2
# Memory for Gram matrices. Layers that do not fit wait for another pass over the samples.
_GRAM_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """The result of rounding weights by data.

    Attributes:
        model: The int8 flatbuffer with other quantized weights.
        layers: {layer: (squared error of its outputs with rounding to nearest, and with this rounding)}, relative to
            the variance of its outputs (to their mean square if the layer has no bias).
        skipped: {layer: why its weights are unchanged}.
    """

    model: bytes
    layers: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the flatbuffer."""
        layers = {name: {"before": before, "after": after} for name, (before, after) in self.layers.items()}
        return {"layers": layers, "skipped": dict(self.skipped)}


@dataclass(eq=False)
class InputMoments:
    """Sums over the input patches x of a layer, over all positions and samples, for each group of channels.

    Products are computed in float32, so they are those of x - r with a reference r near the mean: a large mean would
    take the digits of a small variance.

    Attributes:
        count: The number of patches, which is not an integer if they are weighted.
        reference: r: (groups, K).
        sums: The sum of x - r: (groups, K).
        products: The sum of (x - r) (x - r)^T: (groups, K, K).
    """

    count: float
    reference: NDArray[np.float32]
    sums: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def of(cls, patches: NDArray[np.float32], reference: NDArray[np.float32]) -> "InputMoments":
        """Return the moments of patches: (groups, positions, K)."""
        shifted = patches - reference[:, None]
        products = np.matmul(shifted.transpose(0, 2, 1), shifted).astype(np.float64)
        return cls(patches.shape[1], reference, shifted.sum(axis=1, dtype=np.float64), products)

    def weighted(self, weight: float) -> "InputMoments":
        """Return the moments of patches that count `weight` times."""
        return InputMoments(self.count * weight, self.reference, self.sums * weight, self.products * weight)

    def __add__(self, other: "InputMoments") -> "InputMoments":
        """Return the moments of both sets of patches, which have the same reference."""
        sums, products = self.sums + other.sums, self.products + other.products
        return InputMoments(self.count + other.count, self.reference, sums, products)

    @property
    def mean(self) -> NDArray[np.float64]:
        """E[x]: (groups, K)."""
        return self.reference + self.sums / self.count

    def gram(self, centered: bool) -> NDArray[np.float64]:
        """Return E[x x^T], or the covariance if `centered`: (groups, K, K)."""
        offset = self.sums / self.count
        covariance = self.products / self.count - offset[:, :, None] * offset[:, None, :]
        mean = self.mean
        return covariance if centered else covariance + mean[:, :, None] * mean[:, None, :]


@stage("optimizing rounding (GPTQ)")
def optimize_rounding(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> Rounding:
    """Round the weights of an int8 flatbuffer with GPTQ, at the scales that it has.

    Weights of exactly zero stay zero, so a pruned model stays pruned.

    Args:
        quantized: An int8 flatbuffer.
        floating: The float flatbuffer that it was converted from.
        samples: {input name: array of real values, batch size 1}.

    Raises:
        InputError: The flatbuffers do not belong together.
    """
    edited, layers, skipped = pair_layers(quantized, floating)
    errors = {}
    for batch in pairs_in_memory(layers):
        moments = input_moments(floating, [source for _, source in batch], samples)
        for (layer, source), inputs in zip(batch, moments, strict=True):
            errors[layer.key] = _round(layer, source, inputs)
    return Rounding(model=tflite.pack(edited, len(quantized)), layers=errors, skipped=skipped)


def quantize_to_int4(
    quantized: bytes,
    floating: bytes,
    samples: Sequence[Sample],
    layers: Sequence[str] = ("*",),
    *,
    rounding: bool = True,
) -> Rounding:
    """Give layers of an int8 flatbuffer 4-bit weights, from -8 to 7.

    For each output channel, the scale minimizes the squared errors of the weights, each weighted by the mean square of
    its input (its variance, if the layer has a bias). It is at most the scale that represents the largest weight.

    Args:
        quantized: An int8 flatbuffer.
        floating: The float flatbuffer that it was converted from.
        samples: {input name: array of real values, batch size 1}.
        layers: Patterns of the names of the layers, as in `conversion.int4_layers`.
        rounding: Round with GPTQ, as `optimize_rounding` does; otherwise to the nearest value.

    Raises:
        InputError: The flatbuffers do not belong together, or a pattern matches no layer.
    """
    edited, candidates, skipped = pair_layers(quantized, floating)
    outputs = {id(layer): layer.output_name for layer, _ in candidates}
    names: dict[str, str | None] = {**left_out(tflite.read(quantized)), **{item.layer: None for item, _ in candidates}}
    check_selection("int4_layers", layers, names, field="conversion.int4_layers", tensors=frozenset(outputs.values()))
    chosen = [pair for pair in candidates if fits_op(pair[0].layer, (outputs[id(pair[0])],), layers)]
    matching = {id(layer) for layer, _ in chosen}
    skipped |= {layer.key: "no pattern matches its name" for layer, _ in candidates if id(layer) not in matching}
    errors = {}
    for batch in pairs_in_memory(chosen):
        moments = input_moments(floating, [source for _, source in batch], samples)
        for (layer, source), inputs in zip(batch, moments, strict=True):
            errors[layer.key] = _quantize_layer_to_int4(layer, source, inputs, rounding)
    return Rounding(model=tflite.pack(edited, len(quantized)), layers=errors, skipped=skipped)


def pair_layers(quantized: bytes, floating: bytes) -> tuple[Any, list[tuple[WeightedOp, WeightedOp]], dict[str, str]]:
    """Return the int8 flatbuffer in object form, its layers paired with the float ones, and {layer: why skipped}."""
    pair = ModelPair(floating, quantized)
    edited = tflite.unpack(quantized)
    sources = {item.output: item for item in weighted_ops(tflite.unpack(floating), pair.floating)}
    layers, skipped = [], left_out(pair.quantized)
    for item in weighted_ops(edited, pair.quantized):
        source = sources.get(pair.float_tensors.get(item.output, tflite.ABSENT))
        if source is None or source.weights.shape != item.weights.shape:
            skipped[item.key] = "it is not quantized, or the float flatbuffer has no layer that matches it"
        else:
            layers.append((item, source))
    return edited, layers, skipped


def _quantize_layer_to_int4(
    layer: WeightedOp, source: WeightedOp, inputs: InputMoments, rounding: bool
) -> tuple[float, float]:
    """Give the layer 4-bit weights; return its relative output errors, as `_relative_errors` does."""
    rows, gram = source.weights_by_output().astype(np.float64), inputs.gram(layer.has_bias)
    per_tensor = not layer.has_own_scales
    importance = _importance(rows, gram)
    scales = least_error_scales(rows, 4, importance, per_tensor=per_tensor)
    if not per_tensor:
        scales = np.where((rows == 0).all(axis=1), layer.scales, scales)  # the bias is in steps of this scale
    quantized = nearest(rows, scales[:, None], 4)
    if rounding:
        quantized = _rounded(rows, scales, gram, 4)
    data_scale = layer.data_scale
    weight_scales = scales[:1] if per_tensor else scales
    layer.set_int4(quantized, weight_scales, (data_scale * scales)[: len(weight_scales)])
    if layer.has_bias:
        offset = _mean_error(rows, quantized * scales[:, None], inputs)
        layer.set_bias(np.rint((source.bias - offset) / (data_scale * scales)))
    return _relative_errors(rows, quantized * scales[:, None], gram, 4, per_tensor=per_tensor)


def with_int4_grids(quantized: bytes, floating: bytes, layers: Collection[str]) -> Rounding:
    """Store the weights of layers of an int8 flatbuffer as int4, if the float weights are on a 4-bit grid.

    A layer has such a grid if the weights of each output channel are multiples, from -7 to 7, of one step. Training
    with 4 bits gives such weights; its values are symmetric, because a BatchNormalization after the layer can change
    their signs. Others can have a grid by chance: a single weight per channel always has one.

    Args:
        quantized: An int8 flatbuffer.
        floating: The float flatbuffer that it was converted from.
        layers: The names of the layers, as in `WeightedOp.layer`. All others stay int8.

    Returns:
        The result; the errors of its layers are 0.

    Raises:
        InputError: The flatbuffers do not belong together.
    """
    edited, candidates, skipped = pair_layers(quantized, floating)
    stored = {}
    for layer, source in candidates:
        rows = source.weights_by_output().astype(np.float64)
        if layer.layer not in layers:
            skipped[layer.key] = "it is not one of the layers to store"
            continue
        scales = _grid_steps(rows)
        if scales is None or not layer.has_own_scales:
            skipped[layer.key] = "its weights are not on a grid of 4 bits for each channel"
            continue
        scales = np.where((rows == 0).all(axis=1), layer.scales, scales)
        data_scale = layer.data_scale
        layer.set_int4(np.rint(rows / scales[:, None]), scales, data_scale * scales)
        if layer.has_bias:
            layer.set_bias(np.rint(source.bias / (data_scale * scales)))
        stored[layer.key] = (0.0, 0.0)
    return Rounding(model=tflite.pack(edited, len(quantized)), layers=stored, skipped=skipped)


def _grid_steps(rows: NDArray) -> NDArray[np.float64] | None:
    """Return the largest step of each row whose multiples from -7 to 7 the weights are; None if a row has none."""
    largest, highest = np.abs(rows).max(axis=1), QUANTIZED_LIMITS[4][1]
    results = np.where(largest > 0, 0.0, 1.0)
    for count in range(1, highest + 1):
        steps = np.where(largest > 0, largest / count, 1.0)
        quantized = rows / steps[:, None]
        fits = np.abs(quantized - np.rint(quantized)).max(axis=1) < _GRID_TOLERANCE
        results = np.where((results == 0) & fits, steps, results)
    return None if (results == 0).any() else results.astype(np.float32).astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class FewBitWeights:
    """Weights of 4 or 2 bits for ops that compute on float activations, rounded by data.

    Attributes:
        model: The float flatbuffer, whose biases correct the mean error of the outputs.
        weights: {tensor of the main subgraph: (quantized values in the tensor's shape, as int8; their scales)}.
        layers: As in `Rounding`.
        skipped: {layer: why its weights of 4 or 2 bits are not rounded by data}. They are rounded to nearest.
    """

    model: bytes
    weights: Mapping[int, tuple[NDArray[np.int8], NDArray[np.float32]]]
    layers: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the flatbuffer and the weights."""
        return Rounding(model=b"", layers=self.layers, skipped=self.skipped).to_dict()


@stage("optimizing rounding (GPTQ)")
def round_to_few_bits(
    floating: bytes, samples: Sequence[Sample], bits: Mapping[int, int], *, per_tensor: Collection[int] = ()
) -> FewBitWeights:
    """Round the weights of convolutions and dense layers in the main subgraph to 4 or 2 bits with GPTQ.

    The scales minimize the squared errors of the weights, each weighted as in `quantize_to_int4`. They are then fitted
    to the rounded weights, so that the outputs have the least error.

    Args:
        floating: The float flatbuffer.
        samples: {input name: array of real values, batch size 1}.
        bits: {tensor of weights: 4 or 2}. Weights that several ops read, and those of other ops, are left out of the
            result.
        per_tensor: The tensors that get a single scale.
    """
    edited, parsed = tflite.unpack(floating), tflite.read(floating)
    layers = [item for item in weighted_ops(edited, parsed) if int(item.op.inputs[1]) in bits]
    weights, errors = {}, {}
    for batch in batches_in_memory(layers):
        for layer, inputs in zip(batch, input_moments(floating, batch, samples), strict=True):
            tensor = int(layer.op.inputs[1])
            values, scales, errors[layer.key] = _few_bits(layer, inputs, bits[tensor], tensor in per_tensor)
            weights[tensor] = (layer.ordered_by_output(values).astype(np.int8), scales.astype(np.float32))
    return FewBitWeights(
        model=tflite.pack(edited, len(floating)), weights=weights, layers=errors, skipped=left_out(parsed, bits)
    )


def _few_bits(
    layer: WeightedOp, inputs: InputMoments, bits: int, per_tensor: bool
) -> tuple[NDArray, NDArray, tuple[float, float]]:
    """Correct the bias of a float layer; return the quantized values, scales and errors as `Rounding.layers` has them.

    The values have the layout of `weights_by_output`.
    """
    rows, gram = layer.weights_by_output().astype(np.float64), inputs.gram(layer.has_bias)
    scales = least_error_scales(rows, bits, _importance(rows, gram), per_tensor=per_tensor)
    quantized = _rounded(rows, scales, gram, bits)
    for _ in range(_SCALE_FITS):
        scales = _fitted_scales(rows, quantized, gram, scales, per_tensor=per_tensor)
        quantized = _rounded(rows, scales, gram, bits)
    approximation = quantized * scales[:, None]
    if layer.has_bias:
        layer.set_bias(layer.bias - _mean_error(rows, approximation, inputs))
    errors = _relative_errors(rows, approximation, gram, bits, per_tensor=per_tensor)
    return quantized, scales[:1] if per_tensor else scales, errors


def _groups(rows: NDArray, gram: NDArray) -> Iterator[tuple[slice, NDArray]]:
    """Yield (its output channels, its Gram matrix) for each group of channels."""
    per_group = len(rows) // len(gram)
    for group, matrix in enumerate(gram):
        yield slice(group * per_group, (group + 1) * per_group), matrix


def _importance(rows: NDArray, gram: NDArray) -> NDArray[np.float64]:
    """Return the mean square of each weight's input (its variance if `gram` is a covariance), in the shape of rows."""
    return np.repeat(np.diagonal(gram, axis1=1, axis2=2), len(rows) // len(gram), axis=0)


def _rounded(rows: NDArray, scales: NDArray, gram: NDArray, bits: int) -> NDArray[np.float64]:
    """Round all output channels with GPTQ."""
    results = np.empty_like(rows)
    for part, matrix in _groups(rows, gram):
        results[part] = round_weights(rows[part] / scales[part, None], matrix, *QUANTIZED_LIMITS[bits])
    return results


def _fitted_scales(
    rows: NDArray, quantized: NDArray, gram: NDArray, scales: NDArray, *, per_tensor: bool
) -> NDArray[np.float64]:
    """Return the scales s with the least error (w - s q)^T H (w - s q): s = q^T H w / q^T H q."""
    sums = np.zeros((2, len(rows)))
    for part, matrix in _groups(rows, gram):
        sums[0, part] = np.einsum("ok,kl,ol->o", quantized[part], matrix, rows[part], optimize=True)
        sums[1, part] = _squared(quantized[part], matrix)
    if per_tensor:
        sums = np.broadcast_to(sums.sum(axis=1, keepdims=True), sums.shape)
    fitted = np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1e-30), scales)
    return np.where(fitted > 0.5 * scales, fitted, scales).astype(np.float32).astype(np.float64)


def _mean_error(rows: NDArray, approximation: NDArray, inputs: InputMoments) -> NDArray[np.float64]:
    """Return the mean error of each output channel."""
    means = inputs.mean
    return np.asarray(((approximation - rows) * np.repeat(means, len(rows) // len(means), axis=0)).sum(axis=1))


def _relative_errors(
    rows: NDArray, approximation: NDArray, gram: NDArray, bits: int, *, per_tensor: bool
) -> tuple[float, float]:
    """Return the errors of `Rounding.layers`: first of rounding to nearest at the scale of the largest weight."""
    widest = widest_scales(rows, bits, per_tensor=per_tensor)
    simple = nearest(rows, widest, bits) * widest
    sums = np.zeros(3)
    for part, matrix in _groups(rows, gram):
        for place, other in enumerate((simple, approximation, np.zeros_like(rows))):
            sums[place] += _squared(rows[part] - other[part], matrix).sum()
    return float(sums[0] / max(sums[2], 1e-30)), float(sums[1] / max(sums[2], 1e-30))


def round_weights(
    weights: NDArray, gram: NDArray, lowest: int, highest: int, sweeps: int = _SWEEPS
) -> NDArray[np.float64]:
    """Return integers q with a small error (w - q)^T H (w - q) for each row w of `weights`.

    The result is a good solution, not always the best one. Weights of exactly zero stay zero.

    Args:
        weights: (outputs, K), divided by their scales.
        gram: H: (K, K), symmetric and positive semidefinite.
        lowest: The smallest quantized value.
        highest: The largest quantized value.
        sweeps: The number of passes of coordinate descent.

    Returns:
        (outputs, K), float64.
    """
    gram = damped(gram, _DAMPING)
    order = np.argsort(-np.diag(gram), kind="stable")
    ordered = gram[np.ix_(order, order)]
    # Row j of the upper factor of the inverse: how the weights after j compensate the rounding error of j.
    factor = np.linalg.cholesky(np.linalg.inv(ordered)).T
    left = weights[:, order].astype(np.float64)
    fixed = left == 0
    quantized, errors = np.zeros_like(left), np.zeros_like(left)
    for start in range(0, left.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, left.shape[1])
        for place in range(start, stop):
            quantized[:, place] = np.where(fixed[:, place], 0, np.clip(np.rint(left[:, place]), lowest, highest))
            errors[:, place] = (left[:, place] - quantized[:, place]) / factor[place, place]
            left[:, place + 1 : stop] -= errors[:, place, None] * factor[place, place + 1 : stop]
        left[:, stop:] -= errors[:, start:stop] @ factor[start:stop, stop:]
    left = weights[:, order].astype(np.float64) - quantized
    for _ in range(sweeps):
        moved = False
        slope = left @ ordered
        for place in range(left.shape[1]):
            steps = np.rint(slope[:, place] / ordered[place, place])
            steps = np.clip(quantized[:, place] + steps, lowest, highest) - quantized[:, place]
            steps[fixed[:, place]] = 0
            rows = np.flatnonzero(steps)
            if rows.size:
                moved = True
                quantized[rows, place] += steps[rows]
                left[rows, place] -= steps[rows]
                slope[rows] -= steps[rows, None] * ordered[place]
        if not moved:
            break
    result = np.empty_like(quantized)
    result[:, order] = quantized
    return result


def _round(layer: WeightedOp, source: WeightedOp, inputs: InputMoments) -> tuple[float, float]:
    """Round the layer's weights and correct its bias; return its relative output errors before and after."""
    scales = layer.scales
    grouped = source.weights_by_output().astype(np.float64) / scales[:, None]
    before = layer.weights_by_output().astype(np.float64)
    gram, quantized = inputs.gram(layer.has_bias), before.copy()
    per_group = layer.num_outputs // len(gram)
    errors = np.zeros(3)
    for group, matrix in enumerate(gram):
        rows = slice(group * per_group, (group + 1) * per_group)
        chosen = round_weights(grouped[rows], matrix, *QUANTIZED_LIMITS[8])
        simple = _squared(grouped[rows] - before[rows], matrix)
        better = _squared(grouped[rows] - chosen, matrix)
        quantized[rows] = np.where((better < simple)[:, None], chosen, before[rows])
        squares = scales[rows] ** 2
        signal = _squared(grouped[rows], matrix)
        errors += [(squares * item).sum() for item in (simple, np.minimum(better, simple), signal)]
    layer.set_weights_by_output(quantized)
    if layer.has_bias:
        mean = np.repeat(inputs.mean, per_group, axis=0)
        offset = ((quantized - before) * mean).sum(axis=1) * scales
        layer.set_bias(layer.bias - np.rint(offset / layer.bias_scale))
    return float(errors[0] / max(errors[2], 1e-30)), float(errors[1] / max(errors[2], 1e-30))


def _squared(errors: NDArray, gram: NDArray) -> NDArray[np.float64]:
    return np.einsum("ok,kl,ol->o", errors, gram, errors, optimize=True)


# {(float flatbuffer, output of a layer, samples): the moments of its inputs} inside of `kept_moments`, else None.
_KEPT: ContextVar[dict[tuple[str, int, str], "InputMoments"] | None] = ContextVar("_KEPT", default=None)


@contextlib.contextmanager
def kept_moments() -> Iterator[None]:
    """Keep the Gram matrices of all layers inside the block, for repeated conversions of one model with the same data.

    They take most of the time of GPTQ and of 4-bit weights. At most 1 GiB is kept; further ones are computed again.
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def pairs_in_memory(
    layers: Sequence[tuple[WeightedOp, WeightedOp]], most: int | None = None
) -> Iterator[list[tuple[WeightedOp, WeightedOp]]]:
    """Yield as many pairs of layers at a time as their Gram matrices fit into memory, at most `most`."""
    pairs = iter(layers)
    for batch in batches_in_memory([layer for layer, _ in layers], most):
        yield [next(pairs) for _ in batch]


def batches_in_memory(layers: Sequence[WeightedOp], most: int | None = None) -> Iterator[list[WeightedOp]]:
    """Yield as many layers at a time as their Gram matrices fit into memory, at most `most`."""
    batch: list[WeightedOp] = []
    size = 0
    for item in layers:
        patch_size = item.weights_by_output().shape[1]
        groups = item.num_inputs if item.is_depthwise else 1
        needed = 8 * groups * patch_size**2
        if batch and (size + needed > _GRAM_BYTES or len(batch) == most):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += needed
    if batch:
        yield batch


def input_moments(floating: bytes, layers: Sequence[WeightedOp], samples: Sequence[Sample]) -> list[InputMoments]:
    """Return the moments of each layer's inputs over the samples, those of `kept_moments` if they are known.

    Raises:
        InputError: There are no samples.
    """
    check_samples(samples)
    kept = _KEPT.get()
    if kept is None:
        return _new_moments(floating, layers, samples)
    model, data = artifacts.sha256(floating), hash_of_samples(samples)
    unknown = [layer for layer in layers if (model, layer.output, data) not in kept]
    results = dict(zip(map(id, unknown), _new_moments(floating, unknown, samples), strict=True)) if unknown else {}
    for layer in unknown:
        if sum(item.products.nbytes for item in (*kept.values(), results[id(layer)])) <= _GRAM_BYTES:
            kept[model, layer.output, data] = results[id(layer)]
    return [results.get(id(layer)) or kept[model, layer.output, data] for layer in layers]


def damped(gram: NDArray, fraction: float) -> NDArray[np.float64]:
    """Add `fraction` of the mean of the diagonal to it: an input that is always zero makes a Gram matrix singular."""
    return np.asarray(gram + np.eye(len(gram)) * max(fraction * float(np.trace(gram)) / len(gram), 1e-12), np.float64)


def mean_patch(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean over the positions: (groups, K)."""
    return patches.mean(axis=1, dtype=np.float64).astype(np.float32)


def hash_of_samples(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of samples."""
    digest = hashlib.sha256()
    for sample in samples:
        for name in sorted(sample):
            array = np.ascontiguousarray(sample[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()


def _new_moments(floating: bytes, layers: Sequence[WeightedOp], samples: Sequence[Sample]) -> list[InputMoments]:
    """Return the moments of each layer's inputs over the samples."""

    def means(values: list[NDArray]) -> list[NDArray[np.float32]]:
        return [mean_patch(extract_patches(layer, array)) for layer, array in zip(layers, values, strict=True)]

    def moments(values: list[NDArray]) -> list[InputMoments]:
        return [
            InputMoments.of(extract_patches(layer, array), reference)
            for layer, array, reference in zip(layers, values, references, strict=True)
        ]

    tensors = [layer.data for layer in layers]
    (references,) = map_activations(floating, tensors, samples[:1], means)
    total: list[InputMoments] = []
    for item in map_activations(floating, tensors, samples, moments, total=len(samples)):
        total = [one + other for one, other in zip(total, item, strict=True)] if total else item
    return total

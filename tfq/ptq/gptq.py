# SPDX-License-Identifier: Apache-2.0
"""Rounding optimisation: each weight up or down, not to the nearest code, but so that a layer's outputs come nearest.

The squared error of a layer's outputs is e' H e, with e the rounding errors of the weights of an output channel, and H
the Gram matrix of what they are multiplied with. Errors of inputs that go together can be made to cancel.
The codes are chosen input by input; what one code misses is made good by the weights not yet rounded. Then code by
code is moved as long as that helps.
Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", after
Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon".

A layer's bias takes up the mean of its error, so H is that of inputs about their mean, where there is a bias.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.patterns import check_fits, fits_op
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.layer_pairs import ModelPair
from tfq.ptq.weighted_ops import WeightedOp, extract_patches, weighted_ops

# Added to the diagonal of H, as a share of its mean: inputs that are always zero leave it singular.
_DAMPING = 0.01
_SWEEPS = 4
# Of 4-bit codes the largest; and the scales that are tried, as shares of the one that reaches the largest weight.
_INT4 = 7
_SHARES = np.linspace(0.4, 1.0, 31)
# Bytes of Gram matrices that are held at a time; layers beyond wait for another pass over the samples.
_GRAM_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """model: the int8 flatbuffer with other codes, of the same scales.

    layers: {layer: (squared error of its outputs by rounding to nearest, and now)}, as a share of what its outputs vary
    by. skipped: {layer: why its codes are as they were}.
    """

    model: bytes
    layers: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the flatbuffer."""
        layers = {name: {"before": before, "after": after} for name, (before, after) in self.layers.items()}
        return {"layers": layers, "skipped": dict(self.skipped)}


@dataclass(eq=False)
class _Inputs:
    """What a layer's weights are multiplied with: sums over all places of all samples, for each group of channels."""

    count: int
    sums: NDArray[np.float64]  # (groups, K)
    products: NDArray[np.float64]  # (groups, K, K)

    def __add__(self, other: "_Inputs") -> "_Inputs":
        return _Inputs(self.count + other.count, self.sums + other.sums, self.products + other.products)

    def gram(self, centred: bool) -> NDArray[np.float64]:
        """The mean of x x', about the mean if `centred`: (groups, K, K)."""
        result = self.products / self.count
        if centred:
            mean = self.sums / self.count
            result = result - mean[:, :, None] * mean[:, None, :]
        return result


def optimize_rounding(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> Rounding:
    """The int8 flatbuffer `quantized` with codes of weights that suit what its layers are fed on `samples`.

    floating: the float flatbuffer that it was made of. samples: by input name, real values.
    Weights of exactly zero stay zero: a pruned model stays pruned.
    """
    edited, layers, skipped = _layers(quantized, floating)
    messages = {}
    for part in _in_parts(layers):
        for (layer, source), inputs in zip(part, _seen(floating, [s for _, s in part], samples), strict=True):
            messages[layer.layer] = _round(layer, source, inputs)
    return Rounding(model=tflite.pack(edited, len(quantized)), layers=messages, skipped=skipped)


def quantize_to_int4(
    quantized: bytes,
    floating: bytes,
    samples: Sequence[Sample],
    layers: Sequence[str] = ("*",),
    *,
    rounding: bool = True,
) -> Rounding:
    """The int8 flatbuffer `quantized` with 4-bit weights, from -7 to 7, in the layers whose names fit a pattern.

    floating, samples: as of optimize_rounding. Of each output channel the scale is the one, at most that of its largest
    weight, by which the weights' errors, weighed by what they are multiplied with, are least.
    rounding: choose the codes as optimize_rounding does; otherwise they are the nearest.
    """
    edited, result, skipped = _layers(quantized, floating)
    outputs = {id(layer): layer.output_name for layer, _ in result}
    for pattern in layers:
        check_fits(
            f"int4_layers: the pattern {pattern!r}",
            pattern,
            dict.fromkeys(layer.layer for layer, _ in result),
            field="conversion.int4_layers",
            tensors=outputs.values(),
        )
    chosen = [pair for pair in result if fits_op(pair[0].layer, (outputs[id(pair[0])],), layers)]
    fitting = {id(layer) for layer, _ in chosen}
    skipped |= {layer.layer: "no pattern fits its name" for layer, _ in result if id(layer) not in fitting}
    messages = {}
    for part in _in_parts(chosen):
        for (layer, source), inputs in zip(part, _seen(floating, [s for _, s in part], samples), strict=True):
            messages[layer.layer] = _narrow(layer, source, inputs, rounding)
    return Rounding(model=tflite.pack(edited, len(quantized)), layers=messages, skipped=skipped)


def _layers(quantized: bytes, floating: bytes) -> tuple[Any, list[tuple[WeightedOp, WeightedOp]], dict[str, str]]:
    """(the int8 flatbuffer in object form, its layers with those of the float one, {layer: why it has none})."""
    pair = ModelPair(floating, quantized)
    edited = tflite.unpack(quantized)
    sources = {item.output: item for item in weighted_ops(tflite.unpack(floating), pair.floating)}
    layers, skipped = [], {}
    for item in weighted_ops(edited, pair.quantized):
        source = sources.get(pair.float_tensors.get(item.output, tflite.ABSENT))
        if source is None or source.weights.shape != item.weights.shape:
            skipped[item.layer] = "it is not quantized, or the float flatbuffer has no such layer"
        else:
            layers.append((item, source))
    return edited, layers, skipped


def _narrow(layer: WeightedOp, source: WeightedOp, inputs: _Inputs, rounding: bool) -> tuple[float, float]:
    """Give the layer 4-bit codes. The errors of its outputs by rounding to nearest at the widest scale, and now."""
    rows, gram = source.weights_by_output().astype(np.float64), inputs.gram(layer.has_bias)
    per_group = len(rows) // len(gram)
    weighing = np.repeat(np.diagonal(gram, axis1=1, axis2=2), per_group, axis=0)
    one_scale = len(set(layer.scales)) == 1 and len(rows) > 1
    widest = np.abs(rows).max(axis=None if one_scale else 1, keepdims=True) / _INT4
    widest = np.broadcast_to(np.where(widest > 0, widest, 1), (len(rows), 1))
    errors = np.stack([_weighed(rows, widest * fraction, weighing) for fraction in _SHARES])
    errors = np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape) if one_scale else errors
    scales = (widest[:, 0] * _SHARES[errors.argmin(axis=0)]).astype(np.float32).astype(np.float64)
    quantized = np.clip(np.rint(rows / scales[:, None]), -_INT4, _INT4)
    if rounding:
        for group, matrix in enumerate(gram):
            part = slice(group * per_group, (group + 1) * per_group)
            quantized[part] = round_weights(rows[part] / scales[part, None], matrix, -_INT4, _INT4)
    plain = np.clip(np.rint(rows / widest), -_INT4, _INT4) * widest
    sums = np.zeros(3)
    for group, matrix in enumerate(gram):
        part = slice(group * per_group, (group + 1) * per_group)
        provided = (plain[part], quantized[part] * scales[part, None], np.zeros_like(rows[part]))
        sums += [_squared(rows[part] - item, matrix).sum() for item in provided]
    data_scale = layer.bias_scale / layer.scales if layer.has_bias else np.ones(len(rows))
    kept = scales[:1] if one_scale else scales
    layer.set_int4(quantized, kept, (data_scale * scales)[: len(kept)])
    if layer.has_bias:
        mean = np.repeat(inputs.sums / inputs.count, per_group, axis=0)
        offset = ((quantized * scales[:, None] - rows) * mean).sum(axis=1)
        layer.set_bias(np.rint((source.bias - offset) / (data_scale * scales)))
    return float(sums[0] / max(sums[2], 1e-30)), float(sums[1] / max(sums[2], 1e-30))


def _weighed(rows: NDArray, scales: NDArray, weighing: NDArray) -> NDArray[np.float64]:
    """Of each output channel the squared errors of its weights at a scale, each weighed by its input's size."""
    rounded = np.clip(np.rint(rows / scales), -_INT4, _INT4) * scales
    return ((rows - rounded) ** 2 * weighing).sum(axis=1)


def round_weights(
    weights: NDArray, gram: NDArray, lowest: int, highest: int, sweeps: int = _SWEEPS
) -> NDArray[np.float64]:
    """Whole numbers from `lowest` to `highest`, shaped as `weights`, with little squared error (w - q) H (w - q)'.

    weights: (outputs, K), in steps of their scales. gram: H, (K, K), symmetric and without negative eigenvalues.
    """
    gram = gram + np.eye(len(gram)) * max(_DAMPING * float(np.trace(gram)) / len(gram), 1e-12)
    order = np.argsort(-np.diag(gram), kind="stable")
    ordered = gram[np.ix_(order, order)]
    # Row j of the upper factor of the inverse: how the weights behind j make good what j misses.
    factor = np.linalg.cholesky(np.linalg.inv(ordered)).T
    left = weights[:, order].astype(np.float64)
    fixed = left == 0
    quantized = np.zeros_like(left)
    for place in range(left.shape[1]):
        quantized[:, place] = np.where(fixed[:, place], 0, np.clip(np.rint(left[:, place]), lowest, highest))
        missed = (left[:, place] - quantized[:, place]) / factor[place, place]
        left[:, place + 1 :] -= missed[:, None] * factor[place, place + 1 :]
    left = weights[:, order].astype(np.float64) - quantized
    for _ in range(sweeps):
        moved = False
        slope = left @ ordered
        for place in range(left.shape[1]):
            steps = np.rint(slope[:, place] / ordered[place, place])
            steps = np.clip(quantized[:, place] + steps, lowest, highest) - quantized[:, place]
            steps[fixed[:, place]] = 0
            if steps.any():
                moved = True
                quantized[:, place] += steps
                left[:, place] -= steps
                slope -= steps[:, None] * ordered[place]
        if not moved:
            break
    result = np.empty_like(quantized)
    result[:, order] = quantized
    return result


def _round(layer: WeightedOp, source: WeightedOp, inputs: _Inputs) -> tuple[float, float]:
    """Give the layer its codes, and its bias what the mean of the error takes. The errors before and after."""
    scales = layer.scales
    grouped = source.weights_by_output().astype(np.float64) / scales[:, None]
    before = layer.weights_by_output().astype(np.float64)
    gram, quantized = inputs.gram(layer.has_bias), before.copy()
    per_group = layer.num_outputs // len(gram)
    errors = np.zeros(3)
    for group, matrix in enumerate(gram):
        rows = slice(group * per_group, (group + 1) * per_group)
        chosen = round_weights(grouped[rows], matrix, -127, 127)
        nearest = _squared(grouped[rows] - before[rows], matrix)
        better = _squared(grouped[rows] - chosen, matrix)
        quantized[rows] = np.where((better < nearest)[:, None], chosen, before[rows])
        squares = scales[rows] ** 2
        signal = _squared(grouped[rows], matrix)
        errors += [(squares * item).sum() for item in (nearest, np.minimum(better, nearest), signal)]
    layer.set_weights_by_output(quantized)
    if layer.has_bias:
        mean = np.repeat(inputs.sums / inputs.count, per_group, axis=0)
        offset = ((quantized - before) * mean).sum(axis=1) * scales
        layer.set_bias(layer.bias - np.rint(offset / layer.bias_scale))
    return float(errors[0] / max(errors[2], 1e-30)), float(errors[1] / max(errors[2], 1e-30))


def _squared(errors: NDArray, gram: NDArray) -> NDArray[np.float64]:
    return np.einsum("ok,kl,ol->o", errors, gram, errors, optimize=True)


def _in_parts(layers: list[tuple[WeightedOp, WeightedOp]]) -> Iterator[list[tuple[WeightedOp, WeightedOp]]]:
    """As many layers at a time as their Gram matrices have room."""
    part: list[tuple[WeightedOp, WeightedOp]] = []
    size = 0
    for item in layers:
        weighed = item[0].weights_by_output().shape[1]
        groups = item[0].num_inputs if item[0].is_depthwise else 1
        needed = 8 * groups * weighed**2
        if part and size + needed > _GRAM_BYTES:
            yield part
            part, size = [], 0
        part.append(item)
        size += needed
    if part:
        yield part


def _seen(floating: bytes, layers: Sequence[WeightedOp], samples: Sequence[Sample]) -> list[_Inputs]:
    """What each layer is fed."""

    def look(values: list[NDArray]) -> list[_Inputs]:
        results = []
        for layer, array in zip(layers, values, strict=True):
            patches = extract_patches(layer, array)
            sums = patches.sum(axis=1, dtype=np.float64)
            products = np.matmul(patches.transpose(0, 2, 1), patches).astype(np.float64)
            results.append(_Inputs(patches.shape[1], sums, products))
        return results

    total: list[_Inputs] = []
    for item in map_activations(floating, [layer.data for layer in layers], samples, look, total=len(samples)):
        total = [one + other for one, other in zip(total, item, strict=True)] if total else item
    return total

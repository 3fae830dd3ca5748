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

from tfq import flatbuffer
from tfq.calibration.activations import Sample, look_at_each
from tfq.calibration.beside import Beside
from tfq.calibration.repair.patches import patches_of
from tfq.calibration.repair.weighted import Weighted, weighted_ops

# Added to the diagonal of H, as a share of its mean: inputs that are always zero leave it singular.
_DAMPING = 0.01
_SWEEPS = 4
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
        found = self.products / self.count
        if centred:
            mean = self.sums / self.count
            found = found - mean[:, :, None] * mean[:, None, :]
        return found


def optimise_rounding(quantized: bytes, floating: bytes, samples: Sequence[Sample]) -> Rounding:
    """The int8 flatbuffer `quantized` with codes of weights that suit what its layers are fed on `samples`.

    floating: the float flatbuffer that it was made of. samples: by input name, real values.
    Weights of exactly zero stay zero: a pruned model stays pruned.
    """
    pair = Beside(floating, quantized)
    edited = flatbuffer.unpack(quantized)
    sources = {each.output: each for each in weighted_ops(flatbuffer.unpack(floating), pair.floating)}
    layers, skipped = [], {}
    for each in weighted_ops(edited, pair.quantized):
        source = sources.get(pair.of_float.get(each.output, flatbuffer.ABSENT))
        if source is None or source.weights.shape != each.weights.shape:
            skipped[each.layer] = "it is not quantized, or the float flatbuffer has no such layer"
        else:
            layers.append((each, source))
    told = {}
    for part in _in_parts(layers):
        for (layer, source), inputs in zip(part, _seen(floating, [s for _, s in part], samples), strict=True):
            told[layer.layer] = _round(layer, source, inputs)
    return Rounding(model=flatbuffer.pack(edited, len(quantized)), layers=told, skipped=skipped)


def choose_codes(
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
    codes = np.zeros_like(left)
    for place in range(left.shape[1]):
        codes[:, place] = np.where(fixed[:, place], 0, np.clip(np.rint(left[:, place]), lowest, highest))
        missed = (left[:, place] - codes[:, place]) / factor[place, place]
        left[:, place + 1 :] -= missed[:, None] * factor[place, place + 1 :]
    left = weights[:, order].astype(np.float64) - codes
    for _ in range(sweeps):
        moved = False
        slope = left @ ordered
        for place in range(left.shape[1]):
            steps = np.rint(slope[:, place] / ordered[place, place])
            steps = np.clip(codes[:, place] + steps, lowest, highest) - codes[:, place]
            steps[fixed[:, place]] = 0
            if steps.any():
                moved = True
                codes[:, place] += steps
                left[:, place] -= steps
                slope -= steps[:, None] * ordered[place]
        if not moved:
            break
    found = np.empty_like(codes)
    found[:, order] = codes
    return found


def _round(layer: Weighted, source: Weighted, inputs: _Inputs) -> tuple[float, float]:
    """Give the layer its codes, and its bias what the mean of the error takes. The errors before and after."""
    scales = layer.scales
    grouped = source.by_output().astype(np.float64) / scales[:, None]
    before = layer.by_output().astype(np.float64)
    gram, codes = inputs.gram(layer.has_bias), before.copy()
    per_group = layer.num_outputs // len(gram)
    errors = np.zeros(3)
    for group, matrix in enumerate(gram):
        rows = slice(group * per_group, (group + 1) * per_group)
        chosen = choose_codes(grouped[rows], matrix, -127, 127)
        nearest = _squared(grouped[rows] - before[rows], matrix)
        better = _squared(grouped[rows] - chosen, matrix)
        codes[rows] = np.where((better < nearest)[:, None], chosen, before[rows])
        squares = scales[rows] ** 2
        signal = _squared(grouped[rows], matrix)
        errors += [(squares * each).sum() for each in (nearest, np.minimum(better, nearest), signal)]
    layer.set_by_output(codes)
    if layer.has_bias:
        mean = np.repeat(inputs.sums / inputs.count, per_group, axis=0)
        offset = ((codes - before) * mean).sum(axis=1) * scales
        layer.set_bias(layer.bias - np.rint(offset / layer.bias_scale))
    return float(errors[0] / max(errors[2], 1e-30)), float(errors[1] / max(errors[2], 1e-30))


def _squared(errors: NDArray, gram: NDArray) -> NDArray[np.float64]:
    return np.einsum("ok,kl,ol->o", errors, gram, errors, optimize=True)


def _in_parts(layers: list[tuple[Weighted, Weighted]]) -> Iterator[list[tuple[Weighted, Weighted]]]:
    """As many layers at a time as their Gram matrices have room."""
    part: list[tuple[Weighted, Weighted]] = []
    size = 0
    for each in layers:
        weighed = each[0].by_output().shape[1]
        groups = each[0].num_inputs if each[0].is_depthwise else 1
        needed = 8 * groups * weighed**2
        if part and size + needed > _GRAM_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += needed
    if part:
        yield part


def _seen(floating: bytes, layers: Sequence[Weighted], samples: Sequence[Sample]) -> list[_Inputs]:
    """What each layer is fed."""

    def look(values: list[NDArray]) -> list[_Inputs]:
        found = []
        for layer, array in zip(layers, values, strict=True):
            patches = patches_of(layer, array)
            sums = patches.sum(axis=1, dtype=np.float64)
            products = np.matmul(patches.transpose(0, 2, 1), patches).astype(np.float64)
            found.append(_Inputs(patches.shape[1], sums, products))
        return found

    total: list[_Inputs] = []
    for each in look_at_each(floating, [layer.data for layer in layers], samples, look, total=len(samples)):
        total = [one + other for one, other in zip(total, each, strict=True)] if total else each
    return total

# SPDX-License-Identifier: Apache-2.0
"""One-shot pruning: make the weights of a float flatbuffer sparse without training, with a small error of its layers.

For the weights w of one output channel, the sparse weights v minimize
    (w - v)^T H (w - v),    H = E[x x^T], the Gram matrix of the layer's inputs on the representative dataset.

1. Three masks are tried. Magnitude removes the smallest weights. SparseGPT goes through blocks of inputs (groups of n
   for m:n sparsity) and removes the weights with the smallest w_k^2 / F_kk^2, where F is the Cholesky factor of the
   inverse of H; the weights after them compensate each removal. ADMM alternates between the best weights near a sparse
   matrix and the sparse matrix near these weights, while the sparsity grows.
2. For each mask, the remaining weights S are the best ones: H_SS v_S = (H w)_S. The mask with the smallest error stays.

If the layer has a bias, the bias corrects the mean of the error, so H is the covariance of the inputs instead.

Sources: Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"; Boza
2024, "Fast and Effective Weight Update for Pruned Large Language Models" (ADMM).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import InputError
from tfq.progress import stage
from tfq.ptq.calibration.observer import Sample
from tfq.ptq.gptq import InputMoments, batches_in_memory, damped, input_moments
from tfq.ptq.weighted_ops import WeightedOp, left_out, weighted_ops

# Added to the diagonal of H, relative to its mean.
_DAMPING = 1e-3
# Iterations of ADMM, and those after which the sparsity has grown to its end.
_ITERATIONS, _GROWTH = 40, 25
# Inputs whose masks are chosen together without m:n groups.
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Sparsification:
    """The result of making weights sparse.

    Attributes:
        model: The float flatbuffer with sparse weights.
        layers: {layer: (squared error of its outputs if the smallest weights become zero, and with this method)},
            relative to the variance of its outputs (to their mean square if the layer has no bias).
        zeros: {layer: fraction of its weights that are zero}.
        skipped: {layer: why it stays dense}.
    """

    model: bytes
    layers: Mapping[str, tuple[float, float]]
    zeros: Mapping[str, float]
    skipped: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the flatbuffer."""
        layers = {
            name: {"before": before, "after": after, "zeros": self.zeros[name]}
            for name, (before, after) in self.layers.items()
        }
        return {"layers": layers, "skipped": dict(self.skipped)}


@stage("making weights sparse")
def make_sparse(
    floating: bytes, samples: Sequence[Sample], *, sparsity: float = 0.5, m_by_n: tuple[int, int] | None = None
) -> Sparsification:
    """Make the weights of convolutions and fully connected layers of a float flatbuffer sparse.

    Depthwise convolutions stay dense: they have few weights, and each matters.

    Args:
        floating: A float flatbuffer.
        samples: {input name: array of real values, batch size 1}.
        sparsity: The fraction of each layer's weights that become zero.
        m_by_n: (m, n) for m zeros in every n consecutive input channels, instead of `sparsity`. An incomplete last
            group keeps up to n - m weights.

    Raises:
        InputError: No layer can be sparse.
    """
    edited, parsed = tflite.unpack(floating), tflite.read(floating)
    layers, skipped = [], left_out(parsed)
    for item in weighted_ops(edited, parsed):
        if item.is_depthwise:
            skipped[item.key] = "it is a depthwise convolution"
        elif item.weights.dtype != np.float32:
            skipped[item.key] = f"its weights are {item.weights.dtype}, expected float32"
        else:
            layers.append(item)
    if not layers:
        raise InputError(
            "one_shot_pruning: the model has no convolution or fully connected layer with constant float weights: "
            "leave the technique out",
            field="conversion.techniques",
            expected="a convolution or fully connected layer",
        )
    errors, zeros = {}, {}
    for batch in batches_in_memory(layers):
        for layer, inputs in zip(batch, input_moments(floating, batch, samples), strict=True):
            errors[layer.key], zeros[layer.key] = _sparsify(layer, inputs, sparsity, m_by_n)
    return Sparsification(model=tflite.pack(edited, len(floating)), layers=errors, zeros=zeros, skipped=skipped)


def _sparsify(
    layer: WeightedOp, inputs: InputMoments, sparsity: float, m_by_n: tuple[int, int] | None
) -> tuple[tuple[float, float], float]:
    """Make a layer sparse and correct its bias; return its relative output errors, and its fraction of zeros."""
    weights = layer.weights_by_output().astype(np.float64)
    (gram,) = inputs.gram(layer.has_bias)
    channels = layer.num_inputs
    smallest = magnitude_mask(weights, channels, sparsity, m_by_n)
    sparse = sparse_weights(weights, gram, channels, sparsity, m_by_n)
    layer.set_weights_by_output(sparse)
    if layer.has_bias:
        layer.set_bias(layer.bias + (weights - sparse) @ inputs.mean[0])
    power = max(_error(weights, gram), 1e-30)
    before = _error(weights * ~smallest, gram) / power
    return (before, _error(weights - sparse, gram) / power), float((sparse == 0).mean())


def _error(difference: NDArray, gram: NDArray) -> float:
    return float((difference @ gram * difference).sum())


def sparse_weights(
    weights: NDArray, gram: NDArray, channels: int, sparsity: float, m_by_n: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """Return sparse weights with a small error: the best of three masks, each with its best weights.

    Args:
        weights: (outputs, K), where the inputs of each tap are consecutive.
        gram: H: (K, K), symmetric and positive semidefinite.
        channels: The number of inputs of a tap.
        sparsity: Fraction of the weights that are removed.
        m_by_n: (m, n) for m removed weights in every n consecutive inputs, instead of `sparsity`.
    """
    masks = (
        magnitude_mask(weights, channels, sparsity, m_by_n),
        sparse_mask(weights, gram, channels, sparsity, m_by_n),
        admm_mask(weights, gram, channels, sparsity, m_by_n),
    )
    candidates = [best_weights(weights, gram, mask) for mask in masks]
    return min(candidates, key=lambda sparse: _error(weights - sparse, gram))


def admm_mask(
    weights: NDArray, gram: NDArray, channels: int, sparsity: float, m_by_n: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Return the mask of ADMM; the arguments are those of `sparse_weights`.

    With W0 the dense weights, both in units of the inputs' standard deviations, each iteration computes
        Z = mask * (W + U),    U = U + W - Z,    W = (W0 H + Z - U) (H + I)^-1
    where the mask is that of the largest |W + U|. The sparsity grows as in Zhu and Gupta 2017.
    """
    regular = damped(gram, _DAMPING)
    norms = np.sqrt(np.diag(regular))
    scaled = regular / np.outer(norms, norms)
    dense = weights * norms
    inverse, target = np.linalg.inv(scaled + np.eye(len(scaled))), dense @ scaled
    current, dual, mask = dense, np.zeros_like(dense), np.ones(dense.shape, bool)
    for iteration in range(_ITERATIONS):
        growth = 1 - (1 - min(1, (iteration + 1) / _GROWTH)) ** 3
        if m_by_n is None:
            mask = magnitude_mask(current + dual, channels, sparsity * growth)
        else:  # the number of zeros of a group grows in whole weights
            zeros = max(1, round(m_by_n[0] * growth))
            mask = magnitude_mask(current + dual, channels, sparsity, (zeros, m_by_n[1]))
        sparse = mask * (current + dual)
        dual = dual + current - sparse
        current = (target + sparse - dual) @ inverse
    return mask


def magnitude_mask(
    weights: NDArray, channels: int, sparsity: float, m_by_n: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Return a mask that is False at the smallest weights; the arguments are those of `sparse_weights`."""
    if m_by_n is None:
        return _without_lowest(np.abs(weights), round(weights.size * sparsity))
    mask = np.ones(weights.shape, bool)
    for columns in _groups(weights.shape[1], channels, m_by_n[1]):
        mask[:, columns] = _without_lowest_of_rows(np.abs(weights[:, columns]), *m_by_n)
    return mask


def sparse_mask(
    weights: NDArray, gram: NDArray, channels: int, sparsity: float, m_by_n: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Return the mask of SparseGPT, True at the weights that remain; the arguments are those of `sparse_weights`."""
    size = weights.shape[1]
    # Row j of the upper factor of the inverse: how the weights after j compensate the removal of j.
    factor = np.linalg.cholesky(np.linalg.inv(damped(gram, _DAMPING))).T
    left, mask = weights.astype(np.float64), np.ones(weights.shape, bool)
    blocks = _groups(size, channels, m_by_n[1]) if m_by_n else _blocks(size)
    for columns in blocks:
        scores = (left[:, columns] / np.diag(factor)[columns]) ** 2
        if m_by_n:
            mask[:, columns] = _without_lowest_of_rows(scores, *m_by_n)
        else:
            mask[:, columns] = _without_lowest(scores, round(scores.size * sparsity))
        for place in columns:
            error = np.where(mask[:, place], 0, left[:, place]) / factor[place, place]
            left[:, place:] -= error[:, None] * factor[place, place:]
    return mask


def best_weights(weights: NDArray, gram: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the weights within a mask that minimize (w - v)^T H (w - v) for each row: (outputs, K)."""
    regular = damped(gram, _DAMPING)
    right, result = weights @ regular, np.zeros(weights.shape)
    for row, kept in enumerate(mask):
        if kept.any():
            result[row, kept] = np.linalg.solve(regular[np.ix_(kept, kept)], right[row, kept])
    return result


def _blocks(size: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(size, start + _BLOCK)) for start in range(0, size, _BLOCK)]


def _groups(size: int, channels: int, n: int) -> list[NDArray[np.int64]]:
    """Return the groups of n consecutive inputs, none of which continues in the next tap."""
    return [
        np.arange(tap + start, tap + min(channels, start + n))
        for tap in range(0, size, channels)
        for start in range(0, channels, n)
    ]


def _without_lowest(scores: NDArray, count: int) -> NDArray[np.bool_]:
    mask = np.ones(scores.size, bool)
    mask[np.argsort(scores, axis=None, kind="stable")[:count]] = False
    return mask.reshape(scores.shape)


def _without_lowest_of_rows(scores: NDArray, m: int, n: int) -> NDArray[np.bool_]:
    """Return a mask without the m lowest scores of each row; a row of fewer than n keeps up to n - m."""
    mask = np.ones(scores.shape, bool)
    order = np.argsort(scores, axis=1, kind="stable")
    np.put_along_axis(mask, order[:, : max(0, scores.shape[1] - (n - m))], False, axis=1)
    return mask

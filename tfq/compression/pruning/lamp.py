# SPDX-License-Identifier: Apache-2.0
"""How sparse each layer becomes by the sizes of its weights: LAMP scores, compared over all layers. No TensorFlow."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

HIGHEST = 0.99


def layer_adaptive(kernels: Mapping[str, Sequence[NDArray]], final_sparsity: float) -> dict[str, float]:
    """Layer -> sparsity, `final_sparsity` over all weights.

    kernels: layer -> the values of its kernels. The score of a weight is its square over the sum of the squares of all
    in its kernel that are no smaller: how much of what would be left of the kernel goes with it. Of all weights those
    with the lowest scores go; a layer's sparsity is the share of its weights among them, at most 0.99.
    Source: Lee et al. 2021, "Layer-adaptive sparsity for the Magnitude-based Pruning" (LAMP).
    """
    scores = {name: np.concatenate([_scores(kernel) for kernel in values]) for name, values in kernels.items()}
    ordered = np.sort(np.concatenate(list(scores.values())))
    count = round(final_sparsity * ordered.size)
    if not count:
        return dict.fromkeys(kernels, 0.0)
    threshold = ordered[count - 1]
    return {name: min(HIGHEST, float((each <= threshold).mean())) for name, each in scores.items()}


def _scores(kernel: NDArray) -> NDArray[np.float64]:
    squares = np.sort(np.asarray(kernel, np.float64).reshape(-1) ** 2)
    no_smaller = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, no_smaller, out=np.zeros_like(squares), where=no_smaller > 0)

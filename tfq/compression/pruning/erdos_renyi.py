# SPDX-License-Identifier: Apache-2.0
"""How sparse each layer becomes by its shape alone: large layers more, small ones less. No TensorFlow."""

from collections.abc import Mapping, Sequence

from numpy.typing import NDArray

HIGHEST = 0.99


def erdos_renyi_kernel(kernels: Mapping[str, Sequence[NDArray]], final_sparsity: float) -> dict[str, float]:
    """Layer -> sparsity, `final_sparsity` over all weights.

    kernels: layer -> its kernels, (height, width, inputs, outputs) of a convolution; only their shapes count.
    The share of weights that stay is in proportion to the sum of a kernel's dimensions over their product: a layer
    keeps as many weights as it has inputs, outputs and places, times a number that is the same for all. A layer that
    would keep more than it has stays dense, and the others make up for it.
    Source: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", section 3 (Erdős-Rényi-Kernel).
    """
    sizes = {name: sum(kernel.size for kernel in values) for name, values in kernels.items()}
    edges = {name: sum(sum(kernel.shape) for kernel in values) for name, values in kernels.items()}
    kept = (1 - final_sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        open_layers = [name for name in kernels if name not in dense]
        left = kept - sum(sizes[name] for name in dense)
        number = left / sum(edges[name] for name in open_layers) if open_layers else 0.0
        full = {name for name in open_layers if number * edges[name] >= sizes[name]}
        if not full:
            break
        dense |= full
    return {name: 0.0 if name in dense else min(HIGHEST, 1 - number * edges[name] / sizes[name]) for name in kernels}

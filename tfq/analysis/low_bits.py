# SPDX-License-Identifier: Apache-2.0
"""A float flatbuffer whose weights and activations hold no more than so many bits: simulated, at the speed of float."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq import tflite
from tfq.analysis.rounded_tensor import round_tensor
from tfq.analysis.weight_grids import on_grid
from tfq.config import FLOAT_BITS
from tfq.patterns import check_fits, fits
from tfq.ptq.calibration import Observations
from tfq.ptq.calibration.clipping import least_square_range
from tfq.ptq.weighted_ops import weighted_ops


def with_few_bits(
    floating: bytes,
    observations: Observations,
    *,
    weight_bits: int = FLOAT_BITS,
    activation_bits: int = FLOAT_BITS,
    grid: str = "uniform",
    keep: Sequence[str] = (),
) -> bytes:
    """`floating`, a float flatbuffer, with weights on a grid of weight_bits, and activations on activation_bits codes.

    observations: of its activations, with histograms; the range of each has the least squared error for so many bits.
    weight_bits, activation_bits: 1 to 8, or FLOAT_BITS, which leaves them. keep: name patterns of layers left as they
    are, weights and what they give. The model's inputs and outputs are left as well, and biases.
    Raises InputError on a pattern that fits no layer.
    """
    parsed, edited = tflite.read(floating), tflite.unpack(floating)
    graph = parsed.main_subgraph
    layers = graph.layers_by_output
    for pattern in keep:
        check_fits(f"keep: the pattern {pattern!r}", pattern, dict.fromkeys(layers.values()))
    if weight_bits < FLOAT_BITS:
        for layer in weighted_ops(edited, parsed):
            if not fits(layer.layer, keep):
                layer.set_by_output(on_grid(layer.by_output(), grid, weight_bits))
    if activation_bits < FLOAT_BITS:
        for tensor, ends in _ranges(observations, activation_bits).items():
            left = tensor in graph.inputs or tensor in graph.outputs or fits(layers.get(tensor, ""), keep)
            if not left and ends[1] > ends[0]:
                _round_to(edited, tensor, ends, activation_bits)
    return tflite.pack(edited, len(floating))


def _ranges(observations: Observations, bits: int) -> Mapping[int, tuple[float, float]]:
    """Tensor of the main subgraph -> (minimum, maximum), zero within."""
    return {
        tensor: least_square_range(seen.bins(), bits)
        for (subgraph, tensor), seen in observations.tensors.items()
        if subgraph == 0
    }


def _round_to(edited: Any, tensor: int, ends: tuple[float, float], bits: int) -> None:
    """Codes from -128 up, as many as the bits have; what lies above them is cut off before."""
    scale = float(np.float32((ends[1] - ends[0]) / (2**bits - 1)))
    below = int(np.clip(np.rint(-ends[0] / scale), 0, 2**bits - 1))
    highest = (2**bits - 1 - below) * scale
    round_tensor(edited, tensor, scale, below - 128, highest=highest if bits < 8 else None)

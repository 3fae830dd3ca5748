# SPDX-License-Identifier: Apache-2.0
"""Post-training quantization (PTQ): calibration, and techniques that recover accuracy without training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfq.ptq.bias_absorption import AbsorbedPair, absorb_biases
    from tfq.ptq.bias_correction import BiasCorrection, correct_biases
    from tfq.ptq.cross_layer_equalization import EqualizedPair, equalize
    from tfq.ptq.gptq import (
        FewBitWeights,
        Rounding,
        kept_moments,
        optimize_rounding,
        quantize_to_int4,
        round_to_few_bits,
        with_int4_grids,
    )
    from tfq.ptq.layer_pairs import PairTechnique
    from tfq.ptq.one_shot_pruning import Sparsification, make_sparse
    from tfq.ptq.range_tuning import RangeTuning, tune_ranges
    from tfq.ptq.reconstruction import reconstruct
else:
    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)

__all__ = [
    "AbsorbedPair",
    "BiasCorrection",
    "EqualizedPair",
    "FewBitWeights",
    "PairTechnique",
    "RangeTuning",
    "Rounding",
    "Sparsification",
    "absorb_biases",
    "correct_biases",
    "equalize",
    "kept_moments",
    "make_sparse",
    "optimize_rounding",
    "quantize_to_int4",
    "reconstruct",
    "round_to_few_bits",
    "tune_ranges",
    "with_int4_grids",
]

# SPDX-License-Identifier: Apache-2.0
"""What makes an int8 flatbuffer better without training: before quantization (equalize, absorb), and after it."""

from tfq.ptq.calibration.repair.absorption import AbsorbedPair, absorb_biases
from tfq.ptq.calibration.repair.bias import BiasCorrection, correct_biases
from tfq.ptq.calibration.repair.equalization import EqualizedPair, equalize
from tfq.ptq.calibration.repair.pairs import PairRepair
from tfq.ptq.calibration.repair.rounding import Rounding, narrow_to_int4, optimise_rounding

__all__ = [
    "AbsorbedPair",
    "BiasCorrection",
    "EqualizedPair",
    "PairRepair",
    "Rounding",
    "absorb_biases",
    "correct_biases",
    "equalize",
    "narrow_to_int4",
    "optimise_rounding",
]

# SPDX-License-Identifier: Apache-2.0
"""What to find out about a flatbuffer, int8 or float."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting

# Bits of what is left in float.
FLOAT_BITS = 32
GRIDS = ("uniform", "zero_aware", "power_of_two", "logarithmic", "kmeans")


@dataclass(frozen=True, kw_only=True)
class BitWidthsConfig(Config):
    """Accuracy by bit width, without training."""

    enabled: bool = setting(False, "measure accuracy by bit width, on the float model", names_section=True)
    weights: tuple[int, ...] = setting((8, 6, 5, 4, 3, 2, 1), "bits of weights to try", minimum=1, maximum=8)
    activations: tuple[int, ...] = setting((8, 6, 5, 4, 3, 2), "bits of activations", minimum=1, maximum=8)
    grids: tuple[str, ...] = setting(GRIDS, "grids of weights; with activations the first one", choices=GRIDS)
    keep: tuple[str, ...] = setting((), "name patterns of layers left in float, such as the first and the last")
    num_calibration_samples: int = setting(
        200, "training examples that the ranges of activations are seen on", minimum=1
    )
    limit: int = setting(0, "test examples; 0 is all", minimum=0)


@dataclass(frozen=True, kw_only=True)
class AnalysisRequireConfig(Config):
    """Bounds on an analysis; a missed one is exit code 1."""

    min_layer_sqnr_db: float | None = setting(
        None,
        "lowest signal to error (SQNR) of any op's output against the float model, in dB; dead ops are not counted",
    )


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig(Config):
    """Why an int8 flatbuffer computes something else than its float one."""

    reference: str = setting("", "float .tflite that the model was made from")
    limit: int = setting(64, "examples to compare on", minimum=1)
    sensitivity: bool = setting(False, "also measure what each op, quantized alone, does to the outputs")
    histograms: bool = setting(True, "keep the distribution of each op's output and weights, for the page")
    bit_widths: BitWidthsConfig = section(BitWidthsConfig, "accuracy by bit width, simulated without training")
    require: AnalysisRequireConfig = section(AnalysisRequireConfig, "bounds that must hold")

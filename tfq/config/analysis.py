# SPDX-License-Identifier: Apache-2.0
"""Settings of the analysis of a flatbuffer: errors per op, occlusion saliency, and accuracy by bit width."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting

# Number of bits that stands for unquantized float.
FLOAT_BITS = 32
GRIDS = ("uniform", "zero_aware", "power_of_two", "logarithmic", "kmeans")


@dataclass(frozen=True, kw_only=True)
class BitWidthsConfig(Config):
    """Settings of the simulated accuracy by bit width, without training."""

    enabled: bool = setting(False, "simulate the accuracy of the float model at lower bit widths", names_section=True)
    weights: tuple[int, ...] = setting((8, 6, 5, 4, 3, 2, 1), "bit widths of weights to try", minimum=1, maximum=8)
    activations: tuple[int, ...] = setting((8, 6, 5, 4, 3, 2), "bit widths of activations to try", minimum=1, maximum=8)
    grids: tuple[str, ...] = setting(
        GRIDS,
        "quantization grids of weights to try: uniform (evenly spaced, as TFLite's int8 and int4), zero_aware "
        "(evenly spaced without a gap around zero, for pruned layers), power_of_two, logarithmic (powers of a "
        "base that each channel chooses), kmeans (any values); with quantized activations only the first is tried",
        choices=GRIDS,
    )
    keep: tuple[str, ...] = setting((), "name patterns of layers that stay float, such as the first and the last")
    num_calibration_samples: int = setting(200, "training examples that determine the ranges of activations", minimum=1)
    limit: int = setting(0, "number of test examples; 0 is all", minimum=0)
    min_sqnr_db: float = setting(
        20.0, "SQNR that an example's outputs need, in dB, if there are no labels and no output predicts a class"
    )


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Config):
    """Settings of occlusion saliency: which parts of an input the float and the int8 model depend on."""

    enabled: bool = setting(
        False,
        "also compare which parts of the inputs the two models depend on (occlusion saliency)",
        names_section=True,
    )
    limit: int = setting(32, "number of examples", minimum=1)
    input: str = setting("", "input that is occluded; empty: the only one")
    output: str = setting("", "output whose score is observed; empty: the first")
    target: int | None = setting(
        None,
        "class, or index in the flattened output, whose score is observed; None: the largest value of the float model, "
        "or of a map of classes the class with the most positions, other than class 0",
        minimum=0,
    )
    patch: int = setting(
        0, "size of the occluded patch along each axis; 0: an eighth of the axis, or one feature of a table", minimum=0
    )
    stride: int = setting(0, "distance between patches; 0: half the patch", minimum=0)
    fill: float | None = setting(
        None,
        "value of the occluded patch, in the units of the preprocessed input; None: the mean of the examples, for each "
        "channel, or for each feature of a table",
    )
    top_fraction: float = setting(
        0.1, "fraction of the patches that count as the most important", minimum=0.001, maximum=1
    )
    pictures: int = setting(
        12, "number of examples whose maps are stored, those with the lowest correlation", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class AnalysisRequireConfig(Config):
    """Bounds that an analysis must meet; the command exits with code 1 if one is missed."""

    min_layer_sqnr_db: float | None = setting(
        None,
        "lowest signal-to-quantization-noise ratio (SQNR) of any op's output against the float model, in dB; ops "
        "that output only zeros are not counted",
    )


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig(Config):
    """Settings of the op-by-op comparison of an int8 flatbuffer with the float one."""

    reference: str = setting(
        "", "float .tflite, Keras model or SavedModel that the int8 model was converted from", path_of="model"
    )
    limit: int = setting(64, "number of examples to compare on", minimum=1)
    sensitivity: bool = setting(False, "also measure how much quantizing each op alone changes the outputs")
    histograms: bool = setting(True, "store the distribution of each op's output and weights, for the HTML page")
    explain: ExplainConfig = section(ExplainConfig, "occlusion saliency of the float and the int8 model")
    bit_widths: BitWidthsConfig = section(BitWidthsConfig, "accuracy by bit width, simulated without training")
    require: AnalysisRequireConfig = section(AnalysisRequireConfig, "bounds that must be met")

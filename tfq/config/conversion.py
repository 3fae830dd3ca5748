# SPDX-License-Identifier: Apache-2.0
"""The settings of a conversion: scheme, calibration, techniques, exceptions for layers, verification."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting
from tfq.errors import InputError, install_hint

# "" is the scheme's own: int8 of int8, int16 of int16x8, float32 of all others.
IO_TYPES = ("", "int8", "uint8", "int16", "float32")

# Of each scheme, the types that inputs and outputs can have; the first is its own.
SCHEME_IO_TYPES = {
    "int8": ("int8", "uint8", "float32"),
    "int16x8": ("int16", "float32"),
    "dynamic_range": ("float32",),
    "float16": ("float32",),
    "float32": ("float32",),
    "weight_only_int8": ("float32",),
}

SCHEMES = tuple(SCHEME_IO_TYPES)

TECHNIQUES = ("cross_layer_equalization", "bias_absorption", "gptq", "bias_correction")
QUANTIZERS = ("tensorflow", "litert")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(Config):
    """How the ranges of activations are chosen from what the representative dataset shows."""

    method: str = setting("percentile", "how each range is chosen", choices_of="calibration_method")
    percentile: float = setting(
        99.99, "percent of a tensor's values, at each end, that its range holds (percentile)", minimum=50, maximum=100
    )
    tensors: tuple[str, ...] = setting(
        (),
        "PATTERN=METHOD: layers whose ranges another method chooses, by patterns as of float_layers; the last pattern "
        "that fits a layer counts",
    )
    ranges: str = setting("", "JSON file of ranges from an earlier conversion: nothing is calibrated then")


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(Config):
    """How a model is converted to a flatbuffer, and how the result is checked."""

    scheme: str = setting("int8", "number format of weights and activations", choices=SCHEMES)
    target: str = setting(
        "",
        "what the flatbuffer will run on: settings that this target cannot run are refused or replaced",
        choices_of="target",
    )
    quantizer: str = setting(
        "tensorflow",
        f"whose quantizer: TensorFlow's, or litert-quantizer ({install_hint('litert')})",
        choices=QUANTIZERS,
    )
    per_channel: bool = setting(True, "a scale for each output channel of a weight, rather than one for all of it")
    per_channel_dense: bool = setting(True, "the same for fully connected layers alone; off where per_channel is off")
    inference_input_type: str = setting("", "type of the model's inputs; empty is the scheme's own", choices=IO_TYPES)
    inference_output_type: str = setting("", "type of the model's outputs; empty is the scheme's own", choices=IO_TYPES)
    num_calibration_samples: int = setting(200, "samples of the representative dataset to calibrate with", minimum=1)
    calibration: CalibrationConfig = section(CalibrationConfig, "ranges of the activations")
    float_layers: tuple[str, ...] = setting(
        (),
        "name patterns of layers that stay in float within an int8 model, such as those that lose most; also op:12 for "
        "op number 12 of the float .tflite (op:1:12 in its subgraph 1), or the exact name of an op's output tensor",
    )
    int16_layers: tuple[str, ...] = setting(
        (),
        "patterns, as of float_layers, of layers whose activations get 16 bits within an int8 model (quantizer=litert)",
    )
    per_tensor_layers: tuple[str, ...] = setting(
        (),
        "patterns, as of float_layers, of layers whose weights get one scale within a per-channel model "
        "(quantizer=litert)",
    )
    int4_layers: tuple[str, ...] = setting(
        (), "patterns, as of float_layers, of layers whose weights get 4 bits within an int8 model; '*' is all"
    )
    techniques: tuple[str, ...] = setting(
        (),
        "post-training techniques, applied in this order: cross_layer_equalization (evens out channels of different "
        "size), bias_absorption (moves what channels always output into the next bias), gptq (rounds weights by the "
        "data), bias_correction (removes the mean error of quantization)",
        choices=TECHNIQUES,
    )
    verify: bool = setting(
        True,
        "run the result next to the float model on a few calibration samples, and report outputs that lost their "
        "information (collapsed)",
    )
    strict: bool = setting(False, "make a collapsed result an error, not a warning; needs verify")
    batch_size: int = setting(1, "fixed batch dimension; 0 leaves it dynamic, which some delegates refuse", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_io_types(self, self.scheme, f"scheme={self.scheme}")
        if self.strict and not self.verify:
            raise InputError(
                "strict=True with verify=False: nothing is verified then: leave one of them out",
                field="strict",
                expected=False,
                got=True,
            )

    @property
    def needs_ranges(self) -> bool:
        """Whether activations are quantized by ranges: out of a representative dataset, or of fake quantization."""
        return self.scheme in ("int8", "int16x8")

    @property
    def input_type(self) -> str:
        """The type of the model's inputs: as asked for, else the scheme's own."""
        return self.inference_input_type or SCHEME_IO_TYPES[self.scheme][0]

    @property
    def output_type(self) -> str:
        """The type of the model's outputs, likewise."""
        return self.inference_output_type or SCHEME_IO_TYPES[self.scheme][0]


def check_io_types(config: Config, scheme: str, asked: str) -> None:
    """Raises InputError where the scheme's inputs or outputs cannot have the type that `config` wants."""
    possible = SCHEME_IO_TYPES[scheme]
    for name in ("inference_input_type", "inference_output_type"):
        kind = getattr(config, name)
        if kind and kind not in possible:
            others = ", ".join(other for other, kinds in SCHEME_IO_TYPES.items() if kind in kinds)
            raise InputError(
                f"{asked} with {name}={kind}: expected one of {', '.join(possible)}, or the scheme {others}, "
                f"which has {kind}",
                field=name,
                expected=possible,
                got=kind,
            )

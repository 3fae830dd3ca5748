# SPDX-License-Identifier: Apache-2.0
"""The settings of a conversion: scheme, calibration, techniques, exceptions for layers, verification."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting
from tfq.config.input_shapes import parse_input_shapes
from tfq.errors import InputError, install_hint
from tfq.text_table import alternatives

# "" is the default of the scheme: int8 for int8, int16 for int16x8, float32 for all others.
IO_TYPES = ("", "int8", "uint8", "int16", "float32")

# Scheme -> the types that inputs and outputs can have; the first is its default.
SCHEME_IO_TYPES = {
    "int8": ("int8", "uint8", "float32"),
    "int16x8": ("int16", "float32"),
    "dynamic_range": ("float32",),
    "float16": ("float32",),
    "float32": ("float32",),
    "weight_only_int8": ("float32",),
    "weight_only_int4": ("float32",),
    "weight_only_int2": ("float32",),
}

# Scheme -> bits of its weights, for schemes with fewer than 8.
FEW_BIT_SCHEMES = {"weight_only_int4": 4, "weight_only_int2": 2}

SCHEMES = tuple(SCHEME_IO_TYPES)

TECHNIQUES = (
    "cross_layer_equalization",
    "bias_absorption",
    "one_shot_pruning",
    "range_tuning",
    "gptq",
    "reconstruction",
    "bias_correction",
)
QUANTIZERS = ("tensorflow", "litert")
LSTM_FORMS = ("auto", "fused", "unrolled")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(Config):
    """Settings of calibration: how the ranges of activations are chosen from a representative dataset."""

    method: str = setting("percentile", "how the range of each activation is chosen", choices_of="calibration_method")
    percentile: float = setting(
        99.99,
        "percentage of a tensor's values that the range covers at each end (method percentile)",
        minimum=50,
        maximum=100,
    )
    tensors: tuple[str, ...] = setting(
        (),
        "PATTERN=METHOD: layers that use another method; patterns as in float_layers; the last matching pattern "
        "applies",
    )
    ranges: str = setting(
        "", "JSON file of ranges from an earlier conversion, used instead of calibrating", path_of="ranges"
    )


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(Config):
    """Settings of a conversion to a TFLite flatbuffer, and of the verification of the result."""

    scheme: str = setting(
        "int8",
        "number format: int8 (int8 weights and activations), int16x8 (int8 weights, int16 activations), "
        "dynamic_range (int8 weights; activations are quantized at run time), float16 (float16 weights), float32 "
        "(no quantization), weight_only_int8 (int8 weights, dequantized for float ops), weight_only_int4 or "
        "weight_only_int2 (smaller files than int8, but not faster: LiteRT expands the weights at every inference)",
        choices=SCHEMES,
    )
    target: str = setting(
        "",
        "what will run the flatbuffer; settings that it cannot run are refused or replaced",
        choices_of="target",
    )
    quantizer: str = setting(
        "tensorflow",
        f"tensorflow (TensorFlow's converter) or litert (litert-quantizer; {install_hint('litert')})",
        choices=QUANTIZERS,
    )
    per_channel: bool = setting(True, "one scale per output channel of a weight, instead of one per weight tensor")
    per_channel_dense: bool = setting(True, "the same for fully connected layers; has no effect without per_channel")
    inference_input_type: str = setting(
        "", "data type of the model's inputs; empty is the default of the scheme", choices=IO_TYPES
    )
    inference_output_type: str = setting(
        "", "data type of the model's outputs; empty is the default of the scheme", choices=IO_TYPES
    )
    num_calibration_samples: int = setting(200, "samples of the representative dataset to calibrate with", minimum=1)
    sampling: str = setting(
        "first",
        "which samples of the data calibrate: first (the first num_calibration_samples), or by_class (equally many of "
        "each class, as far as there are; the data needs class labels, and all of it is read)",
        choices=("first", "by_class"),
    )
    calibration: CalibrationConfig = section(CalibrationConfig, "calibration of activation ranges")
    float_layers: tuple[str, ...] = setting(
        (),
        "name patterns of layers that stay float in an int8 model, such as the most sensitive ones; op:12 is op "
        "number 12 of the float .tflite (op:1:12 in its subgraph 1); the exact name of an op's output tensor also "
        "works; '!head' excludes a layer",
    )
    int16_layers: tuple[str, ...] = setting(
        (),
        "patterns, as in float_layers, of layers whose activations get 16 bits in an int8 model (quantizer=litert)",
    )
    per_tensor_layers: tuple[str, ...] = setting(
        (),
        "patterns, as in float_layers, of layers whose weights get one scale in a per-channel model (quantizer=litert)",
    )
    int4_layers: tuple[str, ...] = setting(
        (),
        "patterns, as in float_layers, of layers whose weights get 4 bits in an int8 or dynamic_range model; '*' is "
        "all; the file is smaller, but not faster",
    )
    techniques: tuple[str, ...] = setting(
        (),
        "post-training techniques, applied in this order: cross_layer_equalization (equalizes the ranges of "
        "channels across layers), bias_absorption (moves the constant part of channels into the next bias), "
        "one_shot_pruning (makes weights zero, as sparsity and sparsity_m_by_n say, and updates the others), "
        "range_tuning (scales the ranges of activations for the least error of the outputs), gptq "
        "(rounds weights to minimize the output error on data), reconstruction (rounds weights and corrects biases for "
        "the rounded inputs of each layer), bias_correction (removes the mean quantization error)",
        choices=TECHNIQUES,
    )
    sparsity: float = setting(
        0.5, "fraction of each layer's weights that one_shot_pruning makes zero", minimum=0.01, maximum=0.99
    )
    sparsity_m_by_n: tuple[int, ...] = setting(
        (),
        "m,n: instead of sparsity, one_shot_pruning makes m of every n consecutive input channels zero, such as 2,4",
        minimum=1,
    )
    lstm: str = setting(
        "auto",
        "form of LSTM layers: fused (one op for all time steps: small and accurate, but slower on CPUs, because a "
        "builtin kernel runs it instead of XNNPACK), unrolled (a copy of the cell for each step) or auto (in int8 "
        "fused beyond 32 steps, or if the target has the op)",
        choices=LSTM_FORMS,
    )
    verify: bool = setting(
        True,
        "run the result next to the float model on a few calibration samples, and report outputs that lost their "
        "information (collapsed)",
    )
    strict: bool = setting(False, "make a collapsed output an error instead of a warning; needs verify")
    batch_size: int = setting(
        1, "fixed batch dimension; 0 leaves it dynamic, which some delegates do not support", minimum=0
    )
    input_shapes: tuple[str, ...] = setting(
        (),
        "shapes of inputs without the batch, for models that do not fix them: NAME=SIZES[:DTYPE], such as "
        "image=32x32x3 or ids=128:int32; the name of an only input may be left out; empty uses the shapes that the "
        "model was built or called with, then those of the data",
    )
    signature: str = setting(
        "",
        "signature to convert if the model has several; empty converts all signatures of a .tflite, and the only one "
        "or serving_default of a SavedModel",
    )

    def __post_init__(self) -> None:
        """Check the types of inputs and outputs, the shapes of inputs, and that strict is used with verify."""
        super().__post_init__()
        parse_input_shapes(self.input_shapes)
        check_io_types(self, "conversion", self.scheme, f"conversion.scheme={self.scheme}")
        if self.strict and not self.verify:
            raise InputError(
                "conversion.strict=True needs the verification: remove it, or remove conversion.verify=False",
                field="conversion.strict",
                expected=False,
                got=True,
            )

    @property
    def needs_ranges(self) -> bool:
        """Whether the scheme needs activation ranges, from a representative dataset or from fake quantization."""
        return self.scheme in ("int8", "int16x8")

    @property
    def has_few_bits(self) -> bool:
        """Whether weights of ops on float activations get fewer than 8 bits, so that data can choose their rounding."""
        return self.scheme in FEW_BIT_SCHEMES or (self.scheme == "dynamic_range" and bool(self.int4_layers))

    @property
    def input_type(self) -> str:
        """The type of the model's inputs: inference_input_type, or the default of the scheme."""
        return self.inference_input_type or SCHEME_IO_TYPES[self.scheme][0]

    @property
    def output_type(self) -> str:
        """The type of the model's outputs: inference_output_type, or the default of the scheme."""
        return self.inference_output_type or SCHEME_IO_TYPES[self.scheme][0]


def check_io_types(config: Config, path: str, scheme: str, requested: str) -> None:
    """Check that a scheme supports the types of inputs and outputs that a config asks for.

    Args:
        config: A config with the fields inference_input_type and inference_output_type.
        path: Its path in the config tree, for messages.
        scheme: A key of `SCHEME_IO_TYPES`.
        requested: The setting that chose the scheme, for messages, such as "conversion.scheme=int8".

    Raises:
        InputError: The scheme does not support one of the types; `field` is its path.
    """
    possible = SCHEME_IO_TYPES[scheme]
    for name in ("inference_input_type", "inference_output_type"):
        kind = getattr(config, name)
        if kind and kind not in possible:
            others = ", ".join(other for other, kinds in SCHEME_IO_TYPES.items() if kind in kinds)
            raise InputError(
                f"{requested} with {path}.{name}={kind}: expected {alternatives(possible)}, or a scheme with "
                f"{kind} ({others})",
                field=f"{path}.{name}",
                expected=possible,
                got=kind,
            )

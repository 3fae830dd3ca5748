# SPDX-License-Identifier: Apache-2.0
"""The whole of a run as one tree of frozen dataclasses. `settings` has what they are made with."""

from dataclasses import dataclass

from tfq.errors import InputError
from tfq.settings import Config, section, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where examples come from and what is done to them before the model sees them."""

    source: str = setting(
        "digits",
        "digits, cifar10, fashion_mnist, npz:PATH, tfrecord:GLOB, folder:DIR, eembc:DIR or tfds:NAME",
        names_section=True,
    )
    resize: tuple[int, ...] = setting(
        (), "height,width in pixels to resize images to; empty keeps their size", minimum=1
    )
    scale: float = setting(1.0, "factor on every input value; the model is fed x * scale + offset")
    offset: float = setting(0.0, "added to every input value after the scale")
    image_key: str = setting("image", "name of the encoded image in a TFRecord Example")
    label_key: str = setting("label", "name of the integer label in a TFRecord Example; empty: no labels")
    max_memory_mb: int = setting(
        2048, "megabytes that a split may take in memory; a larger one is streamed in pieces", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A plain training loop: Adam on cross-entropy."""

    epochs: int = setting(10, "passes over the training split", minimum=1)
    batch_size: int = setting(32, "examples a step", minimum=1)
    learning_rate: float = setting(1e-3, "Adam's initial step size, decayed to 0 along a cosine", minimum=0)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainConfig):
    """Training of a model that has no weights yet."""

    keras: str = setting(
        "tf_keras", "which Keras builds the model; pruning and QAT take tf_keras", choices=("tf_keras", "keras")
    )


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Config):
    """Magnitude pruning of weights with tfmot."""

    enabled: bool = setting(True, "prune the weights", names_section=True)
    schedule: str = setting("polynomial", "how the sparsity grows", choices=("polynomial", "constant"))
    initial_sparsity: float = setting(0.0, "fraction of zeros at begin_step (polynomial)", minimum=0, maximum=0.99)
    final_sparsity: float = setting(0.5, "fraction of zeros from end_step on", minimum=0, maximum=0.99)
    begin_step: int = setting(0, "first training step that prunes", minimum=0)
    end_step: int = setting(-1, "step that reaches final_sparsity; -1 is three quarters of the training", minimum=-1)
    frequency: int = setting(10, "steps between two updates of the masks", minimum=1)
    layers: tuple[str, ...] = setting(("*",), "name patterns of the layers to prune, of those that can be")
    targets: tuple[str, ...] = setting(
        (), "PATTERN=SPARSITY: layers with a final_sparsity of their own; the last pattern that fits a layer counts"
    )
    order: str = setting(
        "uniform",
        "uniform: final_sparsity in every layer; sensitivity: more in layers that bear it, final_sparsity over all",
        choices=("uniform", "sensitivity"),
    )
    sparsity_m_by_n: tuple[int, ...] = setting((), "m,n: m zeros in every n weights in a row (2,4)", minimum=1)
    block_size: tuple[int, ...] = setting((), "height,width of blocks of a kernel that become zero as one", minimum=1)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Config):
    """Training towards the outputs of the float model beside the labels."""

    enabled: bool = setting(False, "learn from the float model's outputs as well", names_section=True)
    temperature: float = setting(4.0, "both models' logits are divided by it", minimum=0.1)
    weight: float = setting(0.5, "share of the loss that is towards the float model", minimum=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class FiltersConfig(Config):
    """Pruning of whole filters, which are taken out of the model: it becomes smaller and faster."""

    enabled: bool = setting(False, "take whole filters out, before all other compression", names_section=True)
    target_macs: float = setting(0.5, "share of the multiply-adds that stays", minimum=0.01, maximum=1)
    norm: str = setting("l1", "norm by which filters are ranked: the smallest go", choices=("l1", "l2"))
    multiple_of: int = setting(8, "channels are left in multiples of this, where there are as many", minimum=1)
    layers: tuple[str, ...] = setting(("*",), "name patterns of the layers that may lose filters")
    targets: tuple[str, ...] = setting(
        (), "PATTERN=SHARE: layers of whose filters that share stays; the others lose what target_macs asks for beyond"
    )
    refit_examples: int = setting(
        256, "training examples by which the layers behind removed filters are fit anew; 0 leaves them", minimum=0
    )
    distillation: DistillationConfig = section(
        DistillationConfig, "learning from the model that the filters were taken out of"
    )


@dataclass(frozen=True, kw_only=True)
class QATConfig(Config):
    """Quantization-aware training with tfmot's default 8-bit scheme."""

    enabled: bool = setting(True, "quantization-aware train", names_section=True)
    preserve_sparsity: bool = setting(True, "keep the zeros of a pruned model at zero")
    layers: tuple[str, ...] = setting(
        ("*",), "name patterns of the layers to train with fake quantization; the converter quantizes the others"
    )
    calibration_steps: int = setting(
        200, "training examples whose ranges the activations start with; 0 starts with the first batch's", minimum=0
    )
    freeze_batch_norm_step: int = setting(
        -1,
        "training step that freezes the statistics of BatchNormalization; -1 is nine tenths of the training",
        minimum=-1,
    )
    distillation: DistillationConfig = section(DistillationConfig, "learning from the float model")


@dataclass(frozen=True, kw_only=True)
class CompressionConfig(Config):
    """What is done to the tf_keras model before conversion."""

    filters: FiltersConfig = section(FiltersConfig, "pruning of whole filters")
    prune: PruneConfig = section(PruneConfig, "magnitude pruning")
    qat: QATConfig = section(QATConfig, "quantization-aware training")
    train: TrainConfig = section(TrainConfig, "the fine-tuning of pruning and of QAT, each")


# "" is the scheme's own: int8 of int8, int16 of int16x8, float32 of all others.
IO_TYPES = ("", "int8", "uint8", "int16", "float32")

# Of each scheme, the types that inputs and outputs can have; the first is its own.
SCHEME_IO_TYPES = {
    "int8": ("int8", "uint8", "float32"),
    "int16x8": ("int16", "float32"),
    "dynamic": ("float32",),
    "float16": ("float32",),
    "float32": ("float32",),
    "weight_only_int8": ("float32",),
}

SCHEMES = tuple(SCHEME_IO_TYPES)

TARGETS = ("xnnpack", "tflm", "nnapi", "edgetpu")


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(Config):
    """What the flatbuffer is to be."""

    scheme: str = setting("int8", "number format of weights and activations", choices=SCHEMES)
    target: str = setting(
        "",
        "what the flatbuffer is to run on: chooses what this target can run, and refuses what it cannot",
        choices=("", *TARGETS),
    )
    per_channel: bool = setting(True, "a scale for each output channel of a weight, rather than one for all of it")
    per_channel_dense: bool = setting(True, "the same for fully connected layers alone; off where --noper_channel")
    inference_input_type: str = setting("", "type of the model's inputs; empty is the scheme's own", choices=IO_TYPES)
    inference_output_type: str = setting("", "type of the model's outputs; empty is the scheme's own", choices=IO_TYPES)
    calibration_steps: int = setting(200, "samples of the representative dataset to calibrate with", minimum=1)
    batch_size: int = setting(1, "fixed batch dimension; 0 leaves it dynamic, which some delegates refuse", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_io_types(self, self.scheme, f"scheme={self.scheme}")

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


# What the audit can require -> the scheme that it is; an int8 model is full_int8 when all of it is.
AUDIT_SCHEMES = {"full_int8" if scheme == "int8" else scheme: scheme for scheme in SCHEMES}


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Config):
    """What a flatbuffer must be."""

    require: str = setting(
        "",
        "scheme that the flatbuffer must have, or target that must be able to run it; empty reports only",
        choices=("", *AUDIT_SCHEMES, *TARGETS),
    )
    inference_input_type: str = setting(
        "", "type that the inputs must have; empty is the scheme's own", choices=IO_TYPES
    )
    inference_output_type: str = setting(
        "", "type that the outputs must have; empty is the scheme's own", choices=IO_TYPES
    )
    allow_float: tuple[str, ...] = setting((), "name patterns of layers that may stay float")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.require in AUDIT_SCHEMES:
            _check_io_types(self, AUDIT_SCHEMES[self.require], f"require={self.require}")


def _check_io_types(config: ConversionConfig | AuditConfig, scheme: str, asked: str) -> None:
    """Raises InputError where the scheme's inputs or outputs cannot have the type that `config` wants."""
    possible = SCHEME_IO_TYPES[scheme]
    for name in ("inference_input_type", "inference_output_type"):
        kind = getattr(config, name)
        if kind and kind not in possible:
            others = ", ".join(other for other, kinds in SCHEME_IO_TYPES.items() if kind in kinds)
            raise InputError(
                f"config: {asked} with {name}={kind}: wanted one of {', '.join(possible)} there, or the scheme "
                f"{others}, which has {kind}"
            )


@dataclass(frozen=True, kw_only=True)
class RequireConfig(Config):
    """Bounds on an evaluation; a missed one is exit code 1."""

    min_accuracy: float | None = setting(None, "lowest top-1 accuracy, a fraction", minimum=0, maximum=1)
    max_accuracy_drop: float | None = setting(
        None, "largest loss of accuracy against the reference: a fraction, or in the metric's own unit", minimum=0
    )
    min_agreement: float | None = setting(
        None, "lowest share of examples with the reference's top-1", minimum=0, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """What a flatbuffer computes, where, and against what."""

    reference: str = setting("", "float .tflite to compare with")
    runner: str = setting("local", "where to run: local, qemu:cortex-a53 or qemu:cortex-a76")
    parity_runners: tuple[str, ...] = setting((), "runners whose outputs are compared with --runner's, code by code")
    parity_limit: int = setting(256, "examples for the comparison between runners", minimum=1)
    metric: str = setting(
        "",
        "what is held against the labels: top1, top5, roc_auc, mae or MODULE:FUNCTION; empty is top1, or roc_auc of a "
        "model that reconstructs its input",
    )
    num_threads: int = setting(1, "threads of each interpreter", minimum=1)
    num_workers: int = setting(0, "interpreters that share the examples; 0 is one for each core", minimum=0)
    timeout_secs: float = setting(
        0, "longest time without any progress before a run is given up; 0 goes by the model's own size", minimum=0
    )
    xnnpack: bool = setting(True, "use XNNPACK; off runs TFLite's builtin kernels")
    limit: int = setting(0, "evaluate on the first so many examples; 0 is all", minimum=0)
    warmup_runs: int = setting(10, "untimed inferences before the timed ones", minimum=0)
    num_runs: int = setting(100, "timed inferences; 0 measures no latency", minimum=0)
    require: RequireConfig = section(RequireConfig, "bounds that must hold")


KERNELS = ("xnnpack", "builtin", "reference")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Config):
    """How long an inference takes, of one model or of several in turn."""

    against: tuple[str, ...] = setting((), "other .tflite files, timed in turn with --model; ratios are to --model")
    runner: str = setting("local", "where to run: local; an emulator counts instructions and times nothing")
    kernels: tuple[str, ...] = setting(("xnnpack",), "kernels to time, in turn", choices=KERNELS)
    num_threads: int = setting(1, "threads of the interpreter", minimum=1)
    warmup_runs: int = setting(10, "untimed inferences before the timed ones", minimum=0)
    num_runs: int = setting(100, "timed inferences of each model, at least", minimum=1)
    min_secs: float = setting(1.0, "seconds of timed inferences of each model, at least", minimum=0)
    ops: bool = setting(True, "time each op as well, in inferences of their own, where the interpreter can")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """A whole run: `tfq run` uses all of it, each other script its section and the first five."""

    model: str = setting("", "a .keras, .h5 or .tflite file, or the name of a model that tfq builds")
    data: DataConfig = section(DataConfig, "examples")
    out: str = setting("", "directory that receives every file")
    custom_objects: str = setting(
        "", "Python module or .py file of your own that registers or defines the custom classes in --model"
    )
    seed: int = setting(0, "seed of weights, shuffling and sampling", minimum=0, maximum=2**32 - 1)
    training: TrainingConfig = section(TrainingConfig, "training of a model built by name")
    compression: CompressionConfig = section(CompressionConfig, "pruning and QAT")
    conversion: ConversionConfig = section(ConversionConfig, "flatbuffer")
    audit: AuditConfig = section(AuditConfig, "what the int8 flatbuffers must be")
    evaluation: EvaluationConfig = section(EvaluationConfig, "runners, metrics, bounds")
    benchmark: BenchmarkConfig = section(BenchmarkConfig, "latency, side by side")

# SPDX-License-Identifier: Apache-2.0
"""The whole of a run as one tree of frozen dataclasses, and strict JSON in both directions.

A field is declared with `setting(default, help)`; the help text becomes the flag's help, and the
bounds are checked whenever a config is made, by whatever road (Python, JSON, flag).
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfq.errors import InputError, did_you_mean


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    names_section: bool = False,
) -> Any:
    """A config field: its default, its help text, and what values it takes.

    names_section: the field may be given under its section's own name: `--data=digits` sets `data.source`,
        and so does `{"data": "digits"}` in JSON.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "names_section": names_section,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, help: str) -> Any:
    """A config field that is itself a config."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


class Config:
    """Base of every config: validates on construction. Subclasses are frozen, keyword-only dataclasses."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            hint = field_types(type(self))[field.name]
            object.__setattr__(self, field.name, _checked(f"{type(self).__name__}.{field.name}", value, hint, field))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: nested dicts, lists, numbers, strings, booleans, None."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> typing.Self:
        """The config that `values` spell out, defaults elsewhere.

        Raises InputError on an unknown key, a wrong type or a value out of bounds, and names the path of it.
        """
        hints = field_types(cls)
        arguments: dict[str, Any] = {}
        for key, value in values.items():
            path = f"{where}.{key}" if where else key
            if key not in hints:
                raise InputError(f"config: unknown key {path!r}: {did_you_mean(key, hints)}")
            if is_section(hints[key]):
                if not isinstance(value, Mapping):
                    value = _from_shorthand(hints[key], value, path)
                arguments[key] = hints[key].from_dict(value, path)
            else:
                arguments[key] = _checked(path, value, hints[key], _field(cls, key))
        return cls(**arguments)

    def config_hash(self) -> str:
        """SHA-256 over the config's canonical JSON, without what tells where rather than what: `out`."""
        values = {key: value for key, value in self.to_dict().items() if key != "out"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def field_types(cls: Any) -> dict[str, Any]:
    """Field name -> resolved type of a config class, in declaration order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_section(hint: Any) -> bool:
    """Whether a field of this type is a nested config."""
    return isinstance(hint, type) and issubclass(hint, Config)


def section_field(cls: type) -> str | None:
    """The field that may be given under its section's own name, if the config has one."""
    return next((field.name for field in dataclasses.fields(cls) if field.metadata.get("names_section")), None)


def _field(cls: type, name: str) -> dataclasses.Field:
    return next(field for field in dataclasses.fields(cls) if field.name == name)


def _from_shorthand(cls: type, value: Any, path: str) -> Mapping[str, Any]:
    name = section_field(cls)
    if name is None:
        raise InputError(f"config: {path} wants an object, got {value!r}")
    return {name: value}


def _checked(path: str, value: Any, hint: Any, field: dataclasses.Field) -> Any:
    """`value` as the type of its field (an int where a float is wanted is taken), or InputError."""
    if is_section(hint):
        if not isinstance(value, hint):
            raise InputError(f"config: {path} wants a {hint.__name__}, got {value!r}")
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(argument for argument in arguments if argument is not type(None))
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise InputError(f"config: {path} wants a list, got {value!r}")
        return tuple(_checked_scalar(path, item, arguments[0], field) for item in value)
    return _checked_scalar(path, value, hint, field)


def _checked_scalar(path: str, value: Any, kind: type, field: dataclasses.Field) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"config: {path} wants {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"config: {path} wants a finite number, got {value!r}")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise InputError(f"config: {path} is {value!r}: {did_you_mean(str(value), choices)}")
    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    if minimum is not None and value < minimum:
        raise InputError(f"config: {path} wants at least {minimum:g}, got {value!r}")
    if maximum is not None and value > maximum:
        raise InputError(f"config: {path} wants at most {maximum:g}, got {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where examples come from and what is done to them before the model sees them."""

    source: str = setting("digits", "digits, npz:PATH or tfrecord:GLOB", names_section=True)
    resize: tuple[int, ...] = setting(
        (), "height,width in pixels to resize images to; empty keeps their size", minimum=1
    )
    scale: float = setting(1.0, "factor on every input value; the model is fed x * scale + offset")
    offset: float = setting(0.0, "added to every input value after the scale")
    image_key: str = setting("image", "name of the encoded image in a TFRecord Example")
    label_key: str = setting("label", "name of the integer label in a TFRecord Example; empty: no labels")


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


@dataclass(frozen=True, kw_only=True)
class QATConfig(Config):
    """Quantization-aware training with tfmot's default 8-bit scheme."""

    enabled: bool = setting(True, "quantization-aware train", names_section=True)
    preserve_sparsity: bool = setting(True, "keep the zeros of a pruned model at zero")


@dataclass(frozen=True, kw_only=True)
class CompressionConfig(Config):
    """What is done to the tf_keras model before conversion."""

    prune: PruneConfig = section(PruneConfig, "magnitude pruning")
    qat: QATConfig = section(QATConfig, "quantization-aware training")
    train: TrainConfig = section(TrainConfig, "the fine-tuning of pruning and of QAT, each")


IO_TYPES = ("int8", "uint8", "float32")


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(Config):
    """What the flatbuffer is to be."""

    scheme: str = setting("int8", "number format of weights and activations", choices=("int8", "float32"))
    inference_input_type: str = setting("int8", "type of the model's inputs under --scheme=int8", choices=IO_TYPES)
    inference_output_type: str = setting("int8", "type of the model's outputs under --scheme=int8", choices=IO_TYPES)
    calibration_steps: int = setting(200, "samples of the representative dataset to calibrate with", minimum=1)
    batch_size: int = setting(1, "fixed batch dimension; 0 leaves it dynamic, which some delegates refuse", minimum=0)


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Config):
    """What a flatbuffer must be."""

    require: str = setting("", "what must hold; empty reports only", choices=("", "full_int8"))
    inference_input_type: str = setting("int8", "type that the inputs must have", choices=IO_TYPES)
    inference_output_type: str = setting("int8", "type that the outputs must have", choices=IO_TYPES)
    allow_float: tuple[str, ...] = setting((), "name patterns of layers that may stay float")


@dataclass(frozen=True, kw_only=True)
class RequireConfig(Config):
    """Bounds on an evaluation; a missed one is exit code 1."""

    min_accuracy: float | None = setting(None, "lowest top-1 accuracy, a fraction", minimum=0, maximum=1)
    max_accuracy_drop: float | None = setting(
        None, "largest loss of accuracy against the reference, a fraction", minimum=0, maximum=1
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
    num_threads: int = setting(1, "threads of the interpreter", minimum=1)
    xnnpack: bool = setting(True, "use XNNPACK; off runs TFLite's builtin kernels")
    limit: int = setting(0, "evaluate on the first so many examples; 0 is all", minimum=0)
    warmup_runs: int = setting(10, "untimed inferences before the timed ones", minimum=0)
    num_runs: int = setting(100, "timed inferences; 0 measures no latency", minimum=0)
    require: RequireConfig = section(RequireConfig, "bounds that must hold")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """A whole run: `tfq run` uses all of it, each other script its section and the first four."""

    model: str = setting("", "a .keras, .h5 or .tflite file, or the name of a model that tfq builds")
    data: DataConfig = section(DataConfig, "examples")
    out: str = setting("", "directory that receives every file")
    seed: int = setting(0, "seed of weights, shuffling and sampling", minimum=0, maximum=2**32 - 1)
    training: TrainingConfig = section(TrainingConfig, "training of a model built by name")
    compression: CompressionConfig = section(CompressionConfig, "pruning and QAT")
    conversion: ConversionConfig = section(ConversionConfig, "flatbuffer")
    audit: AuditConfig = section(AuditConfig, "what the int8 flatbuffers must be")
    evaluation: EvaluationConfig = section(EvaluationConfig, "runners, metrics, bounds")

# SPDX-License-Identifier: Apache-2.0
"""config.model: a file or a name, loaded, traced, saved."""

from pathlib import Path
from typing import Any

from tfq import artifacts, registry
from tfq.config import RunConfig
from tfq.errors import InputError
from tfq.models import file_stem

MODEL_FILES = (".keras", ".h5", ".hdf5", ".tflite")


def is_file(model: str) -> bool:
    """Whether config.model means a file, rather than the name of a model that tfq builds."""
    return model.endswith(MODEL_FILES) or "/" in model or Path(model).exists()


def model_name(config: RunConfig) -> str:
    """The stem of every file written about config.model: the file's own, or the model's name."""
    if not config.model:
        raise InputError(
            "model is empty: give a .keras, .h5 or .tflite file, or a name that tfq train knows", field="model", got=""
        )
    return Path(config.model).stem if is_file(config.model) else file_stem(config.model)


def check_given(config: RunConfig) -> None:
    """Check, before anything is loaded, that a model and a data source are named.

    Raises:
        InputError: One of them is empty.
    """
    model_name(config)
    config.data.check_source()


def check_model_file(config: RunConfig) -> None:
    """Raises InputError where config.model means a file, and there is none."""
    if is_file(config.model) and not Path(config.model).exists():
        raise InputError(
            f"model={config.model} does not exist: expected a .keras, .h5 or .tflite file, a SavedModel directory, or "
            "a model's name",
            field="model",
            expected="a file",
            got=config.model,
        )


def check_tensorflow(config: RunConfig) -> None:
    """Check, before anything is read, that TensorFlow can be imported where a conversion or a training needs it.

    A .tflite is converted without it, except by TensorFlow's quantizer of activations.

    Raises:
        TfqError: It cannot be imported.
    """
    conversion = config.conversion
    if not config.model.endswith(".tflite") or (conversion.needs_ranges and conversion.quantizer == "tensorflow"):
        from tfq.keras_bridge import import_tensorflow

        import_tensorflow()


def load(config: RunConfig, *, allow_code: bool = False) -> Any:
    """config.model as a Keras model, or as bytes where it is a .tflite file."""
    model_name(config)
    if config.model.endswith(".tflite"):
        return read_tflite(config)
    if is_file(config.model):
        from tfq.keras_bridge import custom_objects_of_plugins, load_model

        registry.load_plugins(config.plugin)
        own = custom_objects_of_plugins()
        return load_model(config.model, allow_code=allow_code, custom_objects=own)
    raise InputError(
        f"model={config.model} is no file, and a model that tfq builds has no weights yet: "
        "train it first (tfq train), and give the file that comes out",
        field="model",
        expected="a file",
        got=config.model,
    )


def read_tflite(config: RunConfig) -> bytes:
    """The bytes of the file in config.model. Raises InputError where there is none."""
    model_name(config)
    return artifacts.read_bytes(config.model, "a .tflite file")


def save_keras(model: Any, path: Path) -> Path:
    """Save a Keras model under `path` whole or not at all, in the format of its suffix.

    A quantization-aware trained model wants `.h5`: tf_keras' `.keras` loader cannot restore tfmot's wrappers
    (2.21: "Layer 'quantize_layer' expected 5 variables, but received 3").
    """
    with artifacts.staged(path) as temporary:
        model.save(temporary)
    return path


def trace_once(model: Any, config: RunConfig) -> Any:
    """One traced function for all the conversions of a Keras model; a Trace and bytes are given back as they are."""
    from tfq.conversion import Trace, trace

    if isinstance(model, (bytes, Trace)):
        return model
    return trace(model, config.conversion.batch_size, unroll=config.conversion.needs_ranges)

# SPDX-License-Identifier: Apache-2.0
"""Load, train, trace and save the model of a config, and load the splits of its data."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

from tfq import artifacts, data, evaluation, progress, registry, tflite
from tfq.config import ConversionConfig, DataConfig, RunConfig
from tfq.errors import FlatbufferError, InputError, warn
from tfq.models import file_stem

MODEL_FILES = (".keras", ".h5", ".hdf5", ".tflite")


def is_file(model: str) -> bool:
    """Return whether config.model is a file, not the name of a model that tfq builds."""
    return model.endswith(MODEL_FILES) or "/" in model or os.path.exists(model)


def model_name(config: RunConfig) -> str:
    """Return the stem of all files that are written about config.model: the stem of its file, or its name.

    Raises:
        InputError: config.model is empty.
    """
    if not config.model:
        raise InputError(
            "model is empty: expected a .keras, .h5 or .tflite file, or the name of a model that tfq train builds",
            field="model",
            expected="a model",
            got="",
        )
    return Path(config.model).stem if is_file(config.model) else file_stem(config.model)


def check_named(config: RunConfig, split: str = "") -> None:
    """Check, before anything is loaded, that a model and a data source are named, and that the source exists.

    Args:
        config: Names the model and the data source.
        split: The split that is read first, of which the source may check the files; "" if it is unknown.

    Raises:
        InputError: One of them is empty, or the source cannot be read.
    """
    model_name(config)
    data.check_readable(config.data, split)


def check_path(path: str, path_of: str, field: str) -> None:
    """Check, before the work, that a path of the user names a file or directory that can be read.

    Args:
        path: The path. The name of a model that tfq builds is accepted as a model.
        path_of: What it is the path of, as in `tfq.config.base.setting`.
        field: The config path that names it, for the errors.

    Raises:
        InputError: It does not exist, is not a regular file, cannot be read, or is a directory without a model.
    """
    if path_of == "model" and not is_file(path):
        return
    if path_of == "model" and os.path.isdir(path):
        # report.json: the folder of a run, which `tfq export` reads.
        if not any(
            os.path.lexists(os.path.join(path, name)) for name in ("saved_model.pb", "config.json", "report.json")
        ):
            raise InputError(
                f"{field}={artifacts.shown(path)} is a directory without saved_model.pb or config.json: expected "
                f"{_MODEL}",
                field=field,
                expected=_MODEL,
                got=path,
            )
        return
    if path_of == "ranges":
        from tfq.ptq.calibration import Ranges

        Ranges.load(path)
        return
    expected = _EXPECTED_FILES[path_of]
    with artifacts.open_file(path, expected, field=field) as file, artifacts.decoding(path, expected, field=field):
        is_empty = not file.read(1)
    if is_empty:
        raise InputError(
            f"{field}: {artifacts.shown(path)} is empty: expected {expected}", field=field, expected=expected, got=path
        )


_MODEL = "a .keras, .h5 or .tflite file, a SavedModel directory, or the name of a model"
_EXPECTED_FILES = {
    "model": _MODEL,
    "flatbuffer": "a .tflite file",
    "comparable": "a .tflite file or a record that tfq wrote",
}


def check_model_file(config: RunConfig) -> None:
    """Check that config.model can be read if it is a file, and the file of config.conversion.calibration.ranges.

    Raises:
        InputError: As in `check_path`.
    """
    check_path(config.model, "model", "model")
    if ranges := config.conversion.calibration.ranges:
        check_path(ranges, "ranges", "conversion.calibration.ranges")


def check_tensorflow(config: RunConfig) -> None:
    """Check, before anything is read, that TensorFlow can be imported if a conversion or a training needs it.

    Only TensorFlow's quantizer of activations needs it to convert a .tflite.

    Raises:
        TfqError: It cannot be imported.
    """
    conversion = config.conversion
    if not config.model.endswith(".tflite") or (conversion.needs_ranges and conversion.quantizer == "tensorflow"):
        from tfq.keras_bridge import import_tensorflow

        import_tensorflow()


def load(config: RunConfig, *, allow_code: bool = False) -> Any:
    """Return config.model as a Keras model, as a SavedModel without a Keras config, or as the bytes of a .tflite.

    Args:
        config: What to load.
        allow_code: Whether code in the model file (Lambda layers) may run.

    Raises:
        InputError: There is no such file, or it holds no model that can be loaded.
    """
    model_name(config)
    if config.model.endswith(".tflite"):
        return read_tflite(config)
    if is_file(config.model):
        return load_file(config.model, config, allow_code=allow_code)
    raise InputError(
        f"model={config.model} is not a file, and a model that tfq builds has no weights before it is trained: run "
        "tfq train, and give the file that it writes",
        field="model",
        expected="a file",
        got=config.model,
    )


def load_file(path: str, config: RunConfig, *, allow_code: bool = False) -> Any:
    """Return the model in a file or SavedModel directory; code of config.plugin may define its classes."""
    from tfq.keras_bridge import custom_objects_of_plugins, load_source

    registry.load_plugins(config.plugin)
    with progress.stage(f"loading {path}"):
        return load_source(
            path,
            allow_code=allow_code,
            custom_objects=custom_objects_of_plugins(),
            signature=config.conversion.signature,
        )


def load_flatbuffer(path: str, config: RunConfig, *, field: str, allow_code: bool = False) -> bytes:
    """Return the bytes of a .tflite; a Keras model or a SavedModel is converted to float32, and a note says so.

    Args:
        path: The file or directory.
        config: How to convert: config.conversion.input_shapes and signature, config.plugin, and config.data if neither
            the model nor the config fixes the shape of an input.
        field: The config field that names `path`, for errors.
        allow_code: As for `load`.

    Raises:
        InputError: There is no such file, or it holds no model that can be loaded.
    """
    is_keras = path.endswith((".keras", ".h5", ".hdf5")) or Path(path).is_dir()
    if not is_keras:
        return read_flatbuffer(path, field)
    if not Path(path).exists():
        return artifacts.read_bytes(path, "a model", field=field)
    content = float_flatbuffer(load_file(path, config, allow_code=allow_code), config)
    progress.note(f"{path} is converted to float32, and the .tflite is evaluated")
    return content


def float_flatbuffer(model: Any, config: RunConfig) -> bytes:
    """Return the float32 flatbuffer of a model; bytes are returned unchanged if no shape or signature is set."""
    from tfq.conversion import convert_model

    conversion = config.conversion
    if isinstance(model, bytes) and not conversion.input_shapes and not conversion.signature:
        return model
    to_float = ConversionConfig(
        scheme="float32",
        batch_size=conversion.batch_size,
        input_shapes=conversion.input_shapes,
        signature=conversion.signature,
    )
    traced = model if isinstance(model, bytes) else trace_once(model, config)
    return convert_model(traced, None, to_float, preprocessing=data.preprocessing_record(config.data))


def read_tflite(config: RunConfig) -> bytes:
    """Return the bytes of the file in config.model.

    Raises:
        InputError: There is no such file, or it is a Keras model or a SavedModel.
    """
    model_name(config)
    is_saved_model = os.path.isfile(os.path.join(config.model, "saved_model.pb"))
    if is_saved_model or config.model.endswith((".keras", ".h5", ".hdf5")):
        raise InputError(
            f"model={config.model} is a {'SavedModel' if is_saved_model else 'Keras model'}, expected a .tflite file. "
            "Convert it with tfq convert first",
            field="model",
            expected="a .tflite file",
            got=config.model,
        )
    with progress.stage(f"reading {config.model}"):
        return read_flatbuffer(config.model, "model")


def read_flatbuffer(path: str, field: str) -> bytes:
    """Return the bytes of a .tflite. Its structure is checked here, so that the error names the file.

    Raises:
        InputError: There is no such file, or it is not a flatbuffer.
    """
    content = artifacts.read_bytes(path, "a .tflite file", field=field)
    try:
        tflite.read(content)
    except FlatbufferError as error:
        raise FlatbufferError(
            f"{artifacts.shown(path)}: {error}", field=field, expected=error.expected, got=error.got
        ) from error
    return content


def save_keras(model: Any, path: Path) -> Path:
    """Save a Keras model as `path` in the format of its suffix, completely or not at all; return `path`.

    A quantization-aware trained model must be saved as `.h5`: tf_keras' `.keras` loader cannot restore tfmot's wrappers
    (2.21: "Layer 'quantize_layer' expected 5 variables, but received 3").
    """
    with progress.stage(f"writing {path.name}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HDF5")  # tf_keras calls the format legacy
        if path.suffix in (".h5", ".hdf5"):
            return artifacts.write_bytes(path, _to_h5(model, path))
        with artifacts.staged(path) as temporary:
            model.save(temporary)
    return path


def _to_h5(model: Any, path: Path) -> bytes:
    """Return the content of the HDF5 file that `model.save(path)` writes.

    HDF5 must not write to a disk: if that is full, it reports its own internals, or ends the process.
    """
    import h5py

    buffer = io.BytesIO()

    class InMemory(h5py.File):
        """A file that is in `buffer` if Keras opens `path`."""

        def __init__(self, name: Any, *arguments: Any, **named: Any) -> None:
            """Open the file as h5py does."""
            is_model = isinstance(name, (str, os.PathLike)) and Path(name) == path
            super().__init__(buffer if is_model else name, *arguments, **named)

    original, h5py.File = h5py.File, InMemory
    try:
        model.save(path)
    finally:
        h5py.File = original
    return buffer.getvalue()


def trace_once(model: Any, config: RunConfig) -> Any:
    """Return one Trace for all conversions of a model. A Trace and bytes are returned unchanged.

    If neither the model nor config.conversion.input_shapes fixes the shape of an input, config.data does.
    """
    from tfq.conversion import Trace, trace_for

    if isinstance(model, (bytes, Trace)):
        return model
    has_data = bool(config.data.source)
    return trace_for(model, config.conversion, (lambda: _first_example(config.data)) if has_data else None)


def _first_example(config: DataConfig) -> data.AnySplit:
    """Return a split with one example. All examples of a split have the same shape."""
    return data.load_calibration_split(config, limit=1)


def load_split(config: DataConfig, split: str, *, limit: int = 0) -> data.AnySplit:
    """Return the split that `tfq.data.load_split` loads; possible problems are TfqWarnings."""
    with progress.stage(f"reading the {split} split of {config.source}", prints_parts=True):
        return with_warnings(data.load_split(config, split, limit=limit))


def load_calibration_split(config: DataConfig, *, limit: int) -> data.AnySplit:
    """Return the first `limit` examples that `tfq.data` calibrates with; possible problems are TfqWarnings."""
    with progress.stage(f"reading calibration data of {config.source}", prints_parts=True):
        return with_warnings(data.load_calibration_split(config, limit=limit))


def with_warnings(split: data.AnySplit) -> data.AnySplit:
    """Warn of the possible problems that the source of a split noticed; return the split."""
    for note in split.notes:
        warn(note)
    return split


def data_notes(*splits: data.AnySplit | None) -> list[str]:
    """Return for a record how the sources made these splits, each sentence once: "val was held out of train"."""
    return list(dict.fromkeys(note for split in splits if split is not None for note in split.information))


def hashes(config: RunConfig, **splits: data.AnySplit | None) -> dict[str, Any]:
    """Return the SHA-256 of the model's file (None for a name), and of each preprocessed split by its keyword."""
    return {
        "model": artifacts.sha256_path(config.model) if is_file(config.model) else None,
        "data": {name: split.sha256() for name, split in splits.items() if split is not None},
    }


def keras_scores(model: Any, test: data.AnySplit | None) -> dict[str, Any]:
    """Return the metric, its unit and the value of a Keras model on the test split.

    All three are None if there is no such split, and the value is None if it has no labels. With labels for several
    outputs, these are those of the first one, and `test_outputs` has all of them by name.
    """
    from tfq.compression.output_losses import output_kind, reconstructs
    from tfq.compression.training import predict
    from tfq.keras_bridge.copies import output_names

    if test is None:
        return {"test_metric": None, "test_unit": None, "test_accuracy": None, "test_outputs": {}}
    scores = evaluation.score_outputs(
        predict(model, test),
        test,
        reconstructs=reconstructs(model),
        names=output_names(model, list(model.outputs)),
        class_outputs=[output_kind(tensor) == "softmax" for tensor in model.outputs],
    )
    name = scores["metric"]
    return {
        "test_metric": name,
        "test_unit": scores["metrics"][name]["unit"],
        "test_accuracy": scores["accuracy"],
        "test_outputs": {
            output: {key: facts[key] for key in ("metric", "unit", "accuracy")}
            for output, facts in scores["by_output"].items()
            if facts
        },
    }

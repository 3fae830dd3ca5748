# SPDX-License-Identifier: Apache-2.0
"""Convert a model with the data of a config, compare the result with a QAT model, and search an int8 conversion."""

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfq import artifacts, data, progress
from tfq.config import ConversionConfig, RunConfig
from tfq.errors import InputError, warn
from tfq.evaluation.verification import NUM_SAMPLES
from tfq.search import BitWidthsResult, SearchResult, accuracy_by_bit_widths, find_int8
from tfq.store import StageStore
from tfq.workflows.distribution import on_executor
from tfq.workflows.models import (
    data_notes,
    float_flatbuffer,
    hashes,
    load_calibration_split,
    load_split,
    trace_once,
    with_warnings,
)

if TYPE_CHECKING:
    from tfq.conversion import Conversion


def convert(model: Any, config: RunConfig) -> tuple["Conversion", dict[str, Any]]:
    """Convert a model by config.conversion, with config.data; return the conversion and details for the record.

    Args:
        model: A Keras model, a SavedModel, a Trace of one, or the bytes of a float flatbuffer.
        config: How to convert. For a quantization-aware trained model, config.data is read only if a tensor has no
            trained range.

    Raises:
        InputError: The model, the data or the config cannot be used.
    """
    from tfq.conversion import convert_with_record, is_ready_for, recurrent_record, recurrent_text

    preprocessing = data.preprocessing_record(config.data)
    traced = trace_once(model, config)
    dataset, examples, diagnostics, sha256, result = None, None, None, hashes(config), None
    if not isinstance(traced, bytes) and traced.has_fake_quant and not traced.has_fused_lstm:
        result = _by_learned_ranges(traced, config, preprocessing)
    elif not needs_data(config.conversion) or (isinstance(traced, bytes) and is_ready_for(traced, config.conversion)):
        result = convert_with_record(
            traced, None, config.conversion, preprocessing=preprocessing, examples=_examples(config)
        )
    if result is None:
        dataset = _calibration_samples(config)
        if not isinstance(traced, bytes):  # converting the graph takes long, so shapes are checked before it
            data.check_shapes(dataset, traced.input_specs)
        examples = {
            "split": dataset.name,
            "examples": dataset.num_examples,
            "sampling": config.conversion.sampling,
            "classes": data.class_counts(dataset),
        }
        with progress.stage("checking the calibration data"):
            diagnostics = data.diagnose(dataset, lambda: data.load_calibration_split(config.data))
        for finding in diagnostics.findings:
            warn(finding)
        chosen = f":{dataset.num_examples}" if config.conversion.sampling == "first" else "by class"
        sha256 = hashes(config, **{f"{dataset.name}[{chosen}]": dataset})
        conversion = dataclasses.replace(config.conversion, sampling="first")  # of the samples that were chosen
        with on_executor(config):
            result = convert_with_record(traced, dataset, conversion, preprocessing=preprocessing)
    message = recurrent_text(result.recurrent)
    if message:
        progress.note(message)
    return result, {
        "techniques": dict(result.techniques),
        "dead_layers": list(result.dead_layers),
        "trained_int4": list(result.trained_int4),
        "recurrent_layers": recurrent_record(result.content, result.recurrent),
        "preprocessing": preprocessing,
        "representative_dataset": examples,
        "data_notes": data_notes(dataset),
        "diagnostics": None if diagnostics is None else diagnostics.to_dict(),
        "verification": None if result.verification is None else result.verification.to_dict(),
        "sha256": sha256,
    }


def needs_data(config: ConversionConfig) -> bool:
    """Return whether a conversion needs data, unless the model was trained with fake quantization."""
    if not config.needs_ranges:
        return bool(config.techniques)
    return not config.calibration.ranges or bool(config.techniques or config.int4_layers)


def _calibration_samples(config: RunConfig) -> data.AnySplit:
    """Return the samples of config.data that calibrate a conversion, chosen by conversion.sampling."""
    count = config.conversion.num_calibration_samples
    if config.conversion.sampling == "first":
        return load_calibration_split(config.data, limit=count)
    everything = data.load_calibration_split(config.data)
    return with_warnings(data.stratified(everything, count))


def _examples(config: RunConfig) -> data.AnySplit | None:
    """Return the first examples of config.data, to verify a conversion that is not calibrated.

    Such a conversion does not need data: the result is None if there is none, and None with a TfqWarning if it cannot
    be read.
    """
    if not config.data.source or not config.conversion.verify or config.conversion.scheme == "float32":
        return None
    try:
        return data.load_calibration_split(config.data, limit=NUM_SAMPLES)
    except InputError as error:
        warn(f"{error}: the outputs are not compared with those of the float model")
        return None


def _by_learned_ranges(traced: Any, config: RunConfig, preprocessing: dict[str, Any]) -> "Conversion | None":
    """Convert a quantization-aware trained model without data; return None if some tensor has no trained range."""
    from tfq.conversion import convert_with_record, ops_without_range

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = convert_with_record(
            traced, None, config.conversion, preprocessing=preprocessing, examples=_examples(config)
        )
    if ops_without_range(result.content):
        return None
    for warning in caught:
        warn(str(warning.message), warning.category)
    return result


def compare_with_qat_model(qat_model: Any, content: bytes, test: data.AnySplit) -> dict[str, Any]:
    """Compare a flatbuffer with the QAT model that it was converted from, on the first test examples.

    Differences that are too large are TfqWarnings.

    Args:
        qat_model: The tf_keras model.
        content: The bytes of its flatbuffer.
        test: The test examples.

    Returns:
        The record of `compression.qat_parity`, or {"not_run": the reason}.
    """
    from tfq.compression import qat_parity

    try:
        with progress.stage("comparing with the QAT model"):
            result = qat_parity(qat_model, content, test)
    except InputError as error:  # the flatbuffer is valid, even if it cannot be compared
        return {"not_run": str(error)}
    for missed in result.missed():
        warn(f"the flatbuffer does not compute what the QAT model does: {missed}; {result.departure_text()}")
    return {**result.to_dict(), "missed": list(result.missed()), "departure_text": result.departure_text()}


def search_on_data(model: Any, config: RunConfig, out: Path) -> SearchResult:
    """Run `find_int8` on the splits of config.data. A command prints a line for each candidate.

    Args:
        model: A Keras model, or the bytes of a float flatbuffer.
        config: The settings: config.search, config.conversion and config.data.
        out: The directory in whose `.stages` every candidate is stored.

    Raises:
        InputError: The model or the data cannot be used.
    """
    floating = float_flatbuffer(model, config)
    train, validation, test = (load_split(config.data, split) for split in ("train", "val", "test"))
    for note in data_notes(train, validation, test):
        progress.note(note)
    with artifacts.locked_directory(out):
        store = StageStore(out)
        return find_int8(
            floating,
            train,
            validation,
            test,
            config.search,
            conversion=config.conversion,
            store=store,
            progress=progress.note,
        )


def bit_widths_on_data(model: Any, config: RunConfig, out: Path) -> BitWidthsResult:
    """Run `accuracy_by_bit_widths` on the splits of config.data. A command prints a line for each combination.

    Args:
        model: A Keras model, or the bytes of a float flatbuffer.
        config: The settings: config.analysis.bit_widths and config.data.
        out: The directory in whose `.stages` the results are stored.

    Raises:
        InputError: The model or the data cannot be used.
    """
    floating = float_flatbuffer(model, config)
    widths = config.analysis.bit_widths
    train = load_calibration_split(config.data, limit=widths.num_calibration_samples)
    test = load_split(config.data, "test", limit=widths.limit)
    with artifacts.locked_directory(out):
        return accuracy_by_bit_widths(floating, train, test, widths, store=StageStore(out), progress=progress.note)

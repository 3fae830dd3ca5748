# SPDX-License-Identifier: Apache-2.0
"""A model as a flatbuffer, and what the flatbuffer is held against."""

import warnings
from typing import TYPE_CHECKING, Any

from tfq import data
from tfq.config import ConversionConfig, RunConfig
from tfq.errors import InputError, warn
from tfq.evaluation.verification import NUM_SAMPLES
from tfq.workflows.model_files import trace_once
from tfq.workflows.training import data_notes, hashes, with_warnings

if TYPE_CHECKING:
    from tfq.conversion import Conversion


def convert(model: Any, config: RunConfig) -> tuple["Conversion", dict[str, Any]]:
    """Convert `model` (Keras, a Trace, or float flatbuffer bytes) by config.conversion; return it with its record.

    Of a quantization-aware trained model, config.data is read only if some tensor has no range from the training.
    """
    from tfq.conversion import convert_with_record

    preprocessing = data.preprocessing_record(config.data)
    traced = trace_once(model, config)
    dataset, examples, diagnostics, sha256, result = None, None, None, hashes(config), None
    if not isinstance(traced, bytes) and traced.has_fake_quant:
        result = _by_learned_ranges(traced, config, preprocessing)
    elif not needs_data(config.conversion):
        result = convert_with_record(
            traced, None, config.conversion, preprocessing=preprocessing, examples=_examples(config)
        )
    if result is None:
        dataset = with_warnings(
            data.load_calibration_split(config.data, limit=config.conversion.num_calibration_samples)
        )
        examples = {"split": dataset.name, "examples": dataset.num_examples}
        diagnostics = data.diagnose(dataset, lambda: data.load_calibration_split(config.data))
        for finding in diagnostics.findings:
            warn(finding)
        sha256 = hashes(config, **{f"{dataset.name}[:{dataset.num_examples}]": dataset})
        result = convert_with_record(traced, dataset, config.conversion, preprocessing=preprocessing)
    return result, {
        "techniques": dict(result.techniques),
        "dead_layers": list(result.dead_layers),
        "preprocessing": preprocessing,
        "representative_dataset": examples,
        "data_notes": data_notes(dataset),
        "diagnostics": None if diagnostics is None else diagnostics.to_dict(),
        "verification": None if result.verification is None else result.verification.to_dict(),
        "sha256": sha256,
    }


def needs_data(config: ConversionConfig) -> bool:
    """Return whether a conversion is calibrated on data, unless the model was trained with fake quantization."""
    return config.needs_ranges and (not config.calibration.ranges or bool(config.techniques or config.int4_layers))


def _examples(config: RunConfig) -> data.AnySplit | None:
    """Return the first examples of config.data, to verify what is converted without calibration.

    The conversion itself needs no data: where there is none, the result is None; where it cannot be read, None and a
    TfqWarning.
    """
    if not config.data.source or not config.conversion.verify or config.conversion.scheme == "float32":
        return None
    try:
        return data.load_calibration_split(config.data, limit=NUM_SAMPLES)
    except InputError as error:
        warn(f"{error}: the outputs are not compared with those of the float model")
        return None


def _by_learned_ranges(traced: Any, config: RunConfig, preprocessing: dict[str, Any]) -> "Conversion | None":
    """The flatbuffer of a quantization-aware trained model; None where that has not given every tensor a range."""
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
    """The record of `compression.qat_parity` on the first test examples, or {"not_run": why}; warns of what it misses.

    qat_model: the tf_keras model that `content` was made of.
    """
    from tfq.compression import qat_parity

    try:
        result = qat_parity(qat_model, content, test)
    except InputError as error:  # the flatbuffer stands, whatever can be said of it
        return {"not_run": str(error)}
    for missed in result.missed():
        warn(f"the flatbuffer does not compute what the QAT model does: {missed}; {result.told_departure()}")
    return {**result.to_dict(), "missed": list(result.missed()), "told_departure": result.told_departure()}

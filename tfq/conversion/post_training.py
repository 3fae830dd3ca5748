# SPDX-License-Identifier: Apache-2.0
"""Float bytes and data -> integer bytes: repair, calibrate, quantize, repair."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from tfq import ptq, tflite
from tfq.config import ConversionConfig
from tfq.conversion.fake_quant import Ranges
from tfq.conversion.int8_forms import with_kernels_of_int8
from tfq.conversion.litert import quantize_by_litert
from tfq.conversion.mixed import check_mixed
from tfq.conversion.quantize import quantize_flatbuffer
from tfq.conversion.shared_scales import with_operands_of_choices, with_same_scales
from tfq.data import input_specs, representative_samples
from tfq.errors import InputError, TfqWarning
from tfq.ptq import calibration


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A flatbuffer, and what was found on the way to it.

    content: its bytes. ranges: of the activations, where they were calibrated. repairs: {what was mended: its record}.
    """

    content: bytes
    ranges: calibration.Ranges | None = None
    repairs: Mapping[str, Any] = field(default_factory=dict)


def quantize_after_training(
    model: bytes, dataset: Any, config: ConversionConfig, known: Ranges | None = None
) -> Conversion:
    """The float flatbuffer `model` in integers, as config says.

    known: ranges that were trained, which calibration does not touch; what they leave open gets all that is seen
    (min_max), as fake quantization itself has it.
    """
    check_settings(config, trained=known is not None)
    needs_samples = not config.calibration.ranges or bool(config.repair or config.int4_layers)
    samples = _samples(model, dataset, config) if needs_samples else []
    repairs: dict[str, Any] = {}
    if "equalize" in config.repair:
        equalized = ptq.equalize(model, samples)
        model, repairs["equalize"] = equalized.model, equalized.to_dict()
    if "absorb" in config.repair:
        absorbed = ptq.absorb_biases(model, samples)
        model, repairs["absorb"] = absorbed.model, absorbed.to_dict()
    asked = config.calibration if known is None else dataclasses.replace(config.calibration, method="min_max")
    ranges = calibration.calibrate(model, samples, asked)
    _warn_of_outliers(ranges)
    values = {**ranges.values, **with_same_scales(model, known or {})}
    if config.backend == "litert":
        content = quantize_by_litert(model, values, config)
    else:
        values = with_operands_of_choices(model, values, alike=config.scheme == "int16x8")
        content = quantize_flatbuffer(tflite.inject_ranges(model, values), config)
    if "rounding" in config.repair:
        rounded = ptq.optimize_rounding(content, model, samples)
        content, repairs["rounding"] = rounded.model, rounded.to_dict()
    if config.int4_layers:
        rounding = "rounding" in config.repair
        narrowed = ptq.narrow_to_int4(content, model, samples, config.int4_layers, rounding=rounding)
        content, repairs["int4"] = narrowed.model, narrowed.to_dict()
    if "bias" in config.repair:
        corrected = ptq.correct_biases(content, model, samples)
        content, repairs["bias"] = corrected.model, corrected.to_dict()
    return Conversion(content=with_kernels_of_int8(content), ranges=ranges, repairs=repairs)


def check_settings(config: ConversionConfig, *, trained: bool) -> None:
    """Raises InputError where settings contradict each other, or what the model was trained for."""
    check_mixed(config, trained=trained)
    settings = {"repair": config.repair, "int4_layers": config.int4_layers}
    for asked in (f"{name}={','.join(values)}" for name, values in settings.items() if values):
        if trained:
            raise InputError(f"{asked}: the model is quantization-aware trained, and this would undo it: leave it out")
        if config.scheme != "int8":
            raise InputError(f"{asked} with scheme={config.scheme}: this is for int8: leave it out, or convert to int8")


def _samples(model: bytes, dataset: Any, config: ConversionConfig) -> list[dict[str, NDArray]]:
    """What to calibrate with; warns of what is doubtful in it."""
    if dataset is None:
        raise InputError(
            f"{config.scheme} of a model without ranges of its own needs a representative_dataset: give about "
            f"{config.calibration_steps} real examples, or quantization-aware train the model"
        )
    found = representative_samples(dataset, input_specs(model), config.calibration_steps)
    for warning in found.warnings:
        warnings.warn(warning, TfqWarning, stacklevel=6)
    return found.samples


def _warn_of_outliers(ranges: calibration.Ranges) -> None:
    outliers = ranges.outlier_samples
    if not outliers:
        return
    touched = {id(each): each for found in outliers.values() for each in found}.values()
    worst = min(touched, key=lambda each: each.coverage)
    named = ", ".join(map(str, [*outliers][:5])) + (", ..." if len(outliers) > 5 else "")
    warnings.warn(
        f"calibration: {len(outliers)} of {ranges.num_samples} samples (number {named}) reach far beyond the others, "
        f"in {len(touched)} of {len(ranges.tensors)} tensors ({1 / worst.coverage:.0f} times as far in "
        f"{worst.layer or worst.name}): they are clipped there, for else all others would lose their codes: look "
        "whether they are what the model is fed; --calibration.method=min_max keeps all",
        TfqWarning,
        stacklevel=5,
    )

# SPDX-License-Identifier: Apache-2.0
"""The steps from real data to a model's input, and from an output to real values, as a `.tflite` file records them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfq.errors import FlatbufferError, InputError
from tfq.quant_math import quantize
from tfq.tflite.index_values import unquantized_integers
from tfq.tflite.metadata import METADATA_NAME, decode_metadata
from tfq.tflite.model_metadata import (
    AssociatedFile,
    BertTokenizerOptions,
    NormalizationOptions,
    RegexTokenizerOptions,
    ScoreCalibrationOptions,
    ScoreThresholdingOptions,
    SentencePieceTokenizerOptions,
    TensorMetadata,
)
from tfq.tflite.records import Model, Tensor

RESIZE_METHOD = "bilinear, half-pixel centers, no antialiasing"
ROUNDING = "half_to_even"

# Where the steps of an input come from.
FROM_TFQ, FROM_METADATA = "tfq", "TFLITE_METADATA"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step before or after the model.

    Attributes:
        step: Its kind: resize, scale_offset, normalize, tokenize, quantize, dequantize, calibrate or threshold.
        formula: What it computes, for people; x is a real value and q a quantized one.
        values: Its parameters, as JSON values.
    """

    step: str
    formula: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the step as JSON values."""
        return {"step": self.step, **self.values, "formula": self.formula}


def recorded_preprocessing(data: bytes, model: Model) -> tuple[Mapping[str, Any] | None, str | None]:
    """Return the preprocessing that tfq recorded when it converted the file, and a note if it is unusable.

    It is {"resize": [height, width] or [], "scale": float, "offset": float}; see `tfq.data.preprocessing_record`.
    """
    offset, size = model.metadata.get(METADATA_NAME, (0, 0))
    if not size:
        return None, None
    try:
        value = decode_metadata(data[offset : offset + size]).get("preprocessing")
    except FlatbufferError as error:
        return None, str(error)
    if value is None:
        return None, None
    if not isinstance(value, dict) or not _is_preprocessing(value):
        return (
            None,
            f"metadata entry {METADATA_NAME!r}: its preprocessing is not resize, scale and offset: convert again",
        )
    return value, None


def _is_preprocessing(value: Mapping[str, Any]) -> bool:
    numbers = [value.get("scale"), value.get("offset")]
    resize = value.get("resize")
    sizes = resize if isinstance(resize, list) else [None]
    return (
        all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
        and len(sizes) in (0, 2)
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    )


def input_steps(
    model: Model, tensor: Tensor, recorded: Mapping[str, Any] | None, described: TensorMetadata | None
) -> tuple[tuple[Step, ...], str | None]:
    """Return the steps from real data to `tensor`, and what recorded them: FROM_TFQ, FROM_METADATA or None.

    tfq's own record decides if there are both, because it is exact. Quantization always follows from the file itself.
    """
    steps: list[Step] = []
    source = None
    is_indices = tensor.index in unquantized_integers(model.main_subgraph) or (
        not tensor.is_quantized and tensor.dtype in ("int32", "int64", "string", "bool")
    )
    tokenizers = _tokenizers(described)
    if tokenizers:
        steps, source = tokenizers, FROM_METADATA
    elif recorded is not None and not is_indices:
        steps, source = _recorded_steps(tensor, recorded), FROM_TFQ
    elif described is not None and (normalization := described.unit(NormalizationOptions)):
        steps, source = [_normalize(normalization, tensor.shape[-1] if tensor.shape else 1)], FROM_METADATA
    if tensor.is_quantized and (step := quantize_step(tensor)):
        steps.append(step)
    return tuple(steps), source


def _recorded_steps(tensor: Tensor, recorded: Mapping[str, Any]) -> list[Step]:
    steps = []
    if recorded["resize"] and len(tensor.shape) == 4:
        height, width = recorded["resize"]
        values = {"height": height, "width": width, "method": RESIZE_METHOD}
        steps.append(Step(step="resize", formula=f"resize to {height} x {width} ({RESIZE_METHOD})", values=values))
    scale, offset = float(recorded["scale"]), float(recorded["offset"])
    if (scale, offset) != (1.0, 0.0):
        formula = f"x * {scale:.9g} {'-' if offset < 0 else '+'} {abs(offset):.9g}"
        steps.append(Step(step="scale_offset", formula=formula, values={"scale": scale, "offset": offset}))
    return steps


def _normalize(options: NormalizationOptions, channels: int) -> Step:
    mean, std = list(options.mean), list(options.std)
    sizes = {1, channels}
    if not {len(mean), len(std)} <= sizes or not np.isfinite([*mean, *std]).all() or not all(std):
        formula = (
            f"unknown: the metadata has mean {_shown_numbers(mean)} and std {_shown_numbers(std)}, expected "
            f"{' or '.join(map(str, sorted(sizes)))} finite numbers for each, and no std of 0"
        )
        return Step(step="normalize", formula=formula)
    formula = f"(x - {_shown_numbers(mean)}) / {_shown_numbers(std)}"
    return Step(step="normalize", formula=formula, values={"mean": mean, "std": std})


def _shown_numbers(values: Sequence[float]) -> str:
    texts = [f"{value:.9g}" for value in values[:4]] + (["..."] if len(values) > 4 else [])
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _tokenizers(described: TensorMetadata | None) -> list[Step]:
    results = []
    for unit in described.process_units if described else ():
        options, files = unit.options, list[AssociatedFile]()
        if isinstance(options, (BertTokenizerOptions, RegexTokenizerOptions)):
            files = [*options.vocab_file]
        elif isinstance(options, SentencePieceTokenizerOptions):
            files = [*options.sentence_piece_model, *options.vocab_file]
        else:
            continue
        names = [file.name for file in files]
        values: dict[str, Any] = {"tokenizer": type(options).__name__, "files": names}
        if isinstance(options, RegexTokenizerOptions):
            values["delim_regex_pattern"] = options.delim_regex_pattern
        formula = f"split text with {type(options).__name__} and look the tokens up in {', '.join(names) or 'no file'}"
        results.append(Step(step="tokenize", formula=formula, values=values))
    return results


def quantize_step(tensor: Tensor) -> Step | None:
    """Return the step that quantizes an input, or None if its scale is unusable."""
    if (parameters := scale_of(tensor)) is None:
        return None
    scale, zero_point = parameters
    limits = np.iinfo(np.dtype(tensor.dtype))
    shift = f" {'-' if zero_point < 0 else '+'} {abs(zero_point)}" if zero_point else ""
    formula = f"q = clip(round(x * (1 / {scale:.9g})){shift}, {limits.min}, {limits.max}), round half to even"
    values = {"scale": scale, "zero_point": zero_point, "minimum": int(limits.min), "maximum": int(limits.max)}
    return Step(step="quantize", formula=formula, values={**values, "dtype": tensor.dtype, "rounding": ROUNDING})


def output_steps(tensor: Tensor, described: TensorMetadata | None) -> tuple[Step, ...]:
    """Return the steps from an output to real values and results."""
    steps = []
    if tensor.is_quantized and (parameters := scale_of(tensor)):
        scale, zero_point = parameters
        shift = f"(q {'+' if zero_point < 0 else '-'} {abs(zero_point)})" if zero_point else "q"
        values = {"scale": scale, "zero_point": zero_point}
        steps.append(Step(step="dequantize", formula=f"x = {shift} * {scale:.9g}", values=values))
    for unit in described.process_units if described else ():
        options = unit.options
        if isinstance(options, ScoreCalibrationOptions):
            formula = f"calibrate scores by the sigmoids in the metadata's file, after {options.score_transformation}"
            steps.append(Step(step="calibrate", formula=formula, values=options.to_dict()))
        elif isinstance(options, ScoreThresholdingOptions):
            threshold = options.global_score_threshold
            value = threshold if np.isfinite(threshold) else None
            steps.append(Step(step="threshold", formula=f"x >= {threshold:.9g}", values={"threshold": value}))
    return tuple(steps)


def scale_of(tensor: Tensor) -> tuple[float, int] | None:
    """Return the scale and zero point of a quantized tensor; None unless it has one positive scale."""
    if not tensor.is_quantized or len(tensor.scale) != 1 or not 0 < tensor.scale[0] < float("inf"):
        return None
    try:
        np.iinfo(np.dtype(tensor.dtype))
    except (TypeError, ValueError):  # int4: NumPy has no such type
        return None
    return tensor.scale[0], tensor.zero_point[0]


@dataclass(frozen=True, kw_only=True)
class PixelShift:
    """A quantized input whose value for a pixel p from 0 to 255 is p + `shift`, so that an app can pass bytes.

    Attributes:
        shift: 0 if the bytes of the image are passed unchanged, as MediaPipe does with uint8 inputs.
        error: The largest difference of the quantized values to those of the exact formula: 0, or 1 if the steps of
            the input are half a pixel apart from the pixels.
    """

    shift: int
    error: int

    def to_dict(self) -> dict[str, Any]:
        """Return the shift as JSON values."""
        return {"shift": self.shift, "error": self.error}


def pixel_shift(tensor: Tensor, steps: Sequence[Step]) -> PixelShift | None:
    """Return how the quantized values of an 8-bit input follow from pixels; None if no shift is within one step."""
    parameters = scale_of(tensor) if tensor.is_quantized else (1.0, 0)
    if tensor.dtype not in ("int8", "uint8") or parameters is None:
        return None
    pixels = np.arange(256, dtype=np.float32)
    for step in steps:
        if step.step == "scale_offset":
            pixels = pixels * np.float32(step.values["scale"]) + np.float32(step.values["offset"])
        elif step.step == "normalize":
            mean, std = step.values.get("mean", ()), step.values.get("std", ())
            if len({*mean}) != 1 or len({*std}) != 1 or not std[0]:
                return None
            pixels = (pixels - np.float32(mean[0])) / np.float32(std[0])
        elif step.step == "tokenize":
            return None
    try:
        differences = quantize(pixels, *parameters, tensor.dtype).astype(int) - np.arange(256)
    except InputError:  # a scale that overflows
        return None
    usual = 0 if tensor.dtype == "uint8" else -128
    shift = int(np.clip(usual, differences.min(), differences.max()))
    error = int(np.abs(differences - shift).max())
    return PixelShift(shift=shift, error=error) if error <= 1 else None

# SPDX-License-Identifier: Apache-2.0
"""Quantize a float flatbuffer after training, with TensorFlow's quantizer or litert-quantizer.

The passes of a conversion, in order. A new rewrite belongs where all that it needs is known and nothing that it changes
has been used yet:

| when | what | where |
|---|---|---|
| float, before ranges | ops that the quantizer knows, exact to the bit | `graph_rewrites.with_quantizable_ops` |
| | constants of litert-torch's files that the quantizer sees (TensorFlow) | `graph_rewrites.with_visible_constants` |
| | one output for each scale that readers of a fixed-scale op need | `fixed_scales.with_separate_scales` |
| | refuse or announce fused recurrent ops | `recurrent.check_recurrent_ops` |
| | infinite mask constants become finite | `masks.with_finite_masks` |
| | float inputs that are only indices become int32 | `exact_indices.with_integer_inputs` |
| | cross-layer equalization, bias absorption | `tfq.ptq` |
| ranges | calibration | `tfq.ptq.calibration` |
| | ranges that QAT has learned, across ops that move values | `fake_quant.with_same_scales` |
| float, with ranges | masks end near the scores | `masks.bound_and_check_masks` |
| | int16x8: ops that int16 kernels compute right | `int16_forms.with_int16_forms` |
| | ranges of MINIMUM, MAXIMUM, SELECT (TensorFlow) | `fake_quant.with_selection_ranges` |
| | ranges that kernels can run with (dead layers) | `kernel_limits.with_kernel_limits` |
| | weights whose scales leave room for biases (litert) | `bias_scales.with_bias_headroom` |
| around the quantizer | hide what must stay as it is, restore it afterwards | `exact_indices`, `hidden_ops` |
| integer | int16x8: operands of fitting types and scales | `int16_types.with_int16_types` |
| | signatures that the quantizer dropped | `tflite.restore_signatures` |
| | GPTQ, 4-bit weights, bias correction | `tfq.ptq` |
| | int8: scales that kernels take at their word | `int8_forms.with_int8_forms` |
| result | run next to the float model; what a target cannot run | `verified`, `targeting` |

The first three rows are called by `convert`, which also resolves `op:12` to names before (`op_patterns`), and converts
each of several signatures by itself (`signatures`); the last row is called by it as well. Rewrites edit an unpacked
flatbuffer with the helpers of `graph_editing`.

The one file that touches `tensorflow.lite.python.convert.mlir_quantize` and the `QuantizeModel` of
`_pywrap_tensorflow_lite_calibration_wrapper.CalibrationWrapper`, both read in 2.21.0. TensorFlow itself uses the second
one for 16-bit activations: asked for them, the first gives them zero points that the kernels refuse.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import ptq, tflite
from tfq.config import ConversionConfig
from tfq.conversion.bias_scales import with_bias_headroom
from tfq.conversion.exact_indices import (
    float_index_op_outputs,
    warn_of_float_indices,
    with_exact_sources,
    with_hidden_indices,
    with_integer_inputs,
)
from tfq.conversion.fake_quant import Ranges, with_same_scales, with_selection_ranges
from tfq.conversion.graph_rewrites import without_unread_ops
from tfq.conversion.int8_forms import with_int8_forms
from tfq.conversion.int16_forms import with_float_edges, with_int16_forms
from tfq.conversion.int16_types import float_only_ops, with_int16_types
from tfq.conversion.litert import check_mixed, layer_outputs, quantize_by_litert
from tfq.conversion.masks import BoundedMasks, bound_and_check_masks, bound_masks, with_finite_masks
from tfq.conversion.recurrent import check_recurrent_ops, float_recurrent_ops
from tfq.data import input_specs, representative_samples
from tfq.errors import InputError, warn
from tfq.evaluation.verification import NUM_SAMPLES, Verification
from tfq.native_stderr import captured_stderr
from tfq.progress import stage
from tfq.ptq import calibration
from tfq.text_table import listed
from tfq.typing import JSON


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted flatbuffer, and the record of its conversion.

    Args:
        content: The bytes of the flatbuffer.
        ranges: The ranges of the activations, if they were calibrated.
        techniques: {technique: its record}.
        dead_layers: Layers that output 0, or less than a kernel can tell from it, on all calibration data.
        evidence: What verification compares the flatbuffer with; None once it was verified.
        verification: The result of running it next to its float twin; None if that was not asked for.
    """

    content: bytes
    ranges: calibration.Ranges | None = None
    techniques: JSON = field(default_factory=dict)
    dead_layers: tuple[str, ...] = ()
    evidence: "Evidence | None" = field(default=None, repr=False)
    verification: Verification | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The float twin of a quantized flatbuffer, and samples to run both on.

    Args:
        floating: The bytes of the float model; None if only `trained` is known.
        samples: At most `verification.NUM_SAMPLES`, each {input name: array with the batch dimension}; none if no data
            was given.
        outputs: For each sample the outputs of `floating`, if calibration has computed them; None to compute them.
        quantize: Quantizes the same model with the same ranges as another config says, to measure remedies; None where
            nothing was calibrated.
        trained: Converts a quantization-aware trained model as it was trained, with its rounding, in float. The float
            model without that rounding may be another function.
    """

    floating: bytes | None
    samples: Sequence[dict[str, NDArray]] = ()
    outputs: Sequence[Sequence[NDArray]] | None = None
    quantize: Callable[[ConversionConfig], bytes] | None = None
    trained: Callable[[], bytes] | None = None

    @classmethod
    def of(cls, floating: bytes, dataset: Any) -> "Evidence":
        """Return the first samples of `dataset` as evidence for the float flatbuffer; no samples without a dataset."""
        if dataset is None:
            return cls(floating=floating)
        return cls(
            floating=floating, samples=representative_samples(dataset, input_specs(floating), NUM_SAMPLES).samples
        )


def quantize_after_training(
    model: bytes, dataset: Any, config: ConversionConfig, known: Ranges | None = None
) -> Conversion:
    """Quantize the float flatbuffer `model` as `config` says, by the passes in the module's docstring.

    Args:
        model: The bytes of a float `.tflite`, in the form of `convert`'s first two passes.
        dataset: The representative dataset; None if config.calibration.ranges has the ranges.
        config: The scheme, the quantizer, the techniques and how to calibrate.
        known: Ranges that were trained, which calibration keeps. All other tensors get the full range that was observed
            (min_max), as fake quantization observes it.

    Raises:
        InputError: Settings contradict each other, or the model or the dataset cannot be used.
    """
    check_settings(config, trained=known is not None)
    check_recurrent_ops(model, config)
    floating = calibration.with_intermediate_tensors(model)
    model = with_finite_masks(floating)
    needs_samples = not config.calibration.ranges or bool(config.techniques or config.int4_layers)
    samples = _samples(model, dataset, config) if needs_samples else []
    has_finite_masks = model is not floating
    model, samples = with_integer_inputs(model, samples, config)
    floating = floating if has_finite_masks else model
    warn_of_float_indices(model)
    techniques: dict[str, Any] = {}
    if "cross_layer_equalization" in config.techniques:
        equalized = ptq.equalize(model, samples)
        model, techniques["cross_layer_equalization"] = equalized.model, equalized.to_dict()
    if "bias_absorption" in config.techniques:
        absorbed = ptq.absorb_biases(model, samples)
        model, techniques["bias_absorption"] = absorbed.model, absorbed.to_dict()
    asked = config.calibration if known is None else dataclasses.replace(config.calibration, method="min_max")
    keep = evenly_spaced(len(samples)) if config.verify else ()
    ranges, outputs = calibration.calibrate_with_outputs(model, samples, asked, keep)
    _warn_of_outliers(ranges)
    calibrated, values = model, {**ranges.values, **with_same_scales(model, known or {})}
    masks = bound_and_check_masks(model, values, ranges.observed, config.scheme, samples)
    model, techniques = masks.model, {**techniques, **masks.to_dict()}
    dead = calibration.with_kernel_limits(model, masks.ranges, config.scheme)[1]
    warn_of_dead_layers(dead)

    def quantize(other: ConversionConfig) -> bytes:
        wide = other.calibration.method == "min_max" != asked.method
        chosen = {**ranges.observed, **with_same_scales(calibrated, known or {})} if wide else values
        again = BoundedMasks(model=calibrated, ranges=chosen)
        if masks.layers:
            again = bound_masks(calibrated, chosen, ranges.observed, other.scheme)
        return with_int8_forms(_quantized(again.model, again.ranges, other))

    content = _quantized(model, masks.ranges, config)
    if "gptq" in config.techniques:
        rounded = ptq.optimize_rounding(content, model, samples)
        content, techniques["gptq"] = rounded.model, rounded.to_dict()
    if config.int4_layers:
        rounding = "gptq" in config.techniques
        narrowed = ptq.quantize_to_int4(content, model, samples, config.int4_layers, rounding=rounding)
        content, techniques["int4"] = narrowed.model, narrowed.to_dict()
    if "bias_correction" in config.techniques:
        corrected = ptq.correct_biases(content, model, samples)
        content, techniques["bias_correction"] = corrected.model, corrected.to_dict()
    evidence = None
    if config.verify:
        reused = outputs if calibrated is floating else {}
        evidence = _evidence(floating, dataset, samples, reused, ranges.outlier_samples)
        evidence = dataclasses.replace(evidence, quantize=quantize)
    return Conversion(
        content=with_int8_forms(content),
        ranges=ranges,
        techniques=techniques,
        dead_layers=dead,
        evidence=evidence,
    )


def _quantized(model: bytes, values: Ranges, config: ConversionConfig) -> bytes:
    """Quantize the float `model` by the ranges `values` of its activations."""
    if config.scheme == "int16x8":
        model, values = with_int16_forms(model, values)
    if config.quantizer == "litert":
        values, _ = calibration.with_kernel_limits(model, values, config.scheme)
        model = without_unread_ops(with_bias_headroom(model, values, config))
        return with_exact_sources(quantize_by_litert(model, values, config, float_index_op_outputs(model)))
    values = with_selection_ranges(model, values, alike=config.scheme == "int16x8")
    values, _ = calibration.with_kernel_limits(model, values, config.scheme)
    return quantize_flatbuffer(tflite.inject_ranges(model, values), config)


def evenly_spaced(count: int) -> tuple[int, ...]:
    """Return the numbers of at most `NUM_SAMPLES` of `count` samples, evenly spread over all of them."""
    return tuple(np.unique(np.linspace(0, count - 1, min(count, NUM_SAMPLES)).round().astype(int)).tolist())


def _evidence(
    floating: bytes,
    dataset: Any,
    samples: Sequence[dict[str, NDArray]],
    outputs: calibration.Outputs,
    outliers: Collection[int],
) -> Evidence:
    """The samples to verify with: some of those for calibration; without calibration, the first of the dataset.

    Samples that calibration has left out, and warned of, are clipped on purpose and judge nothing; unless these are
    most of them.
    """
    if not samples:
        return Evidence.of(floating, dataset)
    keep = evenly_spaced(len(samples))
    usual = [number for number in keep if number not in outliers]
    keep = tuple(usual) if 2 * len(usual) >= len(keep) else keep
    known = [outputs[number] for number in keep] if outputs else None
    return Evidence(floating=floating, samples=[samples[number] for number in keep], outputs=known)


def check_settings(config: ConversionConfig, *, trained: bool) -> None:
    """Raise InputError where settings contradict each other, or what the model was trained for."""
    check_mixed(config, trained=trained)
    settings = {"techniques": config.techniques, "int4_layers": config.int4_layers}
    for name, values in settings.items():
        if not values:
            continue
        asked = f"{name}={','.join(values)}"
        if trained:
            raise InputError(
                f"{asked}: the model is quantization-aware trained, and this would undo it: leave it out",
                field=f"conversion.{name}",
                expected=(),
                got=values,
            )
        if config.scheme != "int8":
            raise InputError(
                f"{asked} with scheme={config.scheme}: this is for int8: leave it out, or convert to int8",
                field=f"conversion.{name}",
                expected=(),
                got=values,
            )


def _samples(model: bytes, dataset: Any, config: ConversionConfig) -> list[dict[str, NDArray]]:
    """The samples to calibrate with; warns (TfqWarning) of doubtful ones."""
    if dataset is None:
        raise InputError(
            f"{config.scheme} of a model without ranges of its own needs a representative_dataset: give about "
            f"{config.num_calibration_samples} real examples, or quantization-aware train the model",
            field="representative_dataset",
            expected="real examples",
            got=None,
        )
    result = representative_samples(dataset, input_specs(model), config.num_calibration_samples)
    for warning in result.warnings:
        warn(warning)
    return result.samples


def _warn_of_outliers(ranges: calibration.Ranges) -> None:
    outliers = ranges.outlier_samples
    if not outliers:
        return
    touched = {id(item): item for result in outliers.values() for item in result}.values()
    worst = min(touched, key=lambda item: item.coverage)
    named = ", ".join(map(str, [*outliers][:5])) + (", ..." if len(outliers) > 5 else "")
    warn(
        f"calibration: {len(outliers)} of {ranges.num_samples} samples (number {named}) reach far beyond the others, "
        f"in {len(touched)} of {len(ranges.tensors)} tensors ({1 / worst.coverage:.0f} times as far in "
        f"{worst.layer or worst.name}). They are clipped there; otherwise all others would share few quantized values. "
        "Check that they are valid inputs; conversion.calibration.method=min_max keeps their whole range"
    )


def warn_of_dead_layers(dead: Sequence[str]) -> None:
    """Warn (TfqWarning) of the layers that output 0 on all calibration data, by name."""
    if not dead:
        return
    warn(
        f"dead layers: {listed(dead)}: {'each' if len(dead) > 1 else 'it'} outputs 0 on all calibration data, or less "
        "than an integer kernel can tell from 0. The file runs, and they stay at 0 in it. Check the weights before "
        "them, and whether the representative dataset covers the inputs that activate them"
    )


def quantize_flatbuffer(model: bytes, config: ConversionConfig) -> bytes:
    """Run TensorFlow's quantizer: int8 weights, and int8 or (scheme int16x8) int16 activations.

    Args:
        model: A float flatbuffer whose tensors carry calibrated ranges (`tflite.inject_ranges`).
        config: Its scheme, the types of inputs and outputs, the granularity of the weights, and the layers that stay
            float.

    Raises:
        InputError: The quantizer refuses the model, or a pattern in float_layers fits no layer.
    """
    is_int16 = config.scheme == "int16x8"
    others = [*float_recurrent_ops(model), *(float_only_ops(model) if is_int16 else ())]
    seen, restore = with_hidden_indices(model, all_whole=is_int16, others=others)
    try:
        with stage("quantizing"), captured_stderr() as stderr:
            quantized = (_to_int16x8 if is_int16 else _to_int8)(seen, config)
        result = restore(quantized)
        return tflite.restore_signatures(with_int16_types(result) if is_int16 else result, model)
    except (RuntimeError, ValueError) as error:
        message = stderr.add_to(f"TensorFlow's quantizer refuses the flatbuffer: {error}")
        raise InputError(message, field="model") from error


def _to_int8(model: bytes, config: ConversionConfig) -> bytes:
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    return bytes(
        mlir_quantize(
            model,
            disable_per_channel=not config.per_channel,
            disable_per_channel_for_dense_layers=not (config.per_channel and config.per_channel_dense),
            input_data_type=tf.dtypes.as_dtype(config.input_type),
            output_data_type=tf.dtypes.as_dtype(config.output_type),
            # TensorFlow knows an op, and all that was fused into it, by the names of its outputs.
            denylisted_nodes=layer_outputs(model, "float_layers", config.float_layers) or None,
        )
    )


def _to_int16x8(model: bytes, config: ConversionConfig) -> bytes:
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    if not config.per_channel:
        _refuse_per_tensor_depthwise(model)

    def quantized(floating: bytes) -> bytes:
        return bytes(
            wrapper.CalibrationWrapper(floating, [], []).QuantizeModel(
                _numpy_number(config.input_type),
                _numpy_number(config.output_type),
                True,  # allow_float: what has no 16-bit kernel stays float, and the audit names it
                _numpy_number("int16"),
                _numpy_number("int64"),  # of the biases
                not config.per_channel,
                not (config.per_channel and config.per_channel_dense),
            )
        )

    try:
        return quantized(model)
    except (RuntimeError, ValueError) as error:
        if "Unsupported" not in str(error):
            raise
        # "Unsupported output type INT16 for output tensor ... of type FLOAT32": an op at the edge stays float.
        return quantized(with_float_edges(model))


def _refuse_per_tensor_depthwise(model: bytes) -> None:
    """TensorFlow 2.21 makes a broken flatbuffer of it ("Quantized dimension ... do not match. Got 3 and 0")."""
    graphs = tflite.read(model).subgraphs
    ops = [op for graph in graphs for op in graph.ops if op.name == "DEPTHWISE_CONV_2D"]
    if ops:
        layers = ", ".join(op.keras_layer or f"op #{op.index}" for op in ops[:3])
        raise InputError(
            "int16x8 with one scale for each weight: TensorFlow's quantizer cannot do it for depthwise convolutions "
            f"({layers}): leave per_channel on, or convert to int8",
            field="conversion.per_channel",
            expected=True,
            got=False,
        )


def _numpy_number(dtype: str) -> int:
    return np.dtype(dtype).num

# SPDX-License-Identifier: Apache-2.0
"""Quantize a float flatbuffer after training, with TensorFlow's quantizer or litert-quantizer.

The table lists the passes of a conversion in their order. Put a new rewrite after the passes whose results it needs,
and before those that use what it changes.

| state | pass | function |
|---|---|---|
| float | replace ops that the quantizer leaves in float (bit-exact) | `graph_rewrites.with_quantizable_ops` |
| | show constants of litert-torch's files to the quantizer (TensorFlow) | `graph_rewrites.with_visible_constants` |
| | copy fixed-scale ops for readers with other scales | `fixed_scales.with_separate_scales` |
| | reject fused recurrent ops, or warn about them | `recurrent.check_recurrent_ops` |
| | make infinite mask constants finite | `masks.with_finite_masks` |
| | make float inputs that are only indices int32 | `exact_indices.with_integer_inputs` |
| | make integer inputs that are only cast to float float32 | `raw_inputs.with_float_inputs` |
| | cross-layer equalization, bias absorption | `tfq.ptq` |
| ranges | calibrate | `tfq.ptq.calibration` |
| | extend the ranges learned by QAT over ops that move values | `fake_quant.with_same_scales` |
| float, with ranges | bound masks near the scores | `masks.bound_and_check_masks` |
| | range tuning, which tries the passes from here to the signatures | `tfq.ptq.tune_ranges` |
| | int16x8: replace ops without a correct int16 kernel | `int16_forms.with_int16_forms` |
| | widen the ranges of MINIMUM, MAXIMUM, SELECT (TensorFlow) | `fake_quant.with_selection_ranges` |
| | widen ranges that are too narrow for kernels (dead layers) | `kernel_limits.with_kernel_limits` |
| | widen weight scales so that biases do not overflow (litert) | `bias_scales.with_bias_headroom` |
| quantizer | hide ops that must stay unchanged, restore them afterwards | `exact_indices`, `hidden_ops` |
| integer | int16x8: match the types and scales of operands | `int16_types.with_int16_types` |
| | restore the signatures that the quantizer dropped | `tflite.restore_signatures` |
| | GPTQ, 4-bit weights, bias correction | `tfq.ptq` |
| | int8: write scales that the kernels really use | `int8_forms.with_int8_forms` |
| | give integer inputs their type back | `raw_inputs.RawInputs.restore` |
| result | compare with the float model, check the target | `verified`, `targeting` |

`convert` calls the first three passes and the last one. Before them it resolves `op:12` to names (`op_patterns`). It
converts the subgraphs of several signatures separately (`signatures`). Rewrites edit an unpacked flatbuffer with the
helpers of `graph_editing`.

Private TensorFlow symbols used here, as of 2.21.0: `tensorflow.lite.python.convert.mlir_quantize`, and `QuantizeModel`
of `_pywrap_tensorflow_lite_calibration_wrapper.CalibrationWrapper`. TensorFlow uses the second one for 16-bit
activations, because the first one gives these zero points that the kernels reject.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
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
from tfq.conversion.graph_rewrites import with_distinct_outputs, without_unread_ops
from tfq.conversion.int8_forms import with_int8_forms
from tfq.conversion.int16_forms import with_float_edges, with_int16_forms
from tfq.conversion.int16_types import float_only_ops, with_int16_types
from tfq.conversion.litert import check_mixed, layer_outputs, quantize_by_litert
from tfq.conversion.masks import BoundedMasks, bound_and_check_masks, bound_masks, with_finite_masks
from tfq.conversion.raw_inputs import byte_ranges, with_float_inputs
from tfq.conversion.recurrent import check_recurrent_ops, float_recurrent_ops
from tfq.conversion.recurrent_layers import RecurrentLayer
from tfq.data import common_batch_size, input_specs, representative_samples
from tfq.errors import InputError, warn
from tfq.evaluation.verification import NUM_SAMPLES, Verification
from tfq.isolation import QUANTIZER_ADVICE, isolated
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
        dead_layers: Layers whose outputs are 0, or too small for an integer kernel, on all calibration data.
        evidence: What the verification compares the flatbuffer with; None after it was verified.
        verification: The result of running it next to the float model; None if `config.verify` is off.
        recurrent: The recurrent layers of a Keras model, and the form of each in the flatbuffer.
        trained_int4: The layers whose weights have 4 bits because they were trained with them.
    """

    content: bytes
    ranges: calibration.Ranges | None = None
    techniques: JSON = field(default_factory=dict)
    dead_layers: tuple[str, ...] = ()
    evidence: "Evidence | None" = field(default=None, repr=False)
    verification: Verification | None = None
    recurrent: tuple[RecurrentLayer, ...] = ()
    trained_int4: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The float model of a quantized flatbuffer, and samples to run both on.

    Args:
        floating: The bytes of the float model; None if only `trained` is available.
        samples: At most `verification.NUM_SAMPLES`, each {input name: array with the batch dimension}; empty without
            data.
        outputs: The outputs of `floating` for each sample, if calibration computed them; otherwise None.
        quantize: Quantizes the same model with the same ranges and another config, to measure remedies; None if
            nothing was calibrated.
        trained: Converts a quantization-aware trained model to float, including its rounding. The float model without
            that rounding can be a different function.
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
    """Quantize a float flatbuffer with the passes listed in the module docstring.

    Args:
        model: The bytes of a float `.tflite` after the first three passes.
        dataset: The representative dataset; None if config.calibration.ranges names a file of ranges.
        config: The scheme, the quantizer, the techniques and the calibration.
        known: Ranges learned by QAT, which are kept. All other tensors then use min_max, as fake quantization does.

    Raises:
        InputError: Settings contradict each other, or the model or the dataset cannot be used.
    """
    check_settings(config, trained=known is not None)
    check_recurrent_ops(model, config)
    floating = calibration.with_intermediate_tensors(model)
    model = with_finite_masks(floating)
    needs_samples = not config.calibration.ranges or bool(config.techniques or config.int4_layers)
    samples, num_samples = _samples(model, dataset, config) if needs_samples else ([], 0)
    has_finite_masks = model is not floating
    model, samples = with_integer_inputs(model, samples, config)
    model, samples, raw = with_float_inputs(model, samples, config)
    floating = floating if has_finite_masks else model
    warn_of_float_indices(model)
    model, techniques = _with_float_techniques(model, samples, config)
    used = config.calibration if known is None else dataclasses.replace(config.calibration, method="min_max")
    batch_size = common_batch_size(input_specs(model)) or 1
    # The last batch may have copies.
    keep = evenly_spaced(max(1, num_samples // batch_size)) if config.verify and samples else ()
    is_all_int8 = config.scheme == "int8" and config.quantizer == "tensorflow" and not config.float_layers
    ranges, outputs = calibration.calibrate_with_outputs(
        model, samples, used, keep, num_samples, fixed_scales=is_all_int8 and known is None
    )
    _warn_of_outliers(ranges)
    outliers = {sample // batch_size for sample in ranges.outlier_samples}
    # They are clipped, so the quantized model cannot compute what the float model does for them. A few of
    # them, with values a hundred times those of others, would decide what is best for all.
    usual = [samples[number] for number in _without_outliers(range(len(samples)), outliers)]
    fixed = with_same_scales(model, {**(known or {}), **raw.ranges, **byte_ranges(model, samples, config)})
    calibrated, values = model, {**ranges.values, **fixed}
    masks = bound_and_check_masks(model, values, ranges.observed, config.scheme, samples)
    model, techniques = masks.model, {**techniques, **masks.to_dict()}
    dead = calibration.with_kernel_limits(model, masks.ranges, config.scheme)[1]
    warn_of_dead_layers(dead)

    def quantize(other: ConversionConfig) -> bytes:
        needs_full_ranges = other.calibration.method == "min_max" != used.method
        chosen = {**ranges.observed, **fixed} if needs_full_ranges else values
        bounded = BoundedMasks(model=calibrated, ranges=chosen)
        if masks.layers:
            bounded = bound_masks(calibrated, chosen, ranges.observed, other.scheme)
        return raw.restore(with_int8_forms(_quantized(bounded.model, bounded.ranges, other)))

    final = masks.ranges
    if "range_tuning" in config.techniques:
        unbounded = [key for key, ends in values.items() if masks.ranges[key] == ends and key not in fixed]
        tuned = _tune_ranges(model, masks.ranges, ranges, unbounded, usual, config)
        techniques["range_tuning"] = tuned.to_dict()
        ranges, final = _with_tuned(ranges, tuned), dict(tuned.ranges)
        values = {**values, **{key: tuned.ranges[key] for key in tuned.factors}}
    content = _quantized(model, final, config)
    content, weights = _with_weight_techniques(content, model, usual, config)
    techniques.update(weights)
    evidence = None
    if config.verify:
        reused = outputs if calibrated is floating else {}
        evidence = _evidence(floating, dataset, {number: samples[number] for number in keep}, reused, outliers)
        evidence = dataclasses.replace(evidence, quantize=quantize)
    return Conversion(
        content=raw.restore(with_int8_forms(content)),
        ranges=ranges,
        techniques=techniques,
        dead_layers=dead,
        evidence=evidence,
    )


def _tune_ranges(
    model: bytes,
    ranges: Ranges,
    calibrated: calibration.Ranges,
    tensors: Collection[tuple[int, int]],
    samples: Sequence[dict[str, NDArray]],
    config: ConversionConfig,
) -> ptq.RangeTuning:
    """Tune those of `tensors` whose range was calibrated and is not fixed by an op."""
    graph = tflite.read(model).main_subgraph
    tunable = [
        key
        for key in tensors
        if key[0] == graph.index and key in calibrated.tensors and calibrated.tensors[key].method != "fixed"
    ]
    return ptq.tune_ranges(model, ranges, tunable, samples, lambda tried: _quantized(model, dict(tried), config))


def _with_tuned(ranges: calibration.Ranges, tuned: ptq.RangeTuning) -> calibration.Ranges:
    """Return calibrated ranges with those that were tuned."""
    changed = {}
    for key in tuned.factors:
        low, high = tuned.ranges[key]
        changed[key] = dataclasses.replace(ranges.tensors[key], minimum=low, maximum=high, method="tuned", clipped=None)
    return dataclasses.replace(ranges, tensors={**ranges.tensors, **changed})


def _with_float_techniques(
    model: bytes, samples: Sequence[dict[str, NDArray]], config: ConversionConfig
) -> tuple[bytes, JSON]:
    """Apply the techniques that change the float `model`; also return their records."""
    techniques: dict[str, Any] = {}
    if "cross_layer_equalization" in config.techniques:
        equalized = ptq.equalize(model, samples)
        model, techniques["cross_layer_equalization"] = equalized.model, equalized.to_dict()
    if "bias_absorption" in config.techniques:
        absorbed = ptq.absorb_biases(model, samples)
        model, techniques["bias_absorption"] = absorbed.model, absorbed.to_dict()
    if "one_shot_pruning" in config.techniques:
        groups = config.sparsity_m_by_n
        m_by_n = (groups[0], groups[1]) if groups else None
        sparse = ptq.make_sparse(model, samples, sparsity=config.sparsity, m_by_n=m_by_n)
        model, techniques["one_shot_pruning"] = sparse.model, sparse.to_dict()
    return model, techniques


def _with_weight_techniques(
    content: bytes, floating: bytes, samples: Sequence[dict[str, NDArray]], config: ConversionConfig
) -> tuple[bytes, JSON]:
    """Apply the techniques that change weights and biases of the integer `content`; also return their records."""
    techniques: dict[str, Any] = {}
    if "gptq" in config.techniques:
        rounded = ptq.optimize_rounding(content, floating, samples)
        content, techniques["gptq"] = rounded.model, rounded.to_dict()
    if config.int4_layers:
        rounding = "gptq" in config.techniques
        narrowed = ptq.quantize_to_int4(content, floating, samples, config.int4_layers, rounding=rounding)
        content, techniques["int4"] = narrowed.model, narrowed.to_dict()
    if "reconstruction" in config.techniques:
        chosen = ptq.reconstruct(content, floating, samples)
        content, techniques["reconstruction"] = chosen.model, chosen.to_dict()
    if "bias_correction" in config.techniques:
        corrected = ptq.correct_biases(content, floating, samples)
        content, techniques["bias_correction"] = corrected.model, corrected.to_dict()
    return content, techniques


def _quantized(model: bytes, values: Ranges, config: ConversionConfig) -> bytes:
    """Quantize the float `model` with the activation ranges `values`."""
    if config.scheme == "int16x8":
        model, values = with_int16_forms(model, values)
    if config.quantizer == "litert":
        values, _ = calibration.with_kernel_limits(model, values, config.scheme)
        model = without_unread_ops(with_bias_headroom(model, values, config))
        return with_exact_sources(quantize_by_litert(model, values, config, float_index_op_outputs(model)))
    values = with_selection_ranges(model, values, shared=config.scheme == "int16x8")
    values, _ = calibration.with_kernel_limits(model, values, config.scheme)
    return quantize_flatbuffer(tflite.inject_ranges(model, values), config)


def evenly_spaced(count: int) -> tuple[int, ...]:
    """Return the indices of at most `NUM_SAMPLES` evenly spaced samples out of `count`."""
    return tuple(np.unique(np.linspace(0, count - 1, min(count, NUM_SAMPLES)).round().astype(int)).tolist())


def _evidence(
    floating: bytes,
    dataset: Any,
    samples: Mapping[int, dict[str, NDArray]],
    outputs: calibration.Outputs,
    outliers: Collection[int],
) -> Evidence:
    """Choose the samples to verify with: some calibration samples or, without calibration, the first of the dataset.

    Outlier samples of the calibration are clipped on purpose, so they are not used, unless most samples are outliers.
    All arguments have the same numbers for the samples.
    """
    if not samples:
        return Evidence.of(floating, dataset)
    keep = _without_outliers(samples, outliers)
    known = [outputs[number] for number in keep] if outputs else None
    return Evidence(floating=floating, samples=[samples[number] for number in keep], outputs=known)


def _without_outliers(numbers: Collection[int], outliers: Collection[int]) -> list[int]:
    """Return the numbers of samples that are not outliers, or all of them if most are."""
    usual = [number for number in numbers if number not in outliers]
    return usual if 2 * len(usual) >= len(numbers) else [*numbers]


def check_settings(config: ConversionConfig, *, trained: bool) -> None:
    """Raise InputError if settings contradict each other or a quantization-aware trained model."""
    check_mixed(config, trained=trained)
    _check_sparsity(config)
    settings = {"techniques": config.techniques, "int4_layers": config.int4_layers}
    for name, values in settings.items():
        if not values:
            continue
        setting = f"conversion.{name}={','.join(values)}"
        if trained:
            raise InputError(
                f"{setting} would undo the quantization-aware training of this model. Remove the setting",
                field=f"conversion.{name}",
                expected=(),
                got=values,
            )
        if config.scheme != "int8" and not _works_on_floats(name, config):
            others = "int8 or dynamic_range" if name == "int4_layers" else "int8"
            raise InputError(
                f"{setting} requires conversion.scheme={others}, got {config.scheme}. Remove the setting, or convert "
                f"to {others}{_GPTQ_ON_FLOATS if 'gptq' in values else ''}",
                field=f"conversion.{name}",
                expected=(),
                got=values,
            )


_GPTQ_ON_FLOATS = (
    ". With float activations, gptq alone works, on weights of 4 or 2 bits: dynamic_range with int4_layers, "
    "weight_only_int4, weight_only_int2"
)


def _works_on_floats(name: str, config: ConversionConfig) -> bool:
    """Check whether the setting called `name` changes a file with float activations."""
    if name == "int4_layers":
        return config.scheme == "dynamic_range"
    return config.has_few_bits and config.techniques == ("gptq",)


def with_trained_int4(content: bytes, floating: bytes, layers: Sequence[str]) -> bytes:
    """Return an int8 flatbuffer with int4 weights for the layers that were trained with 4 bits.

    Args:
        content: The int8 flatbuffer.
        floating: Its float flatbuffer, whose weights of these layers have at most 15 values per channel.
        layers: The names of these layers.

    Raises:
        InputError: The converter changed the weights of some of these layers, so they are not 4-bit values anymore.
    """
    if not layers:
        return content
    result = ptq.with_int4_grids(content, floating, layers)
    missing = [name for name in layers if name not in result.layers]
    if missing:
        reasons = listed(
            [f"{name}: {result.skipped.get(name, 'the flatbuffer has no such layer')}" for name in missing]
        )
        raise InputError(
            f"model: {len(missing)} of the {len(layers)} layers that were trained with 4-bit weights cannot have them "
            f"in the flatbuffer ({reasons}). Train them with 8 bits (compression.qat.int4_layers)",
            field="model",
            expected=tuple(layers),
            got=tuple(result.layers),
            limit="int4-training",
        )
    return result.model


def rounded_by_data(
    model: bytes, dataset: Any, config: ConversionConfig, bits: Mapping[int, tuple[int, bool]]
) -> "ptq.FewBitWeights":
    """Round weights of 4 or 2 bits of a float flatbuffer with GPTQ, on config.num_calibration_samples samples.

    Args:
        model: The bytes of a float `.tflite`.
        dataset: The representative dataset.
        config: The settings.
        bits: {tensor: (4 or 2 bits, whether it gets one scale)}.

    Raises:
        InputError: There is no dataset, or it does not fit the model.
    """
    if dataset is None:
        raise InputError(
            "representative_dataset: conversion.techniques=gptq rounds weights by data, and there is none. Pass about "
            f"{config.num_calibration_samples} real examples, or remove the technique",
            field="representative_dataset",
            expected="real examples",
            got=None,
        )
    samples, _ = _samples(model, dataset, config)
    one_scale = [tensor for tensor, (_, per_tensor) in bits.items() if per_tensor]
    return ptq.round_to_few_bits(
        model, samples, {tensor: count for tensor, (count, _) in bits.items()}, per_tensor=one_scale
    )


def _check_sparsity(config: ConversionConfig) -> None:
    default, groups = ConversionConfig(), config.sparsity_m_by_n
    changed = [name for name in ("sparsity", "sparsity_m_by_n") if getattr(config, name) != getattr(default, name)]
    if changed and "one_shot_pruning" not in config.techniques:
        raise InputError(
            f"conversion.{changed[0]} is a setting of the technique one_shot_pruning: add it to conversion.techniques, "
            "or remove the setting",
            field=f"conversion.{changed[0]}",
            expected=getattr(default, changed[0]),
            got=getattr(config, changed[0]),
        )
    if groups and (len(groups) != 2 or groups[0] >= groups[1] or "sparsity" in changed):
        raise InputError(
            f"conversion.sparsity_m_by_n={','.join(map(str, groups))}: expected m,n with m below n, such as 2,4, "
            "without sparsity",
            field="conversion.sparsity_m_by_n",
            expected="m,n with m below n",
            got=groups,
        )


def _samples(model: bytes, dataset: Any, config: ConversionConfig) -> tuple[list[dict[str, NDArray]], int]:
    """Return batches of calibration samples and the number of samples; warn (TfqWarning) about suspicious ones."""
    if dataset is None:
        raise InputError(
            f"representative_dataset: {config.scheme} needs activation ranges, which this model does not have. Pass "
            f"about {config.num_calibration_samples} real examples to calibrate with, or apply quantization-aware "
            "training",
            field="representative_dataset",
            expected="real examples",
            got=None,
            limit="no-ranges",
        )
    result = representative_samples(dataset, input_specs(model), config.num_calibration_samples, model)
    for warning in result.warnings:
        warn(warning)
    return result.samples, result.num_samples


def _warn_of_outliers(ranges: calibration.Ranges) -> None:
    outliers = ranges.outlier_samples
    if not outliers:
        return
    affected = {id(item): item for result in outliers.values() for item in result}.values()
    worst = min(affected, key=lambda item: item.coverage)
    indices = ", ".join(map(str, [*outliers][:5])) + (", ..." if len(outliers) > 5 else "")
    warn(
        f"calibration: {len(outliers)} of {ranges.num_samples} samples (index {indices}) are outliers: their values "
        f"reach far beyond those of the others in {len(affected)} of {len(ranges.tensors)} tensors "
        f"({1 / worst.coverage:.0f} times as far in {worst.layer or worst.name}). They are clipped, because otherwise "
        "all other samples would share few quantized values. Check that these samples are valid inputs. "
        "conversion.calibration.method=min_max keeps their full range"
    )


def warn_of_dead_layers(dead: Sequence[str]) -> None:
    """Warn (TfqWarning) about the layers that output 0 on all calibration data."""
    if not dead:
        return
    warn(
        f"dead layers: {listed(dead)}. On all calibration data their outputs are 0, or too small for an integer "
        "kernel. The file runs, and they output 0 in it. Check the weights before these layers, and check that the "
        "representative dataset covers the inputs that activate them"
    )


def quantize_flatbuffer(model: bytes, config: ConversionConfig) -> bytes:
    """Run TensorFlow's quantizer: int8 weights, and int8 or (scheme int16x8) int16 activations.

    Args:
        model: A float flatbuffer whose tensors have calibrated ranges (`tflite.inject_ranges`).
        config: The scheme, the types of inputs and outputs, the granularity of the weights, and the layers that stay
            float.

    Raises:
        InputError: The quantizer rejects the model, or a pattern in float_layers matches no layer.
    """
    is_int16 = config.scheme == "int16x8"
    float_ops = [*float_recurrent_ops(model), *(float_only_ops(model) if is_int16 else ())]
    prepared, restore = with_hidden_indices(model, hide_integers=is_int16, float_ops=float_ops)
    try:
        with stage("quantizing"), captured_stderr() as stderr:
            quantized = (_to_int16x8 if is_int16 else _to_int8)(prepared, config)
        # The quantizer removes RESHAPE ops that keep the shape, so outputs that they copied are one tensor again.
        result = with_distinct_outputs(restore(quantized))
        return tflite.restore_signatures(with_int16_types(result) if is_int16 else result, model)
    except (RuntimeError, ValueError) as error:
        message = (
            "TensorFlow's quantizer rejects the float model. Keep the layers that it names in float "
            f"(conversion.float_layers), or try conversion.quantizer=litert. It says: {error}"
        )
        raise InputError(stderr.add_to(message), field="model", limit="quantizer-rejects") from error


@isolated("TensorFlow's quantizer", advice=QUANTIZER_ADVICE)
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
            # TensorFlow identifies an op, and everything that was fused into it, by the names of its outputs.
            denylisted_nodes=layer_outputs(model, "float_layers", config.float_layers) or None,
        )
    )


@isolated("TensorFlow's quantizer", advice=QUANTIZER_ADVICE)
def _to_int16x8(model: bytes, config: ConversionConfig) -> bytes:
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    if not config.per_channel:
        _reject_per_tensor_depthwise(model)

    def quantized(floating: bytes) -> bytes:
        return bytes(
            wrapper.CalibrationWrapper(floating, [], []).QuantizeModel(
                _numpy_number(config.input_type),
                _numpy_number(config.output_type),
                True,  # allow_float: ops without a 16-bit kernel stay float, and the audit lists them
                _numpy_number("int16"),
                _numpy_number("int64"),  # type of the biases
                not config.per_channel,
                not (config.per_channel and config.per_channel_dense),
            )
        )

    try:
        return quantized(model)
    except (RuntimeError, ValueError) as error:
        if "Unsupported" not in str(error):
            raise
        # "Unsupported output type INT16 for output tensor ... of type FLOAT32": the first or last op stays float.
        return quantized(with_float_edges(model))


def _reject_per_tensor_depthwise(model: bytes) -> None:
    """Raise InputError if the model has a depthwise convolution, whose per-tensor int16x8 form is broken.

    TensorFlow 2.21 writes a flatbuffer that does not load ("Quantized dimension ... do not match. Got 3 and 0").
    """
    graphs = tflite.read(model).subgraphs
    ops = [op for graph in graphs for op in graph.ops if op.name == "DEPTHWISE_CONV_2D"]
    if ops:
        layers = ", ".join(op.keras_layer or f"op #{op.index}" for op in ops[:3])
        raise InputError(
            "conversion.per_channel=False with scheme int16x8: TensorFlow's quantizer cannot quantize depthwise "
            f"convolutions ({layers}) per tensor. Set conversion.per_channel=True, or convert to int8",
            field="conversion.per_channel",
            expected=True,
            got=False,
            limit="int16-per-tensor",
        )


def _numpy_number(dtype: str) -> int:
    return np.dtype(dtype).num

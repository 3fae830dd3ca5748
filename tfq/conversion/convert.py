# SPDX-License-Identifier: Apache-2.0
"""Convert a Keras model or a float flatbuffer: trace, freeze, rewrite, calibrate, quantize, verify."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from tfq import isolation, tflite
from tfq.artifacts import content_of
from tfq.backends import LocalBackend
from tfq.config import ConversionConfig
from tfq.conversion.fake_quant import has_selections, with_same_scales, with_selection_ranges
from tfq.conversion.fixed_scales import with_separate_scales
from tfq.conversion.freeze import (
    fake_quant_flatbuffer,
    flatbuffer_with_ranges,
    flatbuffer_with_rounding,
    float_flatbuffer,
    graph_without_weight_fake_quant,
)
from tfq.conversion.graph_rewrites import with_distinct_outputs, with_quantizable_ops, with_visible_constants
from tfq.conversion.int8_forms import with_int8_forms
from tfq.conversion.masks import bound_masks, without_nested_selects
from tfq.conversion.op_patterns import with_ops_by_name
from tfq.conversion.published import float_model, with_published_files
from tfq.conversion.quantize import (
    Conversion,
    Evidence,
    check_settings,
    quantize_after_training,
    quantize_flatbuffer,
    rounded_by_data,
    warn_of_dead_layers,
    with_trained_int4,
)
from tfq.conversion.raw_inputs import with_float_inputs
from tfq.conversion.recurrent import with_state_resets
from tfq.conversion.recurrent_layers import LSTMForm, warn_of_unrolled
from tfq.conversion.signatures import convert_each_signature, has_several_signatures
from tfq.conversion.sources import ExampleShapes, with_fixed_batch, with_fixed_sizes
from tfq.conversion.targeting import (
    config_for_target,
    is_ready_for,
    needs_fixed_shapes,
    ops_without_range,
    warn_of_floats,
    warn_of_kept_file,
    warn_of_target,
    with_target_forms,
    with_trained_granularity,
)
from tfq.conversion.tracing import Trace, trace_for, traced_again
from tfq.conversion.verified import verified
from tfq.conversion.weights import few_bit_weights, quantize_weights
from tfq.data import as_split, data_of_main_subgraph, stratified
from tfq.errors import InputError, warn
from tfq.keras_bridge import SavedModel, load_source
from tfq.keras_bridge.strategies import in_strategy
from tfq.ptq import calibration
from tfq.typing import Data, KerasModel, PathOrBytes, Preprocessing


def convert_model(
    model: KerasModel | SavedModel | Trace | PathOrBytes,
    representative_dataset: Data = None,
    config: ConversionConfig | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> bytes:
    """Convert a model to a TFLite flatbuffer in `config.scheme`: full int8 by default.

    The flatbuffer has the signature `serving_default` with the input and output names of the model; a `.tflite` keeps
    its signatures. Before it is returned, the result is run next to the float model on a few samples (`config.verify`).
    If its outputs lost their information, a TfqWarning names the op, the cause and what other settings achieve. With
    `config.strict` this is an error instead. Possible problems of the model and of the data are warnings too.

    Examples:
        >>> flatbuffer = tfq.convert(model, representative_dataset=x_train[:200])
        >>> pathlib.Path("model_int8.tflite").write_bytes(flatbuffer)

    Args:
        model: A functional, sequential or subclassed model of either Keras; a SavedModel, as its directory or as the
            result of `load_saved_model`; a `Trace` of one of these (which makes further conversions of the same model
            faster); or a float `.tflite`, as its bytes or its path. A `.tflite` of `config.scheme` is accepted if
            `config.target` needs another form of some ops: only these are replaced. The names of a subclassed model's
            inputs are those of the arguments of `call`, or the keys of a dict.
        representative_dataset: Examples of the model's inputs, from which the ranges of activations are calibrated: a
            function that yields lists of arrays, a tf.data.Dataset, an array (n, ...), a dict of arrays by input name,
            or {signature: [{name: array}]} for a `.tflite` with several signatures. The schemes int8 and int16x8 need
            it. A quantization-aware trained model has its own ranges and needs none.
        config: Settings of the conversion; None means `ConversionConfig()`. A `target` that can never run the result is
            an error. Ops of this model that the target cannot run are named in a TfqWarning. The weights of a
            quantization-aware trained model (int8 only) keep the granularity that they were trained with.
        preprocessing: How the data was preprocessed ({"resize", "scale", "offset"}). It is stored in the flatbuffer,
            and `evaluate` compares its own with it.

    Returns:
        The content of a `.tflite` file.

    Raises:
        InputError: The model, the dataset or the config cannot be used.
        VerificationError: The outputs of the result lost their information, and `config.strict` is set.
    """
    return convert_with_record(model, representative_dataset, config, preprocessing=preprocessing).content


@in_strategy
def convert_with_record(
    model: KerasModel | SavedModel | Trace | PathOrBytes,
    representative_dataset: Data = None,
    config: ConversionConfig | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    examples: Data = None,
    remedies: bool = True,
    warn_if_collapsed: bool = True,
) -> Conversion:
    """Convert as `convert_model` does; also return the ranges, the records of the techniques and the verification.

    Args:
        model: As in `convert_model`.
        representative_dataset: As in `convert_model`.
        config: As in `convert_model`.
        preprocessing: As in `convert_model`.
        examples: Data to verify the result with if nothing is calibrated, in a form of `representative_dataset`. The
            first examples are used.
        remedies: Whether to measure other settings if the result collapsed. Each takes another conversion.
        warn_if_collapsed: Whether each problem of a collapsed result is a TfqWarning. Without it, the problems are only
            in the verification of the result.

    Raises:
        InputError: As in `convert_model`.
        VerificationError: The result collapsed, and config.strict is set.
    """
    config = config_for_target(config or ConversionConfig())
    if representative_dataset is not None and config.sampling == "by_class":
        representative_dataset = stratified(as_split(representative_dataset), config.num_calibration_samples)
        for note in representative_dataset.notes:
            warn(note)
    if config.verify:
        LocalBackend().prepare()  # starting takes half a second, and runs in parallel to the conversion
    with contextlib.ExitStack() as stack:
        stack.enter_context(tflite.keeping_large_files())
        is_directory = isinstance(model, (str, os.PathLike)) and os.path.isdir(model)
        if isinstance(model, (bytes, bytearray, str, os.PathLike)) and not is_directory:
            model = content_of(model, "model", "a float .tflite file")
            stack.enter_context(isolation.foreign_bytes(model))
        result = _converted(model, representative_dataset, config, preprocessing)
        converted = result.content
        result = dataclasses.replace(result, content=with_target_forms(converted, config))
        if config.verify and config.scheme != "float32":
            result = verified(result, config, examples=examples, remedies=remedies, warn_if_collapsed=warn_if_collapsed)
        # Both pack the flatbuffer again, without the files after it.
        result = dataclasses.replace(result, content=tflite.with_associated_files(result.content, converted)[0])
    if not isinstance(model, bytes):
        isolation.trust(result.content)
    warn_of_target(result.content, config)
    warn_of_floats(
        result.content, config, has_data=representative_dataset is not None or bool(config.calibration.ranges)
    )
    return result


def _converted(
    model: KerasModel | SavedModel | Trace | PathOrBytes,
    dataset: Data,
    config: ConversionConfig,
    preprocessing: Preprocessing | None,
) -> Conversion:
    metadata: dict[str, Any] = {}
    if preprocessing is not None:
        metadata["preprocessing"] = preprocessing
    if isinstance(model, (str, os.PathLike)) and os.path.isdir(model):
        model = load_source(model, signature=config.signature)
    if isinstance(model, (bytes, bytearray, str, os.PathLike)):
        return _from_flatbuffer(content_of(model, "model", "a float .tflite file"), dataset, config, metadata)
    examples = ExampleShapes(dataset, config.num_calibration_samples)
    traced = trace_for(model, config, examples)
    dataset = examples.dataset
    if traced.has_fused_lstm and traced.has_fake_quant and dataset is None:
        # Training gives no ranges to the tensors inside the fused op.
        reason = "the model is quantization-aware trained, and there is no representative_dataset"
        traced = traced_again(traced, unroll=True, lstm=LSTMForm(form="unrolled", reason=reason))
    metadata["keras_layers"] = list(traced.keras_layers)
    if traced.has_fake_quant:
        if config.scheme != "int8":
            raise InputError(
                f"conversion.scheme: a quantization-aware trained model can only be converted to int8, got "
                f"{config.scheme}. Use int8, or pass the model from before that training",
                field="conversion.scheme",
                expected="int8",
                got=config.scheme,
                limit="qat-scheme",
            )
        result = _from_fake_quant(traced, dataset, config, metadata)
    else:
        floating = _signed(float_flatbuffer(traced), traced.input_names, traced.output_names, metadata)
        result = _as_scheme(floating, dataset, config)
    content = with_state_resets(result.content) if traced.has_fused_lstm else result.content
    if config.needs_ranges:
        warn_of_unrolled(traced.recurrent, traced.lstm, len(content))
    return dataclasses.replace(result, content=content, recurrent=traced.recurrent)


def _from_flatbuffer(model: bytes, dataset: Any, config: ConversionConfig, metadata: dict[str, Any]) -> Conversion:
    """Convert a float flatbuffer from any tool.

    With scheme float32 it is returned with float32 constants and metadata, and otherwise unchanged.
    """
    source = model
    if is_ready_for(model, config):
        warn_of_kept_file(config)
        return Conversion(content=with_fixed_batch(model, config.batch_size) if needs_fixed_shapes(config) else model)
    model, dataset, config = float_model(model, dataset, config)
    parsed = tflite.read(model)
    metadata = {**(tflite.read_metadata(model) or {}), **metadata}
    if parsed.signatures:
        model = tflite.edit_model(model, metadata=metadata, keep_files=False)  # with_published_files adds them
    else:
        model = _signed(model, parsed.input_names, parsed.output_names, metadata)
    if has_several_signatures(model):
        if config.needs_ranges or config.techniques:  # both need data, and each subgraph has other data
            return with_published_files(convert_each_signature(model, dataset, config, _from_subgraph), source)
        dataset = data_of_main_subgraph(parsed, dataset)
    return with_published_files(_from_subgraph(model, dataset, config), source)


def _from_subgraph(model: bytes, dataset: Any, config: ConversionConfig) -> Conversion:
    """Convert a float flatbuffer of one subgraph, after the sizes of its inputs are fixed if they are known."""
    examples = ExampleShapes(dataset, config.num_calibration_samples)
    return _as_scheme(with_fixed_sizes(model, config, examples), examples.dataset, config)


def _as_scheme(model: bytes, dataset: Any, config: ConversionConfig) -> Conversion:
    """Convert a float flatbuffer to config.scheme, whether it comes from Keras or a file."""
    if config.needs_ranges:
        model, config = with_ops_by_name(model, config)
        return quantize_after_training(_prepared(model, config), dataset, config)
    check_settings(config, trained=False)
    if config.scheme == "float32":
        return Conversion(content=model)
    evidence = Evidence.of(model, dataset)
    model, config = with_ops_by_name(model, config)
    if "gptq" not in config.techniques:
        return Conversion(content=quantize_weights(model, config), evidence=evidence)
    rounded = rounded_by_data(model, dataset, config, few_bit_weights(model, config))
    content = quantize_weights(rounded.model, config, rounded.weights)
    return Conversion(content=content, techniques={"gptq": rounded.to_dict()}, evidence=evidence)


def _prepared(floating: bytes, config: ConversionConfig) -> bytes:
    """Return a float flatbuffer with the same function whose ops config.quantizer can quantize well."""
    floating = with_quantizable_ops(floating)
    if config.quantizer != "tensorflow":
        return floating
    return with_separate_scales(with_visible_constants(floating))


def _from_fake_quant(traced: Trace, dataset: Any, config: ConversionConfig, metadata: dict[str, Any]) -> Conversion:
    """Convert a QAT model with its learned ranges, and with calibrated ranges for the other tensors."""
    import tensorflow as tf

    def trained() -> bytes:
        return _signed(flatbuffer_with_rounding(traced), traced.input_names, traced.output_names, metadata)

    check_settings(config, trained=True)
    graph_def, granularity = graph_without_weight_fake_quant(traced)
    config = with_trained_granularity(granularity, config)
    if dataset is None and not granularity.moved and not granularity.int4 and not config.float_layers:
        # The whole model may be fake-quantized: TensorFlow's converter then keeps the fake-quantized weights.
        types = (tf.dtypes.as_dtype(kind) for kind in (config.input_type, config.output_type))
        content = with_int8_forms(fake_quant_flatbuffer(traced, *types))
        if not has_selections(content) and not ops_without_range(content):
            content = _signed(content, traced.input_names, traced.output_names, metadata)
            return Conversion(content=content, evidence=Evidence(floating=None, trained=trained))
    floating, ranges = flatbuffer_with_ranges(traced, graph_def)
    floating = _signed(floating, traced.input_names, traced.output_names, metadata)
    floating, config = with_ops_by_name(floating, config)
    floating, ranges = without_nested_selects(_prepared(floating, config), ranges)
    if dataset is not None:
        result = quantize_after_training(floating, dataset, config, ranges)
        evidence = result.evidence and dataclasses.replace(result.evidence, trained=trained)
        content = with_trained_int4(result.content, floating, granularity.int4)
        return dataclasses.replace(result, content=content, evidence=evidence, trained_int4=granularity.int4)
    floating, _, raw = with_float_inputs(floating, [], config)
    ranges = with_same_scales(floating, {**ranges, **raw.ranges})
    masks = bound_masks(floating, ranges, ranges, config.scheme)
    ranges = with_selection_ranges(masks.model, masks.ranges, shared=False)
    ranges, dead = calibration.with_kernel_limits(masks.model, ranges, config.scheme)
    warn_of_dead_layers(dead)
    content = raw.restore(with_int8_forms(quantize_flatbuffer(tflite.inject_ranges(masks.model, ranges), config)))
    content = with_trained_int4(content, floating, granularity.int4)
    evidence = Evidence(floating=floating, trained=trained)
    return Conversion(content=content, dead_layers=dead, evidence=evidence, trained_int4=granularity.int4)


def _signed(model: bytes, input_names: Sequence[str], output_names: Sequence[str], metadata: dict[str, Any]) -> bytes:
    """Add the signature `serving_default`, with names in the order of the model's inputs and outputs."""
    model = with_distinct_outputs(model)
    graph = tflite.read(model).main_subgraph
    if len(graph.inputs) != len(input_names) or len(graph.outputs) != len(output_names):
        raise InputError(
            f"the model has {len(input_names)} inputs and {len(output_names)} outputs, but its flatbuffer has "
            f"{len(graph.inputs)} and {len(graph.outputs)}. Remove inputs that no output depends on",
            field="model",
            expected=(len(input_names), len(output_names)),
            got=(len(graph.inputs), len(graph.outputs)),
        )
    signature = (dict(zip(input_names, graph.inputs, strict=True)), dict(zip(output_names, graph.outputs, strict=True)))
    return tflite.edit_model(model, signature=signature, metadata=metadata, keep_files=False)

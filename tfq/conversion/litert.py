# SPDX-License-Identifier: Apache-2.0
"""Quantize with litert-quantizer: a whole model, or mixed precision by layer.

litert-quantizer is Google's successor of TensorFlow's quantizer, and the only one that can give single layers another
scheme. This is the only file that uses it, with the public API of 0.11: Quantizer, its recipe, and
`quantize(calibration_result=...)`. It identifies layers by regular expressions that match the names of their outputs,
each followed by a semicolon. The last matching expression wins.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError, install_hint
from tfq.isolation import QUANTIZER_ADVICE, isolated
from tfq.native_stderr import captured_stderr
from tfq.patterns import check_selection, fits_op
from tfq.progress import stage

# Settings that only litert-quantizer supports.
_LITERT_ONLY = ("int16_layers", "per_tensor_layers")


def layer_outputs(model: bytes, setting: str, patterns: Sequence[str]) -> list[str]:
    """Return the names of the output tensors of all ops that match a pattern, in all subgraphs.

    Both quantizers identify ops by these names.

    Args:
        model: A float flatbuffer.
        setting: The config field of the patterns, for errors.
        patterns: Patterns of layer names, or exact names of output tensors.

    Raises:
        InputError: A pattern matches no layer. The message has the most similar name.
    """
    if not patterns:
        return []
    named = [
        (graph.layer_of(op), [graph.tensors[index].name for index in op.outputs])
        for graph in tflite.read(model).subgraphs
        for op in graph.ops
        if op.outputs
    ]
    tensors = {output for _, outputs in named for output in outputs}
    layers = dict.fromkeys(name for name, _ in named)
    check_selection(setting, patterns, layers, field=f"conversion.{setting}", tensors=tensors)
    chosen = [outputs for name, outputs in named if fits_op(name, outputs, patterns)]
    return [output for outputs in chosen for output in outputs]


def check_mixed(config: ConversionConfig, *, trained: bool) -> None:
    """Raise InputError if the quantizer or settings of single layers contradict the scheme or each other."""
    if config.quantizer == "litert":
        if trained:
            raise InputError(
                "conversion.quantizer=litert: a quantization-aware trained model was trained for the scales of "
                "TensorFlow's quantizer. Use conversion.quantizer=tensorflow, the default",
                field="conversion.quantizer",
                expected="tensorflow",
                got="litert",
                limit="qat-scheme",
            )
        if not config.needs_ranges:
            raise InputError(
                f"conversion.quantizer=litert requires scheme int8 or int16x8, got {config.scheme}. Convert to one of "
                "these, or use the default quantizer",
                field="conversion.scheme",
                expected=("int8", "int16x8"),
                got=config.scheme,
            )
    for name in ("float_layers", *_LITERT_ONLY):
        if getattr(config, name) and config.scheme != "int8":
            raise InputError(
                f"conversion.{name} requires conversion.scheme=int8, got {config.scheme}. Convert to int8, or remove "
                "the setting",
                field=f"conversion.{name}",
                expected=(),
                got=getattr(config, name),
            )
    for name in _LITERT_ONLY:
        if getattr(config, name) and config.quantizer != "litert":
            raise InputError(
                f"conversion.{name}={','.join(getattr(config, name))}: TensorFlow's quantizer has one scheme for all "
                f"layers. Set conversion.quantizer=litert ({install_hint('litert')})",
                field="conversion.quantizer",
                expected="litert",
                got=config.quantizer,
            )


_ALL = ".*"


@isolated("litert-quantizer", advice=QUANTIZER_ADVICE)
def quantize_by_litert(
    model: bytes,
    ranges: Mapping[tuple[int, int], tuple[float, float]],
    config: ConversionConfig,
    float_outputs: Sequence[str] = (),
) -> bytes:
    """Quantize a float flatbuffer with litert-quantizer.

    Args:
        model: A float flatbuffer with a signature.
        ranges: {(subgraph, tensor): (minimum, maximum)} of every activation.
        config: The scheme, the types of inputs and outputs, the granularity of the weights, and the layers with
            another scheme.
        float_outputs: Outputs of further ops that stay float.

    Raises:
        InputError: litert-quantizer is not installed or rejects the model, two activations have the same name, or a
            pattern matches no layer.
    """
    try:
        from litert_quantizer import quantizer
        from litert_quantizer.qtyping import TFLOperationName
    except ImportError as error:
        raise InputError(
            f"conversion.quantizer=litert needs the package litert-quantizer, which cannot be imported ({error}). "
            f"Install it ({install_hint('litert')}), or use the default quantizer",
            field="conversion.quantizer",
            expected="litert-quantizer",
            got="litert",
        ) from error
    recipe = quantizer.Quantizer(model)
    _add_schemes(recipe, model, config)
    for output in float_outputs:
        recipe.update_quantization_recipe(_regex(output), TFLOperationName.ALL_SUPPORTED, algorithm_key="no_quantize")
    _add_io_types(recipe, config)
    try:
        with stage("quantizing"), captured_stderr(), warnings.catch_warnings():
            # Its interpreter warns that preserving all tensors is for debugging only.
            warnings.filterwarnings("ignore", message=".*preserve_all_tensors")
            built = recipe.quantize(_by_name(model, ranges), enable_progress_bar=False, enable_progress_report=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "litert-quantizer rejects the float model. Keep the layers that it names in float "
            f"(conversion.float_layers), or use the default quantizer. It says: {error}",
            field="model",
            limit="quantizer-rejects",
        ) from error
    return bytes(built.quantized_model)


def _add_schemes(recipe: Any, model: bytes, config: ConversionConfig) -> None:
    from litert_quantizer.qtyping import QuantGranularity as Granularity
    from litert_quantizer.qtyping import TFLOperationName as Name

    bits = 16 if config.scheme == "int16x8" else 8
    per_channel, per_tensor = Granularity.CHANNELWISE, Granularity.TENSORWISE

    def static(regex: str, activation_bits: int, granularity: Any, name: Any = Name.ALL_SUPPORTED) -> None:
        recipe.add_static_config(regex, name, activation_bits, 8, granularity)

    static(_ALL, bits, per_channel if config.per_channel else per_tensor)
    if config.per_channel and not config.per_channel_dense:
        static(_ALL, bits, per_tensor, Name.FULLY_CONNECTED)
    per_tensor_outputs = set(layer_outputs(model, "per_tensor_layers", config.per_tensor_layers))
    int16_outputs = set(layer_outputs(model, "int16_layers", config.int16_layers))
    for output in sorted(per_tensor_outputs | int16_outputs):
        granularity = per_tensor if output in per_tensor_outputs or not config.per_channel else per_channel
        static(_regex(output), 16 if output in int16_outputs else bits, granularity)
    for output in layer_outputs(model, "float_layers", config.float_layers):
        recipe.update_quantization_recipe(_regex(output), Name.ALL_SUPPORTED, algorithm_key="no_quantize")


def _add_io_types(recipe: Any, config: ConversionConfig) -> None:
    from litert_quantizer import qtyping

    places = (
        (qtyping.TFLOperationName.INPUT, config.input_type),
        (qtyping.TFLOperationName.OUTPUT, config.output_type),
    )
    for place, kind in places:
        if kind == "float32":
            recipe.update_quantization_recipe(_ALL, place, algorithm_key="no_quantize")
        elif kind == "uint8":
            unsigned = qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False, dtype=qtyping.TensorDataType.UINT)
            weights = qtyping.TensorQuantizationConfig(num_bits=8, granularity=qtyping.QuantGranularity.CHANNELWISE)
            recipe.update_quantization_recipe(
                _ALL,
                place,
                qtyping.OpQuantizationConfig(
                    activation_tensor_config=unsigned,
                    weight_tensor_config=weights,
                    compute_precision=qtyping.ComputePrecision.INTEGER,
                ),
            )


def _by_name(model: bytes, ranges: Mapping[tuple[int, int], tuple[float, float]]) -> dict[str, dict[str, Any]]:
    """Return {tensor name: its range} in the calibration format of litert-quantizer: arrays of the tensor's rank."""
    graphs = tflite.read(model).subgraphs
    results: dict[str, dict[str, Any]] = {}
    for (subgraph, index), ends in ranges.items():
        tensor = graphs[subgraph].tensors[index]
        if tensor.name in results:
            raise InputError(
                f"conversion.quantizer=litert identifies activations by name, but two have the name {tensor.name!r}. "
                "Use conversion.quantizer=tensorflow, the default",
                field="conversion.quantizer",
                expected="tensorflow",
                got="litert",
                limit="equal-tensor-names",
            )
        shape = (1,) * len(tensor.shape)
        minimum, maximum = (np.full(shape, end, np.float32) for end in ends)
        results[tensor.name] = {"min": minimum, "max": maximum}
    return results


def _regex(output: str) -> str:
    return f"^{re.escape(output)};$"

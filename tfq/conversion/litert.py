# SPDX-License-Identifier: Apache-2.0
"""Quantize with litert-quantizer: whole models, or mixed precision by layer.

The one file that touches `litert_quantizer`, of which it uses what is public in 0.11: Quantizer, its recipe and
`quantize(calibration_result=...)`. It is what Google maintains in the place of TensorFlow's quantizer, and the one that
can give single layers another scheme. Layers are told to it by the names of their outputs, of which it matches regular
expressions with a semicolon behind; of several that match, the last counts.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError, install_hint
from tfq.native_stderr import captured_stderr
from tfq.patterns import check_fits, fits_op
from tfq.progress import stage

# What only litert-quantizer can do.
_OF_LITERT = ("int16_layers", "per_tensor_layers")


def layer_outputs(model: bytes, setting: str, patterns: Sequence[str]) -> list[str]:
    """Return the output tensors' names of all ops whose layer fits one of `patterns`, or whose output one of them is.

    Both quantizers know ops by these, in any subgraph. Raises InputError on a pattern that fits no layer, with the
    nearest name.
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
    for pattern in patterns:
        check_fits(
            f"{setting}: the pattern {pattern!r}",
            pattern,
            dict.fromkeys(name for name, _ in named),
            field=f"conversion.{setting}",
            tensors=tensors,
        )
    chosen = [outputs for name, outputs in named if fits_op(name, outputs, patterns)]
    return [output for outputs in chosen for output in outputs]


def check_mixed(config: ConversionConfig, *, trained: bool) -> None:
    """Raises InputError where settings of single layers, or the backend, contradict the scheme or each other."""
    if config.quantizer == "litert":
        if trained:
            raise InputError(
                "quantizer=litert: the model is quantization-aware trained, for the scales of TensorFlow's quantizer: "
                "leave it out",
                field="conversion.quantizer",
                expected="tensorflow",
                got="litert",
            )
        if not config.needs_ranges:
            raise InputError(
                f"quantizer=litert with scheme={config.scheme}: it is for int8 and int16x8: leave it out, or convert "
                f"to "
                "one of these",
                field="conversion.scheme",
                expected=("int8", "int16x8"),
                got=config.scheme,
            )
    for name in ("float_layers", *_OF_LITERT):
        if getattr(config, name) and config.scheme != "int8":
            raise InputError(
                f"{name} with scheme={config.scheme}: a model in which some layers have a scheme of their own is int8",
                field=f"conversion.{name}",
                expected=(),
                got=getattr(config, name),
            )
    for name in _OF_LITERT:
        if getattr(config, name) and config.quantizer != "litert":
            raise InputError(
                f"{name}={','.join(getattr(config, name))}: TensorFlow's quantizer has one scheme for all layers: set "
                f"quantizer=litert ({install_hint('litert')})",
                field="conversion.quantizer",
                expected="litert",
                got=config.quantizer,
            )


_ALL = ".*"


def quantize_by_litert(
    model: bytes,
    ranges: Mapping[tuple[int, int], tuple[float, float]],
    config: ConversionConfig,
    float_outputs: Sequence[str] = (),
) -> bytes:
    """`model`, a float flatbuffer with a signature, in the integers of config.scheme.

    ranges: (subgraph, tensor) -> (minimum, maximum) of every activation. config: as quantize_flatbuffer has it, and the
    layers that have a scheme of their own. float_outputs: outputs of further ops that stay float.
    Raises InputError where litert-quantizer is missing or refuses, where two activations have one name, and on a
    pattern that fits no layer.
    """
    try:
        from litert_quantizer import quantizer
        from litert_quantizer.qtyping import TFLOperationName
    except ImportError as error:
        raise InputError(
            f"quantizer=litert needs litert-quantizer ({error}): {install_hint('litert')}. Or leave quantizer out",
            field="conversion.quantizer",
            expected="litert-quantizer",
            got="litert",
        ) from error
    recipe = quantizer.Quantizer(model)
    _add_schemes(recipe, model, config)
    for output in float_outputs:
        recipe.update_quantization_recipe(_regex(output), TFLOperationName.ALL_SUPPORTED, algorithm_key="no_quantize")
    _add_borders(recipe, config)
    try:
        with stage("quantizing"), captured_stderr(), warnings.catch_warnings():
            # That its interpreter keeps all tensors is for debugging only.
            warnings.filterwarnings("ignore", message=".*preserve_all_tensors")
            built = recipe.quantize(_by_name(model, ranges), enable_progress_bar=False, enable_progress_report=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"litert-quantizer refuses the flatbuffer: {error}", field="model") from error
    return bytes(built.quantized_model)


def _add_schemes(recipe: Any, model: bytes, config: ConversionConfig) -> None:
    from litert_quantizer.qtyping import QuantGranularity as Granularity
    from litert_quantizer.qtyping import TFLOperationName as Name

    bits = 16 if config.scheme == "int16x8" else 8
    item, one = Granularity.CHANNELWISE, Granularity.TENSORWISE

    def static(regex: str, activation_bits: int, granularity: Any, name: Any = Name.ALL_SUPPORTED) -> None:
        recipe.add_static_config(regex, name, activation_bits, 8, granularity)

    static(_ALL, bits, item if config.per_channel else one)
    if config.per_channel and not config.per_channel_dense:
        static(_ALL, bits, one, Name.FULLY_CONNECTED)
    coarse = set(layer_outputs(model, "per_tensor_layers", config.per_tensor_layers))
    fine = set(layer_outputs(model, "int16_layers", config.int16_layers))
    for output in sorted(coarse | fine):
        granularity = one if output in coarse or not config.per_channel else item
        static(_regex(output), 16 if output in fine else bits, granularity)
    for output in layer_outputs(model, "float_layers", config.float_layers):
        recipe.update_quantization_recipe(_regex(output), Name.ALL_SUPPORTED, algorithm_key="no_quantize")


def _add_borders(recipe: Any, config: ConversionConfig) -> None:
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
    """Tensor name -> its range, as litert-quantizer keeps what it has calibrated: arrays with an axis for each."""
    graphs = tflite.read(model).subgraphs
    results: dict[str, dict[str, Any]] = {}
    for (subgraph, index), ends in ranges.items():
        tensor = graphs[subgraph].tensors[index]
        if tensor.name in results:
            raise InputError(
                f"quantizer=litert: two activations have the name {tensor.name!r}, and litert-quantizer goes by names: "
                "leave quantizer out",
                field="conversion.quantizer",
                expected="tensorflow",
                got="litert",
            )
        shape = (1,) * len(tensor.shape)
        minimum, maximum = (np.full(shape, end, np.float32) for end in ends)
        results[tensor.name] = {"min": minimum, "max": maximum}
    return results


def _regex(output: str) -> str:
    return f"^{re.escape(output)};$"

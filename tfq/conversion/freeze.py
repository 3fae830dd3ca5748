# SPDX-License-Identifier: Apache-2.0
"""Trace -> float or fake-quantized flatbuffer, without the SavedModel that takes nine tenths of stock conversion.

The one file that touches these private symbols of TensorFlow, read in 2.21.0:
`convert_to_constants._FunctionConverterDataInEager`, its `_build_tensor_data`, `_replace_variables_by_constants`, and
`lite.TFLiteConverterV2._freeze_concrete_function`. TensorFlow's own freezing ends by importing the frozen graph
as a function again, which takes longer than all the rest of it, and which the converter then takes apart once more.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

from tfq.conversion.fake_quant import (
    Ranges,
    WeightGranularity,
    with_rounded_weights,
    without_fake_quant,
    without_weight_fake_quant,
)
from tfq.conversion.graph_rewrites import without_negative_zeros
from tfq.conversion.tracing import Trace
from tfq.errors import InputError
from tfq.native_stderr import captured_stderr
from tfq.progress import stage


class _Freezer:
    """Inlines a trace's graph once; each `freeze` puts the variables' current values into it."""

    def __init__(self, function: Any) -> None:
        from tensorflow.python.framework import convert_to_constants

        self._function = function
        self._replace = convert_to_constants._replace_variables_by_constants
        with captured_stderr():
            self._data = convert_to_constants._FunctionConverterDataInEager(
                func=function, lower_control_flow=False, aggressive_inlining=False
            )
        self._fresh = True

    def freeze(self) -> Any:
        """GraphDef of the trace with constants for variables, without what TFLite cannot say of -0.0."""
        if not self._fresh:
            self._data._build_tensor_data()
        self._fresh = False
        graph_def, _ = self._replace(self._data)
        return without_negative_zeros(graph_def)


def float_flatbuffer(traced: Trace) -> bytes:
    """The trace as a float32 flatbuffer with the variables' values of now; any fake-quant is kept as Q/DQ ranges."""
    return _convert(_converter(traced))


def fake_quant_flatbuffer(traced: Trace, input_type: Any, output_type: Any) -> bytes:
    """A quantization-aware trained trace as an integer flatbuffer; `input_type` and `output_type` are tf dtypes."""
    import tensorflow as tf

    converter = _converter(traced)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = input_type
    converter.inference_output_type = output_type
    return _convert(converter)


def frozen_graph(traced: Trace) -> Any:
    """GraphDef of the trace with the variables' values of now; tensors are called after its nodes."""
    if not isinstance(traced.freezer, _Freezer):
        traced.freezer = _Freezer(traced.function)
    return traced.freezer.freeze()


def graph_without_weight_fake_quant(traced: Trace) -> tuple[Any, WeightGranularity]:
    """The frozen graph of a quantization-aware trained trace with plain weights, and how these were fake-quantized."""
    return without_weight_fake_quant(frozen_graph(traced))


def flatbuffer_with_ranges(traced: Trace, graph_def: Any) -> tuple[bytes, Ranges]:
    """Convert the graph of `graph_without_weight_fake_quant`; return float32 bytes and the fake-quantized ranges."""
    return without_fake_quant(_convert(_converter(traced, graph_def)))


def flatbuffer_with_rounding(traced: Trace) -> bytes:
    """A float32 flatbuffer that rounds as the quantization-aware trained trace does: the reference for its int8 file.

    Weights are constants with the values that fake quantization gives them, and activations pass a QUANTIZE and a
    DEQUANTIZE wherever the trace fake-quantizes them. The float model without its fake quantization is no reference: it
    is as far from what was trained as a model quantized after training is from its float model.
    """
    return _convert(_converter(traced, with_rounded_weights(frozen_graph(traced))))


def _converter(traced: Trace, graph_def: Any = None) -> Any:
    from tensorflow.lite.python import lite

    graph_def = graph_def or frozen_graph(traced)

    class FrozenConverter(lite.TFLiteConverterV2):
        def _freeze_concrete_function(self) -> tuple:
            # What follows them are captures: variables, and tensors such as the masks of prune-preserving QAT.
            inputs = traced.function.inputs[: len(traced.input_names)]
            return graph_def, inputs, traced.function.outputs, traced.function

    converter = FrozenConverter([traced.function])
    # Its metadata names no more than the TensorFlow version, and costs an unpacking and packing of the whole model.
    converter.exclude_conversion_metadata = True
    return converter


def _convert(converter: Any) -> bytes:
    from tensorflow.lite.python.convert_phase import ConverterError

    try:
        with stage("converting to TFLite"), _silenced(), captured_stderr() as stderr:
            return bytes(converter.convert())
    except ConverterError as error:
        message = f"TensorFlow's converter refuses the model: {_reason(stderr.add_to(str(error)))}"
        raise InputError(message, field="model") from error


def _reason(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line or "not supported" in line or "Custom ops" in line]
    return " ".join((telling or lines)[:4])


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """The converter warns through `warnings` and prints to stdout of what is as it should be."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

# SPDX-License-Identifier: Apache-2.0
"""Convert a trace to a float or fake-quantized flatbuffer, without a SavedModel.

Writing and reading a SavedModel takes nine tenths of the time of TensorFlow's own conversion. TensorFlow's freezing
also imports the frozen graph as a function again, which takes longer than the rest of it, and the converter does not
need that function.

Private TensorFlow symbols used here, as of 2.21.0: `convert_to_constants._FunctionConverterDataInEager` with its
`_build_tensor_data` and `_build_node_defs_list`, `convert_to_constants._replace_variables_by_constants`, and
`lite.TFLiteConverterV2._freeze_concrete_function`.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

from tfq.conversion.constant_draws import fold_constant_draws
from tfq.conversion.fake_quant import (
    Ranges,
    WeightGranularity,
    with_rounded_weights,
    without_fake_quant,
    without_weight_fake_quant,
)
from tfq.conversion.graph_rewrites import without_negative_zeros
from tfq.conversion.inference_graph import in_float32, owner_of, remove_updates
from tfq.conversion.recurrent import with_fused_lstms
from tfq.conversion.tracing import Trace, captured_variables
from tfq.errors import InputError, warn
from tfq.native_stderr import captured_stderr
from tfq.progress import stage


class _Freezer:
    """Inlines the graph of a trace once; each `freeze` inserts the variables' current values."""

    def __init__(self, traced: Trace) -> None:
        """Inline the graph of a trace, and reduce it to inference.

        Raises:
            InputError: The outputs are random, or depend on a state.
        """
        from tensorflow.python.framework import convert_to_constants

        function: Any = traced.function
        self._traced, self._layers = traced, (set(traced.keras_layers) | set(traced.source.variables)) - {""}
        self._replace = convert_to_constants._replace_variables_by_constants
        with captured_stderr():
            self._data = convert_to_constants._FunctionConverterDataInEager(
                func=function, lower_control_flow=False, aggressive_inlining=False
            )
        outputs = [tensor.name for tensor in function.outputs]
        remove_updates(self._data.graph_def, outputs, captured_variables(traced), self._layers)
        self._data._build_node_defs_list()
        self._fresh = True

    def freeze(self) -> Any:
        """Return the GraphDef in float32 with constants for variables, without tests for -0.0, which TFLite lacks."""
        if not self._fresh:
            self._data._build_tensor_data()
        graph_def, _ = self._replace(self._data)
        changed = in_float32(graph_def)
        if changed and self._fresh and not self._traced.has_other_floats:
            layers = sorted({owner_of(name, self._layers) or name for name in changed})
            warn(
                f"{', '.join(layers[:3])}{', ...' if layers[3:] else ''} of the model {self._traced.model.name!r}: "
                "casts to float16, bfloat16 or float64 are left out. The conversion computes in float32"
            )
        self._fresh = False
        return without_negative_zeros(graph_def)


def float_flatbuffer(traced: Trace) -> bytes:
    """Convert the trace to float32, with the variables' current values.

    Fake quantization becomes pairs of QUANTIZE and DEQUANTIZE.
    """
    return _convert(_converter(traced))


def fake_quant_flatbuffer(traced: Trace, input_type: Any, output_type: Any) -> bytes:
    """Convert a quantization-aware trained trace to an integer flatbuffer with TensorFlow's converter.

    Args:
        traced: A trace with fake quantization.
        input_type: The tf.DType of the inputs.
        output_type: The tf.DType of the outputs.
    """
    import tensorflow as tf

    converter = _converter(traced)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = input_type
    converter.inference_output_type = output_type
    return _convert(converter)


def frozen_graph(traced: Trace) -> Any:
    """Return the GraphDef of the trace with the variables' current values. Its nodes give tensors their names."""
    if not isinstance(traced.freezer, _Freezer):
        traced.freezer = _Freezer(traced)
    graph_def = traced.freezer.freeze()
    fold_constant_draws(graph_def)
    if not traced.source.is_keras:
        # The converter looks up where each node was traced, and prints a line for each that was imported.
        for node in graph_def.node:
            node.ClearField("experimental_debug_info")
        _refuse_open_loops(traced, graph_def)
    return graph_def


def _refuse_open_loops(traced: Trace, graph_def: Any) -> None:
    """Raise InputError if a list of tensors, as in the loop of a recurrent layer, has elements of an open shape."""
    from tensorflow.python.framework import tensor_util

    nodes = {node.name: node for node in graph_def.node}
    names = []
    for node in graph_def.node:
        shape = nodes.get(node.input[0].partition(":")[0]) if node.op == "TensorListReserve" else None
        if shape is not None and (
            shape.op != "Const" or (tensor_util.MakeNdarray(shape.attr["value"].tensor) < 0).any()
        ):
            names.append(node.name)
    if names:
        raise InputError(
            f"{traced.model.name}: the SavedModel has a loop over time steps ({names[0]}) whose tensors have no fixed "
            "shape, which TFLite cannot represent. Pass the Keras model: tfq unrolls or fuses its recurrent layers",
            field="model",
            expected="a model without loops of open shapes",
            got=tuple(names),
            limit="saved-model-loop",
        )


def graph_without_weight_fake_quant(traced: Trace) -> tuple[Any, WeightGranularity]:
    """Return the frozen graph without fake quantization of weights, and the granularity that it had."""
    return without_weight_fake_quant(frozen_graph(traced), traced.layer_names)


def flatbuffer_with_ranges(traced: Trace, graph_def: Any) -> tuple[bytes, Ranges]:
    """Convert the graph of `graph_without_weight_fake_quant`; return float32 bytes and the fake-quantized ranges."""
    return without_fake_quant(_convert(_converter(traced, graph_def)))


def flatbuffer_with_rounding(traced: Trace) -> bytes:
    """Convert a quantization-aware trained trace to float32, including its rounding: the reference for its int8 file.

    Weights are constants with their fake-quantized values. Activations pass a QUANTIZE and a DEQUANTIZE wherever the
    trace fake-quantizes them. The float model without fake quantization is not a good reference: it differs from the
    trained function as much as a model quantized after training differs from its float model.
    """
    return _convert(_converter(traced, with_rounded_weights(frozen_graph(traced))))


def _converter(traced: Trace, graph_def: Any = None) -> Any:
    from tensorflow.lite.python import lite

    graph_def = graph_def or frozen_graph(traced)

    class FrozenConverter(lite.TFLiteConverterV2):
        def _freeze_concrete_function(self) -> tuple:
            # Captures follow the inputs: variables, and tensors such as the masks of prune-preserving QAT.
            inputs = traced.function.inputs[: len(traced.input_names)]
            return graph_def, inputs, traced.function.outputs, traced.function

    converter = FrozenConverter([traced.function])
    # The conversion metadata is only the TensorFlow version, and writing it unpacks and packs the whole model.
    converter.exclude_conversion_metadata = True
    converter.allow_custom_ops = traced.has_fused_lstm
    return converter


def _convert(converter: Any) -> bytes:
    from tensorflow.lite.python.convert_phase import ConverterError

    try:
        with stage("converting to TFLite"), _silenced(), captured_stderr() as stderr:
            content = bytes(converter.convert())
    except ConverterError as error:
        raise InputError(
            "TensorFlow's converter rejects the model. Replace the layers whose ops TFLite does not support. It "
            f"says: {_reason(stderr.add_to(str(error)))}",
            field="model",
            limit="no-tflite-op",
        ) from error
    return with_fused_lstms(content) if converter.allow_custom_ops else content


def _reason(message: str) -> str:
    """Return the lines of a converter error that say what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if "TF Select" not in line]  # the advice to use ops that tfq does not accept
    relevant = [line for line in lines if "error:" in line or "not supported" in line or "Custom ops" in line]
    return " ".join((relevant or lines)[:4])


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress the converter's Python warnings and its output on stdout, which do not report problems."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

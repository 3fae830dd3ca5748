# SPDX-License-Identifier: Apache-2.0
"""Float flatbuffer with ranges -> integer flatbuffer, by TensorFlow's two quantizers.

The one file that touches `tensorflow.lite.python.convert.mlir_quantize` and the `QuantizeModel` of
`_pywrap_tensorflow_lite_calibration_wrapper.CalibrationWrapper`, both read in 2.21.0. TensorFlow itself uses the second
one for 16-bit activations: asked for them, the first gives them zero points that the kernels refuse.
"""

import numpy as np

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.conversion.mixed import layer_outputs
from tfq.errors import InputError


def quantize_flatbuffer(model: bytes, config: ConversionConfig) -> bytes:
    """int8 weights, and int8 or (scheme int16x8) int16 activations for `model`, whose tensors carry calibrated ranges.

    config: its scheme, the types of inputs and outputs, the granularity of the weights, and the layers that stay float.
    Raises InputError on what TensorFlow's quantizer refuses, and on a pattern in float_layers that fits no layer.
    """
    quantizer = _to_int16x8 if config.scheme == "int16x8" else _to_int8
    try:
        return quantizer(model, config)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"TensorFlow's quantizer refuses the flatbuffer: {error}") from error


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
            # By the names of their outputs TensorFlow knows the ops, and all that was fused in them.
            denylisted_nodes=layer_outputs(model, "float_layers", config.float_layers) or None,
        )
    )


def _to_int16x8(model: bytes, config: ConversionConfig) -> bytes:
    from tensorflow.lite.python.optimize import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

    _refuse_whole_number_inputs(model)
    if not config.per_channel:
        _refuse_per_tensor_depthwise(model)
    return bytes(
        wrapper.CalibrationWrapper(model, [], []).QuantizeModel(
            _numpy_number(config.input_type),
            _numpy_number(config.output_type),
            True,  # allow_float: what has no 16-bit kernel stays float, and the audit names it
            _numpy_number("int16"),
            _numpy_number("int64"),  # of the biases
            not config.per_channel,
            not (config.per_channel and config.per_channel_dense),
        )
    )


def _refuse_whole_number_inputs(model: bytes) -> None:
    """TensorFlow 2.21 wants a range of token ids as well ("Empty min/max for tensor")."""
    parsed = tflite.read(model)
    inputs = zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True)
    names = [f"{name} ({tensor.dtype})" for name, tensor in inputs if tensor.dtype != "float32"]
    if names:
        raise InputError(
            f"int16x8 of a model with whole numbers for inputs: TensorFlow's quantizer cannot do it: "
            f"{', '.join(names)}: convert to int8 or dynamic"
        )


def _refuse_per_tensor_depthwise(model: bytes) -> None:
    """TensorFlow 2.21 makes a broken flatbuffer of it ("Quantized dimension ... do not match. Got 3 and 0")."""
    graphs = tflite.read(model).subgraphs
    ops = [op for graph in graphs for op in graph.ops if op.name == "DEPTHWISE_CONV_2D"]
    if ops:
        layers = ", ".join(op.keras_layer or f"op #{op.index}" for op in ops[:3])
        raise InputError(
            "int16x8 with one scale for each weight: TensorFlow's quantizer cannot do it for depthwise convolutions "
            f"({layers}): leave per_channel on, or convert to int8"
        )


def _numpy_number(dtype: str) -> int:
    return np.dtype(dtype).num

# SPDX-License-Identifier: Apache-2.0
"""Float flatbuffer with ranges -> int8 flatbuffer, by TensorFlow's MLIR quantizer.

The one file that touches `tensorflow.lite.python.convert.mlir_quantize`, read in 2.21.0.
"""

from tfq.errors import InputError


def quantize_flatbuffer(model: bytes, input_type: str, output_type: str) -> bytes:
    """int8 weights (per channel) and activations for `model`, whose tensors carry calibrated ranges.

    input_type, output_type: "int8", "uint8" or "float32", of the model's own inputs and outputs.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    try:
        return bytes(
            mlir_quantize(
                model,
                input_data_type=tf.dtypes.as_dtype(input_type),
                output_data_type=tf.dtypes.as_dtype(output_type),
            )
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"TensorFlow's quantizer refuses the flatbuffer: {error}") from error

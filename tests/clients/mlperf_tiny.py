# SPDX-License-Identifier: Apache-2.0
"""The four models of MLPerf Tiny and the demo's, in int8: random weights, converted by stock TensorFlow."""

import numpy as np

from tfq import models

NAMES = ("resnet8", "ds_cnn", "mobilenet_v1_025", "fc_autoencoder", "digits_cnn")


def build_int8(name: str) -> bytes:
    """Return a full-int8 flatbuffer of the model. Its ops and shapes are those of a trained one."""
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    model = models.MODELS[name](tf_keras)
    generator = np.random.default_rng(0)
    # Stock TensorFlow quantizes a bias of zeros to int8, which no runtime supports.
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(generator.uniform(-0.1, 0.1, layer.bias.shape))
    samples = generator.uniform(0, 1, (4, 1, *model.input_shape[1:])).astype(np.float32)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()

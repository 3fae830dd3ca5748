# SPDX-License-Identifier: Apache-2.0
"""Build the small flatbuffers next to this file with TensorFlow: python tests/golden/make.py

The models are one small CNN trained on scikit-learn's digits (8x8x1, values 0 to 16), in every scheme that TFLite has,
and a few graphs that no CNN contains. The tests use the committed files, because training again gives other weights on
another machine. Built with tensorflow 2.21.0, tf-keras 2.21.0, keras 3.15.1, tensorflow-model-optimization 0.8.1.
"""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import tfq
from tfq import auditing, tflite

HERE = Path(__file__).parent
BUILTINS, BUILTINS_INT8 = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.TFLITE_BUILTINS_INT8
INT16X8 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8


def build_cnn(kind, name: str = "digits_cnn"):
    """Build (8, 8, 1) -> 10 classes, 2,194 parameters after folding: every kind of op of a small CNN, by layer name."""
    layers = kind.layers
    image = kind.Input((8, 8, 1), name="image")
    x = layers.Rescaling(1 / 16, name="rescale")(image)
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="conv1")(x)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.ReLU(name="relu1")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.BatchNormalization(name="bn_depthwise")(y)
    y = layers.ReLU(name="relu_depthwise")(y)
    y = layers.Conv2D(12, 1, name="pointwise")(y)
    x = layers.Add(name="residual")([x, y])
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.AveragePooling2D(4, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(10, name="logits")(x)
    return kind.Model(image, layers.Softmax(name="probabilities")(x), name=name)


def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8, 1).astype(np.float32), labels


def train(model, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, epochs=epochs, batch_size=32, verbose=0)


def converter(function: Callable, *shapes: tuple[int, ...]) -> tf.lite.TFLiteConverter:
    """Return a converter of the frozen function; every shape is fixed."""
    specs = [tf.TensorSpec(shape, tf.float32, name=f"x{index}") for index, shape in enumerate(shapes)]
    frozen = convert_variables_to_constants_v2(tf.function(function, autograph=False).get_concrete_function(*specs))
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen])


def quantized(
    tflite_converter: tf.lite.TFLiteConverter,
    samples: np.ndarray | None,
    *ops,
    io: tf.DType = tf.int8,
    per_channel: bool = True,
) -> bytes:
    tflite_converter.optimizations = [tf.lite.Optimize.DEFAULT]
    tflite_converter.target_spec.supported_ops = list(ops)
    tflite_converter.inference_input_type = tflite_converter.inference_output_type = io
    # Read in TensorFlow 2.21; the attribute has no public equivalent.
    tflite_converter._experimental_disable_per_channel = not per_channel
    if samples is not None:
        tflite_converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    return tflite_converter.convert()


def save(name: str, content: bytes, signed: bool = True) -> None:
    if signed:
        graph = tflite.read(content).main_subgraph
        inputs = {"image": graph.inputs[0]}
        content = tflite.add_signature(content, inputs, {"probabilities": graph.outputs[0]})
    (HERE / f"{name}.tflite").write_bytes(content)
    print(f"{name:28} {len(content):6} bytes  {auditing.audit_model(content).scheme}")


def save_cnn_schemes(images: np.ndarray, labels: np.ndarray) -> None:
    model = build_cnn(tf_keras)
    train(model, images[:1400], labels[:1400], epochs=15)
    print("float accuracy", model.evaluate(images[1400:], labels[1400:], verbose=0)[1])
    samples = images[:100]

    def cnn() -> tf.lite.TFLiteConverter:
        return converter(lambda x: model(x, training=False), (1, 8, 8, 1))

    save("digits_float32", cnn().convert())
    save("digits_int8", quantized(cnn(), samples, BUILTINS_INT8))
    save("digits_int8_per_tensor", quantized(cnn(), samples, BUILTINS_INT8, per_channel=False))
    save("digits_int8_float_io", quantized(cnn(), samples, BUILTINS_INT8, io=tf.float32))
    save("digits_int8_uint8_io", quantized(cnn(), samples, BUILTINS_INT8, io=tf.uint8))
    save("digits_int16x8", quantized(cnn(), samples, INT16X8, io=tf.int16))
    save("digits_dynamic_range", quantized(cnn(), None, BUILTINS, io=tf.float32))
    half = cnn()
    half.target_spec.supported_types = [tf.float16]
    save("digits_float16", quantized(half, None, BUILTINS, io=tf.float32))
    dynamic = tf.TensorSpec((None, 8, 8, 1), tf.float32, name="x0")
    function = tf.function(lambda x: model(x, training=False), autograph=False).get_concrete_function(dynamic)
    built = tf.lite.TFLiteConverter.from_concrete_functions([convert_variables_to_constants_v2(function)])
    save("digits_int8_dynamic_batch", quantized(built, samples, BUILTINS_INT8))


def save_other_origins(images: np.ndarray, labels: np.ndarray) -> None:
    """Save the same CNN from Keras 3 and from quantization-aware training."""
    model = build_cnn(keras)
    train(model, images[:1400], labels[:1400], epochs=1)
    built = converter(lambda x: model(x, training=False), (1, 8, 8, 1))
    save("digits_int8_keras3", quantized(built, images[:100], BUILTINS_INT8), signed=False)
    import tensorflow_model_optimization as tfmot

    whole = build_cnn(tf_keras)
    inner = tf_keras.Model(whole.get_layer("conv1").input, whole.output, name="digits_cnn")
    aware = tfmot.quantization.keras.quantize_model(inner)
    train(aware, images[:1400] / 16, labels[:1400], epochs=2)
    built = converter(lambda x: aware(x, training=False), (1, 8, 8, 1))
    save("digits_int8_qat", quantized(built, None, BUILTINS), signed=False)


def save_odd_graphs() -> None:
    """Save graphs that no small CNN has: float islands, Flex and custom ops, several subgraphs, index arithmetic."""
    weights = np.random.default_rng(0).normal(size=(3, 3, 1, 4)).astype(np.float32)
    samples = np.random.default_rng(1).random((20, 8, 8, 1), np.float32)

    def conv(x: tf.Tensor, name: str = "conv") -> tf.Tensor:
        with tf.name_scope("net"), tf.name_scope(name):
            return tf.nn.relu(tf.nn.conv2d(x, weights, 1, "SAME"))

    def wave(x: tf.Tensor) -> tf.Tensor:
        x = conv(x)
        with tf.name_scope("net"), tf.name_scope("wave"):
            x = tf.sin(x)
        return tf.reduce_mean(x, [1, 2])

    save("float_island", quantized(converter(wave, (1, 8, 8, 1)), samples, BUILTINS), signed=False)

    flex = converter(lambda x: tf.linalg.det(conv(x)[..., 0]), (1, 8, 8, 1))
    flex.target_spec.supported_ops = [BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    save("flex_op", flex.convert(), signed=False)

    custom = converter(lambda x: tf.linalg.det(conv(x)[..., 0]), (1, 8, 8, 1))
    custom.allow_custom_ops = True
    save("custom_op", custom.convert(), signed=False)

    def branches(x: tf.Tensor) -> tf.Tensor:
        total = tf.reduce_sum(x)
        return tf.cond(total > 3.0, lambda: conv(x, "then"), lambda: 2.0 * conv(x, "other"))

    save("two_branches_float32", converter(branches, (1, 8, 8, 1)).convert(), signed=False)

    def classes(x: tf.Tensor) -> tf.Tensor:
        x = conv(x)
        return tf.argmax(tf.reshape(x, [tf.shape(x)[0], -1]), axis=1)

    index = converter(classes, (1, 8, 8, 1))
    save("argmax_int8", quantized(index, samples, BUILTINS_INT8), signed=False)


def save_schemes_of_tfq(images: np.ndarray) -> None:
    """Save tfq's conversions of digits_float32.tflite in schemes and granularity that TensorFlow does not have."""
    floating = (HERE / "digits_float32.tflite").read_bytes()
    for name, settings in {
        "digits_dynamic_all": {"scheme": "dynamic_range"},
        "digits_weight_only_int8": {"scheme": "weight_only_int8"},
        "digits_weight_only_int8_per_tensor": {"scheme": "weight_only_int8", "per_channel": False},
        "digits_int8_per_tensor_dense": {"per_channel_dense": False},
    }.items():
        config = tfq.ConversionConfig(num_calibration_samples=100, **settings)
        save(name, tfq.convert(floating, images[:100] if config.needs_ranges else None, config), signed=False)


if __name__ == "__main__":
    tf.keras.utils.set_random_seed(0)
    x_all, y_all = digits()
    save_cnn_schemes(x_all, y_all)
    save_other_origins(x_all, y_all)
    save_schemes_of_tfq(x_all)
    save_odd_graphs()

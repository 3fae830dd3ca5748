# SPDX-License-Identifier: Apache-2.0
"""Ranges learned in quantization-aware training are in the flatbuffer, regardless of calibration."""

import numpy as np
import pytest

import tfq
from tfq.compression.qat.qat import untrained_qat_model
from tfq.keras_bridge import import_tf_keras


def test_a_learned_range_holds_on_both_sides_of_a_reshape():
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Flatten(name="flatten")(keras.layers.Conv2D(5, 3, name="logits")(inputs))
    model = keras.Model(inputs, keras.layers.Activation("softmax")(x))
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(32, 4, 4, 3)).astype(np.float32), rng.integers(0, 5, 32)

    def fit(trained, callbacks):
        trained.compile("sgd", "sparse_categorical_crossentropy")
        trained.fit(images, labels, callbacks=callbacks, verbose=0)

    quantized = tfq.qat(model, fit, calibration=images)
    values = {weight.name: weight.numpy() for weight in quantized.get_layer("quant_logits").weights}
    low, high = values["quant_logits/output_min:0"], values["quant_logits/output_max:0"]
    # Three times as wide as in training, so calibration finds other ranges.
    graph = tfq.tflite.read(tfq.convert(quantized, 3 * images)).main_subgraph
    scales = {op.name: graph.tensors[op.outputs[0]].scale for op in graph.ops}
    np.testing.assert_allclose([scales["CONV_2D"], scales["RESHAPE"]], (high - low) / 255, rtol=1e-5)


@pytest.mark.parametrize("with_dataset", [True, False], ids=["dataset", "no dataset"])
@pytest.mark.parametrize("keepdims", [True, False])
def test_learned_ranges_of_a_mean_before_a_reshape_stay(keepdims, with_dataset):
    keras = import_tf_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="wide")(inputs)
    x = keras.layers.GlobalAveragePooling2D(keepdims=keepdims, name="squeeze")(x)
    x = keras.layers.Conv2D(4, 1, name="conv")(keras.layers.Reshape((3, 1, 1), name="reshape")(x))
    model = keras.Model(inputs, keras.layers.Flatten(name="flatten")(x))
    images = np.random.default_rng(0).normal(size=(32, 6, 6, 3)).astype(np.float32)
    quantized = untrained_qat_model(model, images)
    values = {weight.name: weight.numpy() for weight in quantized.get_layer("quant_squeeze").weights}
    low, high = values["quant_squeeze/output_min:0"], values["quant_squeeze/output_max:0"]
    graph = tfq.tflite.read(tfq.convert(quantized, images if with_dataset else None)).main_subgraph
    [mean] = [op for op in graph.ops if op.name == "MEAN"]
    np.testing.assert_allclose(graph.tensors[mean.outputs[0]].scale, (high - low) / 255, rtol=1e-5)
    # The input's range differs: a mean of many pixels is smaller than the largest of them.
    assert graph.tensors[mean.inputs[0]].scale[0] > 1.5 * graph.tensors[mean.outputs[0]].scale[0]


def test_layers_have_user_names_without_fake_quantization_in_the_file():
    keras = import_tf_keras()
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.ReLU(6.0)(keras.layers.Conv2D(4, 3, name="stem")(inputs))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(5, name="head")(x))
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(32, 6, 6, 3)).astype(np.float32), rng.integers(0, 5, 32)

    def fit(trained, callbacks):
        trained.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        trained.fit(images, labels, callbacks=callbacks, verbose=0)

    content = tfq.convert(tfq.qat(model, fit, calibration=images))
    graph = tfq.tflite.read(content).main_subgraph
    assert not any("FakeQuant" in tensor.name for tensor in graph.tensors)
    assert [op.keras_layer for op in graph.ops if op.name in ("CONV_2D", "FULLY_CONNECTED")] == ["stem", "head"]

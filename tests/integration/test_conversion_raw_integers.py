# SPDX-License-Identifier: Apache-2.0
"""Models that read or return raw integers: uint8 pixels, class numbers."""

import keras
import numpy as np
import pytest
from interpreted import answers_of, sqnr_db
from keras import layers, ops

import tfq

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, size=(30, 4, 4, 2)), np.ones((1, 2, 2, 1), int))


def pixel_model(dtype="float32", output="logits"):
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 2), name="image", dtype=dtype)
    values = image if dtype == "float32" else ops.cast(image, "float32")
    values = layers.Conv2D(3, 3, strides=2, activation="relu")(layers.Rescaling(1 / 255)(values))
    logits = layers.Conv2D(4, 1)(values)
    return keras.Model(image, logits if output == "logits" else ops.cast(ops.argmax(logits, axis=-1), output))


def converted(model, data, **settings):
    with pytest.warns(tfq.TfqWarning, match="200"):
        return tfq.convert(model, data, tfq.ConversionConfig(verify=False, **settings))


def stored(tensor):
    return tensor.dtype, tensor.scale, tensor.zero_point


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("uint8", {}),
        ("uint8", {"quantizer": "litert"}),
        ("uint8", {"scheme": "int16x8"}),
        ("int8", {}),
        ("int16", {}),
        ("int32", {}),
    ],
)
def test_integer_inputs_keep_their_type_and_no_op_stays_float(dtype, settings):
    model = pixel_model(dtype)
    data = (PIXELS - 128 if dtype == "int8" else PIXELS).astype(dtype)
    content = converted(model, data, **settings)
    (tensor,) = tfq.tflite.read(content).main_subgraph.input_tensors
    assert stored(tensor) == (dtype, (1.0,), (0,))
    assert not any(item.dtype == "float32" for item in tfq.tflite.read(content).main_subgraph.tensors)
    report = tfq.audit(content, tfq.AuditConfig(require=settings.get("scheme", "full_int8")))
    assert report.ok, report.to_text()
    assert sqnr_db(model.predict(data, verbose=0), answers_of(content, data)) > 25


def test_uint8_inputs_of_bytes_have_scale_one():
    model = pixel_model()
    content = converted(model, PIXELS.astype(np.float32), inference_input_type="uint8")
    (tensor,) = tfq.tflite.read(content).main_subgraph.input_tensors
    assert stored(tensor) == ("uint8", (1.0,), (0,))
    scaled = converted(model, (PIXELS / 2).astype(np.float32), inference_input_type="uint8")
    assert tfq.tflite.read(scaled).main_subgraph.input_tensors[0].scale != (1.0,)


def test_an_explicit_input_type_replaces_the_integers():
    content = converted(pixel_model("uint8"), PIXELS.astype(np.uint8), inference_input_type="int8")
    (tensor,) = tfq.tflite.read(content).main_subgraph.input_tensors
    assert stored(tensor) == ("int8", (1.0,), (-128,))


def test_a_required_type_or_target_refuses_raw_integers():
    content = converted(pixel_model("int32"), PIXELS.astype(np.int32))
    assert not tfq.audit(content, tfq.AuditConfig(require="full_int8", inference_input_type="int8"), execute=False).ok
    assert not tfq.audit(content, tfq.AuditConfig(require="edgetpu"), execute=False).ok


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int64"])
def test_class_maps_need_no_scale(dtype, recwarn):
    model, data = pixel_model(output=dtype), PIXELS.astype(np.float32)
    content = tfq.convert(model, data, tfq.ConversionConfig(num_calibration_samples=30, verify=False))
    assert [str(item.message) for item in recwarn if item.category is tfq.TfqWarning] == []
    assert tfq.audit(content, tfq.AuditConfig(require="full_int8"), execute=False).ok
    got, expected = answers_of(content, data), model.predict(data, verbose=0)
    assert got.dtype == expected.dtype == np.dtype(dtype)
    assert (got == expected).mean() > 0.95
    labels = np.where(np.arange(30)[:, None, None] < 15, got, (got + 1) % 4).astype(dtype)
    assert tfq.evaluate(content, (data, labels), metric="pixel_accuracy").accuracy == 0.5


def test_a_cast_of_floats_to_integers_is_reported():
    values = keras.Input((4,), name="values")
    model = keras.Model(values, ops.cast(layers.Dense(2)(values) * 3, "int32"))
    data = np.random.default_rng(0).normal(size=(20, 4)).cumsum(1).astype(np.float32)
    with pytest.warns(tfq.TfqWarning, match="CAST"):
        tfq.convert(model, data, tfq.ConversionConfig(verify=False))

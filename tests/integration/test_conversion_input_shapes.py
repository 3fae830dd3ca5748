# SPDX-License-Identifier: Apache-2.0
"""Inputs of unknown sizes: the sizes come from conversion.input_shapes or from the data, or the error asks for them."""

import functools

import numpy as np
import pytest
from interpreted import outputs_by_name, sqnr_db
from messages import refused, warned

import tfq
from tfq.keras_bridge import import_keras, import_tf_keras

RANDOM = np.random.default_rng(0)
SMALL, LARGE = (RANDOM.uniform(-1, 1, (12, size, size, 3)).astype("float32") for size in (6, 8))
FLOAT = tfq.ConversionConfig(scheme="float32")
FIXED = tfq.ConversionConfig(scheme="float32", input_shapes=("image=8x8x3",))
LIBRARIES = pytest.mark.parametrize("module", [import_keras, import_tf_keras])
SHAPES = "conversion.input_shapes"


def flexible(module):
    keras = module()
    inputs = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    return keras.Model(inputs, keras.layers.MaxPooling2D(2, name="pool")(x))


@functools.cache
def dynamic_flatbuffer():
    """Return (a .tflite whose batch, height and width are open, its model), converted by TensorFlow alone."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = flexible(import_tf_keras)
    spec = tf.TensorSpec((None, None, None, 3), tf.float32, name="image")
    function = tf.function(lambda image: model(image, training=False)).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(function)
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert(), model


def input_shape(content):
    (spec,) = tfq.data.input_specs(content)
    return spec.shape


@LIBRARIES
def test_input_shapes_fix_the_sizes_of_a_functional_model(module):
    model = flexible(module)
    content = tfq.convert(model, None, FIXED)
    assert input_shape(content) == (1, 8, 8, 3)
    (output,) = outputs_by_name(content, {"image": LARGE}).values()
    np.testing.assert_allclose(output, np.asarray(model(LARGE)), atol=1e-5)


@LIBRARIES
def test_data_of_one_size_fixes_the_sizes_and_says_so(module):
    model = flexible(module)
    with warned("image=6x6x3"):
        content = tfq.convert(model, SMALL)
    (output,) = outputs_by_name(content, {"image": SMALL}).values()
    assert input_shape(content) == (1, 6, 6, 3)
    assert sqnr_db(np.asarray(model(SMALL)), output) > 25


def test_unknown_sizes_without_data_are_refused_with_the_setting():
    with refused(tfq.InputError, field=SHAPES, expected="a fixed shape", word=f"{SHAPES}=image=NxNx3"):
        tfq.convert(flexible(import_keras), None, FLOAT)


def test_data_of_different_sizes_is_refused():
    def mixed():
        return ([images[:1]] for images in (SMALL, LARGE))

    with refused(tfq.InputError, field=SHAPES, got=((6, 6, 3), (8, 8, 3))):
        tfq.convert(flexible(import_keras), mixed)


@pytest.mark.parametrize(
    ("item", "got"), [("image=8x8x4", (8, 8, 4)), ("image=8x8", (8, 8)), ("picture=8x8x3", "picture")]
)
def test_sizes_that_contradict_the_model_are_refused(item, got):
    config = tfq.ConversionConfig(scheme="float32", input_shapes=(item,))
    with refused(tfq.InputError, field=SHAPES, got=got):
        tfq.convert(flexible(import_keras), None, config)


def test_another_dtype_than_that_of_the_model_is_refused():
    config = tfq.ConversionConfig(scheme="float32", input_shapes=("image=8x8x3:int32",))
    with refused(tfq.InputError, field=SHAPES, expected="float32", got="int32"):
        tfq.convert(flexible(import_keras), None, config)


def test_a_generator_that_gave_the_sizes_still_calibrates():
    generator = ([SMALL[index : index + 1]] for index in range(12))
    with warned("image=6x6x3"):
        content = tfq.convert(flexible(import_keras), generator)
    assert tfq.audit(content).scheme == "full_int8"


def test_a_trace_keeps_its_sizes():
    traced = tfq.trace(flexible(import_keras), input_shapes=("image=8x8x3",))
    assert tfq.convert(traced, None, FIXED) == tfq.convert(traced, None, FLOAT)
    other = tfq.ConversionConfig(scheme="float32", input_shapes=("image=6x6x3",))
    with refused(tfq.InputError, field=SHAPES, expected=(8, 8, 3), got=(6, 6, 3)):
        tfq.convert(traced, None, other)


def test_a_flatbuffer_gets_the_sizes_of_input_shapes_in_all_tensors():
    dynamic, model = dynamic_flatbuffer()
    content = tfq.convert(dynamic, None, FIXED)
    graph = tfq.tflite.read(content).main_subgraph
    assert all(tensor.shape == tensor.shape_signature for tensor in graph.tensors)
    assert [tensor.shape for tensor in graph.output_tensors] == [(1, 4, 4, 4)]
    (output,) = outputs_by_name(content, {"image": LARGE}).values()
    np.testing.assert_allclose(output, np.asarray(model(LARGE)), atol=1e-5)


def test_a_flatbuffer_gets_the_size_of_the_data_or_stays_dynamic():
    dynamic, model = dynamic_flatbuffer()
    with warned("image=6x6x3"):
        content = tfq.convert(dynamic, SMALL)
    assert input_shape(content) == (1, 6, 6, 3)
    (output,) = outputs_by_name(content, {"image": SMALL}).values()
    assert sqnr_db(np.asarray(model(SMALL)), output) > 25
    assert input_shape(tfq.convert(dynamic, None, FLOAT)) == (-1, -1, -1, 3)
    mixed = tfq.convert(dynamic, lambda: ([images[:1]] for images in (SMALL, LARGE)))
    assert input_shape(mixed) == (-1, -1, -1, 3)


def test_sizes_that_a_flatbuffer_cannot_run_are_refused():
    dynamic, _ = dynamic_flatbuffer()
    config = tfq.ConversionConfig(scheme="float32", input_shapes=("image=8x8x4",))
    with refused(tfq.InputError, field=SHAPES):
        tfq.convert(dynamic, None, config)


@pytest.mark.parametrize("item", ["image", "image=", "image=8x", "image=-1", "image=0x3", "image=8x8:complex64", "=8"])
def test_malformed_input_shapes_are_refused(item):
    with refused(tfq.InputError, field=SHAPES):
        tfq.ConversionConfig(input_shapes=(item,))


def test_input_shapes_with_and_without_a_name_cannot_be_mixed():
    for items in (("8x8", "extra=3"), ("a=3", "a=4")):
        with refused(tfq.InputError, field=SHAPES):
            tfq.ConversionConfig(input_shapes=items)

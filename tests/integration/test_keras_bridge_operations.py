# SPDX-License-Identifier: Apache-2.0
"""Operations of Keras 3's functional graphs as tf_keras layers: same function, cloned, reloaded, and in int8."""

import numpy as np
import pytest
from keras_operations import FLOAT, INT8, NO_TFLITE, SHAPE, model_of, rebuilt
from messages import refused, warned

import tfq
from tfq.errors import InputError
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot
from tfq.keras_bridge.operations.keras_operation import keras_operation_class
from tfq.keras_bridge.operations.translate import translate_operation
from tfq.keras_bridge.untranslatable import Untranslatable

CASES = {**INT8, **FLOAT, **NO_TFLITE}
# TensorFlow's quantizer is unreliable for these among many others, so each is converted alone.
SPLITS = ("split", "split_at", "unstack")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0.1, 1.9, (4, *SHAPE)).astype("float32")


@pytest.fixture(scope="module")
def twins():
    model = model_of(CASES)
    return model, *rebuilt(model)


def assert_same(model, twin, images, atol=2e-6):
    for name, expected, came in zip(CASES, model(images), twin(images), strict=True):
        expected, came = np.asarray(expected), np.asarray(came)
        assert expected.dtype == came.dtype, name
        np.testing.assert_allclose(came, expected, rtol=1e-5, atol=atol, err_msg=name)


def test_every_operation_becomes_the_expected_layer_and_computes_the_same(twins, images):
    model, twin, kinds = twins
    assert dict(zip(CASES, kinds, strict=True)) == {name: kind for name, (_, kind) in CASES.items()}
    assert_same(model, twin, images)


def test_the_comparison_of_outputs_would_see_the_other_hard_sigmoid(images):
    tf_keras, keras = import_tf_keras(), import_keras()
    x = keras.ops.convert_to_tensor(images)
    theirs, ours = tf_keras.activations.hard_sigmoid(x), keras.ops.hard_sigmoid(x)
    assert np.abs(np.asarray(theirs) - np.asarray(ours)).max() > 0.05


def test_a_clone_and_a_reloaded_h5_compute_the_same(twins, images, tmp_path):
    model, twin, _ = twins
    tf_keras = import_tf_keras()
    assert_same(model, tf_keras.models.clone_model(twin), images)
    with warned("HDF5", UserWarning):
        twin.save(tmp_path / "m.h5")
    assert_same(model, tfq.load_model(tmp_path / "m.h5"), images)


def test_operations_with_int8_kernels_convert_to_full_int8(images):
    together = {name: case for name, case in INT8.items() if name not in SPLITS}
    for group in (together, *({name: INT8[name]} for name in SPLITS)):
        # On four images of noise, single slices of a few outputs collapse, and finding causes and remedies takes long.
        converted = tfq.convert(rebuilt(model_of(group))[0], {"image": images}, tfq.ConversionConfig(verify=False))
        report = tfq.audit(converted)
        assert report.scheme == "full_int8" and report.ok, [finding.message for finding in report.failures]


def test_operations_without_int8_kernels_are_found_by_the_audit(images):
    report = tfq.audit(tfq.convert(rebuilt(model_of(FLOAT))[0], {"image": images}))
    floating = {name for name in report.op_types if "float32" in str(report.op_types[name])}
    expected = "CEIL COS CUMSUM FLOOR FLOOR_MOD POW ROUND SIGN SIN"
    assert not report.ok and floating >= set(expected.split())


@pytest.mark.parametrize(("name", "op"), [("erf", "Erf"), ("resize_bicubic", "ResizeBicubic")])
def test_the_converter_refuses_operations_without_tflite_op_by_name(images, name, op):
    with refused(InputError, field="model", word=f"tf.{op}"):
        tfq.convert(rebuilt(model_of({name: NO_TFLITE[name]}))[0], {"image": images})


def test_tfmot_clones_a_graph_with_operations_of_several_outputs(images):
    tf_keras, quantization = import_tf_keras(), import_tfmot().quantization.keras
    image = tf_keras.Input(SHAPE, name="image")
    keras = import_keras()
    halves = keras.ops.split(keras.Input(SHAPE), 2, axis=-1)[0]._keras_history.operation
    left, right = translate_operation(halves, (image,), {}, "halves")
    x = tf_keras.layers.Dense(3, name="head")(tf_keras.layers.Subtract(name="less")([left, right]))
    model = tf_keras.Model(image, x)

    def annotated(layer):
        is_dense = isinstance(layer, tf_keras.layers.Dense)
        return quantization.quantize_annotate_layer(layer) if is_dense else layer

    with quantization.quantize_scope():
        whole = quantization.quantize_apply(tf_keras.models.clone_model(model, clone_function=annotated))
    assert [layer.name for layer in whole.layers][-1] == "quant_head"
    assert whole.get_layer("halves").operation == "numpy.Split"


def refusal_of(operation, *args):
    with pytest.raises(Untranslatable) as caught:
        translate_operation(operation, args, {}, "refused")
    return caught.value.reason


def test_invalid_data_is_refused_with_advice():
    keras, tf_keras = import_keras(), import_tf_keras()
    x = tf_keras.Input((4,), name="x")
    add = operation_of(keras.ops.add, np.ones(4, "float32"))
    assert "outside" in refusal_of(add, x, keras.Variable(np.ones(4)))
    assert "layer" in refusal_of(add, x, np.sum)
    clip = operation_of(keras.ops.clip, 0.0, 1.0)
    clip.x_max = x
    assert "tensor" in refusal_of(clip, x)
    mapped = keras.ops.map(lambda row: row * 2, keras.Input((4,)))
    assert "Python" in refusal_of(mapped._keras_history.operation, None, x)

    class Mine(keras.Operation):
        def call(self, inputs):
            return inputs

    assert "BridgedLayer" in refusal_of(Mine(), x)


def operation_of(function, *args):
    """Return the operation that a function of keras.ops adds to a graph, with `args` after a symbolic tensor."""
    keras = import_keras()
    return function(keras.Input((4,)), *args)._keras_history.operation


def test_a_mask_ends_at_an_operation_as_it_does_in_keras_3():
    keras, tf_keras = import_keras(), import_tf_keras()
    words = tf_keras.layers.Embedding(5, 4, mask_zero=True)(tf_keras.Input((3,), name="words"))
    assert getattr(words, "_keras_mask", None) is not None
    for function in (keras.ops.relu, keras.ops.exp, keras.ops.negative):
        built = translate_operation(operation_of(function), (words,), {}, "made_" + function.__name__)
        assert getattr(built, "_keras_mask", None) is None
    assert type(built.node.layer).__name__ == "KerasOperation"


@pytest.mark.parametrize("kind", ["core.Map", "numpy.np", "operation.Operation", "../os.system", "numpy.backend", 7])
def test_a_config_may_name_only_keras_operations(kind):
    with refused(InputError, field="model", expected="an operation of Keras 3", got=kind):
        keras_operation_class()(kind, {"dict": []}, {"tuple": []})

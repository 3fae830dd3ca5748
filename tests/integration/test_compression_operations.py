# SPDX-License-Identifier: Apache-2.0
"""Operations of Keras 3 in quantization-aware training: the flatbuffer computes what the QAT model does."""

import numpy as np
import pytest
from keras_operations import INT8, SHAPE
from messages import refused

import tfq
from tfq.backends import LocalBackend, RunRequest
from tfq.compression.training import deterministic
from tfq.conversion.fake_quant import with_same_scales, with_selection_ranges
from tfq.keras_bridge import import_keras, import_tf_keras, to_tf_keras

# One scale for inputs and outputs in the flatbuffer; constants next to a tensor; scales that TFLite fixes.
ONE_SCALE = (
    *("minimum_constant", "maximum_scalar", "clip", "clip_from_zero", "where", "pad_value", "pad_reflect", "stack"),
    *("concatenate_twice", "roll", "flip", "rot90", "take", "max", "min", "resize", "depth_to_space", "space_to_depth"),
    *("log_softmax", "softmax_axis", "argmax", "argmin", "one_hot"),
)


FLOAT_ENDS = {"inference_input_type": "float32", "inference_output_type": "float32"}


def ran(model, x):
    return LocalBackend().assess(RunRequest(model=model, inputs=(x,))).outputs[0]


def images():
    return np.random.default_rng(0).uniform(0.1, 1.9, (64, *SHAPE)).astype("float32")


def trained(operations, *, read_by_others):
    """Train a QAT model with an output for each operation, and another that reads the operation's input."""
    keras, tf_keras, x = import_keras(), import_tf_keras(), images()
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    outputs, losses = [], []
    for name, operation in operations.items():
        provided = keras.layers.Conv2D(4, 3, padding="same", name=f"before_{name}")(inputs)
        if read_by_others:
            outputs.append(keras.layers.Conv2D(2, 1, name=f"beside_{name}")(provided))
        outputs.append(operation(keras.ops, provided))
        losses += ["mse"] * read_by_others + ["mse" if outputs[-1].dtype == "float32" else None]
    bridged = to_tf_keras(keras.Model(inputs, outputs)).model
    expected = [np.zeros((len(x), *output.shape[1:]), "float32") for output in outputs]

    def fit(model, callbacks):
        # Two steps take less time eagerly than the tracing of so large a graph.
        model.compile(tf_keras.optimizers.SGD(1e-3), losses, run_eagerly=True)
        model.fit(x, expected, epochs=1, batch_size=32, callbacks=callbacks, verbose=0)

    with deterministic(0):
        return tfq.qat(bridged, fit, calibration=x)


@pytest.mark.parametrize("read_by_others", [True, False], ids=["also_read_by_others", "read_by_it_alone"])
def test_operations_that_keep_the_input_scale_train_with_its_range(read_by_others):
    model, x = trained({name: INT8[name][0] for name in ONE_SCALE}, read_by_others=read_by_others), images()
    for samples in (None, x):
        contents = tfq.convert(model, samples)
        report = tfq.audit(contents, tfq.AuditConfig(require="full_int8"))
        assert report.ok, report.to_text()
        parity = tfq.qat_parity(model, contents, x)
        assert parity.first_departure is None, parity.to_text()
        noise = {output.name: output.sqnr_db for output in parity.outputs}
        assert min(noise.values()) > 30, noise


def test_conditions_inside_an_operation_are_left_out_of_parity():
    model, x = trained({"logsumexp": INT8["logsumexp"][0]}, read_by_others=True), images()
    parity = tfq.qat_parity(model, tfq.convert(model, x, tfq.ConversionConfig(verify=False)), x)
    assert parity.first_departure is None, parity.to_text()
    assert any("IsFinite" in tensor for tensor in parity.skipped)


def test_parity_reports_operations_with_separate_ranges(monkeypatch):
    monkeypatch.setattr("tfq.compression.qat.ranges.shares_range", lambda layer: False)
    model, x = trained({"below": lambda ops, x: ops.minimum(x, 0.0)}, read_by_others=True), images()
    parity = tfq.qat_parity(model, tfq.convert(model, config=tfq.ConversionConfig(verify=False)), x)
    assert parity.first_departure.op == "MINIMUM", parity.to_text()


def test_a_value_read_through_two_choices_keeps_its_range():
    keras = import_keras()
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, [keras.ops.clip(keras.ops.tanh(inputs), -0.25, 0.5), keras.ops.tanh(inputs)])
    contents = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    [graph] = tfq.tflite.read(contents).subgraphs
    chain = [op for op in graph.ops if op.name in ("MINIMUM", "MAXIMUM")]
    assert len(chain) == 2
    tanh, inner, outer = chain[0].inputs[0], chain[0].outputs[0], chain[1].outputs[0]
    calibrated = {(0, tanh): (-1.0, 1.0), (0, inner): (-1.0, 0.5), (0, outer): (-0.25, 0.5)}
    assert set(with_selection_ranges(contents, calibrated, shared=False).values()) == {(-1.0, 1.0)}
    known = with_same_scales(contents, {(0, tanh): (-1.0, 1.0)})
    assert known[0, inner] == known[0, outer] == (-1.0, 1.0)


def test_the_range_of_a_choice_covers_its_outputs():
    ops = import_keras().ops
    inputs = import_keras().Input(SHAPE)
    x = ops.tanh(inputs)
    chosen = [ops.maximum(x, 5.0), ops.minimum(x, -3.0), ops.minimum(x, 9.0), ops.where(inputs > 0.0, x, 7.0)]
    contents = tfq.convert(import_keras().Model(inputs, chosen), config=tfq.ConversionConfig(scheme="float32"))
    graph = tfq.tflite.read(contents).main_subgraph
    [tanh] = (op.outputs[0] for op in graph.ops if op.name == "TANH")
    known = with_same_scales(contents, {(0, tanh): (-1.0, 1.0)})
    assert [known[0, index] for index in graph.outputs] == [(-1.0, 5.0), (-3.0, 1.0), (-1.0, 1.0), (-1.0, 7.0)]


def segmentation(keras):
    inputs = keras.Input((8, 8, 3))
    logits = keras.layers.Conv2D(4, 3, padding="same", name="logits")(inputs)
    return keras.Model(inputs, keras.ops.argmax(logits, axis=-1)), keras.Model(inputs, logits)


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_a_converted_argmax_model_outputs_the_classes_of_its_logits(scheme):
    keras = import_keras()
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(50, 8, 8, 3)).astype("float32")
    classes, logits = segmentation(keras)
    samples, settings = (None, {}) if scheme == "float32" else (x, FLOAT_ENDS)
    config = tfq.ConversionConfig(scheme=scheme, **settings)
    result, provided = (ran(tfq.convert(model, samples, config), x) for model in (classes, logits))
    np.testing.assert_array_equal(result, provided.argmax(axis=-1))


def test_another_choice_by_a_sign_bit_is_refused_by_name():
    keras = import_keras()
    inputs = keras.Input((4,))
    is_negative_zero = keras.ops.logical_and(keras.ops.equal(inputs, 0.0), keras.ops.signbit(inputs))
    model = keras.Model(inputs, keras.ops.where(is_negative_zero, -7.0, inputs))
    with refused(tfq.InputError, word="BitwiseAnd"):
        tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))


def test_a_one_hot_is_zeros_and_ones_in_int8():
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    hot = keras.ops.one_hot(keras.ops.argmax(keras.layers.Conv2D(3, 1)(inputs), axis=-1), 3)
    contents = tfq.convert(keras.Model(inputs, hot), images(), tfq.ConversionConfig(**FLOAT_ENDS))
    assert tfq.audit(contents, tfq.AuditConfig(require="full_int8", **FLOAT_ENDS)).ok
    values = ran(contents, images())
    np.testing.assert_allclose(np.sort(values, axis=-1), np.broadcast_to([0, 0, 1], values.shape), atol=1e-3)

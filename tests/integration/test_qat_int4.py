# SPDX-License-Identifier: Apache-2.0
"""QAT with 4-bit weights: LSQ's gradient by hand, the trained grid in the flatbuffer, and its outputs."""

import json

import numpy as np
import pytest
from messages import refused
from small_models import fit_briefly, fit_for, noise, small_model

import tfq
from tfq import tflite
from tfq.compression import qat_model
from tfq.compression.qat.weight_steps import int4_weights, lsq_quantize
from tfq.config import AuditConfig, ConversionConfig, QATConfig
from tfq.conversion import convert_with_record
from tfq.conversion.quantize import with_trained_int4
from tfq.errors import InputError
from tfq.keras_bridge import import_tf_keras

ALL = QATConfig(range_estimator="lsq", int4_layers=("*",))


def steps_of(model):
    return [variables["max_var"].numpy() / 7 for *_, variables in int4_weights(model)]


def test_the_gradient_of_a_step_is_that_of_learned_step_sizes():
    import tensorflow as tf

    rows = np.array([[-3.0, 0.2], [-0.31, 0.9], [0.52, -0.4], [1.9, 5.0]], np.float32)
    steps = tf.Variable([0.25, 0.5])
    with tf.GradientTape(persistent=True) as tape:
        values = tf.Variable(rows)
        rounded = lsq_quantize(values, steps)
    quantized = np.clip(np.rint(rows / steps.numpy()), -7, 7)
    np.testing.assert_allclose(rounded, quantized * steps.numpy(), rtol=1e-6)
    inside = np.abs(rows / steps.numpy()) < 7
    to_steps = np.where(inside, quantized - rows / steps.numpy(), quantized).sum(axis=0) / np.sqrt(7 * 4)
    np.testing.assert_allclose(tape.gradient(rounded, steps), to_steps, rtol=1e-4)
    np.testing.assert_array_equal(tape.gradient(rounded, values), inside)


def test_trained_steps_are_the_scales_of_the_int4_file_which_computes_the_same():
    model, data = small_model(), noise(small_model(), n=64)
    before = steps_of(tfq.compression.untrained_qat_model(model, data, ALL))
    trained = qat_model(model, fit_for(3), ALL, calibration=data)
    after = steps_of(trained)
    assert all((one != other).any() for one, other in zip(before, after, strict=True))
    assert not any("learned" in weight.name for weight in trained.weights)
    content = tfq.convert(trained)
    graph = tflite.read(content).main_subgraph
    stored = [tensor for tensor in graph.tensors if tensor.dtype == "int4"]
    assert len(stored) == 3 and tfq.audit(content).scheme == "int4_weights"
    # The dense layer has no BatchNormalization, so its scales are the steps, or multiples if few values are used.
    (dense,) = (tensor for tensor in stored if len(tensor.shape) == 2)
    multiples = np.array(dense.scale) / after[-1]
    np.testing.assert_allclose(multiples, np.rint(multiples), rtol=1e-3)
    parity = tfq.compression.qat_parity(trained, content, data)
    assert not parity.missed(), parity.missed()
    assert not tfq.audit(content, AuditConfig(require="full_int8")).ok
    assert tfq.audit(content, AuditConfig().for_conversion(ConversionConfig(), ("*",))).ok


def test_only_the_named_layers_have_four_bits_and_training_continues_with_them():
    model, data = small_model(), noise(small_model(), n=64)
    config = QATConfig(int4_layers=("depthwise",))
    trained = qat_model(model, fit_for(1), config, calibration=data)
    again = qat_model(trained, fit_for(1))
    for result in (trained, again):
        graph = tflite.read(tfq.convert(result, data)).main_subgraph
        narrow = [op.name for op in graph.ops if "int4" in {graph.tensors[index].dtype for index in op.inputs}]
        assert narrow == ["DEPTHWISE_CONV_2D"]
    with refused(InputError, field="compression.qat.int4_layers", got="depthwse"):
        qat_model(model, fit_for(1), QATConfig(int4_layers=("depthwse",)), calibration=data)
    floating = tfq.convert(model, config=ConversionConfig(scheme="float32"))
    with refused(InputError, field="model", expected=("depthwise",), got=(), limit="int4-training"):
        with_trained_int4(tfq.convert(model, data), floating, ("depthwise",))


def test_an_export_in_training_and_a_conversion_name_the_trained_layers(tmp_path):
    model = small_model()
    config, path = QATConfig(int4_layers=("depthwise",)), tmp_path / "best.tflite"

    def fit(trained, callbacks):
        fit_briefly(trained, [*callbacks, tfq.TFLiteExport(path, monitor="loss", mode="min")])

    trained = qat_model(model, fit, config, calibration=noise(model))
    audit = json.loads((tmp_path / "best.tflite.json").read_text())["audit"]
    assert audit["ok"] and not [item for item in audit["findings"] if item["kind"].startswith("unused")]
    for data in (None, noise(model)):
        result = convert_with_record(trained, data)
        assert result.trained_int4 == ("depthwise",)
        narrow = [tensor for tensor in tflite.read(result.content).main_subgraph.tensors if tensor.dtype == "int4"]
        assert len(narrow) == 1
    assert convert_with_record(model, noise(model)).trained_int4 == ()


@pytest.mark.parametrize("patterns", [("two",), ("!one", "!three")])
def test_only_trained_layers_become_int4_although_others_fit_four_bits_and_the_audit_agrees(patterns):
    keras = import_tf_keras()
    layers = [keras.layers.Dense(8, input_shape=(1,), name="one"), keras.layers.Dense(8, name="two")]
    model = keras.Sequential([*layers, keras.layers.Dense(3, name="three")])
    data = noise(model)
    config = QATConfig(int4_layers=patterns)
    content = tfq.convert(tfq.compression.untrained_qat_model(model, data, config), data)
    graph = tflite.read(content).main_subgraph
    types = {op.keras_layer: graph.tensors[op.inputs[1]].dtype for op in graph.ops if op.name == "FULLY_CONNECTED"}
    # A weight alone in its channel is a multiple of a step, so "one" fits four bits as well.
    assert types == {"one": "int8", "two": "int4", "three": "int8"}
    report = tfq.audit(content, AuditConfig().for_conversion(ConversionConfig(), config.int4_layers))
    assert report.ok and [finding.kind for finding in report.findings if finding.kind.startswith("unused")] == []

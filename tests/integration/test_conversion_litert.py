# SPDX-License-Identifier: Apache-2.0
"""litert-quantizer instead of TensorFlow's quantizer, and layers with a separate scheme by it."""

import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter
from messages import refused, warned
from sklearn.datasets import load_digits

import tfq
from tfq import tflite
from tfq.auditing import audit_model, float_source
from tfq.backends import LocalBackend, RunRequest
from tfq.conversion import convert_with_record
from tfq.isolation import trust

FLOATING = (Path(__file__).resolve().parent.parent / "golden" / "digits_float32.tflite").read_bytes()
IMAGES = load_digits().images[..., None].astype(np.float32)


def config(**values) -> tfq.ConversionConfig:
    return tfq.ConversionConfig(num_calibration_samples=64, **{"quantizer": "litert", **values})


def classes(model: bytes) -> np.ndarray:
    tensor = tflite.read(model).main_subgraph.input_tensors[0]
    inputs = IMAGES
    if tensor.dtype != "float32":
        scale, zero = tensor.scale[0], tensor.zero_point[0]
        limits = np.iinfo(tensor.dtype)
        inputs = np.clip(np.rint(IMAGES / scale) + zero, limits.min, limits.max).astype(tensor.dtype)
    (output,) = LocalBackend().assess(RunRequest(model=model, inputs=(inputs.astype(tensor.dtype),))).outputs
    return output.argmax(axis=1)


def types_of(model: bytes) -> dict[str, tuple[str, str]]:
    """Return {layer: the types of its weights and outputs}."""
    graph = tflite.read(model).main_subgraph
    return {
        op.keras_layer: (graph.tensors[op.inputs[1]].dtype, graph.tensors[op.outputs[0]].dtype)
        for op in graph.ops
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    }


def test_both_backends_take_the_same_ranges_and_answer_alike():
    theirs = convert_with_record(FLOATING, IMAGES, config())
    ours = convert_with_record(FLOATING, IMAGES, config(quantizer="tensorflow"))
    assert theirs.ranges == ours.ranges
    assert tfq.audit(theirs.content, tfq.AuditConfig(require="full_int8")).ok
    scales = [
        {tensor.name: tensor.scale for tensor in tflite.read(item.content).main_subgraph.tensors if tensor.scale}
        for item in (theirs, ours)
    ]
    for name in scales[0].keys() & scales[1].keys():
        np.testing.assert_allclose(scales[0][name], scales[1][name], rtol=2e-2, err_msg=name)
    assert (classes(theirs.content) == classes(ours.content)).mean() > 0.99


@pytest.mark.parametrize("techniques", [("cross_layer_equalization",), ("gptq", "bias_correction")])
def test_techniques_work_on_what_it_makes(techniques):
    result = convert_with_record(FLOATING, IMAGES, config(techniques=techniques))
    assert set(result.techniques) == set(techniques)
    assert tfq.audit(result.content, tfq.AuditConfig(require="full_int8")).ok
    assert (classes(result.content) == classes(FLOATING)).mean() > 0.98


@pytest.mark.parametrize(
    ("asked", "types"),
    [
        ({}, ("int8", "int8")),
        ({"inference_input_type": "uint8", "inference_output_type": "uint8"}, ("uint8", "uint8")),
        ({"inference_input_type": "float32", "inference_output_type": "float32"}, ("float32", "float32")),
        ({"inference_output_type": "float32"}, ("int8", "float32")),
        ({"scheme": "int16x8"}, ("int16", "int16")),
        ({"scheme": "int16x8", "inference_input_type": "float32"}, ("float32", "int16")),
    ],
)
def test_inputs_and_outputs_have_the_types_that_were_asked_for(asked, types):
    result = tfq.convert(FLOATING, IMAGES, config(**asked))
    graph = tflite.read(result).main_subgraph
    assert (graph.input_tensors[0].dtype, graph.output_tensors[0].dtype) == types
    require = "int16x8" if asked.get("scheme") else "full_int8"
    borders = {key: value for key, value in asked.items() if key != "scheme"}
    assert tfq.audit(result, tfq.AuditConfig(require=require, **borders)).ok
    assert (classes(result) == classes(FLOATING)).mean() > 0.98


def test_one_scale_for_weights_as_asked_for():
    def per_channel(**values):
        result = tfq.convert(FLOATING, IMAGES, config(**values))
        graph = tflite.read(result).main_subgraph
        weights = {
            op.keras_layer: graph.tensors[op.inputs[1]] for op in graph.ops if op.keras_layer in types_of(result)
        }
        return {name for name, tensor in weights.items() if len(tensor.scale) > 1}

    everything = {"conv1", "depthwise", "pointwise", "conv2", "logits"}
    assert per_channel() == everything
    assert per_channel(per_channel=False) == set()
    assert per_channel(per_channel_dense=False) == everything - {"logits"}
    assert per_channel(per_tensor_layers=("conv?",)) == {"depthwise", "pointwise", "logits"}


def test_layers_have_the_requested_schemes_and_the_audit_accepts_only_these():
    mixed = config(int16_layers=("conv2",), float_layers=("logits",), int4_layers=("pointwise",))
    result = tfq.convert(FLOATING, IMAGES, mixed)
    assert types_of(result) == {
        "conv1": ("int8", "int8"),
        "depthwise": ("int8", "int8"),
        "pointwise": ("int4", "int8"),
        "conv2": ("int8", "int16"),
        "logits": ("float32", "float32"),
    }
    assert (classes(result) == classes(FLOATING)).mean() > 0.95
    lists = {"allow_int16": ("conv2",), "allow_float": ("logits",), "allow_int4": ("pointwise",)}
    exact = tfq.audit(result, tfq.AuditConfig(require="full_int8", **lists))
    assert exact.ok, exact.to_text()
    assert not any(finding.kind.startswith("unused") for finding in exact.findings)
    for left_out in lists:
        rest = {name: patterns for name, patterns in lists.items() if name != left_out}
        assert not tfq.audit(result, tfq.AuditConfig(require="full_int8", **rest)).ok, left_out
    wrong = {**lists, "allow_int16": ("pointwise",), "allow_int4": ("conv2",)}
    assert not tfq.audit(result, tfq.AuditConfig(require="full_int8", **wrong)).ok


@pytest.mark.parametrize(
    ("values", "field", "got"),
    [
        ({"int16_layers": ("cnv2",)}, "int16_layers", "cnv2"),
        ({"per_tensor_layers": ("cnv2",)}, "per_tensor_layers", "cnv2"),
        ({"int16_layers": ("conv2",), "scheme": "int16x8"}, "int16_layers", ("conv2",)),
        ({"int16_layers": ("conv2",), "quantizer": "tensorflow"}, "quantizer", "tensorflow"),
        ({"per_tensor_layers": ("conv2",), "quantizer": "tensorflow"}, "quantizer", "tensorflow"),
        ({"scheme": "float16"}, "scheme", "float16"),
    ],
)
def test_what_contradicts_itself_is_refused(values, field, got):
    with refused(tfq.InputError, field=f"conversion.{field}", got=got):
        tfq.convert(FLOATING, IMAGES, config(**values))


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_quantizer", None)
    trust(FLOATING)  # otherwise a child quantizes it, which has the package
    with refused(tfq.InputError, field="conversion.quantizer", word="'tfq[litert]'"):
        tfq.convert(FLOATING, IMAGES, config())


def with_old_operator_codes(content: bytes) -> bytes:
    """Return the file as converters wrote it before schema 3a, without using tfq's editing."""
    model = generated.ModelT.InitFromObj(generated.Model.GetRootAs(content))
    for code in model.operatorCodes:
        code.deprecatedBuiltinCode, code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode), 0
    builder = flatbuffers.Builder(2 * len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("quantizer", ["tensorflow", "litert"])
def test_files_of_old_and_new_schema_are_converted_equally(quantizer):
    old = with_old_operator_codes(FLOATING)
    built = tfq.convert(old, IMAGES, config(quantizer=quantizer))
    assert tfq.audit(built, tfq.AuditConfig(require="full_int8")).ok
    np.testing.assert_array_equal(classes(built), classes(tfq.convert(FLOATING, IMAGES, config(quantizer=quantizer))))


def test_old_files_break_without_operator_codes_in_both_fields(monkeypatch):
    monkeypatch.setattr("tfq.tflite.edit.normalize_operator_codes", lambda model: None)
    built = tfq.convert(with_old_operator_codes(FLOATING), IMAGES, config())
    findings = {finding.kind for finding in tfq.audit(built).failures}
    assert findings & {"bias_type", "weight_zero_point", "bias_scale"}
    with pytest.raises(RuntimeError):
        Interpreter(model_content=built).allocate_tensors()


def test_weights_with_a_scale_for_each_block_become_float32():
    import tensorflow as tf
    from litert_quantizer import qtyping, quantizer

    generator = np.random.default_rng(0)
    # The second block has 50 times larger values, so that swapped scales would show.
    kernel = np.repeat([1.0, 50.0], 32)[:, None] * generator.normal(size=(64, 4))
    dense = tf.function(lambda x: tf.matmul(x, kernel.astype(np.float32)))
    traced = dense.get_concrete_function(tf.TensorSpec((1, 64), tf.float32))
    floating = tf.lite.TFLiteConverter.from_concrete_functions([traced], dense).convert()
    weights = qtyping.TensorQuantizationConfig(num_bits=4, granularity=qtyping.QuantGranularity.BLOCKWISE_32)
    recipe = quantizer.Quantizer(bytearray(floating))
    recipe.update_quantization_recipe(
        ".*",
        qtyping.TFLOperationName.FULLY_CONNECTED,
        qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.INTEGER, explicit_dequantize=False
        ),
    )
    blocks = bytes(recipe.quantize().quantized_model)
    with warned("int4"):
        source = float_source(blocks)
    assert audit_model(source).scheme == "float32"
    inputs = (generator.normal(size=(20, 64)).astype(np.float32),)
    result, theirs, exact = (
        LocalBackend().assess(RunRequest(model=model, inputs=inputs)).outputs[0] for model in (source, blocks, floating)
    )
    # Only the file rounds its activations; 4 bits of the weights are a larger error.
    assert np.abs(result - theirs).max() < 0.3 * np.abs(theirs - exact).max()

# SPDX-License-Identifier: Apache-2.0
"""Weights of 4 and 2 bits with float activations. Oracles: a search for scales, the interpreter, bytes by hand."""

import dataclasses

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import changed, golden
from messages import refused
from scipy.optimize import minimize_scalar

from tfq import ptq, tflite
from tfq.auditing import audit_model
from tfq.config import AuditConfig, ConversionConfig
from tfq.conversion.convert import convert_with_record
from tfq.conversion.weights import few_bit_weights, quantize_weights
from tfq.errors import InputError
from tfq.ptq.weight_scales import QUANTIZED_LIMITS, quantize_to_few_bits
from tfq.ptq.weighted_ops import weighted_ops
from tfq.tflite.stored_values import packed_values, stored_values
from tfq.workflows.conversion import needs_data

FLOATING = golden("digits_float32")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 17, (40, 8, 8, 1)).astype(np.float32)
WAYS = [
    {"scheme": "dynamic_range", "int4_layers": ("*",)},
    {"scheme": "weight_only_int4"},
    {"scheme": "weight_only_int2"},
]


def outputs_of(content: bytes) -> np.ndarray:
    """Return the outputs for `IMAGES`."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    results = []
    for image in IMAGES:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())
    return np.concatenate(results)


def stored_types(content: bytes) -> set[str]:
    return {item.dtype for item in tflite.read(content).main_subgraph.tensors if item.is_constant and item.scale}


@pytest.mark.parametrize("bits", [4, 2])
def test_scales_have_nearly_the_least_error_that_a_search_finds(bits):
    rows = RNG.standard_t(4, (5, 200)).astype(np.float32)
    quantized, scales = quantize_to_few_bits(rows, 0, bits)
    lowest, highest = QUANTIZED_LIMITS[bits]
    assert quantized.dtype == np.int8 and lowest <= quantized.min() and quantized.max() <= highest

    def error(scale, row):
        return ((np.clip(np.rint(row / scale), lowest, highest) * scale - row) ** 2).sum()

    for row, values, scale in zip(rows.astype(float), quantized, scales, strict=True):
        starts = np.abs(row).max() * np.geomspace(0.02, 1.2, 60)
        least = min(
            minimize_scalar(error, bounds=(start * 0.9, start * 1.1), args=(row,), method="bounded").fun
            for start in starts
        )
        assert ((values * scale - row) ** 2).sum() == pytest.approx(error(scale, row), rel=1e-5)
        assert error(scale, row) <= 1.02 * least


def test_one_scale_and_another_axis_quantize_the_same_values():
    values = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    quantized, scales = quantize_to_few_bits(values, 2, 4)
    for channel in range(5):
        alone, scale = quantize_to_few_bits(values[:, :, channel], None, 4)
        np.testing.assert_array_equal(quantized[:, :, channel], alone)
        assert scales[channel] == scale[0]


def test_packed_values_start_in_the_lowest_bits():
    assert packed_values(np.array([1, -2, 7]), 4).tolist() == [0xE1, 0x07]
    assert packed_values(np.array([1, -2, 0, -1, 1]), 2).tolist() == [0b11_00_10_01, 0b01]


@pytest.mark.parametrize("way", WAYS)
def test_the_interpreter_computes_with_the_weights_that_were_stored(way):
    content = quantize_weights(FLOATING, ConversionConfig(**way))
    expected = outputs_of(tflite.with_float_constants(content).content)
    assert np.abs(expected - outputs_of(FLOATING)).max() > 0.01
    # dynamic_range rounds activations to 8 bits.
    tolerance = 0.05 if way["scheme"] == "dynamic_range" else 1e-5
    np.testing.assert_allclose(outputs_of(content), expected, atol=tolerance)
    assert content == quantize_weights(FLOATING, ConversionConfig(**way))


@pytest.mark.parametrize("way", WAYS)
def test_gptq_loses_less_than_rounding_to_nearest(way):
    config = ConversionConfig(**way, verify=False)
    nearest = convert_with_record(FLOATING, None, config).content
    result = convert_with_record(FLOATING, IMAGES, dataclasses.replace(config, techniques=("gptq",)))
    expected = outputs_of(FLOATING)
    errors = [((outputs_of(content) - expected) ** 2).sum() for content in (nearest, result.content)]
    assert errors[1] < 0.8 * errors[0] and len(result.content) <= len(nearest)
    layers = result.techniques["gptq"]["layers"]
    assert set(layers) == {"conv1", "depthwise", "pointwise", "conv2", "logits"}
    assert all(item["after"] < item["before"] for item in layers.values())


def test_gptq_fits_scales_for_the_whole_tensor_too():
    bits = few_bit_weights(FLOATING, ConversionConfig(scheme="weight_only_int4", per_channel=False))
    assert {one_scale for _, one_scale in bits.values()} == {True}
    samples = [{"image": image[None]} for image in IMAGES[:20]]
    counts = {tensor: count for tensor, (count, _) in bits.items()}
    result = ptq.round_to_few_bits(FLOATING, samples, counts, per_tensor=list(bits))
    assert {len(scales) for _, scales in result.weights.values()} == {1}
    assert all(after < before for before, after in result.layers.values())


def test_trained_grids_are_found_and_stored_without_an_error():
    steps = {}

    def on_grid(model):
        for layer in weighted_ops(model, tflite.read(FLOATING)):
            if layer.layer == "pointwise":
                continue
            rows = layer.weights_by_output()
            steps[layer.layer] = np.abs(rows).max(axis=1) / 7
            layer.set_weights_by_output(np.rint(rows / steps[layer.layer][:, None]) * steps[layer.layer][:, None])

    floating = changed(FLOATING, on_grid)
    result = ptq.with_int4_grids(golden("digits_int8"), floating, [*steps, "pointwise"])
    assert set(result.layers) == set(steps) and set(result.skipped) == {"pointwise"}
    alone = ptq.with_int4_grids(golden("digits_int8"), floating, ["conv2"])
    assert set(alone.layers) == {"conv2"} and set(alone.skipped) == {*steps, "pointwise"} - {"conv2"}
    narrow = [item.layer for item in _layers_of(alone.model) if item.bits == 4]
    assert narrow == ["conv2"]
    edited = tflite.unpack(result.model)
    tensors = {item.layer: edited.subgraphs[0].tensors[int(item.op.inputs[1])] for item in _layers_of(result.model)}
    for layer, expected in steps.items():
        np.testing.assert_allclose(tensors[layer].quantization.scale, expected, rtol=1e-5)
        values = stored_values(edited.buffers, tensors[layer], tuple(tensors[layer].shape))
        assert np.abs(values).max() == 7


def _layers_of(content: bytes):
    return list(weighted_ops(tflite.unpack(content), tflite.read(content)))


def test_a_file_meets_its_own_scheme_and_no_other():
    for scheme, dtype in (("weight_only_int4", "int4"), ("weight_only_int2", "int2")):
        content = quantize_weights(FLOATING, ConversionConfig(scheme=scheme))
        assert stored_types(content) == {dtype} and audit_model(content).scheme == scheme
        for required in ("weight_only_int8", "weight_only_int4", "weight_only_int2", "dynamic_range", "float32"):
            assert audit_model(content, AuditConfig(require=required)).ok == (required == scheme)
        assert audit_model(content, AuditConfig(require="xnnpack")).ok
        assert not audit_model(content, AuditConfig(require="gpu")).ok


def test_the_audit_of_dynamic_range_accepts_exactly_the_layers_requested_as_int4():
    config = ConversionConfig(scheme="dynamic_range", int4_layers=("conv2", "depthwise"))
    content = quantize_weights(FLOATING, config)
    assert stored_types(content) == {"int4", "int8"} and audit_model(content).scheme == "dynamic_range"
    assert audit_model(content, AuditConfig().for_conversion(config)).ok
    for allowed in ((), ("conv2",), ("depthwise",)):
        assert not audit_model(content, AuditConfig(require="dynamic_range", allow_int4=allowed)).ok
    assert audit_model(content, AuditConfig(require="xnnpack")).ok


def test_hybrid_weights_that_litert_computes_wrongly_fail_every_audit():
    content = quantize_weights(FLOATING, ConversionConfig(scheme="dynamic_range", int4_layers=("conv2",)))

    def narrow(model):
        tensor = next(item for item in model.subgraphs[0].tensors if list(item.shape) == [12, 3, 3, 12])
        values = model.buffers[tensor.buffer].data
        model.buffers[tensor.buffer].data = values[: len(values) // 2]
        tensor.type = next(kind for kind in range(30) if tflite.schema.TENSOR_TYPES[kind] == "int2")

    for required in ("xnnpack", ""):
        report = audit_model(changed(content, narrow), AuditConfig(require=required))
        assert [finding.keras_layer for finding in report.failures] == ["conv2"]
        assert "int2" in report.failures[0].message


def test_a_pattern_without_a_layer_is_refused_with_the_names():
    with refused(InputError, field="conversion.int4_layers", got="cnv2", word="'conv2'"):
        quantize_weights(FLOATING, ConversionConfig(scheme="dynamic_range", int4_layers=("cnv2",)))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"scheme": "weight_only_int4", "int4_layers": ("*",)}, "conversion.int4_layers"),
        ({"scheme": "float16", "int4_layers": ("*",)}, "conversion.int4_layers"),
        ({"scheme": "dynamic_range", "techniques": ("gptq",)}, "conversion.techniques"),
        ({"scheme": "weight_only_int8", "techniques": ("gptq",)}, "conversion.techniques"),
        ({"scheme": "weight_only_int4", "techniques": ("gptq", "bias_correction")}, "conversion.techniques"),
        ({"scheme": "weight_only_int2", "techniques": ("gptq",)}, "representative_dataset"),
    ],
)
def test_settings_without_an_effect_are_refused(settings, field):
    data = None if field == "representative_dataset" else IMAGES
    with refused(InputError, field=field):
        convert_with_record(FLOATING, data, ConversionConfig(**settings, verify=False))


def test_only_rounding_by_data_needs_data():
    assert needs_data(ConversionConfig(scheme="weight_only_int4", techniques=("gptq",)))
    assert not needs_data(ConversionConfig(scheme="weight_only_int4"))
    assert not needs_data(ConversionConfig(scheme="dynamic_range", int4_layers=("*",)))

# SPDX-License-Identifier: Apache-2.0
"""The analysis of int8 flatbuffers. Oracles: NumPy on the tensors that TFLite's reference kernels compute."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from golden_models import changed, golden
from test_ptq_techniques import FLOATING, QUANTIZED, SAMPLES, constant, multiply, output_of, tensor_values, uneven

import tfq
from tfq import analysis, quant_math, tflite
from tfq.analysis.findings import find
from tfq.config import AnalysisConfig
from tfq.errors import InputError
from tfq.ptq.calibration import calibrate
from tfq.report import analysis_page

IMAGES = np.concatenate([sample["image"] for sample in SAMPLES])


def errors(quantized=QUANTIZED, floating=FLOATING):
    return {item.layer: item for item in analysis.layer_errors(quantized, floating, SAMPLES)}


@pytest.mark.parametrize("layer", ["conv1", "pointwise", "conv2", "logits"])
def test_errors_are_those_of_the_tensors(layer):
    result = errors()[layer]
    wanted = tensor_values(FLOATING, output_of(FLOATING, layer)).astype(np.float64)
    got = tensor_values(QUANTIZED, output_of(QUANTIZED, layer)).astype(np.float64)
    # XNNPACK and the reference kernels round some codes to different sides.
    assert result.sqnr_db == pytest.approx(quant_math.sqnr_db(wanted, got), abs=0.3)
    assert result.cosine == pytest.approx((wanted * got).sum() / np.sqrt((wanted**2).sum() * (got**2).sum()), abs=1e-4)
    assert result.max_abs_error_lsb == pytest.approx(np.abs(wanted - got).max() / result.scale, abs=1.5)
    noise = result.scale**2 / 12 * wanted.size
    assert result.expected_sqnr_db == pytest.approx(10 * np.log10((wanted**2).sum() / noise), abs=1e-3)
    quantized = np.rint(got / result.scale)
    assert result.range_use == pytest.approx((quantized.max() - quantized.min()) / 255, abs=0.02)
    sizes = np.abs(wanted).reshape(-1, wanted.shape[-1]).max(axis=0)
    assert result.channel_spread == pytest.approx(np.median(sizes) / sizes.max(), rel=1e-3)


def test_a_spoilt_layer_has_the_error_and_those_before_it_have_not():
    def spoil(model):
        buffer, quantized = constant(model, "conv2", 1)
        buffer.data = np.roll(quantized, 1, axis=0).reshape(-1).view(np.uint8)

    good, bad = errors(), errors(changed(QUANTIZED, spoil))
    assert bad["conv2"].sqnr_db < 3 < good["conv2"].sqnr_db - 20
    assert bad["pointwise"] == good["pointwise"]


def test_a_dead_channel_and_a_saturated_one_are_numbered():
    def kill(model):
        factors = np.ones(12, np.float32)
        factors[5], factors[2] = 0, 40
        multiply(model, "conv2", 1, factors[:, None, None, None])
        multiply(model, "conv2", 2, factors)

    result = errors(floating=changed(FLOATING, kill))["conv2"]
    assert result.dead_channels == (5,)
    assert 2 in result.saturated_channels and result.saturated > 0.001


def test_equal_tensors_have_no_error():
    tensor = tflite.Tensor(
        index=0, name="t", shape=(1, 2), shape_signature=(1, 2), dtype="int8", scale=(0.5,), zero_point=(3,)
    )
    from tfq.analysis.layers import _Tally

    tally = _Tally(tensor)
    tally.add(np.float32([[1.0, -2.0]]), np.int8([[5, -1]]))
    record = tally.record("layer", "ADD")
    assert (record.sqnr_db, record.cosine, record.max_abs_error_lsb) == (math.inf, pytest.approx(1.0), 0.0)
    assert record.to_dict()["sqnr_db"] is None


def test_joins_tell_the_codes_that_each_input_has_left():
    (join,) = analysis.joins(QUANTIZED, FLOATING, SAMPLES)
    assert (join.layer, join.op, set(join.ranges)) == ("residual", "ADD", {"conv1", "pointwise"})
    values = tensor_values(FLOATING, output_of(FLOATING, "conv1"))
    assert join.ranges["conv1"] == pytest.approx(values.max() - min(values.min(), 0), rel=1e-5)


def test_the_most_sensitive_layer_is_the_one_made_coarse():
    model = changed(FLOATING, uneven)
    ranges = calibrate(model, SAMPLES)
    result = analysis.layer_sensitivity(model, ranges, SAMPLES)
    assert [item.sqnr_db for item in result] == sorted(item.sqnr_db for item in result)
    plain = {item.layer: item for item in analysis.layer_sensitivity(FLOATING, calibrate(FLOATING, SAMPLES), SAMPLES)}
    assert result[0].layer in ("conv2", "pool")  # which hands on what conv2 gives
    assert next(item for item in result if item.layer == "conv2").sqnr_db < plain["conv2"].sqnr_db - 10
    assert plain["conv2"].weights == 12 * 3 * 3 * 12 + 12


def test_one_layer_alone_is_rounded_and_nothing_else():
    ranges = calibrate(FLOATING, SAMPLES).values
    place = next(op.index for op in tflite.read(FLOATING).main_subgraph.ops if op.keras_layer == "conv2")
    alone = analysis.quantized_alone(FLOATING, place, ranges)
    before = tensor_values(FLOATING, output_of(FLOATING, "pointwise"), SAMPLES[:3])
    np.testing.assert_array_equal(tensor_values(alone, output_of(FLOATING, "pointwise"), SAMPLES[:3]), before)
    scale, zero_point = quant_math.quantization_parameters(*ranges[0, output_of(FLOATING, "conv2")])
    provided = tensor_values(alone, output_of(FLOATING, "conv2"), SAMPLES[:3])
    rounded = quant_math.dequantize(quant_math.quantize(provided, scale, zero_point), scale, zero_point)
    (reader,) = (op for op in tflite.read(alone).main_subgraph.ops if op.name == "AVERAGE_POOL_2D")
    np.testing.assert_allclose(tensor_values(alone, reader.inputs[0], SAMPLES[:3]), rounded, atol=scale * 1e-3)


def test_the_output_of_the_model_can_be_the_rounded_one():
    parsed = tflite.read(FLOATING)
    alone = analysis.quantized_alone(FLOATING, parsed.main_subgraph.ops[-1].index, calibrate(FLOATING, SAMPLES).values)
    answers = tensor_values(alone, tflite.read(alone).main_subgraph.outputs[0])
    assert len(np.unique(answers)) <= 256 and tflite.read(alone).output_names == parsed.output_names


def test_uneven_channels_are_reported_with_the_technique_for_them():
    model = changed(FLOATING, uneven)

    def coarse(quantized):
        graph = quantized.subgraphs[0]
        quantization = graph.tensors[output_of(QUANTIZED, "conv2")].quantization
        quantization.scale = [float(quantization.scale[0]) * 64]

    result = analysis.analyze(changed(QUANTIZED, coarse), model, IMAGES)
    (finding,) = (item for item in result.findings if item.layer == "conv2" and "channels" in item.kind)
    assert "cross_layer_equalization" in finding.message


def layer(name, op="CONV_2D", sqnr_db=30.0, **values):
    numbers = {
        "name": name,
        "layer": name,
        "op": op,
        "channels": 8,
        "scale": 0.1,
        "zero_point": 0,
        "sqnr_db": sqnr_db,
        "expected_sqnr_db": 35.0,
        "cosine": 1.0,
        "max_abs_error_lsb": 1.0,
        "saturated": 0.0,
        "range_use": 1.0,
        "dead_channels": (),
        "saturated_channels": (),
        "channel_spread": 0.5,
    }
    return analysis.LayerError(**{**numbers, **values})


@pytest.mark.parametrize(
    ("layers", "kind", "told"),
    [
        ([layer("a"), layer("gate", "MUL", 4.0)], "gate_collapse", "squeeze-and-excitation"),
        ([layer("a"), layer("conv", "CONV_2D", 4.0)], "collapse", "conversion.techniques"),
        ([layer("a", dead_channels=(1, 2))], "dead_channels", "2 of 8 channels (1, 2)"),
        ([layer("a", channel_spread=0.01)], "uneven_channels", "1.0%"),
        ([layer("a", saturated_channels=(0,)), layer("b")], "saturated_channels", "1 of 8"),
        ([layer("a", saturated=0.02)], "clipped", "2.00%"),
        ([layer("a", saturated_channels=(0,), saturated=0.5)], "ranges_too_narrow", "1 of 1 layers are cut off"),
        ([layer("a", range_use=0.1), layer("b", range_use=0.2)], "ranges_too_wide", "random noise"),
        ([layer("a"), layer("b"), layer("c", range_use=0.01)], "ranges_widened", "c (CONV_2D) uses 1.0% of its codes"),
    ],
)
def test_each_cause_is_named_in_plain_words(layers, kind, told):
    names = [item.layer for item in layers]
    sources = dict(zip(names[1:], ([name] for name in names), strict=False))
    (finding,) = find(layers, [], sources)
    assert finding.kind == kind and told in finding.message


def test_ranges_far_apart_in_a_join_are_named_with_the_small_one():
    join = analysis.Join(layer="concat", op="CONCATENATION", ranges={"a": 100.0, "b": 1.0}, codes={"a": 256, "b": 3})
    (finding,) = find([], [join], {})
    assert finding.kind == "ranges_apart" and "256" in finding.message


def test_nothing_is_found_where_nothing_is_wrong():
    assert find([layer("a"), layer("b")], [], {"b": ["a"]}) == []
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES)
    assert dataclasses.replace(result, findings=()).to_text().endswith("nothing stands out")


def test_of_many_findings_of_a_kind_the_text_has_the_first_and_the_names_of_the_others():
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES)
    layers = [layer(f"layer{number}", saturated=0.02) for number in range(9)]
    message = dataclasses.replace(result, findings=tuple(find(layers, [], {}))).to_text()
    named = [re.findall(r"layer\d", line) for line in message.splitlines()]
    assert [sorted(set(names)) for names in named if names] == [
        *(["layer0"], ["layer1"], ["layer2"]),
        [f"layer{number}" for number in range(3, 9)],
    ]


def test_ranges_of_other_data_are_found():
    # The int8 flatbuffer was calibrated with digits; these are noise, and five times as large.
    kinds = [item.kind for item in analysis.analyze(QUANTIZED, FLOATING, IMAGES * 5).findings]
    assert kinds[0] == "ranges_too_narrow" and "saturated_channels" not in kinds


def test_histograms_count_every_value_and_have_the_range_of_the_codes():
    samples = [{"image": image[None]} for image in IMAGES[:16]]
    results = {item.layer: item for item in analysis.layer_histograms(QUANTIZED, FLOATING, samples)}
    graph = tflite.read(QUANTIZED).main_subgraph
    conv = results["conv2"].activations
    tensor = graph.tensors[output_of(QUANTIZED, "conv2")]
    assert sum(conv.counts) == 16 * np.prod(tensor.shape)
    scale, zero_point = tensor.scale[0], tensor.zero_point[0]
    assert conv.range == pytest.approx(((-128 - zero_point) * scale, (127 - zero_point) * scale))
    weights = results["conv2"].weights
    (op,) = (op for op in graph.ops if op.keras_layer == "conv2")
    quantized = graph.tensors[op.inputs[1]]
    assert sum(weights.counts) == np.prod(quantized.shape)
    assert weights.range[1] == pytest.approx(127 * max(quantized.scale))
    assert weights.range[0] * 1.001 <= weights.low < weights.high <= weights.range[1] * 1.001
    assert results["pool"].weights is None


def test_the_page_draws_errors_sensitivity_and_values_and_escapes_names():
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES, AnalysisConfig(limit=8, sensitivity=True)).to_dict()
    result["layers"][0]["layer"] = result["histograms"][0]["layer"] = "<script>alert(1)</script>"
    page = analysis_page({**result, "config": {"model": "<b>.tflite"}})
    with_weights = sum(item["weights"] is not None for item in result["histograms"])
    assert page.count("<svg") == 2 + len(result["histograms"]) + with_weights
    assert "<script>alert" not in page and "<b>.tflite" not in page and "Sensitivity" in page
    bare = analysis_page({**result, "histograms": [], "sensitivity": []})
    assert bare.count("<svg") == 1


def test_the_record_is_json_and_the_table_has_a_line_a_layer():
    result = tfq.analyze(QUANTIZED, FLOATING, IMAGES, AnalysisConfig(limit=8, sensitivity=True))
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["num_samples"] == 8 and len(record["sensitivity"]) == len(record["layers"]) == 9
    lines = result.to_text().splitlines()
    assert lines[0].split()[:3] == ["layer", "op", "SQNR"] and lines[1].startswith("conv1")
    assert [line[2:] for line in lines if line.startswith("- ")] == [item.message for item in result.findings]


@pytest.mark.parametrize("pair", [(QUANTIZED, QUANTIZED), (FLOATING, FLOATING), (QUANTIZED, golden("digits_int8"))])
def test_flatbuffers_that_do_not_belong_together_are_refused(pair):
    with pytest.raises(InputError):
        analysis.analyze(*pair, IMAGES)

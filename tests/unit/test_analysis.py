# SPDX-License-Identifier: Apache-2.0
"""Analysis of int8 flatbuffers. Oracle: NumPy on the tensors that TFLite's reference kernels compute."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from golden_models import changed, golden
from messages import refused
from test_ptq_techniques import FLOATING, QUANTIZED, SAMPLES, constant, multiply, output_of, tensor_values, uneven

import tfq
from tfq import analysis, ptq, quant_math, tflite
from tfq.analysis.findings import find
from tfq.analysis.sensitivity import quantized_alone
from tfq.config import AnalysisConfig, AnalysisRequireConfig
from tfq.errors import InputError, RequirementError
from tfq.ptq.calibration import calibrate
from tfq.ptq.causes import Diagnosis, TensorFacts
from tfq.report.page import page_of

IMAGES = np.concatenate([sample["image"] for sample in SAMPLES])


def errors(quantized=QUANTIZED, floating=FLOATING):
    return {item.layer: item for item in analysis.op_errors(quantized, floating, SAMPLES)}


@pytest.mark.parametrize("layer", ["conv1", "pointwise", "conv2", "logits"])
def test_errors_are_those_of_the_tensors(layer):
    result = errors()[layer]
    expected = tensor_values(FLOATING, output_of(FLOATING, layer)).astype(np.float64)
    got = tensor_values(QUANTIZED, output_of(QUANTIZED, layer)).astype(np.float64)
    # XNNPACK and the reference kernels round some values differently.
    assert result.sqnr_db == pytest.approx(10 * np.log10(expected.var() / ((expected - got) ** 2).mean()), abs=0.3)
    assert result.cosine == pytest.approx(
        (expected * got).sum() / np.sqrt((expected**2).sum() * (got**2).sum()), abs=1e-4
    )
    assert result.max_abs_error_lsb == pytest.approx(np.abs(expected - got).max() / result.scale, abs=1.5)
    noise = result.scale**2 / 12 * expected.size
    assert result.expected_sqnr_db == pytest.approx(10 * np.log10(expected.var() * expected.size / noise), abs=1e-3)
    quantized = np.rint(got / result.scale)
    assert result.range_use == pytest.approx((quantized.max() - quantized.min()) / 255, abs=0.02)
    shift = (got - expected).reshape(-1, expected.shape[-1]).mean(axis=0)
    assert result.mean_shift_lsb == pytest.approx((got - expected).mean() / result.scale, abs=0.1)
    assert result.mean_shift == pytest.approx(np.abs(shift).max() / expected.std(), abs=0.01)
    sizes = np.abs(expected).reshape(-1, expected.shape[-1]).max(axis=0)
    assert result.channel_spread == pytest.approx(np.median(sizes) / sizes.max(), rel=1e-3)


def test_only_a_damaged_layer_and_later_ones_have_the_error():
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
    from tfq.analysis.op_errors import _Tally

    tally = _Tally(tensor)
    tally.add(np.float32([[1.0, -2.0]]), np.int8([[5, -1]]))
    record = tally.record(op_index=0, op="ADD", layer="layer", label="layer/ADD (#0)")
    assert (record.sqnr_db, record.cosine, record.max_abs_error_lsb) == (math.inf, pytest.approx(1.0), 0.0)
    assert record.to_dict()["sqnr_db"] is None


def test_joins_have_the_range_and_the_quantized_values_of_each_input():
    (join,) = analysis.analyze(QUANTIZED, FLOATING, IMAGES).joins
    names = {label.partition("/")[0]: label for label in join.ranges}
    assert join.op == "ADD" and join.label.startswith("residual/ADD") and set(names) == {"conv1", "pointwise"}
    values = tensor_values(FLOATING, output_of(FLOATING, "conv1"))
    assert join.ranges[names["conv1"]] == pytest.approx(values.max() - min(values.min(), 0), rel=1e-5)


def test_the_most_sensitive_layer_is_the_one_made_coarse():
    model = changed(FLOATING, uneven)
    ranges = calibrate(model, SAMPLES)
    result = analysis.op_sensitivity(model, ranges, SAMPLES)
    assert [item.sqnr_db for item in result] == sorted(item.sqnr_db for item in result)
    plain = {item.layer: item for item in analysis.op_sensitivity(FLOATING, calibrate(FLOATING, SAMPLES), SAMPLES)}
    assert result[0].layer in ("conv2", "pool")  # passes on the output of conv2
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
    (finding,) = (item for item in result.findings if item.label.startswith("conv2/") and "channels" in item.kind)
    assert "cross_layer_equalization" in finding.message


def error(number, op="CONV_2D", sqnr_db=30.0, **values):
    """Return the record of op `number`, whose output is tensor number + 1."""
    numbers = {
        "op_index": number,
        "op": op,
        "layer": f"layer{number}",
        "tensor_index": number + 1,
        "tensor": f"t{number + 1}",
        "label": f"layer{number}/{op} (#{number})",
        "channels": 8,
        "scale": 0.1,
        "zero_point": 0,
        "sqnr_db": sqnr_db,
        "expected_sqnr_db": 35.0,
        "rounding_sqnr_db": sqnr_db,
        "clipping_sqnr_db": math.inf,
        "mean_shift_lsb": 0.0,
        "mean_shift": 0.0,
        "worst_channel": 0,
        "worst_channel_sqnr_db": sqnr_db,
        "channel_sqnr_db": (),
        "cosine": 1.0,
        "max_abs_error_lsb": 1.0,
        "saturated": 0.0,
        "range_use": 1.0,
        "dead": False,
        "never_selected": False,
        "dead_channels": (),
        "saturated_channels": (),
        "channel_spread": 0.5,
    }
    return analysis.OpError(**{**numbers, **values})


def chain(errors):
    """Return the graph of a chain of ops that begins at tensor 0, and the facts about its tensors."""
    tensors = [
        tflite.Tensor(
            index=index,
            name=f"t{index}",
            shape=(1, 8),
            shape_signature=(1, 8),
            dtype="int8",
            scale=(0.1,),
            zero_point=(0,),
        )
        for index in range(len(errors) + 1)
    ]
    ops = [
        tflite.Op(index=place, name=item.op, version=1, inputs=(place,), outputs=(place + 1,), keras_layer=item.layer)
        for place, item in enumerate(errors)
    ]
    graph = tflite.Subgraph(
        index=0, name="main", tensors=tuple(tensors), ops=tuple(ops), inputs=(0,), outputs=(len(errors),)
    )
    facts = {item.tensor_index: TensorFacts(minimum=0, maximum=0 if item.dead else 10) for item in errors}
    return Diagnosis(graph, facts)


COARSE = analysis.WeightError(sqnr_db=30.0, worst_channel=5, worst_channel_sqnr_db=3.0, per_channel=False)


@pytest.mark.parametrize(
    ("errors", "kind", "word"),
    [
        ([error(0), error(1, "MUL", 4.0)], "gate_collapse", "squeeze-and-excitation"),
        ([error(0), error(1, "CONV_2D", 4.0)], "collapse", "conversion.techniques"),
        ([error(0, dead_channels=(1, 2))], "dead_channels", "(1, 2)"),
        ([error(0, dead_channels=tuple(range(8)), range_use=0.001)], "dead_channels", "(all)"),
        ([error(0, dead=True, sqnr_db=-math.inf)], "dead", "dead"),
        ([error(0, channel_spread=0.01)], "uneven_channels", "1.0%"),
        ([error(0, saturated_channels=(0,), clipping_sqnr_db=20.0), error(1)], "saturated_channels", "1"),
        ([error(0, saturated=0.02, clipping_sqnr_db=20.0)], "clipped", "2.00%"),
        ([error(0, mean_shift=0.3, mean_shift_lsb=3.0)], "mean_shift", "bias_correction"),
        ([error(0, sqnr_db=20.0, weights=COARSE)], "weights", "conversion.per_channel"),
        ([error(0, saturated_channels=(0,), saturated=0.5)], "ranges_too_narrow", "noise"),
        ([error(0, range_use=0.1), error(1, range_use=0.2)], "ranges_too_wide", "noise"),
        ([error(0), error(1), error(2, range_use=0.01)], "ranges_widened", "1.0%"),
    ],
)
def test_each_cause_is_named_in_plain_words(errors, kind, word):
    (finding,) = find(errors, [], chain(errors))
    assert finding.kind == kind and word in finding.message and finding.label.startswith("layer")


@pytest.mark.parametrize(
    "sound",
    [
        error(1, sqnr_db=31.0),
        error(1, saturated=0.02, clipping_sqnr_db=45.0),
        error(1, weights=COARSE),
        error(1, "SOFTMAX", range_use=0.1),
    ],
)
def test_harmless_conditions_are_not_findings(sound):
    errors = [error(0, sqnr_db=60.0), sound, error(2), error(3)]
    assert find(errors, [], chain(errors)) == []


def test_an_output_that_hardly_varies_is_not_a_collapse():
    errors = [error(0), error(1, "SOFTMAX", 2.0, expected_sqnr_db=4.0)]
    assert find(errors, [], chain(errors)) == []


def test_what_reads_a_collapsed_tensor_is_not_blamed_for_it():
    errors = [error(0), error(1, "CONV_2D", 4.0), error(2, "CONV_2D", -6.0)]
    (finding,) = find(errors, [], chain(errors))
    assert finding.op_index == 1


def test_what_a_maximum_never_takes_is_neither_blamed_nor_counted():
    errors = [error(0), error(1, "SUB", -20.0, never_selected=True)]
    assert find(errors, [], chain(errors)) == []


def test_ranges_far_apart_in_a_join_are_named_with_the_small_one():
    errors = [error(0, "CONCATENATION")]
    join = analysis.Join(
        op_index=0, op="CONCATENATION", label="concat", ranges={"a": 100.0, "b": 1.0}, num_values={"a": 256, "b": 3}
    )
    (finding,) = find(errors, [join], chain(errors))
    assert finding.kind == "unequal_join" and "b has 3" in finding.message


def test_nothing_is_found_where_nothing_is_wrong():
    errors = [error(0), error(1)]
    assert find(errors, [], chain(errors)) == []
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES)
    assert dataclasses.replace(result, findings=()).to_text().endswith("no problems found")


def test_text_shows_the_first_finding_of_a_kind_and_other_names():
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES)
    errors = [error(number, saturated=0.02, clipping_sqnr_db=20.0) for number in range(9)]
    message = dataclasses.replace(result, findings=tuple(find(errors, [], chain(errors)))).to_text()
    named = [re.findall(r"layer\d", line) for line in message.splitlines()]
    assert [sorted(set(names)) for names in named if names] == [
        *(["layer0"], ["layer1"], ["layer2"]),
        [f"layer{number}" for number in range(3, 9)],
    ]


def test_the_weights_of_an_op_have_their_quantization_error():
    result = errors()["conv2"].weights
    place = next(op for op in tflite.read(QUANTIZED).main_subgraph.ops if op.keras_layer == "conv2")
    tensor = tflite.read(QUANTIZED).main_subgraph.tensors[place.inputs[1]]
    _, expected = constant(tflite.unpack(FLOATING), "conv2", 1)
    quantized_values = tflite.constant_values(QUANTIZED, tensor).astype(np.float64)
    got = quantized_values * np.reshape(tensor.scale, (-1, 1, 1, 1))
    by_channel = 10 * np.log10((expected**2).sum(axis=(1, 2, 3)) / ((expected - got) ** 2).sum(axis=(1, 2, 3)))
    assert result.sqnr_db == pytest.approx(quant_math.sqnr_db(expected, got), abs=1e-3)
    assert result.worst_channel == by_channel.argmin() and result.per_channel
    assert result.worst_channel_sqnr_db == pytest.approx(by_channel.min(), abs=1e-3)
    assert errors()["pool"].weights is None


def test_errors_are_split_into_rounding_and_clipping():
    def narrow(model):
        quantization = model.subgraphs[0].tensors[output_of(QUANTIZED, "logits")].quantization
        quantization.scale = [float(quantization.scale[0]) / 4]

    for content in (QUANTIZED, changed(QUANTIZED, narrow)):
        result = errors(content)["logits"]
        parts = [10 ** (-value / 10) for value in (result.rounding_sqnr_db, result.clipping_sqnr_db)]
        assert sum(parts) == pytest.approx(10 ** (-result.sqnr_db / 10), rel=1e-6)
    assert result.clipping_sqnr_db < result.rounding_sqnr_db - 10


def test_the_inputs_are_in_the_table_with_each_column():
    first = analysis.op_errors(QUANTIZED, FLOATING, SAMPLES)[0]
    assert (first.op, first.op_index, first.channels) == ("INPUT", None, 1) and "'image'" in first.label
    values = IMAGES.astype(np.float64)
    record = tflite.read(QUANTIZED).main_subgraph.input_tensors[0]
    quantized_values = quant_math.quantize(IMAGES, record.scale[0], record.zero_point[0])
    noise = ((quant_math.dequantize(quantized_values, record.scale[0], record.zero_point[0]) - values) ** 2).mean()
    assert first.channel_sqnr_db == pytest.approx([10 * np.log10(values.var() / noise)], abs=0.01)


def test_the_outputs_of_one_op_have_different_labels():
    from tfq.analysis.op_errors import output_label

    graph = chain([error(0, "SPLIT")]).graph
    split = dataclasses.replace(graph.ops[0], outputs=(1, 0))
    graph = dataclasses.replace(graph, ops=(split,))
    assert [output_label(graph, split, tensor) for tensor in split.outputs] == [
        "layer0/SPLIT (#0):0",
        "layer0/SPLIT (#0):1",
    ]


def test_a_bound_on_the_worst_op_is_met_or_missed_with_its_name():
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES, AnalysisConfig(limit=8))
    worst = min((item for item in result.ops if item.op_index is not None), key=lambda item: item.sqnr_db)
    missed = AnalysisRequireConfig(min_layer_sqnr_db=worst.sqnr_db + 0.1)
    (asked,) = analysis.requirements_of(result, missed)
    assert (asked.name, asked.value, asked.holds) == ("min_layer_sqnr_db", worst.sqnr_db, False)
    with pytest.raises(RequirementError) as caught:
        analysis.check_requirements(result, missed)
    assert caught.value.exit_code == 1 and worst.label in str(caught.value)
    met = AnalysisRequireConfig(min_layer_sqnr_db=worst.sqnr_db - 0.1)
    assert analysis.requirements_of(result, met)[0].holds
    analysis.check_requirements(result, met)
    assert analysis.requirements_of(result, AnalysisRequireConfig()) == ()
    dead = dataclasses.replace(result, ops=(error(0, dead=True, sqnr_db=-math.inf),))
    assert analysis.requirements_of(dead, met)[0].holds


def test_ranges_of_other_data_are_found():
    # The int8 flatbuffer was calibrated with digits; this is noise, five times as large.
    kinds = [item.kind for item in analysis.analyze(QUANTIZED, FLOATING, IMAGES * 5).findings]
    assert kinds[0] == "ranges_too_narrow" and "saturated_channels" not in kinds


def test_histograms_count_every_value_within_the_quantized_range():
    samples = [{"image": image[None]} for image in IMAGES[:16]]
    results = {item.layer: item for item in analysis.op_histograms(QUANTIZED, FLOATING, samples)}
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


def test_histograms_of_four_bit_weights_have_the_range_of_four_bits():
    narrow = ptq.quantize_to_int4(QUANTIZED, FLOATING, SAMPLES[:10], ["conv2"], rounding=False).model
    results = {item.layer: item for item in analysis.op_histograms(narrow, FLOATING, SAMPLES[:4])}
    graph = tflite.read(narrow).main_subgraph
    (op,) = (op for op in graph.ops if op.keras_layer == "conv2")
    scale = max(graph.tensors[op.inputs[1]].scale)
    assert results["conv2"].weights.range == pytest.approx((-8 * scale, 7 * scale))


def test_the_page_draws_errors_sensitivity_and_values_and_escapes_names():
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES, AnalysisConfig(limit=8, sensitivity=True)).to_dict()
    result["ops"][1]["label"] = result["histograms"][0]["label"] = "<script>alert(1)</script>"
    page = page_of({**result, "command": "analyze", "config": {"model": "<b>.tflite"}})
    with_weights = sum(item["weights"] is not None for item in result["histograms"])
    assert page.count("<svg") == 2 + len(result["histograms"]) + with_weights
    assert "<script>alert" not in page and "<b>.tflite" not in page
    for layer in ("conv2", "depthwise", "probabilities"):
        assert f">{layer} #" in page, layer  # rows of the plots


def test_panels_of_the_page_without_data_say_why():
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES, AnalysisConfig(limit=8, histograms=False)).to_dict()
    page = page_of({**result, "command": "analyze", "config": {"model": "model.tflite"}})
    captions = dict(re.findall(r'<figure data-plot="(\w+)">.*?<figcaption>(.*?)</figcaption>', page, flags=re.DOTALL))
    assert page.count("<svg") == 1 and "analysis.sensitivity" in captions["sensitivity"]
    assert "analysis.histograms" in page[page.index('id="values"') :]


def test_an_output_without_a_layer_is_labeled_with_its_name():
    graph = tflite.read(QUANTIZED).main_subgraph
    assert graph.ops[-1].keras_layer is None and graph.tensors[graph.outputs[0]].name == "Identity"
    result = analysis.analyze(QUANTIZED, FLOATING, IMAGES, AnalysisConfig(limit=2, sensitivity=True))
    (name,) = tflite.read(QUANTIZED).output_names
    for records in (result.ops, result.histograms, result.sensitivity):
        assert [item.label for item in records if item.op == "SOFTMAX"] == [f"{name}/SOFTMAX (#8)"]


def test_ops_of_a_qat_model_are_matched_by_layer():
    def wrap(model):
        """Rename the tensors as quantization-aware training does."""
        graph = model.subgraphs[0]
        for tensor in graph.tensors:
            tensor.name = re.sub(rb"digits_cnn/", rb"digits_cnn/quant_", tensor.name)
        graph.tensors[graph.outputs[0]].name = b"FakeQuantWithMinMaxVars"

    config = AnalysisConfig(limit=4)
    by_name, by_layer = (analysis.analyze(m, FLOATING, IMAGES, config) for m in (QUANTIZED, changed(QUANTIZED, wrap)))
    assert [item.label for item in by_layer.ops] == [item.label for item in by_name.ops]
    assert [item.sqnr_db for item in by_layer.ops] == [item.sqnr_db for item in by_name.ops]
    assert len(by_layer.ops) == 10 and len(by_layer.histograms) == len(by_name.histograms) == 9


def test_other_weights_are_the_only_finding():
    def shuffle(model):
        for layer in ("conv1", "pointwise", "conv2"):
            buffer, quantized = constant(model, layer, 1)
            buffer.data = np.roll(quantized, 1, axis=0).reshape(-1).view(np.uint8)

    def kinds(model):
        return [item.kind for item in analysis.analyze(model, FLOATING, IMAGES, AnalysisConfig(limit=8)).findings]

    assert "other_weights" not in kinds(QUANTIZED) and kinds(changed(QUANTIZED, shuffle)) == ["other_weights"]


def test_the_record_is_json_and_the_table_lists_every_op():
    result = tfq.analyze(QUANTIZED, FLOATING, IMAGES, AnalysisConfig(limit=8, sensitivity=True))
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["num_samples"] == 8 and len(record["sensitivity"]) + 1 == len(record["ops"]) == 10
    assert len({item["label"] for item in record["ops"]}) == 10
    lines = result.to_text().splitlines()
    assert lines[0].split()[:2] == ["op", "SQNR"] and lines[2].startswith("input") and lines[3].startswith("conv1/")
    assert any(line.startswith("alone dB  ") for line in lines)
    assert "alone dB" not in dataclasses.replace(result, sensitivity=()).to_text()
    assert [line[2:] for line in lines if line.startswith("- ")] == [item.message for item in result.findings]


@pytest.mark.parametrize("pair", [(QUANTIZED, QUANTIZED), (FLOATING, FLOATING), (QUANTIZED, golden("digits_int8"))])
def test_flatbuffers_that_do_not_belong_together_are_refused(pair):
    with pytest.raises(InputError):
        analysis.analyze(*pair, IMAGES)


@pytest.mark.parametrize("name", ["digits_dynamic_range", "digits_float16"])
def test_files_with_float_activations_have_no_errors_of_ops(name):
    with refused(InputError, field="quantized", limit="float-activations"):
        analysis.analyze(golden(name), FLOATING, IMAGES)


def test_sensitivity_counts_changed_classes_of_class_outputs_only():
    def without_softmax(model):
        graph = model.subgraphs[0]
        graph.outputs = [graph.operators[-1].inputs[0]]
        graph.operators = graph.operators[:-1]
        model.signatureDefs[0].outputs[0].tensorIndex = graph.outputs[0]

    ranges = calibrate(FLOATING, SAMPLES)
    for model, says_class in ((FLOATING, True), (changed(FLOATING, without_softmax), False)):
        result = analysis.op_sensitivity(model, calibrate(model, SAMPLES), SAMPLES)
        assert all((item.disagreement is not None) == says_class for item in result)
    item = analysis.op_sensitivity(FLOATING, ranges, SAMPLES)[0]
    edited = quantized_alone(FLOATING, item.op_index, ranges.values)
    classes = [run_plain(model).argmax(axis=1) for model in (FLOATING, edited)]
    assert item.disagreement == pytest.approx(np.mean(classes[0] != classes[1]))


def run_plain(model):
    """Return the first output of a plain interpreter for each sample."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    results = []
    for sample in SAMPLES:
        (array,) = sample.values()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], array)
        interpreter.invoke()
        results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].copy())
    return np.array(results)

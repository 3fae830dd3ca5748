# SPDX-License-Identifier: Apache-2.0
"""What the sections say of latency, instructions, layers, data, stages and metrics, in Markdown as in HTML."""

import re

import pytest
from report_record import audit, finding, full_record, layer_parity, newest_record, qat_parity, timed, weight

from tfq.evaluation import Metric, as_metric
from tfq.report.content import sections_of, stages_section
from tfq.report.markdown import markdown_of
from tfq.report.plots import plots_of


def section(record, key):
    return next(item for item in sections_of(record) if item.key == key)


def table(record, key, caption=""):
    return next(item for item in section(record, key).tables if item.caption.startswith(caption))


def row(found, label):
    return dict(zip(found.columns, next(item for item in found.rows if item[0] == label), strict=True))


def said(record, key):
    return " ".join(section(record, key).paragraphs)


def test_the_benchmark_is_told_with_initialisation_first_mean_percentiles_and_what_is_ours():
    message = row(table(newest_record(), "latency", "Microseconds an inference"), "pruned + QAT int8")
    assert message == {
        "model": "pruned + QAT int8", "init": "1,250", "first": "500", "mean ± std": "21.3 ± 2.1", "p50": "21.1",
        "p90": "24.5", "p99": "40.1", "tfq's own": "7.7", "runs": "1,234",
    }  # fmt: skip
    assert "XNNPACK kernels, 1 thread" in said(newest_record(), "latency")


def test_a_ratio_is_time_over_time_and_told_in_words_with_its_interval():
    ratios = table(newest_record(), "latency", "Time against another's")
    message = row(ratios, "PTQ int8")
    assert (message["against"], message["time, ratio"], message["95% interval"]) == ("float", "0.50x", "0.48 to 0.52")
    assert message["which is"] == "2.00x faster"
    # 1 / 0.8 = 1.25, between 1 / 0.82 = 1.22 and 1 / 0.78125 = 1.28.
    assert "1.25x faster than float (1.22 to 1.28)" in markdown_of(newest_record())


def test_a_ratio_whose_interval_holds_1_is_no_difference():
    record = newest_record()
    record["benchmark"]["ratios"][1] |= {"ratio": 1.2, "low": 0.9, "high": 1.5}
    message = row(table(record, "latency", "Time against another's"), "pruned + QAT int8")
    assert message["which is"] == "no difference that these runs can tell"
    record["benchmark"]["ratios"][1] |= {"low": None, "high": None, "reason": "too few blocks"}
    ratios = table(record, "latency", "Time against another's")
    assert row(ratios, "pruned + QAT int8")["95% interval"] == "—" and "no interval: too few blocks" in ratios.notes


def test_kernels_are_a_column_where_they_differ_and_a_ratio_of_kernels_names_both():
    record = newest_record()
    record["benchmark"]["models"].append(timed("float", 0.4, kernels="reference"))
    ratio = {"model": "float", "model_kernels": "xnnpack", "against": "float", "kernels": "reference", "ratio": 9.5}
    record["benchmark"]["ratios"].append(ratio)
    assert "kernels" in table(record, "latency").columns
    assert row(table(record, "latency", "Time against"), "float, reference")["against"] == "float, XNNPACK"
    assert "float, reference" in plots_of(record)["latency"].svg


def test_the_most_expensive_op_comes_first_and_the_reason_for_none_is_told():
    ops = table(newest_record(), "latency", "Most expensive ops of float")
    assert [cells[:2] for cells in ops.rows] == [("SOFTMAX #1", "dense"), ("CONV_2D #0", "conv2d")]
    assert ops.rows[0][3] == "60.00%" and "timed by LiteRT's own profiler" in ops.notes
    notes = table(newest_record(), "latency", "Microseconds an inference").notes
    assert "times of ops of PTQ int8: the profiler is not to be had" in notes


@pytest.mark.parametrize(
    ("benchmark", "reason"),
    [
        (None, "no benchmark in the record"),
        ({"not_run": "not asked for"}, "not asked for"),
        ({"models": [{"name": "float", "time_reason": "not measured: an emulator"}]}, "side by side: an emulator."),
    ],
)
def test_without_a_benchmark_the_reason_and_the_latency_of_the_evaluation_are_told(benchmark, reason):
    record = newest_record() | {"benchmark": benchmark}
    assert reason in said(record, "latency")
    message = row(table(record, "latency", "Microseconds an inference while evaluating"), "PTQ int8")
    assert (message["first"], message["mean"], message["p50"]) == ("99.9", "43.1", "21.3")


def test_the_distribution_of_latencies_is_drawn_and_what_is_off_its_edge_is_told():
    plot = plots_of(newest_record())["latency"]
    assert "21.1 µs" in plot.svg and "The slowest run, 126 µs, is beyond the edge" in plot.caption
    assert "does not start at 0" not in plot.caption
    record = newest_record()
    record["benchmark"]["models"] = [timed("float", 1.0, quantiles_ms=[1 + step / 100 for step in range(21)])]
    assert "does not start at 0" in plots_of(record)["latency"].caption


def test_instructions_are_millions_with_float_over_it_and_never_a_time():
    record = newest_record()
    record["models"][2]["instructions"]["qemu:cortex-a53"] = {"not_run": "the emulator has no plugins"}
    counts = table(record, "instructions")
    # 5,650,001 / 3,240,777 = 1.743...
    assert counts.rows[1] == ("PTQ int8", "6.28", "0.90x", "3.24", "1.74x")
    assert counts.rows[2][1:3] == ("—", "—")
    assert "cortex-a53 of pruned + QAT int8: not run: the emulator has no plugins" in counts.notes
    assert "a count, not a time" in said(record, "instructions")
    assert "a count, not a time" in plots_of(record)["instructions"].caption
    assert "1.74x fewer than float; a count, not a time" in markdown_of(record)


def test_without_instructions_there_is_no_section_of_them():
    assert "instructions" not in [item.key for item in sections_of(full_record())]


def test_layers_show_bytes_and_zeros_of_each_file_beside_those_of_the_keras_model():
    layers = table(newest_record(), "layers")
    assert row(layers, "conv2d_1") == {
        "layer": "conv2d_1", "float, float32 bytes": "4,800", "PTQ int8, int8 bytes": "1,200",
        "pruned + QAT int8, int8 bytes": "1,200", "float, zeros": "0.00%", "PTQ int8, zeros": "0.00%",
        "pruned + QAT int8, zeros": "50.00%", "Keras model, zeros": "50.00%",
    }  # fmt: skip
    # 4 * (72 + 1200) bytes of float weights; 600 zeros of 1,272 weights.
    assert row(layers, "all weights")["float, float32 bytes"] == "5,088"
    assert row(layers, "all weights")["pruned + QAT int8, zeros"] == "47.17%"
    assert row(layers, "rest of the file")["float, float32 bytes"] == f"{48_320 - 5_088:,}"
    sizes, zeros = layers.bars
    assert sizes.rows[1] == (1.0, 0.25, 0.25) and zeros.rows[1] == (0.0, 0.0, 0.5)


def test_zeros_that_nobody_could_count_are_a_dash_and_not_none():
    record = newest_record()
    record["models"][2]["audit"]["weights"][1]["zeros"] = None
    layers = table(record, "layers")
    assert row(layers, "conv2d_1")["pruned + QAT int8, zeros"] == "—"
    assert row(layers, "all weights")["pruned + QAT int8, zeros"] == "—"


def test_a_layer_that_one_file_lacks_is_a_dash_there_and_a_nameless_one_goes_by_its_tensor():
    record = newest_record()
    record["models"][1]["audit"]["weights"].append(weight(None, 7, 0, tensor="a/tensor"))
    message = row(table(record, "layers"), "a/tensor")
    assert (message["PTQ int8, int8 bytes"], message["float, float32 bytes"], message["float, zeros"]) == (
        "7",
        "—",
        "—",
    )


def test_an_older_record_shows_the_sparsity_of_the_keras_model_alone():
    assert row(table(full_record(), "layers"), "dense") == {"layer": "dense", "zeros": "49.80%"}
    record = full_record() | {"sparsity": {}}
    assert not section(record, "layers").tables and "is in the record" in said(record, "layers")


def test_ops_are_told_by_the_type_that_they_compute_in_with_their_findings():
    record = newest_record()
    record["models"][1]["audit"] = audit(
        False, "mixed", (finding(op="CONV_2D"), finding(op="CONV_2D", severity="note"))
    )
    record["models"][1]["audit"]["op_types"] = {"CONV_2D": {"int8": 3, "float32": 1}}
    message = row(table(record, "audit", "Ops in each file"), "CONV_2D")
    assert (message["float"], message["PTQ int8"]) == ("4 float32", "3 int8, 1 float32")
    assert message["findings"] == "PTQ int8: 1 failure"
    assert row(table(full_record(), "audit", "Ops in each file"), "CONV_2D")["PTQ int8"] == "4"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"ok": True, "scheme": "int16x8", "requirement": "int16x8"}, "int16 activations, int8 weights"),
        (
            {"ok": False, "scheme": "float32", "requirement": "dynamic_range"},
            "not dynamic range: int8 weights in float ops",
        ),
        ({"ok": True, "scheme": "full_int8", "requirement": "tflm"}, "full int8, runs on TFLite Micro"),
        ({"ok": False, "scheme": "mixed", "requirement": "edgetpu"}, "not Edge TPU"),
    ],
)
def test_other_schemes_and_targets_are_told_in_words(changes, verdict):
    record = newest_record()
    record["models"][1] |= {"name": "ptq_int16x8", "audit": audit() | changes}
    assert row(table(record, "audit"), "PTQ int16x8")["verdict"] == verdict


def test_many_findings_are_listed_in_part_failures_first():
    record = full_record()
    findings = (*(finding(severity="note") for _ in range(200)), finding(op="SIN"))
    record["models"][1]["audit"] = audit(False, "mixed", findings)
    listed = table(record, "audit", "Findings in PTQ int8")
    assert len(listed.rows) == 60 and listed.rows[0][1] == "SIN"
    assert listed.notes == ("141 further findings: report.json has all",)


def test_diagnostics_of_the_calibration_set_are_told_in_plain_words():
    record = newest_record()
    assert "200 calibration examples, 1 finding." in said(record, "data")
    assert table(record, "data", "Findings").rows == (("class 1 is a quarter of the examples",),)
    assert "Random noise: no (image: neighbours correlate by 0.7)." in said(record, "data")
    classes = table(record, "data", "Classes")
    assert classes.rows == (("0", "150", "75.00%"), ("1", "50", "25.00%"))
    assert classes.bars[0].rows == ((1.0,), (50 / 150,))
    assert "was not diagnosed" in said(full_record(), "data")


def test_what_could_not_be_diagnosed_is_told_with_its_reason():
    record = newest_record()
    diagnostics = record["stages"][1]["details"]["diagnostics"]
    diagnostics |= {"findings": [], "class_counts": None, "class_counts_reason": "the data has no labels"}
    diagnostics["noise"] = {"is_noise": None, "x": "too few examples"}
    for message in (
        "nothing stands out.",
        "Class balance not measured: the data has no labels.",
        "Random noise: cannot be told (x: too few examples).",
    ):
        assert message in said(record, "data")


def test_recorded_preprocessing_is_held_against_what_is_fed():
    record = newest_record()
    assert row(table(record, "data", "Preprocessing"), "convert to int8")["recorded"] == "the same as fed"
    record["config"]["data"]["scale"] = 1 / 255
    result = table(record, "data", "Preprocessing")
    assert row(result, "convert to int8")["recorded"] == "not what evaluate feeds" and (0, 4) in result.bad


def test_resumed_stages_are_told_and_training_shows_the_ends_of_its_curves():
    record = newest_record()
    assert "1 stage of an earlier run" in said(record, "stages")
    assert row(table(record, "stages"), "train")["details"].startswith("taken from an earlier run")
    assert row(table(record, "stages", "Training"), "train")["loss"] == "2.1 → 0.1"
    assert "earlier run" not in said(full_record(), "stages")


def test_layers_that_were_not_pruned_are_told_by_reason():
    record = full_record()
    skipped = {"relu": "ReLU has no weights", "add": "Add has no weights", "bn": "tfmot prunes no BatchNormalization"}
    record["stages"][0]["details"]["pruning_plan"] = {"pruned": ["conv2d"], "skipped": skipped}
    plan = table(record, "stages", "Pruning")
    assert plan.rows[0] == ("pruned", "1", "conv2d") and row(plan, "no weights")["which"] == "relu, add"


def facts(metric):
    """What a record says about a metric."""
    return {"metric": metric.name, "metrics": {metric.name: metric.facts()}}


@pytest.mark.parametrize(
    ("metric", "value", "float_value", "told", "change"),
    [
        ("mae", 12.3456, 12.0, "12.35 MAE", "+0.346"),
        ("roc_auc", 0.87654, 0.88, "0.8765 ROC AUC", "−0.00346"),
        ("top5", 0.87654, 0.88, "87.65%", "−0.35 points"),
        (Metric.from_function(max, name="score"), 7.0, 8.0, "7 score", "−1"),
    ],
)
def test_a_metric_is_told_in_its_own_unit(metric, value, float_value, told, change):
    record, metric = full_record(), as_metric(metric)
    for model in record["models"]:
        model["evaluation"] |= {"accuracy": value, "reference_accuracy": float_value, **facts(metric)}
    result = table(record, "accuracy")
    assert row(result, "accuracy")["PTQ int8"] == told
    assert row(result, "accuracy minus float's")["PTQ int8"] == change


def test_an_error_is_drawn_with_down_as_better_and_a_users_own_without_a_word():
    record = full_record()
    own = Metric.from_function(max, name="own")
    for metric, words in ((as_metric("mae"), "down and to the left is better"), (own, "is the metric's own matter")):
        for model in record["models"]:
            model["evaluation"] |= {"accuracy": 12.0, **facts(metric)}
        assert words in plots_of(record)["accuracy"].caption


def test_top5_stands_beside_top1():
    assert row(table(newest_record(), "accuracy"), "top-5")["float"] == "99.99%"
    assert "top-5" not in [cells[0] for cells in table(full_record(), "accuracy").rows]


def test_every_number_of_a_table_is_in_markdown_too():
    text = re.sub(r"\\(.)", r"\1", markdown_of(newest_record()))
    for item in sections_of(newest_record()):
        for result in item.tables:
            for cells in result.rows:
                assert all(cell in text for cell in cells)


def test_what_compression_found_is_told_by_layer_and_once():
    layers = [
        {"name": "conv", "qat": "qat", "reason": "its output"},
        {"name": "lstm", "qat": "ptq_only", "reason": "recurrent"},
        {"name": "gru", "qat": "ptq_only", "reason": "recurrent"},
    ]
    details = {
        "bridge": {"max_difference": 2e-7, "notes": ["flip was left out"], "layer_map": {"a/b": ["a_b"], "c": ["c"]}},
        "preflight": {"layers": layers},
        "structured_pruning": {
            "removed": {"conv": {"kept": 8, "of": 32}}, "skipped": {"lstm": "not followed"},
            "macs_before": 1000, "macs_after": 400, "parameters_before": 90, "parameters_after": 40,
            "refit": {"head": {"before": 0.5, "after": 0.125}},
        },
        "pruning_plan": {"pruned": ["conv"], "skipped": {"relu": "ReLU has no weights"}},
    }  # fmt: skip
    section = stages_section({"stages": [{"name": "compress", "seconds": 1.0, "details": details}]})
    stages, bridge, quantized, filters, pruned = section.tables
    assert stages.rows[0][2] == ""
    assert ("note", "flip was left out") in bridge.rows
    assert ("layers under another name", "a/b → a_b") in bridge.rows
    assert not any("c → c" in row[1] for row in bridge.rows)
    assert quantized.rows == (
        ("fake quantization", "1", "conv", ""),
        ("the converter alone", "2", "lstm, gru", "recurrent"),
    )
    assert ("channels of conv", "32", "8") in filters.rows
    assert ("error of head, refit", "50.00%", "12.50%") in filters.rows
    assert filters.notes == ("lstm: not followed",)
    assert pruned.rows[0] == ("pruned", "1", "conv")


def test_a_model_that_was_not_rebuilt_has_no_table_of_it():
    bridge = {"max_difference": 0.0, "notes": [], "layer_map": {"c": ["c"]}}
    section = stages_section({"stages": [{"name": "compress", "seconds": 1.0, "details": {"bridge": bridge}}]})
    assert len(section.tables) == 1


def test_the_flatbuffer_beside_its_qat_model_is_told_layer_by_layer():
    result = table(newest_record(), "qat_parity")
    message = row(result, "conv2d")
    assert (message["equal codes"], message["max LSB"], message["SQNR"], message["local SQNR"]) == (
        "99.87%", "2", "31.4 dB", "58.2 dB",
    )  # fmt: skip
    assert row(result, "conv2d_1")["local SQNR"] == "no difference"
    assert not result.bad and "dropout: not compared: it does nothing after training" in result.notes
    text = said(newest_record(), "qat_parity")
    assert "28.2 dB of the input of SOFTMAX, the same class in 99.61%" in text and "no layer departs" in text


def test_a_layer_that_departs_is_marked_and_what_was_missed_is_told():
    record = newest_record()
    departing = layer_parity("conv2d_1", departs="30.5 steps")
    record["models"][2]["qat_parity"] = qat_parity(layers=[departing], missed=["output 'dense': 3 example(s)"])
    result = table(record, "qat_parity")
    assert row(result, "conv2d_1")[""] == "departs" and result.bad == {(0, 7)}
    assert "conv2d_1: 30.5 steps" in result.notes
    assert "misses what a faithful flatbuffer has: output 'dense': 3 example(s)" in said(record, "qat_parity")


def test_a_comparison_with_the_qat_model_that_was_not_to_be_had_says_why():
    record = newest_record()
    record["models"][2]["qat_parity"] = {"not_run": "no tensor of it is known"}
    assert "not compared: no tensor of it is known" in said(record, "qat_parity")
    assert all(item.key != "qat_parity" for item in sections_of(full_record()))


def test_what_compression_brought_is_told_against_the_dense_file_of_the_same_scheme():
    record = newest_record()
    record["config"]["compression"] = {"prune": {"enabled": True}, "structured_pruning": {"enabled": False}}
    result = table(record, "gain")
    # 9,811 / 13,204 bytes; 600 of 1,272 weights; 21.1 / 21 us; 3,241,000 / 3,240,777.
    assert row(result, "file, gzip")["ratio"] == "0.74x"
    zeros = row(result, "zeros among the weights")
    assert (zeros["PTQ int8"], zeros["pruned + QAT int8"], zeros["ratio"]) == ("0.00%", "47.17%", "—")
    assert row(result, "time on this machine, p50 ms")["ratio"] == "1.00x"
    assert next(item for item in result.rows if "cortex-a76" in item[0])[-1] == "1.00x"
    assert "not the time" in said(record, "gain")


def test_of_filters_taken_out_it_is_not_said_that_they_bring_no_time():
    record = newest_record()
    record["config"]["compression"] = {"prune": {"enabled": False}, "structured_pruning": {"enabled": True}}
    assert "not the time" not in said(record, "gain")


def test_without_a_compressed_model_there_is_no_gain_to_tell():
    record = newest_record()
    record["models"] = record["models"][:2]
    assert all(item.key != "gain" for item in sections_of(record))


def test_several_outputs_have_a_table_with_why_one_has_no_agreement():
    record = full_record()
    assert len(section(record, "accuracy").tables) == 1
    outputs = [
        {"name": "boxes", "sqnr_db": 31.5, "sqnr_db_reason": None, "agreement": None, "agreement_reason": "no class"},
        {"name": "scores", "sqnr_db": 28.0, "sqnr_db_reason": None, "agreement": 0.75, "agreement_reason": None},
    ]
    record["models"][-1]["evaluation"]["outputs"] = outputs
    _, found = section(record, "accuracy").tables
    assert [cells[1:] for cells in found.rows] == [("boxes", "—", "31.5 dB"), ("scores", "75.00%", "28.0 dB")]
    assert any("boxes" in note and "no class" in note for note in found.notes)

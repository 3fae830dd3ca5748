# SPDX-License-Identifier: Apache-2.0
"""The sections of a report: their tables by key, rows and numbers."""

import re
from xml.etree import ElementTree

import pytest
from golden_models import golden
from report_record import (
    audit,
    difference,
    finding,
    full_record,
    layer_parity,
    newest_record,
    qat_parity,
    timed,
    weight,
)

from tfq import tflite
from tfq.auditing import io_table
from tfq.evaluation import Metric, as_metric
from tfq.report.compression_content import UNSTRUCTURED
from tfq.report.content import sections_of, stages_section
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of
from tfq.report.plots import confusion_plots, plots_of
from tfq.report.verdict import checks_of, costs_of

PIXELS = {"scale": 1 / 16, "offset": 0.5}


def section(record, key):
    return next(item for item in sections_of(record) if item.key == key)


def table(record, key, name):
    """Return the first table of that name in a section."""
    return next(item for item in section(record, key).tables if item.key == name)


def row(result, label):
    """Return heading -> cell of the row."""
    return dict(zip(result.columns, next(item for item in result.rows if item[0] == label), strict=True))


def text_of(record, key):
    return " ".join(section(record, key).paragraphs)


def test_the_benchmark_shows_initialization_first_mean_percentiles_and_overhead():
    cells = row(table(newest_record(), "latency", "timings"), "pruned + QAT int8")
    assert cells == {
        "model": "pruned + QAT int8", "init": "1,250", "first": "500", "mean ± std": "21.3 ± 2.1", "p50": "21.1",
        "p90": "24.5", "p99": "40.1", "overhead": "7.7", "runs": "1,234",
    }  # fmt: skip
    assert "XNNPACK kernels, 1 thread" in text_of(newest_record(), "latency")


def test_a_ratio_is_time_over_time_with_its_interval():
    cells = row(table(newest_record(), "latency", "ratios"), "PTQ int8")
    assert list(cells.values()) == ["PTQ int8", "float", "0.50x", "0.48 to 0.52", "2.00x faster"]
    # 1 / 0.8 = 1.25, between 1 / 0.82 = 1.22 and 1 / 0.78125 = 1.28.
    assert "1.25x faster than float (means of paired blocks, 95% interval 1.22 to 1.28)" in markdown_of(newest_record())


def test_a_ratio_whose_interval_contains_1_is_not_significant():
    record = newest_record()
    record["benchmark"]["ratios"][1] |= {"ratio": 1.2, "low": 0.9, "high": 1.5}
    meaning = row(table(record, "latency", "ratios"), "pruned + QAT int8")["meaning"]
    assert "faster" not in meaning and "slower" not in meaning and "significant" in meaning
    record["benchmark"]["ratios"][1] |= {"low": None, "high": None, "reason": "too few blocks"}
    ratios = table(record, "latency", "ratios")
    assert row(ratios, "pruned + QAT int8")["95% interval"] == "—" and "no interval: too few blocks" in ratios.notes


def test_kernels_are_a_column_only_if_they_differ():
    record = newest_record()
    record["benchmark"]["models"].append(timed("float", 0.4, kernels="reference"))
    ratio = {"model": "float", "model_kernels": "xnnpack", "against": "float", "kernels": "reference", "ratio": 9.5}
    record["benchmark"]["ratios"].append(ratio)
    assert "kernels" in table(record, "latency", "timings").columns
    assert row(table(record, "latency", "ratios"), "float, reference")["compared with"] == "float, XNNPACK"
    assert "float, reference" in plots_of(record)["latency"].svg


def test_the_most_expensive_op_comes_first_and_missing_times_have_a_reason():
    ops = table(newest_record(), "latency", "ops")
    assert [cells[:2] for cells in ops.rows] == [("SOFTMAX #1", "dense"), ("CONV_2D #0", "conv2d")]
    assert ops.rows[0][3] == "60.00%" and any("LiteRT's own profiler" in note for note in ops.notes)
    notes = table(newest_record(), "latency", "timings").notes
    assert "times of ops of PTQ int8: the profiler is not available" in notes


@pytest.mark.parametrize(
    ("benchmark", "reason"),
    [
        (None, "has no benchmark"),
        ({"not_run": "not requested"}, "not run: not requested"),
        ({"models": [{"name": "float", "time_reason": "not measured: an emulator"}]}, "not run: an emulator."),
    ],
)
def test_without_a_benchmark_reason_and_evaluation_latency_are_shown(benchmark, reason):
    record = newest_record() | {"benchmark": benchmark}
    assert reason in text_of(record, "latency")
    cells = row(table(record, "latency", "evaluated"), "PTQ int8")
    assert (cells["first"], cells["mean"], cells["p50"]) == ("99.9", "43.1", "21.3")
    assert all(item.key != "evaluated" for item in section(newest_record(), "latency").tables)


def test_latencies_are_plotted_and_runs_outside_are_counted():
    plot = plots_of(newest_record())["latency"]
    assert "21.1 µs" in plot.svg and "126 µs" in plot.caption
    assert "does not start at 0" not in plot.caption
    record = newest_record()
    record["benchmark"]["models"] = [timed("float", 1.0, quantiles_ms=[1 + step / 100 for step in range(21)])]
    assert "does not start at 0" in plots_of(record)["latency"].caption


def test_instructions_are_millions_with_float_over_it_and_never_a_time(undrawn):
    record = newest_record()
    record["models"][2]["portability"]["rows"]["qemu:cortex-a53"] |= {
        "instructions": None,
        "instructions_reason": "the emulator has no plugins",
    }
    counts = table(record, "instructions", "instructions")
    # 5,650,001 / 3,240,777 = 1.743...
    assert counts.rows[1] == ("PTQ int8", "6.28", "0.90x", "3.24", "1.74x")
    assert counts.rows[2][1:3] == ("—", "—")
    assert "cortex-a53 of pruned + QAT int8: not run: the emulator has no plugins" in counts.notes
    assert "a count, not a time" in text_of(record, "instructions")
    assert "a count, not a time" in plots_of(record)["instructions"].caption
    assert "1.74x fewer than float; a count, not a time" in markdown_of(record)


def test_gain_over_float_is_in_figures_of_this_model():
    record = newest_record()
    for model, moved in zip(record["benchmark"]["models"], (4e6, 1.25e6, 1e6), strict=True):
        work = {"multiply_adds": 12_500_000, "bytes_moved": moved, "intensity": 12.5e6 / moved}
        model |= {"workload": work, "examples_per_second": 1000 / model["mean_ms"], "model_bytes": 4 * moved}
    work = table(record, "latency", "work")
    # The means are 1.01 times 42, 21 and 21.1 microseconds.
    assert work.rows[1][1:] == ("12.5", "1.25", "10", "47,148", "3.20x", "3.20x", "2.00x")
    assert work.rows[0][-3:] == ("1.00x", "1.00x", "1.00x")
    assert "4.00x smaller, 4.00x less traffic, and 1.99x as fast" in text_of(record, "latency")
    assert not [item for item in sections_of(newest_record()) for each in item.tables if each.key == "work"]
    assert "4x" not in text_of(newest_record(), "latency")


def test_throughput_has_a_column_for_each_number_of_threads():
    record = newest_record()
    assert not [item for item in section(record, "latency").tables if item.key in ("throughput", "memory")]
    key = {"name": "float", "kernels": "xnnpack"}
    record["benchmark"]["throughput"] = [
        {**key, "batch": 1, "num_threads": 1, "examples_per_second": 512.0, "reason": None},
        {**key, "batch": 8, "num_threads": 1, "examples_per_second": None, "reason": "fixed to 1"},
        {**key, "batch": 1, "num_threads": 2, "examples_per_second": 768.0, "reason": None},
    ]
    result = table(record, "latency", "throughput")
    assert result.columns[3:] == ("1 thread", "2 threads")
    assert [item[2:] for item in result.rows] == [("1", "512", "768"), ("8", "—", "—")]
    assert any("fixed to 1" in note for note in result.notes)


def test_memory_of_a_benchmark_has_its_units():
    record = newest_record()
    memory = {"peak_rss": 30_500_000, "peak_rss.before_the_model": 20_000_000, "xnnpack_packed_weights": 5632}
    record["benchmark"]["models"][1]["costs"] = {"memory_bytes": memory, "notes": ["shared weights count once"]}
    result = table(record, "latency", "memory")
    assert [item[2:] for item in result.rows] == [("30.5", "20", "5.6")]
    assert "shared weights count once" in result.notes


def test_without_instructions_there_is_no_such_section():
    assert "instructions" not in [item.key for item in sections_of(full_record())]


def test_layers_show_bytes_and_zeros_of_all_models():
    layers = table(newest_record(), "layers", "layers")
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


def test_zeros_that_were_not_counted_are_a_dash_and_not_0():
    record = newest_record()
    record["models"][2]["audit"]["weights"][1]["zeros"] = None
    layers = table(record, "layers", "layers")
    assert row(layers, "conv2d_1")["pruned + QAT int8, zeros"] == "—"
    assert row(layers, "all weights")["pruned + QAT int8, zeros"] == "—"


def test_a_missing_layer_is_a_dash():
    record = newest_record()
    record["models"][1]["audit"]["weights"].append(weight(None, 7, 0, tensor="a/tensor"))
    cells = row(table(record, "layers", "layers"), "a/tensor")
    assert (cells["PTQ int8, int8 bytes"], cells["float, float32 bytes"], cells["float, zeros"]) == (
        "7",
        "—",
        "—",
    )


def test_an_older_record_shows_the_sparsity_of_the_keras_model_alone():
    assert row(table(full_record(), "layers", "layers"), "dense") == {"layer": "dense", "zeros": "49.80%"}
    record = full_record() | {"sparsity": {}}
    assert not section(record, "layers").tables and "sparsity" in text_of(record, "layers")


def test_ops_are_listed_by_type_with_their_findings():
    record = newest_record()
    record["models"][1]["audit"] = audit(
        False, "mixed", (finding(op="CONV_2D"), finding(op="CONV_2D", severity="note"))
    )
    record["models"][1]["audit"]["op_types"] = {"CONV_2D": {"int8": 3, "float32": 1}}
    cells = row(table(record, "audit", "ops"), "CONV_2D")
    assert (cells["float"], cells["PTQ int8"]) == ("4 float32", "3 int8, 1 float32")
    assert cells["findings"] == "PTQ int8: 1 failure"
    assert row(table(full_record(), "audit", "ops"), "CONV_2D")["PTQ int8"] == "4"


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
def test_schemes_and_targets_have_names_for_readers(changes, verdict):
    record = newest_record()
    record["models"][1] |= {"name": "ptq_int16x8", "audit": audit() | changes}
    assert row(table(record, "audit", "verdicts"), "PTQ int16x8")["verdict"] == verdict


def test_many_findings_are_listed_in_part_failures_first():
    record = full_record()
    findings = (*(finding(severity="note") for _ in range(200)), finding(op="SIN"))
    record["models"][1]["audit"] = audit(False, "mixed", findings)
    listed = table(record, "audit", "findings")
    assert len(listed.rows) == 60 and listed.rows[0][1] == "SIN"
    assert len(listed.notes) == 1 and "141" in listed.notes[0]


def test_diagnostics_of_the_calibration_set_are_listed():
    record = newest_record()
    assert "200 examples, 1 possible problem" in section(record, "data").gist
    assert table(record, "data", "diagnostics").rows == (("class 1 is a quarter of the examples",),)
    assert "no (image: neighbours correlate by 0.7)" in text_of(record, "data")
    classes = table(record, "data", "classes")
    assert classes.rows == (("0", "150", "75.00%"), ("1", "50", "25.00%"))
    assert classes.bars[0].rows == ((1.0,), (50 / 150,))
    assert section(full_record(), "data").gist == ""


def test_missing_diagnostics_have_their_reason():
    record = newest_record()
    diagnostics = record["stages"][1]["details"]["diagnostics"]
    diagnostics |= {"findings": [], "class_counts": None, "class_counts_reason": "the data has no labels"}
    diagnostics["noise"] = {"is_noise": None, "x": "too few examples"}
    assert "no problem" in section(record, "data").gist
    for reason in ("not measured: the data has no labels", "not known (x: too few examples)"):
        assert reason in text_of(record, "data")


def test_a_held_out_split_is_information_and_not_a_warning(undrawn):
    record = newest_record()
    assert "npz:x.npz has no val split" in text_of(record, "data")
    (check,) = (check for check in checks_of(record) if check.key == "warnings")
    assert check.state == "good" and "data-warnings" not in page_of(record)


def test_recorded_preprocessing_is_compared_with_that_of_the_evaluation():
    record = newest_record()
    assert not table(record, "data", "preprocessing").bad
    record["config"]["data"]["scale"] = 1 / 255
    result = table(record, "data", "preprocessing")
    assert result.bad == {(0, 4)} and result.rows[0][0] == "convert to int8"


def test_resumed_stages_are_marked():
    record = newest_record()
    assert row(table(record, "stages", "stages"), "train")["details"].startswith("reused from an earlier run")
    assert "reused" in text_of(record, "stages") and "reused" not in text_of(full_record(), "stages")
    assert section(full_record(), "stages").gist.startswith("3 stages, ")
    assert section(full_record(), "stages").gist.endswith("; 1 not run")


def test_training_has_first_and_last_values_of_each_step():
    result = table(newest_record(), "training", "training")
    assert [cells[:3] for cells in result.rows] == [
        ("train", "5", "2.1 → 0.1"), ("prune", "3", "0.3 → 0.1"), ("qat", "2", "0.09 → 0.08"),
    ]  # fmt: skip
    assert row(result, "prune")["validation loss"] == "0.4 → 0.2"
    assert row(result, "train")["accuracy"] == "10.00% → 95.00%"
    record = full_record()
    record["stages"][0]["details"] = {}
    assert all(item.key != "training" for item in sections_of(record))
    assert "training" not in section(record, "result").plots


def drawn_points(svg):
    """Return the number of points of each line with a series color, in the order of drawing."""
    root = ElementTree.fromstring(svg)
    lines = [item.attrib for item in root.iter("{http://www.w3.org/2000/svg}path") if "var(--c" in str(item.attrib)]
    return [len(re.findall("[ML]", line["d"])) for line in lines]


def test_training_curves_have_a_point_for_each_epoch_of_each_step():
    # Loss of train (no validation), prune and qat; accuracy of train; two lines of the legend.
    assert drawn_points(plots_of(newest_record())["training"].svg) == [5, 3, 3, 2, 2, 5, 3, 3]
    without = full_record()
    without["stages"] = []
    assert plots_of(without)["training"].svg == "" and plots_of(without)["training"].caption


def test_further_training_is_part_of_the_accuracy_and_not_credited_to_compression():
    record = newest_record()
    (cost,) = (cost for cost in costs_of(record) if cost.key == "accuracy")
    assert any("5 more epochs (prune 3, qat 2)" in detail and "no float model" in detail for detail in cost.details)
    assert any("+0.28 points" in detail and "+0.11 to +2.00" in detail for detail in cost.details)
    for key in ("gain", "training"):
        assert "5 more epochs" in text_of(record, key)
    (cost,) = (cost for cost in costs_of(full_record()) if cost.key == "accuracy")
    assert not any("epoch" in detail for detail in cost.details)


def test_a_difference_within_its_interval_is_not_significant():
    record = newest_record()
    record["models"][2]["evaluation"]["accuracy_difference"] = difference(0.00282, -0.01, 0.02)
    (cost,) = (cost for cost in costs_of(record) if cost.key == "accuracy")
    assert any("not significant" in detail for detail in cost.details)
    record["models"][2]["evaluation"]["accuracy_difference"] = None
    (cost,) = (cost for cost in costs_of(record) if cost.key == "accuracy")
    assert any("no interval" in detail for detail in cost.details)


def test_every_accuracy_has_its_interval_and_its_paired_difference():
    cells = row(table(newest_record(), "accuracy", "evaluation"), "accuracy")
    assert cells["pruned + QAT int8"] == "98.59% (96.59% to 99.59%)"
    changes = row(table(newest_record(), "accuracy", "evaluation"), "accuracy minus float's")
    assert changes["pruned + QAT int8"] == "+0.28 points (95%: +0.11 to +2.00)"
    assert row(table(newest_record(), "accuracy", "evaluation"), "top-5")["float"] == "99.99% (no interval)"


def test_layers_that_were_not_pruned_are_listed_by_reason():
    record = full_record()
    skipped = {"relu": "ReLU has no weights", "add": "Add has no weights", "bn": "tfmot prunes no BatchNormalization"}
    record["stages"][0]["details"]["pruning_plan"] = {"pruned": ["conv2d"], "skipped": skipped}
    plan = table(record, "stages", "pruning")
    assert plan.rows[0] == ("pruned", "1", "conv2d") and row(plan, "no weights")["layers"] == "relu, add"


def facts(metric):
    """Return what a record has about a metric."""
    return {"metric": metric.name, "metrics": {metric.name: metric.facts()}}


@pytest.mark.parametrize(
    ("metric", "value", "float_value", "text", "change"),
    [
        ("mae", 12.3456, 12.0, "12.35 MAE", "+0.346"),
        ("roc_auc", 0.87654, 0.88, "0.8765 ROC AUC", "−0.00346"),
        ("top5", 0.87654, 0.88, "87.65%", "−0.35 points"),
        (Metric.from_function(max, name="score"), 7.0, 8.0, "7 score", "−1"),
    ],
)
def test_a_metric_is_shown_in_its_unit(metric, value, float_value, text, change):
    record, metric = full_record(), as_metric(metric)
    for model in record["models"]:
        model["evaluation"] |= {"accuracy": value, "reference_accuracy": float_value, **facts(metric)}
    result = table(record, "accuracy", "evaluation")
    assert row(result, "accuracy")["PTQ int8"] == f"{text} (no interval)"
    assert row(result, "accuracy minus float's")["PTQ int8"] == f"{change} (no interval)"


def test_the_plot_says_which_direction_of_a_metric_is_better(undrawn):
    record = full_record()
    own = Metric.from_function(max, name="own")
    for metric, words in ((as_metric("mae"), "down and to the left is better"), (own, "does not declare")):
        for model in record["models"]:
            model["evaluation"] |= {"accuracy": 12.0, **facts(metric)}
        assert words in plots_of(record)["accuracy"].caption


def test_top5_is_shown_if_the_record_has_it():
    assert row(table(newest_record(), "accuracy", "evaluation"), "top-5")["float"].startswith("99.99%")
    assert "top-5" not in [cells[0] for cells in table(full_record(), "accuracy", "evaluation").rows]


def test_every_number_of_a_table_is_in_markdown_too():
    text = re.sub(r"\\(.)", r"\1", markdown_of(newest_record()))
    for item in sections_of(newest_record()):
        for result in item.tables:
            for cells in result.rows:
                assert all(cell in text for cell in cells)


def test_the_steps_of_a_compression_are_listed_by_layer():
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
            "refit": {"head": {"before": 0.5, "after": 0.125}}, "branches": {"sum": ["inner", "outer"]},
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
        ("the converter", "2", "lstm, gru", "recurrent"),
    )
    assert ("channels of conv", "32", "8") in filters.rows
    assert ("error of head, by refitting", "50.00%", "12.50%") in filters.rows
    assert filters.notes == ("sum: without inner, outer", "lstm: not followed")
    assert pruned.rows[0] == ("pruned", "1", "conv")


def test_the_form_and_the_cost_of_recurrent_layers_are_listed():
    layer = {"layer": "lstm", "kind": "LSTM", "steps": 60, "form": "fused", "reason": "long", "ops": 2}
    layer |= {"kernel": "builtin", "unrolled": {"ops": 1140, "bytes": 204_000}}
    details = {"recurrent_layers": [layer]}
    section = stages_section({"stages": [{"name": "convert", "seconds": 1.0, "details": details}]})
    (row,) = section.tables[1].rows
    assert row[:2] == ("lstm (LSTM)", "60") and "XNNPACK" in row[2]
    assert row[3:] == ("2", "1,140 ops, 204.0 kB", "long")


def test_a_model_that_was_not_rebuilt_has_no_such_table():
    bridge = {"max_difference": 0.0, "notes": [], "layer_map": {"c": ["c"]}}
    section = stages_section({"stages": [{"name": "compress", "seconds": 1.0, "details": {"bridge": bridge}}]})
    assert len(section.tables) == 1


def test_the_flatbuffer_is_compared_with_its_qat_model_layer_by_layer():
    result = table(newest_record(), "qat_parity", "qat_parity")
    cells = row(result, "conv2d")
    assert [cells[name] for name in ("equal values", "max LSB", "SQNR", "local SQNR")] == [
        "99.87%", "2", "31.4 dB", "58.2 dB",
    ]  # fmt: skip
    assert row(result, "conv2d_1")["local SQNR"] == "no difference"
    assert not result.bad and "dropout: not compared: it does nothing after training" in result.notes
    text = text_of(newest_record(), "qat_parity")
    assert "28.2 dB" in text and "99.61%" in text and "no layer departs" in text


def test_fused_layers_are_not_listed_as_left_out():
    record = newest_record()
    record["models"][2]["qat_parity"]["skipped"]["stem"] = "part of stem_relu"
    assert not any("stem" in note for note in table(record, "qat_parity", "qat_parity").notes)


def test_a_layer_that_differs_is_marked_and_missed_requirements_are_listed():
    record = newest_record()
    departing = layer_parity("conv2d_1", departs="30.5 steps")
    record["models"][2]["qat_parity"] = qat_parity(layers=[departing], missed=["output 'dense': 3 example(s)"])
    result = table(record, "qat_parity", "qat_parity")
    assert row(result, "conv2d_1")["finding"] == "differs" and result.bad == {(0, 7)}
    assert "conv2d_1: 30.5 steps" in result.notes and section(record, "qat_parity").gist.startswith("1 difference ")
    assert "output 'dense': 3 example(s)" in text_of(record, "qat_parity")


def test_a_missing_comparison_with_the_qat_model_has_its_reason():
    record = newest_record()
    record["models"][2]["qat_parity"] = {"not_run": "no tensor of it is known"}
    assert "not compared: no tensor of it is known" in text_of(record, "qat_parity")
    assert all(item.key != "qat_parity" for item in sections_of(full_record()))


def test_the_compressed_model_is_compared_with_ptq_of_its_scheme():
    record = newest_record()
    record["config"]["compression"] = {"prune": {"enabled": True}, "structured_pruning": {"enabled": False}}
    result = table(record, "gain", "gain")
    # 9,811 / 13,204 bytes; 600 of 1,272 weights; 21.1 / 21 us; 3,241,000 / 3,240,777.
    assert row(result, "gzip, bytes")["ratio"] == "0.74x"
    zeros = row(result, "zeros among the weights")
    assert (zeros["PTQ int8"], zeros["pruned + QAT int8"], zeros["ratio"]) == ("0.00%", "47.17%", "—")
    assert row(result, "latency on this machine, p50 µs")["ratio"] == "1.00x"
    assert next(item for item in result.rows if "cortex-a76" in item[0])[-1] == "1.00x"
    assert UNSTRUCTURED in section(record, "gain").paragraphs


def test_structured_pruning_has_no_note_that_single_zeros_save_no_time():
    record = newest_record()
    record["config"]["compression"] = {"prune": {"enabled": False}, "structured_pruning": {"enabled": True}}
    assert UNSTRUCTURED not in section(record, "gain").paragraphs


def test_without_a_compressed_model_there_is_no_comparison_of_it():
    record = newest_record()
    record["models"] = record["models"][:2]
    assert all(item.key != "gain" for item in sections_of(record))


def test_several_outputs_have_a_table_with_reasons_for_missing_agreement():
    record = full_record()
    assert len(section(record, "accuracy").tables) == 1
    outputs = [
        {"name": "boxes", "sqnr_db": 31.5, "sqnr_db_reason": None, "agreement": None, "agreement_reason": "no class"},
        {"name": "scores", "sqnr_db": 28.0, "sqnr_db_reason": None, "agreement": 0.75, "agreement_reason": None},
    ]
    record["models"][-1]["evaluation"]["outputs"] = outputs
    result = table(record, "accuracy", "outputs")
    assert [cells[1:] for cells in result.rows] == [("boxes", "—", "31.5 dB"), ("scores", "75.00%", "28.0 dB")]
    assert any("boxes" in note and "no class" in note for note in result.notes)


def test_inputs_and_outputs_are_shown_as_io_json_has_them(undrawn):
    record = newest_record()
    data = tflite.write_metadata(golden("digits_int8_uint8_io"), {"preprocessing": {"resize": [], **PIXELS}})
    described = tflite.write_model_metadata(data, tflite.ModelMetadata(author="the author <b>"))
    record["models"][1]["audit"]["io"] = io_table(described).to_dict()
    label = section(record, "result").tables[0].rows[1][0]
    cells = row(table(record, "io", "io"), label)
    assert cells["tensor"] == "input image" and cells["type and shape"].startswith("uint8 [1 batch, 8 height")
    assert cells["scale, zero point"] == "0.0627451017, 0"
    assert "x * 0.0625 + 0.5; q = clip(" in cells["steps"]
    assert row(table(record, "io", "metadata"), label)["author"] == "the author <b>"
    assert "the author &lt;b&gt;" in page_of(record)
    assert not [item for item in sections_of(newest_record()) if item.key == "io"]


def confusion_drawing(number, *, has_reference=True):
    """Return the plot of the confusion matrix of that many classes."""
    pytest.importorskip("matplotlib")
    matrix = [[9 if row == column else (row + column) % 3 for column in range(number)] for row in range(number)]
    confusion = {"matrix": matrix, "classes": [f"class {index}" for index in range(number)]}
    confusion["reference_matrix"] = matrix[::-1] if has_reference else None
    record = {"models": [{"name": "ptq_int8", "evaluation": {"classes": {"confusion": confusion}}}]}
    (plot,) = confusion_plots(record).values()
    return plot


def test_numbers_in_a_confusion_matrix_are_black_or_white_as_their_cell_needs():
    drawing = confusion_drawing(4, has_reference=False).svg
    inks = {number: set(re.findall(rf"fill: (#\w+)[^>]*>{number}</text>", drawing)) for number in ("1", "9")}
    # 1 is in dark blue cells, 9 in yellow ones.
    assert inks == {"1": {"#ffffff"}, "9": {"#101010"}}


def test_a_large_confusion_matrix_is_a_picture_with_some_names():
    plot = confusion_drawing(50)
    assert "<image" in plot.svg and len(plot.svg) < 200_000
    assert "class 0" in plot.svg and "class 1<" not in plot.svg
    assert "yellow is 9" in plot.caption


def test_equal_confusion_matrices_are_stated():
    pytest.importorskip("matplotlib")
    confusion = {"matrix": [[1, 0], [0, 1]], "reference_matrix": [[1, 0], [0, 1]], "classes": ["a", "b"]}
    record = {"models": [{"name": "ptq_int8", "evaluation": {"classes": {"confusion": confusion}}}]}
    (plot,) = confusion_plots(record).values()
    assert plot.caption.endswith("The float model has the same matrix.")

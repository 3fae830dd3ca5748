# SPDX-License-Identifier: Apache-2.0
"""The table for the terminal, and the format of numbers."""

import re

import pytest
from report_record import full_record, newest_record, not_run, portability, timed

from tfq.report import portability_text, summary_table
from tfq.report.formatting import (
    kilobytes,
    millions,
    model_label,
    percent,
    plain,
    points,
    scalar,
    seconds,
    significant,
    time_unit,
)
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of
from tfq.report.summary import summary_of, training_notes
from tfq.report.verdict import costs_of


def row_of(table, label):
    return next(line for line in table.splitlines() if line.startswith(label))


def column(record, start):
    """Return model label -> cell of the column whose heading starts with `start`."""
    table = summary_of(record)
    (index,) = (index for index, name in enumerate(table.columns) if name.replace("\xa0", " ").startswith(start))
    return {row[0]: row[index] for row in table.rows}


def test_the_table_shows_every_model_with_its_numbers():
    table = summary_table(newest_record())
    for cell in ("98.59%", "96.59% to 99.59%", "98.87%", "18.1", "9.8", "21.1", "8 of 9"):
        assert cell in row_of(table, "pruned + QAT int8")
    assert row_of(table, "PTQ int8") and row_of(table, "float") and "x86_64" in table


def test_latency_is_the_same_in_table_headline_and_every_section():
    record = newest_record()
    # The evaluation measured 42.1, 21.3 and 21.5 µs, the benchmark 42, 21 and 21.1 µs.
    assert column(record, "p50 latency") == {"float": "42", "PTQ int8": "21", "pruned + QAT int8": "21.1"}
    (cost,) = (cost for cost in costs_of(record) if cost.key == "latency")
    assert cost.value == "21.1 µs" and "float 42 µs" in cost.details
    for show in (page_of, markdown_of, summary_table):
        assert not re.search(r"\b21\.5\b", show(record))
    assert column(full_record(), "p50 latency") == {"float": "42.1", "PTQ int8": "21.3", "pruned + QAT int8": "21.5"}


def test_a_benchmark_of_several_kernels_shows_the_kernels_of_the_evaluation():
    record = newest_record()
    record["benchmark"]["models"].insert(0, timed("float", 0.9, kernels="builtin"))
    assert column(record, "p50 latency")["float"] == "42"
    record["models"][0]["evaluation"]["xnnpack"] = False
    assert column(record, "p50 latency")["float"] == "0.9"


def test_latencies_of_benchmark_and_evaluation_are_never_mixed():
    record = newest_record()
    del record["benchmark"]["models"][1]
    assert column(record, "p50 latency")["PTQ int8"] == "—"
    assert "latency of PTQ int8: not in the benchmark" in summary_table(record)


def test_accuracy_has_its_interval_and_says_if_there_is_none():
    record = newest_record()
    assert column(record, "95%")["pruned + QAT int8"] == "96.59% to 99.59%"
    record["models"][2]["evaluation"]["metrics"]["top1"]["interval"] = None
    assert column(record, "95%")["pruned + QAT int8"] == "no interval"
    record["models"][2]["evaluation"]["accuracy"] = None
    assert column(record, "95%")["pruned + QAT int8"] == "—"


def test_further_training_is_stated_and_only_of_the_model_that_had_it():
    (note,) = training_notes(newest_record())
    # prune 3 epochs, qat 2.
    assert note.startswith("pruned + QAT int8") and "5 more epochs (prune 3, qat 2)" in note
    assert note in summary_table(newest_record()) and training_notes(full_record()) == []


def test_the_table_is_aligned_and_fits_a_terminal():
    lines = summary_table(newest_record()).split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= 120
    assert len({len(line) for line in lines[2:]}) == 1
    assert lines == [line.rstrip() for line in lines]


def test_a_missing_value_is_a_dash_with_its_reason_once():
    record = full_record()
    for model in record["models"]:
        model["evaluation"].update(accuracy=None, accuracy_reason="the data has no labels")
    record["models"][0]["evaluation"]["latency_p50_ms"] = None
    table = summary_table(record)
    assert row_of(table, "PTQ int8").split()[2] == "—"
    assert table.count("the data has no labels") == 1
    assert "accuracy, interval of float, PTQ int8, pruned + QAT int8: the data has no labels" in table
    assert "latency of float: the record has no reason" in table


def test_records_without_models_or_evaluation_give_a_table():
    assert summary_table({}) == "no model was evaluated"
    table = summary_table({"models": [{"name": "qat_int8"}]})
    assert row_of(table, "QAT int8").split()[2:] == ["—"] * 7
    assert "not evaluated" in table and "emulated" not in table


def test_a_custom_metric_is_not_a_percentage():
    record = full_record()
    for model in record["models"]:
        model["evaluation"].update(metric="mean_absolute_error", accuracy=12.3456)
    table = summary_table(record)
    assert "12.35 mean_absolute_error" in row_of(table, "PTQ int8") and "1234" not in table


def test_instructions_are_a_column_if_they_fit():
    table = summary_table(newest_record())
    assert row_of(table, "PTQ int8").endswith("  6.28 / 3.24")
    assert table.splitlines()[0].endswith("a53 / a76") and table.splitlines()[1].endswith("M instructions")
    assert "a count, not a time" in table and max(map(len, table.split("\n\n")[0].splitlines())) <= 120
    assert "instructions" not in summary_table(full_record())


def test_instructions_are_a_line_below_if_they_do_not_fit():
    record = newest_record()
    record["models"][0]["name"] = "a model with quite a long name"
    table = summary_table(record)
    assert max(map(len, table.split("\n\n")[0].splitlines())) <= 120
    assert "a count, not a time: a model with quite a long name 5.65 / 5.65; PTQ int8 6.28 / 3.24" in table


def test_control_characters_never_reach_the_terminal():
    record = full_record()
    record["models"][0]["name"] = "evil\x1b[2J\nname"
    record["models"][2]["portability"] = portability(not_run("qemu:cortex-a53", "line one\nline\x07 two"))
    table = f"{summary_table(record)}\n{portability_text(record)}"
    assert "\x1b" not in table and "\x07" not in table
    assert "evil [2J name" in table and "line one line  two" in table


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.97222), "97.22%"),
        (percent(1), "100.00%"),
        (percent(None), "—"),
        (points(-0.0028), "−0.28"),
        (points(0.004), "+0.40"),
        (kilobytes(1_234_567), "1,234.6 kB"),
        (significant(0.042151), "0.0422"),
        (significant(12.345), "12.3"),
        (significant(1234.5), "1,234"),
        (significant(0), "0"),
        (significant(float("inf")), "—"),
        (millions(6_284_000), "6.28"),
        (millions(48_123), "0.0481"),
        (millions(123_456_789), "123"),
        (time_unit([0.099, None]).text(0.00654), "6.54"),
        (time_unit([0.099, 0.1]).text(0.00654), "0.00654"),
        (time_unit([]).short, "ms"),
        (seconds(0.348), "0.35 s"),
        (seconds(12.34), "12.3 s"),
        (seconds(125.9), "2 min 05 s"),
        (scalar({"a": [1, 2], "b": None}), "a 1, 2, b —"),
        (scalar([0.5, 0.4, 0.3, 0.2, 0.1]), "0.5 … 0.1 (5 values)"),
        (scalar(True), "yes"),
        (plain("a\ud800b"), "a b"),
        (model_label("pruned_int8"), "pruned int8"),
        (model_label("int8"), "int8"),
        (model_label("ptq_weight_only_int8"), "PTQ weight-only int8"),
        (model_label("pruned_qat_int16x8"), "pruned + QAT int16x8"),
        (model_label("something_else"), "something_else"),
        (model_label("resnet8_cifar10_int8"), "resnet8_cifar10_int8"),
    ],
)
def test_numbers_and_names_read_as_expected(shown, expected):
    assert shown == expected

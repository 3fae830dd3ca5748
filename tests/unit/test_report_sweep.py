# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep: every number of the record is on it, and what is missing is said."""

import re

import pytest
from sweep_record import sweep_record

from tfq.report.kinds import KINDS
from tfq.report.markdown import markdown_of
from tfq.report.page import page_of
from tfq.report.sweep_plots import QUANTIZATION, compared_axes, front_key, sweep_plots


def table(record, section, key):
    found = {item.key: item for item in KINDS["sweep"].sections(record)}[section]
    return next(item for item in found.tables if item.key == key)


def row(record, name):
    groups = table(record, "result", "groups")
    return dict(zip(groups.columns, next(cells for cells in groups.rows if cells[0].startswith(name)), strict=True))


def test_a_row_has_the_mean_and_the_spread_over_seeds():
    cells = row(sweep_record(), "pruned50/int8")
    assert cells["top1, test"] == "85.10% ± 0.20"
    assert cells["minus reference, test (95% interval)"] == "−0.90 (−1.50 to −0.30)"
    assert cells["file, gzip"] == "59.0 kB"
    assert cells["instructions"] == "1.5 million"


def test_a_missing_cost_is_a_dash_with_its_reason():
    record = sweep_record()
    assert row(record, "dense/int4")["arena"] == "–" or row(record, "dense/int4")["arena"] == "—"
    notes = " ".join(table(record, "result", "groups").notes)
    assert "tflm has no kernel for int4" in notes
    assert "dense/int4" in notes


def test_groups_can_be_sorted():
    assert table(sweep_record(), "result", "groups").sortable


def test_a_failed_point_is_listed_with_its_stage_and_reason():
    cells = table(sweep_record(), "unfinished", "unfinished").rows
    assert cells == (("pruned80/int4/seed1", "failed", "convert", "the worker was killed"),)


def test_the_verdict_is_open_if_the_best_group_is_within_noise_of_a_smaller_one():
    verdict = KINDS["sweep"].verdict(sweep_record())
    assert verdict.state == "open"
    assert "pruned50/int8" in {check.key: check.answer for check in verdict.checks}["noise"]


def test_the_verdict_names_the_size_that_the_budget_bounds():
    checks = {check.key: check.answer for check in KINDS["sweep"].verdict(sweep_record()).checks}
    assert "smallest file after gzip" in checks["noise"]
    record = sweep_record()
    record["best"]["size"] = "model_bytes"
    checks = {check.key: check.answer for check in KINDS["sweep"].verdict(record).checks}
    assert "smallest file of all" in checks["noise"]


def test_each_difference_has_the_source_of_its_spread_over_seeds():
    record = sweep_record()
    record["groups"][0]["differences"]["test"]["spread_from"] = "all"
    record["best"]["against"]["pruned50/int8"]["spread_from"] = "own"
    assert row(record, "dense/int8")["spread over seeds from"] == "all groups"
    assert row(record, "pruned80/int4")["spread over seeds from"] == "the same families"
    assert table(record, "budget", "against").rows[0][2] == "this pair"
    assert table(record, "fronts", front_key("gzip_bytes")).rows[1][4] == "the same families"


def test_spreads_over_seeds_say_which_are_used():
    rows = table(sweep_record(), "seed_spreads", "seed_spreads").rows
    assert rows[0][2:4] == ("3.10 points", "5")
    assert rows[1] == ("dense and pruned", "different models", "0.20 points", "4", "yes")
    assert rows[2][:2] == ("pruned", "one model") and rows[2][4].startswith("no")


def test_the_verdict_fails_if_no_group_is_within_the_budget():
    record = sweep_record()
    record["best"] |= {"group": None, "sentence": "no group is left"}
    assert KINDS["sweep"].verdict(record).state == "bad"


def test_dominated_groups_within_noise_of_the_front_are_named():
    notes = table(sweep_record(), "fronts", front_key("gzip_bytes")).notes
    assert "dense/int4 is within noise of pruned50/int8" in notes
    assert "pruned50/int4 is not compared: the worker was killed" in notes


def test_a_front_without_members_has_no_plot():
    assert set(sweep_plots(sweep_record())) == {front_key("gzip_bytes"), QUANTIZATION}


def test_the_plot_of_a_front_names_its_members():
    drawing = sweep_plots(sweep_record())[front_key("gzip_bytes")].svg
    for name in ("pruned80/int4", "pruned80/int8", "pruned50/int8", "dense/int8"):
        assert name in drawing


def test_quantization_against_pruning_has_a_color_for_each_scheme():
    plot = sweep_plots(sweep_record())[QUANTIZATION]
    assert {"var(--c0)", "var(--c1)"} <= set(re.findall(r"var\(--c\d\)", plot.svg))
    assert "int8" in plot.svg
    assert "int4" in plot.svg


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"a": {"x": {"compression": {}}}, "b": {"y": {"conversion": {}}}}, ("b", "a")),
        ({"a": {"x": {"compression": {}}}}, None),
        ({"a": {"x": {"compression": {}, "conversion": {}}}}, None),
        ({}, None),
    ],
)
def test_quantization_is_compared_with_pruning_if_each_has_an_axis(axes, expected):
    assert compared_axes({"grid": {"axes": axes}}) == expected


def test_the_page_is_whole_without_groups_as_for_one_shard():
    record = {**sweep_record(), "groups": [], "reference_groups": [], "fronts": [], "best": None, "shard": [1, 2]}
    assert "sweep merge" in page_of(record)


@pytest.mark.parametrize(
    "key", ["grid", "axes", "groups", "reference_groups", "fronts", "best", "stages", "timing", "seed_spreads"]
)
def test_a_damaged_record_still_gives_a_page(key):
    for value in (None, [], {}, "x", 3):
        record = {**sweep_record(), key: value}
        assert KINDS["sweep"].sections(record)
        assert KINDS["sweep"].verdict(record).headline
    assert "<html" in page_of(record)
    assert markdown_of(record)


def test_text_of_the_record_is_escaped():
    record = sweep_record()
    record["groups"][0]["group"] = "<script>alert(1)</script>"
    assert "<script>alert" not in page_of(record)


def test_instructions_are_shown_once_with_their_backend():
    record = sweep_record()
    for group in record["groups"]:
        group["costs"]["instructions qemu:cortex-a53"] = group["costs"]["instructions"]
    columns = table(record, "result", "groups").columns
    assert "instructions on qemu:cortex-a53" in columns and "instructions" not in columns


def test_comparisons_without_an_interval_are_named_with_their_reason():
    record = sweep_record()
    missing = {"low": None, "high": None, "reason": "ECE has no draws", "is_noise": None}
    record["groups"][2]["differences"]["test"] |= missing
    record["best"]["against"]["pruned80/int8"] |= missing
    record["best"]["without_interval"] = {"pruned80/int8": "ECE has no draws"}
    record["fronts"][0]["members"][2]["without_interval"] = {"pruned80/int8": "ECE has no draws"}
    record["fronts"][0]["possible"]["dense/int4"]["difference"] |= missing
    name = record["groups"][2]["group"]
    assert row(record, name)["minus reference, test (95% interval)"].endswith("(no interval)")
    notes = table(record, "result", "groups").notes
    assert f"No interval of the difference from the reference: {name}: ECE has no draws" in notes
    against = table(record, "budget", "against")
    assert [cells[-1] for cells in against.rows] == [
        "within noise",
        "not known",
    ] and "ECE has no draws" in against.notes[0]
    notes = table(record, "fronts", front_key("gzip_bytes")).notes
    assert "No interval of the difference of pruned50/int8 from: pruned80/int8: ECE has no draws" in notes
    assert any(note.startswith("it is not known whether dense/int4 is within noise") for note in notes)
    answers = {check.key: check.answer for check in KINDS["sweep"].verdict(record).checks}
    assert "no interval" in answers["unpaired"]


def test_scores_that_are_not_fractions_have_four_decimals():
    record = sweep_record()
    for point in record["points"]:
        for score in point["scores"].values():
            score |= {"metric": "mean_iou", "unit": "score"}
    cells = row(record, "pruned50/int8")
    assert cells["mean_iou, test"].endswith("± 0.0020")
    assert cells["minus reference, test (95% interval)"] == "−0.0090 (−0.0150 to −0.0030)"


def test_the_headline_is_the_first_sentence_and_a_check_has_the_rest():
    record = sweep_record()
    record["best"]["sentence"] = (
        "dense/int8 is best, with 85.60% on test. It is not better than pruned50/int8. Smallest."
    )
    verdict = KINDS["sweep"].verdict(record)
    assert verdict.headline == "dense/int8 is best, with 85.60% on test"
    assert {check.key: check.answer for check in verdict.checks}["noise"].startswith("It is not better than pruned50")
    record["best"]["indistinguishable"] = []
    record["points"] = record["points"][:-1]
    verdict = KINDS["sweep"].verdict(record)
    assert (verdict.state, verdict.checks[-1].key) == ("good", "margin")
    record["best"]["sentence"] = "dense/int8 is best. But pruned50/int8 is better on test."
    assert KINDS["sweep"].verdict(record).state == "open"


def test_labels_of_close_points_do_not_cover_each_other():
    from tfq.report.plots import figure_of, style
    from tfq.report.sweep_plots import _write_labels

    with style():
        figure, axes = figure_of(3.4, wide=True)
        axes.set_xlim(0, 10)
        axes.set_ylim(0, 10)
        names = {
            (5, 5): "pruned80/int8",
            (5.2, 5): "pruned80/int4",
            (5.1, 5.3): "pruned70/int4",
            (9.9, 9): "float32 (reference)",
        }
        _write_labels(figure, axes, names)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)

# SPDX-License-Identifier: Apache-2.0
"""Evaluations on corrupted inputs: paired numbers against an independent computation, bounds, and the report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from messages import refused

import tfq
from tfq import evaluation, registry, workflows
from tfq.errors import InputError
from tfq.evaluation import requirements_of
from tfq.evaluation.figure_readers import Measured
from tfq.evaluation.figures import figure_named
from tfq.report.robustness_content import robustness_plots, robustness_section, robustness_text
from tfq.robustness.corruption import Corruption, corrupt
from tfq.robustness.statistic import mean_of
from tfq.workflows import robustness_fields

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = {"float": GOLDEN / "digits_float32.tflite", "int8": GOLDEN / "digits_int8.tflite"}
NUM_EXAMPLES = 40


def config(**settings):
    return tfq.EvaluationConfig(
        robustness=tfq.RobustnessConfig(limit=NUM_EXAMPLES, **{"input_range": (0, 16)} | settings)
    )


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("sklearn")
    split = tfq.load_split(tfq.DataConfig(source="digits"), "test", limit=60)
    return next(iter(split.pieces()))


@pytest.fixture(scope="module")
def record(data):
    names = ("gaussian_noise", "translation", "mirrored")
    return tfq.evaluate_robustness(MODELS, data, config(corruptions=names, severities=(1, 4)), reference="float")


def answers(model, inputs):
    """Return the classes that a model predicts, from one inference at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = source["quantization"]
    results = []
    for example in inputs:
        if scale:
            example = np.clip(np.rint(example / np.float32(scale) + zero_point), -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], example[None])
        interpreter.invoke()
        results.append(int(interpreter.get_tensor(sink["index"])[0].argmax()))
    return np.array(results)


def test_means_and_drops_equal_an_independent_computation(data, record):
    ((_, inputs),) = data.inputs.items()
    inputs, labels = inputs[:NUM_EXAMPLES], data.labels[:NUM_EXAMPLES]
    drops = {}
    for name, file in MODELS.items():
        per_corruption = []
        for corruption in ("gaussian_noise", "translation"):
            known = registry.get(Corruption, corruption)
            versions = [corrupt(inputs, known, s, limits=(0, 16), parameter_set="cifar10_c") for s in (1, 4)]
            per_corruption.append(np.mean([answers(file, version) == labels for version in versions], axis=0))
        clean = answers(file, inputs) == labels
        drops[name] = clean - np.mean(per_corruption, axis=0)
        result = record.model(name)
        assert result.mean.value == pytest.approx(np.mean(per_corruption))
        assert result.clean.value == clean.mean()
        assert result.drop.value == pytest.approx(drops[name].mean())
    assert record.model("int8").extra_drop.value == pytest.approx((drops["int8"] - drops["float"]).mean())


def test_mean_has_the_interval_of_student():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).random(30)
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    result = mean_of(values)
    assert (result.low, result.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_corruption_that_changes_nothing_loses_nothing(data):
    with registry.temporary():
        nothing = Corruption(
            name="nothing", help="none", kind="image", apply=lambda x, *rest: x.copy(), parameters={"": (0,)}
        )
        tfq.register(nothing)
        record = tfq.evaluate_robustness(MODELS, data, config(corruptions=("nothing",)), reference="float")
    for name in MODELS:
        result = record.model(name)
        assert (result.drop.value, result.mean.value) == (0, result.clean.value)
        assert result.agreement == result.clean_agreement


def test_fewer_examples_give_the_same_versions(data, record):
    # A different limit must not change what the first examples look like.
    names = ("gaussian_noise",)
    half = tfq.EvaluationConfig(
        robustness=tfq.RobustnessConfig(
            limit=NUM_EXAMPLES // 2, input_range=(0, 16), corruptions=names, severities=(4,)
        )
    )
    rest = tfq.Split(
        name="test", inputs={k: v[: NUM_EXAMPLES // 2] for k, v in data.inputs.items()}, labels=None, source="arrays"
    )
    one = tfq.evaluate_robustness(MODELS, data, half, reference="float")
    other = tfq.evaluate_robustness(MODELS, rest, half, reference="float")
    assert one.model("int8").agreement == other.model("int8").agreement


def test_without_labels_there_is_only_agreement(data):
    inputs = tfq.Split(name="test", inputs=data.inputs, labels=None, source="arrays")
    record = tfq.evaluate_robustness(MODELS, inputs, config(corruptions=("contrast",)), reference="float")
    result = record.model("int8")
    assert record.accuracy_reason == "the data has no labels"
    assert result.mean.value is None and 0 < result.agreement <= 1
    assert "agreement" in record.to_text()


def test_bound_on_the_drop_is_missed_and_met(record):
    values = record.to_dict()
    evaluation = {"metrics": {}, "metric": "top1", "skipped": {}, **robustness_fields(values, "int8")}
    drop = record.model("int8").drop.value
    for bound, holds in ((drop + 0.01, True), (max(0, drop - 0.001), drop <= 0)):
        require = tfq.RequireConfig(max_robustness_drop=bound)
        (item,) = requirements_of(evaluation, require)
        assert (item.holds, item.value) == (holds, drop)


def test_bound_without_the_evaluation_is_missed_with_the_reason():
    evaluation = {"metrics": {}, "metric": "top1", "robustness": None, "robustness_reason": "it is not enabled"}
    readings = list(figure_named("robustness_drop").read(Measured(name="", evaluation=evaluation)))
    assert readings[0][1].value is None and readings[0][1].reason == "it is not enabled"


def test_report_shows_models_corruptions_mistakes_and_pictures(record):
    values = json.loads(json.dumps(record.to_dict()))
    section = robustness_section({"robustness": values})
    tables = {table.key: table for table in section.tables}
    assert [row[0] for row in tables["corruptions"].rows] == ["gaussian_noise", "translation"]
    assert [row[0] for row in tables["mistakes"].rows] == ["mirrored"]
    assert len(tables["robustness_classes"].rows) == len(values["classes"]["class"])
    if "robustness_examples" in tables:
        assert all(tables["robustness_examples"].pictures)
    assert tables["mistakes"].rows[0][1] == "the app feeds the mirrored preview of a front camera"
    pytest.importorskip("matplotlib")
    assert "gaussian noise" in robustness_plots({"robustness": values})["robustness"].svg


def test_report_shows_numbers_with_intervals_and_units(record):
    values = json.loads(json.dumps(record.to_dict()))
    tables = {table.key: table for table in robustness_section({"robustness": values}).tables}
    number, interval = r"[−+]?\d+\.\d+", r" \([−+]?\d+\.\d+ to [−+]?\d+\.\d+\)"
    summary = dict(zip(tables["robustness"].columns, tables["robustness"].rows[1], strict=True))
    assert re.fullmatch(f"{number}%{interval}", summary["clean"])
    assert re.fullmatch(number + interval, summary["drop, points"])
    errors = tables["robustness_calibration"].rows
    assert errors[0][3] == "—" and all(re.fullmatch(number + interval, cell) for cell in errors[1][1:])
    of_scores = robustness_section({"robustness": {**values, "unit": "score"}}).tables[0]
    assert "drop" in of_scores.columns and re.fullmatch(r"0\.\d{4} \(0\.\d{4} to 0\.\d{4}\)", of_scores.rows[1][2])
    values["models"][1]["ece"] |= {"low": None, "high": None}
    (table,) = (
        table for table in robustness_section({"robustness": values}).tables if table.key == "robustness_calibration"
    )
    assert table.rows[1][2].endswith("(no interval)")


def test_terminal_text_has_the_means_of_each_model_and_what_is_missing(record):
    values = json.loads(json.dumps(record.to_dict()))
    lines = robustness_text({"robustness": values}).splitlines()
    shown = [line for line in lines if line.startswith("int8")]
    assert f"{record.model('int8').mean.value:.2%}" in shown[0]
    assert f"{record.model('int8').ece.value:.3f}" in shown[1]
    values["ece_reason"] = "too few examples"
    assert "too few examples" in robustness_text({"robustness": values})
    assert robustness_text({"robustness": None}) == ""


def test_each_column_of_the_plot_has_the_numbers_of_the_severities(record):
    pytest.importorskip("matplotlib")
    values = json.loads(json.dumps(record.to_dict()))
    one = values["conditions"]
    # Five panels are two rows, of which the last has one.
    names = ("a", "b", "c", "d", "e")
    values["conditions"] = [
        {**item, "corruption": name} for name in names for item in one if item["corruption"] == "translation"
    ]
    drawing = robustness_plots({"robustness": values})["robustness"].svg
    assert len(re.findall(r">5</text>", drawing)) == 4


def test_degraded_examples_are_right_without_corruption(data):
    record = tfq.evaluate_robustness(MODELS, data, config(corruptions=("gaussian_noise", "rotation")))
    assert record.degraded is not None and record.degraded["subject"] == "float"
    for item in record.degraded["examples"]:
        assert item["clean_classes"]["float"] == item["label"] != item["classes"]["float"]
        assert item["clean"] != item["corrupted"]


def test_signal_is_chosen_by_the_rank_of_the_input():
    from tfq.robustness.inputs import chosen_corruptions, inputs_of

    split = tfq.Split(
        name="test", inputs={"x": np.linspace(-3, 5, 60, dtype=np.float32).reshape(2, 30)}, labels=None, source="a"
    )
    inputs = inputs_of(split, tfq.RobustnessConfig())
    assert (inputs.kind, inputs.limits) == ("signal", (-3, 5))
    chosen, _ = chosen_corruptions(inputs, tfq.RobustnessConfig())
    assert {item.kind for item in chosen} == {"signal"}


@pytest.mark.parametrize("brightest", [16, 1000])
def test_images_of_unknown_range_are_an_error(brightest):
    from tfq.robustness.inputs import inputs_of

    split = tfq.Split(
        name="test",
        inputs={"x": np.linspace(0, brightest, 384, dtype=np.float32).reshape(2, 8, 8, 3)},
        labels=None,
        source="a",
    )
    with pytest.raises(InputError, match="input_range"):
        inputs_of(split, tfq.RobustnessConfig())


def test_a_run_refuses_data_that_cannot_be_corrupted_before_any_work(tmp_path, monkeypatch):
    from tfq.workflows import run

    pytest.importorskip("sklearn")
    monkeypatch.setattr(run, "make_flatbuffers", lambda run: pytest.fail("the run has started"))
    settings = tfq.EvaluationConfig(robustness=tfq.RobustnessConfig(enabled=True))
    data = tfq.DataConfig(source="digits")
    with refused(InputError, field="evaluation.robustness.input_range"):
        run.run_recipe(tfq.RunConfig(model="digits_cnn", data=data, out=str(tmp_path), evaluation=settings))


def test_an_evaluation_refuses_data_that_cannot_be_corrupted_before_any_work(data, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate_model", lambda *args, **rest: pytest.fail("the evaluation has started"))
    settings = tfq.EvaluationConfig(robustness=tfq.RobustnessConfig(enabled=True))
    with refused(InputError, field="evaluation.robustness.input_range"):
        workflows.evaluate(MODELS["int8"].read_bytes(), tfq.RunConfig(evaluation=settings), test=data)


def test_named_corruption_that_does_not_apply_is_an_error(data):
    with pytest.raises(InputError, match="channel"):
        tfq.evaluate_robustness(MODELS, data, config(corruptions=("bgr",)))


def test_unknown_reference_is_an_error(data):
    with pytest.raises(InputError, match="reference"):
        tfq.evaluate_robustness(MODELS, data, config(), reference="flaot")

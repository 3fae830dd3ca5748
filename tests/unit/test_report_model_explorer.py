# SPDX-License-Identifier: Apache-2.0
"""Node data for Model Explorer: graph ids and node keys are those that its own loader gives to the file."""

import importlib.util
import json

import numpy as np
import pytest
from messages import refused

import tfq
from tfq import tflite
from tfq.config import AnalysisConfig, BenchmarkConfig
from tfq.errors import InputError
from tfq.report.model_explorer import NodeData, graph_id


@pytest.fixture(scope="module")
def loader(root):
    """Return the script that stored what Model Explorer's loader sees."""
    path = root / "benchmarks" / "model_explorer.py"
    specification = importlib.util.spec_from_file_location("model_explorer_benchmark", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def seen(golden):
    """Return file -> graph id -> node id -> label, as Model Explorer's loader sees them."""
    return json.loads((golden / "model_explorer.json").read_text())


def node_data(**values):
    return NodeData(**{"file": "f.json", "title": "t", "values": {}, "low_is_bad": True, **values})


def test_each_golden_file_was_loaded(golden, seen):
    files = {path.name for path in golden.glob("*.tflite")}
    assert files == {name for name in seen if "unnamed" not in name} and len(seen) == len(files) + 2


def test_graph_ids_and_node_keys_are_those_of_the_loader(golden, loader, seen):
    for name, graphs in seen.items():
        content = (golden / name.replace("_unnamed", "")).read_bytes()
        model = tflite.read(loader.unnamed(content) if "unnamed" in name else content)
        ops = model.main_subgraph.ops
        data = node_data(values=dict.fromkeys(range(len(ops)), 1.0)).to_dict(model)
        assert loader.unknown_keys(data, graphs) == [], name
        assert {str(op.index): loader.label_of(op) for op in ops} == graphs[graph_id(model)], name


def test_the_check_of_keys_sees_a_wrong_graph_and_a_wrong_node(loader, seen):
    graphs = seen["digits_int8.tflite"]
    assert loader.unknown_keys({"main": {"results": {"0": 1, "99": 2}}}, graphs) == [("main", "99")]
    assert loader.unknown_keys({"other": {"results": {}}}, graphs) == [("other", None)]


def test_an_op_that_the_model_does_not_have_is_refused(golden):
    model = tflite.read((golden / "digits_int8.tflite").read_bytes())
    with refused(InputError, field="model", expected=9, word="#9"):
        node_data(values={0: 1.0, 9: 1.0}).to_dict(model)


@pytest.mark.parametrize(("low_is_bad", "red"), [(True, 0), (False, 1)])
def test_bad_values_are_red(golden, low_is_bad, red):
    model = tflite.read((golden / "digits_int8.tflite").read_bytes())
    (data,) = node_data(values={0: 1.0}, low_is_bad=low_is_bad).to_dict(model).values()
    assert [item["stop"] for item in data["gradient"]] == [0, 1]
    assert data["gradient"][red]["bgColor"] == "#d64545"


@pytest.fixture(scope="module")
def analysis(golden):
    images = np.random.default_rng(0).uniform(0, 16, (4, 8, 8, 1)).astype(np.float32)
    settings = AnalysisConfig(limit=4, histograms=False, sensitivity=True)
    return tfq.analyze(golden / "digits_int8.tflite", golden / "digits_float32.tflite", images, settings)


def test_an_analysis_gives_the_error_and_the_sensitivity_of_each_op(golden, analysis, loader, seen, tmp_path):
    lines = tfq.write_node_data(analysis.to_dict(), {"model": golden / "digits_int8.tflite"}, tmp_path)
    assert len(lines) == 2 and all("9 ops" in line for line in lines)
    graphs = seen["digits_int8.tflite"]
    errors, sensitivity = (
        json.loads((tmp_path / f"model_explorer_{name}.json").read_text()) for name in ("sqnr", "sensitivity")
    )
    assert loader.unknown_keys(errors, graphs) == loader.unknown_keys(sensitivity, graphs) == []
    expected = {str(op.op_index): op.sqnr_db for op in analysis.ops if op.op_index is not None}
    assert {key: item["value"] for key, item in errors["main"]["results"].items()} == pytest.approx(expected, rel=1e-3)
    # The two files have the same ops in the same order.
    alone = {str(op.op_index): op.sqnr_db for op in analysis.sensitivity if np.isfinite(op.sqnr_db)}
    assert {key: item["value"] for key, item in sensitivity["main"]["results"].items()} == pytest.approx(
        alone, rel=1e-3
    )


def test_ops_without_an_op_in_the_int8_file_are_counted(golden, analysis, tmp_path):
    record = analysis.to_dict()
    record["sensitivity"][0] = {**record["sensitivity"][0], "tensor": "renamed", "sqnr_db": 1.0}
    lines = tfq.write_node_data(record, {"model": golden / "digits_int8.tflite"}, tmp_path)
    assert "1 more" in lines[1]
    assert "1.0" not in (tmp_path / "model_explorer_sensitivity.json").read_text()


def test_a_benchmark_gives_the_time_of_each_op_of_each_model(golden, tmp_path):
    models = {"a/b": golden / "digits_int8.tflite", "float": golden / "digits_float32.tflite"}
    settings = BenchmarkConfig(num_runs=2, min_secs=0, warmup_runs=0)
    record = tfq.benchmark({name: path.read_bytes() for name, path in models.items()}, settings)
    tfq.write_node_data(record.to_dict(), models, tmp_path)
    names = ("model_explorer_time.json", "model_explorer_time_float_xnnpack.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name, model in zip(names, record.models, strict=True):
        (data,) = json.loads((tmp_path / name).read_text()).values()
        times = {str(op.index): op.ms for op in model.ops if op.index is not None}
        assert times and {key: item["value"] for key, item in data["results"].items()} == pytest.approx(times, rel=1e-3)
    with refused(InputError, field="models", expected="float"):
        tfq.write_node_data(record.to_dict(), {"a/b": models["a/b"]}, tmp_path)


def test_a_benchmark_without_op_times_writes_nothing(golden, tmp_path):
    record = {"models": [{"name": "m", "kernels": "xnnpack", "ops": None, "ops_reason": "off"}]}
    assert tfq.write_node_data(record, {"m": golden / "digits_int8.tflite"}, tmp_path / "new") == []
    assert not (tmp_path / "new").exists()

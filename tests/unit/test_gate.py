# SPDX-License-Identifier: Apache-2.0
"""The gate: records of the real evaluation, with seeded regressions that it must find and name."""

import copy
import json
import re
from xml.etree import ElementTree

import gate_models
import numpy as np
import pytest
from golden_models import golden
from messages import refused

from tfq import comparison, tflite, workflows
from tfq.comparison.gate_inputs import models_of
from tfq.config import ComparisonConfig, DataConfig, EvaluationConfig, RunConfig
from tfq.errors import InputError, RequirementError, TfqError
from tfq.evaluation import digest_of
from tfq.evaluation.figures import FIGURES, Tolerance
from tfq.evaluation.layer_digest import num_float_ops
from tfq.evaluation.per_example import (
    ExampleResults,
    OutputResults,
    difference_of_scores,
    difference_of_sqnr,
)
from tfq.evaluation.record import IDENTICAL
from tfq.provenance import record_of
from tfq.report.gate_content import gate_sections
from tfq.tflite.model_metadata import (
    AssociatedFile,
    ModelMetadata,
    NormalizationOptions,
    ProcessUnit,
    SubGraphMetadata,
    TensorMetadata,
)

NUM_EXAMPLES = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a directory with an .npz of digits, one with two classes exchanged in its labels, and the models."""
    from sklearn.datasets import load_digits

    path = tmp_path_factory.mktemp("gate")
    digits = load_digits()
    x = digits.images[-NUM_EXAMPLES:, ..., None].astype(np.float32)
    y = digits.target[-NUM_EXAMPLES:].astype(np.int64)
    np.savez(path / "digits.npz", x_test=x, y_test=y)
    np.savez(path / "exchanged.npz", x_test=x, y_test=np.where(y == 3, 8, np.where(y == 8, 3, y)))
    for name in (gate_models.BASE, gate_models.FLOAT):
        (path / f"{name}.tflite").write_bytes(golden(name))
    return path


@pytest.fixture(scope="module")
def evaluated(folder):
    """Return a function that evaluates a model as `tfq evaluate` does, and returns what its JSON record has."""

    def evaluate(model: bytes, npz: str = "digits", **data):
        config = RunConfig(
            model=str(folder / f"{gate_models.BASE}.tflite"),
            data=DataConfig(source=f"npz:{folder / npz}.npz", **data),
            evaluation=EvaluationConfig(
                reference=str(folder / f"{gate_models.FLOAT}.tflite"), backends=("none",), num_runs=0
            ),
        )
        record = record_of("evaluate", config, **workflows.evaluate(model, config).to_dict(), requirements=[])
        return json.loads(json.dumps(record))

    return evaluate


@pytest.fixture(scope="module")
def baseline(evaluated):
    return evaluated(golden(gate_models.BASE))


def figures(result):
    (model,) = result.models
    return {item.name: item for item in model.figures}


def changed(record, **values):
    """Return the record with other values in its evaluation."""
    record = copy.deepcopy(record)
    record["evaluation"].update(values)
    return record


def test_an_identical_rerun_passes(baseline, evaluated):
    result = comparison.gate_records(evaluated(golden(gate_models.BASE)), baseline)
    assert result.holds and {item.status for item in figures(result).values()} == {"same"}
    assert result.models[0].changes == () and figures(result)["accuracy"].difference.paired


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (gate_models.with_output_scale_doubled, "conv2/CONV_2D"),
        (gate_models.with_weight_scale_doubled, "depthwise/DEPTHWISE_CONV_2D"),
    ],
)
def test_a_doubled_scale_fails_and_its_layer_is_named(baseline, evaluated, model, layer):
    result = comparison.gate_records(evaluated(model()), baseline)
    assert not result.holds
    item = figures(result)["output_sqnr_db"]
    assert item.status == "worse" and layer in item.causes[0] and "2 times" in item.causes[0]


def test_a_layer_left_in_float_fails_and_is_named(baseline, evaluated):
    result = comparison.gate_records(evaluated(gate_models.with_float_layer()), baseline)
    item = figures(result)["float_ops"]
    assert (item.old, item.new, item.status) == (0, 1, "worse") and "residual/ADD" in item.causes[0]
    assert any(change.where == "scheme" and change.breaks for change in result.models[0].changes)


def test_ops_of_all_subgraphs_are_counted_and_named():
    content = gate_models.with_float_layer()
    edited = tflite.unpack(content)
    edited.subgraphs.append(copy.deepcopy(edited.subgraphs[0]))
    one, two = digest_of(content), digest_of(tflite.pack(edited, len(content)))
    assert (num_float_ops(one), num_float_ops(two)) == (1, 2)
    assert two["layers"][len(one["layers"])]["label"] == f"subgraph 1, {one['layers'][0]['label']}"


def test_swapped_labels_of_the_data_fail_and_are_named(baseline, evaluated):
    result = comparison.gate_records(evaluated(golden(gate_models.BASE), npz="exchanged"), baseline)
    assert [change.where for change in result.models[0].changes if change.breaks] == ["labels"]
    assert not result.models[0].same_examples and "labels" in figures(result)["accuracy"].causes[0]


def test_exchanged_classes_of_the_model_are_named(baseline, evaluated):
    new = evaluated(gate_models.with_classes_exchanged(3, 8))
    result = comparison.gate_records(new, baseline)
    item = figures(result)["accuracy"]
    assert item.status == "worse" and "classes" in item.causes[0]
    assert re.search(r"3 -> 8, 8 -> 3", item.causes[0])
    named = copy.deepcopy([new, baseline])
    for record in named:
        record["sha256"]["data_parts"]["test"]["class_names"] = [f"digit {number}" for number in range(10)]
    cause = figures(comparison.gate_records(*named))["accuracy"].causes[0]
    assert "3 digit 3 -> 8 digit 8" in cause


def test_changed_preprocessing_fails_and_its_field_is_named(baseline, evaluated):
    result = comparison.gate_records(evaluated(golden(gate_models.BASE), scale=0.5), baseline)
    breaking = {change.where: change.message for change in result.models[0].changes if change.breaks}
    assert set(breaking) == {"data.scale", "inputs"} and "1.0 -> 0.5" in breaking["data.scale"]
    assert "data.scale" in figures(result)["output_sqnr_db"].causes[0]


def test_preprocessing_recorded_in_the_file_is_compared(baseline):
    old, new = copy.deepcopy(baseline), copy.deepcopy(baseline)
    new["digest"]["preprocessing"] = {"scale": 0.5}
    (added,) = comparison.gate_records(new, old).models[0].changes
    assert added.where == "preprocessing.scale" and not added.breaks
    old["digest"]["preprocessing"] = {"scale": 1.0}
    (change,) = comparison.gate_records(new, old).models[0].changes
    assert change.where == "preprocessing.scale" and change.breaks


def with_metadata(labels: str, mean: float) -> bytes:
    """Return the model with TFLite Metadata: a label file and the normalization of its input."""
    unit = ProcessUnit(options=NormalizationOptions(mean=(mean,), std=(1.0,)))
    file = AssociatedFile(name="labels.txt", type="TENSOR_AXIS_LABELS")
    graph = SubGraphMetadata(
        input_tensor_metadata=(TensorMetadata(name="image", process_units=(unit,)),),
        output_tensor_metadata=(TensorMetadata(name="probabilities", associated_files=(file,)),),
    )
    metadata = ModelMetadata(subgraph_metadata=(graph,))
    return tflite.write_model_metadata(golden(gate_models.BASE), metadata, {"labels.txt": labels.encode()})


def test_labels_and_normalization_in_the_metadata_of_the_file_are_compared(baseline):
    def record(*arguments):
        return {**baseline, "digest": digest_of(with_metadata(*arguments))}

    old = record("zero\none\ntwo\n", 0.0)
    assert comparison.gate_records(old, old).holds
    (swapped,) = comparison.gate_records(record("zero\ntwo\none\n", 0.0), old).models[0].changes
    assert swapped.where == "labels" and swapped.breaks and "line 2: 'one' -> 'two'" in swapped.message
    (other,) = comparison.gate_records(record("zero\none\ntwo\n", 0.5), old).models[0].changes
    assert other.where == "preprocessing of input 'image'" and other.breaks
    added = comparison.gate_records(old, baseline).models[0].changes
    assert len(added) == 2 and not any(change.breaks for change in added)


def test_the_layer_is_measured_if_both_files_are_there(folder):
    digits = np.load(folder / "digits.npz")["x_test"]
    from tfq.data import as_split

    errors = comparison.layer_errors(
        gate_models.with_weight_scale_doubled(),
        golden(gate_models.BASE),
        golden(gate_models.FLOAT),
        as_split(digits[:8]),
    )
    (first,) = [item for item in errors if item["first"]]
    assert first["label"] == "depthwise/DEPTHWISE_CONV_2D" and first["old_sqnr_db"] > 20 + first["new_sqnr_db"]
    same = comparison.layer_errors(
        golden(gate_models.BASE), golden(gate_models.BASE), golden(gate_models.FLOAT), as_split(digits[:8])
    )
    assert same == ()


def test_a_figure_that_the_new_record_lacks_fails_with_its_reason(baseline):
    old = changed(baseline, memory_bytes={"arena": 5504})
    result = comparison.gate_records(changed(baseline, agreement=None, agreement_reason="no reference"), old)
    assert figures(result)["memory_bytes arena"].status == "missing"
    missing = figures(result)["agreement"]
    assert missing.status == "missing" and missing.reason == "no reference"
    with refused(RequirementError, field="comparison.baseline", word="agreement"):
        comparison.check_gate(result)


def test_a_figure_that_only_the_new_record_has_is_listed(baseline):
    result = comparison.gate_records(changed(baseline, memory_bytes={"arena": 5504}), baseline)
    assert result.holds and figures(result)["memory_bytes arena"].status == "new"


def test_a_backend_that_no_longer_runs_the_model_fails(baseline):
    old, new = copy.deepcopy(baseline), copy.deepcopy(baseline)
    row = {"backend": "gpu", "status": "ran", "evaluation": baseline["evaluation"], "agreement": 1.0, "reason": None}
    old["portability"]["rows"]["gpu"] = row
    new["portability"]["rows"]["gpu"] = {**row, "status": "not run", "evaluation": None, "reason": "no GPU"}
    new["portability"]["rows"]["gpu"]["agreement"] = None
    result = figures(comparison.gate_records(new, old))
    assert result["accuracy on gpu"].status == "missing" and result["same_class on gpu"].reason == "no GPU"


@pytest.mark.parametrize(
    ("tolerance", "bytes_now", "status"),
    [
        ((), 9184 + 90, "within tolerance"),
        ((), 9184 + 100, "worse"),
        (("model_bytes=200",), 9184 + 100, "within tolerance"),
        (("model_bytes=0",), 9184 + 1, "worse"),
        (("model_bytes=5%",), 9184 + 100, "within tolerance"),
        ((), 9184 - 1, "better"),
    ],
)
def test_a_tolerance_is_absolute_or_relative(baseline, tolerance, bytes_now, status):
    config = ComparisonConfig(tolerance=tolerance)
    result = comparison.gate_records(changed(baseline, model_bytes=bytes_now), baseline, config)
    assert figures(result)["model_bytes"].status == status


@pytest.mark.parametrize("entry", ["no_such_figure=1", "accuracy", "accuracy=x", "accuracy=-1", "accuracy=inf"])
def test_a_wrong_tolerance_is_refused(entry):
    with refused(InputError, field="comparison.tolerance"):
        comparison.tolerances(ComparisonConfig(tolerance=(entry,)))


def test_a_tolerance_for_a_backend_that_no_record_has_is_refused(baseline):
    config = ComparisonConfig(tolerance=("accuracy on gppu=0.001",))
    with refused(InputError, field="comparison.tolerance", got="accuracy on gppu"):
        comparison.gate_records(baseline, baseline, config)


def with_correct(record, num_wrong):
    """Return the record of a model that gets the first `num_wrong` examples wrong."""
    scores = np.ones(NUM_EXAMPLES, bool)
    scores[:num_wrong] = False
    per_example = ExampleResults(num_examples=NUM_EXAMPLES, scores={"top1": scores}).to_dict()
    return changed(record, accuracy=float(scores.mean()), per_example=per_example)


@pytest.mark.parametrize(("num_wrong", "status", "holds_strictly"), [(2, "noise", False), (12, "worse", False)])
def test_a_loss_within_noise_passes_unless_strict(baseline, num_wrong, status, holds_strictly):
    new, old = with_correct(baseline, num_wrong), with_correct(baseline, 0)
    result = comparison.gate_records(new, old)
    assert figures(result)["accuracy"].status == status and result.holds == (status == "noise")
    assert comparison.gate_records(new, old, ComparisonConfig(strict=True)).holds == holds_strictly


def test_ignored_figures_and_changes_are_not_gated(baseline, evaluated):
    new = evaluated(gate_models.with_float_layer())
    config = ComparisonConfig(ignore=("float_ops", "total_ops", "scheme"))
    assert comparison.gate_records(new, baseline, config).holds
    assert not comparison.gate_records(new, baseline).holds


def test_another_package_is_the_cause_if_the_file_is_the_same(baseline):
    new = changed(baseline, output_sqnr_db=20.0, per_example=None)
    new["packages"]["ai-edge-litert"] = "9.9"
    item = figures(comparison.gate_records(new, baseline))["output_sqnr_db"]
    assert item.status == "worse" and "ai-edge-litert" in item.causes[0]


def test_records_without_examples_give_unpaired_wider_intervals(baseline):
    new, old = (changed(baseline, per_example=None) for _ in range(2))
    unpaired = figures(comparison.gate_records(new, old))["accuracy"].difference
    paired = figures(comparison.gate_records(baseline, baseline))["accuracy"].difference
    assert not unpaired.paired and unpaired.high - unpaired.low > 0
    assert paired.paired and paired.high - paired.low <= unpaired.high - unpaired.low + 0.05


def test_the_paired_interval_of_an_sqnr_is_that_of_a_bootstrap():
    random = np.random.default_rng(0)
    base = random.gamma(2.0, size=400)
    new = base * random.lognormal(0.1, 0.4, size=400)
    noises = [(10 * np.log10(values)).astype(np.float16) for values in (new, base)]
    result = difference_of_sqnr(*noises)
    picks = random.integers(0, 400, size=(4000, 400))
    resampled = -10 * np.log10(new[picks].mean(axis=1) / base[picks].mean(axis=1))
    low, high = np.percentile(resampled, (2.5, 97.5))
    assert result.value == pytest.approx(-10 * np.log10(new.mean() / base.mean()), abs=0.01)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_scores_that_are_no_booleans_get_a_paired_t_interval():
    from scipy import stats

    random = np.random.default_rng(1)
    old = random.normal(size=30)
    new = old + random.normal(0.1, 0.2, size=30)
    result = difference_of_scores(new, old)
    expected = stats.ttest_rel(new, old).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=0.01)


@pytest.mark.parametrize("count", [1, 8, 9, 1000])
def test_results_of_examples_survive_a_record(count):
    random = np.random.default_rng(count)
    output = OutputResults(
        predicted=random.integers(0, 300, count).astype(np.uint16),
        agrees=random.random(count) < 0.9,
        noise_db=random.normal(size=count).astype(np.float16),
    )
    scores = {"top1": random.random(count) < 0.5}
    results = ExampleResults(num_examples=count, scores=scores, outputs={"out": output})
    read = ExampleResults.from_dict(json.loads(json.dumps(results.to_dict())))
    assert np.array_equal(read.scores["top1"], scores["top1"])
    for name in ("predicted", "agrees", "noise_db"):
        assert np.array_equal(getattr(read.outputs["out"], name), getattr(output, name))


@pytest.mark.parametrize(
    "damage",
    [
        {"num_examples": 0},
        {"num_examples": 1 << 40},
        {"num_examples": 65},
        {"scores": {"top1": {"dtype": "object", "zlib": ""}}},
        {"scores": {"top1": {"dtype": "bits", "zlib": "AAAA"}}},
        {"scores": {"top1": {"dtype": "bits"}}},
        {"outputs": [1]},
    ],
)
def test_damaged_results_of_examples_are_refused(baseline, damage):
    values = {**baseline["evaluation"]["per_example"], **damage}
    with refused(InputError):
        comparison.gate_records(baseline, changed(baseline, per_example=values))


@pytest.mark.parametrize("missing", ["config", "evaluation", "sha256", "portability"])
def test_a_damaged_record_is_refused(baseline, missing):
    damaged = {key: value for key, value in baseline.items() if key != missing}
    with refused(InputError, field="comparison.baseline"):
        comparison.gate_records(baseline, damaged)


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}])
def test_a_metric_that_is_no_number_is_a_clear_error(baseline, value):
    damaged = copy.deepcopy(baseline)
    damaged["evaluation"]["metrics"]["top1"]["value"] = value
    for records in ((damaged, baseline), (baseline, damaged)):
        with refused(InputError, field="comparison.baseline"):
            comparison.gate_records(*records)


def places_of(value, path=()):
    """Yield the path of each value inside a record."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places_of(item, (*path, key))


def test_mutated_records_end_in_a_result_or_a_clear_error(baseline):
    random = np.random.default_rng(0)
    places = [path for path in places_of(baseline) if len(path) > 1]
    values = [None, 0, -1, 1e308, "x", [], {}, True, [1], {"a": 1}, 2**70, "\ud800"]
    refusals = 0
    for _ in range(150):
        mutant = copy.deepcopy(baseline)
        *parents, last = places[random.integers(len(places))]
        holder = mutant
        for key in parents:
            holder = holder[key]
        holder[last] = copy.deepcopy(values[random.integers(len(values))])
        for new, old in ((mutant, baseline), (baseline, mutant)):
            try:
                result = comparison.gate_records(new, old)
            except TfqError:
                refusals += 1
                continue
            assert junit_problems(comparison.to_junit(result)) == []
            json.dumps(result.to_dict(), allow_nan=False)
            assert comparison.to_text(result) and comparison.to_markdown(result)
    assert 0 < refusals < 150


def run_record(record, **models):
    """Return a record of `tfq run` with models of this evaluation."""
    keys = ("evaluation", "portability", "digest", "sha256")
    entries = [
        {"name": name, "file": f"{name}.tflite", **{key: record[key] for key in keys}, **values}
        for name, values in models.items()
    ]
    return {**record, "command": "run", "models": entries, "benchmark": None}


def test_each_model_of_a_run_is_compared_by_its_name(baseline):
    worse = changed(baseline, model_bytes=99_999)["evaluation"]
    old = run_record(baseline, float={}, ptq_int8={})
    result = comparison.gate_records(run_record(baseline, ptq_int8={"evaluation": worse}, float={}), old)
    assert [model.name for model in result.models] == ["float", "ptq_int8"]
    (failure,) = result.failures
    assert failure.startswith("ptq_int8:") and "99,999" in failure
    gone = comparison.gate_records(run_record(baseline, float={}, qat_int8={}), old)
    assert [bool(model.missing) for model in gone.models] == [False, True] and gone.new_models == ("qat_int8",)
    assert not gone.holds and junit_problems(comparison.to_junit(gone)) == []


def benchmark_record(ratio, low, high, cpu="one"):
    """Return a record of `tfq benchmark` of two models."""
    times = {"kernels": "xnnpack", "model_bytes": 1, "p50_ms": 1.0, "total_ops": 2, "delegated_ops": 2}
    ratios = [{"model": "a", "against": "b", "kernels": "xnnpack", "ratio": ratio, "low": low, "high": high}]
    models = [{"name": name, **times} for name in ("a", "b")]
    return {
        "command": "benchmark",
        "cpu": {"model": cpu, "isa": []},
        "config": {"benchmark": {}},
        "sha256": {"model": "1", "against": {"b": "2"}},
        "benchmark": {"backend": "local", "models": models, "ratios": ratios},
    }


@pytest.mark.parametrize(
    ("new", "status"),
    [
        (benchmark_record(1.02, 0.98, 1.06), "within tolerance"),
        (benchmark_record(1.2, 0.9, 1.6), "noise"),
        (benchmark_record(1.2, 1.15, 1.25), "worse"),
        (benchmark_record(1.2, None, None), "not gated"),
        (benchmark_record(1.2, 1.15, 1.25, cpu="another"), "not gated"),
    ],
)
def test_a_ratio_of_times_is_gated_by_its_interval_on_one_cpu(new, status):
    result = comparison.gate_records(new, benchmark_record(1.0, 0.97, 1.03))
    (_, model) = result.models
    (ratio,) = [item for item in model.figures if item.figure == "latency_ratio"]
    assert ratio.status == status
    assert all(item.status == "not gated" for item in model.figures if item.unit == "ms")


def test_the_time_next_to_the_file_of_the_baseline_is_gated(baseline):
    ratio = {"model": "baseline", "against": "new", "kernels": "xnnpack", "ratio": 1.3, "low": 1.2, "high": 1.4}
    result = figures(comparison.gate_records(baseline, baseline, latency=ratio))
    item = result["latency_ratio to baseline, xnnpack"]
    assert item.status == "worse" and (item.difference.low, item.difference.high) == pytest.approx((0.2, 0.4))


def test_the_time_next_to_the_file_leaves_other_figures_of_another_cpu_ungated():
    old, new = (benchmark_record(1.0, 0.9, 1.1, cpu=cpu) for cpu in ("one", "another"))
    for record, size in ((old, 100), (new, 900)):
        for times in record["benchmark"]["models"]:
            times |= {"memory_bytes": {"arena": size}, "how": "measured"}
    ratio = {"model": "baseline", "against": "new", "kernels": "xnnpack", "ratio": 1.0, "low": 0.9, "high": 1.1}
    model = comparison.gate_records(new, old, latency=ratio).models[0]
    status = {item.name: item.status for item in model.figures}
    assert status["memory_bytes arena on local"] == "not gated"
    assert status["latency_ratio to baseline, xnnpack"] == "same"


def test_another_number_of_threads_fails_a_benchmark():
    old, new = benchmark_record(1.0, 0.9, 1.1), benchmark_record(1.0, 0.9, 1.1)
    new["config"] = {"benchmark": {"num_threads": 4}}
    result = comparison.gate_records(new, old)
    assert not result.holds and "benchmark.num_threads" in result.failures[0]


def test_junit_skips_what_benchmarks_do_not_show():
    result = comparison.gate_records(benchmark_record(1.0, 0.9, 1.1), benchmark_record(1.0, 0.9, 1.1))
    root = ElementTree.fromstring(comparison.to_junit(result))
    skipped = {case.get("name") for case in root.iter("testcase") if case.find("skipped") is not None}
    assert {"same data and settings", "same interface"} <= skipped
    assert [len(section.paragraphs) for section in gate_sections(result.to_dict())] == [2, 2]


def two_outputs(record, agreements, sqnrs):
    """Return the record with two outputs, of which the second is half as noisy, and the agreement of output "a"."""
    record = copy.deepcopy(record)
    outputs = [
        {"name": name, "agreement": agreement, "sqnr_db": sqnr, "sqnr_db_reason": None, "agreement_reason": None}
        for name, agreement, sqnr in zip("ab", agreements, sqnrs, strict=True)
    ]
    results = {
        name: OutputResults(agrees=np.arange(NUM_EXAMPLES) < agreement * NUM_EXAMPLES, noise_db=np.full(64, -sqnr))
        for name, agreement, sqnr in zip("ab", agreements, np.float16(sqnrs), strict=True)
    }
    values = {"agreement": agreements[0], "output_sqnr_db": min(sqnrs), "outputs": outputs}
    packed = ExampleResults(num_examples=NUM_EXAMPLES, outputs=results).to_dict()
    record["evaluation"].update(values, per_example=packed)
    return record


def test_the_agreement_of_a_chosen_output_is_paired_with_its_own_examples(baseline):
    old, new = two_outputs(baseline, (1.0, 0.25), (30, 40)), two_outputs(baseline, (0.5, 0.25), (30, 40))
    item = figures(comparison.gate_records(new, old))["agreement"]
    assert item.status == "worse" and item.difference.value == pytest.approx(-0.5) and item.difference.paired


def test_noise_of_different_outputs_is_not_paired(baseline):
    old, new = two_outputs(baseline, (1, 1), (30, 40)), two_outputs(baseline, (1, 1), (45, 28))
    difference = figures(comparison.gate_records(new, old))["output_sqnr_db"].difference
    assert difference.value == pytest.approx(-2) and not difference.paired


def test_noise_against_another_reference_is_not_paired(baseline):
    new = copy.deepcopy(baseline)
    new["sha256"]["reference"] = "another"
    assert figures(comparison.gate_records(baseline, baseline))["output_sqnr_db"].difference.paired
    assert not figures(comparison.gate_records(new, baseline))["output_sqnr_db"].difference.paired


@pytest.mark.parametrize("tolerance", ["0.5", "1%", "0%"])
def test_outputs_that_are_no_longer_identical_are_worse(baseline, tolerance):
    old = changed(baseline, output_sqnr_db=None, output_sqnr_db_reason=IDENTICAL)
    result = comparison.gate_records(baseline, old, ComparisonConfig(tolerance=(f"output_sqnr_db={tolerance}",)))
    assert figures(result)["output_sqnr_db"].status == "worse"
    (table,) = [table for section in gate_sections(result.to_dict()) for table in section.tables[:1]][:1]
    assert "output_sqnr_db" in [row[0] for row in table.rows]


@pytest.mark.parametrize(
    ("direction", "new", "status"),
    [("higher", 20.0, "worse"), ("lower", 20.0, "better"), (None, 20.0, "not gated"), ("lower", 40.0, "worse")],
)
def test_the_metric_of_an_output_has_its_declared_direction(baseline, direction, new, status):
    records = []
    for value in (new, 30.0):
        output = {"name": "a", "metric": "psnr", "unit": "none", "direction": direction, "accuracy": value}
        records.append(changed(baseline, outputs=[output], per_example=None))
    assert figures(comparison.gate_records(*records))["output_accuracy of a"].status == status


def test_a_baseline_without_models_is_refused(baseline):
    with refused(InputError, field="comparison.baseline", got=0):
        comparison.gate_records(run_record(baseline, float={}), run_record(baseline))


def test_markdown_names_figures_that_are_not_gated(baseline):
    new = copy.deepcopy(baseline)
    new["cpu"]["model"] = "another"
    for record in (new, baseline := copy.deepcopy(baseline)):
        record["evaluation"] |= {"memory_bytes": {"arena": 5}, "how": "measured"}
    text = comparison.to_markdown(comparison.gate_records(new, baseline)).replace("\\", "")
    assert "Not gated: memory_bytes arena" in text


@pytest.mark.parametrize(
    ("baselined", "flag"),
    [(True, "--require.no_differences"), (False, "--update_baseline"), (False, "--require.no_differences")],
)
def test_settings_without_effect_are_refused(baseline, tfq_here, tmp_path, baselined, flag):
    path = tmp_path / "evaluate.json"
    path.write_text(json.dumps(baseline))
    done = tfq_here("compare", *([f"--baseline={path}"] if baselined else [path]), path, flag)
    assert done.returncode == 2 and flag in done.stderr


def test_records_of_other_commands_are_refused(baseline):
    with refused(InputError, field="comparison.baseline", got="benchmark"):
        comparison.gate_records(baseline, {**baseline, "command": "benchmark"})


def test_all_figures_have_distinct_names_and_read_any_record(baseline):
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    (measured,) = models_of(baseline).values()
    present = {figure.name for figure in FIGURES if any(True for _ in figure.read(measured))}
    assert {"accuracy", "agreement", "output_sqnr_db", "model_bytes", "float_ops", "accelerated_fraction"} <= present


@pytest.mark.parametrize("text", ["1%", "0.5", "0"])
def test_a_tolerance_is_written_as_it_is_read(text):
    assert str(Tolerance.parse(text)) == text


# Element -> (required attributes, further attributes, elements inside), of the schema that Jenkins' xUnit plugin
# checks (junit-10.xsd); GitLab reads the same elements.
JUNIT = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"time", "skipped", "timestamp", "hostname", "id", "package", "file"},
        {"testcase", "properties", "system-out", "system-err"},
    ),
    "testcase": ({"name"}, {"time", "classname"}, {"failure", "error", "skipped", "system-out", "system-err"}),
    "failure": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
}


def junit_problems(content: bytes) -> list[str]:
    problems = []
    root = ElementTree.fromstring(content)
    for element in root.iter():
        required, further, inside = JUNIT[element.tag]
        problems += [f"{element.tag} has no {name}" for name in required - set(element.keys())]
        problems += [f"{element.tag} has {name}" for name in set(element.keys()) - required - further]
        problems += [f"{child.tag} in {element.tag}" for child in element if child.tag not in inside]
        if element.tag == "testsuite":
            for count, tag in (("failures", "failure"), ("skipped", "skipped"), ("tests", None)):
                number = len(element) if tag is None else sum(case.find(tag) is not None for case in element)
                problems += [f"{count} is {element.get(count)}"] if element.get(count) != str(number) else []
    return problems


def test_junit_fits_the_schema_and_has_a_case_for_each_figure(baseline, evaluated):
    new = evaluated(gate_models.with_output_scale_doubled())
    new["evaluation"]["memory_bytes"] = {"arena": 1}
    result = comparison.gate_records(new, baseline)
    content = comparison.to_junit(result)
    assert junit_problems(content) == []
    cases = {case.get("name"): case for case in ElementTree.fromstring(content).iter("testcase")}
    assert set(figures(result)) <= set(cases)
    assert "conv2/CONV_2D" in cases["output_sqnr_db"].find("failure").get("message")
    assert cases["memory_bytes arena"].find("skipped") is not None and not len(cases["model_bytes"])


def test_the_check_of_junit_sees_a_mistake(baseline):
    content = comparison.to_junit(comparison.gate_records(baseline, baseline))
    assert junit_problems(content) == []
    assert junit_problems(content.replace(b'failures="0"', b'failures="1"'))
    assert junit_problems(content.replace(b"<testcase name", b"<testcase title").replace(b" name=", b" title="))


def test_output_survives_any_name(baseline):
    new = copy.deepcopy(baseline)
    new["digest"]["layers"][0]["label"] = "a|b\n`c`\x00<d>&\ud800"
    new["digest"]["layers"][0]["type"] = "float32"
    result = comparison.gate_records(new, baseline)
    assert junit_problems(comparison.to_junit(result)) == []
    lines = comparison.to_markdown(result).splitlines()
    # A line break or a bar in a name would break the table.
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in lines if line.startswith("|"))


def test_markdown_is_short_and_names_the_layer(baseline, evaluated):
    result = comparison.gate_records(evaluated(gate_models.with_output_scale_doubled()), baseline)
    text = comparison.to_markdown(result)
    assert "**failed**" in text and "conv2/CONV" in text.replace("\\", "") and len(text) < 2000
    passed = comparison.to_markdown(comparison.gate_records(baseline, baseline))
    assert "failed" not in passed and "|" not in passed


def test_the_command_evaluates_a_file_as_the_baseline_was(folder, baseline, tfq_here, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(baseline))
    same = tfq_here("compare", f"--baseline={path}", folder / f"{gate_models.BASE}.tflite", f"--out={tmp_path / 'out'}")
    assert same.returncode == 0, same.stderr
    names = {"compare.json", "compare.html", "compare.md", "junit.xml", "summary.md"}
    assert {item.name for item in (tmp_path / "out").glob("[!.]*")} == names
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["gate"]["holds"]
    worse = tmp_path / "worse.tflite"
    worse.write_bytes(gate_models.with_weight_scale_doubled())
    failed = tfq_here("compare", f"--baseline={path}", worse, f"--out={tmp_path / 'out'}")
    assert failed.returncode == 1 and "output_sqnr_db" in failed.stderr
    assert "depthwise/DEPTHWISE_CONV_2D" in failed.stdout
    # The file of the baseline is still there, so the error of each layer was measured too.
    (model,) = json.loads((tmp_path / "out" / "compare.json").read_text())["gate"]["models"]
    assert [item["label"] for item in model["layer_errors"] if item["first"]] == ["depthwise/DEPTHWISE_CONV_2D"]


def test_update_baseline_replaces_it_and_shows_the_old_values(folder, baseline, tfq_here, tmp_path):
    path, new = tmp_path / "baseline.json", tmp_path / "evaluate.json"
    old = changed(baseline, model_bytes=100)
    path.write_text(json.dumps(old))
    new.write_text(json.dumps(baseline))
    assert tfq_here("compare", f"--baseline={path}", new).returncode == 1
    assert json.loads(path.read_text()) == old
    done = tfq_here("compare", f"--baseline={path}", new, "--update_baseline")
    assert done.returncode == 0 and "9,184" in done.stdout and "100" in done.stdout
    assert json.loads(path.read_text()) == baseline
    assert tfq_here("compare", f"--baseline={path}", new).returncode == 0


def test_the_first_baseline_is_written_and_a_missing_one_refused(baseline, tfq_here, tmp_path):
    path, new = tmp_path / "baseline.json", tmp_path / "evaluate.json"
    new.write_text(json.dumps(baseline))
    assert tfq_here("compare", f"--baseline={path}", new).returncode == 2 and not path.exists()
    assert tfq_here("compare", f"--baseline={path}", new, "--update_baseline").returncode == 0
    assert json.loads(path.read_text()) == baseline

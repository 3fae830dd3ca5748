# SPDX-License-Identifier: Apache-2.0
"""Observed activations. Oracle: TFLite's reference kernels, without a delegate, one sample at a time."""

import json

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from built_models import Call, T, build, constant
from golden_models import changed, golden
from messages import refused

from tfq import tflite
from tfq.backends import statistics
from tfq.config import CalibrationConfig
from tfq.errors import InputError
from tfq.ptq.calibration import (
    Histogram,
    Observations,
    calibrate,
    calibrate_with_outputs,
    choose_ranges,
    merge_observations,
    observe,
    rows,
)
from tfq.ptq.calibration.calibrate import fixed_ranges
from tfq.ptq.calibration.methods import needed_tails

FLOAT_MODELS = ("digits_float32", "two_branches_float32")


def samples_of(model, count=23, seed=0):
    parsed, rng = tflite.read(model), np.random.default_rng(seed)
    tensors = parsed.main_subgraph.input_tensors
    return [
        {
            name: rng.normal(size=(1, *tensor.shape[1:])).astype(np.float32)
            for name, tensor in zip(parsed.input_names, tensors, strict=True)
        }
        for _ in range(count)
    ]


def reference_values(model, samples):
    """Return {tensor: its values over all samples} of every activation."""
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    parsed = tflite.read(model)
    graph = parsed.main_subgraph
    indices = [*graph.inputs, *(output for op in graph.ops for output in op.outputs)]
    results = {index: [] for index in indices if graph.tensors[index].dtype == "float32"}
    for sample in samples:
        for index, name in zip(graph.inputs, parsed.input_names, strict=True):
            interpreter.set_tensor(index, sample[name])
        interpreter.invoke()
        for index, values in results.items():
            values.append(interpreter.get_tensor(index))
    return {index: np.stack(values) for index, values in results.items()}


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_every_tensor_holds_what_the_reference_kernels_compute(name):
    model = golden(name)
    samples = samples_of(model)
    expected, seen = reference_values(model, samples), observe(model, samples)
    assert {index for _, index in seen.tensors} == set(expected)
    for (_, index), tensor in seen.tensors.items():
        values = expected[index].astype(np.float64)
        near = 1e-5 * np.abs(values).max()
        assert tensor.minimum == pytest.approx(values.min(), abs=near)
        assert tensor.maximum == pytest.approx(values.max(), abs=near)
        assert tensor.histogram.total == values.size
        quantile = np.quantile(values, 0.9, method="inverted_cdf")
        assert tensor.bins().quantile(0.9) == pytest.approx(quantile, rel=1 / 32, abs=1e-6)


def test_statistics_are_bit_identical_with_any_number_of_workers():
    model = golden("two_branches_float32")
    samples = samples_of(model, 40)
    one, *others = (observe(model, samples, num_workers=count).to_dict() for count in (1, 2, 5))
    assert all(other == one for other in others)


def test_little_work_is_left_to_one_child(monkeypatch):
    monkeypatch.setattr(statistics, "usable_cores", lambda: 4)
    model = tflite.read(golden("digits_float32"))
    children = [statistics._useful_children(model, total) for total in (1, 500, 10**9, None)]
    assert children == [1, 1, 4, 4]


def test_parts_of_the_data_merge_to_the_whole():
    model = golden("digits_float32")
    samples = samples_of(model, 30)
    whole = observe(model, samples).to_dict()
    merged = merge_observations([observe(model, part) for part in (samples[:7], samples[7:8], samples[8:])]).to_dict()
    assert merged["num_samples"] == 30 and len(merged["data_sha256"]) == 3
    for one, other in zip(merged["tensors"], whole["tensors"], strict=True):
        for name in ("name", "layer", "minimum", "maximum", "histogram"):
            assert one[name] == other[name]
        for name in ("average_minimum", "average_maximum"):
            assert one[name] == pytest.approx(other[name], rel=1e-12)


def test_parts_of_different_models_are_refused():
    parts = [observe(golden(name), samples_of(golden(name), 2)) for name in FLOAT_MODELS]
    expected, got = (part.model_sha256 for part in parts)
    with refused(InputError, field="parts[1]", expected=expected, got=got):
        merge_observations(parts)


def test_parts_with_and_without_histograms_are_refused():
    model = golden("digits_float32")
    with refused(InputError, field="parts[1]", word="histograms"):
        merge_observations([observe(model, samples_of(model, 2), histograms=kept) for kept in (True, False)])


def test_no_parts_are_refused():
    with refused(InputError, field="parts", got=0):
        merge_observations([])


def test_observations_are_saved_and_loaded(tmp_path):
    model = golden("digits_float32")
    seen = observe(model, samples_of(model))
    seen.save(tmp_path / "seen.json")
    assert Observations.load(tmp_path / "seen.json").to_dict() == seen.to_dict()


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema_version": 1, "decay": 0.5, "tensors": []}', "null"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "seen.json").write_text(content)
    with refused(InputError, field="path", expected="observations", got=str(tmp_path / "seen.json")):
        Observations.load(tmp_path / "seen.json")


def test_samples_are_drawn_as_they_are_needed():
    model = golden("digits_float32")
    drawn, bad = [], samples_of(model, 1)[0]
    bad = {name: np.full_like(array, np.nan) for name, array in bad.items()}

    def endless():
        while True:
            drawn.append(len(drawn))
            yield bad

    with refused(InputError, field="representative_dataset[0]", expected="finite activations", got="NaN"):
        observe(model, endless(), num_workers=2)
    assert len(drawn) < 20


def test_nan_is_reported_with_its_sample_tensor_and_layer():
    model = golden("digits_float32")
    samples = samples_of(model, 5)
    name = next(iter(samples[0]))
    samples[3][name][..., 0] = np.nan
    with refused(InputError, field="representative_dataset[3]", got="NaN", word="'x0'"):
        observe(model, samples)


def test_infinity_is_reported():
    model = golden("digits_float32")
    samples = samples_of(model, 1)
    next(iter(samples[0].values()))[..., 0] = np.inf
    with refused(InputError, field="representative_dataset[0]", expected="finite activations", got="infinity"):
        observe(model, samples)


def test_no_samples_are_refused():
    with refused(InputError, field="representative_dataset", got=0):
        observe(golden("digits_float32"), [])


def test_samples_of_another_shape_are_refused():
    model = golden("digits_float32")
    wrong = {name: np.zeros((1, 3), np.float32) for name in samples_of(model, 1)[0]}
    with refused(InputError, field="representative_dataset", expected="samples that the model runs on"):
        observe(model, [wrong])


def test_a_quantized_flatbuffer_is_refused():
    with refused(InputError, field="model", expected="float32 activations"):
        observe(golden("digits_int8"), [{}])


def test_the_flatbuffer_itself_is_left_as_it_was():
    model = golden("digits_float32")
    before = bytes(model)
    observe(model, samples_of(model, 2))
    assert model == before


def test_ranges_are_saved_and_given_back(tmp_path):
    model = golden("digits_float32")
    ranges = calibrate(model, samples_of(model), CalibrationConfig(method="mse"))
    ranges.save(tmp_path / "ranges.json")
    provided = calibrate(model, [], CalibrationConfig(ranges=str(tmp_path / "ranges.json")))
    assert provided == ranges
    record = json.loads((tmp_path / "ranges.json").read_text())
    assert record["num_samples"] == 23 and len(record["data_sha256"][0]) == 64
    for entry in record["tensors"]:
        width = entry["observed_maximum"] - entry["observed_minimum"]
        assert entry["coverage"] == pytest.approx((entry["maximum"] - entry["minimum"]) / width)
        assert 0 <= entry["clipped"] < 0.5 and entry["method"] == "mse"


def test_ranges_of_another_model_are_refused(tmp_path):
    model = golden("digits_float32")
    ranges = calibrate(model, samples_of(model))
    ranges.save(tmp_path / "ranges.json")
    with refused(InputError, field="conversion.calibration.ranges", got=ranges.model_sha256):
        calibrate(golden("two_branches_float32"), [], CalibrationConfig(ranges=str(tmp_path / "ranges.json")))


@pytest.mark.parametrize("content", ["{}", "[1]", '{"schema_version": 2}'])
def test_a_file_without_ranges_is_refused(tmp_path, content):
    (tmp_path / "ranges.json").write_text(content)
    with refused(InputError, field="conversion.calibration.ranges", expected="calibrated ranges"):
        calibrate(golden("digits_float32"), [], CalibrationConfig(ranges=str(tmp_path / "ranges.json")))


def test_control_flow_is_refused_by_name():
    def with_loop(model):
        code = model.operatorCodes[0]
        code.builtinCode = code.deprecatedBuiltinCode = 119

    looped = changed(golden("digits_float32"), with_loop)
    with refused(InputError, field="model", expected="no control flow", word="WHILE"):
        calibrate(looped, samples_of(golden("digits_float32"), 2))


def test_a_kept_histogram_takes_the_same_memory_whatever_was_counted():
    histogram = Histogram()
    before = histogram.counts.nbytes
    for seed in range(3):
        histogram.add(np.random.default_rng(seed).normal(size=100_000).astype(np.float32))
    assert histogram.counts.nbytes == before == 256 * 1024


def test_samples_are_found_on_the_axis_that_moves_with_them():
    rng, batch = np.random.default_rng(0), 3
    x = rng.normal(size=(batch, 5)).astype(np.float32)

    def tensors(x):
        # By time, by sample, one row for each sample, and values that belong to positions in the batch.
        return [np.stack([x, 2 * x]), x.reshape(-1, 1), x @ x.T, np.ones((batch, 2), np.float32).cumsum(0)]

    runs = [[rows.digests(array, batch) for array in tensors(batch_of)] for batch_of in (x, np.roll(x, 1, axis=0))]
    assert rows.sample_axes(*runs) == [1, 0, 0, None]
    assert np.array_equal(rows.of_samples(tensors(x)[0], 1, batch)[1], np.concatenate([x[1], 2 * x[1]]))
    assert np.array_equal(rows.of_samples(tensors(x)[1], 0, batch), x)


@pytest.mark.parametrize("shrinks", [False, True], ids=["alike", "the first samples are larger than the others"])
def test_ranges_do_not_depend_on_whether_all_values_are_counted(shrinks):
    model = golden("digits_float32")
    samples = samples_of(model, 120)
    if shrinks:
        for sample in samples[8:]:
            sample.update({key: values / 1000 for key, values in sample.items()})
    config = CalibrationConfig(percentile=99.0)
    assert needed_tails(config) == pytest.approx(0.01)
    expected = choose_ranges(observe(model, samples), config).to_dict()
    assert calibrate(model, samples, config).to_dict() == expected


def test_only_methods_that_need_the_ends_leave_out_the_middle():
    assert needed_tails(CalibrationConfig(method="mse")) == needed_tails(CalibrationConfig(method="min_max")) == 0
    assert needed_tails(CalibrationConfig(percentile=90.0)) == 0
    assert needed_tails(CalibrationConfig(tensors=("conv*=entropy",))) == 0
    assert needed_tails(CalibrationConfig(tensors=("conv*=min_max",))) == pytest.approx(1e-4)


def test_joined_tensors_have_the_values_of_the_reference_kernels():
    model = golden("two_branches_float32")
    samples = samples_of(model, 1)
    expected = reference_values(model, samples)
    tensors = [index for index in expected if index not in tflite.read(model).main_subgraph.inputs]
    sizes = {index: expected[index].size for index in tensors}
    (image,) = [index for index in tensors if expected[index].ndim == 5][:1]
    shape = expected[image].shape[1:]
    edited, joined, reduced = tflite.join_tensors(model, sizes, tensors[1:3], {image: (shape, (1, 2))})
    graph = tflite.read(model).main_subgraph
    outputs = tflite.read(edited).main_subgraph.outputs
    assert outputs == (
        *graph.outputs,
        *(index for index in tensors[1:3] if index not in graph.outputs),
        joined,
        reduced,
    )
    interpreter = Interpreter(model_content=edited)
    interpreter.allocate_tensors()
    for index, name in zip(tflite.read(model).main_subgraph.inputs, tflite.read(model).input_names, strict=True):
        interpreter.set_tensor(index, samples[0][name])
    interpreter.invoke()
    values = np.concatenate([expected[index].reshape(-1) for index in tensors])
    np.testing.assert_allclose(interpreter.get_tensor(joined), values, atol=1e-5 * np.abs(values).max())
    channels = expected[image].reshape(-1, shape[-1])
    ends = np.stack([channels.min(0), channels.max(0), channels.sum(0)]).reshape(-1)
    np.testing.assert_allclose(interpreter.get_tensor(reduced), ends, atol=1e-4 * np.abs(ends).max())


@pytest.mark.parametrize("name", FLOAT_MODELS)
@pytest.mark.parametrize("histograms", [True, False])
def test_extremes_that_the_model_computes_change_nothing(name, histograms, monkeypatch):
    model = golden(name)
    samples = samples_of(model, 60)
    expected = observe(model, samples, histograms=histograms, tails=0.01)
    monkeypatch.setattr(statistics, "_JOINED_VALUES", 0)
    seen = observe(model, samples, histograms=histograms, tails=0.01)
    assert [each.minimum for each in seen.tensors.values()] == [each.minimum for each in expected.tensors.values()]
    if histograms:
        config = CalibrationConfig(percentile=99.0)
        assert choose_ranges(seen, config).to_dict() == choose_ranges(expected, config).to_dict()
    else:
        assert seen.to_dict() == expected.to_dict()


def test_one_nan_is_seen_in_tensors_that_the_model_reduces(monkeypatch):
    monkeypatch.setattr(statistics, "_JOINED_VALUES", 0)
    model = golden("digits_float32")
    samples = samples_of(model, 9)
    (name,) = samples[8]
    samples[8][name].reshape(-1)[5] = np.nan
    for histograms in (True, False):
        with refused(InputError, field="representative_dataset[8]", got="NaN"):
            observe(model, samples, histograms=histograms, tails=0.01)


MUL = Call("MUL", ["gate", "x"], ["y"], generated.MulOptionsT())


def gated(op="LOGISTIC", reader=MUL, outputs=("y",)):
    """Return a float flatbuffer in which `reader` reads the output "gate" of `op`."""
    tensors = {name: T("float32", (1, 6)) for name in ("x", "gate", "y")}
    tensors |= {"constant": constant(np.ones((1, 6)))}
    return build(tensors, [Call(op, ["x"], ["gate"]), reader], ["x"], outputs)


@pytest.mark.parametrize(("op", "ends"), [("LOGISTIC", (0, 255 / 256)), ("TANH", (-1, 127 / 128))])
def test_range_that_the_op_fixes_is_not_observed(op, ends):
    model = gated(op)
    samples = samples_of(model, 9)
    every, _ = calibrate_with_outputs(model, samples)
    ranges, _ = calibrate_with_outputs(model, samples, fixed_scales=True)
    gate = ranges.tensors[0, 1]
    assert (gate.minimum, gate.maximum, gate.method, gate.clipped) == (*ends, "fixed", None)
    assert (gate.observed_minimum, gate.observed_maximum) == ends
    assert every.tensors[0, 1].method == "percentile"
    assert list(ranges.tensors) == list(every.tensors)
    for key in ((0, 0), (0, 2)):
        assert ranges.tensors[key] == every.tensors[key]
    chosen = CalibrationConfig(tensors=("gate=min_max",))
    assert calibrate_with_outputs(model, samples, chosen, fixed_scales=True)[0].tensors[0, 1].method == "min_max"


@pytest.mark.parametrize(
    "model",
    [
        gated("SOFTMAX"),
        gated(outputs=("y", "gate")),
        gated(reader=Call("MUL", ["gate", "constant"], ["y"], generated.MulOptionsT())),
        gated(reader=Call("MAXIMUM", ["gate", "x"], ["y"])),
    ],
    ids=["softmax", "output of the model", "constant factor", "reader with the scale of its inputs"],
)
def test_other_ranges_are_observed(model):
    assert fixed_ranges(model) == {}

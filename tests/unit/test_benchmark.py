# SPDX-License-Identifier: Apache-2.0
"""`tfq benchmark` and its parts, on small models and the real interpreter."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from golden_models import INT32, changed, golden
from messages import refused
from piped_board import PipeBackend

from tfq import evaluation, tflite
from tfq.backends import make_backend
from tfq.backends.relay.board import PYTHON_VARIABLE
from tfq.backends.target import benchmark as target
from tfq.backends.timing import TimedModel, TimingRequest
from tfq.config import BenchmarkConfig
from tfq.data import as_split
from tfq.errors import InputError, ModelError
from tfq.evaluation.benchmark import timed_model
from tfq.evaluation.paired import MIN_PAIRS
from tfq.evaluation.throughput import in_batches_of, measure_throughput

SHORT = {"num_runs": 40, "min_secs": 0.0, "warmup_runs": 1}


@pytest.fixture(scope="module")
def record():
    """Benchmark two models on all kernels."""
    models = {"int8": golden("digits_int8"), "float": golden("digits_float32")}
    config = BenchmarkConfig(kernels=("xnnpack", "builtin", "reference"), num_runs=80, min_secs=0.02, warmup_runs=2)
    return evaluation.benchmark_models(models, config).to_dict()


def test_every_model_is_timed_on_every_kernel(record):
    json.dumps(record, allow_nan=False)
    timed = [(model["name"], model["kernels"]) for model in record["models"]]
    assert timed == [(name, kernels) for name in ("int8", "float") for kernels in ("xnnpack", "builtin", "reference")]
    for model in record["models"]:
        assert model["num_runs"] >= 80
        assert model["mean_ms"] * model["num_runs"] >= 20 * 0.999
        quantiles = model["quantiles_ms"]
        assert quantiles == sorted(quantiles)
        assert len(quantiles) == 21
        assert (quantiles[0], quantiles[10], quantiles[18], quantiles[-1]) == (
            model["min_ms"],
            model["p50_ms"],
            model["p90_ms"],
            model["max_ms"],
        )
        assert model["min_ms"] <= model["mean_ms"] <= model["max_ms"]
        assert min(model["initialization_ms"], model["first_ms"], model["std_ms"], model["overhead_ms"]) > 0


def padded_bytes(shape, itemsize):
    """Return the bytes of weights whose channels fill the widest tiles (AMX: 64 outputs, groups of 4 inputs).

    Each output channel has a bias and a scale, too.
    """
    outputs, *kernel, inputs = (*shape[:1], *shape[1:]) if shape[0] > 1 else (shape[-1], *shape[1:-1], 1)
    outputs, inputs = -(-outputs // 64) * 64, -(-inputs // 4) * 4
    return outputs * (int(np.prod(kernel)) * inputs * itemsize + 8)


def test_memory_of_each_model_is_measured_by_itself(record):
    memory = {(model["name"], model["kernels"]): model["costs"]["memory_bytes"] for model in record["models"]}
    for name, file in (("int8", "digits_int8"), ("float", "digits_float32")):
        graph = tflite.read(golden(file)).main_subgraph
        dense = [op for op in graph.ops if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
        tensors = [graph.tensors[op.inputs[1]] for op in dense]
        most = sum(padded_bytes(tensor.shape, 1 if tensor.dtype == "int8" else 4) for tensor in tensors)
        weights = sum(tensor.buffer_bytes for tensor in tensors)
        assert weights <= memory[name, "xnnpack"]["xnnpack_packed_weights"] <= most
        assert "xnnpack_packed_weights" not in memory[name, "builtin"]
        assert memory[name, "builtin"]["peak_rss"] > memory[name, "builtin"]["peak_rss.before_the_model"]


def test_only_xnnpack_delegates(record):
    delegated = {kernels: [] for kernels in ("xnnpack", "builtin", "reference")}
    for model in record["models"]:
        delegated[model["kernels"]].append(model["delegated_ops"])
    assert all(delegated["xnnpack"])
    assert not any(delegated["builtin"] + delegated["reference"])


def test_ratios_are_relative_to_the_first_model_and_kernel(record):
    named = [(r["model"], r["model_kernels"], r["against"], r["kernels"]) for r in record["ratios"]]
    assert named == [
        ("int8", "xnnpack", "int8", "builtin"),
        ("int8", "xnnpack", "int8", "reference"),
        ("int8", "xnnpack", "float", "xnnpack"),
        ("int8", "builtin", "float", "builtin"),
        ("int8", "reference", "float", "reference"),
    ]
    for ratio in record["ratios"]:
        assert ratio["low"] < ratio["ratio"] < ratio["high"]
        assert ratio["confidence"] == 0.95


def test_literts_profiler_times_every_op_on_all_kernels(record):
    for model in record["models"]:
        assert model["ops_reason"] is None
        assert "LiteRT's profiler" in model["ops_by"]
        parsed = tflite.read(golden(f"digits_{'int8' if model['name'] == 'int8' else 'float32'}"))
        expected = [(op.index, op.name, op.keras_layer) for op in parsed.main_subgraph.ops]
        assert [(op["index"], op["name"], op["keras_layer"]) for op in model["ops"]] == expected
        assert sum(op["fraction"] for op in model["ops"]) == pytest.approx(1)
        by_xnnpack = sum(op["kernel"].startswith("XNNPACK") for op in model["ops"])
        assert by_xnnpack == model["delegated_ops"]


def test_the_time_of_the_ops_is_that_of_the_inference(record):
    # On TFLite's kernels, whose times are not rounded to whole microseconds. A wrong unit would give a factor of 1000,
    # load much less.
    for model in record["models"]:
        if model["kernels"] != "xnnpack":
            assert 1 / 30 < sum(op["ms"] for op in model["ops"]) / model["p50_ms"] < 30


def test_a_model_of_dynamic_batch_is_timed_and_profiled():
    config = BenchmarkConfig(**SHORT)
    (model,) = evaluation.benchmark_models({"dynamic": golden("digits_int8_dynamic_batch")}, config).models
    assert model.mean_ms > 0
    assert model.ops_reason is None


@pytest.fixture(params=["local", "relay"])
def timer(request, tmp_path, monkeypatch):
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    return make_backend("local") if request.param == "local" else PipeBackend(tmp_path)


def test_throughput_has_every_batch_size_and_number_of_threads(timer):
    config = BenchmarkConfig(**SHORT, batch_sizes=(1, 16), thread_counts=(2, 1), kernels=("builtin",))
    contents = {"fixed": golden("digits_int8"), "dynamic": golden("digits_int8_dynamic_batch")}
    parsed = {name: tflite.read(content) for name, content in contents.items()}
    models = [timed_model(name, contents[name], parsed[name], None, 0)[0] for name in contents]
    rows = measure_throughput(models, parsed, config, timer, 0)
    assert {(row.name, row.batch, row.num_threads) for row in rows} == {
        (name, batch, threads) for name in contents for batch in (1, 16) for threads in (1, 2)
    }
    rates = {(row.name, row.batch, row.num_threads): row for row in rows}
    refused_rows = [key for key, row in rates.items() if row.reason is not None]
    assert sorted(refused_rows) == [("fixed", 16, 1), ("fixed", 16, 2)]
    assert "conversion.batch_size" in rates["fixed", 16, 1].reason and rates["fixed", 16, 1].mean_ms is None
    for batch in (1, 16):  # a rate counts examples, not inferences
        row = rates["dynamic", batch, 1]
        assert row.examples_per_second == pytest.approx(batch * 1e3 / row.mean_ms)


def test_inputs_of_a_batch_repeat_the_examples_in_order():
    model, _ = timed_model("m", golden("digits_int8"), tflite.read(golden("digits_int8")), None, 0)
    (array,) = in_batches_of(model, 1, 40).inputs
    assert array.shape == (1, 40, 8, 8, 1)
    np.testing.assert_array_equal(array[0, :16], model.inputs[0][:, 0])
    np.testing.assert_array_equal(array[0, 32:], array[0, :8])


def test_a_batch_that_fails_leaves_the_figures_of_the_others(monkeypatch):
    backend, calls = make_backend("local"), []
    time_models = backend.time_models

    def fail_at_4(request):
        calls.append(len(request.models))
        if any(model.inputs[0].shape[1] == 4 for model in request.models):
            raise ModelError("no batch of 4")
        return time_models(request)

    monkeypatch.setattr(backend, "time_models", fail_at_4)
    content = golden("digits_int8_dynamic_batch")
    model, _ = timed_model("m", content, tflite.read(content), None, 0)
    config = BenchmarkConfig(**SHORT, batch_sizes=(4, 2))
    rows = measure_throughput([model], {"m": tflite.read(content)}, config, backend, 0)
    assert [(row.batch, row.reason, row.mean_ms is None) for row in rows] == [
        (4, "no batch of 4", True),
        (2, None, False),
    ]
    assert calls == [2, 1, 1]


def test_batch_sizes_need_a_backend_that_measures_time():
    with refused(InputError, field="benchmark.batch_sizes"):
        evaluation.benchmark_models(
            {"m": golden("digits_int8")}, BenchmarkConfig(backend="qemu:cortex-a53", batch_sizes=(2,))
        )


def test_without_the_profiler_there_are_times_and_a_reason(monkeypatch):
    monkeypatch.setattr(
        type(make_backend("local")), "profile_ops", lambda *_: "LiteRT's profiler could not be used: libmissing"
    )
    (model,) = evaluation.benchmark_models({"m": golden("digits_int8")}, BenchmarkConfig(**SHORT)).models
    assert (model.ops, model.ops_by) == (None, None)
    assert "libmissing" in model.ops_reason
    assert model.mean_ms > 0
    (model,) = evaluation.benchmark_models({"m": golden("digits_int8")}, BenchmarkConfig(**SHORT, ops=False)).models
    assert "ops" in model.ops_reason


def test_a_profiler_of_another_layout_is_a_reason_and_no_numbers():
    folder = target.__file__.rpartition("/")[0]
    code = (
        f"import sys; sys.path.insert(0, {folder.rpartition('/')[0]!r})\n"
        "from target import op_times\n"
        "class Shifted(op_times.ctypes.Structure):\n"  # of the same size, so that nothing is written beyond it
        "    _fields_ = [('added', op_times.ctypes.c_uint64), *op_times.Event._fields_[:-1]]\n"
        "    source = 0\n"
        "assert op_times.ctypes.sizeof(Shifted) == op_times.ctypes.sizeof(op_times.Event)\n"
        "op_times.Event = Shifted\n"
        "zeros = op_times.session.np.zeros((1, 8, 8, 1), 'int8')\n"
        "print(op_times.Profiled(sys.argv[1], {0: zeros}, 'builtin', 1).events())\n"
    )
    path = f"{folder}/../../../tests/golden/digits_int8.tflite"
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "layout" in ended.stderr


def test_a_model_that_the_interpreter_refuses_is_named_with_its_kernels():
    models = {"good": golden("digits_int8"), "custom": golden("custom_op")}
    with refused(ModelError, word="custom"):
        evaluation.benchmark_models(models, BenchmarkConfig(**SHORT))


def test_an_unknown_runner_gets_a_suggestion():
    with refused(InputError, field="BenchmarkConfig.backend", got="lokal", word="'local'"):
        evaluation.benchmark_models({"m": golden("digits_int8")}, BenchmarkConfig(backend="lokal"))


def test_an_emulated_runner_counts_and_times_nothing(monkeypatch):
    from tfq.backends import QemuBackend
    from tfq.evaluation import benchmark

    asked = []

    class Counted:
        inputs, total_ops, delegated_ops = "zeros", 9, 7

        def to_dict(self):
            return {"instructions": 1_234_567, "note": "a count, not a time"}

    def count(content, backend, data, *, kernels):
        asked.append((content, backend, data, kernels))
        return Counted()

    monkeypatch.setattr(QemuBackend, "unavailable", lambda self: None)
    monkeypatch.setattr(benchmark, "count_instructions", count)
    config = BenchmarkConfig(backend="qemu:cortex-a76", kernels=("xnnpack", "builtin"))
    record = evaluation.benchmark_models({"m": golden("digits_int8")}, config)
    assert asked == [(golden("digits_int8"), "qemu:cortex-a76", None, kernels) for kernels in config.kernels]
    assert all(model.mean_ms is None and "emulator" in model.time_reason for model in record.models)
    counted = {"qemu:cortex-a76": {"instructions": 1_234_567, "note": "a count, not a time"}}
    assert record.to_record()["instructions"] == counted
    assert record.to_text().splitlines()[0] == (
        "m, xnnpack: 1,234,567 instructions per inference on qemu:cortex-a76 (a count, not a time)"
    )


def test_a_benchmark_has_enough_blocks_for_an_interval():
    def blocks(num_runs):
        entry = types.SimpleNamespace(latencies=[], blocks=[], seconds=0.0)
        while target.fraction_done(entry, {"num_runs": num_runs, "min_secs": 0}) < 1:
            entry.latencies += [1.0] * num_runs  # one block has all the runs that were requested
            entry.blocks.append([1.0, 1.0])
        return len(entry.blocks)

    assert blocks(100) == target.MIN_BLOCKS == 2 * MIN_PAIRS
    assert blocks(3) == 3 and blocks(1) == 1


class TestRounds:
    """The order of blocks on the target."""

    def test_each_order_is_followed_by_its_reverse_and_the_seed_decides(self):
        import random

        first, again, other = (target.round_orders(4, random.Random(seed)) for seed in (0, 0, 1))
        rounds = [next(first) for _ in range(20)]
        assert rounds == [next(again) for _ in range(20)]
        assert rounds != [next(other) for _ in range(20)]
        assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
        assert all(rounds[index + 1] == rounds[index][::-1] for index in range(0, 20, 2))
        assert len({tuple(order) for order in rounds}) > 4

    def test_all_entries_have_as_many_blocks_and_whole_pairs_of_them(self):
        models = [TimedModel(name=name, model=golden(name), inputs=_inputs(name), tensors=(0,)) for name in _DTYPES]
        request = TimingRequest(models=tuple(models), num_runs=50, min_secs=0, warmup_runs=0)
        timings, _ = make_backend("local").time_models(request)
        rounds = {timing.blocks_ms.shape[0] for timing in timings}
        assert len(rounds) == 1
        assert rounds.pop() % 2 == 0
        for timing in timings:
            assert timing.latencies_ms.mean() == pytest.approx(timing.blocks_ms[:, 0].mean())
            assert (timing.blocks_ms[:, 1] > timing.blocks_ms[:, 0]).all()


_DTYPES = {"digits_int8": np.int8, "digits_float32": np.float32}


def _inputs(name):
    return (np.ones((3, 1, 8, 8, 1), _DTYPES[name]),)


class TestInputs:
    """The inputs that a model receives."""

    def fed(self, content, data=None, seed=0):
        model, fed = timed_model("m", content, tflite.read(content), data, seed)
        return model.inputs, fed

    def test_random_inputs_cover_the_type_and_follow_the_seed(self):
        (quantized,), fed = self.fed(golden("digits_int8"))
        assert (quantized.dtype, quantized.shape[1:]) == (np.int8, (1, 8, 8, 1))
        assert (quantized.min(), quantized.max()) == (-128, 127)
        assert fed.what == "random, seed 0"
        np.testing.assert_array_equal(quantized, self.fed(golden("digits_int8"))[0][0])
        assert not np.array_equal(quantized, self.fed(golden("digits_int8"), seed=1)[0][0])

    def test_integers_without_a_scale_may_be_indices_and_stay_0_or_1(self):
        def without_scale(model):
            tensor = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
            tensor.type, tensor.quantization = INT32, None

        (values,), _ = self.fed(changed(golden("digits_int8"), without_scale))
        assert values.dtype == np.int32
        assert set(np.unique(values)) == {0, 1}

    def test_examples_that_fit_are_quantized_for_the_model(self):
        data = as_split(np.linspace(0, 16, 3 * 64, dtype=np.float32).reshape(3, 8, 8, 1))
        (quantized,), fed = self.fed(golden("digits_int8"), data)
        expected = evaluation.prepare_inputs(tflite.read(golden("digits_int8")), data).arrays[0]
        np.testing.assert_array_equal(quantized, expected[:, np.newaxis])
        assert "3 examples" in fed.what
        assert fed.reason is None

    def test_a_models_own_batch_is_filled_with_the_examples_again(self):
        def batch_of_2(model):
            tensor = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
            tensor.shape, tensor.shapeSignature = [2, 8, 8, 1], None

        examples = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 1), np.float32)
        (values,), _ = self.fed(changed(golden("digits_float32"), batch_of_2), as_split(examples))
        assert values[:, :, 0, 0, 0].tolist() == [[0, 1], [2, 0]]

    def test_unsuitable_examples_are_replaced_by_random_inputs_with_the_reason(self):
        (values,), fed = self.fed(golden("digits_float32"), as_split(np.zeros((2, 5, 5, 1), np.float32)))
        assert (values.dtype, np.abs(values).max() <= 1) == (np.float32, True)
        assert fed.what == "random, seed 0"
        assert "[5, 5, 1]" in fed.reason or "5, 5" in fed.reason

    def test_a_type_that_numpy_lacks_is_refused(self):
        def to_string(model):
            model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].type = 5  # STRING
            model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].quantization = None

        with refused(InputError, field="x0", limit="unknown-dtypes"):
            self.fed(changed(golden("digits_int8"), to_string))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.tflite", "b/y.tflite"], ["x", "y"]),
        (["a/x.tflite", "b/x.tflite"], ["a/x.tflite", "b/x.tflite"]),
        (["x.tflite", "x.tflite", "x.tflite"], ["x", "x #2", "x #3"]),
    ],
)
def test_every_file_has_its_own_name(paths, names):
    assert evaluation.model_names(paths) == names


def test_moments_and_percentiles_are_numpys():
    times = np.random.default_rng(0).gamma(3, 1, 500)
    statistics = evaluation.latency_statistics(times)
    assert statistics["std_ms"] == pytest.approx(np.sqrt(((times - times.mean()) ** 2).sum() / 499))
    assert statistics["quantiles_ms"] == pytest.approx(np.quantile(times, np.linspace(0, 1, 21)).tolist())
    assert evaluation.latency_statistics([2.0])["std_ms"] is None
    with pytest.raises(InputError):
        evaluation.latency_statistics([np.inf])


class TestCommandLine:
    """The command line from a user's perspective."""

    flags = ("--num_runs=40", "--min_secs=0", "--warmup_runs=1")

    def test_text_has_models_ratios_and_the_most_expensive_ops(self, tfq_cli, golden, tmp_path):
        ended = tfq_cli(
            "benchmark",
            f"--model={golden / 'digits_int8.tflite'}",
            f"--against={golden / 'digits_float32.tflite'}",
            f"--out={tmp_path}",
            *self.flags,
        )
        assert ended.returncode == 0, ended.stderr
        lines = ended.stdout.splitlines()
        assert lines[0].startswith("ms per inference")
        assert lines[1].split()[:4] == ["model", "kernels", "init", "first"]
        assert [line.split()[:2] for line in lines[2:4]] == [["digits_int8", "xnnpack"], ["digits_float32", "xnnpack"]]
        assert "digits_float32 / digits_int8, xnnpack: " in ended.stdout
        assert "CONV_2D" in ended.stdout
        record = json.loads((tmp_path / "benchmark.json").read_text())
        assert [model["name"] for model in record["benchmark"]["models"]] == ["digits_int8", "digits_float32"]
        assert set(record["sha256"]) == {"model", "against", "data"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "--model"),
            (("--model=none.tflite",), "none.tflite"),
            (("--model=MODEL", "--backend=lokal"), "local"),
            (("--model=MODEL", "--kernels=xnpack"), "xnnpack"),
            (("--model=MODEL", "--against=none.tflite"), "none.tflite"),
            (("--model=CUSTOM",), "MatrixDeterminant"),
        ],
    )
    def test_what_cannot_be_timed_is_exit_2_and_says_why(self, tfq_here, golden, arguments, message):
        files = {"MODEL": golden / "digits_int8.tflite", "CUSTOM": golden / "custom_op.tflite"}
        for word, path in files.items():
            arguments = [argument.replace(word, str(path)) for argument in arguments]
        ended = tfq_here("benchmark", *arguments, *self.flags)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_only_requested_data_that_does_not_fit_is_reported(self, tfq_here, golden, tmp_path):
        np.savez(tmp_path / "d.npz", x_test=np.zeros((2, 5, 5, 1), np.float32), y_test=np.zeros(2, np.int64))
        model = f"--model={golden / 'two_branches_float32.tflite'}"
        ended = tfq_here("benchmark", model, f"--data=npz:{tmp_path / 'd.npz'}", *self.flags)
        assert ended.returncode == 0, ended.stderr
        assert "random" in ended.stderr
        ended = tfq_here("benchmark", model, *self.flags)
        assert ended.returncode == 0, ended.stderr
        assert "warning" not in ended.stderr

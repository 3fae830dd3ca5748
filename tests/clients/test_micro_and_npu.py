# SPDX-License-Identifier: Apache-2.0
"""The backends of TFLM and Vela compared with their packages, called directly in separate processes."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated
from built_models import Call, T, build
from messages import refused
from mlperf_tiny import NAMES, build_int8
from one_op_models import options

import tfq
from tfq import tflite
from tfq.backends import InputStream, RunRequest, make_backend
from tfq.config import AuditConfig, EvaluationConfig
from tfq.errors import InputError, ModelError

pytestmark = pytest.mark.clients
NPU = "ethos-u55-128"

TFLM_DIRECTLY = """
import json, sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime

path, inputs, arena, result = sys.argv[1:]
interpreter = runtime.Interpreter.from_file(path, arena_size=int(arena))
outputs = []
for example in np.load(inputs):
    interpreter.set_input(example[np.newaxis], 0)
    interpreter.invoke()
    outputs.append(interpreter.get_output(0))
interpreter.print_allocations()
np.save(result, np.concatenate(outputs))
"""
VELA_DIRECTLY = "import sys; from ethosu.vela.vela import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def _packages():
    for module in ("tflite_micro", "ethosu"):
        pytest.importorskip(module, reason=f"{module} is not installed: make clients installs it")


@pytest.fixture(scope="module")
def built():
    """Return {name: int8 flatbuffer}."""
    return {name: build_int8(name) for name in NAMES}


def golden(name):
    return (Path(__file__).parents[1] / "golden" / f"{name}.tflite").read_bytes()


def assess(backend, model, *inputs, **settings):
    return make_backend(backend).assess(RunRequest(model=model, inputs=inputs, **settings))


def random_inputs(model, count):
    (tensor,) = tflite.read(model).main_subgraph.input_tensors
    return np.random.default_rng(0).integers(-128, 128, (count, *tensor.shape[1:])).astype(np.int8)


def run_directly(tmp_path, model, inputs, arena=10_000_000):
    """Return the finished process and its outputs."""
    (tmp_path / "model.tflite").write_bytes(model)
    np.save(tmp_path / "inputs.npy", inputs)
    paths = [tmp_path / "model.tflite", tmp_path / "inputs.npy", str(arena), tmp_path / "outputs.npy"]
    done = subprocess.run([sys.executable, "-c", TFLM_DIRECTLY, *paths], capture_output=True, text=True)
    return done, np.load(tmp_path / "outputs.npy") if done.returncode == 0 else None


def compile_directly(tmp_path, model, *arguments):
    """Return the row of Vela's summary, and what it printed."""
    (tmp_path / "model.tflite").write_bytes(model)
    command = [sys.executable, "-c", VELA_DIRECTLY, tmp_path / "model.tflite", "--output-dir", tmp_path / "vela"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    (summary,) = (tmp_path / "vela").glob("*summary*.csv")
    (row,) = csv.DictReader(summary.open())
    return row, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_arena_and_outputs_are_those_of_tflite_micro(built, name, tmp_path):
    model, inputs = built[name], random_inputs(built[name], 3)
    result = assess("tflm", model, inputs)
    done, outputs = run_directly(tmp_path, model, inputs)
    totals = re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", done.stderr)
    items = re.findall(r"'(.*?)' used (\d+) bytes", done.stderr)
    memory = dict(result.memory_bytes)
    assert {key: str(memory.pop(f"arena.{key}".replace(".total", ""))) for key, _ in totals} == dict(totals)
    assert {key: str(memory.pop(f"arena.tail.{key}")) for key, _ in items} == dict(items)
    assert set(memory) == {"arena_minimum", "arena.tail.other", "flash"}
    assert memory["flash"] == len(model)
    np.testing.assert_array_equal(result.outputs[0], outputs)
    # What TFLM records is not enough for every model.
    arena = memory["arena_minimum"]
    assert (arena > result.memory_bytes["arena"]) == (name == "fc_autoencoder")
    assert run_directly(tmp_path, model, inputs[:1], arena)[0].returncode == 0
    assert run_directly(tmp_path, model, inputs[:1], arena - 16)[0].returncode != 0


@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_those_of_velas_summary(built, name, tmp_path):
    result = assess(NPU, built[name], random_inputs(built[name], 1))
    row, printed = compile_directly(tmp_path, built[name], "--accelerator-config", NPU)
    areas = ("sram", "dram", "on_chip_flash", "off_chip_flash")
    expected = {area: float(row[f"{area}_memory_used"]) * 1024 for area in areas}
    assert {area: result.memory_bytes.get(area, 0) for area in areas} == expected
    assert result.figures["cycles"] == float(row["cycles_total"])
    assert result.figures["npu_multiply_adds"] == float(row["nn_macs"])
    assert sum(op["cycles"] for op in result.op_figures.values()) == float(row["cycles_total"])
    assert sum(op["npu_multiply_adds"] for op in result.op_figures.values()) == float(row["nn_macs"])
    assert re.search(r"CPU operators = 0 ", printed) and result.delegated_ops == result.total_ops
    assert (result.how, result.outputs, result.latencies_ms) == ("estimated", None, None)


def test_another_npu_or_memory_system_has_other_estimates(tmp_path):
    model, inputs = golden("digits_int8"), np.zeros((1, 8, 8, 1), np.int8)
    default = assess(NPU, model, inputs)
    row, _ = compile_directly(
        *(tmp_path, model, "--accelerator-config", NPU),
        *("--system-config", "Ethos_U55_Deep_Embedded", "--memory-mode", "Sram_Only"),
    )
    in_sram = assess(f"{NPU}:Ethos_U55_Deep_Embedded:Sram_Only", model, inputs)
    assert in_sram.figures["cycles"] == float(row["cycles_total"]) != default.figures["cycles"]
    # Vela reports the constants in SRAM as on-chip flash.
    kib = float(row["sram_memory_used"]) + float(row["on_chip_flash_memory_used"])
    assert in_sram.memory_bytes["sram"] == kib * 1024 != default.memory_bytes["sram"]
    assert assess("ethos-u85-256", model, inputs).figures["cycles"] != default.figures["cycles"]
    with refused(InputError, field="evaluation.backend", word="Nowhere"):
        assess(f"{NPU}:Nowhere:Sram_Only", model, inputs)


@pytest.mark.parametrize(
    ("name", "on_cpu", "word"),
    [
        ("float_island", [1, 2, 3], "Float32"),
        ("argmax_int8", [2], "argmax"),
        ("digits_float32", list(range(9)), "Float32"),
        ("two_branches_float32", [0, 1, 2], "Float32"),
    ],
)
def test_ops_on_the_cpu_are_named_with_velas_reasons(name, on_cpu, word):
    result = assess(NPU, golden(name), np.zeros((1, 8, 8, 1)))
    assert [int(re.match(r"op #(\d+)", op)[1]) for op in result.unaccelerated] == on_cpu
    assert all(result.unaccelerated.values())
    assert word in " ".join(result.unaccelerated.values())
    assert result.delegated_ops == result.total_ops - len(on_cpu)
    assert bool(result.figures) == (result.memory_bytes is not None) == (result.delegated_ops > 0)


def test_dynamic_shape_is_refused_by_the_npu():
    file = generated.ModelT.InitFromObj(generated.Model.GetRootAs(golden("digits_int8")))
    graph = file.subgraphs[0]
    graph.tensors[graph.inputs[0]].shapeSignature = [-1, -1, 8, 1]
    builder = flatbuffers.Builder(20_000)
    builder.Finish(file.Pack(builder), file_identifier=b"TFL3")
    with refused(InputError, field="model", expected="fixed sizes"):
        assess(NPU, bytes(builder.Output()), np.zeros((1, 8, 8, 1), np.int8))


@pytest.mark.parametrize(("backend", "file"), [("tflm", "slow_benchmark"), (NPU, "crash_702861")])
def test_a_crash_ends_only_the_child(root, backend, file):
    model = (root / "tests" / "hostile" / f"{file}.tflite").read_bytes()
    shapes = [(tensor.shape, tensor.dtype) for tensor in tflite.read(model).main_subgraph.input_tensors]
    with refused(ModelError, field="model", word="SIGSEGV"):
        assess(backend, model, *(np.zeros((1, *shape[1:]), dtype) for shape, dtype in shapes))


def test_op_without_a_kernel_in_tflm_is_named():
    tensors = {"x": T("int8", (1, 8), 0.1), "condition": T("bool", (1, 8)), "y": T("int8", (1, 8), 0.1)}
    model = build(tensors, [Call("SELECT", ["condition", "x", "x"], ["y"])], ["x", "condition"], ["y"])
    with refused(ModelError, field="model", word="SELECT"):
        assess("tflm", model, np.zeros((1, 8), np.int8), np.zeros((1, 8), bool))


def test_parameters_that_tflm_does_not_check_are_noted():
    tensors = {
        "x": T("int8", (1, 8), 0.1),
        "weights": T("int8", (4, 8), 0.01, values=np.ones((4, 8), np.int8)),
        "bias": T("int8", (4,), 0.001, values=np.ones(4, np.int8)),
        "y": T("int8", (1, 4), 0.1),
    }
    call = Call("FULLY_CONNECTED", ["x", "weights", "bias"], ["y"], options("FullyConnected"))
    (note,) = assess("tflm", build(tensors, [call], ["x"], ["y"]), np.zeros((1, 8), np.int8)).notes
    assert "bias" in note
    assert assess("tflm", golden("digits_int8"), np.zeros((1, 8, 8, 1), np.int8)).notes == ()


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_transpose_with_an_int64_permutation_is_wrong_on_tflm(dtype):
    tensors = {
        "x": T("int8", (1, 2, 3, 4), 0.1),
        "permutation": T(dtype, (4,), values=np.array([0, 2, 1, 3], dtype)),
        "y": T("int8", (1, 3, 2, 4), 0.1),
    }
    model = build(tensors, [Call("TRANSPOSE", ["x", "permutation"], ["y"])], ["x"], ["y"])
    x = np.arange(24, dtype=np.int8).reshape(1, 2, 3, 4)
    (y,) = assess("tflm", model, x).outputs
    assert np.array_equal(y, x.transpose(0, 2, 1, 3)) == (dtype == "int32")
    assert tfq.audit(model, AuditConfig(require="tflm", execute=False)).ok == (dtype == "int32")


@pytest.mark.parametrize("name", ["digits_float32", "digits_int16x8", "digits_int8_float_io", "digits_int8_uint8_io"])
def test_every_type_of_inputs_and_outputs_runs_on_tflm(name):
    (tensor,) = tflite.read(golden(name)).main_subgraph.input_tensors
    values = np.random.default_rng(0).uniform(0, 16, (5, 8, 8, 1))
    inputs = values / tensor.scale[0] + tensor.zero_point[0] if tensor.is_quantized else values
    inputs = inputs.round() if tensor.is_quantized else inputs
    limits = np.iinfo(tensor.dtype) if tensor.is_quantized else np.finfo(tensor.dtype)
    inputs = np.clip(inputs, limits.min, limits.max).astype(tensor.dtype)
    outputs = assess("tflm", golden(name), inputs).computed_outputs()[0]
    # Oracle: LiteRT's reference kernels.
    expected = assess("local", golden(name), inputs, kernels="reference").computed_outputs()[0]
    scale = 1 if outputs.dtype.kind == "i" or outputs.dtype == np.uint8 else 0.02
    assert outputs.dtype == expected.dtype
    assert np.abs(outputs.astype(np.float64) - expected).max() <= (200 if "16" in name else 5) * scale


def test_streams_and_workers_do_not_change_outputs_of_tflm():
    model, inputs = golden("digits_int8"), random_inputs(golden("digits_int8"), 97)
    once = assess("tflm", model, inputs, num_workers=1)
    stream = InputStream(num_examples=97, pieces=lambda: iter([(inputs[:40],), (inputs[40:],)]))
    streamed = make_backend("tflm").assess(RunRequest(model=model, inputs=stream, num_workers=2))
    np.testing.assert_array_equal(once.outputs[0], streamed.outputs[0])
    assert once.memory_bytes == streamed.memory_bytes
    assert (streamed.how, streamed.total_ops, streamed.delegated_ops) == ("emulated", 9, 0)
    assert streamed.latencies_ms is None and "microcontroller" in streamed.latency_reason


def test_accuracy_on_tflm_is_that_of_its_outputs():
    generator = np.random.default_rng(0)
    images, labels = generator.uniform(0, 16, (64, 8, 8, 1)).astype(np.float32), generator.integers(0, 10, 64)
    record = tfq.evaluate(golden("digits_int8"), (images, labels), EvaluationConfig(backend="tflm"))
    (tensor,) = tflite.read(golden("digits_int8")).main_subgraph.input_tensors
    inputs = np.clip(np.round(images / tensor.scale[0]) + tensor.zero_point[0], -128, 127).astype(np.int8)
    predicted = assess("tflm", golden("digits_int8"), inputs).outputs[0].argmax(axis=1)
    assert record.accuracy == (predicted == labels).mean()
    assert (record.how, record.xnnpack, record.memory_bytes["arena"]) == ("emulated", None, 5392)
    assert dataclasses.asdict(record)["caveats"]


def test_benchmark_command_checks_bounds_on_costs(root, tfq_here):
    model = f"--model={root / 'tests' / 'golden' / 'argmax_int8.tflite'}"
    digits = f"--model={root / 'tests' / 'golden' / 'digits_int8.tflite'}"
    met = tfq_here("benchmark", digits, "--backend=tflm", "--require.max_arena_bytes=5392", "--format=json")
    assert met.returncode == 0, met.stderr
    record = json.loads(met.stdout)
    assert record["benchmark"]["models"][0]["costs"]["memory_bytes"]["arena"] == 5392
    assert [item["holds"] for item in record["requirements"]] == [True]
    missed = tfq_here("benchmark", digits, "--backend=tflm", "--require.max_arena_bytes=5391")
    assert missed.returncode == 1 and "5,392" in missed.stderr
    unknown = tfq_here("benchmark", digits, "--backend=tflm", "--require.max_sram_bytes=100000")
    assert unknown.returncode == 1 and "sram" in unknown.stderr
    partly = tfq_here("benchmark", model, f"--backend={NPU}", "--require.min_accelerated_fraction=1")
    assert partly.returncode == 1 and "ARG_MAX" in partly.stdout

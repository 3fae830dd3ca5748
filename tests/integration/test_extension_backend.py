# SPDX-License-Identifier: Apache-2.0
"""A user's own backends, a runner and an estimator, in Python and as a plugin of the command line."""

import json

import numpy as np
import pytest

import tfq
from tfq import backends, evaluation, registry
from tfq.config import BenchmarkConfig, EvaluationConfig
from tfq.errors import BackendError, InputError

# CONTRIBUTING.md shows what is between the markers.
PLUGIN = '''
# --8<-- [start:backend]
import numpy as np

import tfq


class InProcess(tfq.Backend):
    """Runs a model of batch 1 on TFLite's builtin kernels, in this process, with ADDRESS threads."""

    def __init__(self, address):
        self.kind, self.address = IN_PROCESS, address

    def assess(self, request):
        """Return the outputs of every example."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        interpreter = Interpreter(
            model_content=request.model,
            num_threads=int(self.address),
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        inputs = [detail["index"] for detail in interpreter.get_input_details()]
        outputs = [detail["index"] for detail in interpreter.get_output_details()]
        answers = []
        for arrays in request.pieces():
            for place in range(len(arrays[0])):
                for index, array in zip(inputs, arrays):
                    interpreter.set_tensor(index, array[place : place + 1])
                interpreter.invoke()
                answers.append([interpreter.get_tensor(index) for index in outputs])
        return tfq.BackendResult(how="measured", outputs=tuple(map(np.concatenate, zip(*answers))), delegated_ops=0)


class MultiplyAdds(tfq.Backend):
    """Estimates cost without running the model: it counts the multiply-adds of convolutions and dense layers."""

    def __init__(self, address):
        self.kind = MULTIPLY_ADDS

    def assess(self, request):
        """Return the multiply-adds of one inference."""
        graph, total = tfq.tflite.read(request.model).main_subgraph, 0
        for op in graph.ops:
            if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                weights, output = graph.tensors[op.inputs[1]].shape, graph.tensors[op.outputs[0]].shape
                total += np.prod(output) * np.prod(weights[1:-1] if op.name.startswith("DEPTH") else weights[1:])
        return tfq.BackendResult(how="estimated", outputs_reason="an estimate", figures={"multiply_adds": int(total)})


IN_PROCESS = tfq.register(
    tfq.BackendKind(
        name="mine", help="builtin kernels in this process", open=InProcess, address="THREADS", needs_address=True
    )
)
MULTIPLY_ADDS = tfq.register(
    tfq.BackendKind(
        name="macs", help="counts multiply-adds", open=MultiplyAdds, how="estimated", computes_outputs=False
    )
)
# --8<-- [end:backend]
'''

# By hand, from the layers' shapes: 3x3x1, depthwise 3x3, 1x1x12 and 3x3x12 to 8x8x12 outputs; 48 to 10.
EXPECTED = 64 * 12 * (9 + 9 + 12 + 108) + 480


@pytest.fixture
def plugin(tmp_path):
    """Return the path of the plugin."""
    (tmp_path / "my_backends.py").write_text(PLUGIN)
    return str(tmp_path / "my_backends.py")


@pytest.fixture
def model(golden):
    return (golden / "digits_int8.tflite").read_bytes()


@pytest.fixture
def examples():
    generator = np.random.default_rng(0)
    return generator.uniform(0, 16, (24, 8, 8, 1)).astype(np.float32), generator.integers(0, 10, 24)


def test_a_registered_runner_evaluates_and_is_compared_in_python(plugin, model, examples):
    with registry.temporary():
        registry.load_plugin(plugin)
        record = tfq.evaluate(model, examples, EvaluationConfig(backend="mine:1"))
        parity = evaluation.compare_backends(model, examples, "local", "mine:2", xnnpack=False)
        choices = backends.backend_choices()
        with pytest.raises(InputError) as refused:
            tfq.evaluate(model, examples, EvaluationConfig(backend="mine"))
        with pytest.raises(BackendError):
            tfq.benchmark({"m": model}, BenchmarkConfig(backend="mine:1"))
    # Oracle: tfq's own runner with the same kernels.
    local = tfq.evaluate(model, examples, EvaluationConfig(xnnpack=False, num_runs=0))
    assert (record.accuracy, record.how, record.delegated_ops) == (local.accuracy, "measured", 0)
    assert (record.latency_p50_ms, record.latency_reason) == (None, "this backend does not report it")
    assert (parity.max_abs_error_lsb, parity.compared, parity.num_examples) == (0, 240, 24)
    assert choices[-2:] == ("mine:THREADS", "macs")
    assert (refused.value.field, refused.value.expected) == ("evaluation.backend", choices)
    with pytest.raises(InputError) as unknown:
        EvaluationConfig(backend="mine:1")
    assert unknown.value.got == "mine:1"


def test_a_registered_estimator_reports_costs_and_no_accuracy(plugin, model, examples):
    with registry.temporary():
        registry.load_plugin(plugin)
        record = tfq.evaluate(model, examples, EvaluationConfig(backend="macs"))
        with pytest.raises(BackendError):
            evaluation.compare_backends(model, examples, "local", "macs")
    assert record.figures == {"multiply_adds": EXPECTED}
    assert (record.how, record.accuracy, record.accuracy_reason) == ("estimated", None, "an estimate")
    assert f"multiply adds {EXPECTED:,}" in " ".join(record.to_text().split())


def test_a_plugin_adds_a_backend_to_the_command_line(plugin, golden, examples, tmp_path, tfq_cli):
    np.savez(tmp_path / "examples.npz", x_test=examples[0], y_test=examples[1])
    model = f"--model={golden / 'digits_int8.tflite'}"
    arguments = [model, f"--data=npz:{tmp_path / 'examples.npz'}", "--format=json", f"--out={tmp_path}"]
    with_plugin = [*arguments, f"--plugin={plugin}"]
    done = tfq_cli("evaluate", *with_plugin, "--backend=mine:1", "--backends=macs,mine:2")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["evaluation"]["backend"] == "mine:1"
    rows = record["portability"]["rows"]
    assert (rows["macs"]["status"], rows["macs"]["difference"]) == ("ran", None)
    assert rows["macs"]["evaluation"]["figures"] == {"multiply_adds": EXPECTED}
    # The plugin runs the builtin kernels, which are the yardstick.
    yardstick = record["portability"]["yardstick"]
    assert rows["mine:2"]["difference"]["num_different"] == yardstick["num_different"]
    assert [plugin["source"] for plugin in record["plugins"]] == ["my_backends.py"]
    estimated = tfq_cli("evaluate", *with_plugin, "--backend=macs")
    assert estimated.returncode == 0, estimated.stderr
    assert json.loads(estimated.stdout)["evaluation"]["figures"] == {"multiply_adds": EXPECTED}
    assert "mine" in tfq_cli("evaluate", f"--plugin={plugin}", "--help").stdout
    assert tfq_cli("evaluate", *arguments, "--backend=mine:1").returncode == 2

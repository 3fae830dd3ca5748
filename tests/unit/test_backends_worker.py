# SPDX-License-Identifier: Apache-2.0
"""The worker compared with an interpreter in this process."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from golden_models import changed, golden
from messages import refused
from test_architecture import imports

from tfq import quant_math
from tfq.backends import RunRequest, child, make_backend
from tfq.errors import FlatbufferError, InputError, ModelError

INPUTS = {
    "int8": lambda n: np.random.default_rng(0).integers(-128, 128, (n, 8, 8, 1)).astype(np.int8),
    "uint8": lambda n: np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8),
    "float32": lambda n: np.random.default_rng(0).uniform(0, 16, (n, 8, 8, 1)).astype(np.float32),
}


def run(model, *inputs, **settings):
    return make_backend("local").assess(RunRequest(model=model, inputs=inputs, **settings))


def in_this_process(model, inputs, resolver=OpResolverType.AUTO):
    """Run one example at a time through the public interface, with a separate interpreter for each."""
    outputs = []
    for example in inputs:
        interpreter = Interpreter(model_content=model, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], example[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1))
    return np.stack(outputs)


@pytest.mark.parametrize(
    ("name", "dtype", "output_dtype"),
    [
        ("digits_int8", "int8", "int8"),
        ("digits_int8_uint8_io", "uint8", "uint8"),
        ("digits_float32", "float32", "float32"),
        ("digits_int8_dynamic_batch", "int8", "int8"),
    ],
)
@pytest.mark.parametrize(
    ("kernels", "resolver"),
    [
        ("xnnpack", OpResolverType.AUTO),
        ("builtin", OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES),
        ("reference", OpResolverType.BUILTIN_REF),
    ],
)
def test_outputs_are_those_of_the_interpreter(name, dtype, output_dtype, kernels, resolver):
    inputs = INPUTS[dtype](9)
    result = run(golden(name), inputs, kernels=kernels)
    expected = in_this_process(golden(name), inputs, resolver)
    assert result.outputs[0].dtype == output_dtype
    assert result.outputs[0].shape == (9, 10)
    np.testing.assert_array_equal(result.outputs[0], expected)


def test_an_output_without_batch_dimension_is_one_value_per_example():
    inputs = INPUTS["int8"](5)
    result = run(golden("argmax_int8"), inputs)
    assert result.outputs[0].shape == (5,)
    np.testing.assert_array_equal(result.outputs[0], in_this_process(golden("argmax_int8"), inputs)[:, 0])


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 65, 700])
def test_outputs_do_not_depend_on_the_number_of_workers(num_workers, count):
    inputs = INPUTS["int8"](count)
    result = run(golden("digits_int8"), inputs, num_workers=num_workers)
    np.testing.assert_array_equal(result.outputs[0], in_this_process(golden("digits_int8"), inputs))


def test_several_outputs_come_in_the_models_order():
    model = changed(golden("digits_int8"), lambda m: setattr(m.subgraphs[0], "outputs", [20, 0]))
    inputs = INPUTS["int8"](3)
    probabilities, passed_through = run(model, inputs).outputs
    np.testing.assert_array_equal(probabilities, in_this_process(golden("digits_int8"), inputs))
    np.testing.assert_array_equal(passed_through, inputs)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_fixed_batch_is_padded_and_padding_is_removed(count):
    def batch_of_4(model):
        tensor = model.subgraphs[0].tensors[0]
        tensor.shape, tensor.shapeSignature = [4, 8, 8, 1], None

    model = changed(golden("digits_int8_dynamic_batch"), batch_of_4)
    inputs = INPUTS["int8"](count)
    result = run(model, inputs, num_runs=3)
    np.testing.assert_array_equal(result.outputs[0], run(golden("digits_int8_dynamic_batch"), inputs).outputs[0])
    assert any("batch" in note for note in result.notes) == (count % 4 != 0)


def test_delegated_ops_are_those_that_the_delegate_stands_for():
    # XNNPACK has no int8 AVERAGE_POOL_2D and no int8 SOFTMAX: 7 of the golden model's 9 ops are left to it.
    inputs = INPUTS["int8"](1)
    with_delegate, without = (run(golden("digits_int8"), inputs, kernels=kernels) for kernels in ("xnnpack", "builtin"))
    assert (with_delegate.total_ops, with_delegate.delegated_ops) == (9, 7)
    assert (without.total_ops, without.delegated_ops) == (9, 0)


def test_ops_that_cannot_be_listed_are_not_counted_and_said_so():
    from tfq.backends.target import session

    total, delegated, reason = session.count_ops(object())
    assert (total, delegated) == (None, None)
    assert "ops" in reason


def test_latencies_have_the_requested_number_or_a_reason():
    inputs = INPUTS["int8"](3)
    timed = run(golden("digits_int8"), inputs, warmup_runs=2, num_runs=7)
    assert timed.latencies_ms.shape == (7,)
    assert (timed.latencies_ms > 0).all()
    assert timed.latency_reason is None
    untimed = run(golden("digits_int8"), inputs)
    assert untimed.latencies_ms is None
    assert "num_runs" in untimed.latency_reason


def test_the_machine_is_described_without_its_name():
    import platform

    machine = run(golden("digits_int8"), INPUTS["int8"](1)).machine
    assert machine["machine"] == platform.machine()
    assert machine["numpy"] == np.__version__
    assert set(machine) == {"machine", "cpu", "python", "numpy", "ai_edge_litert"}
    assert platform.node() not in json.dumps(machine)


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ((np.zeros((2, 8, 8), np.int8),), "shape"),
        ((np.zeros((2, 8, 9, 1), np.int8),), "shape"),
        ((np.zeros((2, 8, 8, 1), np.float32),), "float32"),
        ((np.zeros((2, 8, 8, 1), np.int8),) * 2, "2"),
    ],
)
def test_arrays_that_the_model_does_not_take_are_the_users_error(inputs, word):
    with refused(InputError, field="inputs", word=word):
        run(golden("digits_int8"), *inputs)


def test_the_interpreters_refusal_is_reported_in_its_words():
    with refused(ModelError, field="model", word="MatrixDeterminant"):
        run(golden("custom_op"), np.zeros((1, 8, 8, 1), np.float32))
    with refused(FlatbufferError, word="TFL3"):
        run(b"no flatbuffer at all, only text", np.zeros((1, 8, 8, 1), np.float32))


def test_the_target_needs_nothing_of_tfq():
    code = (
        "import runpy, sys; sys.modules['tfq'] = None; sys.modules['tensorflow'] = None;"
        f"runpy.run_path({str(child.TARGET)!r}, run_name='target')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    needed, optional = {"numpy", "ai_edge_litert"}, {"tflite_micro", "ethosu"}
    for module_level, allowed in ((True, needed), (False, needed | optional)):
        sources = [path.read_text() for path in child.TARGET.glob("*.py")]
        names = {name.split(".")[0] for source in sources for name in imports(source, module_level=module_level)}
        assert names - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize("zero_point", [-128, -1, 0, 13])
@pytest.mark.parametrize("scale", [1.0, 2 / 255, 0.062745101749897])
def test_quantized_inputs_equal_those_of_xnnpacks_quantize_op(scale, zero_point):
    """Ties included: every 8-bit pixel scaled to [-1, 1] is one."""

    def only_the_quantize_op(model):
        graph = model.subgraphs[0]
        graph.operators = graph.operators[:1]
        graph.outputs = graph.operators[0].outputs
        quantization = graph.tensors[graph.outputs[0]].quantization
        quantization.scale, quantization.zeroPoint = [scale], [zero_point]
        model.signatureDefs = []

    alone = changed(golden("digits_int8_float_io"), only_the_quantize_op)
    steps = np.concatenate([np.arange(-300, 300) / 2, np.random.default_rng(0).uniform(-140, 140, 680)])
    x = (steps * np.float32(scale)).astype(np.float32).reshape(20, 8, 8, 1)
    (expected,) = make_backend("local").assess(RunRequest(model=alone, inputs=(x,))).outputs
    assert np.array_equal(quant_math.quantize(x, scale, zero_point), expected)

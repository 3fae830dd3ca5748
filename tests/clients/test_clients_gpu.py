# SPDX-License-Identifier: Apache-2.0
"""The backend gpu with LiteRT's real accelerator on SwiftShader."""

import average_pools
import numpy as np
import pytest
from average_pools import every_sum
from backend_contract import DIGITS, digits, local
from built_models import Call, T, build
from messages import refused
from one_op_models import one_op_model
from strided_pointwise import model

from tfq.backends import RunRequest, make_backend
from tfq.backends.gpu import backend, vulkan
from tfq.conversion.average_pools import with_exact_average_pools
from tfq.conversion.graph_rewrites import without_unread_ops
from tfq.conversion.strided_pointwise import without_strided_pointwise
from tfq.errors import BackendError, ModelError

pytestmark = pytest.mark.clients


@pytest.fixture(autouse=True, scope="module")
def _driver():
    vulkan.install()


def assess(model, *inputs, **settings):
    return make_backend("gpu").assess(RunRequest(model=model, inputs=inputs, **settings))


def test_ops_that_stay_on_the_cpu_are_named():
    tensor = T("float32", (1, 4, 4, 2))
    calls = [Call("TANH", ["x"], ["h"]), Call("ZEROS_LIKE", ["h"], ["zeros"]), Call("ADD", ["zeros", "x"], ["y"])]
    model = build(dict.fromkeys(("x", "h", "zeros", "y"), tensor), calls, ["x"], ["y"])
    x = np.linspace(-1, 1, 96, dtype=np.float32).reshape(3, 4, 4, 2)
    result = assess(model, x)
    np.testing.assert_allclose(result.outputs[0], x, atol=1e-6)
    assert list(result.unaccelerated) == ["op #1 ZEROS_LIKE (zeros)"] and result.delegated_ops < result.total_ops == 3
    assert "SwiftShader" in result.machine["gpu"] and result.how == "emulated"


def test_model_without_ops_for_the_gpu_says_so():
    result = assess(one_op_model("ZEROS_LIKE", "float32"), np.ones((1, 2, 4, 4), np.float32))
    assert result.delegated_ops == 0 and any("CPU" in note for note in result.notes)


def test_types_without_buffers_are_refused_by_name():
    ones = np.ones((1, 2, 4, 4), np.int16)
    with refused(ModelError, word="int16"):
        assess(one_op_model("ADD", "int16"), ones, ones)


def test_lack_of_memory_gives_no_outputs(monkeypatch):
    # The runtime continues with arbitrary values: it writes errors to its log, or ends with SIGSEGV.
    monkeypatch.setattr(backend, "DRIVER_BYTES", 0)
    monkeypatch.setattr(backend, "memory_limit", lambda model: 200 << 20)
    with refused(ModelError, field="model"):
        assess(DIGITS, digits(2))


def test_strided_1x1_convolutions_are_wrong_until_they_are_replaced():
    # If the first assertion fails, LiteRT has corrected the fault: measure again with benchmarks/gpu_ops.py.
    x = np.random.default_rng(0).integers(-100, 100, (4, 7, 7, 2)).astype(np.int8)
    (expected,) = local(model(), x)
    wrong = assess(model(), x)
    assert np.abs(wrong.outputs[0].astype(int) - expected).max() > 20 and any("mismatch" in n for n in wrong.notes)
    right = assess(without_strided_pointwise(model()), x)
    assert np.abs(right.outputs[0].astype(int) - expected).max() <= 1 and right.notes == ()


def test_average_pools_round_otherwise_until_they_are_replaced():
    # One mean of 0.5 or -0.5 is within the error of float32.
    x, pool = every_sum((8, 8)), average_pools.model((8, 8))
    (expected,) = local(pool, x)
    different = [
        np.abs(assess(content, x).outputs[0].astype(int) - expected)
        for content in (pool, with_exact_average_pools(pool))
    ]
    assert different[0].max() == 1 and different[0].sum() > 50 and different[1].sum() <= 2


def test_unread_int8_results_crash_until_they_are_removed():
    tensor = T("int8", (1, 4, 4, 2), 0.05)
    calls = [Call("ABS", ["x"], ["z"]), Call("RELU", ["x"], ["y"])]
    content, x = build(dict.fromkeys("xyz", tensor), calls, ["x"], ["y"]), np.ones((1, 4, 4, 2), np.int8)
    with refused(ModelError, field="model", got="SIGSEGV"):
        assess(content, x)
    np.testing.assert_array_equal(assess(without_unread_ops(content), x).outputs[0], x)


@pytest.mark.parametrize("axes", [4, 5])
def test_tensors_of_five_axes_stay_on_the_cpu(axes):
    tensor = T("float32", (1, *[2] * (axes - 1)))
    content = build(dict.fromkeys("xy", tensor), [Call("ABS", ["x"], ["y"])], ["x"], ["y"])
    assert assess(content, np.ones(tensor.shape, np.float32)).delegated_ops == (axes == 4)


def test_driver_from_debian_runs_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TFQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(vulkan, "FOLDERS", ())
    folder = vulkan.install()
    assert vulkan.drivers() == [folder] and sorted(path.name for path in folder.iterdir()) == sorted(vulkan.FILES)
    (output,), (expected,) = assess(DIGITS, digits(20)).outputs, local(DIGITS, digits(20))
    np.testing.assert_allclose(output.astype(int), expected.astype(int), atol=16)


def test_driver_without_device_is_a_backend_error(tmp_path, monkeypatch):
    folder = vulkan.drivers()[0]
    for name in vulkan.FILES:
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / vulkan.DRIVER).unlink()
    (tmp_path / vulkan.DRIVER).write_text("{}")
    monkeypatch.setenv(vulkan.FOLDER_VARIABLE, str(tmp_path))
    with refused(BackendError, word="tfq.backends.gpu.vulkan"):
        assess(DIGITS, digits(2))

# SPDX-License-Identifier: Apache-2.0
"""Reading the log of LiteRT's GPU accelerator (recorded from ai-edge-litert 2.3.0), and finding a Vulkan driver."""

import dataclasses

import numpy as np
import pytest
from built_models import Call, T, build
from golden_models import golden

from tfq import tflite
from tfq.backends import BackendResult, RunRequest, make_backend
from tfq.backends.gpu import backend, vulkan
from tfq.backends.gpu.backend import _titles
from tfq.backends.target import gpu

ADAPTER = (
    "I0000 00:00:1795990303.906928    2212 environment.cc:532] Selected adapter: SwiftShader Device (Subzero), "
    "arch=swiftshader, vendor=google, backend=Vulkan, adapterType=CPU / Software\n"
)
REFUSED = (
    "ERROR: Following operations are not supported by GPU delegate:\n"
    "SPLIT: Operation is not supported.\n"
    "ZEROS_LIKE: Operation is not supported.\n"
    "1 operations will run on the GPU, and the remaining 2 operations will run on the CPU.\n"
)
NONE_ON_GPU = "No operations will run on the GPU, and all 1 operations will run on the CPU.\n"
SUSPECT = (
    "W0000 00:00:1795990304.285615    2218 gpu_model_builder.cc:3901] Shape mismatch in "
    "GpuModelBuilder::UpdateOutputTensors(output of convolution1x1(conv_generic)). Requested shape:{bhwdc, {1, 16, 16, "
    "1, 32}} vs reference shape: {bhwdc, {1, 32, 32, 1, 32}}\n"
)
FAULT = (
    "E0000 00:00:1795990304.287237    2218 environment.cc:105] Out of memory: vkAllocateMemory failed with "
    "VK_ERROR_OUT_OF_DEVICE_MEMORY\n"
    " - While calling [Device].CreateBuffer([BufferDescriptor]).\n"
)


def test_adapter_is_read_from_the_log():
    assert gpu.adapter_of(ADAPTER) == {
        "name": "SwiftShader Device (Subzero)",
        "arch": "swiftshader",
        "vendor": "google",
        "backend": "Vulkan",
        "type": "CPU / Software",
    }
    assert gpu.adapter_of(REFUSED) is None


def test_refused_ops_and_their_number_are_read_from_the_log():
    reason = "Operation is not supported."
    assert gpu.refused_ops(ADAPTER + REFUSED) == {"SPLIT": reason, "ZEROS_LIKE": reason}
    assert [gpu.ops_on_gpu(log) for log in (REFUSED, NONE_ON_GPU, ADAPTER)] == [1, 0, None]


def test_errors_of_the_gpu_are_faults_and_warnings_are_not():
    assert gpu.faults(ADAPTER + SUSPECT + REFUSED) == []
    assert gpu.faults(FAULT + FAULT) == ["Out of memory: vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY"]
    (warning,) = gpu.SUSPECT.findall(ADAPTER + SUSPECT + FAULT)
    assert warning.startswith("Shape mismatch")


def test_refused_ops_get_their_title_if_there_is_only_one():
    tensor = T("float32", (1, 4))
    calls = [Call("ABS", ["x"], ["y"]), Call("NEG", ["y"], ["z"]), Call("ABS", ["z"], ["w"])]
    model = tflite.read(build(dict.fromkeys("xyzw", tensor), calls, ["x"], ["w"]))
    assert list(_titles(model, {"NEG": "no", "ABS": "no", "TILE": "no"})) == [
        "op #1 NEG (z)",
        "ABS (some of 2)",
        "TILE",
    ]


def test_driver_is_used_from_the_named_folder_only_if_complete(tmp_path, monkeypatch):
    monkeypatch.setenv(vulkan.FOLDER_VARIABLE, str(tmp_path))
    for name in vulkan.FILES:
        assert vulkan.drivers() == [] and vulkan.FOLDER_VARIABLE in vulkan.unavailable()
        (tmp_path / name).touch()
    assert vulkan.drivers() == [tmp_path] and vulkan.unavailable() is None


def test_machine_without_driver_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.delenv(vulkan.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(vulkan, "FOLDERS", ())
    monkeypatch.setattr(vulkan, "_has_gpu", lambda: False)
    monkeypatch.setenv("TFQ_CACHE_DIR", str(tmp_path))
    assert vulkan.COMMAND in make_backend("gpu").unavailable()
    installed = vulkan._installed()
    installed.mkdir(parents=True)
    for name in vulkan.FILES:
        (installed / name).touch()
    assert vulkan.drivers() == [installed] and vulkan.install() == installed
    monkeypatch.setattr(vulkan, "_has_gpu", lambda: True)
    assert vulkan.drivers() == [None, installed]


@pytest.mark.parametrize("is_software", [True, False])
def test_only_a_gpus_result_is_measured(is_software, monkeypatch):
    kind = "CPU / Software" if is_software else "Discrete GPU"
    answer = BackendResult(
        how="emulated",
        outputs=(np.zeros((1, 10), np.int8),),
        latencies_ms=np.ones(2),
        machine={"gpu": {"name": "card", "backend": "Vulkan", "type": kind}},
    )
    requests = []
    monkeypatch.setattr(backend, "_unavailable", lambda: None)
    monkeypatch.setattr(backend.vulkan, "drivers", lambda: [None])
    monkeypatch.setattr(backend, "run_worker", lambda command, request, **settings: requests.append(request) or answer)
    subject = make_backend("gpu")
    subject.kind = dataclasses.replace(subject.kind, unavailable=lambda: None)
    result = subject.assess(
        RunRequest(model=golden("digits_int8"), inputs=(np.zeros((1, 8, 8, 1), np.int8),), num_runs=2, num_workers=4)
    )
    assert requests[0].num_workers == 1
    assert result.how == ("emulated" if is_software else "measured")
    assert (result.latencies_ms is None) == is_software
    assert result.machine["gpu"] == "card" and "OpenCL" in result.caveats[0]

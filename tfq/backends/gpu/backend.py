# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer with LiteRT's GPU accelerator: on this machine's GPU, or on SwiftShader.

The accelerator is LiteRT's WebGPU implementation. Phones have others (OpenCL, Metal) with other kernels, so a result on
SwiftShader counts as emulated.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfq import tflite
from tfq.auditing.report import op_title
from tfq.backends.forks import start_fork
from tfq.backends.gpu import vulkan
from tfq.backends.limits import memory_limit
from tfq.backends.local import LocalBackend
from tfq.backends.protocol import Backend, BackendKind, BackendResult, RunRequest
from tfq.backends.worker import module_path, run_worker
from tfq.errors import BackendError, ModelError
from tfq.registry import register

ACCELERATOR = "libLiteRtWebGpuAccelerator.so"
# The runtime's message if Vulkan has no device that it can use.
NO_ADAPTER = "No adapters found"
# Address space that the driver and its compiler need; about 500 MB for SwiftShader in Chromium 151.
DRIVER_BYTES = 2 << 30
NO_LATENCY = "not measured, because SwiftShader computes on the CPU, and its speed says nothing about a GPU"
NOT_TIMED = "no timed runs were requested (num_runs is 0)"
EMULATED = "outputs: WebGPU on SwiftShader; not a phone's OpenCL, whose kernels may round or fail differently"
MEASURED = "outputs: WebGPU on this machine's GPU; not a phone's OpenCL"


def _unavailable() -> str | None:
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is None or not spec.origin:
        return f"ai-edge-litert is not installed for {sys.executable}: pip install ai-edge-litert"
    if not Path(spec.origin).with_name(ACCELERATOR).is_file():
        return f"this ai-edge-litert has no {ACCELERATOR}: pip install --upgrade ai-edge-litert"
    return vulkan.unavailable()


class GpuBackend(Backend):
    """LiteRT's GPU accelerator on this machine."""

    def __init__(self) -> None:
        """Open the backend. No process starts before the first run."""
        self.kind = GPU

    def fingerprint(self) -> list[object]:
        """Return the version of ai-edge-litert, and the time of each driver's file."""
        from importlib import metadata

        try:
            version: str | None = metadata.version("ai-edge-litert")
        except metadata.PackageNotFoundError:
            version = None
        files = [folder and folder / vulkan.FILES[-1] for folder in vulkan.drivers()]
        return [version, *(file.stat().st_mtime_ns if file else "system" for file in files)]

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the request on the first driver that has a device; see `Backend.assess`.

        If the GPU refuses some ops, they run on the CPU, and the result names them.
        """
        reason = self.unavailable()
        if reason:
            raise BackendError(f"{self.name}: {reason}")
        failure: ModelError | None = None
        for folder in vulkan.drivers():
            try:
                return self._run(request, folder)
            except ModelError as error:
                if NO_ADAPTER not in str(error):
                    raise
                failure = error
        raise BackendError(
            f"{self.name}: Vulkan has no device that LiteRT accepts: {failure}. Without a GPU, install SwiftShader "
            f"with `{vulkan.COMMAND}`"
        ) from failure

    def _run(self, request: RunRequest, folder: Path | None) -> BackendResult:
        model = tflite.read(request.model)
        is_emulated = folder is not None
        if is_emulated:
            request = dataclasses.replace(request, warmup_runs=0, num_runs=0)
        settings: dict[str, Any] = {"interpreter": "gpu", "vulkan": folder and str(folder)}
        # The drivers of GPUs reserve address space for the memory of the GPU.
        settings["memory_bytes"] = memory_limit(model) + DRIVER_BYTES if is_emulated else None
        result = run_worker(
            LocalBackend.COMMAND,
            # More processes or threads gain nothing: SwiftShader uses all cores, and a GPU runs one at a time.
            dataclasses.replace(request, num_workers=1, num_threads=1),
            backend=self.name,
            path=module_path(),
            emulated=is_emulated,
            interpreter=settings,
            start=start_fork,
        )
        adapter = result.machine.get("gpu") or {}
        is_gpu = bool(adapter) and not str(adapter.get("type")).startswith("CPU")
        latencies = result.latencies_ms if is_gpu else None
        on_cpu = ("no op runs on the GPU: these are the CPU's outputs",) if result.delegated_ops == 0 else ()
        return dataclasses.replace(
            result,
            how="measured" if is_gpu else "emulated",
            latencies_ms=latencies,
            latency_reason=None if latencies is not None else NOT_TIMED if is_gpu else NO_LATENCY,
            unaccelerated=_titles(model, result.unaccelerated),
            machine={**result.machine, "gpu": adapter.get("name"), "gpu_backend": adapter.get("backend")},
            notes=(*result.notes, *on_cpu),
            caveats=(MEASURED if is_gpu else EMULATED,),
        )


def _titles(model: tflite.Model, refused: Mapping[str, str]) -> dict[str, str]:
    """Return {title: reason} for {name of an op: reason}; the runtime does not say which of several ops it means."""
    graph, result = model.main_subgraph, {}
    for name, reason in refused.items():
        ops = [op for op in graph.ops if op.name == name]
        title = op_title(graph, ops[0]) if len(ops) == 1 else f"{name} (some of {len(ops)})" if ops else name
        result[title] = reason
    return result


GPU = register(
    BackendKind(
        name="gpu",
        help="LiteRT's GPU accelerator (WebGPU on Vulkan), without a GPU on SwiftShader, which computes on the CPU",
        open=lambda address: GpuBackend(),
        how="emulated",
        has_cpu_kernels=False,
        unavailable=_unavailable,
    )
)

# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on TensorFlow Lite Micro, and report the tensor arena that it needs.

The interpreter is TFLM's own, from the Python package tflite-micro: its reference kernels, built for this machine. A
device has other kernels and 32-bit pointers, so the results count as emulated.
"""

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Collection
from typing import Any

from tfq import tflite
from tfq.backends.forks import start_fork
from tfq.backends.limits import memory_limit
from tfq.backends.local import LocalBackend
from tfq.backends.protocol import Backend, BackendKind, BackendResult, RunRequest
from tfq.backends.worker import module_path, run_worker
from tfq.errors import BackendError, ModelError, install_hint
from tfq.registry import register

MODULES = {"tflite_micro": "tflite-micro", "bitarray": "bitarray", "yaml": "pyyaml"}
# The target of an audit that lists the ops of TFLM.
TARGET = "tflm"
# Kinds of its findings that are about an op without a kernel.
OP_FINDINGS = ("not_on_target", "custom_op", "flex_op", "compiled_op", "unknown_op")
# Kinds of its findings that are about parameters. TFLM's kernels do not check them, and compute wrong outputs.
PARAMETER_FINDINGS = (
    *("weight_zero_point", "weight_axis", "bias_type", "bias_zero_point", "bias_scale"),
    *("activation_scale", "fixed_scale", "unequal_scales", "missing_quantization", "bad_scale", "bad_zero_point"),
)
# First size of the arena: bytes for each op and for everything else, in addition to twice the bytes of all tensors.
OP_BYTES, BASE_BYTES = 4096, 1 << 16
LISTED_OPS = 5
NO_LATENCY = "not measured, because the speed of TFLM on this machine says nothing about a microcontroller"
CAVEATS = (
    "arena: recorded by TFLM in a 64-bit build with reference kernels; arena_minimum is the smallest in which the "
    "tensors can be allocated. On a 32-bit device the tail is smaller, because its structures contain pointers. "
    "Optimized kernels (CMSIS-NN and others) need scratch memory that is not in it",
    "flash: the bytes of the model; the code of the kernels, the runtime and the application is not included",
    "outputs: TFLM's reference kernels on this machine, not a device; optimized kernels may round differently",
)


def _unavailable() -> str | None:
    missing = [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        return f"not installed for {sys.executable}: {', '.join(missing)}. {install_hint('micro')}"
    return None


class TflmBackend(Backend):
    """TensorFlow Lite Micro on this machine."""

    def __init__(self) -> None:
        """Open the backend. No process starts before the first run."""
        self.kind = TFLM

    def fingerprint(self) -> list[object]:
        """Return the installed version of tflite-micro."""
        from importlib import metadata

        try:
            return [metadata.version("tflite-micro")]
        except metadata.PackageNotFoundError:
            return [None]

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the request without its timed runs; see `Backend.assess`."""
        reason = self.unavailable()
        if reason:
            raise BackendError(f"{self.name}: {reason}")
        model = tflite.read(request.model)
        try:
            result = run_worker(
                LocalBackend.COMMAND,
                dataclasses.replace(request, num_threads=1, warmup_runs=0, num_runs=0),
                backend=self.name,
                path=module_path(),
                interpreter={"interpreter": "tflm", **_arena(model)},
                start=start_fork,
            )
        except ModelError as error:
            raise _explained(error, request.model) from error
        memory = {**(result.memory_bytes or {}), "flash": len(request.model)}
        wrong = _audited(request.model, PARAMETER_FINDINGS)
        notes = [
            *(["TFLM has one thread"] if request.num_threads > 1 else []),
            *([f"TFLM does not check parameters, and its outputs may be wrong: {wrong}"] if wrong else []),
        ]
        return dataclasses.replace(
            result,
            how=self.kind.how,
            latency_reason=NO_LATENCY,
            memory_bytes=memory,
            memory_reason=None,
            machine={**result.machine, "kernels": "TFLM's reference kernels, 64-bit"},
            notes=(*result.notes, *notes),
            caveats=CAVEATS,
        )


def _arena(model: tflite.Model) -> dict[str, Any]:
    """Return the first and the largest size of the arena for the child's request."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors if not tensor.is_constant]
    ops = sum(len(graph.ops) for graph in model.subgraphs)
    # Eight bytes are the largest item.
    size = BASE_BYTES + OP_BYTES * ops + 2 * sum(8 * math.prod(tensor.shape) for tensor in tensors)
    most = memory_limit(model) // 2
    return {"arena_bytes": min(size, most), "most_arena_bytes": most}


def _explained(error: ModelError, model: bytes) -> ModelError:
    """Return the error with the ops that TFLM does not have, as the audit for TFLM lists them."""
    missing = _audited(model, OP_FINDINGS)
    if not missing:
        return error
    message = f"{error}. The audit for {TARGET} lists: {missing}"
    return ModelError(message, field=error.field, expected=error.expected, got=error.got)


def _audited(model: bytes, kinds: Collection[str]) -> str:
    """Return the messages of the failures of these kinds in an audit for TFLM, "" if there are none."""
    from tfq.auditing import audit_model
    from tfq.config import AuditConfig

    failures = audit_model(model, AuditConfig(require=TARGET)).failures
    messages = [finding.message for finding in failures if finding.kind in kinds]
    more = f"; and {len(messages) - LISTED_OPS} more" if len(messages) > LISTED_OPS else ""
    return f"{'; '.join(messages[:LISTED_OPS])}{more}"


TFLM = register(
    BackendKind(
        name="tflm",
        help="TensorFlow Lite Micro's interpreter with its reference kernels on this machine: outputs, tensor arena",
        open=lambda address: TflmBackend(),
        how="emulated",
        reports_memory=True,
        has_cpu_kernels=False,
        unavailable=_unavailable,
    )
)

# SPDX-License-Identifier: Apache-2.0
"""Estimate what a flatbuffer needs on an Arm Ethos-U NPU, with Arm's compiler Vela.

Vela compiles the model and estimates memory and cycles with its model of the NPU and of a memory system. Nothing runs.
The address of a backend selects the memory system: `ethos-u55-128:Ethos_U55_Deep_Embedded:Sram_Only`, with the path of
a Vela configuration file in front if it is not one of Vela's own.
"""

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfq import tflite
from tfq.artifacts import read_bytes
from tfq.backends.child import run_child
from tfq.backends.limits import memory_limit
from tfq.backends.local import LocalBackend
from tfq.backends.protocol import Backend, BackendKind, BackendResult, RunRequest
from tfq.backends.scratch import scratch_directory, write_error
from tfq.backends.vela.output import OpCost, Summary, ops_on_cpu, read_op_costs, read_reasons, read_summary
from tfq.backends.worker import module_path
from tfq.errors import BackendError, InputError, ModelError, install_hint
from tfq.registry import register

# The accelerator configurations of ethos-u-vela 5.2: family -> multiply-adds per cycle.
CONFIGURATIONS = {"u55": (32, 64, 128, 256), "u65": (256, 512), "u85": (128, 256, 512, 1024, 2048)}
TYPICAL = "ethos-u55-128"
# Vela reports no progress. Large models take minutes.
TIMEOUT_SECS = 1800.0
# Memory of the compiler, besides what the model explains.
COMPILER_BYTES = 2 << 30
NO_OUTPUTS = "Vela compiles the model and does not run it"
NO_LATENCY = "not reported: Vela estimates cycles of the NPU, which are not the time of an inference"
NOTHING_ON_NPU = "no op of the model runs on the NPU, so Vela estimates nothing"
INSTALL = install_hint("npu")


def _unavailable() -> str | None:
    if importlib.util.find_spec("ethosu") is None:
        return f"ethos-u-vela is not installed for {sys.executable}: {INSTALL}"
    return None


class EthosUBackend(Backend):
    """An Ethos-U NPU with a memory system, in Vela's model."""

    def __init__(self, name: str, address: str) -> None:
        """Open the backend.

        Args:
            name: Name of the kind, Vela's name of the configuration.
            address: "" for Vela's default memory system, or "[FILE.ini:]SYSTEM_CONFIG:MEMORY_MODE".

        Raises:
            InputError: The address has another form.
        """
        self.kind, self.address = KINDS[name], address
        *file, system, mode = address.rsplit(":", 2) if ":" in address else ("", "")
        if address and not (system and mode):
            raise InputError(
                f"{name}:{address}: expected [FILE.ini:]SYSTEM_CONFIG:MEMORY_MODE after {name}, such as "
                "Ethos_U55_Deep_Embedded:Sram_Only",
                field="evaluation.backend",
                expected="[FILE.ini:]SYSTEM_CONFIG:MEMORY_MODE",
                got=address,
            )
        self.file, self.system, self.mode = "".join(file), system, mode

    def fingerprint(self) -> list[object]:
        """Return the installed version of Vela and the hash of the configuration file, if one is named."""
        from importlib import metadata

        try:
            version: str | None = metadata.version("ethos-u-vela")
        except metadata.PackageNotFoundError:
            version = None
        return [version, hashlib.sha256(self._configuration()).hexdigest() if self.file else None]

    def assess(self, request: RunRequest) -> BackendResult:
        """Compile the model, and return Vela's estimates; see `Backend.assess`. The inputs are ignored."""
        reason = self.unavailable()
        if reason:
            raise BackendError(f"{self.name}: {reason}")
        model = tflite.read(request.model)
        _check_shapes(model, self.name)
        with scratch_directory() as directory:
            result = self._compile(directory, request, model)
            files = directory / "vela"
            log = result["log"]
            summary = read_summary(next(files.glob("*_summary_*.csv")).read_text(), log)
            costs = read_op_costs((files / "model_debug.xml").read_text(errors="replace"))
            compiled = tflite.read((files / "model_vela.tflite").read_bytes())
        return self._result(model, compiled, summary, costs, log, result["version"])

    def _compile(self, directory: Path, request: RunRequest, model: tflite.Model) -> dict[str, Any]:
        arguments = ["--accelerator-config", self.kind.name, "--enable-debug-db"]
        try:
            (directory / "model.tflite").write_bytes(request.model)
            if self.file:
                (directory / "vela.ini").write_bytes(self._configuration())
        except OSError as error:
            raise write_error(directory.parent, f"the model ({len(request.model):,} bytes)", error) from error
        if self.file:
            arguments += ["--config", str(directory / "vela.ini")]
        if self.system:
            arguments += ["--system-config", self.system, "--memory-mode", self.mode]
        settings = {
            "mode": "vela",
            "arguments": arguments,
            "path": module_path(),
            "memory_bytes": COMPILER_BYTES + memory_limit(model),
        }
        try:
            return run_child(
                LocalBackend.COMMAND,
                directory,
                settings,
                backend=self.name,
                unit="model",
                deadline=request.timeout_secs or TIMEOUT_SECS,
            )
        except ModelError as error:
            got = " ".join(str(error.got).split())
            if "CliOptionError" in got or "ConfigOptionError" in got:
                raise InputError(
                    f"{self.name}: Vela does not accept this memory system: {got}", field="evaluation.backend", got=got
                ) from error
            raise ModelError(
                f"{self.name}: Vela cannot compile the model: {got}. Vela may not support one of its ops, or the "
                "file is damaged",
                field="model",
                got=error.got,
            ) from error

    def _configuration(self) -> bytes:
        return read_bytes(self.file, "a Vela configuration file", field="evaluation.backend")

    def _result(
        self,
        model: tflite.Model,
        compiled: tflite.Model,
        summary: Summary,
        costs: Mapping[int, OpCost],
        log: str,
        version: str,
    ) -> BackendResult:
        from tfq.auditing.report import op_title

        graph, reasons = model.main_subgraph, read_reasons(log)

        def reason_of(op: tflite.Op) -> str:
            return " ".join(reasons.get(graph.tensors[index].name, "") for index in op.outputs).strip()

        left = ops_on_cpu(model, compiled)
        delegated = len(graph.ops) - len(left)
        figures = {
            "cycles": summary.cycles,
            "npu_cycles": summary.npu_cycles,
            "npu_multiply_adds": summary.multiply_adds,
        }
        notes = []
        if len(model.subgraphs) > 1:
            notes.append(
                f"{self.name}: the model has {len(model.subgraphs)} subgraphs. Ops are counted in the main one, and "
                "Vela does not tell the costs of their ops apart"
            )
            costs = {}
        if not delegated:
            notes.append(
                f"{self.name}: {NOTHING_ON_NPU}. The NPU needs integer activations: convert with conversion.scheme=int8"
            )
        return BackendResult(
            how=self.kind.how,
            outputs_reason=NO_OUTPUTS,
            latency_reason=NO_LATENCY,
            memory_bytes={**summary.memory_bytes, "compiled_model": compiled.model_bytes} if delegated else None,
            memory_reason=None if delegated else NOTHING_ON_NPU,
            figures=figures if delegated else {},
            op_figures={
                op_title(graph, graph.ops[index]): {"cycles": cost.cycles, "npu_multiply_adds": cost.multiply_adds}
                for index, cost in costs.items()
            },
            total_ops=len(graph.ops),
            delegated_ops=delegated,
            unaccelerated={op_title(graph, op): reason_of(op) for op in left},
            machine={
                "estimator": f"Vela {version}",
                "accelerator": summary.accelerator,
                "system_config": summary.system_config,
                "memory_mode": summary.memory_mode,
                "core_clock_hz": summary.core_clock_hz,
            },
            notes=tuple(notes),
            caveats=self._caveats(summary, version),
        )

    def _caveats(self, summary: Summary, version: str) -> tuple[str, ...]:
        default = "" if self.system else f", Vela's default; {self.kind.name}:SYSTEM_CONFIG:MEMORY_MODE selects another"
        return (
            f"all figures: estimated by Vela {version}'s model of {summary.accelerator} with the memory system "
            f"{summary.system_config}, {summary.memory_mode}{default}. Nothing was run",
            "cycles: those of the NPU; the ops on the CPU are not included. They are not a latency",
        )


def _check_shapes(model: tflite.Model, name: str) -> None:
    """Raise InputError if an input has a dynamic dimension other than the batch."""
    for input_name, tensor in zip(model.input_names, model.main_subgraph.input_tensors, strict=True):
        if any(size < 0 for size in tensor.shape_signature[1:]) or 0 in tensor.shape:
            shape = tensor.shape_signature or tensor.shape
            raise InputError(
                f"{name}: input {input_name!r} has the shape {list(shape)}. Vela needs fixed sizes: convert the model "
                "with conversion.input_shapes",
                field="model",
                expected="fixed sizes",
                got=shape,
            )


def _kind(family: str, macs: int) -> BackendKind:
    name = f"ethos-{family}-{macs}"
    return BackendKind(
        name=name,
        help=f"Arm's Ethos-{family.upper()} NPU, {macs} multiply-adds per cycle, in the model of Arm's compiler Vela: "
        "ops on the NPU and on the CPU, memory, cycles",
        open=functools.partial(EthosUBackend, name),
        how="estimated",
        computes_outputs=False,
        reports_memory=True,
        has_cpu_kernels=False,
        in_default_list=name == TYPICAL,
        address="MEMORY",
        unavailable=_unavailable,
    )


KINDS = {
    kind.name: register(kind)
    for kind in (_kind(family, macs) for family, sizes in CONFIGURATIONS.items() for macs in sizes)
}

# SPDX-License-Identifier: Apache-2.0
"""What every runner takes and gives: bytes and arrays in, arrays and numbers out."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRequest:
    """One model over n examples, and how to run and time it.

    model: the bytes of a `.tflite`.
    inputs: one array for each input of subgraph 0, in its order: (n, ...) in the model's own dtype (codes, where it is
        quantized), without the model's batch dimension: the examples are along axis 0, all with one n >= 1.
    num_threads: of the interpreter, >= 1.
    xnnpack: False runs TFLite's builtin kernels without any delegate.
    warmup_runs, num_runs: untimed and then timed inferences, cycling over the first examples, after the outputs of all
        examples are there; num_runs 0 times nothing.
    Raises InputError on what no model could take.
    """

    model: bytes
    inputs: tuple[NDArray, ...]
    num_threads: int = 1
    xnnpack: bool = True
    warmup_runs: int = 0
    num_runs: int = 0

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("the model is empty: wanted the bytes of a .tflite")
        if not self.inputs:
            raise InputError("no input arrays: wanted one for each input of the model")
        for index, array in enumerate(self.inputs):
            _check_input(index, array)
        lengths = [len(array) for array in self.inputs]
        if len(set(lengths)) > 1:
            raise InputError(f"the inputs hold {lengths} examples: wanted as many in each")
        if self.num_threads < 1 or self.warmup_runs < 0 or self.num_runs < 0:
            raise InputError(
                f"num_threads={self.num_threads}, warmup_runs={self.warmup_runs}, num_runs={self.num_runs}: "
                "wanted at least 1, 0 and 0"
            )

    @property
    def num_examples(self) -> int:
        """n, the length of every input."""
        return len(self.inputs[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """What came out of one `RunRequest`.

    outputs: one array for each output of subgraph 0, in its order: (n, ...) in the model's own dtype.
    latencies_ms: (num_runs,) milliseconds of each timed inference; None when nothing was timed.
    latency_reason: why not, or None.
    total_ops, delegated_ops: ops of subgraph 0, and those that XNNPACK took; None where the interpreter cannot tell,
        and then a note says so.
    machine: architecture, CPU, versions of what ran; of an emulator also its version and CPU.
    notes: what was done that was not asked for, or could not be done.
    """

    outputs: tuple[NDArray, ...]
    latencies_ms: NDArray[np.float64] | None
    latency_reason: str | None
    total_ops: int | None
    delegated_ops: int | None
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()


@runtime_checkable
class Runner(Protocol):
    """A place where a flatbuffer runs."""

    @property
    def name(self) -> str:
        """What --runner calls it."""

    @property
    def emulated(self) -> bool:
        """Whether its time says nothing about a device; such a runner never reports a latency."""

    def unavailable(self) -> str | None:
        """Why this runner cannot run here and what to do about it, or None when it can."""

    def run(self, request: RunRequest) -> RunResult:
        """Run the request. Raises InputError when the model does not take these inputs, RunnerError on all else."""


def _check_input(index: int, array: NDArray) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        told = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"input {index} is a {told}: wanted a NumPy array of numbers")
    if not array.ndim or not array.size:
        raise InputError(f"input {index} has shape {array.shape}: wanted at least one example along the first axis")

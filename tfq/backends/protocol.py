# SPDX-License-Identifier: Apache-2.0
"""What every backend takes and gives: bytes and arrays in, arrays and numbers out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tfq.config import KERNELS
from tfq.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True, eq=False)
class InputStream:
    """Inputs that are never in memory all at once.

    num_examples: how many there are in all, >= 1.
    pieces: each call starts over and gives tuples of arrays, one a model input, (k, ...) each with one k >= 1 (which
        may differ from piece to piece), together `num_examples` of them in order. Dtypes and shapes stay the same.
    """

    num_examples: int
    pieces: Callable[[], Iterator[tuple[NDArray, ...]]]

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise InputError(f"a stream of {self.num_examples} examples: wanted at least one")


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRequest:
    """One model over n examples, and how to run and time it.

    model: the bytes of a `.tflite`.
    inputs: one array for each input of subgraph 0, in its order: (n, ...) in the model's own dtype (codes, where it is
        quantized), without the model's batch dimension: the examples are along axis 0, all with one n >= 1. Or an
        `InputStream` of such arrays.
    num_threads: of each interpreter, >= 1.
    kernels: "xnnpack", TFLite's "builtin" ones without any delegate, or its "reference" ones.
    num_workers: interpreters that share the examples; 0 is as many as the cores have threads for. The outputs do not
        depend on it.
    timeout_secs: longest time without any progress before the run is given up; 0 goes by the model's own work.
    warmup_runs, num_runs: untimed and then timed inferences, on one interpreter that is alone, cycling over the first
        examples, after the outputs of all examples are there; num_runs 0 times nothing.
    Raises InputError on what no model could take.
    """

    model: bytes
    inputs: tuple[NDArray, ...] | InputStream
    num_threads: int = 1
    kernels: str = "xnnpack"
    num_workers: int = 0
    timeout_secs: float = 0
    warmup_runs: int = 0
    num_runs: int = 0

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("the model is empty: wanted the bytes of a .tflite")
        if not isinstance(self.inputs, InputStream):
            check_arrays(self.inputs)
        if self.kernels not in KERNELS:
            raise InputError(f"unknown kernels {self.kernels!r}: {did_you_mean(self.kernels, KERNELS)}")
        least = {"num_threads": 1, "num_workers": 0, "timeout_secs": 0, "warmup_runs": 0, "num_runs": 0}
        for name, lowest in least.items():
            if not getattr(self, name) >= lowest:
                raise InputError(f"{name}={getattr(self, name)}: wanted at least {lowest}")

    @property
    def num_examples(self) -> int:
        """n, the length of every input."""
        return self.inputs.num_examples if isinstance(self.inputs, InputStream) else len(self.inputs[0])


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
class Backend(Protocol):
    """A place where a flatbuffer runs."""

    @property
    def name(self) -> str:
        """The name that `evaluation.backend` gives it."""

    @property
    def emulated(self) -> bool:
        """Whether its time says nothing about a device; such a backend never reports a latency."""

    def unavailable(self) -> str | None:
        """Why this backend cannot run here and what to do about it, or None when it can."""

    def prepare(self) -> None:
        """Start now what the first `run` would wait for. Never fails: `run` says what is wrong."""

    def run(self, request: RunRequest) -> RunResult:
        """Run the request. Raises InputError when the model does not take these inputs, BackendError on all else."""


def check_arrays(arrays: tuple[NDArray, ...]) -> None:
    """Raises InputError unless `arrays` are numbers, (n, ...) each with one n >= 1."""
    if not arrays:
        raise InputError("no input arrays: wanted one for each input of the model")
    for index, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            told = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"input {index} is a {told}: wanted a NumPy array of numbers")
        if not array.ndim or not array.size:
            raise InputError(f"input {index} has shape {array.shape}: wanted at least one example along the first axis")
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise InputError(f"the inputs hold {lengths} examples: wanted as many in each")

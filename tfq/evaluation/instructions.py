# SPDX-License-Identifier: Apache-2.0
"""Count the instructions of an inference on an emulated ARM CPU, without a device. A count is not a time."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry, tflite
from tfq.backends import Backend, BackendKind, BackendResult, RunRequest, make_backend
from tfq.data import Split, as_split
from tfq.errors import BackendError, InputError
from tfq.evaluation.inputs import prepare_inputs

NOTE = "a count, not a time"


@dataclass(frozen=True, kw_only=True)
class InstructionRecord:
    """The instructions of one inference (one `invoke` on one thread) on an emulated CPU.

    The cost of the markers around an inference is subtracted; the call from Python, about 2,000 instructions, is not.

    Args:
        backend: The backend that counted.
        cpu: The emulated CPU.
        instructions: The median of `inferences` counts after warm-up.
        by: What counted the instructions.
        inferences: The number of counted inferences.
        lowest: The lowest count.
        highest: The highest count.
        batch: The number of examples per inference, which is the model's batch size.
        kernels: The kernels that ran.
        inputs: The inputs of the model.
        total_ops: As in `EvaluationRecord`.
        delegated_ops: As in `EvaluationRecord`.
        notes: Remarks of the backend.
        note: A reminder that a count is not a time.
    """

    backend: str
    cpu: str
    instructions: int
    by: str
    inferences: int
    lowest: int
    highest: int
    batch: int
    kernels: str
    inputs: str
    total_ops: int | None
    delegated_ops: int | None
    notes: tuple[str, ...] = ()
    note: str = NOTE

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    def to_text(self) -> str:
        """Return one line for the terminal."""
        batch = "" if self.batch == 1 else f" of {self.batch} examples"
        return f"{self.backend}: {self.instructions:,} instructions per inference{batch}, {self.kernels} ({self.note})"


def count_instructions(
    model: bytes, backend: str, data: Any = None, *, kernels: str = "xnnpack", timeout_secs: float = 0
) -> InstructionRecord:
    """Count the instructions of one inference on an emulated CPU. The count is the same each time.

    Args:
        model: The flatbuffer.
        backend: A backend that counts instructions.
        data: Data in any form that `tfq.data.as_split` accepts, whose first example is used. None uses zeros: most
            kernels do the same work for all values.
        kernels: "xnnpack" or "builtin".
        timeout_secs: The limit for the emulator; 0 for none.

    Raises:
        InputError: The data does not fit the model, or the model fails.
        BackendError: The backend counts no instructions.
    """
    counted = count_instructions_or_reason(model, backend, data, kernels=kernels, timeout_secs=timeout_secs)
    if isinstance(counted, str):
        raise BackendError(f"{backend}: {counted}", field="backend", got=backend)
    return counted


def why_it_cannot_count(backend: Backend) -> str | None:
    """Return the reason why a backend cannot count instructions here, or None. It runs no model."""
    if not backend.kind.counts_instructions:
        counting_backends = [name for name, kind in registry.entries(BackendKind).items() if kind.counts_instructions]
        return f"it does not count instructions. Backends that do: {', '.join(counting_backends)}"
    return backend.unavailable()


def count_instructions_or_reason(
    model: bytes, backend: str, data: Any = None, *, kernels: str = "xnnpack", timeout_secs: float = 0
) -> InstructionRecord | str:
    """Return `count_instructions`, or the reason why the backend cannot count here.

    A backend that can count but fails raises its error.
    """
    runner = make_backend(backend)
    reason = why_it_cannot_count(runner)
    if reason:
        return reason
    inputs, message = _inputs(tflite.read(model), data)
    request = RunRequest(
        model=model,
        inputs=inputs,
        kernels=kernels,
        timeout_secs=timeout_secs,
        outputs=False,
        count_instructions=True,
    )
    result = runner.assess(request)
    return record_of_counts(runner, result, kernels=kernels, inputs=message)


def record_of_counts(backend: Backend, result: BackendResult, *, kernels: str, inputs: str) -> InstructionRecord | str:
    """Return the record of the counts in a result of `backend`, or the reason why there are none.

    Args:
        backend: The backend.
        result: Its result.
        kernels: The kernels that ran.
        inputs: The inputs that the model got, as words.
    """
    counts = result.instructions
    if counts is None:
        return str(result.instructions_reason)
    return InstructionRecord(
        backend=backend.name,
        cpu=backend.kind.label(backend.address),
        instructions=counts.instructions,
        by=counts.counted_by,
        inferences=counts.inferences,
        lowest=counts.lowest,
        highest=counts.highest,
        batch=counts.batch,
        kernels=kernels,
        inputs=inputs,
        total_ops=result.total_ops,
        delegated_ops=result.delegated_ops,
        notes=result.notes,
    )


def _inputs(model: tflite.Model, data: Any) -> tuple[tuple[NDArray, ...], str]:
    """Return one example for each input, and a description of it."""
    if data is None:
        try:
            zeros = [np.zeros((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.main_subgraph.input_tensors]
        except TypeError as error:
            raise InputError(
                f"the model's inputs cannot be filled with zeros ({error}). Pass data", field="data", got=None
            ) from error
        return tuple(zeros), "zeros"
    first = as_split(data, limit=1)
    if not isinstance(first, Split):
        first = next(first.pieces()).take(1)
    return prepare_inputs(model, first).arrays, f"the first example of {first.source} ({first.name})"

# SPDX-License-Identifier: Apache-2.0
"""What an inference costs on ARM without a device: instructions, counted by the emulator. A count is not a time."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry, tflite
from tfq.backends import BackendKind, RunRequest, kind_of, make_backend
from tfq.data import Split, as_split
from tfq.errors import BackendError, InputError
from tfq.evaluation.inputs import prepare_inputs

NOTE = "a count, not a time"


@dataclass(frozen=True, kw_only=True)
class InstructionRecord:
    """What one inference (one `invoke`, on one thread) executes on an emulated CPU.

    instructions: the median of `inferences` counted ones after warm-up; lowest, highest: of these. What the marks
        around an inference cost is subtracted; the call from Python, about 2,000 instructions, is not.
    batch: examples that the inference has, the model's own batch. kernels: which ones ran.
    by: what counted. inputs: what the model was fed. total_ops, delegated_ops: as in EvaluationRecord.
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
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    def to_text(self) -> str:
        """For the terminal: one line."""
        batch = "" if self.batch == 1 else f" of {self.batch} examples"
        return f"{self.backend}: {self.instructions:,} instructions an inference{batch}, {self.kernels} ({self.note})"


def count_instructions(
    model: bytes, backend: str, data: Any = None, *, kernels: str = "xnnpack", timeout_secs: float = 0
) -> InstructionRecord:
    """Count what one inference of `model` executes on `backend`, an emulated one.

    data: what `tfq.data.as_split` takes; the first example is fed. None feeds zeros: the kernels of a usual network do
    the same work whatever the values are. The same call gives the same count, to the instruction.
    Raises InputError where the model does not take the data, or fails; BackendError where `backend` counts nothing.
    """
    counted = count_instructions_or_reason(model, backend, data, kernels=kernels, timeout_secs=timeout_secs)
    if isinstance(counted, str):
        raise BackendError(f"{backend}: {counted}", field="backend", got=backend)
    return counted


def count_instructions_or_reason(
    model: bytes, backend: str, data: Any = None, *, kernels: str = "xnnpack", timeout_secs: float = 0
) -> InstructionRecord | str:
    """`count_instructions`, or why `backend` counts nothing here. A failure of one that could is no such reason, and
    raises.
    """
    place = make_backend(backend)
    if not place.kind.counts_instructions:
        able = [name for name, kind in registry.entries(BackendKind).items() if kind.counts_instructions]
        return f"it does not count instructions; backends that do: {', '.join(able)}"
    reason = place.unavailable()
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
    result = place.assess(request)
    counts = result.instructions
    if counts is None:
        return str(result.instructions_reason)
    return InstructionRecord(
        backend=backend,
        cpu=place.kind.label(place.address),
        instructions=counts.instructions,
        by=counts.counted_by,
        inferences=counts.inferences,
        lowest=counts.lowest,
        highest=counts.highest,
        batch=counts.batch,
        kernels=kernels,
        inputs=message,
        total_ops=result.total_ops,
        delegated_ops=result.delegated_ops,
        notes=result.notes,
    )


def count_on_backends(
    model: bytes, backends: Iterable[str], data: Any = None, *, kernels: str = "xnnpack", timeout_secs: float = 0
) -> dict[str, InstructionRecord | str]:
    """`count_instructions_or_reason` on each of `backends` that counts, in their order; the others are left out."""
    counting = [backend for backend in dict.fromkeys(backends) if kind_of(backend).counts_instructions]
    return {
        backend: count_instructions_or_reason(model, backend, data, kernels=kernels, timeout_secs=timeout_secs)
        for backend in counting
    }


def instructions_to_dict(counted: Mapping[str, InstructionRecord | str]) -> dict[str, Any]:
    """Plain JSON values of what `count_on_backends` gave; a reason becomes {"not_run": reason}."""
    return {
        backend: {"not_run": outcome} if isinstance(outcome, str) else outcome.to_dict()
        for backend, outcome in counted.items()
    }


def _inputs(model: tflite.Model, data: Any) -> tuple[tuple[NDArray, ...], str]:
    """(one example for each input, what it is)."""
    if data is None:
        try:
            zeros = [np.zeros((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.main_subgraph.input_tensors]
        except TypeError as error:
            raise InputError(f"cannot make zeros for the model's inputs: {error}: give data to feed it") from error
        return tuple(zeros), "zeros"
    first = as_split(data, limit=1)
    if not isinstance(first, Split):
        first = next(first.pieces()).take(1)
    return prepare_inputs(model, first).arrays, f"the first example of {first.source} ({first.name})"

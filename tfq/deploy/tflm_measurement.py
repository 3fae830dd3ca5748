# SPDX-License-Identifier: Apache-2.0
"""Golden vectors in TensorFlow Lite Micro's Python package: the tensor arena, and the differences to XNNPACK."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import progress, tflite
from tfq.backends import LocalBackend, RunRequest, make_backend
from tfq.data import batch_size_of
from tfq.deploy.app_code import LARGE_DIFFERENCE
from tfq.deploy.platform import GOLDEN_FILE, SelfTestResult
from tfq.errors import TfqError

BACKEND = "tflm"
ARRAY_FILE, GOLDEN_ARRAYS_FILE = "micro/model_data.c", "micro/golden_data.h"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What TensorFlow Lite Micro's Python package measured.

    Args:
        arena: The bytes of the tensor arena that it used; None if it did not run.
        reason: Why it did not run.
        differences: The largest difference of each output to the golden vectors: in quantized values, or real ones.
            Infinite if the output has another size, or NaN.
    """

    arena: int | None
    reason: str = ""
    differences: tuple[float, ...] = ()


def measure(content: bytes, document: Mapping[str, Any], read: Callable[[str], bytes]) -> Measurement:
    """Run golden vectors in TensorFlow Lite Micro on this machine, if it is installed.

    Args:
        content: The bytes of the `.tflite`.
        document: The content of golden.json.
        read: (path in the bundle) -> content.
    """
    backend = make_backend(BACKEND)
    reason = backend.unavailable()
    if reason:
        return Measurement(arena=None, reason=reason)
    has_batch = batch_size_of(tflite.read(content)) is not None
    inputs, golden = (_stacked(document, read, side, has_batch) for side in ("inputs", "outputs"))
    try:
        with progress.stage("running the golden vectors in TensorFlow Lite Micro"):
            result = backend.assess(RunRequest(model=content, inputs=inputs))
    except TfqError as error:
        return Measurement(arena=None, reason=str(error))
    pairs = zip(result.computed_outputs(), golden, strict=True)
    differences = tuple(_largest_difference(output, expected) for output, expected in pairs)
    return Measurement(arena=(result.memory_bytes or {})["arena"], differences=differences)


def _stacked(
    document: Mapping[str, Any], read: Callable[[str], bytes], side: str, has_batch: bool
) -> tuple[NDArray, ...]:
    """Return the arrays of all golden vectors: the examples of each input or output along axis 0."""
    stacked = []
    for entries in zip(*(example[side] for example in document["examples"]), strict=True):
        arrays = [_array(entry, read) for entry in entries]
        has_examples = has_batch or (arrays[0].ndim > 0 and arrays[0].shape[0] == 1)
        stacked.append(np.concatenate(arrays) if has_examples else np.stack(arrays))
    return tuple(stacked)


def _largest_difference(output: NDArray, golden: NDArray) -> float:
    values, expected = (array.reshape(-1).astype(np.float64) for array in (output, golden))
    if values.size != expected.size:
        return float("inf")
    different = values != expected  # infinities may be equal; NaN never is
    largest = float(np.abs(values[different] - expected[different]).max(initial=0))
    return float("inf") if np.isnan(largest) else largest


def large_differences(
    content: bytes,
    document: Mapping[str, Any],
    read: Callable[[str], bytes],
    measured: Measurement,
    usual: Sequence[float],
) -> list[str]:
    """Return a warning for each output that differs by more than rounding explains.

    It does if the difference is above eight times the usual tolerance, and above the difference between TFLite's
    builtin kernels and XNNPACK on this machine.

    Args:
        content: The bytes of the `.tflite`.
        document: The content of golden.json.
        read: (path in the bundle) -> content.
        measured: The differences.
        usual: The usual tolerance of each output.
    """
    # There are no differences if nothing was measured.
    if not any(difference > LARGE_DIFFERENCE * usual[place] for place, difference in enumerate(measured.differences)):
        return []
    yardstick = _builtin_differences(content, document, read)
    warnings = []
    for place, entry in enumerate(document["examples"][0]["outputs"]):
        difference, limit, other = measured.differences[place], LARGE_DIFFERENCE * usual[place], yardstick[place]
        if difference > limit and (other is None or difference > other):
            known = "did not run" if other is None else f"differ by {other:g}"
            accepts = "accepts it, and does not show that the outputs are right" if np.isfinite(difference) else "fails"
            warnings.append(
                f"TensorFlow Lite Micro differs from XNNPACK by {difference:g} in output {entry['name']!r} "
                f"({entry['dtype']}). That is more than rounding: up to {limit:g} is usual, and TFLite's builtin "
                f"kernels {known}. The self-test on the board {accepts}. "
                "Compare the accuracy of both with evaluation.backends=local,tflm before you use the file"
            )
    return warnings


def _builtin_differences(
    content: bytes, document: Mapping[str, Any], read: Callable[[str], bytes]
) -> Sequence[float | None]:
    """Return the difference of each output of TFLite's builtin kernels to the golden vectors; None if they fail."""
    inputs, golden = (
        [tuple(_array(entry, read) for entry in example[side]) for example in document["examples"]]
        for side in ("inputs", "outputs")
    )
    try:
        outputs = LocalBackend().run_samples(content, inputs, kernels="builtin")
    except TfqError:
        return [None] * len(golden[0])
    return [
        max(
            _largest_difference(np.asarray(values[place]), expected[place])
            for values, expected in zip(outputs, golden, strict=True)
        )
        for place in range(len(golden[0]))
    ]


def _array(entry: Mapping[str, Any], read: Callable[[str], bytes]) -> NDArray:
    return np.frombuffer(read(entry["file"]), entry["dtype"]).reshape(entry["shape"])


def array_bytes(source: str) -> bytes:
    """Return the bytes of the array in model_data.c."""
    numbers = source.partition("{")[2].partition("}")[0]
    return bytes.fromhex(numbers.replace("0x", "").replace(",", " "))


def run_array(name: str, folder: Path) -> SelfTestResult:
    """Run the bytes of a bundle's C array on its golden vectors; the self-test called `name`."""
    if reason := make_backend(BACKEND).unavailable():
        return SelfTestResult(name=name, status="not run", detail=reason)
    content = array_bytes((folder / ARRAY_FILE).read_text(encoding="utf-8"))
    document = json.loads((folder / GOLDEN_FILE).read_text(encoding="utf-8"))
    measured = measure(content, document, lambda path: (folder / path).read_bytes())
    if measured.arena is None:
        return SelfTestResult(name=name, status="failed", detail=measured.reason)
    limits = _tolerances((folder / GOLDEN_ARRAYS_FILE).read_text(encoding="utf-8"))
    names = [entry["name"] for entry in document["examples"][0]["outputs"]]
    rows = list(zip(names, measured.differences, limits, strict=True))
    shown = [f"output {output} differs by {value:g}, {limit:g} are allowed" for output, value, limit in rows]
    failed = any(value > limit for _, value, limit in rows)
    detail = f"{len(document['examples'])} golden vectors, arena {measured.arena:,} bytes; {'; '.join(shown)}"
    return SelfTestResult(name=name, status="failed" if failed else "passed", detail=detail)


def _tolerances(source: str) -> list[float]:
    """Return the tolerance of each output in golden_data.h: those of the first example."""
    row = source.partition("kOutput[kExamples][kOutputs] = {\n")[2].partition("\n")[0]
    return [float(number) for number in re.findall(r"([\w.+-]+)f}", row)]

# SPDX-License-Identifier: Apache-2.0
"""Compare the raw outputs of a model on two backends."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import RunRequest, make_backend, public_names
from tfq.data import as_split
from tfq.errors import BackendError, InputError
from tfq.evaluation.inputs import Feed

DEFAULT_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class ParityRecord:
    """The difference between the outputs of two backends.

    Args:
        backend_a: The first backend.
        backend_b: The second backend.
        max_abs_error_lsb: The largest difference of two quantized values, in LSB, over all integer outputs; None if
            there are none.
        num_different: How many of the `compared` output values differ.
        compared: How many values of integer outputs were compared.
        num_examples: The number of examples.
        skipped: {output that is not an integer: why it has no LSB}. Its difference is only in `outputs`.
        outputs: For each output its name, dtype, max_abs_error_lsb, max_abs_error (float outputs only, in their own
            unit), num_different and compared.
    """

    backend_a: str
    backend_b: str
    max_abs_error_lsb: int | None
    num_different: int
    compared: int
    num_examples: int
    skipped: dict[str, str] = field(default_factory=dict)
    outputs: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        return {**values, "outputs": list(values["outputs"])}

    def to_text(self) -> str:
        """Return one line for the terminal."""
        pair = f"{self.backend_b} compared with {self.backend_a}"
        floats = [
            f"{output['name']}: max error {output['max_abs_error']:.3g}"
            for output in self.outputs
            if output["max_abs_error_lsb"] is None
        ]
        quantized = f"max {self.max_abs_error_lsb} LSB, {self.num_different:,} of {self.compared:,} values differ"
        parts = [*([quantized] if self.compared else []), *floats, f"{self.num_examples:,} examples"]
        return f"{pair}: {', '.join(parts)}"


def compare_backends(
    model: bytes,
    data: Any,
    backend_a: str,
    backend_b: str,
    limit: int = DEFAULT_LIMIT,
    *,
    num_threads: int = 1,
    xnnpack: bool = True,
    num_workers: int = 0,
    timeout_secs: float = 0,
) -> ParityRecord:
    """Run a model on two backends and compare the raw outputs.

    Args:
        model: The flatbuffer.
        data: Data in any form that `evaluate_model` accepts.
        backend_a: The first backend.
        backend_b: The second backend.
        limit: How many examples; 0 for all.
        num_threads: Threads of the interpreter.
        xnnpack: Whether to use XNNPACK's kernels.
        num_workers: Parallel workers of a backend that has them; 0 lets it choose.
        timeout_secs: The limit for each backend; 0 for none.

    Raises:
        InputError: A backend is unknown, or the data does not fit the model.
        BackendError: A backend cannot run.
    """
    parsed = tflite.read(model)
    data = as_split(data, limit=limit)
    backends = [make_backend(backend_a), make_backend(backend_b)]
    for backend in backends:
        reason = backend.unavailable()
        if reason:
            raise BackendError(f"{backend.name}: {reason}")
    request = RunRequest(
        model=model,
        inputs=Feed(parsed, data).inputs,
        num_threads=num_threads,
        kernels="xnnpack" if xnnpack else "builtin",
        num_workers=num_workers,
        timeout_secs=timeout_secs,
    )
    outputs_a, outputs_b = (backend.assess(request).computed_outputs() for backend in backends)
    names = public_names([backend_a, backend_b])
    return compare_outputs(
        parsed.output_names, outputs_a, outputs_b, backend_a=names[backend_a], backend_b=names[backend_b]
    )


def compare_outputs(
    names: Sequence[str], outputs_a: Sequence[NDArray], outputs_b: Sequence[NDArray], *, backend_a: str, backend_b: str
) -> ParityRecord:
    """Return the record of two backends' raw outputs, with one array (n, ...) per output.

    Raises:
        InputError: Shapes or dtypes differ, or a float output contains NaN or infinity.
    """
    compared = [
        _compare_output(name, a, b, f"{backend_a} or {backend_b}")
        for name, a, b in zip(names, outputs_a, outputs_b, strict=True)
    ]
    quantized = [output for output in compared if output["max_abs_error_lsb"] is not None]
    return ParityRecord(
        backend_a=backend_a,
        backend_b=backend_b,
        max_abs_error_lsb=max((output["max_abs_error_lsb"] for output in quantized), default=None),
        num_different=sum(output["num_different"] for output in quantized),
        compared=sum(output["compared"] for output in quantized),
        num_examples=len(outputs_a[0]),
        skipped={
            output["name"]: f"a {output['dtype']} output has no LSB" for output in compared if output not in quantized
        },
        outputs=tuple(compared),
    )


def _compare_output(name: str, a: NDArray, b: NDArray, backends: str) -> dict[str, Any]:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise InputError(
            f"output {name!r} is {a.dtype} {list(a.shape)} on one backend, but {b.dtype} {list(b.shape)} on the other",
            field=name,
            expected=(str(a.dtype), a.shape),
            got=(str(b.dtype), b.shape),
        )
    result: dict[str, Any] = {
        "name": name,
        "dtype": str(a.dtype),
        "max_abs_error_lsb": None,
        "max_abs_error": None,
        "num_different": int(np.count_nonzero(a != b)),
        "compared": int(a.size),
    }
    if a.dtype.kind in "iub":
        # Use Python integers if int64 could overflow.
        wide = np.int64 if a.dtype.itemsize < 8 else object
        result["max_abs_error_lsb"] = int(np.abs(a.astype(wide) - b.astype(wide)).max(initial=0))
    else:
        different = np.abs(a[a != b].astype(np.float64) - b[a != b].astype(np.float64))
        if not np.isfinite(different).all():
            raise InputError(
                f"output {name!r} contains NaN or infinity on {backends}, so there is no difference to measure",
                field=name,
                expected="finite numbers",
                got=backends,
            )
        result["max_abs_error"] = float(different.max(initial=0))
    return result

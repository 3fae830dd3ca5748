# SPDX-License-Identifier: Apache-2.0
"""The outputs of a reference model, computed once for comparisons with several models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import content_of
from tfq.backends import HOST, make_backend
from tfq.config import EvaluationConfig
from tfq.data import AnySplit, Split, as_split
from tfq.errors import InputError
from tfq.evaluation.inputs import decode_outputs
from tfq.evaluation.record import IDENTICAL
from tfq.evaluation.sharded import assess
from tfq.quant_math import sqnr_db
from tfq.typing import Data, PathOrBytes


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceOutputs:
    """The outputs of a reference model on some examples.

    Attributes:
        data: The examples.
        names: The names of the outputs, in the model's order.
        outputs: One array of real values per output, shape (n, ...), in the same order.
    """

    data: AnySplit
    names: tuple[str, ...]
    outputs: tuple[NDArray, ...]


def reference_outputs(model: PathOrBytes, data: Data, config: EvaluationConfig | None = None) -> ReferenceOutputs:
    """Run a reference model on `local` with XNNPACK, so that several evaluations can share its outputs.

    Args:
        model: The float flatbuffer: its bytes or its path.
        data: Examples, in any form that `evaluate` accepts.
        config: Number of examples, threads and workers; None means `EvaluationConfig()`. Other settings are ignored.

    Returns:
        The outputs of the model, as real values, with the examples that they belong to.

    Raises:
        InputError: The data does not fit the model, or an output is NaN.
        BackendError: The model cannot be run here.
    """
    config = config or EvaluationConfig()
    model = content_of(model, "model", "a float .tflite file")
    data = as_split(data, limit=config.limit)
    parsed = tflite.read(model)
    settings = {name: getattr(config, name) for name in ("num_threads", "num_workers", "timeout_secs")}
    result, _ = assess(model, data, HOST, make_backend(HOST), settings)
    outputs = decode_outputs(parsed, result.computed_outputs())
    return ReferenceOutputs(data=data, names=parsed.output_names, outputs=outputs)


def matched_outputs(
    reference: ReferenceOutputs, data: AnySplit, names: Sequence[str], outputs: Sequence[NDArray]
) -> list[NDArray]:
    """Return the reference's outputs in the order of `outputs`: by name if both have the same names, else by position.

    Raises:
        InputError: The reference was run on other data, or has outputs of other number or shape.
    """
    if not _same_inputs(reference.data, data):
        raise InputError(
            "the reference's outputs were computed on other data. Run both models on the same data",
            field="reference",
            expected="outputs of the same data",
        )
    if len(reference.outputs) != len(outputs):
        raise InputError(
            f"the model has {len(outputs)} outputs, but the reference has {len(reference.outputs)}. Use the float "
            "model that this model was converted from",
            field="reference",
            expected=len(outputs),
            got=len(reference.outputs),
        )
    order: Sequence[int] = range(len(outputs))
    if len(set(names)) == len(names) and set(names) == set(reference.names):
        order = [reference.names.index(name) for name in names]
    results = [reference.outputs[index] for index in order]
    for name, output, other in zip(names, outputs, results, strict=True):
        if output.shape != other.shape:
            raise InputError(
                f"output {name!r} has shape {list(output.shape)}, but the reference's has {list(other.shape)}. Use the "
                "float model that this model was converted from",
                field="reference",
                expected=output.shape,
                got=other.shape,
            )
    return results


def sqnr_or_reason(reference: NDArray, output: NDArray) -> tuple[float | None, str | None]:
    """Return (SQNR in dB, None), or (None, the reason why there is no finite SQNR)."""
    if not (np.isfinite(reference).all() and np.isfinite(output).all()):
        return None, "the outputs contain infinity"
    value = sqnr_db(reference, output)
    if np.isfinite(value):
        return value, None
    return None, IDENTICAL if value > 0 else "the reference's outputs are all zero"


def _same_inputs(one: AnySplit, other: AnySplit) -> bool:
    if one is other:
        return True
    if not isinstance(one, Split) or not isinstance(other, Split):
        # Two beginnings of one stream share its reader. Only other streams must be read to compare them.
        same_reader = getattr(one, "read", None) is getattr(other, "read", other)
        return one.num_examples == other.num_examples and (same_reader or one.sha256() == other.sha256())
    return set(one.inputs) == set(other.inputs) and all(
        array is other.inputs[name] or np.array_equal(array, other.inputs[name]) for name, array in one.inputs.items()
    )

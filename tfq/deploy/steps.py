# SPDX-License-Identifier: Apache-2.0
"""Apply the preprocessing steps of io.json, as the sources of a bundle do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data import resize_bilinear
from tfq.errors import InputError
from tfq.quant_math import quantize

# Steps that bundles' sources compute. Text is split into tokens before that: the arrays have token numbers.
COMPUTED, BEFORE = ("resize", "scale_offset", "normalize", "quantize"), ("tokenize",)


def apply_steps(values: NDArray, entry: Mapping[str, Any], where: str) -> NDArray:
    """Return real values as an input of io.json is fed, all in float32 before quantization.

    Args:
        values: Pixels, samples or token numbers, with the batch in front: (n, ...).
        entry: The entry of the input in io.json.
        where: What to call the values in messages.

    Raises:
        InputError: A step needs another shape, or tfq does not know it.
    """
    for step in entry["preprocessing"]:
        values = _apply(values, step, where)
    return _cast(values, entry["dtype"], where)


def _apply(values: NDArray, step: Mapping[str, Any], where: str) -> NDArray:
    kind = step["step"]
    if kind in BEFORE:
        return values
    if kind not in COMPUTED or (kind == "normalize" and "mean" not in step):
        raise InputError(
            f"{where}: the preprocessing step {kind!r} ({step.get('formula')}) cannot be computed: expected one of "
            f"{', '.join(COMPUTED)}",
            field=where,
            expected=COMPUTED,
            got=kind,
        )
    if kind == "resize":
        if values.ndim != 4:
            raise InputError(
                f"{where} has shape {values.shape}: expected images (n, height, width, channels), because the model "
                "resizes them",
                field=where,
                expected="(n, height, width, channels)",
                got=values.shape,
            )
        return resize_bilinear(values, (step["height"], step["width"]))
    real = values.astype(np.float32)
    if kind == "scale_offset":
        return real * np.float32(step["scale"]) + np.float32(step["offset"])
    if kind == "normalize":
        return (real - np.asarray(step["mean"], np.float32)) / np.asarray(step["std"], np.float32)
    return quantize(real, step["scale"], step["zero_point"], step["dtype"])


def _cast(values: NDArray, dtype: str, where: str) -> NDArray:
    cast = values.astype(dtype)
    if np.dtype(dtype).kind in "iub" and not np.array_equal(cast, values):
        raise InputError(
            f"{where} has values that {dtype} cannot represent: it has no scale, so values are not quantized. Pass "
            "values of this type",
            field=where,
            expected=dtype,
            got=str(values.dtype),
        )
    return cast

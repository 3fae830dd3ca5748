# SPDX-License-Identifier: Apache-2.0
"""A flatbuffer with an int8 average pool, and inputs whose windows have every sum."""

import numpy as np
from ai_edge_litert import schema_py_generated as generated
from built_models import Call, T, build
from one_op_models import options


def model(
    window=(2, 2), zero_point=-128, columns=8, rows=None, scale=0.0235, output_scale=None, padding="VALID"
) -> bytes:
    """Return an AVERAGE_POOL_2D of adjacent windows: `columns` in a row, and by default as many as `every_sum` has."""
    rows = rows or every_sum(window, columns).shape[1] // window[0]
    pool = options("Pool2D", filterHeight=window[0], filterWidth=window[1], strideH=window[0], strideW=window[1])
    pool.padding = getattr(generated.Padding, padding)
    shape = (1, rows * window[0], columns * window[1] - (padding == "SAME"), 1)
    tensors = {
        "x": T("int8", shape, scale, zero_point),
        "y": T("int8", (1, rows, columns, 1), output_scale or scale, zero_point),
    }
    return build(tensors, [Call("AVERAGE_POOL_2D", ["x"], ["y"], pool, 2)], ["x"], ["y"])


def every_sum(window=(2, 2), columns=8) -> np.ndarray:
    """Return an input whose windows have every possible sum, or the next ones."""
    number = window[0] * window[1]
    sums = np.arange(-128 * number, 127 * number + 1)
    sums = np.pad(sums, (0, -len(sums) % columns), mode="edge")
    low, more = np.divmod(sums, number)
    values = low[:, None] + (np.arange(number) < more[:, None])
    grid = values.reshape(-1, columns, *window).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grid.reshape(1, -1, columns * window[1], 1).astype(np.int8))

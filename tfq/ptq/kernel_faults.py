# SPDX-License-Identifier: Apache-2.0
"""Ops whose integer kernels compute something else than the scales of their tensors say.

TensorFlow's quantizer (2.21) writes such scales, tfq's own conversion repairs them (`conversion/int8_forms.py` has the
measurements), and files of other origin may have them.
"""

from tfq.tflite import Op, Subgraph, Tensor
from tfq.tflite.op_types import moved_inputs

COARSE_COMPARISON, UNEQUAL_COPY, ZERO_FILL = "coarse_comparison", "unequal_copy", "zero_fill"

# int8 comparisons compute with 8 bits after the point, and accept no scale of 1 or more.
COMPARING = frozenset({"EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"})
FINEST, COARSEST = 1 / 256, 1.0
# Ops that fill what they do not write with the quantized value 0.
_FILLING = frozenset({"SCATTER_ND", "MATRIX_DIAG"})
# Ops that move values and rescale them on the way, where the scales differ.
_RESCALING = frozenset({"CONCATENATION", "PACK", "MAXIMUM", "MINIMUM", "REDUCE_MAX", "REDUCE_MIN", "AVERAGE_POOL_2D"})
_SAME = 1e-5


def kernel_fault(graph: Subgraph, op: Op) -> tuple[str, str] | None:
    """Return (kind, what the op does, to follow its name in a sentence) of an op with wrong scales; None otherwise."""
    output = graph.tensors[op.outputs[0]] if op.outputs else None
    if output is None:
        return None
    if op.name in COMPARING:
        return _coarse_comparison([graph.tensors[index] for index in op.inputs])
    if output.dtype != "int8" or not output.is_quantized:
        return None
    if op.name in _FILLING and output.zero_point[0] != 0:
        return ZERO_FILL, (
            f"fills what it does not write with the quantized value 0, which stands for "
            f"{-output.zero_point[0] * output.scale[0]:.3g}. Convert the float model with tfq, which gives it a zero "
            "point of 0"
        )
    moved = [] if op.name in _RESCALING else [graph.tensors[index] for index in moved_inputs(op.name, op.inputs)]
    for tensor in moved:
        if tensor.dtype == "int8" and tensor.is_quantized and _differ(tensor, output):
            return UNEQUAL_COPY, (
                f"copies quantized values of scale {tensor.scale[0]:.3g} and zero point {tensor.zero_point[0]} to an "
                f"output of scale {output.scale[0]:.3g} and zero point {output.zero_point[0]}. Convert the float model "
                "with tfq, which rescales them before"
            )
    return None


def _coarse_comparison(tensors: list[Tensor]) -> tuple[str, str] | None:
    scales = [
        tensor.scale[0]
        for tensor in tensors
        if tensor.dtype == "int8" and tensor.is_quantized and not tensor.is_constant
    ]
    if not scales or FINEST <= max(scales) < COARSEST:
        return None
    return COARSE_COMPARISON, (
        f"compares values of scale {max(scales):.3g}: its kernel sees no differences below 1/256, and takes no scale "
        "of 1 or more. Convert the float model with tfq, which scales the operands before"
    )


def _differ(one: Tensor, other: Tensor) -> bool:
    return abs(one.scale[0] - other.scale[0]) > _SAME * other.scale[0] or one.zero_point[0] != other.zero_point[0]

# SPDX-License-Identifier: Apache-2.0
"""Ops whose integer kernels ignore the scales of their tensors, so that their results are wrong.

TensorFlow's quantizer (2.21) writes such scales. tfq's conversion fixes them (`conversion/int8_forms.py` has the
measurements), but files from other tools may still have them.
"""

from tfq.tflite import Op, Subgraph, Tensor
from tfq.tflite.op_types import moved_inputs

COARSE_COMPARISON, UNEQUAL_COPY, ZERO_FILL = "coarse_comparison", "unequal_copy", "zero_fill"

# The int8 kernels of comparisons compute with 8 fractional bits, and accept no scale of 1 or more.
COMPARING = frozenset({"EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"})
FINEST, COARSEST = 1 / 256, 1.0
# Ops that fill the elements that they do not write with the quantized value 0.
_FILLING = frozenset({"SCATTER_ND", "MATRIX_DIAG"})
# Ops that move values, and requantize them if the scales differ.
_RESCALING = frozenset({"CONCATENATION", "PACK", "MAXIMUM", "MINIMUM", "REDUCE_MAX", "REDUCE_MIN", "AVERAGE_POOL_2D"})
# Relative difference up to which two scales count as equal.
_TOLERANCE = 1e-5


def kernel_fault(graph: Subgraph, op: Op) -> tuple[str, str] | None:
    """Return (kind, predicate) if the kernel of an op ignores the scales of its tensors; None otherwise.

    Args:
        graph: A subgraph of a quantized flatbuffer.
        op: An op of it.

    Returns:
        The kind is COARSE_COMPARISON, UNEQUAL_COPY or ZERO_FILL. The predicate says what the op does and what to do
        about it. The caller puts the op's name in front of it to make a sentence.
    """
    output = graph.tensors[op.outputs[0]] if op.outputs else None
    if output is None:
        return None
    if op.name in COMPARING:
        return _coarse_comparison([graph.tensors[index] for index in op.inputs])
    if output.dtype != "int8" or not output.is_quantized:
        return None
    if op.name in _FILLING and output.zero_point[0] != 0:
        return ZERO_FILL, (
            "fills the elements that it does not write with the quantized value 0, which represents "
            f"{-output.zero_point[0] * output.scale[0]:.3g} instead of 0. Convert the float model with tfq, which "
            "gives the output a zero point of 0"
        )
    moved = [] if op.name in _RESCALING else [graph.tensors[index] for index in moved_inputs(op.name, op.inputs)]
    for tensor in moved:
        if tensor.dtype == "int8" and tensor.is_quantized and _differ(tensor, output):
            return UNEQUAL_COPY, (
                f"copies quantized values with scale {tensor.scale[0]:.3g} and zero point {tensor.zero_point[0]} to an "
                f"output with scale {output.scale[0]:.3g} and zero point {output.zero_point[0]}, without rescaling "
                "them. Convert the float model with tfq, which requantizes them first"
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
        f"compares values with scale {max(scales):.3g}. Its kernel does not see differences below 1/256, and accepts "
        "no scale of 1 or more. Convert the float model with tfq, which rescales the operands first"
    )


def _differ(one: Tensor, other: Tensor) -> bool:
    return abs(one.scale[0] - other.scale[0]) > _TOLERANCE * other.scale[0] or one.zero_point[0] != other.zero_point[0]

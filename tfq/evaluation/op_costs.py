# SPDX-License-Identifier: Apache-2.0
"""Match the steps that LiteRT's profiler timed with the ops and Keras layers of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfq.backends.timing import OpEvent
from tfq.tflite import Model, Op

# The beginnings of XNNPACK's kernel names and the TFLite ops that they compute, from XNNPACK's operator-type-defs as of
# ai-edge-litert 2.1.6. A kernel that is missing here is listed by its own name, without a layer.
_KERNELS: dict[str, tuple[str, ...]] = {
    "Convolution": ("CONV_2D", "DEPTHWISE_CONV_2D"),
    "Deconvolution": ("TRANSPOSE_CONV",),
    "Fully Connected": ("FULLY_CONNECTED", "CONV_2D"),  # XNNPACK runs a 1x1 convolution as a fully connected layer
    "Dynamic Fully Connected": ("BATCH_MATMUL", "FULLY_CONNECTED"),
    "Batch Matrix Multiply": ("BATCH_MATMUL",),
    "Add": ("ADD",),
    "Subtract": ("SUB",),
    "Multiply": ("MUL",),
    "Divide": ("DIV",),
    "Maximum": ("MAXIMUM",),
    "Minimum": ("MINIMUM",),
    "Squared Difference": ("SQUARED_DIFFERENCE",),
    "PReLU": ("PRELU",),
    "Clamp": ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"),
    "Leaky ReLU": ("LEAKY_RELU",),
    "HardSwish": ("HARD_SWISH",),
    "Sigmoid": ("LOGISTIC",),
    "TanH": ("TANH",),
    "Tanh": ("TANH",),
    "ELU": ("ELU",),
    "GELU": ("GELU",),
    "Exp": ("EXP",),
    "Abs": ("ABS",),
    "Negate": ("NEG",),
    "Square Root": ("SQRT",),
    "Reciprocal Square Root": ("RSQRT",),
    "Square": ("SQUARE",),
    "Floor": ("FLOOR",),
    "Ceiling": ("CEIL",),
    "Bankers Rounding": ("ROUND",),
    "Softmax": ("SOFTMAX",),
    "Average Pooling": ("AVERAGE_POOL_2D",),
    "Global Average Pooling": ("MEAN", "AVERAGE_POOL_2D"),
    "Max Pooling": ("MAX_POOL_2D",),
    "Mean": ("MEAN",),
    "Sum": ("SUM",),
    "Static Mean": ("MEAN",),
    "Convert": ("QUANTIZE", "DEQUANTIZE", "CAST"),
    "Constant Pad": ("PAD", "PADV2"),
    "Transpose": ("TRANSPOSE",),
    "Static Reshape": ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"),
    "Copy": ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CONCATENATION", "SPLIT"),
    "Resize Bilinear": ("RESIZE_BILINEAR",),
    "Concatenate": ("CONCATENATION",),
    "Split": ("SPLIT",),
    "Slice": ("SLICE", "STRIDED_SLICE"),
    "Depth To Space": ("DEPTH_TO_SPACE",),
    "Space To Depth": ("SPACE_TO_DEPTH",),
}
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"}
# Kernels that are part of the op before them unless they have their own op: a fused activation, a change of layout.
_PARTS = ("Clamp", "Static Reshape", "Copy")


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """The time of an op in one inference.

    Args:
        name: The name of the op, or of the kernel if it belongs to no single op.
        keras_layer: The Keras layer; None if it is not known.
        ms: The mean time per inference.
        fraction: The fraction of the time of all ops.
        index: The index of the op in subgraph 0, or None.
        kernel: What computed it: "TFLite", or the names of XNNPACK's kernels.
    """

    name: str
    keras_layer: str | None
    ms: float
    fraction: float
    index: int | None
    kernel: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))


def op_costs(model: Model, events: Sequence[OpEvent]) -> list[OpCost] | str:
    """Return the cost of each timed op of subgraph 0, in order, then kernels that belong to no single op; or a reason.

    TFLite reports the index of each op that it runs. XNNPACK's kernels are only known by their order and kind, so they
    are aligned with the ops that TFLite did not run, to match as many kinds as possible. If a kernel with weights or an
    op with weights has no match, the alignment may be shifted. Then all kernels are listed by their own names. Ops
    without their own time (because XNNPACK merged them into another op) are not listed.
    """
    ops = model.main_subgraph.ops
    nested = any(not event.in_delegate and event.subgraph for event in events)
    inside = [event for event in events if event.in_delegate]
    if nested and inside:
        return "the model calls subgraphs, and the profiler does not report which subgraph an XNNPACK kernel belongs to"
    run = [event for event in events if not event.in_delegate and not event.subgraph and event.name != "DELEGATE"]
    if any(event.index >= len(ops) or event.name != ops[event.index].name for event in run):
        return "the profiler reports ops that the model does not have"
    times: dict[int, float] = {}
    kernels: dict[int, list[str]] = {}
    for event in run:
        times[event.index] = times.get(event.index, 0) + event.mean_ms
        kernels.setdefault(event.index, ["TFLite"])
    unmatched = []
    delegated = [op for op in ops if op.index not in times]
    matches = align(inside, delegated)
    if _is_shifted(inside, matches, delegated):
        matches = [None] * len(inside)
    for event, op in zip(inside, matches, strict=True):
        if op is None:
            unmatched.append(event)
            continue
        times[op.index] = times.get(op.index, 0) + event.mean_ms
        kernels.setdefault(op.index, []).append(event.name)
    total = sum(event.mean_ms for event in [*run, *inside]) or 1.0
    known = [_cost(ops[index], times[index], total, kernels[index]) for index in sorted(times)]
    return known + [
        OpCost(
            name=event.name,
            keras_layer=None,
            ms=event.mean_ms,
            fraction=event.mean_ms / total,
            index=None,
            kernel=f"XNNPACK: {event.name}",
        )
        for event in unmatched
    ]


def align(events: Sequence[OpEvent], ops: Sequence[Op]) -> list[Op | None]:
    """Return the op of each event by the longest common subsequence of kinds; parts join the op before them."""
    kinds = [_kinds(event.name) for event in events]
    best = [[0] * (len(ops) + 1) for _ in range(len(events) + 1)]
    for row in range(len(events) - 1, -1, -1):
        for column in range(len(ops) - 1, -1, -1):
            fits = ops[column].name in kinds[row]
            best[row][column] = max(
                best[row + 1][column], best[row][column + 1], best[row + 1][column + 1] + 1 if fits else 0
            )
    results: list[Op | None] = []
    row = column = 0
    while row < len(events):
        if column < len(ops) and ops[column].name in kinds[row] and best[row][column] == best[row + 1][column + 1] + 1:
            results.append(ops[column])
            row, column = row + 1, column + 1
        elif column < len(ops) and best[row][column] == best[row][column + 1]:
            column += 1
        else:
            part = events[row].name.startswith(_PARTS)
            results.append(results[-1] if part and results else None)
            row += 1
    return results


def _is_shifted(events: Sequence[OpEvent], matches: Sequence[Op | None], ops: Sequence[Op]) -> bool:
    """Check whether a kernel with weights has no op, or an op with weights has no kernel."""
    results = {op.index for op in matches if op is not None}
    unmatched = (event for event, op in zip(events, matches, strict=True) if op is None)
    return any(_WEIGHTED.intersection(_kinds(event.name)) for event in unmatched) or any(
        op.name in _WEIGHTED and op.index not in results for op in ops
    )


def _kinds(kernel: str) -> tuple[str, ...]:
    """Return the ops that a kernel may compute, by the longest known beginning of its name."""
    known = [begin for begin in _KERNELS if kernel.startswith(begin)]
    return _KERNELS[max(known, key=len)] if known else ()


def _cost(op: Op, ms: float, total: float, kernels: list[str]) -> OpCost:
    computed_by = kernels[0] if kernels == ["TFLite"] else f"XNNPACK: {', '.join(dict.fromkeys(kernels))}"
    return OpCost(
        name=op.name, keras_layer=op.keras_layer, ms=ms, fraction=ms / total, index=op.index, kernel=computed_by
    )

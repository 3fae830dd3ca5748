# SPDX-License-Identifier: Apache-2.0
"""Ops that join several tensors into one scale, and the range of each tensor."""

from dataclasses import asdict, dataclass
from typing import Any

from tfq.ptq.causes import JOINS, Diagnosis, op_label, tensor_label


@dataclass(frozen=True, kw_only=True)
class Join:
    """Tensors that an op joins into one scale. If their ranges differ much, the narrow ones keep few quantized values.

    Inputs are named after the op that computes them. QUANTIZE, RESHAPE, TRANSPOSE and other ops that only move values
    are skipped.

    Attributes:
        op_index: The position of the op in the int8 flatbuffer.
        op: The op's name.
        label: "concat/CONCATENATION (#7)".
        ranges: {input: width of the range of its float values}.
        num_values: {input: how many quantized values of the common scale it can use}.
    """

    op_index: int
    op: str
    label: str
    ranges: dict[str, float]
    num_values: dict[str, int]

    @property
    def ratio(self) -> float:
        """The widest range divided by the narrowest that is not 0."""
        widths = [width for width in self.ranges.values() if width > 0]
        return max(widths) / min(widths) if widths else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "ratio": self.ratio}


def joins(diagnosis: Diagnosis) -> tuple[Join, ...]:
    """Return the ops that join several activations into one scale, in the order of the ops."""
    graph, results = diagnosis.graph, []
    for op in graph.ops:
        if op.name not in JOINS:
            continue
        scale = diagnosis.scale(op.outputs[0])
        tensors = [index for index in diagnosis.data_inputs(op) if not graph.tensors[index].is_constant]
        widths: dict[str, float] = {}
        for tensor in tensors:
            width, source = diagnosis.width(tensor), diagnosis.source(tensor)
            if width is not None and not graph.tensors[source].is_constant:
                name = tensor_label(graph, source)
                # Two outputs of one op, such as SPLIT, have the same source.
                widths[name] = max(width, widths.get(name, 0.0))
        if len(widths) > 1 and scale is not None:
            num_values = {name: min(256, int(width / scale) + 1) for name, width in widths.items()}
            results.append(
                Join(
                    op_index=op.index, op=op.name, label=op_label(graph, op.index), ranges=widths, num_values=num_values
                )
            )
    return tuple(results)

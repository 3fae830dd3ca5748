# SPDX-License-Identifier: Apache-2.0
"""Ops that bring several tensors to one scale, with the range that each of them has by itself."""

from dataclasses import asdict, dataclass
from typing import Any

from tfq.ptq.causes import JOINS, Diagnosis, op_label, tensor_label


@dataclass(frozen=True, kw_only=True)
class Join:
    """Tensors that an op brings to one scale: if their ranges are very different, the narrow ones keep few values.

    Inputs are named by the op that computes them, seen through QUANTIZE, RESHAPE, TRANSPOSE and other ops that only
    move values.

    Attributes:
        op_index: Position of the op in the int8 flatbuffer.
        op: The op's name.
        label: "concat/CONCATENATION (#7)".
        ranges: {input: width of its float values}.
        codes: {input: how many quantized values of the common scale it can take}.
    """

    op_index: int
    op: str
    label: str
    ranges: dict[str, float]
    codes: dict[str, int]

    @property
    def ratio(self) -> float:
        """The widest range over the narrowest that is not 0."""
        widths = [width for width in self.ranges.values() if width > 0]
        return max(widths) / min(widths) if widths else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "ratio": self.ratio}


def joins(diagnosis: Diagnosis) -> tuple[Join, ...]:
    """Return the ops that bring several activations to one scale, in the order of the ops."""
    graph, built = diagnosis.graph, []
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
                # Two parts of one tensor, as SPLIT gives them.
                widths[name] = max(width, widths.get(name, 0.0))
        if len(widths) > 1 and scale is not None:
            codes = {name: min(256, int(width / scale) + 1) for name, width in widths.items()}
            built.append(
                Join(op_index=op.index, op=op.name, label=op_label(graph, op.index), ranges=widths, codes=codes)
            )
    return tuple(built)

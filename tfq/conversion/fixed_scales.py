# SPDX-License-Identifier: Apache-2.0
"""Give an op of a fixed output scale one output for each scale that its readers need.

A sigmoid's int8 output has the scale 1/256. Where one reader is a concatenation with a wider range, TensorFlow's
quantizer (2.21) inserts a QUANTIZE to the concatenation's scale after the sigmoid, and, depending on the order of the
ops, gives the other readers that tensor as well or leaves them in float: a sigmoid that is an output of the model then
has 10 of 256 levels, or an output in float. The float graph computes the op once for each scale instead, which is
exact to the bit; each copy is quantized for its own readers.
"""

import copy
from typing import Any

import numpy as np

from tfq import tflite
from tfq.conversion.graph_editing import add_tensor, name_of, replace_reads, rewrite_graphs
from tfq.tflite.op_types import FIXED_OUTPUT_SCALES, JOINING_OPS, MOVING_INPUTS, moved_inputs
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32 = TENSOR_TYPES.index("float32")
# Ops that bring several inputs to one scale.
_JOINS = JOINING_OPS | {name for name, slots in MOVING_INPUTS.items() if len(slots) > 1}


def with_separate_scales(model: bytes) -> bytes:
    """Return the float flatbuffer with a copy of each fixed-scale op, and of what moves its values, for each join.

    An op has a fixed scale if it is in FIXED_OUTPUT_SCALES. Only an op with readers of different scales is copied;
    other flatbuffers are returned as they are.
    """
    if tflite.operator_names(model).isdisjoint(_JOINS):
        return model
    return rewrite_graphs(model, FIXED_OUTPUT_SCALES, lambda edited, graph: _Separation(edited, graph).run())


class _Separation:
    """One subgraph, whose ops are copied in place."""

    def __init__(self, edited: Any, graph: Any) -> None:
        self._edited, self._graph = edited, graph
        self._makers = {int(index): op for op in graph.operators for index in op.outputs}

    def run(self) -> int:
        """Copy the ops, the last ones first, so that all readers of a copied op are known; return how many."""
        copies = 0
        for op in list(reversed(self._graph.operators)):
            if len(op.outputs) != 1 or self._scale(int(op.outputs[0])) is None:
                continue
            output = int(op.outputs[0])
            readers: dict[int | None, list[Any]] = {}
            for reader in self._readers(output):
                readers.setdefault(self._join(reader, output), []).append(reader)
            keeps = None if None in readers or self._is_output(output) else next(iter(readers), None)
            for join, group in readers.items():
                if join != keeps:
                    self._copy(op, group)
                    copies += 1
        return copies

    def _readers(self, tensor: int) -> list[Any]:
        return [op for op in self._graph.operators if tensor in map(int, op.inputs)]

    def _is_output(self, tensor: int) -> bool:
        return tensor in map(int, self._graph.outputs)

    def _scale(self, tensor: int) -> tuple[float, int] | None:
        """Return the scale and zero point that an int8 `tensor` has in any case; None if calibration chooses them."""
        maker = self._makers.get(tensor)
        while maker is not None and self._graph.tensors[tensor].type == _FLOAT32:
            name = tflite.operator_name(self._edited, maker)
            if name in FIXED_OUTPUT_SCALES:
                return FIXED_OUTPUT_SCALES[name]["int8"]
            if name in _JOINS or name not in MOVING_INPUTS:
                return None
            (tensor,) = moved_inputs(name, maker.inputs)
            maker = self._makers.get(tensor)
        return None

    def _join(self, reader: Any, tensor: int) -> int | None:
        """Return the op number of the join by which `reader` needs another scale for `tensor`; None if it does not."""
        name = tflite.operator_name(self._edited, reader)
        moved = moved_inputs(name, reader.inputs)
        if tensor not in moved:
            return None
        if name in _JOINS:
            alike = all(self._scale(index) == self._scale(tensor) for index in moved)
            return None if alike else id(reader)
        output = int(reader.outputs[0])
        others = self._readers(output)
        if len(reader.outputs) > 1 or self._is_output(output) or not others:
            return None
        # The readers of `reader` are all of one group: ops are visited from the last to the first.
        return self._join(others[0], output)

    def _copy(self, op: Any, readers: list[Any]) -> None:
        old = int(op.outputs[0])
        new = add_tensor(self._graph, old, f"{name_of(self._graph, old)}/copy_{len(self._graph.tensors)}")
        twin = copy.copy(op)
        twin.outputs = np.array([new], np.int32)
        self._makers[new] = twin
        self._graph.operators.insert(self._graph.operators.index(op) + 1, twin)
        replace_reads(readers, old, new)

# SPDX-License-Identifier: Apache-2.0
"""Copy ops with a fixed output scale, one copy for each scale that their readers need.

The int8 output of a sigmoid always has the scale 1/256. If one of its readers is a concatenation with a wider range,
TensorFlow's quantizer (2.21) inserts a QUANTIZE to the concatenation's scale after the sigmoid. Depending on the order
of the ops, the other readers then read the rescaled tensor or stay in float: a sigmoid that is an output of the model
has 10 of 256 levels, or is float. To avoid this, the float graph computes the op once for each scale, which is
bit-exact, and each copy is quantized for its readers.
"""

import copy
from typing import Any

import numpy as np

from tfq import tflite
from tfq.conversion.graph_editing import add_tensor, name_of, replace_reads, rewrite_graphs
from tfq.tflite.op_types import FIXED_OUTPUT_SCALES, JOINING_OPS, MOVING_INPUTS, moved_inputs
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32 = TENSOR_TYPES.index("float32")
# Ops whose inputs share one scale.
_JOINS = JOINING_OPS | {name for name, slots in MOVING_INPUTS.items() if len(slots) > 1}


def with_separate_scales(model: bytes) -> bytes:
    """Copy the ops in FIXED_OUTPUT_SCALES, and the ops that move their values, for each join with another scale.

    Only an op whose readers need different scales is copied. Without such ops the flatbuffer is returned unchanged.

    Args:
        model: A float flatbuffer.
    """
    if tflite.operator_names(model).isdisjoint(_JOINS):
        return model
    return rewrite_graphs(model, FIXED_OUTPUT_SCALES, lambda edited, graph: _Separation(edited, graph).run())


class _Separation:
    """Copies the fixed-scale ops of one subgraph in place."""

    def __init__(self, edited: Any, graph: Any) -> None:
        """Prepare to change `graph`, a subgraph of `edited`."""
        self._edited, self._graph = edited, graph
        self._producers = {int(index): op for op in graph.operators for index in op.outputs}

    def run(self) -> int:
        """Copy the ops from the last to the first, so that all readers of a copy are known; return how many."""
        copies = 0
        for op in list(reversed(self._graph.operators)):
            if len(op.outputs) != 1 or self._scale(int(op.outputs[0])) is None:
                continue
            output = int(op.outputs[0])
            readers: dict[int | None, list[Any]] = {}
            for reader in self._readers(output):
                readers.setdefault(self._join(reader, output), []).append(reader)
            original_join = None if None in readers or self._is_output(output) else next(iter(readers), None)
            for join, group in readers.items():
                if join != original_join:
                    self._copy(op, group)
                    copies += 1
        return copies

    def _readers(self, tensor: int) -> list[Any]:
        return [op for op in self._graph.operators if tensor in map(int, op.inputs)]

    def _is_output(self, tensor: int) -> bool:
        return tensor in map(int, self._graph.outputs)

    def _scale(self, tensor: int) -> tuple[float, int] | None:
        """Return the fixed int8 scale and zero point of `tensor`; None if they depend on calibration."""
        producer = self._producers.get(tensor)
        while producer is not None and self._graph.tensors[tensor].type == _FLOAT32:
            name = tflite.operator_name(self._edited, producer)
            if name in FIXED_OUTPUT_SCALES:
                return FIXED_OUTPUT_SCALES[name]["int8"]
            if name in _JOINS or name not in MOVING_INPUTS:
                return None
            (tensor,) = moved_inputs(name, producer.inputs)
            producer = self._producers.get(tensor)
        return None

    def _join(self, reader: Any, tensor: int) -> int | None:
        """Return the id of the join for which `reader` needs `tensor` in another scale; None if there is none."""
        name = tflite.operator_name(self._edited, reader)
        moved = moved_inputs(name, reader.inputs)
        if tensor not in moved:
            return None
        if name in _JOINS:
            same_scale = all(self._scale(index) == self._scale(tensor) for index in moved)
            return None if same_scale else id(reader)
        output = int(reader.outputs[0])
        others = self._readers(output)
        if len(reader.outputs) > 1 or self._is_output(output) or not others:
            return None
        # Ops are visited from the last to the first, so all readers of `reader` already belong to one join.
        return self._join(others[0], output)

    def _copy(self, op: Any, readers: list[Any]) -> None:
        old = int(op.outputs[0])
        new = add_tensor(self._graph, old, f"{name_of(self._graph, old)}/copy_{len(self._graph.tensors)}")
        twin = copy.copy(op)
        twin.outputs = np.array([new], np.int32)
        self._producers[new] = twin
        self._graph.operators.insert(self._graph.operators.index(op) + 1, twin)
        replace_reads(readers, old, new)

# SPDX-License-Identifier: Apache-2.0
"""Give the ops of an int16x8 flatbuffer operands of the types and scales that their kernels compute with.

TensorFlow's quantizer (2.21) writes ops whose operands do not fit together; most do not load, the rest is wrong:

- An op that it leaves float (a comparison, SELECT_V2 with a constant, TOPK_V2) reads int16: the DEQUANTIZE is missing
  where the op stands before the one that had the tensor quantized, and where a quantized op reads the same constant.
- An int16 op has a constant that stayed float (the value of PADV2), or one with the scale of another op's operand.
- An op that copies or chooses values has inputs of other scales than its output (SELECT after TANH). Its kernel copies
  the quantized values, whatever the scales say.
- SCATTER_ND is written in int16, and has no int16 kernel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.conversion.graph_editing import (
    add_constant,
    add_tensor,
    constant_of,
    name_of,
    new_op,
    quantize_op,
    scale_of,
    set_input,
)
from tfq.quant_math import quantize
from tfq.tflite.op_types import COPIED_SLOTS
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32, _INT16 = TENSOR_TYPES.index("float32"), TENSOR_TYPES.index("int16")
# Ops that TensorFlow's quantizer gives int16 to, and the runtime (ai-edge-litert 2.3) has no int16 kernel for.
_WITHOUT_KERNEL = frozenset(("SCATTER_ND",))
# Ops that output no int16 and may read it: their result is the same by quantized values as by numbers. All others that
# output no int16 (comparisons, CAST) are float ops.
_READING_STEPS = frozenset(("ARG_MAX", "ARG_MIN", "DEQUANTIZE", "RANK", "SHAPE"))
# Op -> the places of the inputs that need the scale of the output; None: all inputs.
_ALIKE: dict[str, tuple[int, ...] | None] = {
    **COPIED_SLOTS,
    **dict.fromkeys(("MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN"), (0,)),
    **dict.fromkeys(("CONCATENATION", "MAXIMUM", "MINIMUM", "PACK"), None),
}


def float_only_ops(model: bytes) -> list[int]:
    """Return the indices of the ops in the main subgraph of the float `model` that int16 has no kernel for."""
    graph = tflite.read(model).main_subgraph
    return [
        op.index
        for op in graph.ops
        if op.name in _WITHOUT_KERNEL and any(graph.tensors[index].dtype == "float32" for index in op.outputs)
    ]


def with_int16_types(model: bytes) -> bytes:
    """Return an int16x8 flatbuffer of TensorFlow's quantizer whose ops have operands that fit together."""
    edited = tflite.unpack(model)
    if sum(_Operands(edited, graph).correct() for graph in edited.subgraphs) == 0:
        return model
    tflite.remove_unused_operator_codes(edited)
    tflite.remove_unused_tensors(edited)
    return tflite.pack(edited, len(model))


class _Operands:
    """The operands of one subgraph, which are changed in place."""

    def __init__(self, edited: Any, graph: Any) -> None:
        self._edited, self._graph = edited, graph
        self._added: list[Any] = []
        self._changed = 0

    def correct(self) -> int:
        """Change the operands that do not fit; return how many."""
        result = []
        for op in self._graph.operators:
            name, self._added = tflite.operator_name(self._edited, op), []
            if name != "QUANTIZE":
                self._correct(op, name)
            result += [*self._added, op]
        self._graph.operators = result
        return self._changed

    def _correct(self, op: Any, name: str) -> None:
        types = [self._type(index) for index in op.outputs]
        if _INT16 not in types and name not in _READING_STEPS:
            for place, index in enumerate(op.inputs):
                if self._type(index) == _INT16 and not self._graph.tensors[int(index)].isVariable:
                    self._replace(op, place, self._as_float(int(index)))
        elif types and types[0] == _INT16 and name in _ALIKE:
            places = _ALIKE[name]
            for place in range(len(op.inputs)) if places is None else places:
                if place < len(op.inputs) and not self._fits(int(op.inputs[place]), int(op.outputs[0])):
                    self._replace(op, place, self._rescaled(int(op.inputs[place]), int(op.outputs[0])))

    def _replace(self, op: Any, place: int, tensor: int) -> None:
        set_input(op, place, tensor)
        self._changed += 1

    def _type(self, index: int) -> int:
        return int(self._graph.tensors[int(index)].type) if int(index) >= 0 else -1

    def _fits(self, source: int, output: int) -> bool:
        if self._type(source) != _INT16:
            return self._type(source) != _FLOAT32
        return bool(np.isclose(self._scale(source), self._scale(output), rtol=1e-5))

    def _scale(self, index: int) -> float:
        return scale_of(self._graph, index)[0]

    def _as_float(self, index: int) -> int:
        values = self._values(index)
        if values is not None:
            return add_constant(self._edited, self._graph, values)
        target = add_tensor(self._graph, index, f"{name_of(self._graph, index)}/dequantized")
        self._graph.tensors[target].type = _FLOAT32
        self._added.append(new_op(self._edited, "DEQUANTIZE", [index], target))
        return target

    def _rescaled(self, index: int, output: int) -> int:
        values, quantization = self._values(index), self._graph.tensors[output].quantization
        if values is not None:
            steps = quantize(values, self._scale(output), 0, "int16")
            target = add_constant(self._edited, self._graph, steps, np.int16)
        else:
            target = add_tensor(self._graph, index, f"{name_of(self._graph, index)}/rescaled")
            self._graph.tensors[target].type = _INT16
            self._added.append(quantize_op(self._edited, index, target))
        self._graph.tensors[target].quantization = quantization
        return target

    def _values(self, index: int) -> NDArray | None:
        """The numbers that a constant stands for, in its shape; None for an activation."""
        tensor = self._graph.tensors[index]
        shape = [int(size) for size in tensor.shape] if tensor.shape is not None else []
        floats = constant_of(self._edited, self._graph, index)
        if floats is not None:
            return floats.reshape(shape)
        steps = constant_of(self._edited, self._graph, index, "int16")
        return None if steps is None else steps.reshape(shape).astype(np.float32) * np.float32(self._scale(index))

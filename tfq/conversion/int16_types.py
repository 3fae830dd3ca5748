# SPDX-License-Identifier: Apache-2.0
"""Fix the types and scales of the operands of an int16x8 flatbuffer.

TensorFlow's quantizer (2.21) writes ops whose operands do not match. Most of these files do not load, the others
compute wrong results:

- An op that it leaves in float (a comparison, SELECT_V2 with a constant, TOPK_V2) reads int16. The DEQUANTIZE is
  missing if the op comes before the op that caused the tensor to be quantized, or if a quantized op reads the same
  constant.
- An int16 op has a constant that stayed float (the value of PADV2), or one with the scale of another op's operand.
- An op that copies or selects values has inputs with other scales than its output (SELECT after TANH). Its kernel
  copies the quantized values and ignores the scales.
- SCATTER_ND is written in int16, but has no int16 kernel.
- A constant of zeros (the slopes of an untrained PReLU) gets the scale 0, which XNNPACK rejects.

The quantizer also keeps the minimum runtime version of the float model, although it raises op versions.
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
    set_scale,
    sizes_of,
)
from tfq.quant_math import quantize
from tfq.tflite.op_types import COPIED_SLOTS
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32, _INT16 = TENSOR_TYPES.index("float32"), TENSOR_TYPES.index("int16")
# Ops that TensorFlow's quantizer writes in int16 although the runtime (ai-edge-litert 2.3) has no int16 kernel.
_WITHOUT_KERNEL = frozenset(("SCATTER_ND",))
# Ops that read int16 but output another type. Other ops without an int16 output (comparisons, CAST) are float ops.
_READING_INT16 = frozenset(("ARG_MAX", "ARG_MIN", "DEQUANTIZE", "RANK", "SHAPE"))
# The scale of constants that are all 0: that of a range of [-1, 1].
_SCALE_OF_ZEROS = 1 / 32767
# Op -> the positions of the inputs that need the scale of the output; None means all inputs.
_SHARED_SCALE: dict[str, tuple[int, ...] | None] = {
    **COPIED_SLOTS,
    **dict.fromkeys(("MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN"), (0,)),
    **dict.fromkeys(("CONCATENATION", "MAXIMUM", "MINIMUM", "PACK"), None),
}


def float_only_ops(model: bytes) -> list[int]:
    """Return the indices of the ops without an int16 kernel, in the main subgraph of the float `model`."""
    graph = tflite.read(model).main_subgraph
    return [
        op.index
        for op in graph.ops
        if op.name in _WITHOUT_KERNEL and any(graph.tensors[index].dtype == "float32" for index in op.outputs)
    ]


def with_int16_types(model: bytes) -> bytes:
    """Fix the types and scales of operands in an int16x8 flatbuffer of TensorFlow's quantizer."""
    edited = tflite.unpack(model)
    changed = sum(_Operands(edited, graph).fix() + _set_positive_scales(edited, graph) for graph in edited.subgraphs)
    if not tflite.remove_min_runtime_version(edited) and changed == 0:
        return model
    tflite.remove_unused_operator_codes(edited)
    tflite.remove_unused_tensors(edited)
    return tflite.pack(edited, len(model))


def _set_positive_scales(edited: Any, graph: Any) -> int:
    """Give int16 constants of zeros a positive scale; return how many had none."""
    changed = 0
    for index, tensor in enumerate(graph.tensors):
        scales = tensor.quantization.scale if tensor.type == _INT16 and tensor.quantization else None
        if scales is None or len(scales) != 1 or scales[0] >= np.finfo(np.float32).tiny:
            continue
        values = constant_of(edited, graph, index, "int16")
        if values is not None and not values.any():
            set_scale(graph, index, _SCALE_OF_ZEROS, 0)
            # It may share the int64 zeros of a bias.
            own = add_constant(edited, graph, np.zeros(sizes_of(tensor)), np.int16)
            tensor.buffer = graph.tensors.pop(own).buffer
            changed += 1
    return changed


class _Operands:
    """Fixes the operands of one subgraph in place."""

    def __init__(self, edited: Any, graph: Any) -> None:
        """Prepare to change `graph`, a subgraph of `edited`."""
        self._edited, self._graph = edited, graph
        self._added: list[Any] = []
        self._changed = 0

    def fix(self) -> int:
        """Replace the operands that do not match; return how many."""
        result = []
        for op in self._graph.operators:
            name, self._added = tflite.operator_name(self._edited, op), []
            if name != "QUANTIZE":
                self._fix(op, name)
            result += [*self._added, op]
        self._graph.operators = result
        return self._changed

    def _fix(self, op: Any, name: str) -> None:
        types = [self._type(index) for index in op.outputs]
        if _INT16 not in types and name not in _READING_INT16:
            for place, index in enumerate(op.inputs):
                if self._type(index) == _INT16 and not self._graph.tensors[int(index)].isVariable:
                    self._replace(op, place, self._as_float(int(index)))
        elif types and types[0] == _INT16 and name in _SHARED_SCALE:
            places = _SHARED_SCALE[name]
            for place in range(len(op.inputs)) if places is None else places:
                if place < len(op.inputs) and not self._matches(int(op.inputs[place]), int(op.outputs[0])):
                    self._replace(op, place, self._rescaled(int(op.inputs[place]), int(op.outputs[0])))

    def _replace(self, op: Any, place: int, tensor: int) -> None:
        set_input(op, place, tensor)
        self._changed += 1

    def _type(self, index: int) -> int:
        return int(self._graph.tensors[int(index)].type) if int(index) >= 0 else -1

    def _matches(self, source: int, output: int) -> bool:
        """Check whether an input has the scale of the output, or needs none."""
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
            quantized_values = quantize(values, self._scale(output), 0, "int16")
            target = add_constant(self._edited, self._graph, quantized_values, np.int16)
        else:
            target = add_tensor(self._graph, index, f"{name_of(self._graph, index)}/rescaled")
            self._graph.tensors[target].type = _INT16
            self._added.append(quantize_op(self._edited, index, target))
        self._graph.tensors[target].quantization = quantization
        return target

    def _values(self, index: int) -> NDArray | None:
        """Return the real values of a constant, in its shape; None for an activation."""
        tensor = self._graph.tensors[index]
        shape = [int(size) for size in tensor.shape] if tensor.shape is not None else []
        floats = constant_of(self._edited, self._graph, index)
        if floats is not None:
            return floats.reshape(shape)
        stored = constant_of(self._edited, self._graph, index, "int16")
        return None if stored is None else stored.reshape(shape).astype(np.float32) * np.float32(self._scale(index))

# SPDX-License-Identifier: Apache-2.0
"""Hide ops from a quantizer as custom ops, and restore them afterwards.

TensorFlow's quantizer for 16-bit activations has no option to keep ops in float, and it needs ranges of integer tensors
as well: an int32 ADD must have a minimum and a maximum. It does not change custom ops.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tfq import tflite
from tfq.conversion.graph_editing import add_tensor, name_of, new_op, set_input
from tfq.tflite.schema import CUSTOM, TENSOR_TYPES

_PREFIX = "tfq_hidden_"
_FLOAT32, _INT32 = TENSOR_TYPES.index("float32"), TENSOR_TYPES.index("int32")


@dataclass(frozen=True, kw_only=True)
class _Original:
    """What a hidden op was before.

    Attributes:
        code: (builtin operator, version).
        options: (builtinOptions, builtinOptionsType, builtinOptions2).
        inputs: The positions of disguised tensors among its inputs.
        outputs: The positions of disguised tensors among its outputs.
        floats: The positions of float tensors among its inputs, without states.
        states: The positions of variable tensors among its inputs.
    """

    code: tuple[int, int]
    options: tuple[Any, int, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    floats: tuple[int, ...]
    states: tuple[int, ...]


def with_hidden_ops(
    model: bytes, ops: Iterable[int], disguised: Collection[int] = ()
) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Replace ops of the main subgraph by custom ops.

    Args:
        model: A float flatbuffer.
        ops: Indices of the ops to hide.
        disguised: Float tensors that only these ops read and write. The quantizer sees them as int32.

    Returns:
        The flatbuffer with custom ops, and a function that restores the ops in a quantizer's result. The restored ops
        read and write the tensors of the custom ops in that result.
    """
    hidden = sorted(set(ops))
    if not hidden:
        return model, lambda result: result
    edited = tflite.unpack(model)
    originals: dict[str, _Original] = {}
    floats = {index for index, tensor in enumerate(edited.subgraphs[0].tensors) if tensor.type == _FLOAT32}
    states = {index for index, tensor in enumerate(edited.subgraphs[0].tensors) if tensor.isVariable}
    for index in hidden:
        op, name = edited.subgraphs[0].operators[index], f"{_PREFIX}{index}"
        code = edited.operatorCodes[op.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        originals[name] = _Original(
            code=(builtin, code.version),
            options=(op.builtinOptions, op.builtinOptionsType, op.builtinOptions2),
            inputs=tuple(slot for slot, tensor in enumerate(op.inputs) if int(tensor) in disguised),
            outputs=tuple(slot for slot, tensor in enumerate(op.outputs) if int(tensor) in disguised),
            floats=tuple(slot for slot, tensor in enumerate(op.inputs) if int(tensor) in floats - states),
            states=tuple(slot for slot, tensor in enumerate(op.inputs) if int(tensor) in states),
        )
        op.builtinOptions, op.builtinOptionsType, op.builtinOptions2 = None, 0, None
        op.opcodeIndex = _custom_code(edited, name)
    for index in disguised:
        tensor = edited.subgraphs[0].tensors[index]
        tensor.type, tensor.quantization = _INT32, None
    tflite.remove_unused_operator_codes(edited)
    return tflite.pack(edited, len(model)), lambda result: _restored(result, originals)


def _custom_code(edited: Any, name: str) -> int:
    from ai_edge_litert import schema_py_generated as generated

    code = generated.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = CUSTOM
    code.customCode, code.version = name, 1
    edited.operatorCodes.append(code)
    return len(edited.operatorCodes) - 1


def _restored(result: bytes, originals: dict[str, _Original]) -> bytes:
    edited = tflite.unpack(result)
    graph = edited.subgraphs[0]
    for op in list(graph.operators):
        name = edited.operatorCodes[op.opcodeIndex].customCode
        original = originals.get(name.decode() if isinstance(name, bytes) else name)
        if original is None:
            continue
        op.builtinOptions, op.builtinOptionsType, op.builtinOptions2 = original.options
        op.opcodeIndex, op.customOptions = tflite.operator_code(edited, *original.code), None
        for tensors, slots in ((op.inputs, original.inputs), (op.outputs, original.outputs)):
            for slot in slots:
                graph.tensors[int(tensors[slot])].type = _FLOAT32
        for slot in original.states:
            _separate_state(graph, op, slot)
        for slot in original.floats:
            # TensorFlow's 16-bit quantizer omits the DEQUANTIZE if this op comes before the op that caused the tensor
            # to be quantized.
            if graph.tensors[int(op.inputs[slot])].type != _FLOAT32:
                _dequantize_input(edited, graph, op, slot)
    tflite.remove_unused_operator_codes(edited)
    tflite.remove_unused_tensors(edited)
    return tflite.pack(edited, len(result))


def _separate_state(graph: Any, op: Any, slot: int) -> None:
    """Give `op` a separate variable float tensor, because the quantizer merges all-zero tensors into one constant."""
    state = add_tensor(graph, int(op.inputs[slot]), f"{name_of(graph, int(op.outputs[0]))}_state_{slot}")
    graph.tensors[state].type, graph.tensors[state].isVariable = _FLOAT32, True
    graph.tensors[state].hasRank = True
    set_input(op, slot, state)


def _dequantize_input(edited: Any, graph: Any, op: Any, slot: int) -> None:
    """Insert a DEQUANTIZE before input `slot` of `op`."""
    quantized = int(op.inputs[slot])
    source = add_tensor(graph, quantized, f"{name_of(graph, quantized)}_dequantized")
    graph.tensors[source].type = _FLOAT32
    set_input(op, slot, source)
    place = next(place for place, item in enumerate(graph.operators) if item is op)
    graph.operators.insert(place, new_op(edited, "DEQUANTIZE", [quantized], source))

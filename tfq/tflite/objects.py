# SPDX-License-Identifier: Apache-2.0
"""Work on a flatbuffer in its object form, the ModelT that `unpack` gives; and what can be told of one without it."""

from typing import Any

import numpy as np

from tfq.tflite.records import ABSENT
from tfq.tflite.schema import OPERATORS


def operator_code(model: Any, builtin: int, version: int) -> int:
    """The index of the operator code, added if it is not there."""
    from ai_edge_litert import schema_py_generated as generated

    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
            return index
    code = generated.OperatorCodeT()
    # 127 in the schema's first field for it says that the number does not fit there.
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def operator_name(model: Any, op: Any) -> str:
    """The op's name in the schema; empty where it is newer than ours."""
    code = model.operatorCodes[op.opcodeIndex]
    return _name(code.builtinCode, code.deprecatedBuiltinCode)


def operator_names(data: bytes) -> frozenset[str]:
    """The names of the operators that the flatbuffer `data` lists, the rest of it unread. `data` is trusted."""
    from ai_edge_litert import schema_py_generated as generated

    model = generated.Model.GetRootAs(data)
    codes = (model.OperatorCodes(index) for index in range(model.OperatorCodesLength()))
    return frozenset(_name(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes)


def _name(builtin: int, deprecated: int) -> str:
    number = max(builtin, deprecated)  # old files have it in the second field alone
    return OPERATORS[number] if number < len(OPERATORS) else ""


def forget_unused_codes(model: Any) -> None:
    """Interpreters want a kernel for each operator code, used or not."""
    used = sorted({op.opcodeIndex for graph in model.subgraphs for op in graph.operators})
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for graph in model.subgraphs:
        for op in graph.operators:
            op.opcodeIndex = used.index(op.opcodeIndex)


def forget_unused_constants(model: Any) -> None:
    """Empties the buffers that no tensor and no metadata entry reads."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def forget_unused_tensors(model: Any) -> None:
    """Takes out the tensors that no op, input or output names; those behind them get other numbers."""
    for index, graph in enumerate(model.subgraphs):
        named = [graph.inputs, graph.outputs]
        for op in graph.operators:
            named += [op.inputs, op.outputs, [] if op.intermediates is None else op.intermediates]
        used = sorted({int(number) for numbers in named for number in numbers} - {ABSENT})
        place = {number: new for new, number in enumerate(used)} | {ABSENT: ABSENT}
        graph.tensors = [graph.tensors[number] for number in used]
        for holder in (graph, *graph.operators):
            holder.inputs, holder.outputs = _moved(holder.inputs, place), _moved(holder.outputs, place)
        for op in graph.operators:
            if op.intermediates is not None:
                op.intermediates = _moved(op.intermediates, place)
        for signature in model.signatureDefs or []:
            if signature.subgraphIndex == index:
                for entry in (*signature.inputs, *signature.outputs):
                    entry.tensorIndex = place[entry.tensorIndex]


def _moved(numbers: Any, place: dict[int, int]) -> Any:
    return np.array([place[int(number)] for number in numbers], np.int32)

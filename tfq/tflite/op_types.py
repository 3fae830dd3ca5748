# SPDX-License-Identifier: Apache-2.0
"""In which types the ops of a flatbuffer compute, by the kind of op."""

from collections import Counter
from collections.abc import Callable

from tfq.tflite.op_roles import DATA, INDEX, WEIGHT, roles
from tfq.tflite.records import Model, Op, Subgraph


def op_types(model: Model, name: Callable[[Op], str]) -> dict[str, dict[str, int]]:
    """{op: {type: how many}}, ops named by `name`.

    The type is that of what the op gives out, "int8"; with that of its weights where it is another, "float32 with int8
    weights". An op that gives out nothing computes in "none".
    """
    found: dict[str, Counter[str]] = {}
    for graph in model.subgraphs:
        for op in graph.ops:
            found.setdefault(name(op), Counter())[_type(graph, op)] += 1
    return {op: dict(types) for op, types in found.items()}


def _type(graph: Subgraph, op: Op) -> str:
    touched = [(place, graph.tensors[index], role) for place, _, index, role in roles(op)]
    outputs = [tensor.dtype for place, tensor, role in touched if place == "output" and role in (DATA, INDEX)]
    if not outputs:
        return "none"
    weights = [tensor.dtype for _, tensor, role in touched if role == WEIGHT and tensor.is_constant]
    others = list(dict.fromkeys(dtype for dtype in weights if dtype != outputs[0]))
    return f"{outputs[0]} with {'/'.join(others)} weights" if others else outputs[0]

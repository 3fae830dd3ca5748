# SPDX-License-Identifier: Apache-2.0
"""How the audit spells ops and names, which come from the file and may hold anything."""

from tfq.tflite.records import Op, Subgraph

_LONGEST = 200


def shown(name: str) -> str:
    """`name` on one line of at most 200 printable characters."""
    cut = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut) or "(no name)"


def op_title(graph: Subgraph, op: Op) -> str:
    """`op #5 CONV_2D (conv1)`: its layer, else its output tensor, and its subgraph where that is not the main one."""
    prefix = f"subgraph {graph.index}, " if graph.index else ""
    return f"{prefix}op #{op.index} {op.name} ({origin(graph, op)})"


def origin(graph: Subgraph, op: Op) -> str:
    """The name that tells the user most of `op`, and that --allow_float takes: its layer, else its output tensor."""
    return shown(op.keras_layer or (graph.tensors[op.outputs[0]].name if op.outputs else "no output"))

# SPDX-License-Identifier: Apache-2.0
"""Replace random numbers that are the same in every call by constants.

`keras.random.normal(shape, seed=3)` becomes ops of TensorFlow (StatelessRandomNormalV2) for which TFLite has no kernel,
and TensorFlow does not fold them. If their seed and their shape are constants, so is their result.
"""

import math
from typing import Any

# Limit of the number of values of one result. Larger ones would make the file too large to be useful.
_MAX_VALUES = 1 << 24


def fold_constant_draws(graph_def: Any) -> None:
    """Replace each stateless random op whose inputs are constants by a constant, in place."""
    nodes = {node.name: node for node in graph_def.node}
    draws = [node.name for node in graph_def.node if node.op.startswith("StatelessRandom")]
    sources = {name: _constant_sources(nodes, name) for name in draws}
    chosen = [name for name in draws if sources[name] and 0 < _num_values(nodes, nodes[name]) <= _MAX_VALUES]
    if not chosen:
        return
    values = _evaluated(graph_def, chosen, set().union(*(sources[name] or () for name in chosen)))
    import tensorflow as tf

    for name, value in zip(chosen, values, strict=True):
        constant = tf.make_tensor_proto(value)
        node = nodes[name]
        node.Clear()
        node.name, node.op = name, "Const"
        node.attr["dtype"].type = constant.dtype
        node.attr["value"].tensor.CopyFrom(constant)


def _num_values(nodes: dict[str, Any], node: Any) -> int:
    """Return the number of values that a random op draws; 0 if its shape is computed, or if it returns a key."""
    import tensorflow as tf

    shape = nodes.get(node.input[0].partition(":")[0])
    if "KeyCounter" in node.op or shape is None or shape.op != "Const":
        return 0
    return math.prod(tf.make_ndarray(shape.attr["value"].tensor).reshape(-1).tolist())


def _constant_sources(nodes: dict[str, Any], name: str) -> set[str] | None:
    """Return the names of the nodes that `name` depends on, with itself; None if one of them is not a constant."""
    result: set[str] = set()
    stack = [name]
    while stack:
        current = stack.pop().lstrip("^").partition(":")[0]
        if current in result:
            continue
        node = nodes.get(current)
        if node is None or node.op.startswith("Placeholder") or (not node.input and node.op != "Const"):
            return None
        result.add(current)
        stack += node.input
    return result


def _evaluated(graph_def: Any, names: list[str], sources: set[str]) -> list[Any]:
    import tensorflow as tf

    part = type(graph_def)()
    part.versions.CopyFrom(graph_def.versions)
    part.library.CopyFrom(graph_def.library)
    part.node.extend(node for node in graph_def.node if node.name in sources)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(part, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            results: list[Any] = session.run([f"{name}:0" for name in names])
    return results

# SPDX-License-Identifier: Apache-2.0
"""What Keras 3's argmax and argmin do about -0.0, taken out of a frozen graph: TFLite has no op for it.

They read the sign bit of a float from an integer, by a BitwiseAnd, and put the least normal float in the place of each
-0.0, so that it comes before 0.0. So a model that ends in an argmax, as one for segmentation does, cannot be converted
at all. No code of an int8 tensor is -0.0; in float both zeros are equal without it, and of equal values the first one
is taken, as by TensorFlow's own argmax.
"""

from typing import Any

import numpy as np

_LEAST = -float(np.finfo(np.float32).tiny)
_SIGN = np.iinfo(np.int32).min


def without_negative_zeros(graph_def: Any) -> Any:
    """The same frozen graph, in which each `where(x == 0 and signbit(x), least, x)` has become x."""
    nodes = {node.name: node for node in graph_def.node}
    for node in graph_def.node:
        if node.op == "SelectV2" and _is_for_negative_zeros(nodes, node):
            node.op = "Identity"
            del node.input[:2]
    return graph_def


def _is_for_negative_zeros(nodes: dict[str, Any], select: Any) -> bool:
    condition, least, x = select.input[:3]
    both = _inputs(nodes, condition, "LogicalAnd")
    if len(both) != 2:
        return False
    equal, less = _inputs(nodes, both[0], "Equal"), _inputs(nodes, both[1], "Less")
    masked = _inputs(nodes, less[0], "BitwiseAnd") if less else []
    bits = _inputs(nodes, masked[0], "Bitcast") if masked else []
    return (
        len(equal) == 2
        and equal[0] == x
        and bits == [x]
        and _is_constant(nodes, equal[1], 0)
        and _is_constant(nodes, less[1], 0)
        and _is_constant(nodes, masked[1], _SIGN)
        and _is_constant(nodes, least, _LEAST)
    )


def _inputs(nodes: dict[str, Any], source: str, op: str) -> list[str]:
    """What the `op` that gives this tensor reads; nothing where another op gives it."""
    node = nodes.get(source)
    return [each for each in node.input if not each.startswith("^")] if node is not None and node.op == op else []


def _is_constant(nodes: dict[str, Any], source: str, value: float) -> bool:
    import tensorflow as tf

    node = nodes.get(source)
    return node is not None and node.op == "Const" and bool(np.all(tf.make_ndarray(node.attr["value"].tensor) == value))

# SPDX-License-Identifier: Apache-2.0
"""Exponentials of which only a bounded part is used, computed so that this part alone has the 256 codes.

Softplus comes out of the converter as log(1 + exp(x)). In int8 the one range of the exponential reaches as far as the
largest x takes it, a step of it is wider than all that the logarithm could tell apart, and a model that is full int8 by
every audit has lost its function. The same of exp(x) - 1 in a SELU, which is chosen for x below 0 alone.
"""

import collections
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq import tflite
from tfq.conversion.graph_edits import add_constant, add_tensor, constant_of, name_of, new_op
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32 = TENSOR_TYPES.index("float32")
# Between the exponential and the choice: with a constant, one value after the other.
_BY_VALUE = ("ADD", "SUB", "MUL", "DIV")
# The condition -> of its choice the input (1, 2) that is taken where x is below 0, for "x op 0".
_BELOW = {"GREATER": 2, "GREATER_EQUAL": 2, "LESS": 1, "LESS_EQUAL": 1}


def bound_exponentials(edited: Any, graph: Any) -> None:
    """In place, in a float graph: log(1 + exp(x)) becomes relu(x) - log(sigmoid(|x|)), equal within float32's rounding.

    exp(x) that is chosen only where x is below 0 (0 with it) becomes exp(min(x, 0)): each bit of the choice stays.
    """
    found = _Graph(edited, graph)
    replaced: dict[int, list[Any]] = {}
    for op in graph.operators:
        if found.name(op) != "EXP" or graph.tensors[int(op.outputs[0])].type != _FLOAT32:
            continue
        if softplus := found.softplus(op):
            replaced |= {id(each): [] for each in softplus}
            replaced[id(softplus[-1])] = _bounded_softplus(edited, graph, int(op.inputs[0]), softplus[-1])
        elif found.is_chosen_below_zero(op):
            replaced[id(op)] = [_minimum(edited, graph, op), op]
    graph.operators = [each for op in graph.operators for each in replaced.get(id(op), [op])]


@dataclass
class _Graph:
    """Who reads what."""

    edited: Any
    graph: Any

    def __post_init__(self) -> None:
        self.outputs = {int(index) for index in self.graph.outputs}
        self.readers: dict[int, list[Any]] = collections.defaultdict(list)
        self.maker = {int(index): op for op in self.graph.operators for index in op.outputs}
        for op in self.graph.operators:
            for index in op.inputs:
                self.readers[int(index)].append(op)

    def name(self, op: Any) -> str:
        return str(tflite.operator_name(self.edited, op))

    def only_reader(self, op: Any) -> Any:
        """The one op that reads what `op` gives; None where there are more, or it leaves the model."""
        tensor = int(op.outputs[0])
        readers = self.readers[tensor]
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def softplus(self, exp: Any) -> list[Any]:
        """The ops of log(1 + exp(x)), where `exp` is the first of them; else none."""
        add = self.only_reader(exp)
        log = self.only_reader(add) if add is not None and self.name(add) == "ADD" else None
        if log is None or self.name(log) != "LOG" or add.builtinOptions.fusedActivationFunction:
            return []
        one = self._constant(next((index for index in add.inputs if int(index) != int(exp.outputs[0])), -1))
        return [exp, add, log] if one is not None and np.all(one == 1) else []

    def is_chosen_below_zero(self, exp: Any) -> bool:
        behind, reader = exp, self.only_reader(exp)
        while reader is not None and self.name(reader) in _BY_VALUE and self._other_is_constant(reader, behind):
            behind, reader = reader, self.only_reader(reader)
        if reader is None or self.name(reader) not in ("SELECT", "SELECT_V2"):
            return False
        condition = self.maker.get(int(reader.inputs[0]))
        if condition is None or self.name(condition) not in _BELOW:
            return False
        place = [int(index) for index in reader.inputs].index(int(behind.outputs[0]))
        zero = self._constant(condition.inputs[1])
        return (
            place == _BELOW[self.name(condition)]
            and int(condition.inputs[0]) == int(exp.inputs[0])
            and zero is not None
            and bool(np.all(zero == 0))
        )

    def _other_is_constant(self, op: Any, behind: Any) -> bool:
        others = [index for index in op.inputs if int(index) != int(behind.outputs[0])]
        return len(others) == 1 and self._constant(others[0]) is not None

    def _constant(self, index: int) -> Any:
        return None if index < 0 else constant_of(self.edited, self.graph, index)


def _bounded_softplus(edited: Any, graph: Any, x: int, log: Any) -> list[Any]:
    from ai_edge_litert import schema_py_generated as generated

    output = int(log.outputs[0])
    size, share, below, above = (
        add_tensor(graph, output, f"{name_of(graph, output)}/{part}")
        for part in ("absolute", "sigmoid", "logarithm", "relu")
    )
    kinds = generated.BuiltinOptions
    return [
        new_op(edited, "ABS", [x], size, kinds.AbsOptions, generated.AbsOptionsT()),
        new_op(edited, "LOGISTIC", [size], share),
        new_op(edited, "LOG", [share], below),
        new_op(edited, "RELU", [x], above),
        new_op(edited, "SUB", [above, below], output, kinds.SubOptions, generated.SubOptionsT()),
    ]


def _minimum(edited: Any, graph: Any, exp: Any) -> Any:
    """The op that bounds what `exp` reads."""
    from ai_edge_litert import schema_py_generated as generated

    x, output = int(exp.inputs[0]), int(exp.outputs[0])
    below = add_tensor(graph, x, f"{name_of(graph, output)}/minimum")
    exp.inputs = [below]
    options = generated.MaximumMinimumOptionsT()
    kind = generated.BuiltinOptions.MaximumMinimumOptions
    return new_op(edited, "MINIMUM", [x, add_constant(edited, graph, 0.0)], below, kind, options)

# SPDX-License-Identifier: Apache-2.0
"""A QAT model as the graph that its flatbuffer was made from: what a tensor stands for there, and its values.

A tensor is called after the TensorFlow ops fused into it ("model/quant_relu/Relu;model/quant_bn/FusedBatchNormV3;..."),
and a trace of the model has ops of just these names. The tensor is the last of them, behind its fake quantization.
Conversion puts names of weights in as well, which the data does not flow through.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.conversion.freeze import frozen_graph
from tfq.conversion.tracing import Trace, unwrapped

# The ends of its range are inputs of the first, attributes of the second.
_FAKE_QUANTS = _LEARNED, _FIXED = "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs"
_ADDITIONS = ("Add", "AddV2", "BiasAdd", "Sub")
_SCATTERS, _GATHERS = "SpaceToBatchND", "BatchToSpaceND"
# IdentityN, in which a gradient of its own is wrapped, as swish's: what it gives out first is what it read first.
_PASSES_ON = ("Identity", "IdentityN", "StopGradient", "PreventGradient", "CheckNumerics")
# Around the op that a layer is, as a Dense over sequences and a Conv1D have it: the same numbers in the same order.
_RESHAPES = ("Reshape", "ExpandDims", "Squeeze")


class ReferenceGraph:
    """The frozen graph of a trace. A value is an op's name and the number of its output: "model/relu/Relu:0"."""

    def __init__(self, traced: Trace) -> None:
        self._graph_def = frozen_graph(traced)
        self._nodes = {node.name: node for node in self._graph_def.node}
        self._layers = frozenset(traced.keras_layers)
        self.inputs = [tensor.name for tensor in traced.function.inputs[: len(traced.input_names)]]
        self.outputs = [tensor.name for tensor in traced.function.outputs]
        self._place = {name: place for place, name in enumerate(_in_order(self._nodes))}
        self._consumers: dict[str, list[str]] = {}
        self._data = {_op(value) for value in self.inputs}
        # A dilated convolution's, cut into images of their own: no tensor of the flatbuffer has that order.
        self._scattered: set[str] = set()
        for name in self._place:
            sources, kind = _inputs(self._nodes[name]), self._nodes[name].op
            for source in sources:
                self._consumers.setdefault(source, []).append(name)
                if _op(source) in self._data:
                    self._data.add(name)
            if kind == _SCATTERS or (kind != _GATHERS and not self._scattered.isdisjoint(map(_op, sources))):
                self._scattered.add(name)

    def named_in(self, tensor_name: str, output: int = 0) -> list[str]:
        """Values of the ops in a tensor's name that compute something of the inputs, in the order of the graph.

        output: which output of an op that has several, where the name does not tell.
        """
        found = {self._value_named(part, output) for part in tensor_name.split(";")}
        return sorted((value for value in found if value), key=self._order_of)

    def computed(self, value: str) -> str:
        """What `value` is before any fake quantization and what passes its input on."""
        while source := _inputs(self._node(value))[0] if self._is_fake_quant(value) else self._passed_on(value):
            value = source
        return value

    def forms(self, value: str) -> list[str]:
        """`value` and each fake quantization of it, in the order of the graph."""
        found, pending = {value}, [value]
        while pending:
            known = pending.pop()
            for name in self._consumers.get(known, ()):
                consumer = f"{name}:0"
                if self._is_fake_quant(consumer):
                    found.add(consumer)
                if self._is_fake_quant(consumer) or self._passed_on(consumer) == known:
                    pending.append(consumer)
        return sorted(found, key=self._order_of)

    def grid(self, value: str) -> tuple[float, float] | None:
        """(scale, zero_point) that an int8 tensor of this 8-bit fake quantization has; None of other values.

        The zero_point is not rounded. Source: FakeQuantWithMinMaxVars, 2^8 - 1 steps from min to max.
        """
        node = self._node(value)
        if not self._is_fake_quant(value) or node.attr["num_bits"].i not in (0, 8):
            return None
        if node.op == _FIXED:
            low, high = node.attr["min"].f, node.attr["max"].f
        else:
            ends = [self._constant(source) for source in _inputs(node)[1:3]]
            low, high = (float("nan") if end is None or end.size != 1 else float(end.reshape(())) for end in ends)
        narrow = int(node.attr["narrow_range"].b)
        scale = (high - low) / (255 - narrow)
        return (scale, -128 + narrow - low / scale) if scale > 0 else None

    def layer_of(self, value: str) -> str | None:
        """The Keras layer that the value belongs to, without the name of its QAT wrapper."""
        for scope in reversed(_op(value).split("/")[:-1] or [_op(value)]):
            for candidate in (scope, re.sub(r"_\d+$", "", scope)):
                if candidate in self._layers:
                    return unwrapped(candidate)
        return None

    def layers_between(self, value: str, cuts: Iterable[str]) -> list[str]:
        """Keras layers of the ops that `value` is computed by from the values `cuts`, in the order of the graph."""
        stops, seen, pending = set(cuts), {_op(value)}, [_op(value)]
        while pending:
            for source in _inputs(self._nodes[pending.pop()]):
                if _op(source) in self._data and _op(source) not in seen and source not in stops:
                    seen.add(_op(source))
                    pending.append(_op(source))
        layers = (self.layer_of(f"{name}:0") for name in sorted(seen, key=self._place.__getitem__))
        return list(dict.fromkeys(layer for layer in layers if layer))

    def has_fake_quant(self) -> bool:
        """Whether anything is fake-quantized."""
        return any(node.op in _FAKE_QUANTS for node in self._nodes.values())

    def evaluator(self, cuts: Sequence[str] = ()) -> "Evaluator":
        """Runs the graph; whatever reads one of the values `cuts` reads what is fed in its place."""
        return Evaluator(self._graph_def, self.inputs, cuts)

    def _value_named(self, part: str, output: int) -> str | None:
        """The value of this name; conversion tells two tensors of one name apart by a number: Conv2D, Conv2D1."""
        plain, _, number = part.partition(":")
        while plain not in self._nodes and plain[-1:].isdigit():
            plain = plain[:-1]
        if plain not in self._data or plain in self._scattered:
            return None
        return f"{plain}:{number if number.isdigit() else output}"

    def _order_of(self, value: str) -> int:
        return self._place[_op(value)]

    def _node(self, value: str) -> Any:
        return self._nodes[_op(value)]

    def _is_fake_quant(self, value: str) -> bool:
        return self._node(value).op in _FAKE_QUANTS

    def _passed_on(self, value: str) -> str | None:
        """What an op gives out as it came in, also in another shape of its layer's own, or as the sum with zeros."""
        node = self._node(value)
        if node.op in _PASSES_ON:
            return _inputs(node)[0]
        if node.op in _RESHAPES:
            source = _inputs(node)[0]
            return source if _op(source) in self._data and self.layer_of(source) == self.layer_of(value) else None
        if node.op not in _ADDITIONS:
            return None
        first, second = _inputs(node)
        if self._is_zero(second):
            return first
        return second if node.op != "Sub" and self._is_zero(first) else None

    def _is_zero(self, value: str) -> bool:
        constant = self._constant(value)
        return constant is not None and not np.any(constant)

    def _constant(self, value: str) -> NDArray | None:
        from tensorflow import make_ndarray

        while self._node(value).op in _PASSES_ON:
            value = _inputs(self._node(value))[0]
        node = self._node(value)
        return np.asarray(make_ndarray(node.attr["value"].tensor)) if node.op == "Const" else None


class Evaluator:
    """A session with a graph; close it by `with`."""

    def __init__(self, graph_def: Any, inputs: Sequence[str], cuts: Sequence[str]) -> None:
        import tensorflow as tf

        with tf.Graph().as_default() as graph:
            places = {value: tf.compat.v1.placeholder(tf.float32, name=f"cut_{n}") for n, value in enumerate(cuts)}
            tf.import_graph_def(graph_def, input_map=places, name="model")
        self._fed = [*(graph.get_tensor_by_name(f"model/{value}") for value in inputs), *places.values()]
        self._graph = graph
        config = tf.compat.v1.ConfigProto()
        # Op by op as the model has them: an optimizer's rewriting is not what was trained.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.compat.v1.Session(graph=graph, config=config)

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def run(self, values: Sequence[str], inputs: Sequence[NDArray], fed: Sequence[NDArray] = ()) -> list[NDArray]:
        """The `values`, (k, ...) each. inputs: (k, ...) for each of the model's; fed: likewise for each of the cuts."""
        feed = {
            tensor: np.asarray(array, tensor.dtype.as_numpy_dtype)
            for tensor, array in zip(self._fed, (*inputs, *fed), strict=True)
        }
        return list(self._session.run([self._graph.get_tensor_by_name(f"model/{value}") for value in values], feed))


def _op(value: str) -> str:
    return value.partition(":")[0]


def _inputs(node: Any) -> list[str]:
    """The values that an op reads, without control dependencies."""
    return [name if ":" in name else f"{name}:0" for name in node.input if not name.startswith("^")]


def _in_order(nodes: dict[str, Any]) -> Iterator[str]:
    """Names of the ops, each behind all that it reads."""
    done: set[str] = set()
    for root in nodes:
        pending = [root]
        while pending:
            name = pending[-1]
            missing = [] if name in done else [op for op in map(_op, _inputs(nodes[name])) if op not in done]
            if missing:
                pending += missing
                continue
            pending.pop()
            if name not in done:
                done.add(name)
                yield name

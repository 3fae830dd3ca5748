# SPDX-License-Identifier: Apache-2.0
"""Trace channels through the graph of a tf_keras model: which are coupled, and which must not be removed."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.structured_pruning import rules
from tfq.compression.structured_pruning.channels import Buffer, Channels, Graph, Site, Step
from tfq.errors import TfqError

# Size of the dimensions that are None in the model.
_OPEN_DIMENSION = 16


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The result of testing whether a layer maps channel i of its inputs to channel i of its output.

    Channels are on the last axis.

    Attributes:
        reason: Why it does not; None if channel i of the output depends on channel i of the inputs only.
        zero_if_all: Whether a channel of the output is zero if it is zero in all inputs.
        zero_if_any: zero_if_any[i] is whether a channel of the output is zero if it is zero in input i.
    """

    reason: str | None = None
    zero_if_all: bool = False
    zero_if_any: tuple[bool, ...] = ()


def probe(
    call: Callable[[Sequence[Any]], Any], shapes: Sequence[tuple[int | None, ...]], output_shape: Any
) -> ProbeResult:
    """Test a function on random tensors, on a selection of their channels, and on zeros.

    Args:
        call: Maps a list of float32 tensors (1, ...) to a tensor.
        shapes: Shapes of its inputs, batch first. Inputs with one channel are broadcast, and always passed complete.
        output_shape: Shape of its output.
    """
    num_channels = max((shape[-1] or 0) for shape in shapes)
    if (
        num_channels < 2
        or output_shape[-1] != num_channels
        or any(shape[-1] not in (1, num_channels) for shape in shapes)
    ):
        change = f"{', '.join(map(str, shapes))} to {tuple(output_shape)}"
        return ProbeResult(reason=f"does not map channels one to one ({change})")
    random = np.random.default_rng(0)
    inputs = [
        random.normal(size=(1, *(size or _OPEN_DIMENSION for size in shape[1:]))).astype(np.float32) for shape in shapes
    ]
    # An irregular selection, so that operations on neighbors, halves or mirrored channels are detected.
    some = np.flatnonzero(random.random(num_channels) < 0.6)
    some = some if 0 < len(some) < num_channels else np.array([num_channels - 1])
    try:
        full = np.asarray(call(inputs))
        part = np.asarray(call([x if x.shape[-1] == 1 else x[..., some] for x in inputs]))
        zero = not np.any(call([x if x.shape[-1] == 1 < num_channels else np.zeros_like(x) for x in inputs]))
        zero_by_input = tuple(
            not np.any(call([np.zeros_like(x) if other == index else x for other, x in enumerate(inputs)]))
            for index in range(len(inputs))
        )
    except Exception as error:  # a layer of the user may raise anything on such tensors
        reason = f"fails on a selection of its channels ({type(error).__name__}: {error})"
        return ProbeResult(reason=reason[:300])
    if part.shape != (*full.shape[:-1], len(some)) or not np.allclose(part, full[..., some], rtol=1e-5, atol=1e-6):
        return ProbeResult(reason="computes a channel from other channels as well")
    return ProbeResult(zero_if_all=zero, zero_if_any=zero_by_input)


# Rules of layers without weights whose config contains the number of channels. All calls of such a layer share it.
_SIZED = ("rescaling", "reshape")
# Layers that the converter usually fuses into the op before them, and layers that only pass on or reshape their input.
_FUSED = ("BatchNormalization", "ReLU")
_NO_COPY = ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "Flatten", "Reshape")
_FINAL = "its channels are an output of the model"


@dataclass(kw_only=True)
class Trace:
    """The channels of a model.

    Attributes:
        channels: The sets of coupled channels.
        sites: The calls of layers with weights, in the order of the graph.
        uncounted: Names of the layers whose multiply-adds are not known.
        graph: The sites, and the tensors that an int8 flatbuffer of the model has in memory.
    """

    channels: Channels = field(default_factory=Channels)
    sites: list[Site] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    graph: Graph = field(default_factory=lambda: Graph(sites=()))


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """The channels on the last axis of a tensor.

    Attributes:
        channels: One channel for each index.
        is_zero: Whether a removed channel is zero here once the filters that produce it are zero.
    """

    channels: NDArray
    is_zero: bool


def trace_channels(model: Any, norm: str) -> Trace:
    """Trace the channels of a model.

    Args:
        model: Functional or sequential tf_keras model. Its layers must not be called in any other graph.
        norm: "l1" or "l2", the norm that ranks the filters. It ignores the scale of a following normalization: with
            a factor of gamma or gamma / sqrt(variance), the accuracy of ResNet8 on CIFAR-10, pruned to half of its
            multiply-adds, was 4 to 6 points lower after two short epochs.
    """
    return _Tracer(model, norm).trace


class _Tracer:
    def __init__(self, model: Any, norm: str) -> None:
        self.trace, self.channels, self.norm = Trace(), Channels(), norm
        self.trace.channels = self.channels
        self.tensors: dict[int, _Tensor] = {}
        self.probe_results: dict[Any, ProbeResult] = {}
        nodes = _ordered_nodes(model)
        self.calls = Counter(id(node.layer) for node in nodes)
        self.final = {id(tensor) for tensor in model.outputs}
        for tensor in model.inputs:
            self._add_frozen([tensor], "they are an input of the model")
        for node in nodes:
            self._visit(node)
        for tensor in model.outputs:
            if id(tensor) not in self.tensors:
                raise TfqError(
                    f"structured_pruning: output {tensor.name!r} of {model.name!r} is not in its graph",
                    field="model",
                    got=tensor.name,
                )
            self.channels.freeze(self.tensors[id(tensor)].channels, _FINAL)
        self.trace.graph = self._graph(model, nodes)

    def _graph(self, model: Any, nodes: list[Any]) -> Graph:
        """Return the graph of the model's int8 flatbuffer, as far as layers are known to be fused or not to copy."""
        readers = Counter(id(tensor) for node in nodes for tensor in node.keras_inputs)
        buffers: list[Buffer] = []
        places: dict[int, int] = {}

        def add(tensor: Any) -> int:
            positions = None if None in tensor.shape[1:-1] else math.prod(tensor.shape[1:-1])
            buffers.append(Buffer(channels=self.tensors[id(tensor)].channels, positions=positions))
            places[id(tensor)] = len(buffers) - 1
            return places[id(tensor)]

        for tensor in model.inputs:
            add(tensor)
        makers = {site.layer for site in self.trace.sites if site.terms}
        steps = []
        for node in nodes:
            after = _flat(node.outputs)
            if len(node.keras_inputs) == len(after) == 1 and _is_free(node, readers[id(node.keras_inputs[0])]):
                places[id(after[0])] = places[id(node.keras_inputs[0])]
                continue
            reads = tuple(places[id(tensor)] for tensor in node.keras_inputs)
            name = node.layer.name
            for tensor in after:
                steps.append(Step(layer=name, reads=reads, writes=add(tensor), has_weights=name in makers))
        ends = [tuple(places[id(tensor)] for tensor in tensors) for tensors in (model.inputs, model.outputs)]
        return Graph(sites=self.trace.sites, buffers=buffers, steps=steps, inputs=ends[0], outputs=ends[1])

    def _visit(self, node: Any) -> None:
        layer, before, after = node.layer, node.keras_inputs, _flat(node.outputs)
        rule, channels = rules.rule_of(layer), rules.channels_of(layer)
        reason = None
        if self.calls[id(layer)] > 1 and (layer.weights or channels in _SIZED):
            reason = f"is called {self.calls[id(layer)]} times"
        elif len(after) != 1 or len(before) == 0 or any(_num_channels(tensor) is None for tensor in (*before, *after)):
            reason = "has no inputs, several outputs, or a tensor without a last axis of fixed size"
        elif rule is not None and len(before) == 1:
            reason = rules.reason_unsupported(layer, tuple(before[0].shape))
            if channels == "reshape":
                reason = self._visit_reshape(node, before[0], after[0], resized=True)
            elif channels == "rescaling" and np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
                reason = self._visit_by_probing(node)
            elif reason is None:
                return self._visit_by_rule(node, rule)
        elif layer.weights:
            reason = f"({type(layer).__name__}) has weights for which no rule is known"
        elif channels == "flatten":
            reason = self._visit_reshape(node, before[0], after[0])
        elif channels == "concatenate" and layer.axis in (-1, len(after[0].shape) - 1):
            self._visit_concatenation(before, after[0])
        else:
            reason = self._visit_by_probing(node)
        if reason is not None:
            self._freeze_node(node, rule, reason)
        return None

    def _freeze_node(self, node: Any, rule: rules.Rule | None, reason: str) -> None:
        """Freeze all channels of the inputs and outputs. The multiply-adds are counted if the layer has a rule."""
        message = f"layer {node.layer.name!r} {reason}"
        for tensor in node.keras_inputs:
            self.channels.freeze(self.tensors[id(tensor)].channels, message)
        after = _flat(node.outputs)
        self._add_frozen(after, message)
        layout = getattr(node.layer, "data_format", "channels_last")
        if rule is not None and layout == "channels_last" and len(node.keras_inputs) == len(after) == 1:
            site = self._site(node, rule, self.tensors[id(after[0])].channels)
            self.trace.sites.append(site)
        elif rules.channels_of(node.layer) != "lookup" and any(len(weight.shape) > 1 for weight in node.layer.weights):
            self.trace.uncounted.append(node.layer.name)

    def _add_frozen(self, tensors: list[Any], reason: str) -> None:
        for tensor in tensors:
            channels = self.channels.add(_num_channels(tensor) or 0)
            self.channels.freeze(channels, reason)
            self.tensors[id(tensor)] = _Tensor(channels=channels, is_zero=False)

    def _site(self, node: Any, rule: rules.Rule, outputs: NDArray) -> Site:
        layer, before, after = node.layer, node.keras_inputs[0], _flat(node.outputs)[0]
        source = self.tensors[id(before)]
        return Site(
            layer=layer.name,
            inputs=source.channels,
            outputs=outputs,
            terms=rule.terms(layer, tuple(before.shape), tuple(after.shape)),
            makes_channels=rule.makes_channels,
            norms=rules.filter_norms(layer, rule, self.norm),
            input_is_zero=source.is_zero,
        )

    def _visit_by_rule(self, node: Any, rule: rules.Rule) -> None:
        layer, before, after = node.layer, node.keras_inputs[0], _flat(node.outputs)[0]
        source = self.tensors[id(before)]
        if not rule.makes_channels:
            outputs = np.repeat(source.channels, rules.depth_multiplier(layer))
        else:
            outputs = self.channels.add(_num_channels(after) or 0)
            groups = rules.kernel_groups(layer)
            if groups > 1:
                for ins, outs in zip(np.split(source.channels, groups), np.split(outputs, groups), strict=True):
                    both = np.concatenate([ins, outs])
                    self.channels.join(both[:-1], both[1:])
        self.trace.sites.append(self._site(node, rule, outputs))
        is_zero = rule.output_is_zero(layer, source.is_zero)
        if id(after) in self.final:
            self.channels.freeze(outputs, _FINAL)
        if getattr(layer, "activation", None) is not None:
            result = self._probe_activation(layer.activation, after)
            if result.reason is not None:
                self.channels.freeze(outputs, f"the activation of layer {layer.name!r} {result.reason}")
            is_zero = is_zero and result.zero_if_all
        self.tensors[id(after)] = _Tensor(channels=outputs, is_zero=is_zero)

    def _probe_activation(self, activation: Any, after: Any) -> ProbeResult:
        key = activation, tuple(after.shape)
        if key not in self.probe_results:
            shape = (1, *(2 for _ in after.shape[1:-1]), after.shape[-1])
            self.probe_results[key] = probe(lambda tensors: activation(*map(_float, tensors)), [shape], shape)
        return self.probe_results[key]

    def _visit_reshape(self, node: Any, before: Any, after: Any, resized: bool = False) -> str | None:
        """Visit a Flatten or Reshape whose last output axis repeats the input channels a whole number of times."""
        source, count = self.tensors[id(before)], _num_channels(after) or 0
        size = len(source.channels)
        if not size or not count or count % size or getattr(node.layer, "data_format", "") == "channels_first":
            return f"distributes the channels over several axes ({tuple(before.shape)} to {tuple(after.shape)})"
        channels = np.tile(source.channels, count // size)
        if resized:
            self.trace.sites.append(Site(layer=node.layer.name, inputs=source.channels, outputs=channels))
        self.tensors[id(after)] = _Tensor(channels=channels, is_zero=source.is_zero)
        return None

    def _visit_concatenation(self, before: list[Any], after: Any) -> None:
        sources = [self.tensors[id(tensor)] for tensor in before]
        channels = np.concatenate([source.channels for source in sources])
        self.tensors[id(after)] = _Tensor(channels=channels, is_zero=all(source.is_zero for source in sources))

    def _visit_by_probing(self, node: Any) -> str | None:
        """Visit a layer without weights, if probing shows that it maps channel i to channel i."""
        before, after = node.keras_inputs, _flat(node.outputs)[0]
        if not all(tensor.dtype.is_floating for tensor in before):
            return "computes with integers"
        result = self._probe_layer(node, before, after)
        if result.reason is not None:
            return f"({type(node.layer).__name__}) {result.reason}"
        sources = [self.tensors[id(tensor)] for tensor in before]
        wide = [source for source in sources if len(source.channels) > 1]
        for source in sources:
            if len(source.channels) == 1:
                self.channels.freeze(source.channels, f"layer {node.layer.name!r} broadcasts it to other channels")
        for source in wide[1:]:
            self.channels.join(wide[0].channels, source.channels)
        pairs = zip(sources, result.zero_if_any, strict=True)
        is_zero = any(source.is_zero and suffices for source, suffices in pairs)
        is_zero = is_zero or (result.zero_if_all and all(source.is_zero for source in sources))
        self.tensors[id(after)] = _Tensor(channels=wide[0].channels, is_zero=is_zero)
        return None

    def _probe_layer(self, node: Any, before: list[Any], after: Any) -> ProbeResult:
        config = {key: value for key, value in node.layer.get_config().items() if key != "name"}
        shapes = [tuple(tensor.shape) for tensor in before]
        key = type(node.layer), repr(config), repr(shapes), repr(_constants(node))
        if key not in self.probe_results:
            self.probe_results[key] = probe(_callable(node), shapes, tuple(after.shape))
        return self.probe_results[key]


def _is_free(node: Any, num_readers: int) -> bool:
    """Check whether a layer is usually part of the op before it in a flatbuffer, or does not change its input."""
    kind, activation = type(node.layer).__name__, getattr(node.layer, "activation", None)
    if kind in _NO_COPY:
        return True
    is_fused = kind in _FUSED or (kind == "Activation" and getattr(activation, "__name__", "") in ("relu", "linear"))
    return is_fused and num_readers == 1


def _ordered_nodes(model: Any) -> list[Any]:
    """Return the nodes (layer calls) of the graph in topological order."""
    known = {id(tensor) for tensor in model.inputs}
    waiting = [node for layer in model.layers for node in layer.inbound_nodes if not node.is_input]
    ordered: list[Any] = []
    while waiting:
        ready = [node for node in waiting if all(id(tensor) in known for tensor in node.keras_inputs)]
        if not ready:
            return ordered
        ordered.extend(ready)
        known.update(id(tensor) for node in ready for tensor in _flat(node.outputs))
        waiting = [node for node in waiting if not any(node is item for item in ready)]
    return ordered


def _callable(node: Any) -> Callable[[Any], Any]:
    """Return a function that calls the layer as this node does, with the tensors it receives."""
    import tensorflow as tf

    indices = {id(tensor): index for index, tensor in enumerate(node.keras_inputs)}

    def call(tensors: Any) -> Any:
        def replace(value: Any) -> Any:
            return _float(tensors[indices[id(value)]]) if id(value) in indices else value

        args, kwargs = (tf.nest.map_structure(replace, item) for item in (node.call_args, node.call_kwargs))
        return node.layer(*args, **kwargs)

    return call


def _constants(node: Any) -> list[Any]:
    """Return the arguments that a node passes to its layer, with the index of each tensor instead of the tensor."""
    import tensorflow as tf

    indices = {id(tensor): f"tensor {index}" for index, tensor in enumerate(node.keras_inputs)}
    return [indices.get(id(value), value) for value in tf.nest.flatten((node.call_args, node.call_kwargs))]


def _float(values: Any) -> Any:
    import tensorflow as tf

    return tf.constant(values, tf.float32)


def _flat(outputs: Any) -> list[Any]:
    import tensorflow as tf

    return tf.nest.flatten(outputs)


def _num_channels(tensor: Any) -> int | None:
    """Return the number of channels of a symbolic tensor; None if it has no axis besides the batch, or it is open."""
    shape = tuple(tensor.shape) if tensor.shape.rank is not None else ()
    return shape[-1] if len(shape) > 1 else None

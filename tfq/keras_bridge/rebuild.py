# SPDX-License-Identifier: Apache-2.0
"""Walk a model of either Keras and rebuild it, flat, from tf_keras layers, collecting everything that cannot be.

Nested models are inlined; a layer that is called several times is one layer called several times.
"""

import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tfq.errors import InputError
from tfq.keras_bridge.copies import keep_class, keep_names, mark_lost_training
from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.explicit_masks import ExplicitMasks, without_mask
from tfq.keras_bridge.layers.bridged_layer import Translation, TranslationContext
from tfq.keras_bridge.layers.config import NARROW
from tfq.keras_bridge.layers.translate import copied_layer, translate_layer
from tfq.keras_bridge.operations.translate import translate_operation
from tfq.keras_bridge.untranslatable import Untranslatable
from tfq.keras_bridge.walk import (
    Call,
    Graph,
    Names,
    graph_of,
    inputs_by_reference,
    is_model,
    layer_of,
    layers_between,
    takes_training,
    why_no_graph,
)

_RAISED = re.compile(r"\s*\w+(Error|Exception): ")
# What TensorFlow and Keras 3 put around a message: of the op, and of the terminal.
_AROUND = re.compile(r"\x1b\[\d+m|\{\{function_node [^}]*\}\}|\[Op:\w+\]( name:)?")


@dataclass
class Made:
    """One of the user's layers: what it became, where it stands first, and whether it was frozen there."""

    path: str
    translation: Translation
    frozen: bool


@dataclass
class Rebuilt:
    """What the walk gives. by_layer: the user's layer (by id) -> it and what it became. tensors: pairs of symbolic
    tensors that should be equal, the user's and ours, at the top level, in running order."""

    model: Any
    by_layer: dict[int, tuple[Any, Made]]
    layer_map: dict[str, list[str]]
    origins: dict[str, str]
    notes: list[str]
    tensors: list[tuple[str, Any, Any]] = field(default_factory=list)


def rebuild(model: Any, *, whole: bool = False) -> Rebuilt:
    """The model rebuilt flat of new tf_keras layers, with the weights that they begin with.

    whole: no layer is made of several that have weights.
    Raises UnbridgeableError, an InputError, that lists by layer all that has no equal in tf_keras.
    """
    return _Rebuilding(model, whole).result()


class UnbridgeableError(InputError):
    """A model holds what has no equal in tf_keras. `problems`: the user's layer ("outer/inner") -> why."""

    def __init__(self, model: str, problems: dict[str, str]) -> None:
        listed = "".join(f"\n  layer {path!r}: {reason}" for path, reason in problems.items())
        super().__init__(
            f"model {model!r} cannot become a tf_keras model, which tfmot needs; it can still be converted as it is, "
            f"without pruning or quantization-aware training:{listed}",
            field="model",
            got=tuple(problems),
        )
        self.problems = problems


class _Rebuilding:
    def __init__(self, model: Any, whole: bool) -> None:
        self.source, self.whole = model, whole
        self.problems: dict[str, str] = {}
        self.narrow: dict[str, list[str]] = {}
        self.called_again: set[int] = set()
        self.masks = ExplicitMasks([])
        self.rebuilt = Rebuilt(model=None, by_layer={}, layer_map={}, origins={}, notes=[])
        self.graph = graph_of(model)
        self.names = Names(self.graph)
        self._times = Counter(map(id, _all_operations(self.graph)))

    def result(self) -> Rebuilt:
        tf_keras = import_tf_keras()
        ours: dict[int, Any] = {}
        for tensor in self.graph.inputs:
            ours[id(tensor)] = self._input(tensor)
        self._run(self.graph, ours, path="", frozen=False)
        if self.problems:
            raise UnbridgeableError(self.source.name, self.problems)
        for dtype, layers in self.narrow.items():
            count, first = len(layers), layers[0]
            self.rebuilt.notes.append(f"{count} layers, from {first} on, compute in float32 in place of {dtype}")
        structure = self._packed(self.graph.output_structure, ours)
        inputs = self._packed(self.graph.input_structure, ours)
        self.rebuilt.model = tf_keras.Model(inputs, structure, name=self.names.model_name(self.source.name))
        keep_names(self.source, self.rebuilt.model)
        self._keep_training()
        return self.rebuilt

    def _keep_training(self) -> None:
        """Keep the class of a tf_keras model, or mark the model as one that lost its training code."""
        if self.graph.kind == "keras":
            note = mark_lost_training(self.source, self.rebuilt.model)
            self.rebuilt.notes += [note] if note else []
            return
        twins = {
            key: built.translation.layers[0]
            for key, (_, built) in self.rebuilt.by_layer.items()
            if len(built.translation.layers) == 1
        }
        keep_class(self.source, self.rebuilt.model, twins, "to_tf_keras")

    def _packed(self, structure: Any, ours: dict[int, Any]) -> Any:
        if isinstance(structure, dict):
            return {key: self._packed(item, ours) for key, item in structure.items()}
        if isinstance(structure, (list, tuple)):
            return type(structure)(self._packed(item, ours) for item in structure)
        return ours.get(id(structure), structure)

    def _input(self, tensor: Any) -> Any:
        layer = layer_of(tensor)
        if getattr(tensor, "sparse", False) or getattr(layer, "sparse", False) or getattr(layer, "ragged", False):
            self._problem(layer.name, "is a sparse or ragged input: give it as a dense one")
        if getattr(layer, "optional", False):
            self._problem(layer.name, "is an optional input: make it a plain one")
        dtype = getattr(tensor.dtype, "name", tensor.dtype)
        shape = tuple(tensor.shape)
        ours = import_tf_keras().Input(
            shape=shape[1:],
            batch_size=self._batch_size(shape[0]),
            name=self.names.take(layer.name, ""),
            dtype="float32" if dtype in NARROW else dtype,
        )
        self._record(layer.name, [layer_of(ours)])
        return ours

    def _batch_size(self, built_in: int | None) -> int | None:
        """None for a Sequential that was built by its first batch: it means nothing but to a layer with a state."""
        by_chance = isinstance(self.source, import_keras().Sequential) and not any(
            getattr(layer, "stateful", False) for layer in self.source._flatten_layers()
        )
        if built_in is not None and by_chance:
            self.rebuilt.notes.append(f"the batch size of {built_in}, by which the model was built, is left open")
        return None if by_chance else built_in

    def _run(self, graph: Graph, ours: dict[int, Any], path: str, frozen: bool) -> None:
        calls = _needed(graph)
        around = self.masks
        self.masks = ExplicitMasks([] if self.whole else calls, self._times, self._part_name)
        times = Counter(id(call.operation) for call in calls)
        self.called_again |= {operation for operation, count in times.items() if count > 1}
        for call in calls:
            name = f"{path}{call.operation.name}"
            try:
                outputs = self._called(call, ours, name, path, frozen)
                self._record(name, self.masks.follow(call, ours))
            except Untranslatable as problem:
                self._problem(name, str(problem))
                outputs = [_placeholder(tensor) for tensor in call.outputs]
            except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
                kind = type(call.operation).__name__
                self._problem(name, f"{kind}: tf_keras refuses it: {reason_of(error)}")
                outputs = [_placeholder(tensor) for tensor in call.outputs]
            for tensor, built in zip(call.outputs, outputs, strict=True):
                ours[id(tensor)] = built
                if not path:
                    self.rebuilt.tensors.append((name, tensor, built))
        for tensor in self.masks.live(graph.flat(graph.output_structure)):
            self._with_implicit_masks([tensor], ours, layer_of(tensor), f"{path}{layer_of(tensor).name}")
        self.masks = around

    def _with_implicit_masks(self, tensors: Any, ours: dict[int, Any], layer: Any, name: str) -> None:
        """Put tensors with implicit masks into `ours`, added for `layer`."""
        changed, added = self.masks.implicit(tensors, ours, layer)
        ours.update(changed)
        self._record(name, added)

    def _part_name(self, layer: Any, part: str) -> str:
        return self.names.part(layer.name, part)

    def _called(self, call: Call, ours: dict[int, Any], name: str, path: str, frozen: bool) -> list[Any]:
        import tensorflow as tf

        layer, masks = call.operation, self.masks.arguments(call)
        if not masks and not self.masks.passes_through(call):
            ours = dict(ours)
            self._with_implicit_masks(self.masks.tensors_of(call), ours, layer, name)
        args, kwargs = self._packed(call.args, ours), self._packed(call.kwargs, ours)
        if masks:
            built = self._made(layer, (args, {**kwargs, **masks}), name, path, frozen or call.training is False)
            if built.translation.call is not None:
                return tf.nest.flatten(built.translation.call(args, {**kwargs, **masks}))
            ours = dict(ours)
            self._with_implicit_masks(self.masks.tensors_of(call), ours, layer, name)
            args, kwargs = self._packed(call.args, ours), self._packed(call.kwargs, ours)
        if is_model(layer):
            return self._inlined(call, args, f"{name}/", frozen or call.training is False)
        if isinstance(layer, import_tf_keras().layers.Layer):
            frozen = frozen or call.training is False
            if call.training is True and takes_training(layer):
                raise Untranslatable(
                    "was called with training=True, so that the model is random or depends on its batch: leave it out"
                )
            built = self._made(layer, (args, kwargs), name, path, frozen)
        elif isinstance(layer, import_keras().layers.Layer):
            built = self._made(layer, (args, kwargs), name, path, frozen or call.training is False)
        else:
            before = self.names.take(layer.name, path)
            outputs = tf.nest.flatten(translate_operation(layer, args, kwargs, before))
            self._record(name, layers_between(outputs, tf.nest.flatten((args, kwargs))))
            return outputs
        translation = built.translation
        if translation.call is not None:
            return tf.nest.flatten(translation.call(args, kwargs))
        if not translation.layers:
            return tf.nest.flatten(args[0])
        outputs = translation.layers[0](*args, **kwargs)
        for following in translation.layers[1:]:
            outputs = following(outputs)
        return tf.nest.flatten(outputs)

    def _inlined(self, call: Call, args: Any, path: str, frozen: bool) -> list[Any]:
        model = call.operation
        reason = why_no_graph(model)
        if reason:
            raise Untranslatable(reason)
        inner = graph_of(model)
        provided = args[0] if args else call.kwargs.get("inputs")
        tensors = inputs_by_reference(inner, provided)
        ours = {id(theirs): tensor for theirs, tensor in zip(inner.inputs, tensors, strict=True)}
        self._run(inner, ours, path, frozen)
        return [ours[id(tensor)] for tensor in inner.flat(inner.output_structure)]

    def _made(self, layer: Any, arguments: Any, name: str, path: str, frozen: bool) -> Made:
        """What the layer became, made at its first call. frozen: its statistics are not to be learned here."""
        if id(layer) in self.rebuilt.by_layer:
            built = self.rebuilt.by_layer[id(layer)][1]
            if built.frozen != frozen and type(layer).__name__ == "BatchNormalization":
                raise Untranslatable("is called with training=False in one place and without in another: make it two")
        else:
            arguments = None if self.whole or id(layer) in self.called_again else arguments
            translation = self._translation(layer, arguments, name, path, frozen)
            built = Made(path=name, translation=translation, frozen=frozen)
            self.rebuilt.by_layer[id(layer)] = (layer, built)
        self._record(name, built.translation.layers)
        return built

    def _translation(self, layer: Any, arguments: Any, name: str, path: str, frozen: bool) -> Translation:
        def note(sentence: str) -> None:
            self.rebuilt.notes.append(f"{name} {sentence}")

        taken = self.names.take(layer.name, path)
        context = TranslationContext(
            name=taken,
            part=functools.partial(self.names.part, taken),
            note=note,
            translate=translate_layer,
            rebuild=self._rebuilt_inside,
            arguments=arguments,
        )
        if isinstance(layer, import_tf_keras().layers.Layer):
            translation = copied_layer(layer, context, frozen=frozen)
        else:
            translation = translate_layer(layer, context)
        if self.masks.starts_at(layer):
            translation = without_mask(translation, self.names.part(taken, "unmasked"))
        if frozen and type(layer).__name__ == "BatchNormalization":
            for ours in translation.layers:
                ours.trainable = False
            note("is frozen (trainable=False): it was called with training=False")
        if translation.layers and layer.compute_dtype in NARROW:
            self.narrow.setdefault(layer.compute_dtype, []).append(name)
        return translation

    def _rebuilt_inside(self, model: Any) -> Rebuilt:
        try:
            return rebuild(model, whole=True)
        except InputError as error:
            raise Untranslatable(str(error)) from error

    def _record(self, path: str, layers: Any) -> None:
        names = self.rebuilt.layer_map.setdefault(path, [])
        for layer in layers:
            if layer.name not in names:
                names.append(layer.name)
            self.rebuilt.origins.setdefault(layer.name, path)

    def _problem(self, path: str, reason: str) -> None:
        self.problems.setdefault(path, reason)


def reason_of(error: Exception) -> str:
    """The line that tells what is wrong: a layer's call names the layer before it, and its arguments after."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = lines[1] if len(lines) > 1 and lines[0].startswith("Exception encountered") else lines[0]
    raised = [line for line in lines if _RAISED.match(line)]  # "in user code:" ends with what was raised there
    return _AROUND.sub("", raised[0] if raised and message.startswith("in user code") else message).strip()


def _needed(graph: Graph) -> list[Call]:
    """The calls that the outputs depend on, in running order: Keras 3 also keeps those that only make masks."""
    wanted = {id(tensor) for tensor in graph.flat(graph.output_structure)}
    needed = []
    for call in reversed(graph.calls):
        if any(id(tensor) in wanted for tensor in call.outputs):
            needed.append(call)
            wanted |= {id(leaf) for leaf in graph.flat((call.args, call.kwargs))}
    return needed[::-1]


def _all_operations(graph: Graph) -> list[Any]:
    """Return the operation of each call, those in models inside included."""
    found = []
    for call in graph.calls:
        found.append(call.operation)
        if is_model(call.operation) and not why_no_graph(call.operation):
            found += _all_operations(graph_of(call.operation))
    return found


def _placeholder(tensor: Any) -> Any:
    """A symbolic tensor to go on with behind what could not be made, so that all problems are found at once."""
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    shape = tuple(tensor.shape)
    return import_tf_keras().Input(shape=shape[1:], batch_size=shape[0] if shape else None, dtype=dtype)

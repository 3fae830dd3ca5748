# SPDX-License-Identifier: Apache-2.0
"""Rebuild a model of either Keras as a flat model of tf_keras layers, and collect everything that has no equivalent.

Nested models are inlined. A layer that is called several times becomes one layer that is called several times.
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
from tfq.keras_bridge.layers.config import OTHER_FLOATS
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

_RAISED_LINE = re.compile(r"\s*\w+(Error|Exception): ")
# What TensorFlow and Keras 3 add to a message: the op's name, and terminal colors.
_MESSAGE_NOISE = re.compile(r"\x1b\[\d+m|\{\{function_node [^}]*\}\}|\[Op:\w+\]( name:)?")


@dataclass
class BuiltLayer:
    """The translation of one of the user's layers.

    Attributes:
        path: Path of the layer's first call.
        translation: The tf_keras layers that it became.
        frozen: Whether it was called with training=False.
    """

    path: str
    translation: Translation
    frozen: bool


@dataclass
class RebuiltModel:
    """A rebuilt model and how it corresponds to the user's model.

    Attributes:
        model: The flat tf_keras model.
        by_layer: id of the user's layer -> the layer and its translation.
        layer_map: Path of the user's layer -> the names of the tf_keras layers.
        origins: Name of a tf_keras layer -> path of the user's layer.
        notes: What was left out or changed.
        tensors: (path, the user's tensor, the bridged tensor): symbolic tensors of the outermost model that should be
            equal, in execution order.
    """

    model: Any
    by_layer: dict[int, tuple[Any, BuiltLayer]]
    layer_map: dict[str, list[str]]
    origins: dict[str, str]
    notes: list[str]
    tensors: list[tuple[str, Any, Any]] = field(default_factory=list)


def rebuild(model: Any, *, single_layers: bool = False) -> RebuiltModel:
    """Rebuild a model as a flat model of new tf_keras layers, with their initial weights.

    Args:
        model: A functional or sequential model of either Keras.
        single_layers: Whether no layer may become several layers with weights.

    Raises:
        UnbridgeableError: Layers have no equivalent in tf_keras; it lists all of them.
    """
    return _Rebuilder(model, single_layers).result()


class UnbridgeableError(InputError):
    """A model has layers without an equivalent in tf_keras.

    Attributes:
        problems: Path of the user's layer ("outer/inner") -> the reason.
        classes: Path of the user's layer -> the name of its class.
    """

    def __init__(self, model: str, problems: dict[str, str], classes: dict[str, str]) -> None:
        """Create the error for the model called `model`."""
        listed = "".join(f"\n  layer {path!r} ({classes[path]}): {reason}" for path, reason in problems.items())
        super().__init__(
            f"model {model!r} cannot be translated to tf_keras, which pruning and quantization-aware training need. "
            "Replace the layers below, or register a tfq.BridgedLayer for each (see CONTRIBUTING.md). Conversion "
            f"without pruning and training needs no translation: pass the Keras model itself.{listed}",
            field="model",
            got=tuple(problems),
        )
        self.problems, self.classes = problems, classes


class _Rebuilder:
    def __init__(self, model: Any, single_layers: bool) -> None:
        self.source, self.single_layers = model, single_layers
        self.problems: dict[str, str] = {}
        self.classes: dict[str, str] = {}
        self.not_in_float32: dict[str, list[str]] = {}
        self.called_repeatedly: set[int] = set()
        self.masks = ExplicitMasks([])
        self.rebuilt = RebuiltModel(model=None, by_layer={}, layer_map={}, origins={}, notes=[])
        self.graph = graph_of(model)
        self.names = Names(self.graph)
        self._num_calls = Counter(map(id, _all_operations(self.graph)))

    def result(self) -> RebuiltModel:
        tf_keras = import_tf_keras()
        bridged: dict[int, Any] = {}
        for tensor in self.graph.inputs:
            bridged[id(tensor)] = self._input(tensor)
        self._run(self.graph, bridged, path="", frozen=False)
        if self.problems:
            raise UnbridgeableError(self.source.name, self.problems, self.classes)
        for dtype, layers in self.not_in_float32.items():
            count, first = len(layers), layers[0]
            self.rebuilt.notes.append(f"{count} layers, beginning with {first}, compute in float32 instead of {dtype}")
        structure = self._map_structure(self.graph.output_structure, bridged)
        inputs = self._map_structure(self.graph.input_structure, bridged)
        self.rebuilt.model = tf_keras.Model(inputs, structure, name=self.names.model_name(self.source.name))
        keep_names(self.source, self.rebuilt.model)
        self._keep_training()
        return self.rebuilt

    def _keep_training(self) -> None:
        """Keep the class of a tf_keras model, or mark a bridged model as one without its training code."""
        if self.graph.kind == "keras":
            note = mark_lost_training(self.source, self.rebuilt.model)
            self.rebuilt.notes += [note] if note else []
            return
        layers = {
            key: built.translation.layers[0]
            for key, (_, built) in self.rebuilt.by_layer.items()
            if len(built.translation.layers) == 1
        }
        keep_class(self.source, self.rebuilt.model, layers, "to_tf_keras")

    def _map_structure(self, structure: Any, bridged: dict[int, Any]) -> Any:
        if isinstance(structure, dict):
            return {key: self._map_structure(item, bridged) for key, item in structure.items()}
        if isinstance(structure, (list, tuple)):
            return type(structure)(self._map_structure(item, bridged) for item in structure)
        return bridged.get(id(structure), structure)

    def _input(self, tensor: Any) -> Any:
        layer = layer_of(tensor)
        if getattr(tensor, "sparse", False) or getattr(layer, "sparse", False) or getattr(layer, "ragged", False):
            self._problem(layer.name, layer, "it is a sparse or ragged input. Use a dense input")
        if getattr(layer, "optional", False):
            self._problem(layer.name, layer, "it is an optional input. Use an input that is required")
        dtype = getattr(tensor.dtype, "name", tensor.dtype)
        if dtype in OTHER_FLOATS:
            self.rebuilt.notes.append(f"the input {layer.name} is float32 instead of {dtype}")
        shape = tuple(tensor.shape)
        bridged = import_tf_keras().Input(
            shape=shape[1:],
            batch_size=self._batch_size(shape[0]),
            name=self.names.take(layer.name, ""),
            dtype="float32" if dtype in OTHER_FLOATS else dtype,
        )
        self._record(layer.name, [layer_of(bridged)])
        return bridged

    def _batch_size(self, batch_size: int | None) -> int | None:
        """Return the batch size of an input.

        If a Sequential was built by its first batch, the size of that batch is accidental, unless a layer has a state.
        """
        is_accidental = isinstance(self.source, import_keras().Sequential) and not any(
            getattr(layer, "stateful", False) for layer in self.source._flatten_layers()
        )
        if batch_size is not None and is_accidental:
            self.rebuilt.notes.append(f"the batch size {batch_size}, with which the model was built, is left variable")
        return None if is_accidental else batch_size

    def _run(self, graph: Graph, bridged: dict[int, Any], path: str, frozen: bool) -> None:
        calls = _needed(graph)
        outer_masks = self.masks
        self.masks = ExplicitMasks([] if self.single_layers else calls, self._num_calls, self._part_name)
        num_calls = Counter(id(call.operation) for call in calls)
        self.called_repeatedly |= {operation for operation, count in num_calls.items() if count > 1}
        for call in calls:
            name = f"{path}{call.operation.name}"
            try:
                outputs = self._call_operation(call, bridged, name, path, frozen)
                self._record(name, self.masks.follow(call, bridged))
            except Untranslatable as problem:
                self._problem(name, call.operation, str(problem))
                outputs = [_placeholder(tensor) for tensor in call.outputs]
            except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
                self._problem(name, call.operation, f"tf_keras refuses it: {reason_of(error)}")
                outputs = [_placeholder(tensor) for tensor in call.outputs]
            for tensor, built in zip(call.outputs, outputs, strict=True):
                bridged[id(tensor)] = built
                if not path:
                    self.rebuilt.tensors.append((name, tensor, built))
        for tensor in self.masks.live(graph.flat(graph.output_structure)):
            self._with_implicit_masks([tensor], bridged, layer_of(tensor), f"{path}{layer_of(tensor).name}")
        self.masks = outer_masks

    def _with_implicit_masks(self, tensors: Any, bridged: dict[int, Any], layer: Any, name: str) -> None:
        """Add implicit masks to tensors in `bridged`, with layers that belong to `layer`."""
        changed, added = self.masks.implicit(tensors, bridged, layer)
        bridged.update(changed)
        self._record(name, added)

    def _part_name(self, layer: Any, part: str) -> str:
        return self.names.part(layer.name, part)

    def _call_operation(self, call: Call, bridged: dict[int, Any], name: str, path: str, frozen: bool) -> list[Any]:
        import tensorflow as tf

        layer, masks = call.operation, self.masks.arguments(call)
        if not masks and not self.masks.passes_through(call):
            bridged = dict(bridged)
            self._with_implicit_masks(self.masks.tensors_of(call), bridged, layer, name)
        args, kwargs = self._map_structure(call.args, bridged), self._map_structure(call.kwargs, bridged)
        if masks:
            built = self._build_layer(layer, (args, {**kwargs, **masks}), name, path, frozen or call.training is False)
            if built.translation.call is not None:
                return tf.nest.flatten(built.translation.call(args, {**kwargs, **masks}))
            bridged = dict(bridged)
            self._with_implicit_masks(self.masks.tensors_of(call), bridged, layer, name)
            args, kwargs = self._map_structure(call.args, bridged), self._map_structure(call.kwargs, bridged)
        if is_model(layer):
            return self._inline(call, args, f"{name}/", frozen or call.training is False)
        if isinstance(layer, import_tf_keras().layers.Layer):
            frozen = frozen or call.training is False
            if call.training is True and takes_training(layer):
                raise Untranslatable(
                    "it is called with training=True, so the model is random or depends on its batch. Call it without "
                    "training=True"
                )
            built = self._build_layer(layer, (args, kwargs), name, path, frozen)
        elif isinstance(layer, import_keras().layers.Layer):
            built = self._build_layer(layer, (args, kwargs), name, path, frozen or call.training is False)
        else:
            layer_name = self.names.take(layer.name, path)
            outputs = tf.nest.flatten(translate_operation(layer, args, kwargs, layer_name))
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

    def _inline(self, call: Call, args: Any, path: str, frozen: bool) -> list[Any]:
        model = call.operation
        reason = why_no_graph(model)
        if reason:
            raise Untranslatable(reason)
        inner = graph_of(model)
        provided = args[0] if args else call.kwargs.get("inputs")
        tensors = inputs_by_reference(inner, provided)
        bridged = {id(user_tensor): tensor for user_tensor, tensor in zip(inner.inputs, tensors, strict=True)}
        self._run(inner, bridged, path, frozen)
        return [bridged[id(tensor)] for tensor in inner.flat(inner.output_structure)]

    def _build_layer(self, layer: Any, arguments: Any, name: str, path: str, frozen: bool) -> BuiltLayer:
        """Return the translation of a layer, which is created at the layer's first call.

        frozen: whether the layer must not learn its statistics here.
        """
        if id(layer) in self.rebuilt.by_layer:
            built = self.rebuilt.by_layer[id(layer)][1]
            if built.frozen != frozen and type(layer).__name__ == "BatchNormalization":
                raise Untranslatable(
                    "it is called with training=False in one place and without it in another. Use two layers"
                )
        else:
            arguments = None if self.single_layers or id(layer) in self.called_repeatedly else arguments
            translation = self._translate(layer, arguments, name, path, frozen)
            built = BuiltLayer(path=name, translation=translation, frozen=frozen)
            self.rebuilt.by_layer[id(layer)] = (layer, built)
        self._record(name, built.translation.layers)
        return built

    def _translate(self, layer: Any, arguments: Any, name: str, path: str, frozen: bool) -> Translation:
        def note(sentence: str) -> None:
            self.rebuilt.notes.append(f"{name} {sentence}")

        unique_name = self.names.take(layer.name, path)
        context = TranslationContext(
            name=unique_name,
            part=functools.partial(self.names.part, unique_name),
            note=note,
            translate=translate_layer,
            rebuild=self._rebuild_inner,
            arguments=arguments,
        )
        if isinstance(layer, import_tf_keras().layers.Layer):
            translation = copied_layer(layer, context, frozen=frozen)
        else:
            translation = translate_layer(layer, context)
        if self.masks.starts_at(layer):
            translation = without_mask(translation, self.names.part(unique_name, "unmasked"))
        if frozen and type(layer).__name__ == "BatchNormalization":
            for bridged in translation.layers:
                bridged.trainable = False
            note("is frozen (trainable=False), because it is called with training=False")
        if translation.layers and layer.compute_dtype in OTHER_FLOATS:
            self.not_in_float32.setdefault(layer.compute_dtype, []).append(name)
        return translation

    def _rebuild_inner(self, model: Any) -> RebuiltModel:
        try:
            return rebuild(model, single_layers=True)
        except InputError as error:
            raise Untranslatable(str(error)) from error

    def _record(self, path: str, layers: Any) -> None:
        names = self.rebuilt.layer_map.setdefault(path, [])
        for layer in layers:
            if layer.name not in names:
                names.append(layer.name)
            self.rebuilt.origins.setdefault(layer.name, path)

    def _problem(self, path: str, operation: Any, reason: str) -> None:
        self.problems.setdefault(path, reason)
        self.classes.setdefault(path, type(operation).__name__)


def reason_of(error: Exception) -> str:
    """Return the line of an error's message that has the cause.

    A layer's call writes the layer's name before it, and the arguments after it.
    """
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = lines[1] if len(lines) > 1 and lines[0].startswith("Exception encountered") else lines[0]
    raised = [line for line in lines if _RAISED_LINE.match(line)]  # "in user code:" ends with the exception
    return _MESSAGE_NOISE.sub("", raised[0] if raised and message.startswith("in user code") else message).strip()


def _needed(graph: Graph) -> list[Call]:
    """Return the calls that the outputs depend on, in execution order.

    The graph of Keras 3 also has calls that only compute masks.
    """
    required = {id(tensor) for tensor in graph.flat(graph.output_structure)}
    needed = []
    for call in reversed(graph.calls):
        if any(id(tensor) in required for tensor in call.outputs):
            needed.append(call)
            required |= {id(leaf) for leaf in graph.flat((call.args, call.kwargs))}
    return needed[::-1]


def _all_operations(graph: Graph) -> list[Any]:
    """Return the operation of each call, including the calls in inner models."""
    operations = []
    for call in graph.calls:
        operations.append(call.operation)
        if is_model(call.operation) and not why_no_graph(call.operation):
            operations += _all_operations(graph_of(call.operation))
    return operations


def _placeholder(tensor: Any) -> Any:
    """Return a symbolic tensor instead of an output that could not be built, so that all problems are found at once."""
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    shape = tuple(tensor.shape)
    return import_tf_keras().Input(shape=shape[1:], batch_size=shape[0] if shape else None, dtype=dtype)

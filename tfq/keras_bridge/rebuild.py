# SPDX-License-Identifier: Apache-2.0
"""Rebuild a model of either Keras as a flat model of tf_keras layers, and collect everything that has no equivalent.

Nested models are inlined. A layer that is called several times becomes one layer that is called several times.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.keras_bridge.copies import keep_class, keep_names, mark_lost_training
from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.expansion import (
    expand,
    is_default_training,
    masks_of,
    nodes_of,
    restore_nodes,
    with_symbolic_constants,
)
from tfq.keras_bridge.explicit_masks import ExplicitMasks, without_mask
from tfq.keras_bridge.layers.bridged_layer import Translation, TranslationContext
from tfq.keras_bridge.layers.config import OTHER_FLOATS
from tfq.keras_bridge.layers.tfq_layers import tfq_layer_classes
from tfq.keras_bridge.layers.translate import (
    copied_layer,
    is_expanded,
    linear_activation,
    own_activation,
    translate_layer,
)
from tfq.keras_bridge.operations.data import BatchConstant, BatchSize
from tfq.keras_bridge.operations.keras_operation import constant_tensor, is_graph_tensor, parameters
from tfq.keras_bridge.operations.shapes import without_none
from tfq.keras_bridge.operations.translate import translate_operation
from tfq.keras_bridge.untranslatable import Untranslatable, reason_of
from tfq.keras_bridge.walk import (
    Call,
    Graph,
    Names,
    all_calls,
    graph_of,
    inputs_by_reference,
    is_model,
    layer_of,
    layers_between,
    takes_training,
    why_no_graph,
)


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
    rebuilder = _Rebuilder(model, single_layers)
    try:
        return rebuilder.result()
    except UnbridgeableError:
        if not rebuilder.split_repeated:
            raise
        # The calls of a split layer must be alike. As one layer, their masks and lengths may differ.
        return _Rebuilder(model, single_layers, splits_repeated=False).result()


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
            limit="untranslatable-layers",
        )
        self.problems, self.classes = problems, classes


@dataclass(frozen=True)
class _OwnWeight:
    """A weight of an expanded layer, in the role of a layer with one weight."""

    weights: list[Any]


class _Rebuilder:
    def __init__(self, model: Any, single_layers: bool, *, splits_repeated: bool = True) -> None:
        """Prepare to rebuild `model`; see `rebuild`. splits_repeated: split attention that is called several times."""
        self.source, self.single_layers, self.splits_repeated = model, single_layers, splits_repeated
        self.split_repeated = False  # whether such a layer was split
        self.problems: dict[str, str] = {}
        self.classes: dict[str, str] = {}
        self.not_in_float32: dict[str, list[str]] = {}
        self.called_repeatedly: set[int] = set()
        self.expanded_nodes: list[Any] = []
        self.expansions: list[Any] = []  # keeps the tensors and operations, whose ids are used
        self.depth = 0  # the number of expanded layers around the current call
        self.batch: Any = None  # an input of the outermost model
        self.weights: dict[int, Any] = {}  # id of a variable -> its tensor
        self.masks = ExplicitMasks([])
        self.rebuilt = RebuiltModel(model=None, by_layer={}, layer_map={}, origins={}, notes=[])
        self.graph = graph_of(model)
        self.names = Names(self.graph)
        self._num_calls = Counter(id(call.operation) for call in all_calls(self.graph))

    def result(self) -> RebuiltModel:
        try:
            return self._result()
        finally:
            for nodes in reversed(self.expanded_nodes):
                restore_nodes(nodes)

    def _result(self) -> RebuiltModel:
        tf_keras = import_tf_keras()
        bridged: dict[int, Any] = {}
        for tensor in self.graph.inputs:
            bridged[id(tensor)] = self._input(tensor)
        self.batch = bridged[id(self.graph.inputs[0])]
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
        if isinstance(structure, BatchSize):
            return dataclasses.replace(structure, tensor=bridged[id(structure.tensor)])
        if isinstance(structure, BatchConstant):
            shape = tuple(self._map_structure(size, bridged) for size in structure.shape)
            return self._constant(dataclasses.replace(structure, shape=shape))
        if isinstance(structure, slice):
            parts = (structure.start, structure.stop, structure.step)
            return slice(*(self._map_structure(part, bridged) for part in parts))
        if isinstance(structure, import_keras().Variable):
            return self._weight(structure, structure.path)
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

    def _run(
        self, graph: Graph, bridged: dict[int, Any], path: str, frozen: bool, masks: dict[int, Any] | None = None
    ) -> None:
        calls = _needed(graph)
        outer_masks = self.masks
        readers = [] if self.single_layers else calls
        self.masks = ExplicitMasks(readers, self._num_calls, self._part_name, masks, is_expanded)
        num_calls = Counter(id(call.operation) for call in calls)
        self.called_repeatedly |= {operation for operation, count in num_calls.items() if count > 1}
        for call in calls:
            name = f"{path}{call.operation.name}"
            try:
                outputs = self._call_operation(call, bridged, name, path, frozen)
                self._record(name, self.masks.follow(call, bridged))
            except Untranslatable as problem:
                self._problem(name, call.operation, str(problem))
                outputs = [_placeholder(tensor, self.depth > 0) for tensor in call.outputs]
            except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
                self._problem(name, call.operation, f"tf_keras refuses it: {reason_of(error)}")
                outputs = [_placeholder(tensor, self.depth > 0) for tensor in call.outputs]
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

        if is_expanded(call.operation):
            return self._expand(call, bridged, name, frozen)
        if function := own_activation(call.operation):
            with linear_activation(call.operation):
                [output] = self._call_operation(call, bridged, name, path, frozen)
            return self._activate(call, function, output, name)
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
            layer_name = self.names.take(layer.name, path, with_path=self.depth > 0)
            values = self._map_structure(parameters(layer), bridged)
            values = without_none(layer, values, call.outputs[0], self.batch)
            outputs = tf.nest.flatten(translate_operation(layer, args, kwargs, layer_name, values))
            self._record(name, layers_between(outputs, [*tf.nest.flatten((args, kwargs)), *bridged.values()]))
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

    def _expand(self, call: Call, bridged: dict[int, Any], name: str, frozen: bool) -> list[Any]:
        """Translate what the `call` of a layer without a translation does."""
        layer, bridged = call.operation, dict(bridged)
        call = with_symbolic_constants(
            call, lambda constant: self._constant(self._map_structure(constant, bridged)), bridged
        )
        self.expansions.append(call)
        self.expanded_nodes.append(nodes_of(layer))
        expansion = expand(call, bridged, is_nested=self.depth > 0)
        self.expansions.append(expansion)
        inner = {id(tensor): bridged[id(outer)] for outer, tensor in expansion.inputs}
        used = {id(leaf) for item in expansion.graph.calls for leaf in expansion.graph.flat((item.args, item.kwargs))}
        used |= set(map(id, expansion.outputs))
        for tensor, variable in expansion.weights:
            if id(tensor) in used:
                inner[id(tensor)] = self._weight(variable, f"{name}/{variable.name}")
        for tensor, value in expansion.constants:
            if id(tensor) in used:
                inner[id(tensor)] = self._constant(self._map_structure(value, inner))
        masks = {id(tensor): inner[id(mask)] for tensor, mask in expansion.masks}
        if id(layer) in self.called_repeatedly:
            self.called_repeatedly |= {id(item.operation) for item in expansion.graph.calls}
        self.depth += 1
        frozen = frozen or (call.training is False and not is_default_training(call))
        self._run(expansion.graph, inner, f"{name}/", frozen, masks)
        outputs = [self._constant(self._map_structure(output, inner)) for output in expansion.outputs]
        self.depth -= 1
        if expansion.differs_in_training:
            self.rebuilt.notes.append(
                f"{name} computes something else if training is True, which is left out: the translation always "
                "computes what it does in inference"
            )
        inner_names = [names for path, names in self.rebuilt.layer_map.items() if path.startswith(f"{name}/")]
        self.rebuilt.layer_map[name] = list(dict.fromkeys(itertools.chain(*inner_names)))
        return outputs

    def _activate(self, call: Call, function: Any, output: Any, name: str) -> list[Any]:
        """Translate an activation function of the user like the `call` of a layer."""
        layer = import_keras().layers.Activation(function, name="activation")
        activation = Call(operation=layer, args=call.outputs, kwargs={}, training=None, outputs=call.outputs)
        self.expansions.append(activation)
        outputs = self._expand(activation, {id(call.outputs[0]): output}, f"{name}/activation", frozen=False)
        self.rebuilt.layer_map[name] += self.rebuilt.layer_map[f"{name}/activation"]
        return outputs

    def _weight(self, variable: Any, path: str) -> Any:
        """Return the tensor of a variable that an operation reads."""
        if id(variable) not in self.weights:
            dtype = "float32" if variable.dtype in OTHER_FLOATS else variable.dtype
            name = self.names.take(path, "", with_path=True)
            built = tfq_layer_classes().Weight(variable.shape, name=name, dtype=dtype, trainable=variable.trainable)
            self.weights[id(variable)] = built(self.batch)
            translation = Translation(layers=(built,))
            owner = _OwnWeight([variable])
            self.rebuilt.by_layer[id(variable)] = (owner, BuiltLayer(path, translation, frozen=False))
            self._record(path, [built])
        return self.weights[id(variable)]

    def _constant(self, value: Any) -> Any:
        """Return a tensor for a constant of an expanded layer; a tensor is returned as it is."""
        if is_graph_tensor(value):
            return value
        value = value if isinstance(value, BatchConstant) else np.asarray(value)
        return constant_tensor(value, self.batch, self.names.take("constant", "", with_path=True))

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
            is_repeated = id(layer) in self.called_repeatedly
            is_one = self.single_layers or (is_repeated and not self.splits_repeated)
            translation = self._translate(layer, None if is_one else arguments, name, path, frozen)
            self.split_repeated |= is_repeated and translation.call is not None
            built = BuiltLayer(path=name, translation=translation, frozen=frozen)
            self.rebuilt.by_layer[id(layer)] = (layer, built)
        self._record(name, built.translation.layers)
        return built

    def _translate(self, layer: Any, arguments: Any, name: str, path: str, frozen: bool) -> Translation:
        def note(sentence: str) -> None:
            self.rebuilt.notes.append(f"{name} {sentence}")

        unique_name = self.names.take(layer.name, path, with_path=self.depth > 0)
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


def _needed(graph: Graph) -> list[Call]:
    """Return the calls that the outputs depend on, in execution order.

    The graph of Keras 3 also has calls that only compute masks. A layer that is expanded may need them.
    """
    required = {id(tensor) for tensor in graph.flat(graph.output_structure)}
    needed = []
    for call in reversed(graph.calls):
        if any(id(tensor) in required for tensor in call.outputs):
            needed.append(call)
            required |= {id(leaf) for leaf in graph.flat((call.args, call.kwargs))}
            if is_expanded(call.operation):
                required |= set(map(id, masks_of(call)))
    return needed[::-1]


def _placeholder(tensor: Any, is_expanded: bool) -> Any:
    """Return a symbolic tensor instead of an output that could not be built, so that all problems are found at once.

    is_expanded: whether the batch size of the tensor is that of an expansion.
    """
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    shape = tuple(tensor.shape)
    batch_size = shape[0] if shape and not is_expanded else None
    return import_tf_keras().Input(shape=shape[1:], batch_size=batch_size, dtype=dtype)

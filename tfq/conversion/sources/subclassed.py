# SPDX-License-Identifier: Apache-2.0
"""A Keras model whose class overrides `call`: the structure of its inputs, and its trace.

Such a model has no graph, so its inputs are those of its last call or build, of `conversion.input_shapes`, or of the
data. Private symbols, read in keras 3.15.1 and tf_keras 2.21.0: `Layer._build_shapes_dict` (Keras 3: the shapes that
`build` was called with), `Layer._build_input_shape` (tf_keras), `Layer._flatten_layers`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfq.config.input_shapes import FIELD, InputShape
from tfq.conversion.sources.inputs import ExampleShapes, FixedInput, Shape, SourceInput
from tfq.conversion.sources.keras_models import KerasSource
from tfq.conversion.sources.structures import leaf_names, leaves_of, mapped, packed
from tfq.errors import InputError, warn
from tfq.keras_bridge import import_keras, import_tf_keras, model_kind
from tfq.progress import stage

_Parameter = inspect.Parameter


class SubclassedModel(KerasSource):
    """The inputs of a subclassed model, and how to call it with them."""

    def __init__(self, model: Any, written: Sequence[InputShape], examples: ExampleShapes) -> None:
        """Find the structure of the inputs.

        Args:
            model: A subclassed model of either Keras, or a Sequential model that was never built.
            written: The parsed `conversion.input_shapes`.
            examples: The representative data, read only if nothing else says what the inputs are.

        Raises:
            InputError: Nothing says what the inputs are.
        """
        self.model = model
        self._structures = self._structures_of(written, examples)
        leaves = [leaf for structure in self._structures.values() for leaf in leaves_of(structure)]
        names = leaf_names(self._structures)
        super().__init__(
            model,
            [
                SourceInput(name=name, shape=leaf.shape, dtype=leaf.dtype)
                for name, leaf in zip(names, leaves, strict=True)
            ],
        )

    def arguments(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a call of the model with these inputs: the first one, and the others by name."""
        leaves = iter(tensors)
        first, *others = [(name, packed(structure, leaves)) for name, structure in self._structures.items()]
        return [first[1]], dict(others)

    def prepare(self, inputs: Sequence[FixedInput]) -> None:
        """Create variables that do not exist yet, by calling the model once with zeros."""
        import tensorflow as tf

        layers = [layer for layer in self.model._flatten_layers() if layer is not self.model]
        if self.model.built and all(layer.built for layer in layers):
            return
        zeros = [tf.zeros([size or 1 for size in item.shape], item.dtype) for item in inputs]
        self._build(lambda: self.called(zeros, inputs))

    def build_sequential(self, inputs: Sequence[FixedInput]) -> None:
        """Build a Sequential model for this shape of its input, with an open batch dimension."""
        self._build(lambda: self.model.build(tuple(inputs[0].shape)))

    def _build(self, build: Callable[[], object]) -> None:
        had_weights = _has_weights(self.model)
        with stage("building the model"):
            build()
        if not had_weights and _has_weights(self.model):
            warn(
                f"the model {type(self.model).__name__} was never built: its weights are their initial values. Train "
                "it, or call it once and load its weights, before it is converted"
            )

    def called(self, tensors: Sequence[Any], inputs: Sequence[FixedInput]) -> Any:
        """Return what the model returns in inference.

        Raises:
            InputError: It raises an exception.
        """
        try:
            return super().called(tensors, inputs)
        except InputError:
            raise
        except Exception as error:  # the user's code may raise anything
            accepted = ", ".join(f"{item.name} {item.dtype} {list(item.shape)}" for item in inputs)
            reason = str(error).strip().split("\n")[0][:500]
            raise InputError(
                f"{type(self.model).__name__}.call fails with the inputs {accepted} ({type(error).__name__}: "
                f"{reason}). If these are not the inputs of the model, set {FIELD} (NAME=SIZES:DTYPE)",
                field="model",
                expected="inputs that the model accepts",
                got=tuple((item.name, item.shape, item.dtype) for item in inputs),
            ) from error

    def _structures_of(self, written: Sequence[InputShape], examples: ExampleShapes) -> dict[str, Any]:
        """Return {argument of call: structure of leaves}."""
        parameters = _required(self.model)
        recorded = _recorded(self.model)
        missing = [name for name in parameters if name not in recorded]
        if recorded and not missing:
            return recorded
        provided = {}
        if written and not recorded:
            provided = _by_parameter(parameters, _structure_of_written(written))
        elif written and {item.name for item in written} >= set(missing):
            provided = {name: SourceInput(name=name) for name in missing}
        if not provided and examples.available:
            provided = _by_parameter(parameters, mapped(examples.first(parameters), lambda array: SourceInput(name="")))
        arguments = {name: recorded.get(name, provided.get(name)) for name in parameters}
        unknown = [name for name, value in arguments.items() if value is None]
        if unknown:
            raise InputError(
                f"the model {type(self.model).__name__} overrides call, and nothing says what the shape of its input "
                f"{unknown[0]!r} is. Set {FIELD}={unknown[0]}=SIZES (such as image=32x32x3, without the batch), call "
                "the model once, or pass a representative_dataset",
                field=FIELD,
                expected="the shape of each input",
                got=tuple(unknown),
                limit="unknown-inputs",
            )
        return arguments


def _has_weights(model: Any) -> bool:
    try:
        return bool(model.weights)
    except ValueError:  # a Sequential of tf_keras that was never built
        return False


def is_subclassed(model: Any) -> bool:
    """Check whether a Keras model has no graph of layers: its class overrides `call`, or it was never built."""
    try:
        return not (model.inputs and model.outputs)
    except (AttributeError, ValueError):
        return True


def is_sequential(model: Any) -> bool:
    """Check whether a model is a Sequential of either Keras with the `call` of Sequential."""
    module = import_keras() if model_kind(model) == "keras" else import_tf_keras()
    return isinstance(model, module.Sequential) and type(model).call is module.Sequential.call


def _parameters(model: Any) -> list[_Parameter]:
    """Return the parameters of `call` that can be inputs.

    Raises:
        InputError: There are none.
    """
    parameters = [
        parameter
        for name, parameter in inspect.signature(model.call).parameters.items()
        if name != "training" and parameter.kind not in (_Parameter.VAR_POSITIONAL, _Parameter.VAR_KEYWORD)
    ]
    if not parameters:
        raise InputError(
            f"{type(model).__name__}.call has no named argument for an input. Write call(self, x), or call(self, a, b) "
            "for several inputs",
            field="model",
            expected="a named argument",
            got=str(inspect.signature(model.call)),
            limit="unnamed-arguments",
        )
    return parameters


def _required(model: Any) -> list[str]:
    """Return the names of the required arguments of `call`; the first one counts even if it has a default."""
    parameters = _parameters(model)
    return [item.name for item in parameters if item is parameters[0] or item.default is _Parameter.empty]


def _recorded(model: Any) -> dict[str, Any]:
    """Return {argument: structure of leaves} of the model's first call or build; arguments may be missing."""
    names = [parameter.name for parameter in _parameters(model)]
    if model_kind(model) == "tf_keras":
        spec = model.save_spec()
        if spec is not None:
            arguments = dict(zip(names, spec[0], strict=False)) | dict(spec[1])
            results = {name: mapped(arguments[name], _leaf_of_spec) for name in names if name in arguments}
            return {name: value for name, value in results.items() if leaves_of(value)}
        shapes = {names[0]: model._build_input_shape} if model._build_input_shape is not None else {}
    else:
        built = getattr(model, "_build_shapes_dict", None) or {}
        named = {name.removesuffix("_shape"): value for name, value in built.items()}
        shapes = {name: named[name] for name in names if name in named}
        if not shapes and len(named) == 1:  # the default `build` has the argument `input_shape`
            shapes = {names[0]: next(iter(named.values()))}
    return {name: _leaves_of_shape(value) for name, value in shapes.items() if value is not None}


def _leaf_of_spec(spec: Any) -> SourceInput | None:
    if not hasattr(spec, "shape"):  # an argument that is not a tensor, such as True
        return None
    shape = None if spec.shape.rank is None else _open_batch(spec.shape.as_list())
    return SourceInput(name="", shape=shape, dtype=spec.dtype.name)


def _leaves_of_shape(shape: Any) -> Any:
    """Return a structure of shapes as a structure of leaves."""
    if hasattr(shape, "as_list"):
        return SourceInput(name="", shape=None if shape.rank is None else _open_batch(shape.as_list()))
    if isinstance(shape, Mapping):
        return {name: _leaves_of_shape(value) for name, value in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return SourceInput(name="", shape=_open_batch(shape))
    return [_leaves_of_shape(value) for value in shape]


def _open_batch(shape: Sequence[int | None]) -> Shape:
    return (None, *shape[1:]) if len(shape) else ()


def _structure_of_written(written: Sequence[InputShape]) -> Any:
    if len(written) == 1 and not written[0].name:
        return SourceInput(name="")
    if not written[0].name:
        return [SourceInput(name="") for _ in written]
    return {item.name: SourceInput(name=item.name) for item in written}


def _by_parameter(parameters: Sequence[str], structure: Any) -> dict[str, Any]:
    """Return {argument of call: structure}.

    {name: leaf} is assigned by name if its names are those of the arguments, and is a dict input otherwise. A list is
    assigned in order if `call` has several arguments. An empty result means that the structure does not fit.
    """
    if isinstance(structure, Mapping):
        if set(structure) == set(parameters):
            return {name: structure[name] for name in parameters}
        flat = [f"{parameters[0]}_{index}" for index in range(len(structure))]
        if list(structure) == flat:
            return {parameters[0]: list(structure.values())} if len(parameters) == 1 else {}
        return {parameters[0]: dict(structure)} if len(parameters) == 1 else {}
    if isinstance(structure, (list, tuple)):
        values = list(structure)
        if len(values) == len(parameters):
            return dict(zip(parameters, values, strict=True))
        return {parameters[0]: values} if len(parameters) == 1 else {}
    return {parameters[0]: structure} if len(parameters) == 1 and structure is not None else {}

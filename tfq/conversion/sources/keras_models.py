# SPDX-License-Identifier: Apache-2.0
"""Keras models as sources: their inference function, and the inputs and outputs of functional models."""

from collections.abc import Callable, Sequence
from typing import Any

from tfq.conversion.sources.inputs import FixedInput, SourceInput, numeric
from tfq.conversion.sources.structures import leaves_of, output_names
from tfq.errors import InputError
from tfq.keras_bridge import copies, model_kind, precision
from tfq.keras_bridge.walk import all_layers
from tfq.typing import TensorFlowFunction


class KerasSource:
    """Base of the sources with a Keras model.

    Attributes:
        model: The model.
        inputs: Its inputs.
    """

    is_keras = True

    def __init__(self, model: Any, inputs: Sequence[SourceInput]) -> None:
        """Keep the model, which must outlive its concrete function."""
        self.model, self.inputs = model, tuple(inputs)

    @property
    def layer_names(self) -> dict[str, str]:
        """The user's names of the layers by their names in the graph."""
        return copies.layer_names(self.model)

    def arguments(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a call of the model with these inputs: by position and by name."""
        raise NotImplementedError

    def prepare(self, inputs: Sequence[FixedInput]) -> None:
        """Create what does not exist yet."""

    def called(self, tensors: Sequence[Any], inputs: Sequence[FixedInput]) -> Any:
        """Return what the model returns in inference."""
        positional, named = self.arguments(tensors)
        return self.model(*positional, **named, training=False)

    def output_names(self, outputs: Any) -> tuple[str, ...]:
        """Return the names of the outputs of a call."""
        return output_names(outputs)

    @property
    def variables(self) -> dict[str, list[Any]]:
        """Layer -> its TensorFlow variables. A variable belongs to the innermost layer that has it."""
        owner: dict[int, tuple[str, Any]] = {}
        results: dict[str, list[Any]] = {}
        for layer in all_layers(self.model):
            results.setdefault(copies.own_name(layer), [])
            for variable in getattr(layer, "variables", ()):
                variable = getattr(variable, "value", variable) if model_kind(self.model) == "keras" else variable
                owner[id(variable)] = (copies.own_name(layer), variable)
        for name, variable in owner.values():
            results[name].append(variable)
        return results

    def _in_float32(self, concrete: Callable[[], TensorFlowFunction]) -> TensorFlowFunction:
        """Return the concrete function, with layers that compute in float32.

        If the model does not run so, for example because it adds a float16 constant, its layers compute in their own
        types. `in_float32` then changes the types in the graph, but constants stay rounded.
        """
        import tensorflow as tf

        if not precision.layers_not_in_float32(self.model):
            return concrete()
        try:
            with precision.compute_in_float32(self.model):
                return concrete()
        except (TypeError, ValueError, InputError, tf.errors.InvalidArgumentError):
            return concrete()

    def function(self, inputs: Sequence[FixedInput]) -> tuple[TensorFlowFunction, tuple[str, ...]]:
        """Return the concrete function of the inference with these inputs, and the names of its outputs."""
        import tensorflow as tf

        names: tuple[str, ...] = ()

        def infer(*tensors: Any) -> list[Any]:
            nonlocal names
            structure = self.called(tensors, inputs)
            outputs = leaves_of(structure)
            names = self.output_names(structure)
            return [_tensor(value, name) for value, name in zip(outputs, names, strict=True)]

        specs = [tf.TensorSpec(item.shape, float32_for_floats(item.dtype), identifier(item.name)) for item in inputs]
        function = self._in_float32(
            # No autograph, because Keras layers apply it themselves. The new function has its own cache, so the user's
            # tf.functions are not affected.
            lambda: tf.function(infer, autograph=False).get_concrete_function(*specs)
        )
        if not names:
            raise InputError(
                f"the model {type(self.model).__name__} returns no tensor, expected at least one output",
                field="model",
                expected="an output",
                got=None,
            )
        return function, names


class FunctionalModel(KerasSource):
    """The inputs of a functional or built Sequential model, and how to call it with them."""

    def __init__(self, model: Any) -> None:
        """Read the symbolic inputs and outputs of a model."""
        import tensorflow as tf

        self._structure = _input_structure(model)
        tensors, outputs = tf.nest.flatten(model.inputs), tf.nest.flatten(model.outputs)
        self._output_names = copies.output_names(model, outputs)
        names = copies.input_names(model, self._structure, tensors)
        super().__init__(
            model,
            [
                SourceInput(
                    name=name,
                    shape=tuple(tensor.shape),
                    dtype=numeric(name, tf.as_dtype(tensor.dtype).name),
                    declared=True,
                )
                for name, tensor in zip(names, tensors, strict=True)
            ],
        )

    def arguments(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a call of the model with these inputs: by position and by name."""
        import tensorflow as tf

        return [tf.nest.pack_sequence_as(self._structure, list(tensors))], {}

    def output_names(self, outputs: Any) -> tuple[str, ...]:
        """Return the names of the outputs of a call."""
        if len(leaves_of(outputs)) != len(self._output_names):  # the class overrides `call`
            return output_names(outputs)
        return self._output_names


def _tensor(value: Any, name: str) -> Any:
    """Return an output as a dense tensor; numbers and arrays become constants, other float types float32."""
    import tensorflow as tf

    try:
        tensor = tf.convert_to_tensor(value)
        return tf.cast(tensor, float32_for_floats(tensor.dtype))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the output {name!r} of the model is a {type(value).__name__}, expected a dense tensor",
            field="model",
            expected="a tensor",
            got=type(value).__name__,
            limit="output-not-dense",
        ) from error


def float32_for_floats(dtype: Any) -> Any:
    """Return tf.float32 for a float dtype, otherwise the tf.DType of `dtype`."""
    import tensorflow as tf

    dtype = tf.as_dtype(dtype)
    return tf.float32 if dtype.is_floating else dtype


def identifier(name: str) -> str:
    """Return a name without characters that TensorFlow does not accept in the name of an argument."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _input_structure(model: Any) -> Any:
    """Return the structure of the model's inputs: a symbolic tensor, or a list or dict of them."""
    try:
        return model.input
    except (AttributeError, ValueError):  # a Sequential of Keras 3 that was never called as a layer
        return model.inputs[0] if len(model.inputs) == 1 else list(model.inputs)

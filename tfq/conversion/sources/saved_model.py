# SPDX-License-Identifier: Apache-2.0
"""A SavedModel without a Keras config: the function of one of its signatures."""

import itertools
from collections.abc import Sequence
from typing import Any

from tfq.conversion.sources.inputs import FixedInput, SourceInput, numeric
from tfq.conversion.sources.keras_models import float32_for_floats, identifier
from tfq.errors import InputError
from tfq.keras_bridge import SavedModel
from tfq.typing import TensorFlowFunction

# Keras 3 opens the scope of a layer twice, so that TensorFlow adds a number to its name.
_KERAS_3_SUFFIX = "_1"


class SavedModelSource:
    """The inputs of a signature, and its function."""

    is_keras = False

    def __init__(self, model: SavedModel, signature: str) -> None:
        """Read the graph of a signature; nothing in it runs.

        Raises:
            InputError: There is no such signature, or its graph contains ops that tfq refuses.
        """
        import tensorflow as tf

        self.model = model
        self._signature = model.signature(signature)
        self.inputs = tuple(_input(name, tensor) for name, tensor in self._signature.inputs.items())
        self._variables = {name: tf.Variable(value, name=name) for name, value in self._signature.variables.items()}

    @property
    def layer_names(self) -> dict[str, str]:
        """The names of the scopes below the model's scope, which are Keras layers if it was a Keras model."""
        graph: Any = self._signature.graph_def
        bodies = [function.node_def for function in graph.library.function]
        paths = [node.name.split("/")[:-1] for body in bodies for node in body]
        paths = [path for path in paths if path]
        prefix = _shared_start(paths)
        names = list(dict.fromkeys(path[len(prefix)] for path in paths if len(path) > len(prefix))) or prefix[-1:]
        if names and all(name.endswith(_KERAS_3_SUFFIX) for name in names):
            names = [name.removesuffix(_KERAS_3_SUFFIX) for name in names]
        return {name: name for name in names}

    @property
    def variables(self) -> dict[str, list[Any]]:
        """The TensorFlow variables, without layers."""
        return {"": list(self._variables.values())}

    def arguments(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a call: all inputs by name."""
        return [], dict(zip(self._signature.inputs, tensors, strict=True))

    def prepare(self, inputs: Sequence[FixedInput]) -> None:
        """Do nothing: all variables exist."""

    def function(self, inputs: Sequence[FixedInput]) -> tuple[TensorFlowFunction, tuple[str, ...]]:
        """Return the concrete function of the signature with these inputs, and the names of its outputs."""
        import tensorflow as tf

        graph_def: Any = self._signature.graph_def
        input_infos: list[Any] = list(self._signature.inputs.values())
        output_infos: list[Any] = list(self._signature.outputs.values())
        used = {tensor for node in graph_def.node for tensor in node.input}

        def infer(*tensors: Any) -> list[Any]:
            graph = tf.compat.v1.get_default_graph()
            places = {
                info.name: tf.cast(tensor, tf.as_dtype(info.dtype))
                for info, tensor in zip(input_infos, tensors, strict=True)
            }
            for name, variable in self._variables.items():
                graph.watch_variable(variable)
                places[f"{name}:0"] = graph.capture(variable.handle)
            replaced = {name: tensor for name, tensor in places.items() if {name, name.removesuffix(":0")} & used}
            names = [info.name for info in output_infos]
            computed = iter(
                tf.graph_util.import_graph_def(
                    graph_def,
                    input_map=replaced,
                    return_elements=[name for name in names if name not in places],
                    name="",
                )
            )
            outputs = [tf.identity(places[name]) if name in places else next(computed) for name in names]
            return [tf.cast(tensor, float32_for_floats(tensor.dtype)) for tensor in outputs]

        specs = [tf.TensorSpec(item.shape, float32_for_floats(item.dtype), identifier(item.name)) for item in inputs]
        try:
            function = tf.function(infer, autograph=False).get_concrete_function(*specs)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise InputError(
                f"{self.model.path}: the graph of the signature {self._signature.name!r} does not accept the inputs "
                f"{', '.join(f'{item.name} {list(item.shape)}' for item in inputs)} ({str(error)[:500]})",
                field="model",
                expected="inputs that the model accepts",
                got=tuple((item.name, item.shape) for item in inputs),
            ) from error
        return function, tuple(self._signature.outputs)


def _shared_start(paths: Sequence[list[str]]) -> list[str]:
    """Return the longest list that all paths start with."""
    if not paths:
        return []
    first, last = min(paths), max(paths)
    pairs = zip(first, last, strict=False)
    return first[: sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))]


def _input(name: str, tensor: Any) -> SourceInput:
    import tensorflow as tf

    dtype = numeric(name, tf.as_dtype(tensor.dtype).name)
    shape = tf.TensorShape(tensor.tensor_shape)
    sizes = None if shape.rank is None else tuple(shape.as_list())
    return SourceInput(name=name, shape=sizes, dtype=dtype, declared=True)

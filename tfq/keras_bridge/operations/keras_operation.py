# SPDX-License-Identifier: Apache-2.0
"""The tf_keras layer for operations of Keras 3 that no ordinary tf_keras layer computes.

It calls Keras 3's own implementation, which consists of TensorFlow ops on the TensorFlow backend. Therefore it computes
the same function for every operation, and lowers to the same TFLite ops as the Keras 3 model.

Private symbols: the operation classes in keras.src.ops.{core,einops,image,linalg,math,nn,numpy}, which store their
constructor's arguments in `get_config()` or as attributes of the same names, read in keras 3.15.1. Files that Keras 3
saves use the same module and class names.
"""

import functools
import importlib
import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.errors import InputError
from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.loading import custom_objects
from tfq.keras_bridge.operations.data import BatchConstant, decode, encode, has_batch_size
from tfq.keras_bridge.untranslatable import Untranslatable


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an operation.

    Attributes:
        values: The constructor's arguments of the operation and the arguments of its call, by name.
        name: The name for the layer.
    """

    values: dict[str, Any]
    name: str

    def __getitem__(self, name: str) -> Any:
        """Return the value of an argument."""
        return self.values[name]

    @property
    def layers(self) -> Any:
        """The module `tf_keras.layers`."""
        return import_tf_keras().layers

    def is_float(self, name: str) -> bool:
        """Check whether an argument is a tensor of the graph with a float dtype."""
        value = self.values[name]
        return is_graph_tensor(value) and value.dtype.is_floating

    def rank(self, name: str) -> int:
        """Return the rank of a tensor; -1 if it is unknown."""
        rank = self.values[name].shape.rank
        return -1 if rank is None else rank

    def sizes(self, name: str) -> list[int | None]:
        """Return the shape of a tensor; None for an unknown size."""
        return list(self.values[name].shape)


# The result of a translation: a tf_keras layer and the argument of its call; None if no ordinary layer is equivalent.
LayerCall = tuple[Any, Any] | None


def scalar_constant(value: Any) -> float | None:
    """Return the value of a finite scalar constant, and None for every other value."""
    if isinstance(value, bool) or is_graph_tensor(value) or callable(getattr(value, "assign", None)):
        return None
    if isinstance(value, (int, float, np.ndarray, np.number)) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.ndim == 0 and array.dtype.kind in "iuf" and math.isfinite(array):
            return float(array)
    return None


def axes_of(axis: Any, rank: int) -> tuple[int, ...] | None:
    """Return normalized axes; None if they are not integers or the rank is unknown."""
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if rank < 1 or not all(isinstance(item, (int, np.integer)) for item in axes):
        return None
    return tuple(int(item) % rank for item in axes)


_REFUSED = custom_objects.REFUSED_OPERATIONS | {"Operation"}
# Stands for the tensors of a graph while the parameters of an operation are checked.
_BATCHES_OF_ONE = [np.zeros(1)] * 4096
_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def operation_kind(operation: Any) -> str:
    """Return the module and class of an operation of Keras 3 as "numpy.Add".

    Raises:
        Untranslatable: It is not part of Keras, or it runs Python functions (Map, Scan, Cond ...).
    """
    kind = type(operation)
    if not custom_objects.OPERATION_MODULES.fullmatch(kind.__module__):
        raise Untranslatable(
            f"the operation {kind.__module__}.{kind.__qualname__} is not part of Keras. Write it as a Keras layer, and "
            "register a tfq.BridgedLayer for that"
        )
    if kind.__name__ in _REFUSED:
        raise Untranslatable(
            f"the operation {kind.__name__} runs Python functions on Keras 3 tensors. Write it as a Keras layer, and "
            "register a tfq.BridgedLayer for that"
        )
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def parameters(operation: Any) -> dict[str, Any]:
    """Return the constructor's arguments of an operation except its name; every float dtype becomes float32.

    Raises:
        Untranslatable: The operation does not store one of them, or is not one that tfq translates.
    """
    operation_kind(operation)
    names = [
        name
        for name, parameter in inspect.signature(type(operation).__init__).parameters.items()
        if name not in ("self", "name") and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    # Attributes override the config: they contain arrays, which a config does not, and current settings (data_format).
    try:
        stored = {**operation.get_config(), **vars(operation)}
    except NotImplementedError:
        stored = vars(operation)
    missing = [name for name in names if name not in stored]
    if missing:
        raise Untranslatable(
            f"the operation {type(operation).__name__} does not store its {', '.join(missing)}. Use a layer instead"
        )
    values = {name: stored[name] for name in names}
    if values.get("dtype") is not None:
        dtype = import_keras().backend.standardize_dtype(values["dtype"])
        values["dtype"] = "float32" if dtype in _OTHER_FLOATS else dtype
    return values


@functools.cache
def keras_operation_class() -> Any:
    """Return the class KerasOperation(operation, parameters, arguments), registered as `tfq>KerasOperation`.

    The layer is called with the list of the tensors that the arguments refer to, or with the tensor itself if there is
    only one. It does not pass on a mask, like every operation of Keras 3. Its config is validated like that of any
    file: an operation that is not part of Keras 3 raises InputError.

    `operation` is a name like "numpy.Exp" (see `operation_kind`). `parameters` is the dict of the operation's
    constructor arguments, and `arguments` is [args, kwargs] of its call, both in the format of `encode`.
    """
    import tensorflow as tf

    tf_keras = import_tf_keras()
    computed = tf.autograph.experimental.do_not_convert(_compute)

    class KerasOperation(tf_keras.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, operation: str, parameters: Any, arguments: Any, **kwargs: Any) -> None:
            # Keras 3 promotes the dtypes.
            super().__init__(**{**kwargs, "autocast": False})
            self.operation = operation
            self._parameters, self._arguments = parameters, arguments
            # Parameters that depend on the batch size are known when the layer is called.
            self._operation = _build_operation(operation, parameters, _BATCHES_OF_ONE)
            self.supports_masking = True

        # do_not_convert hides the signature, which tf_keras reads from `call`, so it is not applied to `call` itself.
        def call(self, inputs: Any) -> Any:
            built = (self.operation, self._parameters) if has_batch_size(self._parameters) else self._operation
            return computed(built, self._arguments, inputs)

        @property
        def constants(self) -> list[Any]:
            """The arguments of the call that are not tensors of the graph."""
            decoded = decode(self._arguments, _BATCHES_OF_ONE)
            leaves = tf.nest.flatten([list(decoded[0]), dict(decoded[1])])
            return [leaf for leaf in leaves if leaf is not _BATCHES_OF_ONE[0]]

        def compute_mask(self, inputs: Any, mask: Any = None) -> None:
            return None

        def get_config(self) -> dict[str, Any]:
            config = super().get_config()
            return {
                **config,
                "operation": self.operation,
                "parameters": self._parameters,
                "arguments": self._arguments,
            }

    return tf_keras.saving.register_keras_serializable(package="tfq")(KerasOperation)


def _compute(built: Any, arguments: Any, inputs: Any) -> Any:
    """Return the outputs of an operation, or of one that has to be built first from its name and parameters."""
    tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if isinstance(built, tuple):
        kind, constructor_arguments = built
        built = _build_operation(kind, constructor_arguments, tensors)
    args, kwargs = decode(arguments, tensors, _size_of)
    outputs = built.call(*args, **kwargs)
    # tf_keras cannot save named tuples.
    return tuple(outputs) if isinstance(outputs, tuple) else outputs


def operation_layer(
    kind: str, values: dict[str, Any], args: tuple, kwargs: dict[str, Any], name: str, unused: Any = None
) -> Any:
    """Return the outputs of a new KerasOperation, in the operation's structure.

    Args:
        kind: "numpy.Add".
        values: The operation's `parameters`.
        args: Positional arguments of its call, with tf_keras tensors.
        kwargs: Keyword arguments of its call, with tf_keras tensors.
        name: The name of the layer.
        unused: A tensor to call the layer with if the arguments contain none.

    Raises:
        Untranslatable: An argument is not data.
    """
    tensors: list[Any] = []

    def index_of(value: Any) -> int | None:
        if not is_graph_tensor(value):
            return None
        for index, tensor in enumerate(tensors):
            if tensor is value:
                return index
        tensors.append(value)
        return len(tensors) - 1

    def check(value: Any) -> Any:
        """Return the value; refuse a tensor that is not in a BatchSize."""
        if is_graph_tensor(value):
            raise Untranslatable("one of its parameters is a tensor of the graph. Pass a number instead")
        if isinstance(value, dict):
            return {key: check(item) for key, item in value.items()}
        return type(value)(map(check, value)) if type(value) in (list, tuple) else value

    arguments = encode((args, kwargs), index_of)
    constructor_arguments = encode(check(values), index_of)
    layer = keras_operation_class()(kind, constructor_arguments, arguments, name=name)
    tensors = tensors or [unused]
    return layer(tensors if len(tensors) > 1 else tensors[0])


def constant_tensor(value: Any, batch: Any, name: str) -> Any:
    """Return a constant as a tensor of the graph.

    Args:
        value: An array or a BatchConstant.
        batch: Any tensor of the graph, because tf_keras has no layers without inputs.
        name: The name of the layer.
    """
    row, shape = (value.row, value.shape) if isinstance(value, BatchConstant) else (value, tuple(value.shape))
    return operation_layer("numpy.BroadcastTo", {"shape": tuple(shape)}, (row,), {}, name, unused=batch)


def layer_of_tensors(kind: str, count: int, name: str) -> Any:
    """Return a KerasOperation of `kind` that is called with a list of `count` tensors, its arguments in order."""
    placeholders = tuple(object() for _ in range(count))

    def index_of(value: Any) -> int | None:
        return next((index for index, placeholder in enumerate(placeholders) if placeholder is value), None)

    return keras_operation_class()(kind, encode({}, index_of), encode((placeholders, {}), index_of), name=name)


def is_graph_tensor(value: Any) -> bool:
    """Check whether a value is a symbolic tensor of a tf_keras functional graph."""
    try:
        return bool(import_tf_keras().backend.is_keras_tensor(value))
    except ValueError:  # tf_keras raises it for every value that is not a tensor
        return False


def _size_of(tensor: Any) -> Any:
    import tensorflow as tf

    size = tensor.shape[0]
    return tf.shape(tensor)[0] if size is None else size


def _build_operation(kind: str, constructor_arguments: Any, tensors: list[Any]) -> Any:
    import_keras()
    module_part, _, name = str(kind).partition(".")
    module_name = f"keras.src.ops.{module_part}"
    if not custom_objects.OPERATION_MODULES.fullmatch(module_name) or name in _REFUSED:
        raise InputError(
            f"the file is damaged: {kind!r} is not an operation of Keras 3 that tfq runs",
            field="model",
            expected="an operation of Keras 3",
            got=kind,
        )
    module = importlib.import_module(module_name)
    built = getattr(module, name, None)
    if not inspect.isclass(built) or not issubclass(built, import_keras().Operation) or built.__module__ != module_name:
        raise InputError(
            f"Keras {import_keras().__version__} has no operation {kind!r}. Load the model with the Keras version that "
            "saved it",
            field="model",
            expected="an operation of Keras 3",
            got=kind,
        )
    values = decode(constructor_arguments, tensors, _size_of)
    if not isinstance(values, dict):
        raise InputError(
            f"the file is damaged: expected a dict as the parameters of {kind!r}, got a {type(values).__name__}",
            field="model",
            expected="a dict",
            got=type(values).__name__,
        )
    return built(**values)

# SPDX-License-Identifier: Apache-2.0
"""The tf_keras layer that computes an operation of Keras 3 where tf_keras has no layer of its own for it.

It calls Keras 3's own implementation, which on the TensorFlow backend is made of TensorFlow ops: so it is the same
function for every operation, and lowers to the same TFLite ops as the Keras 3 model does.

Private symbols: the operation classes in keras.src.ops.{core,einops,image,linalg,math,nn,numpy}, which keep what they
were made with as `get_config()` or under the names of their arguments, read in keras 3.15.1. Files that Keras 3 saves
name the same modules and classes.
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
from tfq.keras_bridge.operations.data import decode, encode
from tfq.keras_bridge.untranslatable import Untranslatable


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an operation. values: the operation's parameters and its call's arguments, by name."""

    values: dict[str, Any]
    name: str

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def layers(self) -> Any:
        return import_tf_keras().layers

    def is_float(self, name: str) -> bool:
        value = self.values[name]
        return is_graph_tensor(value) and value.dtype.is_floating

    def rank(self, name: str) -> int:
        """-1 where unknown."""
        rank = self.values[name].shape.rank
        return -1 if rank is None else rank

    def sizes(self, name: str) -> list[int | None]:
        return list(self.values[name].shape)


# What a translation gives: a tf_keras layer and what to call it with; None where no ordinary layer does it.
Made = tuple[Any, Any] | None


def number_of(value: Any) -> float | None:
    """A finite scalar constant; None for all else."""
    if isinstance(value, bool) or is_graph_tensor(value) or callable(getattr(value, "assign", None)):
        return None
    if isinstance(value, (int, float, np.ndarray, np.number)) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.ndim == 0 and array.dtype.kind in "iuf" and math.isfinite(array):
            return float(array)
    return None


def axes_of(axis: Any, rank: int) -> tuple[int, ...] | None:
    """Normalized axes; None for no number or an unknown rank."""
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if rank < 1 or not all(isinstance(item, (int, np.integer)) for item in axes):
        return None
    return tuple(int(item) % rank for item in axes)


_REFUSED = custom_objects.REFUSED_OPERATIONS | {"Operation"}
_WIDE = ("float16", "bfloat16", "float64")


def operation_kind(operation: Any) -> str:
    """ "numpy.Add": the module and class of an operation of Keras 3's own.

    Raises Untranslatable for one that the user wrote, and for one that runs Python functions (Map, Scan, Cond ...).
    """
    kind = type(operation)
    if not custom_objects.OPERATION_MODULES.fullmatch(kind.__module__):
        raise Untranslatable(
            f"{kind.__module__}.{kind.__qualname__} is an operation of your own: make it a keras Layer, and "
            "register a tfq.BridgedLayer for it"
        )
    if kind.__name__ in _REFUSED:
        raise Untranslatable(
            f"keras.ops.{kind.__name__} runs Python functions on Keras 3 tensors: write it as a keras Layer, and "
            "register a tfq.BridgedLayer for it"
        )
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def parameters(operation: Any) -> dict[str, Any]:
    """What the operation was made with, its name left out; every float dtype is float32, as it is in the whole bridge.

    Raises Untranslatable when the class does not keep one of them.
    """
    wanted = [
        name
        for name, parameter in inspect.signature(type(operation).__init__).parameters.items()
        if name not in ("self", "name") and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    # The attributes come first: they hold arrays, which a config does not, and the settings of the day (data_format).
    try:
        kept = {**operation.get_config(), **vars(operation)}
    except NotImplementedError:
        kept = vars(operation)
    missing = [name for name in wanted if name not in kept]
    if missing:
        raise Untranslatable(f"{type(operation).__name__} does not tell its {', '.join(missing)}")
    values = {name: kept[name] for name in wanted}
    if values.get("dtype") is not None:
        dtype = import_keras().backend.standardize_dtype(values["dtype"])
        values["dtype"] = "float32" if dtype in _WIDE else dtype
    return values


@functools.cache
def keras_operation_class() -> Any:
    """The class KerasOperation(operation, parameters, arguments), registered with tf_keras as `tfq>KerasOperation`.

    operation: "numpy.Exp" (`operation_kind`). parameters and arguments: as `encode` writes a dict and [args, kwargs].
    Called with the list of the tensors that the arguments number, or with the tensor itself where there is one alone.
    A mask ends at it, as at every operation of Keras 3. Its config is looked at as that of any file: a name that is
    none of Keras 3's own operations raises InputError.
    """
    import tensorflow as tf

    tf_keras = import_tf_keras()
    computed = tf.autograph.experimental.do_not_convert(_computed)

    class KerasOperation(tf_keras.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, operation: str, parameters: Any, arguments: Any, **kwargs: Any) -> None:
            # Keras 3 promotes dtypes by itself.
            super().__init__(**{**kwargs, "autocast": False})
            self.operation = operation
            self._parameters, self._arguments = parameters, arguments
            self._made = _made(operation, parameters)
            self.supports_masking = True

        # do_not_convert hides the signature, by which tf_keras tells what a layer's call takes: so not on call itself.
        def call(self, inputs: Any) -> Any:
            return computed(self._made, self._arguments, inputs)

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


def _computed(built: Any, arguments: Any, inputs: Any) -> Any:
    args, kwargs = decode(arguments, list(inputs) if isinstance(inputs, (list, tuple)) else [inputs])
    outputs = built.call(*args, **kwargs)
    # Named tuples are no structure that tf_keras saves.
    return tuple(outputs) if isinstance(outputs, tuple) else outputs


def operation_layer(kind: str, values: dict[str, Any], args: tuple, kwargs: dict[str, Any], name: str) -> Any:
    """The outputs of a new KerasOperation called `name`, as the operation nests them.

    kind: "numpy.Add". values: its `parameters`. args, kwargs: of its call, with tf_keras tensors in them.
    Raises Untranslatable when an argument is no data.
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

    def no_tensor(value: Any) -> None:
        if is_graph_tensor(value):
            raise Untranslatable("it was made with a tensor of the graph in place of a number: pass a number")

    arguments = encode((args, kwargs), index_of)
    made_with = encode(values, no_tensor)
    layer = keras_operation_class()(kind, made_with, arguments, name=name)
    return layer(tensors if len(tensors) > 1 else tensors[0])


def layer_of_tensors(kind: str, count: int, name: str) -> Any:
    """A KerasOperation of `kind` that is called with a list of `count` tensors, its arguments in their order."""
    places = tuple(object() for _ in range(count))

    def index_of(value: Any) -> int | None:
        return next((index for index, place in enumerate(places) if place is value), None)

    return keras_operation_class()(kind, encode({}, index_of), encode((places, {}), index_of), name=name)


def is_graph_tensor(value: Any) -> bool:
    """Whether it is a symbolic tensor of a tf_keras functional graph."""
    try:
        return bool(import_tf_keras().backend.is_keras_tensor(value))
    except ValueError:  # what tf_keras raises at anything that is no tensor
        return False


def _made(kind: str, made_with: Any) -> Any:
    import_keras()
    room, _, name = str(kind).partition(".")
    module_name = f"keras.src.ops.{room}"
    if not custom_objects.OPERATION_MODULES.fullmatch(module_name) or name in _REFUSED:
        raise InputError(
            f"{kind!r} is no operation of Keras 3 that tfq runs: damaged file",
            field="model",
            expected="an operation of Keras 3",
            got=kind,
        )
    module = importlib.import_module(module_name)
    built = getattr(module, name, None)
    if not inspect.isclass(built) or not issubclass(built, import_keras().Operation) or built.__module__ != module_name:
        raise InputError(
            f"Keras {import_keras().__version__} has no operation {kind!r}: load it where it was saved",
            field="model",
            expected="an operation of Keras 3",
            got=kind,
        )
    values = decode(made_with, ())
    if not isinstance(values, dict):
        raise InputError(
            f"the parameters of {kind!r} are a {type(values).__name__}, expected a dict: damaged file",
            field="model",
            expected="a dict",
            got=type(values).__name__,
        )
    return built(**values)

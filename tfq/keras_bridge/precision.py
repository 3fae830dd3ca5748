# SPDX-License-Identifier: Apache-2.0
"""Compute the layers of a float16, bfloat16, float64 or mixed precision model in float32, and restore them.

The int8 kernels and their float reference compute in float32. Mixed precision only makes the training faster: its
variables are float32 already.

Private symbols, read in keras 3.15.1 and tf_keras 2.21.0: `_dtype_policy` of a Keras 3 layer, because the public setter
adds an entry to a DTypePolicyMap, which several layers may share; `_set_dtype_policy` of a tf_keras layer; tf_keras'
AutoCastVariable, which reads a variable in the dtype in which its layer computes; `_keep_axis` of a
Normalization. The mixed models of test_mixed_precision.py fail if one of them changes.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError, warn
from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.config import OTHER_FLOATS
from tfq.keras_bridge.walk import all_layers, is_model
from tfq.keras_bridge.weights import array_of

# Layers of tf_keras that read their variables in float32 in every mixed policy.
_FLOAT32_VARIABLES = ("BatchNormalization", "SyncBatchNormalization", "LayerNormalization", "Embedding")


def layers_by_precision(model: Any) -> dict[str, list[str]]:
    """Return policy ("mixed_float16", "float64") -> the names of the layers that do not compute in float32.

    Models and input layers, which compute nothing, are left out.
    """
    results: dict[str, list[str]] = {}
    for layer in _layers_in_other_floats(model):
        if not is_model(layer) and type(layer).__name__ != "InputLayer":
            results.setdefault(_policy_name(layer), []).append(layer.name)
    return results


def layers_not_in_float32(model: Any) -> list[str]:
    """Return the names of a model's layers, and of inner models, that compute in another float dtype than float32."""
    return [layer.name for layer in _layers_in_other_floats(model)]


def _layers_in_other_floats(model: Any) -> list[Any]:
    return [layer for layer in all_layers(model) if getattr(layer, "compute_dtype", None) in OTHER_FLOATS]


def _policy_name(layer: Any) -> str:
    variable_dtype, compute_dtype = getattr(layer, "variable_dtype", None), layer.compute_dtype
    return str(compute_dtype) if variable_dtype in (compute_dtype, None) else f"mixed_{compute_dtype}"


def warn_of_float32(model: Any) -> bool:
    """Warn if layers or inputs of the model are not float32, because tfq computes in float32.

    The message is the same in each step, so that a command shows it once.

    Returns:
        Whether there are any.
    """
    by_policy = layers_by_precision(model)
    inputs = [tensor for tensor in _inputs(model) if getattr(tensor.dtype, "name", tensor.dtype) in OTHER_FLOATS]
    if not by_policy and not inputs:
        return False
    parts = []
    for policy, names in by_policy.items():
        count = f"{len(names)} layer{'' if len(names) == 1 else 's'}"
        parts.append(f"{count} with the dtype policy {policy} ({', '.join(names[:3])}{', ...' if names[3:] else ''})")
    if inputs:
        names = [f"{tensor.name.split(':')[0]} ({getattr(tensor.dtype, 'name', tensor.dtype)})" for tensor in inputs]
        parts.append(f"{', '.join(names)} as input")
    warn(
        f"model {model.name!r} has {' and '.join(parts)}. tfq computes in float32 instead, with the same weights"
        f"{'; inputs become float32' if inputs else ''}. The model itself is not changed"
    )
    return True


def _inputs(model: Any) -> list[Any]:
    import tensorflow as tf

    try:
        return list(tf.nest.flatten(model.inputs or []))
    except (AttributeError, ValueError):
        return []


def config_in_float32(config: Any) -> Any:
    """Return the config of a tf_keras layer with float32 instead of other float types, also of inner layers."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and _is_other_policy(value) else config_in_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)) and not hasattr(config, "_fields"):
        items = [config_in_float32(item) for item in config]
        return tuple(items) if isinstance(config, tuple) else items
    return config


def _is_other_policy(value: Any) -> bool:
    """Check for a dtype or a policy in a config: "float16", or {"class_name": "Policy", "config": {"name": ...}}."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("name")
    return isinstance(value, str) and value.removeprefix("mixed_") in OTHER_FLOATS


def float32_inputs(model: Any) -> list[Any] | None:
    """Return new inputs for a clone of a tf_keras model, float32 instead of other float types; None if none change."""
    if not any(tensor.dtype.name in OTHER_FLOATS for tensor in _inputs(model)):
        return None
    return [
        import_tf_keras().Input(
            shape=tuple(tensor.shape)[1:],
            batch_size=tensor.shape[0],
            name=tensor.name,
            dtype="float32" if tensor.dtype.name in OTHER_FLOATS else tensor.dtype,
        )
        for tensor in _inputs(model)
    ]


def reject_quantized(model: Any) -> None:
    """Raise InputError if Keras has quantized layers of the model, or trains them in float8."""
    modes: dict[str, list[str]] = {}
    for layer in all_layers(model):
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            modes.setdefault(str(mode), []).append(layer.name)
    if modes:
        listed = "; ".join(f"{mode}: {', '.join(names)}" for mode, names in modes.items())
        raise InputError(
            f"Keras has quantized layers of the model {model.name!r} ({listed}). Pass the float model, from before "
            "model.quantize and without a quantized dtype policy: tfq quantizes it",
            field="model",
            expected="a float model",
            got=tuple(modes),
            limit="keras-quantized",
        )


@contextlib.contextmanager
def compute_in_float32(model: Any) -> Iterator[None]:
    """Make the float16, bfloat16, float64 and mixed layers of a model or layer compute in float32.

    The weights stay the same.
    """
    layers = _layers_in_other_floats(model)
    is_keras_3 = isinstance(model, import_keras().layers.Layer)
    with computing_in(layers, dict.fromkeys(map(id, layers), "float32"), is_keras_3):
        yield


@contextlib.contextmanager
def computing_in(layers: list[Any], dtypes: dict[int, str], is_keras_3: bool) -> Iterator[None]:
    """Change the dtype in which layers compute. Their variables stay, and are read in that dtype.

    Args:
        layers: Built layers of one Keras version.
        dtypes: id of a layer -> the dtype in which it computes, or the name of a policy ("mixed_float16").
        is_keras_3: Whether the layers are of Keras 3.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            policy = dtypes[id(layer)]
            if is_keras_3:
                stack.enter_context(_exact_statistics(layer))
                stack.callback(setattr, layer, "_dtype_policy", layer._dtype_policy)
                layer._dtype_policy = _keras_policy(policy, layer.variable_dtype)
            else:
                stack.enter_context(_exact_statistics(layer))
                stack.callback(layer._set_dtype_policy, layer._dtype_policy)
                if policy == "float32" or type(layer).__name__ not in _FLOAT32_VARIABLES:
                    stack.enter_context(_variables_read_in_compute_dtype(layer))
                layer._set_dtype_policy(_tf_keras_policy(policy))
        yield


@contextlib.contextmanager
def _variables_read_in_compute_dtype(layer: Any) -> Iterator[None]:
    """Wrap the variables among a tf_keras layer's attributes, so that its call reads them in its compute dtype.

    A layer that was built with a mixed policy has such wrappers already. The wrapped variables are the same objects.
    """
    import tensorflow as tf
    from tf_keras.src.mixed_precision.autocast_variable import AutoCastVariable, create_autocast_variable

    changed = {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, tf.Variable) and value.dtype.is_floating and not isinstance(value, AutoCastVariable)
    }
    try:
        for name, value in changed.items():
            layer.__dict__[name] = create_autocast_variable(value)
        yield
    finally:
        layer.__dict__.update(changed)


@contextlib.contextmanager
def _exact_statistics(layer: Any) -> Iterator[None]:
    """Replace the rounded statistics of a Normalization layer by those in float32; other layers stay."""
    if type(layer).__name__ != "Normalization" or getattr(layer, "mean", None) is None:
        yield
        return
    import tensorflow as tf

    rounded = {"mean": layer.mean, "variance": layer.variance}
    try:
        exact = map(tf.constant, full_statistics(layer))
        layer.__dict__.update(zip(rounded, exact, strict=True))
        yield
    finally:
        layer.__dict__.update(rounded)


def _tf_keras_policy(name: str) -> Any:
    return import_tf_keras().mixed_precision.Policy(name)


def _keras_policy(name: str, variable_dtype: str) -> Any:
    """Return a Keras 3 policy that computes as the policy called `name`, with variables of any dtype."""
    base: Any = import_keras().dtype_policies.DTypePolicy

    class Policy(base):
        """Compute in another dtype than the one of the existing variables."""

        @property
        def variable_dtype(self) -> str:
            return variable_dtype

    return Policy(name)


def full_statistics(layer: Any) -> tuple[NDArray, NDArray]:
    """Return the mean and the variance of a built Normalization layer of either Keras in float32.

    The layer has rounded them to the dtype in which it computes. The shape is that of `layer.mean`.
    """
    rounded = (layer.mean, layer.variance)
    if layer.compute_dtype not in OTHER_FLOATS:
        mean, variance = map(array_of, rounded)
        return mean, variance
    if layer.input_mean is None:
        exact = (array_of(layer.adapt_mean), array_of(layer.adapt_variance))
    else:
        exact = (np.asarray(layer.input_mean, np.float32), np.asarray(layer.input_variance, np.float32))
    mean, variance = (
        _as_statistics(value, tuple(tensor.shape), layer._keep_axis)
        for value, tensor in zip(exact, rounded, strict=True)
    )
    return mean, variance


def _as_statistics(value: NDArray, shape: tuple[int, ...], kept_axes: Sequence[int]) -> NDArray:
    if value.size != math.prod(shape):
        value = np.broadcast_to(value, [shape[axis] for axis in kept_axes])
    return value.reshape(shape)

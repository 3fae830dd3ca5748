# SPDX-License-Identifier: Apache-2.0
"""Activation functions of Keras 3 said in tf_keras: the ones both have, and ours for those that only Keras 3 has.

`hard_sigmoid` is in both and not the same: relu6(x + 3) / 6 in Keras 3, clip(0.2 x + 0.5, 0, 1) in tf_keras, 0.083
apart at worst. Our functions are registered under the package "tfq", so that tf_keras clones and reloads them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.untranslatable import Untranslatable

# Keras 3's name -> tf_keras' name, where the functions and their defaults are equal.
SAME = {
    **{name: name for name in ("linear", "relu", "elu", "selu", "softplus", "softsign", "sigmoid", "tanh", "softmax")},
    **{name: name for name in ("exponential", "gelu", "mish", "swish")},
    "silu": "swish",
    "celu": "elu",
    # Names that tf_keras takes without listing them: TensorFlow's own functions, with Keras 3's defaults.
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "log_softmax": "log_softmax",
}
# Of these tf_keras has a layer, which tfmot knows, and does not know the name.
LAYERS = {"relu6": ("ReLU", {"max_value": 6.0}), "leaky_relu": ("LeakyReLU", {"alpha": 0.2})}


@functools.cache
def functions() -> Mapping[str, Callable[[Any], Any]]:
    """Keras 3's activations that tf_keras lacks or has otherwise, by Keras 3's name, with Keras 3's defaults."""
    import tensorflow as tf

    def hard_sigmoid(x: Any) -> Any:
        return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def hard_silu(x: Any) -> Any:
        # In this order the converter finds its HARD_SWISH.
        return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def hard_tanh(x: Any) -> Any:
        return tf.clip_by_value(x, -1.0, 1.0)

    def log_sigmoid(x: Any) -> Any:
        return -tf.nn.softplus(-x)

    def squareplus(x: Any) -> Any:
        return (x + tf.sqrt(x * x + 4.0)) * 0.5

    def tanh_shrink(x: Any) -> Any:
        return x - tf.tanh(x)

    def soft_shrink(x: Any) -> Any:
        return tf.nn.relu(x - 0.5) - tf.nn.relu(-x - 0.5)

    def hard_shrink(x: Any) -> Any:
        return tf.where(tf.abs(x) > 0.5, x, tf.zeros_like(x))

    def sparse_plus(x: Any) -> Any:
        return tf.where(x <= -1.0, tf.zeros_like(x), tf.where(x < 1.0, 0.25 * (x + 1.0) ** 2, x))

    def sparse_sigmoid(x: Any) -> Any:
        return tf.clip_by_value(0.5 * (x + 1.0), 0.0, 1.0)

    def glu(x: Any) -> Any:
        value, gate = tf.split(x, 2, axis=-1)
        return value * tf.sigmoid(gate)

    ours: list[Callable[[Any], Any]] = [hard_sigmoid, hard_silu, hard_tanh, log_sigmoid, squareplus, tanh_shrink]
    ours += [soft_shrink, hard_shrink, sparse_plus, sparse_sigmoid, glu]
    register = import_tf_keras().utils.register_keras_serializable
    named = {function.__name__: register(package="tfq", name=function.__name__)(function) for function in ours}
    return {**named, "hard_swish": named["hard_silu"]}


def name_of(activation: Any) -> str:
    """Keras 3's name of one of its own activation functions. Raises Untranslatable when it is the user's own."""
    if activation is None:
        return "linear"
    module, name = getattr(activation, "__module__", ""), getattr(activation, "__name__", type(activation).__name__)
    if isinstance(module, str) and module.startswith("keras.src.") and (name in SAME or name in functions()):
        return name
    raise Untranslatable(
        f"its activation {module}.{name} has no equal in tf_keras: use one of Keras' own, or make it a layer and "
        "register a tfq.BridgedLayer for it"
    )


def argument_for(activation: Any) -> Any:
    """What a tf_keras layer takes as `activation=` in place of the Keras 3 function: a name, or one of `functions`."""
    name = name_of(activation)
    return SAME[name] if name in SAME else functions()[name]


def has_layer_of_its_own(activation: Any) -> bool:
    """Whether tfmot is better served by the activation as a layer behind another than as an argument of that."""
    name = name_of(activation)
    return name in LAYERS or name not in SAME


def layer_for(activation: Any, **named: Any) -> Any:
    """A tf_keras layer that computes a Keras 3 activation; one that tfmot knows where there is such a layer."""
    tf_keras, name = import_tf_keras(), name_of(activation)
    if name in LAYERS:
        kind, options = LAYERS[name]
        return getattr(tf_keras.layers, kind)(**options, **named)
    if name in SAME:
        return tf_keras.layers.Activation(SAME[name], **named)
    return activation_class()(f"tfq>{functions()[name].__name__}", **named)


@functools.cache
def activation_class() -> Any:
    """The layer class `tfq>Activation`, for the functions that are ours; asking for it registers it and them."""
    tf_keras = import_tf_keras()
    functions()
    base: Any = tf_keras.layers.Activation

    @tf_keras.utils.register_keras_serializable(package="tfq")
    class Activation(base):
        """tf_keras' own, but for its config: tf_keras 2.21 writes a registered function in a way that its .h5 loader
        does not read back; by its name it does. Called as the base is, for those who ask for a layer's kind by name."""

        def __init__(self, activation: str, **kwargs: Any) -> None:
            super().__init__(activation, **kwargs)
            self._by_name = activation

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "activation": self._by_name}

    return Activation

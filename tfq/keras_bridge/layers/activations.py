# SPDX-License-Identifier: Apache-2.0
"""Express activation functions of Keras 3 in tf_keras.

Most exist in both. tfq defines the functions that only Keras 3 has, and `hard_sigmoid`, which differs by up to 0.083:
it is relu6(x + 3) / 6 in Keras 3 and clip(0.2 x + 0.5, 0, 1) in tf_keras. tfq's functions are registered under the
package "tfq", so that tf_keras can clone and reload them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.untranslatable import Untranslatable

# Keras 3's name -> tf_keras' name of functions that are equal, including their defaults.
SAME_FUNCTIONS = {
    **{name: name for name in ("linear", "relu", "elu", "selu", "softplus", "softsign", "sigmoid", "tanh", "softmax")},
    **{name: name for name in ("exponential", "gelu", "mish", "swish")},
    "silu": "swish",
    "celu": "elu",
    # TensorFlow's functions, with Keras 3's defaults. tf_keras accepts their names without documenting them.
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "log_softmax": "log_softmax",
}
# Functions that become a tf_keras layer, because tfmot supports the layer but not the function's name.
LAYER_OPTIONS = {"relu6": ("ReLU", {"max_value": 6.0}), "leaky_relu": ("LeakyReLU", {"alpha": 0.2})}


@functools.cache
def tfq_functions() -> Mapping[str, Callable[[Any], Any]]:
    """Return Keras 3's activations that tf_keras lacks or defines differently, by Keras 3's name, with its defaults."""
    import tensorflow as tf

    def hard_sigmoid(x: Any) -> Any:
        return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def hard_silu(x: Any) -> Any:
        # The converter recognizes HARD_SWISH only in this order of operations.
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

    defined: list[Callable[[Any], Any]] = [hard_sigmoid, hard_silu, hard_tanh, log_sigmoid, squareplus, tanh_shrink]
    defined += [soft_shrink, hard_shrink, sparse_plus, sparse_sigmoid, glu]
    register = import_tf_keras().utils.register_keras_serializable
    named = {function.__name__: register(package="tfq", name=function.__name__)(function) for function in defined}
    return {**named, "hard_swish": named["hard_silu"]}


def keras_name(activation: Any) -> str:
    """Return Keras 3's name of one of its activation functions.

    Raises:
        Untranslatable: The function is not part of Keras 3.
    """
    if activation is None:
        return "linear"
    module, name = getattr(activation, "__module__", ""), getattr(activation, "__name__", type(activation).__name__)
    if (
        isinstance(module, str)
        and module.startswith("keras.src.")
        and (name in SAME_FUNCTIONS or name in tfq_functions())
    ):
        return name
    raise Untranslatable(
        f"its activation {module}.{name} has no equivalent in tf_keras. Use an activation of Keras, or write it as a "
        "layer and register a tfq.BridgedLayer for that"
    )


def is_known(activation: Any) -> bool:
    """Check whether an activation function is one of Keras 3."""
    try:
        keras_name(activation)
    except Untranslatable:
        return False
    return True


def activation_argument(activation: Any) -> Any:
    """Return the value of a tf_keras layer's `activation=` for a Keras 3 function: a name or a function of tfq."""
    name = keras_name(activation)
    return SAME_FUNCTIONS[name] if name in SAME_FUNCTIONS else tfq_functions()[name]


def needs_separate_layer(activation: Any) -> bool:
    """Check whether tfmot only supports the activation as a separate layer, not as an argument of another layer."""
    name = keras_name(activation)
    return name in LAYER_OPTIONS or name not in SAME_FUNCTIONS


def activation_layer(activation: Any, **named: Any) -> Any:
    """Return a tf_keras layer that computes a Keras 3 activation; one that tfmot supports if there is one."""
    tf_keras, name = import_tf_keras(), keras_name(activation)
    if name in LAYER_OPTIONS:
        kind, options = LAYER_OPTIONS[name]
        return getattr(tf_keras.layers, kind)(**options, **named)
    if name in SAME_FUNCTIONS:
        return tf_keras.layers.Activation(SAME_FUNCTIONS[name], **named)
    return activation_class()(f"tfq>{tfq_functions()[name].__name__}", **named)


@functools.cache
def activation_class() -> Any:
    """Return the layer class `tfq>Activation` for `tfq_functions`, and register the class and the functions."""
    tf_keras = import_tf_keras()
    tfq_functions()
    base: Any = tf_keras.layers.Activation

    @tf_keras.utils.register_keras_serializable(package="tfq")
    class Activation(base):
        """tf_keras' Activation, with the function's name in its config.

        tf_keras 2.21 writes a registered function in a form that its .h5 loader cannot read, but that loader can read a
        name. The class has the name of its base class for code that compares the class names of layers.
        """

        def __init__(self, activation: str, **kwargs: Any) -> None:
            super().__init__(activation, **kwargs)
            self._function_name = activation

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "activation": self._function_name}

    return Activation

# SPDX-License-Identifier: Apache-2.0
"""tf_keras layers for those of Keras 3, or of its applications, that tf_keras lacks or does not register.

Made when they are asked for, and registered under the package "tfq", so that tf_keras clones and reloads them.
"""

import functools
from types import SimpleNamespace
from typing import Any

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.layers.activations import activation_class


@functools.cache
def own_layers() -> Any:
    """A namespace of tf_keras layer classes: LayerScale, StochasticDepth, RMSNormalization."""
    import tensorflow as tf

    tf_keras = import_tf_keras()
    base: Any = tf_keras.layers.Layer
    register = tf_keras.utils.register_keras_serializable(package="tfq")

    @register
    class LayerScale(base):
        """x * gamma, a weight for each channel (last axis), which begins at `init_values`."""

        def __init__(self, init_values: float, projection_dim: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.init_values, self.projection_dim = init_values, projection_dim

        def build(self, input_shape: Any) -> None:
            begin = tf_keras.initializers.Constant(self.init_values)
            self.gamma = self.add_weight(name="gamma", shape=(self.projection_dim,), initializer=begin)
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.gamma

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "init_values": self.init_values, "projection_dim": self.projection_dim}

    @register
    class StochasticDepth(base):
        """In training a whole example is zeroed with `drop_path_rate`, else scaled up; in inference the identity."""

        def __init__(self, drop_path_rate: float, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.drop_path_rate = drop_path_rate

        def call(self, inputs: Any, training: Any = None) -> Any:
            if training is None or training is False:
                return tf.identity(inputs)
            if training is True:
                return self._dropped(inputs)
            return tf.cond(tf.cast(training, tf.bool), lambda: self._dropped(inputs), lambda: tf.identity(inputs))

        def _dropped(self, inputs: Any) -> Any:
            keep = 1.0 - self.drop_path_rate
            shape = tf.concat([tf.shape(inputs)[:1], tf.ones(inputs.shape.rank - 1, tf.int32)], 0)
            return inputs / keep * tf.floor(keep + tf.random.uniform(shape))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "drop_path_rate": self.drop_path_rate}

    @register
    class RMSNormalization(base):
        """x / sqrt(mean(x^2) + epsilon) * scale along `axis`; scale lies along the last axes, as in Keras."""

        def __init__(self, axis: Any = -1, epsilon: float = 1e-6, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.axis = [axis] if isinstance(axis, int) else sorted(axis)
            self.epsilon = epsilon
            self.supports_masking = True

        def build(self, input_shape: Any) -> None:
            shape = [input_shape[axis] for axis in self.axis]
            self.scale = self.add_weight(name="scale", shape=shape, initializer="ones")
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            power = tf.reduce_mean(tf.square(inputs), axis=self.axis, keepdims=True)
            return inputs * tf.math.rsqrt(power + self.epsilon) * self.scale

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "axis": self.axis, "epsilon": self.epsilon}

    return SimpleNamespace(LayerScale=LayerScale, StochasticDepth=StochasticDepth, RMSNormalization=RMSNormalization)


def register_own() -> None:
    """Makes tf_keras know what a file of a bridged model may name: these layers, and our activation functions."""
    own_layers()
    activation_class()

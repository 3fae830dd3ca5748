# SPDX-License-Identifier: Apache-2.0
"""tf_keras layers for layers of Keras 3, or of its applications, that tf_keras lacks or does not register.

The classes are created on first use and registered under the package "tfq", so that tf_keras can clone and reload them.
"""

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.layers.activations import activation_class


@functools.cache
def tfq_layer_classes() -> Any:
    """Return a namespace of tf_keras layer classes: LayerScale, MaskedScores, PaddingMask, RMSNormalization, ..."""
    import tensorflow as tf

    tf_keras = import_tf_keras()
    base: Any = tf_keras.layers.Layer
    register = tf_keras.utils.register_keras_serializable(package="tfq")

    @register
    class LayerScale(base):
        """Compute x * gamma; gamma has a weight for each channel (last axis), initialized with `init_values`."""

        def __init__(self, init_values: float, projection_dim: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.init_values, self.projection_dim = init_values, projection_dim

        def build(self, input_shape: Any) -> None:
            initializer = tf_keras.initializers.Constant(self.init_values)
            self.gamma = self.add_weight(name="gamma", shape=(self.projection_dim,), initializer=initializer)
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.gamma

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "init_values": self.init_values, "projection_dim": self.projection_dim}

    @register
    class StochasticDepth(base):
        """Drop whole examples in training with probability `drop_path_rate`; the identity in inference.

        Examples that are not dropped are divided by 1 - drop_path_rate.
        """

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
        """Compute x / sqrt(mean(x^2) + epsilon) * scale along `axis`. The shape of scale is the sizes of these axes."""

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

    @register
    class Weight(base):
        """Return a weight of `shape`. The input is not used; tf_keras has no layers without inputs."""

        def __init__(self, shape: Any, **kwargs: Any) -> None:
            super().__init__(**{**kwargs, "autocast": False})
            self.shape = list(shape)

        def build(self, input_shape: Any) -> None:
            self.weight = self.add_weight(name="weight", shape=self.shape, dtype=self.dtype)
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return tf.convert_to_tensor(self.weight)

        def compute_mask(self, inputs: Any, mask: Any = None) -> None:
            return None

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "shape": self.shape}

    scores, weights = map(register, _masked_attention_layers())
    padding, with_mask = map(register, _mask_layers())
    return SimpleNamespace(
        LayerScale=LayerScale,
        MaskedScores=scores,
        MaskedWeights=weights,
        PaddingMask=padding,
        RMSNormalization=RMSNormalization,
        StochasticDepth=StochasticDepth,
        Weight=Weight,
        WithMask=with_mask,
    )


# The value of a masked score, as in Keras.
MASKED = -1e9


def _masked_attention_layers() -> tuple[type, type]:
    """Return the classes for the layers before and after the softmax of masked attention."""
    import tensorflow as tf

    base: Any = import_tf_keras().layers.Layer

    class _Masked(base):
        """Base class of layers that are called with [scores, *masks].

        scores: (batch, heads, queries * group_size, keys). A position is unmasked if it is non-zero in all masks.

        Args:
            causal: Whether a query cannot attend to later keys.
            constant: A mask of nested lists that broadcasts to (queries, keys).
            axes: For each of `masks`, the axis of (queries, keys) that it does not have, -1 or -2; 0 if it has both.
                With both axes a mask broadcasts to (batch, queries, keys) or to (batch, heads, queries, keys).
            group_size: The number of query heads that share a key head.
        """

        def __init__(
            self, causal: bool = False, constant: Any = None, axes: Any = (), group_size: int = 1, **kwargs: Any
        ) -> None:
            super().__init__(**kwargs)
            self.causal, self.constant, self.axes, self.group_size = causal, constant, list(axes), group_size

        def unmasked(self, scores: Any, masks: Any) -> Any:
            masks = [tf.cast(mask, tf.bool) for mask in masks]
            pairs = zip(masks, self.axes, strict=True)
            masks = [tf.expand_dims(mask, axis) if axis else mask for mask, axis in pairs]
            if self.constant is not None:
                masks.append(tf.constant(np.asarray(self.constant, bool)))
            if self.causal:
                masks.append(self._not_later(scores))
            masks = [self._broadcast(mask) for mask in masks]
            return functools.reduce(tf.logical_and, masks)

        def _not_later(self, scores: Any) -> Any:
            rows, columns = scores.shape[-2:]
            if rows is not None and columns is not None:
                return tf.constant(np.tril(np.ones((rows // self.group_size, columns), bool)))
            sizes = tf.shape(scores)
            return tf.range(sizes[-2] // self.group_size)[:, None] >= tf.range(sizes[-1])[None, :]

        def _broadcast(self, mask: Any) -> Any:
            while len(mask.shape) < 4:
                mask = tf.expand_dims(mask, 0 if len(mask.shape) < 3 else -3)
            return mask if self.group_size == 1 or mask.shape[-2] == 1 else tf.repeat(mask, self.group_size, axis=-2)

        def get_config(self) -> dict[str, Any]:
            own = ("causal", "constant", "axes", "group_size")
            return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    class MaskedScores(_Masked):
        """Return the scores, with MASKED at masked positions."""

        def call(self, inputs: Any) -> Any:
            scores, *masks = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            return tf.where(self.unmasked(scores, masks), scores, tf.constant(MASKED, scores.dtype))

    class MaskedWeights(_Masked):
        """Return the output of the softmax, with 0 at masked positions, also in rows that are masked completely."""

        def call(self, inputs: Any) -> Any:
            weights, *masks = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            return tf.where(self.unmasked(weights, masks), weights, tf.constant(0.0, weights.dtype))

    return MaskedScores, MaskedWeights


def _mask_layers() -> tuple[type, type]:
    """Return the classes that turn an implicit mask of Keras into a tensor of the graph, and the reverse."""
    import tensorflow as tf

    base: Any = import_tf_keras().layers.Layer

    class PaddingMask(base):
        """Return True where the input is not `value`; with any_channel, where any channel (last axis) is not."""

        def __init__(self, value: float = 0, any_channel: bool = False, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.value, self.any_channel = value, any_channel

        def call(self, inputs: Any) -> Any:
            differs = tf.not_equal(inputs, tf.cast(self.value, inputs.dtype))
            return tf.reduce_any(differs, axis=-1) if self.any_channel else differs

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "value": self.value, "any_channel": self.any_channel}

    class WithMask(base):
        """Called with [x, mask]: return x, with `mask` as the implicit mask of Keras for the next layer.

        Called with x: return x without an implicit mask.
        """

        def call(self, inputs: Any) -> Any:
            return tf.identity(inputs[0] if isinstance(inputs, (list, tuple)) else inputs)

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return inputs[1] if isinstance(inputs, (list, tuple)) else None

    return PaddingMask, WithMask


def register_tfq_objects() -> None:
    """Register these layers and tfq's activations with tf_keras; files of bridged models name them."""
    tfq_layer_classes()
    activation_class()

# SPDX-License-Identifier: Apache-2.0
"""tf_keras layers for those of Keras 3, or of its applications, that tf_keras lacks or does not register.

Made when they are asked for, and registered under the package "tfq", so that tf_keras clones and reloads them.
"""

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_tf_keras
from tfq.keras_bridge.layers.activations import activation_class


@functools.cache
def own_layers() -> Any:
    """A namespace of tf_keras layer classes: LayerScale, MaskedScores, PaddingMask, RMSNormalization, WithMask, ..."""
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

    scores, weights = map(register, _masked())
    padding, with_mask = map(register, _explicit())
    return SimpleNamespace(
        LayerScale=LayerScale,
        MaskedScores=scores,
        MaskedWeights=weights,
        PaddingMask=padding,
        RMSNormalization=RMSNormalization,
        StochasticDepth=StochasticDepth,
        WithMask=with_mask,
    )


# What stands in the place of a masked score, as in Keras.
MASKED = -1e9


def _masked() -> tuple[type, type]:
    """The layers around the softmax of masked attention."""
    import tensorflow as tf

    base: Any = import_tf_keras().layers.Layer

    class _Masked(base):
        """Called with [scores, *masks]; scores are (batch, heads, queries * sharing, keys).

        causal: no query attends to later keys. constant: a mask of nested lists that broadcasts to (queries, keys).
        axes: of each of `masks` the axis that it lacks of those of queries and keys, -1 or -2; 0 where it has both.
        With both it broadcasts to (batch, queries, keys), or to (batch, heads, queries, keys). A position is kept where
        all masks are non-zero.
        """

        def __init__(
            self, causal: bool = False, constant: Any = None, axes: Any = (), sharing: int = 1, **kwargs: Any
        ) -> None:
            super().__init__(**kwargs)
            self.causal, self.constant, self.axes, self.sharing = causal, constant, list(axes), sharing

        def kept(self, scores: Any, masks: Any) -> Any:
            masks = [tf.cast(mask, tf.bool) for mask in masks]
            pairs = zip(masks, self.axes, strict=True)
            masks = [tf.expand_dims(mask, axis) if axis else mask for mask, axis in pairs]
            if self.constant is not None:
                masks.append(tf.constant(np.asarray(self.constant, bool)))
            if self.causal:
                masks.append(self._not_later(scores))
            masks = [self._spread(mask) for mask in masks]
            return functools.reduce(tf.logical_and, masks)

        def _not_later(self, scores: Any) -> Any:
            rows, columns = scores.shape[-2:]
            if rows is not None and columns is not None:
                return tf.constant(np.tril(np.ones((rows // self.sharing, columns), bool)))
            sizes = tf.shape(scores)
            return tf.range(sizes[-2] // self.sharing)[:, None] >= tf.range(sizes[-1])[None, :]

        def _spread(self, mask: Any) -> Any:
            while len(mask.shape) < 4:
                mask = tf.expand_dims(mask, 0 if len(mask.shape) < 3 else -3)
            return mask if self.sharing == 1 or mask.shape[-2] == 1 else tf.repeat(mask, self.sharing, axis=-2)

        def get_config(self) -> dict[str, Any]:
            own = ("causal", "constant", "axes", "sharing")
            return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    class MaskedScores(_Masked):
        """The scores, and MASKED where they are masked."""

        def call(self, inputs: Any) -> Any:
            scores, *masks = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            return tf.where(self.kept(scores, masks), scores, tf.constant(MASKED, scores.dtype))

    class MaskedWeights(_Masked):
        """What the softmax gives, and 0 where that is masked: in rows that are masked throughout as well."""

        def call(self, inputs: Any) -> Any:
            weights, *masks = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            return tf.where(self.kept(weights, masks), weights, tf.constant(0.0, weights.dtype))

    return MaskedScores, MaskedWeights


def _explicit() -> tuple[type, type]:
    """The layers that make the implicit mask of Keras a tensor of the graph, and an implicit one of that tensor."""
    import tensorflow as tf

    base: Any = import_tf_keras().layers.Layer

    class PaddingMask(base):
        """True where the input is not `value`; any_channel: where a channel (last axis) is not `value`."""

        def __init__(self, value: float = 0, any_channel: bool = False, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.value, self.any_channel = value, any_channel

        def call(self, inputs: Any) -> Any:
            differs = tf.not_equal(inputs, tf.cast(self.value, inputs.dtype))
            return tf.reduce_any(differs, axis=-1) if self.any_channel else differs

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "value": self.value, "any_channel": self.any_channel}

    class WithMask(base):
        """Called with [x, mask]: x, which passes `mask` on to the next layer as Keras' implicit mask.

        Called with x: x without its implicit mask.
        """

        def call(self, inputs: Any) -> Any:
            return tf.identity(inputs[0] if isinstance(inputs, (list, tuple)) else inputs)

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return inputs[1] if isinstance(inputs, (list, tuple)) else None

    return PaddingMask, WithMask


def register_tfq_objects() -> None:
    """Makes tf_keras know what a file of a bridged model may name: these layers, and our activation functions."""
    own_layers()
    activation_class()

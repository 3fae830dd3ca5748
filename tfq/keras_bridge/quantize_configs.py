# SPDX-License-Identifier: Apache-2.0
"""How one layer is fake-quantized, as tfmot's QuantizeConfig: its weights per channel, its activations, its ranges.

If a layer becomes several ops in the flatbuffer, a subclass of the layer makes the tensors between them available for
quantization. Some subclasses compute one op instead, a depthwise 1x1 convolution, which rounds only once. The classes
are created on first use. They are in this package because the file of a quantization-aware model names them. Only
public symbols of tfmot are used.
"""

import functools
import math
from typing import Any

from tfq.keras_bridge.environment import import_tf_keras, import_tfmot
from tfq.keras_bridge.layers.tfq_layers import MASKED, tfq_layer_classes


@functools.cache
def quantize_config_classes() -> dict[str, Any]:
    """Return name -> class of the objects in the file of a quantization-aware model, registered as "tfq>NAME"."""
    quantization = import_tfmot().quantization.keras
    per_channel, named_range = _per_channel_quantizer(quantization), _named_range_quantizer(quantization)
    int4 = _int4_quantizer(per_channel)
    config = _layer_quantize_config(quantization, per_channel, int4, named_range)
    classes = [config, _split_separable(), _ranged_scores(), *_convolution_layers(), *_with_swish()]
    register = import_tf_keras().utils.register_keras_serializable(package="tfq")
    return {cls.__name__: register(cls) for cls in classes}


def _per_channel_quantizer(quantization: Any) -> type:
    base: Any = quantization.quantizers.LastValueQuantizer

    class PerChannelQuantizer(base):
        """Quantize a weight of any rank symmetrically to int8 in [-127, 127], with a scale for each channel.

        Args:
            axes: The axes of the channels: the last ones, except for transposed convolutions. They are the last two of
                a depthwise kernel (height, width, channels, multiplier); tfmot only uses the multiplier, which gives
                one scale for all channels.
        """

        def __init__(self, axes: list[int]) -> None:
            super().__init__(num_bits=8, per_axis=True, symmetric=True, narrow_range=True)
            self.axes = list(axes)

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            channels = math.prod(tensor_shape[axis] for axis in self.axes)
            return self._add_range_weights(layer, name, per_axis=True, tensor_shape=(channels,))

        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            import tensorflow as tf

            order = self._order(inputs)
            rows = self.rounded(self.rows(inputs), training, weights, **kwargs)
            moved = tf.reshape(rows, [inputs.shape[axis] for axis in order])
            return (
                moved if order == sorted(order) else tf.transpose(moved, [order.index(axis) for axis in sorted(order)])
            )

        def rows(self, inputs: Any) -> Any:
            """Return a weight as (weights of a channel, channels), which TensorFlow's op supports in any rank."""
            import tensorflow as tf

            order, rank = self._order(inputs), len(inputs.shape)
            moved = inputs if order == sorted(order) else tf.transpose(inputs, order)
            return tf.reshape(moved, [-1, math.prod(inputs.shape[axis % rank] for axis in self.axes)])

        def rounded(self, rows: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            return super().__call__(rows, training, weights, **kwargs)

        def _order(self, inputs: Any) -> list[int]:
            axes = [axis % len(inputs.shape) for axis in self.axes]
            return [axis for axis in range(len(inputs.shape)) if axis not in axes] + axes

        def get_config(self) -> dict[str, Any]:
            return {"axes": self.axes}

    return PerChannelQuantizer


def _int4_quantizer(per_channel: Any) -> type:
    base: Any = per_channel

    class Int4Quantizer(base):
        """Quantize a weight symmetrically to int4 in [-7, 7], with the ranges in its variables, which do not follow it.

        `learned` is a function (quantizer, rows) that rounds instead while the ranges are trained, or None.
        """

        def __init__(self, axes: list[int]) -> None:
            super().__init__(axes)
            self.num_bits = 4
            self.learned: Any = None

        def rounded(self, rows: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            if self.learned is not None:
                return self.learned(self, rows)
            return super().rounded(rows, False, weights, **kwargs)

    return Int4Quantizer


def _named_range_quantizer(quantization: Any) -> type:
    base: Any = quantization.quantizers.MovingAverageQuantizer

    class NamedRangeQuantizer(base):
        """A moving average whose variables have the name of the tensor, so that a layer can have several."""

        def __init__(self, tensor: str) -> None:
            super().__init__(**_EIGHT_BITS)
            self.tensor = tensor

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return super().build(tensor_shape, f"{self.tensor}_{name}", layer)

    return NamedRangeQuantizer


_EIGHT_BITS = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}


def _split_separable() -> type:
    base: Any = import_tf_keras().layers.SeparableConv2D

    class SplitSeparableConv2D(base):
        """SeparableConv2D as its two convolutions; `intermediate` is applied to the tensor between them."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.intermediate = import_tf_keras().activations.linear

        def call(self, inputs: Any) -> Any:
            import tensorflow as tf

            strides, padding = (1, *self.strides, 1), self.padding.upper()
            dilations = None if tuple(self.dilation_rate) == (1, 1) else self.dilation_rate
            intermediate = tf.nn.depthwise_conv2d(inputs, self.depthwise_kernel, strides, padding, dilations=dilations)
            outputs = tf.nn.conv2d(self.intermediate(intermediate), self.pointwise_kernel, 1, "VALID")
            if self.use_bias:
                outputs = tf.nn.bias_add(outputs, self.bias)
            return self.activation(outputs)

    return SplitSeparableConv2D


# The distance of the range's end from the lowest unmasked score. The largest weight of a masked position is exp(-12).
MASK_MARGIN = 12.0


def _ranged_scores() -> type:
    import tensorflow as tf

    base: Any = tfq_layer_classes().MaskedScores

    class RangedMaskedScores(base):
        """MaskedScores with `bounded`, which is applied to the scores as the flatbuffer has them.

        The range of these scores ends at the masked ones. The value of a masked score only affects the range, because
        it is masked a second time.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.bounded = import_tf_keras().activations.linear

        def call(self, inputs: Any) -> Any:
            scores, *masks = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            unmasked = self.unmasked(scores, masks)
            lowest = tf.reduce_min(tf.where(unmasked, scores, tf.zeros_like(scores)))
            bounded = self.bounded(tf.where(unmasked, scores, tf.stop_gradient(lowest) - MASK_MARGIN))
            return tf.where(unmasked, bounded, tf.constant(MASKED, scores.dtype))

    return RangedMaskedScores


def _with_swish() -> list[type]:
    """Return the layers that end in a swish, x * sigmoid(x).

    `pre_activation` is applied to the x of a layer with a kernel, `gate` to the sigmoid of x. Both are tensors of the
    flatbuffer. The second one has the fixed scale of LOGISTIC.
    """
    import tensorflow as tf

    layers, linear = import_tf_keras().layers, import_tf_keras().activations.linear

    class SwishActivation(layers.Activation):  # type: ignore[name-defined]
        def __init__(self, activation: Any = "swish", **kwargs: Any) -> None:
            super().__init__(activation, **kwargs)
            self.gate = linear

        def call(self, inputs: Any) -> Any:
            return inputs * self.gate(tf.sigmoid(inputs))

    def with_swish(base: Any) -> type:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            base.__init__(self, *args, **kwargs)
            self.activation = self.pre_activation = self.gate = linear

        def call(self: Any, inputs: Any) -> Any:
            x = self.pre_activation(base.call(self, inputs))
            return x * self.gate(tf.sigmoid(x))

        def get_config(self: Any) -> dict[str, Any]:
            return {**base.get_config(self), "activation": "swish"}

        methods = {"__init__": __init__, "call": call, "get_config": get_config}
        return type(f"Swish{base.__name__}", (base,), methods)

    return [SwishActivation, *(with_swish(base) for base in (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense))]


def _convolution_layers() -> list[type]:
    """Return layers that apply a factor and an offset for each channel as a depthwise 1x1 convolution with a bias.

    As MUL and ADD, the product would be rounded to 8 bits before the offset is added. In the convolution, each factor
    has its own scale, and an offset has 32 bits. Inputs: (n, height, width, channels).
    """
    import tensorflow as tf

    layers = import_tf_keras().layers
    normalization: Any = layers.BatchNormalization
    statistics: Any = layers.Normalization
    rescaling: Any = layers.Rescaling

    class PerChannelScaling:
        """`scaled` computes inputs times factors, one or one for each channel, as a depthwise 1x1 convolution."""

        def build(self: Any, input_shape: Any) -> None:
            self.channels = input_shape[-1]  # in fit, the shape of the inputs may be unknown
            super().build(input_shape)  # type: ignore[misc]

        def scaled(self: Any, inputs: Any, factors: Any) -> Any:
            kernel = tf.reshape(tf.broadcast_to(tf.cast(factors, inputs.dtype), [self.channels]), [1, 1, -1, 1])
            return tf.nn.depthwise_conv2d(inputs, kernel, (1, 1, 1, 1), "VALID")

    class ConvolvedBatchNormalization(PerChannelScaling, normalization):
        """BatchNormalization after a convolution by 1 in inference; the converter folds the two."""

        def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
            is_inference = training is None or (isinstance(training, (bool, int)) and not training)
            return super().call(self.scaled(inputs, 1.0) if is_inference else inputs, training=training, **kwargs)

    class ConvolvedRescaling(PerChannelScaling, rescaling):
        def call(self, inputs: Any) -> Any:
            inputs = tf.cast(inputs, self.compute_dtype)
            return self.scaled(inputs, self.scale) + tf.cast(self.offset, inputs.dtype)

    class ConvolvedNormalization(PerChannelScaling, statistics):
        def call(self, inputs: Any) -> Any:
            return super().call(self.scaled(tf.cast(inputs, self.compute_dtype), 1.0))

    return [ConvolvedBatchNormalization, ConvolvedNormalization, ConvolvedRescaling]


def _layer_quantize_config(quantization: Any, per_channel: Any, int4: Any, named_range: Any) -> type:
    base: Any = quantization.QuantizeConfig

    class LayerQuantizeConfig(base):
        """What tfmot fake-quantizes in one layer.

        Args:
            weights: Attribute of a weight -> the axes of its channels.
            activation: Whether to quantize the output of the layer's activation.
            output: None, "observed" (the moving average of the output), or a fixed [minimum, maximum].
            tensors: Attribute -> range like `output`. The attributes are functions that the layer applies to its inner
                tensors, which are quantized there.
            int4: Whether the weights have 4 bits.
        """

        def __init__(
            self,
            weights: Any = None,
            activation: bool = False,
            output: Any = None,
            tensors: Any = None,
            int4: bool = False,
        ) -> None:
            self.weights = dict(weights or {})
            self.activation = activation
            self.output = output
            self.tensors = dict(tensors or {})
            self.int4 = int4

        def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            quantizer = int4 if self.int4 else per_channel
            return [(getattr(layer, name), quantizer(axes)) for name, axes in self.weights.items()]

        def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
            for name, weight in zip(self.weights, quantize_weights, strict=True):
                setattr(layer, name, weight)

        def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            inner = [
                (getattr(layer, name), named_range(name) if output == "observed" else _fixed(quantization, output))
                for name, output in self.tensors.items()
            ]
            return [*inner, (layer.activation, _observed(quantization))] if self.activation else inner

        def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
            names = [*self.tensors, "activation"] if self.activation else [*self.tensors]
            for name, activation in zip(names, quantize_activations, strict=True):
                setattr(layer, name, activation)

        def get_output_quantizers(self, layer: Any) -> list[Any]:
            if self.output is None:
                return []
            if self.output == "observed":
                return [_observed(quantization)]
            return [_fixed(quantization, self.output)]

        def get_config(self) -> dict[str, Any]:
            return {name: getattr(self, name) for name in ("weights", "activation", "output", "tensors", "int4")}

    return LayerQuantizeConfig


def _fixed(quantization: Any, ends: Any) -> Any:
    minimum, maximum = ends
    fixed = quantization.quantizers.FixedQuantizer
    return fixed(num_bits=8, init_min=minimum, init_max=maximum, narrow_range=False)


def _observed(quantization: Any) -> Any:
    return quantization.quantizers.MovingAverageQuantizer(**_EIGHT_BITS)

# SPDX-License-Identifier: Apache-2.0
"""How one layer is fake-quantized, as tfmot's QuantizeConfig: which weights by channel, which activations, which range.

Where a layer is several ops in the flatbuffer, a subclass of it gives the tensors between them names, to be quantized;
or it has one op of them, a depthwise convolution of one place, which rounds once and has nothing between.
The classes are made when they are asked for, and are in this package because a file of a quantization-aware model names
them. Only public symbols of tfmot are used.
"""

import functools
import math
from typing import Any

from tfq.keras_bridge.environment import import_tf_keras, import_tfmot
from tfq.keras_bridge.layers.tfq_layers import MASKED, tfq_layer_classes


@functools.cache
def quantize_config_classes() -> dict[str, Any]:
    """Name -> class of what a quantization-aware model is saved with; registered with tf_keras, as "tfq>NAME"."""
    quantization = import_tfmot().quantization.keras
    by_channel, named_range = _by_channel_quantizer(quantization), _named_range_quantizer(quantization)
    config = _layer_quantize_config(quantization, by_channel, named_range)
    classes = [config, _parted_separable(), _ranged_scores(), *_convolved(), *_with_swish()]
    register = import_tf_keras().utils.register_keras_serializable(package="tfq")
    return {cls.__name__: register(cls) for cls in classes}


def _by_channel_quantizer(quantization: Any) -> type:
    base: Any = quantization.quantizers.LastValueQuantizer

    class ByChannelQuantizer(base):
        """Symmetric int8 in [-127, 127] with a scale for each channel of a weight of any rank.

        axes: those that count channels, the last ones of the weight but for transposed convolutions: of a depthwise
        kernel (height, width, channels, multiplier) the last two, where tfmot takes the multiplier alone, that is
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

            rank = len(inputs.shape)
            axes = [axis % rank for axis in self.axes]
            order = [axis for axis in range(rank) if axis not in axes] + axes
            moved = inputs if order == sorted(order) else tf.transpose(inputs, order)
            # TensorFlow's op takes matrices and images only.
            rows = tf.reshape(moved, [-1, math.prod(inputs.shape[axis] for axis in axes)])
            rows = super().__call__(rows, training, weights, **kwargs)
            moved = tf.reshape(rows, moved.shape)
            return moved if order == sorted(order) else tf.transpose(moved, [order.index(axis) for axis in range(rank)])

        def get_config(self) -> dict[str, Any]:
            return {"axes": self.axes}

    return ByChannelQuantizer


def _named_range_quantizer(quantization: Any) -> type:
    base: Any = quantization.quantizers.MovingAverageQuantizer

    class NamedRangeQuantizer(base):
        """A moving average whose variables are called after the tensor, so that a layer can have several."""

        def __init__(self, tensor: str) -> None:
            super().__init__(**_EIGHT_BITS)
            self.tensor = tensor

        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return super().build(tensor_shape, f"{self.tensor}_{name}", layer)

    return NamedRangeQuantizer


_EIGHT_BITS = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}


def _parted_separable() -> type:
    base: Any = import_tf_keras().layers.SeparableConv2D

    class PartedSeparableConv2D(base):
        """The same layer as its two convolutions, and `between` what passes from one to the other."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.between = import_tf_keras().activations.linear

        def call(self, inputs: Any) -> Any:
            import tensorflow as tf

            strides, padding = (1, *self.strides, 1), self.padding.upper()
            dilations = None if tuple(self.dilation_rate) == (1, 1) else self.dilation_rate
            between = tf.nn.depthwise_conv2d(inputs, self.depthwise_kernel, strides, padding, dilations=dilations)
            outputs = tf.nn.conv2d(self.between(between), self.pointwise_kernel, 1, "VALID")
            if self.use_bias:
                outputs = tf.nn.bias_add(outputs, self.bias)
            return self.activation(outputs)

    return PartedSeparableConv2D


# How far below the lowest score the range of masked scores ends: exp(-12) is the largest weight of a masked position.
MASK_MARGIN = 12.0


def _ranged_scores() -> type:
    import tensorflow as tf

    base: Any = tfq_layer_classes().MaskedScores

    class RangedMaskedScores(base):
        """The same layer, and `bounded`: the scores as the flatbuffer has them, whose range ends at the masked ones.

        What stands there in the place of a masked score matters to the range alone: it is masked once more.
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
    """Layers that end in a swish, x * sigmoid(x): `before` is the x of a kernel layer, `gate` the sigmoid of it.

    Both are tensors of the flatbuffer, the second with the fixed scale of LOGISTIC.
    """
    import tensorflow as tf

    layers, linear = import_tf_keras().layers, import_tf_keras().activations.linear

    class SwishActivation(layers.Activation):  # type: ignore[name-defined]
        def __init__(self, activation: Any = "swish", **kwargs: Any) -> None:
            super().__init__(activation, **kwargs)
            self.gate = linear

        def call(self, inputs: Any) -> Any:
            return inputs * self.gate(tf.sigmoid(inputs))

    def of(base: Any) -> type:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            base.__init__(self, *args, **kwargs)
            self.activation = self.before = self.gate = linear

        def call(self: Any, inputs: Any) -> Any:
            x = self.before(base.call(self, inputs))
            return x * self.gate(tf.sigmoid(x))

        def get_config(self: Any) -> dict[str, Any]:
            return {**base.get_config(self), "activation": "swish"}

        methods = {"__init__": __init__, "call": call, "get_config": get_config}
        return type(f"Swish{base.__name__}", (base,), methods)

    return [SwishActivation, *(of(base) for base in (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense))]


def _convolved() -> list[type]:
    """Layers of a factor and an offset for each channel, as a depthwise convolution of one place with a bias.

    As MUL and ADD, the product is rounded to 8 bits before the offset brings it back to where it belongs. In the
    convolution each factor has a scale of its own, and an offset 32 bits. For (n, height, width, channels).
    """
    import tensorflow as tf

    layers = import_tf_keras().layers
    normalization: Any = layers.BatchNormalization
    statistics: Any = layers.Normalization
    rescaling: Any = layers.Rescaling

    class ByChannel:
        """scaled: inputs times factors, one or one for each channel, as that convolution."""

        def build(self: Any, input_shape: Any) -> None:
            self.channels = input_shape[-1]  # in fit the inputs have no known shape where the data tells none
            super().build(input_shape)  # type: ignore[misc]

        def scaled(self: Any, inputs: Any, factors: Any) -> Any:
            kernel = tf.reshape(tf.broadcast_to(tf.cast(factors, inputs.dtype), [self.channels]), [1, 1, -1, 1])
            return tf.nn.depthwise_conv2d(inputs, kernel, (1, 1, 1, 1), "VALID")

    class ConvolvedBatchNormalization(ByChannel, normalization):
        """The converter folds it into the convolution by 1, which training does without."""

        def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
            is_inference = training is None or (isinstance(training, (bool, int)) and not training)
            return super().call(self.scaled(inputs, 1.0) if is_inference else inputs, training=training, **kwargs)

    class ConvolvedRescaling(ByChannel, rescaling):
        def call(self, inputs: Any) -> Any:
            inputs = tf.cast(inputs, self.compute_dtype)
            return self.scaled(inputs, self.scale) + tf.cast(self.offset, inputs.dtype)

    class ConvolvedNormalization(ByChannel, statistics):
        def call(self, inputs: Any) -> Any:
            return super().call(self.scaled(tf.cast(inputs, self.compute_dtype), 1.0))

    return [ConvolvedBatchNormalization, ConvolvedNormalization, ConvolvedRescaling]


def _layer_quantize_config(quantization: Any, by_channel: Any, named_range: Any) -> type:
    base: Any = quantization.QuantizeConfig

    class LayerQuantizeConfig(base):
        """weights: attribute -> the axes of its channels. activation: quantize around the layer's own activation.

        output: None, "observed" (a moving average of what comes out), or a fixed [minimum, maximum].
        tensors: attributes of functions that the layer calls with tensors inside of it, to be quantized there, each
            with its range as of output.
        """

        def __init__(
            self, weights: Any = None, activation: bool = False, output: Any = None, tensors: Any = None
        ) -> None:
            self.weights = dict(weights or {})
            self.activation = activation
            self.output = output
            self.tensors = dict(tensors or {})

        def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            return [(getattr(layer, name), by_channel(axes)) for name, axes in self.weights.items()]

        def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
            for name, weight in zip(self.weights, quantize_weights, strict=True):
                setattr(layer, name, weight)

        def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
            inside = [
                (getattr(layer, name), named_range(name) if output == "observed" else _fixed(quantization, output))
                for name, output in self.tensors.items()
            ]
            return [*inside, (layer.activation, _observed(quantization))] if self.activation else inside

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
            return {name: getattr(self, name) for name in ("weights", "activation", "output", "tensors")}

    return LayerQuantizeConfig


def _fixed(quantization: Any, ends: Any) -> Any:
    minimum, maximum = ends
    fixed = quantization.quantizers.FixedQuantizer
    return fixed(num_bits=8, init_min=minimum, init_max=maximum, narrow_range=False)


def _observed(quantization: Any) -> Any:
    return quantization.quantizers.MovingAverageQuantizer(**_EIGHT_BITS)

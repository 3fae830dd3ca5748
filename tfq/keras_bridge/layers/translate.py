# SPDX-License-Identifier: Apache-2.0
"""Translate a Keras 3 layer to a tf_keras layer that computes the same.

A layer that is not here, or has an option that tf_keras has no word for, raises Untranslatable with the reason.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.activations import has_layer_of_its_own, layer_for
from tfq.keras_bridge.layers.attention import GATE, GROUPED, attention_in_parts, grouped_options, options_of
from tfq.keras_bridge.layers.config import (
    NARROW,
    Making,
    Translation,
    Translator,
    dtype_of,
    pair_for,
    translated_config,
)
from tfq.keras_bridge.layers.own import own_layers
from tfq.keras_bridge.untranslatable import Untranslatable
from tfq.keras_bridge.walk import is_model
from tfq.keras_bridge.weights import model_weights

_RANDOM_IN_TRAINING = (
    *("Dropout", "GaussianDropout", "GaussianNoise", "AlphaDropout"),
    *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
)


def copied_layer(layer: Any, making: Making, *, frozen: bool) -> Translation:
    """The tf_keras layer from its own config, float32; attention in its parts.

    frozen: it stands where training=False was recorded, so that dropout there never drops and is left out.
    Raises Untranslatable when its class has no get_config().
    """
    kind = type(layer).__name__
    if kind in AUGMENTATION and layer.input_shape == layer.output_shape:
        making.note("is augmentation and is left out: it would be the identity in inference. Augment the data instead")
        return Translation(layers=(), carriers=0)
    if frozen and kind in _RANDOM_IN_TRAINING:
        making.note("is left out: it was called with training=False, so that it never does anything")
        return Translation(layers=(), carriers=0)
    if kind == "MultiHeadAttention":
        options = options_of(layer) | ({"dropout": 0.0} if frozen else {})
        if parts := attention_in_parts(layer, options, making):
            return parts
    try:
        config = layer.get_config()
    except NotImplementedError as error:
        raise Untranslatable(f"{kind} has no get_config(), without which no clone of it can be made") from error
    config = {**config, "name": making.name, **({"dtype": "float32"} if layer.compute_dtype in NARROW else {})}
    return Translation(layers=(type(layer).from_config(config),))


def translated(layer: Any, making: Making) -> Translation:
    """What the Keras 3 layer becomes. Raises Untranslatable when it has no equal."""
    pair = pair_for(layer, making.translators)
    if pair is not None:
        return _by_pair(layer, pair, making)
    name, module = type(layer).__name__, type(layer).__module__
    if not module.startswith("keras.src."):
        raise Untranslatable(
            f"{module}.{name} is a layer of your own: give its tf_keras equal with "
            f"tfq.keras_bridge.register_translator({name}, to_tf_keras=...)"
        )
    if name not in TRANSLATORS:
        why = WITHOUT_EQUAL.get(name, "tf_keras has no such layer: replace it, or give an equal by register_translator")
        raise Untranslatable(f"{name}: {why}")
    return TRANSLATORS[name](layer, making)


def _by_pair(layer: Any, pair: Translator, making: Making) -> Translation:
    made = pair.to_tf_keras(layer)
    if not isinstance(made, import_tf_keras().layers.Layer):
        raise Untranslatable(f"its translator gave a {type(made).__name__}, wanted a tf_keras layer")
    config = {**made.get_config(), "name": making.name, "trainable": layer.trainable}
    made = type(made).from_config(config)
    return Translation(layers=(made,), forward=pair.weights_forward or list, back=pair.weights_back or list)


def _same(layer: Any, making: Making) -> Translation:
    """The class of the same name with the same options."""
    cls = getattr(import_tf_keras().layers, type(layer).__name__)
    return Translation(layers=(cls(name=making.name, **translated_config(layer, cls, making.note)),))


def _activity_regularization(layer: Any, making: Making) -> Translation:
    cls = import_tf_keras().layers.ActivityRegularization
    config = translated_config(layer, cls, making.note)
    del config["activity_regularizer"]  # made of l1 and l2
    return Translation(layers=(cls(name=making.name, **config),))


def _ending_in_activation(layer: Any, making: Making) -> Translation:
    """As `_same`; an activation that tf_keras has no name for becomes a layer of its own, as tfmot wants it."""
    cls = getattr(import_tf_keras().layers, type(layer).__name__)
    config = translated_config(layer, cls, making.note)
    if making.single or not has_layer_of_its_own(layer.activation):
        return Translation(layers=(cls(name=making.name, **config),))
    made = cls(name=making.name, **{**config, "activation": "linear"})
    activation = layer_for(layer.activation, name=making.part("activation"), dtype=dtype_of(layer))
    return Translation(layers=(made, activation))


def _activation(layer: Any, making: Making) -> Translation:
    return Translation(layers=(layer_for(layer.activation, name=making.name, dtype=dtype_of(layer)),))


def _multi_head_attention(layer: Any, making: Making) -> Translation:
    cls = import_tf_keras().layers.MultiHeadAttention
    config = translated_config(layer, cls, making.note, also=[GATE])
    parts = attention_in_parts(layer, config, making)
    if parts is None and config.pop(GATE, False):
        raise Untranslatable(f"its option {GATE}=True has no equal in tf_keras's MultiHeadAttention; {_PLAIN_ALONE}")
    return parts or Translation(layers=(cls(name=making.name, **config),))


def _grouped_query_attention(layer: Any, making: Making) -> Translation:
    cls = import_tf_keras().layers.MultiHeadAttention
    config = translated_config(layer, cls, making.note, also=[GATE, *GROUPED])
    parts = attention_in_parts(layer, grouped_options(config), making)
    if parts is None:
        raise Untranslatable(f"GroupedQueryAttention: tf_keras has no such layer; {_PLAIN_ALONE}")
    return parts


def _adaptive_pooling(layer: Any, making: Making) -> Translation:
    """Pooling by windows of one size, which are what they are where the input's size is a multiple of the output's."""
    kind, rank = type(layer).__name__.removeprefix("Adaptive")[:-2], type(layer).__name__[-2:]
    if layer.data_format != "channels_last":
        raise Untranslatable("it pools channels_first, which TFLite does not: use channels_last")
    if making.single:
        raise Untranslatable(
            "it stands inside another layer, where its input's size is not known: take a plain pooling"
        )
    sizes = tuple(layer.input.shape[1:-1])
    if any(size is None or size % wanted for size, wanted in zip(sizes, layer.output_size, strict=True)):
        raise Untranslatable(
            f"it makes {layer.output_size} of {sizes}, in windows of different size, which TFLite does not have: give "
            "it an input whose size is a multiple of its output's"
        )
    window = tuple(size // wanted for size, wanted in zip(sizes, layer.output_size, strict=True))
    cls = getattr(import_tf_keras().layers, f"{kind}{rank}")
    return Translation(layers=(cls(window, window, name=making.name, dtype=dtype_of(layer)),))


def _leaky_relu(layer: Any, making: Making) -> Translation:
    made = import_tf_keras().layers.LeakyReLU(
        alpha=float(layer.negative_slope), name=making.name, dtype=dtype_of(layer)
    )
    return Translation(layers=(made,))


def _normalization(layer: Any, making: Making) -> Translation:
    """With its statistics as constants: so a clone has them before its weights are copied."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis for axis in axes if axis is not None]
    # Keras 3 keeps them with ones for the axes that they do not count; tf_keras wants the counted sizes alone.
    shape = [size for size in layer.mean.shape if size != 1] if len(axes) > 1 else [-1] if axes else []
    mean, variance = (np.asarray(array, np.float32).reshape(shape).tolist() for array in (layer.mean, layer.variance))
    made = import_tf_keras().layers.Normalization(
        axis=axes or None, mean=mean, variance=variance, invert=layer.invert, name=making.name, dtype=dtype_of(layer)
    )
    return Translation(layers=(made,), carriers=0)


def _discretization(layer: Any, making: Making) -> Translation:
    boundaries = [float(boundary) for boundary in layer.bin_boundaries or ()]
    made = import_tf_keras().layers.Discretization(
        bin_boundaries=boundaries, output_mode=layer.output_mode, name=making.name
    )
    return Translation(layers=(made,), carriers=0)


def _bidirectional(layer: Any, making: Making) -> Translation:
    forward = making.inner(layer.forward_layer, layer.forward_layer.name.removeprefix("forward_"))
    backward = making.inner(layer.backward_layer, layer.backward_layer.name)
    made = import_tf_keras().layers.Bidirectional(
        forward, merge_mode=layer.merge_mode, backward_layer=backward, name=making.name
    )
    made.trainable = layer.trainable
    return Translation(layers=(made,))


def _time_distributed(layer: Any, making: Making) -> Translation:
    cls = import_tf_keras().layers.TimeDistributed
    if not is_model(layer.layer):
        made = cls(making.inner(layer.layer, layer.layer.name), name=making.name)
        made.trainable = layer.trainable
        return Translation(layers=(made,))
    rebuilt = making.rebuild(layer.layer)
    making.note("holds a model, which stays inside it: tfmot leaves such a layer as it is")
    for sentence in rebuilt.notes:
        making.note(f"in it, {sentence}")
    made = cls(rebuilt.model, name=making.name)
    forward, back = model_weights(layer, made, rebuilt)
    return Translation(layers=(made,), forward=forward, back=back)


def _spectral_normalization(layer: Any, making: Making) -> Translation:
    """The layer inside, whose kernel is normalized already; tf_keras 2.21's own one does not run beside Keras 3."""
    making.note("is left out around its layer: the kernel stays as it was normalized last")
    inner = dataclasses.replace(making, name=making.name)
    return dataclasses.replace(translated(layer.layer, inner), owner=layer.layer)


def _rnn(layer: Any, making: Making) -> Translation:
    cls = import_tf_keras().layers.RNN
    options = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll", "zero_output_for_mask")
    cell = layer.cell
    made = cls(making.inner(cell, cell.name), name=making.name, **{key: getattr(layer, key) for key in options})
    made.trainable = layer.trainable
    return Translation(layers=(made,))


def _stacked_cells(layer: Any, making: Making) -> Translation:
    cells = [making.inner(cell, cell.name) for cell in layer.cells]
    return Translation(layers=(import_tf_keras().layers.StackedRNNCells(cells, name=making.name),))


def _own(layer: Any, making: Making) -> Translation:
    cls = getattr(own_layers(), type(layer).__name__)
    return Translation(layers=(cls(name=making.name, **translated_config(layer, cls, making.note)),))


def _scaled_sum(layer: Any, making: Making) -> Translation:
    """InceptionResNetV2's a + scale * b, as two layers that tfmot knows."""
    tf_keras = import_tf_keras()
    add = tf_keras.layers.Add(name=making.name)
    scaled = tf_keras.layers.Rescaling(float(layer.scale), name=making.part("scaled"))

    def call(args: tuple, kwargs: dict) -> Any:
        first, second = args[0]
        return add([first, scaled(second)])

    return Translation(layers=(add, scaled), call=call)


def _augmentation(layer: Any, making: Making) -> Translation:
    """Left out: Keras 3 records training=True for it, and a deployed model must not be random."""
    shapes = {tuple(tensor.shape) for tensor in _ends(layer)}
    if len(shapes) == 1:
        making.note("is augmentation and is left out: it would be the identity in inference. Augment the data instead")
        return Translation(layers=(), carriers=0)
    raise Untranslatable(f"{type(layer).__name__} is augmentation that changes the shape: crop the data instead")


def _pipeline(layer: Any, making: Making) -> Translation:
    if all(type(inner).__name__ in AUGMENTATION for inner in layer.layers):
        return _augmentation(layer, making)
    raise Untranslatable("a Pipeline of layers that do not all augment: add them to the model one by one")


def _ends(layer: Any) -> Iterable[Any]:
    tree = import_keras().tree
    return [*tree.flatten(layer.input), *tree.flatten(layer.output)]


_PLAIN_ALONE = (
    "its parts take its place only where it is called once, on (batch, places, channels), without a mask, scores that "
    "are returned or constraints on its kernels"
)
_3D = ("1D", "2D", "3D")
AUGMENTATION = (
    *("AugMix", "RandAugment", "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast"),
    *("RandomCrop", "RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale"),
    *("RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation"),
    *("RandomSharpness", "RandomShear", "RandomTranslation", "RandomZoom", "CutMix", "MixUp"),
)
_POOLING = [f"{kind}Pooling{rank}" for kind in ("Average", "Max", "GlobalAverage", "GlobalMax") for rank in _3D]
_ADAPTIVE = [f"Adaptive{kind}Pooling{rank}" for kind in ("Average", "Max") for rank in _3D]
_CONVOLUTION = [f"{kind}{rank}" for kind in ("Conv", "SeparableConv", "DepthwiseConv") for rank in _3D]
TRANSLATORS: dict[str, Callable[[Any, Making], Translation]] = {
    **dict.fromkeys(("Dense", "EinsumDense", *(f"Conv{rank}Transpose" for rank in _3D)), _ending_in_activation),
    **{name: _ending_in_activation for name in _CONVOLUTION if name not in ("SeparableConv3D", "DepthwiseConv3D")},
    **dict.fromkeys(_POOLING, _same),
    **dict.fromkeys(_ADAPTIVE, _adaptive_pooling),
    **{f"{kind}{rank}": _same for kind in ("Cropping", "ZeroPadding", "UpSampling") for rank in _3D},
    **{f"{kind}{rank}": _same for kind in ("SpatialDropout", "ConvLSTM") for rank in _3D},
    **dict.fromkeys(("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"), _same),
    **dict.fromkeys(("BatchNormalization", "GroupNormalization", "LayerNormalization", "UnitNormalization"), _same),
    **dict.fromkeys(("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"), _same),
    **dict.fromkeys(("AdditiveAttention", "Attention", "Embedding", "Masking"), _same),
    **dict.fromkeys(("GRU", "GRUCell", "LSTM", "LSTMCell", "SimpleRNN", "SimpleRNNCell"), _same),
    **dict.fromkeys(("ELU", "PReLU", "ReLU", "Softmax", "Identity", "CategoryEncoding", "CenterCrop"), _same),
    **dict.fromkeys(("Flatten", "Permute", "RepeatVector", "Reshape", "Rescaling", "Resizing"), _same),
    **dict.fromkeys(("LayerScale", "StochasticDepth", "RMSNormalization"), _own),
    **dict.fromkeys(AUGMENTATION, _augmentation),
    "Activation": _activation,
    "ActivityRegularization": _activity_regularization,
    "Bidirectional": _bidirectional,
    "CustomScaleLayer": _scaled_sum,
    "Discretization": _discretization,
    "GroupedQueryAttention": _grouped_query_attention,
    "LeakyReLU": _leaky_relu,
    "MultiHeadAttention": _multi_head_attention,
    "Normalization": _normalization,
    "Pipeline": _pipeline,
    "RNN": _rnn,
    "SpectralNormalization": _spectral_normalization,
    "StackedRNNCells": _stacked_cells,
    "TimeDistributed": _time_distributed,
}
# Why there is no equal, where more can be said than that there is none.
_TEXT = "it makes numbers of text or of a vocabulary, which no int8 flatbuffer does: do it in the data instead"
WITHOUT_EQUAL = {
    "Lambda": "it holds Python code: write it with keras.ops, or as a layer with its pair in register_translator",
    **dict.fromkeys(("StringLookup", "IntegerLookup", "TextVectorization", "Hashing", "HashedCrossing"), _TEXT),
    **dict.fromkeys(("TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper"), "it runs foreign code"),
}

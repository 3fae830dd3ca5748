# SPDX-License-Identifier: Apache-2.0
"""Translate a Keras 3 layer to a tf_keras layer that computes the same, and register every layer that tfq knows.

A layer that is not registered, or has an option that tf_keras lacks, raises Untranslatable with the reason. The
registrations, with the facts that compression reads, are at the end of this file.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.activations import has_layer_of_its_own, layer_for
from tfq.keras_bridge.layers.attention import GATE, GROUPED, attention_in_parts, grouped_options, options_of
from tfq.keras_bridge.layers.bridged_layer import BridgedLayer, Making, Translation, facts_of, translation_of
from tfq.keras_bridge.layers.config import NARROW, dtype_of, translated_config
from tfq.keras_bridge.layers.own import own_layers
from tfq.keras_bridge.untranslatable import Untranslatable
from tfq.keras_bridge.walk import is_model
from tfq.keras_bridge.weights import model_weights
from tfq.registry import register


def copied_layer(layer: Any, making: Making, *, frozen: bool) -> Translation:
    """The tf_keras layer from its own config, float32; attention in its parts.

    frozen: it stands where training=False was recorded, so that dropout there never drops and is left out.
    Raises Untranslatable when its class has no get_config().
    """
    kind, facts = type(layer).__name__, facts_of(layer)
    if facts.translate is _augmentation and layer.input_shape == layer.output_shape:
        making.note("is augmentation and is left out: it would be the identity in inference. Augment the data instead")
        return Translation(layers=(), carriers=0)
    if frozen and facts.random_in_training:
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
    """Translate a built Keras 3 layer by its `BridgedLayer`.

    Raises:
        Untranslatable: None is registered, or it cannot be expressed in tf_keras.
    """
    name, entry = type(layer).__name__, translation_of(layer)
    if entry is not None and entry.translate is not None:
        translation = entry.translate(layer, making)
        return translation if entry.keras_class is None else _checked(layer, translation, making)
    if not type(layer).__module__.startswith("keras.src."):
        raise Untranslatable(
            f"{type(layer).__module__}.{name} is a layer of your own: register a "
            f"tfq.BridgedLayer(keras_class={name}, translate=...) for it"
        )
    if entry is not None:
        raise Untranslatable(f"{name}: {entry.help}")
    raise Untranslatable(f"{name}: tf_keras has no such layer: replace it, or register a tfq.BridgedLayer for it")


def _checked(layer: Any, translation: Translation, making: Making) -> Translation:
    """Check what the user's own function made, and let its layers be trained as the user's layer is."""
    for built in translation.layers:
        if not isinstance(built, import_tf_keras().layers.Layer):
            raise Untranslatable(f"its translation has a {type(built).__name__}, expected a tf_keras layer")
        built.get_config()  # Without one it cannot be cloned.
    if len(translation.layers) == 1 and translation.layers[0].name != making.name:
        raise Untranslatable(f"its translation is named {translation.layers[0].name!r}: give it making.name")
    for built in translation.weighted:
        built.trainable = layer.trainable
    return translation


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
    built = cls(name=making.name, **{**config, "activation": "linear"})
    activation = layer_for(layer.activation, name=making.part("activation"), dtype=dtype_of(layer))
    return Translation(layers=(built, activation))


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
    built = import_tf_keras().layers.LeakyReLU(
        alpha=float(layer.negative_slope), name=making.name, dtype=dtype_of(layer)
    )
    return Translation(layers=(built,))


def _normalization(layer: Any, making: Making) -> Translation:
    """With its statistics as constants: so a clone has them before its weights are copied."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis for axis in axes if axis is not None]
    # Keras 3 keeps them with ones for the axes that they do not count; tf_keras wants the counted sizes alone.
    shape = [size for size in layer.mean.shape if size != 1] if len(axes) > 1 else [-1] if axes else []
    mean, variance = (np.asarray(array, np.float32).reshape(shape).tolist() for array in (layer.mean, layer.variance))
    built = import_tf_keras().layers.Normalization(
        axis=axes or None, mean=mean, variance=variance, invert=layer.invert, name=making.name, dtype=dtype_of(layer)
    )
    return Translation(layers=(built,), carriers=0)


def _discretization(layer: Any, making: Making) -> Translation:
    boundaries = [float(boundary) for boundary in layer.bin_boundaries or ()]
    built = import_tf_keras().layers.Discretization(
        bin_boundaries=boundaries, output_mode=layer.output_mode, name=making.name
    )
    return Translation(layers=(built,), carriers=0)


def _bidirectional(layer: Any, making: Making) -> Translation:
    forward = making.inner(layer.forward_layer, layer.forward_layer.name.removeprefix("forward_"))
    backward = making.inner(layer.backward_layer, layer.backward_layer.name)
    built = import_tf_keras().layers.Bidirectional(
        forward, merge_mode=layer.merge_mode, backward_layer=backward, name=making.name
    )
    built.trainable = layer.trainable
    return Translation(layers=(built,))


def _time_distributed(layer: Any, making: Making) -> Translation:
    cls = import_tf_keras().layers.TimeDistributed
    if not is_model(layer.layer):
        built = cls(making.inner(layer.layer, layer.layer.name), name=making.name)
        built.trainable = layer.trainable
        return Translation(layers=(built,))
    rebuilt: Any = making.rebuild(layer.layer)
    making.note("holds a model, which stays inside it: tfmot leaves such a layer as it is")
    for sentence in rebuilt.notes:
        making.note(f"in it, {sentence}")
    built = cls(rebuilt.model, name=making.name)
    forward, back = model_weights(layer, built, rebuilt)
    return Translation(layers=(built,), forward=forward, back=back)


def _spectral_normalization(layer: Any, making: Making) -> Translation:
    """The layer inside, whose kernel is normalized already; tf_keras 2.21's own one does not run beside Keras 3."""
    making.note("is left out around its layer: the kernel stays as it was normalized last")
    inner = dataclasses.replace(making, name=making.name)
    return dataclasses.replace(translated(layer.layer, inner), owner=layer.layer)


def _rnn(layer: Any, making: Making) -> Translation:
    cls = import_tf_keras().layers.RNN
    options = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll", "zero_output_for_mask")
    cell = layer.cell
    built = cls(making.inner(cell, cell.name), name=making.name, **{key: getattr(layer, key) for key in options})
    built.trainable = layer.trainable
    return Translation(layers=(built,))


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
    if all(facts_of(inner).translate is _augmentation for inner in layer.layers):
        return _augmentation(layer, making)
    raise Untranslatable("a Pipeline of layers that do not all augment: add them to the model one by one")


def _ends(layer: Any) -> Iterable[Any]:
    tree = import_keras().tree
    return [*tree.flatten(layer.input), *tree.flatten(layer.output)]


_PLAIN_ALONE = (
    "its parts take its place only where it is called once, on (batch, places, channels), without masks that a "
    "recurrent layer or a nested model passes on, scores that are returned or constraints on its kernels"
)
# --- Registrations, by what the layers do. Facts that are left out have the default of BridgedLayer.

_SAME = "the tf_keras layer of the same name"
_KERNEL = f"{_SAME}; an activation that tf_keras lacks becomes a layer after it"


def _register(names: str, translate: Callable[[Any, Making], Translation] | None, help: str, **facts: Any) -> None:
    """Register an object for each of `names` (separated by spaces), with the same facts."""
    for name in names.split():
        register(BridgedLayer(name=name, help=help, translate=translate, **facts))


# Layers with kernels.
_LINEAR: dict[str, Any] = {"qat": "weights_and_output", "absorbs": ("scale", "relu")}
_LAST, _DEPTHWISE = {"kernel": (-1,)}, {"depthwise_kernel": (-2, -1)}
_register(
    "Dense", _ending_in_activation, _KERNEL, **_LINEAR, qat_weights=_LAST, stand_ins={"swish": "SwishDense"},
    prunable=("kernel",), channels="dense",
)  # fmt: skip
_register(
    "Conv1D", _ending_in_activation, _KERNEL, **_LINEAR, qat_weights=_LAST, prunable=("kernel",), channels="convolution"
)
_register(
    "Conv2D", _ending_in_activation, _KERNEL, **_LINEAR, qat_weights=_LAST, stand_ins={"swish": "SwishConv2D"},
    prunable=("kernel",), channels="convolution",
)  # fmt: skip
_register("Conv3D", _ending_in_activation, _KERNEL, prunable=("kernel",), channels="convolution")
_register(
    "DepthwiseConv2D", _ending_in_activation, _KERNEL, **_LINEAR, qat_weights=_DEPTHWISE,
    stand_ins={"swish": "SwishDepthwiseConv2D"}, prunable=(), prunable_m_by_n=False, channels="depthwise_convolution",
)  # fmt: skip
_register("DepthwiseConv1D", _ending_in_activation, _KERNEL, channels="depthwise_convolution")
_register(
    "SeparableConv2D", _ending_in_activation, _KERNEL, **_LINEAR,
    qat_weights={**_DEPTHWISE, "pointwise_kernel": (-1,)}, stand_ins={"always": "PartedSeparableConv2D"},
    qat_tensors=("between",), prunable=("pointwise_kernel",), channels="separable_convolution",
)  # fmt: skip
_register(
    "SeparableConv1D", _ending_in_activation, _KERNEL, prunable=("pointwise_kernel",), channels="separable_convolution"
)
_register(
    "Conv2DTranspose", _ending_in_activation, _KERNEL, qat="weights_and_output", qat_weights={"kernel": (-2,)},
    absorbs=("relu",), prunable=("kernel",), prunable_m_by_n=False, channels="transposed_convolution",
)  # fmt: skip
_register(
    "Conv1DTranspose Conv3DTranspose", _ending_in_activation, _KERNEL, prunable=("kernel",),
    channels="transposed_convolution",
)  # fmt: skip
_register("EinsumDense", _ending_in_activation, _KERNEL, prunable=("kernel",))
_register("Embedding", _same, _SAME, prunable=("embeddings",), prunable_m_by_n=False, channels="lookup")
_register("LocallyConnected1D LocallyConnected2D", None, "only in tf_keras", prunable=("kernel",))

# Layers that move or drop values.
_register(
    "Cropping1D Cropping2D UpSampling1D UpSampling2D ZeroPadding1D ZeroPadding2D Permute RepeatVector Identity",
    _same, _SAME, qat="passes_range",
)  # fmt: skip
_register("Flatten", _same, _SAME, qat="passes_range", channels="flatten")
_register("Reshape", _same, _SAME, qat="passes_range", channels="reshape")
_register("ActivityRegularization", _activity_regularization, _SAME, qat="passes_range")
_register("Cropping3D UpSampling3D ZeroPadding3D CenterCrop Resizing CategoryEncoding", _same, _SAME)
_register(
    "AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D", _same, _SAME,
    qat="passes_range", random_in_training=True,
)  # fmt: skip
_register("SpatialDropout3D", _same, _SAME, random_in_training=True)
_register("StochasticDepth", _own, "tfq's own layer, the identity in inference")

# Pooling.
_register("MaxPooling1D MaxPooling2D GlobalMaxPooling1D GlobalMaxPooling2D", _same, _SAME, qat="passes_range")
_register("AveragePooling1D AveragePooling2D", _same, _SAME, qat="averages")
_register("GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D", _same, _SAME, qat="global_average")
_register("AveragePooling3D MaxPooling3D GlobalMaxPooling3D", _same, _SAME)
_register(
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
    "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D",
    _adaptive_pooling, "a plain pooling, where the input's size is a multiple of the output's",
)  # fmt: skip

# Layers of several inputs.
_register("Add Subtract Multiply", _same, _SAME, absorbs=("relu",))
_register("Average Dot", _same, _SAME)
_register("Concatenate", _same, _SAME, qat="shares_range", channels="concatenate")
_register("Maximum Minimum", _same, _SAME, qat="shares_range")
_register("CustomScaleLayer", _scaled_sum, "a Rescaling and an Add: InceptionResNetV2's a + scale * b")

# Normalizations and factors.
_register(
    "BatchNormalization", _same, _SAME, absorbs=("relu",), folds_into_previous=True,
    stand_ins={"image": "ConvolvedBatchNormalization"}, prunable=(), channels="batch_normalization",
)  # fmt: skip
_register("SyncBatchNormalization", None, "only in tf_keras", absorbs=("relu",), folds_into_previous=True, prunable=())
_register("LayerNormalization", _same, _SAME, prunable=())
_register("GroupNormalization UnitNormalization", _same, _SAME)
_register("RMSNormalization", _own, "tfq's own layer")
_register(
    "Normalization", _normalization, f"{_SAME}, with its statistics as constants",
    stand_ins={"image": "ConvolvedNormalization"}, channels="normalization",
)  # fmt: skip
_register(
    "Rescaling", _same, _SAME, absorbs=("relu",), folds_into_previous=True, stand_ins={"image": "ConvolvedRescaling"},
    channels="rescaling",
)  # fmt: skip
_register(
    "LayerScale", _own, "tfq's own layer", folds_into_previous=True, channels="per_channel",
    channel_weights=("gamma",), channel_count="projection_dim",
)  # fmt: skip
_register(
    "SpectralNormalization", _spectral_normalization, "the layer inside it, with the kernel as it was normalized last"
)

# Activations.
_register("Activation", _activation, "a layer that tfmot knows where there is one, else tfq's own", qat="activation")
_register("Softmax", _same, _SAME, qat="activation", function="softmax")
_register("ELU ReLU", _same, _SAME)
_register("PReLU", _same, _SAME, channels="prelu")
_register("LeakyReLU", _leaky_relu, _SAME)

# Layers that quantization-aware training cannot reach into: with several ops, loops or states inside, or which tfmot's
# wrapper calls otherwise than Keras does.
_RECURRENT: dict[str, Any] = {"qat": "converter", "qat_reason": "it is recurrent"}
_UNROLLED = "Give convert the representative data; an int8 .tflite has a copy of its cell for each step"
_NO_LOOP = "Convert to a scheme without ranges, such as dynamic_range: its loop cannot be unrolled"
_CELL = ("kernel", "recurrent_kernel")
_register("GRU LSTM SimpleRNN", _same, _SAME, **_RECURRENT, qat_advice=_UNROLLED, wraps=("cell",))
_register("RNN", _rnn, "an RNN around the translated cell", **_RECURRENT, qat_advice=_UNROLLED, wraps=("cell",))
_register(
    "Bidirectional", _bidirectional, "a Bidirectional around both translated layers", **_RECURRENT,
    qat_advice=_UNROLLED, wraps=("forward_layer", "backward_layer"),
)  # fmt: skip
_register("ConvLSTM1D ConvLSTM2D ConvLSTM3D", _same, _SAME, **_RECURRENT, qat_advice=_NO_LOOP)
_register("GRUCell LSTMCell SimpleRNNCell", _same, _SAME, prunable=_CELL)
_register("StackedRNNCells", _stacked_cells, "StackedRNNCells of the translated cells", wraps=("cells",))
_register(
    "TimeDistributed", _time_distributed, "a TimeDistributed around the translated layer or model", qat="converter",
    qat_reason="it passes a mask on", wraps=("layer",),
)  # fmt: skip
_register("Masking", _same, _SAME, qat="converter", qat_reason="it passes a mask on")
_register("AdditiveAttention Attention", _same, _SAME, qat="converter", qat_reason="it takes several inputs apart")
_register(
    "MultiHeadAttention", _multi_head_attention, "its projections, products and softmax as layers, where it is plain",
    qat="converter",
    qat_reason="it is whole (to_tf_keras parts it where it is called once and its masks are 0 and 1)",
    prunable=tuple(f"_{part}_dense.kernel" for part in ("query", "key", "value", "output")),
)  # fmt: skip
_register(
    "MaskedScores", None, "tfq's own layer: the scores of attention, masked", qat="masks",
    stand_ins={"always": "RangedMaskedScores"}, qat_tensors=("bounded",),
)  # fmt: skip
_register("MaskedWeights", None, "tfq's own layer: the weights of attention, masked", qat="passes_range")
_register("PaddingMask", None, "tfq's own layer: the mask of an Embedding or of Masking", qat="makes_mask")
_register("WithMask", None, "tfq's own layer: its input, with an implicit mask", qat="passes_mask")
_register("GroupedQueryAttention", _grouped_query_attention, "its projections, products and softmax as layers")

# Data layers.
_register("Discretization", _discretization, f"{_SAME}, with its boundaries as constants")
_register(
    "AugMix RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop "
    "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert "
    "RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear "
    "RandomTranslation RandomZoom CutMix MixUp",
    _augmentation, "left out where the shape stays: augmentation is the identity in inference",
)  # fmt: skip
_register("Pipeline", _pipeline, "left out, where all of its layers are augmentation")

# Layers that cannot be translated; the help text says why.
_OPAQUE: dict[str, Any] = {"qat": "converter", "qat_reason": "it runs a function that nobody can see into"}
_register(
    "Lambda", None, "it holds Python code: write it with keras.ops, or as a layer with a tfq.BridgedLayer of its own",
    **_OPAQUE,
)  # fmt: skip
_register("TFOpLambda SlicingOpLambda", None, "only in tf_keras: an operation of TensorFlow", **_OPAQUE)
_register(
    "StringLookup IntegerLookup TextVectorization Hashing HashedCrossing", None,
    "it makes numbers of text or of a vocabulary, which no int8 flatbuffer does: do it in the data instead",
)  # fmt: skip
_register("TFSMLayer JaxLayer FlaxLayer TorchModuleWrapper", None, "it runs foreign code")

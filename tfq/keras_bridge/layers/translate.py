# SPDX-License-Identifier: Apache-2.0
"""Translate a Keras 3 layer to an equivalent tf_keras layer, and register every layer that tfq knows.

A layer that is not registered, or that has an option which tf_keras lacks, raises Untranslatable with the reason. The
registrations, with the facts that compression reads, are at the end of this file.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfq import registry
from tfq.keras_bridge.environment import import_keras, import_tf_keras
from tfq.keras_bridge.layers.activations import activation_layer, is_known, needs_separate_layer
from tfq.keras_bridge.layers.attention import GATE, GROUPED, attention_options, grouped_options, split_attention
from tfq.keras_bridge.layers.bridged_layer import (
    BridgedLayer,
    Translation,
    TranslationContext,
    facts_of,
    translation_of,
)
from tfq.keras_bridge.layers.config import dtype_of, translated_config
from tfq.keras_bridge.layers.tfq_layers import tfq_layer_classes
from tfq.keras_bridge.precision import config_in_float32, full_statistics
from tfq.keras_bridge.untranslatable import Untranslatable
from tfq.keras_bridge.walk import is_model, why_no_graph
from tfq.keras_bridge.weights import model_weights
from tfq.registry import register


def copied_layer(layer: Any, context: TranslationContext, *, frozen: bool) -> Translation:
    """Copy a tf_keras layer by its config, in float32; split attention into its parts.

    Args:
        layer: The layer.
        context: Where the copy belongs.
        frozen: Whether the layer is called with training=False, so that dropout has no effect and is removed.

    Raises:
        Untranslatable: The layer's class has no get_config().
    """
    kind, facts = type(layer).__name__, facts_of(layer)
    if facts.translate is _augmentation and layer.input_shape == layer.output_shape:
        context.note(
            "is augmentation and is left out, because it is the identity in inference. Augment the data instead"
        )
        return Translation(layers=(), carriers=0)
    if frozen and facts.random_in_training:
        context.note("is left out, because it is called with training=False and has no effect")
        return Translation(layers=(), carriers=0)
    if kind == "MultiHeadAttention":
        options = attention_options(layer) | ({"dropout": 0.0} if frozen else {})
        if parts := split_attention(layer, options, context):
            return parts
    try:
        config = layer.get_config()
    except NotImplementedError as error:
        raise Untranslatable(
            f"its class {kind} has no get_config(), which is needed to copy it. Add one to the class"
        ) from error
    config = {**config_in_float32(config), "name": context.name}
    return Translation(layers=(type(layer).from_config(config),))


def translate_layer(layer: Any, context: TranslationContext) -> Translation:
    """Translate a built Keras 3 layer with its `BridgedLayer`.

    Raises:
        Untranslatable: No BridgedLayer is registered for it, or tf_keras has no equivalent.
    """
    name, entry = type(layer).__name__, translation_of(layer)
    if entry is not None and entry.translate is not None:
        translation = entry.translate(layer, context)
        return translation if entry.keras_class is None else _check_user_translation(layer, translation, context)
    base = _inherited_from(layer)
    if base is not None:
        return translate_layer(_as_instance(layer, base), context)
    if not type(layer).__module__.startswith("keras.src."):
        raise Untranslatable(
            f"{type(layer).__module__}.{name} is not part of Keras, and cannot be expanded inside another layer. "
            f"Register a tfq.BridgedLayer(keras_class={name}, translate=...) for it"
        )
    if entry is not None:
        raise Untranslatable(entry.help)
    raise Untranslatable(f"tf_keras has no layer {name}. Replace it, or register a tfq.BridgedLayer for it")


def is_expanded(layer: Any) -> bool:
    """Check whether a Keras 3 layer has no translation, so that its `call` is translated instead.

    Keras' layers that contain Python code of the user or of other frameworks are refused.
    """
    if not isinstance(layer, import_keras().layers.Layer):
        return False
    if is_model(layer):
        return why_no_graph(layer) is not None and not isinstance(layer, import_keras().Sequential)
    entry = translation_of(layer)
    if entry is not None and entry.translate is _activation:
        return not is_known(layer.activation)
    if entry is not None and entry.translate is _expanded:
        return True
    return entry is None and _inherited_from(layer) is None


def own_activation(layer: Any) -> Any:
    """Return the activation function of a Keras 3 layer with a kernel if it is not one of Keras, otherwise None."""
    if not isinstance(layer, import_keras().layers.Layer):
        return None
    entry = translation_of(layer)
    is_kernel_layer = entry is not None and entry.translate is _with_activation
    return layer.activation if is_kernel_layer and not is_known(layer.activation) else None


@contextlib.contextmanager
def linear_activation(layer: Any) -> Iterator[None]:
    """Leave out the activation of a Keras 3 layer."""
    activation = layer.activation
    layer.activation = import_keras().activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def _inherited_from(layer: Any) -> type | None:
    """Return the class of Keras that defines everything that a subclass computes, if it can be translated."""
    cls = type(layer)
    if cls.__module__.startswith("keras.src."):
        return None
    base = next(item for item in cls.__mro__ if item.__module__.startswith("keras.src."))
    entry = registry.entries(BridgedLayer).get(base.__name__)
    same = all(getattr(cls, name) is getattr(base, name) for name in ("__call__", "call", "build", "compute_mask"))
    return base if same and entry is not None and entry.translate is not None else None


def _as_instance(layer: Any, base: type) -> Any:
    """Return a copy of a layer that shares its state and is an instance of a base class."""
    copy: Any = object.__new__(base)
    vars(copy).update(vars(layer))
    return copy


def _check_user_translation(layer: Any, translation: Translation, context: TranslationContext) -> Translation:
    """Check the translation of the user's function, and copy `trainable` to its layers."""
    for built in translation.layers:
        if not isinstance(built, import_tf_keras().layers.Layer):
            raise Untranslatable(f"its translation contains a {type(built).__name__}. Expected tf_keras layers")
        built.get_config()  # raises NotImplementedError if the layer cannot be cloned
    if len(translation.layers) == 1 and translation.layers[0].name != context.name:
        raise Untranslatable(
            f"its translation is named {translation.layers[0].name!r}. Expected context.name, {context.name!r}"
        )
    for built in translation.weighted:
        built.trainable = layer.trainable
    return translation


def _expanded(layer: Any, context: TranslationContext) -> Translation:
    """Refuse a layer that is expanded, but not inside another layer."""
    raise Untranslatable(
        "it is inside another layer, where its function cannot be expanded. Use it without the wrapper"
    )


def _same(layer: Any, context: TranslationContext) -> Translation:
    """Return the tf_keras layer of the same name with the same options."""
    cls = getattr(import_tf_keras().layers, type(layer).__name__)
    return Translation(layers=(cls(name=context.name, **translated_config(layer, cls, context.note)),))


def _activity_regularization(layer: Any, context: TranslationContext) -> Translation:
    cls = import_tf_keras().layers.ActivityRegularization
    config = translated_config(layer, cls, context.note)
    del config["activity_regularizer"]  # derived from l1 and l2
    return Translation(layers=(cls(name=context.name, **config),))


def _with_activation(layer: Any, context: TranslationContext) -> Translation:
    """Translate as `_same`; an activation that tfmot does not support as an argument becomes a separate layer."""
    cls = getattr(import_tf_keras().layers, type(layer).__name__)
    config = translated_config(layer, cls, context.note)
    if context.single or not needs_separate_layer(layer.activation):
        return Translation(layers=(cls(name=context.name, **config),))
    built = cls(name=context.name, **{**config, "activation": "linear"})
    activation = activation_layer(layer.activation, name=context.part("activation"), dtype=dtype_of(layer))
    return Translation(layers=(built, activation))


def _activation(layer: Any, context: TranslationContext) -> Translation:
    return Translation(layers=(activation_layer(layer.activation, name=context.name, dtype=dtype_of(layer)),))


def _multi_head_attention(layer: Any, context: TranslationContext) -> Translation:
    cls = import_tf_keras().layers.MultiHeadAttention
    config = translated_config(layer, cls, context.note, passed_through=[GATE])
    parts = split_attention(layer, config, context)
    if parts is None and config.pop(GATE, False):
        raise Untranslatable(
            f"its option {GATE}=True has no equivalent in tf_keras' MultiHeadAttention. {_SPLIT_CONDITIONS}"
        )
    return parts or Translation(layers=(cls(name=context.name, **config),))


def _grouped_query_attention(layer: Any, context: TranslationContext) -> Translation:
    cls = import_tf_keras().layers.MultiHeadAttention
    config = translated_config(layer, cls, context.note, passed_through=[GATE, *GROUPED])
    parts = split_attention(layer, grouped_options(config), context)
    if parts is None:
        raise Untranslatable(f"tf_keras has no layer GroupedQueryAttention. {_SPLIT_CONDITIONS}")
    return parts


def _adaptive_pooling(layer: Any, context: TranslationContext) -> Translation:
    """Translate to pooling with a fixed window, which is equivalent if the output size divides the input size."""
    kind, rank = type(layer).__name__.removeprefix("Adaptive")[:-2], type(layer).__name__[-2:]
    if layer.data_format != "channels_last":
        raise Untranslatable("it pools channels_first, which TFLite does not support. Use channels_last")
    if context.single:
        raise Untranslatable(
            "it is inside another layer, so the size of its input is unknown. Use a pooling with a fixed window"
        )
    sizes = tuple(layer.input.shape[1:-1])
    if any(size is None or size % output_size for size, output_size in zip(sizes, layer.output_size, strict=True)):
        raise Untranslatable(
            f"it pools {sizes} to {layer.output_size} in windows of different sizes, which TFLite does not support. "
            "Use an input size that is a multiple of the output size"
        )
    window = tuple(size // output_size for size, output_size in zip(sizes, layer.output_size, strict=True))
    cls = getattr(import_tf_keras().layers, f"{kind}{rank}")
    return Translation(layers=(cls(window, window, name=context.name, dtype=dtype_of(layer)),))


def _leaky_relu(layer: Any, context: TranslationContext) -> Translation:
    built = import_tf_keras().layers.LeakyReLU(
        alpha=float(layer.negative_slope), name=context.name, dtype=dtype_of(layer)
    )
    return Translation(layers=(built,))


def _normalization(layer: Any, context: TranslationContext) -> Translation:
    """Translate with the statistics as constants, so that a clone has them before its weights are copied."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis for axis in axes if axis is not None]
    # In Keras 3 the statistics have size 1 in the axes that are reduced; tf_keras expects only the other axes.
    shape = [size for size in layer.mean.shape if size != 1] if len(axes) > 1 else [-1] if axes else []
    mean, variance = (array.reshape(shape).tolist() for array in full_statistics(layer))
    built = import_tf_keras().layers.Normalization(
        axis=axes or None, mean=mean, variance=variance, invert=layer.invert, name=context.name, dtype=dtype_of(layer)
    )
    return Translation(layers=(built,), carriers=0)


def _discretization(layer: Any, context: TranslationContext) -> Translation:
    boundaries = [float(boundary) for boundary in layer.bin_boundaries or ()]
    built = import_tf_keras().layers.Discretization(
        bin_boundaries=boundaries, output_mode=layer.output_mode, name=context.name
    )
    return Translation(layers=(built,), carriers=0)


def _bidirectional(layer: Any, context: TranslationContext) -> Translation:
    forward = context.inner(layer.forward_layer, layer.forward_layer.name.removeprefix("forward_"))
    backward = context.inner(layer.backward_layer, layer.backward_layer.name)
    built = import_tf_keras().layers.Bidirectional(
        forward, merge_mode=layer.merge_mode, backward_layer=backward, name=context.name
    )
    built.trainable = layer.trainable
    return Translation(layers=(built,))


def _time_distributed(layer: Any, context: TranslationContext) -> Translation:
    cls = import_tf_keras().layers.TimeDistributed
    if not is_model(layer.layer):
        built = cls(context.inner(layer.layer, layer.layer.name), name=context.name)
        built.trainable = layer.trainable
        return Translation(layers=(built,))
    rebuilt: Any = context.rebuild(layer.layer)
    context.note("contains a model and is kept as one layer, which tfmot leaves unchanged")
    for sentence in rebuilt.notes:
        context.note(f"contains a model in which {sentence}")
    built = cls(rebuilt.model, name=context.name)
    forward, back = model_weights(layer, built, rebuilt)
    return Translation(layers=(built,), forward=forward, back=back)


def _spectral_normalization(layer: Any, context: TranslationContext) -> Translation:
    """Translate the inner layer, whose kernel is already normalized.

    tf_keras 2.21's SpectralNormalization does not run while Keras 3 is imported.
    """
    context.note("is replaced by its inner layer, with the kernel as it was last normalized")
    inner = dataclasses.replace(context, name=context.name)
    return dataclasses.replace(translate_layer(layer.layer, inner), owner=layer.layer)


def _rnn(layer: Any, context: TranslationContext) -> Translation:
    cls = import_tf_keras().layers.RNN
    options = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll", "zero_output_for_mask")
    cell = layer.cell
    built = cls(context.inner(cell, cell.name), name=context.name, **{key: getattr(layer, key) for key in options})
    built.trainable = layer.trainable
    return Translation(layers=(built,))


def _stacked_cells(layer: Any, context: TranslationContext) -> Translation:
    cells = [context.inner(cell, cell.name) for cell in layer.cells]
    return Translation(layers=(import_tf_keras().layers.StackedRNNCells(cells, name=context.name),))


def _tfq_layer(layer: Any, context: TranslationContext) -> Translation:
    cls = getattr(tfq_layer_classes(), type(layer).__name__)
    return Translation(layers=(cls(name=context.name, **translated_config(layer, cls, context.note)),))


def _scaled_sum(layer: Any, context: TranslationContext) -> Translation:
    """Translate InceptionResNetV2's a + scale * b to two layers that tfmot supports."""
    tf_keras = import_tf_keras()
    add = tf_keras.layers.Add(name=context.name)
    scaled = tf_keras.layers.Rescaling(float(layer.scale), name=context.part("scaled"))

    def call(args: tuple, kwargs: dict) -> Any:
        first, second = args[0]
        return add([first, scaled(second)])

    return Translation(layers=(add, scaled), call=call)


def _augmentation(layer: Any, context: TranslationContext) -> Translation:
    """Remove the layer: Keras 3 records training=True for it, and a deployed model must not be random."""
    shapes = {tuple(tensor.shape) for tensor in _input_and_output_tensors(layer)}
    if len(shapes) == 1:
        context.note(
            "is augmentation and is left out, because it is the identity in inference. Augment the data instead"
        )
        return Translation(layers=(), carriers=0)
    raise Untranslatable("it is augmentation that changes the shape. Crop the data instead")


def _pipeline(layer: Any, context: TranslationContext) -> Translation:
    if all(facts_of(inner).translate is _augmentation for inner in layer.layers):
        return _augmentation(layer, context)
    raise Untranslatable("it contains a layer that is not augmentation. Add its layers to the model one by one")


def _input_and_output_tensors(layer: Any) -> Iterable[Any]:
    tree = import_keras().tree
    return [*tree.flatten(layer.input), *tree.flatten(layer.output)]


_SPLIT_CONDITIONS = (
    "tfq can split it into simpler layers if it is called once, on (batch, length, channels), and does not return "
    "scores, has no constraint on its kernels, and its masks do not come through a recurrent layer or a nested model"
)

# --- Registrations, by kind of layer. Facts that are not listed have the default of BridgedLayer.

_SAME = "the tf_keras layer of the same name"
_KERNEL = f"{_SAME}; an activation that tf_keras lacks becomes a separate layer after it"


def _register(
    names: str, translate: Callable[[Any, TranslationContext], Translation] | None, help: str, **facts: Any
) -> None:
    """Register an object for each of `names` (separated by spaces), with the same facts."""
    for name in names.split():
        register(BridgedLayer(name=name, help=help, translate=translate, **facts))


# Layers with kernels.
_LINEAR: dict[str, Any] = {"qat": "weights_and_output", "absorbs": ("scale", "relu")}
_LAST, _DEPTHWISE = {"kernel": (-1,)}, {"depthwise_kernel": (-2, -1)}
_register(
    "Dense", _with_activation, _KERNEL, **_LINEAR, qat_weights=_LAST, stand_ins={"swish": "SwishDense"},
    prunable=("kernel",), channels="dense",
)  # fmt: skip
_register(
    "Conv1D", _with_activation, _KERNEL, **_LINEAR, qat_weights=_LAST, prunable=("kernel",), channels="convolution"
)
_register(
    "Conv2D", _with_activation, _KERNEL, **_LINEAR, qat_weights=_LAST, stand_ins={"swish": "SwishConv2D"},
    prunable=("kernel",), channels="convolution",
)  # fmt: skip
_register("Conv3D", _with_activation, _KERNEL, prunable=("kernel",), channels="convolution")
_register(
    "DepthwiseConv2D", _with_activation, _KERNEL, **_LINEAR, qat_weights=_DEPTHWISE,
    stand_ins={"swish": "SwishDepthwiseConv2D"}, prunable=(), prunable_m_by_n=False, channels="depthwise_convolution",
)  # fmt: skip
_register("DepthwiseConv1D", _with_activation, _KERNEL, channels="depthwise_convolution")
_register(
    "SeparableConv2D", _with_activation, _KERNEL, **_LINEAR,
    qat_weights={**_DEPTHWISE, "pointwise_kernel": (-1,)}, stand_ins={"always": "SplitSeparableConv2D"},
    qat_tensors=("intermediate",), prunable=("pointwise_kernel",), channels="separable_convolution",
)  # fmt: skip
_register(
    "SeparableConv1D", _with_activation, _KERNEL, prunable=("pointwise_kernel",), channels="separable_convolution"
)
_register(
    "Conv2DTranspose", _with_activation, _KERNEL, qat="weights_and_output", qat_weights={"kernel": (-2,)},
    absorbs=("relu",), prunable=("kernel",), prunable_m_by_n=False, channels="transposed_convolution",
)  # fmt: skip
_register(
    "Conv1DTranspose Conv3DTranspose", _with_activation, _KERNEL, prunable=("kernel",),
    channels="transposed_convolution",
)  # fmt: skip
_register("EinsumDense", _with_activation, _KERNEL, prunable=("kernel",))
_register("Embedding", _same, _SAME, prunable=("embeddings",), prunable_m_by_n=False, channels="lookup")
_register("LocallyConnected1D LocallyConnected2D", None, "only in tf_keras", prunable=("kernel",))

# Layers that move or remove values.
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
_register("StochasticDepth", _tfq_layer, "a layer of tfq, the identity in inference")

# Pooling.
_register("MaxPooling1D MaxPooling2D GlobalMaxPooling1D GlobalMaxPooling2D", _same, _SAME, qat="passes_range")
_register("AveragePooling1D AveragePooling2D", _same, _SAME, qat="averages")
_register("GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D", _same, _SAME, qat="global_average")
_register("AveragePooling3D MaxPooling3D GlobalMaxPooling3D", _same, _SAME)
_register(
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
    "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D",
    _adaptive_pooling, "a pooling with a fixed window, if the output size divides the input size",
)  # fmt: skip

# Layers with several inputs.
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
_register("RMSNormalization", _tfq_layer, "a layer of tfq")
_register(
    "Normalization", _normalization, f"{_SAME}, with its statistics as constants",
    stand_ins={"image": "ConvolvedNormalization"}, channels="normalization",
)  # fmt: skip
_register(
    "Rescaling", _same, _SAME, absorbs=("relu",), folds_into_previous=True, stand_ins={"image": "ConvolvedRescaling"},
    channels="rescaling",
)  # fmt: skip
_register(
    "LayerScale", _tfq_layer, "a layer of tfq", folds_into_previous=True, channels="per_channel",
    channel_weights=("gamma",), channel_count="projection_dim",
)  # fmt: skip
_register(
    "SpectralNormalization", _spectral_normalization, "its inner layer, with the kernel as it was last normalized"
)

# Activations.
_register(
    "Activation",
    _activation,
    "a layer that tfmot supports if there is one, otherwise tfq's Activation",
    qat="activation",
)
_register("Softmax", _same, _SAME, qat="activation", function="softmax")
_register("ELU ReLU", _same, _SAME)
_register("PReLU", _same, _SAME, channels="prelu")
_register("LeakyReLU", _leaky_relu, _SAME)

# Layers that quantization-aware training cannot quantize inside: they have several ops, loops or states, or tfmot's
# wrapper calls them differently from Keras.
_RECURRENT: dict[str, Any] = {"qat": "converter", "qat_reason": "it is recurrent"}
_UNROLLED = (
    "Provide representative data to convert; the int8 .tflite has a copy of its cell for each step, or one op for a "
    "long LSTM (conversion.lstm)"
)
_NO_LOOP = "Convert to a scheme without activation ranges, such as dynamic_range, because its loop cannot be unrolled"
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
    qat_reason="it passes on a mask", wraps=("layer",),
)  # fmt: skip
_register("Masking", _same, _SAME, qat="converter", qat_reason="it passes on a mask")
_register(
    "AdditiveAttention Attention",
    _same,
    _SAME,
    qat="converter",
    qat_reason="it has several inputs with different roles",
)
_register(
    "MultiHeadAttention", _multi_head_attention, "its projections, products and softmax as layers, if it can be split",
    qat="converter",
    qat_reason="it is one layer (to_tf_keras splits it if it is called once and its masks are 0 and 1)",
    prunable=tuple(f"_{part}_dense.kernel" for part in ("query", "key", "value", "output")),
)  # fmt: skip
_register(
    "MaskedScores", None, "a layer of tfq: the masked scores of attention", qat="masks",
    stand_ins={"always": "RangedMaskedScores"}, qat_tensors=("bounded",),
)  # fmt: skip
_register("MaskedWeights", None, "a layer of tfq: the masked weights of attention", qat="passes_range")
_register("Weight", None, "a layer of tfq: a weight of a layer that was expanded", prunable=())
_register("PaddingMask", None, "a layer of tfq: the mask of an Embedding or of Masking", qat="makes_mask")
_register("WithMask", None, "a layer of tfq: its input, with an implicit mask", qat="passes_mask")
_register("GroupedQueryAttention", _grouped_query_attention, "its projections, products and softmax as layers")

# Data layers.
_register("Discretization", _discretization, f"{_SAME}, with its boundaries as constants")
_register(
    "AugMix RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop "
    "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert "
    "RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear "
    "RandomTranslation RandomZoom CutMix MixUp",
    _augmentation, "left out if it keeps the shape, because augmentation is the identity in inference",
)  # fmt: skip
_register("Pipeline", _pipeline, "left out if all of its layers are augmentation")

# Layers that cannot be translated; the help text says why.
_ARBITRARY_FUNCTION: dict[str, Any] = {"qat": "converter", "qat_reason": "it runs an arbitrary function"}
_register("Lambda", _expanded, "the operations of its function, if it only uses keras.ops", **_ARBITRARY_FUNCTION)
_register("TFOpLambda SlicingOpLambda", None, "only in tf_keras: a TensorFlow operation", **_ARBITRARY_FUNCTION)
_register(
    "StringLookup IntegerLookup TextVectorization Hashing HashedCrossing", None,
    "it looks up text or categories, which an int8 flatbuffer cannot do. Do it in the data pipeline instead",
)  # fmt: skip
_register(
    "TFSMLayer JaxLayer FlaxLayer TorchModuleWrapper",
    None,
    "it runs code of another framework or of a SavedModel. Replace it with Keras layers",
)

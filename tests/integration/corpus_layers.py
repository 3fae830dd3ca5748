# SPDX-License-Identifier: Apache-2.0
"""One corpus model for each layer of Keras 3, and the layers that have none, with the reason."""

from collections.abc import Callable
from typing import Any

import numpy as np
from corpus import NUM_SAMPLES, CorpusModel, functional, smooth

from tfq.keras_bridge import import_keras

VECTOR, SEQUENCE, IMAGE, VOLUME, STEPS = (16,), (10, 8), (8, 8, 4), (4, 4, 4, 2), (3, 6)
COLORS, WAVE = (16, 16, 3), (512,)

Call = Callable[[Any, Any], Any]


def half(L: Any, x: Any) -> Any:
    """Return another tensor of the same shape, for layers of two inputs."""
    return L.Activation("tanh")(x)


def conv_lstm(rank: int) -> Call:
    return lambda L, x: getattr(L, f"ConvLSTM{rank}D")(3, 2)(x)


def pooled(name: str, *arguments: Any) -> Call:
    return lambda L, x: getattr(L, name)(*arguments)(x)


VECTORS: dict[str, Call] = {
    "Dense": lambda L, x: L.Dense(6)(x),
    "Activation": lambda L, x: L.Activation("silu")(x),
    "ActivityRegularization": lambda L, x: L.ActivityRegularization(0.1)(L.Dense(6)(x)),
    "Add": lambda L, x: L.Add()([x, half(L, x)]),
    "Subtract": lambda L, x: L.Subtract()([x, half(L, x)]),
    "Multiply": lambda L, x: L.Multiply()([x, half(L, x)]),
    "Average": lambda L, x: L.Average()([x, half(L, x)]),
    "Maximum": lambda L, x: L.Maximum()([x, half(L, x)]),
    "Minimum": lambda L, x: L.Minimum()([x, half(L, x)]),
    "Concatenate": lambda L, x: L.Concatenate()([x, half(L, x)]),
    "Dot": lambda L, x: L.Dot(1)([L.Reshape((4, 4))(x), L.Reshape((4, 4))(half(L, x))]),
    "AlphaDropout": lambda L, x: L.AlphaDropout(0.5)(L.Dense(6)(x)),
    "Dropout": lambda L, x: L.Dropout(0.5)(L.Dense(6)(x)),
    "GaussianDropout": lambda L, x: L.GaussianDropout(0.5)(L.Dense(6)(x)),
    "GaussianNoise": lambda L, x: L.GaussianNoise(0.5)(L.Dense(6)(x)),
    "BatchNormalization": lambda L, x: L.BatchNormalization()(L.Dense(6)(x)),
    "ELU": lambda L, x: L.ELU()(x),
    "Identity": lambda L, x: L.Identity()(L.Dense(6)(x)),
    "Lambda": lambda L, x: L.Lambda(lambda v: v * 0.5 + 1.0, output_shape=(16,))(x),
    "LayerNormalization": lambda L, x: L.LayerNormalization()(L.Dense(12)(x)),
    "RMSNormalization": lambda L, x: L.RMSNormalization()(L.Dense(12)(x)),
    "UnitNormalization": lambda L, x: L.UnitNormalization()(L.Dense(12)(x)),
    "LeakyReLU": lambda L, x: L.LeakyReLU(0.2)(x),
    "PReLU": lambda L, x: L.PReLU()(x),
    "ReLU": lambda L, x: L.ReLU(max_value=1.5, negative_slope=0.1, threshold=0.2)(x),
    "ReLU6": lambda L, x: L.ReLU(6.0)(L.Dense(6)(x)),
    "Softmax": lambda L, x: L.Softmax()(x),
    "RepeatVector": lambda L, x: L.RepeatVector(3)(x),
    "Rescaling": lambda L, x: L.Rescaling(0.5, 1.0)(x),
    "Reshape": lambda L, x: L.Reshape((4, 4))(x),
    "SpectralNormalization": lambda L, x: L.SpectralNormalization(L.Dense(6))(x),
    "Wrapper": lambda L, x: L.Wrapper(L.Dense(6)).layer(x),
    "Pipeline": lambda L, x: L.Pipeline([L.Dense(6), L.ReLU()])(x),
    "Discretization": lambda L, x: L.Discretization([-1.0, 0.0, 1.0])(x),
    "EinsumDense": lambda L, x: L.EinsumDense("ab,bc->ac", 6, bias_axes="c")(x),
}

SEQUENCES: dict[str, Call] = {
    "AdaptiveAveragePooling1D": pooled("AdaptiveAveragePooling1D", 5),
    "AdaptiveMaxPooling1D": pooled("AdaptiveMaxPooling1D", 5),
    "AdditiveAttention": lambda L, x: L.AdditiveAttention()([L.Dense(8)(x), x]),
    "Attention": lambda L, x: L.Attention(use_scale=True)([L.Dense(8)(x), x]),
    "AveragePooling1D": pooled("AveragePooling1D", 2),
    "MaxPooling1D": pooled("MaxPooling1D", 2),
    "GlobalAveragePooling1D": pooled("GlobalAveragePooling1D"),
    "GlobalMaxPooling1D": pooled("GlobalMaxPooling1D"),
    "Conv1D": lambda L, x: L.Conv1D(6, 3)(x),
    "Conv1D_causal": lambda L, x: L.Conv1D(6, 3, padding="causal", dilation_rate=2)(x),
    "Conv1DTranspose": lambda L, x: L.Conv1DTranspose(6, 3, strides=2)(x),
    "DepthwiseConv1D": lambda L, x: L.DepthwiseConv1D(3)(x),
    "SeparableConv1D": lambda L, x: L.SeparableConv1D(6, 3)(x),
    "Cropping1D": pooled("Cropping1D", 2),
    "ZeroPadding1D": pooled("ZeroPadding1D", 2),
    "UpSampling1D": pooled("UpSampling1D", 2),
    "Flatten": pooled("Flatten"),
    "Permute": pooled("Permute", (2, 1)),
    "GroupQueryAttention": lambda L, x: L.GroupQueryAttention(4, 4, 2)(x, x),
    "MultiHeadAttention": lambda L, x: L.MultiHeadAttention(2, 4)(x, x),
    "Masking": lambda L, x: L.Masking()(x),
    "SpatialDropout1D": lambda L, x: L.Conv1D(4, 1)(L.SpatialDropout1D(0.5)(x)),
    "TimeDistributed": lambda L, x: L.TimeDistributed(L.Dense(6, activation="relu"))(x),
    "GroupNormalization_1D": lambda L, x: L.GroupNormalization(2)(x),
    "LayerNormalization_sequence": lambda L, x: L.LayerNormalization()(x),
    "Dense_sequence": lambda L, x: L.Dense(6)(x),
}

# Unrolled: every step is a copy of the cell.
RECURRENT: dict[str, Call] = {
    "Bidirectional": lambda L, x: L.Bidirectional(L.GRU(4))(x),
    "LSTM": lambda L, x: L.LSTM(4, return_sequences=True)(x),
    "GRU": lambda L, x: L.GRU(4)(x),
    "SimpleRNN": lambda L, x: L.SimpleRNN(4)(x),
    "RNN": lambda L, x: L.RNN(L.LSTMCell(4))(x),
    "LSTMCell": lambda L, x: L.LSTMCell(4)(x[:, 0], [x[:, 1, :4], x[:, 2, :4]])[0],
    "GRUCell": lambda L, x: L.GRUCell(4)(x[:, 0], [x[:, 1, :4]])[0],
    "SimpleRNNCell": lambda L, x: L.SimpleRNNCell(4)(x[:, 0], [x[:, 1, :4]])[0],
    "StackedRNNCells": lambda L, x: L.RNN(L.StackedRNNCells([L.GRUCell(4), L.SimpleRNNCell(3)]))(x),
}

IMAGES: dict[str, Call] = {
    "AdaptiveAveragePooling2D": pooled("AdaptiveAveragePooling2D", 2),
    "AdaptiveMaxPooling2D": pooled("AdaptiveMaxPooling2D", 2),
    "AveragePooling2D": pooled("AveragePooling2D", 2),
    "AveragePooling2D_same": pooled("AveragePooling2D", 3, 2, "same"),
    "MaxPooling2D": pooled("MaxPooling2D", 2),
    "GlobalAveragePooling2D": pooled("GlobalAveragePooling2D"),
    "GlobalMaxPooling2D": pooled("GlobalMaxPooling2D"),
    "CenterCrop": pooled("CenterCrop", 5, 6),
    "Conv2D": lambda L, x: L.Conv2D(6, 3)(x),
    "Conv2D_relu": lambda L, x: L.Conv2D(6, 3, activation="relu", padding="same")(x),
    "Conv2D_groups": lambda L, x: L.Conv2D(6, 3, groups=2)(x),
    "Conv2D_dilated": lambda L, x: L.Conv2D(6, 3, dilation_rate=2)(x),
    "Conv2D_batch_normalization": lambda L, x: L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3, use_bias=False)(x))),
    "Conv2DTranspose": lambda L, x: L.Conv2DTranspose(6, 3, strides=2, padding="same")(x),
    "DepthwiseConv2D": lambda L, x: L.DepthwiseConv2D(3, depth_multiplier=2)(x),
    "SeparableConv2D": lambda L, x: L.SeparableConv2D(6, 3)(x),
    "Cropping2D": pooled("Cropping2D", ((1, 2), (0, 3))),
    "ZeroPadding2D": pooled("ZeroPadding2D", ((1, 2), (0, 3))),
    "UpSampling2D": pooled("UpSampling2D", 2),
    "UpSampling2D_bilinear": lambda L, x: L.UpSampling2D(2, interpolation="bilinear")(x),
    "Resizing": pooled("Resizing", 5, 11),
    "GroupNormalization": lambda L, x: L.GroupNormalization(2)(x),
    "BatchNormalization_first": lambda L, x: L.BatchNormalization()(x),
    "ConvLSTM1D": conv_lstm(1),
    "SpatialDropout2D": lambda L, x: L.Conv2D(4, 1)(L.SpatialDropout2D(0.5)(x)),
    "PReLU_shared": lambda L, x: L.PReLU(shared_axes=[1, 2])(x),
    "LayerNormalization_image": lambda L, x: L.LayerNormalization()(x),
    "UnitNormalization_image": lambda L, x: L.UnitNormalization(axis=-1)(x),
}

VOLUMES: dict[str, Call] = {
    "AdaptiveAveragePooling3D": pooled("AdaptiveAveragePooling3D", 2),
    "AdaptiveMaxPooling3D": pooled("AdaptiveMaxPooling3D", 2),
    "AveragePooling3D": pooled("AveragePooling3D", 2),
    "MaxPooling3D": pooled("MaxPooling3D", 2),
    "GlobalAveragePooling3D": pooled("GlobalAveragePooling3D"),
    "GlobalMaxPooling3D": pooled("GlobalMaxPooling3D"),
    "Conv3D": lambda L, x: L.Conv3D(3, 2)(x),
    "Conv3DTranspose": lambda L, x: L.Conv3DTranspose(3, 2, strides=2)(x),
    "ConvLSTM2D": conv_lstm(2),
    "Cropping3D": pooled("Cropping3D", 1),
    "ZeroPadding3D": pooled("ZeroPadding3D", 1),
    "UpSampling3D": pooled("UpSampling3D", 2),
    "SpatialDropout3D": lambda L, x: L.Conv3D(4, 1)(L.SpatialDropout3D(0.5)(x)),
}

# Preprocessing of colors in [0, 255]; random layers pass their input through at inference.
PIXELS: dict[str, Call] = {
    "AutoContrast": pooled("AutoContrast"),
    "ContrastLimitedAdaptiveHistogramEqualization": pooled("ContrastLimitedAdaptiveHistogramEqualization"),
    "Solarization": lambda L, x: L.Solarization(0.0, 0.5)(x),
    "RandomCrop": pooled("RandomCrop", 12, 12),
}
PASSED: dict[str, tuple[Any, ...]] = {
    "AugMix": (),
    "CutMix": (),
    "MixUp": (),
    "RandAugment": (),
    "RandomBrightness": (0.2,),
    "RandomColorDegeneration": (0.2,),
    "RandomColorJitter": (),
    "RandomContrast": (0.2,),
    "RandomElasticTransform": (),
    "RandomErasing": (),
    "RandomFlip": (),
    "RandomGaussianBlur": (),
    "RandomGrayscale": (),
    "RandomHue": (0.2,),
    "RandomInvert": (),
    "RandomPerspective": (),
    "RandomPosterization": (4,),
    "RandomRotation": (0.2,),
    "RandomSaturation": (0.2,),
    "RandomSharpness": (0.2,),
    "RandomShear": (),
    "RandomTranslation": (0.2, 0.2),
    "RandomZoom": (0.2,),
}

# Integers in [0, 20).
IDS: dict[str, Call] = {
    "Embedding": lambda L, x: L.Embedding(20, 6)(x),
    "Embedding_masked": lambda L, x: L.LSTM(4)(L.Embedding(20, 6, mask_zero=True)(x)),
    "ReversibleEmbedding": lambda L, x: L.ReversibleEmbedding(20, 6)(x),
    "CategoryEncoding": lambda L, x: L.Dense(4)(L.CategoryEncoding(20, "multi_hot")(x)),
    "Hashing": lambda L, x: L.Hashing(5)(x),
    "IntegerLookup": lambda L, x: L.IntegerLookup(vocabulary=[1, 2, 3])(x),
}

# The layers that have no corpus model, and why.
LEFT_OUT = {
    "Input": "returns a symbolic tensor: the input of every model",
    **dict.fromkeys(
        ["add", "average", "concatenate", "dot", "maximum", "minimum", "multiply", "subtract"], "builds a layer"
    ),
    "InputLayer": "is the input of every model",
    "InputSpec": "describes shapes, is not a layer",
    "Layer": "the base class",
    "deserialize": "no layer",
    "serialize": "no layer",
    "FlaxLayer": "needs JAX",
    "JaxLayer": "needs JAX",
    "TorchModuleWrapper": "needs PyTorch",
    "TFSMLayer": "wraps a SavedModel: TensorFlow's graph, not layers",
    "Equalization": "Keras 3.15 itself cannot build it into a functional model",
    "ConvLSTM3D": "as ConvLSTM1D and ConvLSTM2D, with an input of five axes",
    "HashedCrossing": "works on strings or a pair of integers, outside a TFLite model",
    "StringLookup": "works on strings",
    "TextVectorization": "works on strings",
    "MaxNumBoundingBoxes": "works on dicts of bounding boxes in a data pipeline",
}


def seeded(shape: tuple[int, ...], call: Call, low: float = -2.0, high: float = 2.0) -> Callable[[], tuple[Any, Any]]:
    return lambda: functional({"x": smooth(shape, low, high)}, lambda x: call(import_keras().layers, x))


def of_ids(call: Call) -> Callable[[], tuple[Any, Any]]:
    ids = np.random.default_rng(0).integers(0, 20, (NUM_SAMPLES, 10)).astype(np.int32)
    return lambda: functional({"x": ids}, lambda x: call(import_keras().layers, x))


def passed(name: str, arguments: tuple[Any, ...]) -> Call:
    return lambda L, x: L.Conv2D(3, 3)(getattr(L, name)(*arguments)(x))


def adapted() -> tuple[Any, Any]:
    """Return a Normalization with statistics from data, in one scale (the kinds have the input of many scales)."""
    keras, x = import_keras(), smooth(VECTOR, 3.0, 9.0)
    layer = keras.layers.Normalization()
    layer.adapt(x)
    return functional({"x": x}, lambda tensor: layer(tensor))


def models() -> list[CorpusModel]:
    """Return the models of layers, each with the name `layers.<layer>` or `layers.<layer>_<variant>`."""
    groups = [(VECTORS, VECTOR), (SEQUENCES, SEQUENCE), (IMAGES, IMAGE), (VOLUMES, VOLUME), (RECURRENT, STEPS)]
    builders = {name: seeded(shape, call) for calls, shape in groups for name, call in calls.items()}
    builders |= {name: seeded(COLORS, call, 0.0, 255.0) for name, call in PIXELS.items()}
    builders |= {name: seeded(COLORS, passed(name, items), 0.0, 255.0) for name, items in PASSED.items()}
    builders |= {name: of_ids(call) for name, call in IDS.items()}
    builders["Normalization"] = adapted
    return [CorpusModel(name=f"layers.{name}", build=build) for name, build in builders.items()]

# SPDX-License-Identifier: Apache-2.0
"""Backbones of KerasHub in small configurations, with random weights that matter. Nothing is downloaded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.keras_bridge import import_keras

SEED = 0
IMAGE = (64, 64, 3)
TOKENS, VOCABULARY = 12, 100


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of the matrix.

    Args:
        build: Returns the model.
        inputs: "image", "text" or "sequence".
        trained: Whether it is also bridged and quantization-aware trained.
    """

    build: Callable[[], Any]
    inputs: str = "image"
    trained: bool = True


def _models() -> Any:
    import keras_hub

    return keras_hub.models


def _resnet(**options: Any) -> Any:
    return _models().ResNetBackbone(
        **{
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 64, 64],
            "stackwise_num_blocks": [2, 1, 1],
            "stackwise_num_strides": [1, 2, 2],
            "block_type": "basic_block",
            "image_shape": IMAGE,
            **options,
        }
    )


def _mobilenet() -> Any:
    return _models().MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64]],
        stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[16, 16], [24]],
        stackwise_kernel_size=[[3, 3], [5]],
        stackwise_num_strides=[[2, 1], [2]],
        stackwise_se_ratio=[[None, None], [0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [2]],
        output_num_filters=64,
        input_num_filters=16,
        input_activation="hard_swish",
        output_activation="hard_swish",
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=64,
        squeeze_and_excite=0.5,
        image_shape=IMAGE,
    )


def _efficientnet() -> Any:
    return _models().EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["fused", "unfused", "unfused"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        num_features=64,
        input_shape=IMAGE,
    )


def _cspnet() -> Any:
    return _models().CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 1],
        stackwise_strides=[2, 2],
        stackwise_num_filters=[16, 32],
        bottle_ratio=[0.5],
        block_ratio=[0.5],
        expand_ratio=[1.0],
        block_type="dark_block",
        stage_type="csp",
        image_shape=IMAGE,
    )


def _mit() -> Any:
    return _models().MiTBackbone(
        image_shape=IMAGE,
        num_layers=4,
        hidden_dims=[8, 16, 24, 32],
        layerwise_depths=[1, 1, 1, 1],
        layerwise_num_heads=[1, 2, 2, 4],
        layerwise_sr_ratios=[8, 4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        max_drop_path_rate=0.1,
    )


def _deeplab() -> Any:
    encoder = _resnet(
        stackwise_num_filters=[64] * 4,
        stackwise_num_blocks=[1] * 4,
        stackwise_num_strides=[1, 2, 2, 2],
    )
    return _models().DeepLabV3Backbone(
        image_encoder=encoder,
        projection_filters=16,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[2, 4, 6],
        image_shape=IMAGE,
    )


def _xception() -> Any:
    return _models().XceptionBackbone(
        stackwise_conv_filters=[[8, 16], [32, 32]],
        stackwise_pooling=[True, False],
        image_shape=IMAGE,
    )


def _of_fixed_length(backbone: Any) -> Any:
    """Return the model for TOKENS tokens; the backbone itself takes any number."""
    keras = import_keras()
    inputs = {name: keras.Input((TOKENS,), dtype=tensor.dtype, name=name) for name, tensor in backbone.input.items()}
    return keras.Model(inputs, backbone(inputs))


def _text(name: str) -> Callable[[], Any]:
    def build() -> Any:
        return _of_fixed_length(
            getattr(_models(), name)(
                vocabulary_size=VOCABULARY,
                num_layers=2,
                num_heads=2,
                hidden_dim=32,
                intermediate_dim=64,
                max_sequence_length=16,
            )
        )

    return build


def _tcn() -> Any:
    from tcn import TCN

    keras = import_keras()
    inputs = keras.Input((32, 4))
    x = TCN(nb_filters=16, kernel_size=3, dilations=(1, 2, 4), use_batch_norm=True, name="tcn")(inputs)
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(x))


MODELS = {
    "ResNet": Entry(build=lambda: _resnet(use_pre_activation=True)),
    "MobileNet": Entry(build=_mobilenet),
    "EfficientNet": Entry(build=_efficientnet),
    "DenseNet": Entry(
        build=lambda: _models().DenseNetBackbone(stackwise_num_repeats=[2, 2, 2], growth_rate=8, image_shape=IMAGE)
    ),
    "CSPNet": Entry(build=_cspnet),
    "MiT": Entry(build=_mit, trained=False),
    "SegFormer": Entry(
        build=lambda: _models().SegFormerBackbone(image_encoder=_mit(), projection_filters=32), trained=False
    ),
    "DeepLabV3": Entry(build=_deeplab),
    "ViT": Entry(
        build=lambda: _models().ViTBackbone(
            image_shape=IMAGE, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
        ),
        trained=False,
    ),
    "Bert": Entry(build=_text("BertBackbone"), inputs="text", trained=False),
    "GPT2": Entry(build=_text("GPT2Backbone"), inputs="text", trained=False),
    "VGG": Entry(
        build=lambda: _models().VGGBackbone(
            stackwise_num_repeats=[1, 1, 2], stackwise_num_filters=[8, 16, 32], image_shape=IMAGE
        )
    ),
    "Xception": Entry(build=_xception),
    "DistilBert": Entry(build=_text("DistilBertBackbone"), inputs="text", trained=False),
    "Roberta": Entry(build=_text("RobertaBackbone"), inputs="text", trained=False),
    "TCN (keras-tcn)": Entry(build=_tcn, inputs="sequence"),
}


def model_of(name: str) -> Any:
    """Return a model of the matrix with weights that matter."""
    keras = import_keras()
    keras.utils.set_random_seed(SEED)
    model = MODELS[name].build()
    _set_weights(model)
    _set_statistics(model, examples(name, model, 16, seed=1))
    return model


def examples(name: str, model: Any, count: int, seed: int) -> dict[str, np.ndarray]:
    """Return random examples by input name. The end of each text is padding, which the mask leaves out."""
    rng = np.random.default_rng(seed)
    kind, names = MODELS[name].inputs, [tensor.name for tensor in model.inputs]
    if kind != "text":
        shape = (count, *model.inputs[0].shape[1:])
        noise = rng.normal(size=shape) if kind == "sequence" else _images(rng, shape)
        return {names[0]: noise.astype(np.float32)}
    lengths = rng.integers(TOKENS // 2, TOKENS, (count, 1))
    mask = np.arange(TOKENS) < lengths
    values = {
        "token_ids": np.where(mask, rng.integers(1, VOCABULARY, (count, TOKENS)), 0),
        "segment_ids": np.arange(TOKENS) >= lengths // 2,
        "padding_mask": mask,
    }
    return {input_name: values[input_name].astype(np.int32) for input_name in names}


def _images(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return images of coarse and fine structure in [-1, 1]."""
    count, height, width, channels = shape
    coarse = rng.uniform(-0.7, 0.7, (count, height // 8, width // 8, channels)).repeat(8, 1).repeat(8, 2)
    return coarse + rng.uniform(-0.3, 0.3, shape)


def _set_weights(model: Any) -> None:
    rng = np.random.default_rng(SEED)
    for variable in model.weights:
        shape, name = tuple(variable.shape), variable.path.split("/")[-1]
        if "seed" in name:
            continue
        if name in ("gamma", "scale"):
            values = rng.uniform(0.6, 1.4, shape)
        elif len(shape) > 1 and "kernel" in name:
            is_depthwise = "depthwise" in name
            fan_in = math.prod(shape[:2] if is_depthwise else shape[:-1])
            if len(shape) == 3 and any(part in variable.path for part in ("query", "key", "value")):
                fan_in = shape[0]
            values = rng.normal(0, 1.3 / math.sqrt(fan_in), shape)
        else:
            values = rng.normal(0, 0.5 if len(shape) > 1 else 0.2, shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in name else values)


def _set_statistics(model: Any, inputs: dict[str, np.ndarray]) -> None:
    """Set the statistics of BatchNormalization to those of a batch, and change them by up to 10%.

    A channel that is almost constant would make rounding errors as large as the signal, so that its variance is at
    least a fifth of the mean of the layer.
    """
    keras, rng = import_keras(), np.random.default_rng(SEED)
    norms = [item for item in model._flatten_layers() if isinstance(item, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(next(iter(inputs.values())), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        variance = np.asarray(norm.moving_variance)
        norm.moving_variance.assign(np.maximum(variance, 0.2 * variance.mean()) * rng.uniform(0.9, 1.1, variance.shape))
        norm.moving_mean.assign(np.asarray(norm.moving_mean) * rng.uniform(0.9, 1.1, variance.shape))

# SPDX-License-Identifier: Apache-2.0
"""Backbones of KerasHub in small configurations, with random weights that matter. Nothing is downloaded."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_hub_matrix import backbones
from keras_hub_matrix.backbones import IMAGE, TOKENS, VOCABULARY, models
from tfq.keras_bridge import import_keras

SEED = 0
CLASSES, TRAINING_EXAMPLES, EPOCHS = 5, 384, 3


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of the matrix.

    Args:
        build: Returns the model.
        trained: Whether it is trained, first in float and then quantization-aware.
    """

    build: Callable[[], Any]
    trained: bool = True


def _resnet(**options: Any) -> Any:
    return models().ResNetBackbone(
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
    return models().MobileNetBackbone(
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
    return models().EfficientNetBackbone(
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
    return models().CSPNetBackbone(
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
    return models().MiTBackbone(
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
    return models().DeepLabV3Backbone(
        image_encoder=encoder,
        projection_filters=16,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[2, 4, 6],
        image_shape=IMAGE,
    )


def _xception() -> Any:
    return models().XceptionBackbone(
        stackwise_conv_filters=[[8, 16], [32, 32]],
        stackwise_pooling=[True, False],
        image_shape=IMAGE,
    )


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
        build=lambda: models().DenseNetBackbone(stackwise_num_repeats=[2, 2, 2], growth_rate=8, image_shape=IMAGE)
    ),
    "CSPNet": Entry(build=_cspnet),
    "MiT": Entry(build=_mit, trained=False),
    "SegFormer": Entry(
        build=lambda: models().SegFormerBackbone(image_encoder=_mit(), projection_filters=32), trained=False
    ),
    "DeepLabV3": Entry(build=_deeplab),
    "ViT": Entry(
        build=lambda: models().ViTBackbone(
            image_shape=IMAGE, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
        ),
        trained=False,
    ),
    "Bert": Entry(build=functools.partial(backbones.text, "BertBackbone"), trained=False),
    "GPT2": Entry(build=functools.partial(backbones.text, "GPT2Backbone"), trained=False),
    "VGG": Entry(
        build=lambda: models().VGGBackbone(
            stackwise_num_repeats=[1, 1, 2], stackwise_num_filters=[8, 16, 32], image_shape=IMAGE
        )
    ),
    "Xception": Entry(build=_xception),
    "DistilBert": Entry(build=functools.partial(backbones.text, "DistilBertBackbone"), trained=False),
    "Roberta": Entry(build=functools.partial(backbones.text, "RobertaBackbone"), trained=False),
    "HGNetV2": Entry(build=backbones.hgnet),
    "RetinaNet": Entry(build=backbones.retinanet),
    "MobileNetV5": Entry(build=backbones.mobilenet_v5, trained=False),
    "DINOV2": Entry(build=backbones.dinov2, trained=False),
    "DeiT": Entry(build=backbones.deit, trained=False),
    "Swin": Entry(build=backbones.swin, trained=False),
    "CLIP-image-encoder": Entry(build=backbones.clip_vision, trained=False),
    "SigLIP-image-encoder": Entry(build=backbones.siglip_vision, trained=False),
    "SAM-image-encoder": Entry(build=backbones.vit_det, trained=False),
    "Whisper-encoder": Entry(build=backbones.whisper_encoder, trained=False),
    "T5-encoder": Entry(build=backbones.t5_encoder, trained=False),
    "ALBERT": Entry(build=backbones.albert, trained=False),
    "ELECTRA": Entry(build=backbones.electra, trained=False),
    "BART": Entry(build=backbones.bart, trained=False),
    "TCN (keras-tcn)": Entry(build=_tcn),
}


def model_of(name: str) -> Any:
    """Return a model of the matrix, trained briefly."""
    keras = import_keras()
    keras.utils.set_random_seed(SEED)
    model = MODELS[name].build()
    _set_weights(model)
    _set_statistics(model, structured_inputs(model, labeled_examples(model, 128, seed=1)[0]))
    return model


def structured_inputs(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    """Return inputs by name in the structure of the model's inputs."""
    arrays = [inputs[tensor.name] for tensor in model.inputs]
    return inputs if isinstance(model.input, dict) else arrays if len(arrays) > 1 else arrays[0]


def train(model: Any) -> Any:
    """Train a model with a linear head on its pooled outputs to recognize the class; return the head."""
    keras = import_keras()
    inputs, labels = labeled_examples(model, TRAINING_EXAMPLES, seed=1)
    features = pooled(list(keras.tree.flatten(model.output)))
    head = keras.layers.Dense(CLASSES, name="head")
    classifier = keras.Model(model.input, head(features))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(2e-3, clipnorm=1.0), loss, jit_compile=False)
    structured = structured_inputs(model, inputs)
    classifier.fit(structured, labels, batch_size=32, epochs=EPOCHS, verbose=0)
    _set_statistics(model, structured)
    return head


def pooled(outputs: list[Any]) -> Any:
    """Return the means of outputs over all axes except the first and the last, concatenated."""
    ops = import_keras().ops
    means = [ops.mean(x, axis=tuple(range(1, len(x.shape) - 1))) if len(x.shape) > 2 else x for x in outputs]
    return means[0] if len(means) == 1 else ops.concatenate(means, axis=-1)


def examples(name: str, model: Any, count: int, seed: int) -> dict[str, np.ndarray]:
    """Return random examples by input name."""
    return labeled_examples(model, count, seed)[0]


def labeled_examples(model: Any, count: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return random examples by input name, and the class of each.

    Images contain a pattern of the class, sequences an oscillation, texts tokens of a part of the vocabulary. The end
    of each text is padding, which the mask leaves out.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    lengths = rng.integers(TOKENS // 2, TOKENS, (count, 1))
    mask = np.arange(TOKENS) < lengths
    part = VOCABULARY // CLASSES
    of_class = labels[:, None] * part + rng.integers(0, part, (count, TOKENS))
    anything = rng.integers(1, VOCABULARY, (count, TOKENS))
    tokens = np.where(rng.random((count, TOKENS)) < 0.5, np.maximum(of_class, 1), anything)
    texts = {"token_ids": np.where(mask, tokens, 0), "segment_ids": np.arange(TOKENS) >= lengths // 2}

    def values(tensor: Any) -> np.ndarray:
        shape = tuple(tensor.shape[1:])
        kind = next((key for key in texts if key in tensor.name), None)
        if kind or tensor.name.endswith("padding_mask"):
            return (texts[kind] if kind else mask).astype(np.int32)
        if len(shape) == 3:
            return _images(rng, labels, shape).astype(np.float32)
        angles = np.arange(shape[0])[:, None] * (1 + labels[:, None, None]) * 0.5 + np.arange(shape[1])
        return (np.sin(angles) + rng.normal(0, 0.3, (count, *shape))).astype(np.float32)

    return {tensor.name: values(tensor) for tensor in model.inputs}, labels


def _images(rng: np.random.Generator, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return images in [-1, 1]: the pattern of the class, coarse and fine structure."""
    height, width, channels = shape

    def coarse(generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.uniform(-0.4, 0.4, (count, height // 8, width // 8, channels)).repeat(8, 1).repeat(8, 2)

    patterns = coarse(np.random.default_rng(SEED), CLASSES)
    return patterns[labels] + coarse(rng, len(labels)) + rng.uniform(-0.2, 0.2, (len(labels), *shape))


def _set_weights(model: Any) -> None:
    rng = np.random.default_rng(SEED)
    for variable in model.weights:
        shape, name = tuple(variable.shape), variable.path.split("/")[-1]
        if "seed" in name or "float" not in str(variable.dtype):
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


def _set_statistics(model: Any, inputs: Any) -> None:
    """Set the statistics of BatchNormalization to those of all training examples, as after a long training."""
    keras = import_keras()
    norms = [item for item in model._flatten_layers() if isinstance(item, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(keras.tree.map_structure(lambda array: array[:128], inputs), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum

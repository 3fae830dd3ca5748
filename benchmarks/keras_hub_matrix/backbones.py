# SPDX-License-Identifier: Apache-2.0
"""More backbones and encoders of KerasHub in small configurations."""

from typing import Any

from tfq.keras_bridge import import_keras

TOKENS, VOCABULARY = 12, 100
IMAGE = (64, 64, 3)
SMALL_IMAGE = (32, 32, 3)
FRAMES, MELS = 24, 20
TEXT = {"vocabulary_size": VOCABULARY, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64}
VISION = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64}


def models() -> Any:
    """Return the module of KerasHub's models."""
    import keras_hub

    return keras_hub.models


def of_fixed_shape(model: Any, sizes: dict[str, tuple[int, ...]]) -> Any:
    """Return the model for inputs of these shapes (without the batch); the model itself accepts any length."""
    keras = import_keras()
    inputs = {
        tensor.name: keras.Input(sizes[tensor.name], dtype=tensor.dtype, name=tensor.name) for tensor in model.inputs
    }
    structured = inputs if isinstance(model.input, dict) else [inputs[tensor.name] for tensor in model.inputs]
    return keras.Model(inputs, model(structured))


def text(name: str, **options: Any) -> Any:
    """Return a text backbone for TOKENS tokens."""
    backbone = getattr(models(), name)(**{**TEXT, "max_sequence_length": 16, **options})
    return of_fixed_shape(backbone, {tensor.name: (TOKENS,) for tensor in backbone.inputs})


def albert() -> Any:
    return text("AlbertBackbone", embedding_dim=16)


def electra() -> Any:
    options = {"vocab_size": VOCABULARY, "embedding_dim": 16, "max_sequence_length": 16}
    sizes = {key: value for key, value in TEXT.items() if key != "vocabulary_size"}
    backbone = models().ElectraBackbone(**sizes, **options)
    return of_fixed_shape(backbone, {tensor.name: (TOKENS,) for tensor in backbone.inputs})


def t5_encoder() -> Any:
    backbone = models().T5Backbone(**TEXT)
    keras = import_keras()
    names = ("encoder_token_ids", "encoder_padding_mask")
    encoder = keras.Model({name: backbone.input[name] for name in names}, backbone.output["encoder_sequence_output"])
    return of_fixed_shape(encoder, dict.fromkeys(names, (TOKENS,)))


def bart() -> Any:
    backbone = models().BartBackbone(**TEXT, max_sequence_length=16)
    return of_fixed_shape(backbone, {tensor.name: (TOKENS,) for tensor in backbone.inputs})


def whisper_encoder() -> Any:
    backbone = models().WhisperBackbone(
        **TEXT, num_mels=MELS, max_encoder_sequence_length=FRAMES, max_decoder_sequence_length=16
    )
    keras = import_keras()
    features = backbone.input["encoder_features"]
    encoder = keras.Model(features, backbone.output["encoder_sequence_output"])
    return of_fixed_shape(encoder, {features.name: (FRAMES, MELS)})


def retinanet() -> Any:
    encoder = models().ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64] * 4,
        stackwise_num_blocks=[1] * 4,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=IMAGE,
    )
    return models().RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=6, use_p5=False, use_fpn_batch_norm=True, image_shape=IMAGE
    )


def hgnet() -> Any:
    return models().HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=16,
        hidden_sizes=[32, 64],
        stem_channels=[3, 8, 16],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[(16, 16, 32, 1, 2, 3), (32, 16, 64, 1, 2, 5)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
        image_shape=IMAGE,
        out_features=["stage1", "stage2"],
    )


def mobilenet_v5() -> Any:
    return models().MobileNetV5Backbone(
        stackwise_block_types=[["er"], ["uir", "mqa"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[16], [24, 24]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[2.0], [2.0, 2.0]],
        stackwise_se_ratios=[[0.0], [0.0, 0.0]],
        stackwise_dw_kernel_sizes=[[0], [5, 3]],
        stackwise_dw_start_kernel_sizes=[[0], [0, 0]],
        stackwise_dw_end_kernel_sizes=[[0], [0, 0]],
        stackwise_exp_kernel_sizes=[[3], [0, 0]],
        stackwise_pw_kernel_sizes=[[1], [0, 0]],
        stackwise_num_heads=[[0], [0, 2]],
        stackwise_key_dims=[[0], [0, 8]],
        stackwise_value_dims=[[0], [0, 8]],
        stackwise_kv_strides=[[0], [0, 1]],
        stackwise_use_cpe=[[False], [False, False]],
        use_msfa=False,
        image_shape=IMAGE,
    )


def swin() -> Any:
    return models().SwinTransformerBackbone(
        image_shape=SMALL_IMAGE, embed_dim=16, depths=(2, 1), num_heads=(2, 2), window_size=4, patch_size=2
    )


def vit_det() -> Any:
    return models().ViTDetBackbone(
        image_shape=SMALL_IMAGE,
        patch_size=4,
        hidden_size=16,
        num_layers=2,
        global_attention_layer_indices=[1],
        intermediate_dim=32,
        num_heads=2,
        num_output_channels=8,
        window_size=4,
    )


def dinov2() -> Any:
    return models().DINOV2Backbone(patch_size=8, **VISION, image_shape=SMALL_IMAGE, position_embedding_shape=(32, 32))


def deit() -> Any:
    return models().DeiTBackbone(image_shape=SMALL_IMAGE, patch_size=8, **VISION)


def clip_vision() -> Any:
    return models().CLIPVisionEncoder(patch_size=8, **VISION, image_shape=SMALL_IMAGE)


def siglip_vision() -> Any:
    return models().SigLIPVisionEncoder(patch_size=8, **VISION, image_shape=SMALL_IMAGE)

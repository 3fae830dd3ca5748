# SPDX-License-Identifier: Apache-2.0
"""A layer of a nested tf_keras model, made anew for the flat one."""

from typing import Any

from tfq.keras_bridge.layers.attention import attention_in_parts, options_of
from tfq.keras_bridge.layers.config import NARROW
from tfq.keras_bridge.layers.translate import AUGMENTATION
from tfq.keras_bridge.layers.translation import Making, Translation
from tfq.keras_bridge.untranslatable import Untranslatable

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

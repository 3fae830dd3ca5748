# SPDX-License-Identifier: Apache-2.0
"""Faults of tfmot, which tfq fixes inside a context and restores after it."""

import contextlib
import importlib

import pytest
from messages import refused

from tfq.compression._tfmot import tfmot_fixes, tfmot_symbols
from tfq.compression.gate import check_same_function
from tfq.compression.training import deterministic
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras, import_tfmot

QUANTIZATION = "tensorflow_model_optimization.python.core.quantization.keras"


def permuted_model():
    """Return a model whose Concatenate stock tfmot 0.8.1 reorders: one branch is fused, the other is not."""
    keras = import_tf_keras()
    layers = keras.layers
    with deterministic(0):
        image = keras.Input((6, 6, 2), name="image")
        fused = layers.Conv2D(4, 3, padding="same", name="fused")(image)
        fused = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(fused))
        plain = layers.Conv2D(4, 1, name="plain")(image)
        x = layers.Flatten(name="flatten")(layers.Concatenate(name="join")([fused, plain]))
        return keras.Model(image, layers.Dense(3, "softmax", name="head")(x))


def separable_model():
    """Return a model with the names that tfmot gives the halves of a separable convolution in a fresh process."""
    keras = import_tf_keras()
    x = image = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(4, 1, name="conv2d")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise_conv2d")(x)
    return keras.Model(image, keras.layers.SeparableConv2D(4, 3, name="separable")(x))


@pytest.mark.parametrize(("context", "fails"), [(contextlib.nullcontext, True), (tfmot_fixes.fixed_transforms, False)])
def test_repaired_tfmot_keeps_the_order_of_concatenate_inputs(context, fails):
    model = permuted_model()
    with context():
        quantized = import_tfmot().quantization.keras.quantize_model(model)
    with refused(TfqError, field="model") if fails else contextlib.nullcontext():
        check_same_function(model, quantized)


@pytest.mark.parametrize(
    ("context", "names"),
    [
        (contextlib.nullcontext, ["conv2d", "conv2d", "depthwise_conv2d", "depthwise_conv2d"]),
        (tfmot_fixes.fixed_transforms, ["conv2d", "depthwise_conv2d", "separable_depthwise", "separable_pointwise"]),
    ],
)
def test_repaired_tfmot_gives_separable_halves_separate_names(context, names):
    # tf_keras never finishes building a model from a config with two layers of one name, so only the config is checked.
    transforms = importlib.import_module(f"{QUANTIZATION}.default_8bit.default_8bit_transforms")
    transformer = importlib.import_module(f"{QUANTIZATION}.graph_transformations.model_transformer")
    seen = []

    class Stop(Exception):
        pass

    def from_config(config, custom_objects):
        seen.extend(layer["config"]["name"] for layer in config["layers"] if "conv" in layer["class_name"].lower())
        raise Stop

    model = separable_model()
    with pytest.MonkeyPatch.context() as patch, context(), tfmot_symbols.automatic_names_from_zero(avoid=[]):
        patch.setattr(transformer.keras.Model, "from_config", staticmethod(from_config))
        with pytest.raises(Stop):
            transformer.ModelTransformer(model, [transforms.SeparableConvQuantize()]).transform()
    assert sorted(seen) == names


def test_a_repaired_tfmot_quantizes_what_it_hung_on():
    model = separable_model()
    with tfmot_fixes.fixed_transforms(), tfmot_symbols.automatic_names_from_zero(avoid=[]):
        quantized = import_tfmot().quantization.keras.quantize_model(model)
    check_same_function(model, quantized)


def test_tfmot_is_what_it_was_after_also_where_something_fails():
    transformer = importlib.import_module(f"{QUANTIZATION}.graph_transformations.model_transformer").ModelTransformer
    transforms = importlib.import_module(f"{QUANTIZATION}.default_8bit.default_8bit_transforms")
    before = transformer._get_layers, transforms.SeparableConvQuantize.replacement
    with pytest.raises(KeyError), tfmot_fixes.fixed_transforms():
        assert transformer._get_layers is not before[0]
        assert transforms.SeparableConvQuantize.replacement is not before[1]
        raise KeyError
    assert (transformer._get_layers, transforms.SeparableConvQuantize.replacement) == before


def test_private_symbols_of_tfmot_are_where_the_repair_touches_them():
    import_tfmot()
    for module, name in [
        ("graph_transformations.model_transformer", "ModelTransformer"),
        ("default_8bit.default_8bit_transforms", "SeparableConvQuantize"),
        ("default_8bit.default_8bit_transforms", "InputLayerQuantize"),
        ("default_8bit.default_8bit_quantize_scheme", "Default8BitQuantizeScheme"),
        ("default_8bit.default_8bit_quantize_registry", "Default8BitQuantizeRegistry"),
        ("quantize_layout_transform", "QuantizeLayoutTransform"),
    ]:
        assert isinstance(getattr(importlib.import_module(f"{QUANTIZATION}.{module}"), name), type)

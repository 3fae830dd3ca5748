# SPDX-License-Identifier: Apache-2.0
"""Layer names of ops, compared with the layers that tests/golden/make.py built."""

import pytest
from golden_models import golden

from tfq.tflite import read, write_metadata
from tfq.tflite.layer_names import LayerNames
from tfq.tflite.records import Tensor

CNN = ["conv1", "depthwise", "pointwise", "residual", "conv2", "pool", "flatten", "logits"]
ALL_LAYERS = ["image", "rescale", "bn1", "relu1", "bn_depthwise", "relu_depthwise", "probabilities", *CNN]


def _layers(data: bytes) -> list:
    return [op.keras_layer for op in read(data).main_subgraph.ops if op.name != "QUANTIZE"]


def test_tf_keras_layers_are_guessed_from_the_names():
    # The last op's tensor has only the output's name and cannot be traced.
    assert _layers(golden("digits_int8")) == [*CNN, None]


def test_layers_of_a_qat_model_are_named_without_their_wrapper():
    assert _layers(golden("digits_int8_qat")) == [*CNN, "probabilities"]


@pytest.mark.parametrize("name", ["digits_int8", "digits_int8_keras3", "digits_float16"])
def test_layers_that_the_file_lists_are_matched_exactly(name):
    data = write_metadata(golden(name), {"keras_layers": ALL_LAYERS})
    assert [layer for layer in _layers(data) if layer is not None][-len(CNN) :] == CNN


def test_qat_layers_are_matched_with_the_users_layer_names():
    data = write_metadata(golden("digits_int8_qat"), {"keras_layers": ALL_LAYERS})
    assert _layers(data) == [*CNN, "probabilities"]


def test_a_user_layer_named_like_a_wrapper_keeps_its_name():
    names = ["m/quant_conv/Conv2D", "m/quant_quant_conv/Conv2D"]
    assert [_layer("CONV_2D", [*names, name], ["conv", "quant_conv"]) for name in names] == ["conv", "quant_conv"]
    # Not wrapped at all: a model without fake quantization.
    assert _layer("CONV_2D", ["m/quant_conv/Conv2D"], ["conv", "quant_conv"]) == "quant_conv"


def test_names_that_no_listed_layer_is_in_give_none():
    data = write_metadata(golden("digits_int8"), {"keras_layers": ["encoder", "decoder"]})
    assert _layers(data) == [None] * 9


@pytest.mark.parametrize("entry", [{"keras_layers": "conv1"}, {"keras_layers": [1, None]}, {"other": 1}])
def test_a_useless_list_falls_back_to_the_form_of_the_names(entry):
    assert _layers(write_metadata(golden("digits_int8"), entry))[0] == "conv1"


def _layer(op: str, names: list[str], known: list[str] | None = None) -> str | None:
    tensors = [
        Tensor(index=index, name=name, shape=(), shape_signature=(), dtype="int8") for index, name in enumerate(names)
    ]
    last = len(names) - 1
    return LayerNames(tensors, known).layer(op, (), (last,))


@pytest.mark.parametrize(
    ("op", "name", "layer"),
    [
        ("CONV_2D", "model/relu/Relu;model/conv/Conv2D", "conv"),
        ("ADD", "model/relu/Relu;model/add_1/add", "add_1"),
        # Names of a published file: a zero bias shared with conv2d_2.
        (
            "CONV_2D",
            "m/act/Relu;m/conv2d/BiasAdd/resource;m/conv2d/BiasAdd;m/conv2d_2/Conv2D;m/conv2d/Conv2D1",
            "conv2d",
        ),
        (
            "FULLY_CONNECTED",
            "StatefulPartitionedCall/net/dense/MatMul;StatefulPartitionedCall/net/dense/BiasAdd",
            "dense",
        ),
        ("SOFTMAX", "PartitionedCall:0", None),
        ("ADD", "Identity", None),
        ("ADD", "", None),
        ("QUANTIZE", "tfl.quantize", None),
    ],
)
def test_layer_of_a_fused_name(op, name, layer):
    assert _layer(op, [name]) == layer


def test_keras_3_scopes_with_numbers_do_not_shift_numbered_layers():
    names = ["net_1/conv2d_1/convolution", "net_1/conv2d_1_1/convolution"]
    assert _layer("CONV_2D", names, ["conv2d", "conv2d_1"]) == "conv2d_1"
    assert _layer("CONV_2D", names[:1] * 2 + names[1:] + names[:1], ["conv2d", "conv2d_1"]) == "conv2d"


def test_tf_keras_numbered_layers_are_taken_as_they_are():
    names = ["net/conv2d/Conv2D", "net/conv2d_1/Conv2D"]
    assert _layer("CONV_2D", names, ["conv2d", "conv2d_1"]) == "conv2d_1"


def test_innermost_layer_of_a_nested_model_is_named():
    assert _layer("CONV_2D", ["outer/backbone/conv/Conv2D"], ["backbone", "conv"]) == "conv"


def _layers_named(names: list[str], op: str = "CONV_2D") -> list[str | None]:
    tensors = [
        Tensor(index=index, name=name, shape=(), shape_signature=(), dtype="float32")
        for index, name in enumerate(names)
    ]
    layers = LayerNames(tensors, None)
    return [layers.layer(op, (), (index,)) for index in range(len(names))]


@pytest.mark.parametrize("prefix", ["MobilenetV1/MobilenetV1", "model_1/model", "StatefulPartitionedCall/net/a/b"])
def test_scopes_that_all_layers_share_are_not_a_layer(prefix):
    # Named like the tensors of TF-slim's MobileNet and of nested Keras models; the head is outside of the backbone.
    names = [f"{prefix}/Conv2d_{index}/Relu6;{prefix}/Conv2d_{index}/Conv2D" for index in range(30)]
    layers = [f"Conv2d_{index}" for index in range(30)]
    head = f"{prefix.removeprefix('StatefulPartitionedCall/').split('/')[0]}/head/Conv2D"
    assert _layers_named([*names, head]) == [*layers, "head"]


def test_blocks_of_a_model_stay_its_layers():
    names = [f"model/block{block}/conv{conv}/Conv2D" for block in range(4) for conv in range(8)]
    assert _layers_named(names) == [f"block{block}" for block in range(4) for _ in range(8)]


def test_parts_of_the_largest_layer_are_not_layers():
    parts = ["query", "key", "value", "scores"]
    names = [*(f"model/attention/{part}/einsum/Einsum" for part in parts for _ in range(3)), "model/dense/MatMul"]
    assert _layers_named(names) == ["attention"] * 12 + ["dense"]

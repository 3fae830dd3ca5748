# SPDX-License-Identifier: Apache-2.0
"""Names of inputs, outputs and layers, read from stand-ins for Keras models."""

from types import SimpleNamespace

from tfq.keras_bridge.copies import distinct, flat_output_names, layer_names, output_names, own_name


def wrapper(name):
    return SimpleNamespace(name=f"quant_{name}", layer=SimpleNamespace(name=name), quantize_config=object())


def test_a_wrappers_own_name_is_that_of_its_layer():
    assert own_name(wrapper("conv")) == "conv"
    assert own_name(SimpleNamespace(name="quant_conv")) == "quant_conv"


def test_outputs_are_named_after_the_layers_inside_wrappers():
    twice = wrapper("box")
    names = ["quant_box", "quant_box_1", "mine"]
    model = SimpleNamespace(output_names=names, _output_layers=[twice, twice, wrapper("other")])
    assert flat_output_names(model) == ["box", "box_1", "mine"]


def test_names_of_a_dict_are_its_keys_unless_it_is_nested():
    model = SimpleNamespace(output={"b": 1, "a": 2}, output_names=["x", "y"])
    assert output_names(model, [1, 2]) == ("a", "b")
    model = SimpleNamespace(output={"b": [1, 2]}, output_names=["x", "y"])
    assert output_names(model, [1, 2]) == ("x", "y")


def test_layers_are_listed_once_by_name_in_the_graph():
    image = SimpleNamespace(name="image")
    QuantizeLayer = type("QuantizeLayer", (), {"name": "quantize_layer"})
    QuantizeLayer.inbound_nodes = [SimpleNamespace(inbound_layers=image)]
    inner = SimpleNamespace(name="inner", layers=[wrapper("conv")])
    model = SimpleNamespace(layers=[image, QuantizeLayer(), wrapper("stem"), inner, wrapper("stem")])
    own = {"image": "image", "quantize_layer": "image"}
    assert layer_names(model) == {**own, "quant_stem": "stem", "inner": "inner", "quant_conv": "conv"}


def test_repeated_names_are_numbered():
    assert distinct(["a", "b"], "output") == ("a", "b")
    assert distinct(["a", "a"], "output") == distinct(["", "a"], "output") == ("output_0", "output_1")

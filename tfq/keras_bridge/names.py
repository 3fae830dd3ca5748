# SPDX-License-Identifier: Apache-2.0
"""Names of a model's inputs, outputs and layers, as its user knows them: tfmot's wrappers do not change them.

tfmot names the wrapper of layer `x` "quant_x", and tf_keras names an output after the last layer of it. The names of a
model's outputs are its interface: losses, metrics, targets and sample weights are keyed by them, and so is the
signature of the flatbuffer.
"""

from typing import Any


def own_name(layer: Any) -> str:
    """Return the name that the user gave to a layer; for tfmot's QuantizeLayer, that of the input that it quantizes."""
    if hasattr(layer, "quantize_config") and hasattr(layer, "layer"):
        return str(layer.layer.name)
    if type(layer).__name__ == "QuantizeLayer" and len(layer.inbound_nodes) == 1:
        before = layer.inbound_nodes[0].inbound_layers
        return str(layer.name if isinstance(before, (list, tuple)) else before.name)
    return str(layer.name)


def layer_names(model: Any) -> dict[str, str]:
    """Return name in the model -> the user's name of each layer, those in models inside it included.

    tfmot's QuantizeLayer goes by the name of the input that it quantizes.
    """
    names: dict[str, str] = {}
    for layer in model.layers:
        names.setdefault(layer.name, own_name(layer))
        if hasattr(layer, "layers"):
            for name, own in layer_names(layer).items():
                names.setdefault(name, own)
    return names


def input_names(model: Any, structure: Any, tensors: list[Any]) -> tuple[str, ...]:
    """Return the names of a model's inputs in the order of `tensors`: dict keys, otherwise names of Input layers.

    Args:
        model: Of either Keras.
        structure: What its call takes: a tensor, or a list or dict of tensors.
        tensors: The same, flat.
    """
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return tuple(sorted(structure))
    names = list(getattr(model, "input_names", None) or ())
    return distinct(names if len(names) == len(tensors) else [tensor.name for tensor in tensors], "input")


def output_names(model: Any, tensors: list[Any]) -> tuple[str, ...]:
    """Return the names of a model's outputs in the order of `tensors`: dict keys, otherwise names of their layers."""
    structure = getattr(model, "output", None)
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return tuple(sorted(structure))
    names = flat_output_names(model)
    return distinct(names if len(names) == len(tensors) else [""] * len(tensors), "output")


def flat_output_names(model: Any) -> list[str]:
    """Return a model's own `output_names`, without what tfmot added to them."""
    names = list(getattr(model, "output_names", None) or [model.layers[-1].name])  # a Sequential of Keras 3 has none
    layers = list(getattr(model, "_output_layers", None) or ())
    if len(layers) != len(names):
        return names
    # tf_keras numbers the second output of a layer: "quant_x_1".
    return [
        own_name(layer) + name.removeprefix(layer.name) if name.startswith(layer.name) else name
        for name, layer in zip(names, layers, strict=True)
    ]


def keep_names(source: Any, copy: Any) -> None:
    """Give `copy`, a tf_keras model with the inputs and outputs of `source`, the names that these have there.

    tf_keras looks losses, metrics, targets and weights up by `output_names`. A name that several outputs of `source`
    have cannot serve for that, and is replaced as in the signature of a flatbuffer.
    """
    outputs = list(distinct(flat_output_names(source), "output"))
    if len(outputs) == len(copy.output_names) and outputs != list(copy.output_names):
        object.__setattr__(copy, "output_names", outputs)  # Keras' own would wrap the list
    inputs = list(getattr(source, "input_names", None) or [tensor.name for tensor in source.inputs])
    if len(inputs) == len(copy.input_names) and inputs != list(copy.input_names) and len(set(inputs)) == len(inputs):
        object.__setattr__(copy, "input_names", inputs)


def distinct(names: list[str], what: str) -> tuple[str, ...]:
    """Return `names` where each is there once, otherwise "what_0", "what_1" and so on."""
    if len(set(names)) == len(names) and all(names):
        return tuple(names)
    return tuple(f"{what}_{index}" for index in range(len(names)))

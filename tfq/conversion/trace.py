# SPDX-License-Identifier: Apache-2.0
"""A Keras model traced once, to be converted as often as its weights change."""

from dataclasses import dataclass, field
from typing import Any

from tfq.errors import InputError


@dataclass(kw_only=True)
class Trace:
    """The inference function of a model at a fixed batch size, as a TensorFlow concrete function.

    It reads the model's variables when it is converted, so one trace serves every later export of that model.
    """

    function: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    keras_layers: tuple[str, ...]
    # The function refers to its variables weakly: the model must outlive it.
    model: Any = field(repr=False)
    # What freezing can keep between exports: see conversion/freeze.py.
    freezer: Any = field(default=None, repr=False)

    @property
    def has_fake_quant(self) -> bool:
        """Whether the graph carries quantization ranges of its own, as quantization-aware training leaves them."""
        graphs = [self.function.graph.as_graph_def()]
        nodes = [node.op for graph in graphs for node in graph.node]
        nodes += [node.op for graph in graphs for body in graph.library.function for node in body.node_def]
        return any(op.startswith("FakeQuantWithMinMaxVars") for op in nodes)


def trace(model: Any, batch_size: int = 1) -> Trace:
    """Trace a functional or sequential model of either Keras (TensorFlow backend) for inference.

    batch_size: the fixed leading dimension of every input; 0 leaves it dynamic.
    Raises InputError where an input's other dimensions are not all known, or the model is not built.
    """
    import tensorflow as tf

    inputs, outputs = _symbolic(model)
    specs = [
        tf.TensorSpec(_fixed_shape(tensor, name, batch_size), tensor.dtype, name=_identifier(name))
        for name, tensor in zip(_names(model, "input", inputs), inputs, strict=True)
    ]
    structure = model.inputs if not isinstance(getattr(model, "input", None), dict) else model.input

    def infer(*tensors: Any) -> list[Any]:
        packed = tf.nest.pack_sequence_as(structure, list(tensors)) if len(tensors) > 1 else tensors[0]
        return tf.nest.flatten(model(packed, training=False))

    # No autograph: layers bring their own, and a fresh function keeps the user's own tf.function caches out of it.
    function = tf.function(infer, autograph=False).get_concrete_function(*specs)
    return Trace(
        function=function,
        input_names=_names(model, "input", inputs),
        output_names=_names(model, "output", outputs),
        keras_layers=tuple(_layer_names(model)),
        model=model,
    )


def _symbolic(model: Any) -> tuple[list[Any], list[Any]]:
    import tensorflow as tf

    try:
        inputs, outputs = model.inputs, model.outputs
    except (AttributeError, ValueError):
        inputs = outputs = None
    if not inputs or not outputs:
        raise InputError(
            f"{type(model).__name__} {getattr(model, 'name', '')!r} has no symbolic inputs and outputs: wanted a "
            "functional model, or a Sequential one with an Input or already built"
        )
    return tf.nest.flatten(inputs), tf.nest.flatten(outputs)


def _fixed_shape(tensor: Any, name: str, batch_size: int) -> list[int | None]:
    batch, *rest = tensor.shape
    if any(dimension is None for dimension in rest):
        raise InputError(
            f"input {name!r} has shape {tuple(tensor.shape)}: wanted every dimension but the batch fixed, for a "
            "flatbuffer has one shape: build the model with the size that the phone will feed"
        )
    if batch is not None and batch != batch_size:
        raise InputError(
            f"input {name!r} has the batch size {batch} built in, and {batch_size} is asked for: "
            f"convert with batch_size={batch}, or build the model without it"
        )
    return [batch_size or None, *rest]


def _names(model: Any, which: str, tensors: list[Any]) -> tuple[str, ...]:
    """The model's own names of its inputs or outputs: dict keys, else layer names."""
    structure = getattr(model, which, None)
    if isinstance(structure, dict):
        names = sorted(structure)
    else:
        names = list(getattr(model, f"{which}_names", None) or [])
    if len(names) != len(tensors) or len(set(names)) != len(names):
        names = [f"{which}_{index}" for index in range(len(tensors))]
    return tuple(str(name) for name in names)


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _layer_names(model: Any) -> list[str]:
    names = []
    for layer in model.layers:
        names.append(layer.name)
        if hasattr(layer, "layers"):
            names += _layer_names(layer)
    return names

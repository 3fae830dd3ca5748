# SPDX-License-Identifier: Apache-2.0
"""Trace a Keras model to a concrete function with static shapes and unrolled loops."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from tfq.config import ConversionConfig
from tfq.conversion.inference_graph import Variable
from tfq.conversion.recurrent_layers import (
    LSTMForm,
    RecurrentLayer,
    lstm_form,
    recurrent_forms,
    recurrent_layers,
)
from tfq.data import InputSpec
from tfq.errors import InputError, warn
from tfq.keras_bridge import copies, model_kind, precision
from tfq.keras_bridge.strategies import in_strategy, refuse_multi_worker
from tfq.keras_bridge.walk import all_layers, called_with_training
from tfq.keras_bridge.wrapped import QUANTIZED, without_wrappers
from tfq.progress import stage
from tfq.typing import KerasModel, TensorFlowFunction


def reject_stateful(model: Any) -> None:
    """Raise InputError if a recurrent layer is stateful, because the flatbuffer would not keep its state."""
    names = [layer.name for layer in recurrent_layers(model) if layer.stateful]
    if names:
        raise InputError(
            f"stateful recurrent layers cannot be converted: {', '.join(names)}. Build them with stateful=False, and "
            "make the state an input and an output of the model (initial_state, return_state=True)",
            field="model",
            expected="stateful=False",
            got=tuple(names),
        )


@dataclass(kw_only=True)
class Trace:
    """The inference function of a model at a fixed batch size, as a TensorFlow concrete function.

    It reads the model's variables when it is converted, so one trace serves every later conversion of that model.

    Attributes:
        function: The concrete function. It refers to its variables weakly, so the model must outlive it.
        input_names: The user's names of the inputs.
        output_names: The user's names of the outputs.
        layer_names: {name of a layer in the graph ("quant_conv" in a quantization-aware trained model): the user's
            name}.
        batch_size: The fixed batch dimension; 0 if it is dynamic.
        model: The traced model.
        has_other_floats: Whether layers or inputs of the model are float16, bfloat16 or float64. The function computes
            in float32, and a warning has said so.
        lstm: The form of LSTM layers that the trace was made for.
        unroll: Whether recurrent layers were unrolled.
        recurrent: The recurrent layers and the form of each.
        freezer: State that conversions of the same trace reuse; see conversion/freeze.py.
    """

    function: TensorFlowFunction
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    layer_names: dict[str, str]
    batch_size: int
    model: KerasModel = field(repr=False)
    has_other_floats: bool = False
    lstm: LSTMForm = field(default_factory=LSTMForm, repr=False)
    unroll: bool = True
    recurrent: tuple[RecurrentLayer, ...] = ()
    freezer: object = field(default=None, repr=False)

    @property
    def keras_layers(self) -> tuple[str, ...]:
        """The user's names of the model's layers."""
        return tuple(dict.fromkeys(self.layer_names.values()))

    @property
    def has_fused_lstm(self) -> bool:
        """Whether a recurrent layer is one fused op."""
        return any(layer.form == "fused" for layer in self.recurrent)

    @property
    def input_specs(self) -> list[InputSpec]:
        """The model's inputs in their order."""
        tensors = cast(Any, self.function).inputs
        return [
            InputSpec(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype.as_numpy_dtype)
            for name, tensor in zip(self.input_names, tensors, strict=False)  # captured variables follow the inputs
        ]

    @functools.cached_property
    def has_fake_quant(self) -> bool:
        """Whether the graph has fake quantization, as after quantization-aware training."""
        graph = cast(Any, self.function).graph.as_graph_def()
        bodies = [graph.node, *(function.node_def for function in graph.library.function)]
        return any(node.op.startswith("FakeQuantWithMinMaxVars") for nodes in bodies for node in nodes)


@in_strategy
def trace(model: KerasModel, batch_size: int = 1, *, unroll: bool = True, lstm: LSTMForm | None = None) -> Trace:
    """Trace the inference function of a Keras model, so that several conversions can share the trace.

    Args:
        model: A built functional or sequential model of either Keras (Keras 3 with the TensorFlow backend).
        batch_size: The fixed batch dimension of every input; 0 leaves it dynamic.
        unroll: Whether recurrent layers become one copy of their cell per time step, which calibration needs. If not,
            they become loops.
        lstm: The form of LSTM layers, as `lstm_form` returns it for a config; None is "auto". A conversion with a
            config that needs another form traces the model again.

    Returns:
        The trace, which `convert` accepts instead of the model. It reads the model's variables at each conversion.

    Raises:
        InputError: The model is not built, dimensions other than the batch are unknown, a recurrent layer is stateful,
            Keras has quantized layers, or the model belongs to a strategy of several workers.
    """
    import tensorflow as tf

    reject_stateful(model)
    refuse_multi_worker(model)
    precision.reject_quantized(model)
    model = without_wrappers(model, "conversion", keep=frozenset((QUANTIZED,)))
    inputs, outputs = _symbolic(model)
    structure = input_structure(model)
    output_names = copies.output_names(model, outputs)
    input_names = copies.input_names(model, structure, inputs)
    specs = [
        tf.TensorSpec(_fixed_shape(tensor, name, batch_size), _float32_for_floats(tensor), name=_identifier(name))
        for name, tensor in zip(input_names, inputs, strict=True)
    ]

    has_other_floats = precision.warn_of_float32(model, "The conversion")
    _warn_of_ignored_training(model)
    lstm = lstm or LSTMForm()
    recurrent: list[RecurrentLayer] = []
    with stage("tracing the model"), recurrent_forms(model, lstm, unroll=unroll, layers=recurrent):
        function = _traced_in_float32(model, structure, specs)
    return Trace(
        function=function,
        input_names=input_names,
        output_names=output_names,
        layer_names=copies.layer_names(model),
        batch_size=batch_size,
        model=model,
        has_other_floats=has_other_floats,
        lstm=lstm,
        unroll=unroll,
        recurrent=tuple(dict.fromkeys(recurrent)),
    )


def trace_for(model: KerasModel | Trace, config: ConversionConfig) -> Trace:
    """Return a trace of a Keras model for a conversion with `config`; a Trace that serves it is returned unchanged.

    Raises:
        InputError: As in `trace`, or the batch size of a Trace differs from `conversion.batch_size`.
    """
    lstm, unroll = lstm_form(config), config.needs_ranges or config.lstm == "unrolled"
    if not isinstance(model, Trace):
        return trace(model, config.batch_size, unroll=unroll, lstm=lstm)
    if model.batch_size != config.batch_size:
        raise InputError(
            f"conversion.batch_size: the trace has batch size {model.batch_size}, expected {config.batch_size}. Trace "
            "the model again with this batch size, or change conversion.batch_size",
            field="conversion.batch_size",
            expected=model.batch_size,
            got=config.batch_size,
        )
    lacks_unrolling = bool(model.recurrent) and unroll and not model.unroll
    if lacks_unrolling or any(layer.changes_with(lstm) for layer in model.recurrent):
        return trace(model.model, config.batch_size, unroll=unroll, lstm=lstm)
    return model


def inference_function(model: Any) -> Callable[[Any], list[Any]]:
    """Return a function from a model's inputs, in their structure, to its flat outputs in inference, in float32.

    The function is compiled once per shape. It reads the model's variables at each call.
    """
    import tensorflow as tf

    @tf.function(autograph=False)
    def infer(inputs: Any) -> list[Any]:
        return _flat_outputs(model, inputs)

    def call(inputs: Any) -> list[Any]:
        with precision.compute_in_float32(model):
            outputs: list[Any] = infer(inputs)
        return outputs

    return call


def _traced_in_float32(model: Any, structure: Any, specs: list[Any]) -> TensorFlowFunction:
    """Return the concrete inference function, with layers that compute in float32.

    If the model does not run so, for example because it adds a float16 constant, its layers compute in their own types.
    `in_float32` then changes the types in the graph, but constants stay rounded.
    """
    import tensorflow as tf

    def concrete() -> TensorFlowFunction:
        def infer(*tensors: Any) -> list[Any]:
            return _flat_outputs(model, tf.nest.pack_sequence_as(structure, list(tensors)))

        # No autograph, because Keras layers apply it themselves. The new function has its own cache, so the user's
        # tf.functions are not affected.
        function: TensorFlowFunction = tf.function(infer, autograph=False).get_concrete_function(*specs)
        return function

    if not precision.layers_not_in_float32(model):
        return concrete()
    try:
        with precision.compute_in_float32(model):
            return concrete()
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        return concrete()


def _flat_outputs(model: Any, inputs: Any) -> list[Any]:
    """Return the flat outputs of the model in inference; other float types become float32."""
    import tensorflow as tf

    outputs = tf.nest.flatten(model(inputs, training=False))
    return [tf.cast(tensor, _float32_for_floats(tensor)) for tensor in outputs]


def _float32_for_floats(tensor: Any) -> Any:
    import tensorflow as tf

    dtype = tf.as_dtype(tensor.dtype)
    return tf.float32 if dtype.is_floating else dtype


def _warn_of_ignored_training(model: Any) -> None:
    """Warn if layers of a Keras 3 model are called with training=True, which Keras 3 overrides in inference."""
    if model_kind(model) != "keras":
        return
    names = called_with_training(model)
    if names:
        warn(
            f"layers {', '.join(names)} are called with training=True. Keras 3 ignores this in model.predict, and so "
            "does the file: it is not random and computes what model.predict computes. To keep the noise, apply it in "
            "the app, or compute it from an input of the model"
        )


def captured_variables(traced: Trace) -> dict[str, Variable]:
    """Return placeholder -> the variable that it stands for, for the variables that the trace reads."""
    owners = owners_of_variables(traced.model)
    by_handle = {
        id(part.handle): (layer, variable)
        for layer, variables in owners.items()
        for variable in variables
        for part in getattr(variable, "values", [variable])  # the copies of a variable on several devices
    }
    results = {}
    graph = cast(Any, traced.function).graph
    for handle, placeholder in graph.captures:
        if id(handle) not in by_handle:
            continue
        layer, variable = by_handle[id(handle)]
        name = variable.name.split("/")[-1].split(":")[0]
        results[placeholder.name.split(":")[0]] = Variable(layer=layer, name=name, is_seed=_is_seed(variable))
    return results


def _is_seed(variable: Any) -> bool:
    """Check whether a variable is the state of a random generator of Keras or TensorFlow."""
    return "seed_generator_state" in variable.name or "StateVar" in variable.name


def owners_of_variables(model: Any) -> dict[str, list[Any]]:
    """Return layer -> its TensorFlow variables. A variable belongs to the innermost layer that has it."""
    owner: dict[int, tuple[str, Any]] = {}
    results: dict[str, list[Any]] = {}
    for layer in all_layers(model):
        results.setdefault(copies.own_name(layer), [])
        for variable in getattr(layer, "variables", ()):
            variable = getattr(variable, "value", variable) if model_kind(model) == "keras" else variable
            owner[id(variable)] = (copies.own_name(layer), variable)
    for name, variable in owner.values():
        results[name].append(variable)
    return results


def input_structure(model: Any) -> Any:
    """Return the structure of the model's inputs: a symbolic tensor, or a list or dict of them."""
    try:
        return model.input
    except (AttributeError, ValueError):  # a Sequential of Keras 3 that was never called as a layer
        return model.inputs[0] if len(model.inputs) == 1 else list(model.inputs)


def _symbolic(model: Any) -> tuple[list[Any], list[Any]]:
    import tensorflow as tf

    try:
        inputs, outputs = model.inputs, model.outputs
    except (AttributeError, ValueError):
        inputs = outputs = None
    if not inputs or not outputs:
        raise InputError(
            f"{type(model).__name__} {getattr(model, 'name', '')!r} has no symbolic inputs and outputs. Pass a "
            "functional model, or a Sequential model that has an Input or is built",
            field="model",
            expected="a functional or built Sequential model",
            got=type(model).__name__,
        )
    return tf.nest.flatten(inputs), tf.nest.flatten(outputs)


def _fixed_shape(tensor: Any, name: str, batch_size: int) -> list[int | None]:
    batch, *rest = tensor.shape
    if any(dimension is None for dimension in rest):
        raise InputError(
            f"input {name!r} has shape {tuple(tensor.shape)}, expected fixed dimensions except for the batch. Build "
            "the model with the input size that the application uses",
            field="model",
            expected="a fixed shape",
            got=tuple(tensor.shape),
        )
    if batch is not None and batch != batch_size:
        raise InputError(
            f"input {name!r} has a fixed batch size of {batch}, expected {batch_size}. Set conversion.batch_size="
            f"{batch}, or build the model without a batch size",
            field="conversion.batch_size",
            expected=batch,
            got=batch_size,
        )
    return [batch_size or None, *rest]


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)

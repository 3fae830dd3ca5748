# SPDX-License-Identifier: Apache-2.0
"""Trace a model to a concrete function with static shapes and unrolled loops."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tfq.config import ConversionConfig
from tfq.config.input_shapes import parse_input_shapes
from tfq.conversion.inference_graph import Variable
from tfq.conversion.recurrent_layers import (
    LSTMForm,
    RecurrentLayer,
    lstm_form,
    recurrent_forms,
    recurrent_layers,
)
from tfq.conversion.sources import ExampleShapes, Source, check_written, fixed_inputs, source_of
from tfq.conversion.sources.keras_models import float32_for_floats
from tfq.data import InputSpec
from tfq.errors import InputError, warn
from tfq.keras_bridge import SavedModel, model_kind, precision
from tfq.keras_bridge.strategies import in_strategy, refuse_multi_worker
from tfq.keras_bridge.walk import called_with_training
from tfq.keras_bridge.wrapped import QUANTIZED, without_wrappers
from tfq.progress import stage
from tfq.typing import Data, KerasModel, TensorFlowFunction


def reject_stateful(model: Any) -> None:
    """Raise InputError if a recurrent layer of either Keras is stateful: a flatbuffer would not keep its state."""
    names = [layer.name for layer in recurrent_layers(model) if layer.stateful]
    if names:
        raise InputError(
            f"stateful recurrent layers cannot be compressed or converted: {', '.join(names)}. Build them with "
            "stateful=False, and make the state an input and an output of the model (initial_state, return_state=True)",
            field="model",
            expected="stateful=False",
            got=tuple(names),
            limit="stateful-rnn",
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
        signature: The signature of a SavedModel; "" if none was named.
        source: The model, and how to call it.
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
    signature: str = ""
    source: Source = field(repr=False)
    has_other_floats: bool = False
    lstm: LSTMForm = field(default_factory=LSTMForm, repr=False)
    unroll: bool = True
    recurrent: tuple[RecurrentLayer, ...] = ()
    freezer: object = field(default=None, repr=False)

    @property
    def model(self) -> KerasModel | SavedModel:
        """The traced model."""
        return self.source.model

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

    def arguments(self, arrays: Sequence[object]) -> tuple[list[object], dict[str, object]]:
        """Return the arguments of a call of the model with these inputs: by position and by name."""
        return self.source.arguments(arrays)

    @functools.cached_property
    def has_fake_quant(self) -> bool:
        """Whether the graph has fake quantization, as after quantization-aware training."""
        graph = cast(Any, self.function).graph.as_graph_def()
        bodies = [graph.node, *(function.node_def for function in graph.library.function)]
        return any(node.op.startswith("FakeQuantWithMinMaxVars") for nodes in bodies for node in nodes)


@in_strategy
def trace(
    model: KerasModel | SavedModel,
    batch_size: int = 1,
    *,
    unroll: bool = True,
    lstm: LSTMForm | None = None,
    input_shapes: Sequence[str] = (),
    signature: str = "",
    representative_dataset: Data = None,
) -> Trace:
    """Trace the inference function of a model, so that several conversions can share the trace.

    Args:
        model: A model of either Keras (Keras 3 with the TensorFlow backend), functional, sequential or subclassed; or a
            SavedModel that `load_model` returned.
        batch_size: The fixed batch dimension of every input; 0 leaves it dynamic.
        unroll: Whether recurrent layers become one copy of their cell per time step, which calibration needs. If not,
            they become loops.
        lstm: The form of LSTM layers, as `lstm_form` returns it for a config; None is "auto". A conversion with a
            config that needs another form traces the model again.
        input_shapes: As `ConversionConfig.input_shapes`: shapes of inputs that the model does not fix.
        signature: As `ConversionConfig.signature`: the signature of a SavedModel.
        representative_dataset: Examples, as for `convert`. They are read only if the model and `input_shapes` leave the
            shape of an input open.

    Returns:
        The trace, which `convert` accepts instead of the model. It reads the model's variables at each conversion.

    Raises:
        InputError: The shape of an input is unknown, a subclassed model does not accept the inputs, a recurrent layer
            is stateful, Keras has quantized layers, or the model belongs to a strategy of several workers.
    """
    examples = (
        representative_dataset
        if isinstance(representative_dataset, ExampleShapes)
        else ExampleShapes(representative_dataset)
    )
    written = parse_input_shapes(input_shapes)
    if not isinstance(model, SavedModel):
        model_kind(model)
        reject_stateful(model)
        refuse_multi_worker(model)
        precision.reject_quantized(model)
        model = without_wrappers(model, "conversion", keep=frozenset((QUANTIZED,)))
    source = source_of(model, signature, written, examples)
    inputs = fixed_inputs(source.inputs, batch_size, written, examples)
    source.prepare(inputs)
    has_other_floats = source.is_keras and precision.warn_of_float32(model)
    if source.is_keras:
        _warn_of_ignored_training(model)
    lstm = lstm or LSTMForm()
    recurrent: list[RecurrentLayer] = []
    with (
        stage("tracing the model"),
        recurrent_forms(model, lstm, unroll=unroll, layers=recurrent) if source.is_keras else contextlib.nullcontext(),
    ):
        function, output_names = source.function(inputs)
    return Trace(
        function=function,
        input_names=tuple(item.name for item in inputs),
        output_names=output_names,
        layer_names=source.layer_names,
        batch_size=batch_size,
        signature=signature,
        source=source,
        has_other_floats=has_other_floats,
        lstm=lstm,
        unroll=unroll,
        recurrent=tuple(dict.fromkeys(recurrent)),
    )


def trace_for(model: KerasModel | SavedModel | Trace, config: ConversionConfig, dataset: Data = None) -> Trace:
    """Return a trace of a model for a conversion with `config`; a Trace that serves it is returned unchanged.

    Args:
        model: As in `trace`, or a Trace.
        config: The settings of the conversion.
        dataset: The representative data, read only if the shape of an input is open.

    Raises:
        InputError: As in `trace`, or a Trace was made with another batch size, signature or shape of an input.
    """
    lstm, unroll = lstm_form(config), config.needs_ranges or config.lstm == "unrolled"
    if not isinstance(model, Trace):
        return trace(
            model,
            config.batch_size,
            unroll=unroll,
            lstm=lstm,
            input_shapes=config.input_shapes,
            signature=config.signature,
            representative_dataset=dataset,
        )
    _check_trace(model, config)
    lacks_unrolling = bool(model.recurrent) and unroll and not model.unroll
    if lacks_unrolling or any(layer.changes_with(lstm) for layer in model.recurrent):
        return traced_again(model, unroll=unroll, lstm=lstm)
    return model


def traced_again(traced: Trace, *, unroll: bool, lstm: LSTMForm) -> Trace:
    """Return a trace of the same model and inputs with another form of recurrent layers."""
    shapes = [f"{spec.name}={'x'.join(map(str, spec.shape[1:])) or 'scalar'}" for spec in traced.input_specs]
    return trace(
        traced.model,
        traced.batch_size,
        unroll=unroll,
        lstm=lstm,
        input_shapes=shapes,
        signature=traced.signature,
    )


def _check_trace(traced: Trace, config: ConversionConfig) -> None:
    """Raise InputError if a trace was made with other settings than those of the config."""
    if traced.batch_size != config.batch_size:
        raise InputError(
            f"conversion.batch_size: the trace has batch size {traced.batch_size}, expected {config.batch_size}. Trace "
            "the model again with this batch size, or change conversion.batch_size",
            field="conversion.batch_size",
            expected=traced.batch_size,
            got=config.batch_size,
        )
    if config.signature not in ("", traced.signature):
        raise InputError(
            f"conversion.signature={config.signature}: the trace is of another signature. Trace the model again with "
            "this signature, or change conversion.signature",
            field="conversion.signature",
            expected=traced.signature,
            got=config.signature,
        )
    check_written(traced.input_specs, config.input_shapes)


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


def inference_function(model: Any) -> Callable[[list[Any], dict[str, Any]], list[Any]]:
    """Return a function from the arguments of a model's call to its flat outputs in inference, in float32.

    The function is compiled once per shape. It reads the model's variables at each call.
    """
    import tensorflow as tf

    @tf.function(autograph=False)
    def infer(positional: list[Any], named: dict[str, Any]) -> list[Any]:
        outputs = tf.nest.flatten(model(*positional, **named, training=False))
        return [tf.cast(output, float32_for_floats(output.dtype)) for output in outputs]

    def call(positional: list[Any], named: dict[str, Any]) -> list[Any]:
        with precision.compute_in_float32(model):
            outputs: list[Any] = infer(positional, named)
        return outputs

    return call


def captured_variables(traced: Trace) -> dict[str, Variable]:
    """Return placeholder -> the variable that it stands for, for the variables that the trace reads."""
    owners = traced.source.variables
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
        name = cast(Any, variable).name.split("/")[-1].split(":")[0]
        results[placeholder.name.split(":")[0]] = Variable(layer=layer, name=name, is_seed=_is_seed(variable))
    return results


def _is_seed(variable: Any) -> bool:
    """Check whether a variable is the state of a random generator of Keras or TensorFlow."""
    return "seed_generator_state" in variable.name or "StateVar" in variable.name

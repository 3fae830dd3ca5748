# SPDX-License-Identifier: Apache-2.0
"""Choose the form of each recurrent layer while tracing: one fused op, a copy of its cell per step, or a loop.

| form | what the file has | which layers |
|---|---|---|
| fused | one UNIDIRECTIONAL_SEQUENCE_LSTM | LSTM with the default activations (`_reason_against`) |
| unrolled | a copy of the cell for each time step | all but ConvLSTM of tf_keras |
| loop | a WHILE with the cell in a subgraph, which cannot be calibrated | all, in schemes without activation ranges |

A fused layer is a BlockLSTMV2 in the graph. TensorFlow's converter writes it as a custom op, because TFLite does not
have it, and `recurrent.with_fused_lstms` turns that into TFLite's op.
"""

import collections
import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tfq import auditing, registry, tflite
from tfq.config import ConversionConfig
from tfq.errors import InputError, warn
from tfq.keras_bridge import copies
from tfq.text_table import listed
from tfq.tflite.layer_names import LayerNames
from tfq.typing import JSON

# The longest sequence that `conversion.lstm=auto` unrolls, and that any layer is unrolled into without a warning about
# its size. benchmarks/lstm.py measures both forms: the fused op is several times slower on x86, and an unrolled LSTM of
# 32 steps has 600 ops and 120 kB.
MAX_UNROLLED_STEPS = 32
# What a step of an unrolled LSTM adds to an int8 file, from benchmarks/lstm.py: it does not depend on the units,
# because all steps share the weights.
_OPS_PER_STEP, _BYTES_PER_STEP = 19, 3_400

# Attributes of recurrent layers of either Keras, with the values that make them unroll their loop.
_UNROLLED = {"unroll": True, "use_cudnn": False, "_could_use_gpu_kernel": False}


@dataclass(frozen=True, kw_only=True)
class RecurrentLayer:
    """A call of a recurrent layer, and its form in the file.

    Args:
        layer: The user's name of the layer.
        kind: Its class: "LSTM", "GRU" ...
        steps: The number of time steps; None if it is unknown.
        form: "fused", "unrolled" or "loop".
        reason: Why it has this form.
        can_be_fused: Whether it could be the fused op.
    """

    layer: str
    kind: str
    steps: int | None
    form: str
    reason: str
    can_be_fused: bool

    def changes_with(self, lstm: "LSTMForm") -> bool:
        """Check whether the layer would be fused, or not fused, with another choice."""
        return self.can_be_fused and lstm.fuses(self.steps) != (self.form == "fused")

    def unrolled_cost(self) -> dict[str, int] | None:
        """Return the estimated ops and bytes of the unrolled form in int8; None if the layer is not an LSTM."""
        if self.kind != "LSTM" or self.steps is None:
            return None
        return {"ops": self.steps * _OPS_PER_STEP, "bytes": self.steps * _BYTES_PER_STEP}


@dataclass(frozen=True, kw_only=True)
class LSTMForm:
    """What a conversion does with LSTM layers.

    Args:
        form: "auto", "fused" or "unrolled".
        reason: Why, for records; empty if it depends on the number of steps.
        is_requested: Whether `conversion.lstm` asks for this form.
    """

    form: str = "auto"
    reason: str = ""
    is_requested: bool = False

    def fuses(self, steps: int | None) -> bool:
        """Check whether a layer of so many steps that can be the fused op becomes one."""
        return self.form == "fused" or (self.form == "auto" and steps is not None and steps > MAX_UNROLLED_STEPS)

    def reason_for(self, steps: int | None) -> str:
        """Return the reason of the choice for such a layer."""
        return self.reason or f"{steps} steps; conversion.lstm=auto unrolls at most {MAX_UNROLLED_STEPS}"


def lstm_form(config: ConversionConfig) -> LSTMForm:
    """Return the form of LSTM layers that `config` asks for; "auto" depends on the number of steps of each layer.

    Raises:
        InputError: `conversion.lstm=fused` contradicts the scheme, the quantizer, the target or the batch size.
    """
    obstacle = _obstacle(config)
    if config.lstm == "fused" and obstacle:
        field, value, reason = obstacle
        raise InputError(
            f"conversion.lstm=fused with {field}={value} is not possible: {reason}. Use conversion.lstm=auto or "
            "unrolled, or change the other setting",
            field="conversion.lstm",
            expected=("auto", "unrolled"),
            got="fused",
        )
    if config.lstm != "auto":
        return LSTMForm(form=config.lstm, reason=f"conversion.lstm={config.lstm}", is_requested=True)
    if obstacle:
        return LSTMForm(form="unrolled", reason=obstacle[2])
    if not config.needs_ranges:
        return LSTMForm(form="unrolled", reason=f"the scheme {config.scheme} needs no ranges")
    target = _target_without_op(config)
    if target:
        return LSTMForm(form="unrolled", reason=f"{target.title} does not run the fused op (a builtin kernel does)")
    if config.target:
        target = registry.get(auditing.Target, config.target, field="conversion.target")
        return LSTMForm(form="fused", reason=f"{target.title} has a kernel for the fused op")
    return LSTMForm()


def _obstacle(config: ConversionConfig) -> tuple[str, object, str] | None:
    """Return (field, value, reason) of a setting that rules out the fused op."""
    if config.scheme == "int16x8":
        return "conversion.scheme", config.scheme, "the fused op has no kernel with 16-bit activations"
    if config.quantizer == "litert" and config.needs_ranges:
        return "conversion.quantizer", config.quantizer, "litert-quantizer has no int8 form of the fused op"
    if config.batch_size == 0:
        return "conversion.batch_size", 0, "the state of the fused op needs a fixed batch size"
    target = _target_without_op(config)
    if target and not target.has_builtin_kernels:
        return "conversion.target", config.target, f"{target.title} does not run the fused op"
    return None


def _target_without_op(config: ConversionConfig) -> auditing.Target | None:
    """Return the target of `config` if it does not run the fused op in the types of the scheme."""
    if not config.target:
        return None
    target = registry.get(auditing.Target, config.target, field="conversion.target")
    if config.needs_ranges:
        ops = target.ops_by_type.get("int8", target.integer_ops)
    else:
        ops = target.ops_by_type.get("float32", target.float_ops | target.integer_ops)
    return None if "UNIDIRECTIONAL_SEQUENCE_LSTM" in ops else target


@contextlib.contextmanager
def recurrent_forms(model: Any, lstm: LSTMForm, *, unroll: bool, layers: list[RecurrentLayer]) -> Iterator[None]:
    """Give the recurrent layers of a model their form inside the context; they compute the same function.

    ConvLSTM layers of tf_keras cannot be unrolled and stay loops.

    Args:
        model: A model of either Keras.
        lstm: The form of LSTM layers.
        unroll: Whether the other layers, and those LSTM layers that cannot be fused, are unrolled.
        layers: Receives a record of each traced call.
    """
    recurrent = recurrent_layers(model)
    attributes = [
        {name: getattr(layer, name) for name in _UNROLLED if hasattr(layer, name)} if unroll else {}
        for layer in recurrent
    ]
    recorded = [layer for layer in recurrent if _library_class(layer)]
    try:
        for layer, original in zip(recurrent, attributes, strict=True):
            for name in original:
                setattr(layer, name, _UNROLLED[name])
        for layer in recorded:
            object.__setattr__(layer, "call", _call(layer, lstm, layers))
        yield
    finally:
        for layer in recorded:
            layer.__dict__.pop("call", None)
        for layer, original in zip(recurrent, attributes, strict=True):
            for name, value in original.items():
                setattr(layer, name, value)


def recurrent_record(content: bytes, layers: Sequence[RecurrentLayer]) -> list[JSON]:
    """Return the recurrent layers of a flatbuffer for a record.

    Args:
        content: The flatbuffer.
        layers: Its recurrent layers.

    Returns:
        For each layer its fields; `ops`, the number of ops that it has in the file; `kernel`, "builtin" for the fused
        op, which XNNPACK does not run; and `unrolled`, the estimated ops and bytes of the unrolled form.
    """
    if not layers:
        return []
    graph = tflite.read(content).main_subgraph
    known = {op.keras_layer for op in graph.ops if op.keras_layer} | {item.layer for item in layers}
    names = LayerNames(graph.tensors, known)
    counts = collections.Counter(names.layer(op.name, op.inputs, op.outputs) for op in graph.ops)
    return [
        {
            **{name: getattr(item, name) for name in ("layer", "kind", "steps", "form", "reason")},
            "ops": counts[item.layer],
            "kernel": "builtin" if item.form == "fused" else None,
            "unrolled": item.unrolled_cost(),
        }
        for item in layers
    ]


def recurrent_text(layers: Sequence[RecurrentLayer]) -> str:
    """Return which LSTM layers are fused, and what the other form would cost; "" if there are none."""
    fused = [item for item in layers if item.form == "fused"]
    costs = [item.unrolled_cost() or {"ops": 0, "bytes": 0} for item in fused]
    if not fused:
        return ""
    ops, size = (sum(cost[name] for cost in costs) for name in ("ops", "bytes"))
    return (
        f"fused LSTM: {listed([item.layer for item in fused])} ({fused[0].reason}). The op runs in a builtin kernel, "
        f"not in XNNPACK. Unrolled (conversion.lstm), it would take about {ops:,} ops and {size / 1000:,.0f} kB"
    )


def warn_of_unrolled(layers: Sequence[RecurrentLayer], lstm: LSTMForm, num_bytes: int) -> None:
    """Warn (TfqWarning) about layers that are unrolled into many steps, unless `conversion.lstm=unrolled` asks for it.

    Args:
        layers: The recurrent layers of a flatbuffer.
        lstm: The form of LSTM layers that was chosen.
        num_bytes: The size of the flatbuffer.
    """
    for item in layers:
        if item.form != "unrolled" or item.steps is None or item.steps <= MAX_UNROLLED_STEPS:
            continue
        if item.can_be_fused and lstm.is_requested:
            continue
        advice = "Use fewer or longer steps, or a scheme without activation ranges (dynamic_range), which keeps a loop"
        if item.can_be_fused:
            advice = "conversion.lstm=fused makes it one op, if that is possible with the other settings"
        elif item.kind != "LSTM":
            advice += ". An LSTM can become one op (conversion.lstm)"
        warn(
            f"{item.kind} layer {item.layer!r} is unrolled into {item.steps} copies of its cell, in a file of "
            f"{num_bytes:,} bytes: {item.reason}. {advice}"
        )


def recurrent_layers(model: Any) -> list[Any]:
    """Return the recurrent layers of a model, also those inside other layers."""
    return [layer for layer in model._flatten_layers() if hasattr(layer, "cell") and hasattr(layer, "unroll")]


def _library_class(layer: Any) -> str | None:
    """Return the name of a layer's class if it and its cell are LSTM, GRU, SimpleRNN or RNN of Keras themselves."""
    kinds = (("LSTM", "LSTMCell"), ("GRU", "GRUCell"), ("SimpleRNN", "SimpleRNNCell"))
    for library in (sys.modules.get("keras"), sys.modules.get("tf_keras")):
        for name, cell in kinds:
            layers = getattr(library, "layers", None)
            if layers is None or type(layer.cell) is not getattr(layers, cell):
                continue
            if type(layer) in (getattr(layers, name), layers.RNN):
                return name
    return None


def _call(layer: Any, lstm: LSTMForm, layers: list[RecurrentLayer]) -> Callable[..., Any]:
    """Return a replacement for `layer.call` that uses the fused op if possible, and records its choice."""
    import tensorflow as tf

    original, kind, name = layer.call, _library_class(layer) or "", copies.own_name(layer)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        sequence = next(iter(arguments.values()))
        steps = _steps(layer, sequence)
        reason = _reason_against(layer, kind, sequence, arguments)
        fuse = reason is None and lstm.fuses(steps)
        layers.append(
            RecurrentLayer(
                layer=name,
                kind=kind,
                steps=steps,
                form="fused" if fuse else "unrolled" if layer.unroll else "loop",
                reason=reason or lstm.reason_for(steps),
                can_be_fused=reason is None,
            )
        )
        return _fused(layer, sequence) if fuse else original(*args, **kwargs)

    # These classes are written without statements that need AutoGraph.
    return tf.autograph.experimental.do_not_convert(call)


def _steps(layer: Any, sequence: Any) -> int | None:
    """Return the number of time steps of a layer's input; None if it is unknown."""
    import tensorflow as tf

    tensor = tf.nest.flatten(sequence)[0]
    size = tensor.shape[0 if getattr(layer, "time_major", False) else 1]
    return None if size is None else int(size)


def _reason_against(layer: Any, kind: str, sequence: Any, arguments: dict[str, Any]) -> str | None:
    """Return why a call of a layer cannot be the fused op; None if it can."""
    import tensorflow as tf

    if kind != "LSTM":
        return f"there is no fused op for {kind} with int8"
    cell = layer.cell
    for what, expected in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        function = getattr(cell, what)
        library = sys.modules[type(cell).__module__.partition(".")[0]]
        if function is not getattr(library.activations, expected):
            shown = getattr(function, "__name__", type(function).__name__)
            return f"its {what} is {shown}, and the fused op has {expected}"
    if layer.return_state:
        return "it returns its state (return_state=True), and the fused op has no output for the cell state"
    if arguments.get("mask") is not None:
        return "it has a mask, and the fused op has none"
    if arguments.get("initial_state") is not None or tf.nest.is_nested(sequence):
        return "it has an initial_state, and the state of the fused op starts at 0"
    if None in tuple(sequence.shape):
        return f"its input has the shape {tuple(sequence.shape)}, and the fused op needs fixed sizes"
    return None


def _fused(layer: Any, sequence: Any) -> Any:
    """Return what an LSTM layer without mask, initial state and return_state computes, by one BlockLSTMV2.

    Its gates have the order of Keras: input, forget, cell, output.
    """
    import tensorflow as tf

    cell, dtype = layer.cell, sequence.dtype
    time_major = getattr(layer, "time_major", False)
    x = tf.cast(sequence if time_major else tf.transpose(sequence, [1, 0, 2]), tf.float32)
    steps, batch, _ = x.shape
    x = tf.reverse(x, [0]) if layer.go_backwards else x
    weights = [tf.cast(tf.convert_to_tensor(item), tf.float32) for item in (cell.kernel, cell.recurrent_kernel)]
    bias = tf.zeros([4 * cell.units]) if cell.bias is None else tf.cast(tf.convert_to_tensor(cell.bias), tf.float32)
    state, peephole = tf.zeros([batch, cell.units]), tf.zeros([cell.units])
    y = tf.raw_ops.BlockLSTMV2(
        seq_len_max=tf.constant(steps, tf.int64),
        x=x,
        cs_prev=state,
        h_prev=state,
        w=tf.concat(weights, 0),
        wci=peephole,
        wcf=peephole,
        wco=peephole,
        b=bias,
    ).h
    y = tf.cast(y if time_major else tf.transpose(y, [1, 0, 2]), dtype)
    if layer.return_sequences:
        return y
    return y[-1] if time_major else y[:, -1]

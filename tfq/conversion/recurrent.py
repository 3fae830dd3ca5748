# SPDX-License-Identifier: Apache-2.0
"""Fused recurrent ops: write the fused LSTM, keep its inferences independent, and know which ops have an int8 form.

UNIDIRECTIONAL_SEQUENCE_LSTM keeps its hidden state and its cell state in variable tensors, from one inference to the
next, until the application resets them. A Keras layer starts each batch with a state of zeros. So that the file
computes the same without a reset, `with_state_resets` adds a second op to each LSTM. It shares the state of the first
and runs two steps that set it to zero: its forget, input and output gates are closed by their bias, and its candidate
is tanh(0). Two steps are exact in int8 too: a closed gate is 11/32768 there, so that the largest cell state, 32767,
becomes 11 after one step and 0 after two. It does not matter which of the two ops runs first.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.conversion.graph_editing import (
    add_constant,
    add_tensor,
    constant_of,
    name_of,
    replace_op,
    rewrite_graphs,
    scale_of,
    set_scale,
)
from tfq.errors import InputError, warn
from tfq.tflite.schema import TENSOR_TYPES

# UNIDIRECTIONAL_SEQUENCE_LSTM and SVDF have int8 kernels, and TensorFlow's quantizer supports them. It turns the others
# into ops that no kernel runs (an RNN that reads int8 while its kernel expects float32), or it cannot read them at all.
_FLOAT_ONLY = frozenset(
    {"UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"}
)
_RECURRENT = _FLOAT_ONLY | {"UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"}
_LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
# The op of TensorFlow that `recurrent_layers` writes for a fused layer.
_SOURCE = "BlockLSTMV2"
# Positions of its inputs.
_INPUT_WEIGHTS, _RECURRENT_WEIGHTS, _BIASES, _HIDDEN, _CELL = slice(1, 5), slice(5, 9), slice(12, 16), 18, 19
_GATES = ("input", "forget", "cell", "output")  # their order in Keras' weights as well
_RESET_STEPS = 2
# The scale of a gate's 16-bit sum in the int8 kernel, of the format Q3.12.
_GATE_SCALE = 2.0**-12
# A gate before its sigmoid that is closed: sigmoid(-100) is 4e-44 in float32. The int8 kernel clips at -8.
_CLOSED = 100.0
_FLOAT32 = TENSOR_TYPES.index("float32")


def with_fused_lstms(model: bytes) -> bytes:
    """Return a float flatbuffer with UNIDIRECTIONAL_SEQUENCE_LSTM instead of the custom ops BlockLSTMV2.

    Raises:
        InputError: The flatbuffer has a custom op for another TensorFlow op, which TFLite does not have.
    """

    def rewrite(edited: Any, graph: Any) -> int:
        ops = [op for op in graph.operators if tflite.operator_name(edited, op) == "CUSTOM"]
        fused = [op for op in ops if _custom_code(edited, op) == _SOURCE and _is_plain(edited, graph, op)]
        others = sorted({_custom_code(edited, op) for op in ops if not any(op is other for other in fused)})
        _reject_missing_ops(others)
        for op in fused:
            _fuse(edited, graph, op)
        tflite.remove_unused_operator_codes(edited)
        return len(fused)

    return rewrite_graphs(model, ["CUSTOM"], rewrite, remove_tensors=True)


def _reject_missing_ops(names: Sequence[str]) -> None:
    """Raise InputError if a custom op is an op of TensorFlow. The converter may write others, for post-processing."""
    import tensorflow as tf

    missing = [name for name in names if hasattr(tf.raw_ops, name)]
    if missing:
        raise InputError(
            f"TFLite does not have the ops {', '.join(missing)} of the model. Replace the layers that use them",
            field="model",
            expected="ops of TFLite",
            got=tuple(missing),
            limit="no-tflite-op",
        )


def _custom_code(edited: Any, op: Any) -> str:
    code = edited.operatorCodes[op.opcodeIndex].customCode
    return code.decode("utf-8", "replace") if isinstance(code, bytes) else str(code)


def _is_plain(edited: Any, graph: Any, op: Any) -> bool:
    """Check whether a BlockLSTMV2 has constant weights, and zeros as state and peepholes, and h alone is read."""
    _, _, cell, hidden, *constants = (constant_of(edited, graph, index) for index in op.inputs)
    read = {int(index) for other in graph.operators for index in other.inputs} | set(map(int, graph.outputs))
    zeros = [value is not None and not value.any() for value in (cell, hidden, *constants[1:4])]
    has_weights = all(value is not None for value in constants)
    return all(zeros) and has_weights and read.isdisjoint(map(int, op.outputs[:-1]))


def _fuse(edited: Any, graph: Any, op: Any) -> None:
    """Turn a BlockLSTMV2 into the fused op, in place."""
    from ai_edge_litert import schema_py_generated as generated

    _, x, *_, packed, _, _, _, bias = (int(index) for index in op.inputs)
    output, (_, batch, features) = int(op.outputs[-1]), graph.tensors[x].shape
    name, biases = name_of(graph, output), np.asarray(constant_of(edited, graph, bias))
    units = len(biases) // 4
    weights = np.asarray(constant_of(edited, graph, packed)).reshape(features + units, 4 * units)

    def constants(value: Any, kind: str) -> list[int]:
        results = []
        for gate, part in zip(_GATES, np.split(value, 4, axis=-1), strict=True):
            results.append(add_constant(edited, graph, part.T))
            graph.tensors[results[-1]].name = f"{name}/{kind}_{gate}"
        return results

    def state(kind: str) -> int:
        index = add_tensor(graph, output, f"{name}/{kind}_state")
        tensor = graph.tensors[index]
        tensor.shape, tensor.shapeSignature, tensor.isVariable = [int(batch), units], None, True
        return index

    kernel, recurrent = constants(weights[:features], "kernel"), constants(weights[features:], "recurrent_kernel")
    inputs = [x, *kernel, *recurrent, *[tflite.ABSENT] * 3, *constants(biases, "bias")]
    inputs += [tflite.ABSENT, tflite.ABSENT, state("hidden"), state("cell"), *[tflite.ABSENT] * 4]
    options = generated.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction, options.timeMajor = generated.ActivationFunctionType.TANH, True
    replace_op(edited, op, _LSTM, inputs, generated.BuiltinOptions.UnidirectionalSequenceLSTMOptions, options)
    op.outputs, op.customOptions = np.array([output], np.int32), None
    _use_batch_major(edited, graph, op)


def _use_batch_major(edited: Any, graph: Any, op: Any) -> None:
    """Remove the transpositions before and after a time-major LSTM if both have no other use, in place."""
    before = [other for other in graph.operators if int(op.inputs[0]) in map(int, other.outputs)]
    after = [other for other in graph.operators if int(op.outputs[0]) in map(int, other.inputs)]
    if len(before) != 1 or len(after) != 1 or int(op.outputs[0]) in map(int, graph.outputs):
        return
    if _swaps_axes(edited, graph, before[0]) and _swaps_axes(edited, graph, after[0]):
        inputs = [int(before[0].inputs[0]), *map(int, op.inputs[1:])]
        op.inputs, op.outputs = np.array(inputs, np.int32), np.array([int(after[0].outputs[0])], np.int32)
        op.builtinOptions.timeMajor = False
        graph.operators = [other for other in graph.operators if other is not after[0]]
        if not any(int(before[0].outputs[0]) in map(int, other.inputs) for other in graph.operators):
            graph.operators = [other for other in graph.operators if other is not before[0]]


def _swaps_axes(edited: Any, graph: Any, op: Any) -> bool:
    """Check whether `op` swaps the first two of three axes. If one of them is 1, the converter writes a RESHAPE."""
    source, target = (graph.tensors[int(index)].shape for index in (op.inputs[0], op.outputs[0]))
    if len(source) != 3 or [source[1], source[0], source[2]] != list(target):
        return False
    if tflite.operator_name(edited, op) == "RESHAPE":
        return 1 in (source[0], source[1])
    order = constant_of(edited, graph, op.inputs[1], "int32") if len(op.inputs) > 1 else None
    return tflite.operator_name(edited, op) == "TRANSPOSE" and order is not None and list(order) == [1, 0, 2]


def with_state_resets(model: bytes) -> bytes:
    """Return a flatbuffer, float or int8, whose fused LSTMs start each inference with a state of zeros."""

    def rewrite(edited: Any, graph: Any) -> int:
        ops = [op for op in graph.operators if tflite.operator_name(edited, op) == _LSTM]
        graph.operators = [*graph.operators, *(_reset(edited, graph, op) for op in ops)]
        return len(ops)

    return rewrite_graphs(model, [_LSTM], rewrite)


def _reset(edited: Any, graph: Any, op: Any) -> Any:
    """Return the op that sets the state of the fused LSTM `op` to zero."""
    inputs = [int(index) for index in op.inputs]
    name = name_of(graph, int(op.outputs[0]))
    first, second, features = (int(size) for size in graph.tensors[inputs[0]].shape)
    sizes = [_RESET_STEPS, second] if op.builtinOptions.timeMajor else [first, _RESET_STEPS]
    input_bias, _, candidate_bias, _ = inputs[_BIASES]
    units = int(graph.tensors[candidate_bias].shape[0])

    def constant(value: Any, kind: str, like: int) -> int:
        """Add a constant with the type and the scale of tensor `like`."""
        index = add_constant(edited, graph, value, TENSOR_TYPES[graph.tensors[like].type])
        graph.tensors[index].name = f"{name}/reset_{kind}"
        graph.tensors[index].quantization = graph.tensors[like].quantization
        return index

    recurrent = list(inputs[_RECURRENT_WEIGHTS])
    if graph.tensors[inputs[0]].type == _FLOAT32:
        zero, closed = 0.0, -(_CLOSED + _largest_sum(edited, graph, recurrent))
    else:
        zero = scale_of(graph, inputs[0])[1]
        closed = max(-(2.0**30), round(-_CLOSED / scale_of(graph, input_bias)[0]))
        recurrent = [_without_effect(graph, recurrent[0], inputs[_HIDDEN])] * 4
    x = constant(np.full([*sizes, features], zero), "input", inputs[0])
    shut = constant(np.full(units, closed), "closed_bias", input_bias)
    biases = [shut, shut, constant(np.zeros(units), "candidate_bias", candidate_bias), shut]
    output = add_tensor(graph, int(op.outputs[0]), f"{name}/reset")
    tensor = graph.tensors[output]
    tensor.shape, tensor.quantization = [*sizes, units], graph.tensors[int(op.outputs[0])].quantization

    reset = copy.copy(op)
    reset.outputs = np.array([output], np.int32)
    places = [x, *inputs[_INPUT_WEIGHTS], *recurrent, *inputs[9:12], *biases, *inputs[16:]]
    reset.inputs = np.array(places, np.int32)
    return reset


def _largest_sum(edited: Any, graph: Any, weights: Sequence[int]) -> float:
    """Return the largest sum of a row's magnitudes: the most that hidden states, which are at most 1, can add."""
    results = []
    for index in weights:
        values = constant_of(edited, graph, index)
        if values is None:  # int8 weights of an op on floats
            quantized = np.asarray(constant_of(edited, graph, index, "int8"))
            values = quantized.astype(np.float64) * scale_of(graph, index)[0]
        results.append(np.abs(values.reshape(graph.tensors[index].shape)).sum(axis=1).max())
    return float(max(results))


def _without_effect(graph: Any, weights: int, hidden: int) -> int:
    """Return a tensor with the data of int8 `weights` and a scale so small that the kernel multiplies them to 0."""
    tensor = copy.copy(graph.tensors[weights])
    tensor.name = name_of(graph, weights) + "/reset"
    graph.tensors.append(tensor)
    set_scale(graph, len(graph.tensors) - 1, _GATE_SCALE * 2.0**-30 / scale_of(graph, hidden)[0], 0)
    return len(graph.tensors) - 1


def float_recurrent_ops(model: bytes) -> list[int]:
    """Return the indices of the recurrent ops without an int8 form, in the main subgraph of the float `model`."""
    return [op.index for op in tflite.read(model).main_subgraph.ops if op.name in _FLOAT_ONLY]


def check_recurrent_ops(model: bytes, config: ConversionConfig) -> None:
    """Raise InputError if `config` cannot quantize a recurrent op; warn (TfqWarning) about those that stay float.

    There is also a warning for SVDF, because it is a streaming op that is calibrated on single samples.
    """
    graph = tflite.read(model).main_subgraph
    ops = [op for op in graph.ops if op.name in _RECURRENT]
    if not ops:
        return
    shown = {op.index: f"{op.name} ({graph.layer_of(op)})" for op in ops}
    if config.scheme == "int16x8" and config.quantizer == "tensorflow":
        raise InputError(
            f"conversion.scheme=int16x8: TensorFlow's quantizer has no 16-bit form of {', '.join(shown.values())}. "
            "Convert to int8, or set conversion.quantizer=litert, which keeps these ops in float",
            field="conversion.scheme",
            expected="int8",
            got="int16x8",
            limit="int16-recurrent",
        )
    floats = [op for op in ops if op.name in _FLOAT_ONLY or config.quantizer == "litert"]
    if floats:
        reason = "litert-quantizer has no int8 form" if config.quantizer == "litert" else "there is no int8 kernel"
        warn(f"recurrent ops stay float: {', '.join(shown[op.index] for op in floats)}, because {reason} of them")
    frames = [shown[op.index] for op in ops if op.name == "SVDF" and op not in floats]
    if frames:
        warn(
            f"calibration: the range of {', '.join(frames)} may be too small. In a stream its state continues from "
            "frame to frame, but calibration resets it before each sample. Use ranges that were observed on a stream "
            "(conversion.calibration.ranges)"
        )

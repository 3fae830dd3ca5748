# SPDX-License-Identifier: Apache-2.0
"""Keep indices exact: never quantize a tensor that is used as an index.

Sequential models of either Keras that start with an Embedding read their ids as float32 and cast them. Quantized like
any other float input, ids from 0 to 1999 had a step of 7.84.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.conversion.graph_editing import name_of, quantize_op, replace_reads
from tfq.conversion.hidden_ops import with_hidden_ops
from tfq.errors import warn
from tfq.text_table import listed
from tfq.tflite.index_values import index_tensors, inputs_read_by_casts
from tfq.tflite.schema import TENSOR_TYPES

_FLOAT32, _INT32, _INT64 = (TENSOR_TYPES.index(name) for name in ("float32", "int32", "int64"))
Samples = list[dict[str, NDArray]]


def with_integer_inputs(model: bytes, samples: Samples, config: ConversionConfig) -> tuple[bytes, Samples]:
    """Make float inputs int32 if the model only casts them to indices.

    An input stays float32 if a sample of it is not an integer, or if the config asks for float32. There is a TfqWarning
    for each input that changes.

    Args:
        model: A float flatbuffer.
        samples: The calibration samples.
        config: Its `inference_input_type` can keep the inputs float32.

    Returns:
        The flatbuffer, and the samples in the types of its inputs.
    """
    casts = _casts_of_inputs(model)
    names = [name for name in casts if all(np.array_equal(sample[name], np.rint(sample[name])) for sample in samples)]
    if not names or config.inference_input_type == "float32":
        return model, samples
    edited = tflite.unpack(model)
    graph = edited.subgraphs[0]
    for name in names:
        index, ops = casts[name]
        graph.tensors[index].type = _INT32
        for op in [graph.operators[place] for place in ops]:
            _cast_from_int32(graph, op, index)
        warn(
            f"input {name!r} becomes int32, because it is only used as an index and indices are not quantized. Pass "
            "the same values as int32, or set conversion.inference_input_type=float32 to keep the input float32"
        )
    # A CAST from int32 to int32 has lost its outputs.
    graph.operators = [op for op in graph.operators if len(op.outputs)]
    tflite.remove_unused_operator_codes(edited)
    tflite.remove_unused_tensors(edited)
    converted = [
        {name: array.astype(np.int32) if name in names else array for name, array in sample.items()}
        for sample in samples
    ]
    return tflite.pack(edited, len(model)), converted


def _casts_of_inputs(model: bytes) -> dict[str, tuple[int, list[int]]]:
    """Return {name: (tensor, its readers)} for the float inputs that only CASTs to indices read."""
    parsed = tflite.read(model)
    graph = parsed.main_subgraph
    indices = index_tensors(graph)
    names = dict(zip(graph.inputs, parsed.input_names, strict=True))
    readers = inputs_read_by_casts(
        graph,
        lambda tensor, cast: (
            tensor.dtype == "float32"
            and tensor.index in indices
            and cast.dtype in ("int32", "int64")
            and cast.index in indices
        ),
    )
    return {names[index]: (index, places) for index, places in readers.items()}


def _cast_from_int32(graph: Any, op: Any, source: int) -> None:
    """Make the CAST `op` read int32. If it casts to int32, its readers read `source`, and it loses its outputs."""
    output = int(op.outputs[0])
    if graph.tensors[output].type == _INT64:
        if op.builtinOptions is not None:
            op.builtinOptions.inDataType = _INT32
        return
    replace_reads(graph.operators, output, source)
    op.outputs = []


def with_hidden_indices(
    model: bytes, *, hide_integers: bool = False, float_ops: Sequence[int] = ()
) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Hide the float ops that compute indices from the quantizer, so that they stay float.

    Args:
        model: A float flatbuffer.
        hide_integers: Also hide ops that only compute with integers.
        float_ops: Indices of further ops of the main subgraph to hide.

    Returns:
        The flatbuffer for the quantizer, and a function that restores the hidden ops in the quantizer's result.
    """
    graph = tflite.read(model).main_subgraph
    hidden = {*_float_index_ops(graph), *float_ops}
    if hide_integers:
        hidden |= {op.index for op in graph.ops if all(graph.tensors[index].dtype != "float32" for index in op.tensors)}
    visible = {index for op in graph.ops if op.index not in hidden for index in op.tensors}
    islands = {index for place in hidden - {*float_ops} for index in graph.ops[place].tensors}
    states = {index for place in float_ops for index in graph.ops[place].tensors if graph.tensors[index].is_variable}
    # Presented as integers, these tensors need no range, and inputs among them keep their type.
    disguised = {
        index
        for index in (islands | states) - visible - {*graph.outputs}
        if graph.tensors[index].dtype == "float32" and not graph.tensors[index].is_constant
    }
    prepared, restore = with_hidden_ops(model, hidden, disguised)
    return prepared, lambda result: with_exact_sources(restore(result))


def _float_index_ops(graph: tflite.Subgraph) -> list[int]:
    """Return the indices of the ops that compute indices from floats."""
    indices = index_tensors(graph)
    floats = {index for index in indices if graph.tensors[index].dtype == "float32"}
    return [op.index for op in graph.ops if indices.intersection(op.outputs) and floats.intersection(op.tensors)]


def float_index_op_outputs(model: bytes) -> list[str]:
    """Return the output names of the ops that compute indices from floats, which litert-quantizer identifies ops by."""
    graph = tflite.read(model).main_subgraph
    return [graph.tensors[output].name for index in _float_index_ops(graph) for output in graph.ops[index].outputs]


def warn_of_float_indices(model: bytes) -> None:
    """Warn (TfqWarning) about the ops of the float `model` that stay float because they compute indices."""
    graph = tflite.read(model).main_subgraph
    ops = [graph.ops[index] for index in _float_index_ops(graph)]
    if ops:
        names = listed([f"{op.name} ({graph.layer_of(op)})" for op in ops])
        warn(
            f"{names} stay float, because they compute indices from floats, and a quantized index would read a wrong "
            "row. For an integer-only model, compute the indices outside of the model and pass them as int32"
        )


def with_exact_sources(model: bytes) -> bytes:
    """Make index ops read the float values before their quantization.

    The quantizer puts a QUANTIZE and a DEQUANTIZE before the float ops that compute indices. These ops then read the
    float tensor before the QUANTIZE. If this is a quantized input of the model, it becomes float32, followed by a
    QUANTIZE for its other readers.

    Args:
        model: An integer flatbuffer.
    """
    parsed = tflite.read(model)
    graph = parsed.main_subgraph
    islands = {index for place in _float_index_ops(graph) for index in graph.ops[place].inputs}
    to_index_ops = [op.index for op in graph.ops if op.name == "DEQUANTIZE" and op.outputs[0] in islands]
    if not to_index_ops:
        return model
    edited = tflite.unpack(model)
    main = edited.subgraphs[0]
    dequantizes = [main.operators[index] for index in to_index_ops]
    sources = {id(op): _float_source(edited, main, int(op.inputs[0])) for op in dequantizes}
    for op in dequantizes:
        if (source := sources[id(op)]) is not None:
            replace_reads(main.operators, int(op.outputs[0]), source)
    unread = [
        op for op in dequantizes if sources[id(op)] is not None and int(op.outputs[0]) not in map(int, main.outputs)
    ]
    main.operators = _without_unread_quantizes(
        edited, main, [op for op in main.operators if not any(op is item for item in unread)]
    )
    tflite.remove_unused_operator_codes(edited)
    tflite.remove_unused_tensors(edited)
    return tflite.pack(edited, len(model))


def _float_source(edited: Any, graph: Any, quantized: int) -> int | None:
    """Return the float tensor that `quantized` was quantized from; None if integer ops computed it.

    If it is a quantized input of the model, the input becomes float.
    """
    while True:
        if quantized in map(int, graph.inputs):
            return _float_input(edited, graph, quantized)
        producer = next((op for op in graph.operators if quantized in map(int, op.outputs)), None)
        if producer is None or tflite.operator_name(edited, producer) != "QUANTIZE":
            return None
        source = int(producer.inputs[0])
        if graph.tensors[source].type == _FLOAT32:
            return source
        quantized = source


def _float_input(edited: Any, graph: Any, quantized: int) -> int:
    """Replace the quantized input by a float one, followed by a QUANTIZE; return the float tensor."""
    from ai_edge_litert import schema_py_generated as generated

    tensor, old = generated.TensorT(), graph.tensors[quantized]
    tensor.shape, tensor.shapeSignature, tensor.type = old.shape, old.shapeSignature, _FLOAT32
    tensor.buffer, tensor.name, tensor.hasRank = 0, old.name, old.hasRank
    old.name = f"{name_of(graph, quantized)}_quantized"
    graph.tensors.append(tensor)
    source = len(graph.tensors) - 1
    graph.inputs = [source if int(index) == quantized else int(index) for index in graph.inputs]
    for signature in edited.signatureDefs or []:
        for entry in signature.inputs if signature.subgraphIndex == 0 else []:
            entry.tensorIndex = source if entry.tensorIndex == quantized else entry.tensorIndex
    graph.operators.insert(0, quantize_op(edited, source, quantized))
    return source


def _without_unread_quantizes(edited: Any, graph: Any, ops: Sequence[Any]) -> list[Any]:
    """Return `ops` without the QUANTIZE ops whose outputs are not read any more."""
    ops = list(ops)
    while True:
        read = {int(index) for op in ops for index in op.inputs} | set(map(int, graph.outputs))
        unread = [op for op in ops if tflite.operator_name(edited, op) == "QUANTIZE" and int(op.outputs[0]) not in read]
        if not unread:
            return ops
        ops = [op for op in ops if not any(op is item for item in unread)]

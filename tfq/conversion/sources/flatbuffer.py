# SPDX-License-Identifier: Apache-2.0
"""A float flatbuffer as a source: fix the sizes of inputs that it leaves open."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfq import tflite
from tfq.config import ConversionConfig
from tfq.config.input_shapes import FIELD, parse_input_shapes
from tfq.conversion.sources.inputs import ExampleShapes, Shape, SourceInput, is_open, with_known_sizes
from tfq.data import input_specs
from tfq.errors import InputError
from tfq.native_stderr import captured_stderr

# The size of an open dimension in a flatbuffer.
_OPEN = -1


def with_fixed_sizes(model: bytes, config: ConversionConfig, examples: ExampleShapes) -> bytes:
    """Return a float flatbuffer with the sizes of `config.input_shapes`, or of the examples if all have one size.

    Without either, the flatbuffer is returned unchanged: its inputs stay dynamic. If sizes are fixed, an open batch
    dimension becomes `config.batch_size`.

    Args:
        model: The bytes of a flatbuffer. Only its main subgraph is changed.
        config: The settings of the conversion.
        examples: The representative data, read only if a size other than the batch is open. A TfqWarning says when its
            sizes are used.

    Raises:
        InputError: `config.input_shapes` contradicts the model, or the model does not accept these sizes.
    """
    inputs = [
        SourceInput(name=spec.name, shape=_sizes(spec.shape), dtype=np.dtype(spec.dtype).name, declared=True)
        for spec in input_specs(model)
    ]
    known = with_known_sizes(inputs, parse_input_shapes(config.input_shapes), examples, differing_sizes_stay_open=True)
    was_open = any(map(is_open, inputs))
    if not was_open or any(map(is_open, known)):
        return model
    shapes = [[size or config.batch_size or _OPEN for size in item.shape or ()] for item in known]
    return _reshaped(model, shapes)


def with_fixed_batch(model: bytes, batch_size: int) -> bytes:
    """Return a flatbuffer with this size of open batch dimensions; unchanged if none or another size is open.

    Args:
        model: The bytes of a flatbuffer. Only its main subgraph is changed.
        batch_size: The size of the batch, >= 1.
    """
    shapes = [_sizes(spec.shape) for spec in input_specs(model)]
    if not any(shape and None in shape for shape in shapes) or any(shape and None in shape[1:] for shape in shapes):
        return model
    return _reshaped(model, [[size or batch_size for size in shape or ()] for shape in shapes])


def _sizes(shape: Sequence[int | None]) -> Shape:
    return tuple(None if size in (None, _OPEN) else size for size in shape)


def _reshaped(model: bytes, shapes: Sequence[Sequence[int]]) -> bytes:
    """Return the flatbuffer with these shapes of its inputs, and the shapes that follow from them everywhere else."""
    measured = _measured_shapes(model, [[max(size, 1) for size in shape] for shape in shapes])
    has_open_batch = any(_OPEN in shape for shape in shapes)
    edited = tflite.unpack(model)
    graph = edited.subgraphs[0]
    for index, tensor in enumerate(graph.tensors):
        signature = tensor.shapeSignature
        if signature is None or _OPEN not in [int(size) for size in signature] or index not in measured:
            continue
        keeps_batch = has_open_batch and len(measured[index]) and int(signature[0]) == _OPEN
        tensor.shape = np.array(measured[index], np.int32)
        tensor.shapeSignature = np.array([_OPEN, *measured[index][1:]], np.int32) if keeps_batch else None
    return tflite.pack(edited, len(model))


def _measured_shapes(model: bytes, shapes: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Return {tensor of the main subgraph: its shape} in an inference with zeros of these shapes."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    inputs = tflite.read(model).main_subgraph.inputs
    try:
        with captured_stderr():
            interpreter: Any = Interpreter(
                model_content=model,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
            for index, shape in zip(inputs, shapes, strict=True):
                interpreter.resize_tensor_input(index, shape)
            interpreter.allocate_tensors()
            interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{FIELD}: the model does not run on inputs of the shapes {', '.join(map(str, shapes))}. The interpreter "
            f"says: {error}",
            field=FIELD,
            expected="sizes that the model accepts",
            got=tuple(map(tuple, shapes)),
        ) from error
    return {item["index"]: [int(size) for size in item["shape"]] for item in interpreter.get_tensor_details()}

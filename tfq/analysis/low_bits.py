# SPDX-License-Identifier: Apache-2.0
"""Simulate fewer bits: a float flatbuffer whose weights and activations are rounded to low-bit grids."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq import tflite
from tfq.analysis.weight_grids import on_grid
from tfq.config import FLOAT_BITS
from tfq.patterns import check_selection, fits_op
from tfq.ptq.calibration import Observations
from tfq.ptq.calibration.methods import min_mse_range
from tfq.ptq.weighted_ops import weighted_ops
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES


def round_tensor(edited: Any, tensor: int, scale: float, zero_point: int, highest: float | None = None) -> None:
    """Insert ops after a float tensor of the main subgraph that round it to int8 values.

    All ops and outputs that read the tensor then read the rounded values.

    Args:
        edited: The flatbuffer in its object form, which is changed.
        tensor: The index of the tensor.
        scale: The scale of the int8 values.
        zero_point: Their zero point.
        highest: Values above it are clipped first, for fewer than 8 bits. The lowest quantized value is -128.
    """
    from ai_edge_litert import schema_py_generated as generated

    graph, original = edited.subgraphs[0], edited.subgraphs[0].tensors[tensor]
    first = len(graph.tensors)

    def add_tensor(name: str, kind: str) -> Any:
        built = generated.TensorT()
        built.shape, built.shapeSignature = original.shape, original.shapeSignature
        built.name, built.type, built.buffer = f"tfq/{name}_{tensor}", TENSOR_TYPES.index(kind), 0
        graph.tensors.append(built)
        return built

    quantized = add_tensor("quantized", "int8")
    add_tensor("rounded", "float32")
    quantized.quantization = generated.QuantizationParametersT()
    quantized.quantization.scale, quantized.quantization.zeroPoint = [scale], [zero_point]
    steps = [("QUANTIZE", [tensor], first), ("DEQUANTIZE", [first], first + 1)]
    if highest is not None:
        add_tensor("cut", "float32")
        limit = add_tensor("highest", "float32")
        limit.shape, limit.shapeSignature = [], None
        edited.buffers.append(generated.BufferT())
        edited.buffers[-1].data = np.frombuffer(np.float32(highest).tobytes(), np.uint8)
        limit.buffer = len(edited.buffers) - 1
        steps = [("MINIMUM", [tensor, first + 3], first + 2), ("QUANTIZE", [first + 2], first), steps[1]]
    producer_position = next(
        producer_position for producer_position, op in enumerate(graph.operators) if tensor in map(int, op.outputs)
    )
    for op in graph.operators[producer_position + 1 :]:
        op.inputs = np.array([first + 1 if int(index) == tensor else int(index) for index in op.inputs], np.int32)
    graph.outputs = [first + 1 if int(index) == tensor else int(index) for index in graph.outputs]
    for signature in edited.signatureDefs or []:
        for entry in signature.outputs:
            entry.tensorIndex = first + 1 if entry.tensorIndex == tensor else entry.tensorIndex
    ops = []
    for name, sources, target in steps:
        op = generated.OperatorT()
        op.opcodeIndex = tflite.operator_code(edited, OPERATORS.index(name), 1)
        op.inputs, op.outputs = np.array(sources, np.int32), np.array([target], np.int32)
        if name == "MINIMUM":
            op.builtinOptionsType = generated.BuiltinOptions.MaximumMinimumOptions
            op.builtinOptions = generated.MaximumMinimumOptionsT()
        ops.append(op)
    graph.operators[producer_position + 1 : producer_position + 1] = ops


def with_few_bits(
    floating: bytes,
    observations: Observations,
    *,
    weight_bits: int = FLOAT_BITS,
    activation_bits: int = FLOAT_BITS,
    grid: str = "uniform",
    keep: Sequence[str] = (),
) -> bytes:
    """Return a float flatbuffer with weights rounded to `weight_bits` and activations rounded to `activation_bits`.

    Args:
        floating: The float flatbuffer.
        observations: Of its activations, with histograms. The range of each activation minimizes the squared error for
            this number of bits.
        weight_bits: 1 to 8, or FLOAT_BITS to leave weights as they are.
        activation_bits: 1 to 8, or FLOAT_BITS to leave activations as they are.
        grid: A name of `GRIDS` for the weights.
        keep: Name patterns of layers whose weights and outputs are left as they are. The model's inputs and outputs,
            and biases, are never rounded.

    Raises:
        InputError: A pattern matches no layer.
    """
    parsed, edited = tflite.read(floating), tflite.unpack(floating)
    graph = parsed.main_subgraph
    layers, field = graph.layers_by_output, "analysis.bit_widths.keep"
    names = {graph.tensors[index].name for index in layers}
    check_selection(field, keep, dict.fromkeys(layers.values()), field=field, tensors=names)
    if weight_bits < FLOAT_BITS:
        for layer in weighted_ops(edited, parsed):
            if not fits_op(layer.layer, (layer.output_name,), keep):
                layer.set_weights_by_output(on_grid(layer.weights_by_output(), grid, weight_bits))
    if activation_bits < FLOAT_BITS:
        for tensor, range_ in _ranges(observations, activation_bits).items():
            is_excluded = (
                tensor in graph.inputs
                or tensor in graph.outputs
                or fits_op(layers.get(tensor, ""), (graph.tensors[tensor].name,), keep)
            )
            if not is_excluded and range_[1] > range_[0]:
                _round_to(edited, tensor, range_, activation_bits)
    return tflite.pack(edited, len(floating))


def _ranges(observations: Observations, bits: int) -> Mapping[int, tuple[float, float]]:
    """Return {tensor of the main subgraph: (minimum, maximum)}; the ranges include zero."""
    return {
        tensor: min_mse_range(seen.bins(), bits)
        for (subgraph, tensor), seen in observations.tensors.items()
        if subgraph == 0
    }


def _round_to(edited: Any, tensor: int, range_: tuple[float, float], bits: int) -> None:
    """Round a tensor to 2^bits quantized values from -128 up; values above the last one are clipped."""
    scale = float(np.float32((range_[1] - range_[0]) / (2**bits - 1)))
    below = int(np.clip(np.rint(-range_[0] / scale), 0, 2**bits - 1))
    highest = (2**bits - 1 - below) * scale
    round_tensor(edited, tensor, scale, below - 128, highest=highest if bits < 8 else None)

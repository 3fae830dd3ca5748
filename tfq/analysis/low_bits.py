# SPDX-License-Identifier: Apache-2.0
"""Simulate fewer bits: a float flatbuffer whose weights and activations are rounded to low-bit grids."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfq import tflite
from tfq.analysis.weight_grids import on_grid
from tfq.config import FLOAT_BITS
from tfq.patterns import check_fits, fits_op
from tfq.ptq.calibration import Observations
from tfq.ptq.calibration.methods import min_mse_range
from tfq.ptq.weighted_ops import weighted_ops
from tfq.tflite.schema import OPERATORS, TENSOR_TYPES


def round_tensor(edited: Any, tensor: int, scale: float, zero_point: int, highest: float | None = None) -> None:
    """Let all that reads a float tensor of the main subgraph, outputs among them, read it rounded to int8 codes.

    edited: the flatbuffer in its object form, which is changed. highest: values above it are cut off before, for codes
    that end below 127; the lowest code is -128.
    """
    from ai_edge_litert import schema_py_generated as generated

    graph, shape = edited.subgraphs[0], edited.subgraphs[0].tensors[tensor]
    first = len(graph.tensors)

    def add_tensor(name: str, kind: str) -> Any:
        built = generated.TensorT()
        built.shape, built.shapeSignature = shape.shape, shape.shapeSignature
        built.name, built.type, built.buffer = f"tfq/{name}_{tensor}", TENSOR_TYPES.index(kind), 0
        graph.tensors.append(built)
        return built

    quantized = add_tensor("codes", "int8")
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
    place = next(place for place, op in enumerate(graph.operators) if tensor in map(int, op.outputs))
    for op in graph.operators[place + 1 :]:
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
    graph.operators[place + 1 : place + 1] = ops


def with_few_bits(
    floating: bytes,
    observations: Observations,
    *,
    weight_bits: int = FLOAT_BITS,
    activation_bits: int = FLOAT_BITS,
    grid: str = "uniform",
    keep: Sequence[str] = (),
) -> bytes:
    """`floating`, a float flatbuffer, with weights on a grid of weight_bits, and activations on activation_bits codes.

    observations: of its activations, with histograms; the range of each has the least squared error for so many bits.
    weight_bits, activation_bits: 1 to 8, or FLOAT_BITS, which leaves them. keep: name patterns of layers left as they
    are, weights and what they give. The model's inputs and outputs are left as well, and biases.
    Raises InputError on a pattern that fits no layer.
    """
    parsed, edited = tflite.read(floating), tflite.unpack(floating)
    graph = parsed.main_subgraph
    layers = graph.layers_by_output
    for pattern in keep:
        names = {graph.tensors[index].name for index in layers}
        check_fits(
            f"keep: the pattern {pattern!r}", pattern, dict.fromkeys(layers.values()), field="bits.keep", tensors=names
        )
    if weight_bits < FLOAT_BITS:
        for layer in weighted_ops(edited, parsed):
            if not fits_op(layer.layer, (layer.output_name,), keep):
                layer.set_weights_by_output(on_grid(layer.weights_by_output(), grid, weight_bits))
    if activation_bits < FLOAT_BITS:
        for tensor, ends in _ranges(observations, activation_bits).items():
            left = (
                tensor in graph.inputs
                or tensor in graph.outputs
                or fits_op(layers.get(tensor, ""), (graph.tensors[tensor].name,), keep)
            )
            if not left and ends[1] > ends[0]:
                _round_to(edited, tensor, ends, activation_bits)
    return tflite.pack(edited, len(floating))


def _ranges(observations: Observations, bits: int) -> Mapping[int, tuple[float, float]]:
    """Tensor of the main subgraph -> (minimum, maximum), zero within."""
    return {
        tensor: min_mse_range(seen.bins(), bits)
        for (subgraph, tensor), seen in observations.tensors.items()
        if subgraph == 0
    }


def _round_to(edited: Any, tensor: int, ends: tuple[float, float], bits: int) -> None:
    """Codes from -128 up, as many as the bits have; what lies above them is cut off before."""
    scale = float(np.float32((ends[1] - ends[0]) / (2**bits - 1)))
    below = int(np.clip(np.rint(-ends[0] / scale), 0, 2**bits - 1))
    highest = (2**bits - 1 - below) * scale
    round_tensor(edited, tensor, scale, below - 128, highest=highest if bits < 8 else None)

# SPDX-License-Identifier: Apache-2.0
"""Measure how quantizing one op alone changes the outputs of the float flatbuffer.

This ranking predicts better which ops to keep in float than removing ops from a quantized model one by one, where the
errors of all other ops hide that of one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import quant_math, tflite
from tfq.analysis.low_bits import round_tensor
from tfq.analysis.op_errors import decibels, graph_with_output_names
from tfq.errors import InputError
from tfq.evaluation import agreement, is_class_vector
from tfq.progress import counted
from tfq.ptq.calibration import Ranges
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.causes import op_label
from tfq.ptq.weighted_ops import weighted_ops


@dataclass(frozen=True, kw_only=True)
class OpSensitivity:
    """The change of the model's outputs if only one op's weights and output are quantized.

    Attributes:
        op_index: The position of the op in the float flatbuffer.
        op: The op's name.
        layer: The Keras layer, or the tensor's name if the layer is not known.
        tensor: The name of the output tensor.
        label: "conv/CONV_2D (#3)".
        weights: The number of its weights.
        sqnr_db: The SQNR of the model's outputs, in dB.
        disagreement: The fraction of samples whose predicted class changes; the highest of all outputs that predict a
            class, None if none does.
    """

    op_index: int
    op: str
    layer: str
    tensor: str
    label: str
    weights: int
    sqnr_db: float
    disagreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite sqnr_db is null."""
        message = None if math.isinf(self.sqnr_db) else self.sqnr_db
        return {**self.__dict__, "sqnr_db": message}


def op_sensitivity(
    floating: bytes, ranges: Ranges, samples: Sequence[Sample], *, per_channel: bool = True
) -> tuple[OpSensitivity, ...]:
    """Return one record for each op with a calibrated output, the most sensitive first.

    Each record costs one run of the float flatbuffer over the samples.

    Args:
        floating: The float flatbuffer, without control flow.
        ranges: Of its activations, as `calibrate` returns them.
        samples: By input name.
        per_channel: Whether weights have one scale per output channel.

    Raises:
        InputError: There are no samples.
    """
    if not samples:
        raise InputError("samples is empty: expected at least one sample to measure sensitivity on", field="samples")
    parsed = tflite.read(floating)
    graph, named = parsed.main_subgraph, graph_with_output_names(parsed)
    expected = _outputs(floating, samples)
    results = []
    calibrated = [op for op in graph.ops if (graph.index, op.outputs[0]) in ranges.values]
    for op in counted(calibrated, "ops", " ops"):
        rounded = _outputs(quantized_alone(floating, op.index, ranges.values, per_channel=per_channel), samples)
        signal = sum(float((array**2).sum()) for array in expected)
        noise = sum(
            float(((float_output - rounded_output) ** 2).sum())
            for float_output, rounded_output in zip(expected, rounded, strict=True)
        )
        constants = (graph.tensors[index] for index in op.inputs if index != tflite.ABSENT)
        results.append(
            OpSensitivity(
                op_index=op.index,
                op=op.name,
                layer=graph.layer_of(op),
                tensor=graph.tensors[op.outputs[0]].name,
                label=op_label(named, op.index),
                weights=sum(math.prod(tensor.shape) for tensor in constants if _is_weight(tensor)),
                # The logarithm of a value that became 0 is infinite, and the values after it may be NaN.
                sqnr_db=decibels(signal, noise) if math.isfinite(noise) else -math.inf,
                disagreement=_disagreement(graph, expected, rounded),
            )
        )
    return tuple(sorted(results, key=lambda item: item.sqnr_db))


def _disagreement(graph: tflite.Subgraph, expected: Sequence[NDArray], rounded: Sequence[NDArray]) -> float | None:
    results = [
        1.0 if np.isnan(rounded_output).any() else 1 - agreement(rounded_output, float_output)
        for index, float_output, rounded_output in zip(graph.outputs, expected, rounded, strict=True)
        if is_class_vector(graph, index, float_output)
    ]
    return max(results, default=None)


def quantized_alone(
    floating: bytes, op: int, ranges: Mapping[tuple[int, int], tuple[float, float]], *, per_channel: bool = True
) -> bytes:
    """Return the float flatbuffer with the weights and the output of op number `op` rounded to int8."""
    parsed = tflite.read(floating)
    edited = tflite.unpack(floating)
    for layer in weighted_ops(edited, parsed):
        if layer.op is edited.subgraphs[0].operators[op]:
            rows = layer.weights_by_output()
            largest = np.abs(rows).max(axis=1 if per_channel else None, keepdims=True)
            scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            layer.set_weights_by_output(np.rint(rows / scale) * scale)
    output = parsed.main_subgraph.ops[op].outputs[0]
    round_tensor(edited, output, *quant_math.quantization_parameters(*ranges[0, output]))
    return tflite.pack(edited, len(floating))


def _outputs(model: bytes, samples: Sequence[Sample]) -> list[NDArray[np.float32]]:
    outputs = tflite.read(model).main_subgraph.outputs
    result = map_activations(model, outputs, samples, lambda values: [array.copy() for array in values])
    return [np.concatenate(item) for item in zip(*result, strict=True)]


def _is_weight(tensor: tflite.Tensor) -> bool:
    return tensor.is_constant and tensor.dtype == "float32"

# SPDX-License-Identifier: Apache-2.0
"""What quantizing one layer alone does to the outputs: the float flatbuffer with one layer's numbers rounded.

Ranking layers each alone foretells better what to keep in float than taking them out of a quantized model one by one:
there the errors of all the others hide what one of them does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import quant_math, tflite
from tfq.analysis.layers import decibels
from tfq.analysis.low_bits import round_tensor
from tfq.errors import InputError
from tfq.ptq.calibration import Ranges
from tfq.ptq.calibration.observer import Sample, look_at_each
from tfq.ptq.weighted_ops import weighted_ops


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """The model's outputs with this layer alone quantized, its weights and what it gives, against all in float.

    sqnr_db: signal to error of the outputs, in dB. disagreement: share of samples whose largest output is another.
    """

    layer: str
    op: str
    weights: int
    sqnr_db: float
    disagreement: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: an infinite sqnr_db is null."""
        message = None if math.isinf(self.sqnr_db) else self.sqnr_db
        return {**self.__dict__, "sqnr_db": message}


def layer_sensitivity(
    floating: bytes, ranges: Ranges, samples: Sequence[Sample], *, per_channel: bool = True
) -> tuple[LayerSensitivity, ...]:
    """One record for each op with a calibrated output, the most sensitive first.

    floating: float flatbuffer, without control flow. ranges: of its activations, as `calibrate` gives them.
    samples: by input name. per_channel: a scale for each output channel of a weight.
    Each record costs one run of the float flatbuffer over the samples.
    """
    if not samples:
        raise InputError("no samples to measure sensitivity on: expected at least one")
    parsed = tflite.read(floating)
    graph = parsed.main_subgraph
    wanted = _outputs(floating, samples)
    results = []
    for op in graph.ops:
        if (graph.index, op.outputs[0]) not in ranges.values:
            continue
        got = _outputs(quantized_alone(floating, op.index, ranges.values, per_channel=per_channel), samples)
        signal = sum(float((array**2).sum()) for array in wanted)
        noise = sum(float(((one - other) ** 2).sum()) for one, other in zip(wanted, got, strict=True))
        answers = [array.reshape(len(samples), -1).argmax(axis=1) for array in (wanted[0], got[0])]
        constants = (graph.tensors[index] for index in op.inputs if index != tflite.ABSENT)
        results.append(
            LayerSensitivity(
                layer=op.keras_layer or graph.tensors[op.outputs[0]].name,
                op=op.name,
                weights=sum(math.prod(tensor.shape) for tensor in constants if _is_weight(tensor)),
                sqnr_db=decibels(signal, noise),
                disagreement=float((answers[0] != answers[1]).mean()),
            )
        )
    return tuple(sorted(results, key=lambda item: item.sqnr_db))


def quantized_alone(
    floating: bytes, op: int, ranges: Mapping[tuple[int, int], tuple[float, float]], *, per_channel: bool = True
) -> bytes:
    """The float flatbuffer with the weights of its op number `op` rounded to int8, and what it gives as well."""
    parsed = tflite.read(floating)
    edited = tflite.unpack(floating)
    for layer in weighted_ops(edited, parsed):
        if layer.op is edited.subgraphs[0].operators[op]:
            rows = layer.by_output()
            largest = np.abs(rows).max(axis=1 if per_channel else None, keepdims=True)
            scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            layer.set_by_output(np.rint(rows / scale) * scale)
    output = parsed.main_subgraph.ops[op].outputs[0]
    round_tensor(edited, output, *quant_math.quantization_parameters(*ranges[0, output]))
    return tflite.pack(edited, len(floating))


def _outputs(model: bytes, samples: Sequence[Sample]) -> list[NDArray[np.float32]]:
    outputs = tflite.read(model).main_subgraph.outputs
    result = look_at_each(model, outputs, samples, lambda values: [array.copy() for array in values])
    return [np.concatenate(item) for item in zip(*result, strict=True)]


def _is_weight(tensor: tflite.Tensor) -> bool:
    return tensor.is_constant and tensor.dtype == "float32"

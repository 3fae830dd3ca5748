# SPDX-License-Identifier: Apache-2.0
"""A float flatbuffer and the int8 one that was made of it: which tensor of one is which of the other."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tfq import quant_math, tflite
from tfq.errors import InputError
from tfq.ptq.calibration.activations import Sample, look_at_each


class Beside:
    """Two flatbuffers of one model.

    of_float: {tensor of the int8 one: the float tensor of the same name}, of what ops give out.
    """

    def __init__(self, floating: bytes, quantized: bytes) -> None:
        """Raises InputError where they have different inputs or outputs, or no activation of one name."""
        self.floating, self.quantized = tflite.read(floating), tflite.read(quantized)
        # Converters call outputs as they like; only inputs are fed by name.
        borders = [
            (model.input_names, [tensor.shape for tensor in model.main_subgraph.output_tensors])
            for model in (self.floating, self.quantized)
        ]
        if borders[0] != borders[1]:
            raise InputError(
                f"the float and the int8 flatbuffer have other inputs or other shapes of outputs ({borders[0]}, "
                f"{borders[1]}): give the float one that the int8 one was made of"
            )
        floats = {tensor.name: tensor.index for tensor in _given_out(self.floating) if tensor.dtype == "float32"}
        self.of_float = {
            tensor.index: floats[tensor.name]
            for tensor in _given_out(self.quantized)
            if tensor.is_quantized and tensor.name in floats
        }
        if not self.of_float:
            raise InputError(
                "no activation of the int8 flatbuffer has the name of a float one: give the float flatbuffer that it "
                "was made of"
            )

    def codes(self, samples: Iterable[Sample]) -> Iterator[dict[str, NDArray]]:
        """`samples` as the int8 flatbuffer's inputs take them."""
        tensors = dict(zip(self.quantized.input_names, self.quantized.main_subgraph.input_tensors, strict=True))
        for sample in samples:
            yield {name: _as_input(sample[name], tensor) for name, tensor in tensors.items()}

    def grid(self, tensor: int) -> tuple[float, int]:
        """(scale, zero_point) of a tensor of the int8 flatbuffer; (1, 0) of one that holds no codes."""
        found = self.quantized.main_subgraph.tensors[tensor]
        return (found.scale[0], found.zero_point[0]) if found.is_quantized else (1.0, 0)

    def reals(self, tensor: int, codes: NDArray) -> NDArray[np.float64]:
        """What `codes` of a tensor of the int8 flatbuffer stand for; they may be means, between two codes."""
        scale, zero_point = self.grid(tensor)
        return (codes.astype(np.float64) - zero_point) * scale


def channel_means(
    model: bytes, tensors: Sequence[int], samples: Iterable[Sample]
) -> tuple[list[NDArray[np.float64]], list[NDArray]]:
    """(mean of each channel, the last axis, of each of `tensors` over all samples; all values of each output).

    Of codes the means are of codes. Outputs are (samples, ...).
    """
    outputs = tflite.read(model).main_subgraph.outputs

    def look(values: list[NDArray]) -> tuple[list[NDArray[np.float64]], list[NDArray]]:
        means = [array.reshape(-1, array.shape[-1]).mean(axis=0, dtype=np.float64) for array in values[: len(tensors)]]
        return means, [array.copy() for array in values[len(tensors) :]]

    sums: list[NDArray[np.float64]] = []
    answers: list[list[NDArray]] = []
    for means, values in look_at_each(model, [*tensors, *outputs], samples, look):
        sums = [one + other for one, other in zip(sums, means, strict=True)] if sums else means
        answers.append(values)
    if not answers:
        raise InputError("no samples: wanted at least one")
    return [total / len(answers) for total in sums], [np.stack(each) for each in zip(*answers, strict=True)]


def channel_ends(model: bytes, tensors: Sequence[int], samples: Sequence[Sample]) -> dict[int, tuple[NDArray, NDArray]]:
    """{tensor: (lowest, highest value of each channel, the last axis) over all samples}; nothing of no tensors."""
    if not tensors:
        return {}

    def look(values: list[NDArray]) -> list[tuple[NDArray, NDArray]]:
        rows = [array.reshape(-1, array.shape[-1]) for array in values]
        return [(each.min(axis=0), each.max(axis=0)) for each in rows]

    ends: dict[int, tuple[NDArray, NDArray]] = {}
    for found in look_at_each(model, tensors, samples, look, total=len(samples)):
        for tensor, (low, high) in zip(tensors, found, strict=True):
            before = ends.get(tensor, (low, high))
            ends[tensor] = np.minimum(before[0], low), np.maximum(before[1], high)
    return ends


def _given_out(model: tflite.Model) -> Iterator[tflite.Tensor]:
    graph = model.main_subgraph
    for op in graph.ops:
        yield from (graph.tensors[index] for index in op.outputs)


def _as_input(array: NDArray, tensor: tflite.Tensor) -> NDArray:
    if not tensor.is_quantized or array.dtype.name == tensor.dtype:
        return array
    return quant_math.quantize(array, tensor.scale[0], tensor.zero_point[0], tensor.dtype)

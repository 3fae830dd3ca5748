# SPDX-License-Identifier: Apache-2.0
"""Pairs that post-training techniques work on: two adjacent layers, or a float tensor and its int8 one."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import quant_math, tflite
from tfq.errors import InputError
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.weighted_ops import WeightedOp, weighted_ops


class ModelPair:
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
                f"{borders[1]}): give the float one that the int8 one was made of",
                field="floating",
                expected=borders[1],
                got=borders[0],
            )
        self.float_tensors = _twins(self.floating, self.quantized)
        if not self.float_tensors:
            raise InputError(
                "no activation of the int8 flatbuffer has the name of a float one: give the float flatbuffer that it "
                "was made of",
                field="floating",
                expected="the float model of the int8 one",
            )

    def quantize_samples(self, samples: Iterable[Sample]) -> Iterator[dict[str, NDArray]]:
        """`samples` as the int8 flatbuffer's inputs take them."""
        tensors = dict(zip(self.quantized.input_names, self.quantized.main_subgraph.input_tensors, strict=True))
        for sample in samples:
            yield {name: as_input(sample[name], tensor) for name, tensor in tensors.items()}

    def scale_and_zero_point(self, tensor: int) -> tuple[float, int]:
        """(scale, zero_point) of a tensor of the int8 flatbuffer; (1, 0) of one that holds no codes."""
        result = self.quantized.main_subgraph.tensors[tensor]
        return (result.scale[0], result.zero_point[0]) if result.is_quantized else (1.0, 0)

    def dequantize(self, tensor: int, codes: NDArray) -> NDArray[np.float64]:
        """What `codes` of a tensor of the int8 flatbuffer stand for; they may be means, between two codes."""
        scale, zero_point = self.scale_and_zero_point(tensor)
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
    for means, values in map_activations(model, [*tensors, *outputs], samples, look):
        sums = [one + other for one, other in zip(sums, means, strict=True)] if sums else means
        answers.append(values)
    if not answers:
        raise InputError("no samples: expected at least one", field="samples", expected="at least one sample")
    return [total / len(answers) for total in sums], [np.stack(item) for item in zip(*answers, strict=True)]


def channel_ranges(
    model: bytes, tensors: Sequence[int], samples: Sequence[Sample]
) -> dict[int, tuple[NDArray, NDArray]]:
    """{tensor: (lowest, highest value of each channel, the last axis) over all samples}; nothing of no tensors."""
    if not tensors:
        return {}

    def look(values: list[NDArray]) -> list[tuple[NDArray, NDArray]]:
        rows = [array.reshape(-1, array.shape[-1]) for array in values]
        return [(item.min(axis=0), item.max(axis=0)) for item in rows]

    ends: dict[int, tuple[NDArray, NDArray]] = {}
    for result in map_activations(model, tensors, samples, look, total=len(samples)):
        for tensor, (low, high) in zip(tensors, result, strict=True):
            before = ends.get(tensor, (low, high))
            ends[tensor] = np.minimum(before[0], low), np.maximum(before[1], high)
    return ends


def _twins(floating: tflite.Model, quantized: tflite.Model) -> dict[int, int]:
    """{quantized activation: the float one of the same name}. Of several of one name, the first is the first."""
    floats: dict[str, list[int]] = {}
    for tensor in _given_out(floating):
        if tensor.dtype == "float32":
            floats.setdefault(tensor.name, []).append(tensor.index)
    results: dict[str, list[int]] = {}
    for tensor in _given_out(quantized):
        if tensor.is_quantized and tensor.name in floats:
            results.setdefault(tensor.name, []).append(tensor.index)
    # Where one side has more, it cannot be told which of them belong together.
    return {
        index: twin
        for name, indices in results.items()
        if len(indices) == len(floats[name])
        for index, twin in zip(indices, floats[name], strict=True)
    }


def _given_out(model: tflite.Model) -> Iterator[tflite.Tensor]:
    graph = model.main_subgraph
    for op in graph.ops:
        yield from (graph.tensors[index] for index in op.outputs)


def as_input(array: NDArray, tensor: tflite.Tensor) -> NDArray:
    """Return real values as the input `tensor` takes them: quantized by its scale, or cast to its dtype."""
    if not tensor.is_quantized or array.dtype.name == tensor.dtype:
        return array.astype(tensor.dtype, copy=False)
    return quant_math.quantize(array, tensor.scale[0], tensor.zero_point[0], tensor.dtype)


# Fused activations, by their numbers in the schema.
NO_ACTIVATION, RELU, RELU6 = 0, 1, 3


@dataclass(frozen=True, kw_only=True)
class PairTechnique:
    """A float flatbuffer of which pairs of layers were changed. model: of the same function as before.

    pairs: what was done to each, a dataclass. skipped: {layer: why nothing was}. difference: the largest of any output
    from what it was, as a share of the largest output; over num_samples samples.
    """

    model: bytes
    pairs: tuple[Any, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    difference: float
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the flatbuffer."""
        return {
            "difference": self.difference,
            "num_samples": self.num_samples,
            "pairs": [asdict(pair) for pair in self.pairs],
            "skipped": dict(self.skipped),
        }


def find_layer_pairs(
    edited: Any,
    parsed: tflite.Model,
    passing: Collection[str],
    why_not: Callable[[WeightedOp, WeightedOp | None], str],
) -> tuple[list[tuple[WeightedOp, WeightedOp]], dict[str, str]]:
    """(the pairs of layers with nothing but ops of the names `passing` between them, {other layer: why it has none}).

    edited: `parsed` in its object form. why_not: what speaks against a first layer (with None), and then against a
    pair; "" where nothing does.
    """
    graph = parsed.main_subgraph
    by_output = {item.output: item for item in weighted_ops(edited, parsed)}
    result, skipped = [], {}
    for first in by_output.values():
        second, reason = None, why_not(first, None)
        if not reason:
            second, reason = _reader(first, graph, by_output, passing)
        if second is not None:
            reason = why_not(first, second)
        if second is None or reason:
            skipped[first.layer] = reason
        else:
            result.append((first, second))
    return result, skipped


def _reader(
    first: WeightedOp,
    graph: tflite.Subgraph,
    by_output: Mapping[int, WeightedOp],
    passing: Collection[str],
) -> tuple[WeightedOp | None, str]:
    """The layer that alone reads what `first` gives; or None, and why there is none."""
    tensor = first.output
    while True:
        if tensor in graph.outputs:
            return None, "an output of the model"
        ops = graph.readers.get(tensor, ())
        if len(ops) != 1:
            return None, f"{len(ops)} ops read what it gives"
        (op,) = ops
        second = by_output.get(op.outputs[0])
        if second is not None and op.inputs[0] == tensor:
            if second.is_depthwise and second.num_inputs != first.num_outputs:
                return None, "its channels are others where they are read again"
            return second, ""
        if op.name not in passing or not _keeps_channels(op, graph, first.num_outputs):
            return None, f"{op.name} reads what it gives"
        tensor = op.outputs[0]


def _keeps_channels(op: tflite.Op, graph: tflite.Subgraph, channels: int) -> bool:
    """Whether the op's output still has the channels innermost: one place of an image, or all of them, flattened."""
    shape = graph.tensors[op.outputs[0]].shape
    if op.name == "RESHAPE":
        return bool(shape) and shape[-1] % channels == 0
    return bool(shape) and shape[-1] == channels

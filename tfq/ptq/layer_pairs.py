# SPDX-License-Identifier: Apache-2.0
"""Pairs that post-training techniques work on: two adjacent layers, or a float tensor and its quantized tensor."""

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
    """A quantized flatbuffer and the float flatbuffer that it was converted from.

    Attributes:
        floating: The float flatbuffer, parsed.
        quantized: The quantized flatbuffer, parsed.
        float_tensors: {quantized activation: its float activation}, tensor indices. It covers the outputs of ops, not
            the inputs of the model, nor outputs that nothing reads.
    """

    def __init__(self, floating: bytes, quantized: bytes, *, by_layer: bool = False) -> None:
        """Parse both flatbuffers and match their activations by name.

        Args:
            floating: The float flatbuffer.
            quantized: The quantized flatbuffer.
            by_layer: Whether to match the activations without a common name by Keras layer, op and shape. The names
                differ after quantization-aware training, which wraps the layers.

        Raises:
            InputError: The flatbuffers differ in inputs or shapes of outputs, or have no activation name in common.
        """
        self.floating, self.quantized = tflite.read(floating), tflite.read(quantized)
        # Names of outputs are not compared: converters rename them.
        interfaces = [
            (model.input_names, [tensor.shape for tensor in model.main_subgraph.output_tensors])
            for model in (self.floating, self.quantized)
        ]
        if interfaces[0] != interfaces[1]:
            raise InputError(
                "the float and the quantized flatbuffer do not belong together: their inputs or the shapes of their "
                f"outputs differ (float {interfaces[0]}, quantized {interfaces[1]}). Pass the float flatbuffer that "
                "the quantized one was converted from",
                field="floating",
                expected=interfaces[1],
                got=interfaces[0],
            )
        self.float_tensors = _match_activations(self.floating, self.quantized)
        if by_layer:
            self.float_tensors |= _match_by_layer(self.floating, self.quantized, self.float_tensors)
            self.float_tensors = dict(sorted(self.float_tensors.items(), key=lambda item: self._position(item[0])))
        # The outputs of the ops that reset the state of an LSTM, for example, have no reader.
        graph = self.quantized.main_subgraph
        read = {index for op in graph.ops for index in op.inputs} | set(graph.outputs)
        self.float_tensors = {index: other for index, other in self.float_tensors.items() if index in read}
        if not any(tensor.is_quantized for tensor in _op_outputs(self.quantized)):
            raise InputError(
                "the activations of the quantized flatbuffer are float: only its weights are stored in fewer bits, so "
                "there are no rounded activations to compare. To compare its outputs, evaluate it with the float "
                "flatbuffer as the reference. Or pass an int8 or int16x8 flatbuffer",
                field="quantized",
                expected="integer activations",
                got="float32 activations",
                limit="float-activations",
            )
        if not self.float_tensors:
            raise InputError(
                "the float and the quantized flatbuffer do not belong together: no activations have the same name. "
                "Pass the float flatbuffer that the quantized one was converted from",
                field="floating",
                expected="the float model of the int8 one",
            )

    def _position(self, tensor: int) -> tuple[int, int]:
        op = self.quantized.main_subgraph.producers[tensor]
        return op.index, op.outputs.index(tensor)

    def quantize_samples(self, samples: Iterable[Sample]) -> Iterator[dict[str, NDArray]]:
        """Yield `samples` in the types of the quantized flatbuffer's inputs."""
        tensors = dict(zip(self.quantized.input_names, self.quantized.main_subgraph.input_tensors, strict=True))
        for sample in samples:
            yield {name: as_input(sample[name], tensor) for name, tensor in tensors.items()}

    def scale_and_zero_point(self, tensor: int) -> tuple[float, int]:
        """Return the scale and zero point of a tensor of the quantized flatbuffer; (1, 0) if it is not quantized."""
        record = self.quantized.main_subgraph.tensors[tensor]
        return (record.scale[0], record.zero_point[0]) if record.is_quantized else (1.0, 0)

    def dequantize(self, tensor: int, quantized_values: NDArray) -> NDArray[np.float64]:
        """Return the real values of a tensor of the quantized flatbuffer. Means of quantized values work as well."""
        scale, zero_point = self.scale_and_zero_point(tensor)
        return (quantized_values.astype(np.float64) - zero_point) * scale


def check_samples(samples: Sequence[Sample]) -> None:
    """Raise InputError if there are no samples."""
    if not samples:
        raise InputError(
            "post-training techniques need data: expected at least one sample, got none. Pass calibration samples",
            field="samples",
            expected="at least one sample",
        )


def channel_means(
    model: bytes, tensors: Sequence[int], samples: Iterable[Sample]
) -> tuple[list[NDArray[np.float64]], list[NDArray]]:
    """Return the mean of each channel of `tensors` over all samples, and the outputs of the model.

    Args:
        model: A flatbuffer. If it is quantized, means and outputs are quantized values.
        tensors: Tensor indices in the main subgraph. Channels are the last axis.
        samples: {input name: array in the type of the input}.

    Returns:
        For each tensor an array (channels,); for each output an array (samples, *shape of the output).

    Raises:
        InputError: There are no samples.
    """
    outputs = tflite.read(model).main_subgraph.outputs

    def means_and_outputs(values: list[NDArray]) -> tuple[list[NDArray[np.float64]], list[NDArray]]:
        means = [array.reshape(-1, array.shape[-1]).mean(axis=0, dtype=np.float64) for array in values[: len(tensors)]]
        return means, [array.copy() for array in values[len(tensors) :]]

    sums: list[NDArray[np.float64]] = []
    outputs_by_sample: list[list[NDArray]] = []
    for means, values in map_activations(model, [*tensors, *outputs], samples, means_and_outputs):
        sums = [total + mean for total, mean in zip(sums, means, strict=True)] if sums else means
        outputs_by_sample.append(values)
    count = len(outputs_by_sample)
    if not count:
        raise InputError(
            "channel means need data: expected at least one sample, got none. Pass calibration samples",
            field="samples",
            expected="at least one sample",
        )
    return [total / count for total in sums], [np.stack(values) for values in zip(*outputs_by_sample, strict=True)]


def channel_ranges(
    model: bytes, tensors: Sequence[int], samples: Sequence[Sample]
) -> dict[int, tuple[NDArray, NDArray]]:
    """Return {tensor: (smallest, largest value of each channel over all samples)}. Channels are the last axis."""
    if not tensors:
        return {}

    def extremes(values: list[NDArray]) -> list[tuple[NDArray, NDArray]]:
        rows = [array.reshape(-1, array.shape[-1]) for array in values]
        return [(array.min(axis=0), array.max(axis=0)) for array in rows]

    ranges: dict[int, tuple[NDArray, NDArray]] = {}
    for result in map_activations(model, tensors, samples, extremes, total=len(samples)):
        for tensor, (low, high) in zip(tensors, result, strict=True):
            lowest, highest = ranges.get(tensor, (low, high))
            ranges[tensor] = np.minimum(lowest, low), np.maximum(highest, high)
    return ranges


def _match_activations(floating: tflite.Model, quantized: tflite.Model) -> dict[int, int]:
    """Return {quantized activation: the float activation of the same name}.

    Several activations of one name are matched in order, if both models have equally many. Otherwise it is unknown
    which ones correspond, and they are left out.
    """
    by_name: dict[str, list[int]] = {}
    for tensor in _op_outputs(floating):
        if tensor.dtype == "float32":
            by_name.setdefault(tensor.name, []).append(tensor.index)
    quantized_by_name: dict[str, list[int]] = {}
    for tensor in _op_outputs(quantized):
        if tensor.is_quantized and tensor.name in by_name:
            quantized_by_name.setdefault(tensor.name, []).append(tensor.index)
    return {
        index: float_index
        for name, indices in quantized_by_name.items()
        if len(indices) == len(by_name[name])
        for index, float_index in zip(indices, by_name[name], strict=True)
    }


def _match_by_layer(floating: tflite.Model, quantized: tflite.Model, matched: Mapping[int, int]) -> dict[int, int]:
    """Return {quantized activation: float activation} of those that are not in `matched`.

    Outputs of the model are matched by their position, other activations if they alone have one Keras layer, op and
    shape. The ops must be the same.
    """
    graphs = quantized.main_subgraph, floating.main_subgraph
    taken = set(matched), set(matched.values())

    def by_key(side: int) -> dict[object, list[int]]:
        graph, results = graphs[side], dict[object, list[int]]()
        outputs = {index: place for place, index in enumerate(graph.outputs)}
        for op in graph.ops:
            for place, index in enumerate(op.outputs):
                tensor = graph.tensors[index]
                layer = outputs.get(index, op.keras_layer)
                if layer is not None and index not in taken[side]:
                    results.setdefault((layer, op.name, place, tensor.shape), []).append(index)
        return results

    floats = by_key(1)
    return {
        indices[0]: floats[key][0]
        for key, indices in by_key(0).items()
        if len(indices) == len(floats.get(key, ())) == 1
        and graphs[0].tensors[indices[0]].is_quantized
        and graphs[1].tensors[floats[key][0]].dtype == "float32"
    }


def _op_outputs(model: tflite.Model) -> Iterator[tflite.Tensor]:
    graph = model.main_subgraph
    for op in graph.ops:
        yield from (graph.tensors[index] for index in op.outputs)


def as_input(array: NDArray, tensor: tflite.Tensor) -> NDArray:
    """Return real values in the type of the input `tensor`: quantized with its scale, or cast to its dtype."""
    if not tensor.is_quantized or array.dtype.name == tensor.dtype:
        return array.astype(tensor.dtype, copy=False)
    return quant_math.quantize(array, tensor.scale[0], tensor.zero_point[0], tensor.dtype)


# Fused activations: values of ActivationFunctionType in the TFLite schema.
NO_ACTIVATION, RELU, RELU6 = 0, 1, 3


@dataclass(frozen=True, kw_only=True)
class PairTechnique:
    """The result of a technique that changes pairs of layers and keeps the float function.

    Attributes:
        model: The changed float flatbuffer.
        pairs: One dataclass for each pair that was changed, which says how.
        skipped: {layer: why it was not changed}.
        difference: The largest change of any output, relative to the largest output.
        num_samples: The number of samples on which `difference` was measured.
    """

    model: bytes
    pairs: tuple[Any, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    difference: float
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the flatbuffer."""
        return {
            "difference": self.difference,
            "num_samples": self.num_samples,
            "pairs": [asdict(pair) for pair in self.pairs],
            "skipped": dict(self.skipped),
        }


def find_layer_pairs(
    edited: Any,
    parsed: tflite.Model,
    pass_through: Collection[str],
    reason_to_skip: Callable[[WeightedOp, WeightedOp | None], str],
) -> tuple[list[tuple[WeightedOp, WeightedOp]], dict[str, str]]:
    """Find pairs of layers where only the second reads the output of the first.

    Args:
        edited: `parsed` in its object form.
        parsed: A float flatbuffer.
        pass_through: Names of the ops that may lie between the two layers.
        reason_to_skip: Called with (first, None), then with (first, second). Returns why the technique cannot change
            them, or "" if it can.

    Returns:
        The pairs, and {first layer: why it is in no pair}.
    """
    graph = parsed.main_subgraph
    by_output = {layer.output: layer for layer in weighted_ops(edited, parsed)}
    pairs, skipped = [], {}
    for first in by_output.values():
        second, reason = None, reason_to_skip(first, None)
        if not reason:
            second, reason = _only_reader(first, graph, by_output, pass_through)
        if second is not None:
            reason = reason_to_skip(first, second)
        if second is None or reason:
            skipped[first.layer] = reason
        else:
            pairs.append((first, second))
    return pairs, skipped


def _only_reader(
    first: WeightedOp,
    graph: tflite.Subgraph,
    by_output: Mapping[int, WeightedOp],
    pass_through: Collection[str],
) -> tuple[WeightedOp | None, str]:
    """Return the layer that alone reads the output of `first`, and ""; or None, and why there is no such layer."""
    tensor = first.output
    while True:
        if tensor in graph.outputs:
            return None, "its output is an output of the model"
        ops = graph.readers.get(tensor, ())
        if len(ops) != 1:
            return None, f"{len(ops)} ops read its output"
        (op,) = ops
        second = by_output.get(op.outputs[0])
        if second is not None and op.inputs[0] == tensor:
            if second.is_depthwise and second.num_inputs != first.num_outputs:
                return None, "the layer that reads its output has another number of channels"
            return second, ""
        if op.name not in pass_through or not _keeps_channels(op, graph, first.num_outputs):
            return None, f"{op.name} reads its output"
        tensor = op.outputs[0]


def _keeps_channels(op: tflite.Op, graph: tflite.Subgraph, channels: int) -> bool:
    """Check whether the last axis of the op's output still holds the channels; after a flatten, once per position."""
    shape = graph.tensors[op.outputs[0]].shape
    if op.name == "RESHAPE":
        return bool(shape) and shape[-1] % channels == 0
    return bool(shape) and shape[-1] == channels

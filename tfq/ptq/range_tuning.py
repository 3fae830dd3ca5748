# SPDX-License-Identifier: Apache-2.0
"""Range tuning: widen or narrow the range of each activation, so that the model's outputs lose the least.

Calibration chooses each range by the values of one tensor. How much a wider step or a clipped value matters depends on
all later layers, which only the outputs show. Tensor by tensor, in the order of execution, a few factors of the range
are tried, and the one that brings the outputs on the samples closest to those of the float model is kept. A second pass
starts from the result. Each trial is a complete quantization, so scales that several tensors share, and scales that
kernels fix, stay as they must be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import artifacts, quant_math, tflite
from tfq.progress import stage
from tfq.ptq.calibration.observer import Sample, map_activations
from tfq.ptq.gptq import hash_of_samples
from tfq.ptq.layer_pairs import as_input, check_samples
from tfq.store import in_parts

# Factors of a range that are tried, and passes over all tensors.
_FACTORS, _PASSES = (0.8, 0.9, 1.1, 1.25), 2
# A change must lower the divergence by this fraction, because smaller gains do not carry over to other data.
_LEAST_GAIN = 0.005
# Half of the step of int8 probabilities.
_HALF_STEP = 1 / 512
# The smallest variance of an output, relative to its mean square. The errors of constant outputs would outweigh others.
_LEAST_VARIANCE = 1e-6
# Memory for the outputs of one model. If they need more, fewer samples are compared.
_OUTPUT_BYTES = 1 << 28
# {(subgraph, tensor): (minimum, maximum)}.
_Ranges = Mapping[tuple[int, int], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class RangeTuning:
    """The result of range tuning.

    Attributes:
        ranges: {(subgraph, tensor): (minimum, maximum)} of all tensors.
        factors: {(subgraph, tensor): factor of its range}, for the changed ones.
        names: {(subgraph, tensor): name}, for the changed ones.
        before: The divergence of the outputs before (see `divergence`).
        after: The divergence afterwards.
        num_samples: How many of the `samples` were compared, which are batches if the model has a batch size.
    """

    ranges: _Ranges
    factors: Mapping[tuple[int, int], float]
    names: Mapping[tuple[int, int], str]
    before: float
    after: float
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the ranges."""
        return {
            "factors": {self.names[key]: factor for key, factor in self.factors.items()},
            "before": self.before,
            "after": self.after,
            "num_samples": self.num_samples,
        }


@stage("range tuning")
def tune_ranges(
    floating: bytes,
    ranges: _Ranges,
    tensors: Sequence[tuple[int, int]],
    samples: Sequence[Sample],
    quantize: Callable[[_Ranges], bytes],
) -> RangeTuning:
    """Scale the ranges of activations for the least divergence of the outputs.

    Args:
        floating: The float flatbuffer.
        ranges: The ranges that calibration chose.
        tensors: Keys of `ranges` to tune, in the order of execution.
        samples: {input name: array of real values}. They should be those of the calibration.
        quantize: Quantizes `floating` with other ranges.

    Raises:
        InputError: There are no samples.
    """
    check_samples(samples)
    graph = tflite.read(floating).main_subgraph
    output_bytes = sum(4 * int(np.prod(tensor.shape)) for tensor in graph.output_tensors)
    count = max(1, min(len(samples), _OUTPUT_BYTES // max(1, output_bytes)))
    samples = [samples[place] for place in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    expected = _outputs(floating, samples)
    are_classes = [index in graph.producers and graph.producers[index].name == "SOFTMAX" for index in graph.outputs]

    def measured(content: bytes) -> float:
        return divergence(_outputs(content, samples), expected, are_classes)

    content = quantize(ranges)
    first = measured(content)

    def advance(number: int, content: bytes, state: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        place = number % len(tensors)
        present = {**ranges, **dict(zip(tensors, map(tuple, state["ranges"]), strict=True))}
        (low, high), best, kept = present[tensors[place]], state["divergence"], 1.0
        for factor in _FACTORS:
            changed = quantize({**present, tensors[place]: (low * factor, high * factor)})
            if changed != content and (found := measured(changed)) < best * (1 - _LEAST_GAIN):
                content, best, kept = changed, found, factor
        ends, factors = list(state["ranges"]), list(state["factors"])
        ends[place], factors[place] = [low * kept, high * kept], factors[place] * kept
        return content, {"divergence": best, "ranges": ends, "factors": factors}

    def inputs() -> dict[str, Any]:
        models = {"quantized": artifacts.sha256(content), "floating": artifacts.sha256(floating)}
        chosen = [(*key, *ranges[key]) for key in tensors]
        return {**models, "samples": hash_of_samples(samples), "ranges": chosen}

    state: dict[str, Any] = {
        "divergence": first,
        "ranges": [list(ranges[key]) for key in tensors],
        "factors": [1.0] * len(tensors),
    }
    _, state = in_parts("range tuning", len(tensors) * _PASSES, inputs, (content, state), advance)
    present = {**ranges, **{key: (low, high) for key, (low, high) in zip(tensors, state["ranges"], strict=True)}}
    chosen, best = dict(zip(tensors, state["factors"], strict=True)), state["divergence"]
    factors = {key: factor for key, factor in chosen.items() if present[key] != ranges[key]}
    names = {key: graph.tensors[key[1]].name for key in factors}
    return RangeTuning(ranges=present, factors=factors, names=names, before=first, after=best, num_samples=len(samples))


def divergence(outputs: Sequence[NDArray], expected: Sequence[NDArray], are_classes: Sequence[bool]) -> float:
    """Return how far outputs are from the float model's, the mean over the outputs.

    It is the Kullback-Leibler divergence for probabilities of classes, and the mean squared error over the variance for
    other outputs. Half of an int8 step is added to all probabilities, because those of a file can be 0.

    Args:
        outputs: The outputs of the quantized model as real values, each (samples, ...).
        expected: The outputs of the float model.
        are_classes: Whether the last axis of each output has the probabilities of classes.
    """
    results = []
    for values, floats, is_classes in zip(outputs, expected, are_classes, strict=True):
        # Sample by sample, because all of them may be large.
        distance = _divergence_of_classes if is_classes else _squared_error
        difference = float(np.mean([distance(*pair) for pair in zip(values, floats, strict=True)]))
        results.append(difference / (1.0 if is_classes else _variance(floats)))
    return float(np.mean(results))


def _divergence_of_classes(values: NDArray, floats: NDArray) -> float:
    shares, expected = (array.astype(np.float64) + _HALF_STEP for array in (values, floats))
    shares /= shares.sum(axis=-1, keepdims=True)
    expected /= expected.sum(axis=-1, keepdims=True)
    return float((expected * (np.log(expected) - np.log(shares))).sum(axis=-1).mean())


def _squared_error(values: NDArray, floats: NDArray | float) -> float:
    return float(np.square(values.astype(np.float64) - floats).mean())


def _variance(floats: NDArray) -> float:
    """Return the variance of an output; not 0, because it is a divisor."""
    mean = float(floats.mean(dtype=np.float64))
    variance, square = (float(np.mean([_squared_error(sample, end) for sample in floats])) for end in (mean, 0.0))
    return max(variance, _LEAST_VARIANCE * square, 1e-30)


def _outputs(content: bytes, samples: Sequence[Sample]) -> list[NDArray[np.float32]]:
    """Return the real values of each output for all samples: (samples, ...)."""
    parsed = tflite.read(content)
    tensors = dict(zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True))
    feeds = ({name: as_input(sample[name], tensor) for name, tensor in tensors.items()} for sample in samples)

    def real(arrays: list[NDArray]) -> list[NDArray[np.float32]]:
        return [
            quant_math.dequantize(array, tensor.scale[0], tensor.zero_point[0]).astype(np.float32)
            if tensor.is_quantized
            else array.astype(np.float32)
            for array, tensor in zip(arrays, parsed.main_subgraph.output_tensors, strict=True)
        ]

    results = list(map_activations(content, parsed.main_subgraph.outputs, feeds, real))
    return [np.stack(column) for column in zip(*results, strict=True)]

# SPDX-License-Identifier: Apache-2.0
"""Locate the op of a quantized flatbuffer where an output lost its information, by its float twin."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import LocalBackend
from tfq.errors import TfqError
from tfq.evaluation.output_checks import (
    COLLAPSED_DB,
    GRADUAL_DB,
    MOVING_OPS,
    ONE_OP_SHARE,
    OutputCheck,
    check_output,
)
from tfq.evaluation.verification import Problem, Sample, encode, title
from tfq.ptq.causes import Cause, Diagnosis, TensorFacts, cause_of, rejected_scale
from tfq.ptq.layer_pairs import ModelPair
from tfq.ptq.saturation import clipped_sides, is_clipping_harmless, representable_range
from tfq.tflite import Model, Op, Subgraph

# Samples that all tensors are compared on, and the bytes that their values may take.
_SAMPLES, _MOST_BYTES = 20, 256 << 20
# Decibels: an op whose inputs are that good has not inherited its error.
_HEALTHY_DB = 30.0
# Ops whose outputs depend on all slices of their inputs: a constant slice of these does not explain one of the output.
_MIXING = ("CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
# Kinds of problems of an output that is constant, in part or as a whole.
_CONSTANT = ("constant_slices", "out_of_scale", "no_scale")
# Ops between a quantized tensor and the float tensor that it stands for.
_CONVERTING = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where an output lost its information, and why.

    Args:
        op_index: Index of the op in subgraph 0 of the quantized model; None if it could not be located.
        title: The op for people.
        layer: Its Keras layer, or the name of its output tensor.
        is_output: Whether what the op computes is an output of the model, but for ops that only move values.
        cause: Why; None if it could not be located.
        noise_share: The part of the noise at the noisiest op on the way that the worst single op adds, 0 to 1; 1 for
            what is not a matter of degree. Noise is relative to the signal, 10^(-SQNR / 10). A small part tells that
            rounding has added up.
    """

    op_index: int | None = None
    title: str | None = None
    layer: str | None = None
    is_output: bool = False
    cause: Cause | None = None
    noise_share: float = 1.0


def locate(quantized: bytes, floating: bytes, samples: Sequence[Sample], problem: Problem) -> Location:
    """Return the first op where the output of `problem` lost its information; an empty location if there is none.

    Args:
        quantized: The bytes of the quantized `.tflite`.
        floating: Its float twin.
        samples: {input name: array with the batch dimension} each.
        problem: A problem of `Verification.collapsed`.
    """
    parsed = tflite.read(quantized)
    if problem.kind == "does_not_run":
        return _of_failure(parsed, quantized, floating, samples[:_SAMPLES], problem.op_index)
    if problem.output is None:
        return Location()
    try:
        checks, facts = _compare_tensors(quantized, floating, samples[:_SAMPLES])
    except TfqError:  # the two have no tensors of one name
        return Location()
    graph = parsed.main_subgraph
    output = graph.outputs[parsed.output_names.index(problem.output)]
    first = _first(parsed, checks, facts, output, constant=problem.kind in _CONSTANT)
    if first is None:
        return Location()
    index, share = first
    cause = cause_of(graph, index, facts)
    # The cause may lie before or after the op with the largest fall.
    return dataclasses.replace(_of_op(parsed, cause.op_index), cause=cause, noise_share=share)


def is_gradual(sqnr_db: float, noise_share: float) -> bool:
    """Check whether an output has a low ratio only because rounding adds up over many layers."""
    return GRADUAL_DB <= sqnr_db < COLLAPSED_DB and noise_share < ONE_OP_SHARE


def gradual_note(problem: Problem, noise_share: float) -> Problem:
    """Return the note in the place of such a problem."""
    message = f"{problem.message}, by rounding that adds up: no op adds more than {noise_share:.0%} of it"
    return dataclasses.replace(problem, kind="sqnr", message=message)


def _of_op(parsed: Model, index: int | None) -> Location:
    if index is None:
        return Location()
    graph = parsed.main_subgraph
    op = graph.ops[index]
    layer = graph.layer_of(op)
    return Location(op_index=index, title=title(graph, op), layer=layer, is_output=_gives_output(graph, op))


def _of_failure(
    parsed: Model, quantized: bytes, floating: bytes, samples: Sequence[Sample], index: int | None
) -> Location:
    """The op that fails; the cause is a tensor next to it that is 0 in the float model, if there is one."""
    location = _of_op(parsed, index)
    if index is None:
        return location
    try:
        pair = ModelPair(floating, quantized)
        twins = dict(pair.float_tensors)
        size = sum(int(np.prod(pair.floating.main_subgraph.tensors[twin].shape)) for twin in twins.values()) * 4
        values = _values(floating, pair.floating, list(twins.values()), samples[: _affordable(size, len(samples))])
    except TfqError:  # the two have no tensors of one name, or the float model does not run
        return location
    facts = {tensor: TensorFacts.of(values[twin]) for tensor, twin in twins.items() if values[twin].size}
    return dataclasses.replace(location, cause=rejected_scale(parsed.main_subgraph, index, facts))


def _affordable(size: int, count: int) -> int:
    """How many of `count` samples of so many bytes fit into memory."""
    return max(1, min(count, _MOST_BYTES // max(size, 1)))


def _gives_output(graph: Subgraph, op: Op) -> bool:
    tensor, moving = op.outputs[0], (*MOVING_OPS, *_CONVERTING)
    while tensor not in graph.outputs:
        readers = graph.readers.get(tensor, ())
        if len(readers) != 1 or readers[0].name not in moving:
            return False
        tensor = readers[0].outputs[0]
    return True


def _compare_tensors(
    quantized: bytes, floating: bytes, samples: Sequence[Sample]
) -> tuple[dict[int, OutputCheck], dict[int, TensorFacts]]:
    """Tensor of the quantized model -> its comparison with the float tensor of the same name, and that one's facts."""
    pair = ModelPair(floating, quantized)
    graph = pair.quantized.main_subgraph
    twins = dict(pair.float_tensors) | dict(zip(graph.inputs, pair.floating.main_subgraph.inputs, strict=True))
    twins |= _conditions(pair)
    for op in graph.ops:
        if op.name in _CONVERTING and op.inputs[0] in twins:
            twins.setdefault(op.outputs[0], twins[op.inputs[0]])
    size = sum(int(np.prod(graph.tensors[index].shape)) for index in twins) * 8
    samples = samples[: _affordable(size, len(samples))]
    ours = _values(quantized, pair.quantized, list(twins), samples)
    theirs = _values(floating, pair.floating, list(dict.fromkeys(twins.values())), samples)
    twins = {
        index: twin for index, twin in twins.items() if theirs[twin].shape == ours[index].shape and ours[index].size
    }
    facts = {index: TensorFacts.of(theirs[twin]) for index, twin in twins.items()}
    diagnosis = Diagnosis(graph, facts)
    checks = {}
    for index, twin in twins.items():
        floats = theirs[twin]
        if any(clipped_sides(diagnosis, index)) and is_clipping_harmless(diagnosis, index):
            floats = np.clip(floats, *representable_range(graph.tensors[index]))
        checks[index] = check_output(graph, index, graph.tensors[index].name, floats, ours[index])
    return checks, facts


def _conditions(pair: ModelPair) -> dict[int, int]:
    """{tensor of conditions in the quantized model: that of its name in the float model}, of unique names."""
    names = []
    for parsed in (pair.quantized, pair.floating):
        graph = parsed.main_subgraph
        found = [
            graph.tensors[index] for op in graph.ops for index in op.outputs if graph.tensors[index].dtype == "bool"
        ]
        counts = Counter(tensor.name for tensor in found)
        names.append({tensor.name: tensor.index for tensor in found if counts[tensor.name] == 1})
    return {index: names[1][name] for name, index in names[0].items() if name in names[1]}


def _values(model: bytes, parsed: Model, tensors: Sequence[int], samples: Sequence[Sample]) -> dict[int, NDArray]:
    """{tensor: (n, ...) its values}; of inputs what was fed."""
    exposed, outputs = tflite.expose_tensors(model, tensors)
    fed = encode(parsed, samples)
    results = LocalBackend().run_samples(exposed, fed)
    values = {index: np.stack([sample[place] for sample in results]) for place, index in enumerate(outputs)}
    for place, index in enumerate(parsed.main_subgraph.inputs):
        values[index] = np.stack([sample[place] for sample in fed])
    return values


def _first(
    parsed: Model, checks: Mapping[int, OutputCheck], facts: Mapping[int, TensorFacts], output: int, *, constant: bool
) -> tuple[int, float] | None:
    """(op with the largest fall, largest share of the noise that one op adds), from the output to where all is well."""
    graph = parsed.main_subgraph
    path: list[tuple[int, float]] = []  # (op, fall in dB)
    added, largest = 0.0, _noise(_ratio(checks[output]))
    tensor, seen = output, set()
    while (op := graph.producers.get(tensor)) is not None and tensor not in seen:
        seen.add(tensor)
        inputs = [index for index in _compared(graph, op, checks) if _contributes(graph, op, index, facts)]
        ratios = {index: _ratio(checks[index]) for index in inputs}
        worst = min(ratios, key=lambda index: ratios[index], default=None)
        here = _ratio(checks[tensor]) if tensor in checks else None
        if worst is None:
            path.append((op.index, 0.0 if here is None else 100.0 - here))
            added = max(added, 0.0 if here is None else _noise(here))
            break
        if constant:
            broken = [index for index in inputs if checks[index].lost]
            if not broken or op.name in _MIXING:
                path, added = [(op.index, math.inf)], math.inf
                break
            worst = broken[0]
        elif here is not None:
            path.append((op.index, ratios[worst] - here))
            added, largest = max(added, _noise(here) - _noise(ratios[worst])), max(largest, _noise(here))
            if ratios[worst] >= _HEALTHY_DB:
                break
            if worst in graph.inputs and ratios[worst] < COLLAPSED_DB:  # lost before the first op
                path.append((op.index, math.inf))
                added = math.inf
        tensor = worst
    if not path:
        return None
    index = max(path, key=lambda item: item[1])[0]
    return _behind_quantize(parsed, index), min(1.0, added / largest)


def _compared(graph: Subgraph, op: Op, checks: Mapping[int, OutputCheck]) -> list[int]:
    """The nearest tensors with a float twin that an op's inputs are computed from: tfq adds ops without one."""
    found, waiting, seen = [], [*op.inputs], set()
    while waiting:
        index = waiting.pop(0)
        if index in seen:
            continue
        seen.add(index)
        if index in checks:
            found.append(index)
        elif index in graph.producers:
            waiting += graph.producers[index].inputs
    return found


def _contributes(graph: Subgraph, op: Op, index: int, facts: Mapping[int, TensorFacts]) -> bool:
    """Check whether input `index` can reach the output: what a maximum never takes may be clipped without harm."""
    if graph.tensors[index].is_constant:
        return False
    result = facts.get(op.outputs[0])
    if result is None or op.name not in ("MAXIMUM", "MINIMUM"):
        return True
    if op.name == "MAXIMUM":
        return facts[index].maximum >= result.minimum
    return facts[index].minimum <= result.maximum


def _behind_quantize(parsed: Model, index: int) -> int:
    """The op that a QUANTIZE between two activations serves, which has the layer's name."""
    graph = parsed.main_subgraph
    op = graph.ops[index]
    if op.name not in _CONVERTING or op.inputs[0] in graph.inputs:
        return index
    readers = graph.readers.get(op.outputs[0], ())
    return readers[0].index if len(readers) == 1 else index


def _noise(ratio_db: float) -> float:
    return float(10 ** (-ratio_db / 10))


def _ratio(check: OutputCheck) -> float:
    if not check.valid_scale:
        return -200.0
    if check.sqnr_db is None and check.agreement is not None:  # of conditions: the noise is the share of wrong ones
        return 200.0 if check.agreement == 1 else 10 * math.log10(0.25 / (1 - check.agreement))
    return 200.0 if check.sqnr_db is None else min(check.sqnr_db, 200.0)

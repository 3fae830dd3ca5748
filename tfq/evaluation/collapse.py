# SPDX-License-Identifier: Apache-2.0
"""Locate the op of a quantized flatbuffer where an output lost its information, by comparison with its float twin."""

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
    ONE_OP_FRACTION,
    OutputCheck,
    check_output,
)
from tfq.evaluation.verification import Problem, Sample, encode, title
from tfq.ptq.causes import Cause, Diagnosis, TensorFacts, cause_of, rejected_scale
from tfq.ptq.layer_pairs import ModelPair
from tfq.ptq.saturation import clipped_sides, is_clipping_harmless, representable_range
from tfq.tflite import Model, Op, Subgraph

# All tensors are compared on this many samples, if their values fit into this many bytes.
_SAMPLES, _MAX_BYTES = 20, 256 << 20
# In decibels: an op whose inputs are at least this good has not inherited its error.
_HEALTHY_DB = 30.0
# Every output of these ops depends on all slices of the input, so a constant input slice does not explain one.
_MIXING = ("CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
# Kinds of problems of an output that is constant as a whole or in part.
_CONSTANT = ("constant_slices", "out_of_scale", "no_scale")
# Ops between a quantized tensor and the float tensor that corresponds to it.
_CONVERTING = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where an output lost its information, and why.

    Args:
        op_index: The index of the op in subgraph 0 of the quantized model; None if it could not be located.
        title: A readable name of the op.
        layer: Its Keras layer, or the name of its output tensor.
        is_output: Whether the op computes an output of the model, possibly followed by ops that only move values.
        cause: The cause; None if it could not be located.
        noise_fraction: The fraction of the largest noise on the path that the worst single op adds, 0 to 1; 1 for
            problems that are not gradual. The noise is relative to the signal, 10^(-SQNR / 10). A small fraction means
            that rounding errors of many ops add up.
    """

    op_index: int | None = None
    title: str | None = None
    layer: str | None = None
    is_output: bool = False
    cause: Cause | None = None
    noise_fraction: float = 1.0


def locate(quantized: bytes, floating: bytes, samples: Sequence[Sample], problem: Problem) -> Location:
    """Return the first op where the output in `problem` lost its information; an empty location if there is none.

    Args:
        quantized: The bytes of the quantized `.tflite`.
        floating: The bytes of its float twin.
        samples: For each sample {input name: array with the batch dimension}.
        problem: A problem of `Verification.collapsed`.
    """
    parsed = tflite.read(quantized)
    if problem.kind == "does_not_run":
        return _location_of_failure(parsed, quantized, floating, samples[:_SAMPLES], problem.op_index)
    if problem.output is None:
        return Location()
    try:
        checks, facts = _compare_tensors(quantized, floating, samples[:_SAMPLES])
    except TfqError:  # no tensors with the same name in both
        return Location()
    graph = parsed.main_subgraph
    output = graph.outputs[parsed.output_names.index(problem.output)]
    first = _first_loss(parsed, checks, facts, output, constant=problem.kind in _CONSTANT)
    if first is None:
        return Location()
    index, noise_fraction = first
    cause = cause_of(graph, index, facts)
    # The cause may be before or after the op with the largest drop.
    return dataclasses.replace(_location_of(parsed, cause.op_index), cause=cause, noise_fraction=noise_fraction)


def is_gradual(sqnr_db: float, noise_fraction: float) -> bool:
    """Check whether an output has a low SQNR only because rounding errors add up over many layers."""
    return GRADUAL_DB <= sqnr_db < COLLAPSED_DB and noise_fraction < ONE_OP_FRACTION


def gradual_note(problem: Problem, noise_fraction: float) -> Problem:
    """Return a note that replaces a gradual problem."""
    message = (
        f"{problem.message}. Rounding errors add up: no single op adds more than {noise_fraction:.0%} of the noise"
    )
    return dataclasses.replace(problem, kind="sqnr", message=message)


def _location_of(parsed: Model, index: int | None) -> Location:
    if index is None:
        return Location()
    graph = parsed.main_subgraph
    op = graph.ops[index]
    layer = graph.layer_of(op)
    return Location(op_index=index, title=title(graph, op), layer=layer, is_output=_computes_output(graph, op))


def _location_of_failure(
    parsed: Model, quantized: bytes, floating: bytes, samples: Sequence[Sample], index: int | None
) -> Location:
    """Return the op that fails. The cause is a tensor next to it that is 0 in the float model, if there is one."""
    location = _location_of(parsed, index)
    if index is None:
        return location
    try:
        pair = ModelPair(floating, quantized)
        float_twins = dict(pair.float_tensors)
        size = sum(int(np.prod(pair.floating.main_subgraph.tensors[twin].shape)) for twin in float_twins.values()) * 4
        values = _values(
            floating, pair.floating, list(float_twins.values()), samples[: _affordable(size, len(samples))]
        )
    except TfqError:  # no tensors with the same name in both, or the float model does not run
        return location
    facts = {tensor: TensorFacts.of(values[twin]) for tensor, twin in float_twins.items() if values[twin].size}
    return dataclasses.replace(location, cause=rejected_scale(parsed.main_subgraph, index, facts))


def _affordable(size: int, count: int) -> int:
    """Return how many of `count` samples of this size fit into memory."""
    return max(1, min(count, _MAX_BYTES // max(size, 1)))


def _computes_output(graph: Subgraph, op: Op) -> bool:
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
    """Return for each quantized tensor its comparison with the float tensor of the same name, and the facts.

    The facts are those of the float tensor.
    """
    pair = ModelPair(floating, quantized)
    graph = pair.quantized.main_subgraph
    float_twins = dict(pair.float_tensors) | dict(zip(graph.inputs, pair.floating.main_subgraph.inputs, strict=True))
    float_twins |= _conditions(pair)
    for op in graph.ops:
        if op.name in _CONVERTING and op.inputs[0] in float_twins:
            float_twins.setdefault(op.outputs[0], float_twins[op.inputs[0]])
    size = sum(int(np.prod(graph.tensors[index].shape)) for index in float_twins) * 8
    samples = samples[: _affordable(size, len(samples))]
    quantized_values = _values(quantized, pair.quantized, list(float_twins), samples)
    float_values = _values(floating, pair.floating, list(dict.fromkeys(float_twins.values())), samples)
    float_twins = {
        index: twin
        for index, twin in float_twins.items()
        if float_values[twin].shape == quantized_values[index].shape and quantized_values[index].size
    }
    facts = {index: TensorFacts.of(float_values[twin]) for index, twin in float_twins.items()}
    diagnosis = Diagnosis(graph, facts)
    checks = {}
    for index, twin in float_twins.items():
        floats = float_values[twin]
        if any(clipped_sides(diagnosis, index)) and is_clipping_harmless(diagnosis, index):
            floats = np.clip(floats, *representable_range(graph.tensors[index]))
        checks[index] = check_output(graph, index, graph.tensors[index].name, floats, quantized_values[index])
    return checks, facts


def _conditions(pair: ModelPair) -> dict[int, int]:
    """Return {boolean tensor of the quantized model: the one of the same name in the float model}, for unique names."""
    names = []
    for parsed in (pair.quantized, pair.floating):
        graph = parsed.main_subgraph
        results = [
            graph.tensors[index] for op in graph.ops for index in op.outputs if graph.tensors[index].dtype == "bool"
        ]
        counts = Counter(tensor.name for tensor in results)
        names.append({tensor.name: tensor.index for tensor in results if counts[tensor.name] == 1})
    return {index: names[1][name] for name, index in names[0].items() if name in names[1]}


def _values(model: bytes, parsed: Model, tensors: Sequence[int], samples: Sequence[Sample]) -> dict[int, NDArray]:
    """Return {tensor: its values (n, ...)}; for inputs, the values that were fed."""
    exposed, outputs = tflite.expose_tensors(model, tensors)
    fed = encode(parsed, samples)
    results = LocalBackend().run_samples(exposed, fed)
    values = {index: np.stack([sample[position] for sample in results]) for position, index in enumerate(outputs)}
    for position, index in enumerate(parsed.main_subgraph.inputs):
        values[index] = np.stack([sample[position] for sample in fed])
    return values


def _first_loss(
    parsed: Model, checks: Mapping[int, OutputCheck], facts: Mapping[int, TensorFacts], output: int, *, constant: bool
) -> tuple[int, float] | None:
    """Return the op with the largest drop on the path from the output to healthy tensors, and the noise fraction.

    The noise fraction is the largest part of the noise that a single op adds; see `Location`.
    """
    graph = parsed.main_subgraph
    path: list[tuple[int, float]] = []  # (op, drop in dB)
    added, largest = 0.0, _noise(_ratio(checks[output]))
    tensor, seen = output, set()
    while (op := graph.producers.get(tensor)) is not None and tensor not in seen:
        seen.add(tensor)
        inputs = [index for index in _compared(graph, op, checks) if _contributes(graph, op, index, facts)]
        ratios = {index: _ratio(checks[index]) for index in inputs}
        worst = min(ratios, key=lambda index: ratios[index], default=None)
        sqnr = _ratio(checks[tensor]) if tensor in checks else None
        if worst is None:
            path.append((op.index, 0.0 if sqnr is None else 100.0 - sqnr))
            added = max(added, 0.0 if sqnr is None else _noise(sqnr))
            break
        if constant:
            broken = [index for index in inputs if checks[index].lost]
            if not broken or op.name in _MIXING:
                path, added = [(op.index, math.inf)], math.inf
                break
            worst = broken[0]
        elif sqnr is not None:
            path.append((op.index, ratios[worst] - sqnr))
            added, largest = max(added, _noise(sqnr) - _noise(ratios[worst])), max(largest, _noise(sqnr))
            if ratios[worst] >= _HEALTHY_DB:
                break
            if worst in graph.inputs and ratios[worst] < COLLAPSED_DB:  # already lost in the input
                path.append((op.index, math.inf))
                added = math.inf
        tensor = worst
    if not path:
        return None
    index = max(path, key=lambda item: item[1])[0]
    return _op_after_quantize(parsed, index), min(1.0, added / largest)


def _compared(graph: Subgraph, op: Op, checks: Mapping[int, OutputCheck]) -> list[int]:
    """Return the nearest tensors before an op that have a float twin. tfq adds ops whose tensors have none."""
    results, pending, seen = [], [*op.inputs], set()
    while pending:
        index = pending.pop(0)
        if index in seen:
            continue
        seen.add(index)
        if index in checks:
            results.append(index)
        elif index in graph.producers:
            pending += graph.producers[index].inputs
    return results


def _contributes(graph: Subgraph, op: Op, index: int, facts: Mapping[int, TensorFacts]) -> bool:
    """Check whether input `index` can reach the output. If a maximum never selects it, clipping it does no harm."""
    if graph.tensors[index].is_constant:
        return False
    result = facts.get(op.outputs[0])
    if result is None or op.name not in ("MAXIMUM", "MINIMUM"):
        return True
    if op.name == "MAXIMUM":
        return facts[index].maximum >= result.minimum
    return facts[index].minimum <= result.maximum


def _op_after_quantize(parsed: Model, index: int) -> int:
    """Return the op that reads the result of a QUANTIZE between two activations, because it has the layer's name."""
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
    if check.sqnr_db is None and check.agreement is not None:  # for conditions, the noise is the fraction of errors
        return 200.0 if check.agreement == 1 else 10 * math.log10(0.25 / (1 - check.agreement))
    return 200.0 if check.sqnr_db is None else min(check.sqnr_db, 200.0)

# SPDX-License-Identifier: Apache-2.0
"""The corpus of issue "verified conversion": single-purpose models with samples, and what their conversion must be.

A corpus model has one layer, one operation or one kind of fault in it. Its weights matter: biases, scales and moving
statistics are not at their initial values, and attention is not uniform. `corpus_layers.py`, `corpus_operations.py` and
`corpus_kinds.py` hold the models; `outcome_of` converts one and compares it with Keras.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from corpus_declared import declared
from corpus_floats import float_ops
from plain_runs import FIXED_SCALES, DoesNotRun, Output, run_plainly

import tfq
from tfq import tflite
from tfq.conversion import Conversion, convert_with_record
from tfq.errors import TfqError, TfqWarning
from tfq.keras_bridge import import_keras

Samples = dict[str, np.ndarray]
SCHEMES = ("int8", "int16x8")
NUM_SAMPLES, NUM_COMPARED = 50, 16
LIMIT_DB, LIMIT_AGREEMENT = 20.0, 0.9
WIDEST_SLICED = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class CorpusModel:
    """A model to build, and what is known of its conversion.

    Attributes:
        name: Unique in the corpus.
        build: Returns the Keras model, and samples by the names of its inputs.
        collapses: For a scheme that this model may collapse in, the ops of which the conversion must name one.
        refused: For a scheme that it may be refused in, what the message must contain.
        float_ops: For a scheme, the ops of the file that have a float tensor.
    """

    name: str
    build: Callable[[], tuple[Any, Samples]]
    collapses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    float_ops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The outcome of converting a corpus model in one scheme.

    Attributes:
        kind: "agrees", "differs", "does not run", "refused" or "collapsed" (reported by the conversion itself).
        worst: The least SQNR in dB of all float outputs, the least agreement of all others; None if it did not run.
        op: The op that the conversion blames.
        detail: The error, or the difference.
        float_ops: The ops of a file that agrees, other than QUANTIZE and DEQUANTIZE, that have a float tensor.
    """

    kind: str
    worst: float | None = None
    op: str | None = None
    detail: str = ""
    float_ops: tuple[str, ...] = ()


def collapsed_op(conversion: Conversion) -> str | None:
    """Return the ops that the conversion's own verification holds responsible for a collapse; None without one."""
    if conversion.verification is None or conversion.verification.ok:
        return None
    return "; ".join(str(problem.op or problem.message) for problem in conversion.verification.collapsed)


def smooth(shape: tuple[int, ...], low: float = -2.0, high: float = 2.0, seed: int = 0, n: int = NUM_SAMPLES) -> Any:
    """Return float32 samples (n, *shape) that vary slowly along all axes but the last, and fill [low, high]."""
    x = np.random.default_rng(seed).normal(size=(n, *shape))
    for axis in range(1, max(2, len(shape))):
        for _ in range(2):
            x = x + np.roll(x, 1, axis)
    x = np.tanh(x / x.std())
    least, greatest = x.min(), x.max()
    return (low + (x - least) * (high - low) / (greatest - least)).astype(np.float32)


def functional(inputs: Mapping[str, np.ndarray], call: Callable[..., Any]) -> tuple[Any, Samples]:
    """Return the Keras 3 model of `call`, one symbolic tensor for each input, with weights that matter."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    tensors = [keras.Input(array.shape[1:], dtype=array.dtype.name, name=name) for name, array in inputs.items()]
    model = keras.Model(tensors if len(tensors) > 1 else tensors[0], call(*tensors))
    let_weights_matter(model, dict(inputs))
    return model, dict(inputs)


def let_weights_matter(model: Any, samples: Samples) -> None:
    """Give biases, scales, moving statistics and kernels of queries and keys values that reveal mistakes."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        shape, path = tuple(weight.shape), weight.path
        if path.endswith(("bias", "beta")):
            weight.assign(weight.numpy() + rng.normal(0, 0.3, shape).astype(np.float32))
        elif path.endswith(("gamma", "scale", "alpha")):
            weight.assign(rng.uniform(0.5, 1.5, shape).astype(np.float32))
        elif "kernel" in path and ("query" in path or "key" in path):
            weight.assign(3 * weight.numpy())
    keras = import_keras()
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer._inbound_nodes:
            values = keras.Model(model.inputs, layer.input).predict(list(samples.values()), verbose=0)
            axes = tuple(range(values.ndim - 1))
            layer.moving_mean.assign(values.mean(axes))
            layer.moving_variance.assign(values.var(axes))


def of_keras(model: Any, samples: Samples) -> list[np.ndarray]:
    """Return each output of the model, sample by sample, with the samples along axis 0."""
    rows = []
    for number in range(len(next(iter(samples.values())))):
        feed = [array[number : number + 1] for array in samples.values()]
        result = model.predict_on_batch(feed if len(feed) > 1 else feed[0])
        rows.append([np.asarray(item) for item in _flat(result)])
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _flat(nest: Any) -> Iterator[Any]:
    if isinstance(nest, dict):
        nest = [nest[key] for key in sorted(nest)]
    if isinstance(nest, (list, tuple)):
        for item in nest:
            yield from _flat(item)
    else:
        yield nest


@dataclass(frozen=True)
class Traced:
    """A built corpus model, traced once for all schemes.

    Attributes:
        trace: The trace of the model, with recurrent layers unrolled as integers need it.
        samples: What calibration sees: all samples, so that a figure shows arithmetic and not sampling.
        compared: Some of them.
        outputs: The names of the outputs, in the order of `expected`.
        expected: The outputs of Keras for `compared`.
    """

    trace: Any
    samples: Samples
    compared: Samples
    outputs: tuple[str, ...]
    expected: list[np.ndarray]


@functools.lru_cache(maxsize=2)
def traced(case: CorpusModel) -> Traced | str:
    """Return the trace of a model, which all schemes share, or the message if tfq refuses the model."""
    model, samples = case.build()
    try:
        trace = tfq.conversion.trace(model)
    except TfqError as error:
        return f"{error}"
    compared = {name: array[-NUM_COMPARED:] for name, array in samples.items()}
    return Traced(trace, samples, compared, trace.output_names, of_keras(model, compared))


def outcome_of(case: CorpusModel, scheme: str) -> Outcome:
    """Convert a corpus model and compare its outputs with Keras. Exceptions of TensorFlow propagate."""
    source = traced(case)
    if isinstance(source, str):
        return Outcome("refused", detail=source)
    try:
        with warnings.catch_warnings(action="ignore", category=TfqWarning):
            conversion = convert_with_record(source.trace, source.samples, tfq.ConversionConfig(scheme=scheme))
    except TfqError as error:
        return Outcome("refused", detail=f"{error}")
    op = collapsed_op(conversion)
    try:
        results = run_plainly(conversion.content, source.compared)
    except DoesNotRun as error:
        return Outcome("collapsed" if op else "does not run", op=op, detail=f"{error}")
    worst, detail = compared(source, results)
    if not detail:
        return Outcome("agrees", worst, op, float_ops=ops_with_floats(conversion.content))
    return Outcome("collapsed" if op else "differs", worst, op, detail)


def ops_with_floats(content: bytes) -> tuple[str, ...]:
    """Return the sorted names of the ops that have a float tensor, without QUANTIZE and DEQUANTIZE."""
    names = {
        op.name
        for graph in tflite.read(content).subgraphs
        for op in graph.ops
        if any(graph.tensors[index].dtype == "float32" for index in op.tensors)
    }
    return tuple(sorted(names - {"QUANTIZE", "DEQUANTIZE"}))


def compared(source: Traced, results: dict[str, Output]) -> tuple[float, str]:
    """Return the worst figure of all outputs and their faults; "" if there are none."""
    worst, faults = np.inf, []
    for name, expected in zip(source.outputs, source.expected, strict=True):
        result = results[name]
        if result.values.shape != expected.shape:
            faults.append(f"{name}: shape {result.values.shape}, expected {expected.shape}")
            continue
        if not np.issubdtype(expected.dtype, np.floating):
            agreement = float(np.mean(result.values == expected))
            worst = min(worst, agreement)
            if agreement < LIMIT_AGREEMENT:
                faults.append(f"{name}: {agreement:.0%} of the values agree")
            continue
        db = sqnr(expected, result.values)
        worst = min(worst, db)
        if not db >= LIMIT_DB:
            faults.append(f"{name}: {db:.1f} dB")
        if constant := constant_slices(expected, result):
            faults.append(f"{name}: constant in {constant}")
    return worst, "; ".join(faults)


def sqnr(expected: np.ndarray, values: np.ndarray) -> float:
    """Return 10 log10(variance / mean squared error) in dB; -inf where the result is not finite."""
    noise = float(np.mean((expected.astype(np.float64) - values) ** 2))
    if not np.isfinite(noise):
        return -np.inf
    # An output that is constant in float counts as right if the error is small on its own.
    variance = float(np.var(expected.astype(np.float64))) or 1e-4
    return np.inf if noise == 0 else 10 * float(np.log10(variance / noise))


def constant_slices(expected: np.ndarray, result: Output) -> list[int]:
    """Return the indices of the last axis where the float output varies and the file's output is constant."""
    if expected.ndim < 2 or expected.shape[-1] > WIDEST_SLICED or result.scale in FIXED_SCALES:
        return []
    rows = expected.reshape(-1, expected.shape[-1]), result.values.reshape(-1, expected.shape[-1])
    varies, moves = (np.ptp(item, axis=0) for item in rows)
    return [int(place) for place in np.flatnonzero((varies > 1e-6) & (moves == 0))]


def fault(case: CorpusModel, scheme: str, outcome: Outcome) -> str:
    """Return the fault of an outcome.

    "" if it agrees with the declared float ops, is reported as collapsed, or is refused by name.
    """
    if outcome.kind == "agrees":
        floats = case.float_ops.get(scheme, ())
        if outcome.float_ops != floats:
            return f"expected the float ops {floats}: {outcome}"
        return f"false alarm: {outcome}" if outcome.op else ""
    if outcome.kind == "collapsed":
        expected = case.collapses.get(scheme, ())
        return "" if any(op in str(outcome.op) for op in expected) else f"expected one of {expected}: {outcome}"
    if outcome.kind == "refused":
        word = case.refused.get(scheme)
        return "" if word and word in outcome.detail else f"expected {word!r} in the refusal: {outcome}"
    return f"{outcome}"


@functools.cache
def by_name() -> dict[str, CorpusModel]:
    """Return every model of the corpus by its name."""
    import corpus_kinds
    import corpus_layers
    import corpus_operations

    cases = [*corpus_kinds.models(), *corpus_layers.models(), *corpus_operations.models()]
    models_by_name = {}
    for case in cases:
        collapses, refused = declared(case.name)
        models_by_name[case.name] = dataclasses.replace(
            case, collapses=collapses, refused=refused, float_ops=float_ops(case.name)
        )
    return models_by_name


def agreeing_models(scheme: str = "int8") -> list[CorpusModel]:
    """Return the models that agree with Keras in `scheme`, as the corpus tests show: no check may warn of them."""
    return [case for case in by_name().values() if scheme not in case.collapses and scheme not in case.refused]

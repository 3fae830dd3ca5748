# SPDX-License-Identifier: Apache-2.0
"""A flatbuffer on the user's data: what it computes, how fast, and how near to the float model."""

import gzip
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import flatbuffer
from tfq.config import EvaluationConfig
from tfq.data import as_split
from tfq.errors import InputError, TfqWarning
from tfq.evaluation.inputs import decode_outputs, prepare_inputs
from tfq.evaluation.latency import PERCENTILES, latency_percentiles
from tfq.evaluation.metrics import SIGMOID_NOTE, agreement, has_classes, is_probability, top1
from tfq.evaluation.record import EvaluationRecord
from tfq.evaluation.reference import IDENTICAL, ReferenceOutputs, matched_outputs, reference_outputs, sqnr_or_reason
from tfq.runners import RunRequest, RunResult, make_runner

Metric = Callable[[Any, NDArray], float]

NO_LABELS = "the data has no labels"
NO_REFERENCE = "no reference model was given"
NOT_COUNTED = "the interpreter does not tell which ops it delegates"


def evaluate_model(
    model: bytes,
    data: Any,
    config: EvaluationConfig | None = None,
    *,
    reference: bytes | ReferenceOutputs | None = None,
    metric: Metric | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> EvaluationRecord:
    """Run `model` on `data`, and compare with the labels and with a reference.

    model: bytes of a `.tflite`. data: a Split, (x, y), an array or dict of arrays, or a source ("digits"), in the
        model's own real units and shape: codes are made here, from the scale and zero_point of the model's inputs.
    config: runner, threads, limit, timed runs; what it requires is for `check_requirements`, and its `reference` is a
        path for whoever reads files.
    reference: the float model's bytes, run on `local` with XNNPACK; or `reference_outputs(...)` to share among models.
    metric: called as metric(outputs, labels) -> float in place of top-1; outputs are the real numbers of the one
        output, (n, ...), or a tuple of them where there are several.
    preprocessing: what was done to `data` ({"resize", "scale", "offset"}), to be held against what the model records.
    Raises InputError where data, labels, model or reference do not fit each other, RunnerError where it cannot run.
    Warns (TfqWarning) of what looks wrong; the record carries the same sentences.
    """
    config = config or EvaluationConfig()
    model = bytes(model)
    parsed = flatbuffer.read(model)
    data = as_split(data, limit=config.limit)
    if isinstance(reference, (bytes, bytearray)):
        reference = reference_outputs(bytes(reference), data, config)
    inputs = prepare_inputs(parsed, data)
    result = make_runner(config.runner).run(
        RunRequest(
            model=model,
            inputs=inputs.arrays,
            num_threads=config.num_threads,
            xnnpack=config.xnnpack,
            warmup_runs=config.warmup_runs,
            num_runs=config.num_runs,
        )
    )
    outputs = decode_outputs(parsed, result.outputs)
    names = parsed.output_names
    expected = None if reference is None else matched_outputs(reference, data, names, outputs)
    scores = _scores(outputs, expected, data.labels, metric)
    missing = max(0, config.limit - data.num_examples)
    told = [
        *([f"{config.limit:,} examples were asked for, the data has {data.num_examples:,}"] if missing else []),
        *_preprocessing_warnings(model, preprocessing),
        *inputs.warnings,
        *_output_warnings(names, outputs, metric, result, config),
        *result.notes,
    ]
    for sentence in told:
        python_warnings.warn(sentence, TfqWarning, stacklevel=2)
    noise = _noise(names, outputs, expected)
    return EvaluationRecord(
        **scores,
        **noise,
        **_speed(result, config),
        num_examples=data.num_examples,
        compared=0 if expected is None else data.num_examples,
        missing=missing,
        skipped=_skipped(scores, noise, result),
        model_bytes=len(model),
        gzip_bytes=len(gzip.compress(model, 9, mtime=0)),
        clipped_input_share=inputs.clipped_share,
        unused_range_share=inputs.unused_share,
        warnings=tuple(told),
        machine=result.machine,
    )


def _scores(
    outputs: tuple[NDArray, ...], expected: list[NDArray] | None, labels: NDArray | None, metric: Metric | None
) -> dict[str, Any]:
    """Accuracy and agreement, and why there is none. Top-1 and agreement are of the first output."""
    classes = has_classes(outputs[0])
    no_classes = f"the first output, {list(outputs[0].shape)}, gives an example no one class: give metric="
    accuracy = reference_accuracy = None
    reason = None
    if labels is None:
        reason = NO_LABELS
    elif metric is None and labels.dtype.kind == "f":
        reason = f"the labels are {labels.dtype}, no class numbers: give metric="
    elif metric is None and not classes:
        reason = no_classes
    if labels is not None and reason is None:
        accuracy = _score(outputs, labels, metric)
        reference_accuracy = None if expected is None else _score(tuple(expected), labels, metric)
    return {
        "metric": "top1" if metric is None else getattr(metric, "__name__", type(metric).__name__),
        "accuracy": accuracy,
        "accuracy_reason": reason,
        "reference_accuracy": reference_accuracy,
        "accuracy_drop": None if accuracy is None or reference_accuracy is None else reference_accuracy - accuracy,
        "agreement": agreement(outputs[0], expected[0]) if expected is not None and classes else None,
        "agreement_reason": NO_REFERENCE if expected is None else None if classes else no_classes,
    }


def _score(outputs: tuple[NDArray, ...], labels: NDArray, metric: Metric | None) -> float:
    if metric is None:
        return top1(outputs[0], labels)
    value = float(metric(outputs[0] if len(outputs) == 1 else outputs, labels))
    if not np.isfinite(value):
        raise InputError(f"metric {getattr(metric, '__name__', metric)} gave {value}: wanted a finite number")
    return value


def _noise(names: Sequence[str], outputs: tuple[NDArray, ...], expected: list[NDArray] | None) -> dict[str, Any]:
    """SQNR of every output, and of the worst of them."""
    each: list[tuple[float | None, str | None]] = [(None, NO_REFERENCE)] * len(outputs)
    if expected is not None:
        each = [sqnr_or_reason(other, output) for output, other in zip(outputs, expected, strict=True)]
    values = [value for value, _ in each if value is not None]
    # No noise at all is better than any number; what cannot be computed must not hide behind one.
    reasons = [reason for _, reason in each if reason is not None]
    unknown = [reason for reason in reasons if reason != IDENTICAL]
    worst = min(values) if values and not unknown else None
    return {
        "output_sqnr_db": worst,
        "output_sqnr_db_reason": None if worst is not None else (unknown or reasons)[0],
        "outputs": tuple(
            {"name": name, "sqnr_db": value, "reason": reason}
            for name, (value, reason) in zip(names, each, strict=True)
        ),
    }


def _speed(result: RunResult, config: EvaluationConfig) -> dict[str, Any]:
    percentiles: dict[str, float | None] = {f"latency_p{percentile}_ms": None for percentile in PERCENTILES}
    if result.latencies_ms is not None:
        percentiles.update(latency_percentiles(result.latencies_ms))
    return {
        **percentiles,
        "latency_reason": result.latency_reason,
        "num_threads": config.num_threads,
        "runner": config.runner,
        "emulated": make_runner(config.runner).emulated,
        "xnnpack": config.xnnpack,
        "total_ops": result.total_ops,
        "delegated_ops": result.delegated_ops,
    }


def _skipped(scores: dict[str, Any], noise: dict[str, Any], result: RunResult) -> dict[str, str]:
    """Every number that there is not, and why."""
    drop_reason = None
    if scores["accuracy_drop"] is None:
        drop_reason = scores["accuracy_reason"] or NO_REFERENCE
    reasons = {
        "accuracy": scores["accuracy_reason"],
        "accuracy_drop": drop_reason,
        "agreement": scores["agreement_reason"],
        "output_sqnr_db": noise["output_sqnr_db_reason"],
        "latency": result.latency_reason,
        "delegated_ops": NOT_COUNTED if result.delegated_ops is None else None,
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _output_warnings(
    names: Sequence[str],
    outputs: tuple[NDArray, ...],
    metric: Metric | None,
    result: RunResult,
    config: EvaluationConfig,
) -> list[str]:
    found = []
    if metric is None and is_probability(outputs[0]):
        found.append(SIGMOID_NOTE)
    if metric is None and len(outputs) > 1:
        found.append(f"the model has {len(outputs)} outputs: top-1 and agreement are of the first, {names[0]!r}")
    if config.xnnpack and result.delegated_ops == 0:
        found.append("XNNPACK took none of the model's ops: all ran on TFLite's builtin kernels")
    return found


def _preprocessing_warnings(model: bytes, given: Mapping[str, Any] | None) -> list[str]:
    """What was done to the data against what the model records was done to the data it was made with."""
    recorded = (flatbuffer.read_metadata(model) or {}).get("preprocessing")
    if given is None or not isinstance(recorded, Mapping):
        return []
    different = [
        name
        for name in ("resize", "scale", "offset")
        if name in recorded and not _same(recorded[name], given.get(name))
    ]
    return [
        f"the model was made with --data.{name}={_flag(recorded[name])}, this data comes with {_flag(given.get(name))}"
        for name in different
    ]


def _same(one: Any, other: Any) -> bool:
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return bool(np.isclose(one, other, rtol=1e-6, atol=0))
    return (
        list(one or ()) == list(other or ())
        if not isinstance(one, numbers) and not isinstance(other, numbers)
        else False
    )


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

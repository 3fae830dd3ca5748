# SPDX-License-Identifier: Apache-2.0
"""Evaluate a flatbuffer on the user's data: its accuracy, its speed, and its difference from the float model."""

import dataclasses
import functools
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import content_of
from tfq.backends import BackendResult, kind_of, make_backend, public_names
from tfq.config import EvaluationConfig
from tfq.data import AnySplit, as_split, labeled_outputs, labels_of_output
from tfq.errors import InputError, warn
from tfq.evaluation.class_differences import class_figures, differing_examples
from tfq.evaluation.class_names import class_names_by_output, names_of_output
from tfq.evaluation.classes import is_class_vector
from tfq.evaluation.costs import check_computes_outputs
from tfq.evaluation.detection.differences import differing_boxes
from tfq.evaluation.inputs import decode_outputs
from tfq.evaluation.metric import Metric, MetricChoice, as_metrics
from tfq.evaluation.metrics import SIGMOID_NOTE, is_probability
from tfq.evaluation.output_scores import choose_for_labels, metrics_of_outputs, scores_of_outputs
from tfq.evaluation.paired import PERCENTILES, checked_latencies, latency_percentiles
from tfq.evaluation.position_differences import differing_positions, position_classes
from tfq.evaluation.record import IDENTICAL, NO_DIRECTION, NO_REFERENCE, EvaluationRecord
from tfq.evaluation.reference import ReferenceOutputs, matched_outputs, reference_outputs, sqnr_or_reason
from tfq.evaluation.scores import (
    Choice,
    Predictions,
    agreement_of,
    check_bounds,
    choose_metrics,
    compute_scores,
    labels_positions,
    reconstructs,
    why_no_class,
)
from tfq.evaluation.sharded import assess
from tfq.typing import Data, PathOrBytes, Preprocessing

NOT_COUNTED = "the interpreter does not report which ops it delegates"


def evaluate_model(
    model: PathOrBytes,
    data: Data,
    config: EvaluationConfig | None = None,
    *,
    reference: PathOrBytes | ReferenceOutputs | None = None,
    metric: MetricChoice = None,
    preprocessing: Preprocessing | None = None,
) -> EvaluationRecord:
    """Run a flatbuffer on labeled examples, and compare its outputs with the labels and with a reference model.

    A TfqWarning reports each possible problem; the record contains the same sentences.

    Examples:
        >>> record = tfq.evaluate("model_int8.tflite", (x_test, y_test), reference="model_float32.tflite")
        >>> print(record.accuracy, record.accuracy_drop, record.agreement)

    Args:
        model: The flatbuffer: its bytes or its path.
        data: A Split or SplitStream, (x, y), an array or a dict of arrays by input name, a finite tf.data.Dataset, a
            DataConfig, or a source ("npz:examples.npz"), whose test split is loaded. Inputs are real values of the
            model's input shape, preprocessed; they are quantized here by the scale and zero point of the model's
            inputs.
        config: Backend, threads, number of examples and of timed runs; None means `EvaluationConfig()`. `reference` and
            `require` are ignored here: pass `reference` as an argument, and check bounds with
            `tfq.evaluation.check_requirements`.
        reference: The float model: its bytes or its path, run on `local` with XNNPACK; or the result of
            `reference_outputs`, which several evaluations can share.
        metric: Used instead of `config.metric`: a name, a `Metric`, or a function(outputs, labels) -> float. Its
            outputs are real values: an array (n, ...), or a tuple of arrays if the model has several outputs and
            `config.output` selects none. A sequence of these computes several metrics; the first is the main one, which
            `accuracy` and the bounds refer to. The default is top-1 accuracy, or for a model that reconstructs its
            input the ROC AUC of its mean squared error.
        preprocessing: How `data` was preprocessed ({"resize", "scale", "offset"}), to compare with what the flatbuffer
            records.

    Returns:
        The accuracy, the comparison with the reference, latency, size and costs.

    Raises:
        InputError: Data, labels, model and reference do not fit each other.
        BackendError: The backend cannot run.
    """
    config = config or EvaluationConfig()
    check_computes_outputs(kind_of(config.backend), config, {"reference": reference, "metric": metric})
    assessed = assess_model(model, data, config, reference=reference, metric=metric, preprocessing=preprocessing)
    for sentence in assessed.record.warnings:
        warn(sentence)
    return dataclasses.replace(assessed.record, **assessed.class_details())


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessment:
    """What `assess_model` measured.

    Attributes:
        record: The evaluation. Its warnings have not been issued yet.
        result: The backend's own result, with raw outputs.
        class_details: Returns the fields of the record about single classes and examples, which take longer.
        agreement_with: (real outputs of another run on the same examples) -> (`agreement`, `agreement_reason`) as in
            `EvaluationRecord`.
    """

    record: EvaluationRecord
    result: BackendResult
    class_details: Callable[[], dict[str, Any]]
    agreement_with: Callable[[Sequence[NDArray]], tuple[float | None, str | None]]


def assess_model(
    model: PathOrBytes,
    data: Data,
    config: EvaluationConfig,
    *,
    reference: PathOrBytes | ReferenceOutputs | None = None,
    metric: MetricChoice = None,
    preprocessing: Preprocessing | None = None,
    count_instructions: bool = False,
    measure_memory: bool = False,
) -> Assessment:
    """Do the work of `evaluate_model`, and return the raw outputs too.

    Args:
        model: As in `evaluate_model`, like the other arguments.
        data: The examples.
        config: The settings.
        reference: The float model.
        metric: Used instead of `config.metric`.
        preprocessing: How `data` was preprocessed.
        count_instructions: Whether to count the instructions of an inference too.
        measure_memory: Whether to measure memory even if no latency is.

    Raises:
        InputError: Data, labels, model and reference do not fit each other.
        BackendError: The backend cannot run.
    """
    model = content_of(model, "model")
    parsed = tflite.read(model)
    chosen = as_metrics(config.metric if metric is None else metric)
    check_bounds(config, chosen[0] if chosen else None)
    backend = make_backend(config.backend)
    backend.prepare()
    data = as_split(data, limit=config.limit)
    if reference is not None and not isinstance(reference, ReferenceOutputs):
        reference = reference_outputs(content_of(reference, "reference", "a float .tflite file"), data, config)
    settings = _settings(config, count_instructions, measure_memory)
    result, feed = assess(model, data, config.backend, backend, settings)
    if result.outputs is None:
        return _without_outputs(_costs(model, data, config, chosen, result), result)
    outputs, names = decode_outputs(parsed, result.outputs), parsed.output_names
    expected = None if reference is None else matched_outputs(reference, data, names, outputs)
    rebuilds_input, class_names = reconstructs(parsed), class_names_by_output(model, data)
    class_outputs = _class_outputs(parsed, outputs if expected is None else expected)
    facts = (class_outputs, rebuilds_input, class_names)
    choice, by_output = _choose(chosen, data, names, outputs, expected, config, *facts)
    scores = _compute(choice, data, names, outputs, expected, *facts)
    noise = _noise(names, outputs, expected, scores.pop("outputs"), by_output)
    warnings = [*_data_warnings(parsed, data, config), *_preprocessing_warnings(model, preprocessing), *feed.warnings]
    warnings += _output_warnings(names, outputs, choice, result, config, has_labels=any(by_output))
    record = EvaluationRecord(
        **scores,
        **noise,
        **_costs_of(model, result, config),
        num_examples=data.num_examples,
        compared=0 if expected is None else data.num_examples,
        missing=max(0, config.limit - data.num_examples),
        skipped=_skipped(scores, noise, result),
        clipped_input_fraction=feed.clipped_fraction,
        unused_range_fraction=feed.unused_fraction,
        warnings=(*warnings, *result.notes),
    )
    predictions = Predictions(outputs=outputs, labels=data.all_labels(), reconstructs=rebuilds_input, names=names)
    is_scored, limit = record.accuracy is not None, config.differing_examples
    known = (choice, class_outputs, is_scored)
    return Assessment(
        record=record,
        result=result,
        class_details=functools.partial(_class_details, predictions, expected, data, *known, limit, class_names),
        agreement_with=lambda others: agreement_of(predictions, others, *known[:2], is_scored=is_scored),
    )


def _compute(
    choice: Choice,
    data: AnySplit,
    names: Sequence[str],
    outputs: tuple[NDArray, ...],
    expected: Sequence[NDArray] | None,
    class_outputs: Sequence[bool],
    rebuilds_input: bool,
    class_names: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Return the fields of an EvaluationRecord about accuracy and agreement; see `compute_scores`."""
    return compute_scores(
        outputs,
        expected,
        data,
        choice,
        reconstructs=rebuilds_input,
        class_outputs=class_outputs,
        names=names,
        class_names=class_names,
    )


def _class_outputs(model: tflite.Model, outputs: Sequence[NDArray]) -> tuple[bool, ...]:
    """Return for each output whether it predicts a class."""
    graph = model.main_subgraph
    return tuple(is_class_vector(graph, index, values) for index, values in zip(graph.outputs, outputs, strict=True))


def _without_outputs(record: EvaluationRecord, result: BackendResult) -> Assessment:
    """Return the assessment of a backend that computes no outputs."""
    reason = str(result.outputs_reason)
    no_classes = {"classes_reason": reason, "differing_examples_reason": reason}
    return Assessment(
        record=record,
        result=result,
        class_details=lambda: no_classes,
        agreement_with=lambda others: (None, reason),
    )


def _class_details(
    predictions: Predictions,
    expected: Sequence[NDArray] | None,
    data: AnySplit,
    choice: Choice,
    class_outputs: Sequence[bool],
    is_scored: bool,
    limit: int,
    class_names: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Return the fields of an EvaluationRecord about single classes and examples.

    They are about the output that the metric uses; if it predicts no class, about the first one that does.
    """
    off = "evaluation.differing_examples is 0"
    indices = range(len(predictions.outputs))
    first = next((index for index in indices if choice.uses(index)), 0)
    reasons = {
        index: why_no_class(predictions, choice, index, class_outputs[index], is_scored=is_scored)
        for index in dict.fromkeys([first, *indices])
    }
    output = next((index for index, reason in reasons.items() if reason is None), None)
    if output is None:
        details = {"classes_reason": reasons[first], "differing_examples_reason": reasons[first]}
        detector = next((metric for metric in (choice.metric, *choice.others) if metric.detections is not None), None)
        if detector is None:
            return details
        if expected is None or not limit:
            return {**details, "differing_examples_reason": NO_REFERENCE if expected is None else off}
        own_names = names_of_output(class_names, detector.outputs)
        return {**details, **_differing_boxes(predictions, expected, data, detector, limit, own_names)}
    labels = None if predictions.labels is None else labels_of_output(predictions.labels, predictions.names[output])
    values, others = predictions.outputs[output], None if expected is None else expected[output]
    own_names = names_of_output(class_names, (output,))
    classes, classes_reason = class_figures(values, others, labels, own_names)
    differing: dict[str, Any] | None = None
    reason: str | None = NO_REFERENCE if others is None else off
    if others is not None and limit:
        maps = labels if labels_positions(choice, output, is_scored=is_scored) else None
        if position_classes(values[:1], None if maps is None else maps[:1])[0].shape[1] > 1:
            differing, reason = differing_positions(values, others, maps, data, limit, own_names), None
        else:
            truth = labels if classes is not None else None
            differing, reason = differing_examples(values, others, truth, data, limit, own_names)
    return {
        "classes": classes,
        "classes_reason": classes_reason,
        "differing_examples": differing,
        "differing_examples_reason": reason,
    }


def _differing_boxes(
    predictions: Predictions,
    expected: Sequence[NDArray],
    data: AnySplit,
    metric: Metric,
    limit: int,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return the fields `differing_examples` and `differing_examples_reason` of a detector."""
    assert metric.detections is not None
    try:
        differing = differing_boxes(
            metric.select(predictions.outputs),
            metric.select(tuple(expected)),
            predictions.labels,
            data,
            metric.detections,
            limit,
            names,
        )
    except InputError as error:
        # Without labels the metric was not computed, so that nothing has checked the outputs.
        return {"differing_examples_reason": str(error)}
    return {"differing_examples": differing, "differing_examples_reason": None}


def _data_warnings(model: tflite.Model, data: AnySplit, config: EvaluationConfig) -> list[str]:
    note = tflite.main_subgraph_note(model, "evaluated")
    missing = (
        f"evaluation.limit={config.limit:,}: the data has only {data.num_examples:,} examples"
        if config.limit > data.num_examples
        else None
    )
    return [message for message in (note, missing) if message]


def _choose(
    chosen: Sequence[Metric],
    data: AnySplit,
    names: tuple[str, ...],
    outputs: tuple[NDArray, ...],
    expected: Sequence[NDArray] | None,
    config: EvaluationConfig,
    class_outputs: Sequence[bool],
    rebuilds_input: bool,
    class_names: Sequence[Sequence[str]],
) -> tuple[Choice, list[dict[str, Any]]]:
    """Return the metric of the record, and for each output its scores with separate labels; {} without such labels.

    Call it after the model ran, because a stream has its labels only then.
    """
    choice = choose_metrics(chosen, names, class_outputs, reconstructs=rebuilds_input, output=config.output)
    labels = data.all_labels()
    if labels is None or not labeled_outputs(labels) or choice.metric.outputs is None:
        return choice, [{} for _ in names]
    metrics = metrics_of_outputs(config.output_metrics, names)
    choice, metrics = choose_for_labels(labels, names, outputs, metrics, chosen, config.output)
    return choice, scores_of_outputs(metrics, labels, names, outputs, expected, class_names)


def _costs(
    model: bytes, data: AnySplit, config: EvaluationConfig, metrics: Sequence[Metric], result: BackendResult
) -> EvaluationRecord:
    """Return the record of a backend that reports only what the model costs and computes no outputs."""
    reason = result.outputs_reason
    scores: dict[str, Any] = {
        "metric": metrics[0].name if metrics else "",
        "accuracy": None,
        "accuracy_reason": reason,
        "reference_accuracy": None,
        "accuracy_drop": None,
        "accuracy_difference": None,
        "accuracy_difference_reason": reason,
        "agreement": None,
        "agreement_reason": reason,
    }
    noise: dict[str, Any] = {"output_sqnr_db": None, "output_sqnr_db_reason": reason}
    return EvaluationRecord(
        **scores,
        **noise,
        **_costs_of(model, result, config),
        num_examples=data.num_examples,
        compared=0,
        missing=0,
        skipped=_skipped(scores, noise, result),
        clipped_input_fraction=None,
        unused_range_fraction=None,
        warnings=result.notes,
    )


def _settings(config: EvaluationConfig, count_instructions: bool, measure_memory: bool) -> dict[str, Any]:
    """Return the fields of a RunRequest except the model and its inputs."""
    return {
        "num_threads": config.num_threads,
        "kernels": "xnnpack" if config.xnnpack else "builtin",
        "num_workers": config.num_workers,
        "timeout_secs": config.timeout_secs,
        "warmup_runs": config.warmup_runs,
        "num_runs": config.num_runs,
        "count_instructions": count_instructions,
        "measure_memory": measure_memory,
    }


def _noise(
    names: Sequence[str],
    outputs: tuple[NDArray, ...],
    expected: list[NDArray] | None,
    agreements: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the SQNR of the worst output, and in `outputs` the SQNR of each with its agreement and its scores."""
    pairs: list[tuple[float | None, str | None]] = [(None, NO_REFERENCE)] * len(outputs)
    if expected is not None:
        pairs = [sqnr_or_reason(other, output) for output, other in zip(outputs, expected, strict=True)]
    values = [value for value, _ in pairs if value is not None]
    # An output without noise is better than any number. If one output cannot be compared, there is no worst number.
    reasons = [reason for _, reason in pairs if reason is not None]
    unknown = [reason for reason in reasons if reason != IDENTICAL]
    worst = min(values) if values and not unknown else None
    return {
        "output_sqnr_db": worst,
        "output_sqnr_db_reason": None if worst is not None else (unknown or reasons)[0],
        "outputs": tuple(
            {"name": name, "sqnr_db": value, "sqnr_db_reason": reason, **agreement, **own}
            for name, (value, reason), agreement, own in zip(names, pairs, agreements, scores, strict=True)
        ),
    }


def _costs_of(model: bytes, result: BackendResult, config: EvaluationConfig) -> dict[str, Any]:
    """Return the fields of an EvaluationRecord about size, time, memory and the machine."""
    latencies: dict[str, float | None] = {f"latency_p{percentile}_ms": None for percentile in PERCENTILES}
    if result.latencies_ms is not None:
        times = checked_latencies(result.latencies_ms)
        latencies.update(latency_percentiles(times))
        latencies["latency_mean_ms"] = float(times.mean())
        latencies["latency_std_ms"] = float(times.std(ddof=1)) if times.size > 1 else None
        latencies["latency_first_ms"] = float(times[0])
    return {
        **latencies,
        "model_bytes": len(model),
        "gzip_bytes": len(gzip.compress(model, 9, mtime=0)),
        "machine": dict(result.machine),
        "latency_reason": result.latency_reason,
        "num_threads": config.num_threads,
        "backend": public_names([config.backend])[config.backend],
        "how": result.how,
        "xnnpack": config.xnnpack if kind_of(config.backend).has_cpu_kernels else None,
        "total_ops": result.total_ops,
        "delegated_ops": result.delegated_ops,
        "memory_bytes": None if result.memory_bytes is None else dict(result.memory_bytes),
        "memory_reason": result.memory_reason,
        "figures": dict(result.figures),
        "op_figures": {op: dict(figures) for op, figures in result.op_figures.items()},
        "unaccelerated": dict(result.unaccelerated),
        "caveats": result.caveats,
    }


def _skipped(scores: dict[str, Any], noise: dict[str, Any], result: BackendResult) -> dict[str, str]:
    """Return {name of each missing number: why it is missing}."""
    drop_reason = None
    if scores["accuracy_drop"] is None:
        undirected = NO_DIRECTION if scores["reference_accuracy"] is not None else None
        drop_reason = scores["accuracy_reason"] or undirected or NO_REFERENCE
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
    choice: Choice,
    result: BackendResult,
    config: EvaluationConfig,
    *,
    has_labels: bool,
) -> list[str]:
    results, metric = [], choice.metric
    index = metric.outputs[0] if metric.outputs is not None and len(metric.outputs) == 1 else None
    if metric.contract.predicts == "classes" and is_probability(outputs[index or 0]):
        results.append(SIGMOID_NOTE)
    if index is not None and len(outputs) > 1 and choice.output is None and choice.reason is None and not has_labels:
        results.append(
            f"the model has {len(outputs)} outputs, and {metric.title or metric.name} is computed for "
            f"{names[index]!r}. Choose another one with evaluation.output"
        )
    if config.xnnpack and result.delegated_ops == 0 and kind_of(config.backend).has_cpu_kernels:
        results.append("XNNPACK delegated none of the model's ops: all of them ran on TFLite's builtin kernels")
    return results


def _preprocessing_warnings(model: bytes, provided: Mapping[str, Any] | None) -> list[str]:
    """Return a warning for each preprocessing setting that differs from what the model records."""
    recorded = (tflite.read_metadata(model) or {}).get("preprocessing")
    if provided is None or not isinstance(recorded, Mapping):
        return []
    different = [
        name
        for name in ("resize", "scale", "offset")
        if name in recorded and not _same(recorded[name], provided.get(name))
    ]
    return [
        f"the model was converted with data.{name}={_setting_text(recorded[name])}, but this data was prepared with "
        f"{_setting_text(provided.get(name))}. Use the same value"
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


def _setting_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

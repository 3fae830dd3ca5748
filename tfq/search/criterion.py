# SPDX-License-Identifier: Apache-2.0
"""Decide by what models are compared on data: by labels, or by the float model if there are none."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import HOST, RunRequest, make_backend
from tfq.data import AnySplit, labeled_outputs, labels_of_output
from tfq.errors import InputError
from tfq.evaluation import decode_outputs, is_class_vector, predicted_classes, prepare_inputs, reference_outputs
from tfq.evaluation.metric import Metric
from tfq.evaluation.metric_scores import Scored, score_metrics
from tfq.evaluation.metrics import checked_labels
from tfq.evaluation.output_scores import choose_for_labels
from tfq.evaluation.scores import choose_metrics, predictions_of, reconstructs
from tfq.search.sample import Sample

# Examples that are run to see which output predicts a class.
NUM_LOOKED_AT = 20
ACCURACY, AGREEMENT, SQNR, METRIC = "accuracy", "agreement", "sqnr", "metric"


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What models are compared by: a metric, or the fraction of examples that are right.

    Attributes:
        kind: "metric": the metric that the user chose. Otherwise it says what makes an example right.
            "accuracy": the predicted class is the label. "agreement": it is the class that the float model predicts.
            "sqnr": the error of every output, against the float model's, is at most its variance over the examples
            divided by 10^(min_sqnr_db / 10). By the last two, the float model is right on every example.
        reason: Why labels are not used; "" for "accuracy".
        output: The index of the output whose classes are compared; not used by "sqnr".
        min_sqnr_db: The bound of "sqnr".
        metric: The metric of "metric".
        closeness: For "metric", how the similarity to the float model is measured: "agreement" or "sqnr".
    """

    kind: str
    reason: str = ""
    output: int = 0
    min_sqnr_db: float = 0.0
    metric: Metric | None = None
    closeness: str = SQNR

    @property
    def unit(self) -> str:
        """The unit of the scores, see `tfq.evaluation.metric.UNITS`."""
        return "fraction" if self.metric is None else self.metric.unit

    @property
    def sign(self) -> int:
        """1 if higher scores are better, else -1."""
        return -1 if self.metric is not None and self.metric.direction == "lower" else 1

    def similarity(self) -> "Criterion":
        """Return the criterion of the similarity to the float model, which ranks candidates with equal scores."""
        kind = {ACCURACY: AGREEMENT, METRIC: self.closeness}.get(self.kind, self.kind)
        return replace(self, kind=kind, metric=None)

    @property
    def title(self) -> str:
        """The name of the scores in tables."""
        if self.metric is not None:
            return self.metric.title or self.metric.name
        return f"SQNR >= {self.min_sqnr_db:g} dB" if self.kind == SQNR else self.kind

    @property
    def agreement_title(self) -> str:
        """The name of the fraction of examples that agree with the float model."""
        is_sqnr = self.kind == METRIC and self.closeness == SQNR
        return f"SQNR >= {self.min_sqnr_db:g} dB" if is_sqnr else AGREEMENT

    @property
    def note(self) -> str:
        """A sentence that says what models were compared by; "" for labels."""
        if self.kind in (ACCURACY, METRIC):
            return ""
        how = (
            "by the fraction of examples with the float model's class"
            if self.kind == AGREEMENT
            else f"by the fraction of examples whose outputs have an SQNR of at least {self.min_sqnr_db:g} dB against "
            "the float model"
        )
        return f"{self.reason}: models are compared {how}. This does not show how often they are right"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "kind": self.kind,
            "title": self.title,
            "agreement_title": self.agreement_title,
            "metric": None if self.metric is None else self.metric.name,
            "unit": self.unit,
            "direction": "lower" if self.sign < 0 else "higher",
            "reason": self.reason or None,
            "output": None if self.kind in (SQNR, METRIC) else self.output,
            "min_sqnr_db": self.min_sqnr_db if self.kind == SQNR else None,
        }

    def sample(self, content: bytes, floating: bytes, split: AnySplit) -> Sample:
        """Return the score of the model `content` on a split.

        Raises:
            InputError: The metric does not fit the outputs or labels.
        """
        if self.metric is None:
            return Sample.of_examples(self.right(content, floating, split))
        parsed, outputs, labels = tflite.read(content), tuple(outputs_of(content, split)), split.all_labels()
        names = parsed.output_names
        if labels is not None and labeled_outputs(labels) and self.metric.outputs is not None:
            metric = choose_for_labels(labels, names, outputs, {}, [self.metric], "")[0].metric
        else:
            metric = choose_metrics([self.metric], names, (), reconstructs=reconstructs(parsed), output="").metric
        predictions = predictions_of(outputs, split, reconstructs=reconstructs(parsed), metrics=[metric], names=names)
        own, truth = predictions.for_metric(metric)
        if truth is None:
            raise _no_labels(metric, split)
        (score,) = score_metrics([Scored(metric=metric, outputs=own, labels=truth)])
        return Sample(
            value=score.value, num_examples=split.num_examples, scores=score.scores, replicates=score.replicates
        )

    def right(self, content: bytes, floating: bytes, split: AnySplit) -> NDArray[np.bool_]:
        """Return for each example whether the model `content` is right on it, (n,)."""
        if self.kind == SQNR:
            return _within(outputs_of(content, split), outputs_of(floating, split), self.min_sqnr_db)
        classes = classes_of(content, split, self.output)
        if self.kind == AGREEMENT:
            return classes == classes_of(floating, split, self.output)
        return classes == labels_of(split, tflite.read(floating), self.output)


BY_LABELS = Criterion(kind=ACCURACY)


def choose_criterion(floating: bytes, splits: list[AnySplit], min_sqnr_db: float) -> Criterion:
    """Return the strongest criterion that the model and its data allow: accuracy, then agreement, then SQNR.

    Raises:
        InputError: There are class labels, and they do not fit the model.
    """
    parsed, first = tflite.read(floating), splits[0]
    names = parsed.output_names
    if reconstructs(parsed):
        return Criterion(kind=SQNR, reason="the model reconstructs its input", min_sqnr_db=min_sqnr_db)
    outputs = reference_outputs(floating, first.take(NUM_LOOKED_AT)).outputs
    pairs = zip(parsed.main_subgraph.outputs, outputs, strict=True)
    matches = [i for i, (index, values) in enumerate(pairs) if is_class_vector(parsed.main_subgraph, index, values)]
    labels = [split.all_labels() for split in splits]
    present = [item for item in labels if item is not None]
    scored = matches if len(matches) == 1 or len(names) > 1 else [0]
    if len(present) < len(labels):
        missing = next(split.name for split, item in zip(splits, labels, strict=True) if item is None)
        reason = f"the {missing} split has no labels"
    elif len(scored) != 1:
        reason = f"{len(scored)} of the {len(names)} outputs predict a class"
    elif labeled_outputs(present[0]) and names[scored[0]] not in labeled_outputs(present[0]):
        reason = f"there are no labels for the output {names[scored[0]]!r}"
    elif any(_is_of_values(labels_of_output(item, names[scored[0]])) for item in present):
        reason = "the labels are not class numbers"
    else:
        for split in splits:
            labels_of(split, parsed, scored[0])  # for its checks
        return Criterion(kind=ACCURACY, output=scored[0])
    if len(matches) == 1:
        return Criterion(kind=AGREEMENT, reason=reason, output=matches[0])
    if not matches:
        reason += ", and no output is known to predict a class"
    return Criterion(kind=SQNR, reason=reason, min_sqnr_db=min_sqnr_db)


def _no_labels(metric: Metric, split: AnySplit) -> InputError:
    return InputError(
        f"the {split.name} split has no labels, which search.metric={metric.name} needs. Add labels, or leave the "
        "metric empty to compare with the float model",
        field="search.metric",
        expected=metric.contract.labels,
        got=None,
    )


def _check_has_labels(metric: Metric, split: AnySplit) -> None:
    """Raise InputError if the metric needs labels and there are none."""
    if split.all_labels() is None and (metric.reconstruction is None or metric.reconstruction.against == "labels"):
        raise _no_labels(metric, split)


def metric_criterion(metric: Metric, floating: bytes, splits: list[AnySplit], min_sqnr_db: float) -> Criterion:
    """Return the criterion for a metric that the user chose.

    Args:
        metric: The metric.
        floating: The float flatbuffer.
        splits: The splits on which it is computed. The first examples show which output predicts a class.
        min_sqnr_db: As in `choose_criterion`.

    Raises:
        InputError: The metric does not declare whether higher or lower values are better, or a split has no labels.
    """
    if metric.direction is None:
        raise InputError(
            f"search.metric={metric.name} does not declare whether higher or lower values are better, so no candidate "
            "can be chosen by it. Pass a tfq.Metric with a direction",
            field="search.metric",
            expected=("higher", "lower"),
            got=None,
        )
    parsed = tflite.read(floating)
    for split in splits:
        _check_has_labels(metric, split)
    outputs = reference_outputs(floating, splits[0].take(NUM_LOOKED_AT)).outputs
    pairs = zip(parsed.main_subgraph.outputs, outputs, strict=True)
    matches = [i for i, (index, values) in enumerate(pairs) if is_class_vector(parsed.main_subgraph, index, values)]
    has_one = len(matches) == 1 and outputs[matches[0]].size <= len(outputs[matches[0]]) * outputs[matches[0]].shape[-1]
    return Criterion(
        kind=METRIC,
        metric=metric,
        output=matches[0] if has_one else 0,
        closeness=AGREEMENT if has_one else SQNR,
        min_sqnr_db=min_sqnr_db,
    )


def _is_of_values(labels: NDArray | None) -> bool:
    """Check whether labels are values of a regression or maps, not one class for each example."""
    if labels is None:
        return False
    rows = labels.reshape(len(labels), -1)
    is_float = labels.dtype.kind == "f" and not (rows.shape[1] > 1 and np.isin(rows, (0, 1)).all())
    return is_float or labels.ndim > 2


def labels_of(split: AnySplit, model: tflite.Model, output: int) -> NDArray[np.int64]:
    """Return the (n,) classes of the examples, from class numbers or one-hot rows.

    Args:
        split: The examples, with labels.
        model: The float model.
        output: The index of its output whose classes they are.

    Raises:
        InputError: The labels are not classes of the model.
    """
    labels = split.all_labels()
    assert labels is not None
    own = labels_of_output(labels, model.output_names[output])
    assert own is not None
    tensor = model.main_subgraph.output_tensors[output]
    dtype = tensor.dtype if tensor.dtype.startswith("int") and not tensor.is_quantized else "float32"
    return checked_labels(own, np.broadcast_to(np.zeros((), dtype), (len(own), *tensor.shape[1:])))


def outputs_of(content: bytes, split: AnySplit) -> list[NDArray]:
    """Return the real values of each output for all examples, (n, ...)."""
    parsed, pieces = tflite.read(content), []
    for piece in split.pieces():
        inputs = prepare_inputs(parsed, piece).arrays
        outputs = make_backend(HOST).assess(RunRequest(model=content, inputs=inputs)).computed_outputs()
        pieces.append(decode_outputs(parsed, outputs))
    return [np.concatenate(values) for values in zip(*pieces, strict=True)]


@functools.lru_cache(maxsize=8)
def classes_of(content: bytes, split: AnySplit, output: int) -> NDArray[np.int64]:
    """Return the class that the output of this index predicts for each example, as top-1 reads it."""
    values = outputs_of(content, split)[output]
    return predicted_classes(values)


def _within(outputs: list[NDArray], expected: list[NDArray], min_sqnr_db: float) -> NDArray[np.bool_]:
    """Return for each example whether the error of every output is within the bound."""
    results = np.ones(len(outputs[0]), bool)
    for values, reference in zip(outputs, expected, strict=True):
        reference = reference.astype(np.float64)
        errors = ((values - reference) ** 2).reshape(len(values), -1).mean(axis=1)
        results &= errors <= reference.var() * 10 ** (-min_sqnr_db / 10)
    return results

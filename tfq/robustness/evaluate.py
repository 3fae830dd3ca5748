# SPDX-License-Identifier: Apache-2.0
"""Evaluate models on the same corrupted inputs."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import progress
from tfq.artifacts import content_of
from tfq.config import EvaluationConfig
from tfq.data import AnySplit, as_split, class_labels
from tfq.errors import InputError, warn
from tfq.evaluation.metric import Metric
from tfq.evaluation.paired import paired_difference
from tfq.robustness.corruption import Corruption, corrupt, parameter_text
from tfq.robustness.degraded import degraded_examples
from tfq.robustness.inputs import Inputs, chosen_corruptions, inputs_of, severities_of
from tfq.robustness.record import (
    MIN_EXAMPLES,
    ConditionScore,
    CorruptionScore,
    Estimate,
    ModelRobustness,
    RobustnessRecord,
    mean_or_none,
)
from tfq.robustness.runs import CALIBRATION, Answers, Runner, corrupted_pieces, main_metric
from tfq.robustness.statistic import Statistic, average, minus
from tfq.typing import Data, MetricFunction, PathOrBytes

# A condition: a corruption at a severity.
Condition = tuple[Corruption, int]
_NOTHING = Estimate(value=None)
# Examples of a corruption that are timed for the estimate.
_TIMED = 2


def evaluate_robustness(
    models: Mapping[str, PathOrBytes],
    data: Data,
    config: EvaluationConfig | None = None,
    *,
    reference: str = "",
    metric: str | Metric | MetricFunction | None = None,
) -> RobustnessRecord:
    """Evaluate models on the same corrupted inputs, so that their differences are paired.

    The corrupted inputs depend on the seed, the index of an example, the corruption and the severity only, not on the
    number of examples or the order of corruptions. The means over corruptions leave out mistakes of apps.

    Examples:
        >>> models = {"float": "model_float32.tflite", "int8": "model_int8.tflite"}
        >>> record = tfq.evaluate_robustness(models, "npz:examples.npz", reference="float")
        >>> print(record.model("int8").mean.value, record.model("int8").extra_drop)

    Args:
        models: Flatbuffers by name: their bytes or paths. All have one input, of the same shape, and the same outputs.
        data: Examples, in any form that `evaluate` accepts, with real values in the units of the float model.
        config: `robustness` has the settings; backend, threads, metric and output are used too. None means
            `EvaluationConfig()`. `robustness.enabled` is ignored.
        reference: The name of the model that the others are compared with; "" compares none.
        metric: Used instead of `config.metric`.

    Returns:
        The results of each model, over all corruptions and for each of them.

    Raises:
        InputError: The models, the data and the settings do not fit each other.
        BackendError: A model cannot run.
    """
    config = config or EvaluationConfig()
    if not models or (reference and reference not in models):
        raise InputError(
            f"reference is {reference!r}: expected the name of one of the models, {', '.join(models) or 'none'}",
            field="reference",
            expected=tuple(models),
            got=reference,
        )
    contents = {name: content_of(model, "models") for name, model in models.items()}
    data = as_split(data, limit=config.robustness.limit)
    inputs = inputs_of(data, config.robustness)
    corruptions, skipped = chosen_corruptions(inputs, config.robustness)
    conditions = [(item, level) for item in corruptions for level in severities_of(item, inputs, config.robustness)]
    session = _Session(contents, data, config, inputs, conditions, reference, main_metric(config, metric))
    return session.record(corruptions, skipped)


class _Session:
    """One evaluation: the clean pass, then each condition."""

    def __init__(
        self,
        models: Mapping[str, bytes],
        data: AnySplit,
        config: EvaluationConfig,
        inputs: Inputs,
        conditions: Sequence[Condition],
        reference: str,
        metric: Metric | None,
    ) -> None:
        self.data, self.config, self.inputs, self.conditions = data, config, inputs, conditions
        self.reference, self.names, self.start = reference, list(models), time.monotonic()
        self.runner = Runner(
            models, data, config, reference=reference, metric=metric, num_conditions=len(conditions) + 1
        )
        self.answers: dict[tuple[str, int], dict[str, Answers]] = {}
        # Why some number of a metric, by its name, has no interval.
        self.reasons: dict[str, str] = {}

    def record(self, corruptions: Sequence[Corruption], skipped: dict[str, str]) -> RobustnessRecord:
        """Run everything, and return the record."""
        start = time.monotonic()
        with progress.stage("evaluating on clean inputs"):
            (self.clean,) = self.runner.answers((piece,) for piece in self.data.pieces())
        estimate = self._estimate(time.monotonic() - start)
        title = f"evaluating {len(self.conditions)} corrupted versions of {self.data.num_examples:,} examples"
        progress.note(f"{title} with {len(self.names)} models: about {_duration(estimate)}")
        with progress.stage(title):
            for corruption in progress.counted(corruptions, title, "corruption"):
                every = [severity for item, severity in self.conditions if item is corruption]
                seed, step = self.config.robustness.seed, self.runner.conditions_at_once
                for severities in (every[start : start + step] for start in range(0, len(every), step)):
                    pieces = corrupted_pieces(self.data, self.inputs, corruption, severities, seed)
                    for severity, answers in zip(severities, self.runner.answers(pieces), strict=True):
                        self.answers[corruption.name, severity] = answers
        return self._record(corruptions, skipped, estimate)

    def _estimate(self, clean_secs: float) -> float:
        """Return the seconds that all conditions will take: the time of models, and of corrupting single examples."""
        piece = next(iter(self.data.take(_TIMED).pieces()))
        examples = piece.inputs[self.inputs.name]
        start = time.monotonic()
        for corruption, severity in self.conditions:
            corrupt(
                examples,
                corruption,
                severity,
                limits=self.inputs.limits,
                parameter_set=self.inputs.parameter_set,
            )
        secs = (time.monotonic() - start) / len(examples)
        return clean_secs * len(self.conditions) + secs * self.data.num_examples

    def _record(self, corruptions: Sequence[Corruption], skipped: dict[str, str], estimate: float) -> RobustnessRecord:
        runner, settings, inputs = self.runner, self.config.robustness, self.inputs
        classes, classes_reason = self._classes(corruptions)
        degraded, degraded_reason = degraded_examples(self, settings.degraded_examples)
        notes = self._warnings()
        for sentence in notes:
            warn(sentence)
        models = tuple(self._model(name, corruptions) for name in self.names)
        of_corruptions = tuple(self._corruption(item, name) for item in corruptions for name in self.names)
        of_conditions = tuple(self._condition(item, name) for item in self.conditions for name in self.names)
        return RobustnessRecord(
            metric=runner.metric.name,
            unit=runner.metric.unit,
            direction=runner.metric.direction,
            accuracy_reason=runner.reason,
            interval_reason=self._why_no_interval(),
            ece_reason=self._why_no_calibration(),
            reference=self.reference,
            num_examples=self.data.num_examples,
            seed=settings.seed,
            severities=settings.severities,
            input_kind=inputs.kind,
            input_range=inputs.limits,
            input_range_reason=inputs.limits_reason,
            parameters=inputs.parameter_set,
            parameters_reason=inputs.parameter_reason,
            backend=self.config.backend.partition(":")[0],
            models=models,
            corruptions=of_corruptions,
            conditions=of_conditions,
            classes=classes,
            classes_reason=classes_reason,
            degraded=degraded,
            degraded_reason=degraded_reason,
            skipped=skipped,
            warnings=notes,
            secs=round(time.monotonic() - self.start, 2),
            estimated_secs=round(estimate, 2),
        )

    def _warnings(self) -> tuple[str, ...]:
        limit = self.config.robustness.limit
        missing = f"evaluation.robustness.limit={limit:,}: the data has only {self.data.num_examples:,} examples"
        return (missing,) if limit > self.data.num_examples and limit != type(self.config.robustness)().limit else ()

    def _has_examples(self) -> bool:
        """Check whether the metric is a mean over the examples."""
        return all(answer.examples is not None for answer in self.clean.values())

    def _why_no_interval(self) -> str | None:
        if self.runner.reason is not None:
            return self.runner.reason
        if self._has_examples():
            count = self.data.num_examples
            return f"only {count} examples; an interval needs {MIN_EXAMPLES}" if count < MIN_EXAMPLES else None
        return self.runner.why_no_draws(self.runner.metric.name) or self.reasons.get(self.runner.metric.name)

    def _why_no_calibration(self) -> str | None:
        if not self.runner.has_calibration:
            return self.runner.reason or "the outputs and labels are not probabilities of classes and class numbers"
        return self.runner.why_no_draws(CALIBRATION) or self.reasons.get(CALIBRATION)

    # results

    def _of(self, corruption: Corruption, model: str) -> list[Answers]:
        return [answers[model] for (name, _), answers in self.answers.items() if name == corruption.name]

    def _corrupted(self, corruptions: Sequence[Corruption], model: str) -> Statistic | None:
        """Return the mean of the metric over corruptions, each the mean over its severities."""
        return average([average([answer.score for answer in self._of(item, model)]) for item in corruptions])

    def _calibration(self, corruptions: Sequence[Corruption], model: str) -> Statistic | None:
        """Return the same mean of the calibration error."""
        return average([average([answer.ece for answer in self._of(item, model)]) for item in corruptions])

    def _drop(self, corruptions: Sequence[Corruption], model: str) -> Statistic | None:
        """Return by how much worse the metric is than on clean inputs; None for a metric without a direction."""
        clean, corrupted = self.clean[model].score, self._corrupted(corruptions, model)
        if self.runner.metric.direction is None:
            return None
        return minus(corrupted, clean) if self.runner.metric.direction == "lower" else minus(clean, corrupted)

    def _minus_reference(self, of: Callable[[str], Statistic | None], model: str) -> Statistic | None:
        """Return a number of a model minus that of the reference; None for the reference itself."""
        return minus(of(model), of(self.reference)) if self.reference and model != self.reference else None

    def _shown(self, statistic: Statistic | None, metric: str = "") -> Estimate:
        """Return the estimate of a number, and note why it has no interval. metric: the main one if empty."""
        if statistic is None:
            return _NOTHING
        estimate, reason = statistic.estimate()
        if reason is not None:
            self.reasons.setdefault(metric or self.runner.metric.name, reason)
        return estimate

    def _model(self, model: str, corruptions: Sequence[Corruption]) -> ModelRobustness:
        scene = [item for item in corruptions if not item.is_mistake] or list(corruptions)
        clean = self.clean[model]
        losses = {item.name: self._drop([item], model) for item in scene}
        known = {name: loss.value for name, loss in losses.items() if loss is not None}
        agreements = [mean_or_none([answer.agreement for answer in self._of(item, model)]) for item in scene]

        def increase(name: str) -> Statistic | None:
            return minus(self._calibration(scene, name), self.clean[name].ece)

        return ModelRobustness(
            model=model,
            clean=self._shown(clean.score),
            mean=self._shown(self._corrupted(scene, model)),
            drop=self._shown(self._drop(scene, model)),
            extra_drop=self._shown(self._minus_reference(lambda name: self._drop(scene, name), model)),
            agreement=mean_or_none(agreements),
            clean_agreement=clean.agreement,
            ece=self._shown(self._calibration(scene, model), CALIBRATION),
            clean_ece=self._shown(clean.ece, CALIBRATION),
            extra_ece=self._shown(self._minus_reference(increase, model), CALIBRATION),
            worst=max(known, key=lambda name: known[name]) if known else None,
        )

    def _corruption(self, corruption: Corruption, model: str) -> CorruptionScore:
        return CorruptionScore(
            corruption=corruption.name,
            is_mistake=corruption.is_mistake,
            model=model,
            accuracy=self._shown(self._corrupted([corruption], model)),
            drop=self._shown(self._drop([corruption], model)),
            extra_drop=self._shown(self._minus_reference(lambda name: self._drop([corruption], name), model)),
            agreement=mean_or_none([answer.agreement for answer in self._of(corruption, model)]),
            ece=self._shown(self._calibration([corruption], model), CALIBRATION),
        )

    def _condition(self, condition: Condition, model: str) -> ConditionScore:
        corruption, severity = condition
        answers = self.answers[corruption.name, severity]
        parameter = corruption.values(self.inputs.parameter_set)[severity - 1]
        return ConditionScore(
            corruption=corruption.name,
            severity=severity,
            parameter=parameter_text(parameter),
            model=model,
            accuracy=self._shown(answers[model].score),
            agreement=answers[model].agreement,
            difference=self._difference(answers, model),
            ece=self._shown(answers[model].ece, CALIBRATION),
        )

    def _difference(self, answers: Mapping[str, Answers], model: str) -> Estimate:
        """Return the metric of a model minus the reference's on the same examples; right or wrong ones by Tango."""
        pair = [answers[name].examples for name in (model, self.reference) if name and name in answers]
        if model != self.reference and len(pair) == 2 and all(each is not None and each.dtype == bool for each in pair):
            paired = paired_difference(np.asarray(pair[0]), np.asarray(pair[1]))
            return Estimate(value=paired.difference, low=paired.low, high=paired.high)
        return self._shown(self._minus_reference(lambda name: answers[name].score, model))

    def _classes(self, corruptions: Sequence[Corruption]) -> tuple[dict[str, Any] | None, str | None]:
        """Return for each class the fractions that each model gets right, on clean and on corrupted inputs."""
        labels = self.data.all_labels()
        if labels is None or self.runner.reason is not None:
            return None, self.runner.reason or "there are no labels"
        try:
            truth = class_labels(labels, "labels")
        except InputError as error:
            return None, str(error)
        if self.runner.metric.unit != "fraction" or not self._has_examples():
            return None, f"{self.runner.metric.name} is not a fraction of the examples"
        scene = [item for item in corruptions if not item.is_mistake] or list(corruptions)
        numbers, places = np.unique(truth, return_inverse=True)
        counts = np.bincount(places)
        names = self.data.class_names

        def fractions(values: NDArray[Any]) -> list[float]:
            return [float(value) for value in np.bincount(places, weights=np.asarray(values, np.float64)) / counts]

        models = {}
        for name in self.names:
            clean, corrupted = self.clean[name].examples, self._corrupted(scene, name)
            assert clean is not None and corrupted is not None and corrupted.examples is not None
            models[name] = {"clean": fractions(clean), "corrupted": fractions(corrupted.examples)}
        return {
            "class": numbers.tolist(),
            "name": [names[number] if number < len(names) else None for number in numbers] if names else None,
            "examples": counts.tolist(),
            "models": models,
        }, None


def _duration(secs: float) -> str:
    return f"{secs:.0f} s" if secs < 120 else f"{secs / 60:.0f} minutes"

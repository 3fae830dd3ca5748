# SPDX-License-Identifier: Apache-2.0
"""Evaluate models on the same corrupted inputs."""

import time
from collections.abc import Mapping, Sequence
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
    ConditionScore,
    CorruptionScore,
    Estimate,
    ModelRobustness,
    RobustnessRecord,
    mean_of,
    mean_or_none,
)
from tfq.robustness.runs import Answers, Runner, corrupted_pieces, main_metric
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
        self.runner = Runner(models, data, config, reference=reference, metric=metric)
        self.sign = -1.0 if self.runner.metric.direction == "lower" else 1.0
        self.answers: dict[tuple[str, int], dict[str, Answers]] = {}

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
                severities = [severity for item, severity in self.conditions if item is corruption]
                pieces = corrupted_pieces(self.data, self.inputs, corruption, severities, self.config.robustness.seed)
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
        return RobustnessRecord(
            metric=runner.metric.name,
            unit=runner.metric.unit,
            direction=runner.metric.direction,
            accuracy_reason=runner.reason,
            interval_reason=self._why_no_interval(),
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
            models=tuple(self._model(name, corruptions) for name in self.names),
            corruptions=tuple(self._corruption(item, name) for item in corruptions for name in self.names),
            conditions=tuple(self._condition(item, name) for item in self.conditions for name in self.names),
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

    def _why_no_interval(self) -> str | None:
        if self.runner.reason is not None:
            return self.runner.reason
        metric = self.runner.metric
        has_examples = all(answer.examples is not None for answer in self.clean.values())
        return None if has_examples else f"{metric.title or metric.name} is not a mean over the examples"

    # results

    def _of(self, corruption: Corruption, model: str) -> list[Answers]:
        return [answers[model] for (name, _), answers in self.answers.items() if name == corruption.name]

    def examples_of(self, corruption: Corruption, model: str) -> NDArray[np.float64] | None:
        """Return the mean score of each example over the severities of a corruption, (n,)."""
        parts = [answer.examples for answer in self._of(corruption, model)]
        known = [np.asarray(part, np.float64) for part in parts if part is not None]
        return np.asarray(np.mean(known, axis=0)) if len(known) == len(parts) else None

    def _drops(self, corruptions: Sequence[Corruption], model: str) -> tuple[Estimate, Estimate, NDArray | None]:
        """Return (mean of the metric, its drop, the drop of each example) over corruptions."""
        clean = self.clean[model]
        parts = [self.examples_of(item, model) for item in corruptions]
        known = [part for part in parts if part is not None]
        if clean.examples is not None and len(known) == len(parts):
            corrupted = np.mean(known, axis=0)
            drops = self.sign * (np.asarray(clean.examples, np.float64) - corrupted)
            drop = mean_of(drops) if self.runner.metric.direction else _NOTHING
            return mean_of(corrupted), drop, drops
        value = mean_or_none([mean_or_none([a.value for a in self._of(item, model)]) for item in corruptions])
        if value is None or clean.value is None or self.runner.metric.direction is None:
            return Estimate(value=value), _NOTHING, None
        return Estimate(value=value), Estimate(value=self.sign * (clean.value - value)), None

    def _extra(self, corruptions: Sequence[Corruption], model: str) -> Estimate:
        """Return the drop minus the reference's, paired by example."""
        if not self.reference or model == self.reference:
            return _NOTHING
        (_, drop, drops), (_, base, base_drops) = (self._drops(corruptions, n) for n in (model, self.reference))
        if drop.value is None or base.value is None:
            return _NOTHING
        if drops is not None and base_drops is not None:
            return mean_of(drops - base_drops)
        return Estimate(value=drop.value - base.value)

    def _model(self, model: str, corruptions: Sequence[Corruption]) -> ModelRobustness:
        scene = [item for item in corruptions if not item.is_mistake] or list(corruptions)
        mean, drop, _ = self._drops(scene, model)
        clean = self.clean[model]
        losses = {item.name: self._drops([item], model)[1].value for item in scene}
        known = {name: value for name, value in losses.items() if value is not None}
        every = [self._of(item, model) for item in scene]
        return ModelRobustness(
            model=model,
            clean=_with_interval(clean),
            mean=mean,
            drop=drop,
            extra_drop=self._extra(scene, model),
            agreement=mean_or_none([mean_or_none([a.agreement for a in answers]) for answers in every]),
            clean_agreement=clean.agreement,
            ece=mean_or_none([mean_or_none([a.ece for a in answers]) for answers in every]),
            clean_ece=clean.ece,
            worst=max(known, key=lambda name: known[name]) if known else None,
        )

    def _corruption(self, corruption: Corruption, model: str) -> CorruptionScore:
        mean, drop, _ = self._drops([corruption], model)
        answers = self._of(corruption, model)
        return CorruptionScore(
            corruption=corruption.name,
            is_mistake=corruption.is_mistake,
            model=model,
            accuracy=mean,
            drop=drop,
            extra_drop=self._extra([corruption], model),
            agreement=mean_or_none([answer.agreement for answer in answers]),
            ece=mean_or_none([answer.ece for answer in answers]),
        )

    def _condition(self, condition: Condition, model: str) -> ConditionScore:
        corruption, severity = condition
        answers = self.answers[corruption.name, severity]
        parameter = corruption.values(self.inputs.parameter_set)[severity - 1]
        base = answers.get(self.reference) if model != self.reference else None
        return ConditionScore(
            corruption=corruption.name,
            severity=severity,
            parameter=parameter_text(parameter),
            model=model,
            accuracy=_with_interval(answers[model]),
            agreement=answers[model].agreement,
            difference=_difference(answers[model], base),
            ece=answers[model].ece,
        )

    def _classes(self, corruptions: Sequence[Corruption]) -> tuple[dict[str, Any] | None, str | None]:
        """Return for each class the fractions that each model gets right, on clean and on corrupted inputs."""
        labels = self.data.all_labels()
        if labels is None or self.runner.reason is not None:
            return None, self.runner.reason or "there are no labels"
        try:
            truth = class_labels(labels, "labels")
        except InputError as error:
            return None, str(error)
        if self.runner.metric.unit != "fraction" or self._why_no_interval() is not None:
            return None, f"{self.runner.metric.name} is not a fraction of the examples"
        scene = [item for item in corruptions if not item.is_mistake] or list(corruptions)
        numbers, places = np.unique(truth, return_inverse=True)
        counts = np.bincount(places)
        names = self.data.class_names

        def fractions(values: NDArray[Any]) -> list[float]:
            return [float(value) for value in np.bincount(places, weights=np.asarray(values, np.float64)) / counts]

        models = {}
        for name in self.names:
            parts = [part for item in scene if (part := self.examples_of(item, name)) is not None]
            clean = self.clean[name].examples
            assert clean is not None
            models[name] = {"clean": fractions(clean), "corrupted": fractions(np.mean(parts, axis=0))}
        return {
            "class": numbers.tolist(),
            "name": [names[number] if number < len(names) else None for number in numbers] if names else None,
            "examples": counts.tolist(),
            "models": models,
        }, None


def _with_interval(answers: Answers) -> Estimate:
    low, high = answers.interval or (None, None)
    return Estimate(value=answers.value, low=low, high=high)


def _difference(one: Answers, other: Answers | None) -> Estimate:
    """Return the metric of one model minus that of another on the same examples, with a paired interval."""
    if other is None or one.value is None or other.value is None:
        return _NOTHING
    if one.examples is None or other.examples is None:
        return Estimate(value=one.value - other.value)
    if one.examples.dtype.kind == other.examples.dtype.kind == "b":
        paired = paired_difference(one.examples, other.examples)
        return Estimate(value=paired.difference, low=paired.low, high=paired.high)
    return mean_of(one.examples.astype(np.float64) - other.examples)


def _duration(secs: float) -> str:
    return f"{secs:.0f} s" if secs < 120 else f"{secs / 60:.0f} minutes"

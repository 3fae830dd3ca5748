# SPDX-License-Identifier: Apache-2.0
"""Run models on the same inputs, piece by piece, and keep the results of each example."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry, tflite
from tfq.backends import RunRequest, make_backend
from tfq.config import EvaluationConfig
from tfq.data import AnySplit, Split, labeled_outputs
from tfq.errors import InputError
from tfq.evaluation.classes import is_class_vector
from tfq.evaluation.inputs import Feed, decode_outputs
from tfq.evaluation.metric import Metric, Outputs, State, Weights, as_metric
from tfq.evaluation.metric_scores import NOT_RESAMPLED, TOO_LONG
from tfq.evaluation.paired import num_draws, replicates
from tfq.evaluation.scores import (
    NO_LABELS,
    Choice,
    Predictions,
    agreement_of_output,
    choose_metric,
    predictions_of,
    reconstructs,
    why_no_class,
    why_unsuited,
)
from tfq.robustness.corruption import SEVERITIES, Corruption, corrupt
from tfq.robustness.inputs import Inputs
from tfq.robustness.statistic import Statistic

# The metric of calibration, if it is registered.
CALIBRATION = "ece"
# The largest size of the outputs of all models, under one condition, that a bootstrap keeps in memory.
MAX_KEPT_BYTES = 2_000_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The results of one model on all examples of one condition.

    Attributes:
        score: The metric; None if it cannot be computed.
        agreement: The fraction of examples with the reference's class; None if no class is predicted.
        ece: The expected calibration error; None if the outputs are not class probabilities.
    """

    score: Statistic | None
    agreement: float | None
    ece: Statistic | None

    @property
    def examples(self) -> NDArray[Any] | None:
        """(n,) the score of each example, whose mean is the metric; None if the metric is not a mean."""
        return None if self.score is None else self.score.examples


class Runner:
    """Models that run on the same inputs, and how they are scored: decided on the first piece of clean data."""

    def __init__(
        self,
        models: Mapping[str, bytes],
        data: AnySplit,
        config: EvaluationConfig,
        *,
        reference: str,
        metric: Metric | None,
        num_conditions: int,
    ) -> None:
        """Read the models, and choose the metric by the outputs of the first one.

        Args:
            models: Flatbuffers by name.
            data: The examples.
            config: The settings of the evaluation.
            reference: The model that the others are compared with; "" for none.
            metric: The metric; None for the default one.
            num_conditions: How many conditions follow: with many, the bootstrap has fewer draws.

        Raises:
            InputError: Models, data and metric do not fit each other.
        """
        self._contents, self._config, self._reference = models, config, reference
        self._parsed = {name: tflite.read(content) for name, content in models.items()}
        self._backend = make_backend(config.backend)
        self._backend.prepare()
        first = next(iter(data.take(32).pieces()))
        outputs = self.run(first)
        parsed = self._parsed[reference or next(iter(models))]
        values = outputs[reference or next(iter(models))]
        self._names, self._reconstructs = parsed.output_names, reconstructs(parsed)
        self._check_shapes(outputs)
        pairs = zip(parsed.main_subgraph.outputs, values, strict=True)
        self._is_class = [is_class_vector(parsed.main_subgraph, index, value) for index, value in pairs]
        self.choice = choose_metric(
            metric, self._names, self._is_class, reconstructs=self._reconstructs, output=config.output
        )
        predictions = self._predictions(values, first)
        self.reason = _why_unscored(predictions, self.choice)
        self._calibration = self._calibration_of(predictions)
        self._class_output = self._agreement_output(predictions)
        sizes = [value.nbytes for own in outputs.values() for value in own]
        self._kept_bytes = sum(sizes) * data.num_examples // first.num_examples
        self._resampled = self._resampled_metrics()
        measures = num_conditions * len(models) * max(1, len(self._resampled))
        self._draws = num_draws(data.num_examples * measures)
        # Why a metric, by its name, has no draws.
        self.draws_reasons: dict[str, str] = {}

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.choice.metric

    @property
    def has_calibration(self) -> bool:
        """Whether the calibration error is computed."""
        return self._calibration is not None

    @property
    def conditions_at_once(self) -> int:
        """The number of conditions that may run together: fewer if their outputs are kept for a bootstrap."""
        return max(1, MAX_KEPT_BYTES // max(1, self._kept_bytes)) if self._resampled else len(SEVERITIES)

    def _resampled_metrics(self) -> list[Metric]:
        """Return the metrics whose intervals need a bootstrap: those that are not means over the examples."""
        if self.reason is not None:
            return []
        chosen = {item.name: item for item in (self.metric, self._calibration) if item is not None}
        return [item for item in chosen.values() if item.examples is None and item.resampled is not None]

    def run(self, piece: Split) -> dict[str, Outputs]:
        """Return the real outputs of each model on the same examples."""
        results = {}
        for name, parsed in self._parsed.items():
            feed = Feed(parsed, piece)
            request = RunRequest(
                model=self._contents[name],
                inputs=feed.inputs,
                num_threads=self._config.num_threads,
                kernels="xnnpack" if self._config.xnnpack else "builtin",
                num_workers=self._config.num_workers,
                timeout_secs=self._config.timeout_secs,
            )
            results[name] = decode_outputs(parsed, self._backend.assess(request).computed_outputs())
        return results

    def answers(self, groups: Iterable[Sequence[Split]]) -> list[dict[str, Answers]]:
        """Return the answers of each model for each condition.

        Args:
            groups: For each piece of the data, its examples under each condition. The conditions of a piece run
                together, and all are read once.
        """
        tallies: list[dict[str, _Tally]] = []
        for pieces in groups:
            tallies = tallies or [{name: _Tally() for name in self._parsed} for _ in pieces]
            outputs = self.run(_joined(pieces))
            start = 0
            for piece, of_condition in zip(pieces, tallies, strict=True):
                stop = start + piece.num_examples
                parts = {name: tuple(value[start:stop] for value in values) for name, values in outputs.items()}
                for name, tally in of_condition.items():
                    self._add(tally, parts[name], parts.get(self._reference), piece)
                start = stop
        draws = self._draws_of([tally for item in tallies for tally in item.values()])
        return [{name: self._finished(tally, next(draws)) for name, tally in item.items()} for item in tallies]

    def _draws_of(self, tallies: Sequence["_Tally"]) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Yield for each tally {metric: its values for resampled examples}, all with the same examples in each draw."""
        results: list[dict[str, NDArray[np.float64]]] = [{} for _ in tallies]
        places: list[tuple[int, str]] = []
        measures: list[Callable[[Weights], float]] = []
        for index, tally in enumerate(tallies):
            for metric in self._resampled if tally.kept else ():
                outputs = tuple(np.concatenate(parts) for parts in zip(*(each for each, _ in tally.kept), strict=True))
                measure = metric.resampler(outputs, np.concatenate([labels for _, labels in tally.kept]))
                if measure is None:
                    self.draws_reasons[metric.name] = TOO_LONG.format(metric.title or metric.name)
                else:
                    places.append((index, metric.name))
                    measures.append(measure)
            tally.kept.clear()
        if measures:
            found = replicates(measures, tallies[0].count, self._draws)
            for (index, name), values in zip(places, found, strict=True):
                results[index][name] = values
        return iter(results)

    def _add(self, tally: "_Tally", values: Outputs, expected: Outputs | None, piece: Split) -> None:
        tally.count += piece.num_examples
        if expected is not None and self._class_output is not None:
            predictions = self._predictions(values, piece)
            same = agreement_of_output(
                predictions,
                expected[self._class_output],
                self.choice,
                self._class_output,
                is_scored=self.reason is None,
            )
            tally.agreeing += same * piece.num_examples
        if self.reason is not None:
            return
        outputs, labels = self._predictions(values, piece).for_metric(self.metric)
        assert labels is not None
        tally.states.append(self.metric.state_of(outputs, labels))
        if self.metric.examples is not None:
            tally.examples.append(np.asarray(self.metric.examples(self.metric.select(outputs), np.asarray(labels))))
        if self._calibration is not None:
            tally.calibration.append(self._calibration.state_of(outputs, labels))
        if self._resampled and self._kept_bytes <= MAX_KEPT_BYTES:
            tally.kept.append((outputs, labels))

    def _finished(self, tally: "_Tally", draws: Mapping[str, NDArray[np.float64]]) -> Answers:
        score = ece = None
        if tally.states:
            state = _merged(self.metric, tally.states)
            joined = np.concatenate(tally.examples) if tally.examples else np.empty(0)
            score = Statistic(
                value=self.metric.value_of(state),
                num_examples=tally.count,
                interval=self.metric.interval(state),
                examples=joined if joined.shape == (tally.count,) else None,
                draws=draws.get(self.metric.name),
            )
        calibration = self._calibration
        if calibration is not None:
            ece = Statistic(
                value=calibration.value_of(_merged(calibration, tally.calibration)),
                num_examples=tally.count,
                draws=draws.get(calibration.name),
            )
        has_agreement = self._reference and self._class_output is not None
        return Answers(score=score, agreement=tally.agreeing / tally.count if has_agreement else None, ece=ece)

    def why_no_draws(self, name: str) -> str | None:
        """Return why a metric that is not a mean over the examples has no interval; None if it has one."""
        chosen = self.metric if name == self.metric.name else self._calibration
        if chosen is None:
            return None
        title = chosen.title or chosen.name
        if chosen.resampled is None:
            return NOT_RESAMPLED.format(title)
        if self._kept_bytes > MAX_KEPT_BYTES:
            needed, most = (f"{number / 1e9:.1f} GB" for number in (self._kept_bytes, MAX_KEPT_BYTES))
            return (
                f"a bootstrap of {title} keeps the outputs of one condition in memory: {needed}, more than {most}. "
                "Decrease evaluation.robustness.limit"
            )
        return self.draws_reasons.get(name)

    def _predictions(self, outputs: Outputs, piece: Split) -> Predictions:
        return predictions_of(outputs, piece, reconstructs=self._reconstructs, metrics=[self.metric], names=self._names)

    def _calibration_of(self, predictions: Predictions) -> Metric | None:
        """Return the metric of calibration if it accepts these outputs and labels."""
        known = registry.entries(Metric).get(CALIBRATION)
        if known is None or self.reason is not None:
            return None
        chosen = dataclasses.replace(known, outputs=self.metric.outputs)
        outputs, labels = predictions.for_metric(self.metric)
        try:
            chosen.contract.check(chosen.select(outputs), np.asarray(labels))
        except InputError:
            return None
        return chosen

    def _agreement_output(self, predictions: Predictions) -> int | None:
        """Return the output whose classes are compared with the reference's: the one of the metric, else the first."""
        reasons = [
            why_no_class(predictions, self.choice, index, is_class, is_scored=self.reason is None)
            for index, is_class in enumerate(self._is_class)
        ]
        usable = [index for index, reason in enumerate(reasons) if reason is None]
        return next((index for index in usable if self.choice.uses(index)), usable[0] if usable else None)

    def classes_of(self, outputs: Outputs) -> NDArray[Any] | None:
        """Return the predicted class of each example, (n,); None if the output does not predict one class."""
        from tfq.evaluation.class_differences import classes_of

        if self._class_output is None:
            return None
        try:
            return classes_of(outputs[self._class_output])
        except InputError:
            return None

    def _check_shapes(self, outputs: Mapping[str, Outputs]) -> None:
        shapes = {name: [value.shape[1:] for value in values] for name, values in outputs.items()}
        first = next(iter(shapes))
        for name, shape in shapes.items():
            if shape != shapes[first]:
                raise InputError(
                    f"{name} has outputs of shapes {shape}, and {first} has {shapes[first]}: models that are compared "
                    "need the same outputs",
                    field="models",
                    expected=shapes[first],
                    got=shape,
                )


@dataclass(kw_only=True, eq=False)
class _Tally:
    """The results of one model so far."""

    count: int = 0
    agreeing: float = 0.0
    states: list[State] = dataclasses.field(default_factory=list)
    examples: list[NDArray[Any]] = dataclasses.field(default_factory=list)
    calibration: list[State] = dataclasses.field(default_factory=list)
    kept: list[tuple[Outputs, NDArray[Any]]] = dataclasses.field(default_factory=list)


def _merged(metric: Metric, states: Sequence[State]) -> State:
    merged = states[0]
    for state in states[1:]:
        merged = metric.merge(merged, state)
    return merged


def _why_unscored(predictions: Predictions, choice: Choice) -> str | None:
    """Return why the metric is not computed, or None. A metric that the user chose is computed, or raises an error."""
    outputs, labels = predictions.for_metric(choice.metric)
    if labels is None:
        return NO_LABELS
    if labeled_outputs(labels):
        return "the labels are of several outputs. Set evaluation.output"
    return why_unsuited(choice, outputs, labels)


def corrupted_pieces(
    data: AnySplit, inputs: Inputs, corruption: Corruption, severities: Sequence[int], seed: int
) -> Iterator[list[Split]]:
    """Yield for each piece of the data its examples with corrupted inputs, at each severity."""
    first = 0
    for piece in data.pieces():
        values = piece.inputs[inputs.name]
        options: dict[str, Any] = {"limits": inputs.limits, "first": first, "seed": seed}
        changed = (
            corrupt(values, corruption, severity, parameter_set=inputs.parameter_set, **options)
            for severity in severities
        )
        first += piece.num_examples
        yield [dataclasses.replace(piece, inputs={inputs.name: array}) for array in changed]


def _joined(pieces: Sequence[Split]) -> Split:
    """Return the inputs of several pieces, one after the other, without labels."""
    if len(pieces) == 1:
        return pieces[0]
    names = pieces[0].inputs
    inputs = {name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in names}
    return dataclasses.replace(pieces[0], inputs=inputs, labels=None)


def main_metric(config: EvaluationConfig, metric: Any) -> Metric | None:
    """Return the metric of an evaluation: the first one if there are several; None for the default."""
    chosen = config.metric if metric is None else metric
    if isinstance(chosen, (list, tuple)):
        chosen = chosen[0] if chosen else None
    return as_metric(chosen)

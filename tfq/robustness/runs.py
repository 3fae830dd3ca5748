# SPDX-License-Identifier: Apache-2.0
"""Run models on the same inputs, piece by piece, and keep the results of each example."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry, tflite
from tfq.backends import RunRequest, make_backend
from tfq.config import EvaluationConfig
from tfq.data import AnySplit, Split, labeled_outputs
from tfq.errors import InputError
from tfq.evaluation.classes import agreement, is_class_vector
from tfq.evaluation.inputs import Feed, decode_outputs
from tfq.evaluation.metric import Metric, Outputs, State, as_metric
from tfq.evaluation.scores import (
    NO_LABELS,
    Choice,
    Predictions,
    choose_metric,
    predictions_of,
    reconstructs,
    why_no_class,
)
from tfq.robustness.corruption import Corruption, corrupt
from tfq.robustness.inputs import Inputs

# The metric of calibration, if it is registered.
CALIBRATION = "ece"


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The results of one model on all examples of one condition.

    Attributes:
        value: The metric; None if it cannot be computed.
        interval: Its own interval.
        examples: (n,) the score of each example, whose mean is the metric; None if the metric is not a mean.
        agreement: The fraction of examples with the reference's class; None if no class is predicted.
        ece: The expected calibration error, or None.
    """

    value: float | None
    interval: tuple[float, float] | None
    examples: NDArray[Any] | None
    agreement: float | None
    ece: float | None


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
    ) -> None:
        """Read the models, and choose the metric by the outputs of the first one.

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

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.choice.metric

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
        return [{name: self._finished(tally) for name, tally in item.items()} for item in tallies]

    def _add(self, tally: "_Tally", values: Outputs, expected: Outputs | None, piece: Split) -> None:
        tally.count += piece.num_examples
        if expected is not None and self._class_output is not None:
            same = agreement(values[self._class_output], expected[self._class_output])
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

    def _finished(self, tally: "_Tally") -> Answers:
        value = interval = examples = None
        if tally.states:
            state = _merged(self.metric, tally.states)
            value, interval = self.metric.value_of(state), self.metric.interval(state)
        if tally.examples:
            joined = np.concatenate(tally.examples)
            examples = joined if joined.shape == (tally.count,) else None
        calibration = self._calibration
        has_agreement = self._reference and self._class_output is not None
        return Answers(
            value=value,
            interval=interval,
            examples=examples,
            agreement=tally.agreeing / tally.count if has_agreement else None,
            ece=calibration.value_of(_merged(calibration, tally.calibration)) if calibration else None,
        )

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
    if not choice.is_default or choice.reason is not None:
        return choice.reason
    return choice.metric.contract.unsuited(choice.metric.select(outputs), labels)


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

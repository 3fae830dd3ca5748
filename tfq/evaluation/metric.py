# SPDX-License-Identifier: Apache-2.0
"""The interface of metrics: their properties, the outputs and labels they accept, and states that can be merged."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.errors import InputError, TfqError
from tfq.evaluation.detection.decoding import Detections
from tfq.notebook import NotebookRecord
from tfq.typing import MetricFunction

Outputs = tuple[NDArray[Any], ...]
# (n,) int64: how often each of n examples counts.
Weights = NDArray[np.int64]
# A partial result as named arrays, so that it can be stored, and merged in another process.
State = Mapping[str, NDArray[Any]]
Direction = Literal["higher", "lower"]
# The unit of a metric's values, which decides how records and reports show them.
UNITS = {
    "fraction": "a fraction of examples (or of pixels, boxes ...) in [0, 1]; shown as a percentage",
    "score": "a number in [0, 1] that is not a fraction of anything, such as an area under a curve",
    "label_unit": "the unit of the labels",
    "none": "any other number",
}
# Units whose values are in [0, 1].
BOUNDED_UNITS = ("fraction", "score")


def add_states(a: State, b: State) -> State:
    """Merge two metric states by adding the arrays of the same name, for states of counts and sums.

    Args:
        a: The state of some examples.
        b: The state of other examples, with arrays of the same shapes.

    Returns:
        The state of all of them.
    """
    return {name: a[name] + b[name] if name in a and name in b else {**a, **b}[name] for name in {**a, **b}}


def concatenate_states(a: State, b: State) -> State:
    """Merge two metric states by concatenating the arrays of the same name, for states that keep values per example.

    Args:
        a: The state of the earlier examples.
        b: The state of the later examples.

    Returns:
        The state of all of them; arrays are joined along axis 0.
    """
    return {
        name: np.concatenate([a[name], b[name]]) if name in a and name in b else {**a, **b}[name] for name in {**a, **b}
    }


def unknown_interval(state: State) -> tuple[float, float] | None:
    """Return None, because no interval is known."""
    return None


def class_name(number: int, names: Sequence[str]) -> str | None:
    """Return the name of a class; None if it has none.

    Args:
        number: The number of the class, from 0.
        names: The names of class 0, 1, ...; may be empty, or fewer than the classes.
    """
    return names[number] or None if 0 <= number < len(names) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricTable(NotebookRecord):
    """The figures of each class.

    Args:
        rows: The classes: their numbers, or names.
        columns: The names of the figures, such as "support" and "recall".
        values: (rows, columns) real numbers; NaN where a figure is not defined, which records store as null.
        unit: A key of `UNITS`, of all columns except `counts`.
        counts: The columns that are numbers of examples (of pixels, boxes ...).
        classes: The class number of each row, None for a row that is not a class, such as "all". Evaluations then
            replace the rows by the names of these classes, if they are known. Empty if the rows are not classes.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    unit: str = "fraction"
    counts: tuple[str, ...] = ()
    classes: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        """Check the shape, the unit and the number of classes."""
        shape = (len(self.rows), len(self.columns))
        if np.shape(self.values) != shape:
            raise InputError(
                f"the table of a metric has values of shape {np.shape(self.values)}, but {shape[0]} rows and "
                f"{shape[1]} columns. Return a value for each",
                field="table",
                expected=shape,
                got=np.shape(self.values),
            )
        if self.unit not in UNITS:
            raise InputError(
                f"the table of a metric has the unit {self.unit!r}, expected one of {', '.join(UNITS)}",
                field="unit",
                expected=tuple(UNITS),
                got=self.unit,
            )
        if self.classes and len(self.classes) != len(self.rows):
            raise InputError(
                f"the table of a metric has {len(self.rows)} rows and {len(self.classes)} classes. Return a class, or "
                "None, for each row",
                field="classes",
                expected=len(self.rows),
                got=len(self.classes),
            )

    def with_names(self, names: Sequence[str]) -> "MetricTable":
        """Return the table with names of classes as rows, instead of their numbers.

        A name that several classes have is followed by the number: "bat (3)". A class without a name keeps its number.

        Args:
            names: The names of class 0, 1, ...; may be empty, or fewer than the classes.
        """
        pairs = list(zip(self.rows, self.classes or (None,) * len(self.rows), strict=True))
        rows = [row if number is None else class_name(number, names) or row for row, number in pairs]
        counts = Counter(rows)
        unique = [
            f"{row} ({number})" if number is not None and counts[row] > 1 else row
            for row, (_, number) in zip(rows, pairs, strict=True)
        ]
        return replace(self, rows=tuple(unique))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a figure that is not defined is null, and so are `classes` of other rows."""
        rows = [[float(value) if np.isfinite(value) else None for value in row] for row in np.asarray(self.values)]
        return {
            "rows": list(self.rows),
            "columns": list(self.columns),
            "values": rows,
            "unit": self.unit,
            "counts": list(self.counts),
            "classes": list(self.classes) or None,
        }


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The outputs and labels that a metric can score.

    Args:
        outputs: The expected outputs, for messages and documentation, such as "(n, classes)".
        labels: The expected labels, such as "(n,) integers in [0, classes)".
        predicts: What the metric reads in the outputs of an example: one of several "classes", a class for each of
            several "positions", a "score" of class 1, "values", or "any" of these. Agreement with another model is
            defined for classes and positions only.
        check: (outputs, labels) -> None; raises InputError if they do not fit. It is called with some or all examples.
        unsuited: (outputs, labels) -> the reason why this data needs another metric, or None. If the metric was only
            chosen by default, it is then skipped for this reason.
    """

    outputs: str
    labels: str
    predicts: Literal["classes", "positions", "score", "values", "any"]
    check: Callable[[Outputs, NDArray[Any]], None]
    unsuited: Callable[[Outputs, NDArray[Any]], str | None] = lambda outputs, labels: None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How a metric scores a model that reconstructs its input: by an error per example instead of the outputs.

    Args:
        error: (outputs, inputs), both (n, ...), -> (n,) errors.
        against: "labels": the error is a score of class 1 (an anomaly). "zero": the error itself is the result, unless
            there are labels of the outputs' shape.
        default: Whether the metric is used for such models if none is chosen.
        reported_with: Names of metrics that this one is reported with, for such models.
    """

    error: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    against: Literal["labels", "zero"]
    default: bool = False
    reported_with: tuple[str, ...] = ()


def _anything(outputs: Outputs, labels: NDArray[Any]) -> None:
    for output in outputs:
        if len(output) != len(labels):
            raise InputError(
                f"expected one label for each of {len(output):,} examples, got {len(labels):,} labels",
                field="labels",
                expected=len(output),
                got=len(labels),
            )


ANYTHING = Contract(outputs="any", labels="(n, ...)", predicts="any", check=_anything)


@registry.extension_point("metric")
@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that measures how well outputs match labels, computed in pieces that merge exactly.

    A state holds the result for some of the examples, as named arrays. `update` adds examples to it, `merge` joins the
    states of two sets of examples, the earlier examples first, and `finish` computes the number. Merged states give the
    same number as one state of all examples.

    Args:
        name: The name that users write: `evaluation.metric`.
        help: What it computes, for `--help` and the documentation.
        title: The name in reports; `name` if empty.
        direction: Whether "higher" or "lower" values are better; None if that is not known, in which case no bound can
            be checked.
        unit: A key of `UNITS`.
        contract: The outputs and labels that it accepts; checked before anything is computed.
        outputs: The indices of the model's outputs that it uses; None for all of them.
        update: (state, outputs, labels) -> state. `outputs` are the chosen ones, real values, (n, ...) each, read-only.
        finish: state -> float.
        start: () -> the state of no examples; an empty mapping by default.
        merge: (state, state) -> state; `add_states` by default, or `concatenate_states`.
        examples: (outputs, labels) -> (n,) scores of each example, booleans if an example is right or wrong, whose mean
            is the metric; None if there are none. The paired confidence interval of two models has a closed form then.
        resampled: (outputs, labels) -> (weights -> float): prepares once, and returns a function that computes the
            metric as if example i occurred weights[i] times. The result is NaN if the metric is not defined for these
            weights, such as the ROC AUC of one class. Or it returns None if 1,000 calls would take too long. The paired
            bootstrap of two models needs it if there are no `examples`.
        table: state -> the figures of each class, or None.
        note: state -> a sentence about how the number was computed, which records and reports show with it, or None.
        interval: state -> (low, high), the 95% confidence interval of the number, or None.
        default: Whether it is used if none is chosen.
        reported_with: Names of metrics that this one is reported with, if its contract is satisfied.
        reconstruction: How it scores a model that reconstructs its input; None: like any other model.
        suits: labels -> whether a comparison of two models uses this metric for such labels, which the default metric
            cannot score, if none is chosen.
        detections: outputs -> the boxes that they contain, for the images of a report in which two detectors differ;
            None for other metrics.
    """

    name: str
    help: str
    direction: Direction | None
    update: Callable[[State, Outputs, NDArray[Any]], State]
    finish: Callable[[State], float]
    title: str = ""
    unit: str = "none"
    contract: Contract = ANYTHING
    outputs: tuple[int, ...] | None = (0,)
    start: Callable[[], State] = dict
    merge: Callable[[State, State], State] = add_states
    examples: Callable[[Outputs, NDArray[Any]], NDArray[Any]] | None = None
    resampled: Callable[[Outputs, NDArray[Any]], Callable[[Weights], float] | None] | None = None
    table: Callable[[State], MetricTable | None] | None = None
    note: Callable[[State], str | None] | None = None
    interval: Callable[[State], tuple[float, float] | None] = unknown_interval
    default: bool = False
    reported_with: tuple[str, ...] = ()
    reconstruction: Reconstruction | None = None
    suits: Callable[[NDArray[Any]], bool] = lambda labels: False
    detections: Callable[[Outputs], Detections] | None = None

    def __post_init__(self) -> None:
        """Check `direction` and `unit`."""
        if self.direction not in ("higher", "lower", None):
            raise InputError(
                f"metric {self.name}: direction is {self.direction!r}, expected 'higher' or 'lower'",
                field="direction",
                expected=("higher", "lower"),
                got=self.direction,
            )
        if self.unit not in UNITS:
            raise InputError(
                f"metric {self.name}: unit is {self.unit!r}, expected one of {', '.join(UNITS)}",
                field="unit",
                expected=tuple(UNITS),
                got=self.unit,
            )

    @classmethod
    def from_function(
        cls,
        function: MetricFunction,
        *,
        name: str = "",
        help: str = "",
        title: str = "",
        direction: Direction | None = None,
        unit: str = "none",
    ) -> "Metric":
        """Return a metric that stores all outputs and labels and calls `function` once with them.

        Args:
            function: (outputs, labels) -> float. It gets copies: the real values of the only output, (n, ...), or a
                tuple of arrays if the model has several outputs.
            name: The metric's name; `function.__name__` if empty.
            help: What it computes; the first line of the function's docstring if empty.
            title: The name in reports.
            direction: Which values are better; `function.direction` if None.
            unit: A key of `UNITS`.

        Raises:
            InputError: `function` cannot be called, or `direction` or `unit` is invalid.
        """
        if not callable(function):
            raise InputError(
                f"metric {function!r} is not a name, a tfq.Metric or a function(outputs, labels)",
                field="metric",
                expected="a name, a Metric or a function",
                got=function,
            )
        name = name or getattr(function, "__name__", type(function).__name__)

        def update(state: State, outputs: Outputs, labels: NDArray[Any]) -> State:
            piece = {f"output {index}": output for index, output in enumerate(outputs)}
            return concatenate_states(state, {**piece, "labels": labels})

        def finish(state: State) -> float:
            outputs = tuple(np.copy(array) for key, array in state.items() if key != "labels")
            call = cast("Callable[[Any, NDArray[Any]], float]", function)
            return call(outputs[0] if len(outputs) == 1 else outputs, np.copy(state["labels"]))

        return cls(
            name=name,
            help=help or (function.__doc__ or name).strip().splitlines()[0],
            title=title,
            direction=direction or getattr(function, "direction", None),
            unit=unit,
            outputs=None,
            update=update,
            finish=finish,
            merge=concatenate_states,
        )

    def select(self, outputs: Outputs) -> Outputs:
        """Return those of a model's outputs that the metric uses."""
        if self.outputs is None:
            return outputs
        self.check_outputs(len(outputs))
        return tuple(outputs[index] for index in self.outputs)

    def check_outputs(self, count: int) -> None:
        """Raise InputError if the metric uses an output that a model with `count` outputs does not have."""
        if self.outputs is not None and max(self.outputs) >= count:
            raise InputError(
                f"metric {self.name} uses output {max(self.outputs)} (from 0), but the model has {count} outputs",
                field="outputs",
                expected=self.outputs,
                got=count,
            )

    def state_of(self, outputs: Outputs, labels: NDArray[Any]) -> State:
        """Return the state of these examples.

        Args:
            outputs: The model's outputs, (n, ...) each.
            labels: Their labels.

        Raises:
            InputError: They do not satisfy the contract, or the metric fails.
        """
        chosen, labels = self._checked(outputs, labels)
        return self._call(self.update, self.start(), chosen, labels)

    def value_of(self, state: State) -> float:
        """Return the number for a state.

        Raises:
            InputError: The metric fails, or its result is not one finite number.
        """
        result = self._call(self.finish, state)
        kind, field = type(result).__name__, "metric"
        try:
            value = float(result)
        except OverflowError as error:
            raise InputError(
                f"metric {self.name} returned a {kind} that is larger than the largest float, expected a number",
                field=field,
                expected="a finite number",
                got=kind,
            ) from error
        except (TypeError, ValueError) as error:
            raise InputError(
                f"metric {self.name} returned {kind} {result!r}, expected one number",
                field=field,
                expected="a finite number",
                got=result,
            ) from error
        if not np.isfinite(value):
            raise InputError(
                f"metric {self.name} returned {value}, expected a finite number",
                field=field,
                expected="a finite number",
                got=value,
            )
        return value

    def compute(self, outputs: Outputs, labels: NDArray[Any]) -> float:
        """Return the number for all of these examples at once.

        Raises:
            InputError: As `state_of` and `value_of`.
        """
        return self.value_of(self.state_of(outputs, labels))

    def resampler(self, outputs: Outputs, labels: NDArray[Any]) -> Callable[[Weights], float] | None:
        """Return the function that computes the metric for weights (n,) of these examples; None if there is none.

        It is the one of `resampled`, else the weighted mean of `examples`. It returns NaN for weights for which the
        metric is not defined.

        Args:
            outputs: The model's outputs, (n, ...) each.
            labels: Their labels.

        Raises:
            InputError: They do not satisfy the contract, or the metric fails.
        """
        chosen, labels = self._checked(outputs, labels)
        if self.resampled is not None:
            measure = self._call(self.resampled, chosen, labels)
            if measure is None:
                return None
            return lambda weights: float(self._call(measure, weights))
        if self.examples is None:
            return None
        scores = np.asarray(self._call(self.examples, chosen, labels), np.float64)
        return None if scores.shape != (len(labels),) else lambda weights: float(weights @ scores / weights.sum())

    def table_of(self, state: State) -> MetricTable | None:
        """Return the figures of each class for a state; None if the metric has none.

        Raises:
            InputError: The metric fails.
        """
        return None if self.table is None else self._call(self.table, state)

    def note_of(self, state: State) -> str | None:
        """Return a sentence about how the number of a state was computed, or None.

        Raises:
            InputError: The metric fails.
        """
        return None if self.note is None else self._call(self.note, state)

    def facts(self) -> dict[str, Any]:
        """Return the properties of the metric that records contain, as JSON values."""
        return {"title": self.title or self.name, "direction": self.direction, "unit": self.unit}

    def _checked(self, outputs: Outputs, labels: NDArray[Any]) -> tuple[Outputs, NDArray[Any]]:
        """Return the outputs that the metric uses and the labels, read-only, after a check of the contract."""
        chosen = tuple(_read_only(output) for output in self.select(outputs))
        labels = _read_only(labels)
        self.contract.check(chosen, labels)
        return chosen, labels

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except TfqError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"metric {self.name} failed: {_with_location(error)}", field="metric", got=type(error).__name__
            ) from error


MetricChoice = Metric | str | MetricFunction | Sequence[Metric | str | MetricFunction] | None


def as_metric(metric: Metric | str | MetricFunction | None) -> Metric | None:
    """Return the metric for a `Metric`, a registered name or a function; None for None and "".

    Raises:
        InputError: No metric has this name, or `metric` is something else.
    """
    if metric is None or metric == "":
        return None
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return registry.get(Metric, metric, field="evaluation.metric")
    return Metric.from_function(metric)


def as_metrics(metric: MetricChoice) -> tuple[Metric, ...]:
    """Return the metrics for one choice or a sequence of choices, as for `as_metric`; empty for none.

    The first is the main one: `accuracy` in records.

    Raises:
        InputError: As `as_metric`, or a metric occurs twice.
    """
    if isinstance(metric, Sequence) and not isinstance(metric, str):
        results = tuple(item for choice in metric if (item := as_metric(choice)) is not None)
    else:
        one = as_metric(metric)
        results = () if one is None else (one,)
    names = [item.name for item in results]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"evaluation.metric names {twice} twice. Name each metric once",
            field="evaluation.metric",
            expected="different metrics",
            got=twice,
        )
    return results


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _with_location(error: BaseException) -> str:
    """Return the error with the file and line where it was raised, if that is in the user's code."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    file = __file__ if last is None else last.tb_frame.f_code.co_filename
    # A call with the wrong number of arguments fails in this file.
    is_user_code = file != __file__ and not file.startswith("<")
    location = f" ({Path(file).name}, line {last.tb_lineno})" if last is not None and is_user_code else ""
    return f"{type(error).__name__}: {error}{location}"

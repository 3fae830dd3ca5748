# SPDX-License-Identifier: Apache-2.0
"""What a metric is: its facts, the outputs and labels that it takes, and how it is computed in pieces that merge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.errors import InputError, TfqError
from tfq.typing import MetricFunction

Outputs = tuple[NDArray[Any], ...]
# A partial result: named arrays, so that it can be stored and merged in another process.
State = Mapping[str, NDArray[Any]]
Direction = Literal["higher", "lower"]
# What the number of a metric is counted in, and how records and reports show it.
UNITS = {
    "fraction": "a fraction of examples (or of pixels, boxes ...) in [0, 1]; shown as a percentage",
    "score": "a number in [0, 1] that is not a fraction of anything, such as an area under a curve",
    "label_unit": "the unit of the labels",
    "none": "any other number",
}
# Units whose values lie in [0, 1].
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
    """Return None: no interval is known."""
    return None


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The outputs and labels that a metric can score.

    Args:
        outputs: The expected outputs, for messages and documentation, such as "(n, classes)".
        labels: The expected labels, such as "(n,) integers in [0, classes)".
        goes_by: What the outputs of an example say: one of several "classes", a "score" of class 1, "values", or
            "any". Agreement with another model is defined for classes only.
        check: (outputs, labels) -> None; raises InputError if they do not fit. It sees some of the examples or all.
        unsuited: (outputs, labels) -> the reason why this data asks for another metric, or None. A metric that was
            chosen by default is then left out with this reason.
    """

    outputs: str
    labels: str
    goes_by: Literal["classes", "score", "values", "any"]
    check: Callable[[Outputs, NDArray[Any]], None]
    unsuited: Callable[[Outputs, NDArray[Any]], str | None] = lambda outputs, labels: None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How a metric scores a model that reconstructs its input: by one error for each example, in place of its output.

    Args:
        error: (outputs, inputs), both (n, ...), -> (n,) errors.
        against: "labels": the error is a score of class 1 (an anomaly). "zero": the error itself is the result, unless
            there are labels of the outputs' shape.
        default: Whether the metric is used for such models if none is chosen.
        accompanies: Names of metrics that this one is reported next to, for such models.
    """

    error: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    against: Literal["labels", "zero"]
    default: bool = False
    accompanies: tuple[str, ...] = ()


def _anything(outputs: Outputs, labels: NDArray[Any]) -> None:
    for output in outputs:
        if len(output) != len(labels):
            raise InputError(
                f"{len(labels):,} labels for {len(output):,} examples: expected one label for each example",
                field="labels",
                expected=len(output),
                got=len(labels),
            )


ANYTHING = Contract(outputs="any", labels="(n, ...)", goes_by="any", check=_anything)


@registry.extension_point("metric")
@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that says how good outputs are against labels, computed in pieces that merge exactly.

    A state holds the result for some of the examples, as named arrays. `update` adds examples to it, `merge` joins the
    states of two sets of examples, the earlier examples first, and `finish` computes the number. The number of merged
    states equals the number of one state over all examples.

    Args:
        name: What users write: `evaluation.metric`.
        help: What it computes, for `--help` and the documentation.
        word: How reports write the name; the name itself if empty.
        direction: Whether a "higher" or a "lower" value is better; None if that is not known, so that no bound can be
            checked.
        unit: A key of `UNITS`.
        contract: The outputs and labels that it takes; checked before anything is computed.
        outputs: Indexes of the model's outputs that it looks at; None for all of them.
        update: (state, outputs, labels) -> state. outputs: the chosen ones, real numbers, (n, ...) each; read only.
        finish: state -> float.
        start: () -> the state of no examples; an empty mapping by default.
        merge: (state, state) -> state; `add_states` by default, or `concatenate_states`.
        examples: (outputs, labels) -> (n,) scores of each example, booleans for right or wrong, whose mean is the
            metric; None if there are none. Paired intervals of two models need them.
        interval: state -> (low, high), the 95% confidence interval of the number, or None.
        default: Whether it is used if none is chosen.
        accompanies: Names of metrics that this one is reported next to, where its contract holds.
        reconstruction: How it scores a model that reconstructs its input; None: like any other model.
    """

    name: str
    help: str
    direction: Direction | None
    update: Callable[[State, Outputs, NDArray[Any]], State]
    finish: Callable[[State], float]
    word: str = ""
    unit: str = "none"
    contract: Contract = ANYTHING
    outputs: tuple[int, ...] | None = (0,)
    start: Callable[[], State] = dict
    merge: Callable[[State, State], State] = add_states
    examples: Callable[[Outputs, NDArray[Any]], NDArray[Any]] | None = None
    interval: Callable[[State], tuple[float, float] | None] = unknown_interval
    default: bool = False
    accompanies: tuple[str, ...] = ()
    reconstruction: Reconstruction | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("higher", "lower", None):
            raise InputError(
                f"metric {self.name}: direction is {self.direction!r}: expected 'higher' or 'lower'",
                field="direction",
                expected=("higher", "lower"),
                got=self.direction,
            )
        if self.unit not in UNITS:
            raise InputError(
                f"metric {self.name}: unit is {self.unit!r}: expected one of {', '.join(UNITS)}",
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
        word: str = "",
        direction: Direction | None = None,
        unit: str = "none",
    ) -> "Metric":
        """Return a metric that keeps all outputs and labels and calls `function` once with them.

        Args:
            function: (outputs, labels) -> float. It gets copies: the real numbers of the one output, (n, ...), or a
                tuple of them if the model has several.
            name: `function.__name__` if empty.
            help: The first line of the function's docstring if empty.
            word: How reports write the name.
            direction: Which values are better; `function.direction` if None.
            unit: A key of `UNITS`.

        Raises:
            InputError: `function` cannot be called, or direction or unit is none of those.
        """
        if not callable(function):
            raise InputError(
                f"metric {function!r}: expected a name, a Metric or a function of outputs and labels",
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
            word=word,
            direction=direction or getattr(function, "direction", None),
            unit=unit,
            outputs=None,
            update=update,
            finish=finish,
            merge=concatenate_states,
        )

    def select(self, outputs: Outputs) -> Outputs:
        """Return those of a model's outputs that the metric looks at."""
        if self.outputs is None:
            return outputs
        self.check_outputs(len(outputs))
        return tuple(outputs[index] for index in self.outputs)

    def check_outputs(self, count: int) -> None:
        """Raise InputError if the metric looks at an output that a model with `count` outputs does not have."""
        if self.outputs is not None and max(self.outputs) >= count:
            raise InputError(
                f"metric {self.name} looks at output {max(self.outputs)}, the model has {count}",
                field="outputs",
                expected=self.outputs,
                got=count,
            )

    def state_of(self, outputs: Outputs, labels: NDArray[Any]) -> State:
        """Return the state of these examples: outputs of the model, (n, ...) each, and their labels.

        Raises:
            InputError: They do not satisfy the contract, or the metric itself fails.
        """
        chosen = tuple(_read_only(output) for output in self.select(outputs))
        labels = _read_only(labels)
        self.contract.check(chosen, labels)
        return self._call(self.update, self.start(), chosen, labels)

    def value_of(self, state: State) -> float:
        """Return the number that a state stands for.

        Raises:
            InputError: The metric fails, or its result is not one finite number.
        """
        result = self._call(self.finish, state)
        kind, field = type(result).__name__, "metric"
        try:
            value = float(result)
        except OverflowError as error:
            raise InputError(
                f"metric {self.name} returned a {kind} beyond the largest float: expected a number",
                field=field,
                expected="a finite number",
                got=kind,
            ) from error
        except (TypeError, ValueError) as error:
            raise InputError(
                f"metric {self.name} returned {kind} {result!r}: expected one number",
                field=field,
                expected="a finite number",
                got=result,
            ) from error
        if not np.isfinite(value):
            raise InputError(
                f"metric {self.name} returned {value}: expected a finite number",
                field=field,
                expected="a finite number",
                got=value,
            )
        return value

    def compute(self, outputs: Outputs, labels: NDArray[Any]) -> float:
        """Return the number for all of these examples at once; raises InputError as `state_of` and `value_of` do."""
        return self.value_of(self.state_of(outputs, labels))

    def facts(self) -> dict[str, Any]:
        """Return what a record says about the metric, as JSON values."""
        return {"word": self.word or self.name, "direction": self.direction, "unit": self.unit}

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except TfqError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"metric {self.name} failed: {_with_its_line(error)}", field="metric", got=type(error).__name__
            ) from error


def as_metric(metric: Metric | str | MetricFunction | None) -> Metric | None:
    """Return the metric that is asked for: an object, a registered name or a function; None for None and "".

    Raises:
        InputError: No metric has this name, or it is none of these.
    """
    if metric is None or metric == "":
        return None
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return registry.get(Metric, metric, field="evaluation.metric")
    return Metric.from_function(metric)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _with_its_line(error: BaseException) -> str:
    """Return the error and the line of the user's own file that it comes from, if it comes from one."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    file = __file__ if last is None else last.tb_frame.f_code.co_filename
    # A call that does not fit the function fails in this file.
    is_theirs = file != __file__ and not file.startswith("<")
    place = f" ({Path(file).name}, line {last.tb_lineno})" if last is not None and is_theirs else ""
    return f"{type(error).__name__}: {error}{place}"

# SPDX-License-Identifier: Apache-2.0
"""Search the cheapest conversion within an accuracy budget: chosen on validation data, reported on test data."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfq import artifacts, auditing, registry
from tfq.analysis import op_sensitivity
from tfq.artifacts import content_of
from tfq.backends.scratch import scratch_directory
from tfq.config import BenchmarkConfig, CalibrationConfig, ConversionConfig, SearchConfig
from tfq.config.base import check_fraction
from tfq.data import AnySplit, as_split, input_specs, representative_samples, stratified
from tfq.errors import RequirementError, TfqError, warn
from tfq.evaluation import benchmark_models
from tfq.evaluation.metric import BOUNDED_UNITS, Metric, as_metric
from tfq.evaluation.metric_text import score_text
from tfq.ptq import kept_moments
from tfq.ptq.calibration import calibrate
from tfq.requirement import ROUNDING, at_most
from tfq.search.assignment import (
    LevelTable,
    Solver,
    best_assignment,
    check_solver,
    fit_assignment,
    greedy_assignment,
)
from tfq.search.criterion import Criterion, choose_criterion, metric_criterion
from tfq.search.mixed_precision import (
    BASE_LEVEL,
    LEVELS,
    LevelMeasurement,
    available_levels,
    check_costs,
    cost_bounds,
    costs_key,
    costs_of,
)
from tfq.search.record import (
    Candidate,
    CandidateResult,
    ParetoPoint,
    SearchResult,
    difference_text,
)
from tfq.search.sample import Sample
from tfq.store import StageStore
from tfq.typing import Data, MetricFunction, PathOrBytes

TECHNIQUES = (
    ("bias_correction",),
    ("cross_layer_equalization", "bias_correction"),
    ("gptq", "bias_correction"),
    ("cross_layer_equalization", "gptq", "bias_correction"),
    ("gptq", "reconstruction"),
)


def methods(config: SearchConfig) -> Iterator[Candidate]:
    """Yield the first candidates, which differ in the calibration method."""
    for method in dict.fromkeys((CalibrationConfig().method, *config.methods)):
        yield Candidate(name=method, kind="calibration", method=method)


def techniques(method: str) -> Iterator[Candidate]:
    """Yield the candidates that add post-training techniques to `method`."""
    for techniques in TECHNIQUES:
        yield Candidate(
            name=f"{method}, {', '.join(techniques)}", kind="techniques", method=method, techniques=techniques
        )


def mixed(best: Candidate, config: SearchConfig, layers: int, quantizer: str) -> Iterator[Candidate]:
    """Yield the last candidates: the best one with one, two, four ... layers in another scheme.

    Args:
        best: The best candidate so far.
        config: The search space.
        layers: The number of layers with weights.
        quantizer: "litert" tries int16 and then float for the same layers; "tensorflow" only supports float.
    """
    count = 1
    while count <= min(config.max_mixed_layers, layers):
        for scheme in ("int16", "float") if quantizer == "litert" else ("float",):
            yield Candidate(
                name=f"{best.name}, {count} in {scheme}",
                kind="mixed",
                method=best.method,
                techniques=best.techniques,
                layers=count,
                scheme=scheme,
            )
        count *= 2


SOLVERS: dict[str, Solver] = {"ilp": best_assignment, "greedy": greedy_assignment}
NOT_TIMED = "an inference was not timed"
_MODEL = "model.tflite"
_TIMED_RUNS, _TIMED_SECS = 200, 0.5


def find_int8(
    floating: PathOrBytes,
    train: Data,
    validation: Data,
    test: Data,
    config: SearchConfig | None = None,
    *,
    conversion: ConversionConfig | None = None,
    metric: str | Metric | MetricFunction | None = None,
    store: StageStore | None = None,
    progress: Callable[[str], object] = lambda line: None,
) -> SearchResult:
    """Search for the cheapest int8 flatbuffer that stays within `config.budget`, without training.

    Candidates are tried in order of their cost: calibration methods, then post-training techniques on the best of them,
    then the most sensitive layers in int16 (if `conversion.quantizer` supports it) or float. The first candidate within
    the budget is chosen, and the search ends there unless `config.full` is set. Only the chosen candidate's collapsed
    outputs are warnings; those of the others are in the result.

    With `config.pareto_points`, all calibration methods and techniques are tried, even if one is within the budget
    before. Layers then get their own levels: each level of each layer is measured, an integer program assigns levels
    for several sizes of the file, and so does a greedy method. All these files are converted and compared. The most
    accurate one within the budget is chosen, or the smallest one if the budget bounds no cost.

    Examples:
        >>> result = tfq.find_int8("model_float32.tflite", (x_train, y_train), (x_val, y_val), (x_test, y_test))
        >>> pathlib.Path("model_int8.tflite").write_bytes(result.content)

    Args:
        floating: The float flatbuffer: its bytes or its path.
        train: Examples for calibration, for the techniques and to rank layers, in any form that `evaluate` accepts.
        validation: Examples on which candidates are compared. Labels are class numbers or one-hot rows. If the model
            has several outputs, they belong to the one that predicts a class. Without such labels, candidates are
            compared with the float model: by its class, or else by the SQNR of its outputs (see `Criterion`).
        test: Examples on which only the chosen candidate is evaluated.
        config: Budget and search space; None means `SearchConfig()`.
        conversion: Settings that all candidates share; None means `ConversionConfig()`.
        metric: Replaces `config.metric`: a name, a `Metric` or a function(outputs, labels), with a direction. The bound
            `config.budget.max_accuracy_drop` is in its unit; for a metric where lower is better, it is the largest
            increase.
        store: Keeps the result of each candidate, so that an interrupted search resumes. None keeps nothing. The
            results of a metric that is not registered are not kept, because its code may change.
        progress: Called with one line of text after each candidate.

    Returns:
        The candidates in the order in which they were tried, and the chosen one with its flatbuffer.

    Raises:
        InputError: The model is not a float flatbuffer, the data has no class labels, SciPy is missing for
            `config.pareto_points`, or the quantizer does not have one of `config.levels`.
        BackendError: The budget bounds instructions, and its backend cannot count them here.
    """
    config, conversion = config or SearchConfig(), conversion or ConversionConfig()
    if config.pareto_points:
        check_solver()
        available_levels(conversion, config.levels)
    check_costs(config.budget)
    floating = auditing.float_source(content_of(floating, "floating", "a float .tflite file"))
    training, choosing, testing = as_split(train, split="train"), as_split(validation, split="val"), as_split(test)
    if conversion.sampling == "by_class":
        training = stratified(training, conversion.num_calibration_samples)
        for note in training.notes:
            warn(note)
        conversion = dataclasses.replace(conversion, sampling="first")
    chosen = as_metric(config.metric if metric is None else metric)
    if chosen is None:
        criterion = choose_criterion(floating, [choosing, testing], config.budget.min_sqnr_db)
    else:
        criterion = metric_criterion(chosen, floating, [choosing, testing], config.budget.min_sqnr_db)
    if criterion.unit in BOUNDED_UNITS:
        check_fraction("search.budget.max_accuracy_drop", config.budget.max_accuracy_drop)
    if criterion.note:
        warn(f"search: {criterion.note}")
    is_registered = chosen is None or registry.entries(Metric).get(chosen.name) is chosen
    with contextlib.ExitStack() as stack:
        if store is None or not is_registered:
            store = StageStore(stack.enter_context(scratch_directory()))
        stack.enter_context(kept_moments())
        search = _Search(floating, criterion, training, choosing, config, conversion, store, progress)
        # Levels start from the best candidate, and 4-bit weights need GPTQ: all methods and techniques are tried first.
        try_all = config.full or config.pareto_points > 0
        for candidates, is_full in (
            (search.methods, try_all),
            (search.techniques, try_all),
            (search.mixed, config.full),
        ):
            if search.within_budget and not is_full:
                break
            for candidate in candidates():
                search.try_candidate(candidate)
                if search.within_budget and not is_full:
                    break
        if config.pareto_points:
            search.assign_levels()
        return search.result(testing)


class _Search:
    """The state of a search."""

    def __init__(
        self,
        floating: bytes,
        criterion: Criterion,
        train: AnySplit,
        validation: AnySplit,
        config: SearchConfig,
        conversion: ConversionConfig,
        store: StageStore,
        progress: Callable[[str], object],
    ) -> None:
        self._floating, self._criterion, self._config, self._conversion = floating, criterion, config, conversion
        self._train, self._validation, self._store, self._progress = train, validation, store, progress
        self._basis = {
            "model": artifacts.sha256(floating),
            "train": train.sha256(),
            "validation": validation.sha256(),
            "conversion": conversion.to_dict(),
            "criterion": criterion.to_dict(),
        }
        self._float_sample = criterion.sample(floating, floating, validation)
        self._contents: dict[str, bytes] = {}
        self.results: list[CandidateResult] = []
        self._levels: LevelTable | None = None
        self._points: list[ParetoPoint] = []
        self._advice: list[str] = []

    @property
    def within_budget(self) -> list[CandidateResult]:
        """The candidates so far that are within the budget."""
        return [item for item in self.results if not item.missed]

    def methods(self) -> Iterator[Candidate]:
        """Yield the candidates of `methods`."""
        return methods(self._config)

    def techniques(self) -> Iterator[Candidate]:
        """Yield the candidates of `techniques` for the best method."""
        return techniques(self._best().candidate.method)

    def mixed(self) -> Iterator[Candidate]:
        """Yield the candidates of `mixed` for the best candidate."""
        best = self._best().candidate
        layers = len(self._ranked()) if self._config.max_mixed_layers else 0
        return mixed(best, self._config, layers, self._conversion.quantizer)

    def try_candidate(self, candidate: Candidate) -> CandidateResult | None:
        """Convert with the settings of a candidate and measure it, or load the stored measurements.

        Returns:
            The measurements, which are also added to `results`; None if the conversion is not possible, or a cost of a
            file with layers in other formats cannot be measured.
        """
        optional = candidate.kind in ("mixed", "levels")
        layers = tuple(self._ranked()[: candidate.layers]) if candidate.layers else tuple(dict(candidate.levels))
        conversion, budget = candidate.conversion(self._conversion, layers), self._config.budget

        def make(directory: Path) -> dict[str, Any]:
            from tfq.conversion import convert_with_record

            start = time.monotonic()
            try:
                built = convert_with_record(
                    self._floating, self._train, conversion, remedies=False, warn_if_collapsed=False
                )
            except TfqError as error:
                if not optional:
                    raise
                return {"impossible": str(error)}  # ops of a layer do not support the scheme
            secs, content = time.monotonic() - start, built.content
            problems = built.verification.collapsed if built.verification else ()
            if any(item.kind == "does_not_run" for item in problems):
                warn(problems[0].message)  # the result does not contain this candidate
                return {"impossible": problems[0].message}
            try:
                costs, latency = costs_of(content, budget), self._latency_ratio(content)
            except TfqError as error:
                if not optional:
                    raise
                return {"impossible": str(error)}
            artifacts.write_bytes(directory / _MODEL, content)
            return {
                "collapsed": [item.message for item in problems],
                "secs": round(secs, 2),
                "sample": self._criterion.sample(content, self._floating, self._validation).to_dict(),
                "agreement": self._agreement(content),
                "latency_ratio": latency,
                "costs": {key: value for key, value in costs.items() if key != "bytes"},
            }

        inputs = {**self._basis, "candidate": conversion.to_dict(), "costs": costs_key(budget)}
        stored = self._store.run(f"search: {candidate.name}", inputs, make)
        details = stored.details
        if "impossible" in details:
            self._progress(f"{candidate.name}: not possible: {details['impossible']}")
            return None
        content = (stored.directory / _MODEL).read_bytes()
        sample = Sample.from_dict(details["sample"])
        result = CandidateResult(
            candidate=candidate,
            accuracy=sample.value,
            agreement=details["agreement"],
            against_float=sample.minus(self._float_sample),
            model_bytes=len(content),
            latency_ratio=details["latency_ratio"],
            secs=details["secs"],
            layers=layers,
            missed=(),
            collapsed=tuple(details["collapsed"]),
            costs=details["costs"],
        )
        self._contents[candidate.name] = content
        self.results.append(_judged(result, self._config, self._criterion))
        last, unit = self.results[-1], self._criterion.unit
        self._progress(
            f"{candidate.name}: {score_text(unit, last.accuracy)}, {difference_text(last.against_float, unit)} against "
            "float" + (f": {'; '.join(last.short_missed)}" if last.missed else ": within the budget")
        )
        return last

    def result(self, test: AnySplit) -> SearchResult:
        """Return the result. Only here is the test split run."""
        holds = bool(self.within_budget)
        chosen = self._chosen()
        for message in chosen.collapsed:
            warn(message)
        samples = {
            name: self._criterion.sample(content, self._floating, test)
            for name, content in {
                "float": self._floating,
                "plain": self._contents[self.results[0].name],
                "chosen": self._contents[chosen.name],
            }.items()
        }
        against_float = samples["chosen"].minus(samples["float"])
        return SearchResult(
            candidates=tuple(self.results),
            chosen=chosen,
            holds=holds,
            validation=self._float_sample.num_examples,
            float_accuracy=self._float_sample.value,
            test=samples["chosen"].num_examples,
            test_accuracy=samples["chosen"].value,
            test_float_accuracy=samples["float"].value,
            test_against_float=against_float,
            test_against_plain=samples["chosen"].minus(samples["plain"]),
            advice=(
                *self._advice,
                *_advice(holds, chosen, -self._criterion.sign * against_float.difference, self._config),
            ),
            criterion=self._criterion,
            points=tuple(self._points),
            front=tuple(self._front()) if self._points else (),
            levels=self._levels,
            content=self._contents[chosen.name],
        )

    def _agreement(self, content: bytes) -> float:
        """Return the fraction of examples with the float model's class, or that are right if no output has classes."""
        return float(self._criterion.similarity().right(content, self._floating, self._validation).mean())

    def _best(self, results: Sequence[CandidateResult] = ()) -> CandidateResult:
        """Return the most accurate of `results` (all if empty).

        Among equals, it is the one that agrees more with float, then the first.
        """
        return max(results or self.results, key=lambda item: (self._criterion.sign * item.accuracy, item.agreement))

    def _chosen(self) -> CandidateResult:
        """Return the candidate that the search recommends, see `SearchResult.chosen`."""
        within = self.within_budget
        if not self._points:
            return within[0] if within else self._best()
        if within and not cost_bounds(self._config.budget):
            return min(within, key=lambda item: item.model_bytes)
        return self._best(within or [item for item in self.results if _costs_hold(item)])

    def _front(self) -> Iterator[str]:
        """Yield the candidates that no other one beats in both size and score, the smallest first."""
        best = -math.inf
        for item in sorted(self.results, key=lambda item: (item.model_bytes, -self._criterion.sign * item.accuracy)):
            if not item.collapsed and self._criterion.sign * item.accuracy > best:
                best = self._criterion.sign * item.accuracy
                yield item.name

    def assign_levels(self) -> None:
        """Give the layers of the best candidate their own levels, for each size of `search.pareto_points`."""
        base = self._best([item for item in self.results if item.candidate.kind in ("calibration", "techniques")])
        measurement = self._level_measurement(base)
        layers, levels = self._ranked(), available_levels(self._conversion, self._config.levels)
        self._levels = table = measurement.table(layers, levels, self._progress)
        if table.impossible:
            pairs = ", ".join(table.impossible)
            self._progress(f"not possible: {pairs}: {next(iter(table.impossible.values()))}")
        bounds = cost_bounds(self._config.budget)
        try:
            smallest = best_assignment(table, bounds, minimize="bytes")
        except RequirementError as error:
            warn(str(error))
            self._advice.append(str(error))
            return
        unlimited = {name: bound for name, bound in bounds.items() if name != "bytes"}
        most = max(base.model_bytes, table.costs(best_assignment(table, unlimited))["bytes"])
        tried = self._try_levels(smallest, base, f"{base.name}, levels for the smallest file")
        least = tried.model_bytes if tried else table.costs(smallest)["bytes"]
        most = max(least, min(most, bounds.get("bytes", math.inf)))
        for limit in np.unique(np.geomspace(most, least, self._config.pareto_points).round().astype(int)).tolist():
            by_solver, within = {}, {**bounds, "bytes": limit}
            for name, solver in SOLVERS.items():
                item = self._fitting(table, solver, within, base, f"at most {limit:,} bytes, {name}")
                # The table may predict more than the smallest file has.
                if item is None and tried and tried.model_bytes <= limit and _costs_hold(tried):
                    item = tried
                if item is not None:
                    by_solver[name] = item
            if self._config.refinements and by_solver:
                by_solver["refined"] = self._refined(list(by_solver.values()), measurement, within, base)
            fitting = [item for item in self.results if item.model_bytes <= limit and _costs_hold(item)]
            if fitting:
                names = {name: item.name for name, item in by_solver.items()}
                self._points.append(ParetoPoint(max_bytes=limit, best=self._best(fitting).name, by_solver=names))

    def _refined(
        self,
        starts: Sequence[CandidateResult],
        measurement: LevelMeasurement,
        bounds: Mapping[str, float],
        base: CandidateResult,
    ) -> CandidateResult:
        """Return the best of `starts`, improved by effects of levels that are measured around it.

        The files are compared by their distortion on the examples that the effects are measured on.
        """

        def distortion(item: CandidateResult) -> float:
            return measurement.distortion(self._contents[item.name])

        layers, levels = self._ranked(), available_levels(self._conversion, self._config.levels)
        best = min(starts, key=distortion)
        least = distortion(best)
        for number in range(self._config.refinements):
            table = measurement.table(layers, levels, self._progress, around=dict(best.candidate.levels))
            name = f"at most {bounds['bytes']:,} bytes, refined {number + 1} times"
            changed = self._fitting(table, best_assignment, bounds, base, name)
            if changed is None or (found := distortion(changed)) >= least:
                break
            best, least = changed, found
        return best

    def _fitting(
        self, table: LevelTable, solver: Solver, bounds: Mapping[str, float], base: CandidateResult, name: str
    ) -> CandidateResult | None:
        """Return the candidate of a solver whose file is within the bounds; None if there is none."""
        tried: list[CandidateResult] = []

        def measure(levels: Mapping[str, str]) -> dict[str, float] | None:
            number = f", attempt {len(tried) + 1}" if tried else ""
            item = self._try_levels(levels, base, f"{base.name}, levels for {name}{number}")
            if item is None:
                return None
            tried.append(item)
            latency = math.inf if item.latency_ratio is None else item.latency_ratio
            return {**item.costs, "bytes": item.model_bytes, "latency_ratio": latency}

        place = fit_assignment(table, solver, bounds, measure)
        return None if place is None else tried[place]

    def _try_levels(self, levels: Mapping[str, str], base: CandidateResult, name: str) -> CandidateResult | None:
        """Try {layer: level}, or return the candidate that has these levels already."""
        changed = tuple((layer, level) for layer, level in levels.items() if level != BASE_LEVEL)
        if not changed:
            return base
        candidate = dataclasses.replace(base.candidate, name=name, kind="levels", levels=changed)
        known = (item for item in self.results if dataclasses.replace(item.candidate, name=name) == candidate)
        return next(known, None) or self.try_candidate(candidate)

    def _level_measurement(self, base: CandidateResult) -> LevelMeasurement:
        conversion = base.candidate.conversion(self._conversion, ())
        return LevelMeasurement(
            floating=self._floating,
            base=self._contents[base.name],
            train=self._train,
            examples=self._train.take(self._config.sensitivity_examples),
            conversion=conversion,
            costs=self._level_costs,
            store=self._store,
            basis={
                **self._basis,
                "examples": self._config.sensitivity_examples,
                "costs": costs_key(self._config.budget),
            },
        )

    def _level_costs(self, content: bytes) -> dict[str, float]:
        budget = self._config.budget
        costs = costs_of(content, budget)
        if budget.max_latency_ratio:
            ratio = self._latency_ratio(content)
            if ratio is None:
                raise TfqError(f"search.budget.max_latency_ratio: {NOT_TIMED}")
            costs["latency_ratio"] = ratio
        return costs

    def _ranked(self) -> list[str]:
        """Return the layers with weights, the most sensitive first."""

        def make(directory: Path) -> dict[str, Any]:
            count = self._config.sensitivity_examples
            samples = representative_samples(self._train, input_specs(self._floating), count).samples
            result = op_sensitivity(self._floating, calibrate(self._floating, samples), samples)
            return {"layers": list(dict.fromkeys(item.layer for item in result if item.weights))}

        inputs = {**self._basis, "examples": self._config.sensitivity_examples}
        return self._store.run("search: sensitivity", inputs, make).details["layers"]

    def _latency_ratio(self, content: bytes) -> float | None:
        """Return the time of an inference divided by that of the first candidate; both are timed alternately."""
        if not self.results:
            return 1.0
        models = {"plain": self._contents[self.results[0].name], "this": content}
        timed = benchmark_models(models, BenchmarkConfig(ops=False, num_runs=_TIMED_RUNS, min_secs=_TIMED_SECS))
        return next((ratio.ratio for ratio in timed.ratios if ratio.against == "this"), None)


def _costs_hold(result: CandidateResult) -> bool:
    """Check whether a candidate meets all bounds of the budget except that on the accuracy, and did not collapse."""
    return not result.collapsed and all(item.holds for item in result.requirements if item.name != "max_accuracy_drop")


def _judged(result: CandidateResult, config: SearchConfig, criterion: Criterion) -> CandidateResult:
    budget, latency = config.budget, result.latency_ratio
    drop = 0.0 - criterion.sign * result.against_float.difference
    bound = budget.max_accuracy_drop
    sentence = f"{drop:.4g} worse than float, at most {bound:g} allowed"
    if criterion.unit == "fraction":
        sentence = f"{100 * drop:.2f} points below float, at most {100 * bound:g} allowed"
    requirements = {sentence: at_most("max_accuracy_drop", bound, drop)}
    if budget.max_bytes:
        sentence = f"{result.model_bytes:,} bytes, at most {budget.max_bytes:,} allowed"
        requirements[sentence] = at_most("max_bytes", budget.max_bytes, result.model_bytes)
    if budget.max_latency_ratio:
        measured = NOT_TIMED if latency is None else f"{latency:.2f}x the time"
        sentence = f"{measured}, at most {budget.max_latency_ratio:g}x allowed"
        requirements[sentence] = at_most("max_latency_ratio", budget.max_latency_ratio, latency, NOT_TIMED)
    for name, words in (("arena_bytes", "bytes of activations at a time"), ("instructions", "instructions")):
        if bound := getattr(budget, f"max_{name}"):
            value = result.costs[name]
            requirements[f"{value:,.0f} {words}, at most {bound:,} allowed"] = at_most(f"max_{name}", bound, value)
    missed = (
        *(sentence for sentence, requirement in requirements.items() if not requirement.holds),
        *(f"collapsed: {message}" for message in result.collapsed),
    )
    return dataclasses.replace(result, missed=missed, requirements=tuple(requirements.values()))


def _advice(holds: bool, chosen: CandidateResult, drop: float, config: SearchConfig) -> Iterator[str]:
    if not holds:
        yield (
            f"no candidate is within the budget; the best one has {'; '.join(chosen.short_missed)}. Train the model "
            "quantization-aware (tfq compress) to regain accuracy"
        )
    elif drop > config.budget.max_accuracy_drop + ROUNDING:
        yield (
            "on the test split the accuracy drops by more than the budget allows, although it did not on the "
            "validation split: use a larger validation split or a tighter budget"
        )
    if chosen.candidate.levels:
        for level in LEVELS.values():
            layers = [layer for layer, name in chosen.candidate.levels if name == level.name]
            allow = f": list them in audit.{level.audit_field} for tfq audit" if level.audit_field else ""
            if layers:
                yield f"layers in {level.name}: {', '.join(layers)}{allow}"
    elif chosen.layers:
        scheme = chosen.candidate.scheme
        yield f"layers in {scheme}: {', '.join(chosen.layers)}: list them in audit.allow_{scheme} for tfq audit"

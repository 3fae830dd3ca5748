# SPDX-License-Identifier: Apache-2.0
"""Search the cheapest candidate that keeps an accuracy budget: chosen on validation data, reported on test data."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfq import artifacts, auditing, tflite
from tfq.analysis import op_sensitivity
from tfq.artifacts import content_of
from tfq.config import BenchmarkConfig, CalibrationConfig, ConversionConfig, SearchConfig
from tfq.data import AnySplit, as_split, input_specs, representative_samples
from tfq.errors import InputError, TfqError
from tfq.evaluation import benchmark_models
from tfq.evaluation.paired import PairedDifference, paired_difference
from tfq.ptq.calibration import calibrate
from tfq.requirement import ROUNDING, at_most
from tfq.search.record import (
    Candidate,
    CandidateResult,
    SearchResult,
    classes_of,
    labels_of,
    packed,
    points,
    scored_output,
    unpacked,
)
from tfq.store import StageStore
from tfq.typing import Data, PathOrBytes

TECHNIQUES = (
    ("bias_correction",),
    ("cross_layer_equalization", "bias_correction"),
    ("gptq", "bias_correction"),
    ("cross_layer_equalization", "gptq", "bias_correction"),
)


def methods(config: SearchConfig) -> Iterator[Candidate]:
    """The first candidates: calibration alone."""
    for method in dict.fromkeys((CalibrationConfig().method, *config.methods)):
        yield Candidate(name=method, kind="calibration", method=method)


def techniques(method: str) -> Iterator[Candidate]:
    """Yield the candidates that add post-training techniques to `method`."""
    for techniques in TECHNIQUES:
        yield Candidate(
            name=f"{method}, {', '.join(techniques)}", kind="techniques", method=method, techniques=techniques
        )


def mixed(best: Candidate, config: SearchConfig, layers: int, quantizer: str) -> Iterator[Candidate]:
    """The last: one, two, four ... of `layers` layers in another scheme, on top of the best so far.

    int16 and then float, where the quantizer has int16; float where it has not.
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
    store: StageStore | None = None,
    progress: Callable[[str], object] = lambda line: None,
) -> SearchResult:
    """Search for the cheapest int8 flatbuffer that stays within `config.budget`, without training.

    Candidates are tried in order of their cost: calibration methods, then post-training techniques on the best of them,
    then the most sensitive layers in int16 (if `conversion.quantizer` supports it) or float. The first candidate within
    the budget is chosen, and the search ends there unless `config.full` is set.

    Examples:
        >>> result = tfq.find_int8("model_float32.tflite", (x_train, y_train), (x_val, y_val), (x_test, y_test))
        >>> pathlib.Path("model_int8.tflite").write_bytes(result.content)

    Args:
        floating: The float flatbuffer: its bytes or its path.
        train: Labeled examples for calibration, for the techniques and to rank layers, in any form that `evaluate`
            accepts. Labels are class numbers or one-hot rows. If the model has several outputs, they belong to the one
            that predicts a class.
        validation: Labeled examples on which candidates are compared.
        test: Labeled examples on which only the chosen candidate is evaluated.
        config: Budget and search space; None means `SearchConfig()`.
        conversion: Settings that all candidates share; None means `ConversionConfig()`.
        store: Keeps the result of each candidate, so that an interrupted search resumes. None keeps nothing.
        progress: Called with one line of text after each candidate.

    Returns:
        The candidates in the order in which they were tried, and the chosen one with its flatbuffer.

    Raises:
        InputError: The model is not a float32 flatbuffer, or the data has no class labels.
    """
    config, conversion = config or SearchConfig(), conversion or ConversionConfig()
    floating = content_of(floating, "floating", "a float .tflite file")
    if auditing.audit_model(floating).scheme != "float32":
        raise InputError(
            "search: expected a float32 .tflite, which int8 ones can be made of", field="model", expected="float32"
        )
    training, choosing, testing = as_split(train, split="train"), as_split(validation, split="val"), as_split(test)
    output, parsed = scored_output(floating, choosing, "search"), tflite.read(floating)
    for split in (choosing, testing):
        labels_of(split, "search", parsed, output)
    with contextlib.ExitStack() as stack:
        if store is None:
            store = StageStore(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tfq-"))))
        search = _Search(floating, output, training, choosing, config, conversion, store, progress)
        for candidates in (search.methods, search.techniques, search.mixed):
            for candidate in candidates():
                search.take(candidate)
                if search.found and not config.full:
                    break
            if search.found and not config.full:
                break
        return search.result(testing)


class _Search:
    """A search under way."""

    def __init__(
        self,
        floating: bytes,
        output: int,
        train: AnySplit,
        validation: AnySplit,
        config: SearchConfig,
        conversion: ConversionConfig,
        store: StageStore,
        progress: Callable[[str], object],
    ) -> None:
        self._floating, self._output, self._config, self._conversion = floating, output, config, conversion
        self._train, self._validation, self._store, self._progress = train, validation, store, progress
        self._basis = {
            "model": artifacts.sha256(floating),
            "train": train.sha256(),
            "validation": validation.sha256(),
            "conversion": conversion.to_dict(),
        }
        self._float = classes_of(floating, validation, output)
        self._labels = labels_of(validation, "search", tflite.read(floating), output)
        self._right = self._float == self._labels
        self._contents: dict[str, bytes] = {}
        self.searched: list[CandidateResult] = []

    @property
    def found(self) -> list[CandidateResult]:
        """The candidates so far that keep the budget."""
        return [item for item in self.searched if not item.missed]

    def methods(self) -> Iterator[Candidate]:
        return methods(self._config)

    def techniques(self) -> Iterator[Candidate]:
        return techniques(self._best().candidate.method)

    def mixed(self) -> Iterator[Candidate]:
        best = self._best().candidate
        layers = len(self._ranked()) if self._config.max_mixed_layers else 0
        return mixed(best, self._config, layers, self._conversion.quantizer)

    def take(self, candidate: Candidate) -> None:
        """Convert by it and see what comes out, or recall what came out before."""
        layers = tuple(self._ranked()[: candidate.layers]) if candidate.layers else ()
        conversion = candidate.conversion(self._conversion, layers)

        def make(directory: Path) -> dict[str, Any]:
            from tfq.conversion import convert_with_record

            begin = time.monotonic()
            try:
                built = convert_with_record(self._floating, self._train, conversion, remedies=False)
            except TfqError as error:
                if candidate.kind != "mixed":
                    raise
                return {"impossible": str(error)}  # a layer whose ops have no such form
            secs, content = time.monotonic() - begin, built.content
            problems = built.verification.collapsed if built.verification else ()
            if any(item.kind == "does_not_run" for item in problems):
                return {"impossible": problems[0].message}
            artifacts.write_bytes(directory / _MODEL, content)
            classes = classes_of(content, self._validation, self._output)
            return {
                "collapsed": [item.message for item in problems],
                "secs": round(secs, 2),
                "right": packed(classes == self._labels),
                "agreement": float((classes == self._float).mean()),
                "latency_ratio": self._latency_ratio(content),
            }

        inputs = {**self._basis, "candidate": conversion.to_dict()}
        done = self._store.run(f"search: {candidate.name}", inputs, make)
        details = done.details
        if "impossible" in details:
            self._progress(f"{candidate.name}: cannot be made: {details['impossible']}")
            return
        content = (done.directory / _MODEL).read_bytes()
        right = unpacked(details["right"], self._labels.size)
        result = CandidateResult(
            candidate=candidate,
            accuracy=float(right.mean()),
            agreement=details["agreement"],
            against_float=paired_difference(right, self._right),
            model_bytes=len(content),
            latency_ratio=details["latency_ratio"],
            secs=details["secs"],
            layers=layers,
            missed=(),
            collapsed=tuple(details["collapsed"]),
        )
        self._contents[candidate.name] = content
        self.searched.append(_judged(result, self._config))
        last = self.searched[-1]
        self._progress(
            f"{candidate.name}: {last.accuracy:.2%}, {points(last.against_float)} against float"
            + (f": {'; '.join(last.missed)}" if last.missed else ": within the budget")
        )

    def result(self, test: AnySplit) -> SearchResult:
        """What was found; the test split is run here, and nowhere else."""
        holds = bool(self.found)
        chosen = self.found[0] if holds else self._best()
        labels = labels_of(test, "search", tflite.read(self._floating), self._output)
        right = {
            name: classes_of(content, test, self._output) == labels
            for name, content in {
                "float": self._floating,
                "plain": self._contents[self.searched[0].name],
                "chosen": self._contents[chosen.name],
            }.items()
        }
        against_float = paired_difference(right["chosen"], right["float"])
        return SearchResult(
            candidates=tuple(self.searched),
            chosen=chosen,
            holds=holds,
            validation=self._right.size,
            float_accuracy=float(self._right.mean()),
            test=labels.size,
            test_accuracy=float(right["chosen"].mean()),
            test_float_accuracy=float(right["float"].mean()),
            test_against_float=against_float,
            test_against_plain=paired_difference(right["chosen"], right["plain"]),
            advice=tuple(_advice(holds, chosen, against_float, self._config)),
            content=self._contents[chosen.name],
        )

    def _best(self) -> CandidateResult:
        """The most accurate so far; of equals the one that agrees more with float, then the first."""
        return max(self.searched, key=lambda item: (item.accuracy, item.agreement))

    def _ranked(self) -> list[str]:
        """Layers with weights, the most sensitive first."""

        def make(directory: Path) -> dict[str, Any]:
            count = self._config.sensitivity_examples
            samples = representative_samples(self._train, input_specs(self._floating), count).samples
            result = op_sensitivity(self._floating, calibrate(self._floating, samples), samples)
            return {"layers": list(dict.fromkeys(item.layer for item in result if item.weights))}

        inputs = {**self._basis, "examples": self._config.sensitivity_examples}
        return self._store.run("search: sensitivity", inputs, make).details["layers"]

    def _latency_ratio(self, content: bytes) -> float | None:
        """Time of an inference, to the first candidate's, both in turn."""
        if not self.searched:
            return 1.0
        models = {"plain": self._contents[self.searched[0].name], "this": content}
        timed = benchmark_models(models, BenchmarkConfig(ops=False, num_runs=_TIMED_RUNS, min_secs=_TIMED_SECS))
        return next((ratio.ratio for ratio in timed.ratios if ratio.against == "this"), None)


def _judged(result: CandidateResult, config: SearchConfig) -> CandidateResult:
    budget, drop, latency = config.budget, 0.0 - result.against_float.difference, result.latency_ratio
    asked = {
        f"{100 * drop:.2f} points below float, at most {100 * budget.max_accuracy_drop:g} wanted": at_most(
            "max_accuracy_drop", budget.max_accuracy_drop, drop
        )
    }
    if budget.max_bytes:
        sentence = f"{result.model_bytes:,} bytes, at most {budget.max_bytes:,} wanted"
        asked[sentence] = at_most("max_bytes", budget.max_bytes, result.model_bytes)
    if budget.max_latency_ratio:
        measured = NOT_TIMED if latency is None else f"{latency:.2f}x the time"
        sentence = f"{measured}, at most {budget.max_latency_ratio:g}x wanted"
        asked[sentence] = at_most("max_latency_ratio", budget.max_latency_ratio, latency, NOT_TIMED)
    missed = (
        *(sentence for sentence, requirement in asked.items() if not requirement.holds),
        *(f"collapsed: {message}" for message in result.collapsed),
    )
    return dataclasses.replace(result, missed=missed, requirements=tuple(asked.values()))


def _advice(
    holds: bool, chosen: CandidateResult, against_float: PairedDifference, config: SearchConfig
) -> Iterator[str]:
    if not holds:
        yield (
            f"no candidate keeps the budget; the best is {'; '.join(chosen.missed)}: quantization-aware train the "
            f"model "
            "(tfq compress), which continues from here"
        )
    elif -against_float.difference > config.budget.max_accuracy_drop + ROUNDING:
        yield (
            "on the test split it loses more than the budget allows, though not on the validation split: take a larger "
            "validation split, or a tighter budget"
        )
    if chosen.layers:
        scheme = chosen.candidate.scheme
        yield f"in {scheme}: {', '.join(chosen.layers)}: tfq audit wants them in audit.allow_{scheme}"

# SPDX-License-Identifier: Apache-2.0
"""The stages of a whole run, in order."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tfq import artifacts, evaluation, flatbuffer, report, stages
from tfq.config import RunConfig
from tfq.errors import InputError, RequirementError, RunnerError, TfqWarning
from tfq.provenance import record_of


class _Clock:
    """Times each stage of a run and remembers what it was skipped for."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def run(self, name: str, stage: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
        """The stage's value; its details go into its record."""
        start = time.perf_counter()
        value, details = stage()
        seconds = round(time.perf_counter() - start, 3)
        self.records.append({"name": name, "seconds": seconds, "skipped": None, "details": details})
        return value

    def skip(self, name: str, reason: str) -> None:
        """Records that a stage was left out, and why."""
        self.records.append({"name": name, "seconds": 0.0, "skipped": reason, "details": {}})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Made:
    """A flatbuffer of the run: what it is, the suffix of its file's name, its bytes."""

    name: str
    suffix: str
    content: bytes


def run_recipe(config: RunConfig, *, allow_code: bool = False) -> dict[str, Any]:
    """Everything that `config` says, into config.out; returns the record that report.json holds.

    Trains a model that is named, or loads one from a file; makes its float32 and int8 flatbuffers, prunes and
    quantization-aware trains it and makes that int8 flatbuffer; audits and evaluates all three; writes the reports.
    Raises InputError before any work where the config cannot be carried out. A missed requirement does not raise
    here: the record carries the numbers, and `require(record)` raises.
    """
    out = artifacts.make_out_dir(config.out)
    name = stages.model_name(config)
    _check(config)
    clock = _Clock()
    results: list[dict[str, Any]] = []
    failure = None
    with _remembered_warnings() as told:
        model = _load_or_train(config, clock, allow_code)
        made, sparsity = _flatbuffers(model, config, clock)
        files = {each.name: f"{name}_{each.suffix}.tflite" for each in made}
        for each in made:
            artifacts.write_bytes(out / files[each.name], each.content)
        try:
            _examine(made, config, clock, results)
        except RunnerError as error:  # the flatbuffers stand; what was found out of them is reported all the same
            failure = error
            told.append(f"the run ended early: {error}")
    record = record_of(
        "run",
        config,
        sha256=_merged_hashes(clock.records, results),
        stages=clock.records,
        models=[
            # Fewer results than flatbuffers, where the run ended early.
            {"name": each.name, "file": files[each.name], **result}
            for each, result in zip(made, results, strict=False)
        ],
        sparsity=sparsity,
        warnings=list(dict.fromkeys(told)),
    )
    report.write_report(record, out)
    if failure:
        raise failure
    return record


def _check(config: RunConfig) -> None:
    """Raises InputError, before any work, on settings that a run would ignore, and on runners that there are not."""
    if config.conversion.scheme != "int8":
        raise InputError("conversion.scheme: a run makes the float32 and the int8 flatbuffer: leave it at int8")
    if config.evaluation.reference:
        raise InputError("evaluation.reference: a run compares with its own float32 flatbuffer: leave it out")
    evaluation.check_runners(config.evaluation)


def _merged_hashes(records: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The hashes of all stages in one: of --model, and of every split by its name."""
    merged: dict[str, Any] = {"model": None, "data": {}}
    for hashes in [stage["details"].pop("sha256", None) for stage in records]:
        if hashes:
            merged = {"model": hashes["model"], "data": merged["data"] | hashes["data"]}
    for result in results:
        merged["data"] |= result["sha256"]["data"]
    return merged


def require(record: dict[str, Any]) -> None:
    """Raise RequirementError that lists all that the record of a run misses of what its config requires."""
    config = RunConfig.from_dict(record["config"])
    missed = []
    for model in record["models"]:
        if model["name"] == "float":
            continue
        if config.audit.require and not model["audit"]["ok"]:
            missed.append(
                f"{model['file']} is not {config.audit.require}: "
                f"tfq audit --model={config.out}/{model['file']} tells why"
            )
        missed += [
            f"{model['file']}: {reason}"
            for reason in evaluation.missed_requirements(model["evaluation"], config.evaluation.require)
        ]
    if missed:
        raise RequirementError("; ".join(missed))


def _load_or_train(config: RunConfig, clock: _Clock, allow_code: bool) -> Any:
    if stages.is_file(config.model):
        clock.skip("train", f"{config.model} is a file: its weights are taken as they are")
        model = clock.run("load", lambda: (stages.load(config, allow_code=allow_code), {}))
        stages.check_compressible(model, config)
        return model
    if config.training.keras == "keras" and (config.compression.prune.enabled or config.compression.qat.enabled):
        raise InputError("training.keras=keras: pruning and QAT take tf_keras models: switch both off, or use tf_keras")
    model = clock.run("train", lambda: stages.train(config))
    stages.save_keras(model, Path(config.out) / f"{stages.model_name(config)}.keras")
    return model


def _flatbuffers(model: Any, config: RunConfig, clock: _Clock) -> tuple[list[_Made], dict[str, float]]:
    """The float, PTQ int8 and compressed int8 flatbuffers, and the sparsity of the compressed model's layers."""
    floating, integer = _with_scheme(config, "float32"), _with_scheme(config, "int8")
    traced = stages.trace_once(model, config)
    made = [
        _Made(
            name="float",
            suffix="float32",
            content=clock.run("convert to float32", lambda: stages.convert(traced, floating)),
        ),
        _Made(
            name="ptq_int8",
            suffix="int8",
            content=clock.run("convert to int8", lambda: stages.convert(traced, integer)),
        ),
    ]
    if not (config.compression.prune.enabled or config.compression.qat.enabled):
        clock.skip("compress", "neither pruning nor QAT is asked for")
        return made, {}
    if isinstance(model, bytes):
        clock.skip("compress", "a .tflite cannot be trained: pruning and QAT want the Keras model")
        return made, {}
    suffix = stages.compression_suffix(config)
    compressed = clock.run(f"compress ({suffix.replace('_', ', ')})", lambda: stages.compress(model, config))
    sparsity = clock.records[-1]["details"]["sparsity"]
    stages.save_keras(compressed, Path(config.out) / f"{stages.model_name(config)}_{suffix}.h5")
    traced = stages.trace_once(compressed, config)
    content = clock.run("convert the compressed to int8", lambda: stages.convert(traced, integer))
    return [*made, _Made(name=f"{suffix}_int8", suffix=f"{suffix}_int8", content=content)], sparsity


def _with_scheme(config: RunConfig, scheme: str) -> RunConfig:
    return dataclasses.replace(config, conversion=dataclasses.replace(config.conversion, scheme=scheme))


def _examine(made: list[_Made], config: RunConfig, clock: _Clock, results: list[dict[str, Any]]) -> None:
    """Audit and evaluate every flatbuffer into `results`; the first, the float one, is the reference of all."""
    test = stages.load_split(config.data, "test", limit=config.evaluation.limit)
    reference = evaluation.reference_outputs(made[0].content, test, config.evaluation)

    def examine(each: _Made) -> tuple[dict[str, Any], dict[str, Any]]:
        audited = flatbuffer.audit_model(each.content, stages.audit_config(config))
        evaluated = stages.evaluate(each.content, config, reference=reference, parity=each.name != "float", test=test)
        return {"audit": audited.to_dict(), **evaluated.to_dict()}, {}

    for each in made:
        results.append(clock.run(f"evaluate {each.name}", partial(examine, each)))


@contextmanager
def _remembered_warnings() -> Iterator[list[str]]:
    """The TfqWarnings raised inside, as sentences; they are shown as they come up all the same."""
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", TfqWarning)
        show = warnings.showwarning

        def remember(message: Any, category: Any, *rest: Any, **named: Any) -> None:
            if issubclass(category, TfqWarning):
                told.append(str(message))
            show(message, category, *rest, **named)

        warnings.showwarning = remember
        yield told

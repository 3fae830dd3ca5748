# SPDX-License-Identifier: Apache-2.0
"""The stages of a whole run, in order; each result is kept, so that a run which was killed goes on where it was."""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfq import artifacts, auditing, evaluation, report, workflows
from tfq.backends import QemuRunner, make_runner
from tfq.config import RunConfig
from tfq.errors import InputError, RequirementError, RunnerError, TfqWarning, remembered_warnings
from tfq.evaluation.benchmark_inputs import NUM_INPUTS
from tfq.provenance import cpu, record_of
from tfq.store import StageStore
from tfq.workflows.steps import Made, Run, data_inputs, make_flatbuffers


def run_recipe(config: RunConfig, *, allow_code: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Everything that `config` says, into config.out; returns the record that report.json holds.

    Trains a model that is named, or loads one from a file; makes its float32 and int8 flatbuffers, prunes and
    quantization-aware trains it and makes that int8 flatbuffer; audits, evaluates and benchmarks all three; writes the
    reports. The result of each stage is kept in config.out/.stages, and a later run takes what is there made from the
    same inputs: after a kill, Ctrl-C or a full disk it goes on where it was. fresh: ignore and forget what is there.
    One run at a time: another on the same config.out waits for this one.
    Raises InputError before any work where the config cannot be carried out. A missed requirement does not raise
    here: the record carries the numbers, and `require(record)` raises.
    """
    out = artifacts.make_out_dir(config.out)
    workflows.model_name(config)
    _check(config)
    with _alone_in(out), remembered_warnings() as told:
        artifacts.sweep(out)
        run = Run(config=config, out=out, store=StageStore(out, fresh=fresh), allow_code=allow_code)
        return _carry_out(run, told)


def _carry_out(run: Run, told: list[str]) -> dict[str, Any]:
    made, sparsity = make_flatbuffers(run)
    results: list[dict[str, Any]] = []
    benchmark, failure = None, None
    try:
        _examine(made, run, results)
        benchmark = _benchmark(made, run)
    except RunnerError as error:  # the flatbuffers stand; what was found out of them is reported all the same
        failure = error
        told.append(f"the run ended early: {error}")
    record = record_of(
        "run",
        run.config,
        sha256=_merged_hashes(run.stages, results),
        stages=run.stages,
        models=[
            # Fewer results than flatbuffers, where the run ended early.
            {"name": each.name, "file": each.file, **result, "qat_parity": each.qat_parity}
            for each, result in zip(made, results, strict=False)
        ],
        benchmark=benchmark,
        sparsity=sparsity,
        warnings=list(dict.fromkeys(told)),
    )
    report.write_report(record, run.out)
    if failure:
        raise failure
    run.store.forget_unused()
    return record


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    def waiting() -> None:
        warnings.warn(f"another run is writing to {out}: waiting for it to end", TfqWarning, stacklevel=5)

    with artifacts.locked(out / ".lock", waiting):
        yield


def _check(config: RunConfig) -> None:
    """Raises InputError, before any work, on settings that a run would ignore, and on missing models and runners."""
    workflows.check_model_file(config)
    if config.conversion.scheme == "float32":
        raise InputError("conversion.scheme=float32: a run makes the float32 flatbuffer anyway: name another beside it")
    if config.conversion.scheme != "int8" and config.compression.qat.enabled:
        raise InputError(
            f"conversion.scheme={config.conversion.scheme}: quantization-aware training makes int8: "
            "switch it off (--nocompression.qat), or leave the scheme at int8"
        )
    if config.compression.qat.enabled and not config.conversion.per_channel:
        raise InputError(
            "conversion.per_channel=false: quantization-aware training gives convolutions a scale for each channel: "
            "leave per_channel on, or switch QAT off"
        )
    if config.evaluation.reference:
        raise InputError("evaluation.reference: a run compares with its own float32 flatbuffer: leave it out")
    if config.benchmark.against:
        raise InputError("benchmark.against: a run times its own flatbuffers side by side: leave it out")
    evaluation.check_runners(config.evaluation)
    evaluation.check_metric(config.evaluation)


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


def _examine(made: list[Made], run: Run, results: list[dict[str, Any]]) -> None:
    """Audit and evaluate every flatbuffer into `results`; the first, the float one, is the reference of all."""
    config = run.config

    @functools.cache
    def reference() -> Any:
        return evaluation.reference_outputs(made[0].content, run.test, config.evaluation)

    for each in made:

        def make(directory: Path, each: Made = each) -> dict[str, Any]:
            audited = auditing.audit_model(each.content, workflows.audit_config(config))
            evaluated = workflows.evaluate(
                each.content, config, reference=reference(), parity=each.name != "float", test=run.test
            )
            return {"audit": audited.to_dict(), **evaluated.to_dict()}

        inputs = {
            "model": artifacts.sha256(each.content),
            "reference": artifacts.sha256(made[0].content),
            "audit": workflows.audit_config(config).to_dict(),
            "evaluation": {**config.evaluation.to_dict(), "require": None},
            "metric_sha256": evaluation.metric_sha256(config.evaluation.metric),
            "parity": each.name != "float",
            "machine": _machine(config.evaluation.runner, *config.evaluation.parity_runners),
            **data_inputs(run),
        }
        results.append(run.found(f"evaluate {each.name}", inputs, make))


def _machine(*runners: str) -> dict[str, Any]:
    """What a measurement depends on beside its config: the CPU, how many cores this process may use, and of each runner
    what it cannot do here ("not run" is no result once it can) and, of an emulator, which one it is.
    """
    from tfq.backends.qemu import sysroot

    found: dict[str, Any] = {"cpu": cpu(), "cores": len(os.sched_getaffinity(0))}
    for name in runners:
        runner = make_runner(name)
        found[name] = [runner.unavailable()]
        if isinstance(runner, QemuRunner):
            installed = sysroot.find()
            which = None if installed is None else [installed.directory.name, installed.qemu, installed.counted_by]
            found[name] += [runner.cannot_count(), which]
    return found


def _benchmark(made: list[Made], run: Run) -> dict[str, Any]:
    """All flatbuffers timed side by side."""

    def make(directory: Path) -> dict[str, Any]:
        models = {each.name: each.content for each in made}
        # As many as `tfq benchmark` feeds: with more, the inputs would come out of a colder cache than there.
        first = next(run.test.pieces()).take(NUM_INPUTS)
        return evaluation.benchmark_models(models, run.config.benchmark, data=first, seed=run.config.seed).to_dict()

    inputs = {
        "models": {each.name: artifacts.sha256(each.content) for each in made},
        "benchmark": run.config.benchmark.to_dict(),
        "machine": _machine(run.config.benchmark.runner),
        **data_inputs(run),
    }
    return run.found("benchmark", inputs, make)

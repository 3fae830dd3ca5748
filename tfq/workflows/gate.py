# SPDX-License-Identifier: Apache-2.0
"""The gate: read a record and its baseline, or evaluate a new file as the baseline was evaluated."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, comparison, data, evaluation, progress, registry
from tfq.comparison import Gate, Subject
from tfq.comparison.gate_inputs import check_is_gated
from tfq.config import BenchmarkConfig, DataConfig, RunConfig
from tfq.errors import InputError, TfqError, warn
from tfq.provenance import record_of
from tfq.workflows.evaluation import evaluate
from tfq.workflows.models import is_file, load_flatbuffer, load_split


@dataclass(frozen=True, kw_only=True)
class Gated:
    """The result of a gate.

    Attributes:
        gate: The comparison; None if there was no baseline and the new record becomes the first one.
        record: The new record.
    """

    gate: Gate | None
    record: Mapping[str, Any]


def compare_with_baseline(config: RunConfig) -> Gated:
    """Compare config.model, a record or a .tflite, with the record in comparison.baseline.

    A .tflite is evaluated as the baseline was, with the settings in the baseline's record. Settings in config.data that
    are not the defaults replace the baseline's.

    Args:
        config: The settings: `model`, `data` and `comparison`.

    Raises:
        InputError: A file is neither, the records do not belong together, or there is no baseline.
        BackendError: The new file cannot be evaluated.
    """
    settings = config.comparison
    comparison.tolerances(settings)
    baseline = _read_baseline(settings.baseline, update=settings.update_baseline)
    new = comparison.read_subject(config.model, "model")
    if settings.reference:
        raise InputError(
            f"comparison.baseline compares one file with the baseline, got two: {settings.reference} and "
            f"{config.model}. Name the .tflite of the baseline with comparison.baseline_model",
            field="comparison.baseline",
            expected="one file",
            got=settings.reference,
        )
    if new.record is not None:
        check_is_gated(new.record["command"], artifacts.shown(new.path), "model")
        record: Mapping[str, Any] = new.record
    else:
        record = _evaluated_like(baseline, new, config)
    if baseline is None:
        return Gated(gate=None, record=record)
    old_record = baseline.record
    assert old_record is not None
    compare = comparison.gate_records
    result = compare(record, old_record, settings, latency=_side_by_side(new, record, config))
    if not result.holds:
        errors = _layer_errors(new, record, old_record, config)
        if errors:
            result = compare(record, old_record, settings, layer_errors=errors, latency=result.latency)
    return Gated(gate=result, record=record)


def write_baseline(path: str, record: Mapping[str, Any]) -> None:
    """Write a record to the file of the baseline, atomically."""
    artifacts.write_json(Path(path), record)


def _read_baseline(path: str, *, update: bool) -> Subject | None:
    """Return the baseline; None if there is no such file and it is to be written."""
    if update and not os.path.lexists(path):
        artifacts.check_out_dir(os.path.dirname(path) or ".")
        return None
    baseline = comparison.read_subject(path, "comparison.baseline")
    if baseline.record is None:
        raise InputError(
            f"comparison.baseline={artifacts.shown(path)} is a .tflite file, expected a record. Write one with tfq "
            "evaluate, or compare two .tflite files without a baseline",
            field="comparison.baseline",
            expected="a record",
            got=path,
        )
    check_is_gated(baseline.record["command"], artifacts.shown(path), "comparison.baseline")
    return baseline


def _evaluated_like(baseline: Subject | None, new: Subject, config: RunConfig) -> Mapping[str, Any]:
    """Return the record of an evaluation of a file with the settings of the baseline."""
    command = None if baseline is None or baseline.record is None else baseline.record["command"]
    if baseline is None or baseline.record is None or command != "evaluate":
        reason = "there is no baseline yet" if command is None else f"the baseline is a record of tfq {command}"
        raise InputError(
            f"model={artifacts.shown(new.path)} is a .tflite file, and {reason}, so its settings are not known: "
            f"expected a record of tfq {command or 'evaluate'}, or a baseline of tfq evaluate",
            field="model",
            expected=f"a record of tfq {command or 'evaluate'}",
            got=new.path,
        )
    own = _settings_of(baseline, config)
    registry.load_plugins(own.plugin)
    assert new.flatbuffer is not None
    results = evaluate(new.flatbuffer, own)
    asked = evaluation.requirements_on_backends(results.evaluation, results.portability, own.evaluation, results.digest)
    return record_of("evaluate", own, **results.to_dict(), requirements=[item.to_dict() for item in asked])


def _settings_of(baseline: Subject, config: RunConfig) -> RunConfig:
    """Return the settings of a baseline for another model, with the settings of `config.data` that are not defaults."""
    assert baseline.record is not None
    values = baseline.record.get("config")
    try:
        old = RunConfig.from_dict(values if isinstance(values, Mapping) else {"config": values})
    except InputError as error:
        raise InputError(
            f"comparison.baseline={artifacts.shown(baseline.path)}: its settings cannot be used: {error}",
            field="comparison.baseline",
            expected=error.expected,
            got=error.got,
        ) from error
    defaults = DataConfig()
    changed = {name: value for name, value in vars(config.data).items() if value != getattr(defaults, name)}
    return dataclasses.replace(
        old,
        model=config.model,
        out=config.out,
        data=dataclasses.replace(old.data, **changed),
        plugin=tuple(dict.fromkeys((*old.plugin, *config.plugin))),
    )


def _file_of(record: Mapping[str, Any]) -> bytes | None:
    """Return the file that a record of `tfq evaluate` is about, if it is still where it was; else None."""
    path = (record.get("config") or {}).get("model")
    if record["command"] != "evaluate" or not isinstance(path, str) or not is_file(path) or os.path.isdir(path):
        return None
    try:
        content = artifacts.read_bytes(path, "a .tflite file")
    except InputError:
        return None
    return content if artifacts.sha256(content) == record["sha256"]["model"] else None


def _layer_errors(
    new: Subject, record: Mapping[str, Any], old_record: Mapping[str, Any], config: RunConfig
) -> tuple[dict[str, Any], ...]:
    """Return the layers that lose accuracy; () if a file is not at hand, with a warning if one was named."""
    named = config.comparison.baseline_model
    after = new.flatbuffer or _file_of(record)
    before = artifacts.read_bytes(named, "a .tflite file") if named else _file_of(old_record)
    reference = record["config"].get("evaluation", {}).get("reference") if record["command"] == "evaluate" else None
    if after is None or before is None or after == before or not reference or not os.path.exists(reference):
        return ()
    try:
        own = RunConfig.from_dict(record["config"])
        floating = load_flatbuffer(reference, own, field="evaluation.reference")
        with progress.stage("looking for the layer that loses accuracy"):
            test = load_split(own.data, "test", limit=comparison.NUM_SAMPLES)
            split = test if isinstance(test, data.Split) else next(test.pieces())
            return comparison.layer_errors(after, before, floating, split)
    except TfqError as error:
        if named:
            warn(f"the error of each layer was not compared: {error}")
        return ()


def _side_by_side(new: Subject, record: Mapping[str, Any], config: RunConfig) -> Mapping[str, Any] | None:
    """Return the time of the new file relative to comparison.baseline_model, measured in turns; None without one."""
    named = config.comparison.baseline_model
    if not named:
        return None
    after = new.flatbuffer or _file_of(record)
    if after is None:
        warn("comparison.baseline_model: no time was compared, because the file of the new record is not at hand")
        return None
    before = artifacts.read_bytes(named, "a .tflite file", field="comparison.baseline_model")
    with progress.stage("timing both files in turns"):
        timed = evaluation.benchmark_models({"baseline": before, "new": after}, BenchmarkConfig(ops=False))
    return vars(timed.ratios[0]) if timed.ratios else None

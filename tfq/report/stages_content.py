# SPDX-License-Identifier: Apache-2.0
"""The report's sections on how it was made: stages, training, what was pruned, versions, hashes, the config."""

import json
from collections.abc import Iterator, Mapping, Sequence

from tfq.report.compression_content import compression_tables
from tfq.report.formatting import DASH, count, is_number, number_of, percent, plain, scalar, seconds
from tfq.report.reported import Record, models_of, part
from tfq.report.tables import Bars, Section, Table, fractions

# What has a section or a table of its own.
_TOLD_ELSEWHERE = (
    *("sparsity", "history", "diagnostics", "preprocessing"),
    *("bridge", "preflight", "filters", "pruning_plan"),
)


def stages_section(record: Record) -> Section:
    """What was done, for how long, what was taken from an earlier run, and what was skipped and why."""
    stages = [stage for stage in record.get("stages") or [] if isinstance(stage, Mapping)]
    if not stages:
        return Section(key="stages", title="Stages", paragraphs=("The record holds no stages.",))
    rows = tuple(
        (
            plain(stage.get("name", "?")),
            "skipped" if stage.get("skipped") else seconds(stage.get("seconds")),
            _remark(stage),
        )
        for stage in stages
    )
    times = [_duration(stage) for stage in stages]
    resumed = sum(bool(stage.get("resumed")) for stage in stages)
    about = f"{seconds(sum(time for time in times if time is not None))} in all."
    if resumed:
        about += (
            f" {number_of(resumed, 'stage')} of an earlier run came from the same inputs, and "
            f"{'was' if resumed == 1 else 'were'} not run again; the time is what it took then."
        )
    table = Table(
        columns=("stage", "time", "details"),
        rows=rows,
        numeric=(False, True, False),
        bars=(Bars(before=1, title="", rows=tuple((value,) for value in fractions(times)), series=(0,)),),
    )
    more = [each for each in (_training(stages), *compression_tables(stages)) if each]
    return Section(key="stages", title="Stages", paragraphs=(about,), tables=(table, *more))


def _duration(stage: Record) -> float | None:
    value = stage.get("seconds")
    return value if is_number(value) and not stage.get("skipped") else None


def _remark(stage: Record) -> str:
    if stage.get("skipped"):
        return plain(stage["skipped"])
    told = ["taken from an earlier run"] if stage.get("resumed") else []
    details = part(stage, "details").items()
    told += [
        f"{plain(key)}: {scalar(value)}" for key, value in details if key not in _TOLD_ELSEWHERE and value is not None
    ]
    return "; ".join(told)


def _training(stages: Sequence[Record]) -> Table | None:
    """First and last value of every curve."""
    rows = []
    for name, history in _histories(stages):
        curves = {key: values for key, values in history.items() if isinstance(values, list) and values}
        epochs = max((len(values) for values in curves.values()), default=0)
        known = ("loss", "accuracy", "val_loss", "val_accuracy")
        if not any(key in curves for key in known):
            continue
        rows.append((name, count(epochs), *(_ends(key, curves.get(key)) for key in known)))
    if not rows:
        return None
    losses = dict.fromkeys(plain(each["loss_function"]) for _, each in _histories(stages) if each.get("loss_function"))
    return Table(
        columns=("training", "epochs", "loss", "accuracy", "validation loss", "validation accuracy"),
        rows=tuple(rows),
        caption="Training, the first epoch and the last",
        notes=tuple(f"loss: {loss}" for loss in losses),
    )


def _ends(curve: str, values: list | None) -> str:
    if not values:
        return DASH
    ends = [values[0], values[-1]] if len(values) > 1 else values
    return " → ".join(map(percent if curve.endswith("accuracy") else scalar, ends))


def _histories(stages: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    for stage in stages:
        history = part(part(stage, "details"), "history")
        steps = {step: curves for step, curves in history.items() if isinstance(curves, Mapping)}
        if steps:
            yield from ((plain(step), curves) for step, curves in steps.items())
        elif history:
            yield plain(stage.get("name", "?")), history


def provenance_sections(record: Record) -> list[Section]:
    """Versions, machine, hashes; and the whole config, from which the run can be replayed."""
    cpu = part(record, "cpu")
    facts = {
        "seed": scalar(record.get("seed")),
        "CPU": plain(cpu.get("model") or DASH),
        "architecture": " ".join(map(plain, [cpu.get("machine") or DASH, *(cpu.get("isa") or [])])),
        "Python": scalar(record.get("python")),
        **{plain(name): scalar(version) for name, version in part(record, "packages").items()},
        "git commit": scalar(record.get("git_commit")),
        "schema version": scalar(record.get("schema_version")),
    }
    hashes = {"config": scalar(record.get("config_hash"))}
    sha256 = part(record, "sha256")
    if sha256.get("model"):
        hashes["model given"] = scalar(sha256["model"])
    hashes |= {f"data, {plain(split)}": scalar(value) for split, value in part(sha256, "data").items()}
    for model in models_of(record):
        if model.sha256.get("model"):
            hashes[plain(model.file or model.name)] = scalar(model.sha256["model"])
    text_columns = (False, False)
    tables = (
        Table(columns=("what", "value"), rows=tuple(facts.items()), numeric=text_columns),
        Table(columns=("of", "SHA-256"), rows=tuple(hashes.items()), numeric=text_columns),
    )
    config = json.dumps(record.get("config") or {}, indent=2)
    replay = "The same run again: tfq run --config=report.json --out=DIR"
    return [
        Section(key="provenance", title="Provenance", tables=tables),
        Section(
            key="configuration",
            title="Configuration",
            paragraphs=(replay,),
            code=config,
            code_title="The whole configuration",
        ),
    ]

# SPDX-License-Identifier: Apache-2.0
"""What earlier commands measured about an exported file: its entry in evaluate.json or report.json."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfq import artifacts
from tfq.errors import InputError

RECORDS = ("evaluate.json", "report.json")


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a file in a record.

    Args:
        record: The name of the record's file; "" if there is no record.
        missing: Why there is no record; "" if there is one.
        evaluation: The evaluation (`EvaluationRecord.to_dict()`); empty if there is none.
        portability: The portability table (`PortabilityTable.to_dict()`); empty if there is none.
        data: The data settings of the command; empty if unknown.
        config_hash: The hash of the command's settings.
        packages: The versions of packages that the command used.
        git_commit: The commit of tfq that the command used, or None.
    """

    record: str = ""
    missing: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    portability: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    config_hash: str | None = None
    packages: Mapping[str, Any] = field(default_factory=dict)
    git_commit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for provenance: where the results are from, or why there are none."""
        return {
            "record": self.record or None,
            "missing": self.missing or None,
            "config_hash": self.config_hash,
            "packages": dict(self.packages),
            "git_commit": self.git_commit,
        }


def tolerance_of(results: Results) -> dict[str, dict[str, Any]]:
    """Return {backend: {output: {"quantized" or "real": largest difference to XNNPACK}}} of each backend that ran."""
    rows = results.portability.get("rows") or {}
    measured = {}
    for name, row in rows.items():
        outputs = (row.get("difference") or {}).get("outputs") or []
        if row.get("status") == "ran" and outputs:
            measured[name] = {output["name"]: _difference(output) for output in outputs}
    return measured


def _difference(output: Mapping[str, Any]) -> dict[str, Any]:
    if output.get("max_abs_error_lsb") is not None:
        return {"quantized": output["max_abs_error_lsb"]}
    return {"real": output.get("max_abs_error")}


def read_results(sha256: str, path: str, folder: Path | None) -> Results:
    """Return the results of the file with this hash.

    Args:
        sha256: The hash of the `.tflite`.
        path: The record that the user names; "" looks in `folder`.
        folder: The folder of the file; None if it has none.

    Raises:
        InputError: `path` is not a record with results of this file.
    """
    if path:
        results = checked_results(artifacts.read_json(path, field="export.record"), sha256, path)
        if results is None:
            raise InputError(
                f"export.record: {artifacts.shown(path)} has no results of this file: expected the evaluate.json or "
                f"report.json of a command that evaluated it (SHA-256 {sha256[:12]}...)",
                field="export.record",
                expected=sha256,
                got=path,
            )
        return results
    for name in RECORDS:
        if folder is not None and (folder / name).is_file():
            try:
                record = artifacts.read_json(folder / name)
            except InputError:
                continue
            if (results := checked_results(record, sha256, str(folder / name))) is not None:
                return results
    return Results(missing="no evaluate.json or report.json next to the file has results of it")


def checked_results(record: Any, sha256: str, path: str, *, field: str = "export.record") -> Results | None:
    """Return the results of the file with this hash in a record, which may be damaged; None if it has none.

    Args:
        record: Its content.
        sha256: The hash of the `.tflite`.
        path: The path of the record, for messages and for its name.
        field: The config field or argument that names it, for messages.

    Raises:
        InputError: The record lacks what every record of tfq has.
    """
    with artifacts.decoding(path, "a record that tfq wrote", field=field):
        results = _results_of(record, sha256, os.path.basename(path))
        if results is not None:
            tolerance_of(results)
            table_text(results)
    return results


def _results_of(record: Any, sha256: str, name: str) -> Results | None:
    """Return the results of the file with this hash in a record; None if the record has none."""
    if not isinstance(record, Mapping):
        return None
    models = record.get("models")
    entries = [item for item in models if isinstance(item, Mapping)] if isinstance(models, list) else [record]
    for entry in entries:
        hashes = entry.get("sha256")
        if isinstance(hashes, Mapping) and hashes.get("model") == sha256 and entry.get("evaluation"):
            return Results(
                record=name,
                evaluation=entry["evaluation"],
                portability=entry.get("portability") or {},
                data=(record.get("config") or {}).get("data") or {},
                config_hash=record.get("config_hash"),
                packages=record.get("packages") or {},
                git_commit=record.get("git_commit"),
            )
    return None


def table_text(results: Results) -> list[str]:
    """Return the lines of the portability table, of the backends that were available; none if there is none."""
    from tfq.evaluation.portability_record import table_lines

    rows = {name: row for name, row in (results.portability.get("rows") or {}).items() if row["status"] != "not run"}
    # The reasons why others were not available are about the machine of the evaluation, not about the model.
    return table_lines({**results.portability, "rows": rows, "not_available": {}}) if rows else []

# SPDX-License-Identifier: Apache-2.0
"""The results of finished stages on disk, each under a hash of all its inputs, so that an interrupted run resumes.

    OUT/.stages/<key>/      the files of a stage, and stage.json: its details, warnings, and the SHA-256 of each file
    OUT/.stages/.making-*   an unfinished stage; deleted when it ends, or by the next run if the process was killed

A result is complete or absent, because its directory is renamed to its final name last. It is used only if the content
of its files is still what stage.json records.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, progress, registry
from tfq.errors import InputError, TfqError, remembered_warnings, warn
from tfq.provenance import code_sha256, package_versions

_MAKING = ".making-"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of a stage.

    Attributes:
        directory: The directory with the stage's files.
        details: JSON values.
        warnings: The messages of its TfqWarnings.
        seconds: How long the stage took when it ran.
        resumed: Whether it ran in an earlier run.
    """

    directory: Path
    details: dict[str, Any]
    warnings: tuple[str, ...]
    seconds: float
    resumed: bool


class StageStore:
    """The stages of all runs into one directory `out`. The caller must hold the lock on that directory."""

    def __init__(self, out: Path, *, fresh: bool = False) -> None:
        """Open or create the store.

        Args:
            out: The output directory of the runs.
            fresh: Whether to delete all earlier results.

        Raises:
            TfqError: `out` cannot be written.
        """
        self._directory = out / ".stages"
        self._used: set[str] = set()
        with self._writing():
            if fresh and self._directory.exists():
                shutil.rmtree(self._directory)
            self._directory.mkdir(exist_ok=True)
        for stale in self._directory.glob(f"{_MAKING}*"):
            shutil.rmtree(stale, ignore_errors=True)

    def run(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> StageResult:
        """Return the result of a stage: the stored one if its inputs are the same, otherwise a new one.

        Args:
            name: The name of the stage.
            inputs: JSON values that determine the result. tfq's code and the versions of its packages are added here.
            make: Computes the stage: writes files into the directory that it receives, and returns details.

        Raises:
            TfqError: The write fails, for example because the disk is full. Nothing of the stage remains then.
        """
        key = _key(name, inputs)
        self._used.add(key)
        result = self._find(key)
        if result is None:
            return self._make(name, key, make)
        for sentence in result.warnings:
            warn(sentence)
        return result

    def forget_unused(self) -> None:
        """Delete the results that no stage of this run has used."""
        for entry in self._directory.iterdir():
            if entry.name not in self._used:
                shutil.rmtree(entry, ignore_errors=True)

    def _find(self, key: str) -> StageResult | None:
        directory = self._directory / key
        if not directory.is_dir():
            return None
        try:
            record = json.loads((directory / "stage.json").read_bytes())
            result = StageResult(
                directory=directory,
                details=record["details"],
                warnings=tuple(record["warnings"]),
                seconds=record["seconds"],
                resumed=True,
            )
            damaged = [
                name for name, sha256 in record["files"].items() if artifacts.sha256_file(directory / name) != sha256
            ]
        except (OSError, ValueError, KeyError, TypeError, InputError) as error:
            damaged = [f"stage.json ({error})"]
        if damaged:
            warn(f"{directory}: {', '.join(damaged)} changed since it was written, so this stage runs again")
            shutil.rmtree(directory, ignore_errors=True)
            return None
        return result

    def _make(self, name: str, key: str, make: Callable[[Path], dict[str, Any]]) -> StageResult:
        start = time.perf_counter()
        with self._writing():
            making = Path(tempfile.mkdtemp(dir=self._directory, prefix=_MAKING))
        try:
            with remembered_warnings() as messages, progress.stage(name, prints_parts=True):
                details = make(making)
            with self._writing():
                record = {
                    "name": name,
                    "seconds": round(time.perf_counter() - start, 3),
                    "details": details,
                    "warnings": list(dict.fromkeys(messages)),
                    "files": {path.name: artifacts.sha256_file(path) for path in sorted(making.iterdir())},
                }
                artifacts.write_json(making / "stage.json", record)
                making.rename(self._directory / key)
                artifacts.sync_directory(self._directory)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        result = self._find(key)
        if result is None:
            raise TfqError(
                f"{self._directory / key} disappeared right after it was written: does another program delete it?"
            )
        return dataclasses.replace(result, resumed=False)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TfqError(
                f"{self._directory} cannot be written: {error.strerror or error}", got=error.strerror
            ) from error


def _key(name: str, inputs: Mapping[str, Any]) -> str:
    basis = {
        "stage": name,
        "inputs": inputs,
        "code": code_sha256(),
        "packages": package_versions(),
        "plugins": [plugin.sha256 for plugin in registry.plugins()],
    }
    return artifacts.sha256(json.dumps(basis, sort_keys=True).encode())[:32]

# SPDX-License-Identifier: Apache-2.0
"""The results of finished stages on disk, each under a hash of all its inputs, so that an interrupted run resumes.

    OUT/.stages/<key>/      the files of a stage, and stage.json: its details, warnings, and the SHA-256 of each file
    OUT/.stages/.making-*   an unfinished stage; deleted when it ends, or by the next run if the process was killed

A result is complete or absent, because its directory is renamed to its final name last. It is used only if the content
of its files is still what stage.json records.

Several processes, also on several machines, may use one folder at the same time. If two of them make the same stage,
both make a complete result, and the first one stays.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, progress, registry
from tfq.errors import InputError, TfqError, remembered_warnings, warn
from tfq.provenance import code_sha256, package_versions

_MAKING = ".making-"
# The file of the state after a part.
_CONTENT = "content"
# An unfinished stage of a process that cannot be seen from here (on another machine, or in another container) counts as
# abandoned after this time without a change.
_ABANDONED_SECS = 7 * 24 * 3600.0


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
    """The stages of all runs into one directory `out`. Many processes and machines may use it at the same time."""

    def __init__(self, out: Path, *, fresh: bool = False) -> None:
        """Open or create the store.

        Args:
            out: The output directory of the runs.
            fresh: Whether to delete all earlier results, also those of other runs into `out`.

        Raises:
            TfqError: `out` cannot be written.
        """
        self.out = out
        self._directory = out / ".stages"
        self._used: set[str] = set()
        with self._writing():
            self._directory.mkdir(exist_ok=True)
            for entry in self._directory.iterdir():
                if _is_abandoned(entry) if entry.name.startswith(_MAKING) else fresh:
                    self._delete(entry)

    def run(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> StageResult:
        """Return the result of a stage: the stored one if its inputs are the same, otherwise a new one.

        Args:
            name: The name of the stage.
            inputs: JSON values that determine the result. tfq's code and the versions of its packages are added here.
            make: Computes the stage: writes files into the directory that it receives, and returns details.

        Raises:
            TfqError: The write fails, for example because the disk is full. Nothing of the stage remains then.
        """
        key = stage_key(name, inputs)
        result = self.find(key)
        if result is None:
            return self.make(name, key, make)
        for sentence in result.warnings:
            warn(sentence)
        return result

    def find(self, key: str) -> StageResult | None:
        """Return the stored result of a key. A damaged one is deleted with a warning; None if there is none."""
        self._used.add(key)
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
            if not directory.is_dir():
                return None  # another process deleted it in the meantime
            damaged = [f"stage.json ({error})"]
        if damaged:
            warn(f"{directory}: {', '.join(damaged)} changed since it was written, so this stage runs again")
            self._delete(directory)
            return None
        return result

    def make(
        self, name: str, key: str, make: Callable[[Path], dict[str, Any]], *, is_shared: bool = False
    ) -> StageResult:
        """Compute the result of a stage, and store it.

        Args:
            name: The name of the stage.
            key: Its key, of `stage_key`.
            make: As in `run`.
            is_shared: Whether the result is for other runs too: `forget_unused` keeps it.

        Raises:
            TfqError: The write fails, for example because the disk is full. Nothing of the stage remains then.
        """
        start = time.perf_counter()
        with self._making() as making:
            with remembered_warnings() as messages, progress.stage(name, prints_parts=True):
                details = make(making)
            with self._writing():
                record = {
                    "name": name,
                    "seconds": round(time.perf_counter() - start, 3),
                    "is_shared": is_shared,
                    "details": details,
                    "warnings": list(dict.fromkeys(messages)),
                    "files": {path.name: artifacts.sha256_file(path) for path in sorted(making.iterdir())},
                }
                artifacts.write_json(making / "stage.json", record)
                self._publish(making, key)
        return dataclasses.replace(self._written(key), resumed=False)

    def add(self, key: str, files: Mapping[str, bytes]) -> StageResult:
        """Store a result that another store has made.

        Args:
            key: Its key.
            files: The content of every file of its directory, stage.json included.

        Raises:
            TfqError: The write fails, or the files are not those that stage.json records.
        """
        with self._making() as making, self._writing():
            for name, content in files.items():
                artifacts.write_bytes(making / name, content)
            self._publish(making, key)
        return dataclasses.replace(self._written(key), resumed=False)

    def forget_unused(self) -> None:
        """Delete the results that no stage of this run has used, except those that are for other runs too."""
        for entry in self._directory.iterdir():
            if entry.name not in self._used and not entry.name.startswith(_MAKING) and not _is_shared(entry):
                self._delete(entry)

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the results with these keys, and the store's folder if nothing remains in it."""
        for key in keys:
            self._delete(self._directory / key)
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    @contextlib.contextmanager
    def _making(self) -> Iterator[Path]:
        with self._writing():
            making = Path(tempfile.mkdtemp(dir=self._directory, prefix=f"{_MAKING}{_here()}-{os.getpid()}-"))
        try:
            yield making
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _publish(self, making: Path, key: str) -> None:
        """Rename a complete result to its final name. A result that is there already stays."""
        try:
            making.rename(self._directory / key)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        artifacts.sync_directory(self._directory)

    def _written(self, key: str) -> StageResult:
        result = self.find(key)
        if result is None:
            raise TfqError(
                f"{self._directory / key} disappeared right after it was written: does another program delete it?"
            )
        return result

    def _delete(self, entry: Path) -> None:
        """Delete a result: under another name first, so that no process sees half of it."""
        with contextlib.suppress(OSError):
            if not entry.name.startswith(_MAKING):
                trash = Path(tempfile.mkdtemp(dir=self._directory, prefix=f"{_MAKING}{_here()}-{os.getpid()}-"))
                entry = entry.rename(trash / entry.name).parent
        shutil.rmtree(entry, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TfqError(
                f"{self._directory} cannot be written: {error.strerror or error}", got=error.strerror
            ) from error


# What `keeping_parts` was called with, and the key of the last state of each call of `in_parts`; None outside.
_PARTS: ContextVar[tuple[Callable[[], StageStore], list[str]] | None] = ContextVar("_PARTS", default=None)


@contextlib.contextmanager
def keeping_parts(open_store: Callable[[], StageStore]) -> Iterator[None]:
    """Keep the last state of each `in_parts` inside the block, so that the work resumes if the process is killed.

    These states are deleted when the block ends without an exception.

    Args:
        open_store: Returns the store that keeps them; called once, for the first work.
    """
    keys: list[str] = []
    store = functools.cache(open_store)
    token = _PARTS.set((store, keys))
    try:
        yield
    finally:
        _PARTS.reset(token)
    if keys:
        store().forget(set(keys))


def in_parts(
    name: str,
    count: int,
    inputs: Callable[[], Mapping[str, Any]],
    state: tuple[bytes, dict[str, Any]],
    advance: Callable[[int, bytes, dict[str, Any]], tuple[bytes, dict[str, Any]]],
) -> tuple[bytes, dict[str, Any]]:
    """Do long work part by part, and return the last state.

    Inside of `keeping_parts`, it begins after the last part that a killed process completed. A bar shows the progress.

    Args:
        name: The name of the work.
        count: The number of parts.
        inputs: Returns JSON values that determine the result, as in `StageStore.run`; called inside of `keeping_parts`.
        state: The state before the first part: the content of a file, and JSON values.
        advance: (number of the part, content, JSON values) -> the state after this part.

    Raises:
        TfqError: The write fails, for example because the disk is full.
    """
    kept = _PARTS.get()
    if kept is None:
        for number in progress.counted(range(count), name, "part"):
            state = advance(number, *state)
        return state
    store, others, known = kept[0](), list(kept[1]), dict(inputs())
    keys = [stage_key(name, {**known, "part": number}) for number in range(count)]
    first = 0
    for number in reversed(range(count)):
        if result := store.find(keys[number]):
            state, first = ((result.directory / _CONTENT).read_bytes(), result.details), number + 1
            kept[1][:] = [*others, keys[number]]
            break
    for number in progress.counted(range(first, count), name, "part"):
        content, details = state = advance(number, *state)

        def write(directory: Path, content: bytes = content, details: dict[str, Any] = details) -> dict[str, Any]:
            artifacts.write_bytes(directory / _CONTENT, content)
            return details

        store.make(name, keys[number], write)
        kept[1][:] = [*others, keys[number]]
        if number:
            store.forget([keys[number - 1]])
    return state


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Return the key of a stage: a hash of its name, its inputs, tfq's code, and the versions of packages and plugins.

    Args:
        name: The name of the stage.
        inputs: JSON values that determine the result.
    """
    return artifacts.sha256(json.dumps({"stage": name, "inputs": inputs, **software()}, sort_keys=True).encode())[:32]


def software() -> dict[str, Any]:
    """Return the software that results depend on: the hash of tfq's code, versions of packages, hashes of plugins."""
    return {
        "code": code_sha256(),
        "packages": package_versions(),
        "plugins": [plugin.sha256 for plugin in registry.plugins()],
    }


@functools.cache
def _here() -> str:
    """Return an identifier of the place where process IDs mean the same: this boot of this machine, this container."""
    place = [str(Path("/proc/self/ns/pid").stat().st_ino), Path("/proc/sys/kernel/random/boot_id").read_text()]
    return artifacts.sha256("\n".join(place).encode())[:12]


def _is_abandoned(making: Path) -> bool:
    """Check whether the process that makes a result has ended, or has not written for so long that it must have."""
    place, _, rest = making.name.removeprefix(_MAKING).partition("-")
    pid = rest.partition("-")[0]
    if place == _here() and pid.isdigit():
        return not artifacts.is_alive(int(pid))
    try:
        return time.time() - making.stat().st_mtime > _ABANDONED_SECS
    except OSError:
        return False  # it is complete, or deleted


def _is_shared(directory: Path) -> bool:
    try:
        return bool(json.loads((directory / "stage.json").read_bytes()).get("is_shared"))
    except (OSError, ValueError, AttributeError):
        return False

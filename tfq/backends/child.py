# SPDX-License-Identifier: Apache-2.0
"""What runs on the target, in a child process: fed, followed, given up, and its crash turned into an error."""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tfq.backends.scratch import no_room
from tfq.errors import BackendError, InputError, ModelError

TARGET = Path(__file__).with_name("target")
# Until the child has imported what it needs; the model has no part in that.
START_SECS = 120.0
STDERR_LINES = 5
POLL_SECS = 0.1
# What the child leaves with when the disk or the directory fails it; see target/__main__.py.
NO_ROOM = 74
# A model can bring these about; anyone can send the others.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP}
ADVICE = "the model may be damaged, or of a kind that these kernels cannot take: convert it again, or try other kernels"


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """How long a child may go without progress: by the clock, and in CPU seconds of its own, which other work on the
    machine does not eat up (infinity where only the clock counts)."""

    wall_secs: float
    cpu_secs: float = float("inf")


class Child(Protocol):
    """A running process, as `subprocess.Popen` shows one."""

    stdin: Any
    stdout: Any

    def kill(self) -> None:
        """End it now; without effect when it has ended."""

    def wait(self) -> int:
        """Its exit code, -N for signal N, once it has ended."""


class Feed(Protocol):
    """What the child gets on its stdin, as it takes it."""

    def notes(self) -> Iterator[bytes]:
        """Notes for the child, empty where it must tell something first."""

    def told(self, words: list[bytes]) -> bool:
        """Take a line of the child's; whether it was meant for here."""


def start_process(
    command: Sequence[str], *, stdin: bool, stderr: int, environment: Mapping[str, str] | None, path: Sequence[str]
) -> Child:
    """A process of its own for `command`. stdin: whether it gets a pipe there."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
        bufsize=0,
    )


def run_child(
    command: Sequence[str],
    directory: Path,
    request: Mapping[str, Any],
    *,
    backend: str,
    environment: Mapping[str, str] | None = None,
    total: int | None = None,
    unit: str = "ex",
    deadline: Deadline | float | None = None,
    feed: Feed | None = None,
    start: Callable[..., Child] = start_process,
) -> dict[str, Any]:
    """Run `command` + [the target's folder, directory] with `request` as its request.json; returns its result.json.

    deadline: seconds without progress after which the child is given up. feed: has notes for the child's stdin, and is
    told its lines; what it raises comes out of here. total, unit: of the progress that is shown. start: what makes the
    process.
    Raises InputError when the model does not take its inputs, ModelError when it fails, crashes or never ends,
    BackendError on all else. Whatever happens, the child is gone afterwards.
    """
    command = [*command, str(TARGET), str(directory)]
    try:
        (directory / "request.json").write_text(json.dumps({**request, "parent": os.getpid()}))
    except OSError as error:
        raise no_room(directory.parent, "a request", error) from error
    if isinstance(deadline, (int, float)):
        deadline = Deadline(wall_secs=deadline)
    # In memory: nobody wants to see it unless the child fails, which a full disk may be the cause of.
    stderr = os.memfd_create("stderr")
    try:
        try:
            child = start(
                command, stdin=feed is not None, stderr=stderr, environment=environment, path=request.get("path", ())
            )
        except OSError as error:
            raise BackendError(
                f"{backend}: cannot start {command[0]}: {error.strerror or error}", got=command[0]
            ) from error
        try:
            followed = _Followed(child, backend, deadline, feed)
            followed.to_the_end(total, unit)
            status = child.wait()
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        return _result(directory, backend, status, followed, _last_lines(stderr))
    finally:
        os.close(stderr)


class _Followed:
    """A running child: what it says on stdout, what it is fed, and how long it has been silent."""

    def __init__(self, child: Child, backend: str, deadline: Deadline | None, feed: Feed | None) -> None:
        self.child, self.backend, self.deadline, self.feed = child, backend, deadline, feed
        self._notes = None if feed is None else feed.notes()
        self.started, self.no_room = False, ""
        self._pids: list[int] = []
        self._since = time.monotonic()
        self._busy_since: float | None = None
        self._line, self._done = b"", 0

    def to_the_end(self, total: int | None, unit: str) -> None:
        """Until its stdout is closed. Raises ModelError or BackendError when it is given up."""
        from tqdm import tqdm

        # disable=None: silent unless stderr is a terminal. The delay keeps the bar of a short run off the screen.
        with (
            selectors.DefaultSelector() as selector,
            tqdm(total=total, desc=self.backend, unit=unit, disable=None, leave=False, delay=0.5) as bar,
        ):
            selector.register(self.child.stdout, selectors.EVENT_READ)
            self._pass_on()
            while True:
                for key, _ in selector.select(POLL_SECS):
                    message = os.read(key.fd, 65536)
                    if not message:
                        return
                    for done in self._read(message):
                        bar.update(done - bar.n)
                    self._pass_on()
                self._check()

    def _pass_on(self) -> None:
        """Write as many notes as there are; those that must wait are asked for again when the child has told more."""
        if self._notes is None:
            return
        with suppress(BrokenPipeError):  # how it ended says why
            for note in self._notes:
                if not note:
                    self._alive()  # who made these notes may have taken its time
                    return
                self.child.stdin.write(note)
            self.child.stdin.close()
        self._notes = None
        self._alive()

    def _alive(self) -> None:
        self._since, self._busy_since = time.monotonic(), None  # to be asked for when it is quiet for a while

    def _busy(self) -> float:
        return sum(map(_cpu_secs, self._pids))

    def _read(self, told: bytes) -> Iterator[int]:
        """How much is done, after each line that tells: `progress <in all>`, `more <since the last>`."""
        *lines, self._line = (self._line + told).split(b"\n")
        for line in lines:
            words = line.split()
            if words[:1] == [b"failed"]:
                self.no_room = line[7:].decode(errors="replace")
            elif words[:1] == [b"started"]:
                self.started = True
                self._pids += [int(word) for word in words[1:] if word.isdigit()]
                self._alive()
            elif len(words) == 2 and words[0] in (b"progress", b"more") and words[1].isdigit():
                self._alive()
                self._done = int(words[1]) + (self._done if words[0] == b"more" else 0)
                yield self._done
            elif self.feed is not None and self.feed.told(words):
                self._alive()

    def _check(self) -> None:
        silent = time.monotonic() - self._since
        if not self.started:
            if silent > START_SECS:
                raise BackendError(f"{self.backend}: Python did not start within {START_SECS:.0f} s: try again")
            return
        if self.deadline is None or silent < POLL_SECS:
            return
        if self._busy_since is None:
            self._busy_since = self._busy()
        if silent > self.deadline.wall_secs or self._busy() - self._busy_since > self.deadline.cpu_secs:
            raise ModelError(
                f"{self.backend}: the interpreter was given up after {silent:.1f} s without progress: the model never "
                "ends, or needs longer than its size tells: give it time with evaluation.timeout_secs",
                field="timeout_secs",
                got=silent,
            )


def _cpu_secs(pid: int) -> float:
    """CPU seconds of all threads of a process so far."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _result(directory: Path, backend: str, status: int, followed: _Followed, told: str) -> dict[str, Any]:
    try:
        result = json.loads((directory / "result.json").read_text())
    except FileNotFoundError:
        raise _crash(directory, backend, status, followed, told) from None
    error = result.get("error")
    if error is None:
        return result
    message = " ".join(error["message"].split())
    if error["kind"] == "input":
        raise InputError(f"{backend}: {message}", field="inputs")
    told = f" ({told})" if told else ""
    raise ModelError(
        f"{backend}: the interpreter failed: {message}{told}: {ADVICE}", field="model", got=error["message"]
    )


def _crash(directory: Path, backend: str, status: int, followed: _Followed, told: str) -> Exception:
    """What an end without a result means."""
    told = f": {told}" if told else ""
    if status == NO_ROOM:
        return BackendError(
            f"{backend}: cannot write the outputs below {directory.parent}: {followed.no_room}: make room there, or "
            f"set "
            "TMPDIR to a directory that has it",
            got=followed.no_room,
        )
    if status >= 0:
        return BackendError(
            f"{backend}: the interpreter ended with exit code {status} and without a result{told}: are NumPy and "
            "ai-edge-litert installed whole?",
            got=status,
        )
    number, name = -status, str(-status)
    with suppress(ValueError):
        name = signal.Signals(number).name
    ended = f"{backend}: the interpreter was killed by signal {name}{told}"
    if number in CRASHES and followed.started:
        return ModelError(f"{ended}: {ADVICE}", field="model", got=name)
    if number in CRASHES:
        return BackendError(f"{ended} before it saw the model: are NumPy and ai-edge-litert installed whole?", got=name)
    return BackendError(f"{ended}: the machine may be out of memory, or someone ended it", got=name)


def _last_lines(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    text = os.pread(stderr, 65536, max(0, size - 65536)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    return " | ".join([line for line in lines if line and not line.startswith("INFO:")][-STDERR_LINES:])

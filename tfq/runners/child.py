# SPDX-License-Identifier: Apache-2.0
"""What runs on the target, in a child process: fed, followed, given up, and its crash turned into an error."""

import fcntl
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq.errors import InputError, ModelError, RunnerError
from tfq.runners.scratch import no_room

TARGET = Path(__file__).with_name("target")
# Until the child has imported what it needs; the model has no part in that.
START_SECS = 120.0
STDERR_LINES = 5
POLL_SECS = 0.1
PIPE_BYTES = 1 << 20
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


def run_child(
    command: Sequence[str],
    directory: Path,
    request: Mapping[str, Any],
    *,
    runner: str,
    environment: Mapping[str, str] | None = None,
    total: int | None = None,
    unit: str = "ex",
    deadline: Deadline | float | None = None,
    feed: Iterator[memoryview] | None = None,
) -> dict[str, Any]:
    """Run `command` + [the target's folder, directory] with `request` as its request.json; returns its result.json.

    deadline: seconds without progress after which the child is given up. feed: what goes to its stdin, taken piece by
    piece as the child reads it; its own errors come out of here. total, unit: of the progress that is shown.
    Raises InputError when the model does not take its inputs, ModelError when it fails, crashes or never ends,
    RunnerError on all else. Whatever happens, the child is gone afterwards.
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
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        except OSError as error:
            raise RunnerError(f"{runner}: cannot start {command[0]}: {error.strerror or error}") from error
        try:
            followed = _Followed(child, runner, deadline)
            followed.to_the_end(total, unit, feed)
            status = child.wait()
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        return _result(directory, runner, status, followed, _last_lines(stderr))
    finally:
        os.close(stderr)


class _Followed:
    """A running child: what it says on stdout, what it is fed, and how long it has been silent."""

    def __init__(self, child: subprocess.Popen, runner: str, deadline: Deadline | None) -> None:
        self.child, self.runner, self.deadline = child, runner, deadline
        self.started, self.no_room = False, ""
        self._since = (time.monotonic(), 0.0)
        self._line = b""

    def to_the_end(self, total: int | None, unit: str, feed: Iterator[memoryview] | None) -> None:
        """Until its stdout is closed. Raises ModelError or RunnerError when it is given up."""
        from tqdm import tqdm

        out = self.child.stdout
        # disable=None: silent unless stderr is a terminal. The delay keeps the bar of a short run off the screen.
        with (
            selectors.DefaultSelector() as selector,
            tqdm(total=total, desc=self.runner, unit=unit, disable=None, leave=False, delay=0.5) as bar,
        ):
            selector.register(out, selectors.EVENT_READ)  # type: ignore[arg-type]
            feeding = None
            if feed is not None:
                feeding = _feeding(self.child.stdin.fileno(), feed, self._alive)  # type: ignore[union-attr]
                selector.register(self.child.stdin, selectors.EVENT_WRITE)  # type: ignore[arg-type]
            while True:
                for key, _ in selector.select(POLL_SECS):
                    if key.fileobj is out:
                        told = os.read(key.fd, 65536)
                        if not told:
                            return
                        for done in self._read(told):
                            bar.update(done - bar.n)
                    elif feeding is not None and not next(feeding, False):
                        selector.unregister(self.child.stdin)  # type: ignore[arg-type]
                        self.child.stdin.close()  # type: ignore[union-attr]
                self._check()

    def _alive(self) -> None:
        self._since = (time.monotonic(), _cpu_secs(self.child.pid))

    def _read(self, told: bytes) -> Iterator[int]:
        """The numbers of the whole lines `progress <done>`; what else it tells is noted."""
        *lines, self._line = (self._line + told).split(b"\n")
        for line in lines:
            words = line.split()
            if words[:1] == [b"failed"]:
                self.no_room = line[7:].decode(errors="replace")
            elif words == [b"started"]:
                self.started = True
                self._alive()
            elif len(words) == 2 and words[0] == b"progress" and words[1].isdigit():
                self._alive()
                yield int(words[1])

    def _check(self) -> None:
        silent = time.monotonic() - self._since[0]
        if not self.started:
            if silent > START_SECS:
                raise RunnerError(f"{self.runner}: Python did not start within {START_SECS:.0f} s: try again")
            return
        if self.deadline is None or silent <= min(self.deadline.wall_secs, self.deadline.cpu_secs):
            return
        busy = _cpu_secs(self.child.pid) - self._since[1]
        if silent > self.deadline.wall_secs or busy > self.deadline.cpu_secs:
            raise ModelError(
                f"{self.runner}: the interpreter was given up after {silent:.1f} s without progress: the model never "
                "ends, or needs longer than its size tells: give it time with --timeout_secs"
            )


def _feeding(descriptor: int, feed: Iterator[memoryview], alive: Any) -> Iterator[bool]:
    """At each step writes as much as the pipe takes; True until all is written, or nobody reads any more."""
    os.set_blocking(descriptor, False)
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    for piece in feed:
        alive()  # it may have waited for this piece
        while piece:
            try:
                piece = piece[os.write(descriptor, piece[:PIPE_BYTES]) :]
            except BlockingIOError:
                yield True
            except BrokenPipeError:
                return  # how it ended says why
            else:
                alive()


def _cpu_secs(pid: int) -> float:
    """CPU seconds of all threads of a process so far."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _result(directory: Path, runner: str, status: int, followed: _Followed, told: str) -> dict[str, Any]:
    try:
        result = json.loads((directory / "result.json").read_text())
    except FileNotFoundError:
        raise _crash(directory, runner, status, followed, told) from None
    error = result.get("error")
    if error is None:
        return result
    if error["kind"] == "input":
        raise InputError(f"{runner}: {error['message']}")
    told = f" ({told})" if told else ""
    raise ModelError(f"{runner}: the interpreter failed: {error['message']}{told}: {ADVICE}")


def _crash(directory: Path, runner: str, status: int, followed: _Followed, told: str) -> Exception:
    """What an end without a result means."""
    told = f": {told}" if told else ""
    if status == NO_ROOM:
        return RunnerError(
            f"{runner}: cannot write the outputs below {directory.parent}: {followed.no_room}: make room there, or set "
            "TMPDIR to a directory that has it"
        )
    if status >= 0:
        return RunnerError(
            f"{runner}: the interpreter ended with exit code {status} and without a result{told}: are NumPy and "
            "ai-edge-litert installed whole?"
        )
    number, name = -status, str(-status)
    with suppress(ValueError):
        name = signal.Signals(number).name
    ended = f"{runner}: the interpreter was killed by signal {name}{told}"
    if number in CRASHES and followed.started:
        return ModelError(f"{ended}: {ADVICE}")
    if number in CRASHES:
        return RunnerError(f"{ended} before it saw the model: are NumPy and ai-edge-litert installed whole?")
    return RunnerError(f"{ended}: the machine may be out of memory, or someone ended it")


def _last_lines(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    text = os.pread(stderr, 65536, max(0, size - 65536)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    return " | ".join([line for line in lines if line and not line.startswith("INFO:")][-STDERR_LINES:])

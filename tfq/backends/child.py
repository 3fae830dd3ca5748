# SPDX-License-Identifier: Apache-2.0
"""Run the target code in a child: feed it, watch its progress, stop it, and turn a crash into an error.

A child is a process on this machine, or one on a board that a connection of the package `relay` stands for.
"""

import json
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tfq import progress
from tfq.backends.scratch import write_error
from tfq.errors import BackendError, InputError, ModelError

TARGET = Path(__file__).with_name("target")
# Limit for the child's imports, before the model matters.
START_SECS = 120.0
STDERR_LINES = 5
# Lines of LiteRT's log that never explain a failure: information, and accelerators of other hardware.
NOISE = re.compile(r"^INFO:|^I\d{4} |^WARNING: Logging before InitGoogle|NPU accelerator|openvino", re.IGNORECASE)
POLL_SECS = 0.1
# The child's exit code if it cannot write a file; see target/__main__.py.
WRITE_FAILED = 74
# Signals that a model can cause; any process can send the others.
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP}
ADVICE = "The model may be damaged or unsupported by these kernels. Convert it again, or try other kernels"


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """How long a child may run without progress.

    Args:
        wall_secs: Limit in wall-clock seconds.
        cpu_secs: Limit in CPU seconds of the child, which do not grow while other processes use the machine.
    """

    wall_secs: float
    cpu_secs: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start a child.

    Args:
        command: Starts Python on this machine.
        directory: Holds the files of the run. The child writes its own files there, and result.json.
        request: The content of request.json.
        stdin: Whether the child needs a pipe to its stdin.
        stderr: File descriptor for its stderr.
        environment: Its environment variables; None passes on those of this process.
    """

    command: Sequence[str]
    directory: Path
    request: Mapping[str, Any]
    stdin: bool
    stderr: int
    environment: Mapping[str, str] | None

    def write_request(self, parent: int | None) -> None:
        """Write request.json for a child that ends with the process `parent`; None: the child knows its parent.

        Raises:
            BackendError: The file cannot be written.
        """
        try:
            (self.directory / "request.json").write_text(json.dumps({**self.request, "parent": parent}))
        except OSError as error:
            raise write_error(self.directory.parent, "a request", error) from error


class Child(Protocol):
    """A running child.

    Attributes:
        stdin: Unbuffered file that writes to the child's stdin; None if the launch needs none.
        stdout: Unbuffered file of the lines that the child prints.
        place: Where the child writes its files, for messages.
    """

    stdin: Any
    stdout: Any
    place: str

    def cpu_secs(self, pids: Sequence[int]) -> float:
        """Return the CPU seconds that the child has used so far. `pids` are the processes that it has reported."""

    def wait(self) -> int:
        """Wait for the end of the child, and return its exit code (-N for signal N).

        Raises:
            LostConnectionError: The connection to the child ended first.
            BackendError: The child could not be run.
        """

    def kill(self) -> None:
        """End the child now. Has no effect if it has ended. May be called from another thread."""

    def close(self) -> None:
        """End the child if it is running, and release everything. Never raises an error."""


class LostConnectionError(BackendError):
    """The connection to a board ended during a run. A new connection may succeed."""


class Feed(Protocol):
    """The messages that a child receives on its stdin."""

    def messages(self) -> Iterator[bytes]:
        """Yield messages for the child; an empty one means that the child must report something first."""

    def handle_line(self, words: list[bytes]) -> bool:
        """Handle a line of the child's stdout, split into words. Return whether the line was for this feed."""


class ProcessChild:
    """A child that is a new process on this machine."""

    def __init__(self, launch: Launch) -> None:
        """Start the process."""
        launch.write_request(os.getpid())
        self._process = subprocess.Popen(
            [*launch.command, str(TARGET), str(launch.directory)],
            stdin=subprocess.PIPE if launch.stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=launch.stderr,
            env=launch.environment,
            bufsize=0,
        )
        self.stdin, self.stdout, self.place = self._process.stdin, self._process.stdout, str(launch.directory.parent)

    def cpu_secs(self, pids: Sequence[int]) -> float:
        """Return the CPU seconds of the processes."""
        return local_cpu_secs(pids)

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code (-N for signal N)."""
        return self._process.wait()

    def kill(self) -> None:
        """End the process now. Has no effect if it has ended."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and close its pipes."""
        self.kill()
        self.wait()
        close_files(self.stdin, self.stdout)


def start_process(launch: Launch) -> Child:
    """Start a child as a new process."""
    return ProcessChild(launch)


def close_files(*files: Any) -> None:
    """Close files; None is ignored, and so are errors."""
    for file in files:
        if file is not None:
            with suppress(OSError):
                file.close()


def local_cpu_secs(pids: Sequence[int]) -> float:
    """Return the CPU seconds that all threads of some processes of this machine have used so far."""
    return sum(map(_cpu_secs, pids))


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
    start: Callable[[Launch], Child] = start_process,
) -> dict[str, Any]:
    """Run the target on the files in `directory`, and return its result.

    The child never outlives this call.

    Args:
        command: Starts Python.
        directory: Holds the files of the run; the child writes result.json there.
        request: Written to request.json for the child.
        backend: The backend's name, for messages.
        environment: The child's environment variables; None passes on those of this process.
        total: Number of units until the progress bar is complete.
        unit: Unit of the progress bar.
        deadline: Limit without progress, in seconds of wall-clock time or as a `Deadline`; None sets no limit.
        feed: Messages for the child's stdin. Its exceptions are passed on.
        start: Starts the child.

    Returns:
        The content of result.json.

    Raises:
        InputError: The model does not accept its inputs.
        ModelError: The model fails, crashes or does not finish.
        LostConnectionError: The connection to the child ended.
        BackendError: Anything else went wrong.
    """
    if isinstance(deadline, (int, float)):
        deadline = Deadline(wall_secs=deadline)
    # In memory, because it is needed only if the child fails, and a full disk may be the reason.
    stderr = os.memfd_create("stderr")
    try:
        launch = Launch(
            command=command,
            directory=directory,
            request=request,
            stdin=feed is not None,
            stderr=stderr,
            environment=environment,
        )
        try:
            child = start(launch)
        except OSError as error:
            raise BackendError(
                f"{backend}: cannot start {command[0]}: {error.strerror or error}", got=command[0]
            ) from error
        try:
            monitor = _Monitor(child, backend, deadline, feed)
            monitor.run(total, unit)
            status = child.wait()
        finally:
            child.close()
        return _result(directory, backend, status, monitor, _last_lines(stderr))
    finally:
        os.close(stderr)


class _Monitor:
    """Reads a child's stdout, writes messages to its stdin, and checks its deadline."""

    def __init__(self, child: Child, backend: str, deadline: Deadline | None, feed: Feed | None) -> None:
        self.child, self.backend, self.deadline, self.feed = child, backend, deadline, feed
        self._messages = None if feed is None else feed.messages()
        self.started, self.write_failure = False, ""
        self._pids: list[int] = []
        self._last_progress = time.monotonic()
        self._cpu_at_progress: float | None = None
        self._line, self._done = b"", 0

    def run(self, total: int | None, unit: str) -> None:
        """Run until the child closes its stdout.

        Raises:
            BackendError: Python did not start in time.
            ModelError: The child made no progress within the deadline.
        """
        with (
            selectors.DefaultSelector() as selector,
            progress.bar(self.backend, total, unit) as bar,
        ):
            selector.register(self.child.stdout, selectors.EVENT_READ)
            self._send_messages()
            while True:
                for key, _ in selector.select(POLL_SECS):
                    output = os.read(key.fd, 65536)
                    if not output:
                        return
                    for done in self._parse(output):
                        bar.update(done - bar.n)
                    self._send_messages()
                self._check_deadline()

    def _send_messages(self) -> None:
        """Write all messages that are ready; the others follow after the child's next report."""
        if self._messages is None:
            return
        with suppress(BrokenPipeError):  # the child has ended, and its exit code says why
            for message in self._messages:
                if not message:
                    self._note_progress()  # computing these messages may have taken long
                    return
                self.child.stdin.write(message)
            self.child.stdin.close()
        self._messages = None
        self._note_progress()

    def _note_progress(self) -> None:
        # The CPU time is read later, and only if the child stays silent.
        self._last_progress, self._cpu_at_progress = time.monotonic(), None

    def _cpu_time(self) -> float:
        return self.child.cpu_secs(self._pids)

    def _parse(self, output: bytes) -> Iterator[int]:
        """Parse the child's lines; after each `progress <total>` or `more <increment>`, yield the total so far."""
        *lines, self._line = (self._line + output).split(b"\n")
        for line in lines:
            words = line.split()
            if words[:1] == [b"failed"]:
                self.write_failure = line[7:].decode(errors="replace")
            elif words[:1] == [b"started"]:
                self.started = True
                self._pids += [int(word) for word in words[1:] if word.isdigit()]
                self._note_progress()
            elif len(words) == 2 and words[0] in (b"progress", b"more") and words[1].isdigit():
                self._note_progress()
                self._done = int(words[1]) + (self._done if words[0] == b"more" else 0)
                yield self._done
            elif self.feed is not None and self.feed.handle_line(words):
                self._note_progress()

    def _check_deadline(self) -> None:
        silent = time.monotonic() - self._last_progress
        if not self.started:
            if silent > START_SECS:
                raise BackendError(f"{self.backend}: Python did not start within {START_SECS:.0f} s. Try again")
            return
        if self.deadline is None or silent < POLL_SECS:
            return
        if self._cpu_at_progress is None:
            self._cpu_at_progress = self._cpu_time()
        if silent > self.deadline.wall_secs or self._cpu_time() - self._cpu_at_progress > self.deadline.cpu_secs:
            raise ModelError(
                f"{self.backend}: the interpreter was stopped after {silent:.1f} s without progress. The model does "
                "not finish, or is slower than expected for its size. To allow more time, set evaluation.timeout_secs",
                field="timeout_secs",
                got=silent,
            )


def _cpu_secs(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have used so far."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _result(directory: Path, backend: str, status: int, monitor: _Monitor, stderr: str) -> dict[str, Any]:
    try:
        result = json.loads((directory / "result.json").read_text())
    except FileNotFoundError:
        raise _crash(backend, status, monitor, stderr) from None
    error = result.get("error")
    if error is None:
        return result
    message = " ".join(error["message"].split())
    if error["kind"] == "input":
        raise InputError(f"{backend}: {message}", field="inputs")
    details = f" ({stderr})" if stderr else ""
    raise ModelError(
        f"{backend}: the interpreter failed: {message}{details}. {ADVICE}", field="model", got=error["message"]
    )


def _crash(backend: str, status: int, monitor: _Monitor, stderr: str) -> Exception:
    """Return the error for a child that ended without a result."""
    details = f": {stderr}" if stderr else ""
    if status == WRITE_FAILED:
        return BackendError(
            f"{backend}: cannot write the outputs below {monitor.child.place}: {monitor.write_failure}. Free disk "
            "space there, or set TMPDIR to a directory with more space",
            got=monitor.write_failure,
        )
    if status >= 0:
        return BackendError(
            f"{backend}: the interpreter ended with exit code {status} and without a result{details}. Check that "
            "NumPy and ai-edge-litert are installed correctly",
            got=status,
        )
    number, name = -status, str(-status)
    with suppress(ValueError):
        name = signal.Signals(number).name
    ended = f"{backend}: the interpreter was killed by signal {name}{details}"
    if number in CRASHES and monitor.started:
        return ModelError(f"{ended}. {ADVICE}", field="model", got=name)
    if number in CRASHES:
        return BackendError(
            f"{ended} before it loaded the model. Check that NumPy and ai-edge-litert are installed correctly", got=name
        )
    return BackendError(f"{ended}. The machine may be out of memory, or another process ended it", got=name)


def _last_lines(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    text = os.pread(stderr, 65536, max(0, size - 65536)).decode(errors="replace")
    # Several processes may write the same.
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines()))
    return " | ".join([line for line in lines if line and not NOISE.search(line)][-STDERR_LINES:])

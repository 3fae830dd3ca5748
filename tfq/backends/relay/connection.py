# SPDX-License-Identifier: Apache-2.0
"""The host's side of the relay: one connection to a board, and the child that runs there.

`tfq/backends/target/relay.py` is the board's side and describes the frames.
"""

import functools
import io
import json
import mmap
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfq.backends.child import TARGET, Launch, LostConnectionError, close_files
from tfq.backends.limits import Resources
from tfq.backends.target import relay
from tfq.backends.worker import MESSAGE
from tfq.errors import BackendError

# Limit for the login, the start of Python on the board, and its answer.
CONNECT_SECS = 120.0
# A login shell may print text before the relay's first bytes.
MAX_GREETING = 1 << 16
PROGRESS_SECS = 0.2
END_SECS = 10.0
# The loader that the board's Python runs; it reads the relay from stdin.
LOADER = "import sys;exec(compile(sys.stdin.buffer.read({size}),'relay','exec'))"


@functools.cache
def relay_source() -> bytes:
    """Return the code of the board's side."""
    return Path(relay.__file__).read_bytes()


def loader() -> str:
    """Return the Python code that the board starts with, as one line."""
    return LOADER.format(size=len(relay_source()))


@functools.cache
def target_sources() -> dict[str, str]:
    """Return {file: source} of the target's code, which the board needs for a run."""
    return {path.name: path.read_text() for path in sorted(TARGET.glob("*.py"))}


@dataclass(frozen=True, kw_only=True)
class Link:
    """How to reach a board.

    Args:
        name: Name for messages.
        command: Runs the loader on the board, with its stdin and stdout.
        explain: (exit code of `command`, its stderr) -> the error for a connection that failed. A
            `LostConnectionError` if it makes sense to try again.
    """

    name: str
    command: Sequence[str]
    explain: Callable[[int, str], BackendError]


class NoPythonError(BackendError):
    """The board has no suitable Python. `got` is its architecture."""


NO_PYTHON = b"tfq-no-python "


@dataclass
class Facts:
    """Facts that a board reports about itself.

    Args:
        resources: Its cores and memory.
        place: Folder of tfq's files on the board.
        model: The board's own name of its model, such as "Raspberry Pi 4 Model B Rev 1.4"; "" if it has none.
        frequency: The CPU's frequency in the last run: governors, lowest_khz, highest_khz, limit_khz. Empty before the
            first run.
    """

    resources: Resources
    place: str
    model: str = ""
    frequency: dict[str, Any] = field(default_factory=dict)


class Connection:
    """A relay that runs on a board. It serves one run.

    Attributes:
        facts: What the board says about itself.
        frames: The frames to and from the board.
    """

    def __init__(self, link: Link) -> None:
        """Connect, and start the relay.

        Raises:
            NoPythonError: The board has no suitable Python.
            LostConnectionError: The connection failed, and another attempt may succeed.
            BackendError: The connection failed.
        """
        self.link, self._stderr = link, os.memfd_create("transport")
        try:
            self._process = subprocess.Popen(
                link.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
            )
        except OSError as error:
            os.close(self._stderr)
            raise BackendError(
                f"{link.name}: cannot start {link.command[0]}: {error.strerror or error}", got=link.command[0]
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self.reading = self._process.stdout
        try:
            with suppress(BrokenPipeError):
                self._write(relay_source())
            rest = self._read_greeting()
            buffered = io.BufferedReader(_Rejoined(rest, self.reading), 1 << 16)
            self.frames = relay.Frames(buffered, self._process.stdin.fileno())
            self._hello()
        except BaseException:
            self.close()
            raise

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._process.stdin.fileno(), view) :]  # type: ignore[union-attr]

    def _read_greeting(self) -> bytes:
        """Read up to the relay's first bytes, and return what follows them."""
        text, deadline = b"", time.monotonic() + CONNECT_SECS
        with selectors.DefaultSelector() as selector:
            selector.register(self.reading, selectors.EVENT_READ)
            while relay.MAGIC not in text:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise LostConnectionError(
                        f"{self.link.name}: the board did not answer within {CONNECT_SECS:.0f} s. Check that it is on "
                        "and can be reached, then try again",
                        expected=CONNECT_SECS,
                    )
                content = os.read(self.reading.fileno(), 1 << 16)
                if not content or len(text) > MAX_GREETING:
                    line = next((line for line in text.splitlines() if line.startswith(NO_PYTHON)), None)
                    if line is not None:
                        architecture = line[len(NO_PYTHON) :].decode(errors="replace").strip()
                        raise NoPythonError(f"{self.link.name}: the board has no suitable Python", got=architecture)
                    raise self.failure()
                text += content
        return text.partition(relay.MAGIC)[2]

    def _hello(self) -> None:
        code = relay.digest(target_sources())
        try:
            self.frames.send_json(relay.HELLO, {"version": relay.VERSION, "code": code})
            kind, payload = self.frames.receive(relay.HELLO, relay.END)
            answer = relay.parse_json(payload)
            if kind == relay.END:
                raise self.board_error(answer)
            if answer.get("version") != relay.VERSION:
                raise relay.ProtocolError(f"version {answer.get('version')!r}, expected {relay.VERSION}")
            self._needs_code = not answer["has_code"]
            resources = Resources(cores=max(1, int(answer["cores"])), memory_bytes=max(1, int(answer["memory_bytes"])))
            self.facts = Facts(resources=resources, place=str(answer["place"]), model=str(answer["model"])[:100])
        except (OSError, relay.ConnectionEnd) as error:
            raise self.failure() from error
        except (relay.ProtocolError, KeyError, TypeError, ValueError) as error:
            raise self.misunderstood(error) from error

    def send_run(self, launch: Launch) -> None:
        """Send the files and the request of a run.

        Raises:
            OSError: The connection has ended.
        """
        if self._needs_code:
            self.frames.send_json(relay.CODE, target_sources())
        for path in sorted(launch.directory.iterdir()):
            own = path.name in ("ring", "request.json", "result.json") or path.name.startswith((".", "output_"))
            if path.is_file() and not own:
                self.frames.send_file(path.name, path)
        slot_bytes = launch.request.get("slot_bytes", 0)
        ring = launch.directory / "ring"
        slots = ring.stat().st_size // slot_bytes if slot_bytes else 0
        # The folders of this machine's packages and its process IDs mean nothing on the board.
        request = {**launch.request, "path": [], "parent": None}
        self.frames.send_json(relay.RUN, {"request": request, "slots": slots, "stdin": launch.stdin})

    def board_error(self, end: dict[str, Any]) -> BackendError:
        """Return the error for an END frame with an error."""
        place = end.get("place")
        return BackendError(
            f"{self.link.name}: the board could not run the model, with its files below {place}: {end.get('error')}. "
            "Check that there is disk space and that the folder can be written",
            got=end.get("error"),
        )

    def misunderstood(self, error: Exception) -> BackendError:
        """Return the error for frames that do not belong to the protocol."""
        return BackendError(f"{self.link.name}: the board's answer cannot be read: {error}", got=str(error))

    def failure(self) -> BackendError:
        """Wait for the command to end, and return the error that explains it."""
        try:
            status = self._process.wait(END_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, 1 << 16, max(0, size - (1 << 16))).decode(errors="replace")
        return self.link.explain(status, text)

    def kill(self) -> None:
        """End the connection now. The board notices it and stops."""
        self._process.kill()

    def close(self) -> None:
        """End the connection, after waiting for its command for a moment."""
        close_files(self._process.stdin)
        try:
            self._process.wait(END_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        close_files(self.reading)
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1


class _Rejoined(io.RawIOBase):
    """A file with some bytes put back before its content."""

    def __init__(self, first: bytes, file: Any) -> None:
        self._first, self._file = first, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._first:
            count = min(len(buffer), len(self._first))
            buffer[:count], self._first = self._first[:count], self._first[count:]
            return count
        return self._file.readinto(buffer)


class _Input:
    """The stdin of a child on a board."""

    def __init__(self, child: "BoardChild") -> None:
        self._child = child

    def write(self, message: bytes) -> int:
        self._child.send_message(message)
        return len(message)

    def close(self) -> None:
        with suppress(OSError):
            self._child.connection.frames.send(relay.END_OF_INPUT)


class BoardChild:
    """A child that runs on a board, with the interface `child.Child`."""

    def __init__(self, connection: Connection, launch: Launch) -> None:
        """Send the run, and pass on what the board reports."""
        self.connection, self._launch, self._directory = connection, launch, launch.directory
        self.place = f"{connection.facts.place} on the board"
        self._cpu_secs = 0.0
        self._status: int | None = None
        self._error: Exception | None = None
        self._starts: dict[int, tuple[int, int]] = {}  # slot -> (first example, number)
        self._files: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._next_progress = 0.0
        self._ring: mmap.mmap | None = None
        self._slot_bytes = int(launch.request.get("slot_bytes", 0))
        if self._slot_bytes:
            with open(launch.directory / "ring", "rb") as file:
                self._ring = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        read, self._lines = os.pipe()
        self.stdout = os.fdopen(read, "rb", 0)
        self.stdin = _Input(self) if launch.stdin else None
        with suppress(OSError):  # the board may have sent the reason
            connection.send_run(launch)
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def send_message(self, message: bytes) -> None:
        """Send a message for the child's stdin, with the bytes of its slot."""
        start, count, slot = MESSAGE.unpack(message)
        content: bytes | memoryview = b""
        if count:
            self._starts[slot] = start, count
            assert self._ring is not None
            content = self._ring[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]
        self.connection.frames.send(relay.BLOCK, message, content)

    def cpu_secs(self, pids: Sequence[int]) -> float:
        """Return the CPU seconds that the board has reported. Its process IDs mean nothing here."""
        return self._cpu_secs

    def wait(self) -> int:
        """Wait for the end of the run, and return the exit code of the child.

        Raises:
            LostConnectionError: The connection has ended without the board's report of the end.
            BackendError: The board could not run the child.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._status is None:
            raise self.connection.failure()
        return self._status

    def kill(self) -> None:
        """End the connection, and so the run."""
        self.connection.kill()

    def close(self) -> None:
        """End the run if it has not ended, and release everything."""
        if self._status is None:
            self.kill()
        close_files(self.stdout)  # the thread may wait for a reader
        self._thread.join()
        self.connection.close()
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _receive(self) -> None:
        """Thread: handle the board's frames until its END."""
        kinds = (relay.LINE, relay.CLOCK, relay.OUTPUT, relay.FILE, relay.STDERR, relay.END)
        try:
            while self._status is None and self._error is None:
                self._handle(*self.connection.frames.receive(*kinds))
        except (relay.ConnectionEnd, BrokenPipeError, ValueError, OSError) as error:
            self._error = self._receive_error(error)
        except (relay.ProtocolError, KeyError, TypeError) as error:
            self._error = self.connection.misunderstood(error)
        finally:
            os.close(self._lines)

    def _receive_error(self, error: Exception) -> Exception | None:
        """Return the error to raise after `error`; None if the connection has ended, which `wait` explains."""
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            return BackendError(
                f"{self.connection.link.name}: cannot write the outputs below {self._directory.parent}: "
                f"{error.strerror or error}. Free disk space there, or set TMPDIR to a directory with more space",
                got=error.strerror,
            )
        if isinstance(error, ValueError):
            return self.connection.misunderstood(error)
        return None

    def _handle(self, kind: bytes, payload: bytes) -> None:
        if kind == relay.LINE:
            self._handle_line(payload)
        elif kind == relay.CLOCK:
            self._cpu_secs = float(relay.parse_json(payload)["cpu_secs"])
        elif kind == relay.OUTPUT:
            self._store(payload)
        elif kind == relay.FILE:
            if json.loads(payload).get("name", "").startswith(("output_", "ring", "request", "model")):
                raise relay.ProtocolError("a file that the child does not write")
            self.connection.frames.receive_file(payload, self._directory)
        elif kind == relay.STDERR:
            os.write(self._launch.stderr, payload)
        else:
            end = relay.parse_json(payload)
            if "error" in end:
                self._error = self.connection.board_error(end)
            else:
                self.connection.facts.frequency = dict(end["frequency"])
                self._status = int(end["status"])

    def _handle_line(self, line: bytes) -> None:
        words = line.split()
        if words[:1] == [b"free"]:
            # Outputs without values have no OUTPUT frames, but their files must exist.
            for index in range(len(words) - 2):
                self._file(index)
        os.write(self._lines, line)

    def _file(self, index: int) -> int:
        if index not in self._files:
            path = self._directory / f"output_{index}"
            self._files[index] = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        return self._files[index]

    def _store(self, payload: bytes) -> None:
        """Write some bytes of an output to their place, which follows from the block that this side has sent."""
        slot, index, position, total = relay.OUTPUT_HEADER.unpack_from(payload)
        content = memoryview(payload)[relay.OUTPUT_HEADER.size :]
        start, count = self._starts[slot]
        size, rest = divmod(total, count)
        if rest or position + len(content) > total or index > 1 << 12 or self._sizes.setdefault(index, size) != size:
            raise relay.ProtocolError(f"{len(content):,} bytes of {total:,} for output {index} of {count} examples")
        offset = start * size + position
        while content:
            written = os.pwrite(self._file(index), content, offset)
            content, offset = content[written:], offset + written
        if time.monotonic() >= self._next_progress:
            os.write(self._lines, b"more 0\n")
            self._next_progress = time.monotonic() + PROGRESS_SECS

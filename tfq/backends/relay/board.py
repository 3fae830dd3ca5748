# SPDX-License-Identifier: Apache-2.0
"""Start the relay on a board: with the board's Python, or with a runtime that is installed into the board's cache."""

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from tfq.backends.child import Launch
from tfq.backends.relay import runtime
from tfq.backends.relay.connection import NO_PYTHON, BoardChild, Connection, Facts, Link, NoPythonError, loader
from tfq.errors import BackendError, warn

# A Python of the board, for example that of a virtual environment.
PYTHON_VARIABLE = "TFQ_BOARD_PYTHON"
CHECK = (
    "import importlib.util as u, sys; "
    "sys.exit(sys.version_info < (3, 10) or not (u.find_spec('numpy') and u.find_spec('ai_edge_litert')))"
)
INSTALL_SECS = 1800.0
INSTALLED, REACHED = b"tfq-installed", b"tfq-reached"
REACH_SECS = 60.0
MAX_OUTPUT = 1 << 16


class Transport(Protocol):
    """A way to run commands on a board.

    Attributes:
        name: Name for messages. It must not identify the board, because messages may enter a record.
        base: Folder for tfq's files on the board; "" for the user's cache there.
    """

    name: str
    base: str

    def shell(self, script: str) -> Sequence[str]:
        """Return the command that runs a script with `sh` on the board. Its stdin and stdout are the script's."""

    def explain(self, status: int, stderr: str) -> BackendError:
        """Return the error for a command that ended too early. A `LostConnectionError` may be tried again."""


class Board:
    """A board. A context manager that ends its connection."""

    def __init__(self, transport: Transport) -> None:
        """Use a transport. Nothing is connected before it is needed."""
        self._transport = transport
        self._idle: Connection | None = None
        self._facts: Facts | None = None

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    @property
    def facts(self) -> Facts:
        """Facts that the board reports about itself.

        Raises:
            BackendError: The board cannot be reached, or has no Python and none can be installed.
        """
        if self._facts is None:
            self._idle = self._connect()
            self._facts = self._idle.facts
        return self._facts

    def start(self, launch: Launch) -> BoardChild:
        """Start a child on the board, as in `run_child`.

        Raises:
            BackendError: As in `facts`.
        """
        connection, self._idle = self._idle or self._connect(), None
        self._facts = connection.facts
        try:
            return BoardChild(connection, launch)
        except BaseException:
            connection.close()
            raise

    def _connect(self) -> Connection:
        name = self._transport.name
        link = Link(name=name, command=self._transport.shell(self._script()), explain=self._transport.explain)
        try:
            return Connection(link)
        except NoPythonError as error:
            python = os.environ.get(PYTHON_VARIABLE)
            if python:
                raise BackendError(
                    f"{name}: {python} (from {PYTHON_VARIABLE}) on the board is not Python 3.10 or later with NumPy "
                    "and ai-edge-litert. Install them there, or unset the variable to use tfq's own runtime",
                    field=PYTHON_VARIABLE,
                    got=python,
                ) from error
            self._install(runtime.build(str(error.got), name))
        return Connection(link)

    def _script(self) -> str:
        """Return the script that starts the relay with the first suitable Python, or reports that there is none."""
        python = os.environ.get(PYTHON_VARIABLE) or "python3"
        word = f'"$HOME"/{shlex.quote(python[2:])}' if python.startswith("~/") else shlex.quote(python)
        start = f"-B -c {shlex.quote(loader())}"
        return f"""
            {self._base()}
            if {word} -c {shlex.quote(CHECK)} < /dev/null > /dev/null 2>&1; then {word} {start}; exit $?; fi
            python="$base/runtime/$(uname -m)-{runtime.key()}/{runtime.START}"
            if [ -O "$python" ]; then sh "$python" {start}; exit $?; fi
            echo; echo "{NO_PYTHON.decode()}$(uname -m)"; exit 96
        """

    def _base(self) -> str:
        """Return commands that set and export the folder for tfq's files."""
        if self._transport.base:
            choose = f"base={shlex.quote(self._transport.base)}"
        else:
            choose = """
            base="${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/tfq"
            if ! mkdir -p "$base" 2> /dev/null || ! [ -w "$base" ]; then base="${TMPDIR:-/tmp}/tfq-$(id -u)"; fi
            """
        return f"""{choose}
            mkdir -p "$base" || exit 97
            [ -O "$base" ] || {{ echo "$base belongs to another user" >&2; exit 97; }}
            export TFQ_BOARD_BASE="$base" """

    def _install(self, archive: runtime.Archive) -> None:
        """Install the runtime on the board: unpack it next to its final folder, check it, and rename it.

        Raises:
            BackendError: A step failed.
        """
        name = self._transport.name
        script = f"""
            {self._base()}
            cd "$base" && mkdir -p runtime && cd runtime || exit 97
            for old in .part-*; do
                [ -e "$old" ] && ! kill -0 "${{old##*-}}" 2> /dev/null && rm -rf "$old"
            done
            part=".part-$$"
            trap 'rm -rf "$part"' EXIT
            trap 'exit 98' HUP INT TERM PIPE
            mkdir "$part" && cat > "$part/archive" || exit 97
            [ "$(sha256sum < "$part/archive")" = "{archive.sha256}  -" ] || {{
                echo "the runtime did not arrive completely: $(sha256sum < "$part/archive")" >&2; exit 98; }}
            mkdir "$part/tree" && gzip -dc < "$part/archive" | tar -xf - -C "$part/tree" || exit 97
            [ -e "$part/tree/{runtime.START}" ] || exit 97
            [ -d "{archive.name}" ] || mv "$part/tree" "{archive.name}" || exit 97
            echo {INSTALLED.decode()}
        """
        warn(f"{name}: the board has no Python with NumPy and ai-edge-litert. Installing a runtime into its cache")
        with open(archive.path, "rb") as file:
            try:
                status, stdout, stderr = run_script(self._transport, script, stdin=file.fileno(), secs=INSTALL_SECS)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BackendError(f"{name}: cannot install the runtime on the board: {error}") from error
        if INSTALLED not in stdout.split():
            text = last_lines(stderr) or f"exit code {status}"
            raise BackendError(
                f"{name}: cannot install the runtime ({archive.path.stat().st_size:,} bytes packed) on the board: "
                f"{text}. Check that the board has disk space for it",
                got=text,
            )


def unreachable(transport: Transport) -> str | None:
    """Return why a board cannot be reached, or None if it runs commands.

    The exit code of a transport does not prove that, so the command prints a word.
    """
    try:
        status, stdout, stderr = run_script(transport, f"echo {REACHED.decode()}", secs=REACH_SECS)
    except OSError as error:
        return f"the connection cannot be started: {error.strerror or error}"
    except subprocess.TimeoutExpired:
        return f"the board did not answer within {REACH_SECS:.0f} s. Check that it is on and can be reached"
    return None if REACHED in stdout.split() else str(transport.explain(status, stderr))


def run_script(
    transport: Transport, script: str, *, secs: float, stdin: int = subprocess.DEVNULL
) -> tuple[int, bytes, str]:
    """Run a script on a board, and return its exit code, stdout and stderr.

    Raises:
        OSError: The transport's program cannot be started.
        subprocess.TimeoutExpired: The script did not end within `secs` seconds.
    """
    # Files instead of pipes: a process that ssh keeps in the background would hold a pipe open.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        status = subprocess.run(transport.shell(script), stdin=stdin, stdout=stdout, stderr=stderr, timeout=secs)
        stdout.seek(0)
        stderr.seek(0)
        return status.returncode, stdout.read(MAX_OUTPUT), stderr.read(MAX_OUTPUT).decode(errors="replace")


def last_lines(text: str) -> str:
    """Return the last lines of a board's stderr for a message, without the names of home folders, which are users'."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"/home/[^/\s:'\"]+", "~", " | ".join(lines[-3:]))

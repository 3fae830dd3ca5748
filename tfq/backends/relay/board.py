# SPDX-License-Identifier: Apache-2.0
"""Start the relay on a board: with the board's Python, or with a runtime that is installed into the board's cache."""

import os
import shlex
import subprocess
from types import TracebackType

from tfq.backends.child import Launch
from tfq.backends.relay import runtime
from tfq.backends.relay.connection import NO_PYTHON, BoardChild, Connection, Facts, Link, NoPythonError, loader
from tfq.backends.relay.install import install
from tfq.backends.relay.transport import Transport, run_script
from tfq.errors import BackendError

# A Python of the board, for example that of a virtual environment.
PYTHON_VARIABLE = "TFQ_BOARD_PYTHON"
CHECK = (
    "import importlib.util as u, sys; "
    "sys.exit(sys.version_info < (3, 10) or not (u.find_spec('numpy') and u.find_spec('ai_edge_litert')))"
)
REACHED = b"tfq-reached"
REACH_SECS = 60.0


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
            install(self._transport, self._base(), runtime.build(str(error.got), name))
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

# SPDX-License-Identifier: Apache-2.0
"""Keep the log lines of C++ libraries out of the user's stderr, and lose nothing else that is written there.

TensorFlow's converter and quantizer write to file descriptor 2, past `sys.stderr` and past every log level.
`captured_stderr` redirects the descriptor during one call. Afterwards it removes the lines that are known noise and
writes the rest to the real stderr. `stdout_to_stderr` keeps a library's lines out of stdout, which may be a record.

Set the environment variable TF_CPP_MIN_LOG_LEVEL=0 (TensorFlow's own switch) to see all lines.
"""

import contextlib
import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# C++ sources whose warnings and errors say nothing about the model or its conversion.
_SOURCES = (
    rb"cpu_feature_guard|cuda_\w+|cudart_stub|devices|flatbuffer_export|gpu_device|local_rendezvous|mlir_graph_optimization_pass|"
    rb"node_def_util|port|single_machine|tf_tfl_flatbuffer_helpers"
)
_PREFIX = rb"\d{4} [\d:.]+ +\d+ "
# A line of another thread may begin before a line of C++, so a match may start anywhere.
_NOISE = re.compile(
    rb"(?:"
    rb"I" + _PREFIX + rb"\S+:\d+\]"
    rb"|[WE]" + _PREFIX + rb"(?:" + _SOURCES + rb")\.\w+:\d+\]"
    rb"|WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|To enable the following instructions: "
    rb"|fully_quantize: \d+, inference_type: "
    rb"|INFO: (?:Created TensorFlow Lite |Initialized TensorFlow Lite |Applying \d+ TensorFlow Lite )"
    rb"|HighsMip\w+::"  # the solver behind scipy.optimize.milp, with options that ask for no lines
    rb")[^\r\n]*\n?"
)
# What MLIR writes about a failure, as in "loc("conv"): error: ...", "<unknown>:0: note: ...".
_DIAGNOSTIC = re.compile(rb"^[^\r\n]*\b(?:error|note|remark): [^\r\n]*\n?", re.MULTILINE)
_MOST_CHARACTERS = 2000

_lock = threading.RLock()
_active: "list[CapturedStderr]" = []


class CapturedStderr:
    """What was written to file descriptor 2 during a call.

    Attributes:
        text: What was written, without known noise; at most its last 2,000 characters. Empty during the call.
    """

    text = ""
    _real: int | None = None
    _sink: int | None = None

    def add_to(self, message: str) -> str:
        """Return the message of an error, extended by the captured lines that it does not contain."""
        lines = [line.strip() for line in self.text.splitlines()]
        missing = [line for line in dict.fromkeys(lines) if line and line not in message]
        return f"{message} ({' | '.join(missing)})" if missing else message

    def _begin(self) -> bool:
        """Redirect file descriptor 2, unless it is closed or the user wants to see all lines; return whether it is."""
        if os.environ.get(_LOG_LEVEL) == "0":
            return False
        try:
            real = os.dup(2)
        except OSError:
            return False
        self._real, self._sink = real, os.memfd_create("stderr")
        os.dup2(self._sink, 2)
        return True

    def _restore(self) -> bytes:
        """Make file descriptor 2 the real stderr again and return what was written; nothing the second time."""
        if self._real is None or self._sink is None:
            return b""
        os.dup2(self._real, 2)
        content = os.pread(self._sink, os.fstat(self._sink).st_size, 0)
        os.close(self._real)
        os.close(self._sink)
        self._real = self._sink = None
        return content


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect file descriptor 1 to 2 during one call of a library that writes to stdout.

    Python's own `sys.stdout` is redirected too. Nothing happens if one of the descriptors is closed.
    """
    try:
        real = os.dup(1)
    except OSError:
        yield
        return
    try:
        _flush_stdout()
        with contextlib.suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        _flush_stdout()
        os.dup2(real, 1)
        os.close(real)


def is_captured() -> bool:
    """Return whether file descriptor 2 is redirected now."""
    return bool(_active)


@contextlib.contextmanager
def captured_stderr() -> Iterator[CapturedStderr]:
    """Redirect file descriptor 2 during one call, then pass on everything but known noise.

    If the call raises, diagnostics of MLIR are not passed on: they are a note of the exception, and in `text` for the
    message of another one. One thread captures at a time; others wait. Nothing happens if file descriptor 2 is closed.
    A subprocess that another thread starts during the call keeps the redirected stderr.
    """
    captured = CapturedStderr()
    with _lock:
        _flush()
        if not captured._begin():
            yield captured
            return
        _active.append(captured)
        try:
            yield captured
        except BaseException as error:
            _end(captured, is_failed=True)
            if captured.text:
                error.add_note(captured.text)
            raise
        _end(captured, is_failed=False)


def _end(captured: CapturedStderr, *, is_failed: bool) -> None:
    _flush()
    content = _NOISE.sub(b"", captured._restore())
    if captured in _active:
        _active.remove(captured)
    captured.text = content.decode(errors="replace").strip()[-_MOST_CHARACTERS:]
    _write(_DIAGNOSTIC.sub(b"", content) if is_failed else content)


def _flush() -> None:
    """Write what Python buffers for stderr to the descriptor that it was written for."""
    with contextlib.suppress(Exception):  # sys.stderr may be None, closed or the user's own object
        sys.stderr.flush()


def _flush_stdout() -> None:
    """Write what Python and the C library buffer for stdout to the descriptor that it was written for."""
    with contextlib.suppress(Exception):  # as in `_flush`
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)


def _write(content: bytes) -> None:
    with contextlib.suppress(OSError):
        while content:
            content = content[os.write(2, content) :]


def _after_fork_in_child() -> None:
    """Give a child that was forked during a capture the real stderr and a free lock."""
    global _lock
    _lock = threading.RLock()
    while _active:
        _active.pop()._restore()


os.register_at_fork(after_in_child=_after_fork_in_child)

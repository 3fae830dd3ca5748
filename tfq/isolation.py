# SPDX-License-Identifier: Apache-2.0
"""Run functions of native libraries (TensorFlow, litert-quantizer, HDF5) on foreign bytes in a child process.

Their C and C++ code does not check all of a file: on a damaged one it can end the process. A function with the
decorator `isolated` runs in the child within `foreign_bytes()`, and in this process otherwise. The child is a server
that imports the function's module once; it ends with this process. After a crash, the next call starts a new one.

The flatbuffers that this process converts from Keras models are not foreign: `trust` them.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from tfq.errors import ModelError, TfqError
from tfq.native_stderr import captured_stderr

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
# Limit of one call: the imports and, on a slow machine, the quantization of a large model.
TIMEOUT_SECS = 1800.0
QUANTIZER_ADVICE = (
    "The file may be damaged. Convert the model again, or pass the Keras model that it was converted from"
)
_LENGTH = struct.Struct("<q")
_is_foreign: ContextVar[bool] = ContextVar("is_foreign", default=False)
_trusted: set[bytes] = set()
_server: "_Server | None" = None
# The child handles one request at a time.
_lock = threading.Lock()


def trust(model: bytes) -> bytes:
    """Remember that this process built a flatbuffer itself, and return it."""
    _trusted.add(hashlib.sha256(model).digest())
    return model


@contextlib.contextmanager
def foreign_bytes(model: bytes) -> Iterator[None]:
    """Run isolated functions in the child inside, unless this process built `model` itself."""
    token = _is_foreign.set(hashlib.sha256(model).digest() not in _trusted)
    try:
        yield
    finally:
        _is_foreign.reset(token)


def isolated(
    actor: str, *, advice: str, timeout_secs: float = TIMEOUT_SECS
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorate a function of a module so that it runs in the child for foreign bytes.

    Its arguments and its result are pickled. Its exceptions are raised in this process, and what it writes to stderr is
    written there again.

    Args:
        actor: The library that does the work, such as "the quantizer", for the error of a crash.
        advice: What to do about a crash, in sentences without the last period.
        timeout_secs: Limit of one call.

    Raises:
        ModelError: The child crashed or did not finish.
    """
    task = _Task(actor, advice, timeout_secs)

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def wrapper(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            if not _is_foreign.get():
                return function(*arguments, **named)
            with _lock:
                return cast(Result, _call(task, function.__module__, function.__qualname__, arguments, named))

        return wrapper

    return decorate


class _Task(NamedTuple):
    """What an isolated function does, for its errors, and its limit."""

    actor: str
    advice: str
    timeout_secs: float


def _call(task: _Task, module: str, name: str, arguments: Any, named: Any) -> Any:
    global _server
    if _server is None or not _server.is_alive():
        _server = _Server()
    try:
        reply = _server.ask(pickle.dumps((module, name, arguments, named)), time.monotonic() + task.timeout_secs)
    except TimeoutError:
        _server.kill()
        raise ModelError(
            f"{task.actor} did not finish within {task.timeout_secs:.0f} s. {task.advice}",
            field="model",
            got=task.timeout_secs,
        ) from None
    except BaseException:
        _server.kill()
        raise
    if reply is None:
        status = _server.kill()
        cause = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        problem = "did not finish in time" if status == -signal.SIGXCPU else f"ended with {cause}"
        raise ModelError(f"{task.actor} {problem} on this model. {task.advice}", field="model", got=cause)
    kind, value, stderr = pickle.loads(reply)
    if stderr:
        with contextlib.suppress(OSError):
            os.write(2, stderr.encode())
    if kind == "error":
        raise value
    return value


class _Server:
    """The child process."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tfq import isolation; isolation.serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # `serve` returns what is written during a call
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise TfqError(f"cannot start {sys.executable}: {error.strerror}") from error
        self._pid = os.getpid()

    def is_alive(self) -> bool:
        """Check whether the process runs and belongs to this process, not to one that this was forked from."""
        return self._pid == os.getpid() and self._process.poll() is None

    def ask(self, request: bytes, end: float) -> bytes | None:
        """Return the reply to a request; None if the process has ended. Raise TimeoutError at the time `end`."""
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin.fileno(), request)
        except BrokenPipeError:
            return None
        return self._read(end)

    def _read(self, end: float) -> bytes | None:
        assert self._process.stdout is not None
        file, content = self._process.stdout.fileno(), bytearray()
        while len(content) < _LENGTH.size or len(content) < _LENGTH.size + _LENGTH.unpack_from(content)[0]:
            if not select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(file, 1 << 20)
            if not part:
                return None
            content += part
        return bytes(content[_LENGTH.size :])

    def kill(self) -> int:
        """End the process, and return its exit code (-N for signal N)."""
        if self._pid != os.getpid():
            return 0
        # After a crash the process has ended, or is about to.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(1)
        self._process.kill()
        return self._process.wait()


@atexit.register
def stop() -> None:
    """End the child if it is running."""
    global _server
    if _server is not None:
        server, _server = _server, None
        with contextlib.suppress(OSError):
            server._process.stdin.close()  # type: ignore[union-attr]
        server.kill()


def serve() -> None:
    """Handle requests from stdin until it ends. Runs in the child."""
    import importlib
    import resource
    import warnings

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.dup(1)
    os.dup2(2, 1)  # libraries print
    while (request := _read_request()) is not None:
        module, name, arguments, named = pickle.loads(request)
        with captured_stderr() as stderr:
            try:
                function = getattr(importlib.import_module(module), name)
                reply = ("value", function(*arguments, **named))
            except Exception as error:
                reply = ("error", _picklable(error))
        _write(replies, pickle.dumps((*reply, stderr.text)))


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _read_request() -> bytes | None:
    header = _read_exactly(_LENGTH.size)
    return _read_exactly(_LENGTH.unpack(header)[0]) if header else None


def _read_exactly(count: int) -> bytes:
    content = bytearray()
    while len(content) < count and (part := os.read(0, count - len(content))):
        content += part
    return bytes(content)


def _write(file: int, content: bytes) -> None:
    view = memoryview(_LENGTH.pack(len(content)) + content)
    while view:
        view = view[os.write(file, view) :]

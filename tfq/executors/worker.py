# SPDX-License-Identifier: Apache-2.0
"""A worker process: it imports the libraries once, and forks a child for each task.

Each task starts in the same state: no earlier task has counted up the names of Keras layers, drawn random numbers or
started TensorFlow. So results do not depend on which worker runs a task, nor on what it ran before. The worker itself
never starts TensorFlow, and has one thread, so forking it is safe.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
from multiprocessing.connection import Connection, wait
from typing import IO, Any, cast

from tfq import progress
from tfq.executors import call
from tfq.store import software
from tfq.typing import JSON

# Imported by the worker itself after a task needed them.
_LIBRARIES = ("tensorflow", "keras", "tf_keras", "tensorflow_model_optimization")
_PR_SET_PDEATHSIG = 1


def serve(descriptor: int) -> None:
    """Run the tasks that arrive on a socket, one at a time, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides
    connection = Connection(descriptor)
    software()  # its hash is computed once
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        reply = _run_in_child(request, connection)
        warm_up(reply.pop("imported", ()))
        connection.send_bytes(json.dumps(reply).encode())


def warm_up(modules: Any) -> None:
    """Import modules now, so that later children need not. Nothing may start a thread."""
    for name in modules:
        if name not in sys.modules:
            if name == "tensorflow":
                progress.import_tensorflow()
            importlib.import_module(name)


def run_in_this_process(request: JSON) -> JSON:
    """Run a task in this process, which must be new, and return the reply."""
    try:
        call.prepare(request)
    except Exception as error:
        return call.failure_of(error)
    return {**call.reply_of(request), "imported": _imported(request)}


def _imported(request: JSON) -> list[str]:
    module = request["function"].partition(":")[0]
    return [name for name in (*_LIBRARIES, module) if name in sys.modules and (name in _LIBRARIES or _is_ours(name))]


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "tfq"


def _run_in_child(request: JSON, connection: Connection) -> JSON:
    """Fork a child that runs the task. End with it if the driver ends."""
    read, write = os.pipe()
    with tempfile.TemporaryFile() as log:
        pid = os.fork()
        if pid == 0:
            _be_the_child(request, write, log)
        os.close(write)
        reply = _read_reply(read, connection, pid)
        _, status = os.waitpid(pid, 0)
        if reply is not None:
            return reply
        code = os.waitstatus_to_exitcode(status)
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"kind": "killed", "message": reason, "details": _end_of(log)}


def _be_the_child(request: JSON, write: int, log: IO[bytes]) -> None:
    """Run the task, write the reply, and exit. Never returns."""
    try:
        cast(Any, ctypes.CDLL(None)).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        content = json.dumps(run_in_this_process(request)).encode()
        sys.stdout.flush()
        sys.stderr.flush()
        with os.fdopen(write, "wb") as file:
            file.write(content)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _read_reply(read: int, connection: Connection, pid: int) -> JSON | None:
    """Return the reply of the child; None if it ended without one. If the driver ends first, end both."""
    content = bytearray()
    with os.fdopen(read, "rb", 0) as pipe:
        while True:
            if read not in wait([read, connection]):
                # The driver sends nothing while a task runs: it has ended, or closed the executor.
                os.kill(pid, signal.SIGKILL)
                os.killpg(0, signal.SIGKILL)
            part = pipe.read(1 << 16)
            if not part:
                break
            content += part
    try:
        return cast(JSON, json.loads(content))
    except ValueError:
        return None


def _end_of(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - call.MAX_DETAILS))
    return log.read().decode(errors="replace")

# SPDX-License-Identifier: Apache-2.0
"""Mode "vela": compile the model with Arm's Vela for an Ethos-U NPU. Needs the package ethos-u-vela.

The folder `vela` gets Vela's own files: the compiled model, a summary (CSV) and a database (XML). Only what Vela
prints says why it leaves an op to the CPU.
"""

import contextlib
import ctypes
import io
import os

from . import session


def run(directory, request):
    """Compile `model.tflite` with request["arguments"]. Return what Vela printed, and its version."""
    from ethosu.vela import _version, vela

    session.limit_memory(request["memory_bytes"])
    arguments = [os.path.join(directory, "model.tflite"), "--output-dir", os.path.join(directory, "vela")]
    path = os.path.join(directory, "log")
    # Vela's Python and C++ parts have separate buffers, whose texts would be mixed.
    with contextlib.redirect_stdout(io.StringIO()) as printed, stdout_to(path):
        try:
            status = vela.main([*arguments, *request["arguments"]])
        except SystemExit as error:
            status = error.code
    with open(path, errors="replace") as file:
        log = f"{file.read()}\n\n{printed.getvalue()}"
    if status:
        raise RuntimeError(" ".join(log.split()[-100:]) or f"Vela ended with exit code {status}")
    return {"log": log, "version": _version.__version__}


@contextlib.contextmanager
def stdout_to(path):
    """Redirect the file descriptor of stdout, which carries this process' messages to its parent, to a file."""
    saved = os.dup(1)
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        os.dup2(file, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(file)

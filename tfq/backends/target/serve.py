# SPDX-License-Identifier: Apache-2.0
"""`python FOLDER --serve`: has NumPy and the interpreter imported, and forks a process for each run that is asked for.

This process itself never sees a model, and has one thread alone, so that a fork of it is as good as a fresh start. Its
stdin is a socket. A message is JSON with the run's directory, environment and CPUs, and carries four descriptors:
stdin, stdout, stderr, and a socket that tells the exit code when the run has ended; closing its other end ends the run
at once. The server ends, and with it all its runs, when nobody holds the other end of its stdin.
"""

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import struct

import ai_edge_litert.interpreter  # noqa: F401  what forks share
import numpy as np  # noqa: F401

from . import examples, samples, session  # noqa: F401

LARGEST_MESSAGE = 1 << 18
STATUS = struct.Struct("<i")


def serve(run):
    """Until stdin is closed. `run` is called in each fork, with the directory and our process id; it gives a status."""
    # The terminal sends it to all; whoever asked for a run decides whether that ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    requests = socket.socket(fileno=os.dup(0))
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is requests:
                    message, descriptors, _, _ = socket.recv_fds(requests, LARGEST_MESSAGE, 4)
                    if not message:
                        return
                    start(selector, run, json.loads(message), descriptors)
                elif key.data[0] == "control":
                    # Closed or shut down: the process is not wanted any more. What it leaves is told below.
                    selector.unregister(key.fileobj)
                    os.kill(key.data[1], signal.SIGKILL)
                else:
                    finish(selector, key)


def start(selector, run, message, descriptors):
    """Fork for one message."""
    *streams, control = descriptors
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for target, source in enumerate(streams):
                os.dup2(source, target)
            os.closerange(3, 1 << 16)
            os.environ.clear()
            os.environ.update(message["environment"])
            os.sched_setaffinity(0, message["cpus"])
            status = run(message["directory"], server)
        finally:
            os._exit(status)
    for descriptor in streams:
        os.close(descriptor)
    connection = socket.socket(fileno=control)
    selector.register(connection, selectors.EVENT_READ, ("control", pid))
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, ("ended", pid, connection))


def finish(selector, key):
    """Tell the exit code of a fork that has ended, -N for signal N."""
    _, pid, connection = key.data
    selector.unregister(key.fileobj)
    os.close(key.fd)
    if connection.fileno() in selector.get_map():
        selector.unregister(connection)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):  # nobody may wait for it any more
        connection.send(STATUS.pack(status))
    connection.close()

# SPDX-License-Identifier: Apache-2.0
"""`python FOLDER --serve`: import NumPy and the interpreter once, and fork a process for each requested run.

This process never loads a model and has only one thread, so a fork of it is equivalent to a new process. Its stdin is a
socket. A message is JSON with the run's directory, environment and CPUs. It carries four file descriptors: stdin,
stdout, stderr, and a socket that receives the exit code when the run has ended. Closing the other end of this socket
ends the run at once. The server and all its runs end when the other end of its stdin is closed.
"""

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import struct

import ai_edge_litert.interpreter  # noqa: F401  imported here for all forks
import numpy as np  # noqa: F401

from . import activations, examples, samples, session, statistics  # noqa: F401

LARGEST_MESSAGE = 1 << 18
STATUS = struct.Struct("<i")


def serve(run):
    """Serve requests until stdin is closed.

    Args:
        run: Called in each fork with the directory and the ID of this process. It returns the exit code.
    """
    # Ctrl-C in the terminal reaches this process too. The process that requested a run decides whether it ends.
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
                    if key.data[2].fileno() < 0:
                        continue  # the process ended at the same time, and `finish` has closed this socket
                    # Closed or shut down: end the process. `finish` reports its exit code.
                    selector.unregister(key.fileobj)
                    os.kill(key.data[1], signal.SIGKILL)
                else:
                    finish(selector, key)


def start(selector, run, message, descriptors):
    """Fork a process for one message."""
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
    selector.register(connection, selectors.EVENT_READ, ("control", pid, connection))
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, ("ended", pid, connection))


def finish(selector, key):
    """Send the exit code of a fork that has ended, -N for signal N."""
    _, pid, connection = key.data
    selector.unregister(key.fileobj)
    os.close(key.fd)
    if connection.fileno() in selector.get_map():
        selector.unregister(connection)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):  # the receiver may have ended
        connection.send(STATUS.pack(status))
    connection.close()

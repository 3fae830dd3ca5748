# SPDX-License-Identifier: Apache-2.0
"""Forks that do part of this process's work, report their result once, and end with this process."""

import errno
import json
import os
import signal

from . import session

WRITE_FAILED = 74


class Fork:
    """A fork of this process that calls `work` and reports its result as JSON values.

    If the work raises an exception, `report` and `check` raise it in this process. If the fork crashes, they end this
    process in the same way.
    """

    def __init__(self, work):
        """Fork this process."""
        parent = os.getpid()
        self._reading, writing = os.pipe()
        self._pid, self._report = os.fork(), None
        if self._pid == 0:
            status = 1
            try:
                session.die_with(parent)
                os.write(writing, json.dumps(_call(work)).encode())
                status = 0
            except OSError as error:
                print(f"failed {error.strerror or error}", flush=True)
                status = WRITE_FAILED
            finally:
                os._exit(status)
        os.close(writing)

    def report(self):
        """Wait for the fork to end, and return its result."""
        return self._wait(0)

    def check(self):
        """Raise the fork's exception, or crash, if the fork has failed already."""
        self._wait(os.WNOHANG)

    def _wait(self, options):
        if self._report is None:
            pid, status = os.waitpid(self._pid, options)
            if not pid:
                return None
            _exit_if_failed(os.waitstatus_to_exitcode(status))
            with open(self._reading, "rb") as file:
                self._report = json.loads(file.read())
        error = self._report.get("error")
        if error is not None:
            raise (session.InputMismatch if error["kind"] == "input" else RuntimeError)(error["message"])
        return self._report


def _call(work):
    try:
        return work()
    except session.InputMismatch as error:
        return {"error": {"kind": "input", "message": str(error)}}
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        return {"error": {"kind": "interpreter", "message": str(error)}}


def _exit_if_failed(status):
    """End this process with the same signal or exit code, if a fork ended without a report."""
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    if status:
        os._exit(status)

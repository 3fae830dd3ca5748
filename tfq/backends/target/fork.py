# SPDX-License-Identifier: Apache-2.0
"""Processes that do a share of the work of this one: forked from it, they report once, and end when it does."""

import errno
import json
import os
import signal

from . import session

NO_ROOM = 74


class Fork:
    """A fork of this process that does `work` and reports what that returns, JSON values.

    An InputMismatch or any other failure of the work is raised here, by `report`; a crash becomes this process's own.
    """

    def __init__(self, work):
        parent = os.getpid()
        self._reading, writing = os.pipe()
        self._pid, self._report = os.fork(), None
        if self._pid == 0:
            status = 1
            try:
                session.die_with(parent)
                os.write(writing, json.dumps(_done(work)).encode())
                status = 0
            except OSError as error:
                print(f"failed {error.strerror or error}", flush=True)
                status = NO_ROOM
            finally:
                os._exit(status)
        os.close(writing)

    def report(self):
        """What it reports, when it has ended."""
        return self._ended(0)

    def check(self):
        """Raise, or crash, if it already ended by an error or a crash."""
        self._ended(os.WNOHANG)

    def _ended(self, options):
        if self._report is None:
            pid, status = os.waitpid(self._pid, options)
            if not pid:
                return None
            _take_over(os.waitstatus_to_exitcode(status))
            with open(self._reading, "rb") as file:
                self._report = json.loads(file.read())
        error = self._report.get("error")
        if error is not None:
            raise (session.InputMismatch if error["kind"] == "input" else RuntimeError)(error["message"])
        return self._report


def _done(work):
    try:
        return work()
    except session.InputMismatch as error:
        return {"error": {"kind": "input", "message": str(error)}}
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        return {"error": {"kind": "interpreter", "message": str(error)}}


def _take_over(status):
    """End as a fork has that did not come to report."""
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    if status:
        os._exit(status)

# SPDX-License-Identifier: Apache-2.0
"""Processes that share the work of a run: how their errors and crashes are reported."""

import subprocess
import sys

import pytest

from tfq.backends.target import session
from tfq.backends.target.fork import Fork

DIE = """
import os, signal, time
from tfq.backends.target.fork import Fork
def work():
    {work}
other = Fork(work)
{then}
print("not reached")
"""


def outcome(work: str, then: str) -> subprocess.CompletedProcess:
    code = DIE.format(work=work, then=then)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)


def test_the_report_is_what_the_work_returned():
    others = [Fork(lambda number=number: {"done": number}) for number in range(3)]
    assert [other.report() for other in others] == [{"done": 0}, {"done": 1}, {"done": 2}]
    assert others[0].report() == {"done": 0}


def test_an_error_in_the_child_is_raised_when_reading_its_report():
    def mismatch():
        raise session.InputMismatch("takes int8, got float32")

    with pytest.raises(session.InputMismatch, match="float32"):
        Fork(mismatch).report()
    with pytest.raises(RuntimeError, match="zero"):
        Fork(lambda: {"done": 1 // 0}).report()


@pytest.mark.parametrize("then", ["other.report()", "time.sleep(1); other.check()"])
def test_a_crash_in_the_child_ends_the_waiting_process_alike(then):
    died = outcome("os.kill(os.getpid(), signal.SIGSEGV)", then)
    assert died.returncode == -11
    assert died.stdout == ""


def test_a_full_disk_is_reported_and_ends_both():
    died = outcome("raise OSError(28, 'No space left on device')", "other.report()")
    assert (died.returncode, died.stdout) == (74, "failed No space left on device\n")


def test_who_is_left_alone_ends():
    died = outcome("time.sleep(60)", "os.write(1, b'%d' % other._pid); os.kill(os.getpid(), signal.SIGKILL)")
    assert died.returncode == -9
    # communicate() returned, so no process holds the other end of stdout any more.
    assert died.stdout.isdigit()

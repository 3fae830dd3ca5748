# SPDX-License-Identifier: Apache-2.0
"""Run a self-test of a bundle as a child process with a time limit."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tfq import artifacts
from tfq.deploy.platform import SelfTestResult
from tfq.progress import printable

TIMEOUT_SECS = 300
_MOST_SHOWN = 500


def run_program(name: str, command: Sequence[str], folder: Path, *, timeout: float = TIMEOUT_SECS) -> SelfTestResult:
    """Run a self-test in the folder of a bundle: exit code 0 is passed, any other is failed.

    The status is "not run" if the program cannot be started.

    Args:
        name: The name of the self-test.
        command: The program and its arguments.
        folder: The folder of the bundle, in which it runs.
        timeout: Seconds after which the program is stopped, which is a failure.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        process = subprocess.Popen(
            [*command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:  # not executable, a folder that does not allow programs, no memory
        detail = f"{artifacts.shown(command[0])} cannot be started: {error.strerror or error}"
        return SelfTestResult(name=name, status="not run", detail=detail)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return SelfTestResult(name=name, status="failed", detail=f"it did not end within {timeout:g} seconds")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    status = process.returncode
    if status == 0:
        return SelfTestResult(name=name, status="passed", detail=_shown(output))
    how = f"exit code {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
    return SelfTestResult(name=name, status="failed", detail=f"{how}: {_shown(output) or _shown(errors)}")


def _shown(text: str) -> str:
    """Return the last lines of an output as one line."""
    line = "; ".join(line.strip() for line in text.strip().splitlines())
    line = printable(line)
    return line if len(line) <= _MOST_SHOWN else f"...{line[-_MOST_SHOWN:]}"

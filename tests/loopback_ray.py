# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes on this machine, each with a loopback address and one CPU.

`benchmarks/ray_nodes.py` uses it too.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAD, NODE = "127.0.0.2", "127.0.0.3"
_START_SECS = 90


class Nodes:
    """The two nodes. Only who has the token, which the environment of this process gets too, can use them."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
        with socket.socket() as probe:
            probe.bind((HEAD, 0))
            self.port = probe.getsockname()[1]
        self.address = f"{HEAD}:{self.port}"
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
        # Ray gives its workers a low priority (15), so that any other process of the machine would slow them.
        os.environ.update(RAY_worker_niceness="0")
        self.head = self._start(
            "--head", f"--node-ip-address={HEAD}", f"--port={self.port}", f"--temp-dir={self.folder}",
            "--include-dashboard=false",
        )  # fmt: skip
        self.node = self.start_node()

    def start_node(self):
        """Start the second node, and wait until it takes part."""
        return self._start(f"--address={self.address}", f"--node-ip-address={NODE}")

    def is_node_busy(self):
        """Check whether the second node runs a task. Ray writes what a worker does into the title of its process."""
        titles = [_title(pid) for pid in _descendants(self.node.pid)]
        return any(title.startswith("ray::") and not title.startswith("ray::IDLE") for title in titles)

    def kill_node(self):
        """Kill every process of the second node with SIGKILL."""
        _kill(self.node)

    def stop(self):
        """End both nodes."""
        for process in (self.node, self.head):
            _kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *options):
        log = self.folder / f"{len(list(self.folder.iterdir()))}.log"
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", *options]
        with open(log, "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        end = time.monotonic() + _START_SECS
        while "This command will now block" not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                _kill(process)
                raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        return process


def _title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _descendants(pid):
    """Return a process and all of its descendants: Ray's workers have other process groups."""
    pids = [pid]
    for each in pids:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids += [int(child) for child in task.read_text().split()]
    return pids


def _kill(process):
    for pid in _descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()

# SPDX-License-Identifier: Apache-2.0
"""The processes that a server started by a test runs."""

import contextlib
from pathlib import Path


def descendants(process: int) -> dict[int, str]:
    """Return {process ID: command line} of the descendants of a process, without zombies."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parents[int(folder.name)] = int(fields[1])
    results, pending = {}, [process]
    while pending:
        parent = pending.pop()
        new = [pid for pid, its_parent in parents.items() if its_parent == parent]
        results.update({pid: commands[pid] for pid in new})
        pending += new
    return results

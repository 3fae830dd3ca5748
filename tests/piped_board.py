# SPDX-License-Identifier: Apache-2.0
"""A board that is a folder of this machine, reached by the relay over a local pipe."""

from pathlib import Path

from tfq.backends import BackendKind
from tfq.backends.child import LostConnectionError
from tfq.backends.relay.backend import RelayBackend

PIPE = BackendKind(
    name="pipe",
    help="a relay on this machine",
    open=lambda address: PipeBackend(Path(address)),
    times=True,
    reports_memory=True,
)


class PipeTransport:
    """Commands of this machine's shell."""

    name, push = "pipe", None

    def __init__(self, base: Path, before: str = "") -> None:
        """Use the folder `base` of the board. `before`: commands that run first."""
        self.base, self.before = str(base), before

    def shell(self, script: str) -> list[str]:
        return ["sh", "-c", f"{self.before}\n{script}"]

    def explain(self, status: int, stderr: str) -> LostConnectionError:
        return LostConnectionError(f"pipe: exit code {status}", got=status)


class PipeBackend(RelayBackend):
    """The board at the other end of a pipe."""

    def __init__(self, base: Path, before: str = "") -> None:
        self.kind, self.base, self.before = PIPE, base, before

    def transport(self) -> PipeTransport:
        return PipeTransport(self.base, self.before)

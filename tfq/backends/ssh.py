# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on a Raspberry Pi or another Linux board that OpenSSH reaches.

The `ssh` program of this machine makes the connection, with the user's own configuration, keys and known hosts. Nothing
is asked: a connection that needs a password fails.
"""

import atexit
import contextlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfq.backends.child import LostConnectionError
from tfq.backends.protocol import BackendKind
from tfq.backends.relay.backend import RelayBackend
from tfq.backends.scratch import scratch_directory
from tfq.errors import BackendError, InputError
from tfq.registry import register

# How to start ssh, as in GIT_SSH_COMMAND: "ssh -F my_config".
COMMAND_VARIABLE = "TFQ_SSH_COMMAND"
OPTIONS = {
    "BatchMode": "yes",  # never ask
    "ClearAllForwardings": "yes",
    "ConnectTimeout": "20",
    "ControlMaster": "auto",
    "ControlPersist": "60",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "INFO",  # a connection that fails must say why
    "RemoteCommand": "none",
    "ServerAliveCountMax": "4",
    "ServerAliveInterval": "15",
}
# A socket's path has at most 107 bytes, and ssh adds 17 to it while it creates one.
MAX_SOCKET_PATH = 107 - 17
EXIT_SECS = 5
CONNECTION_FAILED = 255
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ZONE = re.compile(r"[A-Za-z0-9_.-]+")
# Text of ssh -> (what is wrong, what to do, whether another attempt may succeed).
_FAILURES: dict[str, tuple[str, str, bool]] = {
    "HOST IDENTIFICATION HAS CHANGED": (
        "the board's host key is not the one that this machine knows",
        "If the board was reinstalled, remove the old key with `ssh-keygen -R HOST` (`-R '[HOST]:PORT'` if the port is "
        "not 22) and connect once with `ssh`. Otherwise, another machine may pretend to be the board",
        False,
    ),
    "Host key verification failed": (
        "this machine does not know the board's host key",
        "Connect once with `ssh`, compare the key that it shows with the board's, and accept it",
        False,
    ),
    "Permission denied": (
        "the board did not accept a key of this machine",
        "Install one with `ssh-copy-id`, and check that `ssh` connects without asking for a password",
        False,
    ),
    "Could not resolve hostname": ("the name of the board is unknown", "Check it, or use its IP address", False),
    "Connection refused": ("the board refuses connections", "Check that sshd runs on it, and the port", True),
    "timed out": ("the board does not answer", "Check that it is on and can be reached", True),
    "No route to host": ("the board cannot be reached", "Check that it is on, and the network", True),
    "Network is unreachable": ("the board cannot be reached", "Check the network", True),
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a board is: the part after `ssh:`.

    Args:
        host: Name or IP address, or an alias of ssh's configuration.
        user: The user; "" for the one of ssh's configuration.
        port: The port; None for the one of ssh's configuration.
    """

    host: str
    user: str = ""
    port: int | None = None


def parse_address(text: str) -> Address:
    """Parse `[user@]host[:port]`. An IPv6 address with a port has brackets: `[::1]:2222`.

    Raises:
        InputError: The address is malformed.
    """
    user, at, rest = text.rpartition("@")
    if at and not _USER.fullmatch(user):
        reason = "a password is not accepted here, use a key" if ":" in user else f"{user!r} is not a user's name"
        raise _malformed(text, reason)
    port = ""
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise _malformed(text, "after [, an IPv6 address and ] must follow")
        _check_ipv6(text, host)
        has_port, port = bool(tail), tail[1:]
    elif rest.count(":") > 1:
        host, has_port = rest, False
        _check_ipv6(text, host)
    else:
        host, colon, port = rest.partition(":")
        has_port = bool(colon)
        if not _HOST.fullmatch(host):
            raise _malformed(text, f"{host!r} is not the name or address of a host")
    if has_port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 1 << 16):
        raise _malformed(text, f"the port is {port!r}, expected a number from 1 to 65535")
    return Address(host=host, user=user, port=int(port) if has_port else None)


def _check_ipv6(text: str, host: str) -> None:
    import ipaddress  # here, so that importing tfq stays fast

    address, percent, zone = host.partition("%")
    try:
        ipaddress.IPv6Address(address)
        valid = not percent or bool(_ZONE.fullmatch(zone))
    except ValueError:
        valid = False
    if not valid:
        raise _malformed(text, f"{host!r} is not an IPv6 address")


def _malformed(text: str, reason: str) -> InputError:
    return InputError(
        f"ssh:{text}: {reason}. Expected ssh:[user@]host[:port], for example ssh:pi@raspberrypi.local",
        field="address",
        expected="[user@]host[:port]",
        got=text,
    )


class SshTransport:
    """Commands on a board through ssh. Connections to one board share a master, so that only the first is slow."""

    name, base, push = "ssh", "", None

    def __init__(self, address: Address) -> None:
        """Use an address. Nothing is connected."""
        self._address = address

    def shell(self, script: str) -> list[str]:
        """Return the command that runs a script with `sh` on the board."""
        # With a second command, `sh` stays the parent of the first and reports its exit code, even after a signal.
        return [*self._client(), "--", self._address.host, f"sh -c {shlex.quote(script + chr(10) + 'exit $?')}"]

    def _client(self) -> list[str]:
        options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
        control = _control_directory()
        if control is None:
            options = [option for option in options if not option.startswith("-oControl")]
        else:
            names = [self._address.user, self._address.host, str(self._address.port or "")]
            path = control / str(_numbers.setdefault(tuple(names), len(_numbers)))
            options.append(f'-oControlPath="{path}"')
            _masters[path] = self._address
        return [
            *shlex.split(os.environ.get(COMMAND_VARIABLE) or "ssh"),
            "-T",
            *options,
            *(["-p", str(self._address.port)] if self._address.port else []),
            *(["-l", self._address.user] if self._address.user else []),
        ]

    def explain(self, status: int, stderr: str) -> BackendError:
        """Return the error for a command that ended too early. It does not name the board, for records."""
        if status == CONNECTION_FAILED:
            for text, (problem, advice, again) in _FAILURES.items():
                if text in stderr:
                    kind = LostConnectionError if again else BackendError
                    return kind(f"ssh: {problem}. {advice}", got=text)
        if status in (0, CONNECTION_FAILED):
            return LostConnectionError(
                "ssh: the connection to the board was lost. Check the board and the network with `ssh`", got=status
            )
        if status > 128:
            return LostConnectionError(
                f"ssh: the relay on the board was ended by signal {status - 128}. The board may be out of memory",
                got=status,
            )
        from tfq.backends.relay.transport import last_lines

        return BackendError(
            f"ssh: the board cannot start the relay (exit code {status}): {last_lines(stderr)}", got=status
        )


_masters: dict[Path, Address] = {}
_numbers: dict[tuple[str, ...], int] = {}
_resources = contextlib.ExitStack()
_directory: Path | None = None


def _control_directory() -> Path | None:
    """Return the private folder of this process for the sockets of masters; None if its path would be too long."""
    global _directory
    if _directory is None:
        _directory = _resources.enter_context(scratch_directory())
        os.chmod(_directory, 0o700)
        atexit.register(stop_masters)
    return _directory if len(os.fsencode(_directory)) + 8 <= MAX_SOCKET_PATH else None


def stop_masters() -> None:
    """End the connections that are kept open, and remove their sockets. They end by themselves a minute later."""
    global _directory
    command = shlex.split(os.environ.get(COMMAND_VARIABLE) or "ssh")
    for path, address in _masters.items():
        if path.exists():
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    [*command, f'-oControlPath="{path}"', "-O", "exit", "--", address.host],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=EXIT_SECS,
                )
    _masters.clear()
    _resources.close()
    _directory = None


def _unavailable() -> str | None:
    command: Sequence[str] = shlex.split(os.environ.get(COMMAND_VARIABLE) or "ssh")
    if not command or shutil.which(command[0]) is None:
        return "the program ssh is missing: install OpenSSH's client (on Debian: apt install openssh-client)"
    return None


class SshBackend(RelayBackend):
    """A board that ssh reaches."""

    def __init__(self, address: str) -> None:
        """Open the backend. Nothing is connected before the first run.

        Raises:
            InputError: The address is malformed.
        """
        self.kind, self.address = SSH, address
        self._parsed = parse_address(address)

    def transport(self) -> SshTransport:
        """Return the way to the board."""
        return SshTransport(self._parsed)


SSH = register(
    BackendKind(
        name="ssh",
        help="a Raspberry Pi or another 64-bit Linux board, reached by OpenSSH",
        open=SshBackend,
        times=True,
        reports_memory=True,
        address="[user@]host[:port]",
        needs_address=True,
        private_address=True,
        unavailable=_unavailable,
    )
)

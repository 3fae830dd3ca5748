# SPDX-License-Identifier: Apache-2.0
"""An OpenSSH server on the loopback interface, from Debian packages that are unpacked but not installed.

It runs as the user of the tests. If that is root, it runs in its own mount namespace, because it then needs the user
`sshd` and the folder /run/sshd.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from process_tree import descendants

from tfq.backends.qemu import apt

# Debian 12's server needs the first library, Debian 13's both. The other libraries are part of every system.
SERVER, LIBRARIES = "openssh-server", ("libwrap0", "libwtmpdb0")


def unpack_server(directory: Path) -> Path:
    """Download and unpack the server, and return the folder that holds its usr/."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if _download(SERVER, directory, environment):
        # The system has no package lists: use private ones.
        apt.fetch_packages(LIBRARIES[:1], architecture=_architecture(), sources=apt.host_sources(), directory=directory)
        environment["APT_CONFIG"] = str(directory / "apt.conf")
        assert not _download(SERVER, directory, environment)
    for library in LIBRARIES:
        _download(library, directory, environment)  # fails for a release that does not have it
    for deb in directory.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, directory / "server"], check=True)
    return directory / "server"


def _download(package: str, directory: Path, environment: dict[str, str]) -> int:
    """Download a package, and return apt's exit code."""
    command = ["apt-get", "download", package]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True).returncode


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def _make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


class Sshd:
    """A running server.

    Attributes:
        port: Its port on 127.0.0.1.
        ssh: The command that connects to it, for TFQ_SSH_COMMAND.
    """

    def __init__(self, server: Path, directory: Path, environment: dict[str, str], shell_limit: str = "") -> None:
        """Start the server.

        Args:
            server: The result of `unpack_server`.
            directory: An empty folder for keys, configuration and log.
            environment: Environment variables of the sessions.
            shell_limit: Arguments of `ulimit` for the server and its sessions.
        """
        directory.mkdir(mode=0o700)
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.host_key = " ".join(_make_key(directory / "host").split()[:2])
        (directory / "authorized").write_text(_make_key(directory / "key"))
        session = server / "usr/lib/openssh"
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": directory / "host",
            "PidFile": directory / "pid",
            "AuthorizedKeysFile": directory / "authorized",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
            "SetEnv": " ".join(f'"{name}={value}"' for name, value in environment.items()),
            **({"SshdSessionPath": session / "sshd-session"} if (session / "sshd-session").exists() else {}),
            **({"SshdAuthPath": session / "sshd-auth"} if (session / "sshd-auth").exists() else {}),
        }
        (directory / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")
        client = {
            "IdentityFile": directory / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
        }
        (directory / "ssh_config").write_text("".join(f"{name} {value}\n" for name, value in client.items()))
        self.ssh = f"ssh -F {directory / 'ssh_config'}"
        self._start(server, shell_limit)

    def _start(self, server: Path, shell_limit: str) -> None:
        installed = shutil.which("sshd", path="/usr/sbin")
        program = installed or str(server / "usr/sbin/sshd")
        script = f'exec "{program}" -D -f "{self.directory}/sshd_config" -E "{self.directory}/log"'
        if shell_limit:
            script = f"ulimit {shell_limit}; {script}"
        command = ["sh", "-c", script]
        if os.getuid() == 0:
            users = Path("/etc/passwd").read_text()
            (self.directory / "passwd").write_text(f"{users}sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
            mounts = (
                f'mount --bind "{self.directory}/passwd" /etc/passwd && mount -t tmpfs none /run && mkdir /run/sshd'
            )
            command = ["unshare", "-m", "sh", "-c", f"{mounts} && {script}"]
        folders = ":".join(map(str, (server / "usr/lib").glob("*-linux-gnu")))
        self.process = subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": folders})
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        log = self.directory / "log"
        raise RuntimeError(f"sshd did not start: {log.read_text() if log.exists() else self.process.poll()}")

    def processes(self) -> dict[int, str]:
        """Return {process ID: command line} of the server's descendants: sessions and what runs in them."""
        return descendants(self.process.pid)

    def drop_connections(self) -> None:
        """Kill the processes that hold the connections, without touching what runs in the sessions."""
        for pid, command in self.processes().items():
            if command.startswith("sshd"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the server and its sessions."""
        self.drop_connections()
        self.process.kill()
        self.process.wait()

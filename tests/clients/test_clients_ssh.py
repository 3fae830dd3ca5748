# SPDX-License-Identifier: Apache-2.0
"""The ssh backend with a real OpenSSH server: lost connections, host keys, a full disk, a board without Python."""

import os
import shutil
import signal
import sys

import numpy as np
import pytest
from backend_contract import DIGITS, digits, local, soon
from loopback_sshd import Sshd
from messages import refused, warned
from piped_board import PipeBackend

from tfq.backends import InputStream, RunRequest, make_backend, ssh, worker
from tfq.errors import BackendError

pytestmark = pytest.mark.clients
TOOLS = ("cat", "gzip", "id", "mkdir", "mv", "rm", "sh", "sha256sum", "tar", "uname")


@pytest.fixture
def board(sshd_files, tmp_path, monkeypatch, temporary):
    """Return a function that starts a server; its arguments are those of `Sshd`."""
    servers = []

    def start(path: str = f"{sys.prefix}/bin:/usr/bin:/bin", shell_limit: str = "") -> Sshd:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        server = Sshd(sshd_files, tmp_path / "sshd", {"PATH": path, "HOME": str(home)}, shell_limit)
        servers.append(server)
        monkeypatch.setenv(ssh.COMMAND_VARIABLE, server.ssh)
        return server

    yield start
    ssh.stop_masters()
    for server in servers:
        server.stop()
    assert list(temporary.iterdir()) == []


def assess(server: Sshd, inputs, **settings):
    backend = make_backend(f"ssh:127.0.0.1:{server.port}")
    return backend.assess(RunRequest(model=DIGITS, inputs=inputs, **settings))


def leftovers(server: Sshd) -> list[str]:
    """Return the processes of sessions, and the files of runs on the board."""
    runs = server.directory.parent / "home/.cache/tfq/relay/runs"
    processes = [command for command in server.processes().values() if not command.startswith("sshd")]
    return [*processes, *(path.name for path in runs.iterdir())]


@pytest.mark.parametrize("who", ["connection", "relay"])
def test_a_run_survives_the_loss_of_its_connection(who, board, monkeypatch):
    server, inputs, reads = board(), digits(160), []
    monkeypatch.setattr(worker, "BLOCK_EXAMPLES", 8)
    monkeypatch.setattr(worker, "RING_BYTES", 1 << 12)

    def pieces():
        reads.append(1)
        for place, piece in enumerate(np.split(inputs, range(16, 160, 16))):
            if place == 6 and len(reads) == 1:
                if who == "connection":
                    server.drop_connections()
                else:
                    for pid, command in server.processes().items():
                        if "sys.stdin.buffer" in command:
                            os.kill(pid, signal.SIGKILL)
            yield (piece,)

    with warned("again"):
        result = assess(server, InputStream(num_examples=160, pieces=pieces), num_workers=1)
    np.testing.assert_array_equal(result.outputs[0], local(DIGITS, inputs)[0])
    assert len(reads) == 2 and any("restored" in note for note in result.notes)
    assert soon(lambda: leftovers(server) == [])


def test_a_wrong_or_unknown_host_key_is_refused_with_its_remedy(board):
    server = board()
    other = server.host_key[:-8] + "AAAAAAAA"
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}\n")
    with refused(BackendError, word="ssh-keygen"):
        assess(server, (digits(1),))
    server.known_hosts.write_text("")
    with refused(BackendError, got="Host key verification failed"):
        assess(server, (digits(1),))
    assert server.known_hosts.read_text() == ""


def test_a_missing_key_and_a_closed_port_are_different_errors(board):
    server = board()
    (server.directory / "authorized").write_text("")
    with refused(BackendError, got="Permission denied", word="ssh-copy-id"):
        assess(server, (digits(1),))
    assert "ssh-copy-id" in make_backend(f"ssh:127.0.0.1:{server.port}").unavailable()
    server.stop()
    with refused(BackendError, got="Connection refused"):
        assess(server, (digits(1),))


def test_a_full_disk_of_the_board_is_reported(board):
    server = board(shell_limit="-f 64")
    with refused(BackendError, got=os.strerror(27)):
        assess(server, (digits(2000),))
    assert soon(lambda: leftovers(server) == [])


def test_a_board_without_python_gets_a_runtime_once(board, tmp_path, temporary):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    runtimes = tmp_path / "home/.cache/tfq/runtime"
    request = RunRequest(model=DIGITS, inputs=(digits(1),))
    # A disk that has no space for it, here below the same folder through a pipe.
    full = PipeBackend(runtimes.parent, before=f"ulimit -f 20000; export PATH={tools}")
    with warned("runtime"), refused(BackendError, word="space"):
        full.assess(request)
    assert list(runtimes.iterdir()) == []
    (runtimes / ".part-99999999").mkdir()  # of an installation that was killed
    server = board(path=str(tools))
    with warned("runtime"):
        result = assess(server, (digits(70),), num_runs=2)
    np.testing.assert_array_equal(result.outputs[0], local(DIGITS, digits(70))[0])
    assert len(result.latencies_ms) == 2
    (runtime,) = runtimes.iterdir()
    before = runtime.stat().st_mtime_ns
    backend = make_backend(f"ssh:127.0.0.1:{server.port}")
    assert backend.assess(request).total_ops == 9
    assert [path.name for path in runtimes.iterdir()] == [runtime.name] and runtime.stat().st_mtime_ns == before
    assert soon(lambda: leftovers(server) == [])

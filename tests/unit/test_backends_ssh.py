# SPDX-License-Identifier: Apache-2.0
"""Addresses of ssh boards, the command line of ssh, and what its exit codes mean."""

import shlex

import pytest
from messages import refused

from tfq.backends import make_backend, public_names, ssh
from tfq.backends.child import LostConnectionError
from tfq.config import EvaluationConfig
from tfq.errors import BackendError, InputError


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("pi", "", "pi", None),
        ("pi@raspberrypi.local", "pi", "raspberrypi.local", None),
        ("10.0.0.7:2222", "", "10.0.0.7", 2222),
        ("a.b-c@[fe80::1%eth0]:22", "a.b-c", "fe80::1%eth0", 22),
        ("[::1]", "", "::1", None),
        ("::1", "", "::1", None),
    ],
)
def test_users_hosts_and_ports_are_parsed(text, user, host, port):
    assert ssh.parse_address(text) == ssh.Address(user=user, host=host, port=port)


@pytest.mark.parametrize(
    "text",
    [
        *("-oProxyCommand=x", "-l@host", "a@-host", "host:0", "host:65536", "host:", "host:22a", "host:-1", "", "a@"),
        *("[::1", "[::1]22", "[host]:22", "1:2:3", "pi:secret@host", "a b", "host;reboot", "$(x)", "a@b@c", "[::1%;]"),
    ],
)
def test_malformed_addresses_are_refused_before_ssh_starts(text):
    with refused(InputError, field="address", got=text):
        ssh.parse_address(text)
    with refused(InputError):
        make_backend(f"ssh:{text}")


def test_the_command_never_asks_and_checks_host_keys(temporary, monkeypatch):
    monkeypatch.setenv(ssh.COMMAND_VARIABLE, "ssh -F 'my config'")
    command = ssh.SshTransport(ssh.Address(user="pi", host="host", port=2222)).shell("echo 'a b'; exit 7")
    ssh.stop_masters()
    assert command[:3] == ["ssh", "-F", "my config"] and "-oBatchMode=yes" in command
    assert not [option for option in command if "StrictHostKeyChecking" in option or "KnownHosts" in option]
    assert command[-8:-2] == ["-p", "2222", "-l", "pi", "--", "host"][-6:] or command[-3:-1] == ["--", "host"]
    assert shlex.split(command[-1])[:2] == ["sh", "-c"] and "echo 'a b'; exit 7" in shlex.split(command[-1])[2]
    assert list(temporary.iterdir()) == []


# Recorded from OpenSSH 9.2.
CHANGED = """@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key verification failed."""


@pytest.mark.parametrize(
    ("status", "stderr", "kind", "word"),
    [
        (255, CHANGED, BackendError, "ssh-keygen"),
        (255, "Host key verification failed.", BackendError, "accept"),
        (255, "pi@host: Permission denied (publickey).", BackendError, "ssh-copy-id"),
        (255, "ssh: Could not resolve hostname pi: Name or service not known", BackendError, "name"),
        (255, "ssh: connect to host pi port 22: Connection refused", LostConnectionError, "sshd"),
        (255, "ssh: connect to host pi port 22: Connection timed out", LostConnectionError, "answer"),
        (255, "client_loop: send disconnect: Broken pipe", LostConnectionError, "lost"),
        (255, "", LostConnectionError, "lost"),
        (0, "", LostConnectionError, "lost"),
        (137, "", LostConnectionError, "9"),
        (97, "mkdir: cannot create directory: Read-only file system", BackendError, "Read-only"),
    ],
)
def test_exit_codes_and_texts_of_ssh_are_different_errors(status, stderr, kind, word):
    error = ssh.SshTransport(ssh.Address(host="host")).explain(status, stderr)
    assert type(error) is kind and word in str(error) and "pi@host" not in str(error)


def test_records_do_not_contain_hosts_or_users():
    names = ["local", "ssh:pi@secret", "ssh:pi@other:22", "qemu:cortex-a53"]
    assert list(public_names(names).values()) == ["local", "ssh", "ssh:2", "qemu:cortex-a53"]
    config = EvaluationConfig(backend="ssh:pi@secret", backends=("ssh:pi@other", "local"))
    assert "secret" in str(config.to_dict())
    record = config.to_record()
    assert (record["backend"], record["backends"]) == ("ssh", ["ssh", "local"])
    assert {**record, "backend": 0, "backends": 0} == {**config.to_dict(), "backend": 0, "backends": 0}
    assert config.config_hash() == EvaluationConfig(backend="ssh:a@b", backends=("ssh:c", "local")).config_hash()

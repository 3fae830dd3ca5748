# SPDX-License-Identifier: Apache-2.0
"""Addresses of adb devices, the choice of a device, and what adb's exit codes and texts mean."""

import shlex
import sys
import tarfile

import pytest
from messages import refused, warned
from piped_board import PipeTransport

from tfq.backends import adb, make_backend, public_names
from tfq.backends.child import LostConnectionError
from tfq.backends.relay.install import install
from tfq.backends.relay.runtime import Archive
from tfq.config import EvaluationConfig
from tfq.errors import BackendError, InputError

# Recorded from adb 34.0.5, except the states of real phones, which are those of its source code.
LISTED = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
127.0.0.1:6000	device
emulator-5554	offline
0123456789ABCDEF	unauthorized
usb:1-4	no permissions (user in plugdev group; are your udev rules wrong?); see [a page]

"""


def test_devices_and_states_are_parsed():
    states = adb.parse_devices(LISTED)
    assert list(states) == ["127.0.0.1:6000", "emulator-5554", "0123456789ABCDEF", "usb:1-4"]
    assert list(states.values())[:3] == ["device", "offline", "unauthorized"]
    assert states["usb:1-4"].startswith("no permissions")
    assert adb.parse_devices("List of devices attached\n\n") == {}


def test_the_only_ready_device_is_chosen():
    assert adb.choose_device({"secret": "offline", "other": "device"}) == "other"
    with refused(BackendError, got=0, word="USB"):
        adb.choose_device({})
    with refused(BackendError, got=2, word="adb:SERIAL") as caught, warned("secret"):
        adb.choose_device({"secret": "device", "other": "device"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "word"),
    [("unauthorized", "accept"), ("offline", "reconnect"), ("no permissions (x)", "udev"), ("bootloader", "Android")],
)
def test_a_device_that_is_not_ready_is_refused_with_a_remedy(state, word):
    with refused(BackendError, got=state, word=word), warned("secret"):
        adb.choose_device({"secret": state})


@pytest.mark.parametrize(
    "text", ["0123ABC", "emulator-5554", "192.168.1.5:5555", "[fe80::1%wlan0]:5555", "adb-X-y (2)._adb._tcp", "usb:1-4"]
)
def test_serial_numbers_are_accepted(text):
    assert make_backend(f"adb:{text}").address == text


@pytest.mark.parametrize("text", ["-s", "--help", "a;reboot", "$(x)", "a\nb", " a", "a ", "a'b", "é", "-"])
def test_options_and_commands_are_no_serial_numbers(text):
    with refused(InputError, field="address", got=text):
        make_backend(f"adb:{text}")


def test_the_command_names_the_device_and_quotes_the_script(monkeypatch):
    monkeypatch.setenv(adb.COMMAND_VARIABLE, "adb -H 'other machine'")
    command = adb.AdbTransport("0123").shell("echo 'a b'; exit 7")
    assert command[:-1] == ["adb", "-H", "other machine", "-s", "0123", "shell", "-T"]
    assert shlex.split(command[-1])[:2] == ["sh", "-c"] and "echo 'a b'; exit 7" in shlex.split(command[-1])[2]
    monkeypatch.setenv(adb.SERIAL_VARIABLE, "4567")
    assert adb.AdbTransport("").shell("true")[3:5] == ["-s", "4567"]


@pytest.mark.parametrize(
    ("status", "stderr", "kind", "word"),
    [
        (0, "", LostConnectionError, "lost"),
        (1, "adb: device 'secret' not found", LostConnectionError, "devices"),
        (1, "adb: device offline", LostConnectionError, "reconnect"),
        (1, "adb: no devices/emulators found", LostConnectionError, "USB"),
        (1, "error: closed", LostConnectionError, "lost"),
        (1, "* daemon started successfully\nadb: device unauthorized.\nThis adb server's", BackendError, "accept"),
        (1, "adb: failed to start daemon\nerror: cannot connect to daemon", LostConnectionError, "start-server"),
        (1, "adb: more than one device/emulator", BackendError, "adb:SERIAL"),
        (1, "error: target doesn't support PTY args -Tt", BackendError, "Android"),
        (137, "", LostConnectionError, "9"),
        (97, "mkdir: secret: Read-only file system", BackendError, "Read-only"),
        (1, "Traceback: the module 'x' was not found", BackendError, "Traceback"),
    ],
)
def test_exit_codes_and_texts_of_adb_are_different_errors(status, stderr, kind, word):
    error = adb.AdbTransport("secret").explain(status, stderr)
    assert type(error) is kind and word in str(error) and "secret" not in str(error)


def test_missing_programs_and_devices_are_reasons(monkeypatch):
    monkeypatch.setenv(adb.COMMAND_VARIABLE, "no-such-adb")
    assert "apt install adb" in make_backend("adb").unavailable()
    program = "print('List of devices attached')"
    monkeypatch.setenv(adb.COMMAND_VARIABLE, shlex.join([sys.executable, "-c", program]))
    monkeypatch.delenv(adb.SERIAL_VARIABLE, raising=False)
    assert "USB" in make_backend("adb").unavailable()
    monkeypatch.setenv(adb.COMMAND_VARIABLE, "false")
    assert "exit code 1" in make_backend("adb").unavailable()


def test_records_do_not_contain_serial_numbers():
    assert list(public_names(["adb:secret", "adb:other"]).values()) == ["adb", "adb:2"]
    assert EvaluationConfig(backend="adb:secret").to_record()["backend"] == "adb"


class PushingTransport(PipeTransport):
    """A folder of this machine that files are copied into, as `adb push` does."""

    def __init__(self, base, command):
        super().__init__(base)
        self.push = lambda folder, target: ["sh", "-c", command, "sh", str(folder), target]


@pytest.mark.parametrize(
    ("command", "start", "got"),
    [
        ('cp -r "$1" "$2"', "exit 0", None),
        ('cp -r "$1" "$2"; echo No space left; exit 1', "exit 0", "No space left"),  # adb prints errors to stdout
        ('cp -r "$1" "$2"', "echo killed >&2; exit 1", "killed"),
        ("true", "exit 0", ...),
    ],
)
def test_a_pushed_runtime_is_complete_or_leaves_nothing(command, start, got, tmp_path):
    (tmp_path / "python").write_text(start)
    with tarfile.open(tmp_path / "runtime.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "python", "python")
    archive = Archive(path=tmp_path / "runtime.tar.gz", name="aarch64-0", sha256="")
    prepare = f"base={shlex.quote(str(tmp_path / 'board'))}; mkdir -p $base"
    arguments = (PushingTransport(tmp_path / "board", command), prepare, archive)
    with warned("runtime"):
        if got is None:
            install(*arguments)
        else:
            with refused(BackendError) as caught:
                install(*arguments)
            assert got in (..., caught.value.got)
    installed = [str(path.relative_to(tmp_path / "board/runtime")) for path in (tmp_path / "board/runtime").rglob("*")]
    assert sorted(installed) == ([] if got else ["aarch64-0", "aarch64-0/python"])

# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on an Android phone that adb reaches: no app, no NDK and no root.

The files are below /data/local/tmp, the folder where adb's user may write and start programs.

`adb shell` exits with 0 and prints nothing if the connection or the adb server dies. So its exit code never means
success: the relay's END frame does.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tfq.backends.child import LostConnectionError
from tfq.backends.protocol import BackendKind
from tfq.backends.relay.backend import RelayBackend
from tfq.errors import BackendError, InputError, warn
from tfq.registry import register

# How to start adb: "adb -H other-machine".
COMMAND_VARIABLE = "TFQ_ADB_COMMAND"
# adb's own variable; it names the device if the address does not.
SERIAL_VARIABLE = "ANDROID_SERIAL"
BASE = "/data/local/tmp/tfq"
# The first `adb devices` starts adb's server.
DEVICES_SECS = 30.0
READY = "device"
_SERIAL = re.compile(r"[A-Za-z0-9_\[]([A-Za-z0-9_.:%+()/ \[\]-]*[A-Za-z0-9_\])])?")
_ATTACH = (
    "Connect the phone by USB, switch on USB debugging in its developer options, and check that `adb devices` lists it"
)
# Text of adb -> (what is wrong, what to do, whether another attempt may succeed). The first match counts.
_FAILURES: dict[str, tuple[str, str, bool]] = {
    "unauthorized": (
        "the device does not trust this machine",
        "Unlock the phone and accept the question about USB debugging. If there is none, reconnect the cable",
        False,
    ),
    "no permissions": (
        "this user may not open the USB device",
        "Install udev rules (on Debian: apt install android-sdk-platform-tools-common), join the group plugdev, log in "
        "again and reconnect the cable",
        False,
    ),
    "more than one": ("several devices are connected", "Name one: adb:SERIAL", False),
    "PTY args": ("the device's Android is too old", "Android 7 or later is required", False),
    "authorizing": ("the device is not ready yet", "Wait a moment, and unlock the phone", True),
    "connecting": ("the device is not ready yet", "Wait a moment", True),
    "offline": ("the device is offline", "Reconnect the cable, or run `adb reconnect`, and unlock the phone", True),
    "not found": ("the named device is not connected", "Compare the serial number with `adb devices`", True),
    "no devices": ("no device is connected", _ATTACH, True),
    "daemon": ("adb's server does not run and cannot be started", "Run `adb start-server`, which says why", True),
}
_FAILURES["insufficient permissions"] = _FAILURES["no permissions"]


def check_serial(text: str) -> str:
    """Return the serial number of an address.

    Raises:
        InputError: It cannot be one.
    """
    if not _SERIAL.fullmatch(text):
        raise InputError(
            f"adb:{text}: {text!r} is not a serial number. Expected one that `adb devices` lists, for example "
            "adb:0123456789ABCDEF or adb:192.168.1.5:5555",
            field="address",
            expected="a serial number",
            got=text,
        )
    return text


def parse_devices(output: str) -> dict[str, str]:
    """Return {serial number: state} of the output of `adb devices`. A device in the state "device" is ready."""
    lines = [line.partition("\t") for line in output.splitlines()]
    return {serial.strip(): state.strip() for serial, tab, state in lines if tab and not serial.startswith("*")}


def choose_device(devices: dict[str, str]) -> str:
    """Return the serial number of the only device that is ready.

    Raises:
        BackendError: There is none or more than one. The message may enter a record, so it has no serial numbers; a
            warning lists them.
    """
    ready = [serial for serial, state in devices.items() if state == READY]
    if len(ready) == 1:
        return ready[0]
    if devices:
        listed = ", ".join(f"{serial} ({state})" for serial, state in devices.items())
        warn(f"adb: the connected devices are {listed}")
    if ready:
        raise BackendError(
            f"{len(ready)} devices are connected. Name one of them, as `adb devices` lists them: adb:SERIAL",
            expected=1,
            got=len(ready),
        )
    if not devices:
        raise BackendError(f"no device is connected. {_ATTACH}", expected=1, got=0)
    state = next(iter(devices.values()))
    problem, advice, _ = _find_failure(state) or (f"the device is in the state {state!r}", "Start Android on it", False)
    raise BackendError(f"{problem}. {advice}", expected=READY, got=state)


def _find_failure(text: str) -> tuple[str, str, bool] | None:
    return next((failure for words, failure in _FAILURES.items() if words in text), None)


def _command() -> list[str]:
    return shlex.split(os.environ.get(COMMAND_VARIABLE) or "adb")


def list_devices() -> dict[str, str]:
    """Return {serial number: state} of all devices of adb's server, which is started if necessary.

    Raises:
        BackendError: adb cannot be started, or fails.
    """
    try:
        result = subprocess.run(
            [*_command(), "devices"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEVICES_SECS,
        )
    except OSError as error:
        raise BackendError(f"adb cannot be started: {error.strerror or error}", got=error.strerror) from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"`adb devices` did not answer within {DEVICES_SECS:.0f} s. Run `adb kill-server` and try again",
            expected=DEVICES_SECS,
        ) from error
    if result.returncode:
        from tfq.backends.relay.transport import last_lines

        raise BackendError(
            f"`adb devices` failed (exit code {result.returncode}): {last_lines(result.stderr)}", got=result.returncode
        )
    return parse_devices(result.stdout)


class AdbTransport:
    """Commands on a device through `adb shell`."""

    name, base = "adb", BASE

    def __init__(self, serial: str) -> None:
        """Use the device with this serial number; "" for the only one. Nothing is connected."""
        self._serial = serial

    def _client(self) -> list[str]:
        # Chosen once: after a lost connection, the run must not continue on another device.
        self._serial = self._serial or os.environ.get(SERIAL_VARIABLE) or choose_device(list_devices())
        return [*_command(), "-s", self._serial]

    def shell(self, script: str) -> list[str]:
        """Return the command that runs a script with `sh` on the device.

        Raises:
            BackendError: No device can be chosen.
        """
        script = f'TFQ_BOARD_MODEL="$(getprop ro.product.model 2> /dev/null)"; export TFQ_BOARD_MODEL\n{script}'
        # With a second command, `sh` stays the parent of the first and reports its exit code, even after a signal.
        return [*self._client(), "shell", "-T", f"sh -c {shlex.quote(script + chr(10) + 'exit $?')}"]

    def push(self, folder: Path, target: str) -> list[str]:
        """Return the command that copies a folder into the folder `target` of the device."""
        return [*self._client(), "push", str(folder), f"{target}/"]

    def explain(self, status: int, stderr: str) -> BackendError:
        """Return the error for a command that ended too early. It does not name the device, for records."""
        texts = [line for line in stderr.splitlines() if line.startswith(("adb:", "error:"))]
        failure = _find_failure("\n".join(texts)) if status == 1 else None
        if failure is not None:
            problem, advice, again = failure
            return (LostConnectionError if again else BackendError)(f"adb: {problem}. {advice}", got=problem)
        if status == 0 or (status == 1 and texts):
            return LostConnectionError(
                "adb: the connection to the device was lost. Check the cable and `adb devices`", got=status
            )
        if status > 128:
            return LostConnectionError(
                f"adb: the relay on the device was ended by signal {status - 128}. The device may be out of memory",
                got=status,
            )
        from tfq.backends.relay.transport import last_lines

        text = last_lines(stderr.replace(self._serial, "SERIAL") if self._serial else stderr)
        return BackendError(f"adb: the device cannot start the relay (exit code {status}): {text}", got=status)


def _unavailable() -> str | None:
    command = _command()
    if not command or shutil.which(command[0]) is None:
        return (
            "the program adb is missing: install it (on Debian: apt install adb; elsewhere: the Android SDK's package "
            f"platform-tools), or set {COMMAND_VARIABLE} to its path"
        )
    return None


class AdbBackend(RelayBackend):
    """An Android device that adb reaches."""

    def __init__(self, address: str) -> None:
        """Open the backend. Nothing is connected before the first run.

        Raises:
            InputError: The address cannot be a serial number.
        """
        self.kind, self.address = ADB, check_serial(address) if address else ""

    def transport(self) -> AdbTransport:
        """Return the way to the device."""
        return AdbTransport(self.address)

    def unavailable(self) -> str | None:
        """Return why the device cannot be used and what to do about it, or None if it can."""
        try:
            return super().unavailable()
        except BackendError as error:
            return str(error)


ADB = register(
    BackendKind(
        name="adb",
        help="an Android phone with a 64-bit Arm CPU, reached by adb; no phone was tried",
        open=AdbBackend,
        times=True,
        reports_memory=True,
        # A run puts files onto the phone, so it must be named.
        in_default_list=False,
        address="SERIAL",
        private_address=True,
        unavailable=_unavailable,
    )
)

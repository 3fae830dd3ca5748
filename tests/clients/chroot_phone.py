# SPDX-License-Identifier: Apache-2.0
"""A device for adb without a phone: the real adbd in an empty folder, as in a phone without Python.

adbd and adb come from Debian packages that are unpacked but not installed, and the commands of the device from
busybox. adbd, the adb server and all sessions run in separate user, mount, process and network namespaces, without
root, so nothing listens on this machine's network. The kernel must allow unprivileged user namespaces.
"""

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from process_tree import descendants

from tfq.backends.qemu import apt

PACKAGES = ("adb", "adbd", "busybox-static")
PLATFORM_TOOLS = "usr/lib/android-sdk/platform-tools"
# Not 5555 to 5585: adb's server would look for an emulator there.
ADDRESS = "127.0.0.1:6000"
COMMANDS = ("cat", "id", "kill", "ls", "mkdir", "mv", "rm", "sh", "sleep", "uname")
C_LIBRARIES = ("libc", "libdl", "libm", "libpthread", "libresolv", "librt", "libutil")
# $1: the folder of the device, $2: this machine's libraries of adb, $3: adb, $4: busybox, $5: size of the disk.
NAMESPACE = """
set -e
mount -t proc proc "$1/proc"
for device in null ptmx urandom zero; do touch "$1/dev/$device"; mount --bind "/dev/$device" "$1/dev/$device"; done
if [ -n "$5" ]; then mount -t tmpfs -o "size=$5" none "$1/data/local/tmp"; fi
"$4" ip link set lo up
while true; do
    LD_LIBRARY_PATH=$2 "$3" -P 5037 nodaemon server > "$HOME/server.log" 2>&1 || true
done &
while true; do
    "$4" chroot "$1" /bin/busybox env -i ADBD_PORT=6000 HOME=/ PATH=/bin \\
        /adbd/loader --library-path /adbd /adbd/adbd > "$HOME/adbd.log" 2>&1 || true
    sleep 0.1
done
"""


def unpack_adb(directory: Path) -> Path:
    """Download and unpack adb, adbd, their libraries and busybox, and return the root folder."""
    sources, codename = apt.host_sources(), apt.os_release()["VERSION_CODENAME"]
    packages = PACKAGES
    if codename == "bookworm":  # its adbd is in the backports only
        main = [source for source in sources if codename in source.suites]
        sources += [dataclasses.replace(source, suites=(f"{codename}-backports",)) for source in main]
        packages = ("--target-release", f"{codename}-backports", *PACKAGES)
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    debs = apt.fetch_packages(
        packages, architecture=architecture.stdout.strip(), sources=sources, directory=directory / "apt"
    )
    apt.unpack_packages(debs, directory / "root")
    return directory / "root"


def soon(condition: Callable[[], object], secs: float = 20.0) -> bool:
    deadline = time.monotonic() + secs
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


class Phone:
    """A running device, and the adb server that is connected to it.

    Attributes:
        root: The root folder of the device. With a `disk_size`, only the device sees the files in /data/local/tmp.
        adb: The command that reaches it, for TFQ_ADB_COMMAND.
    """

    def __init__(self, files: Path, directory: Path, disk_size: str = "") -> None:
        """Start the device.

        Args:
            files: The result of `unpack_adb`.
            directory: An empty folder for the device's files.
            disk_size: Size of /data/local/tmp; "" for no limit.
        """
        self.root, home = directory / "phone", directory / "home"
        home.mkdir(parents=True)
        for name in ("adbd", "bin", "data/local/tmp", "dev", "proc"):
            (self.root / name).mkdir(parents=True)
        busybox = next(path for path in (files / "usr/bin/busybox", files / "bin/busybox") if path.exists())
        shutil.copy(busybox, self.root / "bin/busybox")
        for command in COMMANDS:
            (self.root / "bin" / command).symlink_to("busybox")
        getprop = self.root / "bin/getprop"
        getprop.write_text("#!/bin/sh\necho Test phone\n")
        getprop.chmod(0o755)
        (library_folder,) = (files / "usr/lib").glob("*-linux-gnu")
        folders = [library_folder, library_folder / "android"]
        for folder in folders:
            for path in folder.glob("*.so*"):
                shutil.copy(path, self.root / "adbd" / path.name)
        shutil.copy(next(library_folder.glob("ld-linux-*")), self.root / "adbd/loader")
        shutil.copy(files / PLATFORM_TOOLS / "adbd", self.root / "adbd/adbd")
        libraries, adb = ":".join(map(str, folders[1:])), files / PLATFORM_TOOLS / "adb"
        # adb runs with this machine's C library.
        own = directory / "libraries"
        own.mkdir()
        for path in library_folder.glob("lib*.so*"):
            if not path.name.startswith(
                ("libc.", "libm.", "libdl.", "libpthread.", "librt.", "libresolv.", "libutil.")
            ):
                (own / path.name).symlink_to(path)
        libraries = f"{own}:{libraries}"
        command = ["unshare", "-Urmpfn", "--kill-child", "sh", "-c", NAMESPACE, "sh"]
        environment = {**os.environ, "HOME": str(home), "ANDROID_USER_HOME": str(home)}
        with open(home / "namespace.log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, self.root, libraries, adb, busybox, disk_size],
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            self._connect(libraries, adb, home)
        except BaseException:
            self.stop()
            raise

    def _connect(self, libraries: str, adb: Path, home: Path) -> None:
        log = home / "namespace.log"
        assert soon(lambda: self._servers("adbd") and self._servers("adb")), f"no namespaces: {log.read_text()}"
        inside = next(iter(self.processes()))
        self.adb = shlex.join(
            [
                *("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(inside)),
                *("env", f"LD_LIBRARY_PATH={libraries}", f"HOME={home}", str(adb)),
            ]
        )
        self.connect()

    def connect(self, address: str = ADDRESS) -> None:
        """Connect the server to the device, which is then listed with this address as its serial number."""
        assert soon(lambda: "connected" in self.run("connect", address))
        assert soon(lambda: f"{address}\tdevice" in self.run("devices"))

    def run(self, *arguments: str) -> str:
        """Run adb, and return its stdout."""
        command = [*shlex.split(self.adb), *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60).stdout

    def processes(self) -> dict[int, str]:
        """Return {process ID: command line} of everything in the namespaces: init, adb's server, adbd, sessions."""
        return descendants(self.process.pid)

    def process_here(self, pid: int) -> int:
        """Return the ID on this machine of a process of the device, which has its own process IDs.

        Raises:
            ProcessLookupError: There is none.
        """
        for here in self.processes():
            with contextlib.suppress(OSError):
                (line,) = re.findall(r"^NSpid:(.*)$", Path(f"/proc/{here}/status").read_text(), re.MULTILINE)
                if int(line.split()[-1]) == pid:
                    return here
        raise ProcessLookupError(pid)

    def _servers(self, program: str) -> list[int]:
        ends = {"adbd": "/adbd/adbd", "adb": "nodaemon server"}
        commands = self.processes().items()
        return [pid for pid, command in commands if command.strip().endswith(ends[program]) and "set -e" not in command]

    def sessions(self) -> list[str]:
        """Return the command lines of what runs on the device besides adbd."""
        servers = {*self._servers("adbd"), *self._servers("adb")}
        others = [command for pid, command in self.processes().items() if pid not in servers]
        return [command for command in others if "set -e" not in command and command.strip() != "sleep 0.1"]

    def kill(self, program: str) -> None:
        """Kill a server, "adbd" or "adb", which starts again. The connection to the device is lost."""
        for pid in self._servers(program):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End everything."""
        self.process.kill()
        self.process.wait()

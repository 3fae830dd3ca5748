# SPDX-License-Identifier: Apache-2.0
"""Installation of the ARM emulator without a network: availability, and the remains of a failed installation."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from messages import refused

from tfq.backends import RunRequest, make_backend
from tfq.backends.qemu import releases, sysroot, sysroot_build
from tfq.errors import BackendError

REQUEST = RunRequest(model=b"x", inputs=(np.zeros((1, 2), np.int8),))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use a separate cache directory on a machine that is not ARM."""
    monkeypatch.setenv("TFQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path / "cache"


def built(directory: Path, cpus=("cortex-a53",)) -> None:
    (directory / "tree").mkdir()
    (directory / "tree" / "installed.json").write_text(json.dumps({"qemu": "7.2", "cpus": list(cpus)}))


def test_without_the_emulator_a_run_says_how_to_install_it():
    backend = make_backend("qemu:cortex-a53")
    assert "python -m tfq.backends.qemu.sysroot" in backend.unavailable()
    with refused(BackendError, word="tfq.backends.qemu.sysroot"):
        backend.assess(REQUEST)


def test_an_arm64_machine_gets_the_message_that_no_emulator_is_needed(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "use the backend local" in make_backend("qemu:cortex-a76").unavailable()
    with refused(BackendError, word="local"):
        sysroot.install()


def test_only_a_cpu_unknown_to_the_emulator_is_unavailable(monkeypatch):
    monkeypatch.setattr(sysroot, "build", lambda directory, report: built(directory))
    sysroot.install()
    assert make_backend("qemu:cortex-a53").unavailable() is None
    assert "QEMU 7.2 does not support cortex-a76" in make_backend("qemu:cortex-a76").unavailable()


def test_a_newer_core_is_installed_on_request(monkeypatch):
    monkeypatch.setattr(sysroot, "build", lambda directory, report: built(directory))
    monkeypatch.setattr(sysroot, "host_compilers", list)
    assert sysroot.install().newer_cpus == ()
    assert "--newer" in make_backend("qemu:cortex-a710").unavailable()
    added = {"newer_qemu": "10.0", "newer_cpus": ("cortex-a710",)}
    monkeypatch.setattr(sysroot, "add_newer", lambda installed: dataclasses.replace(installed, **added))
    assert sysroot.install(newer=True) == sysroot.find()
    backend = make_backend("qemu:cortex-a710")
    assert backend.unavailable() is None and "outputs only" in backend.cannot_count()
    assert "QEMU" in make_backend("qemu:neoverse-v1").unavailable()
    assert make_backend("qemu:cortex-a53").unavailable() is None


@pytest.mark.parametrize("system", [{}, {"ID": "ubuntu", "VERSION_CODENAME": "noble"}])
def test_another_releases_emulator_needs_debian(system, monkeypatch, tmp_path):
    monkeypatch.setattr(releases, "require_tools", lambda: None)
    monkeypatch.setattr(releases, "os_release", lambda: system)
    with refused(BackendError, expected="debian", got=system.get("ID")):
        releases.fetch_emulator("trixie", tmp_path / "newer", tmp_path / "apt")


def test_an_installation_is_made_once_and_found_again(monkeypatch, cache):
    calls = []

    def build(directory, report):
        calls.append(directory)
        built(directory)

    monkeypatch.setattr(sysroot, "build", build)
    first, second = sysroot.install(), sysroot.install()
    assert len(calls) == 1
    assert first.directory == second.directory == sysroot.find().directory
    assert sorted(path.name for path in (cache / "arm64").iterdir()) == [".lock", first.directory.name]


@pytest.mark.parametrize(
    "error", [BackendError("no network"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failed_installation_leaves_nothing_and_can_be_repeated(error, monkeypatch, cache):
    def fail(directory, report):
        (directory / "tree").mkdir()
        (directory / "tree" / "half").touch()
        raise error

    monkeypatch.setattr(sysroot, "build", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BackendError):
        sysroot.install()
    assert [path.name for path in (cache / "arm64").iterdir()] == [".lock"]
    assert sysroot.find() is None
    monkeypatch.setattr(sysroot, "build", lambda directory, report: built(directory))
    assert sysroot.install() == sysroot.find()


def test_what_a_killed_installation_left_is_cleared(monkeypatch, cache):
    (cache / "arm64" / ".build-killed" / "tree").mkdir(parents=True)
    monkeypatch.setattr(sysroot, "build", lambda directory, report: built(directory))
    sysroot.install()
    assert not (cache / "arm64" / ".build-killed").exists()


def test_two_at_once_build_once(monkeypatch):
    calls = []

    def build(directory, report):
        calls.append(directory)
        time.sleep(0.2)
        built(directory)

    monkeypatch.setattr(sysroot, "build", build)
    threads = [threading.Thread(target=sysroot.install) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_another_version_of_the_interpreter_or_the_system_is_another_installation(monkeypatch):
    monkeypatch.setattr(sysroot, "build", lambda directory, report: built(directory))
    sysroot.install()
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "99.9")
        assert sysroot.find() is None
    with monkeypatch.context() as patch:
        patch.setattr(sysroot_build, "os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "other"})
        assert sysroot.find() is None
    assert sysroot.find() is not None


def test_an_invalid_source_in_the_environment_is_refused_before_downloads(monkeypatch, tmp_path):
    monkeypatch.setenv("TFQ_ARM64_APT_SOURCE", "http://mirror.example/ubuntu")
    monkeypatch.setattr(sysroot_build, "require_tools", lambda: None)
    monkeypatch.setattr(sysroot_build, "host_sources", list)
    monkeypatch.setattr(sysroot_build, "fetch_packages", lambda *_, **__: pytest.fail("downloads"))
    with refused(BackendError, field="TFQ_ARM64_APT_SOURCE", got="http://mirror.example/ubuntu"):
        sysroot_build.build(tmp_path, print)


def test_each_cpu_has_a_root_with_a_cpuinfo_that_matches_it(tmp_path):
    (tmp_path / "sysroot" / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "sysroot" / "usr" / "lib" / "libc.so").write_text("one copy")
    for cpu in (*sysroot_build.CPUS, *sysroot_build.NEWER_CPUS):
        sysroot_build.make_cpu_prefix(tmp_path, cpu)
    texts = {cpu: (tmp_path / "cpu" / cpu / "proc" / "cpuinfo").read_text() for cpu in sysroot_build.CPUS}
    fields = {cpu: dict(line.split("\t: ") for line in text.splitlines() if line) for cpu, text in texts.items()}
    # Part numbers: Arm's technical reference manuals, MIDR_EL1 of Cortex-A53 and Cortex-A76.
    assert fields["cortex-a53"]["CPU part"] == "0xd03"
    assert fields["cortex-a76"]["CPU part"] == "0xd0b"
    assert "asimddp" not in fields["cortex-a53"]["Features"].split()
    assert "asimddp" in fields["cortex-a76"]["Features"].split()
    for cpu in sysroot_build.CPUS:
        assert (tmp_path / "cpu" / cpu / "usr" / "lib" / "libc.so").read_text() == "one copy"
        assert (tmp_path / "cpu" / cpu / "sys/devices/system/cpu/possible").read_text() == "0\n"


def test_a_dynamically_linked_emulator_starts_through_its_own_loader(tmp_path):
    libraries = tmp_path / "host" / "usr" / "lib" / "x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    installed = sysroot_build.Sysroot(directory=tmp_path, qemu="7.2", cpus=("cortex-a53",))
    assert installed.command("cortex-a53")[0] == str(tmp_path / "host/usr/bin/qemu-aarch64")
    (libraries / "ld-linux-x86-64.so.2").touch()
    command = installed.command("cortex-a53")
    assert command[:2] == [str(libraries / "ld-linux-x86-64.so.2"), "--library-path"]
    assert command[command.index("-cpu") + 1] == "cortex-a53"
    assert command[command.index("-L") + 1] == str(tmp_path / "cpu" / "cortex-a53")


def test_nothing_of_the_users_environment_reaches_the_emulated_python(monkeypatch, tmp_path):
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "QEMU_CPU", "QEMU_LD_PREFIX"):
        monkeypatch.setenv(name, "/harm")
    environment = sysroot_build.Sysroot(directory=tmp_path, qemu="7.2", cpus=()).environment()
    assert "/harm" not in environment.values()
    assert environment["PYTHONPATH"] == str(tmp_path / "site")


def test_the_command_reports_progress_and_sets_its_exit_code(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "tfq.backends.qemu.sysroot"]
    environment = {**os.environ, "TFQ_CACHE_DIR": str(tmp_path / "other"), "PATH": str(tmp_path)}
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment)
    assert (help_text.returncode, help_text.stderr) == (0, "")
    assert "root" in help_text.stdout
    failed = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert failed.returncode == 3
    assert failed.stderr.startswith("python -m tfq.backends.qemu.sysroot: error: ")
    assert "Traceback" not in failed.stderr

# SPDX-License-Identifier: Apache-2.0
"""apt's sources: both file formats are read, and only sources of this machine's release are used."""

import subprocess
import time
from pathlib import Path

import pytest
from messages import refused

from tfq.backends.qemu import apt
from tfq.backends.qemu.apt import AptSource, host_sources, parse_deb822, parse_one_line
from tfq.errors import BackendError

ONE_LINE = """
# a comment, and a disabled entry:
# deb http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg trusted=yes] http://mirror.example/debian bookworm main contrib # x
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
deb cdrom:[Debian]/ bookworm main
deb http://flat.example/ ./
"""

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGPL0BUBEADmW5NdOOHwPIJlgPu6JDcKw/NZJPR8lsD3K87ZM18gzyQZJD+w
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no


types: deb-src
uris: http://sources.example/debian
suites: bookworm
components: main
"""


def test_one_line_entries_keep_their_key_and_lose_their_architecture():
    first, updates, cdrom = parse_one_line(ONE_LINE)
    assert first == AptSource(
        uris=("http://mirror.example/debian",),
        suites=("bookworm",),
        components=("main", "contrib"),
        options=(("signed-by", "/usr/share/keyrings/a.gpg"), ("trusted", "yes")),
    )
    assert (updates.suites, updates.options) == (("bookworm-updates",), ())
    assert cdrom.uris == ()


def test_stanzas_keep_multiline_keys_and_drop_disabled_and_source_entries():
    (source,) = parse_deb822(DEB822)
    assert source.uris == ("http://mirror.example/debian", "http://second.example/debian")
    assert source.suites == ("bookworm", "bookworm-updates", "bookworm-backports")
    ((name, key),) = source.options
    assert name == "signed-by"
    assert key.splitlines()[1:3] == [" -----BEGIN PGP PUBLIC KEY BLOCK-----", " ."]


def test_what_is_written_reads_back_as_it_was():
    for source in [*parse_deb822(DEB822), *parse_one_line(ONE_LINE)[:2]]:
        assert parse_deb822(source.to_deb822()) == [source]


def test_only_the_machines_own_release_and_components_are_used(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "chrome.list").write_text("deb http://third.example/chrome stable main\n")
    (tmp_path / "sources.list.d" / "node.list").write_text("deb http://third.example/node nodistro main\n")
    (tmp_path / "sources.list.d" / "docker.list").write_text("deb http://third.example/docker bookworm stable\n")
    (tmp_path / "sources.list.d" / "pg.list").write_text("deb http://third.example/pg bookworm-pgdg main\n")
    (tmp_path / "sources.list.d" / "old.list.save").write_text("deb http://third.example/old bookworm main\n")
    result = host_sources(tmp_path, "bookworm")
    assert {uri for source in result for uri in source.uris} == {
        "http://mirror.example/debian",
        "http://second.example/debian",
    }
    assert {suite for source in result for suite in source.suites} == {"bookworm", "bookworm-updates"}
    assert {component for source in result for component in source.components} == {"main"}


def test_universe_of_ubuntu_is_used(tmp_path):
    (tmp_path / "sources.list").write_text("deb http://mirror.example/ubuntu noble-security main universe multiverse\n")
    (source,) = host_sources(tmp_path, "noble")
    assert source.components == ("main", "universe")


def test_a_machine_without_sources_of_its_release_is_reported(tmp_path):
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian trixie main\n")
    with refused(BackendError, got="bookworm"):
        host_sources(tmp_path, "bookworm")


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None if name == "dpkg-deb" else f"/usr/bin/{name}")
    with refused(BackendError, got="dpkg-deb"):
        apt.require_tools()


@pytest.fixture
def machine_apt(monkeypatch):
    """A stand-in for apt that records the calls and answers with `answers`."""
    calls: list[list[str]] = []
    answers = {"dump": "", "update": (0, ""), "install": (0, "")}

    def run(command, **settings):
        calls.append(command)
        if command[0] == "apt-config":
            return subprocess.CompletedProcess(command, 0, answers["dump"], "")
        status, message = answers[command[1]]
        if command[1] == "install" and not status:
            configuration = Path(settings["env"]["APT_CONFIG"])
            (configuration.parent / "cache" / "archives" / "a_1_arm64.deb").touch()
        return subprocess.CompletedProcess(command, status, "", message)

    monkeypatch.setattr(subprocess, "run", run)
    return calls, answers


SOURCE = AptSource(uris=("http://mirror.example/debian",), suites=("bookworm",), components=("main",))


def test_the_private_apt_takes_over_proxies_and_no_hooks(machine_apt, tmp_path):
    calls, answers = machine_apt
    answers["dump"] = (
        'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::http::Timeout "7";\n'
        'Acquire::IndexTargets::deb::DEP-11::MetaKey "x";\nAPT::Update::Post-Invoke:: "rm -rf /";\n'
        'DPkg::Post-Invoke:: "rm -rf /";\nDir::Cache "/elsewhere";\nAPT::Default-Release "trixie";\n'
    )
    debs = apt.fetch_packages(["a"], architecture="arm64", sources=[SOURCE], directory=tmp_path / "apt")
    assert [deb.name for deb in debs] == ["a_1_arm64.deb"]
    assert [call[1] for call in calls] == ["dump", "update", "install"]
    lines = (tmp_path / "apt" / "apt.conf").read_text().splitlines()
    assert 'Acquire::http::Proxy "http://proxy.example:3128";' in lines
    assert [line for line in lines if line.startswith("Acquire::http::Timeout")] == ['Acquire::http::Timeout "7";']
    assert 'APT::Architectures "arm64";' in lines
    assert not any(
        "rm -rf" in line or "IndexTargets" in line or "elsewhere" in line or "trixie" in line for line in lines
    )
    assert (tmp_path / "apt" / "state" / "status").read_bytes() == b""


def test_an_unreachable_source_matters_only_if_packages_are_missing(machine_apt, tmp_path):
    _, answers = machine_apt
    answers["update"] = (100, "E: Failed to fetch http://third.example/InRelease\nE: Some index files failed")
    assert apt.fetch_packages(["a"], architecture="arm64", sources=[SOURCE], directory=tmp_path / "one")
    answers["install"] = (100, "Reading\nE: Unable to locate package a")
    with refused(BackendError, got=("a",), word="third.example"):
        apt.fetch_packages(["a"], architecture="arm64", sources=[SOURCE], directory=tmp_path / "two")


def test_a_second_download_reuses_indexes_and_returns_only_new_files(machine_apt, tmp_path, monkeypatch):
    calls, _ = machine_apt
    apt.fetch_packages(["a"], architecture="arm64", sources=[SOURCE], directory=tmp_path / "apt")
    calls.clear()
    with refused(BackendError, got=("a",), word="arm64"):  # existing files are not returned
        apt.fetch_packages(["a"], architecture="arm64", sources=[SOURCE], directory=tmp_path / "apt")
    assert [call[1] for call in calls] == ["install"]
    (tmp_path / "apt" / "cache" / "archives" / "a_1_arm64.deb").unlink()
    debs = apt.fetch_packages(["a"], architecture="arm64", sources=[SOURCE], directory=tmp_path / "apt")
    assert [deb.name for deb in debs] == ["a_1_arm64.deb"]


def test_a_program_that_never_ends_is_stopped_and_named():
    begin = time.monotonic()
    with refused(BackendError, expected=0.2, got="sleep 60"):
        apt.run_command(["sleep", "60"], 0.2)
    assert time.monotonic() - begin < 10


def test_every_download_has_an_end(machine_apt, monkeypatch, tmp_path):
    seconds = []
    run = subprocess.run

    def timed(command, **settings):
        seconds.append(settings.pop("timeout"))
        return run(command, **settings)

    monkeypatch.setattr(subprocess, "run", timed)
    apt.fetch_packages(["a"], architecture="arm64", sources=[SOURCE], directory=tmp_path / "apt")
    assert len(seconds) == 3
    assert all(0 < limit <= 900 for limit in seconds)

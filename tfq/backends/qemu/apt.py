# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any architecture without root: the machine's own apt sources, in a private apt of our own.

Nothing of the machine's apt or dpkg is changed: lists, cache, status and configuration are files of ours. From the
machine come the sources of its own release, the keys that sign them, and how to reach them (proxies, certificates).
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq.errors import BackendError

COMPONENTS = ("main", "universe")
SUITES = ("{}", "{}-updates", "{}-security")
ERROR_LINES = 6
# apt waits two minutes by default for a host that does not answer; what the machine has configured goes before.
PATIENCE = (("Acquire::http::Timeout", "20"), ("Acquire::https::Timeout", "20"), ("Acquire::Retries", "2"))
# A host that answers and then sends next to nothing is beyond what apt's own timeouts see.
DOWNLOAD_SECONDS = 600
LOCAL_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class AptSource:
    """One entry of binary packages: where, which releases, which parts, and the options it came with (Signed-By)."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def to_deb822(self) -> str:
        """The entry as a stanza of a `.sources` file."""
        fields = [
            ("Types", "deb"),
            ("URIs", " ".join(self.uris)),
            ("Suites", " ".join(self.suites)),
            ("Components", " ".join(self.components)),
            *self.options,
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def parse_one_line(text: str) -> list[AptSource]:
    """The `deb [option=value ...] uri suite component ...` entries of a `.list` file. Source: sources.list(5)."""
    sources = []
    for line in text.splitlines():
        kind, _, rest = line.partition("#")[0].strip().partition(" ")
        rest, options = rest.strip(), ""
        if kind != "deb":
            continue
        if rest.startswith("["):
            options, _, rest = rest[1:].partition("]")
        words = rest.split()
        if len(words) < 3:
            continue
        pairs = [option.partition("=")[::2] for option in options.split()]
        sources.append(
            _source(words[:1], words[1:2], words[2:], [(key, value.replace(",", " ")) for key, value in pairs])
        )
    return sources


def parse_deb822(text: str) -> list[AptSource]:
    """The enabled `deb` entries of a `.sources` file. Source: sources.list(5), deb822(5)."""
    sources = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in "\n".join(line.rstrip() for line in lines).split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace() and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        entry = {name: fields.pop(name, "").split() for name in ("types", "uris", "suites", "components")}
        if "deb" in entry["types"] and fields.pop("enabled", "yes").lower() in ("yes", "true", "1", "on"):
            sources.append(_source(entry["uris"], entry["suites"], entry["components"], list(fields.items())))
    return sources


def _source(
    uris: Sequence[str], suites: Sequence[str], parts: Sequence[str], options: list[tuple[str, str]]
) -> AptSource:
    # The architecture is ours to choose, and translations and the like are not wanted.
    kept = [
        (key, value)
        for key, value in options
        if not key.lower().startswith(("arch", "lang", "target", "enabled", "x-"))
    ]
    return AptSource(
        uris=tuple(uri for uri in uris if not uri.startswith("cdrom:")),
        suites=tuple(suites),
        components=tuple(parts),
        options=tuple(kept),
    )


def machine_sources(etc: Path = Path("/etc/apt"), codename: str | None = None) -> list[AptSource]:
    """The machine's configured sources of its own release: suites of the codename, components main and universe.

    Raises BackendError when there is none.
    """
    if codename is None:
        codename = os_release().get("VERSION_CODENAME", "")
    results: list[AptSource] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            results += parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)
    suites = {suite.format(codename) for suite in SUITES}
    kept = []
    for source in results:
        own = tuple(suite for suite in source.suites if suite in suites)
        components = tuple(component for component in source.components if component in COMPONENTS)
        if own and components and source.uris:
            kept.append(AptSource(uris=source.uris, suites=own, components=components, options=source.options))
    if not kept:
        raise BackendError(
            f"no apt source below {etc} serves {codename or 'this release'} main: the ARM emulator comes from Debian "
            "or Ubuntu packages: configure a source of this release for apt",
            got=codename,
        )
    return kept


def os_release() -> dict[str, str]:
    """/etc/os-release, or nothing where there is none."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def fetch_packages(
    packages: Sequence[str], *, architecture: str, sources: Iterable[AptSource], directory: Path
) -> list[Path]:
    """Download `packages` and all that they depend on, as `.deb` files below `directory`; recommendations not.

    A `directory` of an earlier call knows the sources already; what was downloaded then is not in the answer.
    Raises BackendError with apt's own words when a source cannot be reached, or has no such package.
    """
    archives, answers = directory / "cache" / "archives", []
    if not (directory / "apt.conf").exists():
        for name in ("sources", "state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True)
        (directory / "state" / "status").touch()
        (directory / "sources" / "tfq.sources").write_text("\n".join(source.to_deb822() for source in sources))
        (directory / "apt.conf").write_text(_configuration(directory, architecture))
        # A source that cannot be reached matters only if the packages cannot be had without it.
        answers.append(_apt_get(directory, "update"))
    before = set(archives.glob("*.deb"))
    answers.append(_apt_get(directory, "install", "--yes", "--no-install-recommends", "--download-only", *packages))
    debs = sorted(set(archives.glob("*.deb")) - before)
    if answers[-1].returncode or not debs:
        raise BackendError(
            f"apt cannot download {', '.join(packages)} for {architecture}: {_reasons(*answers)}", got=tuple(packages)
        )
    return debs


def _configuration(directory: Path, architecture: str) -> str:
    """A private apt.conf: the machine's Acquire settings (proxies, certificates), none of its hooks, pins or paths."""
    dump = run_command(["apt-config", "dump"], LOCAL_SECONDS, text=True, env=_environment()).stdout
    lines = [line for line in dump.splitlines() if line.startswith("Acquire::")]
    kept = [line for line in lines if not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))]
    settings = [
        *((key, value) for key, value in PATIENCE if not any(line.startswith(f"{key} ") for line in kept)),
        ("Acquire::Languages", "none"),
        ("APT::Architecture", architecture),
        ("APT::Architectures", architecture),
        # As root, apt would drop to a user who cannot enter a private directory.
        ("APT::Sandbox::User", "root"),
        ("Dir::Etc::Main", "/dev/null"),
        ("Dir::Etc::Parts", "/dev/null"),
        ("Dir::Etc::SourceList", "/dev/null"),
        ("Dir::Etc::SourceParts", f"{directory}/sources"),
        ("Dir::Etc::Preferences", "/dev/null"),
        ("Dir::Etc::PreferencesParts", "/dev/null"),
        ("Dir::State", f"{directory}/state"),
        # No package is installed: the resolver closes over every dependency.
        ("Dir::State::Status", f"{directory}/state/status"),
        ("Dir::Cache", f"{directory}/cache"),
    ]
    return "\n".join([*kept, *(f'{key} "{value}";' for key, value in settings)]) + "\n"


def run_command(command: Sequence[str], seconds: float, **settings: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with its output captured. Raises BackendError where it has not ended after `seconds`."""
    if "input" not in settings:
        settings["stdin"] = subprocess.DEVNULL
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, **settings)
    except subprocess.TimeoutExpired as error:
        message = " ".join(str(word) for word in command[:6])
        raise BackendError(
            f"`{message} ...` did not end within {seconds:g} s and was stopped: is the network slow, or the machine "
            f"busy? "
            "Try again",
            expected=seconds,
            got=message,
        ) from error


def _apt_get(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**_environment(), "APT_CONFIG": str(directory / "apt.conf")}
    return run_command(["apt-get", *arguments], DOWNLOAD_SECONDS, text=True, errors="replace", env=environment)


def _environment() -> dict[str, str]:
    # dpkg and ldconfig live where an ordinary user's PATH does not lead.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "PATH": path}


def _reasons(*answers: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for answer in answers for line in answer.stderr.splitlines()]
    messages = [line for line in dict.fromkeys(lines) if line.startswith(("E:", "W:", "Err:"))]
    return " | ".join((messages or [line for line in lines if line])[-ERROR_LINES:]) or "apt gave no reason"


def require_tools() -> None:
    """Raises BackendError where a program that this file starts is missing."""
    for tool in ("apt-get", "apt-config", "dpkg", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise BackendError(
                f"{tool} is not on this machine: the ARM emulator comes from Debian or Ubuntu packages, so it can be "
                "set up on these systems only",
                got=tool,
            )


def unpack_packages(debs: Iterable[Path], root: Path) -> None:
    """Unpack `.deb` files into `root`, without their documentation. Runs none of their scripts."""
    for name in ("bin", "lib", "lib64", "sbin"):
        # As base-files has it: older packages fill /lib, newer ones /usr/lib and rely on this link.
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        try:
            content = run_command(["dpkg-deb", "--fsys-tarfile", str(deb)], LOCAL_SECONDS, check=True).stdout
            run_command(
                ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "--exclude=./usr/share", "-C", str(root)],
                LOCAL_SECONDS,
                input=content,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip()
            raise BackendError(f"cannot unpack {deb.name}: {reason or error}: is the disk full?") from error

# SPDX-License-Identifier: Apache-2.0
"""Download and unpack Debian packages of any architecture without root, with a private apt configuration.

The host's apt and dpkg are not changed: lists, cache, status and configuration are separate files. Only the sources of
the host's own release, their signing keys, and the network settings (proxies, certificates) come from the host.
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
# By default, apt waits two minutes for a server that does not answer. The host's own settings take precedence.
TIMEOUTS = (("Acquire::http::Timeout", "20"), ("Acquire::https::Timeout", "20"), ("Acquire::Retries", "2"))
# apt's timeouts do not detect a server that answers but sends almost no data.
DOWNLOAD_SECONDS = 600
LOCAL_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class AptSource:
    """One apt source of binary packages.

    Args:
        uris: The base addresses of the archive.
        suites: Releases, such as "bookworm".
        components: Parts of the archive, such as "main".
        options: Names and values of further fields, such as "Signed-By".
    """

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def to_deb822(self) -> str:
        """Return the source as a stanza of a `.sources` file."""
        fields = [
            ("Types", "deb"),
            ("URIs", " ".join(self.uris)),
            ("Suites", " ".join(self.suites)),
            ("Components", " ".join(self.components)),
            *self.options,
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def parse_one_line(text: str) -> list[AptSource]:
    """Parse the entries `deb [option=value ...] uri suite component ...` of a `.list` file. See sources.list(5)."""
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
    """Parse the enabled `deb` entries of a `.sources` file. See sources.list(5) and deb822(5)."""
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
    uris: Sequence[str], suites: Sequence[str], components: Sequence[str], options: list[tuple[str, str]]
) -> AptSource:
    # tfq chooses the architecture, and needs no translations or other indexes.
    used = [
        (key, value)
        for key, value in options
        if not key.lower().startswith(("arch", "lang", "target", "enabled", "x-"))
    ]
    return AptSource(
        uris=tuple(uri for uri in uris if not uri.startswith("cdrom:")),
        suites=tuple(suites),
        components=tuple(components),
        options=tuple(used),
    )


def host_sources(etc: Path = Path("/etc/apt"), codename: str | None = None) -> list[AptSource]:
    """Return the host's apt sources of its own release, with the components main and universe.

    Args:
        etc: apt's configuration folder.
        codename: The release; None for the one of /etc/os-release.

    Raises:
        BackendError: There is no such source.
    """
    if codename is None:
        codename = os_release().get("VERSION_CODENAME", "")
    results: list[AptSource] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            results += parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)
    release_suites = {suite.format(codename) for suite in SUITES}
    sources = []
    for source in results:
        suites = tuple(suite for suite in source.suites if suite in release_suites)
        components = tuple(component for component in source.components if component in COMPONENTS)
        if suites and components and source.uris:
            sources.append(AptSource(uris=source.uris, suites=suites, components=components, options=source.options))
    if not sources:
        raise BackendError(
            f"no apt source below {etc} has packages of {codename or 'this release'} main, but this is installed from "
            "Debian or Ubuntu packages. Configure an apt source of this release",
            got=codename,
        )
    return sources


def os_release() -> dict[str, str]:
    """Return the fields of /etc/os-release, or an empty dictionary if it does not exist."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def fetch_packages(
    packages: Sequence[str],
    *,
    architecture: str,
    sources: Iterable[AptSource],
    directory: Path,
    dependencies: bool = True,
) -> list[Path]:
    """Download packages and their dependencies, without recommended packages, as `.deb` files below `directory`.

    Args:
        packages: Names of the packages.
        architecture: Debian's name of the architecture.
        sources: Where to download from.
        directory: Folder for apt's files. If an earlier call used it, its sources are used again.
        dependencies: Whether to download the dependencies too.

    Returns:
        The files that this call has downloaded, without those of earlier calls.

    Raises:
        BackendError: A source cannot be reached, or a package does not exist. The message quotes apt.
    """
    archives, results = directory / "cache" / "archives", []
    if not (directory / "apt.conf").exists():
        for name in ("sources", "state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True)
        (directory / "state" / "status").touch()
        (directory / "sources" / "tfq.sources").write_text("\n".join(source.to_deb822() for source in sources))
        (directory / "apt.conf").write_text(_configuration(directory, architecture))
        # An unreachable source is an error only if the packages are not available without it.
        results.append(_apt_get(directory, "update"))
    earlier = set(archives.glob("*.deb"))
    if dependencies:
        results.append(_apt_get(directory, "install", "--yes", "--no-install-recommends", "--download-only", *packages))
    else:
        results.append(_apt_get(directory, "download", *packages, cwd=archives))
    debs = sorted(set(archives.glob("*.deb")) - earlier)
    if results[-1].returncode or not debs:
        raise BackendError(
            f"apt cannot download {', '.join(packages)} for {architecture}: {_reasons(*results)}", got=tuple(packages)
        )
    return debs


def _configuration(directory: Path, architecture: str) -> str:
    """Return a private apt.conf with the host's network settings, but none of its hooks, pins or paths."""
    dump = run_command(["apt-config", "dump"], LOCAL_SECONDS, text=True, env=_environment()).stdout
    lines = [line for line in dump.splitlines() if line.startswith("Acquire::")]
    network = [line for line in lines if not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))]
    settings = [
        *((key, value) for key, value in TIMEOUTS if not any(line.startswith(f"{key} ") for line in network)),
        ("Acquire::Languages", "none"),
        ("APT::Architecture", architecture),
        ("APT::Architectures", architecture),
        # If started by root, apt would switch to a user who cannot enter a private directory.
        ("APT::Sandbox::User", "root"),
        ("Dir::Etc::Main", "/dev/null"),
        ("Dir::Etc::Parts", "/dev/null"),
        ("Dir::Etc::SourceList", "/dev/null"),
        ("Dir::Etc::SourceParts", f"{directory}/sources"),
        ("Dir::Etc::Preferences", "/dev/null"),
        ("Dir::Etc::PreferencesParts", "/dev/null"),
        ("Dir::State", f"{directory}/state"),
        # An empty status file: no package counts as installed, so all dependencies are downloaded.
        ("Dir::State::Status", f"{directory}/state/status"),
        ("Dir::Cache", f"{directory}/cache"),
    ]
    return "\n".join([*network, *(f'{key} "{value}";' for key, value in settings)]) + "\n"


def run_command(command: Sequence[str], seconds: float, **settings: Any) -> subprocess.CompletedProcess[Any]:
    """Run a command as `subprocess.run` does, and capture its output.

    Raises:
        BackendError: The command has not ended after `seconds`.
    """
    if "input" not in settings:
        settings["stdin"] = subprocess.DEVNULL
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, **settings)
    except subprocess.TimeoutExpired as error:
        shortened = " ".join(str(word) for word in command[:6])
        raise BackendError(
            f"`{shortened} ...` did not finish within {seconds:g} s and was stopped. The network or the machine may be "
            "slow. Try again",
            expected=seconds,
            got=shortened,
        ) from error


def _apt_get(directory: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**_environment(), "APT_CONFIG": str(directory / "apt.conf")}
    return run_command(["apt-get", *arguments], DOWNLOAD_SECONDS, text=True, errors="replace", env=environment, cwd=cwd)


def _environment() -> dict[str, str]:
    # dpkg needs ldconfig, which is not on the PATH of an ordinary user.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "PATH": path}


def _reasons(*results: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for result in results for line in result.stderr.splitlines()]
    messages = [line for line in dict.fromkeys(lines) if line.startswith(("E:", "W:", "Err:"))]
    return " | ".join((messages or [line for line in lines if line])[-ERROR_LINES:]) or "apt gave no reason"


def host_architecture() -> str:
    """Return Debian's name of this machine's architecture."""
    return run_command(["dpkg", "--print-architecture"], LOCAL_SECONDS, text=True).stdout.strip()


def require_tools() -> None:
    """Raise BackendError if a program that this file needs is missing."""
    for tool in ("apt-get", "apt-config", "dpkg", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise BackendError(
                f"the program {tool} is missing. This is installed from Debian or Ubuntu packages, so it is available "
                "only on these systems",
                got=tool,
            )


def unpack_packages(debs: Iterable[Path], root: Path) -> None:
    """Unpack `.deb` files into `root`, without their documentation. Their scripts are not run."""
    for name in ("bin", "lib", "lib64", "sbin"):
        # The same links as in the package base-files: some packages have files in /lib, others in /usr/lib.
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
            raise BackendError(f"cannot unpack {deb.name}: {reason or error}. The disk may be full") from error


def unpack_files(deb: Path, names: Sequence[str], directory: Path) -> None:
    """Unpack a few files of a `.deb` file into `directory`, without their folders. Its scripts are not run.

    Raises:
        BackendError: The package does not contain them, or the disk is full.
    """
    try:
        content = run_command(["dpkg-deb", "--fsys-tarfile", str(deb)], LOCAL_SECONDS, check=True).stdout
        depth = names[0].count("/") + 1
        members = [f"./{name}" for name in names]
        command = ["tar", "-x", "--no-same-owner", f"--strip-components={depth}", "-C", str(directory), *members]
        run_command(command, LOCAL_SECONDS, input=content, check=True)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        raise BackendError(f"cannot unpack {', '.join(names)} from {deb.name}: {reason or error}") from error

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run README's two commands on new Debian 12 and Debian 13 systems, as an ordinary user on a fresh clone.

    sudo tests/machines/debian.py [--release=bookworm|trixie] [--only=demo|test] [--keep] [DIRECTORY]

For each release: debootstrap a minimal system, install the packages that README names, create a user, clone the
committed state of this checkout, then run `make demo` and `make test`. Prints one line per step with its duration.
Exit code: 0 if every step succeeded, 1 if a step failed, 2 on bad arguments, 130 if interrupted.

It needs root, debootstrap, a network connection, and 6 GB of disk. On 2 cores it takes about 20 minutes for each
release, so no make target runs it.

The host's pip and apt settings also apply inside: configuration files, the local files that they name, proxies and
certificates. All mounts are in a private mount namespace. They disappear with the script, even if it is killed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

RELEASES = ("bookworm", "trixie")
COMMANDS = ("demo", "test")
# What README says is needed. ca-certificates lets git and pip use HTTPS in a minimal system.
PACKAGES = ("git", "make", "python3", "python3-venv", "ca-certificates")
CHECKOUT = Path(__file__).resolve().parents[2]
USER = "newcomer"
HOME = Path("/home") / USER
PASSED_ON = re.compile(
    r"(https?|ftp|all|no)_proxy|PIP_\w+|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_SSL_CAINFO",
    re.IGNORECASE,
)
APT_SETTING = re.compile(r'Acquire::(https?|ftp|Retries|ForceIPv4)\b[^"]*".+";')
LOG_LINES = 25


def host_output(*command: str) -> str:
    """Return what `command` prints on the host, or nothing if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def environment_settings() -> dict[str, str]:
    """Return the host's environment variables for proxies, certificates and pip."""
    return {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


def pip_files() -> Iterator[Path]:
    """Yield the configuration files that the host's pip reads."""
    for match in re.finditer(r"^ +(/.*), exists: True$", host_output("python3", "-m", "pip", "config", "debug"), re.M):
        yield Path(match[1])


def named_paths() -> list[Path]:
    """Return the existing local paths that the host's pip settings and environment variables name."""
    text = host_output("python3", "-m", "pip", "config", "list") + "\n".join(environment_settings().values())
    paths = [Path(name) for name in re.findall(r"(?<![\w./:])(/[^\s'\":]+)", text)]
    # A package index on disk: its pages link to files next to it.
    paths += [Path(name).parent for name in re.findall(r"file://(/[^\s'\":]+/[^\s'\":/]+)", text)]
    return [path for path in dict.fromkeys(paths) if path.exists() and path != Path("/")]


class System:
    """One Debian system in a directory of the host, with what is mounted and run in it."""

    def __init__(self, release: str, directory: Path) -> None:
        """Choose the system's folder and the folder of its logs, both below `directory`."""
        self.release = release
        self.root = directory / release / "system"
        self.logs = directory / release

    def step(self, name: str, action: Callable[[IO[str]], None]) -> bool:
        """Run `action` with NAME.log to write to, print the result, and return whether it succeeded."""
        path, start, problem = self.logs / f"{name}.log", time.monotonic(), ""
        with path.open("w") as log:
            try:
                action(log)
            except (OSError, subprocess.CalledProcessError, shutil.Error) as error:
                problem = str(error)
        print(f"{self.release} {name}: {'FAILED' if problem else 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
        lines = path.read_text(errors="replace").splitlines()
        if problem:
            print("\n".join(f"    {line}" for line in [*lines[-LOG_LINES:], problem]), flush=True)
        else:
            # pytest's closing line
            print("".join(f"    {line}\n" for line in lines if re.match(r"\d+ passed.* in [\d.]+s", line)), end="")
        return not problem

    def chroot(self, log: IO[str], *command: str, user: str = "root", **variables: str) -> None:
        """Run `command` in the system. The environment has the host's settings, `variables`, and nothing else."""
        path = "/usr/local/bin:/usr/bin:/bin" if user != "root" else "/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": path, "LANG": "C.UTF-8", **environment_settings(), **variables}
        # The absolute path: subprocess searches the PATH of the new environment.
        run(
            log,
            shutil.which("chroot") or "/usr/sbin/chroot",
            f"--userspec={user}:{user}",
            str(self.root),
            *command,
            environment=environment,
        )

    def as_user(self, script: str) -> Callable[[IO[str]], None]:
        """Return an action that runs a shell script as the ordinary user."""
        return lambda log: self.chroot(log, "sh", "-c", script, user=USER, HOME=str(HOME), USER=USER)

    def bootstrap(self, log: IO[str]) -> None:
        """Install the minimal system."""
        run(log, "debootstrap", "--variant=minbase", self.release, str(self.root))

    def configure(self, log: IO[str]) -> None:
        """Mount the kernel's file systems, create the user, and copy the repository and the host's settings."""
        run(log, "mount", "-t", "proc", "proc", str(self.root / "proc"))
        for name in ("sys", "dev"):
            run(log, "mount", "--rbind", f"/{name}", str(self.root / name))
        run(log, "mount", "-t", "tmpfs", "tmpfs", str(self.root / "dev/shm"))
        for name in ("resolv.conf", "hosts"):
            shutil.copyfile(f"/etc/{name}", self.root / "etc" / name)
        settings = [line for line in host_output("apt-config", "dump").splitlines() if APT_SETTING.match(line)]
        (self.root / "etc/apt/apt.conf.d/80host").write_text("".join(f"{line}\n" for line in settings))
        self.chroot(log, "useradd", "--create-home", "--shell=/bin/bash", USER)
        for path in pip_files():
            in_home = path.is_relative_to(Path.home())
            self._copy(path, HOME / ".config/pip/pip.conf" if in_home else path)
        run(log, "git", "clone", "--bare", f"file://{CHECKOUT}", str(self.root / "srv/tfq.git"))
        self.chroot(log, "chown", "-R", f"{USER}:{USER}", str(HOME), "/srv/tfq.git")

    def packages(self, log: IO[str]) -> None:
        """Install README's packages, then mount the files that the host's settings name."""
        self.chroot(log, "apt-get", "update")
        options = ("--yes", "--no-install-recommends")
        self.chroot(log, "apt-get", "install", *options, *PACKAGES, DEBIAN_FRONTEND="noninteractive")
        # Mounted after the installation, because packages own some of these files.
        for path in named_paths():
            target = self.root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                target.touch()
            run(log, "mount", "--bind", "-o", "ro", str(path.resolve()), str(target))

    def _copy(self, source: Path, target: Path) -> None:
        path = self.root / target.relative_to("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)


def run(log: IO[str], *command: str, environment: dict[str, str] | None = None) -> None:
    """Run `command` with its output in `log`. Raise CalledProcessError if it fails."""
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)


def check_release(release: str, directory: Path, commands: Sequence[str]) -> bool:
    """Set up one system, run the commands in it, and return whether every step succeeded."""
    system = System(release, directory)
    shutil.rmtree(system.root, ignore_errors=True)
    system.root.mkdir(parents=True)
    ready = (
        system.step("bootstrap", system.bootstrap)
        and system.step("configure", system.configure)
        and system.step("packages", system.packages)
        and system.step("clone", system.as_user("git clone --quiet file:///srv/tfq.git ~/tfq"))
    )
    if not ready:
        return False
    # The second command also runs if the first one failed.
    results = [system.step(name, system.as_user(f"cd ~/tfq && make {name}")) for name in commands]
    return all(results)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Run README's two commands on new Debian systems.")
    parser.add_argument("--release", choices=RELEASES, help="only this release")
    parser.add_argument("--only", choices=COMMANDS, help="only this command")
    parser.add_argument("--keep", action="store_true", help="do not delete the systems at the end")
    parser.add_argument("directory", nargs="?", type=Path, help="logs and systems (default: a new temporary directory)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # in the private namespaces
    return parser


def main() -> int:
    """Run this script again in private namespaces, clean up after it, and return the exit code."""
    parser = make_parser()
    arguments = parser.parse_args()
    releases = [arguments.release] if arguments.release else RELEASES
    commands = [arguments.only] if arguments.only else COMMANDS
    if arguments.inside:
        results = [check_release(release, arguments.directory, commands) for release in releases]
        return 0 if all(results) else 1
    if os.geteuid() != 0:
        parser.error("debootstrap and chroot need root: run this script with sudo")
    for tool in ("debootstrap", "setpriv", "unshare", "git"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is missing: apt-get install debootstrap util-linux git")
    if host_output("git", "-C", str(CHECKOUT), "status", "--porcelain"):
        print(f"note: uncommitted changes in {CHECKOUT} are not tested", file=sys.stderr)
    directory = (arguments.directory or Path(tempfile.mkdtemp(prefix="tfq-debian-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # the ordinary user passes through it
    namespaces = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", str(directory)]
    command += [f"--release={arguments.release}"] if arguments.release else []
    command += [f"--only={arguments.only}"] if arguments.only else []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # In a new session, Ctrl-C reaches only this process, which ends the child.
    child = subprocess.Popen([*namespaces, *command], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return child.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        child.kill()  # --kill-child then ends everything inside, and its mounts disappear
        child.wait()
        if not arguments.keep:
            for release in releases:
                shutil.rmtree(directory / release / "system", ignore_errors=True)
        print(f"logs: {directory}")


if __name__ == "__main__":
    sys.exit(main())

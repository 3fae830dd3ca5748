# SPDX-License-Identifier: Apache-2.0
"""`make` chooses the newest supported Python that can create a virtual environment."""

import os
import subprocess
from pathlib import Path

import pytest

# A stand-in for a Python: it reports a version, and creates a virtual environment that "works" or fails.
PYTHON = """#!/bin/sh
case "$*" in
    "-c "*) {report} ;;
    "-m venv .venv") mkdir -p .venv/bin; {create} ;;
    "-m pip --version") exit 0 ;;
esac
"""
WORKING = 'printf "#!/bin/sh\\n" > .venv/bin/python; chmod +x .venv/bin/python; echo $0 > .venv/creator'


@pytest.fixture
def create_venv(root, tmp_path):
    """Run the script with only these stand-ins on the PATH: {name: (version or None, can create)}."""

    def run(pythons, *arguments):
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        for name, (version, works) in pythons.items():
            report = f"echo {version}" if version else "echo shim >&2; exit 127"
            create = WORKING if works else "exit 1"
            (programs / name).write_text(PYTHON.format(report=report, create=create))
            (programs / name).chmod(0o755)
        for tool in ("sh", "mktemp", "rm", "head", "cat", "mkdir", "chmod"):
            target = next(path for folder in ("/bin", "/usr/bin") if (path := Path(folder, tool)).exists())
            (programs / tool).unlink(missing_ok=True)
            (programs / tool).symlink_to(target)
        return subprocess.run(
            [root / ".ci" / "create_venv.sh", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": str(programs)},
        )

    return run


def creator(directory):
    return Path((directory / ".venv" / "creator").read_text().strip()).name


def test_newest_python_that_can_create_a_venv_is_chosen(create_venv, tmp_path):
    pythons = {"python3.13": (None, False), "python3.12": ("3.12", False), "python3.11": ("3.11", True)}
    assert create_venv(pythons | {"python3": ("3.11", True)}).returncode == 0
    assert creator(tmp_path) == "python3.11"
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert create_venv({"python3.13": ("3.13", True)}).returncode == 0
    assert creator(tmp_path) == "python3.13"


def test_every_python_that_failed_is_listed_with_its_reason(create_venv, tmp_path):
    pythons = {"python3.13": (None, False), "python3.12": ("3.12", False), "python3": ("3.9", True)}
    result = create_venv(pythons)
    assert result.returncode == 1 and not (tmp_path / ".venv").exists()
    reasons = dict(line.strip().split(": ", 1) for line in result.stderr.splitlines() if line.startswith("  "))
    assert list(reasons) == ["python3.13", "python3.12", "python3.11", "python3"]
    assert "shim" in reasons["python3.13"] and "python3.12-venv" in reasons["python3.12"]
    assert reasons["python3.11"] == "not found" and "3.9" in reasons["python3"]


def test_a_named_python_is_the_only_one_tried(create_venv, tmp_path):
    pythons = {"python3.13": ("3.13", True), "python3.11": ("3.11", True)}
    assert create_venv(pythons, "python3.11").returncode == 0
    assert creator(tmp_path) == "python3.11"
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert create_venv(pythons, "python3.12").returncode == 1


def test_a_venv_that_works_is_kept(create_venv, tmp_path):
    assert create_venv({"python3.11": ("3.11", True)}).returncode == 0
    assert create_venv({"python3.13": ("3.13", True)}).returncode == 0
    assert creator(tmp_path) == "python3.11"

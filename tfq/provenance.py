# SPDX-License-Identifier: Apache-2.0
"""The provenance in a record: versions, commit, machine.

It never contains names of hosts or users, or serial numbers.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

from tfq import registry
from tfq.config import RunConfig

SCHEMA_VERSION = 2

PACKAGES = (
    "tfq",
    "tensorflow",
    "tf-keras",
    "keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "litert-quantizer",
    "numpy",
)

_ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")


def provenance() -> dict[str, Any]:
    """Return package versions, the git commit of tfq's checkout (None outside one), and the CPU."""
    return {
        "schema_version": SCHEMA_VERSION,
        "python": platform.python_version(),
        "packages": package_versions(),
        "git_commit": _git_commit(),
        "cpu": cpu(),
    }


def record_of(command: str, config: RunConfig, **results: Any) -> dict[str, Any]:
    """Return the record of a command: provenance, the resolved config, its hash and seed, then `results`."""
    return {
        **provenance(),
        "command": command,
        "config": config.to_record(),
        "config_hash": config.config_hash(),
        "seed": config.seed,
        "plugins": [{"source": plugin.source, "sha256": plugin.sha256} for plugin in registry.plugins()],
        **results,
    }


def cpu() -> dict[str, Any]:
    """Return {"machine": architecture, "model": name or None, "isa": the CPU's extensions that matter for int8}."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "machine": platform.machine(),
        "model": fields.get("model name"),
        "isa": [flag for flag in _ISA_FLAGS if flag in flags],
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions of tfq and of the packages that affect its results; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


@functools.cache
def code_sha256() -> str:
    """Return the hexadecimal SHA-256 of tfq's source: Python, the C code that counts instructions, and the models."""
    digest = hashlib.sha256()
    for package in ("tfq", "tfq.models"):
        spec = importlib.util.find_spec(package)
        folder = Path(spec.origin if spec and spec.origin else "").parent
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".c")):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()

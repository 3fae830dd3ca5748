# SPDX-License-Identifier: Apache-2.0
"""Paths that tests use: the repository, the golden flatbuffers, and the shared data that some machines have."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfq import registry

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# The environment variable with the user's own TFQ_CACHE_DIR.
USERS_CACHE = "TFQ_TEST_USERS_CACHE_DIR"


def pytest_configure(config: pytest.Config) -> None:
    """Stop ignoring interrupts, and hide installed emulators from all tests that do not ask for them.

    Processes inherit ignored interrupts from the background jobs of a shell, and some tests interrupt. Emulators in the
    cache directory of the user, or a GPU, would be further default backends of each evaluation.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cache = os.path.join(tempfile.gettempdir(), f"tfq_test_cache_{os.getuid()}")
    if config.option.markexpr != "clients":
        # The workers of pytest-xdist inherit what is set here.
        os.environ.setdefault(USERS_CACHE, os.environ.get("TFQ_CACHE_DIR", ""))
        os.environ["TFQ_CACHE_DIR"] = cache
        os.environ["TFQ_VULKAN"] = os.path.join(cache, "no driver")


@pytest.fixture(autouse=True)
def leaves_no_plugin() -> Iterator[None]:
    """Fail a test that leaves a plugin loaded: it is part of the keys of stages, so later tests would miss results."""
    before = registry.plugins()
    yield
    assert registry.plugins() == before, "load plugins inside `with registry.temporary():`"


@pytest.fixture(scope="module")
def users_cache() -> Iterator[None]:
    """Use the cache directory of the user, where emulators are installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFQ_CACHE_DIR", os.environ[USERS_CACHE])  # "" is the default directory
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the path of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the directory of the committed flatbuffers."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the directory of real data and models that some machines have; if it exists, it must be complete."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not on this machine")
    return SHARED


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Return the directory for temporary files, empty."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Lay plots out but do not render them, which takes most of a page's time, for tests that look at other parts."""
    monkeypatch.setattr("tfq.report.plots.svg_of", lambda figure, title: "<svg></svg>")


@pytest.fixture(scope="session")
def tfq_cli():
    """Run `tfq ...` as a user does, in a separate process; return the CompletedProcess with text output."""

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 300, **environment: str):
        command = [sys.executable, "-m", "tfq", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env={**os.environ, **environment}
        )

    return run


@pytest.fixture
def tfq_here(capfd):
    """Run `tfq ...` in this process, which already has TensorFlow loaded, for tests that need no separate process."""
    from tfq.cli import main

    def run(*arguments: object):
        before = sys.argv
        sys.argv = ["tfq", *map(str, arguments)]
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as exit:
                main.main()
        finally:
            sys.argv = before
        message = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, exit.value.code, message.out, message.err)

    return run

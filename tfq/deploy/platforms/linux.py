# SPDX-License-Identifier: Apache-2.0
"""Linux: Python and C programs that run the model with LiteRT on the CPU."""

import sys
from pathlib import Path

from tfq.deploy.platform import BundleContents, Platform, SelfTest, SelfTestResult
from tfq.deploy.programs import run_program
from tfq.deploy.templates import read_source
from tfq.registry import register

PYTHON_FILE = "python/run_model.py"


def _sources(contents: BundleContents) -> dict[str, bytes]:
    return {PYTHON_FILE: read_source(PYTHON_FILE).encode()}


def _test_python(folder: Path) -> SelfTestResult:
    return run_program("Python", [sys.executable, "-I", "-B", PYTHON_FILE, "--self-test"], folder)


register(
    Platform(
        name="linux",
        help="Linux on x86-64 and ARM: a Python program and a C program",
        title="Linux",
        tried="Python and C run on Debian 12 (x86-64) and reproduce the golden vectors; ARM was not tried",
        sources=_sources,
        self_tests=(
            SelfTest(
                name="Python",
                commands=("pip install numpy ai-edge-litert", f"python3 {PYTHON_FILE} --self-test"),
                run=_test_python,
            ),
        ),
    )
)

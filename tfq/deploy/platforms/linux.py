# SPDX-License-Identifier: Apache-2.0
"""Linux: Python and C programs that run the model with LiteRT on the CPU."""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

from tfq.deploy.app_code import shape_problems, shared_tensor_problems
from tfq.deploy.c_code import c_problems, c_sources
from tfq.deploy.platform import BundleContents, Candidate, Platform, Problem, SelfTest, SelfTestResult
from tfq.deploy.programs import run_program
from tfq.deploy.templates import read_source
from tfq.registry import register

PYTHON_FILE = "python/run_model.py"
C_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
COMPILERS = ("cc", "gcc", "clang")


def _sources(contents: BundleContents) -> dict[str, bytes]:
    return {PYTHON_FILE: read_source(PYTHON_FILE).encode(), **c_sources(contents)}


def _check(candidate: Candidate) -> list[Problem]:
    # The C program resizes dynamic inputs, but its buffers of outputs have the sizes in the file.
    shapes = shape_problems(candidate, sides=("output",))
    return [*c_problems(candidate.io), *shapes, *shared_tensor_problems(candidate.model, "the C program")]


def _test_python(folder: Path) -> SelfTestResult:
    return run_program("Python", [sys.executable, "-I", "-B", PYTHON_FILE, "--self-test"], folder)


def litert_folder() -> Path | None:
    """Return the folder of the installed package ai-edge-litert, which has libLiteRt.so; None if there is none."""
    spec = importlib.util.find_spec("ai_edge_litert")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder if folder is not None and (folder / "libLiteRt.so").is_file() else None


def _test_c(folder: Path) -> SelfTestResult:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    library = litert_folder()
    if compiler is None or library is None:
        missing = "no C compiler (cc, gcc or clang)" if compiler is None else "no libLiteRt.so of ai-edge-litert"
        return SelfTestResult(name="C", status="not run", detail=f"there is {missing} here")
    with tempfile.TemporaryDirectory(prefix="tfq-c-") as scratch:
        program = str(Path(scratch, "self_test"))
        # Relative, because the folder may have been named from another directory than its own.
        sources = sorted(str(path.relative_to(folder)) for path in folder.glob("c/*.c"))
        link = [f"-L{library}", "-l:libLiteRt.so", f"-Wl,-rpath,{library}", "-lm"]
        compiled = run_program("C", [compiler, *C_FLAGS, *sources, "-o", program, *link], folder)
        return run_program("C", [program, "."], folder) if compiled.status == "passed" else compiled


register(
    Platform(
        name="linux",
        help="Linux on x86-64 and ARM: a Python program and a C program",
        title="Linux",
        tried="Python and C run on Debian 12 (x86-64) and reproduce the golden vectors; ARM was not tried",
        sources=_sources,
        check=_check,
        self_tests=(
            SelfTest(
                name="Python",
                commands=("pip install numpy ai-edge-litert", f"python3 {PYTHON_FILE} --self-test"),
                run=_test_python,
            ),
            SelfTest(
                name="C",
                commands=(
                    "pip install ai-edge-litert",
                    'L=$(python3 -c "import ai_edge_litert; print(*ai_edge_litert.__path__)")',
                    f'gcc {" ".join(C_FLAGS)} c/*.c -o self_test "-L$L" -l:libLiteRt.so "-Wl,-rpath,$L" -lm',
                    "./self_test",
                ),
                run=_test_c,
            ),
        ),
    )
)

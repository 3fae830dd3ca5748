# SPDX-License-Identifier: Apache-2.0
"""Platforms of apps: what each refuses, the sources of its part of a bundle, and how they are tested."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tfq import registry
from tfq.deploy.golden import GoldenVectors
from tfq.deploy.results import Results
from tfq.notebook import NotebookRecord
from tfq.tflite import Model

MODEL_FILE = "model.tflite"
IO_FILE = "io.json"
LABELS_FILE = "labels.txt"
GOLDEN_FILE = "golden/golden.json"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a platform cannot run a file, and the conversion that it can run.

    Args:
        reason: What the platform refuses, in a sentence without a period at its end.
        advice: What to do instead, such as "convert with conversion.inference_input_type=uint8".
    """

    reason: str
    advice: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A file that is about to be exported, for the checks of platforms.

    Args:
        content: The bytes of the `.tflite`.
        model: The same, parsed.
        io: The table of inputs and outputs, as in io.json.
    """

    content: bytes
    model: Model
    io: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class BundleContents:
    """What the sources of a platform are made from.

    Args:
        name: The name of the model, such as "digits_cnn_int8": the stem of the exported file.
        model: The bytes of model.tflite, with metadata.
        io: The table of inputs and outputs, as in io.json.
        golden: The golden vectors.
        labels: The class names of the output that has labels; () if there are none.
        results: What earlier commands measured about the exported file.
        source_sha256: The SHA-256 of the exported file, before metadata was added.
        parsed: `model`, parsed.
    """

    name: str
    model: bytes
    io: Mapping[str, Any]
    golden: GoldenVectors
    labels: tuple[str, ...]
    results: Results
    source_sha256: str
    parsed: Model


@dataclass(frozen=True, kw_only=True)
class SelfTestResult(NotebookRecord):
    """The outcome of a self-test.

    Args:
        name: The name of the self-test.
        status: "passed", "failed" or "not run".
        detail: What it printed if it passed or failed, and the reason if it was not run.
    """

    name: str
    status: Literal["passed", "failed", "not run"]
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Return JSON values."""
        return {"name": self.name, "status": self.status, "detail": self.detail}


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """A test of a platform's sources on the golden vectors.

    Args:
        name: What is tested, such as "Python".
        commands: The shell commands that run it in the folder of the bundle, for README.md.
        run: (folder of the bundle) -> result. It writes nothing into the folder. None if tfq cannot run it.
        not_run: Why tfq cannot run it.
    """

    name: str
    commands: tuple[str, ...]
    run: Callable[[Path], SelfTestResult] | None = None
    not_run: str = ""

    def result(self, folder: Path) -> SelfTestResult:
        """Run the test on the bundle in `folder` if tfq can run it."""
        if self.run is None:
            return SelfTestResult(name=self.name, status="not run", detail=self.not_run)
        return self.run(folder)


def _no_problems(candidate: Candidate) -> tuple[Problem, ...]:
    return ()


@registry.extension_point("platform")
@dataclass(frozen=True, kw_only=True)
class Platform:
    """A platform of apps: `export.platform` names it.

    Args:
        name: What users write in `export.platform`.
        help: What the bundle has for it, for `--help` and the documentation.
        title: Its name within a sentence of a message: "LiteRT.js".
        tried: How far its sources were tried, for the documentation and README.md.
        sources: (contents) -> {path in the bundle: content}. The paths of a platform start with folders that no other
            platform uses, unless the content is the same.
        check: (candidate) -> why the platform cannot run this file; () if it can.
        self_tests: The tests of its sources on the golden vectors.
    """

    name: str
    help: str
    title: str
    tried: str
    sources: Callable[[BundleContents], dict[str, bytes]]
    check: Callable[[Candidate], Iterable[Problem]] = _no_problems
    self_tests: tuple[SelfTest, ...] = field(default=())

    @property
    def columns(self) -> dict[str, str]:
        """Return the further cells of its row in the documentation."""
        return {
            "self-tests": ", ".join(test.name for test in self.self_tests),
            "how far it was tried": self.tried,
        }

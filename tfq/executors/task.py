# SPDX-License-Identifier: Apache-2.0
"""Tasks: stages of the store that a function of a module computes, so that another process can run them."""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tfq.errors import InputError
from tfq.store import StageResult, stage_key
from tfq.typing import JSON

# "error": a TfqError of the function. "bug": any other exception. "killed": its process ended. "needs": a task that it
# needs failed.
FailureKind = Literal["error", "bug", "killed", "needs"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage of the store that another process can compute.

    Its result depends on `name`, `function`, `inputs`, `needs` and `num_threads`, on tfq's code, and on the versions of
    packages and plugins. Two tasks that are equal in these are one task.

    Attributes:
        name: What is computed, for messages and progress.
        function: "module:function". It is called as `function(directory, needs, **arguments)`, where `directory` is the
            folder that it writes files (no folders) into, and `needs` has the folder of each needed result by role. It
            returns details: JSON values.
        arguments: The keyword arguments of the function: JSON values. Paths in them must exist where the task runs.
        inputs: JSON values that determine the result: the arguments, but hashes of contents instead of paths.
        needs: The tasks whose results the function reads, by role.
        num_threads: The number of threads of TensorFlow and BLAS.
    """

    name: str
    function: str
    arguments: JSON = field(default_factory=dict)
    inputs: JSON = field(default_factory=dict)
    needs: Mapping[str, "Task"] = field(default_factory=dict)
    num_threads: int = 1

    def __post_init__(self) -> None:
        """Check the function and the number of threads."""
        module, colon, name = self.function.partition(":")
        if not (module and colon and name.isidentifier()):
            raise InputError(
                f"function of task {self.name!r} is {self.function!r}: expected module:function",
                field="function",
                expected="module:function",
                got=self.function,
            )
        if self.num_threads < 1:
            raise InputError(
                f"num_threads of task {self.name!r} is {self.num_threads}: expected at least 1",
                field="num_threads",
                expected=1,
                got=self.num_threads,
            )

    @functools.cached_property
    def key(self) -> str:
        """The key of its result in the store."""
        return stage_key(self.name, self.basis)

    @property
    def basis(self) -> JSON:
        """The values that the key covers, apart from the name and the software."""
        return {
            "function": self.function,
            "inputs": self.inputs,
            "needs": {role: task.key for role, task in sorted(self.needs.items())},
            "num_threads": self.num_threads,
        }


@dataclass(frozen=True, kw_only=True)
class TaskFailure:
    """The reason why a task has no result.

    Attributes:
        kind: "error": tfq refused or failed. "bug": another exception. "killed": its process ended each time.
            "needs": a task that it needs has failed.
        message: The message of the error, in sentences.
        details: The end of what the task wrote to stderr, or the traceback; "" if the message says it all.
        exit_code: The exit code of a command that fails with this error.
    """

    kind: FailureKind
    message: str
    details: str = ""
    exit_code: int = 3


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The end of a task: either its result or the failure.

    Attributes:
        task: The task.
        result: Its result in the store; None if it failed.
        failure: Why it failed; None if it did not.
    """

    task: Task
    result: StageResult | None = None
    failure: TaskFailure | None = None


def load_function(name: str) -> object:
    """Return the function "module:function".

    Raises:
        InputError: There is none.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the function {name} of a task cannot be loaded: {error}. It must be importable where the task runs",
            field="function",
            expected="an importable function",
            got=name,
        ) from error

# SPDX-License-Identifier: Apache-2.0
"""The exceptions and warnings of tfq. The class says what the user can do about it."""

import contextlib
import difflib
import os
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from tfq import progress

_KERASES = ("keras", "tf_keras")
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class TfqError(Exception):
    """The base of all errors of tfq; raised itself if tfq or its environment failed.

    Args:
        message: What is wrong, where, what was expected and what to do, in sentences. It names config fields by their
            path in `RunConfig` ("conversion.calibration.method"), never flags: `cli/` translates paths to flags.
        field: The config path or the argument that the error is about, or None.
        expected: What would have been accepted: a value, a tuple of choices, or a short phrase.
        got: The value that was passed instead.
        limit: The name of the row in docs/not_supported.md if tfq does not support this kind of model, data or set-up.
            None if tfq supports it, but the value is wrong.

    Attributes:
        exit_code: The exit code of a command that fails with this error.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        expected: object = None,
        got: object = None,
        limit: str | None = None,
    ) -> None:
        """Create an error with a message and optional details."""
        super().__init__(message)
        self.field, self.expected, self.got, self.limit = field, expected, got, limit


class InputError(TfqError):
    """Invalid input from the user: a file, an array, a flag or a configuration."""

    exit_code = 2


class FlatbufferError(InputError):
    """The bytes are not a TFLite flatbuffer, or the flatbuffer is damaged."""


class ModelError(InputError):
    """The model makes the interpreter fail, crash or run forever."""


class RequirementError(TfqError):
    """The work succeeded, but its result does not meet a requirement."""

    exit_code = 1


class AuditError(RequirementError):
    """The flatbuffer does not have the scheme, or does not fit the target, that the audit requires."""


class VerificationError(RequirementError):
    """A converted model does not run, or its outputs lost the information that the float model's outputs have."""


class BackendError(TfqError):
    """A backend could not run a model, for a reason other than the model."""


class TfqWarning(UserWarning):
    """A fallback, a skipped step or a possible problem that the user should know about.

    Records contain the warnings too.
    """


def warn(message: str, category: type[Warning] = TfqWarning) -> None:
    """Issue a warning that points to the line of the user's code that called tfq.

    Args:
        message: What happened, where, and what to do about it. It names config fields by their path, as errors do.
        category: The class of the warning.
    """
    progress.clear()
    warnings.warn(message, category, stacklevel=_frames_of_tfq() + 1)


def _frames_of_tfq() -> int:
    """Return the number of innermost frames up to the outermost one that runs code of tfq.

    Keras and TensorFlow call back into tfq (callbacks, layers). Their frames between two frames of tfq count too,
    because the user called the outermost one. Frames of Keras that call that one count as well: in a callback, the
    user called `fit`. This function's own frame does not count. The result is at least 1.
    """
    count, outermost = 0, 1
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        count += 1
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code.co_filename.startswith(_PACKAGE) or (package in _KERASES and outermost == count - 1):
            outermost = count
        frame = frame.f_back
    return outermost


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest of `choices`, or all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"choose from {', '.join(choices)}" if choices else "there are no choices"


def install_hint(extra: str = "") -> str:
    """Return how to install an extra of tfq from a package index and from a clone; "" means no extra."""
    brackets = f"[{extra}]" if extra else ""
    return f"pip install 'tfq{brackets}'; from a clone: pip install -e '.{brackets}'"


@contextlib.contextmanager
def remembered_warnings() -> Iterator[list[str]]:
    """Collect the messages of the TfqWarnings that are issued inside, which are also shown as usual."""
    messages: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", TfqWarning)
        show = warnings.showwarning

        def remember(message: Any, category: Any, *rest: Any, **named: Any) -> None:
            if issubclass(category, TfqWarning):
                messages.append(str(message))
            show(message, category, *rest, **named)

        warnings.showwarning = remember
        yield messages

# SPDX-License-Identifier: Apache-2.0
"""The exceptions and warnings of tfq, by what the user can do about them."""

import contextlib
import difflib
import os
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class TfqError(Exception):
    """tfq, a backend or the environment failed. Every error of tfq is one of these.

    Args:
        message: What is wrong, where, what was expected and what to do, in sentences. It names config fields by their
            path in `RunConfig` ("conversion.calibration.method"), never flags: `cli/` translates paths to flags.
        field: The config path or the argument that the error is about; None where there is none.
        expected: What would have been accepted: a value, a tuple of choices, or a short phrase.
        got: The value that was given instead.

    Attributes:
        exit_code: What a command returns when the error reaches it.
    """

    exit_code = 3

    def __init__(self, message: str, *, field: str | None = None, expected: object = None, got: object = None) -> None:
        super().__init__(message)
        self.field, self.expected, self.got = field, expected, got


class InputError(TfqError):
    """What the user gave cannot be used: a file, an array, a flag, a configuration."""

    exit_code = 2


class FlatbufferError(InputError):
    """The bytes are no TFLite flatbuffer, or a damaged one."""


class ModelError(InputError):
    """The model itself makes the interpreter fail, crash or never end."""


class RequirementError(TfqError):
    """Everything worked, and the result does not meet what was required of it."""

    exit_code = 1


class AuditError(RequirementError):
    """The flatbuffer is not what the audit was asked to require."""


class VerificationError(RequirementError):
    """A converted model was run next to its float twin, and its outputs lost their information, or it does not run."""


class BackendError(TfqError):
    """A model could not be run where it was to run, and not because of the model."""


class TfqWarning(UserWarning):
    """A fallback, a skip or a doubt that the user should know of. Records carry them too."""


def warn(message: str, category: type[Warning] = TfqWarning) -> None:
    """Issue a warning that points to the line of the user's code that called tfq.

    Args:
        message: What happened, where, and what to do about it. It names config fields by their path, as errors do.
        category: The class of the warning.
    """
    warnings.warn(message, category, stacklevel=_frames_of_tfq() + 1)


def _frames_of_tfq() -> int:
    """Count the innermost frames that run code of tfq, without this function's own; at least 1.

    Keras and TensorFlow call back into tfq (callbacks, layers), so that their frames between two of tfq's count too:
    the outermost frame of tfq is the one that the user called.
    """
    count, outermost = 0, 1
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        count += 1
        if frame.f_code.co_filename.startswith(_PACKAGE):
            outermost = count
        frame = frame.f_back
    return outermost


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence that ends an error about the unknown name `word`: the nearest of `choices`, or all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"choose from {', '.join(choices)}" if choices else "there is nothing to choose from"


def install_hint(extra: str = "") -> str:
    """Return how to install an extra of tfq, from a package index and from a clone; "" is what tfq always needs."""
    brackets = f"[{extra}]" if extra else ""
    return f"pip install 'tfq{brackets}'; from a clone: pip install -e '.{brackets}'"


@contextlib.contextmanager
def remembered_warnings() -> Iterator[list[str]]:
    """The TfqWarnings raised inside, as sentences; they are shown as they come up all the same."""
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

# SPDX-License-Identifier: Apache-2.0
"""The exception for a single layer or operation that cannot be translated from Keras 3 to tf_keras."""

import re

_RAISED_LINE = re.compile(r"\s*\w+(Error|Exception): ")
# What TensorFlow and Keras 3 add to a message: the op's name, and terminal colors.
_MESSAGE_NOISE = re.compile(r"\x1b\[\d+m|\{\{function_node [^}]*\}\}|\[Op:\w+\]( name:)?")


class Untranslatable(Exception):
    """One layer or operation has no equivalent in tf_keras.

    A translator raises it for its own layer. It knows the reason and what the user can do, but not the layer's path in
    the model. The bridge catches all of them, adds the paths, and raises one InputError.
    """

    def __init__(self, reason: str) -> None:
        """Create the exception.

        Args:
            reason: What is not supported and what to do about it, without the layer's name.
        """
        super().__init__(reason)
        self.reason = reason


def reason_of(error: Exception) -> str:
    """Return the line of an error's message that has the cause.

    A layer's call writes the layer's name before it, and the arguments after it.
    """
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = lines[1] if len(lines) > 1 and lines[0].startswith("Exception encountered") else lines[0]
    raised = [line for line in lines if _RAISED_LINE.match(line)]  # "in user code:" ends with the exception
    return _MESSAGE_NOISE.sub("", raised[0] if raised and message.startswith("in user code") else message).strip()

# SPDX-License-Identifier: Apache-2.0
"""Limits on the size of a model's inputs, to check before arrays for them are allocated."""

import os

from tfq.errors import ModelError

MAX_BATCH = 1 << 16
# An input of the model may have this many bytes; the environment variable allows more.
MAX_INPUT_BYTES, MAX_INPUT_VARIABLE = 512 << 20, "TFQ_MAX_INPUT_MB"


def check_input_size(name: str, batch_size: int, num_bytes: int) -> None:
    """Raise ModelError if an input is larger than a correct model needs.

    Args:
        name: The input's name, for the message.
        batch_size: The number of samples of one inference.
        num_bytes: The bytes of one inference.
    """
    if batch_size > MAX_BATCH:
        raise ModelError(
            f"input {name!r} of the model has a batch size of {batch_size:,}, expected at most {MAX_BATCH:,}. The "
            "model may be damaged. Convert it with a batch size of 1",
            field="model",
            expected=MAX_BATCH,
            got=batch_size,
        )
    configured = os.environ.get(MAX_INPUT_VARIABLE, "")
    limit = int(configured) << 20 if configured.isdigit() else MAX_INPUT_BYTES
    if num_bytes > limit:
        raise ModelError(
            f"input {name!r} of the model needs {num_bytes:,} bytes for one inference, expected at most {limit:,}. The "
            f"model may be damaged. If it is correct, set the environment variable {MAX_INPUT_VARIABLE} to "
            f"{(num_bytes >> 20) + 1}",
            field="model",
            expected=limit,
            got=num_bytes,
        )

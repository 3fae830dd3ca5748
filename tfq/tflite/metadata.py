# SPDX-License-Identifier: Apache-2.0
"""The metadata that tfq writes into a flatbuffer: one entry, a JSON object."""

import json
from collections.abc import Mapping
from typing import Any

from tfq.errors import FlatbufferError, InputError

METADATA_NAME = "tfq"
# Key of {pattern "op:12": names of the output tensors of this op of the float flatbuffer}.
ADDRESSED_OPS = "addressed_ops"


def encode_metadata(value: Mapping[str, Any]) -> bytes:
    """Return canonical JSON: equal values give equal bytes.

    Raises:
        InputError: The value cannot be expressed in JSON.
    """
    try:
        return json.dumps(dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"metadata: expected plain, finite JSON values: {error}",
            field="metadata",
            expected="finite JSON values",
            got=str(error),
        ) from error


def decode_metadata(content: bytes) -> dict[str, Any]:
    """Return the value of the entry's bytes.

    Raises:
        FlatbufferError: They are not a JSON object.
    """
    try:
        value = json.loads(bytes(content), parse_constant=_refuse_constant)
    # Deeply nested brackets exhaust the parser's stack.
    except (ValueError, RecursionError) as error:
        message = f"metadata entry {METADATA_NAME!r}: expected a JSON object: {error}: convert again"
        raise FlatbufferError(message, field="metadata", expected="a JSON object") from error
    if not isinstance(value, dict):
        raise FlatbufferError(
            f"metadata entry {METADATA_NAME!r}: expected a JSON object, got {type(value).__name__}: convert again",
            field="metadata",
            expected="a JSON object",
            got=type(value).__name__,
        )
    return value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")

# SPDX-License-Identifier: Apache-2.0
"""What tfq writes into a flatbuffer about it: one metadata entry, a JSON object."""

import json
from collections.abc import Mapping
from typing import Any

from tfq.errors import FlatbufferError, InputError

METADATA_NAME = "tfq"
# Key of {pattern "op:12": names of the tensors that this op of the float flatbuffer gives}.
ADDRESSED_OPS = "addressed_ops"


def encode_metadata(value: Mapping[str, Any]) -> bytes:
    """Canonical JSON: the same value gives the same bytes. Raises InputError where JSON has no form for it."""
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
    """The value of the entry's bytes. Raises FlatbufferError where they are no JSON object."""
    try:
        value = json.loads(bytes(content), parse_constant=_refuse_constant)
    # Brackets nested a thousand deep exhaust the parser's stack.
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
    raise ValueError(f"{word} is no JSON number")

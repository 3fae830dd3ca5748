# SPDX-License-Identifier: Apache-2.0
"""Compare two flatbuffers."""

import gzip
from typing import Any

from tfq import tflite
from tfq.artifacts import PathOrBytes, content_of, sha256
from tfq.comparison.record import ComparisonRecord


def compare_models(reference: PathOrBytes, model: PathOrBytes) -> ComparisonRecord:
    """Return the differences between two .tflite files.

    Args:
        reference: The file to compare with: its bytes or its path.
        model: The file that is compared: its bytes or its path.

    Returns:
        The differences; `num_differences` is their number, `to_text()` shows them.

    Raises:
        InputError: A file cannot be read.
        FlatbufferError: A file is not a flatbuffer, or it is damaged.
    """
    contents = content_of(reference, "reference"), content_of(model, "model")
    for content in contents:
        tflite.read(content)
    files = dict(zip(("reference", "model"), map(_file, contents), strict=True))
    return ComparisonRecord(byte_identical=contents[0] == contents[1], files=files)


def _file(content: bytes) -> dict[str, Any]:
    compressed = len(gzip.compress(content, mtime=0))
    return {"bytes": len(content), "gzip_bytes": compressed, "sha256": sha256(content)}

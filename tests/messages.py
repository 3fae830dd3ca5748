# SPDX-License-Identifier: Apache-2.0
"""Assertions on errors and warnings that leave their prose free: the type, the fields, and at most one key word."""

import contextlib
import re
from collections.abc import Iterator

import pytest

from tfq.errors import TfqWarning

ANYTHING = object()


def key_word(word: str) -> str:
    """Return `word`; a phrase would tie a test to the prose of a message."""
    assert len(word.split()) == 1, f"{word!r}: use one word or name, and `field`, `expected` and `got`"
    return word


@contextlib.contextmanager
def refused(
    error: type[BaseException],
    *,
    field: object = ANYTHING,
    expected: object = ANYTHING,
    got: object = ANYTHING,
    word: str | None = None,
    limit: object = ANYTHING,
) -> Iterator[pytest.ExceptionInfo]:
    """Check that the block raises `error`.

    Args:
        error: The type.
        field: What the error's `field` must equal; it is not compared by default. The same applies to the next two.
        expected: What its `expected` must equal.
        got: What its `got` must equal.
        word: One word or name that the message must contain: a layer, a value, a file.
        limit: What its `limit` must equal: the name of a row in docs/not_supported.md.

    Yields:
        What `pytest.raises` yields.
    """
    with pytest.raises(error) as caught:
        yield caught
    requirements = {"field": field, "expected": expected, "got": got, "limit": limit}
    requirements = {name: value for name, value in requirements.items() if value is not ANYTHING}
    fields = {name: getattr(caught.value, name) for name in requirements}
    assert fields == requirements, f"the error is {caught.value!r}"
    if word is not None:
        assert key_word(word) in str(caught.value)


@contextlib.contextmanager
def warned(word: str, category: type[Warning] = TfqWarning) -> Iterator[pytest.WarningsRecorder]:
    """Check that the block gives a warning of `category` that contains `word`, which is one word or name."""
    with pytest.warns(category, match=re.escape(key_word(word))) as caught:
        yield caught

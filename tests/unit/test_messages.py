# SPDX-License-Identifier: Apache-2.0
"""The assertions on errors and warnings fail where they should."""

import warnings

import pytest
from messages import refused, warned

from tfq.errors import InputError, TfqWarning


def raise_it():
    raise InputError("int9 is unknown", field="conversion.scheme", expected=("int8",), got="int9")


@pytest.mark.parametrize(
    "expectation",
    [
        {},
        {"field": "conversion.scheme", "expected": ("int8",), "got": "int9", "word": "int9"},
    ],
)
def test_refused_accepts_the_error_it_describes(expectation):
    with refused(InputError, **expectation) as caught:
        raise_it()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "expectation",
    [
        {"field": "conversion.target"},
        {"field": None},
        {"expected": "int8"},
        {"got": "int8"},
        {"word": "int8"},
        {"word": "is unknown"},
    ],
)
def test_refused_fails_where_the_error_differs(expectation):
    with pytest.raises(AssertionError), refused(InputError, **expectation):
        raise_it()


def test_refused_fails_without_an_error():
    with pytest.raises(pytest.fail.Exception), refused(InputError):
        pass


@pytest.mark.parametrize("word", ["sad", "mind this"])
def test_warned_fails_where_the_warning_differs(word):
    with warned("this"):
        warnings.warn("mind this", TfqWarning, stacklevel=1)
    with pytest.raises((AssertionError, pytest.fail.Exception)), warned(word):
        warnings.warn("mind this", TfqWarning, stacklevel=1)

# SPDX-License-Identifier: Apache-2.0
"""The arguments of an operation as JSON and back."""

import json

import numpy as np
import pytest
from messages import refused

from tfq.errors import InputError
from tfq.keras_bridge.operations.data import decode, encode
from tfq.keras_bridge.untranslatable import Untranslatable

TENSOR = object()


def there_and_back(value):
    text = json.dumps(encode(value, lambda item: 0 if item is TENSOR else None))
    assert "class_name" not in text
    return decode(json.loads(text), ["tensor"])


def test_containers_slices_and_tensors_come_back():
    value = ((TENSOR, 2, 1.5, None, True, "same"), {"axis": [1, (2,)], 3: slice(None, -1, 2)}, ..., slice(1, None))
    assert there_and_back(value) == (("tensor", *value[0][1:]), *value[1:])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool", "uint8", "float16"])
def test_arrays_come_back_to_the_bit(dtype):
    array = np.random.default_rng(0).normal(size=(2, 3)).astype(dtype)
    came = there_and_back(array)
    assert came.dtype == array.dtype and came.shape == (2, 3) and came.tobytes() == array.tobytes()
    scalar = there_and_back(np.float32(0.1))
    assert scalar == np.float32(0.1) and scalar.dtype == np.float32


def test_values_that_json_does_not_know_come_back():
    assert there_and_back(float("-inf")) == float("-inf")
    assert np.isnan(there_and_back(np.array([np.nan], "float32"))).all()


class Variable:
    name = "kernel"

    def assign(self, value):
        raise AssertionError


class NoValue:
    def __array__(self, dtype=None, copy=None):
        raise ValueError("symbolic")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (Variable(), "'kernel'"),
        (print, "builtin_function_or_method"),
        (object(), "object"),
        (NoValue(), "NoValue"),
        (np.array(["a"]), "<U1"),
        (np.array([object()]), "object"),
        (np.zeros((65 << 20), "int8"), "68157440"),
    ],
)
def test_values_that_are_not_data_are_untranslatable(value, word):
    with refused(Untranslatable, word=word):
        encode([value], lambda item: None)


@pytest.mark.parametrize(
    "damaged",
    [
        {"tensor": 1},
        {"tensor": -1},
        {"other": 1},
        {},
        [1],
        {"slice": [1]},
        {"dict": [1]},
        {"tuple": "ab"},
        {"array": {"dtype": "|O", "shape": [1], "base64": "AAAAAAAAAAA="}},
        {"array": {"dtype": "<f4", "shape": [2], "base64": "AAAAAA=="}},
        {"array": {"dtype": "<f4", "shape": [1], "base64": "!"}},
        {"array": 3},
    ],
)
def test_damaged_arguments_are_an_input_error(damaged):
    with refused(InputError, field="model", word="arguments"):
        decode(damaged, ["tensor"])

# SPDX-License-Identifier: Apache-2.0
"""The check that a technique left the float function unchanged, on outputs of every type."""

from pathlib import Path

import numpy as np
import pytest

from tfq.errors import TfqError
from tfq.ptq import same_function

MODEL = (Path(__file__).parent.parent / "golden" / "digits_float32.tflite").read_bytes()


def check(before, after, monkeypatch):
    """Check outputs instead of models."""
    runs = iter([[[np.asarray(before)]], [[np.asarray(after)]]])
    monkeypatch.setattr(same_function, "map_activations", lambda *_: next(runs))
    return same_function.check_same_function(MODEL, MODEL, [{}], "equalization", 1e-5)


@pytest.mark.parametrize("values", [[True, False], np.uint8([3, 200]), np.float32([0.5, -1.0])])
def test_equal_outputs_of_any_type_have_no_difference(values, monkeypatch):
    assert check(values, values, monkeypatch) == (0.0, 1)


@pytest.mark.parametrize(("before", "after"), [([True, False], [True, True]), (np.uint8([3, 4]), np.uint8([4, 3]))])
def test_a_changed_condition_or_whole_number_is_refused(before, after, monkeypatch):
    with pytest.raises(TfqError) as caught:
        check(before, after, monkeypatch)
    assert caught.value.got == np.abs(np.float64(before) - np.float64(after)).max() / np.max(before)

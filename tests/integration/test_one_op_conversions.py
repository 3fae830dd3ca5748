# SPDX-License-Identifier: Apache-2.0
"""The conversions of one-op models end as docs/ops.md says."""

import pytest
from one_op_conversions import CONVERSIONS, MEASURED, SCHEMES, conversion_of

QUICK = ("ADD", "CONV_2D", "ELU", "FLOOR", "GREATER", "NEG")


def check(op, scheme):
    assert conversion_of(op, scheme) == CONVERSIONS[op][SCHEMES.index(scheme)]


def test_every_measured_op_is_declared():
    assert set(CONVERSIONS) == set(MEASURED) and set(QUICK) <= set(CONVERSIONS)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("op", QUICK)
def test_some_ops_convert_as_declared(op, scheme):
    check(op, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("op", sorted(set(MEASURED) - set(QUICK)))
def test_every_other_op_converts_as_declared(op, scheme):
    check(op, scheme)


def test_a_wrong_declaration_is_found(monkeypatch):
    monkeypatch.setitem(CONVERSIONS, "FLOOR", ("int8", "int16"))
    with pytest.raises(AssertionError):
        check("FLOOR", "int8")

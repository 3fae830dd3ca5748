# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal."""

from tfq.text_table import aligned


def test_names_are_left_aligned_and_numbers_right_aligned():
    rows = [("layer", "op", "dB", ""), ("conv + relu", "CONV_2D", "7.5", "DEPARTS"), ("x", "ADD", "12.25", "")]
    assert aligned(rows, left=2) == [
        "layer        op          dB",
        "conv + relu  CONV_2D    7.5  DEPARTS",
        "x            ADD      12.25",
    ]
    assert aligned([("a", "b"), ("ccc", "long")], left=2) == ["a    b", "ccc  long"]

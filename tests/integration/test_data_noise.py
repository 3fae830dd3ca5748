# SPDX-License-Identifier: Apache-2.0
"""Photographs are not reported as noise, even if there are few."""

import numpy as np
from cifar10 import read_test_split

from tfq.data import Split, diagnose
from tfq.data.diagnostics import judge_noise


def test_cifar10_is_not_reported_as_noise(shared):
    images, labels = read_test_split(shared, 1000)
    x = images.astype(np.float32)
    for n in (8, 50, 200):
        for start in range(0, len(x) - n, 50):
            assert judge_noise(x[start : start + n]).is_noise is False
            assert judge_noise(x[start : start + n] / 127.5 - 1).is_noise is False
    data = Split(name="train", inputs={"x": x[:200]}, labels=labels[:200].astype(np.int64), source="arrays")
    assert diagnose(data).findings == ()

# SPDX-License-Identifier: Apache-2.0
"""Which logged values improve upwards, and which calibration data are equal, without TensorFlow."""

import numpy as np
import pytest
from messages import refused

from tfq import registry
from tfq.callbacks import _same_data, mode_of
from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation import Metric


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("loss", "min"),
        ("val_loss", "min"),
        ("val_head_loss", "min"),
        ("val_accuracy", "max"),
        ("acc", "max"),
        ("val_sparse_categorical_accuracy", "max"),
        ("val_head_auc_2", "max"),
        ("val_mean_squared_error", "min"),
        ("val_root_mean_squared_error_1", "min"),
        ("val_binary_crossentropy", "min"),
        ("val_mean_io_u", "max"),
        ("val_int8_accuracy", "max"),
        ("val_int8_agreement", "max"),
        ("val_int8_sqnr_db", "max"),
        ("val_int8_bytes", "min"),
        ("val_int8_mae", "min"),
        ("val_int8_roc_auc", "max"),
        ("val_int8_top5", "max"),
    ],
)
def test_known_names_have_a_direction(monitor, mode):
    assert mode_of(monitor) == mode


@pytest.mark.parametrize(
    "monitor", ["val_score", "val_rmsle", "accident_cost", "val_int8_rmse_of_depth", "lr", "auction"]
)
def test_an_unknown_name_is_refused_with_advice(monitor):
    with refused(InputError, field="mode", expected=("max", "min"), got="auto", word="mode='max'"):
        mode_of(monitor)


@pytest.mark.parametrize("direction", ["higher", "lower", None])
def test_the_direction_is_that_of_the_registered_metric(direction, monkeypatch):
    metric = Metric.from_function(lambda outputs, labels: 0.0, name="depth_accuracy", direction=direction)
    entries = {**registry.entries(Metric), metric.name: metric}
    monkeypatch.setattr(registry, "entries", lambda kind: entries)
    for monitor in ("depth_accuracy", "val_int8_depth_accuracy"):
        if direction is None:
            with refused(InputError, field="mode"):
                mode_of(monitor)
        else:
            assert mode_of(monitor) == {"higher": "max", "lower": "min"}[direction]


def split(x, labels=None):
    return Split(name="train", inputs={"x": x}, labels=labels, source="arrays")


def test_calibration_data_are_the_same_by_identity_or_by_their_values():
    x = np.arange(12.0).reshape(6, 2)
    stream = object()
    for one, other in [
        (None, None),
        (stream, stream),
        (x[:3], x[:3]),
        (x, x.copy()),
        ([x, x], [x, x.copy()]),
        ({"a": x}, {"a": x.copy()}),
        (split(x), split(x.copy(), np.arange(6))),
    ]:
        assert _same_data(one, other)
    for one, other in [
        (None, x),
        (object(), object()),
        (x[:3], x[:4]),
        (x, x + 1),
        (x, x.astype(np.float32)),
        ([x], [x, x]),
        ({"a": x}, {"b": x}),
        (split(x), split(x + 1)),
        (split(x), x),
    ]:
        assert not _same_data(one, other)

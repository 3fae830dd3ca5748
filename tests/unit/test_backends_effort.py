# SPDX-License-Identifier: Apache-2.0
"""Time and memory limits of a model, and models that are refused before they run."""

import numpy as np
import pytest
from golden_models import changed, golden
from messages import refused

from tfq.backends import RunRequest, limits, make_backend
from tfq.errors import ModelError
from tfq.tflite import read

MODEL = golden("digits_int8")


def with_shape(index, shape):
    def change(model):
        tensor = model.subgraphs[0].tensors[index]
        tensor.shape, tensor.shapeSignature = shape, None

    return changed(MODEL, change)


def refuse(model, **expected):
    with refused(ModelError, field="model", **expected):
        make_backend("local").assess(RunRequest(model=model, inputs=(np.zeros((1, 8, 8, 1), np.int8),)))


def test_multiply_adds_are_those_counted_by_hand():
    graph = read(MODEL).main_subgraph
    by_name = {}
    for op in graph.ops:
        by_name.setdefault(op.name, []).append(limits._count_operations(graph, op))
    # conv1: 8 x 8 x 12 outputs of 3 x 3 x 1 products each; also, each value of input, weights, bias and output once.
    values = 8 * 8 * 1 + 12 * 9 + 12 + 8 * 8 * 12
    assert by_name["CONV_2D"][0] == 8 * 8 * 12 * 9 + values
    # Every channel is convolved separately: as many products, of one channel less.
    values = 2 * 8 * 8 * 12 + 12 * 9 + 12
    assert by_name["DEPTHWISE_CONV_2D"] == [8 * 8 * 12 * 9 + values]


def test_the_time_limit_grows_with_the_model():
    small = limits.choose_deadline(read(MODEL), 0, 1, emulated=False)
    assert 2 < small.cpu_secs < 3
    # MobileNetV2 @224: 301 million multiply-adds, for which an emulator needed 10 s.
    large = limits.LOCAL_SECS + 300e6 / limits.LOCAL_RATE, limits.EMULATED_SECS + 300e6 / limits.EMULATED_RATE
    assert large[0] > 30 and large[1] > 300
    assert limits.choose_deadline(read(MODEL), 0, 1, emulated=True).cpu_secs > 15
    assert limits.choose_deadline(read(MODEL), 7, 2, emulated=True) == limits.Deadline(wall_secs=7)


@pytest.mark.parametrize(
    ("index", "shape", "got", "word"),
    [
        (13, [1, 8, 8, 50_000_000], 3_200_000_000, "13"),
        (18, [2**31 - 1, 2**20], (2**31 - 1) * 2**20, "18"),
        (0, [100_000, 8, 8, 1], 100_000, "'x0'"),
    ],
)
def test_a_shape_that_nothing_explains_is_refused_before_anything_runs(index, shape, got, word):
    # An interpreter would allocate the memory first and exhaust the memory of the machine.
    refuse(with_shape(index, shape), got=got, word=word)


def test_a_model_for_a_larger_machine_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "_memory", lambda: 10_000)
    refuse(MODEL, expected=10_000)


def test_memory_beyond_the_limit_is_refused_to_the_child(monkeypatch):
    monkeypatch.setattr(limits, "BASE_BYTES", 1)
    monkeypatch.setattr(limits, "THREAD_BYTES", 0)
    monkeypatch.setattr(limits, "TENSOR_FACTOR", 0)
    refuse(MODEL, word="interpreter")

# SPDX-License-Identifier: Apache-2.0
"""Inputs that are never completely in memory."""

import time

import numpy as np
import pytest
from golden_models import changed, golden
from messages import refused

from tfq.backends import InputStream, RunRequest, child, make_backend, worker
from tfq.errors import BackendError, InputError

MODEL = golden("digits_int8")


def examples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, (count, 8, 8, 1)).astype(np.int8)


def run(inputs, model=MODEL, **settings):
    return make_backend("local").assess(RunRequest(model=model, inputs=inputs, **settings))


def stream(array: np.ndarray, lengths: list[int]) -> InputStream:
    def pieces():
        start = 0
        for length in lengths:
            yield (array[start : start + length],)
            start += length

    return InputStream(num_examples=sum(lengths), pieces=pieces)


@pytest.mark.parametrize("lengths", [[1], [500], [1] * 9, [3, 200, 1, 97, 64, 64], [64, 64, 64], [129, 1]])
def test_pieces_of_any_length_give_what_the_whole_array_gives(lengths):
    inputs = examples(sum(lengths))
    streamed = run(stream(inputs, lengths), num_runs=2)
    np.testing.assert_array_equal(streamed.outputs[0], run((inputs,)).outputs[0])
    assert streamed.latencies_ms.shape == (2,)


def test_pieces_that_end_within_a_models_own_batch_give_the_same():
    def batch_of_4(model):
        model.subgraphs[0].tensors[0].shape, model.subgraphs[0].tensors[0].shapeSignature = [4, 8, 8, 1], None

    inputs = examples(43)
    model = changed(golden("digits_int8_dynamic_batch"), batch_of_4)
    streamed = run(stream(inputs, [1, 2, 30, 10]), model)
    np.testing.assert_array_equal(streamed.outputs[0], run((inputs,), golden("digits_int8_dynamic_batch")).outputs[0])
    assert any("batch size is 4" in note for note in streamed.notes)


def test_arrays_in_another_memory_layout_are_fed_correctly():
    inputs = examples(300)
    reversed_examples, transposed = inputs[::-1], np.asfortranarray(inputs)
    np.testing.assert_array_equal(run((reversed_examples,)).outputs[0], run((inputs,)).outputs[0][::-1])
    np.testing.assert_array_equal(run((transposed,)).outputs[0], run((inputs,)).outputs[0])


def test_a_stream_is_not_read_ahead_of_the_child(tmp_path, monkeypatch):
    other = tmp_path / "slow_target.py"
    other.write_text("import os, time; print('started', os.getpid(), flush=True); time.sleep(1)")
    monkeypatch.setattr(child, "TARGET", other)
    taken = 0

    def pieces():
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield (np.zeros((1 << 14, 8, 8, 1), np.int8),)  # 1 MiB

    with refused(BackendError, got=0):
        run(InputStream(num_examples=100 << 14, pieces=pieces))
    assert worker.RING_BYTES >> 20 <= taken <= (worker.RING_BYTES >> 20) + 2


def test_an_error_of_the_source_propagates_and_ends_the_child():
    def pieces():
        yield (examples(10),)
        raise KeyError("disk")

    with pytest.raises(KeyError, match="disk"):
        run(InputStream(num_examples=20, pieces=pieces))


def test_a_source_that_takes_its_time_is_not_the_models_fault():
    def pieces():
        for _ in range(3):
            time.sleep(0.8)
            yield (examples(1),)

    assert run(InputStream(num_examples=3, pieces=pieces), timeout_secs=0.5).outputs[0].shape == (3, 10)


@pytest.mark.parametrize(
    ("second", "got"),
    [
        (np.zeros((5, 8, 8, 1), np.int8), 15),
        (np.zeros((1, 8, 8, 1), np.int8), 11),
        (np.zeros((2, 8, 8, 1), np.uint8), [(np.uint8, (8, 8, 1))]),
        (np.zeros((2, 8, 9, 1), np.int8), [(np.int8, (8, 9, 1))]),
    ],
)
def test_a_stream_that_is_not_what_it_announced_is_an_error(second, got):
    with refused(InputError, field="inputs", got=got):
        run(InputStream(num_examples=12, pieces=lambda: iter([(examples(10),), (second,)])))


def test_an_empty_stream_is_an_error():
    with refused(InputError, field="num_examples", got=0):
        InputStream(num_examples=0, pieces=lambda: iter(()))
    with refused(InputError, field="inputs", expected=3, got=0):
        run(InputStream(num_examples=3, pieces=lambda: iter(())))

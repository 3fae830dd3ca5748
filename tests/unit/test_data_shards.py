# SPDX-License-Identifier: Apache-2.0
"""Shards of a split: consecutive parts that together are the split, in memory and streamed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from tfq.config import DataConfig
from tfq.data import Split, SplitStream, load_split
from tfq.errors import InputError


def split_of(n):
    return Split(name="test", inputs={"x": np.arange(2 * n).reshape(n, 2)}, labels=np.arange(n), source="arrays")


@given(n=st.integers(1, 60), count=st.integers(1, 60))
def test_the_shards_in_order_are_the_split(n, count):
    if count > n:
        with refused(InputError, field="count", got=count):
            split_of(n).shard(0, count)
        return
    shards = [split_of(n).shard(index, count) for index in range(count)]
    assert np.array_equal(np.concatenate([shard.inputs["x"] for shard in shards]), split_of(n).inputs["x"])
    assert np.concatenate([shard.labels for shard in shards]).tolist() == list(range(n))
    lengths = [shard.num_examples for shard in shards]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("index", [-1, 3])
def test_a_shard_that_does_not_exist_is_refused(index):
    with refused(InputError, field="index", got=index):
        split_of(9).shard(index, 3)


def test_shards_of_a_stream_read_only_their_own_examples(tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(4000, 1000)).astype(np.float32), generator.integers(0, 5, 4000)
    np.savez(tmp_path / "big.npz", x_test=x, y_test=y)
    stream = load_split(DataConfig(source=f"npz:{tmp_path / 'big.npz'}", max_memory_mb=4), "test")
    assert isinstance(stream, SplitStream)
    shards = [stream.shard(index, 3) for index in range(3)]
    contents = [np.concatenate([piece.inputs["x"] for piece in shard.pieces()]) for shard in shards]
    assert np.array_equal(np.concatenate(contents), x)
    assert np.array_equal(np.concatenate([shard.all_labels() for shard in shards]), y)
    read = []
    counted = SplitStream(
        name="test", source="counted", num_examples=10, piece_examples=5, seekable=True,
        read=lambda start, stop: read.append((start, stop)) or iter([split_of(10).shard(0, 1)]),
    )  # fmt: skip
    next(iter(counted.shard(1, 2).read(0, 5)))
    assert read == [(5, 10)]


def test_a_shard_of_a_shard_starts_within_the_shard():
    half = split_of(8).shard(1, 2)
    assert half.shard(1, 2).labels.tolist() == [6, 7]

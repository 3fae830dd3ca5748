# SPDX-License-Identifier: Apache-2.0
"""Examples chosen by class: equally many of each, the same every time, from memory and from streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from tfq.config import DataConfig
from tfq.data import Split, SplitStream, class_counts, join_labels, load_split, stratified
from tfq.errors import InputError


def split_of(labels, **facts):
    labels = np.asarray(labels)
    return Split(
        name="train",
        inputs={"x": np.arange(len(labels), dtype=np.float32)[:, None]},
        labels=labels,
        source="arrays",
        **facts,
    )


def by_hand(labels, n):
    """Take the first unused example of one class after the other, written as a loop."""
    queues = {label: [i for i, other in enumerate(labels) if other == label] for label in sorted(set(labels))}
    chosen = []
    while any(queues.values()) and len(chosen) < n:
        for queue in queues.values():
            if queue and len(chosen) < n:
                chosen.append(queue.pop(0))
    return chosen


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=40), n=st.integers(1, 45))
def test_classes_take_turns(labels, n):
    assert stratified(split_of(labels), n).inputs["x"][:, 0].tolist() == by_hand(labels, n)


def test_one_hot_labels_are_classes_too():
    rows = np.eye(3)[[0, 0, 0, 1, 2]]
    chosen = stratified(split_of(rows), 3)
    assert chosen.inputs["x"][:, 0].tolist() == [0, 3, 4] and np.array_equal(chosen.labels, rows[[0, 3, 4]])


def test_choosing_again_changes_nothing():
    once = stratified(split_of([0, 0, 1, 2, 1, 0]), 4)
    assert np.array_equal(stratified(once, 4).inputs["x"], once.inputs["x"])


def test_a_stream_gives_the_same_examples(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3000, 500)).astype(np.float32), rng.choice(5, 3000, p=[0.9, 0.04, 0.03, 0.02, 0.01])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_val=x[:1], y_val=y[:1])
    stream = load_split(DataConfig(source=f"npz:{tmp_path / 'a.npz'}", max_memory_mb=2), "train")
    assert isinstance(stream, SplitStream)
    chosen = stratified(stream, 60)
    expected = by_hand(y.tolist(), 60)
    assert np.array_equal(chosen.inputs["x"], x[expected]) and np.array_equal(chosen.labels, y[expected])


def test_a_rare_class_is_named():
    split = split_of([0] * 10 + [1] * 10 + [2], class_names=("cat", "dog", "emu"))
    (note,) = stratified(split, 15).notes
    assert "emu: 1" in note
    assert stratified(split, 3).notes == ()


def test_a_class_without_examples_is_named():
    (note,) = stratified(split_of([0, 1], class_names=("cat", "dog", "emu")), 2).notes
    assert "emu: 0" in note


@pytest.mark.parametrize("labels", [None, np.array([0.5, 1.5]), np.array([[0, 1], [1, 1]])])
def test_data_without_classes_is_refused(labels):
    split = Split(name="train", inputs={"x": np.zeros((2, 1), np.float32)}, labels=labels, source="arrays")
    with refused(InputError):
        stratified(split, 2)


def test_labels_of_several_outputs_are_refused():
    labels = join_labels({"a": np.array([0, 1]), "b": np.array([1, 0])}, "labels")
    with refused(InputError, field="conversion.sampling"):
        stratified(split_of(labels), 2)


def test_counts_have_the_names_of_the_classes():
    assert class_counts(split_of([2, 0, 2], class_names=("cat", "dog"))) == {"cat": 1, "2": 2}
    assert class_counts(split_of([0.5, 1.0])) is None

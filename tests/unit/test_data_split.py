# SPDX-License-Identifier: Apache-2.0
"""Split, assignment to a model's inputs, and the hash of a split's content."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from tfq.data import Split, as_split, bind_inputs
from tfq.errors import InputError


def make_split(x=None, labels=None, **changes):
    x = np.arange(12, dtype=np.float32).reshape(4, 3) if x is None else x
    fields = {"name": "test", "inputs": {"x": x}, "labels": labels, "source": "arrays"}
    return Split(**{**fields, **changes})


def test_take_returns_at_most_the_available_examples_with_labels():
    split = make_split(labels=np.array([5, 6, 7, 8]))
    assert split.take(2).inputs["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert split.take(2).labels.tolist() == [5, 6]
    assert split.take(99).num_examples == split.num_examples == 4
    with refused(InputError, field="n", got=0):
        split.take(0)


def test_lengths_that_differ_are_reported_with_both_numbers():
    with refused(InputError, field="data", got={"input 'x'": 4, "labels": 3}):
        make_split(labels=np.array([1, 2, 3]))
    with refused(InputError, field="data", got={"input 'a'": 2, "input 'b'": 3}):
        make_split(inputs={"a": np.zeros((2, 1)), "b": np.zeros((3, 1))})


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (np.zeros((0, 3), np.float32), 0),
        (np.array(1.0), ()),
        (np.array([[1], [2, 3]], dtype=object), "object"),
        ([[1.0]], "list"),
    ],
)
def test_values_that_are_not_arrays_of_examples_are_refused(x, got):
    with refused(InputError, field="data", got=got):
        make_split(x=x)


def test_the_hash_is_that_of_the_documented_lines():
    x = np.array([[1.5, -2.0]], np.float32)
    of_x, of_labels = (hashlib.sha256(array.tobytes()).hexdigest() for array in (x, np.array([3])))
    lines = f"'input x' <f4 (1, 2) {of_x}\n'labels' <i8 (1,) {of_labels}\n"
    assert make_split(x=x, labels=np.array([3])).sha256() == hashlib.sha256(lines.encode()).hexdigest()


def test_the_hash_follows_content_and_nothing_else():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = make_split(x=x).sha256()
    assert make_split(x=np.asfortranarray(x), name="train", source="other").sha256() == same
    assert make_split(x=x.astype(">f4")).sha256() == same
    others = [
        make_split(x=x.reshape(2, 3, 1)),
        make_split(x=x.astype(np.float64)),
        make_split(x=x + np.float32(1e-6)),
        make_split(x=x, labels=np.array([0, 1])),
        make_split(inputs={"y": x}),
    ]
    assert len({same, *(split.sha256() for split in others)}) == 6


def test_an_unnamed_array_goes_to_the_only_input():
    x = np.zeros((1, 2))
    assert bind_inputs({"x": x}, ["serving_default_image:0"])[0] is x


@given(st.permutations(["image", "mask", "scalars"]))
def test_named_arrays_come_back_in_the_models_order(names):
    arrays = {name: np.array([len(name)]) for name in ("mask", "image", "scalars")}
    assert [array[0] for array in bind_inputs(arrays, names)] == [len(name) for name in names]


def test_names_match_through_what_tensorflow_puts_around_them():
    arrays = {"a": np.array([1]), "b": np.array([2])}
    assert [a[0] for a in bind_inputs(arrays, ["serving_default_b:0", "serving_default_a:0"])] == [2, 1]


@pytest.mark.parametrize(
    ("arrays", "names", "word"),
    [
        (["x"], ["a", "b"], "x_test.a"),
        (["imgae"], ["image"], "'imgae'"),
        (["a"], ["a", "b"], "'b'"),
        (["a", "b"], ["a"], "'b'"),
        (["a", "b"], ["a:0", "a:1"], "'b'"),
    ],
)
def test_arrays_and_inputs_that_do_not_match_are_refused(arrays, names, word):
    with refused(InputError, field="data", got=tuple(arrays), word=word):
        bind_inputs({name: np.zeros(1) for name in arrays}, names)


def test_as_split_takes_arrays_pairs_dicts_and_splits():
    x, y = np.zeros((3, 2)), [0, 1, 2]
    assert as_split(x).labels is None
    pair = as_split((x, y), limit=2)
    assert pair.inputs["x"].dtype == np.float32 and pair.labels.tolist() == [0, 1]
    assert set(as_split(({"a": x, "b": x}, y)).inputs) == {"a", "b"}
    assert as_split(pair) is pair


@pytest.mark.parametrize("data", [None, (1, 2, 3), 7, lambda: 0, {"a": {"b": 1}}, np.array(["text"])])
def test_as_split_refuses_invalid_data(data):
    with pytest.raises(InputError):
        as_split(data)


@pytest.mark.parametrize(
    ("data", "field", "got"),
    [
        ([[1, 2], [3]], "input 'x'", None),
        ((np.zeros((2, 2)), [[0], [1, 2]]), "labels", None),
        ((row for row in np.zeros((2, 2))), "data", "generator"),
    ],
)
def test_as_split_refuses_lists_of_several_lengths_and_generators(data, field, got):
    with refused(InputError, field=field, got=got):
        as_split(data)


def test_as_split_tells_which_example_is_not_a_number():
    x = np.zeros((5, 2))
    x[3, 1] = np.nan
    with refused(InputError, field="x[3]", got="NaN"):
        as_split(x)

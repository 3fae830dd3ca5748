# SPDX-License-Identifier: Apache-2.0
"""Every form of a representative dataset, and its possible faults."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from tfq.data import InputSpec, Split, check_shapes, representative_samples
from tfq.errors import InputError, ModelError

ONE = [InputSpec(name="image", shape=(1, 2, 3))]
TWO = [InputSpec(name="a", shape=(1, 2)), InputSpec(name="b", shape=(1, 1))]
ROWS = np.arange(120, dtype=np.float32).reshape(20, 2, 3)


class TensorData:
    """The attributes of tf.data.Dataset that tfq uses."""

    def __init__(self, *elements):
        self.elements = elements

    def as_numpy_iterator(self):
        return iter(self.elements)


def lists():
    for row in ROWS:
        yield [row[None]]


FORMS = {
    "a function that yields lists": lists,
    "a generator": lists(),
    "a list of lists": [[row[None]] for row in ROWS],
    "unbatched arrays": list(ROWS),
    "an array": ROWS,
    "float64": ROWS.astype(np.float64),
    "a dict of arrays": {"image": ROWS},
    "the unnamed input": {"x": ROWS},
    "a function that yields dicts": lambda: ({"image": row[None]} for row in ROWS),
    "a function that gives an array": lambda: ROWS,
    "a signature": {"serving_default": [{"image": row[None]} for row in ROWS]},
    "a signature of another name": {"main": [{"image": row[None]} for row in ROWS]},
    "pairs of signature and inputs": lambda: (("main", {"image": row[None]}) for row in ROWS),
    "a split": Split(name="train", inputs={"x": ROWS}, labels=None, source="arrays"),
    "tf.data, unbatched": TensorData(*ROWS),
    "tf.data, batched": TensorData(ROWS[:8], ROWS[8:16], ROWS[16:]),
    "tf.data with labels": TensorData((ROWS[:10], np.zeros(10)), (ROWS[10:], np.zeros(10))),
    "tf.data with labels and weights": TensorData((ROWS, np.zeros(20), np.zeros(20))),
    "tf.data of dicts with labels": TensorData(({"image": ROWS}, np.zeros(20))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples_of_batch_one_in_order(form):
    got = representative_samples(FORMS[form], ONE, 15)
    assert len(got.samples) == 15 and got.warnings == ()
    for sample, row in zip(got.samples, ROWS, strict=False):
        assert list(sample) == ["image"] and sample["image"].dtype == np.float32
        assert np.array_equal(sample["image"], row[None])


@pytest.mark.parametrize(
    "dataset",
    [
        [[np.full((1, 2), i), np.full((1, 1), -i)] for i in np.arange(12.0)],
        [{"b": np.full((1, 1), -i), "a": np.full((1, 2), i)} for i in np.arange(12.0)],
        {"b": -np.arange(12.0)[:, None], "a": np.arange(12.0)[:, None].repeat(2, 1)},
        TensorData(*((np.full(2, i), np.full(1, -i)) for i in np.arange(12.0))),
        TensorData(*(((np.full(2, i), np.full(1, -i)), 0) for i in np.arange(12.0))),
    ],
)
def test_several_inputs_keep_together_by_position_or_by_name(dataset):
    got = representative_samples(dataset, TWO, 12)
    assert [(s["a"].tolist(), s["b"].tolist()) for s in got.samples] == [([[i, i]], [[-i]]) for i in range(12)]


@given(st.integers(1, 40), st.integers(1, 9))
def test_batches_of_any_size_give_the_requested_rows_in_order(steps, batch):
    rows = np.arange(30, dtype=np.float32)[:, None]
    batches = [[rows[start : start + batch]] for start in range(0, 30, batch)]
    got = representative_samples(batches, [InputSpec(name="x", shape=(None, 1))], steps)
    assert [float(sample["x"][0, 0]) for sample in got.samples] == list(range(min(steps, 30)))


def test_an_endless_generator_is_drawn_from_only_as_far_as_needed():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield [np.random.default_rng(len(drawn)).normal(size=(1, 2, 3))]

    representative_samples(endless, ONE, 11)
    assert len(drawn) == 11


def test_dynamic_dimensions_take_any_size():
    rows = [[np.ones((1, length, 3)) * length] for length in range(1, 12)]
    got = representative_samples(rows, [InputSpec(name="x", shape=(1, -1, 3))], 11)
    assert [sample["x"].shape[1] for sample in got.samples] == list(range(1, 12))


def test_a_tensor_that_only_turns_into_an_array_is_taken():
    class Tensor:
        def __init__(self, value):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            return self.value

    assert len(representative_samples([[Tensor(row[None])] for row in ROWS], ONE, 20).samples) == 20
    assert len(representative_samples(Tensor(ROWS), ONE, 20).samples) == 20


def with_value(value, index):
    rows = ROWS.copy()
    rows[index, 0, 0] = value
    return rows


@pytest.mark.parametrize(
    ("dataset", "place", "got"),
    [
        ([], "", 0),
        (lambda: iter(()), "", 0),
        ({}, "", 0),
        (np.zeros((0, 2, 3)), "[0]", 0),
        (lambda: None, "", "None"),
        (None, "", "NoneType"),
        ("digits", "", "str"),
        (7, "", "int"),
        ([[ROWS[0][None], ROWS[0][None]]], "[0]", 2),
        ([[ROWS[:4]], [np.zeros((1, 3, 2))]], "[4]['image']", (1, 3, 2)),
        ([[np.zeros(6)]], "[0]['image']", (6,)),
        ([[1.0]], "[0]['image']", ()),
        ([{"imgae": ROWS[:1]}], "[0]", ("imgae",)),
        ([["text"]], "[0]['image']", "<U4"),
        ([[np.zeros((1, 2, 3), complex)]], "[0]['image']", "complex128"),
        ([[[[1], [2, 3]]]], "[0]['image']", None),
        (with_value(np.nan, 6), "[6]['image']", "NaN"),
        (with_value(np.inf, 2), "[2]['image']", "infinity"),
        (with_value(0, 0).astype(np.float64) * 1e300, "[0]['image']", "infinity"),
        ({"a": [{"image": ROWS[:1]}], "b": []}, "", ("a", "b")),
        ({"a": 3}, "", "int"),
    ],
)
def test_what_cannot_calibrate_is_refused_with_the_sample_and_the_input(dataset, place, got):
    with refused(InputError, field=f"representative_dataset{place}", got=got):
        representative_samples(dataset, ONE, 20)


def test_batches_of_different_length_in_one_element_are_refused():
    with refused(InputError, field="representative_dataset[0]", got={"a": 3, "b": 2}):
        representative_samples([[np.zeros((3, 2)), np.zeros((2, 1))]], TWO, 5)


def test_pixels_for_a_float_input_cause_one_warning():
    pixels = np.arange(120, dtype=np.uint8).reshape(20, 2, 3) + 100
    got = representative_samples(pixels, ONE, 20)
    assert got.samples[3]["image"].dtype == np.float32 and np.array_equal(got.samples[3]["image"][0], pixels[3])
    assert len(got.warnings) == 1 and "uint8" in got.warnings[0]


def test_an_integer_input_takes_integers_that_fit_and_nothing_else():
    spec = [InputSpec(name="token", shape=(1, 4), dtype="int32")]
    tokens = np.arange(80).reshape(20, 4)
    assert representative_samples(tokens, spec, 20).samples[1]["token"].dtype == np.int32
    assert representative_samples(tokens.astype(float), spec, 20).samples[1]["token"].tolist() == [[4, 5, 6, 7]]
    with refused(InputError, field="representative_dataset[0]['token']", expected="int32", got="float64"):
        representative_samples(tokens + 0.5, spec, 20)
    with refused(InputError, field="representative_dataset[19]['token']", expected="int32", got=(76, 2**40)):
        representative_samples(np.where(tokens == 79, 2**40, tokens), spec, 20)


def test_few_samples_cause_a_warning_and_very_few_a_stronger_one():
    assert representative_samples(ROWS, ONE, 20).warnings == ()
    (too_few,) = representative_samples(ROWS, ONE, 50).warnings
    assert "20" in too_few and "50" in too_few
    warnings = representative_samples(ROWS[:3], ONE, 50).warnings
    assert "50" in warnings[0] and "3" in warnings[1]
    assert "4" in representative_samples(ROWS, ONE, 4).warnings[0]


def test_identical_samples_cause_a_warning():
    assert "7.0" in representative_samples(np.full((20, 2, 3), 7.0), ONE, 20).warnings[0]
    same = representative_samples(np.repeat(ROWS[:1], 20, axis=0), ONE, 20).warnings
    assert len(same) == 1 and "is the same in all 20 samples" in same[0]


def test_no_steps_is_refused():
    with refused(InputError, field="num_calibration_samples", got=0):
        representative_samples(ROWS, ONE, 0)


def test_the_record_counts_and_hashes_samples_in_order():
    record = representative_samples(ROWS, ONE, 12).to_dict()
    assert (record["num_samples"], record["num_requested"], record["warnings"]) == (12, 12, [])
    assert record["sha256"] == representative_samples(lists, ONE, 12).sha256()
    assert record["sha256"] != representative_samples(ROWS[::-1], ONE, 12).sha256()
    assert record["sha256"] != representative_samples(ROWS, ONE, 13).sha256()


def split_of(shape):
    return Split(name="train", inputs={"x": np.zeros(shape, np.float32)}, labels=None, source="folder:photos")


@pytest.mark.parametrize(
    ("shape", "word"), [((3, 9, 9, 3), "data.resize=4,5"), ((3, 4, 5, 1), '"RGB"'), ((3, 4, 5, 2), "(4, 5, 2)")]
)
def test_a_split_of_another_shape_is_named_by_its_source(shape, word):
    spec = [InputSpec(name="image", shape=(1, 4, 5, 3))]
    for check in (lambda split: check_shapes(split, spec), lambda split: representative_samples(split, spec, 2)):
        with refused(InputError, expected=(4, 5, 3), word="folder:photos") as caught:
            check(split_of(shape))
        assert word in str(caught.value) and str(shape[1:]) in str(caught.value)
    check_shapes(split_of((3, 4, 5, 3)), spec)


def test_color_images_for_a_grayscale_model_get_the_conversion():
    with refused(InputError, word='"L"'):
        check_shapes(split_of((3, 4, 5, 3)), [InputSpec(name="image", shape=(1, 4, 5, 1))])


@pytest.mark.parametrize(("shape", "is_resizable"), [((3, 9, 9, 3), True), ((3, 9, 9, 1), False), ((3, 9), False)])
def test_images_of_another_size_are_refused_with_the_resize_to_use(shape, is_resizable):
    spec = [InputSpec(name="image", shape=(1, 4, 5, 3))]
    with refused(InputError, expected=(4, 5, 3), got=shape) as caught:
        representative_samples(np.zeros(shape, np.float32), spec, 2)
    assert ("data.resize=4,5" in str(caught.value)) == is_resizable


SHARED_NONE = [
    InputSpec(name="image", shape=(1, 2, 2)),
    InputSpec(name="side", shape=(3,)),
    InputSpec(name="g", shape=()),
]


def test_inputs_without_a_common_batch_get_the_arrays_of_an_inference():
    image, side, g = np.arange(48.0).reshape(12, 2, 2), np.arange(36.0).reshape(12, 3), np.arange(12.0)
    by_name = {"image": image, "side": side, "g": g}
    by_inference = [[image[i : i + 1], side[i], g[i]] for i in range(12)]
    for dataset in (by_name, by_inference):
        samples = representative_samples(dataset, SHARED_NONE, 12).samples
        assert [tuple(array.shape for array in sample.values()) for sample in samples] == [((1, 2, 2), (3,), ())] * 12
        assert [float(sample["g"]) for sample in samples] == list(range(12))
    with refused(InputError, expected=(3,), got=(12, 4), word="batch"):
        representative_samples({**by_name, "side": np.zeros((12, 4))}, SHARED_NONE, 12)


def test_samples_come_in_the_batches_of_the_model():
    result = representative_samples(np.arange(10.0)[:, None], [InputSpec(name="x", shape=(4, 1))], 10)
    assert result.num_samples == result.to_dict()["num_samples"] == 10
    assert [batch["x"][:, 0].tolist() for batch in result.samples] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def test_a_batch_that_only_a_damaged_model_has_is_not_allocated():
    with refused(ModelError, field="model", got=1 << 20, word="x"):
        representative_samples(np.zeros((1, 64), np.float32), [InputSpec(name="x", shape=(1 << 20, 64))], 1)
    with refused(ModelError, field="model", got=1 << 30):
        representative_samples(np.zeros((1, 1 << 16), np.float32), [InputSpec(name="x", shape=(1 << 12, 1 << 16))], 1)


def test_lists_in_another_order_than_the_inputs_are_noticed():
    inputs = [InputSpec(name="attention", shape=(1, 6)), InputSpec(name="token_ids", shape=(1, 6))]
    rng = np.random.default_rng(0)
    ids, weights = rng.integers(0, 900, (20, 1, 6)), rng.uniform(size=(20, 1, 6)).cumsum(2)
    wrong = [[one.astype(np.float32), other] for one, other in zip(ids, weights, strict=True)]
    assert any("'token_ids'" in item for item in representative_samples(wrong, inputs, 20).warnings)
    right = [[other, one.astype(np.float32)] for one, other in zip(ids, weights, strict=True)]
    named = [{"token_ids": other, "attention": one} for one, other in wrong]
    assert not any("exchanged" in item for item in representative_samples(right, inputs, 20).warnings)
    assert not any("exchanged" in item for item in representative_samples(named, inputs, 20).warnings)
    wide = [InputSpec(name="a", shape=(1, 5)), InputSpec(name="b", shape=(1, 6))]
    with refused(InputError, field="representative_dataset[0]['a']", word="'b'"):
        representative_samples([[np.zeros((1, 6)), np.zeros((1, 5))]], wide, 1)

# SPDX-License-Identifier: Apache-2.0
"""The sources digits and npz, the registry, and preprocessing."""

import sys

import numpy as np
import pytest
from messages import refused

from tfq.config import DataConfig
from tfq.data import check_readable, load_calibration_split, load_split, preprocessing_record, resize_bilinear
from tfq.data.sources.tfrecord import split_of_name
from tfq.data.split import MissingSplitError
from tfq.errors import InputError


@pytest.fixture
def npz(tmp_path):
    """Return a function that writes an archive and returns its DataConfig."""

    def write(*, config=None, **arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return DataConfig(source=f"npz:{path}", **(config or {}))

    return write


def labelled(n, start=0):
    return np.arange(start, start + n, dtype=np.float32)[:, None], np.arange(start, start + n) % 10


# digits


def test_digits_splits_are_disjoint_whole_stratified_and_raw():
    splits = [load_split(DataConfig(source="digits"), name) for name in ("train", "val", "test")]
    assert [split.num_examples for split in splits] == [1262, 180, 355]
    images = np.concatenate([split.inputs["x"] for split in splits])
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 16)
    from sklearn.datasets import load_digits

    # No two of the 1,797 images are equal, so equal sets of images mean disjoint and complete splits.
    assert {image.tobytes() for image in images} == {i.astype(np.float32).tobytes() for i in load_digits().images}
    for split in splits:
        fraction = np.bincount(split.labels, minlength=10) / split.num_examples
        assert np.abs(fraction - 0.1).max() < 0.01


def test_digits_are_the_same_in_every_run():
    assert load_split(DataConfig(source="digits"), "test").sha256().startswith("f2661fc1")


def test_digits_labels_belong_to_their_images():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    of_image = {i.astype(np.float32).tobytes(): label for i, label in zip(bunch.images, bunch.target, strict=True)}
    split = load_split(DataConfig(source="digits"), "val")
    assert [of_image[image.tobytes()] for image in split.inputs["x"]] == split.labels.tolist()


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with refused(InputError, field="data.source", got="digits", word="tfq[digits]"):
        load_split(DataConfig(source="digits"), "test")


# the registry


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("digts", "'digits'"),
        ("npy:a", "'npz:a'"),
        ("some/data.npz", "'npz:some/data.npz'"),
        ("npzz:some/data.npz", "'npz:some/data.npz'"),
        ("a.tfrecord", "'tfrecord:a.tfrecord'"),
        ("digits:0", "'digits'"),
        ("npz", "npz:PATH"),
        ("npz:", "npz:PATH"),
        ("tfrecord", "tfrecord:GLOB"),
        ("tfrecord:/no/such/*", "file"),
        ("tfrecord:/", "directories"),
        ("cifar", "'cifar10'"),
        ("fashion-mnist", "'fashion_mnist'"),
        ("foldr:a", "'folder:a'"),
        ("/some/pictures", "'folder:/some/pictures'"),
        ("kws/y_labels.csv", "'eembc:kws/y_labels.csv'"),
        ("eembc", "eembc:DIR"),
        ("tfds:", "tfds:NAME"),
    ],
)
def test_a_wrong_source_is_refused_and_the_right_one_suggested(source, word):
    with refused(InputError, field="data.source", got=source.removesuffix(":"), word=word):
        load_split(DataConfig.from_dict({"source": source}, "data"), "test")


def test_an_existing_folder_without_a_source_is_suggested_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with refused(InputError, got="photos", word="'folder:photos'"):
        DataConfig(source="photos")
    with refused(InputError, got="videos", word="npz:PATH"):
        DataConfig(source="videos")


def test_an_unknown_split_is_an_error():
    with refused(InputError, field="split", expected=("train", "val", "test"), got="trian", word="'train'"):
        load_split(DataConfig(source="digits"), "trian")


# npz


def test_npz_reads_splits_in_order_up_to_the_limit(npz):
    (x, y), (xt, yt), (xv, yv) = labelled(20), labelled(5, 100), labelled(3, 200)
    config = npz(x_train=x, y_train=y, x_test=xt, y_test=yt, x_val=xv, y_val=yv)
    assert load_split(config, "train").inputs["x"][:, 0].tolist() == list(range(20))
    assert load_split(config, "test").labels.tolist() == [0, 1, 2, 3, 4]
    assert load_split(config, "val").inputs["x"][:, 0].tolist() == [200, 201, 202]
    assert load_split(config, "train", limit=4).num_examples == 4
    assert load_split(config, "train").notes == ()


def test_npz_without_val_holds_out_the_last_tenth_of_train(npz):
    x, y = labelled(25)
    config = npz(x_train=x, y_train=y)
    train, val = load_split(config, "train"), load_split(config, "val")
    assert train.inputs["x"][:, 0].tolist() == list(range(23))
    assert val.inputs["x"][:, 0].tolist() == [23, 24] and val.labels.tolist() == [3, 4]
    assert "25" in val.information[0] and train.information == val.information
    assert train.notes == val.notes == ()


def test_calibration_uses_all_training_examples_without_validation_split(npz):
    x, y = labelled(25)
    xv, yv = labelled(3, 200)
    split = load_calibration_split(npz(x_train=x, y_train=y))
    assert split.inputs["x"][:, 0].tolist() == list(range(25)) and len(split.labels) == 25
    assert split.notes == split.information == ()
    assert load_calibration_split(npz(x_train=x, y_train=y), limit=24).num_examples == 24
    with_val = load_calibration_split(npz(x_train=x, y_train=y, x_val=xv, y_val=yv))
    assert with_val.inputs["x"][:, 0].tolist() == list(range(25))


def test_npz_of_one_train_example_keeps_it_for_training(npz):
    x, y = labelled(1)
    config = npz(x_train=x, y_train=y)
    assert load_split(config, "train").num_examples == 1
    with refused(MissingSplitError, field="split", got="val"):
        load_split(config, "val")


def test_npz_with_a_missing_split_lists_present_and_expected_arrays(npz):
    x, y = labelled(4)
    config = npz(x_test=x, y_test=y)
    with refused(MissingSplitError, field="split", expected=("x_test", "y_test"), got="train", word="x_train"):
        load_split(config, "train")
    with refused(MissingSplitError, field="split", got="val", word="x_val"):
        load_split(config, "val")


def test_calibration_takes_train_else_val_else_test_and_tells_which(npz):
    x, y = labelled(30)
    assert load_calibration_split(npz(x_train=x, x_test=x)).name == "train"
    result = load_calibration_split(npz(x_val=x, x_test=x), limit=7)
    assert (result.name, result.num_examples) == ("val", 7) and "val" in result.information[-1]
    result = load_calibration_split(npz(x_test=x, y_test=y))
    assert result.name == "test" and "test" in result.notes[-1]
    with pytest.raises(MissingSplitError):
        load_calibration_split(npz(other=x))


def test_npz_reads_several_inputs_and_optional_labels(npz):
    split = load_split(npz(**{"x_test.image": np.zeros((2, 4, 4, 1)), "x_test.meta.age": np.ones((2, 1))}), "test")
    assert {name: array.shape for name, array in split.inputs.items()} == {"image": (2, 4, 4, 1), "meta.age": (2, 1)}
    assert split.labels is None


def test_npz_says_which_keys_it_does_not_use(npz):
    x, y = labelled(3)
    assert "'X_test'" in load_split(npz(x_test=x, y_test=y, X_test=x), "test").notes[0]


def test_npz_keeps_values_and_gives_a_float_model_floats(npz):
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    split = load_split(npz(x_test=pixels), "test")
    assert split.inputs["x"].dtype == np.float32 and np.array_equal(split.inputs["x"], pixels)
    assert load_split(npz(x_test=np.ones((2, 3), np.float64)), "test").inputs["x"].dtype == np.float32
    tokens = load_split(npz(x_test=np.array([[70000, 3]])), "test").inputs["x"]
    assert tokens.dtype == np.int64 and tokens.tolist() == [[70000, 3]]


def test_npz_takes_a_column_of_labels(npz):
    assert load_split(npz(x_test=np.zeros((2, 3)), y_test=np.array([[4], [5]], np.uint8)), "test").labels.tolist() == [
        4,
        5,
    ]


def nan_at_two():
    x = np.zeros((4, 3))
    x[2, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "field", "got"),
    [
        ({"x_test": np.zeros((3, 2)), "y_test": np.zeros(2, int)}, "data.source", {"input 'x'": 3, "labels": 2}),
        ({"x_test": np.zeros((0, 2)), "y_test": np.zeros(0, int)}, "data.source", 0),
        ({"x_test": nan_at_two()}, "x[2]", "NaN"),
        ({"x_test": np.array([[0.0], [np.inf]])}, "x[1]", "infinity"),
        ({"x_test": np.array([[0.0], [1e300]])}, "x[1]", "infinity"),
        ({"x_test": np.array(["a", "b"])}, None, "<U1"),
        ({"x_test": np.array([1j])}, None, "complex128"),
        ({"x_test": np.array([[1], [2, 3]], dtype=object)}, "x_test", "object"),
        ({"x_test": np.zeros((2, 1)), "y_test": np.array(["a", "b"])}, "labels", "<U1"),
        ({"x_test": np.zeros((2, 1)), "y_test": np.array([1, -2])}, "labels[1]", -2),
        ({"x_test": np.zeros((2, 1)), "y_test": np.ones((2, 2), int)}, "labels[0]", (2, 2)),
        ({"x_test": np.zeros((2, 1)), "x_test.a": np.zeros((2, 1))}, "data.source", ("x_test", "x_test.a")),
        (
            {"x_test.a": np.zeros((2, 1)), "x_test.b": np.zeros((3, 1))},
            "data.source",
            {"input 'a'": 2, "input 'b'": 3},
        ),
        ({"x_test": np.array(3.0)}, "x_test", ()),
    ],
)
def test_npz_with_arrays_that_cannot_be_used_is_refused(npz, arrays, field, got):
    with refused(InputError, field=field, got=got):
        load_split(npz(**arrays), "test")


@pytest.mark.parametrize(
    ("array", "limit"),
    [
        (np.array([1j]), "not-real-numbers"),
        (np.array(["a"]), "not-real-numbers"),
        (np.array([[1], [2, 3]], dtype=object), "object-arrays"),
        (nan_at_two(), None),
    ],
)
def test_only_kinds_of_arrays_that_npz_cannot_hold_are_unsupported(npz, array, limit):
    with refused(InputError, limit=limit):
        load_split(npz(x_test=array), "test")


def test_files_that_are_not_npz_are_refused(tmp_path):
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "whole.npz", x_test=np.zeros((100, 10)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-200])
    wrong = {
        "none.npz": "exist",
        ".": "directory",
        "empty.npz": "empty",
        "text.npz": "archive",
        "one.npy": ".npy",
        "cut.npz": "damaged",
    }
    for name, word in wrong.items():
        with refused(InputError, got=str(tmp_path / name), word=word):
            load_split(DataConfig(source=f"npz:{tmp_path / name}"), "test")


def test_an_archive_with_a_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x_test=np.zeros((100, 10)))
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(content)
    with refused(InputError, field="x_test", got=str(path), word="damaged"):
        load_split(DataConfig(source=f"npz:{path}"), "test")


# preprocessing


def test_scale_and_offset_are_applied_in_float32_in_that_order(npz):
    config = npz(x_test=np.array([[0], [127], [255]], np.uint8), config={"scale": 2 / 255, "offset": -1.0})
    x = load_split(config, "test").inputs["x"]
    assert x.dtype == np.float32
    assert np.array_equal(x[:, 0], np.array([0, 127, 255], np.float32) * np.float32(2 / 255) + np.float32(-1))
    assert preprocessing_record(config) == {"resize": [], "scale": 2 / 255, "offset": -1.0}


def test_a_scale_is_refused_for_mixed_indices_and_floats(npz):
    arrays = {"x_test.image": np.zeros((2, 4)), "x_test.token": np.zeros((2, 1), int)}
    with refused(InputError, field="data.scale", got="token"):
        load_split(npz(config={"scale": 0.5}, **arrays), "test")


def test_a_scale_that_overflows_float32_is_reported(npz):
    with refused(InputError, field="x[1]", got="infinity"):
        load_split(npz(x_test=np.array([[0.0], [1e30]]), config={"scale": 1e30}), "test")


def test_resize_by_hand_one_row_to_twice_its_width():
    # Half-pixel centers: the new pixels are at -0.25, 0.25, 0.75, 1.25 of the old ones, and the edges repeat.
    row = np.array([0.0, 100.0], np.float32).reshape(1, 1, 2, 1)
    assert resize_bilinear(row, (1, 4))[0, 0, :, 0].tolist() == [0, 25, 75, 100]


def test_resize_by_hand_down_to_half_averages_two_by_two():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    assert resize_bilinear(image, (2, 2))[0, :, :, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]


def test_resize_in_pieces_equals_resize_of_each_image(monkeypatch):
    images = np.random.default_rng(0).normal(size=(7, 5, 6, 2)).astype(np.float32)
    whole = resize_bilinear(images, (9, 4))
    monkeypatch.setattr("tfq.data.preprocessing._PIECE_VALUES", 1)
    assert np.array_equal(resize_bilinear(images, (9, 4)), whole)


def test_resize_applies_to_digits_and_is_recorded():
    config = DataConfig(source="digits", resize=(16, 12))
    assert load_split(config, "val").inputs["x"].shape == (180, 16, 12, 1)
    assert preprocessing_record(config)["resize"] == [16, 12]


def test_resize_is_refused_without_images_and_for_one_number(npz):
    with refused(InputError, field="data.resize", got={"x": (2, 3)}):
        load_split(npz(x_test=np.zeros((2, 3)), config={"resize": (4, 4)}), "test")
    with refused(InputError, field="data.resize", expected=("height", "width"), got=(4,)):
        load_split(DataConfig(source="digits", resize=(4,)), "test")


# names of TFRecord files


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("cifar10-train.tfrecord-00000-of-00005", "train"),
        ("Validation_3.tfrecord", "val"),
        ("imagenet.val.gz", "val"),
        ("test1", "test"),
        ("latest.tfrecord", None),
        ("trainable.tfrecord", None),
        ("part-00001", None),
    ],
)
def test_a_word_in_a_files_name_says_its_split(name, split):
    assert split_of_name(name) == split


def test_a_name_that_says_two_splits_is_refused():
    with refused(InputError, field="data.source", got="train-test.tfrecord"):
        split_of_name("train-test.tfrecord")


def test_a_check_without_reading_refuses_missing_folders_and_half_a_size(tmp_path):
    with refused(InputError, field="data.source", word="nowhere"):
        check_readable(DataConfig(source=f"folder:{tmp_path / 'nowhere'}"))
    with refused(InputError, field="data.source", word="class"):
        (tmp_path / "flat" / "train").mkdir(parents=True)
        check_readable(DataConfig(source=f"folder:{tmp_path / 'flat'}"))
    with refused(InputError, field="data.resize"):
        check_readable(DataConfig(source="digits", resize=(64,)))
    (tmp_path / "flat" / "train" / "cat").mkdir()
    check_readable(DataConfig(source=f"folder:{tmp_path / 'flat'}", resize=(64, 64)))

# SPDX-License-Identifier: Apache-2.0
"""The source csv: tables of numbers, compared with NumPy's own reader."""

import numpy as np
import pytest
from messages import refused

from tfq.config import DataConfig
from tfq.data import MissingSplitError, SplitStream, load_calibration_split, load_split, source_fingerprint
from tfq.data.sources import csv_table
from tfq.errors import InputError


@pytest.fixture
def csv(tmp_path):
    """Return a function that writes a table and returns its DataConfig."""

    def write(text, name="table.csv", **config):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return DataConfig(source=f"csv:{tmp_path / name}", **config)

    return write


def test_columns_but_the_label_are_inputs_in_their_order(csv, tmp_path):
    config = csv("b,label,a\n1.5,0,-2\n0.1,1,3e-5\n")
    split = load_split(config, "test")
    expected = np.genfromtxt(tmp_path / "table.csv", delimiter=",", skip_header=1)
    assert split.inputs["x"].dtype == np.float32
    assert np.array_equal(split.inputs["x"], expected[:, [0, 2]].astype(np.float32))
    assert split.labels.dtype == np.int64 and split.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "dtype", "expected", "names"),
    [
        (["3", "0", "1"], np.int64, [3, 0, 1], ()),
        (["0.5", "2", "-1"], np.float32, [0.5, 2, -1], ()),
        (["dog", "cat", "dog"], np.int64, [1, 0, 1], ("cat", "dog")),
        (["1", "cat", "2"], np.int64, [0, 2, 1], ("1", "2", "cat")),
    ],
)
def test_labels_are_class_numbers_values_or_names(csv, labels, dtype, expected, names):
    split = load_split(csv("a,label\n" + "".join(f"1,{label}\n" for label in labels)), "test")
    assert split.labels.dtype == dtype and split.labels.tolist() == expected
    assert split.class_names == names


def test_integers_that_are_names_of_classes_are_stated(csv):
    information = load_split(csv("a,label\n1,0\n2,O\n"), "test").information
    assert any("'O' in line 3" in item for item in information)
    assert not load_split(csv("a,label\n1,x\n2,y\n"), "test").information


def test_the_column_of_splits_is_not_the_label(csv):
    with refused(InputError, field="data.label_key", got="split"):
        load_split(csv("a,split\n1,test\n", label_key="split"), "test")


def test_another_column_is_the_label(csv):
    split = load_split(csv("price,a\n100.5,1\n7.25,2\n", label_key="price"), "test")
    assert split.labels.tolist() == [100.5, 7.25] and split.inputs["x"].tolist() == [[1], [2]]


def test_a_table_without_the_column_of_labels_says_so(csv):
    split = load_split(csv("a,b\n1,2\n"), "test")
    assert split.labels is None and "'label'" in split.information[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_that_of_the_header(csv, delimiter):
    text = "\ufeffa,label\r\n1.5,0\r\n\r\n2.5,1\r\n".replace(",", delimiter)
    assert load_split(csv(text), "test").inputs["x"].tolist() == [[1.5], [2.5]]


def test_a_column_assigns_rows_to_splits(csv):
    config = csv("a,label,split\n" + "".join(f"{i},0,{'test' if i % 3 == 0 else 'train'}\n" for i in range(30)))
    train, val, test = (load_split(config, name) for name in ("train", "val", "test"))
    assert test.inputs["x"][:, 0].tolist() == list(range(0, 30, 3))
    rest = [i for i in range(30) if i % 3]
    assert np.concatenate([train.inputs["x"], val.inputs["x"]])[:, 0].tolist() == rest
    assert "last 2 of 20" in val.information[-1]


def test_a_folder_has_a_table_for_each_split_and_one_numbering_of_classes(tmp_path):
    (tmp_path / "train.csv").write_text("a,label\n1,pear\n2,apple\n")
    (tmp_path / "val.csv").write_text("a,label\n3,pear\n")
    (tmp_path / "test.csv").write_text("a,label\n4,zebra\n")
    config = DataConfig(source=f"csv:{tmp_path}")
    assert [load_split(config, name).labels.tolist() for name in ("train", "val", "test")] == [[1, 0], [1], [2]]
    (tmp_path / "test.csv").write_text("b,label\n4,zebra\n")
    with refused(InputError, field="data.source", expected=("a", "label")):
        load_split(config, "test")


def test_a_table_without_splits_is_the_test_split_and_can_calibrate(csv):
    config = csv("a,label\n1,0\n")
    assert "test" in load_calibration_split(config).notes[0]
    with refused(MissingSplitError, field="split", got="train"):
        load_split(config, "train")


def test_a_large_table_is_streamed_and_read_from_the_middle(csv, monkeypatch):
    monkeypatch.setattr(csv_table, "_STEP", 100)
    rng = np.random.default_rng(0)
    values, splits = rng.normal(size=(3000, 100)), rng.integers(0, 2, 3000)
    names = ",".join(f"c{i}" for i in range(100))
    lines = [
        ",".join(map(repr, row.tolist())) + f",{i},{'train' if s else 'test'}"
        for i, (row, s) in enumerate(zip(values, splits, strict=True))
    ]
    config = csv("\n".join([f"{names},label,split", *lines]), max_memory_mb=1)
    big = load_split(csv("\n".join([f"{names},label,split", *lines])), "test")
    expected = values[splits == 0].astype(np.float32)
    assert np.array_equal(big.inputs["x"], expected)
    stream = load_split(config, "test")
    assert isinstance(stream, SplitStream) or stream.num_examples * 400 < 1_000_000
    middle = np.concatenate([piece.inputs["x"] for piece in stream.shard(1, 3).pieces()])
    first = stream.num_examples // 3
    assert np.array_equal(middle, expected[first : first + len(middle)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,label\n1,0\n,1\n", ("line 3", "column a", "missing")),
        ("a,label\n1,0\nNaN,1\n", ("line 3", "missing")),
        ("a,label\n1,\n", ("line 2", "column label", "missing")),
        ("a,label\n1,0\ninf,1\n", ("line 3", "finite")),
        ("a;label\n1,5;0\n", ("line 2", "decimal")),
        ("a,label\nred,0\n", ("line 2", "categories")),
        ("a,label\n1,0\n1,2,3\n", ("line 3", "fields")),
        ('a,label\n"1,0\n', ("CSV",)),
        ("a,a,label\n1,2,3\n", ("line 1", "twice")),
        ("1,2\n3,4\n", ("line 1", "header")),
        ("label\n3\n", ("label",)),
        ("", ("empty",)),
        (b"a,label\n\xff,1\n", ("line 2", "UTF-8")),
        ("a,label,split\n1,0,dev\n", ("line 2", "column split", "'dev'")),
        ("a,label\n1_000,0\n", ("line 2", "finite")),
        ('a,label\n1,0.5\n2,"1,5"\n', ("line 3", "column label", "'1,5'", "'0.5' in line 2")),
        ("a,label\n1,0.5\n2,inf\n", ("line 3", "column label", "'inf'")),
        ("a,label\n1,1e39\n", ("line 2", "column label", "float32")),
        (f"a,label\n1,0\n1,{'9' * 500}\n", ("line 3", "column label", "float32")),
        ("a,label\r1,0\r", ("line 1", "line feed")),
        (f"a,{'b' * 200_000},label\n1,2,0\n", ("line 1", "field limit")),
    ],
)
def test_a_damaged_table_is_refused_with_line_and_column(csv, text, words):
    with pytest.raises(InputError) as raised:
        load_split(csv(text), "test")
    assert raised.value.field == "data.source"
    for word in words:
        assert word in str(raised.value)


def test_a_value_that_float32_cannot_hold_is_refused(csv):
    with refused(InputError, field="data.source", word="float32"):
        load_split(csv("a,label\n1e39,0\n"), "test")


def test_the_fingerprint_follows_the_content_and_the_label(csv):
    text = "a,b,label\n1,2,0\n"
    before = source_fingerprint(csv(text))
    assert source_fingerprint(csv(text, label_key="b")) != before
    assert source_fingerprint(csv(text)) == before
    assert source_fingerprint(csv(text.replace("2", "3"))) != before


@pytest.mark.parametrize("address", ["", "missing.csv"])
def test_a_missing_table_is_refused(tmp_path, address):
    with refused(InputError):
        load_split(DataConfig(source=f"csv:{address and tmp_path / address}"), "test")

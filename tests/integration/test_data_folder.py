# SPDX-License-Identifier: Apache-2.0
"""The source folder:DIR. Oracle of decoding: Pillow."""

import io
import os

import numpy as np
import pytest
from hostile_files import png
from messages import refused
from PIL import Image

from tfq.config import DataConfig
from tfq.data import MissingSplitError, check_readable, load_calibration_split, load_split, source_fingerprint
from tfq.errors import InputError


def picture(value, size=(4, 5)):
    return np.full((*size, 3), value, np.uint8)


def write(root, files):
    """Write files. files: path below root -> array (as PNG or JPEG by the suffix), or bytes."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path, quality=90)


def config_of(root, **changes):
    return DataConfig(source=f"folder:{root}", **changes)


def values(split):
    """Return the label of each pixel value, which identifies the picture."""
    return {int(x[0, 0, 0]): int(label) for x, label in zip(split.inputs["x"], split.labels, strict=True)}


def test_folders_are_splits_and_their_folders_are_classes_in_sorted_order(tmp_path):
    write(
        tmp_path,
        {
            "train/dog/1.png": picture(1),
            "train/cat/2.png": picture(2),
            "train/cat/deep/er/3.png": picture(3),
            "validation/dog/4.png": picture(4),
            "test/dog/5.png": picture(5),
            "test/zebra/6.png": picture(6),
        },
    )
    train, val, test = (load_split(config_of(tmp_path), split) for split in ("train", "val", "test"))
    assert values(train) == {1: 1, 2: 0, 3: 0} and values(val) == {4: 1} and values(test) == {5: 1, 6: 2}
    assert train.class_names == test.class_names == ("cat", "dog", "zebra")
    assert train.inputs["x"].dtype == np.float32 and train.inputs["x"].shape == (3, 4, 5, 3)
    assert any("1 of 3" in note and "'cat'" in note for note in test.notes)


def test_without_split_folders_everything_is_test_with_a_note(tmp_path):
    write(tmp_path, {"a/1.png": picture(1), "b/2.png": picture(2)})
    split = load_split(config_of(tmp_path), "test")
    assert values(split) == {1: 0, 2: 1} and "train" in split.notes[0]
    with refused(MissingSplitError, field="split", expected=("test",), got="train"):
        load_split(config_of(tmp_path), "train")
    assert load_calibration_split(config_of(tmp_path)).name == "test"


def test_a_class_may_be_called_test(tmp_path):
    write(tmp_path, {"test/1.png": picture(1), "production/2.png": picture(2)})
    assert load_split(config_of(tmp_path), "test").class_names == ("production", "test")


def test_the_first_examples_cover_all_classes_in_path_order(tmp_path):
    for root in (tmp_path / "one", tmp_path / "two"):
        write(root, {f"train/{name}/{i:03}.png": picture(i) for name in "abcd" for i in range(25)})
    first = load_split(config_of(tmp_path / "one"), "train", limit=20)
    assert set(first.labels.tolist()) == {0, 1, 2, 3}
    assert first.sha256() == load_split(config_of(tmp_path / "two"), "train", limit=20).sha256()
    val = load_split(config_of(tmp_path / "one"), "val")
    assert val.num_examples == 10 and len(set(val.labels.tolist())) > 1
    assert "100" in val.information[-1]


def test_pixels_are_those_that_pillow_decodes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    write(tmp_path, {"a/1.jpg": noise})
    split = load_split(config_of(tmp_path), "test")
    assert np.array_equal(split.inputs["x"][0], np.asarray(Image.open(tmp_path / "a" / "1.jpg")))


def test_hidden_and_other_files_are_counted_and_not_read(tmp_path):
    write(
        tmp_path,
        {
            "a/1.png": picture(1),
            "a/.hidden.png": b"x",
            "a/.cache/2.png": b"x",
            "a/Thumbs.db": b"x",
            "a/notes.txt": b"x",
            "empty/.keep": b"",
            ".git/1.png": b"x",
        },
    )
    split = load_split(config_of(tmp_path), "test")
    assert values(split) == {1: 0}
    (hidden,) = (note for note in split.notes if " hidden " in note)
    (other,) = (note for note in split.notes if " JPEG " in note)
    (empty,) = (note for note in split.notes if ": empty" in note)
    assert "4 files" in hidden and "1 files" in other and "1 folders" in empty


def encoded(image_format):
    file = io.BytesIO()
    Image.fromarray(picture(1)).save(file, image_format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"a/1.bmp": encoded("BMP")}, "1.bmp"),
        ({"a/1.png": b"not an image"}, "1.png"),
        ({"a/1.png": b""}, "empty"),
        (
            {"a/1.png": picture(1), "a/2.png": picture(2, (9, 5))},
            "(9,",
        ),
        ({"a/1.txt": b"x"}, "JPEG"),
        ({"1.png": picture(1)}, "DIR/CLASS"),
        ({"1.png": picture(1), "2.jpg": b"x", "3.txt": b"x"}, "only"),
        ({"train/1.png": picture(1)}, "DIR/CLASS"),
        ({"train/a/1.png": picture(1), "training/a/1.png": picture(1)}, "training"),
    ],
)
def test_an_unusable_folder_is_reported_with_the_file(tmp_path, files, word):
    write(tmp_path, files)
    limit = {"1.bmp": "image-formats", "(9,": "image-sizes"}.get(word)
    with refused(InputError, word=word, limit=limit):
        load_split(config_of(tmp_path), "train" if "train" in next(iter(files)) else "test")


@pytest.mark.parametrize("image_format", ["BMP", "GIF", "WebP", "TIFF"])
def test_another_format_with_the_suffix_jpg_is_reported_by_its_bytes(tmp_path, image_format):
    files = {"train/a/1.jpg": encoded("JPEG"), "train/a/2.jpg": encoded(image_format), "val/a/1.jpg": encoded("PNG")}
    write(tmp_path, files)
    with refused(InputError, field="data.source", got=str(tmp_path / "train/a/2.jpg"), word=image_format):
        load_split(config_of(tmp_path), "train")
    # Commands report it before TensorFlow is imported, and only for the split that they read.
    with refused(InputError, field="data.source", got=str(tmp_path / "train/a/2.jpg"), word=image_format):
        check_readable(config_of(tmp_path), "train")
    write(tmp_path, {"test/a/1.jpg": encoded("PNG")})
    check_readable(config_of(tmp_path), "test")
    assert load_split(config_of(tmp_path), "test").num_examples == 1


def test_a_missing_folder_is_reported(tmp_path):
    with refused(InputError, field="data.source", got=f"folder:{tmp_path / 'none'}"):
        load_split(config_of(tmp_path / "none"), "test")
    with refused(InputError, field="data.source", expected="folder:DIR", got="folder"):
        load_split(DataConfig(source="folder:"), "test")
    with refused(InputError, field="DataConfig.source", got="some/where", word="'folder:some/where'"):
        load_split(DataConfig(source="some/where"), "test")


def test_images_of_several_sizes_are_resized_and_streamed_alike(tmp_path):
    files = {f"{name}/{i}.png": picture(i, (20 + i % 3, 30)) for name in "ab" for i in range(30)}
    write(tmp_path, files)
    whole = load_split(config_of(tmp_path, resize=(64, 64)), "test")
    streamed = load_split(config_of(tmp_path, resize=(64, 64), max_memory_mb=1), "test")
    assert not hasattr(streamed, "inputs") and streamed.sha256() == whole.sha256()
    assert streamed.piece_examples > 1 and [piece.num_examples for piece in streamed.pieces()][:2] == [5, 5]
    parts = np.concatenate([piece.inputs["x"] for piece in streamed.read(41, 49)])
    assert np.array_equal(parts, whole.inputs["x"][41:49])


def test_the_fingerprint_follows_names_and_content(tmp_path):
    write(tmp_path, {"a/1.png": picture(1), "b/2.png": picture(2)})
    config = config_of(tmp_path)
    before = source_fingerprint(config)
    assert source_fingerprint(config) == before
    write(tmp_path, {"b/2.png": picture(3)})
    changed = source_fingerprint(config)
    (tmp_path / "b" / "2.png").rename(tmp_path / "a" / "2.png")
    assert len({before, changed, source_fingerprint(config)}) == 3


def test_images_whose_names_are_not_utf8_are_read(tmp_path):
    write(tmp_path, {"a/x.png": picture(7)})
    os.rename(tmp_path / "a" / "x.png", os.fsencode(tmp_path) + b"/a/\xff\xfe.png")
    assert values(load_split(config_of(tmp_path), "test")) == {7: 0}


def test_an_image_that_declares_too_many_pixels_is_refused(tmp_path):
    write(tmp_path, {"a/x.png": png(2**31, 2)})
    with refused(InputError, field="data.source", word="x.png"):
        load_split(config_of(tmp_path), "test")

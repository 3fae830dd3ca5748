# SPDX-License-Identifier: Apache-2.0
"""The source masks:DIR. Oracle of decoding: Pillow."""

import numpy as np
import pytest
from messages import refused
from PIL import Image

import tfq
from tfq.data import MissingSplitError, check_readable, load_split, source_fingerprint
from tfq.data.png_indices import stored_numbers
from tfq.errors import InputError

RNG = np.random.default_rng(0)


def write(folder, name, image, mask, suffix=".png"):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if image is not None:
        Image.fromarray(image).save(folder / "images" / f"{name}{suffix}")
    if mask is not None:
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(folder / "masks" / f"{name}.png")


def random_pair(size=(6, 8), classes=5):
    return RNG.integers(0, 256, (*size, 3), np.uint8), RNG.integers(0, classes, size, np.uint8)


def config_of(root, **settings):
    return tfq.DataConfig(source=f"masks:{root}", **settings)


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 21), ("test", 3)):
        for index in range(count):
            write(tmp_path / split, f"{index:02}", *random_pair())
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\ntree\nsign\n")
    return tmp_path


def test_images_and_masks_of_one_name_are_pairs_in_a_fixed_mixed_order(root):
    split = load_split(config_of(root), "test")
    expected = {}
    for path in (root / "test" / "images").iterdir():
        image = np.asarray(Image.open(path), np.float32)
        expected[image.tobytes()] = np.asarray(Image.open(root / "test" / "masks" / path.name))
    assert split.labels.shape == (3, 6, 8) and split.class_names == ("sky", "road", "car", "tree", "sign")
    for image, mask in zip(split.inputs["x"], split.labels, strict=True):
        np.testing.assert_array_equal(mask, expected[image.tobytes()])
    train, val = (load_split(config_of(root), name) for name in ("train", "val"))
    assert (train.num_examples, val.num_examples) == (19, 2)
    # The order is not that of the names, and does not depend on where the folder is.
    assert train.sha256() == load_split(config_of(root), "train").sha256()
    first = np.asarray(Image.open(root / "train" / "images" / "00.png"), np.float32)
    assert not np.array_equal(train.inputs["x"][0], first)
    root.rename(root.with_name("moved"))
    assert load_split(config_of(root.with_name("moved")), "train").sha256() == train.sha256()


def test_a_stream_has_the_same_examples(root):
    whole = load_split(config_of(root, resize=(400, 400)), "train")
    stream = load_split(config_of(root, resize=(400, 400), max_memory_mb=4), "train")
    pieces = list(stream.pieces())
    assert len(pieces) > 1
    np.testing.assert_array_equal(np.concatenate([piece.labels for piece in pieces]), whole.labels)
    np.testing.assert_array_equal(np.concatenate([piece.inputs["x"] for piece in pieces]), whole.inputs["x"])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["gray", "palette"])
def test_masks_are_the_stored_numbers_whatever_the_palette(tmp_path, mode, bits):
    numbers = RNG.integers(0, 2**bits, (9, 13), np.uint8)
    image = Image.fromarray(numbers)
    if mode == "palette":
        image.putpalette(RNG.integers(0, 256, 768).tolist())
        image.info["transparency"] = 0
    elif bits < 8:
        if bits > 1:
            pytest.skip("Pillow writes gray pixels with 1 or 8 bits")
        image = Image.fromarray(numbers.astype(bool))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((9, 13, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    image.save(tmp_path / "masks" / "a.png", **({"bits": bits} if mode == "palette" else {}))
    content = (tmp_path / "masks" / "a.png").read_bytes()
    assert content[24] == bits and stored_numbers(content).factor == 255 // (2**bits - 1)
    np.testing.assert_array_equal(load_split(config_of(tmp_path), "test").labels[0], numbers)


def test_images_are_resized_bilinearly_and_masks_to_the_nearest_pixel(root):
    split = load_split(config_of(root, resize=(3, 4)), "test")
    small = load_split(config_of(root, resize=(6, 8), label_resize=(3, 4)), "test")
    original = load_split(config_of(root), "test")
    for mask, resized in zip(original.labels, split.labels, strict=True):
        expected = Image.fromarray(mask).resize((4, 3), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(resized, np.asarray(expected))
    assert split.inputs["x"].shape == (3, 3, 4, 3) and small.inputs["x"].shape == (3, 6, 8, 3)
    np.testing.assert_array_equal(small.labels, split.labels)


def test_the_fingerprint_changes_with_any_file(root):
    seen = {source_fingerprint(config_of(root))}
    (root / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    seen.add(source_fingerprint(config_of(root)))
    write(root / "test", "00", None, random_pair()[1])
    seen.add(source_fingerprint(config_of(root)))
    assert len(seen) == 3


def replace(root, content):
    (root / "test" / "masks" / "00.png").write_bytes(content)


BROKEN = {
    "no mask": (lambda root: (root / "test" / "masks" / "01.png").unlink(), "01.png"),
    "no image": (lambda root: write(root / "test", "extra", None, random_pair()[1]), "extra.png"),
    "no folder": (lambda root: (root / "test" / "masks").rename(root / "test" / "labels"), "masks"),
    "two images": (lambda root: write(root / "test", "00", random_pair()[0], None, ".jpg"), "00.jpg"),
    "class names": (lambda root: (root / "classes.txt").write_text("sky\n\nroad\n"), "classes.txt"),
}
BAD_MASKS = {
    "RGB": lambda root: write(root / "test", "00", None, random_pair()[0]),
    "RGBA": lambda root: write(root / "test", "00", None, RNG.integers(0, 255, (6, 8, 4), np.uint8)),
    "16": lambda root: write(root / "test", "00", None, Image.fromarray(np.zeros((6, 8), np.uint16))),
    "JPEG": lambda root: Image.new("L", (8, 6)).save(root / "test" / "masks" / "00.png", format="jpeg"),
    "empty": lambda root: replace(root, b"\x89PNG\r\n\x1a\n"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_layout_is_refused_before_anything_is_decoded(root, name):
    change, word = BROKEN[name]
    change(root)
    with refused(InputError, field="data.source", word=word):
        check_readable(config_of(root), "test")
    with refused(InputError, field="data.source", word=word):
        load_split(config_of(root), "test")


@pytest.mark.parametrize("name", BAD_MASKS)
def test_masks_without_class_numbers_are_refused_with_their_file(root, name):
    BAD_MASKS[name](root)
    for read in (check_readable, load_split):
        with refused(InputError, field="data.source", word="00.png", limit="mask-formats"):
            read(config_of(root), "test")


def test_damaged_and_misfit_masks_are_refused_with_their_file(root):
    content = (root / "test" / "masks" / "00.png").read_bytes()
    for damaged in (content[:-30], content[:45] + b"\0" + content[46:], content[:20] + b"\1" + content[21:]):
        replace(root, damaged)
        with refused(InputError, field="data.source", word="00.png"):
            load_split(config_of(root), "test")
    write(root / "test", "00", None, random_pair(size=(8, 6))[1])
    with refused(InputError, field="data.source", expected=(6, 8), got=(8, 6), word="00.png"):
        load_split(config_of(root), "test")


def test_a_class_without_a_name_is_refused(root):
    mask = random_pair()[1]
    mask[2, 3] = 255
    write(root / "test", "00", None, mask)
    with refused(InputError, field="data.source", got=255, word="data.ignore_label=255"):
        load_split(config_of(root), "test")
    labels = load_split(config_of(root, ignore_label=255), "test").labels
    assert (labels == -1).sum() == 1


def test_images_of_different_sizes_need_resize(root):
    write(root / "test", "01", *random_pair(size=(5, 5)))
    with refused(InputError, field="data.resize", limit="image-sizes"):
        load_split(config_of(root), "test")
    assert load_split(config_of(root, resize=(6, 8)), "test").labels.shape == (3, 6, 8)


def test_a_single_pair_of_folders_is_the_test_split(root):
    assert load_split(config_of(root / "test"), "test").num_examples == 3
    with refused(MissingSplitError, field="split"):
        load_split(config_of(root / "test"), "train")
    with refused(InputError, field="data.source", word="nowhere"):
        load_split(config_of(root / "nowhere"), "test")

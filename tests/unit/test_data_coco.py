# SPDX-License-Identifier: Apache-2.0
"""Annotation files of the COCO source: what is read, and what is refused, without decoding an image."""

import json

import pytest

import tfq
from tfq.data import MissingSplitError, check_readable, source_fingerprint
from tfq.data.sources.coco import read_annotations, read_coco


def content():
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "height": 50, "width": 100},
            {"id": 4, "file_name": "a.png", "height": 20, "width": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 7, "bbox": [10, 5, 20, 10], "area": 120.5, "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def write(path, data):
    path.write_text(json.dumps(data))
    return path


def test_boxes_are_fractions_by_ascending_ids(tmp_path):
    result = read_annotations(write(tmp_path / "a.json", content()))
    assert result.files == ("a.png", "b.png")
    assert result.sizes == ((20, 20), (50, 100))
    assert result.class_names == ("dog", "cat")
    assert result.boxes[0].shape == (0, 7)
    assert result.boxes[1].tolist() == [[1, 0.1, 0.1, 0.3, 0.3, 0, 120.5], [0, 0, 0, 1, 1, 1, 5000]]
    assert result.max_boxes == 2
    assert "1 annotations have no area" in result.information[0]


def replaced(table, place, **fields):
    data = content()
    data[table][place] |= fields
    return data


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "data.source"),
        ({}, "images"),
        ({**content(), "images": []}, "images"),
        ({**content(), "annotations": [3]}, "annotations"),
        (replaced("images", 1, id=9), "images[1].id"),
        (replaced("images", 0, id="9"), "images[0].id"),
        (replaced("images", 0, height=0), "images[0]"),
        (replaced("images", 0, width=True), "images[0].width"),
        (replaced("images", 0, file_name="../secret.png"), "images[0].file_name"),
        (replaced("images", 0, file_name="/etc/passwd"), "images[0].file_name"),
        (replaced("images", 0, file_name=["a"]), "images[0].file_name"),
        (replaced("categories", 1, id=7), "categories[1].id"),
        (replaced("annotations", 0, image_id=5), "annotations[0].image_id"),
        (replaced("annotations", 1, category_id=8), "annotations[1].category_id"),
        (replaced("annotations", 0, bbox=[1, 2, 3]), "annotations[0].bbox"),
        (replaced("annotations", 0, bbox=[1, 2, 3, float("nan")]), "annotations[0].bbox"),
        (replaced("annotations", 0, bbox=[1, 2, -3, 4]), "annotations[0].bbox"),
        (replaced("annotations", 0, bbox=[90, 2, 30, 4]), "annotations[0].bbox"),
        (replaced("annotations", 0, area="large"), "annotations[0].area"),
        (replaced("annotations", 0, iscrowd=[]), "annotations[0].iscrowd"),
    ],
)
def test_an_invalid_entry_is_an_error_with_its_place(tmp_path, data, field):
    with pytest.raises(tfq.InputError) as caught:
        read_annotations(write(tmp_path / "a.json", data))
    assert caught.value.field == field
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000])
def test_a_damaged_file_is_an_error(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(tfq.InputError):
        read_annotations(path)


def test_a_box_may_end_a_pixel_outside_of_its_image(tmp_path):
    result = read_annotations(write(tmp_path / "a.json", replaced("annotations", 0, bbox=[80, 0, 20.9, 50])))
    assert result.boxes[1][0, 4] == pytest.approx(1.009)


def test_missing_images_splits_and_files_are_errors(tmp_path):
    path = write(tmp_path / "a.json", content())
    config = tfq.DataConfig(source=f"coco:{path}")
    with pytest.raises(tfq.InputError, match=r"a\.png") as caught:
        read_coco(str(path), config, "test")
    assert str(tmp_path / "images") in caught.value.expected
    with pytest.raises(tfq.InputError, match="nowhere"):
        read_coco(f"{path}:{tmp_path / 'nowhere'}", config, "test")
    (tmp_path / "a.png").touch()
    with pytest.raises(tfq.InputError, match=r"b\.png") as caught:
        read_coco(str(path), config, "test")
    assert caught.value.got == 1
    with pytest.raises(MissingSplitError, match="split"):
        read_coco(str(path), config, "train")
    with pytest.raises(tfq.InputError):
        check_readable(tfq.DataConfig(source="coco:"), "test")
    with pytest.raises(tfq.InputError):
        check_readable(tfq.DataConfig(source=f"coco:{tmp_path}/none.json"), "test")
    with pytest.raises(tfq.InputError):
        check_readable(tfq.DataConfig(source=f"coco:{tmp_path}/{{split}}.json"), "test")


def test_labels_that_exceed_the_memory_limit_are_an_error(tmp_path):
    data = content()
    data["annotations"] = [data["annotations"][0]] * 20_000
    path = write(tmp_path / "a.json", data)
    (tmp_path / "a.png").touch(), (tmp_path / "b.png").touch()
    with pytest.raises(tfq.InputError) as caught:
        read_coco(str(path), tfq.DataConfig(source=f"coco:{path}", max_memory_mb=1), "test")
    assert caught.value.field == "data.max_memory_mb"


def test_the_fingerprint_changes_with_images_and_boxes(tmp_path):
    path, config = write(tmp_path / "a.json", content()), tfq.DataConfig(source=f"coco:{tmp_path / 'a.json'}")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    first = source_fingerprint(config)
    (tmp_path / "a.png").write_bytes(b"other")
    second = source_fingerprint(config)
    write(path, replaced("annotations", 0, bbox=[10, 5, 20, 11]))
    assert len({first, second, source_fingerprint(config)}) == 3

# SPDX-License-Identifier: Apache-2.0
"""COCO's mean average precision and the COCO source, against pycocotools on the same annotation file."""

import numpy as np
import pytest
from coco_oracle import as_outputs, class_precision, evaluate, twelve
from detection_scenes import digit_patches, make_scene, photo_patches, simulated_detections, varied_scenes, write_coco
from PIL import Image

import tfq
from tfq.evaluation.detection.coco import FIGURES, figures


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, request):
    """Return (annotation file, detections, labels that the source reads) of 50 scenes."""
    rng = np.random.default_rng(0)
    photos = photo_patches(rng.integers(0, 256, (20, 32, 32, 3)), np.arange(20) % 10)
    generated = varied_scenes(50, digit_patches(slice(0, 200)) + photos)
    path = write_coco(generated, tmp_path_factory.mktemp("scenes"))
    split = tfq.load_split(tfq.DataConfig(source=f"coco:{path}", resize=(32, 32)), "test")
    return path, simulated_detections(generated), split


def test_map_equals_pycocotools(scenes):
    path, detections, split = scenes
    outputs = as_outputs(detections, split.labels)
    oracle = evaluate(path, detections)
    for place, name in enumerate(("coco_map", "coco_ap50", "coco_ap75")):
        metric = tfq.registry.get(tfq.Metric, name)
        assert metric.compute(outputs, split.labels) == pytest.approx(oracle.stats[place], abs=1e-6)
    metric = tfq.registry.get(tfq.Metric, "coco_map")
    state = metric.state_of(outputs, split.labels)
    numbers, values = figures(state)
    table = metric.table_of(state)
    assert table.rows == ("all", *map(str, numbers))
    np.testing.assert_allclose(table.values[0, :12], twelve(oracle), atol=1e-6)
    by_class = class_precision(oracle)
    assert list(numbers) == list(by_class)
    np.testing.assert_allclose(values[:, FIGURES.index("AP")], list(by_class.values()), atol=1e-6)


def test_boxes_whose_corners_are_swapped_count_as_in_pycocotools(scenes):
    """A negative width gives a negative area there: such a box is ignored. With a negative height too, it counts."""
    path, detections, split = scenes
    rng = np.random.default_rng(1)
    swapped = [
        [(number, [x, y, sign * w, other * h], score) for (number, (x, y, w, h), score) in image]
        for image in detections
        for sign, other in [rng.choice([(1, 1), (1, 1), (1, 1), (-1, 1), (-1, -1)])]
    ]
    metric = tfq.registry.get(tfq.Metric, "coco_map")
    state = metric.state_of(as_outputs(swapped, split.labels), split.labels)
    np.testing.assert_allclose(metric.table_of(state).values[0, :12], twelve(evaluate(path, swapped)), atol=1e-6)


def test_map_differs_from_pycocotools_for_other_detections(scenes):
    path, detections, split = scenes
    outputs = as_outputs(detections, split.labels)
    outputs[0][:, :, 2] += 0.01
    value = tfq.registry.get(tfq.Metric, "coco_map").compute(outputs, split.labels)
    assert abs(value - evaluate(path, detections).stats[0]) > 1e-4


def test_the_source_returns_images_and_boxes(scenes):
    path, _, split = scenes
    assert split.inputs["x"].shape == (50, 32, 32, 3)
    assert split.labels.shape[2] == 9
    assert split.class_names[:2] == ("class 0", "class 1")
    from pycocotools.coco import COCO

    truth = COCO(str(path))
    for label, identity in zip(split.labels, sorted(truth.imgs), strict=True):
        image, entries = truth.imgs[identity], truth.loadAnns(truth.getAnnIds(identity))
        rows = label[label[:, 0] >= 0]
        assert (label[:, -2:] == [image["height"], image["width"]]).all()
        expected = [[entry["bbox"][1], entry["bbox"][0], *entry["bbox"][3:1:-1]] for entry in entries]
        pixels = rows[:, 1:5] * np.tile(label[0, -2:], 2)
        pixels[:, 2:] -= pixels[:, :2]
        np.testing.assert_allclose(pixels, np.reshape(expected, (-1, 4)), atol=1e-9)
        assert [entry["iscrowd"] for entry in entries] == rows[:, 5].tolist()
        assert [entry["area"] for entry in entries] == rows[:, 6].tolist()
        assert [(entry["category_id"] - 5) / 2 for entry in entries] == rows[:, 0].tolist()


def small_scenes(count, channels=3):
    rng = np.random.default_rng(1)
    return [
        make_scene(rng, digit_patches(slice(0, 50)), (40, 48), 2, (10, 20), channels=channels) for _ in range(count)
    ]


def load(path, **settings):
    return tfq.load_split(tfq.DataConfig(source=f"coco:{path}", **settings), "test")


def test_images_are_those_that_were_written(tmp_path):
    scenes = small_scenes(5)
    split = load(write_coco(scenes, tmp_path))
    assert np.array_equal(split.inputs["x"], np.stack([scene.image for scene in scenes]))
    stream = load(tmp_path / "scenes.json", resize=(16, 16), max_memory_mb=1)
    assert stream.sha256() == load(tmp_path / "scenes.json", resize=(16, 16)).sha256()


def test_grayscale_images_get_three_channels_among_color_images(tmp_path):
    scenes = small_scenes(3)
    write_coco(scenes, tmp_path)
    Image.fromarray(scenes[1].image[..., 0]).save(tmp_path / "scenes" / "00001.png")
    images = load(tmp_path / "scenes.json").inputs["x"]
    assert np.array_equal(images[1], np.repeat(scenes[1].image[..., :1], 3, axis=2))
    assert load(write_coco(small_scenes(2, channels=1), tmp_path, "gray")).inputs["x"].shape == (2, 40, 48, 1)


def test_images_that_do_not_fit_the_file_are_errors(tmp_path):
    path = write_coco(small_scenes(3), tmp_path)
    image = tmp_path / "scenes" / "00002.png"
    Image.open(image).resize((40, 48)).save(image)
    with pytest.raises(tfq.InputError) as caught:
        load(path)
    assert (caught.value.expected, caught.value.got) == ((40, 48), (48, 40))
    image.write_bytes(b"no image")
    with pytest.raises(tfq.InputError, match=r"00002\.png"):
        load(path)
    different = [
        *small_scenes(2),
        make_scene(np.random.default_rng(0), digit_patches(slice(0, 9)), (50, 50), 1, (9, 9)),
    ]
    with pytest.raises(tfq.InputError) as caught:
        load(write_coco(different, tmp_path, "different"))
    assert caught.value.field == "data.resize"


def test_a_split_in_the_name_selects_the_file(tmp_path):
    write_coco(small_scenes(20), tmp_path, "instances_train")
    write_coco(small_scenes(4), tmp_path, "instances_test")
    config = tfq.DataConfig(source=f"coco:{tmp_path}/instances_{{split}}.json")
    assert [tfq.load_split(config, split).num_examples for split in ("train", "val", "test")] == [18, 2, 4]


def test_suppression_equals_tensorflow():
    boxes = np.asarray([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.45], [0.3, 0.3, 0.9, 0.8], [0.6, 0.2, 0.8, 0.4]])
    scores = np.asarray([0.9, 0.8, 0.8, 0.3])
    import tensorflow as tf

    for threshold in (0.2, 0.5, 0.95):
        kept = tf.image.non_max_suppression(boxes, scores, 10, threshold).numpy()
        assert tfq.non_max_suppression(boxes, scores, iou_threshold=threshold).tolist() == kept.tolist()

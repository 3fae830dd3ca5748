# SPDX-License-Identifier: Apache-2.0
"""The detector of models/: its shapes, what it is trained with, and the whole way from training to a bundle."""

import re

import numpy as np
import pytest
from coco_oracle import evaluate
from detection_scenes import digit_patches, make_scene, write_coco

import tfq
from tfq import models
from tfq.data.box_labels import pad_boxes
from tfq.evaluation import reference_outputs
from tfq.keras_bridge import deterministic, import_keras, import_tf_keras
from tfq.models.grid_detector import box_loss, cell_centers, grid_targets, score_loss

KINDS = {"tf_keras": import_tf_keras, "keras": import_keras}


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_has_the_shapes_and_parameters_of_its_docstring(kind):
    model = models.build("grid_detector", KINDS[kind]())
    statistics = sum(int(np.prod(weight.shape)) for weight in model.non_trainable_weights)
    numbers = f"{model.count_params():,} parameters, of which {statistics:,} are moving statistics"
    assert numbers in re.sub(r"\s+", " ", models.build_grid_detector.__doc__)
    boxes, scores = (np.asarray(output) for output in model(np.zeros((2, 64, 64, 3), "float32")))
    assert boxes.shape == (2, 64, 4) and scores.shape == (2, 64, 10)
    assert scores.min() >= 0 and scores.max() <= 1


def test_cells_in_the_middle_of_a_box_predict_it():
    large, small, crowd = [3, 0.0, 0.0, 1.0, 1.0, 0, 9], [5, 0.5, 0.5, 0.6, 0.6, 0, 9], [7, 0, 0, 0.2, 0.2, 1, 9]
    labels = pad_boxes([np.asarray([small, large, crowd], float), np.zeros((0, 7))], 4, [(64, 64)] * 2)
    boxes, scores = grid_targets(labels)
    classes = np.where(scores.any(axis=2), scores.argmax(axis=2), -1)[0].reshape(8, 8)
    expected = np.full((8, 8), -1)
    expected[2:6, 2:6] = 3
    expected[4, 4] = 5
    assert classes.tolist() == expected.tolist()
    np.testing.assert_allclose(boxes[0, 4 * 8 + 4], [0.5, 0.5, 0.6, 0.6, 1])
    assert not boxes[1].any() and not scores[1].any()
    np.testing.assert_allclose(cell_centers(64, 64)[8 * 4 + 4], np.full(4, 4.5 / 8))


def test_losses_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    targets = np.zeros((1, 3, 5), np.float32)
    targets[0, 1] = [0.2, 0.2, 0.6, 0.6, 1]
    boxes = np.asarray([[[0, 0, 1, 1], [0.2, 0.2, 0.6, 0.4], [0, 0, 1, 1]]], np.float32)
    assert float(box_loss(targets, boxes)[0]) == pytest.approx((1 - 0.5 + 10 * 0.2 / 4) / 2, abs=1e-4)
    classes, scores = np.eye(4, dtype=np.float32)[[[0, 2]]] * [[[1], [0]]], rng.uniform(0.1, 0.9, (1, 2, 4))
    expected = 0.0
    for is_class, score in zip(classes.ravel(), scores.ravel(), strict=True):
        expected += -0.25 * (1 - score) ** 2 * np.log(score) if is_class else -0.75 * score**2 * np.log(1 - score)
    result = score_loss(classes.astype(np.float32), scores.astype(np.float32))
    assert float(result[0]) == pytest.approx(expected / 2, rel=1e-5)


@pytest.mark.slow
def test_a_detector_goes_the_whole_way(tmp_path):
    """Train, convert, verify, evaluate and search by mAP, export; mAP of both models equals pycocotools'."""
    patches = [patch for patch in digit_patches() if patch.label < 2]
    rng = np.random.default_rng(0)
    for split, count in (("train", 192), ("val", 40), ("test", 60)):
        scenes = [make_scene(rng, patches, (32, 32), 1 + index % 2, (14, 24)) for index in range(count)]
        write_coco(scenes, tmp_path, f"instances_{split}")
    data = tfq.DataConfig(source=f"coco:{tmp_path}/instances_{{split}}.json", scale=1 / 255)
    train, val, test = (tfq.load_split(data, split) for split in ("train", "val", "test"))
    keras = import_keras()
    targets = dict(zip(("boxes", "scores"), grid_targets(train.labels, (32, 32, 3), 2), strict=True))
    with deterministic(0):
        model = models.build_grid_detector(keras, (32, 32, 3), 2)
        model.compile(keras.optimizers.Adam(5e-3), {"boxes": box_loss, "scores": score_loss})
        # Small batches: with fewer than 250 steps, the mAP is so low that int8 and float hardly differ.
        model.fit(train.inputs["x"], targets, batch_size=16, epochs=24, verbose=0)
    floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    int8 = tfq.convert(model, train.take(100))
    assert tfq.audit(int8).scheme == "full_int8"

    config = tfq.EvaluationConfig(metric=("coco_map", "coco_ap50"), num_runs=0)
    record = tfq.evaluate(int8, test, config, reference=floating)
    scores = record.metrics["coco_map"]
    assert scores["reference"] > 0.1 and record.accuracy == scores["value"] > 0.05
    differing = record.differing_examples
    assert differing["kind"] == "boxes" and 0.5 < differing["agreement"] < 1
    assert all(item["picture"] for item in differing["examples"]) and differing["examples"]
    assert scores["difference"]["method"] == "bootstrap"
    assert scores["difference"]["low"] <= scores["difference"]["difference"] <= scores["difference"]["high"]
    for content, value in ((int8, scores["value"]), (floating, scores["reference"])):
        found = tfq.decode_raw(*reference_outputs(content, test).outputs)
        # To a millionth of a pixel, as coco_map does: boxes of int8 can reach a threshold of the IoU exactly.
        pixels = np.round(32 * found.boxes, 6)
        rows = [
            [
                (int(number), [box[1], box[0], box[3] - box[1], box[2] - box[0]], float(score))
                for box, score, number in zip(*image, strict=True)
                if number >= 0
            ]
            for image in zip(pixels, found.scores, found.classes, strict=True)
        ]
        oracle = evaluate(tmp_path / "instances_test.json", rows)
        assert value == pytest.approx(oracle.stats[0], abs=1e-6)

    budget = tfq.BudgetConfig(max_accuracy_drop=0.3)
    search = tfq.SearchConfig(metric="coco_map", methods=("percentile",), max_mixed_layers=0, budget=budget)
    result = tfq.find_int8(floating, train, val, test, search)
    assert result.holds and result.to_dict()["criterion"]["metric"] == "coco_map"
    assert result.test_float_accuracy == pytest.approx(scores["reference"])
    bundle = tfq.export_bundle(result.content, tfq.ExportConfig(platform=("micro",)), out=tmp_path / "app", data=data)
    assert (tmp_path / "app" / "bundle").is_dir()
    bundle.check()

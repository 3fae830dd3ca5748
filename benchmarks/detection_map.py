#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare tfq's COCO mAP with pycocotools on generated scenes: digits and small photos on canvases.

    python benchmarks/detection_map.py --photos='tfrecord:cifar10/cifar10-*' [--scenes=500] [--seed=0]

The scenes are written as a COCO annotation file with images. pycocotools reads the file, and tfq reads file and images
through the source coco. A tenth of the scenes is empty, a fifth is crowded, a tenth of the boxes are crowds, and the
scores of the simulated detections have ties. Compared are COCO's twelve figures and the AP of each class. The script
then times the paired bootstrap of two detectors. The exit code is 1 if a difference exceeds 1e-6.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from coco_oracle import as_outputs, class_precision, evaluate, twelve  # noqa: E402
from detection_scenes import (  # noqa: E402
    digit_patches,
    photo_patches,
    simulated_detections,
    varied_scenes,
    write_coco,
)

import tfq  # noqa: E402
from tfq.evaluation.metric import as_metric  # noqa: E402

MOST_DIFFERENCE = 1e-6
NUM_PHOTOS = 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="data source of photos with class numbers")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    photos = tfq.load_split(tfq.DataConfig(source=flags.photos), "test", limit=NUM_PHOTOS)
    assert isinstance(photos, tfq.Split) and photos.labels is not None
    patches = digit_patches() + photo_patches(photos.inputs["x"], photos.labels)
    scenes = varied_scenes(flags.scenes, patches, flags.seed)
    detections = simulated_detections(scenes, flags.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write_coco(scenes, Path(folder))
        start = time.time()
        oracle = evaluate(path, detections)
        oracle_secs = time.time() - start
        labels = tfq.load_split(tfq.DataConfig(source=f"coco:{path}", resize=(32, 32)), "test").all_labels()
    assert labels is not None
    metric = as_metric("coco_map")
    assert metric is not None
    start = time.time()
    outputs = as_outputs(detections, labels)
    table = metric.table_of(metric.state_of(outputs, labels))
    secs = time.time() - start
    assert table is not None
    ours, theirs = table.values[0, :12], twelve(oracle)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    by_class = class_precision(oracle)
    assert [row for row in table.rows if row != "all"] == [str(number) for number in by_class]
    differences = [np.nanmax(np.abs(ours - theirs)), np.abs(table.values[1:, 0] - list(by_class.values())).max()]
    num_boxes, num_found = sum(len(scene.boxes) for scene in scenes), sum(map(len, detections))
    print(f"{flags.scenes} scenes, {num_boxes:,} labeled boxes, {num_found:,} detections, {len(by_class)} classes")
    for name, own, other in zip(table.columns, ours, theirs, strict=False):
        print(f"{name:6} {own:.12f} {other:.12f}")
    print(f"largest difference: {differences[0]:.2g} of the twelve figures, {differences[1]:.2g} of the AP of a class")
    print(f"matching and figures: tfq {secs:.1f} s, pycocotools {oracle_secs:.1f} s")
    measure = metric.resampler(outputs, labels)
    assert measure is not None
    rng, start = np.random.default_rng(0), time.time()
    for _ in range(100):
        measure(np.bincount(rng.integers(0, flags.scenes, flags.scenes), minlength=flags.scenes))
    print(f"1,000 draws of a bootstrap of one model: {10 * (time.time() - start):.1f} s")
    return int(max(differences) > MOST_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())

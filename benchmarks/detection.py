#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a small detector and take it the whole way: convert, verify, evaluate and search by COCO mAP, export.

    nice python benchmarks/detection.py --out=out/detection [--scenes=6000] [--epochs=40] [--test_scenes=500]

The scenes are 64x64 canvases with up to four handwritten digits of 16 to 40 pixels, drawn by
tests/detection_scenes.py, as COCO annotation files with images; the digits of the test scenes are not in the others.
`grid_detector` is trained on them (one core of an x86 with AVX-512: 6 s for an epoch of 6,000 scenes). A killed run
resumes with the trained model. The exit code is 1 if a step fails, or if the plain int8 file loses more than
MAX_DROP of mAP. Prints the table of docs/detection.md.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from detection_scenes import Patch, digit_patches, make_scene, write_coco  # noqa: E402
from whole_way import Task, difference_text, run  # noqa: E402

import tfq  # noqa: E402
from tfq.models.grid_detector import box_loss, build_grid_detector, grid_targets, score_loss  # noqa: E402

SIZE, SIDES, MOST_OBJECTS = (64, 64), (16, 40), 4
METRICS = ("coco_map", "coco_ap50", "coco_ap75")
MAX_DROP = 0.05
# The files that are compared: name -> what differs from the defaults.
CONVERSIONS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8, float outputs": {"inference_output_type": "float32"},
    "int8, the boxes in float": {"inference_output_type": "float32", "float_layers": ("boxes",)},
    "int16x8": {"scheme": "int16x8"},
}


def write_scenes(folder: Path, split: str, count: int, patches: list[Patch], seed: int) -> None:
    """Write COCO files of `count` scenes, unless they are there."""
    if (folder / f"instances_{split}.json").exists():
        return
    rng = np.random.default_rng(seed)
    scenes = [make_scene(rng, patches, SIZE, int(rng.integers(0, MOST_OBJECTS + 1)), SIDES) for _ in range(count)]
    write_coco(scenes, folder, f"instances_{split}")


def write_data(folder: Path, num_scenes: int, num_test: int) -> tfq.DataConfig:
    """Write the three splits, and return their source."""
    known, unseen = digit_patches(slice(0, 1300)), digit_patches(slice(1300, None))
    write_scenes(folder, "train", num_scenes, known, 0)
    write_scenes(folder, "val", num_test, known, 1)
    write_scenes(folder, "test", num_test, unseen, 2)
    return tfq.DataConfig(source=f"coco:{folder}/instances_{{split}}.json", scale=1 / 255)


def train(data: tfq.DataConfig, epochs: int, batch_size: int = 32) -> Any:
    """Return the trained model."""
    from tfq.keras_bridge import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(0)
    split = tfq.load_split(data, "train")
    assert isinstance(split, tfq.Split) and split.labels is not None
    images, (boxes, scores) = split.inputs["x"], grid_targets(split.labels)
    model = build_grid_detector(keras)
    steps = epochs * -(-len(images) // batch_size)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, steps)
    model.compile(optimizer=keras.optimizers.Adam(rate), loss={"boxes": box_loss, "scores": score_loss})
    start = time.time()
    targets = {"boxes": boxes, "scores": scores}
    model.fit(images, targets, batch_size=batch_size, epochs=epochs, verbose=2)
    print(f"trained {epochs} epochs of {len(images):,} scenes in {time.time() - start:.0f} s")
    # Only the weights of the trained model are needed: custom losses are code.
    plain = build_grid_detector(keras)
    plain.set_weights(model.get_weights())
    return plain


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| file | bytes | mAP | difference | AP50 | AP75 |\n|---|---|---|---|---|---|")
    for row in rows:
        values = row["metrics"]
        cells = " | ".join(f"{values[metric]['value']:.4f}" for metric in METRICS[1:])
        text = difference_text(values["coco_map"]["difference"])
        print(f"| {row['file']} | {row['bytes']:,} | {values['coco_map']['value']:.4f} | {text} | {cells} |")


if __name__ == "__main__":
    sys.exit(
        run(
            Task(
                name="detector",
                description=str(__doc__),
                write_data=write_data,
                train=train,
                metrics=METRICS,
                max_drop=MAX_DROP,
                conversions=CONVERSIONS,
                print_tables=print_table,
                scenes=6000,
                epochs=40,
            )
        )
    )

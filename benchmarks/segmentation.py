#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a small U-Net and take it the whole way: convert, verify, evaluate and search by mean IoU, export.

    nice python benchmarks/segmentation.py --out=out/segmentation [--scenes=2000] [--epochs=15] [--test_scenes=500]

The scenes are 32x32 canvases with one or two handwritten digits and noise, drawn by tests/segmentation_scenes.py into a
folder of images and palette masks; the borders of digits have no label (255), and the digits of the test scenes are not
in the others. A killed run resumes with the trained model. The exit code is 1 if a step fails, or if the int8 file
loses more than MAX_DROP of mean IoU. Prints the tables of docs/segmentation.md.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from segmentation_scenes import UNLABELED, write  # noqa: E402
from whole_way import Task, difference_text, run  # noqa: E402

import tfq  # noqa: E402
from tfq.compression.training import train_model  # noqa: E402
from tfq.models import build_small_unet  # noqa: E402

METRICS = ("mean_iou", "dice", "pixel_accuracy")
MAX_DROP = 0.01
# The files that are compared: name -> what differs from the defaults.
CONVERSIONS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8, per tensor": {"per_channel": False},
    "int16x8": {"scheme": "int16x8"},
}


def write_data(folder: Path, num_scenes: int, num_test: int) -> tfq.DataConfig:
    """Write the three splits unless they are there, and return their source."""
    if not (folder / "classes.txt").exists():
        write(folder, {"train": num_scenes, "val": num_test, "test": num_test})
    return tfq.DataConfig(source=f"masks:{folder}", scale=1 / 255, ignore_label=UNLABELED)


def train(data: tfq.DataConfig, epochs: int) -> Any:
    """Return the trained model."""
    from tfq.keras_bridge import deterministic, import_keras

    keras = import_keras()
    with deterministic(0):
        model = build_small_unet(keras)
    start = time.time()
    config = tfq.TrainConfig(epochs=epochs, batch_size=32, learning_rate=4e-3)
    history = train_model(model, tfq.load_split(data, "train"), tfq.load_split(data, "val"), config)
    print(f"trained {epochs} epochs in {time.time() - start:.0f} s, val accuracy {history['val_accuracy'][-1]:.4f}")
    return model


def print_tables(rows: list[dict[str, Any]]) -> None:
    print("| file | bytes | mean IoU | difference | Dice | pixel accuracy | agreement |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        values = row["metrics"]
        text = difference_text(values["mean_iou"]["difference"])
        agreement = "" if row["agreement"] is None else f"{row['agreement']:.2%}"
        cells = f"{values['dice']['value']:.4f} | {values['pixel_accuracy']['value']:.2%} | {agreement}"
        print(f"| {row['file']} | {row['bytes']:,} | {values['mean_iou']['value']:.4f} | {text} | {cells} |")
    tables = [row["metrics"]["mean_iou"]["table"] for row in rows[:2]]
    print("\n| class | pixels | IoU, float32 | IoU, int8 |\n|---|---|---|---|")
    for index, name in enumerate(tables[0]["rows"]):
        values = [dict(zip(table["columns"], table["values"][index], strict=True)) for table in tables]
        shown = ["" if value["IoU"] is None else f"{value['IoU']:.4f}" for value in values]
        print(f"| {name} | {values[0]['pixels']:,.0f} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    sys.exit(
        run(
            Task(
                name="segmenter",
                description=str(__doc__),
                write_data=write_data,
                train=train,
                metrics=METRICS,
                max_drop=MAX_DROP,
                conversions=CONVERSIONS,
                print_tables=print_tables,
                scenes=2000,
                epochs=15,
            )
        )
    )

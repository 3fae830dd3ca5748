#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a small U-Net and take it the whole way: convert, verify, evaluate and search by mean IoU, export.

    nice python benchmarks/segmentation.py --out=out/segmentation [--scenes=2000] [--epochs=15] [--test_scenes=500]

The scenes are 32x32 canvases with one or two handwritten digits and noise, drawn by tests/segmentation_scenes.py into a
folder of images and palette masks; the borders of digits have no label (255), and the digits of the test scenes are not
in the others. A killed run resumes with the trained model. The exit code is 1 if a step fails, or if the int8 file
loses more than MAX_DROP of mean IoU. Prints the tables of docs/segmentation.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from segmentation_scenes import UNLABELED, write  # noqa: E402

import tfq  # noqa: E402
from tfq.artifacts import make_out_dir, write_bytes, write_json  # noqa: E402
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


def train(data: tfq.DataConfig, epochs: int, path: Path) -> Any:
    """Return the trained model; it is read from `path` if that exists."""
    from tfq.keras_bridge import deterministic, import_keras

    if path.exists():
        return tfq.load_model(path)
    keras = import_keras()
    with deterministic(0):
        model = build_small_unet(keras)
    start = time.time()
    config = tfq.TrainConfig(epochs=epochs, batch_size=32, learning_rate=4e-3)
    history = train_model(model, tfq.load_split(data, "train"), tfq.load_split(data, "val"), config)
    print(f"trained {epochs} epochs in {time.time() - start:.0f} s, val accuracy {history['val_accuracy'][-1]:.4f}")
    model.save(path)
    return model


def convert(model: Any, data: tfq.DataConfig, out: Path) -> dict[str, bytes]:
    """Return the flatbuffers of all conversions; each is verified as it is converted."""
    samples = tfq.load_split(data, "train", limit=200)
    files = {"float32": tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))}
    for name, settings in CONVERSIONS.items():
        files[name] = tfq.convert(model, samples, config=tfq.ConversionConfig(**settings))
    for name, content in files.items():
        write_bytes(out / f"segmenter_{name.replace(', ', '_').replace(' ', '_')}.tflite", content)
        print(f"{name}: {len(content):,} bytes, scheme {tfq.audit(content).scheme}", flush=True)
    return files


def evaluate(files: dict[str, bytes], data: tfq.DataConfig) -> list[dict[str, Any]]:
    """Return a row for each file: its metrics, and their paired differences from the float file."""
    test, config = tfq.load_split(data, "test"), tfq.EvaluationConfig(metric=METRICS, num_runs=0)
    rows = []
    for name, content in files.items():
        record = tfq.evaluate(content, test, config, reference=None if name == "float32" else files["float32"])
        metrics = {metric: record.metrics[metric] for metric in METRICS}
        rows.append({"file": name, "bytes": len(content), "metrics": metrics, "agreement": record.agreement})
    return rows


def print_tables(rows: list[dict[str, Any]], num_scenes: int) -> None:
    print(
        f"\n{num_scenes:,} test scenes\n\n| file | bytes | mean IoU | difference | Dice | pixel accuracy | agreement |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        values, difference = row["metrics"], row["metrics"]["mean_iou"]["difference"]
        text = "" if difference is None else "{difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**difference)
        agreement = "" if row["agreement"] is None else f"{row['agreement']:.2%}"
        cells = f"{values['dice']['value']:.4f} | {values['pixel_accuracy']['value']:.2%} | {agreement}"
        print(f"| {row['file']} | {row['bytes']:,} | {values['mean_iou']['value']:.4f} | {text} | {cells} |")
    tables = [row["metrics"]["mean_iou"]["table"] for row in rows[:2]]
    print("\n| class | pixels | IoU, float32 | IoU, int8 |\n|---|---|---|---|")
    for index, name in enumerate(tables[0]["rows"]):
        values = [dict(zip(table["columns"], table["values"][index], strict=True)) for table in tables]
        shown = ["" if value["IoU"] is None else f"{value['IoU']:.4f}" for value in values]
        print(f"| {name} | {values[0]['pixels']:,.0f} | {' | '.join(shown)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--test_scenes", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=15)
    flags = parser.parse_args()
    out = make_out_dir(flags.out)
    data = write_data(out / "data", flags.scenes, flags.test_scenes)
    model = train(data, flags.epochs, out / "segmenter.keras")
    files = convert(model, data, out)
    rows = evaluate(files, data)
    print_tables(rows, flags.test_scenes)
    search_config = tfq.SearchConfig(budget=tfq.BudgetConfig(max_accuracy_drop=MAX_DROP), metric="mean_iou")
    train_split, val_split, test_split = (tfq.load_split(data, split) for split in ("train", "val", "test"))
    result = tfq.find_int8(files["float32"], train_split, val_split, test_split, search_config, progress=print)
    print(result.to_text())
    export_config = tfq.ExportConfig(platform=("linux",))
    bundle = tfq.export_bundle(result.content, export_config, out=out, data=data, name="segmenter")
    bundle.check()
    write_json(out / "results.json", {"files": rows, "search": result.to_dict()})
    return int(rows[0]["metrics"]["mean_iou"]["value"] - rows[1]["metrics"]["mean_iou"]["value"] > MAX_DROP)


if __name__ == "__main__":
    sys.exit(main())

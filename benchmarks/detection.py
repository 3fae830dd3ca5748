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

import argparse
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

import tfq  # noqa: E402
from tfq.artifacts import make_out_dir, write_bytes, write_json  # noqa: E402
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


def train(data: tfq.DataConfig, epochs: int, path: Path, batch_size: int = 32) -> Any:
    """Return the trained model; it is read from `path` if that exists."""
    from tfq.keras_bridge import import_keras

    if path.exists():
        return tfq.load_model(path)
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
    plain.save(path)
    return plain


def convert(model: Any, data: tfq.DataConfig, out: Path) -> dict[str, bytes]:
    """Return the flatbuffers of all conversions; each is verified as it is converted."""
    samples = tfq.load_split(data, "train", limit=200)
    files = {"float32": tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))}
    for name, settings in CONVERSIONS.items():
        files[name] = tfq.convert(model, samples, config=tfq.ConversionConfig(**settings))
    for name, content in files.items():
        write_bytes(out / f"detector_{name.replace(', ', '_').replace(' ', '_')}.tflite", content)
        report = tfq.audit(content)
        print(f"{name}: {len(content):,} bytes, scheme {report.scheme}")
    return files


def evaluate(files: dict[str, bytes], data: tfq.DataConfig) -> list[dict[str, Any]]:
    """Return a row for each file: its metrics, and their paired differences from the float file."""
    test, config = tfq.load_split(data, "test"), tfq.EvaluationConfig(metric=METRICS, num_runs=0)
    reference = tfq.reference_outputs(files["float32"], test, config)
    rows = []
    for name, content in files.items():
        record = tfq.evaluate(content, test, config, reference=None if name == "float32" else reference)
        metrics = {metric: record.metrics[metric] for metric in METRICS}
        rows.append({"file": name, "bytes": len(content), "metrics": metrics})
    return rows


def print_table(rows: list[dict[str, Any]], num_scenes: int) -> None:
    print(
        f"\n{num_scenes:,} test scenes\n\n| file | bytes | mAP | difference | AP50 | AP75 |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        values, difference = row["metrics"], row["metrics"]["coco_map"]["difference"]
        text = "" if difference is None else "{difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**difference)
        cells = " | ".join(f"{values[metric]['value']:.4f}" for metric in METRICS[1:])
        print(f"| {row['file']} | {row['bytes']:,} | {values['coco_map']['value']:.4f} | {text} | {cells} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--test_scenes", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=40)
    flags = parser.parse_args()
    out = make_out_dir(flags.out)
    data = write_data(out / "data", flags.scenes, flags.test_scenes)
    model = train(data, flags.epochs, out / "detector.keras")
    files = convert(model, data, out)
    rows = evaluate(files, data)
    print_table(rows, flags.test_scenes)
    search_config = tfq.SearchConfig(budget=tfq.BudgetConfig(max_accuracy_drop=MAX_DROP), metric="coco_map")
    known, choosing, unseen = (tfq.load_split(data, split) for split in ("train", "val", "test"))
    result = tfq.find_int8(files["float32"], known, choosing, unseen, search_config, progress=print)
    print(result.to_text())
    bundle = tfq.export_bundle(
        result.content, tfq.ExportConfig(platform=("linux",)), out=out, data=data, name="detector"
    )
    bundle.check()
    write_json(out / "results.json", {"files": rows, "search": result.to_dict()})
    drop = rows[0]["metrics"]["coco_map"]["value"] - rows[1]["metrics"]["coco_map"]["value"]
    return int(drop > MAX_DROP)


if __name__ == "__main__":
    sys.exit(main())

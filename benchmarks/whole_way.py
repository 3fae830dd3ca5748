# SPDX-License-Identifier: Apache-2.0
"""Take a small model the whole way: train, convert, verify, evaluate, search by a metric, and export.

detection.py and segmentation.py say what is trained on which data, and how the results are printed. A killed run
resumes with the data and the trained model.
"""

import argparse
import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tfq
from tfq.artifacts import make_out_dir, write_bytes, write_json

FLOAT = "float32"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data and its metrics.

    Attributes:
        name: What the model is, for the names of its files.
        description: For --help.
        write_data: (folder, train scenes, test scenes) -> the data; writes it unless it is there.
        train: (data, epochs) -> a trained model.
        metrics: The metrics of the evaluation. The search uses the first.
        max_drop: How much of the first metric int8 may lose.
        conversions: The files that are compared with float32, int8 first: name -> what differs from the defaults.
        print_tables: (rows of the files) prints the result.
        scenes: The default number of train scenes.
        epochs: The default number of epochs.
    """

    name: str
    description: str
    write_data: Callable[[Path, int, int], tfq.DataConfig]
    train: Callable[[tfq.DataConfig, int], Any]
    metrics: tuple[str, ...]
    max_drop: float
    conversions: Mapping[str, Mapping[str, Any]]
    print_tables: Callable[[list[dict[str, Any]]], None]
    scenes: int
    epochs: int


def run(task: Task) -> int:
    """Run a task with the flags of the command line; return 1 if int8 loses too much, else 0."""
    parser = argparse.ArgumentParser(description=task.description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--scenes", type=int, default=task.scenes)
    parser.add_argument("--test_scenes", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=task.epochs)
    flags = parser.parse_args()
    out = make_out_dir(flags.out)
    data = task.write_data(out / "data", flags.scenes, flags.test_scenes)
    path = out / f"{task.name}.keras"
    if not path.exists():
        task.train(data, flags.epochs).save(path)
    files = _convert(task, tfq.load_model(path), data, out)
    rows = _evaluate(task, files, data, out)
    print(f"\n{flags.test_scenes:,} test scenes\n")
    task.print_tables(rows)
    search = _search_and_export(task, files[FLOAT], data, out)
    write_json(out / "results.json", {"files": rows, "search": search})
    values = [row["metrics"][task.metrics[0]]["value"] for row in rows[:2]]
    return int(values[0] - values[1] > task.max_drop)


def _convert(task: Task, model: Any, data: tfq.DataConfig, out: Path) -> dict[str, bytes]:
    """Return the flatbuffers of all conversions; each is verified as it is converted."""
    samples = tfq.load_split(data, "train", limit=200)
    files = {FLOAT: tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))}
    for name, settings in task.conversions.items():
        files[name] = tfq.convert(model, samples, config=tfq.ConversionConfig(**settings))
    for name, content in files.items():
        write_bytes(out / f"{task.name}_{name.replace(', ', '_').replace(' ', '_')}.tflite", content)
        print(f"{name}: {len(content):,} bytes, scheme {tfq.audit(content).scheme}", flush=True)
    return files


def _evaluate(task: Task, files: Mapping[str, bytes], data: tfq.DataConfig, out: Path) -> list[dict[str, Any]]:
    """Return a row for each file: its metrics, and their paired differences from the float file."""
    test, config = tfq.load_split(data, "test"), tfq.EvaluationConfig(metric=task.metrics, num_runs=0)
    reference = tfq.reference_outputs(files[FLOAT], test, config)
    rows = []
    for name, content in files.items():
        record = tfq.evaluate(content, test, config, reference=None if name == FLOAT else reference)
        metrics = {metric: record.metrics[metric] for metric in task.metrics}
        rows.append({"file": name, "bytes": len(content), "metrics": metrics, "agreement": record.agreement})
        if name == "int8" and record.differing_examples is not None:
            _write_pictures(record.differing_examples["examples"][:3], out / "differences.png")
    return rows


def _write_pictures(examples: list[dict[str, Any]], path: Path) -> None:
    """Write the pictures of examples below each other."""
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(item["picture"])))) for item in examples]
    gap = np.full((4, *pictures[0].shape[1:]), 255, np.uint8)
    stacked = np.concatenate([part for picture in pictures for part in (gap, picture)][1:])
    Image.fromarray(stacked).save(path, optimize=True)


def _search_and_export(task: Task, floating: bytes, data: tfq.DataConfig, out: Path) -> dict[str, Any]:
    """Search for the cheapest int8 file, export it as an app bundle, check that, and return the search's record."""
    config = tfq.SearchConfig(budget=tfq.BudgetConfig(max_accuracy_drop=task.max_drop), metric=task.metrics[0])
    known, choosing, unseen = (tfq.load_split(data, split) for split in ("train", "val", "test"))
    result = tfq.find_int8(floating, known, choosing, unseen, config, progress=print)
    print(result.to_text())
    export = tfq.ExportConfig(platform=("linux",))
    tfq.export_bundle(result.content, export, out=out, data=data, name=task.name).check()
    return result.to_dict()


def difference_text(difference: Mapping[str, float] | None) -> str:
    """Return a paired difference with its 95% interval, for a table; "" for None."""
    return "" if difference is None else "{difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**difference)

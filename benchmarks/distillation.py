#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a small CNN on CIFAR-10 with and without a larger teacher of another architecture, and compare the two.

    python benchmarks/distillation.py '--data=tfrecord:cifar10/cifar10-*' --teacher=resnet8.h5 --out=out/distillation
        [--model=digits_cnn] [--train_examples=10000] [--epochs=10] [--seeds=0,1] [--teacher_scale=255]

The student trains on the first --train_examples images, scaled to 0..1; --teacher_scale undoes that for the teacher.
Each row is a seed: the accuracy of the int8 flatbuffer (post-training) of the student alone and of the taught one on
the test split, and their difference with its paired 95% interval (Tango 1998). The last row has the mean over the
seeds, with an interval over examples and seeds. Each training is a JSON file in --out; a killed run resumes if started
with the same flags.
"""

import argparse
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfq
from tfq import workflows
from tfq.artifacts import make_out_dir, write_json
from tfq.config import TeacherConfig, TrainingConfig
from tfq.evaluation.paired import paired_difference
from tfq.sweep import seed_difference


def arrays(arguments: argparse.Namespace, out: Path) -> tfq.DataConfig:
    """Return the data of all trainings: part of the train split, and the whole test split, in one file."""
    path = out / f"examples_{arguments.train_examples}.npz"
    if not path.exists():
        source = tfq.DataConfig(source=arguments.data)
        train = tfq.load_split(source, "train", limit=arguments.train_examples)
        test = tfq.load_split(source, "test")
        parts = {"train": train, "test": test}
        values: dict[str, Any] = {f"y_{name}": split.all_labels() for name, split in parts.items()}
        for name, split in parts.items():
            values[f"x_{name}"] = np.concatenate([piece.inputs["x"] for piece in split.pieces()]).astype(np.uint8)
        np.savez(path, **values)
    return tfq.DataConfig(source=f"npz:{path}", scale=1 / 255)


def train(arguments: argparse.Namespace, data: tfq.DataConfig, seed: int, teachers: tuple[str, ...]) -> dict:
    """Return the test accuracies of a student, and whether its int8 flatbuffer classifies each test image correctly."""
    teacher = TeacherConfig(files=teachers, scale=(arguments.teacher_scale,))
    training = TrainingConfig(epochs=arguments.epochs, batch_size=64, teacher=teacher)
    config = tfq.RunConfig(model=arguments.model, data=data, training=training, seed=seed)
    model, details = workflows.train(config)
    test = tfq.load_split(data, "test")
    content = tfq.convert(model, tfq.load_split(data, "train", limit=500))
    correct: list[bool] = []

    def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
        correct.extend((outputs.argmax(axis=1) == labels).tolist())
        return float(np.mean(correct))

    record = tfq.evaluate(content, test, config=tfq.EvaluationConfig(num_runs=0), metric=accuracy)
    return {
        "float": details["test_accuracy"],
        "int8": record.accuracy,
        "bytes": len(content),
        "teachers": details["teachers"],
        "correct": correct,
    }


def kept(path: Path, settings: dict, make: Callable[[], dict]) -> dict:
    """Return the result in a file that was made with the same settings, else make it and write the file."""
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["settings"] == settings:
            return stored
    return json.loads(write_json(path, {"settings": settings, **make()}).read_text())


def points(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="digits_cnn")
    parser.add_argument("--train_examples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--teacher_scale", type=float, default=255.0)
    arguments = parser.parse_args()
    out = make_out_dir(arguments.out)
    data, rows = arrays(arguments, out), []
    for seed in map(int, arguments.seeds.split(",")):
        pair = []
        for name, files in (("alone", ()), ("taught", (arguments.teacher,))):
            settings = {**vars(arguments), "seed": seed, "name": name}
            pair.append(
                kept(out / f"{name}_{seed}.json", settings, functools.partial(train, arguments, data, seed, files))
            )
        rows.append(pair)
    teacher = rows[0][1]["teachers"][0]
    print(f"teacher: {teacher['parameters']:,} parameters, {teacher['accuracy']:.2%} on the val split")
    print(
        "| seed | alone, float | alone, int8 | taught, float | taught, int8 | taught minus alone, int8 (95% interval) |"
    )
    print("|---|---|---|---|---|---|")
    scores = [[np.array(item["correct"]) for item in pair] for pair in rows]
    for seed, (alone, taught), (base, new) in zip(arguments.seeds.split(","), rows, scores, strict=True):
        change = paired_difference(new, base)
        cells = " | ".join(f"{item[key]:.2%}" for item in (alone, taught) for key in ("float", "int8"))
        print(f"| {seed} | {cells} | {points(change.difference)} ({points(change.low)} to {points(change.high)}) |")
    mean = seed_difference([new for _, new in scores], [base for base, _ in scores])
    print(f"mean: {points(mean.difference)} points ({points(mean.low)} to {points(mean.high)})")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure false alarms of the verification of conversions on models without faults, and its cost.

    python benchmarks/verification.py --out=out/verification [--data=tfrecord:cifar10/cifar10-*] [--only=false_alarms]
        [--size=96] [--train_size=48] [--steps=60] [--rounds=5]

False alarms: the fifteen families of keras.applications, each twice: with random weights and a softmax at --size, and
trained for --steps steps at --train_size, with logits; tfq's own models; and, with --models, further files (.keras, .h5
or float .tflite). Each is converted to int8; tfq's own models and the files also to int16x8. None of them is faulty, so
a warning of the verification is a false alarm.

Cost: digits_cnn, ResNet8, MobileNetV2 0.35 @96 and EfficientNetB0 @224 with the verification on and off, alternately in
one process. The bound is 15% of the conversion or 0.3 s, whichever is more.

Each row is a JSON file in --out; a killed run resumes. The exit code is 1 on a false alarm, a miss, or a cost above the
bound. The script takes about 25 minutes on two cores.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from family_matrix import zoo

import tfq
from tfq import artifacts
from tfq.conversion import convert_with_record
from tfq.data import load_split
from tfq.keras_bridge import deterministic, import_keras
from tfq.models import MODELS

SAMPLES = 100
BOUND_FRACTION, BOUND_SECS = 0.15, 0.3
Case = tuple[str, Callable[[], tuple[Any, Any]]]


def random_family(name: str, source: str, size: int) -> tuple[Any, Any]:
    """Return (model, calibration images) of a family with random weights and a softmax."""
    side = zoo.size_of(name, size)
    with deterministic(zoo.SEED):
        model = getattr(import_keras().applications, name)(weights=None, classes=10, input_shape=(side, side, 3))
    return model, images_of(name, source, size)


def trained_family(name: str, source: str, size: int, steps: int) -> tuple[Any, Any]:
    """Return (model, calibration images) of a family that was trained for a few steps, with logits."""
    data = zoo.images(source, "train", name, size, limit=steps * zoo.BATCH_SIZE)
    return zoo.trained(import_keras(), name, data, size, steps), images_of(name, source, size)


def images_of(name: str, source: str, size: int) -> Any:
    split: Any = zoo.images(source, "train", name, size, limit=SAMPLES)
    return next(iter(split.inputs.values()))


def own_model(name: str) -> tuple[Any, Any]:
    with deterministic(0):
        model: Any = MODELS[name](import_keras())
    rng = np.random.default_rng(0)
    shape = model.inputs[0].shape[1:]
    coarse = rng.uniform(0, 1, (SAMPLES, *(max(1, -(-size // 4)) for size in shape[:-1]), shape[-1]))
    smooth = coarse
    for axis, size in enumerate(shape[:-1], start=1):
        smooth = np.repeat(smooth, 4, axis=axis).take(range(size), axis=axis)
    return model, smooth.astype(np.float32)


def alarms(model: Any, samples: Any, scheme: str) -> dict[str, Any]:
    """Convert with verification; return its verdict, and the SQNR of the outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = convert_with_record(model, samples, tfq.ConversionConfig(scheme=scheme), remedies=False)
    verification: Any = result.verification
    outputs = verification.to_dict()["outputs"]
    return {
        "sqnr_db": min((item["sqnr_db"] for item in outputs if item["sqnr_db"] is not None), default=None),
        "ideal_db": min((item["ideal_db"] for item in outputs if item["ideal_db"] is not None), default=None),
        "constant_slices": sum(len(item.constant_slices) for item in verification.outputs),
        "collapsed": [item.message for item in verification.collapsed],
        "notes": [item.kind for item in verification.notes],
    }


def _alarms(built: Callable[[], tuple[Any, Any]], scheme: str) -> dict[str, Any]:
    return alarms(*built(), scheme)


def _cost(make: Callable[[], tuple[Any, Any]], rounds: int) -> dict[str, Any]:
    model, samples = make()
    return cost(model, samples, rounds)


def cost(model: Any, samples: Any, rounds: int) -> dict[str, Any]:
    """Return median seconds with and without verification, measured alternately after one warm-up conversion."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds + 1):
        for verify in (True, False) if number % 2 else (False, True):
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tfq.convert(model, samples, tfq.ConversionConfig(verify=verify))
            if number:
                seconds[verify].append(time.perf_counter() - start)
    on, off = (statistics.median(seconds[verify]) for verify in (True, False))
    return {"on_secs": on, "off_secs": off, "more_secs": on - off, "more_share": (on - off) / off}


def alarm_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for name in zoo.FAMILIES:
        yield f"{name}, softmax, random", partial(random_family, name, arguments.data, arguments.size)
    for name in zoo.FAMILIES:
        yield (
            f"{name}, logits, trained",
            partial(trained_family, name, arguments.data, arguments.train_size, arguments.steps),
        )
    for name in MODELS:
        if name not in zoo.FAMILIES:
            yield f"tfq {name}", partial(own_model, name)
    for path in arguments.models:
        yield Path(path).name, partial(loaded, path, arguments.data)


def loaded(path: str, source: str) -> tuple[Any, Any]:
    model = path if path.endswith(".tflite") else tfq.load_model(path)
    return model, load_split(tfq.DataConfig(source=source), "train", limit=SAMPLES)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row from its file, or measure it now."""
    if not path.exists():
        artifacts.write_json(path, make())
    return json.loads(path.read_text())


def false_alarms(arguments: argparse.Namespace, out: Path) -> int:
    print("| model | scheme | SQNR dB | ideal dB | constant slices | verdict |\n|---|---|---|---|---|---|")
    wrong = total = 0
    for label, make in alarm_cases(arguments):
        built = functools.cache(make)
        for scheme in ("int8",) if label.split(",")[0] in zoo.FAMILIES else ("int8", "int16x8"):
            file = out / f"alarm_{'_'.join(label.replace(',', '').split())}_{scheme}.json"
            record = kept(file, partial(_alarms, built, scheme))
            total, wrong = total + 1, wrong + bool(record["collapsed"])
            verdict = "ALARM: " + record["collapsed"][0] if record["collapsed"] else ", ".join(record["notes"]) or "ok"
            numbers = [f"{record[key]:.1f}" if record[key] is not None else "-" for key in ("sqnr_db", "ideal_db")]
            numbers.append(str(record["constant_slices"]))
            print(f"| {label} | {scheme} | {' | '.join(numbers)} | {verdict} |", flush=True)
    print(f"\n{wrong} alarms on {total} conversions")
    return wrong


def costs(arguments: argparse.Namespace, out: Path) -> int:
    keras = import_keras()
    cases: list[Case] = [
        ("digits_cnn", partial(own_model, "digits_cnn")),
        ("resnet8", partial(own_model, "resnet8")),
        ("MobileNetV2 0.35 @96", partial(applied, keras.applications.MobileNetV2, 96, alpha=0.35)),
        ("EfficientNetB0 @224", partial(applied, keras.applications.EfficientNetB0, 224)),
    ]
    print("\n| model | off s | on s | more s | more | within the bound |\n|---|---|---|---|---|---|")
    missed = 0
    for label, make in cases:
        record = kept(out / f"cost_{'_'.join(label.split())}.json", partial(_cost, make, arguments.rounds))
        holds = record["more_secs"] <= max(BOUND_SECS, BOUND_FRACTION * record["off_secs"])
        missed += not holds
        print(
            f"| {label} | {record['off_secs']:.2f} | {record['on_secs']:.2f} | {record['more_secs']:.2f} | "
            f"{record['more_share']:.1%} | {'yes' if holds else 'NO'} |",
            flush=True,
        )
    return missed


def applied(build: Any, size: int, **options: Any) -> tuple[Any, Any]:
    with deterministic(0):
        model = build(weights=None, input_shape=(size, size, 3), classes=10, **options)
    return model, np.random.default_rng(0).random((SAMPLES, size, size, 3)).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--train_size", type=int, default=48)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--only", choices=("false_alarms", "cost"))
    arguments = parser.parse_args()
    out = artifacts.make_out_dir(arguments.out)
    failed = 0
    if arguments.only != "cost":
        failed += false_alarms(arguments, out)
    if arguments.only != "false_alarms":
        failed += costs(arguments, out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

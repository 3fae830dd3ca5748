#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure quantization-aware training with weights of 4 bits, against equally fine-tuned float and 8 bits.

    python benchmarks/qat_int4.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' --out=out/qat_int4 \\
        [--seeds=0,1,2] [--start_epochs=5] [--epochs=3] [--variants=float,int8,int4,int4_distilled,int4_inner]

For each seed, the float model is fine-tuned for --start_epochs. Every variant, `float` too, starts from this model, and
is trained for --epochs with the same data, steps and augmentation (flips). `int8` and `int4` are trained with fake
quantization and learned activation ranges, `int4` also with learned steps of all weights, and converted.
`int4_distilled` also learns from the outputs of the model that all start from. `int4_inner` does so with 8-bit weights
in the first and the last layer, as LSQ and PACT have them. Each keeps its last epoch, whose learning rate ends at zero.
The accuracy is that of the flatbuffer on the test split. The result of each variant and seed is a JSON file in --out; a
killed run resumes if started with the same flags. The exit code is 1 if every variant of int4 is more than half a point
below float. An epoch over 45,000 images takes about 30 s of CPU time (ResNet8, one core of a quiet machine), and two to
three times that with fake quantization.
"""

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from compression_training import Phase, copied, exit_with, fit_for, kept_record, save_model

import tfq
from tfq.artifacts import make_out_dir, sha256_file, write_bytes, write_json

MAX_DROP = 0.005
# Added to the seed of the second phase, which has other batches than the first.
_SECOND = 1000
DISTILLATION = tfq.DistillationConfig(enabled=True, temperature=3.0, weight=0.9)
# ResNet8's first and last layer.
INNER = ("!conv2d", "!dense")
VARIANTS = {
    "float": None,
    "int8": tfq.QATConfig(range_estimator="lsq"),
    "int4": tfq.QATConfig(range_estimator="lsq", int4_layers=("*",)),
    "int4_distilled": tfq.QATConfig(
        range_estimator="lsq",
        int4_layers=("*",),
        distillation=DISTILLATION,
    ),
    "int4_inner": tfq.QATConfig(range_estimator="lsq", int4_layers=INNER, distillation=DISTILLATION),
}


def fine_tuned(model: Any, splits: dict[str, Any], phase: Phase, seed: int, path: Path) -> Any:
    """Return the float model that the variants of a seed start from; it is trained if it is not at `path`."""
    import tensorflow as tf

    if not path.exists():
        tf.keras.utils.set_random_seed(seed)
        trained = copied(model)
        fit_for(splits, phase, seed, 1, {})(trained, [])
        save_model(trained, path)
    return tfq.load_model(path)


def measured(name: str, start: Any, splits: dict[str, Any], phase: Phase, seed: int, path: Path) -> dict[str, Any]:
    """Train one variant, write its flatbuffer to `path`, and return its record."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    record: dict[str, Any] = {}
    fit, config = fit_for(splits, phase, seed + _SECOND, None, record), VARIANTS[name]
    if config is None:
        trained = copied(start)
        fit(trained, [])
        content = tfq.convert(trained, config=tfq.ConversionConfig(scheme="float32"))
    else:
        content = tfq.convert(tfq.qat(start, fit, config, calibration=splits["train"]))
    write_bytes(path, content)
    accuracy = tfq.evaluate(content, splits["test"], tfq.EvaluationConfig(num_runs=0)).accuracy
    return {**record, "accuracy": accuracy, "bytes": len(content), "scheme": tfq.audit(content).scheme}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--start_epochs", type=int, default=5)
    parser.add_argument("--start_rate", type=float, default=3e-4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--limit", type=int, default=0)
    arguments = parser.parse_args()
    data = tfq.DataConfig(source=arguments.data)
    splits = {name: tfq.load_split(data, name, limit=arguments.limit) for name in ("train", "val", "test")}
    model = tfq.to_tf_keras(tfq.load_model(arguments.model)).model
    first = Phase(epochs=arguments.start_epochs, batch_size=64, learning_rate=arguments.start_rate, shift=0)
    phase = Phase(epochs=arguments.epochs, batch_size=64, learning_rate=arguments.rate, shift=0)
    settings = {
        "model": sha256_file(Path(arguments.model)),
        "data": arguments.data,
        "limit": arguments.limit,
        "phases": [vars(first), vars(phase)],
    }
    out = Path(arguments.out)
    make_out_dir(out)
    scores: dict[str, list[float]] = {}
    print("| variant | seed | accuracy | bytes | scheme |\n|---|---|---|---|---|", flush=True)
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.variants.split(","):
            path = out / f"{name}_{seed}.json"
            record = kept_record(path, settings)
            if record is None:
                start = fine_tuned(model, splits, first, seed, out / f"start_{seed}.h5")
                result = measured(name, start, splits, phase, seed, path.with_suffix(".tflite"))
                write_json(path, record := {"settings": settings, **result})
            scores.setdefault(name, []).append(record["accuracy"])
            print(
                f"| {name} | {seed} | {record['accuracy']:.2%} | {record['bytes']:,} | {record['scheme']} |", flush=True
            )
    drops = {
        name: statistics.mean(scores["float"]) - statistics.mean(values)
        for name, values in scores.items()
        if name.startswith("int4") and "float" in scores
    }
    for name, drop in drops.items():
        print(f"{name} against float: {-100 * drop:+.2f} points (bound {-100 * MAX_DROP:+.2f})")
    return 1 if drops and min(drops.values()) > MAX_DROP else 0


if __name__ == "__main__":
    exit_with(main, __file__)

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure how the compressed forms of a CIFAR-10 classifier degrade when images are corrupted.

    python benchmarks/robustness_resnet8.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' --out=out/resnet8 \\
        [--epochs=2] [--learning_rate=1e-3] [--limit=1000] [--seed=0]

Every model starts from the same weights and trains equally long, on the same batches (random flips), so that none is
better because it saw more data: `float` and its post-training forms `ptq_int8` and `int4` (int4 weights, int8
activations, GPTQ and bias correction) share one fine-tuning; `qat_int8` is trained with fake quantization; and
`pruned80_int8` is pruned to 80% zeros (LAMP) while it trains, then converted with post-training quantization.

Flatbuffers and the record are in --out; a killed run resumes. --limit is the number of test images that are corrupted.
"""

import argparse
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from compression_training import Phase, copied, exit_with, fit_for, kept_record, save_model
from robustness_tables import tables_of

import tfq
from tfq.artifacts import make_out_dir, sha256_file, write_bytes, write_json

MODELS = ("float", "ptq_int8", "qat_int8", "pruned80_int8", "int4")
SPARSITY = 0.8
INT4 = tfq.ConversionConfig(int4_layers=("*",), techniques=("gptq", "bias_correction"))


def train(name: str, model: Any, splits: dict[str, Any], phase: Phase, seed: int) -> tuple[Any, dict[str, Any]]:
    """Return (the trained model, the record of its training) of `float`, `qat` or `pruned80`."""
    from tfq.compression import prune_model, qat_model
    from tfq.compression.training import deterministic

    note: dict[str, Any] = {}
    fit = fit_for(splits, phase, seed, None, note)
    with deterministic(seed):
        if name == "qat":
            return qat_model(model, fit, tfq.QATConfig(), calibration=splits["train"]), note
        if name == "pruned80":
            steps = phase.epochs * math.ceil(splits["train"].num_examples / phase.batch_size)
            asked = tfq.PruneConfig(final_sparsity=SPARSITY, allocation="lamp", end_step=steps // 2)
            return prune_model(model, fit, asked), note
        trained = copied(model)
        fit(trained, [])
        return trained, note


def flatbuffers(name: str, model: Any, splits: dict[str, Any]) -> dict[str, bytes]:
    """Return the flatbuffers of a trained model by name."""
    samples = splits["train"].take(tfq.ConversionConfig().num_calibration_samples)
    if name == "qat":
        return {"qat_int8": tfq.convert(model, samples)}
    if name == "pruned80":
        return {"pruned80_int8": tfq.convert(model, samples)}
    return {
        "float": tfq.convert(model, config=tfq.ConversionConfig(scheme="float32")),
        "ptq_int8": tfq.convert(model, samples),
        "int4": tfq.convert(model, samples, INT4),
    }


def build(arguments: argparse.Namespace, out: Path) -> None:
    """Train and convert the models that are not in `out` yet."""
    phase = Phase(arguments.epochs, arguments.batch_size, arguments.learning_rate, 0)
    settings = {"model": sha256_file(arguments.model), "seed": arguments.seed, "phase": vars(phase)}
    splits: dict[str, Any] = {}
    for name in ("float", "qat", "pruned80"):
        path = out / f"{name}.json"
        if kept_record(path, settings) is not None:
            continue
        if not splits:
            data = tfq.DataConfig(source=arguments.data)
            splits = {split: tfq.load_split(data, split) for split in ("train", "val")}
        print(f"training {name}", flush=True)
        begin = time.monotonic()
        model, note = train(name, tfq.load_model(arguments.model), splits, phase, arguments.seed)
        if name != "qat":
            save_model(model, out / f"{name}.h5")
        for called, content in flatbuffers(name, model, splits).items():
            write_bytes(out / f"{called}.tflite", content)
        write_json(path, {"settings": settings, "training": note, "secs": round(time.monotonic() - begin)})


def main() -> int:
    arguments = parsed()
    warnings.simplefilter("once", tfq.TfqWarning)
    out = make_out_dir(arguments.out)
    build(arguments, out)
    models = {name: out / f"{name}.tflite" for name in MODELS}
    path = out / "robustness.json"
    settings = {"models": {name: sha256_file(file) for name, file in models.items()}, "limit": arguments.limit}
    record = kept_record(path, settings)
    if record is None:
        data = tfq.load_split(tfq.DataConfig(source=arguments.data), "test", limit=arguments.limit)
        asked = tfq.EvaluationConfig(robustness=tfq.RobustnessConfig(limit=arguments.limit, seed=arguments.seed))
        record = {"settings": settings, **tfq.evaluate_robustness(models, data, asked, reference="float").to_dict()}
        write_json(path, record)
    print(tables_of(record))
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of Adam, decayed along a cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=1000, help="test images that are corrupted; 0 is all")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main, __file__)

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure int8 models that are made sparse without training: one_shot_pruning against magnitude masks.

    python benchmarks/one_shot_pruning.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' --out=out/one_shot \\
        [--draws=0,1,2] [--samples=512] [--split=test] [--limit=0]

For each draw of --samples training examples without labels, the model is converted to int8 with `gptq` and
`bias_correction`: dense, with 2 zeros in every 4 input channels, and with half of each layer's weights zero. The masks
are those of the smallest weights, or those of the technique `one_shot_pruning`. The table has the accuracy and the
agreement with the float model in each draw, and the mean difference of accuracies with its 95% interval over examples.
Results are files in --out, and a killed run resumes. The exit code is 1 if `one_shot_pruning` has a lower mean accuracy
than magnitude masks, or if a file lacks zeros. ResNet8 takes about three minutes of CPU time.
"""

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from compression_training import exit_with, kept_record
from numpy.typing import NDArray
from post_training import Answers

import tfq
from tfq import tflite
from tfq.artifacts import make_out_dir, sha256_file, write_json
from tfq.compression import m_by_n_groups_in_flatbuffer, sparsity_in_flatbuffer
from tfq.ptq.one_shot_pruning import magnitude_mask
from tfq.ptq.weighted_ops import weighted_ops

TECHNIQUES = ("gptq", "bias_correction")
FORMS: dict[str, dict[str, Any]] = {"2:4": {"sparsity_m_by_n": (2, 4)}, "50%": {"sparsity": 0.5}}
METHODS = ("dense", *(f"{form}, {how}" for form in FORMS for how in ("magnitude", "one_shot_pruning")))


def with_magnitude_masks(model: bytes, form: dict[str, Any]) -> bytes:
    """Return the float flatbuffer with its smallest weights at zero, and no other change."""
    edited = tflite.unpack(model)
    for layer in weighted_ops(edited, tflite.read(model)):
        if not layer.is_depthwise:
            weights = layer.weights_by_output()
            mask = magnitude_mask(weights, layer.num_inputs, form.get("sparsity", 0.5), form.get("sparsity_m_by_n"))
            layer.set_weights_by_output(weights * mask)
    return tflite.pack(edited, len(model))


def converted(model: bytes, examples: NDArray, method: str) -> bytes:
    """Return the int8 flatbuffer of a method."""
    settings: dict[str, Any] = {"techniques": TECHNIQUES}
    form = FORMS.get(method.partition(",")[0], {})
    if method.endswith("magnitude"):
        model = with_magnitude_masks(model, form)
    elif form:
        settings = {**form, "techniques": ("one_shot_pruning", *TECHNIQUES)}
    config = tfq.ConversionConfig(num_calibration_samples=len(examples), **settings)
    return tfq.convert(model, examples, config)


def lacks_zeros(content: bytes, method: str) -> bool:
    """Check whether a layer has fewer zeros than its method promises."""
    if method.startswith("2:4"):
        return min(m_by_n_groups_in_flatbuffer(content, 2, 4).values()) < 1
    return method.startswith("50%") and min(filter(None, sparsity_in_flatbuffer(content).values())) < 0.49


def measured(model: bytes, examples: NDArray, method: str, answers: Answers) -> dict[str, Any]:
    content = converted(model, examples, method)
    right, agrees = answers.by_example(content)
    return {
        "accuracy": float(right.mean()),
        "agreement": float(agrees.mean()),
        "right": np.flatnonzero(right).tolist(),
        "lacks_zeros": lacks_zeros(content, method),
    }


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]], count: int) -> tuple[float, float]:
    """Return (mean difference of accuracies, half of its 95% interval over examples), in points."""
    right = np.zeros((2, count))
    for row, records in enumerate((one, other)):
        for record in records:
            right[row, record["right"]] += 1 / len(records)
    values = 100 * (right[0] - right[1])
    return float(values.mean()), float(1.96 * values.std() / np.sqrt(count))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--draws", default="0,1,2")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=0, help="examples of the split; 0 is all")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    out = Path(make_out_dir(arguments.out))
    data = tfq.DataConfig(source=arguments.data)
    train = tfq.load_split(data, "train")
    assert isinstance(train, tfq.data.Split)
    images = np.asarray(train.inputs["x"])
    test = tfq.load_split(data, arguments.split, limit=arguments.limit)
    floating = tfq.convert(tfq.load_model(arguments.model), config=tfq.ConversionConfig(scheme="float32"))
    answers = Answers(test, floating)
    settings = {"model": sha256_file(arguments.model), "samples": arguments.samples, "split": arguments.split}
    settings |= {"limit": arguments.limit}
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for draw in map(int, arguments.draws.split(",")):
        chosen = images[np.random.default_rng(draw).choice(len(images), arguments.samples, replace=False)]
        for method in METHODS:
            path = out / f"{method.replace(', ', '_').replace(':', '_').replace('%', '')}_{draw}.json"
            record = kept_record(path, settings)
            if record is None:
                record = {"settings": settings, **measured(floating, chosen, method, answers)}
                write_json(path, record)
                print(f"draw {draw}, {method}: {record['accuracy']:.2%}, {record['agreement']:.2%}", flush=True)
            results[method].append(record)
    print(f"float: {answers.accuracy:.2%}")
    right = [{"right": np.flatnonzero(answers.by_example(floating)[0]).tolist()}]
    print("| | accuracy | mean | agreement | mean | against float |\n|" + "---|" * 6)
    for method, records in results.items():
        cells = []
        for key in ("accuracy", "agreement"):
            values = [record[key] for record in records]
            cells += [" ".join(f"{100 * value:.2f}" for value in values), f"{100 * np.mean(values):.2f}%"]
        mean, half = difference(records, right, test.num_examples)
        print(f"| {method} | {' | '.join(cells)} | {mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f}) |")
    failed = [method for method, records in results.items() if any(record["lacks_zeros"] for record in records)]
    for form in FORMS:
        pair = results[f"{form}, one_shot_pruning"], results[f"{form}, magnitude"]
        mean, half = difference(*pair, test.num_examples)
        print(f"{form}: one_shot_pruning minus magnitude {mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})")
        failed += [form] if mean < 0 else []
    return 1 if failed else 0


if __name__ == "__main__":
    exit_with(main, __file__)

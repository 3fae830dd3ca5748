#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Fit the table from which structured pruning estimates instructions, and check it on layers and whole models.

    python benchmarks/instruction_table.py --out=out/instructions [--check=resnet8.h5 '--data=SOURCE']

Int8 models of one layer are counted in emulation, one for each of `designs()`; a killed run resumes. Non-negative least
squares on relative errors gives the coefficients of `tfq/compression/structured_pruning/costs.py`. --check prunes a
model to several budgets without training, and compares each estimate with the count of the converted file. The exit
code is 1 if one of them differs by more than 5%. 64 layers take about two minutes of CPU time.
"""

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from compression_training import exit_with
from scipy.optimize import nnls

import tfq
from tfq.artifacts import make_out_dir
from tfq.evaluation import count_instructions
from tfq.keras_bridge import import_tf_keras

TILE = 16
CHANNELS = (3, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64)
COEFFICIENTS = (
    "per_call", "per_product", "per_tap", "per_tile", "per_position", "depthwise_per_product", "depthwise_per_tile",
    "depthwise_per_tap", "depthwise_per_position", "per_read", "per_written",
)  # fmt: skip
# Budgets of --check: (cost, target_cost, channel_multiple).
BUDGETS = (("instructions_a53", 0.5, 4), ("instructions_a53", 0.5, 8), ("macs", 0.5, 8), ("arena", 0.6, 4))
LARGEST_ERROR = 0.05
Design = tuple[str, int, int, int, int, int]


def designs() -> list[Design]:
    """Return (kind, height and width, kernel size, inputs, outputs, stride) of each layer."""
    rng = np.random.default_rng(0)

    def drawn(sizes: tuple[int, ...], kernels: tuple[int, ...], channels: tuple[int, ...]) -> Design:
        size, kernel, inputs, outputs = (int(rng.choice(item)) for item in (sizes, kernels, channels, channels))
        return "conv", size, kernel, inputs, outputs, 1

    chosen: list[Design] = [
        ("conv", *item)
        for item in [
            (32, 3, 3, 16, 1), (32, 3, 16, 16, 1), (32, 3, 16, 32, 2), (16, 3, 32, 32, 1), (8, 3, 64, 64, 1),
            (16, 1, 32, 64, 2), (16, 1, 16, 16, 1), (16, 1, 64, 64, 1),
        ]
    ]  # fmt: skip
    chosen += [drawn((4, 6, 8, 12, 16), (1, 3, 3), CHANNELS[1:]) for _ in range(26)]
    chosen += [("depthwise", *item, item[-1], 1) for item in [(8, 3, 16), (16, 3, 8), (16, 3, 24), (16, 3, 32)]]
    chosen += [("depthwise", *item, item[-1], 1) for item in [(8, 3, 64), (8, 5, 16), (8, 5, 48), (8, 1, 16)]]
    chosen += [("dense", 1, 1, *item, 1) for item in [(64, 10), (64, 64), (128, 32), (200, 48), (16, 16)]]
    chosen += [("add", size, 1, channels, channels, 1) for size, channels in [(8, 16), (16, 16), (16, 32)]]
    chosen += [("mean", size, 1, channels, channels, 1) for size, channels in [(8, 16), (16, 32)]]
    return chosen + [drawn((5, 7, 8, 10, 14, 16), (1, 3, 3, 5), CHANNELS) for _ in range(12)]


def built(design: Design) -> Any:
    """Return the tf_keras model of a design."""
    kind, size, kernel, inputs, outputs, stride = design
    keras = import_tf_keras()
    layers = keras.layers
    entry = keras.Input((inputs,) if kind == "dense" else (size, size, inputs))
    if kind == "dense":
        end = layers.Dense(outputs)(entry)
    elif kind == "conv":
        end = layers.Conv2D(outputs, kernel, strides=stride, padding="same", activation="relu")(entry)
    elif kind == "depthwise":
        end = layers.DepthwiseConv2D(kernel, padding="same", activation="relu")(entry)
    elif kind == "add":
        end = layers.ReLU()(layers.Add()([entry, layers.DepthwiseConv2D(1, activation="relu")(entry)]))
    else:
        end = layers.GlobalAveragePooling2D()(entry)
    return keras.Model(entry, end)


def features(design: Design) -> list[float]:
    """Return the factor of each coefficient in the instructions of a design."""
    kind, size, kernel, inputs, outputs, stride = design
    positions, taps = (-(-size // stride)) ** 2, kernel * kernel
    tiles, values = positions * -(-outputs // TILE), positions * inputs
    result = dict.fromkeys(COEFFICIENTS, 0.0)
    result["per_call"] = 1
    if kind in ("conv", "dense"):
        result["per_product"], result["per_tap"] = tiles * taps * inputs, tiles * taps
        result["per_tile"], result["per_position"] = tiles, positions
    if kind in ("depthwise", "add"):
        result["depthwise_per_product"], result["depthwise_per_tile"] = tiles * taps, tiles
        result["depthwise_per_tap"], result["depthwise_per_position"] = positions * taps, positions
    if kind == "add":
        result["per_read"], result["per_written"] = 2 * values, values
    if kind == "mean":
        result["per_read"], result["per_written"] = values, outputs
    return [result[name] for name in COEFFICIENTS]


def counted(path: Path, backend: str) -> dict[Design, int]:
    """Return the count of each design, from `path` or counted now and added to it."""
    counts = {}
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        counts = {tuple(line["design"]): line["instructions"] for line in lines}
    for design in designs():
        if design not in counts:
            model = built(design)
            samples = np.random.default_rng(1).normal(size=(10, *model.input_shape[1:])).astype(np.float32)
            counts[design] = count_instructions(tfq.convert(model, samples), backend).instructions
            with path.open("a") as file:
                file.write(json.dumps({"design": design, "instructions": counts[design]}) + "\n")
    return counts


def fit(counts: dict[Design, int]) -> None:
    """Print the coefficients and the errors of the estimates."""
    values = np.array(list(counts.values()), float)
    factors = np.array([features(design) for design in counts])
    coefficients, _ = nnls(factors / values[:, None], np.ones(len(values)))
    errors = factors @ coefficients / values - 1
    for name, value in zip(COEFFICIENTS, coefficients, strict=True):
        print(f"    {name}={value:.4g},")
    print(f"{len(values)} layers: mean error {np.abs(errors).mean():.1%}, largest {np.abs(errors).max():.1%}")
    for design, error in zip(counts, errors, strict=True):
        if abs(error) > LARGEST_ERROR:
            print(f"  {design}: {error:+.1%}")


def check(path: str, source: str, backend: str) -> int:
    """Print estimated and counted instructions of the pruned models; return how many estimates are off."""
    model = tfq.to_tf_keras(tfq.load_model(path)).model
    samples = tfq.load_split(tfq.DataConfig(source=source), "train", limit=100)
    whole = count_instructions(tfq.convert(model, samples), backend).instructions
    wrong = 0
    print("| budget | multiple | multiply-adds | estimated | counted | error | of all |\n|" + "---|" * 7)
    for cost, target, multiple in BUDGETS:
        config = tfq.StructuredPruningConfig(cost=cost, target_cost=target, channel_multiple=multiple)
        result = tfq.prune_structured(model, config=config)
        again = tfq.StructuredPruningConfig(cost="instructions_a53", target_cost=0.99, channel_multiple=1)
        estimate = (
            result.cost_after
            if cost == "instructions_a53"
            else tfq.prune_structured(result.model, config=again).cost_before
        )
        count = count_instructions(tfq.convert(result.model, samples), backend).instructions
        error = estimate / count - 1
        wrong += abs(error) > LARGEST_ERROR
        macs = result.macs_after / result.macs_before
        print(
            f"| {cost} {target} | {multiple} | {macs:.2f} | {estimate:,} | {count:,} | {error:+.1%} | "
            f"{count / whole:.2f} |",
            flush=True,
        )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--cpu", default="cortex-a53")
    parser.add_argument("--check", default="", help="a Keras model")
    parser.add_argument("--data", default="", help="calibration data of that model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    backend = f"qemu:{arguments.cpu}"
    fit(counted(Path(make_out_dir(arguments.out)) / f"{arguments.cpu}.jsonl", backend))
    return int(bool(arguments.check and check(arguments.check, arguments.data, backend)))


if __name__ == "__main__":
    exit_with(main, __file__)

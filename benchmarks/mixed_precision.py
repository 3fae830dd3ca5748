# SPDX-License-Identifier: Apache-2.0
"""Mixed precision of a model within a number of bytes: assignments by integer programming against greedy ones.

    python benchmarks/mixed_precision.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' [--fraction=0.6]
        [--draws=3] [--samples=512] [--quantizer=tensorflow] [--levels=int8,int4] [--out=out/mixed_precision]

The bound is the int8 file's size minus (1 - fraction) of the bytes of its weights: with 4 bits everywhere the file
itself is larger than half, because of scales, biases and metadata. Each draw calibrates with other images of the train
split, without labels; the sensitivity of the layers is measured on the same images. All files use GPTQ and bias
correction. Assignments are compared on the val split; the test split is evaluated once for each row. An interrupted
run resumes. About 15 minutes of CPU time for three draws.
"""

import argparse
import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import tfq
from tfq import artifacts, tflite
from tfq.conversion import convert_with_record
from tfq.data import as_split
from tfq.ptq import kept_moments
from tfq.search.assignment import best_assignment, fit_assignment, greedy_assignment
from tfq.search.criterion import choose_criterion
from tfq.search.mixed_precision import BASE_LEVEL, LevelMeasurement, available_levels, with_levels
from tfq.store import StageStore


def weight_bytes(content: bytes) -> int:
    """Return the bytes of the int8 constants of a file."""
    tensors = tflite.read(content).main_subgraph.tensors
    return sum(int(np.prod(item.shape)) for item in tensors if item.is_constant and item.dtype == "int8")


class Draw:
    """The files of one calibration draw, and their scores."""

    def __init__(self, floating, splits, arguments, seed, store):
        train, self.validation, self.test = splits
        order = np.random.default_rng(seed).permutation(train.num_examples)[: arguments.samples]
        self.data = as_split({name: array[order] for name, array in train.inputs.items()}, split="train")
        self.floating, self.store, self.levels = floating, store, arguments.levels
        self.criterion = choose_criterion(floating, [self.validation, self.test], 20.0)
        self.config = tfq.ConversionConfig(
            num_calibration_samples=arguments.samples,
            quantizer=arguments.quantizer,
            techniques=("gptq", "bias_correction"),
            verify=False,
        )
        self.basis = {"model": artifacts.sha256(floating), "data": self.data.sha256(), "samples": arguments.samples}

    def content(self, levels):
        """Return the file with {layer: level}."""
        config = with_levels(self.config, levels)

        def make(directory):
            artifacts.write_bytes(
                directory / "model.tflite", convert_with_record(self.floating, self.data, config).content
            )
            return {}

        stored = self.store.run("file", {**self.basis, "config": config.to_dict()}, make)
        return (stored.directory / "model.tflite").read_bytes()

    def scores(self, content, split):
        """Return (accuracy, agreement, difference from float with its interval) on a split."""
        sample, base = (self.criterion.sample(item, self.floating, split) for item in (content, self.floating))
        agreement = float(self.criterion.similarity().right(content, self.floating, split).mean())
        return sample.value, agreement, sample.minus(base)

    def rows(self, fraction):
        """Return {name: file}, and print the assignments."""
        base = self.content({})
        measurement = LevelMeasurement(
            floating=self.floating,
            base=base,
            train=self.data,
            examples=self.data,
            conversion=self.config,
            costs=lambda content: {},
            store=self.store,
            basis=self.basis,
        )
        levels = available_levels(self.config, self.levels)
        table = measurement.table(layers_of(self.floating), levels, print)
        bound = len(base) - int((1 - fraction) * weight_bytes(base))
        files = {"int8": base, "uniform W4A8": self.content(dict.fromkeys(table.layers, "int4"))}
        for name, solver in (("greedy", greedy_assignment), ("ILP", best_assignment)):
            tried: list[bytes] = []

            def measure(assigned: Mapping[str, str], tried: list[bytes] = tried, name: str = name) -> dict[str, float]:
                changed = {layer: level for layer, level in assigned.items() if level != BASE_LEVEL}
                tried.append(self.content(changed))
                print(f"{name}: {len(tried[-1]):,} bytes, at most {bound:,}: {changed}", flush=True)
                return {"bytes": len(tried[-1])}

            place = fit_assignment(table, solver, {"bytes": bound}, measure)
            if place is not None:
                files[name] = tried[place]
        return files


def layers_of(floating):
    """Return the layers with weights."""
    graph = tflite.read(floating).main_subgraph
    names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return list(dict.fromkeys(graph.layer_of(op) for op in graph.ops if op.name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--fraction", type=float, default=0.6)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--quantizer", default="tensorflow")
    parser.add_argument("--levels", type=lambda text: tuple(text.split(",")), default=("int8", "int4"))
    parser.add_argument("--out", type=Path, default=Path("out/mixed_precision"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    splits = [tfq.load_split(tfq.DataConfig(source=arguments.data), name) for name in ("train", "val", "test")]
    if arguments.model.endswith(".tflite"):
        floating = Path(arguments.model).read_bytes()
    else:
        floating = tfq.convert(tfq.load_model(arguments.model), None, tfq.ConversionConfig(scheme="float32"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    store, results = StageStore(arguments.out), {}
    for seed in range(arguments.draws):
        with kept_moments():
            draw = Draw(floating, splits, arguments, seed, store)
            files = draw.rows(arguments.fraction)
        for name, content in files.items():
            validation, agreement, _ = draw.scores(content, draw.validation)
            accuracy, test_agreement, difference = draw.scores(content, draw.test)
            results[f"draw {seed}, {name}"] = {
                "bytes": len(content), "val": [validation, agreement], "test": [accuracy, test_agreement],
                "difference": dataclasses.asdict(difference),
            }  # fmt: skip
            print(
                f"draw {seed}, {name}: {len(content):,} bytes, val {validation:.2%} agreement {agreement:.2%}; "
                f"test {accuracy:.2%} agreement {test_agreement:.2%} {100 * difference.difference:+.2f} "
                f"({100 * difference.low:+.2f} to {100 * difference.high:+.2f})",
                flush=True,
            )
    artifacts.write_text(arguments.out / "mixed_precision.json", json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

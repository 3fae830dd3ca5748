#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what each post-training method reaches on one model: accuracy and agreement with float, for several draws.

    python benchmarks/frontier.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' --out=out/frontier
        [--draws=3] [--samples=512] [--split=test] [--methods=int8,w4a8 ...] [--resize=48,48]

Each draw calibrates with other --samples images of the train split, without labels. TensorFlow's converter and
litert-quantizer get the same images. --split=val evaluates on held-back training images, to choose a method; the test
split is for the table. The last interval (95%) is that of the paired difference in accuracy to the float model, of the
mean of the draws over the images. Each file is kept in --out: a killed run resumes. ResNet8 takes about 35 minutes of
CPU time.
"""

import argparse
import contextlib
import math
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from conversion import stock
from numpy.typing import NDArray

import tfq
from tfq import artifacts, tflite
from tfq.backends import RunRequest, make_backend
from tfq.data import Split
from tfq.evaluation import decode_outputs, prepare_inputs
from tfq.store import StageStore

GPTQ = ("gptq", "bias_correction")
ALL = ("gptq", "reconstruction")
INT4 = {"int4_layers": ("*",)}
# Method -> settings of tfq's conversion.
TFQ: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8, gptq": {"techniques": GPTQ},
    "int8, reconstruction": {"techniques": ("reconstruction",)},
    "int8, gptq, reconstruction": {"techniques": ALL},
    "int8, range_tuning": {"techniques": ("range_tuning",)},
    "int8, range_tuning, reconstruction": {"techniques": ("range_tuning", "reconstruction")},
    "w4a8, gptq": {"techniques": GPTQ, **INT4},
    "w4a8, gptq, reconstruction": {"techniques": ALL, **INT4},
    "w4a8, range_tuning, gptq, reconstruction": {"techniques": ("range_tuning", *ALL), **INT4},
    "weight_only_int8": {"scheme": "weight_only_int8"},
    "int16x8": {"scheme": "int16x8"},
}


def by_litert_quantizer(floating: bytes, images: NDArray, recipe: str) -> bytes:
    """Return litert-quantizer's static int8 file by one of its recipes."""
    from litert_quantizer import quantizer
    from litert_quantizer import recipe as recipes

    tool = quantizer.Quantizer(bytearray(floating), getattr(recipes, recipe)())
    (name,) = tflite.read(floating).input_names
    samples = {"serving_default": [{name: image[None]} for image in images]}
    with contextlib.redirect_stdout(sys.stderr):
        return bytes(tool.quantize(tool.calibrate(samples)).quantized_model)


class Frontier:
    """The files and scores of one model."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        resize = tuple(map(int, arguments.resize.split(","))) if arguments.resize else ()
        data = tfq.DataConfig(source=arguments.data, resize=resize, max_memory_mb=3000)
        train, test = (tfq.load_split(data, split) for split in ("train", arguments.split))
        assert isinstance(train, Split) and isinstance(test, Split)
        (self.images,), self.test = train.inputs.values(), test
        self.model = tfq.load_model(arguments.model)
        self.floating = tfq.convert(self.model, config=tfq.ConversionConfig(scheme="float32"))
        self.samples, self.store = arguments.samples, StageStore(artifacts.make_out_dir(arguments.out))
        self.basis = {"model": artifacts.sha256(self.floating), "samples": arguments.samples}
        self.labels, self.expected = np.asarray(self.test.labels), self.classes(self.floating)

    def methods(self) -> dict[str, Callable[[NDArray], bytes]]:
        """Return {method: function of the images of a draw that returns a file}."""

        def by_tfq(settings: dict[str, Any]) -> Callable[[NDArray], bytes]:
            config = tfq.ConversionConfig(num_calibration_samples=self.samples, **settings)
            return lambda images: tfq.convert(self.floating, images, config)

        def by_stock(images: NDArray) -> bytes:
            with contextlib.redirect_stdout(sys.stderr):
                return stock(self.model, images[:, None])

        return {
            "int8, TensorFlow": by_stock,
            "int8, litert-quantizer": lambda images: by_litert_quantizer(self.floating, images, "static_wi8_ai8"),
            **{name: by_tfq(settings) for name, settings in TFQ.items()},
        }

    def scores(self, name: str, method: Callable[[NDArray], bytes], seed: int) -> dict[str, Any]:
        """Return the scores of a method for one draw, from the store if they are known."""

        def make(directory: Path) -> dict[str, Any]:
            chosen = np.random.default_rng(seed).choice(len(self.images), self.samples, replace=False)
            artifacts.write_bytes(directory / "model.tflite", method(self.images[chosen]))
            return {}

        stage = self.store.run(
            "file", {**self.basis, "method": name, "settings": str(TFQ.get(name)), "seed": seed}, make
        )
        content = (stage.directory / "model.tflite").read_bytes()
        answers = self.classes(content)
        return {
            "accuracy": float((answers == self.labels).mean()),
            "agreement": float((answers == self.expected).mean()),
            "gains": (answers == self.labels) * 1.0 - (self.expected == self.labels),
            "bytes": len(content),
        }

    def classes(self, content: bytes) -> NDArray[np.int64]:
        """Return the predicted classes of the evaluation split."""
        parsed = tflite.read(content)
        inputs = prepare_inputs(parsed, self.test).arrays
        outputs = make_backend("local").assess(RunRequest(model=content, inputs=inputs)).computed_outputs()
        return np.asarray(decode_outputs(parsed, outputs)[0]).argmax(axis=1)


def row(name: str, draws: list[dict[str, Any]]) -> str:
    """Return a line of the table."""
    cells = [name]
    for key in ("accuracy", "agreement"):
        values = [draw[key] for draw in draws]
        cells.append(f"{statistics.mean(values):.2%} ({', '.join(f'{100 * value:.2f}' for value in values)})")
    # The mean over the draws, for each image.
    gains = 100 * np.mean([draw["gains"] for draw in draws], axis=0)
    mean, half = gains.mean(), 1.96 * gains.std(ddof=1) / math.sqrt(len(gains))
    cells.append(f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})")
    return f"| {' | '.join([*cells, format(draws[0]['bytes'], ',')])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="images with classes, any source of tfq's --data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512, help="images of a draw")
    parser.add_argument("--resize", default="", help="height and width, such as 48,48")
    parser.add_argument("--methods", nargs="*", default=[], help="only these rows")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    frontier = Frontier(arguments)
    accuracy = float((frontier.expected == frontier.labels).mean())
    print("| | accuracy: mean (draws) | agreement: mean (draws) | against float | bytes |\n|---|---|---|---|---|")
    print(f"| float | {accuracy:.2%} | | | {len(frontier.floating):,} |", flush=True)
    for name, method in frontier.methods().items():
        if not arguments.methods or name in arguments.methods:
            draws = [frontier.scores(name, method, seed) for seed in range(arguments.draws)]
            print(row(name, draws), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what each post-training method reaches on one model, for several draws of calibration examples.

    python benchmarks/frontier.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' --out=out/frontier
        [--draws=3] [--samples=512] [--split=test] [--methods "mixed 60%, ILP" ...] [--resize=48,48] [--hard]

Each draw calibrates with other --samples examples of the train split, without labels. TensorFlow's converter and
litert-quantizer get the same examples. --split=val evaluates on held-back training examples, to choose a method; the
test split is for the table. Each file is kept in --out: a killed run resumes.

The columns of a classifier: accuracy; agreement, the fraction of examples with the float model's class; divergence, the
Kullback-Leibler divergence from the float model's probabilities in thousandths of a nat; and the paired difference in
accuracy to the float model with its 95% interval over the examples, for the mean of the draws. Other models get the
SQNR of their outputs against those of the float model.

4-bit weights ("w4a8") have int8 activations. "first and last int8" leaves 8 bits to the weights of the first and the
last layer, as AdaRound, BRECQ and LSQ do. "mixed 60%" chooses int8 or 4 bits for each layer, so that the file loses
40% of the bytes that int8 weights have: with 4 bits everywhere the file itself is larger than half, because of scales,
biases and metadata. The choice is by an integer program ("ILP") or the greedy search, both from the same sensitivities,
which are measured on the calibration examples. "refined" measures them again around the assignment, up to four times.
"best" has, in each draw, the file of these whose outputs differ least from those of the float model on the calibration
examples; `tfq search --pareto_points` compares them too. --hard changes the model in each draw: three channels between
layers are made 64 times as large, which the next layer reverses.

The rows of ResNet8 take about an hour of CPU time. range_tuning dominates for models with more layers: --methods leaves
it out.
"""

import argparse
import contextlib
import functools
import math
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from conversion import stock
from numpy.typing import NDArray
from post_training import made_hard, stock_int8

import tfq
from tfq import artifacts, tflite
from tfq.conversion import convert_with_record
from tfq.data import Split, as_split
from tfq.ptq import kept_moments
from tfq.search.assignment import LevelTable, Solver, best_assignment, fit_assignment, greedy_assignment
from tfq.search.criterion import SQNR, choose_criterion, outputs_of
from tfq.search.mixed_precision import BASE_LEVEL, LevelMeasurement, output_distortion, with_levels
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
    "2:4 and int8": {"techniques": ("one_shot_pruning", *ALL), "sparsity_m_by_n": (2, 4)},
    "weight_only_int8": {"scheme": "weight_only_int8"},
    "int16x8": {"scheme": "int16x8"},
}
HARD: dict[str, dict[str, Any]] = {
    "int8, cross_layer_equalization": {"techniques": ("cross_layer_equalization",)},
    "int8, cross_layer_equalization, reconstruction": {"techniques": ("cross_layer_equalization", *ALL)},
    "w4a8, cross_layer_equalization, reconstruction": {"techniques": ("cross_layer_equalization", *ALL), **INT4},
}
# Techniques of the same methods, in which the first and the last layer have 8-bit weights.
INNER: dict[str, tuple[str, ...]] = {
    "w4a8, first and last int8, gptq": GPTQ,
    "w4a8, first and last int8, gptq, reconstruction": ALL,
}
SOLVERS: dict[str, tuple[Solver, int]] = {
    "mixed 60%, greedy": (greedy_assignment, 0),
    "mixed 60%, ILP": (best_assignment, 0),
    "mixed 60%, ILP, refined": (best_assignment, 4),
}
FRACTION = 0.6


def by_litert_quantizer(floating: bytes, images: NDArray, recipe: str) -> bytes:
    """Return litert-quantizer's static int8 file by one of its recipes."""
    from litert_quantizer import quantizer
    from litert_quantizer import recipe as recipes

    tool = quantizer.Quantizer(bytearray(floating), getattr(recipes, recipe)())
    (name,) = tflite.read(floating).input_names
    samples = {"serving_default": [{name: image[None]} for image in images]}
    with contextlib.redirect_stdout(sys.stderr):
        return bytes(tool.quantize(tool.calibrate(samples)).quantized_model)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A float model and the examples that calibrate it."""

    model: Any
    floating: bytes
    images: NDArray
    store: StageStore
    basis: Mapping[str, Any]
    is_hard: bool

    def config(self, **settings: Any) -> tfq.ConversionConfig:
        return tfq.ConversionConfig(num_calibration_samples=len(self.images), **settings)

    def by_tensorflow(self) -> bytes:
        if self.is_hard:  # there is no Keras model of it
            return stock_int8(self.floating, self.images, self.config())
        with contextlib.redirect_stdout(sys.stderr):
            return stock(self.model, self.images[:, None])

    def by_tfq(self, settings: Mapping[str, Any]) -> bytes:
        return tfq.convert(self.floating, self.images, self.config(**settings))

    def inner_int4(self, techniques: tuple[str, ...]) -> bytes:
        """Return the file with 4-bit weights in all layers but the first and the last."""
        first, *_, last = layers_of(self.floating)
        return self.by_tfq({"techniques": techniques, "int4_layers": (f"!{first}", f"!{last}")})

    def mixed(self, solver: Solver, rounds: int) -> bytes:
        """Return the file whose weights have `FRACTION` of the bytes of int8 weights.

        Args:
            solver: It assigns levels.
            rounds: How often the effects of levels are measured again around the assignment.
        """
        (name,) = tflite.read(self.floating).input_names
        data, fast = as_split({name: self.images}, split="train"), self.config(techniques=GPTQ, verify=False)

        def content(levels: Mapping[str, str], config: tfq.ConversionConfig) -> bytes:
            changed = {layer: level for layer, level in levels.items() if level != BASE_LEVEL}
            return convert_with_record(self.floating, data, with_levels(config, changed)).content

        with kept_moments():
            base = content({}, fast)
            measurement = LevelMeasurement(
                floating=self.floating,
                base=base,
                train=data,
                examples=data,
                conversion=fast,
                costs=lambda content: {},
                store=self.store,
                basis=self.basis,
            )
            bound = len(base) - int((1 - FRACTION) * weight_bytes(base))
            levels, least = None, math.inf
            for _ in range(rounds + 1):
                table = measurement.table(layers_of(self.floating), (BASE_LEVEL, "int4"), around=levels)
                changed = assigned(table, solver, bound, lambda levels: len(content(levels, fast)))
                distortion = measurement.distortion(content(changed, fast))
                print(f"distortion {distortion:.4g}", file=sys.stderr)
                if distortion >= least:
                    break
                levels, least = changed, distortion
            assert levels is not None
            return content(levels, self.config(techniques=ALL))


def assigned(
    table: LevelTable,
    solver: Solver,
    bound: int,
    size_of: Callable[[Mapping[str, str]], int],
) -> Mapping[str, str]:
    """Return {layer: level} of the best assignment whose file has at most `bound` bytes, and print it."""
    tried: list[Mapping[str, str]] = []

    def measure(levels: Mapping[str, str]) -> dict[str, float]:
        tried.append(levels)
        return {"bytes": size_of(levels)}

    place = fit_assignment(table, solver, {"bytes": bound}, measure)
    if place is None:
        raise SystemExit(f"no assignment of levels has at most {bound:,} bytes")
    chosen = tried[place]
    kept = [layer for layer, level in chosen.items() if level == BASE_LEVEL]
    print(f"at most {bound:,} bytes: predicted distortion {table.distortion(chosen):.3g}, int8 {kept}", file=sys.stderr)
    return chosen


def weight_bytes(base: bytes) -> int:
    """Return the bytes of the int8 constants of a file."""
    tensors = tflite.read(base).main_subgraph.tensors
    return sum(int(np.prod(item.shape)) for item in tensors if item.is_constant and item.dtype == "int8")


def layers_of(floating: bytes) -> list[str]:
    """Return the layers with weights."""
    graph = tflite.read(floating).main_subgraph
    names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return list(dict.fromkeys(graph.layer_of(op) for op in graph.ops if op.name in names))


class Frontier:
    """The files and scores of one model."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        resize = tuple(map(int, arguments.resize.split(","))) if arguments.resize else ()
        data = tfq.DataConfig(source=arguments.data, resize=resize, max_memory_mb=3000)
        train, evaluated = (tfq.load_split(data, split) for split in ("train", arguments.split))
        assert isinstance(train, Split) and isinstance(evaluated, Split)
        (self.images,), self.evaluated = train.inputs.values(), evaluated
        self.model, self.samples, self.is_hard = tfq.load_model(arguments.model), arguments.samples, arguments.hard
        self.floating = tfq.convert(self.model, config=tfq.ConversionConfig(scheme="float32"))
        self.store = StageStore(artifacts.make_out_dir(arguments.out))
        self.expected = outputs_of(self.floating, evaluated)
        values_only = arguments.values or choose_criterion(self.floating, [evaluated], 20.0).kind == SQNR
        self.labels = None if values_only else np.asarray(evaluated.labels)

    def methods(self) -> dict[str, Callable[[Draw], bytes]]:
        """Return {method: function of a draw that returns a file}."""

        settings = TFQ | HARD if self.is_hard else TFQ
        return {
            "int8, TensorFlow": Draw.by_tensorflow,
            "int8, litert-quantizer": lambda draw: by_litert_quantizer(draw.floating, draw.images, "static_wi8_ai8"),
            **{name: functools.partial(Draw.by_tfq, settings=value) for name, value in settings.items()},
            **{name: functools.partial(Draw.inner_int4, techniques=value) for name, value in INNER.items()},
            **{
                name: functools.partial(Draw.mixed, solver=solver, rounds=rounds)
                for name, (solver, rounds) in SOLVERS.items()
            },
        }

    def examples(self, seed: int) -> Split:
        """Return the calibration examples of a draw."""
        chosen = np.random.default_rng(seed).choice(len(self.images), self.samples, replace=False)
        (name,) = tflite.read(self.floating).input_names
        split = as_split({name: self.images[chosen]}, split="train")
        assert isinstance(split, Split)
        return split

    def scores(self, name: str, method: Callable[[Draw], bytes], seed: int) -> dict[str, Any]:
        """Return the scores of a method for one draw; the file is from the store if it is there."""
        floating = made_hard(self.floating, seed) if self.is_hard else self.floating
        basis = {"model": artifacts.sha256(floating), "samples": self.samples, "seed": seed}

        def make(directory: Path) -> dict[str, Any]:
            draw = Draw(
                model=self.model,
                floating=floating,
                images=next(iter(self.examples(seed).inputs.values())),
                store=self.store,
                basis=basis,
                is_hard=self.is_hard,
            )
            artifacts.write_bytes(directory / "model.tflite", method(draw))
            return {}

        settings = {"method": name, "settings": str((TFQ | HARD).get(name))}
        content = (self.store.run("file", basis | settings, make).directory / "model.tflite").read_bytes()
        outputs, calibrated = outputs_of(content, self.evaluated), self.examples(seed)
        scores = {
            "bytes": len(content),
            "distortion": output_distortion(outputs, self.expected),
            "calibrated": output_distortion(outputs_of(content, calibrated), outputs_of(floating, calibrated)),
        }
        if self.labels is None:
            return scores
        classes, expected = (item[0].argmax(axis=1) for item in (outputs, self.expected))
        return scores | {
            "accuracy": float((classes == self.labels).mean()),
            "agreement": float((classes == expected).mean()),
            "gains": (classes == self.labels) * 1.0 - (expected == self.labels),
        }

    def header(self) -> str:
        """Return the head of the table and the row of the float model."""
        if self.labels is None:
            return f"| | SQNR: mean (draws) | bytes |\n|---|---|---|\n| float | | {len(self.floating):,} |"
        accuracy = float((self.expected[0].argmax(axis=1) == self.labels).mean())
        return (
            "| | accuracy: mean (draws) | agreement: mean (draws) | divergence | against float | bytes |\n"
            f"|---|---|---|---|---|---|\n| float | {accuracy:.2%} | | | | {len(self.floating):,} |"
        )


def row(name: str, draws: Sequence[Mapping[str, Any]]) -> str:
    """Return a line of the table."""
    cells, distortions = [name], [draw["distortion"] for draw in draws]
    if "accuracy" in draws[0]:
        for key in ("accuracy", "agreement"):
            values = [draw[key] for draw in draws]
            cells.append(f"{statistics.mean(values):.2%} ({', '.join(f'{100 * value:.2f}' for value in values)})")
        # The mean over the draws, for each example.
        gains = 100 * np.mean([draw["gains"] for draw in draws], axis=0)
        mean, half = gains.mean(), 1.96 * gains.std(ddof=1) / math.sqrt(len(gains))
        cells.append(f"{1000 * statistics.mean(distortions):.2f}")
        cells.append(f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})")
    else:
        decibels = [-10 * math.log10(value) for value in distortions]
        cells.append(f"{statistics.mean(decibels):.2f} dB ({', '.join(f'{value:.2f}' for value in decibels)})")
    sizes = {draw["bytes"] for draw in draws}
    cells.append(f"{statistics.mean(draw['bytes'] for draw in draws):,.0f}" + (" (mean)" if len(sizes) > 1 else ""))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="examples with classes, any source of tfq's --data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512, help="examples of a draw")
    parser.add_argument("--resize", default="", help="height and width, such as 48,48")
    parser.add_argument("--hard", action="store_true", help="make channels of very different size")
    parser.add_argument("--values", action="store_true", help="the labels are not for the model's outputs")
    parser.add_argument("--methods", nargs="*", default=[], help="only these rows")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", tfq.TfqWarning)
    frontier = Frontier(arguments)
    methods = frontier.methods()
    if unknown := [name for name in arguments.methods if name not in methods]:
        parser.error(f"unknown methods {unknown}; known are {list(methods)}")
    print(frontier.header(), flush=True)
    draws = {}
    for name in arguments.methods or methods:
        draws[name] = [frontier.scores(name, methods[name], seed) for seed in range(arguments.draws)]
        print(row(name, draws[name]), flush=True)
    if all(name in draws for name in SOLVERS):
        same_draw = zip(*(draws[name] for name in SOLVERS), strict=True)
        print(row("mixed 60%, best", [min(files, key=lambda item: item["calibrated"]) for files in same_draw]))


if __name__ == "__main__":
    main()

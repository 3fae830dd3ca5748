#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare images per second of tfq's local backend and a plain loop: wall time from arrays in memory to predictions.

The plain loop is one interpreter in this process: batch 1, one thread, XNNPACK, set_tensor, invoke, get_tensor. Both
get the same arrays alternately, and their outputs must be bit-identical. A "call" starts its workers by a fork of an
existing process, which tfq starts (`prepare`) while it reads the data. "first call" includes the start of that process
in the measured time, as if there was no data to read. "plain loops" is the limit: a plain loop on each core, over its
part of the images, in forks of this process. On 2 cores a call must give at least 1.7 times the images per
second. The exit code is 1 below that, or on a different output.

    python benchmarks/throughput.py --model=mlperf_tiny_resnet8_cifar10.h5 '--data=tfrecord:cifar10/cifar10-*'

Without --model the script uses the model in ../shared or, if that is missing, ResNet8 with random weights on random
pixels. It takes about a minute and a half. If the data has fewer than --examples images, they are repeated.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ai_edge_litert.interpreter import Interpreter

import tfq
from tfq.backends import RunRequest, forks, make_backend
from tfq.data import Split
from tfq.evaluation import prepare_inputs
from tfq.tflite import read

BOUND, CORES = 1.7, 2
SHARED = Path(__file__).resolve().parents[2] / "shared"


def plain_loop(model: bytes, inputs: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    fed = interpreter.get_input_details()[0]["index"]
    answer = interpreter.get_output_details()[0]["index"]
    outputs = []
    for index in range(len(inputs)):
        interpreter.set_tensor(fed, inputs[index : index + 1])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(answer)[0])
    return np.stack(outputs)


def shared_out(model: bytes, inputs: np.ndarray) -> np.ndarray:
    return make_backend("local").assess(RunRequest(model=model, inputs=(inputs,))).computed_outputs()[0]


def plain_loops(model: bytes, inputs: np.ndarray) -> np.ndarray:
    cores = len(os.sched_getaffinity(0))
    ends = np.linspace(0, len(inputs), cores + 1).astype(int)
    with concurrent.futures.ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool:
        parts = [pool.submit(_plain_loop_of_part, model, start, end) for start, end in itertools.pairwise(ends)]
        return np.concatenate([part.result() for part in parts])


def _plain_loop_of_part(model: bytes, start: int, end: int) -> np.ndarray:
    return plain_loop(model, _inputs[start:end])


# What forks see without a copy.
_inputs: np.ndarray
WAYS = {"plain loop": plain_loop, "call": shared_out, "first call": shared_out, "plain loops": plain_loops}


def flatbuffers(arguments: argparse.Namespace) -> tuple[dict[str, bytes], np.ndarray]:
    """Return the float and the int8 flatbuffer, and the images as float32 in the model's own unit."""
    count = arguments.examples
    if arguments.model:
        data = tfq.DataConfig(source=arguments.data)
        test = tfq.load_split(data, "test", limit=count)
        images = np.concatenate([next(iter(piece.inputs.values())) for piece in test.pieces()])
        images = np.resize(images, (count, *images.shape[1:]))
        samples: object = tfq.load_split(data, "train", limit=100)
        traced = tfq.trace(tfq.load_model(arguments.model))
    else:
        from tfq import models
        from tfq.keras_bridge import import_tf_keras

        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.float32)
        samples = images[:100]
        traced = tfq.trace(models.build("resnet8", import_tf_keras()))
    return {
        "int8": tfq.convert(traced, samples, tfq.ConversionConfig(scheme="int8")),
        "float32": tfq.convert(traced, None, tfq.ConversionConfig(scheme="float32")),
    }, images


def one_round(model: bytes, inputs: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    global _inputs
    _inputs, results = inputs, {}
    for name, way in WAYS.items():
        if name == "first call":
            forks.stop()
        start = time.perf_counter()
        outputs = way(model, inputs)
        results[name] = (time.perf_counter() - start, outputs)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if not arguments.model and SHARED.is_dir():
        arguments.model = str(SHARED / "models" / "mlperf_tiny_resnet8_cifar10.h5")
        arguments.data = f"tfrecord:{SHARED}/data/cifar10/cifar10-*"
    warnings.simplefilter("ignore")
    models, images = flatbuffers(arguments)
    cores, failed = len(os.sched_getaffinity(0)), False
    for scheme, model in models.items():
        (inputs,) = prepare_inputs(
            read(model), Split(name="test", inputs={"x": images}, labels=None, source="arrays")
        ).arrays
        rounds = [one_round(model, inputs) for _ in range(arguments.rounds + 1)][1:]
        for name in list(WAYS)[1:]:
            ratios = [result["plain loop"][0] / result[name][0] for result in rounds]
            same = all(np.array_equal(result["plain loop"][1], result[name][1]) for result in rounds)
            ratio, seconds = float(np.median(ratios)), float(np.median([result[name][0] for result in rounds]))
            plain = float(np.median([result["plain loop"][0] for result in rounds]))
            bound = f" (bound {BOUND:g}x)" if name == "call" and cores >= CORES else ""
            failed |= not same or (bool(bound) and ratio < BOUND)
            print(
                f"{scheme:8} {name:10} plain loop {len(inputs) / plain:7,.0f} images/s  "
                f"this way {len(inputs) / seconds:7,.0f} images/s  ratio {ratio:.2f}x{bound}, {min(ratios):.2f} to "
                f"{max(ratios):.2f}  {'same outputs' if same else 'DIFFERENT OUTPUTS'}",
                flush=True,
            )
    if cores < CORES:
        print(f"{cores} core: the bound holds from {CORES} on")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

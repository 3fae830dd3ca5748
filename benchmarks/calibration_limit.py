#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare the CPU time of calibration with its limit: a plain loop of inferences on one thread.

    python benchmarks/calibration_limit.py [--models=ResNet8,MobileNetV3Small] [--rounds=3]

The CPU time is that of this process and of all its children, from reading the flatbuffer and starting the children to
the ranges by the default method, as for an int8 file. Children on several cores compete for caches, which the loop on
one thread does not. Weights and samples are random. Children are forks of a process that starts once: the first round
of a model includes its start (imports of NumPy and LiteRT), the later rounds do not. The script prints the ratios of
both, and the CPU time of the loop.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfq
from tfq import tflite
from tfq.backends import forks
from tfq.models import MODELS
from tfq.ptq import calibration

# Name -> (arguments of the model in keras.applications, samples).
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "ResNet8": ({}, 500),
    "MobileNetV3Small": ({"input_shape": (48, 48, 3), "classes": 10}, 500),
    "EfficientNetB0": ({}, 100),
    "ResNet50": ({}, 60),
}


def float_model(name: str) -> bytes:
    from tfq.keras_bridge import import_keras, import_tf_keras

    if name == "ResNet8":
        model = MODELS["resnet8"](import_tf_keras())
    else:
        model = getattr(import_keras().applications, name)(weights=None, **CASES[name][0])
    return tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))


def cpu_secs() -> float:
    """Return the CPU seconds of this process and its descendants, with those that have ended."""
    spent, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], spent[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(spent[pid] for pid in own) / os.sysconf("SC_CLK_TCK")


def loop_secs(model: bytes, samples: list[np.ndarray]) -> float:
    from ai_edge_litert.interpreter import Interpreter

    begin = time.process_time()
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    for sample in samples:
        interpreter.set_tensor(source["index"], sample)
        interpreter.invoke()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        model, rng = float_model(name), np.random.default_rng(0)
        parsed = tflite.read(model)
        (tensor,) = parsed.main_subgraph.input_tensors
        samples = [rng.uniform(0, 255, tensor.shape).astype(np.float32) for _ in range(CASES[name][1])]
        feed = [{parsed.input_names[0]: sample} for sample in samples]
        loop_secs(model, samples[:8])
        ratios, loops = [], []
        forks.stop()
        for _ in range(arguments.rounds):
            loops.append(loop_secs(model, samples))
            begin = cpu_secs()
            calibration.calibrate_with_outputs(model, feed, fixed_scales=True)
            ratios.append((cpu_secs() - begin) / loops[-1])
        first, *later = (f"{ratio:.1f}" for ratio in ratios)
        print(
            f"{name}, {len(samples)} samples, loop {min(loops):.2f} s: first {first}, later {', '.join(later)}",
            flush=True,
        )


if __name__ == "__main__":
    main()

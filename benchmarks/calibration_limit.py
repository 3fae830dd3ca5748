#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare the CPU time of calibration with its limit: a plain loop of inferences on one thread.

    python benchmarks/calibration_limit.py [--models=ResNet8,MobileNetV3Small] [--rounds=2]

The CPU time is that of this process and of all its children, from reading the flatbuffer and starting the children to
the ranges by the default method. Children on several cores compete for caches, which the loop on one thread does not.
Weights and samples are random. The script prints the ratio of each round.
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
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        model, rng = float_model(name), np.random.default_rng(0)
        parsed = tflite.read(model)
        (tensor,) = parsed.main_subgraph.input_tensors
        samples = [rng.uniform(0, 255, tensor.shape).astype(np.float32) for _ in range(CASES[name][1])]
        feed = [{parsed.input_names[0]: sample} for sample in samples]
        loop_secs(model, samples[:8])
        ratios = []
        for _ in range(arguments.rounds):
            loop, begin = loop_secs(model, samples), cpu_secs()
            calibration.calibrate(model, feed)
            ratios.append((cpu_secs() - begin) / loop)
        print(f"{name}, {len(samples)} samples: " + ", ".join(f"{ratio:.1f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()

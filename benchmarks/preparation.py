#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Where the CPU time goes before the first step of training: the bridge from Keras 3, preflight, and QAT's rewriting.

    python benchmarks/preparation.py [--families=MobileNetV3Small,ResNet50] [--size=64]

A Markdown table: CPU seconds of this process, of each stage and of its parts. tfmot's part of the rewriting is
quantize_apply (three clones of the model by tf_keras); ours is what remains: the clone that is annotated, the clone
that keeps the given model as it is, and the gate, which runs both models. Random weights. The same model by stock
tfmot.quantization.keras.quantize_model, where that ends, stands beside it: tf_keras' own model, for it takes no other.
"""

import argparse
import contextlib
import functools
import importlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from family_matrix import zoo

import tfq
from tfq.compression.preflight import preflight
from tfq.compression.qat import qat
from tfq.keras_bridge import import_keras, import_tf_keras, import_tfmot

# (what it is called, module, function): parts of the stages, by the functions that do them.
PARTS = (
    ("bridge: layers", "tfq.keras_bridge.bridge", "rebuild"),
    ("bridge: weights", "tfq.keras_bridge.bridge", "copy_weights"),
    ("bridge: comparison", "tfq.keras_bridge.bridge", "_verified"),
    ("QAT: our clones", "tfq.compression.qat.qat", "cloned"),
    ("QAT: our gate", "tfq.compression.qat.qat", "check_same_function"),
)
TFMOT = "QAT: tfmot"
STAGES = ("bridge", "preflight", "QAT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="MobileNetV3Small,ResNet50")
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keras, tf_keras, tfmot = import_keras(), import_tf_keras(), import_tfmot()
    columns = [*STAGES, *(name for name, _, _ in PARTS), TFMOT, "stock tfmot"]
    print("| CPU s | layers | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name in arguments.families.split(","):
        model = zoo.build(keras, name, arguments.size)
        spent: dict[str, float] = {}
        with timed_parts(spent, tfmot):
            bridged = measured(spent, "bridge", tfq.to_tf_keras, model)
            measured(spent, "preflight", preflight, bridged)
            spent.update(dict.fromkeys(("QAT: our clones", "QAT: our gate", TFMOT), 0.0))
            measured(spent, "QAT", qat.quantized, bridged.model)
        cells = [f"{spent.get(column, 0.0):.1f}" for column in columns[:-1]]
        cells.append(stock(zoo.build(tf_keras, name, arguments.size), tfmot))
        print(f"| {name} | {len(bridged.model.layers)} | " + " | ".join(cells) + " |", flush=True)


def measured(spent: dict[str, float], what: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What `call` gives; the CPU seconds that it took are added to `spent`."""
    begin = time.process_time()
    try:
        return call(*args, **named)
    finally:
        spent[what] = spent.get(what, 0.0) + time.process_time() - begin


@contextlib.contextmanager
def timed_parts(spent: dict[str, float], tfmot: Any) -> Iterator[None]:
    """Within, each of PARTS and quantize_apply adds its time to `spent`."""
    owners = [(importlib.import_module(module), function, what) for what, module, function in PARTS]
    owners.append((tfmot.quantization.keras, "quantize_apply", TFMOT))
    before = [(owner, function, getattr(owner, function)) for owner, function, _ in owners]
    try:
        for (owner, function, what), (_, _, real) in zip(owners, before, strict=True):
            setattr(owner, function, _timed(spent, what, real))
        yield
    finally:
        for owner, function, real in before:
            setattr(owner, function, real)


def _timed(spent: dict[str, float], what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(measured, spent, what, real)


def stock(model: Any, tfmot: Any) -> str:
    """CPU seconds of quantize_model, or what it raises."""
    begin = time.process_time()
    try:
        tfmot.quantization.keras.quantize_model(model)
    except Exception as error:  # whatever it raises is the result
        return type(error).__name__
    return f"{time.process_time() - begin:.1f}"


if __name__ == "__main__":
    main()

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure the CPU time before the first training step: the bridge from Keras 3, preflight, and QAT's rewriting.

    python benchmarks/preparation.py [--families=MobileNetV3Small,ResNet50] [--size=64]

The script prints a Markdown table with the CPU seconds of this process for each stage and its parts. QAT consists of
a copy that keeps the input model unchanged, tfmot's wrappers around the copied layers, and the gate, which runs both
models. Weights are random. The last column shows stock tfmot.quantization.keras.quantize_model, if it ends, on
tf_keras' own model, the only kind that it accepts.
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

# (name in the table, module, function): parts of the stages, by the functions that run them.
PARTS = (
    ("bridge: layers", "tfq.keras_bridge.bridge", "rebuild"),
    ("bridge: weights", "tfq.keras_bridge.bridge", "copy_weights"),
    ("bridge: comparison", "tfq.keras_bridge.bridge", "_verify"),
    ("QAT: copy", "tfq.compression.qat.qat", "_copied"),
    ("QAT: wrappers", "tfq.compression.qat.qat", "_wrapped"),
    ("QAT: gate", "tfq.compression.qat.qat", "check_same_function"),
)
STAGES = ("bridge", "preflight", "QAT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="MobileNetV3Small,ResNet50")
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keras, tf_keras, tfmot = import_keras(), import_tf_keras(), import_tfmot()
    columns = [*STAGES, *(name for name, _, _ in PARTS), "stock tfmot"]
    print("| CPU s | layers | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name in arguments.families.split(","):
        model = zoo.build(keras, name, arguments.size)
        spent: dict[str, float] = {}
        with timed_parts(spent):
            bridged = measured(spent, "bridge", tfq.to_tf_keras, model)
            measured(spent, "preflight", preflight, bridged)
            spent.update((name, 0.0) for name, _, _ in PARTS if name.startswith("QAT"))
            measured(spent, "QAT", qat.quantized, bridged.model)
        cells = [f"{spent.get(column, 0.0):.1f}" for column in columns[:-1]]
        cells.append(stock(zoo.build(tf_keras, name, arguments.size), tfmot))
        print(f"| {name} | {len(bridged.model.layers)} | " + " | ".join(cells) + " |", flush=True)


def measured(spent: dict[str, float], what: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Return the result of `call`; add its CPU seconds to `spent`."""
    begin = time.process_time()
    try:
        return call(*args, **named)
    finally:
        spent[what] = spent.get(what, 0.0) + time.process_time() - begin


@contextlib.contextmanager
def timed_parts(spent: dict[str, float]) -> Iterator[None]:
    """Add the time of each of PARTS to `spent` inside the context."""
    owners = [(importlib.import_module(module), function, what) for what, module, function in PARTS]
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
    """Return the CPU seconds of quantize_model, or its exception."""
    begin = time.process_time()
    try:
        tfmot.quantization.keras.quantize_model(model)
    except Exception as error:  # any exception is the result
        return type(error).__name__
    return f"{time.process_time() - begin:.1f}"


if __name__ == "__main__":
    main()

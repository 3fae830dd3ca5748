#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Check that tfq's average latency is within 5% of that of LiteRT's own tool: same models, XNNPACK, one thread.

The tool is the wheel's `ai_edge_litert.tools.benchmark_litert_model`. It times a call of CompiledModel, which hands
over buffers before and after the interpreter runs. The equivalent in tfq is an inference including setting its inputs
and fetching its outputs (mean_ms + overhead_ms). The interpreter alone (mean_ms) is printed next to it. The two
alternate in one process in blocks of about 30 ms, in reversed order each time: whole alternating processes differ by
20% on a machine that does other work too. The ratio of a model is the median of its rounds. Models: ResNet8 as int8 and
as float, MLPerf Tiny's own int8 file, MobileNetV2 0.35 @96 int8 (random weights). The exit code is 1 if a ratio is off
by more than 5%. The script takes about a minute and a half and needs ../shared.

    python benchmarks/litert_tool.py [--rounds=100]
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ai_edge_litert.tools.benchmark_litert_model as litert_tool
import numpy as np

import tfq
from tfq.backends.target import benchmark as target
from tfq.evaluation.benchmark import timed_model
from tfq.evaluation.paired import paired_ratio
from tfq.keras_bridge import import_tf_keras, load_model

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "models"
BOUND = 0.05
WARMUP_RUNS = 10
BLOCK_MS = 30
# The tool rounds to 0.01 ms, up to 8% of the time of these models, so its results are read before rounding.
litert_tool.round = lambda value, digits: value


def models() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    traced = tfq.trace(load_model(SHARED / "mlperf_tiny_resnet8_cifar10.h5"))
    images = rng.uniform(0, 255, (20, 32, 32, 3)).astype(np.float32)
    mobile = import_tf_keras().applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)
    larger = rng.uniform(-1, 1, (20, 96, 96, 3)).astype(np.float32)
    settings = tfq.ConversionConfig(num_calibration_samples=20)
    return {
        "resnet8 int8": tfq.convert(traced, images, settings),
        "resnet8 float32": tfq.convert(traced, None, tfq.ConversionConfig(scheme="float32")),
        "resnet8 int8 of MLPerf": (SHARED / "mlperf_tiny_resnet8_cifar10_int8.tflite").read_bytes(),
        "mobilenet_v2 int8": tfq.convert(mobile, larger, settings),
    }


def by_tool(path: Path, num_runs: int) -> float:
    """Return the tool's average in ms."""
    flags = [f"--model={path}", f"--num_runs={num_runs}", f"--warmup_runs={WARMUP_RUNS}", "--num_threads=1"]
    before, sys.argv = sys.argv, ["benchmark_litert_model", *flags]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return litert_tool.run_benchmark(litert_tool.parse_args())["latency"]["avg_ms"]
    finally:
        sys.argv = before


def entry_of(content: bytes, directory: Path) -> target.Entry:
    """Return what `tfq benchmark` times on the target, with the inputs that it generates."""
    model, _ = timed_model("model", content, tfq.tflite.read(content), None, 0)
    names = []
    for index, array in enumerate(model.inputs):
        names.append(f"input_{index}.npy")
        np.save(directory / names[-1], array)
    entry = {"model": "model.tflite", "inputs": names, "kernels": "xnnpack"}
    return target.Entry(str(directory), {"entries": [entry], "num_threads": 1}, 0)


def compare(name: str, content: bytes, rounds: int) -> bool:
    """Print one line and return whether the ratio is within the bound."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        entry = entry_of(content, Path(folder))
        entry.run(WARMUP_RUNS)
        num_runs = max(5, int(BLOCK_MS * 1e6 / statistics.median(entry.run(50)[0])))
        theirs = []
        for turn in range(rounds):
            for tool in (True, False) if turn % 2 else (False, True):
                if tool:
                    theirs.append(by_tool(path, num_runs))
                else:
                    entry.run(WARMUP_RUNS)
                    entry.run_block(num_runs, settle=False)
    alone, ours = np.array(entry.blocks).T
    ratio, bare = float(np.median(ours / theirs)), float(np.median(alone / theirs))
    interval = paired_ratio(ours, theirs)
    within = abs(ratio - 1) <= BOUND
    message = "" if interval.low is None else f"; mean of all {interval.low:.3f} to {interval.high:.3f}, 95%"
    print(
        f"{name:24} tool {np.median(theirs):.4f} ms  tfq {np.median(ours):.4f} ms  ratio {ratio:.3f} "
        f"(bound {1 - BOUND:g} to {1 + BOUND:g}{message})  interpreter alone {bare:.3f}{'' if within else '  MISSED'}",
        flush=True,
    )
    return within


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        built = models()
    within = [compare(name, content, options.rounds) for name, content in built.items()]
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())

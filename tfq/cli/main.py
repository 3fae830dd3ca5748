# SPDX-License-Identifier: Apache-2.0
"""The console script: `tfq convert --model=...` runs pipelines/convert.py."""

import importlib
import sys

from tfq import __version__
from tfq.errors import did_you_mean

COMMANDS = {
    "train": "train a model that tfq builds, on your data",
    "compress": "prune and quantization-aware train a tf_keras model",
    "convert": "make a .tflite of a model, full int8 by default",
    "audit": "show what every op of a .tflite computes in, and whether it is full int8",
    "evaluate": "run a .tflite on data, here or on emulated ARM, against its float model",
    "analyze": "tell which layers of an int8 .tflite differ from its float model, and why",
    "benchmark": "time .tflite files side by side, and tell their most expensive ops",
    "search": "find the cheapest int8 .tflite that keeps a budget, without training",
    "bits": "tell how accurate a model stays with fewer and fewer bits, without training",
    "run": "all of it from one config: train, compress, convert, audit, evaluate, report",
}


def main() -> None:
    """Hand the command line to the command that its first word names; exits as that command does."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print("tfq COMMAND [--FLAG=VALUE ...]: takes a Keras model to a full-int8 .tflite, and proves what it became\n")
        print("\n".join(f"  tfq {command:9} {summary}" for command, summary in COMMANDS.items()))
        print("\ntfq COMMAND --help lists the flags of a command; tfq --version prints the version.")
        sys.exit(0)
    if name == "--version":
        print(f"tfq {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        print(f"tfq: unknown command {name!r}: {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    try:
        importlib.import_module(f"tfq.pipelines.{name}").cli([f"tfq {name}", *sys.argv[2:]])
    except KeyboardInterrupt:  # while the imports were under way
        print(f"tfq {name}: interrupted", file=sys.stderr)
        sys.exit(130)

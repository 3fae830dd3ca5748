#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Count the instructions of an inference on emulated ARM CPUs: each .tflite against the first one, each counted twice.

A count is not a time. The two counts come from two processes; the exit code is 1 if they differ by an instruction. The
inputs are zeros, because the kernels do the same work for all values. A small model takes about 5 s per CPU.

    python -m tfq.backends.qemu.sysroot                                (once: installs the emulator)
    python benchmarks/instructions.py FLOAT.tflite INT8.tflite ... [--kernels=xnnpack]
"""

import argparse
import sys
from pathlib import Path

from tfq import registry
from tfq.backends import BackendKind
from tfq.config import KERNELS
from tfq.errors import TfqError
from tfq.evaluation import count_instructions

CPUS = [name for kind in registry.entries(BackendKind).values() if kind.counts_instructions for name in kind.choices()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.tflite")
    parser.add_argument("--kernels", default="xnnpack", choices=KERNELS)
    arguments = parser.parse_args()
    width = max(len(path.stem) for path in arguments.models)
    differ = []
    print(f"{'':{width}}" + "".join(f"  {name:>20} {'':>8}" for name in CPUS))
    first: dict[str, int] = {}
    for path in arguments.models:
        cells = []
        for backend in CPUS:
            counts = [count_instructions(path.read_bytes(), backend, kernels=arguments.kernels) for _ in range(2)]
            one, other = (count.instructions for count in counts)
            if one != other:
                differ.append(f"{path.name} on {backend}: {one:,} and {other:,}")
            ratio = first.setdefault(backend, one) / one
            cells.append(f"  {one:>20,} {ratio:>7.2f}x")
        print(f"{path.stem:{width}}" + "".join(cells), flush=True)
    print(f"\ninstructions an inference (a count, not a time), {arguments.kernels} kernels, one thread")
    for message in differ:
        print(f"DIFFERENT COUNTS: {message}")
    return 1 if differ else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TfqError as error:
        print(f"benchmarks/instructions.py: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

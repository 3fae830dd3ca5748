#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare published `.tflite` files with their float32 form, which tfq converts and analyzes.

    python benchmarks/published_files.py FILE.tflite ...

Both files run in this interpreter, with XNNPACK and with the builtin kernels, on the same random inputs. The exit code
is 1 if the outputs of a file with float16 or sparse weights are not bit-identical. A second takes about three files.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import tfq
from tfq.tflite import with_float_constants, with_inlined_composites

RESOLVERS = {
    "XNNPACK": OpResolverType.AUTO,
    "builtin kernels": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


def outputs(model: bytes, resolver: OpResolverType) -> list[np.ndarray]:
    """Return the outputs for one random input."""
    interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    generator = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        values = generator.normal(size=detail["shape"])
        is_float = np.issubdtype(detail["dtype"], np.floating)
        interpreter.set_tensor(detail["index"], (values if is_float else abs(values)).astype(detail["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def difference(source: bytes, result: bytes, resolver: OpResolverType) -> float | str:
    """Return the largest difference of the outputs relative to their largest value, or why there is none."""
    try:
        pairs = list(zip(outputs(source, resolver), outputs(result, resolver), strict=True))
    except (RuntimeError, ValueError) as error:
        return str(error).split(":")[0].split(".")[0]
    if all(np.array_equal(a, b) for a, b in pairs):
        return 0.0
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def main() -> int:
    """Print a row for each file; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    warnings.simplefilter("ignore", tfq.TfqWarning)
    print(f"| file | scheme | bytes | float32 bytes | replaced | {' | '.join(RESOLVERS)} |")
    print("|---" * (5 + len(RESOLVERS)) + "|")
    failed = False
    for path in parser.parse_args().files:
        source = path.read_bytes()
        result = with_float_constants(with_inlined_composites(source))
        stored = ", ".join(f"{count} {kind}" for kind, count in result.stored.items()) or "nothing"
        differences = [difference(source, result.content, resolver) for resolver in RESOLVERS.values()]
        cells = [item if isinstance(item, str) else "identical" if item == 0 else f"{item:.1e}" for item in differences]
        scheme = tfq.audit(source, execute=False).scheme
        sizes = f"{len(source):,} | {len(result.content):,}"
        print(f"| {path.name} | {scheme} | {sizes} | {stored} | {' | '.join(cells)} |", flush=True)
        exact = all("float" in kind for kind in result.stored)
        failed |= exact and any(isinstance(item, float) and item != 0 for item in differences)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

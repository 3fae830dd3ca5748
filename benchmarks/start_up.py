#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Check start-up times: static part of `tfq audit` and `tfq evaluate --help` within 0.7 s, `import tfq` within 0.15 s.

Each figure is the median of several processes that run alternately; the start of the bare interpreter is printed for
comparison. The exit code is 1 if a bound is missed, or if TensorFlow is among the loaded modules.

    python benchmarks/start_up.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
ROUNDS = 9


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def import_seconds() -> float:
    code = "import time; start = time.perf_counter(); import tfq; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def loads_tensorflow(arguments: list[str]) -> bool:
    command = [sys.executable, "-X", "importtime", "-m", "tfq", *arguments]
    message = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return any(line.rpartition("|")[2].strip() == "tensorflow" for line in message.splitlines())


def main() -> int:
    audit = ["audit", f"--model={GOLDEN / 'digits_int8.tflite'}", "--require=full_int8", "--noexecute"]
    cases = {"tfq audit": (audit, 0.7), "tfq evaluate --help": (["evaluate", "--help"], 0.7)}
    seconds: dict[str, list[float]] = {name: [] for name in ["python -c pass", *cases, "import tfq"]}
    for _ in range(ROUNDS):
        seconds["python -c pass"].append(timed([sys.executable, "-c", "pass"]))
        for name, (arguments, _bound) in cases.items():
            seconds[name].append(timed([sys.executable, "-m", "tfq", *arguments]))
        seconds["import tfq"].append(import_seconds())
    bounds = {name: bound for name, (_, bound) in cases.items()} | {"import tfq": 0.15}
    missed = [name for name, bound in bounds.items() if statistics.median(seconds[name]) > bound]
    heavy = [name for name, (arguments, _) in cases.items() if loads_tensorflow(arguments)]
    for name, values in seconds.items():
        bound = f"bound {bounds[name]:g} s" if name in bounds else ""
        spread = f"(min {min(values):.3f}, max {max(values):.3f})"
        print(f"{name:22} median {statistics.median(values):.3f} s  {spread}  {bound}")
    for name in missed:
        print(f"MISSED: {name}")
    for name in heavy:
        print(f"LOADS TENSORFLOW: {name}")
    return 1 if missed or heavy else 0


if __name__ == "__main__":
    sys.exit(main())

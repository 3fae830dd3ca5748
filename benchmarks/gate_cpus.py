#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Evaluate the same files on this CPU and on emulated x86 CPUs without AVX-512, and compare the records with the gate.

    python benchmarks/gate_cpus.py --qemu=x/usr/bin/qemu-x86_64 [--cpus=Haswell,Nehalem] [--limit=64]
        [--model=FILE --reference=FILE --data=cifar10]

Haswell has AVX2, Nehalem only SSE4.2. XNNPACK chooses its kernels by CPUID, which the emulator answers. On Debian:

    apt-get download qemu-user libcapstone4 liburing2; for file in *.deb; do dpkg-deb -x $file x; done

Without --model it evaluates the digits in every scheme of tests/golden. The records stay in --out, and a record that is
there is not computed again. The exit code is 1 if the gate fails. About 40 seconds of CPU time for each file and CPU.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tfq import comparison
from tfq.evaluation.figure_readers import per_example_of
from tfq.text_table import aligned

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
FILES = ("int8", "int8_per_tensor", "int8_qat", "int8_float_io", "int16x8", "dynamic_range", "float16", "float32")
# Features of these CPUs that the emulator does not have; it prints a warning for each.
WITHOUT = {"Haswell": "pcid,x2apic,tsc-deadline,hle,invpcid,rtm", "Nehalem": ""}
# What a CPU before AVX-512, or before AVX, does not have, by the names of /proc/cpuinfo.
NEWER = {
    "Haswell": r" (avx512\w*|gfni|vaes|vpclmulqdq|sha_ni)",
    "Nehalem": r" (avx\w*|fma|f16c|bmi\d|gfni|vaes|vpcl\w*)",
}


def interpreter(cpu: str, qemu: Path, out: Path) -> str:
    """Write a program that runs Python and its child processes on an emulated CPU; return its path."""
    directory = out / cpu
    (directory / "proc").mkdir(parents=True, exist_ok=True)
    text = re.sub(r"(model name\s*): .*", rf"\1: {cpu} (emulated)", Path("/proc/cpuinfo").read_text())
    (directory / "proc" / "cpuinfo").write_text(re.sub(NEWER[cpu], "", text))
    model = ",-".join([cpu, *filter(None, WITHOUT[cpu].split(","))])
    python, program = os.path.realpath(sys.executable), directory / "python"
    packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    libraries = qemu.parent.parent / "lib" / f"{platform.machine()}-linux-gnu"
    program.write_text(
        f"#!/bin/sh\nexport LD_LIBRARY_PATH={libraries} PYTHONHOME={sys.base_prefix} PYTHONPATH={packages}\n"
        f'exec {qemu} -L {directory} -cpu {model} -0 {program} {python} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


def evaluate(program: str, directory: Path, model: Path, options: argparse.Namespace) -> dict:
    """Return the record of an evaluation by this interpreter."""
    record = directory / model.stem / "evaluate.json"
    if not record.exists():
        command = [program, "-m", "tfq", "evaluate", f"--model={model}", f"--reference={options.reference}"]
        command += [f"--data={options.data}", f"--limit={options.limit}", "--backends=none", "--num_runs=0"]
        command += [f"--data.scale={options.scale}", f"--out={record.parent}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(record.read_text())


def changes(here: dict, there: dict) -> list[str]:
    """Return both SQNRs, and how many predictions and how many examples differ."""
    results = [per_example_of(item) for item in (here, there)]
    outputs = [next(iter(item.outputs.values())) for item in results if item is not None]
    predictions = int(np.count_nonzero(outputs[0].predicted != outputs[1].predicted))
    noises = "-"
    if outputs[0].noise_db is not None and outputs[1].noise_db is not None:
        noises = str(np.count_nonzero(outputs[0].noise_db != outputs[1].noise_db))
    sqnr = [item["output_sqnr_db"] for item in (here, there)]
    return [*("exact" if value is None else f"{value:.6f}" for value in sqnr), str(predictions), noises]


def verdict(result: comparison.Gate) -> str:
    """Return "passed", or what failed."""
    return "passed" if result.holds else "; ".join(result.failures)


def main() -> None:
    """Print a row for each file and CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", type=Path, required=True)
    parser.add_argument("--cpus", default="Haswell,Nehalem")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--reference", type=Path, default=GOLDEN / "digits_float32.tflite")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("out/gate_cpus"))
    options = parser.parse_args()
    out = options.out.resolve()
    models = [options.model] if options.model else [GOLDEN / f"digits_{name}.tflite" for name in FILES]
    rows, holds = [["file", "CPU", "SQNR here", "SQNR there", "other class", "other noise", "gate"]], True
    for model in models:
        here = evaluate(sys.executable, out / "here", model, options)
        for cpu in options.cpus.split(","):
            there = evaluate(interpreter(cpu, options.qemu.resolve(), out), out / cpu, model, options)
            result = comparison.gate_records(there, here)
            rows.append([model.stem, cpu, *changes(here["evaluation"], there["evaluation"]), verdict(result)])
            holds &= result.holds
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print("\n".join(aligned(rows, left=2)))
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()

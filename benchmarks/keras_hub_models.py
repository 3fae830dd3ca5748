#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Convert, translate and quantization-aware train backbones of KerasHub in small configurations.

Each model gets random weights with biases and statistics that matter, is converted to int8 with calibration and
verified, and is translated to tf_keras. The convolutional ones are trained before on five synthetic classes, and later
for two steps with fake quantization, and converted to full int8. Models below 20 dB are also converted to int16x8. The
files run on LiteRT's interpreter and are compared with the Keras model. Each model runs
in a separate process: a crash is a result. tfq does not depend on KerasHub and keras-tcn; install them next to it:

    python -m venv hub && hub/bin/pip install -c constraints.txt -e . keras-hub keras-tcn
    hub/bin/python benchmarks/keras_hub_models.py --out=out/keras_hub [--models=ResNet,ViT] [--fresh]

Each result is a file in --out, so a killed run resumes; --fresh measures everything again. The script prints a Markdown
table and saves it in --out. The exit code is 1 if a model misses a bound: a verified conversion of at least MIN_SQNR
dB, a translation that differs by at most MAX_DIFFERENCE of the output's range, a QAT model that computes exactly what
the float model does if nothing is rounded, and a full int8 file of it. All models take about an hour.
"""

import argparse
import datetime
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

from keras_hub_matrix import measure, zoo

from tfq.artifacts import make_out_dir, read_json, write_json, write_text
from tfq.errors import InputError, did_you_mean

MAX_SECS = 1800
MIN_SQNR = 12.0
MAX_DIFFERENCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="names, with commas between them; empty is all")
    parser.add_argument("--out", default="out/keras_hub", help="directory of the results")
    parser.add_argument("--fresh", action="store_true", help="forget the results of these models")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure.measure(arguments.one, Path(arguments.out))
        return 0
    try:
        names, out = _chosen(arguments.models), make_out_dir(arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    records = {}
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        records[name] = _record(name, out / name.split()[0], fresh=arguments.fresh)
        missed = misses(records[name], name)
        print(f"  {'MISSES: ' + '; '.join(missed) if missed else 'passes'}", flush=True)
    text = table(records)
    write_text(out / "keras_hub.md", text)
    print(f"\n{text}")
    return 1 if any(misses(record, name) for name, record in records.items()) else 0


def _chosen(names: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",") if name.strip()] or list(zoo.MODELS)
    for name in chosen:
        if name not in zoo.MODELS:
            raise InputError(f"--models: {name!r} is unknown: {did_you_mean(name, list(zoo.MODELS))}")
    return chosen


def _record(name: str, folder: Path, *, fresh: bool) -> dict[str, Any]:
    """Return the record of one model; measure it in a child process if `folder` does not have it."""
    path = folder / "record.json"
    if path.exists() and not fresh:
        record: dict[str, Any] = read_json(path)
        return record
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stages.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, f"--one={name}", f"--out={folder}"]
    try:
        with (folder / "log.txt").open("w") as log:
            code = subprocess.run(command, stderr=log, timeout=MAX_SECS, check=False).returncode
        ended = "" if code == 0 else f"ended with {code}"
    except subprocess.TimeoutExpired:
        ended = f"took more than {MAX_SECS} s"
    record = read_json(folder / "stages.json") if (folder / "stages.json").exists() else {"stages": {}}
    if ended and "error" not in record:
        record["error"] = {"stage": "process", "type": "process", "message": ended}
    record["date"] = datetime.date.today().isoformat()
    record["versions"] = {package: version(package) for package in ("keras", "keras-hub", "keras-tcn", "tensorflow")}
    write_json(path, record)
    return record


def misses(record: dict[str, Any], name: str) -> list[str]:
    """Return the bounds that a model misses."""
    if "error" in record:
        return [f"{record['error']['stage']}: {record['error']['message'][:300]}"]
    stages = record["stages"]
    checks = {
        "the conversion is not verified": stages["ptq"]["verified"],
        f"SQNR below {MIN_SQNR} dB": stages["ptq"]["sqnr"] >= MIN_SQNR,
        "the translation differs": stages["bridge"]["max_difference"] <= MAX_DIFFERENCE,
    }
    if zoo.MODELS[name].trained:
        checks |= {
            "fake quantization changes the function": stages["qat"]["identity"] <= 1e-6,
            "the QAT file is not full int8": stages["convert"]["full_int8"],
            f"SQNR of the QAT file below {MIN_SQNR} dB": stages["convert"]["sqnr_qat"] >= MIN_SQNR,
        }
    return [message for message, holds in checks.items() if not holds]


def table(records: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| model | parameters | int8: verified, SQNR (int16x8) | accuracy: float, int8 | full int8 | "
        "bridge: largest difference | layers | "
        "QAT without rounding | QAT file: SQNR to the QAT model, to float |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | " + " | ".join(_cells(record)) + " |" for name, record in records.items()]
    dates = sorted({record["date"] for record in records.values()})
    versions = next(iter(records.values()))["versions"]
    packages = ", ".join(f"{package} {number}" for package, number in versions.items())
    return "\n".join([*lines, "", f"{dates[-1]}; {packages}.", ""])


def _cells(record: dict[str, Any]) -> list[str]:
    stages = record["stages"]
    weights, ptq, bridge = stages.get("weights", {}), stages.get("ptq"), stages.get("bridge")
    qat, converted = stages.get("qat"), stages.get("convert")
    error = f"{record['error']['stage']} failed" if "error" in record else ""
    wide = f" ({ptq['sqnr_int16x8']:.1f} dB)" if ptq and "sqnr_int16x8" in ptq else ""
    return [
        f"{weights.get('parameters', 0):,}",
        f"{'yes' if ptq['verified'] else 'no'}, {ptq['sqnr']:.1f} dB{wide}" if ptq else error,
        f"{weights['accuracy']:.0%}, {ptq['accuracy']:.0%}" if ptq and ptq["accuracy"] is not None else "",
        ("yes" if ptq["full_int8"] else "no") if ptq else "",
        f"{bridge['max_difference']:.1g}" if bridge else error,
        str(bridge["layers"]) if bridge else "",
        f"differs by {qat['identity']:.1g}" if qat else error,
        f"{converted['sqnr_qat']:.1f}, {converted['sqnr_float']:.1f} dB" if converted else error if qat else "",
    ]


if __name__ == "__main__":
    sys.exit(main())

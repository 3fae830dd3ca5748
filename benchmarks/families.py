#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run fifteen families of keras.applications through all of tfq, and compare with stock tfmot.

Each family is built with Keras 3, trained briefly so that its outputs are meaningful, bridged to tf_keras, checked by
preflight, pruned to 50%, quantization-aware trained, converted to full int8 and audited. Its flatbuffer is compared
with the QAT model on at least 256 images. The bounds are in family_matrix/verdict.py. Every family, and stock tfmot on
the model of either Keras, runs in a separate process: a crash or a hang is a result.

    python benchmarks/families.py --out=out/families [--families=MobileNet,VGG16] [--data=digits] [--size=64]
        [--train_steps=80] [--tune_steps=80] [--limit=256] [--fresh] [--nostock]

Each result is a file in --out, so a killed run resumes; --fresh measures everything again. The script prints a Markdown
table and saves it in --out. The exit code is 1 if a family misses a bound. All fifteen take hours.
"""

import argparse
import dataclasses
import datetime
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from family_matrix import verdict
from family_matrix.settings import FAMILY_NAMES, Settings

from tfq.artifacts import make_out_dir, read_json, write_json, write_text
from tfq.errors import InputError, did_you_mean
from tfq.provenance import code_sha256, cpu, package_versions

CHAIN_SECS = 3 * 3600
# CPU seconds instead of wall time, because others may share the machine. The slowest stock tfmot run that ends needs
# about 65.
STOCK_CPU_SECS, STOCK_SECS = 300, 3600
KERASES = ("tf_keras", "keras")


def main() -> int:
    arguments = parsed()
    settings = Settings(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)})
    if arguments.one:
        return child(arguments.one, settings, Path(arguments.out))
    try:
        names = chosen_families(arguments.families)
        out = make_out_dir(arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    records = {}
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        records[name] = family(name, settings, out / name, fresh=arguments.fresh, stock=arguments.stock)
        result = verdict.misses(records[name], name)
        print(f"  {'MISSES: ' + '; '.join(result) if result else 'passes'}", flush=True)
    text = verdict.table(records, heading(settings, records))
    write_text(out / "families.md", text)
    print(f"\n{text}")
    return 1 if any(verdict.misses(record, name) for name, record in records.items()) else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="", help="names, with commas between them; empty is all fifteen")
    parser.add_argument("--out", default="out/families", help="directory of the results")
    parser.add_argument("--fresh", action="store_true", help="forget the results that --out holds of these families")
    parser.add_argument("--stock", action="store_true", default=True, help="measure stock tfmot as well (default)")
    parser.add_argument("--nostock", action="store_false", dest="stock")
    parser.add_argument(
        "--one", default="", help=argparse.SUPPRESS
    )  # what a child measures: chain:NAME, stock:NAME:KERAS
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default, help=field.metadata["help"]
        )
    return parser.parse_args()


def chosen_families(names: str) -> list[str]:
    """Return the named families in the order of the table. Raise InputError for an unknown one."""
    expected = [name.strip() for name in names.split(",") if name.strip()] or list(FAMILY_NAMES)
    for name in expected:
        if name not in FAMILY_NAMES:
            raise InputError(f"--families: {name!r} is not one of the fifteen: {did_you_mean(name, FAMILY_NAMES)}")
    return [name for name in FAMILY_NAMES if name in expected]


def family(name: str, settings: Settings, folder: Path, *, fresh: bool, stock: bool) -> dict[str, Any]:
    """Return the record of one family. Measure only what `folder` does not have for these settings."""
    if fresh or (folder.exists() and kept(folder / "settings.json") != dataclasses.asdict(settings)):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "settings.json", dataclasses.asdict(settings))
    record = kept(folder / "record.json") or measured(name, settings, folder)
    for kind in KERASES if stock else ():
        if kind not in record["stock"]:
            record["stock"][kind] = stock_measured(name, kind, settings, folder)
            print(f"  stock, {kind}: {verdict.stock_cell(record['stock'][kind])}", flush=True)
            write_json(folder / "record.json", record)
    return record


def kept(path: Path) -> Any:
    """Return the value of a JSON file; None if the file is missing."""
    return read_json(path) if path.exists() else None


def measured(name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """Measure all stages of one family in a child process."""
    (folder / "chain.json").unlink(missing_ok=True)
    ended = run_child(f"chain:{name}", settings, folder, timeout_secs=CHAIN_SECS)
    record = kept(folder / "chain.json") or {"stages": {}}
    if ended and "error" not in record:
        stage = f"after {list(record['stages'])[-1]}" if record["stages"] else "at the start"
        record["error"] = {"stage": stage, "type": "process", "message": ended}
    record |= {"date": datetime.date.today().isoformat(), "code_sha256": code_sha256(), "stock": {}}
    write_json(folder / "record.json", record)
    return record


def stock_measured(name: str, kind: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """Measure stock tfmot's result in a child process."""
    path = folder / f"stock_{kind}.json"
    path.unlink(missing_ok=True)
    ended = run_child(f"stock:{name}:{kind}", settings, folder, timeout_secs=STOCK_SECS, cpu_secs=STOCK_CPU_SECS)
    return kept(path) or {"result": ended or "ended without a result"}


def run_child(what: str, settings: Settings, folder: Path, *, timeout_secs: float, cpu_secs: int | None = None) -> str:
    """Run this script again for one measurement. Its output appears here, its errors in `folder`/log.txt.

    Return "" if it succeeded, otherwise how it ended. cpu_secs: the child is considered hung after this CPU time of all
    its threads.
    """
    flags = [f"--{key}={value}" for key, value in dataclasses.asdict(settings).items()]
    command = [sys.executable, __file__, f"--one={what}", f"--out={folder}", *flags]

    def limited() -> None:
        if cpu_secs is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_secs, cpu_secs))

    start = time.monotonic()
    with open(folder / "log.txt", "a") as log:
        running = subprocess.Popen(command, stderr=log, preexec_fn=limited, start_new_session=True)
        try:
            status = running.wait(timeout_secs)
        except subprocess.TimeoutExpired:
            return f"hangs (given up after {timeout_secs:g} s)"
        finally:
            # Together with its own children. The process is already gone if it ended normally.
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
    if status == 0:
        return ""
    if cpu_secs is not None and status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"hangs (given up after {cpu_secs} CPU s, {time.monotonic() - start:.0f} s by the clock)"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"


def child(what: str, settings: Settings, folder: Path) -> int:
    """Measure one thing into `folder`."""
    kind, name, *keras = what.split(":")
    if kind == "chain":
        from family_matrix.chain import measure

        measure(name, settings, folder)
    else:
        from family_matrix.stock import stock

        write_json(folder / f"stock_{keras[0]}.json", stock(name, keras[0], settings.size))
    return 0


def heading(settings: Settings, records: dict[str, Any]) -> list[str]:
    """Return a line with date, versions, machine and settings."""
    dates = sorted({record["date"] for record in records.values()})
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    lines = [
        f"{' to '.join(dict.fromkeys([dates[0], dates[-1]]))}: {versions}; {cpu()['model'] or cpu()['machine']}",
        f"{json.dumps(dataclasses.asdict(settings))}",
    ]
    other = [name for name, record in records.items() if record["code_sha256"] != code_sha256()]
    if other:
        lines.append(f"Measured with another state of tfq's code (--fresh measures again): {', '.join(other)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

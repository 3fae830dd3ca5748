#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run tfq on damaged files: only exit codes 0, 1 and 2, no crash, none over 10 s or 1 GB.

    nice -n 10 python benchmarks/mutations.py --out=out/mutations --containers=20000 --flatbuffers=20000

Containers (.keras, .h5, .npz, .tfrecord) are loaded; data that can be read is evaluated. Flatbuffers are audited
without and with a run, evaluated and analyzed. The mutants follow from their number, so an interrupted run resumes in
--out, and --only=KIND:NUMBER repeats one of them.

The work is done in worker processes, one mutant after the other. A crash, or no answer within 60 s of CPU time, is a
finding, and the next mutant gets a new worker. Times are CPU seconds, so that other work on the machine does not count.
Memory is the largest growth of the peak resident set of the worker and its HDF5 child, or the peak of the interpreter's
child.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import datetime
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

CONTAINERS = ("keras.keras", "tf_keras.h5", "digits.npz", "digits.tfrecord", "tf_keras.keras", "keras.h5")
FLATBUFFERS = ("digits_int8", "digits_float32", "digits_dynamic_range", "digits_int16x8")
MAX_SECS, MAX_MB = 10, 1000
# A mutant is stopped after this CPU time, or without an answer after this wall-clock time.
KILL_CPU_SECS, KILL_SECS = 60, 1800
# Imports and the first runs, on a busy machine.
START_SECS = 600
# A worker is replaced after this many mutants, because Keras keeps some state of each model.
WORKER_MUTANTS = 400


def main():
    """Run what is missing in --out, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/mutations"))
    parser.add_argument("--containers", type=int, default=20_000)
    parser.add_argument("--flatbuffers", type=int, default=20_000)
    parser.add_argument("--only", help="KIND:NUMBER: run one mutant in this process")
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    if arguments.worker is not None:
        serve(arguments.worker)
    elif arguments.only:
        kind, _, number = arguments.only.partition(":")
        print(json.dumps(run(kind, int(number) if number else None), indent=1))
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        run_missing(arguments)
        print(table(arguments.out))


def plan(containers, flatbuffers):
    """Yield (kind, number) of all mutants, so that each prefix has all kinds."""
    for number in range(max(-(-containers // len(CONTAINERS)), -(-flatbuffers // len(FLATBUFFERS)))):
        for kinds, total in ((FLATBUFFERS, flatbuffers), (CONTAINERS, containers)):
            for place, kind in enumerate(kinds):
                if number * len(kinds) + place < total:
                    yield kind, number


def run_missing(arguments):
    """Run all mutants that --out has no result of, with a worker for each kind of file."""
    path = arguments.out / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(item["kind"], item["number"]) for item in map(json.loads, lines)}
    missing = [item for item in plan(arguments.containers, arguments.flatbuffers) if item not in done]
    with open(path, "a") as results, concurrent.futures.ThreadPoolExecutor() as pool:

        def work(kinds):
            worker = None
            for kind, number in missing:
                if kind in kinds:
                    worker = worker if worker and worker.alive else Worker(kinds)
                    result = worker.run(kind, number)
                    results.write(json.dumps(result) + "\n")
                    results.flush()
                    if finding(result):
                        print(json.dumps(result), flush=True)
            if worker:
                worker.stop()

        list(pool.map(work, (FLATBUFFERS, CONTAINERS)))


def slow(result):
    """Return whether a mutant took too long, or was stopped."""
    return result["code"] == "timeout" or result["cpu_secs"] > MAX_SECS


def finding(result):
    """Return whether a result breaks a rule."""
    return result["code"] not in (0, 1, 2) or slow(result) or result["mb"] > MAX_MB


class Worker:
    """A process that runs mutants of `kinds`."""

    def __init__(self, kinds):
        """Start the process."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *kinds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.alive, self.count = True, 0
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.answers, selectors.EVENT_READ)
        self._line(START_SECS)  # it is ready

    def run(self, kind, number):
        """Return the result of one mutant."""
        start, cpu = time.monotonic(), session_cpu_secs(self.process.pid)
        with contextlib.suppress(BrokenPipeError):  # the process has ended
            self.requests.write(f"{kind} {number}\n".encode())
        line = self._line(KILL_SECS, cpu + KILL_CPU_SECS)
        secs, cpu = time.monotonic() - start, session_cpu_secs(self.process.pid) - cpu
        self.count += 1
        if line:
            result = json.loads(line)
        else:
            self.process.kill()
            status = self.process.wait()
            code = "timeout" if status == -signal.SIGKILL else signal.Signals(-status).name if status < 0 else "exit"
            result = {"kind": kind, "number": number, "code": code, "outcome": code, "cpu_secs": max(0, cpu), "mb": 0}
        if not line or self.count >= WORKER_MUTANTS:
            self.stop()
        return {**result, "secs": round(secs, 2)}

    def stop(self):
        """End the process."""
        self.alive = False
        self.requests.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _line(self, timeout, cpu_limit=float("inf")):
        """Return the next line; an empty one if the process has ended or does not answer in time.

        Args:
            timeout: Limit in wall-clock seconds.
            cpu_limit: Limit of the CPU seconds of the process and its children.
        """
        content, end = b"", time.monotonic() + timeout
        while not content.endswith(b"\n"):
            if not self.selector.select(2):
                if time.monotonic() > end or session_cpu_secs(self.process.pid) > cpu_limit:
                    return b""
                continue
            part = os.read(self.answers.fileno(), 65536)
            if not part:
                time.sleep(0.2)  # let the process end, so that its own exit code is seen
                return b""
            content += part
        return content


def session_cpu_secs(session):
    """Return the CPU seconds of all processes of a session that run now."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def serve(kinds):
    """Run the mutants that stdin names, and print a result for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    for kind in kinds:
        run(kind, None)  # imports, and what is done once
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kind, number = line.split()
        print(json.dumps(run(kind, int(number))), file=answers, flush=True)


def run(kind, number):
    """Return the result of one mutant in this process; None is the correct file."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ["TFQ_PROGRESS"] = "0"
    kind_of_run = run_flatbuffer if kind in FLATBUFFERS else run_container
    child = watch_children()
    content = bytes_of(kind, number)
    processes = [os.getpid(), *isolation_child()]
    for pid in processes:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # reset the peak of the resident set
    before = {pid: (cpu_secs(pid), resident(pid, "VmRSS")) for pid in processes}
    outcomes = list(kind_of_run(kind, content))
    growth = [
        (cpu_secs(pid) - before.get(pid, (0, 0))[0], resident(pid, "VmHWM") - before.get(pid, (0, 0))[1])
        for pid in (os.getpid(), *isolation_child())
    ]
    return {
        "kind": kind,
        "number": number,
        "code": next((code for code, _ in outcomes if code not in (0, 1, 2)), max(code for code, _ in outcomes)),
        "outcome": ", ".join(text for _, text in outcomes),
        "cpu_secs": round(sum(secs for secs, _ in growth) + child["secs"], 3),
        "mb": round(max(*(kb for _, kb in growth), child["kb"]) / 1000),
    }


def bytes_of(kind, number):
    """Return the bytes of a mutant, or of the correct file."""
    import random

    from container_mutations import container_mutant
    from flatbuffer_mutations import mutant

    data = golden(kind) if kind in FLATBUFFERS else (ROOT / "tests" / "containers" / kind).read_bytes()
    if number is None:
        return data
    if kind in CONTAINERS:
        return container_mutant(kind, data, number, "benchmark")
    return mutant(data, number, random.Random(f"tfq benchmark {kind} {number}"))


def isolation_child():
    """Return the ID of the process that HDF5 and the quantizers run in, if there is one."""
    from tfq import isolation

    server = isolation._server
    return [server._process.pid] if server is not None and server.is_alive() else []


def resident(pid, field):
    """Return a memory size of a process in kB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def cpu_secs(pid):
    """Return the CPU seconds of a process so far: of this one exactly, of another one in steps of the system clock."""
    if pid == os.getpid():
        return time.process_time()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


CHILD = {"secs": 0.0, "kb": 0}


def watch_children():
    """Reset and return the CPU seconds and the memory of the interpreters that run from now on."""
    from tfq.backends import child

    CHILD.update(secs=0.0, kb=0)
    original = child._result
    if original.__name__ != "watched":

        def watched(directory, *rest):
            try:
                used = json.loads((directory / "result.json").read_text()).get("used", {})
                CHILD["secs"] += used.get("cpu_secs", 0)
                CHILD["kb"] = max(CHILD["kb"], used.get("peak_kb", 0))
            except OSError:
                pass
            return original(directory, *rest)

        child._result = watched
    return CHILD


def outcome(call):
    """Return (exit code, what happened) of a call, as a command would end."""
    from tfq.errors import TfqError

    try:
        call()
        return 0, "ok"
    except TfqError as error:
        message = f" {error}"[:300] if error.exit_code == 3 else ""
        return error.exit_code, type(error).__name__ + message
    except Exception as error:
        return 3, f"{type(error).__name__}: {error}"[:300]


def run_flatbuffer(kind, content):
    """Yield the outcomes of an audit without and with a run, of an evaluation and, if supported, of an analysis."""
    import numpy as np

    import tfq
    from tfq.analysis import analyze
    from tfq.config import AnalysisConfig, EvaluationConfig
    from tfq.evaluation import evaluate_model

    rng = np.random.default_rng(0)
    images = rng.uniform(0, 16, (4, 8, 8, 1)).astype(np.float32)
    static = outcome(lambda: (audit := tfq.audit(content, execute=False)).to_dict() and audit.to_text())
    yield static
    if static[1] == "FlatbufferError":
        return  # the others read the file in the same way
    yield outcome(lambda: tfq.audit(content).to_text())
    config = EvaluationConfig(num_runs=1, warmup_runs=0)
    yield outcome(lambda: evaluate_model(content, (images, np.arange(4)), config).to_dict())
    if kind == "digits_dynamic_range":
        return  # analyze refuses this scheme
    pair = (content, golden("digits_float32")) if kind != "digits_float32" else (golden("digits_int8"), content)
    yield outcome(lambda: analyze(*pair, images, AnalysisConfig(sensitivity=False)).to_text())


def golden(name):
    """Return the bytes of a correct flatbuffer."""
    return (ROOT / "tests" / "golden" / f"{name}.tflite").read_bytes()


def run_container(kind, content):
    """Yield the outcome of loading a model, or of reading and evaluating data."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tfq-mutant-") as directory:
        path = Path(directory, f"mutant_test.{kind.rpartition('.')[2]}")
        path.write_bytes(content)
        if kind.endswith(("keras", "h5")):
            import tfq

            yield outcome(lambda: tfq.load_model(path))
        else:
            yield outcome(lambda: evaluate_file(path))


def evaluate_file(path):
    """Read the test split of a file, and evaluate a correct flatbuffer on it."""
    from tfq.config import DataConfig, EvaluationConfig
    from tfq.data import load_split
    from tfq.evaluation import evaluate_model

    name = {"npz": "npz", "tfrecord": "tfrecord"}[path.suffix[1:]]
    split = load_split(DataConfig(source=f"{name}:{path}"), "test")
    evaluate_model(golden("digits_int8"), split, EvaluationConfig(num_runs=0, warmup_runs=0)).to_dict()


def table(out):
    """Return a Markdown table of all results in `out`."""
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    groups = collections.defaultdict(list)
    for result in results:
        groups[result["kind"]].append(result)
    lines = [
        f"{datetime.date.today()}: {len(results):,} mutants, {sum(map(finding, results))} findings",
        "",
        "| file | mutants | exit 0 | exit 1 | exit 2 | others | longest | most memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in (*CONTAINERS, *FLATBUFFERS):
        if group := groups[kind]:
            exit_codes = collections.Counter(result["code"] for result in group)
            counts = " | ".join(f"{exit_codes.pop(code, 0):,}" for code in (0, 1, 2))
            longest = f"{max(result['cpu_secs'] for result in group):.1f} s"
            others = ", ".join(f"{name}: {count}" for name, count in exit_codes.items()) or "0"
            memory = max(result["mb"] for result in group)
            lines.append(f"| {kind} | {len(group):,} | {counts} | {others} | {longest} | {memory:,} MB |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run every command with hostile paths and files for each of its flags: exit code 2, a clear message, no traceback.

    nice -n 10 python benchmarks/hostile_paths.py --out=out/hostile_paths

The flags are those of the config tree that name a path, --config, and --data with each data source that reads files.
The paths and the files are those of tests/hostile_files.py: named pipes, devices, links, names with escape sequences,
damaged containers, images, tables and configs. An interrupted run resumes in --out. --only=TEXT runs the cases whose
name contains the text again, and prints what they print.

A case runs in a fork of a process that has imported TensorFlow. One in --every cases also runs in a new process. File
permissions apply, also if root runs this. A finding is another exit code than 2, a traceback, a message that does not
name the file, an escape sequence in the output, more than 10 s of CPU time, more than 1 GB above the memory of the
process before, or a temporary file that is left. A new process may use 30 s, with its imports.
"""

import argparse
import atexit
import collections
import datetime
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile_files import CONTENTS, NAME, PATHS, as_ordinary_user, drop_override_of_children, remove  # noqa: E402

GOLDEN, CONTAINERS = ROOT / "tests" / "golden", ROOT / "tests" / "containers"
MAX_SECS, MAX_PROCESS_SECS, MAX_MB, KILL_SECS = 10, 30, 1000, 60
SMALL = "--data=digits"
QUICK = ("--epochs=1", "--batch_size=500")
# Arguments with which each command succeeds; a hostile flag replaces the one of the same name.
BASE = {
    "train": ("--model=digits_cnn", SMALL, "--out=OUT", *QUICK),
    "compress": (f"--model={CONTAINERS}/tf_keras.h5", SMALL, "--out=OUT", "--noqat", "--train.epochs=1"),
    "convert": (f"--model={GOLDEN}/digits_float32.tflite", SMALL, "--out=OUT", "--num_calibration_samples=8"),
    "audit": (f"--model={GOLDEN}/digits_int8.tflite",),
    "evaluate": (f"--model={GOLDEN}/digits_int8.tflite", SMALL, "--limit=8", "--num_runs=0"),
    "benchmark": (f"--model={GOLDEN}/digits_int8.tflite", "--num_runs=1", "--warmup_runs=0", "--min_secs=0", "--noops"),
    "search": (f"--model={GOLDEN}/digits_float32.tflite", SMALL, "--out=OUT", "--methods=min_max"),
    "sweep": (f"--grid={GOLDEN}/sweep_grid.json", f"--model={GOLDEN}/digits_float32.tflite", SMALL, "--out=OUT"),
    "analyze": (
        f"--model={GOLDEN}/digits_int8.tflite", f"--reference={GOLDEN}/digits_float32.tflite", SMALL, "--limit=8",
    ),
    "compare": (f"--reference={GOLDEN}/digits_float32.tflite", f"--model={GOLDEN}/digits_int8.tflite"),
    "export": (f"--model={GOLDEN}/digits_int8.tflite", SMALL, "--out=OUT", "--platform=linux", "--noself_test"),
    "report": ("--folder=OUT/search.json", "--out=OUT"),
    "run": (
        f"--model={GOLDEN}/digits_float32.tflite", SMALL, "--out=OUT", "--nocompression.prune",
        "--nocompression.qat", "--evaluation.limit=8", "--evaluation.num_runs=0", "--benchmark.num_runs=1",
        "--benchmark.min_secs=0", "--conversion.num_calibration_samples=8",
    ),
}  # fmt: skip
# The formats that a flag accepts, by what its value is the path of.
FORMATS = {
    "model": ("flatbuffer", "keras", "h5", "saved_model"),
    "flatbuffer": ("flatbuffer",),
    "comparable": ("flatbuffer",),
    "baseline": ("json",),
    "ranges": ("ranges",),
    "records": ("json",),
    "python": ("python",),
    "directory": ("directory",),
    "text": ("labels",),
    "json": ("json",),
    "config": ("json",),
}
# What --data's sources call the addresses that are paths.
PATH_ADDRESSES = ("DIR", "GLOB", "PATH", "FOLDER", "ANNOTATIONS.json")
# Kinds that are correct for a flag: an output directory may be missing, and a config may be empty in a sense.
ACCEPTED = {
    "directory": {
        "directory", "missing", "not UTF-8", "not UTF-8, missing", "escape sequence", "escape sequence, missing",
        "line break",
    },
    "json": {"UTF-8 with a mark"},
    "flatbuffer": {"slow_benchmark", "quantized_odd_type"},
    "keras": {"many members", "zip: year 1980, month 0", "zip: number of members"},
    "npz": {"zip: year 1980, month 0", "zip: number of members", "zip: sizes"},
    "python": {"long number", "exit of an exception group"},
}  # fmt: skip


class Case(NamedTuple):
    """A command, a flag with the beginning of its value, the format of the file, and the kind of path or content."""

    command: str
    flag: str
    format: str
    kind: str
    is_path: bool

    @property
    def name(self) -> str:
        """The text that identifies the case in --out."""
        flag = self.flag.removesuffix("=")
        return f"{self.command} --{flag} ({self.format}): {self.kind}"


def flags_of(command, section):
    """Yield (flag with "=" and the beginning of its value, formats) for each flag of a command that names a path."""
    from tfq import registry
    from tfq.cli import flags
    from tfq.data import DataSource

    yield "config=", FORMATS["config"]
    for setting in flags.settings_of(section):
        if path_of := setting.field.metadata["path_of"]:
            yield f"{setting.flag}=", FORMATS[path_of]
        if setting.field.metadata["choices_of"] == "data_source":
            for source in registry.entries(DataSource).values():
                if source.address in PATH_ADDRESSES:
                    yield f"{setting.flag}={source.name}:", (source.name,)


def plan():
    """Return all cases in an order in which each part has cases of all commands and kinds."""
    from tfq.cli import flags

    cases = []
    for section, command in flags.COMMANDS.items():
        for flag, formats in flags_of(command.command, section):
            for form in formats:
                cases += [Case(command.command, flag, form, kind, True) for kind in PATHS]
                if form != "directory":
                    cases += [Case(command.command, flag, form, kind, False) for kind in CONTENTS[form][1]()]
    return sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())


def arguments_of(case, directory):
    """Return the command line of a case, whose hostile file is made in `directory`."""
    suffix, contents = CONTENTS[case.format]
    if not case.is_path:
        path = f"{directory}/{NAME}{suffix}"
        contents()[case.kind](Path(path))
    elif case.format == "directory" and case.kind in ("link to /", "standard input"):
        path = f"{directory}/{NAME}"  # as root, tfq would write into /
        os.symlink("/proc", path)
    elif case.format == "directory" and case.kind in ("not UTF-8", "escape sequence", "line break", "unreadable"):
        os.mkdir(path := PATHS[case.kind.partition(",")[0]](directory, "below") + "d")
        os.chmod(path, 0 if case.kind == "unreadable" else 0o700)
    else:
        path = PATHS[case.kind](directory, suffix)
    name = case.flag.partition("=")[0]
    base = [item.replace("OUT", f"{directory}/out") for item in BASE[case.command]]
    if case.command == "report":
        from tfq.provenance import SCHEMA_VERSION

        record = {"schema_version": SCHEMA_VERSION, "command": "search", "candidates": []}
        (directory / "out").mkdir()
        (directory / "out" / "search.json").write_text(json.dumps(record))
    if name == "config":  # flags would override the config
        return [case.command, *base, f"--config={path}"]
    base = [item for item in base if not item.startswith(f"--{name}=")]
    if "\0" in path:  # an argument cannot contain it
        config = directory / "config.json"
        tree: dict[str, Any] = {}
        place = tree
        *above, last = path_in_config(case.command, name)
        for step in above:
            place = place.setdefault(step, {})
        value = case.flag.partition("=")[2] + path
        place[last] = [value] if name in ("plugin", "against") else value
        config.write_text(json.dumps(tree))
        return [case.command, *base, f"--config={config}"]
    return [case.command, *base, f"--{case.flag}{path}"]


def path_in_config(command, flag):
    """Return the path in RunConfig that a flag of a command sets."""
    from tfq.cli import flags

    (section,) = (key for key, value in flags.COMMANDS.items() if value.command == command)
    return next(setting.path for setting in flags.settings_of(section) if setting.flag == flag)


def run(case, *, as_process=False, show=False):
    """Return the result of a case."""
    directory = Path(tempfile.mkdtemp(prefix="tfq-hostile-paths-"))
    try:
        (directory / "case").mkdir()
        (directory / "tmp").mkdir()
        with as_ordinary_user():
            arguments = arguments_of(case, directory / "case")
            return {"case": case.name, "process": as_process, **measured(arguments, directory, as_process, case, show)}
    finally:
        remove(directory)


def measured(arguments, directory, as_process, case, show):
    """Run tfq with arguments; return its exit code, what is wrong, its CPU seconds and its memory."""
    base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    stdin = os.open(os.devnull, os.O_RDONLY)
    with open(directory / "stdout", "w+b") as stdout, open(directory / "stderr", "w+b") as stderr:
        environment = {
            **os.environ, "TMPDIR": str(directory / "tmp"), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        if as_process:
            command = [sys.executable, "-m", "tfq", *arguments]
            process = subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=directory / "tmp", env=environment,
                preexec_fn=drop_override_of_children, start_new_session=True,
            )  # fmt: skip
            pid = process.pid
        else:
            pid = os.fork()
            if not pid:
                in_fork(arguments, directory, (stdin, stdout.fileno(), stderr.fileno()))
        os.close(stdin)
        start = time.monotonic()
        while not (ended := os.wait4(pid, os.WNOHANG))[0]:
            if time.monotonic() - start > KILL_SECS:
                os.killpg(pid, signal.SIGKILL)
                ended = os.wait4(pid, 0)
                break
            time.sleep(0.005)
        secs = time.monotonic() - start
        if as_process:
            process.returncode = 0  # it has been waited for
        stdout.seek(0)
        stderr.seek(0)
        texts = stdout.read().decode(errors="surrogateescape"), stderr.read().decode(errors="surrogateescape")
    code = os.waitstatus_to_exitcode(ended[1])
    cpu = ended[2].ru_utime + ended[2].ru_stime
    megabytes = max(0, ended[2].ru_maxrss - (0 if as_process else base)) // 1000
    if show:
        print(arguments, *texts, sep="\n")
    left = len(list((directory / "tmp").iterdir()))
    problems = list(problems_of(case, code, *texts))
    problems += [f"temporary files left: {left}"] * bool(left)
    problems += [f"{cpu:.0f} s"] * (cpu > (MAX_PROCESS_SECS if as_process else MAX_SECS))
    problems += [f"{megabytes:,} MB"] * (megabytes > MAX_MB + (600 if as_process else 0))
    problems += ["stopped after a minute"] * (secs > KILL_SECS)
    last = (texts[1].strip().splitlines() or [""])[-1]
    return {
        "code": code, "problems": problems, "cpu_secs": round(cpu, 2), "secs": round(secs, 2), "mb": megabytes,
        "message": ascii(last)[1:-1][:400],
    }  # fmt: skip


def in_fork(arguments, directory, descriptors):
    """Run tfq in this process, a fork, and end it."""
    code = 70
    try:
        os.setsid()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        os.environ["TMPDIR"] = str(directory / "tmp")
        tempfile.tempdir = None
        os.chdir(directory / "tmp")
        sys.argv = ["tfq", *arguments]
        from tfq.cli import main

        try:
            main.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 71
    finally:
        atexit._run_exitfuncs()  # TensorFlow deletes its temporary files
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def problems_of(case, code, stdout, stderr):
    """Yield what is wrong with the outcome of a case."""
    if case.kind in ACCEPTED.get(case.format, ()) and code == 0:
        return
    if code != (130 if case.kind == "interrupt" else 2):
        yield f"exit code {code}"
    if re.search(r"Traceback \(most recent|Exception ignored|^  File \"", stderr, re.MULTILINE):
        yield "traceback"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]", stdout + stderr):
        yield "control characters"
    last = (stderr.strip().splitlines() or [""])[-1]
    if code and not re.match(rf"tfq {case.command}: (error|interrupted)", last):
        yield "no error at the end"
    is_named = NAME in last or case.kind in ("standard input", "interrupt")
    # A correct file of a model that cannot run.
    is_named |= case.format == "flatbuffer" and not case.is_path and bool(re.search("model|op #|input ", last))
    if code and not is_named:
        yield "the file is not named"
    if len(stderr) > 4000:
        yield f"{len(stderr):,} characters"


def import_all():
    """Import what the commands import, so that forks need not."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import importlib

    from tfq import registry

    modules = [
        "tensorflow",
        "keras",
        "tf_keras",
        "tensorflow_model_optimization",
        "tfq.keras_bridge",
        "tfq.compression",
    ]
    modules += ["tfq.workflows.run", "tfq.search", *registry.MODULES.values()]
    modules += [f"tfq.pipelines.{command}" for command in BASE]
    for name in modules:
        importlib.import_module(name)


def main():
    """Run what is missing in --out, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/hostile_paths"))
    parser.add_argument("--only", help="run the cases whose name contains this again")
    parser.add_argument("--every", type=int, default=50, help="one case in so many also runs in a new process")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    import_all()
    if arguments.only:
        for case in plan():
            if arguments.only in case.name:
                print(json.dumps(run(case, show=True), indent=1), flush=True)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    check_base(arguments.out)
    run_missing(arguments)
    print(table(arguments.out))


def check_base(out):
    """Check that every command succeeds without a hostile flag: otherwise its cases test nothing."""
    if (out / "base").exists():
        return
    for command in BASE:
        directory = Path(tempfile.mkdtemp(prefix="tfq-hostile-paths-"))
        (directory / "tmp").mkdir()
        arguments = [command, *(item.replace("OUT", f"{directory}/out") for item in BASE[command])]
        result = measured(arguments, directory, False, Case(command, "", "directory", "directory", True), False)
        shutil.rmtree(directory)
        assert result["code"] == 0, (arguments, result)
    (out / "base").touch()


def run_missing(arguments):
    """Run all cases that --out has no result of, in several processes."""
    path = arguments.out / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(item["case"], item["process"]) for item in map(json.loads, lines)}
    todo = []
    for case in plan():
        is_chosen = int(hashlib.sha256(case.name.encode()).hexdigest(), 16) % arguments.every == 0
        todo += [(case, as_process) for as_process in (False, *([True] * is_chosen))]
    todo = [(case, as_process) for case, as_process in todo if (case.name, as_process) not in done]
    workers = []
    for number in range(arguments.jobs):
        if pid := os.fork():
            workers.append(pid)
            continue
        try:
            with open(path, "a") as results:
                for case, as_process in todo[number :: arguments.jobs]:
                    result = run(case, as_process=as_process)
                    results.write(json.dumps(result) + "\n")
                    results.flush()
                    if result["problems"]:
                        print(json.dumps(result), flush=True)
        finally:
            os._exit(0)
    for pid in workers:
        os.waitpid(pid, 0)


def table(out):
    """Return a Markdown table of all results in `out`."""
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    groups = collections.defaultdict(list)
    for result in results:
        groups[result["case"].partition(" ")[0]].append(result)
    findings = sum(bool(result["problems"]) for result in results)
    lines = [
        f"{datetime.date.today()}: {len(results):,} cases, {sum(item['process'] for item in results):,} of them in "
        f"a new process, {findings} findings",
        "",
        "| command | flags | cases | exit 2 | exit 0 | others | findings | longest | most memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for command in BASE:
        if group := groups[command]:
            exit_codes = collections.Counter(result["code"] for result in group)
            warm = [result for result in group if not result["process"]]
            flags = {result["case"].partition("--")[2].partition(" ")[0] for result in group}
            cells = [
                command, len(flags), f"{len(group):,}", f"{exit_codes.pop(2, 0):,}", exit_codes.pop(0, 0),
                sum(exit_codes.values()),
                sum(bool(result["problems"]) for result in group),
                f"{max(result['cpu_secs'] for result in warm):.1f} s", f"{max(result['mb'] for result in warm):,} MB",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

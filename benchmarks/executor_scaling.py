# SPDX-License-Identifier: Apache-2.0
"""The speed-up of a sweep by a second worker, its serial part, and what it means for 64 workers.

    python benchmarks/executor_scaling.py --out=out/scaling
    python benchmarks/executor_scaling.py --out=out/scaling_ray --executor=ray

Runs the same training stages with 1 and with 2 workers of one thread each, in pairs, on a machine where nothing else
runs. With `--executor=ray` they are Ray workers on two nodes with loopback addresses, of one CPU each. Each stage
trains a small convolutional network on digits, and converts it to int8. The results of both are compared byte
by byte. A run that was stopped resumes: finished measurements are in OUT/scaling.json.

The serial part is found in two ways. From the two times by Amdahl's law: T(n) = s + p / n, so s = 2 T(2) - T(1). And
directly: the seconds in which this process works (it chooses tasks, checks and stores results) while it does not wait.
A serial fraction f limits the speed-up of n workers to 1 / (f + (1 - f) / n).
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing.connection
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfq import artifacts
from tfq.executors import Executor, Task, open_executor
from tfq.executors.local import LocalExecutor
from tfq.store import StageStore

WORKERS = 64


def train(directory: Path, needs: Mapping[str, Path], *, seed: int, epochs: int) -> dict[str, Any]:
    """Train a small network on digits, convert it to int8, and write the flatbuffer. Runs in a worker."""
    import tfq
    from tfq.progress import import_tensorflow

    import_tensorflow()
    import tf_keras

    data = tfq.load_split(tfq.DataConfig(source="digits"), "train")
    (images,) = next(iter(data.pieces())).inputs.values()
    labels = data.all_labels()
    tf_keras.utils.set_random_seed(seed)
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Conv2D(32, 3, padding="same", activation="relu", input_shape=images.shape[1:]),
            tf_keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            tf_keras.layers.GlobalAveragePooling2D(),
            tf_keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    content = tfq.convert(model, images[:50], tfq.ConversionConfig(verify=False))
    artifacts.write_bytes(directory / "model.tflite", content)
    return {"seed": seed, "bytes": len(content)}


def tasks_of(num_stages: int, epochs: int) -> list[Task]:
    """Return the stages of the sweep. They differ in their seeds."""
    arguments = [{"seed": seed, "epochs": epochs} for seed in range(num_stages)]
    return [
        Task(name=f"train {each['seed']}", function=f"{MODULE}:train", arguments=each, inputs=each)
        for each in arguments
    ]


def count_waiting(executor: Executor) -> list[float]:
    """Return a list to which each wait of the executor for a task appends its seconds."""
    waits, wait = [], executor.wait  # type: ignore[attr-defined]

    def counted() -> Any:
        start = time.perf_counter()
        if isinstance(executor, LocalExecutor):
            multiprocessing.connection.wait(list(executor._busy))
        else:
            ray = importlib.import_module("ray")
            ray.wait(list(executor._running), num_returns=1)  # type: ignore[attr-defined]
        waits.append(time.perf_counter() - start)
        return wait()

    executor.wait = counted  # type: ignore[attr-defined]
    return waits


def measure(out: Path, name: str, num_workers: int, tasks: list[Task]) -> dict[str, Any]:
    """Run the stages in an empty store, and return times and hashes. Workers have been started and warmed up before."""
    with open_executor(name, num_workers=num_workers) as executor:
        warm_up = [
            Task(
                name=f"warm up {number}",
                function=f"{MODULE}:train",
                arguments={"seed": 0, "epochs": 1},
                inputs={"n": number},
            )
            for number in range(2 * num_workers)
        ]
        for ended in executor.run(warm_up, StageStore(artifacts.make_out_dir(out / "warm"), fresh=True)):
            assert ended.failure is None, ended.failure
        waits = count_waiting(executor)
        store = StageStore(artifacts.make_out_dir(out / f"with_{num_workers}"), fresh=True)
        start, cpu = time.perf_counter(), time.process_time()
        hashes = {}
        for ended in executor.run(tasks, store):
            assert ended.result is not None, ended.failure
            hashes[ended.task.name] = artifacts.sha256_file(ended.result.directory / "model.tflite")
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "driver_seconds": seconds - sum(waits),
            "driver_cpu_seconds": time.process_time() - cpu,
            "sha256": dict(sorted(hashes.items())),
        }


@contextlib.contextmanager
def executor_name(kind: str) -> Iterator[str]:
    """Yield the name of an executor; for Ray, that of two nodes that are started here and end with the block."""
    if kind == "local":
        yield kind
        return
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
    nodes = importlib.import_module("loopback_ray").Nodes()
    try:
        yield f"ray:{nodes.address}"
    finally:
        nodes.stop()


def limit(fraction: float) -> float:
    """Return the speed-up of WORKERS workers with a serial fraction, by Amdahl's law."""
    return 1 / (fraction + (1 - fraction) / WORKERS)


def table(pairs: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["| pair | 1 x 1 | 2 x 1 | ratio | serial part by fit | driver works |", "|---|---|---|---|---|---|"]
    for number, pair in enumerate(pairs, 1):
        one, two = pair["1"], pair["2"]
        fit = max(0.0, 2 * two["seconds"] - one["seconds"])
        lines.append(
            f"| {number} | {one['seconds']:.1f} s | {two['seconds']:.1f} s | {one['seconds'] / two['seconds']:.2f} | "
            f"{fit:.2f} s ({fit / one['seconds']:.1%}) | {one['driver_seconds']:.3f} s "
            f"({one['driver_seconds'] / one['seconds']:.2%}) |"
        )
    ratios = sorted(pair["1"]["seconds"] / pair["2"]["seconds"] for pair in pairs)
    fits = sorted(max(0.0, 2 / ratio - 1) for ratio in ratios)
    direct = sorted(pair["1"]["driver_seconds"] / pair["1"]["seconds"] for pair in pairs)
    middle = len(pairs) // 2
    same = all(pair["1"]["sha256"] == pair["2"]["sha256"] == pairs[0]["1"]["sha256"] for pair in pairs)
    lines += [
        "",
        f"Median ratio {ratios[middle]:.2f}. Flatbuffers {'are byte-identical' if same else 'DIFFER'}.",
        f"Limit of {WORKERS} workers: {limit(fits[middle]):.1f}x by the fit, which counts the contention of the two "
        f"cores as serial; {limit(direct[middle]):.1f}x by the driver's own time, if there are enough tasks.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/scaling")
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    options = parser.parse_args()
    out = artifacts.make_out_dir(options.out)
    file = out / "scaling.json"
    settings = {**vars(options), "python": platform.python_version()}
    del settings["out"], settings["pairs"]
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"settings": settings, "pairs": []}
    if state["settings"] != settings:
        sys.exit(f"{file} has other settings: {state['settings']}. Delete it, or choose another --out")
    tasks = tasks_of(options.stages, options.epochs)
    with executor_name(options.executor) as name:
        for number in range(options.pairs):
            if number == len(state["pairs"]):
                state["pairs"].append({})
            # The order alternates, so that a drift of the machine does not favor one side.
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                if str(workers) not in state["pairs"][number]:
                    print(f"pair {number + 1}: {workers} worker(s), load {os.getloadavg()[0]:.2f}", file=sys.stderr)
                    state["pairs"][number][str(workers)] = measure(out, name, workers, tasks)
                    artifacts.write_json(file, state)
    print(table(state["pairs"]))


# Workers import this file under its own name.
MODULE = Path(__file__).stem

if __name__ == "__main__":
    main()

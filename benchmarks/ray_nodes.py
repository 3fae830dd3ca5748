# SPDX-License-Identifier: Apache-2.0
"""Compare long work on two Ray nodes, one of which is killed in the middle, with a single process: all bytes are equal.

    python benchmarks/ray_nodes.py --out=out/ray_nodes

Starts two nodes with the addresses 127.0.0.2 and 127.0.0.3 and one CPU each. Runs training stages (those of
executor_scaling.py) and a calibration and evaluation in shards, kills the second node with SIGKILL while it runs a
task, after --kill_after seconds of each, and starts it again. The results of a single process are kept in OUT, so that
a stopped run resumes. Exits with 1 if a result differs, or if no task had to run again.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import executor_scaling
import numpy as np

import tfq
from tfq import artifacts
from tfq.config import EvaluationConfig
from tfq.errors import TfqWarning
from tfq.evaluation.accuracy import assess_model
from tfq.executors import Executor, distributed, open_executor
from tfq.ptq.calibration import observe
from tfq.store import StageStore

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from loopback_ray import Nodes  # noqa: E402

NOT_COMPARED = ("machine", "memory_bytes")


def sweep(executor: Executor, folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Train and convert the stages, and return the hash of each flatbuffer."""
    store = StageStore(artifacts.make_out_dir(folder), fresh=True)
    hashes = {}
    for ended in executor.run(executor_scaling.tasks_of(options.stages, options.epochs), store):
        assert ended.result is not None, ended.failure
        hashes[ended.task.name] = artifacts.sha256_file(ended.result.directory / "model.tflite")
    return dict(sorted(hashes.items()))


def shards(executor: Executor | None, folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Calibrate and evaluate on digits, repeated; return hashes of observations, outputs and record."""
    model, reference = ((ROOT / f"tests/golden/digits_{kind}.tflite").read_bytes() for kind in ("int8", "float32"))
    data = tfq.load_split(tfq.DataConfig(source="digits"), "test")
    (images,) = next(iter(data.pieces())).inputs.values()
    images = np.tile(images, (options.repeats, 1, 1, 1))
    labels = np.tile(data.all_labels(), options.repeats)  # type: ignore[arg-type]

    def work() -> dict[str, str]:
        observed = observe(reference, [{"image": image[None]} for image in images[:2000]]).to_dict()
        settings = EvaluationConfig(num_runs=0)
        assessed = assess_model(model, (images, labels), settings, reference=reference)
        record = {key: value for key, value in assessed.record.to_dict().items() if key not in NOT_COMPARED}
        outputs = b"".join(array.tobytes() for array in assessed.result.outputs or ())
        return {
            "observations": artifacts.sha256(json.dumps(observed).encode()),
            "record": artifacts.sha256(json.dumps(record).encode()),
            "outputs": hashlib.sha256(outputs).hexdigest(),
        }

    if executor is None:
        return work()
    with distributed(executor, artifacts.make_out_dir(folder), num_shards=32):
        return work()


@contextmanager
def killing(nodes: Nodes, seconds: float) -> Iterator[None]:
    """Kill the second node while it runs a task, after some seconds of the block, and start it again afterwards."""
    ended = threading.Event()

    def kill() -> None:
        ended.wait(seconds)
        while not nodes.is_node_busy() and not ended.wait(0.05):
            pass
        nodes.kill_node()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    nodes.node = nodes.start_node()


def main() -> None:
    """Run both kinds of work alone and on the nodes, and print what is equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/ray_nodes")
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--kill_after", type=float, default=5.0)
    options = parser.parse_args()
    out = artifacts.make_out_dir(options.out)
    alone = out / f"alone_{options.stages}_{options.epochs}_{options.repeats}.json"
    if not alone.exists():
        with open_executor("local", num_workers=1) as one:
            artifacts.write_json(
                alone, {"sweep": sweep(one, out / "alone", options), "shards": shards(None, out, options)}
            )
    expected: dict[str, Any] = json.loads(alone.read_text())
    works: dict[str, Callable[..., dict[str, str]]] = {"sweep": sweep, "shards": shards}
    nodes, failed = Nodes(), False
    try:
        with open_executor(f"ray:{nodes.address}") as executor:
            for name, work in works.items():
                start = time.monotonic()
                with killing(nodes, options.kill_after), warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", TfqWarning)
                    result = work(executor, out / name, options)
                    seconds = time.monotonic() - start
                again = sum("runs again" in str(warning.message) for warning in caught)
                equal = result == expected[name]
                failed |= not equal or again == 0
                print(f"{name}: {seconds:.0f} s, {again} task(s) ran again, {'identical' if equal else 'DIFFERENT'}")
    finally:
        nodes.stop()
    sys.exit(failed)


if __name__ == "__main__":
    main()

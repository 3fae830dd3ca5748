# SPDX-License-Identifier: Apache-2.0
"""Tasks for the tests of executors. This module imports no TensorFlow, and its functions run in other processes."""

import hashlib
import os
import signal
import time
from pathlib import Path

from tfq.errors import InputError, warn
from tfq.executors import Task


def digest(*, seed, needs=None, name=None, num_threads=1):
    """Return a task that writes the SHA-256 of its seed and of what it needs."""
    return Task(
        name=name or f"digest {seed}",
        function="executor_tasks:write_digest",
        arguments={"seed": seed},
        inputs={"seed": seed},
        needs=needs or {},
        num_threads=num_threads,
    )


def write_digest(directory, needs, seed):
    content = expected_digest(seed, {role: (folder / "digest").read_bytes() for role, folder in needs.items()})
    (directory / "digest").write_bytes(content)
    return {"seed": seed, "omp": os.environ["OMP_NUM_THREADS"], "intra": os.environ["TF_NUM_INTRAOP_THREADS"]}


def expected_digest(seed, needs=None):
    parts = [str(seed).encode(), *(f"{role}=".encode() + content for role, content in sorted((needs or {}).items()))]
    return hashlib.sha256(b"|".join(parts)).digest()


def refuse(directory, needs, message):
    (directory / "half").write_text("half")
    raise InputError(message)


def divide(directory, needs):
    return {"result": 1 / 0}


def warn_twice(directory, needs):
    warn("two layers were skipped")
    warn("two layers were skipped")
    return {}


def kill_itself(directory, needs, flag, times):
    """Kill this process in the first `times` calls; the folder `flag` counts them."""
    count = len(list(Path(flag).iterdir()))
    if count < times:
        (Path(flag) / str(count)).touch()
        print("about to be killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    (directory / "calls").write_text("done")
    return {"pid_is_new": True}


def wait_for(directory, needs, started, seconds):
    """Write the ID of this process to the file `started`, then wait."""
    Path(started).write_text(str(os.getpid()))
    time.sleep(seconds)
    return {}


def count_calls(directory, needs, folder, label):
    """Leave a file in `folder` for each call."""
    (Path(folder) / f"{label}-{os.getpid()}-{time.monotonic_ns()}").touch()
    (directory / "label").write_text(label)
    return {}


def layer_name(directory, needs):
    """Return the name that Keras gives to a new layer: it counts up in a process that made one before."""
    from tfq import progress

    progress.import_tensorflow()
    import tf_keras

    tf_keras.layers.Dense(1)
    return {"name": tf_keras.layers.Dense(1).name}


def slow_digest(directory, needs, seed, started, seconds):
    """Write the digest after a while. A file in `started` tells that the task runs, and later that it has ended."""
    running = Path(started) / f"{seed}-{os.getpid()}.running"
    running.touch()
    time.sleep(seconds)
    running.rename(running.with_suffix(".ended"))
    return write_digest(directory, needs, seed)


def count_plugins(directory, needs):
    from tfq import registry

    return {"plugins": [plugin.source for plugin in registry.plugins()]}

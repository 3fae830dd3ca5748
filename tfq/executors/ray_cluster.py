# SPDX-License-Identifier: Apache-2.0
"""The executor `ray`: the nodes of a Ray cluster, or one that is started on this machine. Needs the extra `ray`.

The nodes need no shared file system: a task receives the files of what it needs, and returns the files of its result,
through Ray. Only this process writes to the store. Each Ray worker keeps one worker process (`worker.py`), which forks
a child for each task, so that a task starts in the same state as under the executor `local`.

Every node needs the same versions of Python, Ray, tfq and its packages. A worker that has others refuses its task.
"""

import base64
import contextlib
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfq import artifacts, registry
from tfq.errors import InputError, TfqError, install_hint
from tfq.executors import call
from tfq.executors.executor import ExecutorKind, Killed, outcome, run_tasks
from tfq.executors.task import Task, TaskFailure, TaskResult
from tfq.executors.worker_process import WorkerProcess
from tfq.store import StageResult, StageStore
from tfq.typing import JSON

# A node that disappears is not the task's fault.
_MAX_LOST_NODES = 10
_MAX_REASON = 300
_CONNECT_SECS = 10.0
# The worker process of this Ray worker: {number of threads: process}.
_workers: dict[int, WorkerProcess] = {}


class RayExecutor:
    """Runs tasks on the nodes of a Ray cluster."""

    def __init__(self, address: str = "", num_workers: int | None = None) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            address: The address of the cluster's head: "HOST:PORT", "auto" for the cluster that this machine belongs
                to, or "" to start one that ends with this process.
            num_workers: How many tasks run at the same time; None: as many as the cluster has CPUs for.

        Raises:
            InputError: Ray is not installed.
            TfqError: The cluster cannot be reached or started.
        """
        self._ray = _import_ray()
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._connect(address, num_workers)
        self._limit = num_workers
        self._remote = self._ray.remote(run_on_node)
        self._running: dict[Any, tuple[Task, StageStore]] = {}
        self._payloads: dict[str, Any] = {}

    @property
    def num_workers(self) -> int:
        """The number of tasks that run at the same time, if each has one thread."""
        return self._limit or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def run(self, tasks: Iterable[Task], store: StageStore) -> Iterator[TaskResult]:
        """Run the tasks that are not stored yet; see `Executor.run`."""
        return run_tasks(tasks, store, self)

    def close(self) -> None:
        """Cancel what is running, and disconnect. A cluster that was started here ends."""
        self.cancel()
        self._payloads.clear()
        if self._is_ours:
            self._ray.shutdown()

    def has_room(self, num_running: int) -> bool:
        """Check whether another task may be submitted; without a limit, Ray queues them."""
        return self._limit is None or num_running < self._limit

    def start(self, task: Task, needs: Mapping[str, StageResult], store: StageStore) -> None:
        """Submit a task, with the files of what it needs."""
        request = {**call.request_of(task, store.out), "out": "", "plugins": _plugin_contents()}
        payloads = [self._payload(task.needs[role].key, result.directory) for role, result in needs.items()]
        keys = [task.needs[role].key for role in needs]
        # `run_tasks` repeats tasks, so that every killed process is reported.
        options = {"num_cpus": task.num_threads, "max_retries": 0, "name": task.name}
        reference = self._remote.options(**options).remote(request, keys, *payloads)
        self._running[reference] = (task, store)

    def wait(self) -> tuple[Task, StageResult | TaskFailure | Killed]:
        """Wait until any task ends, and store its result."""
        (reference,), _ = self._ray.wait(list(self._running), num_returns=1, fetch_local=True)
        task, store = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            reply = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return task, Killed(reason=_first_line(error))
        except (errors.NodeDiedError, errors.ObjectLostError, errors.RaySystemError) as error:
            return task, Killed(reason=_first_line(error), max_retries=_MAX_LOST_NODES)
        except errors.RayError as error:
            advice = "Install the same tfq on every node, or set PYTHONPATH before `ray start`"
            message = f"the node could not run it: {_first_line(error)}. {advice}"
            return task, TaskFailure(kind="bug", message=message, details=str(error)[-call.MAX_DETAILS :])
        if reply["kind"] == "stored":
            store.add(task.key, reply["files"])
        return task, outcome(task, store, reply)

    def cancel(self) -> None:
        """End the running tasks."""
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._running.clear()

    def _payload(self, key: str, directory: Path) -> Any:
        """Return the reference to the files of a result; they are put into Ray once."""
        if key not in self._payloads:
            self._payloads[key] = self._ray.put(_files_of(directory))
        return self._payloads[key]

    def _connect(self, address: str, num_workers: int | None) -> None:
        _check_reachable(address)
        options: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": num_workers}
        try:
            self._ray.init(
                **options, include_dashboard=None if address else False, log_to_driver=False, logging_level="ERROR"
            )
        except Exception as error:
            where = f"cannot connect to Ray at {address}" if address else "cannot start Ray"
            raise TfqError(
                f"{where}: {_first_line(error)}. The head needs the same versions of Python and Ray, and the same "
                "RAY_AUTH_MODE and token",
                field="executor",
                expected="the address of a running cluster",
                got=address,
            ) from error


def run_on_node(request: JSON, keys: list[str], *payloads: dict[str, bytes]) -> JSON:
    """Run a task in a Ray worker.

    Args:
        request: As in `call.py`, with the contents of plugins instead of paths.
        keys: The keys of what the task needs.
        payloads: The files of the results with these keys.

    Returns:
        The reply, with the files of the result.
    """
    folder = Path(tempfile.gettempdir())
    artifacts.sweep(folder)
    with tempfile.TemporaryDirectory(prefix=artifacts.temporary_prefix(), dir=folder) as scratch:
        store = StageStore(Path(scratch))
        for key, files in zip(keys, payloads, strict=True):
            store.add(key, files)
        plugins = []
        for number, (name, content) in enumerate(request["plugins"]):
            path = Path(scratch, str(number), name)
            path.parent.mkdir()
            path.write_bytes(base64.b64decode(content))
            plugins.append(str(path))
        reply = _ask({**request, "out": scratch, "plugins": plugins})
        if reply["kind"] == "stored":
            result = store.find(request["key"])
            assert result is not None  # the child has just written it
            reply["files"] = _files_of(result.directory)
        return reply


def _check_reachable(address: str) -> None:
    """Check that something answers at HOST:PORT, because Ray tries for minutes.

    Raises:
        TfqError: Nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto" and others, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECS).close()
    except (OSError, OverflowError) as error:
        raise TfqError(
            f"cannot connect to Ray at {address}: {getattr(error, 'strerror', None) or error}. Start the head with "
            "`ray start --head`, and check the address and the port",
            field="executor",
            expected="the address of a running cluster",
            got=address,
        ) from error


def _ask(request: JSON) -> JSON:
    num_threads = request["num_threads"]
    if num_threads not in _workers:
        _workers[num_threads] = WorkerProcess(num_threads)
    worker = _workers[num_threads]
    worker.send(request)
    reply = worker.receive()
    if reply is None:
        del _workers[num_threads]
        return {"kind": "killed", "message": worker.kill(), "details": ""}
    return reply


def _files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _plugin_contents() -> list[tuple[str, str]]:
    return [(Path(file).name, base64.b64encode(Path(file).read_bytes()).decode()) for file in call.plugin_files()]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:_MAX_REASON].rstrip(".")


def _import_ray() -> Any:
    """Return the module `ray`, which sends no statistics about its use.

    Raises:
        InputError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise InputError(
            f"executor is 'ray', which needs the package ray: {install_hint('ray')}",
            field="executor",
            expected="the package ray",
            got=str(error),
        ) from error
    return ray


registry.register(
    ExecutorKind(
        name="ray",
        help="the nodes of a Ray cluster, or without an address one on this machine (extra `ray`)",
        open=RayExecutor,
        address="ADDRESS",
    )
)

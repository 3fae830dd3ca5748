# SPDX-License-Identifier: Apache-2.0
"""Run one task in the process that an executor started for it.

A request and its reply are JSON, so that they can travel through pipes and clusters.

Request: `name`, `key`, `function`, `arguments`, `basis` (what the key covers), `needs` {role: key}, `num_threads`,
`out` (the folder of the store), `plugins` (paths), `path` and `software` (the driver's).
Reply: {"kind": "stored"}, or {"kind", "message", "details", "exit_code"} of a failure.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tfq import registry
from tfq.errors import InputError, TfqError
from tfq.executors.task import Task, load_function
from tfq.store import StageStore, software, stage_key
from tfq.typing import JSON

MAX_DETAILS = 4_000


def request_of(task: Task, out: Path) -> JSON:
    """Return the request to run a task, for a process that sees the store's folder."""
    return {
        "name": task.name,
        "key": task.key,
        "function": task.function,
        "arguments": task.arguments,
        "basis": task.basis,
        "needs": {role: need.key for role, need in task.needs.items()},
        "num_threads": task.num_threads,
        "out": str(out.resolve()),
        "plugins": plugin_files(),
        "path": [os.path.abspath(entry) for entry in sys.path if entry],
        "software": software(),
    }


def plugin_files() -> list[str]:
    """Return the files of the plugins that a user named. Installed ones are loaded by name."""
    files = [
        plugin.module.__file__ for plugin in registry.plugins() if plugin.module.__name__.startswith("tfq_plugin_")
    ]
    return [os.path.abspath(file) for file in files if file]


def environment(num_threads: int) -> dict[str, str]:
    """Return the environment variables of a process for tasks.

    They fix the threads before libraries start theirs, and how many children calibrations and evaluations start.
    """
    libraries = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR")
    return {
        **{f"{library}_NUM_THREADS": str(num_threads) for library in libraries},
        "TF_NUM_INTRAOP_THREADS": str(num_threads),
        "TF_NUM_INTEROP_THREADS": str(num_threads),
        "TFQ_NUM_CORES": str(num_threads),
        "PYTHONHASHSEED": "0",
        "TFQ_PROGRESS": "0",
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry),
    }


def prepare(request: JSON) -> None:
    """Load plugins and the module of the function. This process can do it once for several tasks.

    Raises:
        InputError: A plugin or the function cannot be loaded, or this process has other code than the driver.
    """
    # Folders of the driver that exist here too, such as that of the user's script.
    sys.path += [entry for entry in request["path"] if entry not in sys.path and os.path.exists(entry)]
    registry.load_installed_plugins()
    registry.load_plugins(request["plugins"])
    load_function(request["function"])
    check_software(request)


def check_software(request: JSON) -> None:
    """Check that the task has the same key here as in the driver.

    Raises:
        InputError: The code, a package or a plugin differs.
    """
    here, there = software(), request["software"]
    advice = "Install the same versions on every machine"
    if here["code"] != there["code"]:
        message = f"tfq's code differs (SHA-256 {here['code'][:12]}, the driver's is {there['code'][:12]})"
        raise InputError(f"{_WORKER} {message}. {advice}", field="executor", expected=there["code"], got=here["code"])
    if here["packages"] != there["packages"]:
        packages = there["packages"].items()
        others = {name: (here["packages"].get(name), version) for name, version in packages}
        text = ", ".join(f"{name} {mine}, not {theirs}" for name, (mine, theirs) in others.items() if mine != theirs)
        raise InputError(f"{_WORKER} it has {text}. {advice}", field="executor", expected=text, got=text)
    if here["plugins"] != there["plugins"]:
        raise InputError(
            f"{_WORKER} it has {len(here['plugins'])} plugins with other content than the driver's "
            f"{len(there['plugins'])}. {advice}",
            field="plugin",
            expected=there["plugins"],
            got=here["plugins"],
        )
    if stage_key(request["name"], request["basis"]) != request["key"]:
        raise TfqError(f"{_WORKER} the key of {request['name']} differs although the software is the same")


_WORKER = "the worker cannot compute what the driver expects:"


def reply_of(request: JSON) -> JSON:
    """Run the task of a request, and return the reply."""
    try:
        _run(request)
    except Exception as error:
        return failure_of(error)
    return {"kind": "stored"}


def failure_of(error: Exception) -> JSON:
    """Return the reply for an exception of a task."""
    if isinstance(error, TfqError):
        return {"kind": "error", "message": str(error), "details": "", "exit_code": error.exit_code}
    message = f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    return {"kind": "bug", "message": message, "details": trace[-MAX_DETAILS:], "exit_code": 3}


def _run(request: JSON) -> None:
    function = cast("Callable[..., dict[str, Any]]", load_function(request["function"]))
    fix_tensorflow_threads(request["num_threads"])
    store = StageStore(Path(request["out"]))
    needs = {role: _need(store, role, key) for role, key in request["needs"].items()}
    store.make(
        request["name"],
        request["key"],
        lambda directory: function(directory, needs, **request["arguments"]),
        is_shared=True,
    )


def _need(store: StageStore, role: str, key: str) -> Path:
    result = store.find(key)
    if result is None:
        raise TfqError(f"the result that is needed as {role!r} is no longer in {store.out}: start again")
    return result.directory


def fix_tensorflow_threads(num_threads: int) -> None:
    """Set the number of TensorFlow's threads, if it is imported. The environment variables do it otherwise."""
    tensorflow = cast(Any, sys.modules.get("tensorflow"))
    if tensorflow is not None:
        tensorflow.config.threading.set_intra_op_parallelism_threads(num_threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(num_threads)

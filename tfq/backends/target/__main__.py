# SPDX-License-Identifier: Apache-2.0
"""Run one request on the target: `python FOLDER DIRECTORY`. This folder needs only NumPy and ai_edge_litert.

`python FOLDER --serve` does the same for many directories (serve.py).

DIRECTORY holds request.json, whose "mode" names the module that handles it, and the files which that module needs. The
result is written atomically to result.json: the module's result, or {"error": {"kind": "input" or "interpreter",
"message": ...}}. The process prints lines to stdout: `started <pid>` before the model is loaded, `progress <total>` or
`more <increment>` from time to time, and `failed <reason>` before exit code 74, if a file could not be written. If
there is no result.json and no `failed` line, the process has crashed.
"""

import errno
import importlib
import json
import os
import resource
import sys
import types

# `python FOLDER` adds this folder to the path. Remove it, because its modules could shadow those of packages.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path = [entry for entry in sys.path if os.path.abspath(entry) != HERE]

PACKAGE = "tfq_target"
MODES = ("examples", "samples", "activations", "statistics", "benchmark", "op_times", "instructions", "vela")
WRITE_FAILED = 74


def main(directory, parent=None):
    """Handle DIRECTORY/request.json.

    Args:
        directory: The folder of the request.
        parent: ID of the process that this one must not outlive; None for the one that wrote the request.

    Returns:
        The exit code, which is 0 if and only if there is a result.json.
    """
    with open(os.path.join(directory, "request.json")) as file:
        request = json.load(file)
    # Crashes are expected and reported; do not leave core files in the user's directory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    session = load("session", request.get("path", ()))
    session.die_with(parent or request.get("parent"))
    mode = load(MODES[MODES.index(request["mode"])])
    try:
        print(f"started {os.getpid()}", flush=True)
        try:
            result = mode.run(directory, request)
        except session.InputMismatch as error:
            result = {"error": {"kind": "input", "message": str(error)}}
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            result = {"error": {"kind": "interpreter", "message": f"{type(error).__name__}: {error}"}}
        usage = resource.getrusage(resource.RUSAGE_SELF)
        result["used"] = {"cpu_secs": usage.ru_utime + usage.ru_stime, "peak_kb": usage.ru_maxrss}
        temporary = os.path.join(directory, ".result.json")
        with open(temporary, "w") as file:
            json.dump(result, file, allow_nan=False)
        os.replace(temporary, os.path.join(directory, "result.json"))
    except BrokenPipeError:
        return 1  # the parent has ended, so nobody waits for the outputs
    except OSError as error:
        print(f"failed {error.strerror or error}", flush=True)
        return WRITE_FAILED
    sys.stdout.flush()
    return 0


def load(module, path=()):
    """Import a module of this folder; the first call adds `path`, where NumPy and ai_edge_litert are, to `sys.path`."""
    if PACKAGE not in sys.modules:
        sys.path += path
        # Threads of OpenBLAS would only compete with those of the interpreters.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        package = sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        package.__path__ = [HERE]
    return importlib.import_module(f"{PACKAGE}.{module}")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        load("serve", json.loads(sys.argv[2])).serve(main)
        status = 0
    else:
        status = main(sys.argv[1])
    # Skip the regular shutdown of NumPy and the interpreter, which takes longer than a small run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

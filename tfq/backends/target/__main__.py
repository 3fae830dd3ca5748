# SPDX-License-Identifier: Apache-2.0
"""All of tfq that runs on the target, in this folder alone: `python FOLDER DIRECTORY`. NumPy and ai_edge_litert only.

(`python FOLDER --serve` does the same for many directories, one after the other or at once: serve.py.)

DIRECTORY holds request.json, whose "mode" names the module that answers it, and the files which that wants. The answer
is result.json, whole or not at all: {"error": {"kind": "input" or "interpreter", "message": ...}} or what it found.
To stdout go lines: `started <pid>` once the model's turn has come, `progress <done>` or `more <done>` now and then,
`failed <reason>` before exit code 74, when a file could not be written. Without either the process has crashed.
"""

import errno
import importlib
import json
import os
import resource
import sys
import types

# What `python FOLDER` puts on the path is this folder, whose modules could shadow a package's.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path = [entry for entry in sys.path if os.path.abspath(entry) != HERE]

PACKAGE = "tfq_target"
MODES = ("examples", "samples", "benchmark", "op_times", "instructions")
NO_ROOM = 74


def main(directory, parent=None):
    """Do what DIRECTORY/request.json asks for. Returns the exit code, 0 whenever there is a result.json.

    parent: the process with which this one is to end, where that is not the one that wrote the request.
    """
    with open(os.path.join(directory, "request.json")) as file:
        request = json.load(file)
    # A crash is an answer here, not something to debug from a core file in the user's directory.
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
        temporary = os.path.join(directory, ".result.json")
        with open(temporary, "w") as file:
            json.dump(result, file, allow_nan=False)
        os.replace(temporary, os.path.join(directory, "result.json"))
    except BrokenPipeError:
        return 1  # the parent is gone, and nobody waits for the outputs
    except OSError as error:
        print(f"failed {error.strerror or error}", flush=True)
        return NO_ROOM
    sys.stdout.flush()
    return 0


def load(module, path=()):
    """A module of this folder, with NumPy and ai_edge_litert found on `path` too."""
    if PACKAGE not in sys.modules:
        sys.path += path
        # Threads of its own would only compete with the interpreters'.
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
    # Taking NumPy and the interpreter apart in order costs longer than a small run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

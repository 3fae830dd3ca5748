# SPDX-License-Identifier: Apache-2.0
"""All of tfq that runs on the target, in this folder alone: `python FOLDER DIRECTORY`. NumPy and ai_edge_litert only.

DIRECTORY holds request.json, whose "mode" names the module that answers it, and the files that mode wants. The answer is
result.json, whole or not at all: {"error": {"kind": "input" or "interpreter", "message": ...}} or what the mode found.
To stdout go lines: `started` once the model's turn has come, `progress <done>` now and then, `failed <reason>` before
exit code 74, when a file could not be written. Without a result.json or that the process has crashed.
"""

import importlib
import json
import os
import resource
import signal
import sys
import types

# What `python FOLDER` puts on the path is this folder, whose modules could shadow a package's.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path = [entry for entry in sys.path if os.path.abspath(entry) != HERE]

PACKAGE = "tfq_target"
MODES = ("examples", "benchmark", "op_times", "instructions")
NO_ROOM = 74
PR_SET_PDEATHSIG = 1


def main(directory):
    """Do what DIRECTORY/request.json asks for. Returns the exit code, 0 whenever there is a result.json."""
    with open(os.path.join(directory, "request.json")) as file:
        request = json.load(file)
    # A crash is an answer here, not something to debug from a core file in the user's directory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    die_with(request.get("parent"))
    sys.path += request.get("path", ())
    # One thread of its own would do nothing here but compete with the interpreters'.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    package = sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
    package.__path__ = [HERE]
    session = importlib.import_module(f"{PACKAGE}.session")
    mode = importlib.import_module(f"{PACKAGE}.{MODES[MODES.index(request['mode'])]}")
    try:
        print("started", flush=True)
        try:
            result = mode.run(directory, request)
        except session.InputMismatch as error:
            result = {"error": {"kind": "input", "message": str(error)}}
        except OSError:
            raise
        except Exception as error:
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
    return 0


def die_with(parent):
    """End when the process that started this one ends, however it does: nobody else would ever stop a long inference."""
    if parent is None:
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    status = main(sys.argv[1])
    # Taking NumPy and the interpreter apart in order costs longer than a small run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

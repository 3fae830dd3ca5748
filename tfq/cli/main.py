# SPDX-License-Identifier: Apache-2.0
"""The console script `tfq`: `tfq convert --model=...` runs pipelines/convert.py."""

import ast
import contextlib
import importlib
import sys
from pathlib import Path

from tfq import __version__, progress
from tfq.cli import streams
from tfq.errors import did_you_mean


def _commands() -> dict[str, str]:
    """Return {command: first line of its docstring} for the files in pipelines/, without importing them."""
    results = {}
    for path in sorted((Path(__file__).parent.parent / "pipelines").glob("*.py")):
        if not path.stem.startswith("_"):
            docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
            results[path.stem] = docstring.partition("\n")[0]
    return results


COMMANDS = _commands()


def main() -> None:
    """Run the command that the first argument names, and exit with its code."""
    streams.prepare()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print("tfq COMMAND [--FLAG=VALUE ...]: compress Keras models to int8 TFLite and verify the result.\n")
        print("\n".join(f"  tfq {command:9} {summary}" for command, summary in COMMANDS.items()))
        print("\ntfq COMMAND --help lists the flags of a command; tfq --version prints the version.")
        print("Progress goes to stderr; the environment variable TFQ_PROGRESS=0 switches it off.")
        sys.exit(0)
    if name == "--version":
        print(f"tfq {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        print(f"tfq: unknown command {name!r}: {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    is_help = "--help" in sys.argv
    try:
        with progress.printed_lines():
            # NumPy takes a while to load from a slow disk.
            with contextlib.nullcontext() if is_help else progress.stage(f"starting tfq {name}"):
                command = importlib.import_module(f"tfq.pipelines.{name}")
            command.cli([f"tfq {name}", *sys.argv[2:]])
    except KeyboardInterrupt:  # while the imports were under way
        print(f"tfq {name}: interrupted", file=sys.stderr)
        sys.exit(130)

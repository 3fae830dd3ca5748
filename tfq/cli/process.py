# SPDX-License-Identifier: Apache-2.0
"""What every command does around its own work: flags, quiet, exit codes, its record."""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tfq import artifacts
from tfq.cli import flags
from tfq.errors import TfqError, TfqWarning
from tfq.provenance import record_of

INTERRUPTED = 130


def run_command(
    main: Callable[[flags.Invocation], None],
    *,
    command: str,
    section: str | None,
    description: str,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the command line, call `main`, and leave the process with the exit code that its outcome has."""
    provided = sys.argv if arguments is None else arguments
    with _noted_interrupts() as interrupts:
        sys.exit(_exit_code(main, command, section, description, provided, interrupts))


def _exit_code(
    main: Callable[[flags.Invocation], None],
    command: str,
    section: str | None,
    description: str,
    arguments: Sequence[str],
    interrupts: list[int],
) -> int:
    verbose = False
    try:
        try:
            invocation = flags.parse(arguments, command=command, section=section, description=description)
        except flags.HelpRequested as request:
            print(request, flush=True)
            return 0
        verbose = invocation.verbosity > 0
        # With --format=json the record alone goes to stdout; Keras' progress, say, goes to stderr.
        quiet = contextlib.nullcontext() if verbose else _quiet()
        with quiet, _shown_warnings(section), _stdout_for_records(invocation.format):
            main(invocation)
        return 0
    except KeyboardInterrupt:
        return _interrupted(command)
    except TfqError as error:
        if verbose:
            traceback.print_exc()
        if interrupts:
            return _interrupted(command)
        message = flags.with_flags(str(error), section, field=error.field)
        print(f"tfq {command}: error: {message}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); keep the interpreter from failing on it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return TfqError.exit_code
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if interrupts:
            return _interrupted(command)
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"tfq {command}: failed: {text} (-v=1 shows where)", file=sys.stderr)
        return TfqError.exit_code


def _interrupted(command: str) -> int:
    print(f"tfq {command}: interrupted", file=sys.stderr)
    return INTERRUPTED


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The SIGINTs that came inside. A library that swallows the KeyboardInterrupt fails of it in its own words, as
    TensorFlow does while it traces ("'SymbolicTensor' object has no attribute '_type_spec'").
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    # Only the main thread may, and a SIGINT that the caller ignores (nohup, `&`) stays ignored.
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield came
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def record(invocation: flags.Invocation, command: str, **results: Any) -> dict[str, Any]:
    """The record of what `invocation` asked of `command`: see `provenance.record_of`."""
    return record_of(command, invocation.config, **results)


def finish(invocation: flags.Invocation, command_record: dict[str, Any], text: str) -> None:
    """Write `<command>.json` into --out, where there is one, and print the record or `text`, as --format says."""
    if invocation.config.out:
        out = artifacts.make_out_dir(invocation.config.out)
        artifacts.write_json(out / f"{command_record['command']}.json", command_record)
    show(invocation, command_record, text)


def show(invocation: flags.Invocation, command_record: dict[str, Any], text: str) -> None:
    """Print the record or `text`, as --format says."""
    as_json = invocation.format == "json"
    try:
        print(
            json.dumps(command_record, indent=2, allow_nan=False)
            if as_json
            else flags.with_flags(text, invocation.section),
            file=sys.__stdout__ if as_json else sys.stdout,
            flush=True,
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TfqError(f"cannot write to standard output: {error.strerror or error}") from error


def out_dir(invocation: flags.Invocation) -> Path:
    """The directory of --out, made; InputError where there is none or it cannot be."""
    return artifacts.make_out_dir(invocation.config.out)


@contextlib.contextmanager
def _stdout_for_records(format: str) -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr) if format == "json" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _shown_warnings(section: str | None) -> Iterator[None]:
    """Print each warning of tfq once, as one line on stderr, and none of those of libraries."""
    messages: set[str] = set()

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        if issubclass(category, TfqWarning) and str(message) not in messages:
            messages.add(str(message))
            print(f"warning: {flags.with_flags(str(message), section)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TfqWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what C++ libraries write to file descriptor 2 off the screen; Python's own stderr still reaches it.

    TensorFlow and MLIR write there past every log level. `sys.stderr` moves to a copy of the real one meanwhile.
    """
    log_level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    screen, real_stderr = os.dup(2), sys.stderr
    sink = os.open(os.devnull, os.O_WRONLY)
    sys.stderr = os.fdopen(screen, "w", buffering=1, errors="backslashreplace")
    os.dup2(sink, 2)
    os.close(sink)
    _quiet_loggers()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(screen, 2)
        sys.stderr.close()
        sys.stderr = real_stderr
        if log_level is None:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]


def _quiet_loggers() -> None:
    import logging

    for name in ("absl", "tensorflow", "keras", "tf_keras"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.lastResort = None

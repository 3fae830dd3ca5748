# SPDX-License-Identifier: Apache-2.0
"""What all commands share: parsing flags, progress and warnings on stderr, exit codes, writing the record."""

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

from tfq import artifacts, progress, workflows
from tfq.cli import flags, streams
from tfq.errors import TfqError, TfqWarning, warn
from tfq.progress import printable
from tfq.provenance import record_of

INTERRUPTED = 130
# Ctrl-C, the end of a job (`kill`, a batch system, a container), a closed terminal.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_command(
    main: Callable[[flags.Invocation], None],
    *,
    command: str,
    section: str | None,
    description: str,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the command line, call `main`, and exit with the code of its outcome.

    Args:
        main: The work of the command.
        command: Its name, for messages.
        section: Its own section of RunConfig; None for `run`.
        description: The text that begins its help.
        arguments: The command line, program name first; None is sys.argv.
    """
    streams.prepare()
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
        # With --format=json only the record goes to stdout; other output, such as Keras' bars, goes to stderr.
        output = _with_log_level("0") if verbose else _quiet()
        with output, _shown_warnings(section), _stdout_for_records(invocation.format), progress.printed_lines():
            _check_outputs(invocation)
            _check_inputs(invocation)
            main(invocation)
        return 0
    except KeyboardInterrupt:
        return _interrupted(command)
    except TfqError as error:
        if verbose:
            traceback.print_exc()
        if interrupts:
            return _interrupted(command)
        message = flags.with_flags(_with_shown_paths(str(error), arguments), section, field=error.field)
        print(f"tfq {command}: error: {printable(message)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Only where standard output was replaced: `streams.prepare` drops output that nobody reads.
        return TfqError.exit_code
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if interrupts:
            return _interrupted(command)
        text = printable(f"{type(error).__name__}: {error}".splitlines()[0])
        print(f"tfq {command}: failed: {text} (-v=1 shows where)", file=sys.stderr)
        return TfqError.exit_code


def _with_shown_paths(message: str, arguments: Sequence[str]) -> str:
    """Return an error message in which paths of the command line are short, and have no line breaks."""
    for argument in arguments[1:]:
        value = argument.partition("=")[2]
        for path in (value, value.partition(":")[2]):
            if path and artifacts.shown(path) != path:
                message = message.replace(path, artifacts.shown(path))
    return message


def _interrupted(command: str) -> int:
    print(f"tfq {command}: interrupted", file=sys.stderr)
    return INTERRUPTED


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Yield a list of the stop signals that arrive inside. Each raises KeyboardInterrupt, so that files are cleaned up.

    A library may swallow the KeyboardInterrupt and fail with another error, as TensorFlow does while it traces
    ("'SymbolicTensor' object has no attribute '_type_spec'"). Python itself drops an exception that is raised in a
    `__del__`: a KeyboardInterrupt there is raised again a moment later.
    """
    interrupts: list[int] = []

    def note(number: int, frame: Any) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    # Only the main thread may set a handler. A signal that the caller ignores (nohup, `&`) stays ignored.
    is_main = threading.current_thread() is threading.main_thread()
    defaults = (signal.default_int_handler, signal.SIG_DFL)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS} if is_main else {}
    before = {number: handler for number, handler in before.items() if handler in defaults}
    if not before:
        yield interrupts
        return
    unraisable_hook = sys.unraisablehook

    def raise_later(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            again = interrupts[-1] if interrupts else signal.SIGINT
            timer = threading.Timer(0.05, os.kill, (os.getpid(), again))
            timer.daemon = True
            timer.start()
        else:
            unraisable_hook(unraisable)

    _handlers_before.update(before)
    for number in before:
        signal.signal(number, note)
    sys.unraisablehook = raise_later
    try:
        yield interrupts
    finally:
        sys.unraisablehook = unraisable_hook
        _restore_handlers()
        _handlers_before.clear()


def _restore_handlers() -> None:
    for number, handler in _handlers_before.items():
        signal.signal(number, handler)


# A fork of this process ends on SIGTERM as any other process does.
_handlers_before: dict[signal.Signals, Any] = {}
os.register_at_fork(after_in_child=_restore_handlers)


def _check_outputs(invocation: flags.Invocation) -> None:
    """Check before the work that its results can be written."""
    if invocation.config.out:
        artifacts.check_out_dir(invocation.config.out)
    elif streams.stdout_was_closed():
        warn("standard output is closed and out is not set: only the exit code will show the result")


def _check_inputs(invocation: flags.Invocation) -> None:
    """Check before the work that the files that flags name can be read; `plugin` has been read already."""
    for setting in flags.settings_of(invocation.section):
        path_of = setting.field.metadata["path_of"]
        if path_of in ("model", "flatbuffer", "comparable", "ranges"):
            value: Any = invocation.config
            for name in setting.path:
                value = getattr(value, name)
            for path in (value,) if isinstance(value, str) else value:
                if path:
                    workflows.check_path(path, path_of, ".".join(setting.path))


def record(invocation: flags.Invocation, command: str, **results: Any) -> dict[str, Any]:
    """Return the record of a command with its config and results: see `provenance.record_of`."""
    return record_of(command, invocation.config, **results)


def finish(invocation: flags.Invocation, command_record: dict[str, Any], text: str) -> None:
    """Write the record and its pages into the directory of --out, if there is one; print it or `text` by --format."""
    if invocation.config.out:
        from tfq import report

        with out_dir(invocation) as out:
            report.write_report(command_record, out)
    show(invocation, command_record, text)


def show(invocation: flags.Invocation, command_record: dict[str, Any], text: str) -> None:
    """Print the record (--format=json) or `text`."""
    as_json = invocation.format == "json"
    try:
        print(
            json.dumps(command_record, indent=2, allow_nan=False)
            if as_json
            else printable(flags.with_flags(text, invocation.section)),
            file=sys.__stdout__ if as_json else sys.stdout,
            flush=True,
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        # The interpreter writes what the stream still holds again when it exits.
        with contextlib.suppress(OSError, ValueError):
            streams.drop(sys.stdout.fileno())
        raise TfqError(f"cannot write to standard output: {error.strerror or error}") from error


@contextlib.contextmanager
def out_dir(invocation: flags.Invocation) -> Iterator[Path]:
    """Create the directory of --out, and hold its lock inside the block; wait while another command writes to it.

    Raises:
        InputError: --out is missing, or the directory cannot be created or locked.
    """
    out = artifacts.make_out_dir(invocation.config.out)
    with artifacts.locked_directory(out):
        yield out


@contextlib.contextmanager
def _stdout_for_records(format: str) -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr) if format == "json" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _shown_warnings(section: str | None) -> Iterator[None]:
    """Print each warning of tfq once, as one line on stderr; drop warnings of libraries."""
    messages: set[str] = set()

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        if issubclass(category, TfqWarning) and str(message) not in messages:
            messages.add(str(message))
            print(f"warning: {printable(flags.with_flags(str(message), section))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TfqWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what C++ libraries write to file descriptor 2; Python's own stderr stays on the screen.

    TensorFlow and MLIR write there at every log level. Inside, `sys.stderr` is a copy of the real one.
    """
    sys.stderr.flush()
    screen, real_stderr = os.dup(2), sys.stderr
    sink = os.open(os.devnull, os.O_WRONLY)
    sys.stderr = streams.lasting_stderr(screen)
    os.dup2(sink, 2)
    os.close(sink)
    _quiet_loggers()
    try:
        with _with_log_level("3"):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(screen, 2)
        sys.stderr.close()
        sys.stderr = real_stderr


@contextlib.contextmanager
def _with_log_level(level: str) -> Iterator[None]:
    """Set the level below which TensorFlow's C++ logs nothing, unless the user has set it."""
    is_set = "TF_CPP_MIN_LOG_LEVEL" in os.environ
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", level)
    try:
        yield
    finally:
        if not is_set:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]


def _quiet_loggers() -> None:
    import logging

    for name in ("absl", "tensorflow", "keras", "tf_keras"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.lastResort = None

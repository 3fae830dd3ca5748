# SPDX-License-Identifier: Apache-2.0
"""Show what a long call is doing: its stages with their elapsed time, and bars where there is a count.

All of it goes to stderr:

- A command prints one line for each stage when the stage starts, with the seconds since the command started. The parts
  of a long stage of `tfq run` are printed too, indented.
- On a terminal and in a notebook, a stage that takes longer than a second is shown with its elapsed time, and a count
  as a bar. Both disappear when the stage ends. They are plain text: no widgets are needed.
- A Python program whose stderr is neither prints nothing.

Set the environment variable TFQ_PROGRESS=0 to switch all of it off.
"""

import contextlib
import functools
import importlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

from tfq.native_stderr import captured_stderr, is_captured

Item = TypeVar("Item")
_SWITCH = "TFQ_PROGRESS"
# A stage is shown on a terminal after this time, and a bar after half of it.
_DELAY_SECS = 1.0
_REDRAW_SECS = 0.5


class _Display:
    """The stages that are under way in one thread, and the line on the screen that shows the innermost one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stages: list[tuple[str, float]] = []
        # Whether the parts of the outermost stage are printed too.
        self.prints_parts = False
        self.thread: int | None = None
        self.hidden = 0
        # When the command started, if a line is printed for each stage.
        self.command_start: float | None = None
        self._width = 0

    def begin(self, name: str, prints_parts: bool) -> bool:
        """Add a stage; return False if it is not shown, because another thread has stages under way."""
        with self.lock:
            if self.stages and self.thread != threading.get_ident():
                return False
            self.clear()
            is_outermost = not self.stages
            if is_outermost:
                self.prints_parts = prints_parts
            is_part = self.prints_parts and len(self.stages) == 1
            if self.command_start is not None and (is_outermost or is_part):
                indent = "  " if is_part else ""
                _write(f"[{time.monotonic() - self.command_start:5.1f} s] {indent}{_one_line(name)}\n")
            self.thread = threading.get_ident()
            self.stages.append((name, time.monotonic()))
        if is_outermost and _is_live():
            threading.Thread(target=self._redraw, args=(self.stages,), daemon=True).start()
        return True

    def end(self) -> None:
        """Remove the innermost stage."""
        with self.lock:
            self.clear()
            if self.stages:
                self.stages.pop()
            if not self.stages:
                self.stages = []  # another list: the thread that redraws this one ends

    def clear(self) -> None:
        """Erase the line that shows a stage."""
        with self.lock:
            if self._width:
                _write(f"\r{' ' * self._width}\r")
                self._width = 0

    def _redraw(self, stages: list[tuple[str, float]]) -> None:
        while True:
            time.sleep(_REDRAW_SECS)
            with self.lock:
                if self.stages is not stages or not stages:
                    return
                name, start = stages[-1]
                secs = time.monotonic() - start
                if secs >= _DELAY_SECS and not self.hidden and not _is_delayed():
                    line = f"{_one_line(name)} {secs:.0f} s"[: shutil.get_terminal_size().columns - 1]
                    _write(f"\r{line.ljust(self._width)}")
                    self._width = len(line)


_display = _Display()


@contextlib.contextmanager
def stage(name: str, *, prints_parts: bool = False) -> Iterator[None]:
    """Name what is done inside. Stages may be nested: a command prints a line only for the outermost one.

    Args:
        name: What is done.
        prints_parts: Whether a command prints a line for each stage directly inside this one too, if this one is the
            outermost.
    """
    is_shown = _is_enabled() and _display.begin(name, prints_parts)
    try:
        yield
    finally:
        if is_shown:
            _display.end()


@contextlib.contextmanager
def bar(name: str, total: int | None, unit: str) -> Iterator[Any]:
    """Yield a tqdm bar that counts to `total`: shown on a terminal or in a notebook, after half a second."""
    from tqdm import tqdm

    is_shown = total is not None and _is_enabled() and not _display.hidden and _is_live()
    with hidden() if is_shown else contextlib.nullcontext():
        options: dict[str, Any] = {"leave": False, "delay": _DELAY_SECS / 2, "file": sys.stderr}
        with tqdm(total=total, desc=name, unit=unit, disable=not is_shown, **options) as shown:
            yield shown


def counted(items: Sequence[Item], name: str, unit: str) -> Iterator[Item]:
    """Yield the items, and count them in a bar."""
    with bar(name, len(items), unit) as shown:
        for item in items:
            yield item
            shown.update()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Keep the line that is redrawn off the screen: something else, such as Keras' progress bar, is shown instead."""
    with _display.lock:
        _display.clear()
        _display.hidden += 1
    try:
        yield
    finally:
        with _display.lock:
            _display.hidden -= 1


@contextlib.contextmanager
def printed_lines() -> Iterator[None]:
    """Print a line for each outermost stage inside, as a command does, with the seconds since the outermost call."""
    before = _display.command_start
    _display.command_start = time.monotonic() if before is None else before
    try:
        yield
    finally:
        _display.command_start = before


def note(line: str) -> None:
    """Print a line about the progress of a command; nothing outside of a command."""
    if _is_enabled() and _display.command_start is not None:
        clear()
        _write(f"{printable(line)}\n")


def clear() -> None:
    """Erase the line that shows a stage, before something else is written to the terminal."""
    _display.clear()


def import_tensorflow() -> ModuleType:
    """Return the module `tensorflow`, imported as a stage and without the lines that its start writes to stderr.

    Raises:
        ImportError: It cannot be imported.
    """
    with contextlib.ExitStack() as stack:
        if "tensorflow" not in sys.modules:
            stack.enter_context(stage("importing TensorFlow"))
            stack.enter_context(captured_stderr())
        tensorflow = importlib.import_module("tensorflow")
    _search_gpus()
    return tensorflow


@functools.cache
def _search_gpus() -> None:
    """Have TensorFlow report now that there is no GPU, as its first operation would do on stderr.

    This does not fix the configuration of devices and threads: the user may still change it.
    """
    import tensorflow as tf

    with captured_stderr():
        tf.config.list_physical_devices()


def _is_enabled() -> bool:
    return os.environ.get(_SWITCH) != "0"


def _is_live() -> bool:
    """Return whether a line on stderr can be redrawn: it is a terminal or the output of a notebook's cell."""
    stream = sys.stderr
    with contextlib.suppress(AttributeError, ValueError):  # None, or closed
        return stream.isatty() or type(stream).__module__.startswith("ipykernel")
    return False


def _is_delayed() -> bool:
    """Return whether text that is written to stderr now is captured, and would appear late."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # the stream has no file descriptor
        return is_captured() and sys.stderr.fileno() == 2
    return False


def _one_line(name: str) -> str:
    """Return the name of a stage as it is shown: on one line, and not longer than a path usually is."""
    text = printable(name).replace("\n", "\\n")
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."


_MAX_NAME = 300
# A path has at most 4,096 bytes.
_LONG_WORD = re.compile(r"(\S{500})\S{3597,}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return `text` with its control characters escaped, except line breaks and tabs, and its longest words cut.

    A file name may contain escape sequences, which would change what a terminal shows, and a key may be a megabyte.
    """
    text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    return _LONG_WORD.sub(lambda match: f"{match[1]}... ({len(match[0]):,} characters)", text)


def _write(text: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _after_fork_in_child() -> None:
    """Forget the stages of the parent: the thread that redraws them is not in the child."""
    global _display
    _display = _Display()


os.register_at_fork(after_in_child=_after_fork_in_child)

# SPDX-License-Identifier: Apache-2.0
"""A metric of the user's own, named MODULE:FUNCTION: found, called, and its answer checked."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import artifacts
from tfq.errors import InputError, did_you_mean


def load_metric(name: str) -> Callable[[Any, NDArray], float]:
    """The function that `name`, MODULE:FUNCTION, means: of a module in the current directory, or an installed one.

    Importing the module runs its code. Raises InputError where there is no such module or function, or the import
    fails.
    """
    module_name, _, function_name = name.partition(":")
    where = f"evaluation.metric={name}"
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise InputError(f"{where}: wanted MODULE:FUNCTION, as in my_metrics:macro_f1 for my_metrics.py here")
    with _current_directory_first():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                here = [path.stem for path in Path.cwd().glob("*.py")]
                raise InputError(
                    f"{where}: there is no module {error.name!r} in {Path.cwd()}, nor an installed one: "
                    f"{did_you_mean(module_name, here)}"
                ) from error
            raise InputError(f"{where}: {module_name} imports {error.name!r}, which is not installed") from error
        except (Exception, SystemExit) as error:
            raise InputError(f"{where}: importing {module_name} failed: {_told(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = "is no function" if hasattr(module, function_name) else "is not there"
        raise InputError(f"{where}: {function_name} {what} in {module_name}: {did_you_mean(function_name, functions)}")
    return function


def metric_sha256(name: str) -> str | None:
    """Hex SHA-256 of the file that holds the metric MODULE:FUNCTION; None of a metric of tfq's, or without a file.

    For whoever keeps results: another file under the same name may give other numbers.
    """
    if ":" not in name:
        return None
    try:
        source = inspect.getsourcefile(inspect.unwrap(load_metric(name)))
    except TypeError:  # a built-in, or an object without code of its own
        return None
    return None if source is None else artifacts.sha256_file(source)


def call_metric(function: Callable[[Any, NDArray], float], name: str, outputs: Any, labels: NDArray) -> float:
    """What the metric gives, as a float. Raises InputError where it raises or exits, or gives no one finite number.

    It gets copies: what it writes into them changes no other number.
    """
    copied = tuple(map(np.copy, outputs)) if isinstance(outputs, tuple) else np.copy(outputs)
    with _current_directory_first():
        try:
            given = function(copied, np.copy(labels))
        except (Exception, SystemExit) as error:
            raise InputError(f"metric {name} failed: {_told(error)}") from error
    try:
        value = float(given)
    except OverflowError as error:
        raise InputError(
            f"metric {name} gave a {type(given).__name__} beyond the largest float: wanted a number"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"metric {name} gave {type(given).__name__} {given!r}: wanted one number") from error
    if not np.isfinite(value):
        raise InputError(f"metric {name} gave {value}: wanted a finite number")
    return value


@contextlib.contextmanager
def _current_directory_first() -> Iterator[None]:
    """As `python -m` does for the whole of a program, here for as long as the user's own code runs."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    # A file written a moment ago may be newer than what Python remembers of the directory.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _told(error: BaseException) -> str:
    """The error, and the line of the user's own file that it comes from, where it comes from one."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    file = __file__ if last is None else last.tb_frame.f_code.co_filename
    # A call that does not fit the function fails in this file, and a syntax error in importlib's.
    is_theirs = file != __file__ and not file.startswith("<")
    place = f" ({Path(file).name}, line {last.tb_lineno})" if last is not None and is_theirs else ""
    return f"{type(error).__name__}: {error}{place}"

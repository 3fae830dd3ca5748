# SPDX-License-Identifier: Apache-2.0
"""Warnings point to the user's line, regardless of their depth inside tfq."""

import re
from pathlib import Path

import pytest

import tfq
from tfq.errors import TfqWarning, warn

_FOLDER = Path(tfq.__file__).parent


def _called_through(depth: int) -> None:
    """Call `warn` through `depth` functions whose code is in a file of tfq."""
    source = "def call(depth):\n    call(depth - 1) if depth > 1 else warn('lost')\n"
    names: dict[str, object] = {"warn": warn}
    exec(compile(source, str(_FOLDER / "conversion" / "invented.py"), "exec"), names)
    names["call"](depth)  # type: ignore[operator]


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_a_warning_points_to_the_line_outside_of_tfq(depth: int) -> None:
    with pytest.warns(TfqWarning, match="lost") as caught:
        _called_through(depth)
    lines = Path(__file__).read_text().splitlines()
    assert caught[0].filename == __file__
    assert 'names["call"](depth)' in lines[caught[0].lineno - 1]


@pytest.mark.parametrize(("module", "is_skipped"), [("keras.src.callbacks", True), ("tf_keras", True), ("mine", False)])
def test_a_warning_in_a_callback_points_to_the_call_of_fit(module, is_skipped) -> None:
    inside: dict[str, object] = {"warn": warn}
    exec(compile("def callback(): warn('lost')", str(_FOLDER / "callbacks.py"), "exec"), inside)
    fit: dict[str, object] = {"__name__": module, "callback": inside["callback"]}
    exec(compile("def fit(): callback()", "fit.py", "exec"), fit)
    with pytest.warns(TfqWarning, match="lost") as caught:
        fit["fit"]()
    assert caught[0].filename == (__file__ if is_skipped else "fit.py")


def test_a_warning_points_to_a_caller_outside_of_tfq() -> None:
    with pytest.warns(TfqWarning, match="lost") as caught:
        warn("lost")
    assert caught[0].filename == __file__


def test_warnings_take_their_line_from_one_helper() -> None:
    """Only errors.py passes a stacklevel."""
    users = [path.name for path in _FOLDER.rglob("*.py") if re.search(r"\bstacklevel=", path.read_text())]
    assert users == ["errors.py"]

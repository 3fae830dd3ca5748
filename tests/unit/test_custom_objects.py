# SPDX-License-Identifier: Apache-2.0
"""The user's own classes, from a module or a file."""

import sys

import pytest

from tfq.errors import InputError, TfqWarning
from tfq.keras_bridge.loading.custom_objects import import_custom_objects

SOURCE = """
import json
from pathlib import Path

class Doubled:
    pass

def act(x):
    return x

class _Hidden:
    pass

number = 3
"""


def test_a_file_gives_the_classes_and_functions_that_it_defines_itself(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    objects = import_custom_objects(str(tmp_path / "mine.py"))
    assert set(objects) == {"Doubled", "act"}
    # Once: the classes that a model was built with are those that are found again.
    assert import_custom_objects(str(tmp_path / "mine.py"))["Doubled"] is objects["Doubled"]


def test_a_module_on_the_path_is_imported_by_name(tmp_path, monkeypatch):
    package = tmp_path / "tfq_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    assert set(import_custom_objects("tfq_test_package.layers")) == {"Doubled", "act"}
    sys.modules.pop("tfq_test_package.layers"), sys.modules.pop("tfq_test_package")


def test_the_modules_own_table_goes_first(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE + "CUSTOM_OBJECTS = {'pkg>Doubled': Doubled}\n")
    assert set(import_custom_objects(str(tmp_path / "mine.py"))) == {"pkg>Doubled"}
    (tmp_path / "list.py").write_text("CUSTOM_OBJECTS = [1]\n")
    with pytest.raises(InputError, match="wanted a dict"):
        import_custom_objects(str(tmp_path / "list.py"))


def test_a_name_of_keras_own_is_left_out_with_a_warning(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE + "class Dense: pass\ndef relu(x): return x\n")
    with pytest.warns(TfqWarning, match="Dense, relu, as Keras does"):
        assert set(import_custom_objects(str(tmp_path / "mine.py"))) == {"Doubled", "act"}


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("raises.py", "x = 1\n1 / 0\n", r"raises\.py:2 \(ZeroDivisionError"),
        ("syntax.py", "def (:\n", "SyntaxError"),
        ("needs.py", "import tfq_no_such_thing\n", "ModuleNotFoundError: No module named 'tfq_no_such_thing'"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_with_its_line(tmp_path, name, source, message):
    (tmp_path / name).write_text(source)
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            import_custom_objects(str(tmp_path / name))


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="is no file"):
        import_custom_objects(str(tmp_path / "none.py"))
    with pytest.raises(InputError, match="there is no module 'tfq_no_such_module'"):
        import_custom_objects("tfq_no_such_module.layers")

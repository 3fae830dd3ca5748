# SPDX-License-Identifier: Apache-2.0
"""Registries and plugins: registered objects are found, and faults are refused with the plugin's line."""

import subprocess
import sys

import pytest

from tfq import registry
from tfq.errors import InputError, TfqWarning
from tfq.keras_bridge.loading.custom_objects import custom_objects_of
from tfq.ptq.calibration import CalibrationMethod

CUSTOM_CLASSES = """
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


def method(name: str, help: str = "h") -> CalibrationMethod:
    return CalibrationMethod(name=name, help=help, choose=lambda seen, num_samples, config: (0.0, 1.0))


def test_a_registered_object_is_found_by_name_after_tfqs_own():
    with registry.temporary():
        mine = registry.register(method("mine"))
        assert registry.get(CalibrationMethod, "mine") is mine
        assert registry.names("calibration_method")[-1] == "mine"
    assert "mine" not in registry.names("calibration_method")


def test_a_taken_name_is_refused_and_the_same_object_is_not():
    with registry.temporary():
        mine = registry.register(method("mine"))
        assert registry.register(mine) is mine
        with pytest.raises(InputError) as caught:
            registry.register(method("mine"))
    assert (caught.value.field, caught.value.got) == ("name", "mine")


def test_an_object_replaces_another_of_its_name_when_asked_to():
    with registry.temporary():
        registry.register(method("mine"))
        second = registry.register(method("mine"), replace=True)
        assert registry.get(CalibrationMethod, "mine") is second


def test_tfqs_own_names_are_reserved_before_import():
    code = (
        "from tfq import registry\nfrom tfq.errors import InputError\nfrom tfq.evaluation.metric import Metric\n"
        "try: registry.register(Metric.from_function(lambda y, x: 0.0, name='top1', help='h'))\n"
        "except InputError as error: print(error.field, error.got)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "name top1", done.stderr


@pytest.mark.parametrize(("entry", "field"), [(method(""), "name"), (method("x", help=""), "help")])
def test_an_object_without_name_or_help_is_refused(entry, field):
    with pytest.raises(InputError) as caught:
        registry.register(entry)
    assert caught.value.field == field


def test_an_object_of_another_class_is_refused():
    with pytest.raises(InputError) as caught:
        registry.register(object())  # type: ignore[type-var]
    assert caught.value.got == "object"


def test_an_unknown_name_gets_the_nearest_and_the_choices():
    with pytest.raises(InputError) as caught:
        registry.get(CalibrationMethod, "percentil", field="calibration.method")
    assert caught.value.field == "calibration.method" and "percentile" in caught.value.expected
    assert "'percentile'" in str(caught.value)


def test_modules_that_fill_registries_import_neither_tensorflow_nor_an_interpreter():
    code = (
        "import importlib, sys\nfrom tfq import registry\n"
        "for module in registry.MODULES.values(): importlib.import_module(module)\n"
        "print([name for name in ('tensorflow', 'keras', 'tf_keras', 'ai_edge_litert') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_plugin_runs_once_and_its_hash_is_known(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("runs = []\nruns.append(1)\n")
    with registry.temporary():
        first, second = registry.load_plugins([str(file), str(file)])
        assert first is second and first.module.runs == [1]
        assert registry.plugins()[-1] is first and first.source == "mine.py"
        assert len(first.sha256) == 64


@pytest.mark.parametrize(
    "line", ["import keras", "from tensorflow import math", "import tf_keras as keras", "import re"]
)
def test_tensorflow_is_imported_silently_before_a_plugin_that_uses_it(line, tmp_path, monkeypatch):
    imports = []
    monkeypatch.setattr("tfq.progress.import_tensorflow", lambda: imports.append(line))
    (tmp_path / "mine.py").write_text(f"if False:\n    {line}\n")
    with registry.temporary():
        registry.load_plugin(str(tmp_path / "mine.py"))
    assert bool(imports) == (line != "import re")


@pytest.mark.parametrize(
    ("source", "got", "line"),
    [
        ("x = 1\n1 / 0\n", "ZeroDivisionError", "line 2 of mine.py"),
        ("def (:\n", "SyntaxError", ""),
        ("import tfq_no_such_thing\n", "ModuleNotFoundError", "line 1 of mine.py"),
    ],
)
def test_a_plugin_that_fails_is_refused_with_its_line(tmp_path, source, got, line):
    (tmp_path / "mine.py").write_text(source)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            registry.load_plugin(str(tmp_path / "mine.py"))
        assert (caught.value.field, caught.value.got) == ("plugin", got) and line in str(caught.value)


@pytest.mark.parametrize("name", ["none.py", "folder.py", "text.txt"])
def test_a_plugin_that_is_not_a_python_file_is_refused(tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(InputError) as caught:
        registry.load_plugin(str(tmp_path / name))
    assert caught.value.field == "plugin"


def test_an_installed_package_is_a_plugin_by_its_entry_point(tmp_path):
    (tmp_path / "tfq_test_plugin.py").write_text(
        "import tfq\nfrom tfq.ptq.calibration import CalibrationMethod\n"
        "tfq.registry.register(CalibrationMethod(name='installed', help='h', choose=lambda *seen: (0.0, 1.0)))\n"
    )
    info = tmp_path / "tfq_test_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tfq-test-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tfq.plugins]\nmine = tfq_test_plugin\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom tfq import registry\n"
        "registry.load_installed_plugins(); registry.load_installed_plugins()\n"
        "print(registry.names('calibration_method')[-1], [plugin.source for plugin in registry.plugins()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "installed ['tfq_test_plugin']", done.stderr


def test_a_plugin_gives_the_classes_and_functions_that_it_defines_itself(tmp_path):
    (tmp_path / "mine.py").write_text(CUSTOM_CLASSES)
    with registry.temporary():
        assert set(custom_objects_of(registry.load_plugin(str(tmp_path / "mine.py")).module, "mine.py")) == {
            "Doubled",
            "act",
        }


def test_a_table_of_custom_objects_goes_first(tmp_path):
    (tmp_path / "mine.py").write_text(CUSTOM_CLASSES + "CUSTOM_OBJECTS = {'pkg>Doubled': Doubled}\n")
    (tmp_path / "list.py").write_text("CUSTOM_OBJECTS = [1]\n")
    with registry.temporary():
        mine, wrong = registry.load_plugins([str(tmp_path / "mine.py"), str(tmp_path / "list.py")])
        assert set(custom_objects_of(mine.module, "mine.py")) == {"pkg>Doubled"}
        with pytest.raises(InputError) as caught:
            custom_objects_of(wrong.module, "list.py")
    assert (caught.value.expected, caught.value.got) == ("a dict", "list")


def test_a_custom_class_with_a_keras_name_is_skipped_with_warning(tmp_path):
    (tmp_path / "mine.py").write_text(CUSTOM_CLASSES + "class Dense: pass\ndef relu(x): return x\n")
    with registry.temporary():
        plugin = registry.load_plugin(str(tmp_path / "mine.py"))
        with pytest.warns(TfqWarning, match="Dense"):
            assert set(custom_objects_of(plugin.module, "mine.py")) == {"Doubled", "act"}

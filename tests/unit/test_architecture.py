# SPDX-License-Identifier: Apache-2.0
"""The layers of tfq: which package may import which, read from the source."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From bottom to top, as in CONTRIBUTING.md. A package imports only those before it.
ORDER = [
    *(
        "lazy",
        "native_stderr",
        "progress",
        "errors",
        "typing",
        "artifacts",
        "isolation",
        "hdf5",
        "registry",
        "quant_math",
        "text_table",
        "notebook",
        "patterns",
        "config",
        "requirement",
        "provenance",
        "store",
        "executors",
    ),
    *("tflite", "auditing", "data", "backends", "ptq", "evaluation", "robustness", "analysis", "comparison"),
    *("keras_bridge", "conversion", "compression", "models"),
    *("deploy", "report", "callbacks", "search", "workflows", "sweep", "cli", "pipelines", "__main__", "__init__"),
]
# These import no TensorFlow at module level.
LIGHT = {*ORDER[: ORDER.index("keras_bridge")], "deploy", "report", "callbacks", "search", "workflows", "sweep", "cli"}
PLACES = {package: place for place, package in enumerate(ORDER)}
# Programs that bundles contain: data of the package, not modules.
BUNDLED = ROOT / "tfq" / "deploy" / "sources"
HEAVY = {"tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"}


@functools.cache
def nodes_of(source: str) -> list[ast.AST]:
    """Return all nodes of the tree of a source, which several tests read; the tree itself comes first."""
    return list(ast.walk(ast.parse(source)))


def run_at_import(node):
    """Return the statements below `node` that run at import: also in `if`, `try` and classes, but not in functions."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not is_for_types:
            yield child
            yield from run_at_import(child)


def imports(source: str, *, module_level: bool):
    nodes = nodes_of(source)
    for node in run_at_import(nodes[0]) if module_level else nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "tfq" and len(parts) > 1 and parts[1] in PLACES else None


def breaches(package: str, source: str) -> list[str]:
    """Return the imports of packages that come later in the order."""
    results = []
    for other in sorted({package_of(module) or package for module in imports(source, module_level=False)} - {package}):
        if PLACES[other] > PLACES[package]:
            results.append(f"{package} imports {other}")
    return results


def sources():
    for path in sorted((ROOT / "tfq").rglob("*.py")):
        if BUNDLED in path.parents:
            continue
        yield path.relative_to(ROOT / "tfq").parts[0].removesuffix(".py"), path
    for path in sorted((ROOT / "models").glob("*.py")):
        yield "models", path


def test_every_package_has_its_place():
    assert {package for package, _ in sources()} - set(PLACES) == set()


def test_imports_go_down_the_order():
    lazy_names = {"__init__", "__main__"}
    assert [
        b for package, path in sources() if package not in lazy_names for b in breaches(package, path.read_text())
    ] == []


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("data", "from tfq.evaluation import top1", 1),
        ("tflite", "from tfq import backends", 1),
        ("data", "def f():\n    import tfq.workflows", 1),
        ("evaluation", "from tfq import tflite, quant_math", 0),
        ("backends", "from tfq.tflite import read", 0),
    ],
)
def test_the_check_of_imports_sees_a_breach(package, source, found):
    assert len(breaches(package, source)) == found


def test_light_packages_never_import_tensorflow_at_module_level():
    results = [
        f"{path.name}: {module}"
        for package, path in sources()
        if package in LIGHT
        for module in imports(path.read_text(), module_level=True)
        if module.split(".")[0] in HEAVY
    ]
    assert results == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import tensorflow as tf", ["tensorflow"]),
        ("try:\n    import keras\nexcept ImportError:\n    keras = None", ["keras"]),
        ("class A:\n    if True:\n        import tf_keras", ["tf_keras"]),
        ("def f():\n    import tensorflow", []),
        ("if TYPE_CHECKING:\n    import tensorflow", []),
    ],
)
def test_the_check_of_module_level_sees_what_runs_at_import(source, found):
    assert list(imports(source, module_level=True)) == found


def test_only_flags_imports_absl_flags():
    results = {
        path.name
        for _, path in sources()
        for module in imports(path.read_text(), module_level=False)
        if module.startswith("absl.flags") or module == "absl.flags"
    }
    assert results == {"flags.py"}


def flags_in_strings(source: str, flags: set[str]) -> list[str]:
    """Return the flags of tfq that string constants of `source` spell out, f-strings and docstrings included."""
    texts = [node.value for node in nodes_of(source) if isinstance(node, ast.Constant)]
    results = [
        word for text in texts if isinstance(text, str) for word in re.findall(r"--([a-z][\w.]*\w)(?![\w-])", text)
    ]
    return [word for word in results if word in flags or word.removeprefix("no") in flags]


def flags_of_every_command() -> set[str]:
    from tfq.cli.flags import COMMANDS, every_setting, settings_of

    settings = every_setting() + [setting for section in COMMANDS for setting in settings_of(section)]
    return {setting.flag for setting in settings} | {"config", "format", "allow_code", "verbosity"}


def test_no_string_of_the_library_names_a_flag():
    flags = flags_of_every_command()
    # backends/ calls pip, apt-get and QEMU, which have flags of the same names.
    library = [path for package, path in sources() if package not in ("cli", "pipelines", "backends")]
    results = {str(path.relative_to(ROOT)): flags_in_strings(path.read_text(), flags) for path in library}
    assert {name: flags for name, flags in results.items() if flags} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise InputError('--data is missing')", ["data"]),
        ("f'give {a} (--noqat), or --conversion.scheme={b}'", ["noqat", "conversion.scheme"]),
        ('def f():\n    """Name that --backend has."""', ["backend"]),
        ("'var(--paper)'; run('apt-get', '--yes', '--data-dir=x')  # --data", []),
    ],
)
def test_the_check_of_strings_sees_a_flag(source, found):
    assert flags_in_strings(source, flags_of_every_command()) == found


def phrases_in_match(source: str) -> list[str]:
    """Return each `match=` of pytest.raises and pytest.warns in `source` that is not one word or name.

    An expression that is not a literal counts as a phrase: `messages.py` checks words that are only known when a test
    runs.
    """
    calls = [node for node in nodes_of(source) if isinstance(node, ast.Call)]
    checks = [call for call in calls if ast.unparse(call.func).split(".")[-1] in ("raises", "warns")]
    values = [keyword.value for call in checks for keyword in call.keywords if keyword.arg == "match"]
    # A space, or a regular expression for a space or for any text between words.
    gap = re.compile(r"\s|\\s|\.[*+]")
    words = [value for value in values if isinstance(value, ast.Constant) and not gap.search(str(value.value))]
    return [ast.unparse(value) for value in values if value not in words]


def test_tests_of_messages_match_one_word():
    tests = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != ROOT / "tests" / "messages.py"]
    results = {str(path.relative_to(ROOT)): phrases_in_match(path.read_text()) for path in tests}
    assert {name: phrases for name, phrases in results.items() if phrases} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("with pytest.raises(InputError, match='no samples'): f()", ["'no samples'"]),
        (
            "with raises(InputError, match=r'is\\sNaN'), warns(UserWarning, match='a.*b'): f()",
            ["'is\\\\sNaN'", "'a.*b'"],
        ),
        ("with pytest.raises(InputError, match=word), pytest.warns(match=f'{word} x'): f()", ["word", "f'{word} x'"]),
        ("with pytest.raises(InputError, match=r'conversion\\.scheme'), pytest.warns(match='conv2'): f()", []),
        ("with pytest.raises(InputError): re.match('no samples', text)", []),
    ],
)
def test_the_check_of_match_sees_a_phrase(source, found):
    assert phrases_in_match(source) == found


def test_scripts_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "pipelines").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 120} == {}


def test_no_file_is_longer_than_600_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for _, path in sources()}
    assert {name: length for name, length in lengths.items() if length > 600} == {}


def long_functions(source: str, most: int = 60) -> dict[str, int]:
    """Return functions of more lines than `most`, without docstrings and without nested functions and classes."""
    results = {}
    for node in nodes_of(source):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = [child for child in node.body if isinstance(child, (ast.ClassDef, ast.FunctionDef))]
            inner += node.body[:1] if ast.get_docstring(node) else []
            length = node.end_lineno - node.lineno + 1 - sum(child.end_lineno - child.lineno + 1 for child in inner)
            if length > most:
                results[node.name] = length
    return results


def test_no_function_is_longer_than_60_lines():
    results = {str(path.relative_to(ROOT)): long_functions(path.read_text()) for _, path in sources()}
    assert {name: functions for name, functions in results.items() if functions} == {}


def test_the_check_of_function_length_sees_a_long_function():
    source = "def f():\n" + "    pass\n" * 61 + "def g():\n    class A:\n" + "        x = 1\n" * 61
    assert long_functions(source) == {"f": 62}


def test_python_files_number_fewer_than_480():
    assert len([path for _, path in sources() if path.name != "__init__.py"]) < 480


def test_no_public_name_is_a_submodule_of_tfq():
    import tfq

    # Importing a submodule sets it as an attribute of tfq and overwrites a function of that name.
    submodules = {path.parent.name for path in (ROOT / "tfq").glob("*/__init__.py")}
    submodules |= {path.stem for path in (ROOT / "tfq").glob("*.py")}
    assert submodules & set(tfq.__all__) == set()


def test_models_and_pipelines_are_links_into_the_package():
    assert {name: (ROOT / "tfq" / name).resolve() for name in ("models", "pipelines")} == {
        name: ROOT / name for name in ("models", "pipelines")
    }


def test_every_folder_of_the_package_is_in_the_wheel():
    from setuptools import find_packages

    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tfq").rglob("*.py") if BUNDLED not in path.parents}
    packages = set(find_packages(str(ROOT), include=["tfq*"]))
    assert {".".join(folder.parts) for folder in folders} | {"tfq.models", "tfq.pipelines"} == packages


def test_test_files_have_unique_names():
    """pytest imports them by name: two of one name cannot be collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

# SPDX-License-Identifier: Apache-2.0
"""Type checkers see every public name: mypy --strict on a user's file, against the sources and against the wheel.

The file asks mypy for the type of each public name, then for the type of each public attribute of each class of tfq
that is mentioned in these types, and so on until no new class is mentioned. None of the types may hold `Any`.
"""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tfq

# A user's code; the comment is the error that mypy should report.
USER = """\
import types
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tfq
import tfq.models
from tfq.pipelines import convert
from tfq.typing import KerasModel


def fit(model: KerasModel, callbacks: list[object]) -> None:
    model.compile(loss="mse")
    model.fit(np.zeros((1, 2)), callbacks=callbacks)


def metric(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return 0.0


def main(keras: types.ModuleType, path: Path, examples: NDArray[np.float32], split: tfq.Split) -> None:
    tfq.models.build("digits_cnn", keras).save("model.keras")
    convert.cli(["--help"])
    model = tfq.load_model(path)
    bridged = tfq.to_tf_keras(model)
    pruned = tfq.prune(bridged.model, fit, teacher=[model, bridged.model])
    quantized = tfq.qat(tfq.cluster(pruned, fit), fit, calibration=examples)
    tfq.return_weights(bridged, quantized)
    content = tfq.convert(tfq.trace(quantized), examples)
    for source in (content, path, "model.tflite"):
        print(tfq.audit(source).to_text(), len(tfq.convert(source, examples)))
        print(tfq.evaluate(source, split, reference=source, metric=metric).accuracy)
        print(tfq.analyze(source, source, examples).findings)
        print(tfq.find_int8(source, split, split, split).content)
        print(tfq.benchmark({"a": source}).models)
        print(tfq.qat_parity(quantized, source, examples).first_departure)
    tfq.prune_structured(model, fit).model.save("small.h5")
    callbacks: list[object] = [tfq.Int8Evaluation(split), tfq.TFLiteExport(path)]
    fit(model, callbacks)
    tfq.convert(7, examples)  # arg-type
    tfq.evaluate(content, examples, metric=7)  # arg-type
    tfq.no_such_name  # attr-defined
    tfq.models.no_such_name  # attr-defined
"""

# Types that may hold Any: JSON objects, arrays of any shape (and, where the dtype is not known, of any dtype), and the
# arguments of Keras' own methods.
ALLOWED = (
    (r"\b(?:dict|Mapping)\[str, Any\]", "JSON"),
    (r"\bnumpy\.ndarray\[tuple\[Any, \.\.\.\], numpy\.dtype\[", "NDArray[["),
    (r"\bNDArray\[\[Any\]\]", "NDArray"),
    (r"\bnumpy\.(\w+)\[Any\]", r"numpy.\1"),
    (r"\bdef \(\*Any, \*\*Any\)", "def (...)"),
)


def run_mypy(file: Path, cache: Path, package_path: Path | None = None) -> list[str]:
    """Return the lines of `mypy --strict`, run in the folder of the file, with the built-in types' names alone.

    package_path: where tfq is, unless it is the one that is imported here.
    """
    environment = os.environ if package_path is None else {**os.environ, "PYTHONPATH": str(package_path)}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", file.name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, env=environment, timeout=300)
    assert not done.stderr, done.stderr
    return re.sub(r"(?<!\.)\b(?:builtins|typing|collections\.abc)\.", "", done.stdout).splitlines()


def public_names() -> list[str]:
    """Return the public names of tfq, and what tfq.models and tfq.pipelines and their modules define."""
    results = [f"tfq.{name}" for name in tfq.__all__]
    for package in ("models", "pipelines"):
        folder = Path(tfq.__file__).parent / package
        for path in sorted(folder.glob("*.py")):
            name = f"tfq.{package}" + ("" if path.stem == "__init__" else f".{path.stem}")
            module = importlib.import_module(name)
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == name]
            public = getattr(module, "__all__", [key for key in own if not key.startswith("_")])
            results += [f"{name}.{key}" for key in public]
    return results


def write_questions(file: Path, names: list[str], classes: list[str]) -> list[str]:
    """Write a file that reveals the types of names and of the attributes of classes; return what each line is about."""
    head = [f"import {module}" for module in sorted({name.rpartition(".")[0] for name in names})]
    lines = [(f"reveal_type({name})", name) for name in names]
    for number, name in enumerate(classes):
        module, _, attribute = name.rpartition(".")
        head.append(f"from {module} import {attribute} as Class{number}")
        cls = getattr(importlib.import_module(module), attribute)
        own = {*dir(cls), *getattr(cls, "__dataclass_fields__", ())} - {*dir(BaseException), *dir(tuple)}
        lines.append((f"def about{number}(it: Class{number}) -> None:", ""))
        lines += [
            (f"    reveal_type(it.{item})", f"{name}.{item}") for item in sorted(own) if not item.startswith("_")
        ] or [("    ...", "")]
    file.write_text("\n".join([*head, *(line for line, _ in lines)]) + "\n")
    return [*head, *(about for _, about in lines)]


def types_of(output: list[str], subjects: list[str]) -> dict[str, str]:
    """Return the types that mypy revealed. Fails where it says anything else."""
    results = {}
    for line in output[:-1]:
        message = re.fullmatch(r'\w+\.py:(\d+): note: Revealed type is "(.*)"', line)
        assert message, (line, subjects[int(line.split(":")[1]) - 1])
        results[subjects[int(message[1]) - 1]] = message[2]
    return results


def classes_in(types: dict[str, str]) -> set[str]:
    """Return the full names of the classes of tfq in some types."""
    results = set()
    for name in {name for text in types.values() for name in re.findall(r"\btfq(?:\.\w+)+", text)}:
        module, _, attribute = name.rpartition(".")
        if isinstance(getattr(importlib.import_module(module), attribute, None), type):
            results.add(name)
    return results


def with_any(types: dict[str, str]) -> dict[str, str]:
    """Return the types that hold Any where it is not allowed."""
    results = {}
    for name, text in types.items():
        for pattern, plain in ALLOWED:
            text = re.sub(pattern, plain, text)
        if re.search(r"\bAny\b", text):
            results[name] = text
    return results


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, root):
    """The built wheel, unpacked into a directory."""
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("the wheel is built with the installed setuptools, and pyproject.toml requires 77")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tfq", "models", "pipelines"):
        shutil.copytree(root / name, source / name, symlinks=True, ignore=ignored)
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", source / "wheels", source], check=True, timeout=120)
    (built,) = (source / "wheels").glob("*.whl")
    subprocess.run([*pip, "install", *options, "--target", target, built], check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def questions(tmp_path_factory, cache):
    """A file that asks for the type of everything public, what its lines are about, and the types in the sources."""
    file = tmp_path_factory.mktemp("user") / "questions.py"
    names, classes = public_names(), list[str]()
    while True:
        subjects = write_questions(file, names, classes)
        types = types_of(run_mypy(file, cache), subjects)
        new = classes_in(types) - {*classes}
        if not new:
            return file, subjects, types
        classes += sorted(new)


def test_no_public_type_is_any(questions):
    _, _, types = questions
    assert with_any(types) == {}
    assert types["tfq.convert"].endswith("-> bytes")


def test_the_wheel_has_the_same_types(questions, wheel, cache):
    file, subjects, types = questions
    assert (wheel / "tfq" / "py.typed").exists()
    assert types_of(run_mypy(file, cache, wheel), subjects) == types
    (wheel / "tfq" / "__init__.py").write_text("")
    assert "attr-defined" in run_mypy(file, cache, wheel)[0]  # it was the wheel that mypy read


def test_a_users_file_passes_and_mistakes_are_errors(tmp_path, cache):
    file = tmp_path / "user.py"
    file.write_text(USER)
    expected = [
        f"user.py:{number}: {line.rpartition('# ')[2]}"
        for number, line in enumerate(USER.splitlines(), start=1)
        if "  # " in line
    ]
    errors = [line for line in run_mypy(file, cache)[:-1] if ": error: " in line]
    assert [re.sub(r": error: .*\[(.*)\]$", r": \1", line) for line in errors] == expected


def test_the_check_sees_any(tmp_path, cache):
    (tmp_path / "library.py").write_text(
        "from typing import Any\n"
        "class Result:\n    value: Any\n    record: dict[str, Any]\n    def items(self) -> list[Any]: ...\n"
        "def call(model: Any) -> Result: ...\n"
    )
    names = ["library.call", "library.Result().value", "library.Result().record", "library.Result().items"]
    file = tmp_path / "questions.py"
    file.write_text("\n".join(["import library", *(f"reveal_type({name})" for name in names)]) + "\n")
    output = [line for line in run_mypy(file, cache) if not line.startswith("library.py")]
    assert [*with_any(types_of(output, ["", *names]))] == [names[0], names[1], names[3]]

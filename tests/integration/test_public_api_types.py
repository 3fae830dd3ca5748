# SPDX-License-Identifier: Apache-2.0
"""Type checkers see every public name: mypy --strict on a user's file, against the sources and against the wheel.

The file is written here: it asks mypy for the type of each public name, then for the type of each attribute of each
class of tfq that is mentioned in these types, and so on until nothing new is mentioned.
"""

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tfq

FIXED = """\
import keras
import numpy as np
import tfq
import tfq.models
import tfq.pipelines
"""

# What a user writes. Line by line, with the type that the value has.
USER = """\
from pathlib import Path
import numpy as np
import tfq
import tfq.models
import types
from tfq.typing import KerasModel

def fit(model: KerasModel, callbacks: list[object]) -> None:
    model.compile(loss="mse")
    model.fit(np.zeros((1, 2)), callbacks=callbacks)

def metric(outputs: object, labels: np.ndarray) -> float:
    return 0.0

def main(keras: types.ModuleType, path: Path, examples: np.ndarray) -> None:
    model = tfq.models.build("digits_cnn", keras)
    tfq.pipelines.convert.cli(["--help"])
    model = tfq.load_model(path)
    bridged = tfq.to_tf_keras(model)
    pruned = tfq.prune(bridged.model, fit, teacher=[model, bridged.model])
    quantized = tfq.qat(tfq.cluster(pruned, fit), fit, calibration=examples)
    tfq.return_weights(bridged, quantized)
    content = tfq.convert(tfq.trace(quantized), examples)
    for source in (content, path, "model.tflite"):
        print(tfq.audit(source).to_text(), tfq.convert(source, examples))
        print(tfq.evaluate(source, (examples, examples), reference=source, metric=metric).accuracy)
        print(tfq.analyze(source, source, examples).findings)
        print(tfq.find_int8(source, examples, examples, examples).content)
        print(tfq.benchmark({"a": source}).models)
        print(tfq.qat_parity(quantized, source, examples).first_departure)
    tfq.prune_structured(model, fit).model.save("small.h5")
    tfq.convert(7)  # error: arg-type
    tfq.evaluate(content, examples, metric=7)  # error: arg-type
    tfq.no_such_name  # error: attr-defined
    tfq.models.no_such_name  # error: attr-defined
"""

ARRAY = "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]"


def run_mypy(file: Path, cache: Path, path: Path | None = None) -> list[str]:
    """Lines of `mypy --strict file`, run in the file's folder. path: where tfq is, if it is not the one imported here.

    The types of builtins and typing are named without their module.
    """
    environment = {**os.environ}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", file.name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, env=environment, timeout=300)
    assert not done.stderr, done.stderr
    return re.sub(r"\b(?:builtins|typing)\.", "", done.stdout).splitlines()


def expressions(mentioned: set[str]) -> list[str]:
    """What to ask for: public names, or the public attributes of the classes that are mentioned by their full names."""
    return [f"{name}.{attribute}" for name in sorted(mentioned) for attribute in attributes(name)]


def attributes(name: str) -> list[str]:
    module, _, attribute = name.rpartition(".")
    cls = getattr(importlib.import_module(module), attribute)
    names = {*dir(cls), *getattr(cls, "__annotations__", ())}
    if dataclasses.is_dataclass(cls):
        names |= {field.name for field in dataclasses.fields(cls)}
    inherited = {*dir(object), *dir(BaseException)}
    return sorted(each for each in names - inherited if not each.startswith("_"))


def mentioned_in(types: dict[str, str]) -> set[str]:
    """Classes of tfq that the types mention, by their full names."""
    found = set()
    for text in types.values():
        for name in re.findall(r"\btfq(?:\.\w+)+", text):
            module, _, attribute = name.rpartition(".")
            if isinstance(getattr(importlib.import_module(module), attribute, None), type):
                found.add(name)
    return found

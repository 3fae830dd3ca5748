# SPDX-License-Identifier: Apache-2.0
"""The user's own classes and functions, from a module or a file that the user names (never from a model file)."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from tfq.errors import InputError, TfqWarning
from tfq.keras_bridge.loading import known_names

TABLE = "CUSTOM_OBJECTS"


def import_custom_objects(spec: str) -> dict[str, Any]:
    """Import "package.module" or "path/file.py", which runs it, and return what it defines, by name.

    The module's own dict CUSTOM_OBJECTS where there is one; otherwise every class and function that it defines itself
    and whose name does not begin with "_". One with the name of a Keras class or function is left out with a
    TfqWarning, for it would stand for Keras' own everywhere: CUSTOM_OBJECTS may still hold it.
    What the module registers (`register_keras_serializable`) is found by Keras without being in the result.
    Raises InputError when there is no such module or file, or importing it fails, with the line at fault.
    """
    module = _module_of_file(Path(spec)) if spec.endswith(".py") or "/" in spec else _module_by_name(spec)
    table = getattr(module, TABLE, None)
    if table is not None:
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
            raise InputError(f"{spec}: {TABLE} is a {type(table).__name__}, wanted a dict of name: class or function")
        return dict(table)
    own = {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    shadows = sorted(name for name in own if name in known_names.CLASSES or name in known_names.FUNCTIONS)
    if shadows:
        warnings.warn(
            f"{spec} defines {', '.join(shadows)}, as Keras does: Keras' own are used. If the model holds yours, name "
            f"them in {spec}: {TABLE} = {{{shadows[0]!r}: {shadows[0]}}}",
            TfqWarning,
            stacklevel=2,
        )
    return {name: value for name, value in own.items() if name not in shadows}


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"--custom_objects={path} is no file: wanted a Python file or the name of a module")
    path = path.resolve()
    # By the whole path, so that two files of one name are two modules, and one file is one.
    name = f"tfq_custom_objects_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"--custom_objects={path} is no Python file: wanted a name that ends in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(str(path), error) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_by_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"--custom_objects={name}: there is no module {error.name!r}: wanted an importable module (is it "
                "installed, or on PYTHONPATH?) or the path of a .py file"
            ) from error
        raise _failed(name, error) from error
    except Exception as error:
        raise _failed(name, error) from error


def _failed(spec: str, error: Exception) -> InputError:
    lines = traceback.extract_tb(error.__traceback__)
    where = f" at {lines[-1].filename}:{lines[-1].lineno}" if lines else ""
    return InputError(f"--custom_objects={spec}: importing it failed{where} ({type(error).__name__}: {error})")

# SPDX-License-Identifier: Apache-2.0
"""Named registries, one per extension point, and the plugins that add to them.

To add a calibration method, a data source, a metric, a backend, a target or a bridged layer, create one object of its
class and pass it to `register`, in the file that defines it. The object contains everything that the rest of tfq needs
to know about it. The choices of flags, suggestions for misspelled names, the help and the tables in docs/ are derived
from the registries.

A registered object is cheap to create: names, help text, facts as data, and functions that import heavy packages only
when they are called. No module in `MODULES` imports TensorFlow.
"""

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar

from tfq import progress
from tfq.artifacts import read_bytes, shown
from tfq.errors import InputError

# Extension point -> the module that registers tfq's own objects when it is imported.
MODULES = {
    "backend": "tfq.backends",
    "bridged_layer": "tfq.keras_bridge.layers.translate",
    "calibration_method": "tfq.ptq.calibration.methods",
    "channel_cost": "tfq.compression.structured_pruning.costs",
    "corruption": "tfq.robustness",
    "data_source": "tfq.data.sources",
    "executor": "tfq.executors",
    "metric": "tfq.evaluation",
    "platform": "tfq.deploy.platforms",
    "pruning_criterion": "tfq.compression.criteria",
    "target": "tfq.auditing.targets",
}
ENTRY_POINT_GROUP = "tfq.plugins"


class Registered(Protocol):
    """The attributes of every registered object: a name that users write, and one line that says what it is."""

    @property
    def name(self) -> str:
        """The name that users write."""

    @property
    def help(self) -> str:
        """One line that says what the object is."""


class Plugin(NamedTuple):
    """A loaded plugin.

    Attributes:
        module: The module.
        source: The name of the file, or the entry point, that it came from.
        sha256: The SHA-256 of its code.
        path: The path of a file that the user named; "" for a plugin of an installed package.
    """

    module: ModuleType
    source: str
    sha256: str
    path: str = ""


T = TypeVar("T", bound=Registered)
_classes: dict[type, str] = {}
_entries: dict[str, dict[str, Any]] = {}
_plugins: dict[str, Plugin] = {}
_IMPORTS_TENSORFLOW = re.compile(rb"^\s*(import|from)\s+(tensorflow|tf_keras|keras)\b", re.MULTILINE)


def extension_point(kind: str) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that lets `register` accept objects of the class, under `kind`, a key of `MODULES`."""

    def decorate(cls: type[T]) -> type[T]:
        _classes[cls] = kind
        _entries.setdefault(kind, {})
        return cls

    return decorate


def register(entry: T, *, replace: bool = False) -> T:
    """Add an object to the registry of its class.

    Examples:
        >>> def update(state, outputs, labels):
        ...     errors = np.abs(outputs[0] - labels)
        ...     return {"sum": state.get("sum", 0) + errors.sum(), "count": state.get("count", 0) + errors.size}

        >>> tfq.register(
        ...     tfq.Metric(
        ...         name="mean_absolute_error",
        ...         help="mean absolute error",
        ...         direction="lower",
        ...         update=update,
        ...         finish=lambda state: float(state["sum"] / state["count"]),
        ...     )
        ... )

    Args:
        entry: An object of an extension point's class: `Backend` kinds (`BackendKind`), `BridgedLayer`,
            `CalibrationMethod`, `DataSource`, `Metric`, `Platform` or `Target`.
        replace: Whether it may replace another object of the same name, for example when a notebook cell runs again.

    Returns:
        `entry` itself.

    Raises:
        InputError: Its class is not an extension point, its name is empty or taken, or its help text is empty.
    """
    kind = _kind_of(type(entry))
    for field in ("name", "help"):
        value = getattr(entry, field, None)
        if not isinstance(value, str) or not value:
            raise InputError(
                f"{kind}: {field} must be a non-empty string, got {value!r}",
                field=field,
                expected="a string",
                got=value,
            )
    known = _filled(kind)  # registers tfq's own objects first; does nothing while they are being registered
    if known.get(entry.name, entry) is not entry and not replace:
        raise InputError(
            f"{kind}: the name {entry.name!r} is already registered: choose another name, or pass replace=True",
            field="name",
            got=entry.name,
        )
    known[entry.name] = entry
    return entry


def entries(cls: type[T]) -> dict[str, T]:
    """Return all registered objects of an extension point by name, tfq's own first."""
    return dict(_filled(_kind_of(cls)))


def get(cls: type[T], name: str, *, field: str | None = None) -> T:
    """Return the registered object called `name` of an extension point's class.

    Args:
        cls: The class of the extension point.
        name: The name to look up.
        field: The config path that contains the name, for the error.

    Raises:
        InputError: There is no object of this name.
    """
    kind = _kind_of(cls)
    known = _filled(kind)
    if name not in known:
        what = field or kind.replace("_", " ")
        raise InputError(
            f"{what} is {name!r}: {_suggestion(name, known, ())}", field=field or kind, expected=tuple(known), got=name
        )
    return known[name]


def check_value(kind: str, value: str, *, field: str, choices: tuple[str, ...] = ()) -> None:
    """Check that a value is NAME or NAME:ADDRESS of an object of an extension point, or one of `choices`.

    Args:
        kind: The extension point, a key of `MODULES`.
        value: The value to check.
        field: The config path of the value, for the error.
        choices: Other allowed values.

    Raises:
        InputError: It is none of them, or it has an address although the object's attribute `address` is "".
    """
    known = _filled(kind)
    name, colon, _ = value.partition(":")
    if value in choices or (name in known and not (colon and getattr(known[name], "address", None) == "")):
        return
    if name in known:
        message = f"{field} is {value!r}: {name!r} has no address: write {name!r} alone"
        raise InputError(message, field=field, expected=name, got=value)
    meant = _suggestion(value, known, choices)
    raise InputError(f"{field} is {value!r}: {meant}", field=field, expected=(*choices, *known), got=value)


def _suggestion(value: str, known: dict[str, Any], choices: tuple[str, ...]) -> str:
    """Return the end of an error message: the value that was probably meant, or all possible values.

    An object may have `looks_like`, a regular expression for addresses that lack the name and the colon. An existing
    folder matches with a slash at its end.
    """
    name, colon, address = value.partition(":")
    every = [item for item in (*choices, *known) if item]
    near = difflib.get_close_matches(name, every, n=1)
    if near and colon:
        return f"did you mean {near[0] + colon + address!r}?"
    for entry in reversed(known.values()):
        pattern = getattr(entry, "looks_like", "")
        if pattern and (re.search(pattern, value) or (os.path.isdir(value) and re.search(pattern, f"{value}/"))):
            return f"did you mean {entry.name + ':' + value!r}?"
    if near:
        meant = spellings_of(known[near[0]]) if near[0] in known else (near[0],)
        return f"did you mean {' or '.join(map(repr, meant))}?"
    spellings = chain.from_iterable(map(spellings_of, known.values()))
    return f"choose from {', '.join([*filter(None, choices), *spellings])}"


def names(kind: str) -> tuple[str, ...]:
    """Return the names of an extension point, tfq's own first, in the order of registration."""
    return tuple(_filled(kind))


def spellings(kind: str) -> tuple[str, ...]:
    """Return what users can write for the objects of an extension point: "npz:PATH", "qemu:cortex-a53", "local"."""
    return tuple(spelling for entry in _filled(kind).values() for spelling in spellings_of(entry))


def spellings_of(entry: Registered) -> tuple[str, ...]:
    """Return what users can write for one registered object."""
    choices: Callable[[], tuple[str, ...]] | None = getattr(entry, "choices", None)
    address = getattr(entry, "address", "")
    return choices() if choices else (f"{entry.name}:{address}" if address else entry.name,)


def public_name(kind: str, name: str) -> str:
    """Return a name of an extension point for records: without its address, if that identifies a machine or a user."""
    entry = _filled(kind).get(name.partition(":")[0])
    return entry.name if entry is not None and getattr(entry, "private_address", False) else name


def entries_of(kind: str) -> tuple[Registered, ...]:
    """Return every registered object of an extension point, tfq's own first."""
    return tuple(_filled(kind).values())


@contextmanager
def temporary() -> Iterator[None]:
    """Undo all registrations that are made inside. For tests."""
    for kind in MODULES:
        _filled(kind)
    before, plugins = {kind: dict(known) for kind, known in _entries.items()}, dict(_plugins)
    try:
        yield
    finally:
        for kind, known in _entries.items():
            known.clear()
            known.update(before.get(kind, {}))
        _plugins.clear()
        _plugins.update(plugins)


def load_plugin(path: str) -> Plugin:
    """Run a Python file of the user that registers objects; only once, even if it is named several times.

    Raises:
        InputError: There is no such file, or it fails; the message has the line of the failure.
    """
    file = Path(path)
    if file.suffix != ".py":
        raise InputError(
            f"plugin: {shown(path)} is not a Python file: expected a path that ends in .py",
            field="plugin",
            expected="a .py file",
            got=path,
        )
    content = read_bytes(file, "a .py file", field="plugin")
    file = file.resolve()
    # The name depends on the full path, so that two files with the same name are two modules.
    name = f"tfq_plugin_{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}"
    if name in _plugins:
        return _plugins[name]
    if _IMPORTS_TENSORFLOW.search(content):
        # Otherwise the plugin's import would write TensorFlow's log to stderr.
        with suppress(ImportError):
            progress.import_tensorflow()
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None and specification.loader is not None  # of a path that ends in .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        # A plugin that exits (SystemExit) must not decide the exit code of the command.
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _failed(path, error) from error
    _plugins[name] = Plugin(module, file.name, hashlib.sha256(content).hexdigest(), str(file))
    return _plugins[name]


def load_plugins(paths: Iterable[str]) -> tuple[Plugin, ...]:
    """Run the plugins at `paths`, in order; see `load_plugin`."""
    return tuple(load_plugin(path) for path in paths)


def load_installed_plugins() -> None:
    """Import the plugins of installed packages, those of the entry-point group `tfq.plugins`.

    Raises:
        InputError: A plugin fails; the message has the name of its package.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if point.value in _plugins:
            continue
        try:
            module = importlib.import_module(point.module)
        except Exception as error:
            raise _failed(f"{point.value} (entry point {point.name!r})", error) from error
        content = Path(module.__file__).read_bytes() if module.__file__ else b""
        _plugins[point.value] = Plugin(module, point.value, hashlib.sha256(content).hexdigest())


def plugins() -> tuple[Plugin, ...]:
    """Return the plugins loaded so far, in the order of loading."""
    return tuple(_plugins.values())


def _kind_of(cls: type) -> str:
    for item in cls.__mro__:
        if item in _classes:
            return _classes[item]
    known = ", ".join(sorted(item.__name__ for item in _classes))
    raise InputError(f"{cls.__name__} is not an extension point of tfq: expected one of {known}", got=cls.__name__)


def _filled(kind: str) -> dict[str, Any]:
    importlib.import_module(MODULES[kind])
    return _entries[kind]


def _failed(source: str, error: BaseException) -> InputError:
    frames = list(traceback.extract_tb(error.__traceback__))
    frames = [frame for frame in frames if Path(frame.filename).name == Path(source).name] or frames
    where = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    reason = " ".join(str(error).split())[:_MAX_REASON]
    return InputError(
        f"plugin: {shown(source)} failed: {type(error).__name__}: {reason}{where}. Correct the plugin",
        field="plugin",
        got=type(error).__name__,
    )


_MAX_REASON = 500

# SPDX-License-Identifier: Apache-2.0
"""The base of all configs: frozen dataclasses that validate themselves and convert to and from strict JSON.

A field is declared with `setting(default, help)`. Its help text is the help of the flag and part of the class's
docstring. Its bounds are checked whenever a config is created, from Python, JSON or flags.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any

from tfq import registry
from tfq.errors import InputError, did_you_mean


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    choices_of: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    names_section: bool = False,
    repeatable: bool = False,
    keyed: bool = False,
    path_of: str = "",
) -> Any:
    """Declare a config field.

    Args:
        default: The default value.
        help: What the field means, for the help of the flag and the documentation.
        choices: The allowed values; empty if any value of the field's type is allowed.
        choices_of: An extension point (a key of `registry.MODULES`) whose names are allowed values too. They may be
            followed by a colon and an address ("npz:examples.npz"), which the registered object interprets. The default
            and `choices` are accepted without importing anything.
        minimum: The smallest allowed value; for a tuple, of each item.
        maximum: The largest allowed value.
        names_section: Whether the name of the section alone also sets this field: the flag `data` sets `data.source`,
            and so does `{"data": "digits"}` in JSON.
        repeatable: Whether the flag may occur several times, with one value each, instead of a list with commas.
        keyed: Whether a value may also be KEY=CHOICE, where KEY is anything.
        path_of: What the value is the path of: "model", "flatbuffer", "comparable" (a flatbuffer or a record),
            "ranges", "records", "python", "text", "json" or "directory"; "" if it is not a path.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "choices_of": choices_of,
        "minimum": minimum,
        "maximum": maximum,
        "names_section": names_section,
        "repeatable": repeatable,
        "keyed": keyed,
        "path_of": path_of,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, help: str) -> Any:
    """Declare a config field that is itself a config.

    Args:
        cls: The class of the config; the default is an instance with its defaults.
        help: What the section means.
    """
    return dataclasses.field(default_factory=cls, metadata={"help": help})


class Config:
    """Base of all configs, which validates values on construction.

    Subclasses are frozen, keyword-only dataclasses.
    """

    def __init_subclass__(cls) -> None:
        """Add the help of all fields to the docstring of a config class."""
        super().__init_subclass__()
        cls.__doc__ = _with_attributes(cls.__doc__ or "", vars(cls))

    def __post_init__(self) -> None:
        """Check type, choices and bounds of all fields."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            hint = field_types(type(self))[field.name]
            object.__setattr__(self, field.name, _checked(f"{type(self).__name__}.{field.name}", value, hint, field))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> typing.Self:
        """Return the config with `values`, and defaults for everything else.

        Args:
            values: Field -> JSON value, nested like the config.
            where: The path of this config in the tree, for error messages.

        Raises:
            InputError: A key is unknown, or a value has the wrong type or is out of bounds; `field` is its path.
        """
        hints = field_types(cls)
        arguments: dict[str, Any] = {}
        for key, value in values.items():
            path = f"{where}.{key}" if where else key
            if key not in hints:
                raise InputError(
                    f"unknown key {path!r}: {did_you_mean(key, hints)}",
                    field=path,
                    expected=tuple(hints),
                    got=key,
                )
            if is_section(hints[key]):
                if not isinstance(value, Mapping):
                    value = _from_shorthand(hints[key], value, path)
                arguments[key] = hints[key].from_dict(value, path)
            else:
                arguments[key] = _checked(path, value, hints[key], _field(cls, key))
        return cls(**arguments)

    def to_record(self) -> dict[str, Any]:
        """Return the settings as JSON values for a record, without addresses that identify a machine or a user."""
        return {name: _public(value, _field(type(self), name)) for name, value in vars(self).items()}

    def config_hash(self) -> str:
        """Return the SHA-256 of the config's canonical JSON without what does not affect results: out, executor."""
        values = {key: value for key, value in self.to_record().items() if key not in ("out", "executor")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _public(value: Any, field: dataclasses.Field) -> Any:
    if isinstance(value, Config):
        return value.to_record()
    value, kind = json.loads(json.dumps(value)), field.metadata.get("choices_of")
    if kind is None:
        return value
    if isinstance(value, list):
        return [_public(item, field) for item in value]
    return registry.public_name(kind, value) if isinstance(value, str) else value


def _with_attributes(docstring: str, members: Mapping[str, Any]) -> str:
    """Return the docstring of a config class with an entry for each field, made of its help text and choices."""
    entries = []
    for name, field in members.items():
        if isinstance(field, dataclasses.Field) and "help" in field.metadata:
            choices = [choice or '""' for choice in field.metadata.get("choices", ())]
            kind = field.metadata.get("choices_of")
            choices += [f"the name of a {kind.replace('_', ' ')}"] if kind else []
            allowed = f" Choices: {', '.join(choices)}." if choices else ""
            text = field.metadata["help"]
            entry = f"{name}: {text[:1].upper()}{text[1:]}.{allowed}"
            entries.append(textwrap.fill(entry, 120, initial_indent=" " * 4, subsequent_indent=" " * 8))
    return "\n".join([docstring.rstrip(), "", "Attributes:", *entries]) if entries else docstring


def field_types(cls: Any) -> dict[str, Any]:
    """Return field name -> resolved type of a config class, in declaration order."""
    return _field_types(cls)


@functools.cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_section(hint: Any) -> bool:
    """Check whether a field of this type is a nested config."""
    return isinstance(hint, type) and issubclass(hint, Config)


def section_field(cls: type) -> str | None:
    """Return the field that the name of the section alone sets, or None; see `setting`."""
    return next((field.name for field in dataclasses.fields(cls) if field.metadata.get("names_section")), None)


def _field(cls: type, name: str) -> dataclasses.Field:
    return next(field for field in dataclasses.fields(cls) if field.name == name)


def _from_shorthand(cls: type, value: Any, path: str) -> Mapping[str, Any]:
    name = section_field(cls)
    if name is None:
        raise InputError(f"{path}: expected an object, got {value!r}", field=path, expected="an object", got=value)
    return {name: value}


def _checked(path: str, value: Any, hint: Any, field: dataclasses.Field) -> Any:
    """Return `value` in the type of its field (an int is accepted as a float), or raise InputError."""
    if is_section(hint):
        if not isinstance(value, hint):
            raise InputError(
                f"{path}: expected a {hint.__name__}, got {value!r}", field=path, expected=hint.__name__, got=value
            )
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(argument for argument in arguments if argument is not type(None))
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise InputError(f"{path}: expected a list, got {value!r}", field=path, expected="a list", got=value)
        return tuple(_checked_scalar(path, item, arguments[0], field) for item in value)
    return _checked_scalar(path, value, hint, field)


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """Return the allowed values of a field, as users write them; () if any value is allowed."""
    kind = field.metadata.get("choices_of")
    return (*field.metadata.get("choices", ()), *(registry.spellings(kind) if kind else ()))


def _check_choice(path: str, value: Any, field: dataclasses.Field) -> None:
    kind = field.metadata.get("choices_of")
    defaults = field.default if isinstance(field.default, tuple) else (field.default,)
    choices = field.metadata.get("choices", ())
    if field.metadata.get("keyed"):
        value = value.rpartition("=")[2]
    if value in defaults or value in choices:
        return
    if kind:
        registry.check_value(kind, value, field=path, choices=choices)
    elif choices:
        raise InputError(
            f"{path} is {value!r}: {did_you_mean(str(value), choices)}", field=path, expected=choices, got=value
        )


def _checked_scalar(path: str, value: Any, kind: type, field: dataclasses.Field) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(
            f"{path}: expected {kind.__name__}, got {value!r}", field=path, expected=kind.__name__, got=value
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(
            f"{path}: expected a finite number, got {value!r}", field=path, expected="a finite number", got=value
        )
    if isinstance(value, str):
        _check_text(path, value)
    _check_choice(path, value, field)
    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    if minimum is not None and value < minimum:
        raise InputError(
            f"{path}: expected at least {minimum:g}, got {value!r}", field=path, expected=minimum, got=value
        )
    if maximum is not None and value > maximum:
        raise InputError(
            f"{path}: expected at most {maximum:g}, got {value!r}", field=path, expected=maximum, got=value
        )
    return value


def _check_text(path: str, value: str) -> None:
    """Raise InputError for text that no file name, layer name or metric contains, and that no system call accepts."""
    try:
        os.fsencode(value)
        problem = "a null character" if "\0" in value else ""
    except UnicodeEncodeError as error:
        problem = f"the character {value[error.start]!a}, which {error.encoding} cannot encode"
    if problem:
        raise InputError(
            f"{path} contains {problem}: {ascii(value)[:200]}. Remove it", field=path, expected="text", got=value
        )


# A larger loss of accuracy is probably meant in percentage points instead of as a fraction.
LARGEST_DROP = 0.5


def check_fraction(path: str, drop: float) -> None:
    """Check that a bound on the loss of accuracy is a fraction, not a number of percentage points.

    Raises:
        InputError: `drop` is above 0.5; `path` names it.
    """
    if drop > LARGEST_DROP:
        raise InputError(
            f"{path} is {drop:g}: expected a fraction of at most {LARGEST_DROP:g}; {drop:g} percentage points are "
            f"{drop / 100:g}",
            field=path,
            expected=LARGEST_DROP,
            got=drop,
        )

# SPDX-License-Identifier: Apache-2.0
"""How a config is declared: frozen dataclasses that validate themselves, and strict JSON in both directions.

A field is declared with `setting(default, help)`; the help text becomes the flag's help, and the
bounds are checked whenever a config is made, by whatever road (Python, JSON, flag).
"""

import dataclasses
import functools
import hashlib
import json
import math
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
) -> Any:
    """A config field: its default, its help text, and what values it takes.

    choices_of: an extension point (a key of `registry.MODULES`) whose names are choices too. What follows a colon in a
        value is that object's own ("npz:examples.npz"). The default and `choices` are taken without importing anything.
    names_section: the field may be given under its section's own name: the flag `data` sets `data.source`,
        and so does `{"data": "digits"}` in JSON.
    repeatable: the flag may be given several times, one value each, rather than values separated by commas.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "choices_of": choices_of,
        "minimum": minimum,
        "maximum": maximum,
        "names_section": names_section,
        "repeatable": repeatable,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, help: str) -> Any:
    """A config field that is itself a config."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


class Config:
    """Base of every config: validates on construction. Subclasses are frozen, keyword-only dataclasses."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            hint = field_types(type(self))[field.name]
            object.__setattr__(self, field.name, _checked(f"{type(self).__name__}.{field.name}", value, hint, field))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: nested dicts, lists, numbers, strings, booleans, None."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> typing.Self:
        """The config that `values` spell out, defaults elsewhere.

        Raises InputError on an unknown key, a wrong type or a value out of bounds, and names the path of it.
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

    def config_hash(self) -> str:
        """SHA-256 over the config's canonical JSON, without what tells where rather than what: `out`."""
        values = {key: value for key, value in self.to_dict().items() if key != "out"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def field_types(cls: Any) -> dict[str, Any]:
    """Return field name -> resolved type of a config class, in declaration order."""
    return _field_types(cls)


@functools.cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_section(hint: Any) -> bool:
    """Whether a field of this type is a nested config."""
    return isinstance(hint, type) and issubclass(hint, Config)


def section_field(cls: type) -> str | None:
    """The field that may be given under its section's own name, if the config has one."""
    return next((field.name for field in dataclasses.fields(cls) if field.metadata.get("names_section")), None)


def _field(cls: type, name: str) -> dataclasses.Field:
    return next(field for field in dataclasses.fields(cls) if field.name == name)


def _from_shorthand(cls: type, value: Any, path: str) -> Mapping[str, Any]:
    name = section_field(cls)
    if name is None:
        raise InputError(f"{path}: expected an object, got {value!r}", field=path, expected="an object", got=value)
    return {name: value}


def _checked(path: str, value: Any, hint: Any, field: dataclasses.Field) -> Any:
    """`value` as the type of its field (an int where a float is wanted is taken), or InputError."""
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
    """Return what a field may be: its own choices, then the names of its extension point; () if anything goes."""
    kind = field.metadata.get("choices_of")
    return (*field.metadata.get("choices", ()), *(registry.names(kind) if kind else ()))


def _check_choice(path: str, value: Any, field: dataclasses.Field) -> None:
    kind = field.metadata.get("choices_of")
    defaults = field.default if isinstance(field.default, tuple) else (field.default,)
    choices = field.metadata.get("choices", ())
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


# A larger loss of accuracy than this is a number of percentage points that was taken for a fraction.
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

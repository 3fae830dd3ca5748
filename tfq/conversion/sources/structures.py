# SPDX-License-Identifier: Apache-2.0
"""Nested inputs and outputs of models (tensors in lists, tuples and dicts), and the flat names of their leaves.

A leaf is everything that is neither a list, a tuple nor a mapping. Mappings are read in the order of their sorted keys,
as TensorFlow and both Keras versions do. None is not a leaf.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def leaves_of(structure: Any) -> list[Any]:
    """Return the leaves in order."""
    return [leaf for _, leaf in _walk(structure, "")]


def leaf_names(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a name for each leaf of {argument: structure}, in the order of the arguments.

    An argument that is a single leaf gives its name. The leaves of a dict have their keys as names, those of a list
    numbers: "inputs_0". Keys that occur twice get the path of their dicts before them.
    """
    short = [name for argument, value in arguments.items() for name, _ in _walk(value, argument)]
    if len(set(short)) == len(short):
        return tuple(short)
    return tuple(name for argument, value in arguments.items() for name, _ in _walk(value, argument, full=True))


def output_names(structure: Any) -> tuple[str, ...]:
    """Return a name for each output: the keys of a dict, the fields of a named tuple, otherwise "output_0" ..."""
    if isinstance(structure, Mapping) or hasattr(structure, "_fields"):
        return leaf_names({"output": structure})
    return leaf_names({"output": list(structure) if isinstance(structure, (list, tuple)) else [structure]})


def mapped(structure: Any, function: Callable[[Any], Any]) -> Any:
    """Return the structure with `function` applied to each leaf; None stays None."""
    if isinstance(structure, Mapping):
        return {name: mapped(value, function) for name, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return _like(structure, [mapped(value, function) for value in structure])
    return None if structure is None else function(structure)


def packed(structure: Any, leaves: Iterator[Any]) -> Any:
    """Return the structure with its leaves replaced by `leaves`, in the order of `leaves_of`."""
    if isinstance(structure, Mapping):
        values = {name: packed(structure[name], leaves) for name in _keys(structure)}
        return {name: values[name] for name in structure}
    if isinstance(structure, (list, tuple)):
        return _like(structure, [packed(value, leaves) for value in structure])
    return None if structure is None else next(leaves)


def _walk(structure: Any, path: str, *, full: bool = False) -> Iterator[tuple[str, Any]]:
    if hasattr(structure, "_fields"):
        structure = structure._asdict()
    if isinstance(structure, Mapping):
        for name in _keys(structure):
            yield from _walk(structure[name], f"{path}_{name}" if full and path else str(name), full=full)
    elif isinstance(structure, (list, tuple)):
        for index, value in enumerate(structure):
            yield from _walk(value, f"{path}_{index}", full=full)
    elif structure is not None:
        yield path, structure


def _like(structure: Any, values: list[Any]) -> Any:
    """Return the values as a list, a tuple or a named tuple, like `structure`."""
    if hasattr(structure, "_fields"):
        return type(structure)(*values)
    return tuple(values) if isinstance(structure, tuple) else values


def _keys(structure: Mapping[str, Any]) -> list[str]:
    return sorted(structure, key=str)

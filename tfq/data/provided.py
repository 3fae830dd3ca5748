# SPDX-License-Identifier: Apache-2.0
"""Data that a caller passes from Python (arrays, lists, tf.data), and how it is bound to a model's inputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.loading import load_split
from tfq.data.output_labels import join_labels
from tfq.data.preprocessing import real_units
from tfq.data.split import UNNAMED, AnySplit, Split, SplitStream, check_finite
from tfq.errors import InputError, did_you_mean


def shape_fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Check whether `shape` matches `expected`, in which None and -1 stand for any size."""
    return len(shape) == len(expected) and all(
        size in (None, -1) or size == got for got, size in zip(shape, expected, strict=True)
    )


def bind_inputs(inputs: Mapping[str, NDArray], names: Sequence[str]) -> list[NDArray]:
    """Return the arrays of `inputs` in the order of the model's input `names`.

    A single unnamed array ("x") is used for a model with one input, whatever its name. Otherwise names must match,
    either exactly or without what TensorFlow adds to them in a flatbuffer (`serving_default_image:0` matches `image`).

    Raises:
        InputError: An input has no array, an array has no input, or there is one unnamed array for several inputs.
    """
    if len(names) == 1 and set(inputs) == {UNNAMED}:
        return [inputs[UNNAMED]]
    if len(names) > 1 and set(inputs) == {UNNAMED}:
        raise InputError(
            f"the data has one unnamed input, but the model has {len(names)} ({', '.join(names)}). Name the arrays: "
            f"x_test.{_plain(names[0])} in an .npz file, {_plain(names[0])!r} as the key of a dict",
            field="data",
            expected=tuple(names),
            got=(UNNAMED,),
        )
    if set(inputs) == set(names):
        return [inputs[name] for name in names]
    by_plain_name = {_plain(name): array for name, array in inputs.items()}
    expected = [_plain(name) for name in names]
    unknown = [name for name in by_plain_name if name not in expected]
    missing = [name for name in expected if name not in by_plain_name]
    if missing:
        raise InputError(
            f"the data has no array for the model's input {missing[0]!r}. The model expects {', '.join(expected)}, "
            f"got {', '.join(by_plain_name)}; {did_you_mean(missing[0], unknown or by_plain_name)}",
            field="data",
            expected=tuple(expected),
            got=tuple(by_plain_name),
        )
    if unknown:
        raise InputError(
            f"the data has an array {unknown[0]!r}, which is not an input of the model; "
            f"{did_you_mean(unknown[0], expected)}",
            field="data",
            expected=tuple(expected),
            got=tuple(by_plain_name),
        )
    if len(set(expected)) < len(expected) or len(by_plain_name) < len(inputs):
        raise InputError(
            f"the arrays {', '.join(inputs)} cannot be assigned to the model's inputs {', '.join(names)}: some names "
            "are equal without TensorFlow's prefix and suffix. Use the full names",
            field="data",
            expected=tuple(names),
            got=tuple(inputs),
        )
    return [by_plain_name[name] for name in expected]


def _plain(name: str) -> str:
    """Return an input's name without the signature's prefix and the tensor's output number."""
    name = name.removeprefix("serving_default_")
    head, colon, tail = name.rpartition(":")
    return head if colon and tail.isdigit() else name


_EXPECTED = "expected a source string, a Split, an array, (x, y), or a tf.data.Dataset of these"


def as_split(data: Any, *, split: str = "test", limit: int = 0) -> AnySplit:
    """Return the first `limit` examples (0: all) of data that a caller passed.

    Args:
        data: One of:

            - a `Split` or `SplitStream`;
            - a source string ("digits") or `DataConfig`;
            - an array, or a dict of arrays by input name, without labels;
            - a tuple (one of these, labels); labels for several outputs are a dict of arrays by output name;
            - a finite tf.data.Dataset of x or (x, y), where x and y are arrays or dicts of arrays. Elements are single
              examples or batches; sample weights are refused.

            Arrays are in the units of the float model: there is no preprocessing.
        split: The split to load from a source string or `DataConfig`, else only a name.
        limit: How many examples; 0 for all.

    A Dataset yields single examples if y is a scalar, or if the first axes of x and y have different lengths. Otherwise
    all of its arrays start with the same length, known or not, and it is batched. Elements of x alone with a known
    first
    axis are ambiguous and refused: call `.batch(n)`.

    Raises:
        InputError: `data` is anything else, or as for `load_split`.
    """
    if isinstance(data, str):
        data = DataConfig(source=data)
    if isinstance(data, DataConfig):
        return load_split(data, split, limit=limit)
    if is_dataset(data):
        return _split_of_arrays(*_collected(data, limit), split, "tf.data")
    if not isinstance(data, (Split, SplitStream)):
        data = _split_of_arrays(*_x_and_y(data), split, "arrays")
    return data.take(limit) if limit else data


def is_dataset(data: Any) -> bool:
    """Check whether `data` is a tf.data.Dataset, without importing TensorFlow."""
    return hasattr(data, "element_spec") and hasattr(data, "as_numpy_iterator")


def _x_and_y(data: Any) -> tuple[Any, Any]:
    if not isinstance(data, tuple):
        return data, None
    if len(data) != 2:
        raise InputError(
            f"data: expected (x, y), got a tuple of {len(data)} elements", field="data", expected=2, got=len(data)
        )
    return data


def _split_of_arrays(data: Any, labels: Any, split: str, source: str) -> Split:
    if isinstance(labels, Mapping):
        labels = join_labels(labels, "data: labels")
    labels = None if labels is None else _array(labels, "data: labels")
    by_name = data if isinstance(data, Mapping) else {UNNAMED: data}
    inputs = {}
    for name, value in by_name.items():
        if (
            value is None
            or isinstance(value, (str, bytes, Mapping))
            or callable(value)
            or isinstance(value, Iterator)
            or hasattr(value, "element_spec")
        ):
            raise InputError(f"data: {_EXPECTED}, got {type(value).__name__}", field="data", got=type(value).__name__)
        inputs[name] = real_units(_array(value, f"data: input {name!r}"), f"data: input {name!r}")
    built = Split(name=split, inputs=inputs, labels=labels, source=source)
    check_finite(built.inputs, "data")
    return built


def _array(value: Any, where: str) -> NDArray:
    try:
        return np.asarray(value)
    except ValueError as error:  # nested lists of different lengths
        raise InputError(
            f"{where}: expected numbers of one shape for every example ({error})",
            field=where.removeprefix("data: "),
            expected="numbers of one shape",
        ) from error


def _collected(dataset: Any, limit: int) -> tuple[Any, NDArray | None]:
    """Return (x, labels or None) of all elements, or of the first `limit` examples; x may be a dict of arrays."""
    has_labels, batched = _element_form(dataset.element_spec)
    if not limit and int(dataset.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise InputError(
            "data: this tf.data.Dataset never ends (it repeats). Pass dataset.take(n), or set a limit",
            field="data",
            expected="a Dataset that ends",
            got="an endless one",
            limit="endless-dataset",
        )
    parts: dict[str, list[NDArray]] = {}
    is_dict, count = False, 0
    for x, y in _elements(dataset, has_labels):
        is_dict = isinstance(x, Mapping)
        arrays = {f"x {name}": np.asarray(value) for name, value in (x if is_dict else {UNNAMED: x}).items()}
        if isinstance(y, Mapping):
            arrays |= {f"y {name}": np.asarray(value) for name, value in y.items()}
        elif has_labels:
            arrays["y"] = np.asarray(y)
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array if batched else array[None])
        count += len(next(iter(arrays.values()))) if batched else 1
        if limit and count >= limit:
            break
    if not count:
        raise InputError(
            "data: this tf.data.Dataset is empty, expected at least one example. Check the files or the filter it "
            "reads from",
            field="data",
            expected="at least one example",
            got=0,
        )
    joined = {name: _joined(name, arrays)[: limit or None] for name, arrays in parts.items()}
    named = {name.removeprefix("y "): array for name, array in joined.items() if name.startswith("y ")}
    labels = join_labels(named, "data: labels") if named else joined.pop("y", None)
    inputs = {name.removeprefix("x "): array for name, array in joined.items() if name.startswith("x ")}
    return inputs if is_dict else inputs[UNNAMED], labels


def _joined(name: str, arrays: list[NDArray]) -> NDArray:
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise InputError(
            f"data: the shape of {name} varies between the elements of this tf.data.Dataset ({error}). Give all "
            "examples one shape",
            field="data",
            expected="one shape",
            got=name,
        ) from error


def _elements(dataset: Any, has_labels: bool) -> Iterator[tuple[Any, Any]]:
    for element in dataset.as_numpy_iterator():
        yield element if has_labels else (element[0] if isinstance(element, tuple) else element, None)


def _element_form(spec: Any) -> tuple[bool, bool]:
    """Return whether the elements have labels, and whether they are batches."""
    parts = spec if isinstance(spec, tuple) else (spec,)
    if len(parts) > 2:
        raise InputError(
            f"data: expected a tf.data.Dataset of x or (x, y), got tuples of {len(parts)}. Drop the rest with .map(), "
            "such as sample weights",
            field="data",
            expected="x or (x, y)",
            got=len(parts),
            limit="dataset-elements",
        )
    inputs = list(parts[0].values()) if isinstance(parts[0], Mapping) else [parts[0]]
    leaves = [
        *inputs,
        *(leaf for part in parts[1:] for leaf in (part.values() if isinstance(part, Mapping) else [part])),
    ]
    if any(
        not hasattr(leaf, "shape") or leaf.shape.rank is None or type(leaf).__name__ != "TensorSpec" for leaf in leaves
    ):
        raise InputError(
            f"data: expected a tf.data.Dataset of x or (x, y), where x is a tensor of known rank or a dict of such "
            f"tensors by input name, got elements {spec}",
            field="data",
            expected="x or (x, y)",
            got=str(spec),
            limit="dataset-elements",
        )
    firsts = [leaf.shape[0] if leaf.shape.rank else "scalar" for leaf in leaves]
    if "scalar" in firsts or len(set(firsts)) > 1:
        return len(parts) == 2, False
    if len(parts) == 1 and firsts[0] is not None:
        raise InputError(
            f"data: an element of this tf.data.Dataset may be one example or a batch: {spec}. Pass it as .batch(n), "
            "without drop_remainder",
            field="data",
            expected="a batched Dataset",
            got=str(spec),
            limit="unbatched-dataset",
        )
    return len(parts) == 2, True

# SPDX-License-Identifier: Apache-2.0
"""Data that a caller passes in from Python: arrays, lists, tf.data, generators, bound to a model's inputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.config import DataConfig
from tfq.data.loading import load_split
from tfq.data.preprocessing import real_units
from tfq.data.split import UNNAMED, AnySplit, Split, SplitStream, check_finite
from tfq.errors import InputError, did_you_mean


def shape_fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether an array of `shape` is one of those `wanted`, where None and -1 stand for any size."""
    return len(shape) == len(wanted) and all(
        size in (None, -1) or size == came for came, size in zip(shape, wanted, strict=True)
    )


def bind_inputs(inputs: Mapping[str, NDArray], names: Sequence[str]) -> list[NDArray]:
    """The arrays of `inputs` in the order of the model's input `names`.

    The one unnamed array "x" goes to the one input of a model, whatever its name. Otherwise names must match: exactly,
    or but for what TensorFlow puts around them in a flatbuffer (`serving_default_image:0` is `image`).
    Raises InputError on an input without an array, an array without an input, and "x" for several inputs.
    """
    if len(names) == 1 and set(inputs) == {UNNAMED}:
        return [inputs[UNNAMED]]
    if len(names) > 1 and set(inputs) == {UNNAMED}:
        raise InputError(
            f"the data has one unnamed input, the model has {len(names)} ({', '.join(names)}): "
            f"name the arrays: in an .npz as x_test.{_plain(names[0])}, in a dict as {_plain(names[0])!r}",
            field="data",
            expected=tuple(names),
            got=(UNNAMED,),
        )
    if set(inputs) == set(names):
        return [inputs[name] for name in names]
    by_plain_name = {_plain(name): array for name, array in inputs.items()}
    wanted = [_plain(name) for name in names]
    surplus = [name for name in by_plain_name if name not in wanted]
    missing = [name for name in wanted if name not in by_plain_name]
    if missing:
        raise InputError(
            f"no array for the model's input {missing[0]!r}: the model has {', '.join(wanted)}, "
            f"the data {', '.join(by_plain_name)}: {did_you_mean(missing[0], surplus or by_plain_name)}",
            field="data",
            expected=tuple(wanted),
            got=tuple(by_plain_name),
        )
    if surplus:
        raise InputError(
            f"the data's {surplus[0]!r} is no input of the model: {did_you_mean(surplus[0], wanted)}",
            field="data",
            expected=tuple(wanted),
            got=tuple(by_plain_name),
        )
    if len(set(wanted)) < len(wanted) or len(by_plain_name) < len(inputs):
        raise InputError(
            f"inputs {', '.join(inputs)} cannot be told apart for the model's {', '.join(names)}",
            field="data",
            expected=tuple(names),
            got=tuple(inputs),
        )
    return [by_plain_name[name] for name in wanted]


def _plain(name: str) -> str:
    """An input's name without the signature's prefix and the tensor's output number."""
    name = name.removeprefix("serving_default_")
    head, colon, tail = name.rpartition(":")
    return head if colon and tail.isdigit() else name


_WANTED = "wanted a source string, a Split, an array, (x, y), or a tf.data.Dataset of these"


def as_split(data: Any, *, split: str = "test", limit: int = 0) -> AnySplit:
    """The examples of `data`, the first `limit` of them (0: all).

    data: a Split or SplitStream; a source string ("digits") or DataConfig, of which `split` is loaded; an array or a
        dict of arrays without labels; a tuple (one of these, labels); or a finite tf.data.Dataset, whose elements are x
        or (x, y) (sample weights are refused), x an array or a dict of arrays, single examples or batches.
    A Dataset is of single examples when y is a scalar, or the first axes of x and y have different lengths. Otherwise
    all of its arrays begin with one length, known or not, and that is the batch. Of x alone, of a known length, nothing
    says which it is, and it is refused: `.batch(n)` makes it clear.
    Arrays are taken in the model's own real units: no preprocessing.
    Raises InputError on anything else, and as `load_split` does.
    """
    if isinstance(data, str):
        data = DataConfig(source=data)
    if isinstance(data, DataConfig):
        return load_split(data, split, limit=limit)
    if is_dataset(data):
        return _split_of_arrays(*_collected(data, limit), split, "tf.data")
    if not isinstance(data, (Split, SplitStream)):
        data = _split_of_arrays(*_pair(data), split, "arrays")
    return data.take(limit) if limit else data


def is_dataset(data: Any) -> bool:
    """Whether `data` is a tf.data.Dataset; TensorFlow is not imported to tell."""
    return hasattr(data, "element_spec") and hasattr(data, "as_numpy_iterator")


def _pair(data: Any) -> tuple[Any, Any]:
    if not isinstance(data, tuple):
        return data, None
    if len(data) != 2:
        raise InputError(f"data: got a tuple of {len(data)}: expected (x, y)", field="data", expected=2, got=len(data))
    return data


def _split_of_arrays(data: Any, labels: Any, split: str, source: str) -> Split:
    labels = None if labels is None else _array(labels, "data: labels")
    named = data if isinstance(data, Mapping) else {UNNAMED: data}
    inputs = {}
    for name, value in named.items():
        if (
            value is None
            or isinstance(value, (str, bytes, Mapping))
            or callable(value)
            or isinstance(value, Iterator)
            or hasattr(value, "element_spec")
        ):
            raise InputError(f"data: got {type(value).__name__}: {_WANTED}", field="data", got=type(value).__name__)
        inputs[name] = real_units(_array(value, f"data: input {name!r}"), f"data: input {name!r}")
    built = Split(name=split, inputs=inputs, labels=labels, source=source)
    check_finite(built.inputs, "data")
    return built


def _array(value: Any, where: str) -> NDArray:
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of several lengths
        raise InputError(
            f"{where}: {error}: expected numbers of one shape for every example",
            field=where.removeprefix("data: "),
            expected="numbers of one shape",
        ) from error


def _collected(dataset: Any, limit: int) -> tuple[Any, NDArray | None]:
    """(x, labels or None) of all elements, or of as many as give `limit` examples; x an array or a dict of arrays."""
    has_labels, batched = _form(dataset.element_spec)
    if not limit and int(dataset.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise InputError(
            "data: this tf.data.Dataset never ends (repeat()?): give .take(n) of it, or a limit",
            field="data",
            expected="a Dataset that ends",
            got="an endless one",
        )
    parts: dict[str, list[NDArray]] = {}
    named, count = False, 0
    for x, y in _elements(dataset, has_labels):
        named = isinstance(x, Mapping)
        arrays = {f"x {name}": np.asarray(value) for name, value in (x if named else {UNNAMED: x}).items()}
        if has_labels:
            arrays["y"] = np.asarray(y)
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array if batched else array[None])
        count += len(next(iter(arrays.values()))) if batched else 1
        if limit and count >= limit:
            break
    if not count:
        raise InputError(
            "data: this tf.data.Dataset is empty: expected at least one example",
            field="data",
            expected="at least one example",
            got=0,
        )
    whole = {name: _joined(name, arrays)[: limit or None] for name, arrays in parts.items()}
    labels = whole.pop("y", None)
    inputs = {name.removeprefix("x "): array for name, array in whole.items()}
    return inputs if named else inputs[UNNAMED], labels


def _joined(name: str, arrays: list[NDArray]) -> NDArray:
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise InputError(
            f"data: {name} of this tf.data.Dataset varies in shape ({error}): expected one shape",
            field="data",
            expected="one shape",
            got=name,
        ) from error


def _elements(dataset: Any, has_labels: bool) -> Iterator[tuple[Any, Any]]:
    for element in dataset.as_numpy_iterator():
        yield element if has_labels else (element[0] if isinstance(element, tuple) else element, None)


def _form(spec: Any) -> tuple[bool, bool]:
    """(whether the elements have labels, whether they are batches)."""
    parts = spec if isinstance(spec, tuple) else (spec,)
    if len(parts) > 2:
        raise InputError(
            f"data: elements of this tf.data.Dataset are tuples of {len(parts)}: expected x or (x, y)",
            field="data",
            expected="x or (x, y)",
            got=len(parts),
        )
    inputs = list(parts[0].values()) if isinstance(parts[0], Mapping) else [parts[0]]
    leaves = [*inputs, *parts[1:]]
    if any(
        not hasattr(leaf, "shape") or leaf.shape.rank is None or type(leaf).__name__ != "TensorSpec" for leaf in leaves
    ):
        raise InputError(
            f"data: elements of this tf.data.Dataset are {spec}: expected x or (x, y) of tensors of known rank, x a "
            "tensor or a dict of them by input name",
            field="data",
            expected="x or (x, y)",
            got=str(spec),
        )
    firsts = [leaf.shape[0] if leaf.shape.rank else "scalar" for leaf in leaves]
    if "scalar" in firsts or len(set(firsts)) > 1:
        return len(parts) == 2, False
    if len(parts) == 1 and firsts[0] is not None:
        raise InputError(
            f"data: elements of this tf.data.Dataset are {spec}: nothing says whether that is one example or a batch: "
            "give it as .batch(n), without drop_remainder",
            field="data",
            expected="a batched Dataset",
            got=str(spec),
        )
    return len(parts) == 2, True

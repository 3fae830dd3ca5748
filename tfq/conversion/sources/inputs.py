# SPDX-License-Identifier: Apache-2.0
"""The inputs of a model that is converted: which shapes and dtypes are known, and where the others come from.

An unknown size or dtype is taken from `conversion.input_shapes`, otherwise from the data if all of its examples have
the same size.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.config.input_shapes import FIELD, InputShape, parse_input_shapes
from tfq.data import UNNAMED, InputSpec, Split, SplitStream, bind_inputs, elements_of, is_dataset
from tfq.errors import InputError, did_you_mean, warn

Shape = tuple[int | None, ...]
_DEFAULT_DTYPE = "float32"
_ONE_SIZE = "examples of one size"


@dataclass(frozen=True, kw_only=True)
class SourceInput:
    """An input of a model, as far as the model says what it is.

    Attributes:
        name: Its name in the signature.
        shape: Its shape with the batch dimension; None for unknown sizes; None instead of the shape if the number of
            dimensions is unknown.
        dtype: Its dtype; "" if it is unknown.
        declared: Whether the model accepts no other sizes and dtypes. Otherwise they are those of an earlier call.
    """

    name: str
    shape: Shape | None = None
    dtype: str = ""
    declared: bool = False


@dataclass(frozen=True, kw_only=True)
class FixedInput:
    """An input with its final shape, including the batch dimension (None if it is dynamic), and dtype."""

    name: str
    shape: Shape
    dtype: str


class ExampleShapes:
    """The shapes of the examples that calibration will read, which are read only if a model leaves something open."""

    def __init__(self, dataset: Any, limit: int = 200) -> None:
        """Read nothing yet.

        Args:
            dataset: A representative dataset, a function that returns one, or None.
            limit: The number of samples that calibration reads.
        """
        if isinstance(dataset, Iterator):  # it can be read only once, so its elements are kept
            dataset = list(itertools.islice(dataset, limit))
        self.dataset, self._limit = dataset, limit

    @property
    def available(self) -> bool:
        """Whether there is a dataset."""
        return self.dataset is not None

    def first(self, names: Sequence[str]) -> Any:
        """Return the first element: an array, a list or tuple of arrays, or {input name: array}.

        Args:
            names: As many names as the model has inputs, as far as that is known.
        """
        dataset = self.dataset
        if isinstance(dataset, (Split, SplitStream)):
            piece = dataset.take(1) if isinstance(dataset, Split) else next(dataset.take(1).pieces())
            inputs = dict(piece.inputs)
            return inputs[UNNAMED] if set(inputs) == {UNNAMED} and len(names) == 1 else inputs
        if isinstance(dataset, Mapping) and dataset and all(hasattr(value, "__array__") for value in dataset.values()):
            return {name: np.asarray(value) for name, value in dataset.items()}
        if callable(dataset) and not hasattr(dataset, "__array__"):
            return ExampleShapes(dataset(), self._limit).first(names)
        return next(iter(elements_of(dataset, names)), None)

    def of_inputs(self, inputs: Sequence[SourceInput]) -> list[tuple[Shape, str]]:
        """Return (shape with an open batch dimension, dtype) of the examples of each input.

        Raises:
            InputError: There are no examples, they do not have one array for each input, or their sizes differ.
        """
        names = [item.name for item in inputs]
        results: list[tuple[Shape, str]] = []
        # For a dtype, one element is enough; sizes must be the same in all that calibration reads.
        count, limit = 0, self._limit if any(map(is_open, inputs)) else 1
        for element in elements_of(self.dataset, names):
            arrays = [np.asarray(value) for value in _arrays(element, names)]
            shapes = [self._example(array, item) for array, item in zip(arrays, inputs, strict=True)]
            if not results:
                results = [(shape, array.dtype.name) for shape, array in zip(shapes, arrays, strict=True)]
            for shape, (first, _), item in zip(shapes, results, inputs, strict=True):
                if shape != first:
                    raise InputError(
                        f"representative_dataset: examples of the input {item.name!r} have different sizes "
                        f"({_text(first)} and {_text(shape)}), and the model does not fix its size. Set "
                        f"{FIELD}={item.name}={_written(first)}, and resize the examples",
                        field=FIELD,
                        expected=_ONE_SIZE,
                        got=(first[1:], shape[1:]),
                    )
            count += len(arrays[0]) if arrays[0].ndim == len(shapes[0]) and arrays[0].ndim else 1
            if count >= limit:
                break
        if not results:
            raise InputError(
                "representative_dataset is empty, expected samples of the model's inputs. A generator is used up "
                "after one pass: pass a function that returns a new one",
                field="representative_dataset",
                got=0,
            )
        return results

    def _example(self, array: Any, item: SourceInput) -> Shape:
        """Return the shape of an array of one or several examples, with an open batch dimension."""
        if item.shape is not None:
            rank = len(item.shape)
            sizes = array.shape if array.ndim == rank - 1 else array.shape[1:]
            return (None, *sizes)
        if is_dataset(self.dataset) and _is_ambiguous(self.dataset.element_spec):
            raise InputError(
                "representative_dataset: an element of this tf.data.Dataset may be one example or a batch, and the "
                f"model does not say how many dimensions its input {item.name!r} has. Pass dataset.batch(n), or set "
                f"{FIELD}={item.name}=SIZES",
                field=FIELD,
                expected="a batched Dataset",
                got=str(self.dataset.element_spec),
            )
        return (None, *array.shape[1:])


def _is_ambiguous(spec: Any) -> bool:
    inputs = spec[0] if isinstance(spec, tuple) and spec else spec
    leaves = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    shapes = [getattr(leaf, "shape", None) for leaf in leaves]
    return any(shape is not None and shape.rank and shape[0] is not None for shape in shapes)


def _arrays(element: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(element, Mapping):
        return bind_inputs(element, names)
    values = list(element) if isinstance(element, (list, tuple)) else [element]
    if len(values) != len(names):
        raise InputError(
            f"representative_dataset: an element has {len(values)} arrays, expected {len(names)}, one for each input "
            f"({', '.join(names)})",
            field="representative_dataset",
            expected=len(names),
            got=len(values),
        )
    return values


def fixed_inputs(
    inputs: Sequence[SourceInput], batch_size: int, written: Sequence[InputShape], examples: ExampleShapes
) -> list[FixedInput]:
    """Return the inputs with all sizes except a dynamic batch fixed.

    Args:
        inputs: The model's inputs.
        batch_size: The fixed batch dimension; 0 leaves it dynamic.
        written: The parsed `conversion.input_shapes`.
        examples: The examples whose sizes are used if the model and `written` leave a size open. A TfqWarning says so.

    Raises:
        InputError: A size is unknown, or a size or a dtype contradicts the model.
    """
    known = with_known_sizes(inputs, written, examples)
    shares_batch = _shares_batch(known)
    results = []
    for item in known:
        if is_open(item):
            raise _unknown_size(item)
        shape = item.shape or ()
        if shares_batch:
            shape = with_batch_size(item.name, shape, batch_size, declared=item.declared)
        elif shape and shape[0] is None:
            shape = (batch_size or None, *shape[1:])
        results.append(FixedInput(name=item.name, shape=shape, dtype=item.dtype or _DEFAULT_DTYPE))
    return results


def with_known_sizes(
    inputs: Sequence[SourceInput],
    written: Sequence[InputShape],
    examples: ExampleShapes,
    *,
    differing_sizes_stay_open: bool = False,
) -> list[SourceInput]:
    """Return the inputs with the sizes and dtypes that the user wrote, and otherwise those of the examples.

    Args:
        inputs: The model's inputs.
        written: The parsed `conversion.input_shapes`.
        examples: The examples. They are read if `written` leaves something open, and a TfqWarning names the sizes.
        differing_sizes_stay_open: Whether examples of different sizes leave the sizes open, instead of an error.

    Raises:
        InputError: A size or a dtype contradicts the model, or the examples have different sizes.
    """
    by_name = written_by_name(written, [item.name for item in inputs])
    known = [_with_written(item, by_name.get(item.name)) for item in inputs]
    if not examples.available or not any(is_open(item) or not item.dtype for item in known):
        return known
    try:
        measured = examples.of_inputs(known)
    except InputError as error:
        if differing_sizes_stay_open and error.expected == _ONE_SIZE:
            return known
        raise
    completed = [_with_example(item, *example) for item, example in zip(known, measured, strict=True)]
    _warn_of_sizes([new for new, item in zip(completed, known, strict=True) if is_open(item)])
    return completed


def written_by_name(written: Sequence[InputShape], names: Sequence[str]) -> dict[str, InputShape]:
    """Return the items of `conversion.input_shapes` by the name of the input.

    Raises:
        InputError: An item has a name that no input has, or items without names are not as many as the inputs.
    """
    if written and not written[0].name:
        if len(written) != len(names):
            raise InputError(
                f"{FIELD} has {len(written)} shapes without a name, but the model has {len(names)} inputs: "
                f"{', '.join(names)}. Write NAME=SIZES for each input to set",
                field=FIELD,
                expected=tuple(names),
                got=len(written),
            )
        return dict(zip(names, written, strict=True))
    for item in written:
        if item.name not in names:
            raise InputError(
                f"{FIELD}: the model has no input {item.name!r}: {did_you_mean(item.name, names)}",
                field=FIELD,
                expected=tuple(names),
                got=item.name,
            )
    return {item.name: item for item in written}


def numeric(name: str, dtype: str) -> str:
    """Return the dtype of an input.

    Raises:
        InputError: It is not a type of numbers.
    """
    if dtype in ("string", "resource", "variant"):
        raise InputError(
            f"input {name!r} of the model is {dtype}, expected numbers. Do the preparation of text in the data "
            "pipeline, and pass the model without it",
            field="model",
            expected="numbers",
            got=dtype,
            limit="text-input",
        )
    return dtype


def with_batch_size(name: str, shape: Shape, batch_size: int, *, declared: bool) -> Shape:
    """Return a shape with the fixed batch dimension, or None in its place if `batch_size` is 0.

    Raises:
        InputError: The model fixes another batch size.
    """
    if not shape:
        return shape
    if declared and shape[0] is not None and shape[0] != batch_size:
        raise InputError(
            f"input {name!r} has a fixed batch size of {shape[0]}, expected {batch_size}. Set conversion.batch_size="
            f"{shape[0]}, or build the model without a batch size",
            field="conversion.batch_size",
            expected=shape[0],
            got=batch_size,
            limit="batch-size",
        )
    return (batch_size or None, *shape[1:])


def _shares_batch(inputs: Sequence[SourceInput]) -> bool:
    """Check whether the first dimension of all inputs can be the same; if not, it is not a batch dimension."""
    fixed = {item.shape[0] if item.shape else -1 for item in inputs if item.declared and item.shape is not None}
    return len(fixed - {None}) < 2


def is_open(item: SourceInput) -> bool:
    """Check whether a size other than the batch is unknown."""
    return item.shape is None or None in item.shape[1:]


def _with_written(item: SourceInput, written: InputShape | None) -> SourceInput:
    """Return the input with the shape and dtype that the user wrote."""
    if written is None:
        return item
    shape: Shape = (None if item.shape is None or not item.shape else item.shape[0], *written.sizes)
    fits = item.shape is None or (
        len(shape) == len(item.shape)
        and all(size in (None, other) for size, other in zip(item.shape[1:], shape[1:], strict=True))
    )
    if item.declared and not fits:
        raise InputError(
            f"{FIELD}: the input {item.name!r} of the model has the shape {_text(item.shape or ())} for one example, "
            f"got {_written(shape)}",
            field=FIELD,
            expected=item.shape,
            got=written.sizes,
        )
    if item.declared and item.dtype and written.dtype not in ("", item.dtype):
        raise InputError(
            f"{FIELD}: the input {item.name!r} of the model has the dtype {item.dtype}, got {written.dtype}",
            field=FIELD,
            expected=item.dtype,
            got=written.dtype,
        )
    return dataclasses.replace(item, shape=shape, dtype=written.dtype or item.dtype)


def _with_example(item: SourceInput, shape: Shape, dtype: str) -> SourceInput:
    """Return the input with the sizes and the dtype of the examples, where it leaves them open."""
    if is_open(item):
        mismatch = item.shape is not None and (
            len(shape) != len(item.shape)
            or any(size not in (None, other) for size, other in zip(item.shape[1:], shape[1:], strict=True))
        )
        if mismatch:
            raise InputError(
                f"representative_dataset: the examples of the input {item.name!r} have the shape {_text(shape)}, "
                f"expected {_text(item.shape or ())}",
                field="representative_dataset",
                expected=(item.shape or ())[1:],
                got=shape[1:],
            )
        item = dataclasses.replace(item, shape=(item.shape[0] if item.shape else None, *shape[1:]))
    # Pixels and flags (8 bits) are usually given to models as float numbers; only wider integers are indices.
    return item if item.dtype else dataclasses.replace(item, dtype=dtype if dtype in ("int32", "int64") else "")


def _warn_of_sizes(inputs: Sequence[SourceInput]) -> None:
    """Warn that the sizes of these inputs are those of the data."""
    if not inputs:
        return
    items = [f"{item.name}={_written(item.shape or ())}" for item in inputs]
    warn(
        f"the model does not fix the size of its input{'s' * (len(items) > 1)} "
        f"{', '.join(repr(item.name) for item in inputs)}. The file accepts only the size of the representative data: "
        f"{', '.join(items)}. Set {FIELD}={','.join(items)} to choose the size"
    )


def _unknown_size(item: SourceInput) -> InputError:
    what = "an unknown shape" if item.shape is None else f"the shape {_text(item.shape)} for one example"
    sizes = "SIZES" if item.shape is None else "x".join("N" if size is None else str(size) for size in item.shape[1:])
    return InputError(
        f"input {item.name!r} has {what}, expected fixed sizes except for the batch. Set {FIELD}={item.name}={sizes} "
        "with the size that the application uses, build the model with it, or pass a representative_dataset whose "
        "examples have one size",
        field=FIELD,
        expected="a fixed shape",
        got=item.shape,
        limit="open-sizes",
    )


def _text(shape: Shape) -> str:
    """Return the shape of one example in a message, without the batch dimension."""
    return f"({', '.join('any' if size is None else str(size) for size in shape[1:])})"


def _written(shape: Shape) -> str:
    """Return the shape of one example as `conversion.input_shapes` writes it."""
    return "x".join("N" if size is None else str(size) for size in shape[1:]) or "scalar"


def check_written(inputs: Sequence[InputSpec], items: Sequence[str]) -> None:
    """Raise InputError if `conversion.input_shapes` differs from the inputs of a trace."""
    names = [spec.name for spec in inputs]
    for name, item in written_by_name(parse_input_shapes(items), names).items():
        spec = inputs[names.index(name)]
        dtype = np.dtype(spec.dtype).name
        if tuple(spec.shape[1:]) != item.sizes or item.dtype not in ("", dtype):
            raise InputError(
                f"{FIELD}: the trace has the input {name!r} of the shape {_text(tuple(spec.shape))} and the dtype "
                f"{dtype}, expected {_written((None, *item.sizes))}{item.dtype and ':' + item.dtype}. Trace "
                "the model again with these shapes",
                field=FIELD,
                expected=tuple(spec.shape[1:]),
                got=item.sizes,
            )

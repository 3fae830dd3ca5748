# SPDX-License-Identifier: Apache-2.0
"""Prepare a flatbuffer's inputs: bind, check and quantize the arrays of a split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq.backends.protocol import InputStream
from tfq.data import AnySplit, Split, SplitStream, batch_size_of, bind_inputs, image_advice, sample_shape, shape_fits
from tfq.data.split import check_finite
from tfq.errors import InputError
from tfq.evaluation.metrics import check_no_nan
from tfq.quant_math import dequantize, quantize
from tfq.tflite import Model, Tensor


class Feed:
    """The inputs of a `RunRequest`, and statistics of them that are known after the run.

    `inputs` are arrays in the model's own types, or a stream of them.
    """

    def __init__(self, model: Model, data: AnySplit) -> None:
        """Check the data as `prepare_inputs` does.

        The first piece of a stream is checked here, the others when they are read.
        """
        self._model = model
        if isinstance(data, Split):
            prepared = prepare_inputs(model, data)
            self.inputs: tuple[NDArray, ...] | InputStream = prepared.arrays
            self._statistics = prepared.clipped_fraction, prepared.unused_fraction, prepared.warnings
            return
        self._data: SplitStream = data
        # Report data that does not fit before a backend starts.
        encode_inputs(model, data.first(), Tallies())
        self.inputs = InputStream(num_examples=data.num_examples, pieces=self._pieces)

    def _pieces(self) -> Iterator[tuple[NDArray, ...]]:
        tallies, done = Tallies(), 0
        for piece in self._data.pieces():
            arrays = encode_inputs(self._model, piece, tallies, done)
            done += piece.num_examples
            if done == self._data.num_examples:
                # Before the last piece is yielded, because a backend may not ask for another one.
                self._statistics = tallies.clipped_fraction, tallies.unused_fraction, tallies.warnings
            yield arrays

    @property
    def clipped_fraction(self) -> float | None:
        """As in `PreparedInputs`. For a stream, it is known after the run."""
        return self._statistics[0]

    @property
    def unused_fraction(self) -> float | None:
        """As in `PreparedInputs`. For a stream, it is known after the run."""
        return self._statistics[1]

    @property
    def warnings(self) -> tuple[str, ...]:
        """As in `PreparedInputs`. For a stream, they are known after the run."""
        return self._statistics[2]


MAX_CLIPPED_FRACTION = 0.01
MAX_UNUSED_FRACTION = 0.5
ADVICE = "Check data.scale and data.offset"
# How many values to quantize at a time, so that temporary arrays stay in the tens of megabytes.
_PIECE_VALUES = 4_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedInputs:
    """The model's inputs in its order, and how well the data fits their ranges.

    Args:
        arrays: One array per input, quantized if the input is.
        clipped_fraction: The fraction of all quantized values that are outside of the range by more than half a step;
            None if no input is quantized.
        unused_fraction: The fraction of an input's quantized range that the data never reaches; the largest of all
            inputs.
        warnings: Possible problems, as sentences.
    """

    arrays: tuple[NDArray, ...]
    clipped_fraction: float | None
    unused_fraction: float | None
    warnings: tuple[str, ...]


def prepare_inputs(model: Model, data: Split) -> PreparedInputs:
    """Return `data` in the types of the model's inputs: quantized with each input's scale and zero point, or float.

    Raises:
        InputError: Names or shapes do not fit the model, a value is NaN or infinite, or an integer input without a
            scale cannot represent a value.
    """
    check_finite(data.inputs, f"data {data.source} ({data.name})")
    tallies = Tallies()
    arrays = encode_inputs(model, data, tallies)
    return PreparedInputs(
        arrays=arrays,
        clipped_fraction=tallies.clipped_fraction,
        unused_fraction=tallies.unused_fraction,
        warnings=tallies.warnings,
    )


def encode_inputs(model: Model, data: Split, tallies: "Tallies", first: int = 0) -> tuple[NDArray, ...]:
    """Return an array for each input of the model, and count its values in `tallies`.

    Args:
        model: The model.
        data: Examples.
        tallies: Where to count.
        first: The index of the first example, for messages.
    """
    names = model.input_names
    batch_size = batch_size_of(model)
    return tuple(
        _encode(name, tensor, batch_size, array, tallies, first)
        for name, tensor, array in zip(
            names, model.main_subgraph.input_tensors, bind_inputs(data.inputs, names), strict=True
        )
    )


@dataclass(kw_only=True)
class _Tally:
    """For one quantized input: the number of values and of clipped values, and the lowest and highest one."""

    tensor: Tensor
    values: int = 0
    clipped: int = 0
    lowest: int
    highest: int

    @property
    def unused_fraction(self) -> float:
        limits = np.iinfo(np.dtype(self.tensor.dtype))
        return 1 - (self.highest - self.lowest) / (limits.max - limits.min)


class Tallies:
    """Statistics of how well data fits the ranges of a model's inputs, counted while it is encoded."""

    def __init__(self) -> None:
        """Start with no values."""
        self._of: dict[str, _Tally] = {}

    def count(self, name: str, tensor: Tensor, values: int, clipped: int, lowest: int, highest: int) -> None:
        """Add values of an input."""
        tally = self._of.setdefault(name, _Tally(tensor=tensor, lowest=lowest, highest=highest))
        tally.values, tally.clipped = tally.values + values, tally.clipped + clipped
        tally.lowest, tally.highest = min(tally.lowest, lowest), max(tally.highest, highest)

    def counts(self) -> dict[str, tuple[int, int, int, int]]:
        """Return the arguments of `count` after the tensor, for each input."""
        return {name: (tally.values, tally.clipped, tally.lowest, tally.highest) for name, tally in self._of.items()}

    @property
    def clipped_fraction(self) -> float | None:
        """As in `PreparedInputs`."""
        num_quantized = sum(tally.values for tally in self._of.values())
        return sum(tally.clipped for tally in self._of.values()) / num_quantized if num_quantized else None

    @property
    def unused_fraction(self) -> float | None:
        """As in `PreparedInputs`."""
        return max((tally.unused_fraction for tally in self._of.values()), default=None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """As in `PreparedInputs`."""
        return tuple(
            warning
            for name, tally in self._of.items()
            for warning in _range_warnings(name, tally.tensor, tally.clipped / tally.values, tally.unused_fraction)
        )


def decode_outputs(model: Model, outputs: Sequence[NDArray]) -> tuple[NDArray, ...]:
    """Return the real values of each output: float32 if it is quantized, else unchanged.

    Raises:
        InputError: An output contains NaN.
    """
    decoded = []
    for name, tensor, output in zip(model.output_names, model.main_subgraph.output_tensors, outputs, strict=True):
        if tensor.is_quantized:
            scale, zero_point = scale_of(f"output {name!r}", tensor)
            output = dequantize(output, scale, zero_point)
        check_no_nan(output, f"output {name!r}")
        decoded.append(output)
    return tuple(decoded)


def scale_of(what: str, tensor: Tensor) -> tuple[float, int]:
    """Return the scale and zero point of a quantized input or output.

    Raises:
        InputError: It has several scales, or its scale is not a positive number.
    """
    if len(tensor.scale) != 1 or not (np.isfinite(tensor.scale[0]) and tensor.scale[0] > 0):
        message = f"{len(tensor.scale)} scales" if len(tensor.scale) != 1 else f"scale {tensor.scale[0]}"
        raise InputError(
            f"{what} of the model has {message}, expected one positive scale. Convert the model again",
            field=what,
            expected=1,
            got=tensor.scale,
        )
    return tensor.scale[0], tensor.zero_point[0]


def _check_shape(name: str, tensor: Tensor, batch_size: int | None, array: NDArray) -> None:
    shape = tensor.shape_signature
    expected = sample_shape(shape, batch_size)
    if not shape_fits(array.shape[1:], expected):
        batch_first = "" if batch_size is None else " (batch first)"
        advice = (
            f"{image_advice(shape, array.shape)}{_batch_advice(shape, array.shape)}"
            if batch_size is not None
            else ". The model's inputs share no batch dimension, so an example has the whole input of an inference"
        )
        raise InputError(
            f"the model's input {name!r} has shape {list(shape)}{batch_first}: expected examples of shape "
            f"{list(expected)}, got {list(array.shape[1:])}{advice}",
            field="data",
            expected=expected,
            got=array.shape[1:],
        )


def _batch_advice(expected: Sequence[int], shape: Sequence[int]) -> str:
    if tuple(shape[1:]) != tuple(expected):
        return ""
    return (
        f". The first dimension of an input is the batch. Build the model with an input of shape {[1, *expected]}, if "
        f"an example has the shape {list(expected)}"
    )


def _encode(name: str, tensor: Tensor, batch_size: int | None, array: NDArray, tallies: Tallies, first: int) -> NDArray:
    """Return `array` as the input expects it: quantized and counted, or unchanged."""
    _check_shape(name, tensor, batch_size, array)
    if not tensor.is_quantized:
        return _cast(name, tensor, array, first)
    scale, zero_point = scale_of(f"input {name!r}", tensor)
    limits = np.iinfo(_numpy_dtype(name, tensor))
    lowest = (limits.min - 0.5 - zero_point) * scale
    highest = (limits.max + 0.5 - zero_point) * scale
    quantized = np.empty(array.shape, tensor.dtype)
    step = max(1, _PIECE_VALUES * len(array) // max(1, array.size))
    for start in range(0, len(array), step):
        piece = array[start : start + step]
        part = quantized[start : start + step]
        part[...] = quantize(piece, scale, zero_point, tensor.dtype)
        clipped = int(np.count_nonzero((piece < lowest) | (piece > highest)))
        tallies.count(name, tensor, piece.size, clipped, int(part.min()), int(part.max()))
    return quantized


def _range_warnings(name: str, tensor: Tensor, clipped: float, unused: float) -> list[str]:
    limits, (scale, zero_point) = np.iinfo(np.dtype(tensor.dtype)), scale_of(name, tensor)
    span = f"{(limits.min - zero_point) * scale:.4g} to {(limits.max - zero_point) * scale:.4g}"
    results = []
    if clipped > MAX_CLIPPED_FRACTION:
        results.append(
            f"{clipped:.1%} of the values of input {name!r} are outside of its range ({span}) and clipped. {ADVICE}"
        )
    # int16 is symmetric, and its steps are so small that half of the range is enough for data without negative values.
    # int32 inputs are raw integers.
    if unused > MAX_UNUSED_FRACTION and tensor.dtype in ("int8", "uint8"):
        results.append(f"{unused:.0%} of the range of input {name!r} ({span}) is not used by this data. {ADVICE}")
    return results


def _cast(name: str, tensor: Tensor, array: NDArray, first: int) -> NDArray:
    """Return `array` in the dtype of an input without a scale; values only change by float rounding."""
    dtype = _numpy_dtype(name, tensor)
    if dtype.kind not in "iub":
        return array.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        cast = array.astype(dtype)
    different = (cast != array).reshape(len(array), -1).any(axis=1)
    if different.any():
        index = int(different.argmax())
        raise InputError(
            f"example {first + index} of the data has values that the model's input {name!r} cannot represent: it is "
            f"{dtype} without a scale, so values are not quantized. Pass values of this type",
            field=f"{name}[{first + index}]",
            expected=dtype,
        )
    return cast


def _numpy_dtype(name: str, tensor: Tensor) -> np.dtype:
    try:
        return np.dtype(tensor.dtype)
    except TypeError as error:
        raise InputError(
            f"input {name!r} of the model is {tensor.dtype}, which NumPy does not have, so it cannot be filled",
            field=name,
            got=tensor.dtype,
            limit="unknown-dtypes",
        ) from error

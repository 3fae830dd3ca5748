# SPDX-License-Identifier: Apache-2.0
"""Feed a flatbuffer's inputs: bind, check and quantize the arrays of a split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq.backends.protocol import InputStream
from tfq.data import AnySplit, Split, SplitStream, bind_inputs
from tfq.data.split import check_finite
from tfq.errors import InputError
from tfq.evaluation.metrics import check_no_nan
from tfq.quant_math import dequantize, quantize
from tfq.tflite import Model, Tensor


class Feed:
    """What a RunRequest takes as inputs, and what is known of them once it has run.

    inputs: arrays in the model's own numbers, or a stream of them.
    """

    def __init__(self, model: Model, data: AnySplit) -> None:
        """Raises what `prepare_inputs` raises; of a stream, for its first piece, and for others as they are read."""
        self._model = model
        if isinstance(data, Split):
            prepared = prepare_inputs(model, data)
            self.inputs: tuple[NDArray, ...] | InputStream = prepared.arrays
            self._known = prepared.clipped_share, prepared.unused_share, prepared.warnings
            return
        self._data: SplitStream = data
        # What does not fit is told before a backend starts, not from within it.
        encode_inputs(model, data.first(), Tallies())
        self.inputs = InputStream(num_examples=data.num_examples, pieces=self._pieces)

    def _pieces(self) -> Iterator[tuple[NDArray, ...]]:
        tallies, done = Tallies(), 0
        for piece in self._data.pieces():
            arrays = encode_inputs(self._model, piece, tallies, done)
            done += piece.num_examples
            if done == self._data.num_examples:
                # Before the last piece is given: a backend need not ask for another.
                self._known = tallies.clipped_share, tallies.unused_share, tallies.warnings
            yield arrays

    @property
    def clipped_share(self) -> float | None:
        """As in `PreparedInputs`, like the next two; of a stream, after the run."""
        return self._known[0]

    @property
    def unused_share(self) -> float | None:
        return self._known[1]

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._known[2]


MAX_CLIPPED_SHARE = 0.01
MAX_UNUSED_SHARE = 0.5
ADVICE = "are data.scale and data.offset right?"
# Values that are quantized at a time: the temporaries stay in the tens of megabytes.
_PIECE_VALUES = 4_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedInputs:
    """What the model's inputs take, in its order, and how well the data fills their ranges.

    clipped_share: of all values that become codes, how many lie beyond the range by more than half a step; None when
        no input is quantized. unused_share: of the range of codes of an input, what the data never reaches; of several
        inputs the largest.
    """

    arrays: tuple[NDArray, ...]
    clipped_share: float | None
    unused_share: float | None
    warnings: tuple[str, ...]


def prepare_inputs(model: Model, data: Split) -> PreparedInputs:
    """`data` in the model's own numbers: quantized with the scale and zero_point of each input, or as float.

    Raises InputError on names or shapes that do not fit the model's, NaN or infinity, and values that an integer input
    without a scale cannot take.
    """
    check_finite(data.inputs, f"data {data.source} ({data.name})")
    tallies = Tallies()
    arrays = encode_inputs(model, data, tallies)
    return PreparedInputs(
        arrays=arrays,
        clipped_share=tallies.clipped_share,
        unused_share=tallies.unused_share,
        warnings=tallies.warnings,
    )


def encode_inputs(model: Model, data: Split, tallies: "Tallies", first: int = 0) -> tuple[NDArray, ...]:
    """An array for each input of the model, which `tallies` counts. first: index of the first of these examples."""
    names = model.input_names
    return tuple(
        _encoded(name, tensor, array, tallies, first)
        for name, tensor, array in zip(
            names, model.main_subgraph.input_tensors, bind_inputs(data.inputs, names), strict=True
        )
    )


@dataclass(kw_only=True)
class _Tally:
    """Of one quantized input: how many values came, how many were clipped, and the lowest and highest code."""

    tensor: Tensor
    values: int = 0
    clipped: int = 0
    lowest: int
    highest: int

    @property
    def unused_share(self) -> float:
        limits = np.iinfo(np.dtype(self.tensor.dtype))
        return 1 - (self.highest - self.lowest) / (limits.max - limits.min)


class Tallies:
    """How well data fills the ranges of a model's inputs, counted as it is encoded, whole or in pieces."""

    def __init__(self) -> None:
        self._of: dict[str, _Tally] = {}

    def count(self, name: str, tensor: Tensor, values: int, clipped: int, lowest: int, highest: int) -> None:
        """Adds values of an input."""
        tally = self._of.setdefault(name, _Tally(tensor=tensor, lowest=lowest, highest=highest))
        tally.values, tally.clipped = tally.values + values, tally.clipped + clipped
        tally.lowest, tally.highest = min(tally.lowest, lowest), max(tally.highest, highest)

    @property
    def clipped_share(self) -> float | None:
        """As in `PreparedInputs`, like the next two."""
        coded = sum(tally.values for tally in self._of.values())
        return sum(tally.clipped for tally in self._of.values()) / coded if coded else None

    @property
    def unused_share(self) -> float | None:
        return max((tally.unused_share for tally in self._of.values()), default=None)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(
            warning
            for name, tally in self._of.items()
            for warning in _range_warnings(name, tally.tensor, tally.clipped / tally.values, tally.unused_share)
        )


def decode_outputs(model: Model, outputs: Sequence[NDArray]) -> tuple[NDArray, ...]:
    """What the codes of each output stand for, float32 where quantized, else as they are. Raises InputError on NaN."""
    decoded = []
    for name, tensor, output in zip(model.output_names, model.main_subgraph.output_tensors, outputs, strict=True):
        if tensor.is_quantized:
            scale, zero_point = scale_of(f"output {name!r}", tensor)
            output = dequantize(output, scale, zero_point)
        check_no_nan(output, f"output {name!r}")
        decoded.append(output)
    return tuple(decoded)


def scale_of(what: str, tensor: Tensor) -> tuple[float, int]:
    """The one scale and zero_point of a quantized input or output. Raises InputError on several, or a bad one."""
    if len(tensor.scale) != 1 or not (np.isfinite(tensor.scale[0]) and tensor.scale[0] > 0):
        message = f"{len(tensor.scale)} scales" if len(tensor.scale) != 1 else f"scale {tensor.scale[0]}"
        raise InputError(
            f"{what} of the model has {message}: expected one positive scale: convert the model again",
            field=what,
            expected=1,
            got=tensor.scale,
        )
    return tensor.scale[0], tensor.zero_point[0]


def _check_shape(name: str, tensor: Tensor, array: NDArray) -> None:
    wanted = tensor.shape_signature
    fits = len(wanted) == array.ndim and all(
        size in (-1, have) for size, have in zip(wanted[1:], array.shape[1:], strict=True)
    )
    if not fits:
        is_image = len(wanted) == 4 == array.ndim and wanted[3] == array.shape[3]
        advice = f": resize it with data.resize={wanted[1]},{wanted[2]}" if is_image else ""
        raise InputError(
            f"the model's input {name!r} has shape {list(wanted)} (batch first), the data {list(array.shape)} "
            f"(examples first): expected examples of shape {list(wanted[1:])}{advice}",
            field="data",
            expected=tuple(wanted[1:]),
            got=array.shape[1:],
        )


def _encoded(name: str, tensor: Tensor, array: NDArray, tallies: Tallies, first: int) -> NDArray:
    """`array` as the input takes it: codes, which are counted, or the values themselves."""
    _check_shape(name, tensor, array)
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
    if clipped > MAX_CLIPPED_SHARE:
        results.append(
            f"{clipped:.1%} of the values of input {name!r} lie outside its range ({span}) and are clipped: {ADVICE}"
        )
    # int16 is symmetric, and fine enough that half of it is plenty for data without negative values.
    if unused > MAX_UNUSED_SHARE and tensor.dtype != "int16":
        results.append(f"the data leaves {unused:.0%} of the range of input {name!r} ({span}) unused: {ADVICE}")
    return results


def _cast(name: str, tensor: Tensor, array: NDArray, first: int) -> NDArray:
    """`array` in the dtype of an input without a scale, the values unchanged but for float rounding."""
    dtype = _numpy_dtype(name, tensor)
    if dtype.kind not in "iub":
        return array.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        cast = array.astype(dtype)
    different = (cast != array).reshape(len(array), -1).any(axis=1)
    if different.any():
        index = int(different.argmax())
        raise InputError(
            f"input {name!r} of the model takes {dtype} as it is (it has no scale), and example {first + index} of the "
            "data holds values that are none",
            field=f"{name}[{first + index}]",
            expected=dtype,
        )
    return cast


def _numpy_dtype(name: str, tensor: Tensor) -> np.dtype:
    try:
        return np.dtype(tensor.dtype)
    except TypeError as error:
        raise InputError(
            f"input {name!r} of the model is {tensor.dtype}: NumPy has no such type to feed it",
            field=name,
            got=tensor.dtype,
        ) from error

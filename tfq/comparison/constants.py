# SPDX-License-Identifier: Apache-2.0
"""Compare the constants of matched ops: weights, biases and other operands, as real numbers."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.comparison.alignment import Alignment, Side
from tfq.comparison.change import Change, field_changes, shortened
from tfq.errors import InputError
from tfq.ptq.causes import op_label
from tfq.tflite import ABSENT, Op, Tensor
from tfq.tflite.op_types import CHANNEL_AXES, INDEX, roles
from tfq.tflite.stored_values import has_blocks, real_values, stored_values
from tfq.tflite.workload import tensor_bytes

_REAL_TYPES = ("float16", "bfloat16", "float32", "float64")
_STORED_TYPES = (
    *_REAL_TYPES,
    "int2",
    "int4",
    "uint4",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "bool",
)
# A sparse constant may declare any shape. Real ones do not expand to more than 64 times the size of the file.
_LARGEST_FACTOR, _FREE_VALUES = 64, 1 << 22
_MOST_CHANNELS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StoredConstant:
    """How one of the files stores a constant.

    Attributes:
        dtype: The stored type.
        granularity: What has a scale: "per tensor", "per channel, axis 0", "per block of 32", or "" without scales.
        bytes: The stored bytes.
        sparsity: The fraction of the values that are 0; None if they cannot be read.
    """

    dtype: str
    granularity: str
    bytes: int
    sparsity: float | None


@dataclass(frozen=True, kw_only=True)
class ConstantDifference:
    """A constant of an op of the reference, compared with that of the matched op of the model as real numbers.

    Attributes:
        op: The label of the op in the reference.
        layer: Its Keras layer, or the name of its output.
        input: The input slot of the op.
        role: "weight", "bias", "wide" (LSTM states and coefficients) or "data" (an operand).
        tensor: The name of the constant in the reference.
        shape: Its shape in the reference.
        reference: How the reference stores it.
        model: How the model stores it.
        equal: Whether the real values are equal.
        changed_bytes: The number of stored bytes that differ; None if the stored types or sizes differ.
        max_abs_error: The largest difference of two values; None if they were not compared.
        sqnr_db: The sum of the squared reference values, divided by that of the differences, in dB; None if there is
            no difference, no signal, or no comparison.
        worst_channel: The output channel with the lowest SQNR; None if the op has no channels.
        worst_channel_sqnr_db: Its SQNR.
        scale_ratio: The median of the model's scales divided by the reference's; None unless both are quantized with
            the same granularity.
        reason: Why `sqnr_db` is None, or which values were left out.
    """

    op: str
    layer: str
    input: int
    role: str
    tensor: str
    shape: tuple[int, ...]
    reference: StoredConstant
    model: StoredConstant
    equal: bool
    changed_bytes: int | None
    max_abs_error: float | None
    sqnr_db: float | None
    worst_channel: int | None
    worst_channel_sqnr_db: float | None
    scale_ratio: float | None
    reason: str | None

    @property
    def differs(self) -> bool:
        """Whether the values or their stored form differ."""
        stored = [(item.dtype, item.granularity) for item in (self.reference, self.model)]
        return not self.equal or stored[0] != stored[1] or bool(self.changed_bytes)

    @property
    def loss(self) -> float:
        """A number to sort by: the SQNR; lower is worse, and values that cannot be compared come first."""
        if self.sqnr_db is not None:
            return self.sqnr_db
        return math.inf if self.equal else -math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "shape": list(self.shape)}


class File:
    """The constants of one of the files.

    Attributes:
        content: The bytes of the file.
        edited: The file in the form of `tfq.tflite.unpack`.
    """

    def __init__(self, content: bytes, edited: Any) -> None:
        """Keep both forms of the file."""
        self.content, self.edited = content, edited

    def raw(self, tensor: Tensor) -> bytes:
        """Return the stored bytes of a constant."""
        return self.content[tensor.buffer_offset : tensor.buffer_offset + tensor.buffer_bytes]

    def values(self, graph: int, tensor: Tensor, *, real: bool) -> NDArray:
        """Return the values of a constant: real numbers, or as they are stored.

        Raises:
            InputError: They cannot be read.
        """
        if tensor.dtype not in _STORED_TYPES:
            raise InputError(f"values of the type {tensor.dtype} are not compared")
        if math.prod(tensor.shape) > _LARGEST_FACTOR * len(self.content) + _FREE_VALUES:
            raise InputError(f"the shape {list(tensor.shape)} is too large for this file")
        tensors = self.edited.subgraphs[graph].tensors
        source = tensors[tensor.index]
        if real:
            return real_values(self.edited.buffers, source, tensor.shape, tensors)
        return stored_values(self.edited.buffers, source, tensor.shape)

    def granularity(self, graph: int, tensor: Tensor) -> str:
        """Return what has a scale, as in `StoredConstant`."""
        source = self.edited.subgraphs[graph].tensors[tensor.index]
        if has_blocks(source):
            return f"per block of {source.quantization.details.blockSize}"
        if not tensor.is_quantized:
            return ""
        return f"per channel, axis {tensor.quantized_dimension}" if len(tensor.scale) > 1 else "per tensor"

    def stored(self, graph: int, tensor: Tensor) -> StoredConstant:
        """Return how the file stores a constant."""
        try:
            zeros = self._zeros(graph, tensor)
        except InputError:
            zeros = None
        return StoredConstant(
            dtype=f"{'sparse ' if tensor.is_sparse else ''}{tensor.dtype}",
            granularity=self.granularity(graph, tensor),
            bytes=tensor.buffer_bytes,
            sparsity=zeros,
        )

    def _zeros(self, graph: int, tensor: Tensor) -> float | None:
        values = self.values(graph, tensor, real=False)
        zero: Any = 0
        if tensor.is_quantized:
            along = [1] * values.ndim
            if len(tensor.zero_point) > 1:
                along[tensor.quantized_dimension] = -1
            zero = np.reshape(tensor.zero_point, along)
        return float(np.count_nonzero(values == zero) / values.size) if values.size else None


def compare_constants(
    alignment: Alignment, files: tuple[File, File], graphs: tuple[int, int]
) -> Iterator[ConstantDifference | Change]:
    """Yield the comparison of each pair of constants, once, and a change for each index, shape or axis that differs.

    Args:
        alignment: The matched ops of two subgraphs.
        files: The reference and the model.
        graphs: The indices of the subgraphs in their files.
    """
    sides = alignment.reference, alignment.model
    seen = set()
    for ours, theirs in alignment.pairs():
        if ours.name != theirs.name:
            continue
        op_roles = {slot: role for place, slot, _, role in roles(ours) if place == "input"}
        for slot, tensors in enumerate(zip(ours.inputs, theirs.inputs, strict=False)):
            pair = _constant(sides[0], tensors[0]), _constant(sides[1], tensors[1])
            if pair[0] is None or pair[1] is None or (pair[0].index, pair[1].index) in seen:
                continue
            seen.add((pair[0].index, pair[1].index))
            where = _Where(alignment, ours, slot, op_roles.get(slot, "data"), files, graphs)
            names = {"name": pair[0].name}, {"name": pair[1].name}
            yield from field_changes("names", f"{where.label} input {slot}", *names)
            if where.role == INDEX or not (_is_real(pair[0]) or _is_real(pair[1])):
                yield from where.exact(pair[0], pair[1])
            else:
                yield where.compared(pair[0], pair[1])


def _constant(side: Side, tensor: int) -> Tensor | None:
    """Return the constant that a tensor has its values from, or None."""
    if tensor == ABSENT:
        return None
    source = side.graph.tensors[side.source(tensor)]
    return source if source.is_constant else None


def _is_real(tensor: Tensor) -> bool:
    return tensor.dtype in _REAL_TYPES or tensor.is_quantized or tensor.dtype in ("int4", "int2", "uint4")


class _Where:
    """A pair of constants of two matched ops."""

    def __init__(
        self, alignment: Alignment, op: Op, slot: int, role: str, files: tuple[File, File], graphs: tuple[int, int]
    ) -> None:
        self.graph = alignment.reference.graph
        self.op, self.slot, self.role, self.files, self.graphs = op, slot, role, files, graphs
        self.label = op_label(self.graph, op.index)

    def values(self, tensors: tuple[Tensor, Tensor], *, real: bool) -> list[NDArray]:
        return [
            file.values(graph, tensor, real=real)
            for file, graph, tensor in zip(self.files, self.graphs, tensors, strict=True)
        ]

    def exact(self, ours: Tensor, theirs: Tensor) -> Iterator[Change]:
        """Yield a change if constants without a scale differ: axes, shapes, paddings, indices."""
        same_form = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if same_form and self.files[0].raw(ours) == self.files[1].raw(theirs):
            return
        try:
            listed: list[Any] = [values.reshape(-1).tolist() for values in self.values((ours, theirs), real=False)]
        except InputError:
            listed = [tensor_bytes(ours), tensor_bytes(theirs)] if not same_form else ["other bytes", "other bytes"]
        if not same_form:
            forms = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (ours, theirs)]
            listed = [f"{form}: {shortened(values)}" for form, values in zip(forms, listed, strict=True)]
        yield Change(part="options", where=self.label, what=f"input {self.slot}", reference=listed[0], model=listed[1])

    def compared(self, ours: Tensor, theirs: Tensor) -> ConstantDifference:
        """Return the comparison of two constants that stand for real numbers."""
        stored = [
            file.stored(graph, tensor)
            for file, graph, tensor in zip(self.files, self.graphs, (ours, theirs), strict=True)
        ]
        raw = self.files[0].raw(ours), self.files[1].raw(theirs)
        same_form = (ours.dtype, ours.shape, ours.is_sparse) == (theirs.dtype, theirs.shape, theirs.is_sparse)
        changed = None
        if same_form and len(raw[0]) == len(raw[1]):
            changed = int(np.count_nonzero(np.frombuffer(raw[0], np.uint8) != np.frombuffer(raw[1], np.uint8)))
        return ConstantDifference(
            op=self.label,
            layer=self.graph.layer_of(self.op),
            input=self.slot,
            role=self.role,
            tensor=ours.name,
            shape=ours.shape,
            reference=stored[0],
            model=stored[1],
            changed_bytes=changed,
            scale_ratio=_scale_ratio(ours, theirs),
            **self._errors(ours, theirs, is_same=changed == 0 and _grid(ours) == _grid(theirs)),
        )

    def _errors(self, ours: Tensor, theirs: Tensor, *, is_same: bool) -> dict[str, Any]:
        results: dict[str, Any] = dict.fromkeys(("sqnr_db", "worst_channel", "worst_channel_sqnr_db", "max_abs_error"))
        is_blockwise = any(
            file.granularity(graph, tensor).startswith("per block")
            for file, graph, tensor in zip(self.files, self.graphs, (ours, theirs), strict=True)
        )
        if is_same and not is_blockwise:  # the scales of blocks are constants themselves, which may differ
            return {**results, "equal": True, "max_abs_error": 0.0, "reason": "the values are equal"}
        if ours.shape != theirs.shape:
            reason = f"the shapes differ: {list(ours.shape)} and {list(theirs.shape)}"
            return {**results, "equal": False, "reason": reason}
        without_scale = [name for name, tensor in (("reference", ours), ("model", theirs)) if not _is_real(tensor)]
        if without_scale:
            return {**results, "equal": False, "reason": f"the integers of the {without_scale[0]} have no scale"}
        try:
            reference, model = (values.astype(np.float64) for values in self.values((ours, theirs), real=True))
        except InputError as error:
            return {**results, "equal": False, "reason": str(error)}
        axis = CHANNEL_AXES.get(self.op.name) if self.role == "weight" else None
        return results | errors(reference, model, axis)


def _grid(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.scale, tensor.zero_point, tensor.quantized_dimension if len(tensor.scale) > 1 else 0


def _scale_ratio(ours: Tensor, theirs: Tensor) -> float | None:
    if not (ours.is_quantized and theirs.is_quantized) or len(ours.scale) != len(theirs.scale):
        return None
    with np.errstate(all="ignore"):
        ratio = float(np.median(np.divide(theirs.scale, ours.scale)))
    return ratio if math.isfinite(ratio) else None


def errors(reference: NDArray[np.float64], model: NDArray[np.float64], axis: int | None) -> dict[str, Any]:
    """Return the fields of `ConstantDifference` about the difference of two arrays of one shape.

    Args:
        reference: The expected values.
        model: The other values.
        axis: The axis of the channels; None if there are none.
    """
    with np.errstate(all="ignore"):
        same = (reference == model) | (np.isnan(reference) & np.isnan(model))
        finite = np.isfinite(reference) & np.isfinite(model)
        noise = np.where(finite, model - reference, 0.0)
        signal = np.where(finite, reference, 0.0)
        results: dict[str, Any] = {
            "equal": bool(same.all()),
            "max_abs_error": float(np.abs(noise).max(initial=0.0)),
            **dict.fromkeys(("sqnr_db", "worst_channel", "worst_channel_sqnr_db")),
        }
        left_out = int(np.count_nonzero(~finite & ~same))
        results["sqnr_db"], reason = _decibels(float(np.square(signal).sum()), float(np.square(noise).sum()))
        results["reason"] = f"{left_out} values are not finite in one of the files" if left_out else reason
        if axis is not None and noise.ndim and noise.any() and noise.shape[axis] <= _MOST_CHANNELS:
            rows = [
                np.square(np.moveaxis(part, axis, 0).reshape(noise.shape[axis], -1)).sum(axis=1)
                for part in (signal, noise)
            ]
            ratios = np.where((rows[0] > 0) & (rows[1] > 0), rows[0] / rows[1], np.inf)
            worst = int(ratios.argmin())
            if np.isfinite(ratios[worst]):
                results["worst_channel"], results["worst_channel_sqnr_db"] = worst, float(10 * np.log10(ratios[worst]))
    return results


def _decibels(signal: float, noise: float) -> tuple[float | None, str | None]:
    if noise == 0:
        return None, "the values are equal"
    if signal == 0:
        return None, "all values of the reference are 0"
    ratio = signal / noise
    if not math.isfinite(ratio) or ratio == 0:
        return None, "the values are too large to compare"
    return 10 * math.log10(ratio), None

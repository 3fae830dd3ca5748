# SPDX-License-Identifier: Apache-2.0
"""Compare the outputs of a quantized model with those of its float twin, and judge them.

Each output, and each slice of it along every axis with at most `LONGEST_AXIS` entries, is compared by its
signal-to-quantization-noise ratio

    SQNR = 10 log10(var(float) / mean((float - quantized)^2))                                                      [dB]

and with the best that the output's grid allows, a uniform rounding error over one step of its scale:

    ideal = 10 log10(var(float) / (scale^2 / 12))                                                                  [dB]

An output is **collapsed** if it contains NaN or infinity, or if ideal >= `MIN_IDEAL_DB` and either its SQNR is below
`COLLAPSED_DB` or a slice that varies in float is constant. Slices are not judged in two cases: if the op fixes the
scale of its output, as a softmax does, because a class that is rare on these samples may be constant; and if no slice
along the axis reaches `MIN_IDEAL_DB`, because then the output hardly varies on these samples.

A **note** does not change the verdict. There is one if the SQNR is below `NOTE_DB`, or if the output varies by only a
few steps of its scale on these samples (ideal below `MIN_IDEAL_DB`).

Between `GRADUAL_DB` and `COLLAPSED_DB` an output is collapsed only if one op adds `ONE_OP_FRACTION` of the noise.
Rounding
errors that add up over many layers are only a note: the logits of a MobileNet that was trained for 60 or 80 steps have
17.2 and 17.6 dB, no op adds more than 67% and 22% of the noise, and all predicted classes are the same. In the faulty
models in this range, one op adds 91% or more. Float values outside of the range of an op that fixes its scale, such as
the logarithm of a class that a mask excludes, are clipped to that range.

An output that varies by few steps is also collapsed if its scale is to blame: if the scale is not a positive number; or
if no op fixes the scale, and the values, including zero, span fewer than `MIN_STEPS` steps. Such a range was chosen
for other values, such as the infinity that a max pool is padded with.

With an ideal ratio of `MIN_IDEAL_DB`, a uniformly distributed output spans about 18 steps peak to peak. Random
classifiers, whose softmax hardly varies, have an ideal below 7 dB and are not judged.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.errors import InputError
from tfq.evaluation.classes import agreement, is_class_vector
from tfq.quant_math import dequantize
from tfq.tflite import Model, Subgraph, Tensor
from tfq.tflite.op_types import FIXED_OUTPUT_SCALES, RESHAPING_OPS

# In decibels: see the module's docstring.
MIN_IDEAL_DB, COLLAPSED_DB, NOTE_DB = 25.0, 20.0, 25.0
# Below COLLAPSED_DB and from here on, an output is collapsed only if one op adds at least this fraction of the noise.
GRADUAL_DB, ONE_OP_FRACTION = 15.0, 0.8
# Two of eight or sixteen bits. A range that was chosen for these values has 255 steps or more.
MIN_STEPS = 4.0
# Slices are compared along axes with at most this many entries.
LONGEST_AXIS = 512
# A slice varies if its values differ by more than float32 rounding, and fewer than this fraction of them equal the
# median: a feature that is zero on almost all samples may be zero on all of them by chance.
_MAX_EQUAL, _ROUNDING, _SUM_ROUNDING = 0.9, 1e-5, 1e-6
# Ops that only move or requantize values.
MOVING_OPS = RESHAPING_OPS | {"QUANTIZE"}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One entry of an output along one axis, `outputs[..., index, ...]`. Axis 0 is the samples."""

    axis: int
    index: int
    sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputCheck:
    """The comparison of one output of the quantized model with the float model's on the samples.

    Args:
        name: The name of the output in the signature.
        dtype: The dtype of the quantized model's output.
        sqnr_db: The SQNR; inf without noise, None if the float output does not vary or if the output holds integers
            such as class indices.
        ideal_db: The best SQNR that the output's grid allows; None if it is not rounded to a grid.
        steps: The peak-to-peak distance of the float values in steps of the output's scale; None as for `ideal_db`.
        span_steps: The same distance including zero, which every range contains; None as for `ideal_db`.
        agreement: For a class vector, the fraction of equal predicted classes; for integers, of equal values.
        num_slices: How many slices were compared: those that vary in float.
        worst_slice: The slice with the lowest SQNR.
        constant_slices: The slices that are constant in the quantized model.
        values_used: How many different quantized values occurred; None if the output is not quantized.
        fixed_scale: Whether the op fixes the scale of this output.
        finite: Whether all values are finite.
        valid_scale: Whether the scale of a quantized output is a positive number.
        varies: Whether the float values vary by more than float32 rounding.
        worst_samples: The indices of the samples with the largest errors, at most eight, the largest first.
    """

    name: str
    dtype: str
    sqnr_db: float | None
    ideal_db: float | None = None
    steps: float | None = None
    span_steps: float | None = None
    agreement: float | None = None
    num_slices: int = 0
    worst_slice: Slice | None = None
    constant_slices: tuple[Slice, ...] = ()
    values_used: int | None = None
    fixed_scale: bool = False
    finite: bool = True
    valid_scale: bool = True
    varies: bool = True
    worst_samples: tuple[int, ...] = ()

    @property
    def is_judgeable(self) -> bool:
        """Whether the output's grid can represent its information on these samples."""
        return self.ideal_db is None or self.ideal_db >= MIN_IDEAL_DB

    @property
    def is_out_of_scale(self) -> bool:
        """Whether the scale was chosen for much larger values than those of the float model."""
        if self.fixed_scale or self.span_steps is None or self.sqnr_db is None or not self.varies:
            return False
        return self.span_steps < MIN_STEPS and self.sqnr_db < COLLAPSED_DB

    @property
    def lost(self) -> bool:
        """Whether the output is constant, as a whole or in a slice, and its op is not the reason."""
        return not self.valid_scale or self.is_out_of_scale or (bool(self.constant_slices) and not self.fixed_scale)

    @property
    def collapse(self) -> tuple[str, str] | None:
        """(kind, sentence) of the reason why this output is collapsed, or None."""
        if not self.finite:
            return "not_finite", f"output {self.name!r} contains NaN or infinity"
        if not self.valid_scale:
            return "no_scale", f"output {self.name!r} is {self.dtype} with a scale that is not a positive number"
        if self.is_out_of_scale:
            return (
                "out_of_scale",
                f"output {self.name!r} has a scale that was chosen for much larger values: the float model's values, "
                f"including zero, span only {self.span_steps:.2g} steps of it on the calibration samples",
            )
        if not self.is_judgeable:
            return None
        if self.sqnr_db is not None and self.sqnr_db < COLLAPSED_DB:
            return (
                "low_sqnr",
                f"output {self.name!r} has an SQNR of {self.sqnr_db:.1f} dB on the calibration samples, below "
                f"{COLLAPSED_DB:.0f} dB",
            )
        if self.constant_slices and not self.fixed_scale:
            return "constant_slices", f"output {self.name!r}: {self._constant_text()}"
        return None

    @property
    def note(self) -> tuple[str, str] | None:
        """(kind, sentence) of a note, or None."""
        if not self.finite or self.collapse is not None:
            return None
        if not self.is_judgeable:
            steps = "does not vary" if not self.steps else f"varies by only {self.steps:.1f} steps of its scale"
            return "few_steps", f"output {self.name!r} {steps} on the calibration samples, too little to judge it"
        if self.sqnr_db is not None and self.sqnr_db < NOTE_DB:
            return "sqnr", f"output {self.name!r} has an SQNR of {self.sqnr_db:.1f} dB"
        return None

    def _constant_text(self) -> str:
        first = self.constant_slices[0]
        if first.axis < 0:
            return "it varies in float and is constant in the quantized model"
        named = ", ".join(str(item.index) for item in self.constant_slices[:6] if item.axis == first.axis)
        count = len(self.constant_slices)
        more = ", ..." if count > 6 else ""
        ratio = "" if self.sqnr_db is None else f", although the whole output has {self.sqnr_db:.1f} dB"
        return (
            f"{count} of {self.num_slices} slices (axis {first.axis}: {named}{more}) vary in float and are constant in "
            f"the quantized model{ratio}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite SQNR is null, and `exact` is true."""
        values = {**asdict(self), "exact": self.sqnr_db == math.inf, "constant_slices": len(self.constant_slices)}
        values["constant_slice_indices"] = [[item.axis, item.index] for item in self.constant_slices[:LONGEST_AXIS]]
        values["sqnr_db"], values["ideal_db"] = finite(self.sqnr_db), finite(self.ideal_db)
        if self.worst_slice is not None:
            values["worst_slice"]["sqnr_db"] = finite(self.worst_slice.sqnr_db)
        return values


def check_outputs(
    parsed: Model, reference: Sequence[Sequence[NDArray]], outputs: Sequence[Sequence[NDArray]]
) -> Iterator[OutputCheck]:
    """Compare the outputs of two models, sample by sample.

    Args:
        parsed: The quantized model.
        reference: For each sample the float model's outputs, as real values.
        outputs: For each sample the quantized model's outputs, in its own dtypes.

    Raises:
        InputError: The shapes of an output differ.
    """
    graph = parsed.main_subgraph
    for position, (name, index) in enumerate(zip(parsed.output_names, graph.outputs, strict=True)):
        floats, values = ([np.asarray(sample[position]) for sample in side] for side in (reference, outputs))
        if any(a.shape != b.shape for a, b in zip(floats, values, strict=True)):
            raise InputError(
                f"output {name!r} has shape {list(values[0].shape)} in the quantized model, but "
                f"{list(floats[0].shape)} in the float model. Use the float model that it was converted from",
                field="model",
                expected=floats[0].shape,
                got=values[0].shape,
            )
        yield check_output(graph, index, name, _stacked(floats), _stacked(values))


def check_output(graph: Subgraph, index: int, name: str, floats: NDArray, values: NDArray) -> OutputCheck:
    """Compare one output over all samples.

    Args:
        graph: Subgraph 0 of the quantized model.
        index: The index of the output tensor.
        name: The name of the output.
        floats: The float model's values, (n, ...).
        values: The quantized model's values in its own dtype, of the same shape.
    """
    tensor = graph.tensors[index]
    used = int(np.unique(values).size) if tensor.is_quantized else None
    if tensor.is_quantized and not 0 < tensor.scale[0] < math.inf:
        return OutputCheck(name=name, dtype=tensor.dtype, sqnr_db=None, values_used=used, valid_scale=False)
    if not values.size:
        return OutputCheck(name=name, dtype=tensor.dtype, sqnr_db=None, varies=False)
    if floats.dtype.kind in "biu" and not tensor.is_quantized:
        return _check_integers(name, tensor, floats, values)
    if tensor.is_quantized:
        values = dequantize(values, tensor.scale[0], tensor.zero_point[0])
    floats = floats.astype(np.float32, copy=False)
    grid, fixed = _grid(graph, index)
    if fixed and tensor.is_quantized:
        limits = np.iinfo(np.dtype(tensor.dtype))
        limits_in_float = dequantize(np.array([limits.min, limits.max]), tensor.scale[0], tensor.zero_point[0])
        floats = np.clip(floats, *limits_in_float)
    finite = bool(np.isfinite(values).all())
    if not finite:
        return OutputCheck(name=name, dtype=tensor.dtype, sqnr_db=None, finite=False, values_used=used)
    error, variance = _mean_square(floats - values), float(np.var(floats, dtype=np.float64))
    slices, constant = _slices(floats, values, grid)
    return OutputCheck(
        name=name,
        dtype=tensor.dtype,
        sqnr_db=_decibels(variance, error) if variance > 0 else None,
        ideal_db=None if grid is None else _decibels(variance, grid**2 / 12),
        steps=None if grid is None else float(np.ptp(floats)) / grid,
        span_steps=None if grid is None else float(max(floats.max(), 0) - min(floats.min(), 0)) / grid,
        agreement=_class_agreement(graph, index, floats, values),
        num_slices=len(slices),
        worst_slice=min(slices, key=lambda item: item.sqnr_db or 0.0, default=None),
        constant_slices=constant,
        values_used=used,
        fixed_scale=fixed,
        varies=_varies(floats, float(np.abs(floats).max())),
        worst_samples=_worst_samples(floats - values),
    )


def _worst_samples(errors: NDArray) -> tuple[int, ...]:
    """Return the samples with the largest errors; () if the values could not be stacked by sample."""
    if errors.ndim < 2:
        return ()
    squares = np.square(errors, dtype=np.float64).reshape(len(errors), -1).sum(axis=1)
    return tuple(np.argsort(-squares, kind="stable")[:8].tolist())


def _check_integers(name: str, tensor: Tensor, floats: NDArray, values: NDArray) -> OutputCheck:
    """Compare indices or conditions, which are either equal or different."""
    varies, is_constant = bool(np.ptp(floats.astype(np.int64))), not np.ptp(values.astype(np.int64))
    constant = (Slice(axis=-1, index=0),) if varies and is_constant else ()
    return OutputCheck(
        name=name,
        dtype=tensor.dtype,
        sqnr_db=None,
        agreement=float(np.mean(floats == values)),
        num_slices=1,
        constant_slices=constant,
    )


def _slices(floats: NDArray, values: NDArray, grid: float | None) -> tuple[list[Slice], tuple[Slice, ...]]:
    """Return all slices that vary in `floats`, along every short axis, and those of them that are constant in `values`.

    A constant slice only counts if the grid can represent another slice along the same axis. Otherwise all slices vary
    by a few steps on these samples, and any of them may be constant.
    """
    results: list[Slice] = []
    constant: list[Slice] = []
    largest = float(np.abs(floats).max(initial=0))
    for axis in range(1, floats.ndim):
        if not 2 <= floats.shape[axis] <= LONGEST_AXIS:
            continue
        best, constant_here = 0.0, []
        for index in range(floats.shape[axis]):
            float_slice, quantized_slice = np.take(floats, index, axis), np.take(values, index, axis)
            variance = float(np.var(float_slice, dtype=np.float64))
            best = max(best, variance)
            if not _varies(float_slice, largest):
                continue
            item = Slice(
                axis=axis, index=index, sqnr_db=_decibels(variance, _mean_square(float_slice - quantized_slice))
            )
            results.append(item)
            constant_here += [item] if not np.ptp(quantized_slice) else []
        if grid is None or _decibels(best, grid**2 / 12) >= MIN_IDEAL_DB:
            constant += constant_here
    return results, tuple(constant)


def _varies(values: NDArray, largest: float) -> bool:
    """Check whether a slice varies by more than float32 rounding of its values, or of sums of the `largest` ones."""
    spread = float(np.ptp(values))
    if spread <= max(_ROUNDING * float(np.abs(values).max(initial=0)), _SUM_ROUNDING * largest):
        return False
    return float(np.mean(values == np.median(values))) < _MAX_EQUAL


def _grid(graph: Subgraph, index: int) -> tuple[float | None, bool]:
    """Return the scale that this output is rounded to (None if it is computed in float), and whether its op fixes it.

    A dequantized output has the scale of the tensor that was dequantized.
    """
    op = graph.producers.get(index)
    if op is not None and op.name == "DEQUANTIZE":
        index = op.inputs[0]
    tensor = graph.tensors[index]
    grid = tensor.scale[0] if tensor.is_quantized and tensor.scale[0] > 0 else None
    op = graph.producers.get(index)
    while op is not None and op.name in MOVING_OPS:
        source = graph.tensors[op.inputs[0]]
        if source.scale != tensor.scale:
            return grid, False
        op = graph.producers.get(op.inputs[0])
    return grid, op is not None and op.name in FIXED_OUTPUT_SCALES


def _class_agreement(graph: Subgraph, index: int, floats: NDArray, values: NDArray) -> float | None:
    """Return the fraction of equal predicted classes if the output is a class vector."""
    return float(agreement(values, floats)) if is_class_vector(graph, index, floats) else None


def _stacked(arrays: Sequence[NDArray]) -> NDArray:
    """Return (n, ...) if all shapes are equal; else (values,), which has no slices."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return np.concatenate([array.reshape(-1) for array in arrays])


def _mean_square(values: NDArray) -> float:
    return float(np.mean(np.square(values, dtype=np.float64))) if values.size else 0.0


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def finite(value: float | None) -> float | None:
    """Return the value; None if it is infinite, which JSON does not support."""
    return None if value is None or not math.isfinite(value) else value

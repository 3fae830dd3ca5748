# SPDX-License-Identifier: Apache-2.0
"""Verify a quantized flatbuffer: does it run, and do its outputs carry the information of the float model's?

Both models run on a few samples, the quantized one in a child process. Each output, and each slice of it along every
axis of at most `LONGEST_AXIS` entries, is compared by its signal-to-quantization-noise ratio

    SQNR = 10 log10(var(float) / mean((float - quantized)^2))                                                      [dB]

and with what the output's own grid could reach at best, a uniform rounding error over one step of its scale:

    ideal = 10 log10(var(float) / (scale^2 / 12))                                                                  [dB]

There are two levels. An output is **collapsed** if the file does not load or invoke, if it holds NaN or infinity, if a
tensor that is used as an index is quantized, or, where ideal >= `ABLE_DB`, if its SQNR is below `COLLAPSED_DB` or a
slice that varies in float is constant. A slice is not judged where the op fixes the scale of its output, as a softmax
does: a class that is rare on these samples is rightly constant; nor where no slice along its axis reaches `ABLE_DB`:
an output that does not move on these samples is constant for no fault of its grid. A **note** (the verdict stays as it
is) is an SQNR below `NOTE_DB`, and an output that moves by only a few steps of its scale on these samples (ideal below
`ABLE_DB`).

An ideal ratio of `ABLE_DB` is where a perfect output spans about 19 steps peak to peak if it is uniform. Random
classifiers, whose softmax hardly varies, have an ideal below 7 dB and are left alone.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import auditing, tflite
from tfq.artifacts import content_of
from tfq.auditing import AuditReport, Execution
from tfq.backends import LocalBackend
from tfq.config import AuditConfig
from tfq.errors import BackendError, InputError, ModelError, TfqError
from tfq.evaluation.classes import agreement, is_class_vector
from tfq.quant_math import dequantize, quantize
from tfq.tflite import Model, Op, Subgraph, Tensor
from tfq.typing import PathOrBytes

# How many samples both models run on: the ratios move by at most 1.5 dB from here to 50 samples.
NUM_SAMPLES = 20
# Decibels, as the module's docstring defines them.
ABLE_DB, COLLAPSED_DB, NOTE_DB = 25.0, 20.0, 25.0
# Slices are looked at along axes of at most so many entries.
LONGEST_AXIS = 512
# A slice varies if its values differ by more than float32's rounding, and fewer than this share of them are equal to
# the median: a feature that is zero on almost all samples says nothing when it is zero on all.
_MOST_EQUAL, _ROUNDING = 0.9, 1e-5
# Ops whose output scale is part of their definition (TFLite 8-bit quantization specification), and ops that only move
# values.
FIXED_SCALE_OPS = frozenset({"SOFTMAX", "LOGISTIC", "TANH", "LOG_SOFTMAX", "L2_NORMALIZATION"})
MOVING_OPS = frozenset({"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE", "QUANTIZE"})

Sample = Mapping[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One entry of an output along one axis, the sample axis included: `outputs[..., index, ...]`."""

    axis: int
    index: int
    sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputCheck:
    """How one output of the quantized model compares with the float model's on the samples.

    Args:
        name: As the signature has it.
        dtype: Of the quantized model's output.
        sqnr_db: Signal to quantization noise; inf without noise, None if the float output does not vary or if the
            output holds whole numbers such as class indices.
        ideal_db: What the grid of the output could reach; None if no grid rounds it.
        steps: Peak-to-peak distance of the float values in steps of the output's scale; None likewise.
        agreement: Of a class vector, the share of equal largest entries; of whole numbers, the share of equal values.
        num_slices: Slices that were looked at: those that vary in float.
        worst_slice: The one with the lowest SQNR.
        constant_slices: Those that are constant in the quantized model.
        values_used: Different quantized values that occurred; None if the output is not quantized.
        fixed_scale: Whether the op fixes the scale of this output.
        finite: Whether all values are finite.
    """

    name: str
    dtype: str
    sqnr_db: float | None
    ideal_db: float | None = None
    steps: float | None = None
    agreement: float | None = None
    num_slices: int = 0
    worst_slice: Slice | None = None
    constant_slices: tuple[Slice, ...] = ()
    values_used: int | None = None
    fixed_scale: bool = False
    finite: bool = True

    @property
    def able(self) -> bool:
        """Whether the grid of the output could carry its information on these samples."""
        return self.ideal_db is None or self.ideal_db >= ABLE_DB

    @property
    def collapse(self) -> tuple[str, str] | None:
        """(kind, sentence) of what makes this output collapsed, or None."""
        if not self.finite:
            return "not_finite", f"output {self.name!r} holds NaN or infinity"
        if not self.able:
            return None
        if self.sqnr_db is not None and self.sqnr_db < COLLAPSED_DB:
            return (
                "low_sqnr",
                f"output {self.name!r} has {self.sqnr_db:.1f} dB of signal to quantization noise on the calibration "
                f"samples, below {COLLAPSED_DB:.0f} dB",
            )
        if self.constant_slices and not self.fixed_scale:
            return "constant_slices", f"output {self.name!r}: {self._constant_text()}"
        return None

    @property
    def note(self) -> tuple[str, str] | None:
        """(kind, sentence) of what is worth a note, or None."""
        if not self.finite or self.collapse is not None:
            return None
        if not self.able:
            steps = "does not vary" if not self.steps else f"moves by only {self.steps:.1f} steps of its scale"
            return "few_steps", f"output {self.name!r} {steps} on the calibration samples: too little to judge it"
        if self.sqnr_db is not None and self.sqnr_db < NOTE_DB:
            return "sqnr", f"output {self.name!r} has {self.sqnr_db:.1f} dB of signal to quantization noise"
        return None

    def _constant_text(self) -> str:
        first = self.constant_slices[0]
        if first.axis < 0:
            return "it varies in float and is constant in the quantized model"
        named = ", ".join(str(item.index) for item in self.constant_slices[:6] if item.axis == first.axis)
        count = len(self.constant_slices)
        more = ", ..." if count > 6 else ""
        ratio = "" if self.sqnr_db is None else f", though the whole output has {self.sqnr_db:.1f} dB"
        return (
            f"{count} of {self.num_slices} slices (axis {first.axis}: {named}{more}) vary in float and are constant in "
            f"the quantized model{ratio}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite ratio is null next to `exact`."""
        values = {**asdict(self), "exact": self.sqnr_db == math.inf, "constant_slices": len(self.constant_slices)}
        values["constant_slice_indices"] = [[item.axis, item.index] for item in self.constant_slices[:LONGEST_AXIS]]
        values["sqnr_db"], values["ideal_db"] = _finite(self.sqnr_db), _finite(self.ideal_db)
        if self.worst_slice is not None:
            values["worst_slice"]["sqnr_db"] = _finite(self.worst_slice.sqnr_db)
        return values


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of the configuration, and what it was measured to do to the output in question on the same samples.

    Args:
        setting: As users write it, such as "conversion.float_layers=mel".
        sqnr_db: Of the output with that change; None if it could not be measured.
        cures: Whether the output is no longer collapsed.
        reason: Why there is no measurement.
    """

    setting: str
    sqnr_db: float | None = None
    cures: bool = False
    reason: str | None = None

    def to_text(self) -> str:
        """Return "setting: 42.1 dB"."""
        if self.sqnr_db is None:
            return f"{self.setting}: {self.reason}" if self.reason else f"{self.setting}: {_word(self.cures)}"
        return f"{self.setting}: {self.sqnr_db:.1f} dB" + ("" if self.cures else ", still collapsed")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a quantized model, or worth a note.

    Args:
        kind: "does_not_run", "not_finite", "low_sqnr", "constant_slices", "quantized_index"; of notes "sqnr",
            "few_steps", "not_compared".
        message: In sentences.
        output: Name of the output, None if it is not about one.
        op_index: Index in subgraph 0 of the first op where it happened; None if it is not known.
        op: That op for people.
        layer: Its Keras layer.
        cause: Kind of the cause, such as "unequal_join"; None if it is not known.
        remedies: What was tried, the best first.
    """

    kind: str
    message: str
    output: str | None = None
    op_index: int | None = None
    op: str | None = None
    layer: str | None = None
    cause: str | None = None
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of running a quantized model next to its float twin.

    Args:
        execution: Whether it runs.
        outputs: One check per output; empty if there was nothing to compare with.
        num_samples: How many samples both models ran on.
        collapsed: What makes the result wrong.
        notes: What does not change the verdict.
    """

    execution: Execution
    outputs: tuple[OutputCheck, ...] = ()
    num_samples: int = 0
    collapsed: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing collapsed."""
        return not self.collapsed

    @property
    def compared(self) -> bool:
        """Whether the outputs were compared with the float model's."""
        return bool(self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "ok": self.ok,
            "execution": asdict(self.execution),
            "num_samples": self.num_samples,
            "outputs": [item.to_dict() for item in self.outputs],
            "collapsed": [_problem(item) for item in self.collapsed],
            "notes": [_problem(item) for item in self.notes],
        }

    def to_text(self) -> str:
        """Return lines for the terminal."""
        lines = [f"{self.execution.to_text()}; compared on {self.num_samples} samples"]
        for item in self.outputs:
            ratio = "no ratio" if item.sqnr_db is None else f"{item.sqnr_db:.1f} dB"
            lines.append(f"output {item.name}: {ratio}" + _agreement(item))
        lines += [f"COLLAPSED {item.message}" for item in self.collapsed]
        return "\n".join([*lines, *(f"note      {item.message}" for item in self.notes)])


def verify(
    quantized: bytes,
    samples: Sequence[Sample],
    reference: Sequence[Sequence[NDArray]],
) -> Verification:
    """Run the flatbuffer `quantized` on samples and compare it with the float model's outputs.

    Args:
        quantized: The bytes of a `.tflite` in any scheme.
        samples: For each {input name: array with the batch dimension}, in the float model's dtypes.
        reference: For each sample the float model's outputs, one array per output of subgraph 0.

    Raises:
        BackendError: No interpreter of this machine could be used.
    """
    parsed = tflite.read(quantized)
    reason = not_runnable_here(parsed)
    if reason:
        return Verification(execution=Execution(state="not tried", reason=reason))
    fed = encode(parsed, samples)
    try:
        outputs = LocalBackend().run_samples(quantized, fed)
    except ModelError as error:
        return failed(failed_execution(quantized, parsed, fed, error), len(samples))
    checks = tuple(check_outputs(parsed, reference, outputs))
    return Verification(
        execution=Execution(state="runs"),
        outputs=checks,
        num_samples=len(samples),
        collapsed=tuple(_problems(checks, "collapse")),
        notes=tuple(_problems(checks, "note")),
    )


def try_to_run(model: bytes) -> Execution:
    """Run a flatbuffer once on neutral inputs: zero, or the value of it that is nearest to the middle of the range.

    Raises:
        FlatbufferError: The bytes are no flatbuffer.
    """
    parsed = tflite.read(model)
    reason = not_runnable_here(parsed) or _shape_reason(parsed)
    if reason:
        return Execution(state="not tried", reason=reason)
    fed = [tuple(_neutral(tensor) for tensor in parsed.main_subgraph.input_tensors)]
    try:
        LocalBackend().run_samples(model, fed)
    except ModelError as error:
        return failed_execution(model, parsed, fed, error)
    except BackendError as error:
        return Execution(state="not tried", reason=str(error))
    return Execution(state="runs")


def audit_and_run(model: PathOrBytes, config: AuditConfig | None = None, *, execute: bool | None = None) -> AuditReport:
    """Audit the flatbuffer `model` by static rules, and run it once.

    Args:
        model: The bytes of a `.tflite`, or its path.
        config: What it is held against; see `AuditConfig`.
        execute: Whether to run it, on neutral inputs in a child process; None leaves it to `config.execute`. A model
            that fails there fails the audit. One that cannot be tried here, because of a custom op or because it was
            compiled for another device, does not.

    Returns:
        The report, with `execution`.

    Raises:
        FlatbufferError: The bytes are no flatbuffer, or a damaged one.
    """
    config = config or AuditConfig()
    execute = config.execute if execute is None else execute
    content = content_of(model, "model")
    if execute:
        LocalBackend().prepare()  # its start takes a third of a second, in which the rules are applied
    report = auditing.audit_model(content, config)
    return report.with_execution(try_to_run(content)) if execute else report


def not_runnable_here(parsed: Model) -> str | None:
    """Return why no interpreter of this machine can run a model that may be perfectly right, or None."""
    for graph in parsed.subgraphs:
        for op in graph.ops:
            if op.name == "CUSTOM":
                kind = "TensorFlow's Flex delegate" if op.custom_code.startswith("Flex") else "another device"
                return f"{title(graph, op)} is the custom op {op.custom_code!r}, for {kind}: there is no kernel here"
            if op.name.startswith("UNKNOWN_"):
                return f"{title(graph, op)} has an operator code that this version does not know"
    return LocalBackend().unavailable()


def failed_execution(model: bytes, parsed: Model, fed: Sequence[Sequence[NDArray]], error: TfqError) -> Execution:
    """Return the record of a run that failed, with the first op without which the model would run."""
    words = " ".join(str(error.got if isinstance(error.got, str) else error).split()).rstrip(".")
    words = f"the interpreter was killed by signal {words}" if words.startswith("SIG") else words
    words = re.sub(r"(?<=\w)\.?(?=Node number)", ". ", words)  # the runtime joins its messages without a space
    index = first_failing_op(model, parsed, [tuple(fed[0])])
    graph = parsed.main_subgraph
    op = None if index is None else title(graph, graph.ops[index])
    return Execution(state="fails", reason=words, op_index=index, op=op)


def first_failing_op(model: bytes, parsed: Model, fed: Sequence[tuple[NDArray, ...]]) -> int | None:
    """Return the smallest number of an op such that the model cut off after it fails; None if no prefix fails.

    The ops of subgraph 0 are bisected: about log2(number of ops) short runs in children.
    """
    low, high = 0, len(parsed.main_subgraph.ops) - 1  # the prefix that ends at `high` is taken to fail
    if high < 0 or not _prefix_fails(model, high, fed):
        return None
    while low < high:
        middle = (low + high) // 2
        if _prefix_fails(model, middle, fed):
            high = middle
        else:
            low = middle + 1
    return low


def _prefix_fails(model: bytes, last: int, fed: Sequence[tuple[NDArray, ...]]) -> bool:
    try:
        LocalBackend().run_samples(tflite.cut_after(model, last), fed)
    except ModelError:
        return True
    except TfqError:
        return False
    return False


def encode(parsed: Model, samples: Sequence[Sample]) -> list[tuple[NDArray, ...]]:
    """Return the samples as the model's inputs take them, quantized where an input is."""
    pairs = list(zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True))
    return [tuple(_encoded(np.asarray(sample[name]), tensor) for name, tensor in pairs) for sample in samples]


def _encoded(array: NDArray, tensor: Tensor) -> NDArray:
    if tensor.is_quantized and array.dtype.kind == "f":
        return quantize(array, tensor.scale[0], tensor.zero_point[0], tensor.dtype)
    return array.astype(tensor.dtype, copy=False)


def check_outputs(
    parsed: Model, reference: Sequence[Sequence[NDArray]], outputs: Sequence[Sequence[NDArray]]
) -> Iterator[OutputCheck]:
    """Compare the outputs of two models, given sample by sample.

    Args:
        parsed: The quantized model.
        reference: For each sample one array per output, in real units.
        outputs: The same of the quantized model, in its own dtypes.
    """
    graph = parsed.main_subgraph
    for place, (name, index) in enumerate(zip(parsed.output_names, graph.outputs, strict=True)):
        floats, values = ([np.asarray(sample[place]) for sample in side] for side in (reference, outputs))
        if any(a.shape != b.shape for a, b in zip(floats, values, strict=True)):
            raise InputError(
                f"output {name!r} has shape {list(values[0].shape)} in the quantized model and {list(floats[0].shape)} "
                "in the float model: expected one shape",
                field="model",
                expected=floats[0].shape,
                got=values[0].shape,
            )
        yield check_output(graph, index, name, _stacked(floats), _stacked(values))


def check_output(graph: Subgraph, index: int, name: str, floats: NDArray, values: NDArray) -> OutputCheck:
    """Compare one output over all samples.

    Args:
        graph: Subgraph 0 of the quantized model.
        index: Index of the output tensor.
        name: Name of the output.
        floats: Values of the float model, (n, ...).
        values: Values of the quantized model in its own dtype, of the same shape.
    """
    tensor = graph.tensors[index]
    used = int(np.unique(values).size) if tensor.is_quantized else None
    if floats.dtype.kind in "biu" and not tensor.is_quantized:
        return _check_whole_numbers(name, tensor, floats, values)
    if tensor.is_quantized:
        values = dequantize(values, tensor.scale[0], tensor.zero_point[0])
    floats = floats.astype(np.float32, copy=False)
    grid, fixed = _grid(graph, index)
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
        agreement=_class_agreement(graph, index, floats, values),
        num_slices=len(slices),
        worst_slice=min(slices, key=lambda item: item.sqnr_db or 0.0, default=None),
        constant_slices=constant,
        values_used=used,
        fixed_scale=fixed,
    )


def _check_whole_numbers(name: str, tensor: Tensor, floats: NDArray, values: NDArray) -> OutputCheck:
    """Indices and conditions: they are equal or not."""
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
    """Every slice that varies in `floats`, along every short axis; and those of them that are constant in `values`.

    A constant slice counts if the grid can carry another slice along the same axis: where none moves by more than a few
    steps on these samples, none can be expected to.
    """
    results: list[Slice] = []
    constant: list[Slice] = []
    for axis in range(1, floats.ndim):
        if not 2 <= floats.shape[axis] <= LONGEST_AXIS:
            continue
        best, flat = 0.0, []
        for index in range(floats.shape[axis]):
            reals, got = np.take(floats, index, axis), np.take(values, index, axis)
            variance = float(np.var(reals, dtype=np.float64))
            best = max(best, variance)
            if not _varies(reals):
                continue
            item = Slice(axis=axis, index=index, sqnr_db=_decibels(variance, _mean_square(reals - got)))
            results.append(item)
            flat += [item] if not np.ptp(got) else []
        if grid is None or _decibels(best, grid**2 / 12) >= ABLE_DB:
            constant += flat
    return results, tuple(constant)


def _varies(values: NDArray) -> bool:
    spread = float(np.ptp(values))
    if spread <= _ROUNDING * float(np.abs(values).max(initial=0)):
        return False
    return float(np.mean(values == np.median(values))) < _MOST_EQUAL


def _grid(graph: Subgraph, index: int) -> tuple[float | None, bool]:
    """(scale that rounds this output, whether its op fixes that scale): None if it is computed in float.

    An output that was dequantized has the scale of what was dequantized.
    """
    makers = {output: op for op in graph.ops for output in op.outputs}
    op = makers.get(index)
    if op is not None and op.name == "DEQUANTIZE":
        index = op.inputs[0]
    tensor = graph.tensors[index]
    grid = tensor.scale[0] if tensor.is_quantized and tensor.scale[0] > 0 else None
    op = makers.get(index)
    while op is not None and op.name in MOVING_OPS:
        source = graph.tensors[op.inputs[0]]
        if source.scale != tensor.scale:
            return grid, False
        op = makers.get(op.inputs[0])
    return grid, op is not None and op.name in FIXED_SCALE_OPS


def _class_agreement(graph: Subgraph, index: int, floats: NDArray, values: NDArray) -> float | None:
    """Share of equal largest entries along the last axis, if the output is a class vector."""
    return float(agreement(values, floats)) if is_class_vector(graph, index, floats) else None


def title(graph: Subgraph, op: Op) -> str:
    """Return an op for people: "op #5 ADD (add_1)"."""
    layer = op.keras_layer or (graph.tensors[op.outputs[0]].name if op.outputs else "no output")
    return f"op #{op.index} {op.name} ({layer})"


def _neutral(tensor: Tensor) -> NDArray:
    shape = tuple(max(size, 1) for size in tensor.shape)
    if tensor.is_quantized:
        limits = np.iinfo(np.dtype(tensor.dtype))
        value = int(np.clip(tensor.zero_point[0], limits.min, limits.max))
        return np.full(shape, value, tensor.dtype)
    return np.zeros(shape, tensor.dtype)


def _shape_reason(parsed: Model) -> str | None:
    """Why an input cannot be made up: an unknown size other than the batch, or a dtype that NumPy does not have."""
    for name, tensor in zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True):
        if any(size < 0 for size in tensor.shape_signature[1:]):
            return f"input {name!r} has the shape {list(tensor.shape_signature)}: its size is not known"
        try:
            np.dtype(tensor.dtype)
        except TypeError:
            return f"input {name!r} is {tensor.dtype}: NumPy has no such type to feed it"
    return None


def failed(execution: Execution, num_samples: int = 0) -> Verification:
    """Return the verification of a model that does not run."""
    where = f" at {execution.op}" if execution.op else ""
    problem = Problem(
        kind="does_not_run",
        message=f"the converted model does not run{where}: {execution.reason}",
        op_index=execution.op_index,
        op=execution.op,
    )
    return Verification(execution=execution, num_samples=num_samples, collapsed=(problem,))


def _problems(checks: Sequence[OutputCheck], level: str) -> Iterator[Problem]:
    for check in checks:
        result = getattr(check, level)
        if result is not None:
            yield Problem(kind=result[0], message=result[1], output=check.name)


def _stacked(arrays: Sequence[NDArray]) -> NDArray:
    """(n, ...) of equal shapes; (values,) of different ones, in which there are no slices."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return np.concatenate([array.reshape(-1) for array in arrays])


def _mean_square(values: NDArray) -> float:
    return float(np.mean(np.square(values, dtype=np.float64))) if values.size else 0.0


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _agreement(check: OutputCheck) -> str:
    return "" if check.agreement is None else f", agreement {check.agreement:.1%}"


def _word(cures: bool) -> str:
    return "right" if cures else "still collapsed"


def _problem(problem: Problem) -> dict[str, Any]:
    values = asdict(problem)
    values["remedies"] = [{**asdict(item), "sqnr_db": _finite(item.sqnr_db)} for item in problem.remedies]
    return values

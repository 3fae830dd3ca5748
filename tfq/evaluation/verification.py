# SPDX-License-Identifier: Apache-2.0
"""Verify a quantized flatbuffer: whether it runs, and whether its outputs contain the information of the float model's.

Both models run on a few samples, the quantized one in a child process. `output_checks` compares their outputs and
defines when one is **collapsed** or has a **note**. A file that does not load or invoke is collapsed as a whole, and so
is one that quantizes a tensor that is used as an index.
"""

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
from tfq.backends.limits import memory_limit
from tfq.config import AuditConfig
from tfq.data import common_batch_size, input_specs
from tfq.errors import BackendError, ModelError, TfqError
from tfq.evaluation.output_checks import OutputCheck, check_outputs, finite
from tfq.progress import stage
from tfq.ptq.causes import INDEX_QUANTIZED
from tfq.ptq.layer_pairs import as_input
from tfq.tflite import Model, Op, Subgraph, Tensor
from tfq.tflite.index_values import quantized_indices
from tfq.tflite.op_types import COMPILED_OPS, CUSTOM_KERNELS
from tfq.typing import PathOrBytes

# How many samples both models run on. With 50 samples, the ratios change by at most 1.5 dB.
NUM_SAMPLES = 20
# How many tensors a message names.
_MAX_NAMED = 3
Sample = Mapping[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of the configuration, and its measured effect on the output on the same samples.

    Args:
        setting: The setting as users write it, such as "conversion.float_layers=mel".
        sqnr_db: The SQNR of the output with that change; None if it could not be measured.
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
    """A problem of a quantized model, or a note about it.

    Args:
        kind: "does_not_run", "not_finite", "no_scale", "out_of_scale", "low_sqnr", "constant_slices",
            "quantized_index"; for notes "sqnr", "few_steps", "dead", "not_compared".
        message: The problem, in sentences.
        output: The name of the output; None if it is not about an output.
        op_index: The index in subgraph 0 of the first op where it occurs; None if it is not known.
        op: A readable name of that op.
        layer: The op's Keras layer.
        cause: The kind of the cause, such as "unequal_join"; None if it is not known.
        remedies: The changes that were tried, the best first.
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
    """The result of running a quantized model and its float twin on the same samples.

    Args:
        execution: Whether it runs.
        outputs: One check per output; empty if the outputs were not compared.
        num_samples: How many samples both models ran on.
        collapsed: The problems that make the model unusable.
        notes: Remarks that do not change the verdict.
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
        samples = f"{self.num_samples} sample{'' if self.num_samples == 1 else 's'}"
        compared = f"compared with the float model on {samples}" if self.compared else "outputs not compared"
        lines = [f"{self.execution.to_text()}; {compared}"]
        for item in self.outputs:
            ratio = "no SQNR" if item.sqnr_db is None else f"SQNR {item.sqnr_db:.1f} dB"
            lines.append(f"output {item.name}: {ratio}" + _agreement(item))
        lines += [f"COLLAPSED {item.message}" for item in self.collapsed]
        return "\n".join([*lines, *(f"note      {item.message}" for item in self.notes)])


def verify(
    quantized: bytes,
    samples: Sequence[Sample],
    reference: Sequence[Sequence[NDArray]],
) -> Verification:
    """Run a flatbuffer on samples and compare its outputs with the float model's.

    Args:
        quantized: The bytes of a `.tflite` in any scheme.
        samples: For each inference {input name: array with the batch dimension}, in the float model's dtypes.
        reference: For each inference the float model's outputs, one array per output of subgraph 0.

    Raises:
        BackendError: No interpreter on this machine could be used.
    """
    parsed = tflite.read(quantized)
    reason = not_runnable_here(parsed)
    if reason:
        return Verification(execution=Execution(state="not tried", reason=reason))
    inputs = encode(parsed, samples)
    num_samples = len(samples) * (common_batch_size(input_specs(quantized)) or 1)
    try:
        outputs = LocalBackend().run_samples(quantized, inputs)
    except ModelError as error:
        return failed(failed_execution(quantized, parsed, inputs, error), num_samples)
    checks = tuple(check_outputs(parsed, reference, outputs))
    return Verification(
        execution=Execution(state="runs"),
        outputs=checks,
        num_samples=num_samples,
        collapsed=(*_quantized_indices(parsed), *_problems(checks, "collapse")),
        notes=tuple(_problems(checks, "note")),
    )


def _quantized_indices(parsed: Model) -> Iterator[Problem]:
    """Yield a problem for each op that reads a quantized tensor as an index."""
    graph = parsed.main_subgraph
    if not quantized_indices(graph):
        return
    for op in graph.ops:
        sources = quantized_indices(graph, op)
        if sources:
            named = ", ".join(repr(graph.tensors[index].name) for index in sources[:_MAX_NAMED])
            yield Problem(
                kind="quantized_index",
                message=f"{title(graph, op)} reads indices from the quantized {named}: after rounding they select "
                "wrong entries",
                op_index=op.index,
                op=title(graph, op),
                layer=op.keras_layer,
                cause=INDEX_QUANTIZED,
            )


def try_to_run(model: bytes) -> Execution:
    """Run a flatbuffer once on neutral inputs: zero, or its quantized value.

    If an op fails to invoke with these inputs, as an int8 DIV by zero does, the upper ends of the input ranges are
    tried.

    Raises:
        FlatbufferError: The bytes are not a flatbuffer.
    """
    parsed = tflite.read(model)
    reason = not_runnable_here(parsed) or _shape_reason(parsed) or _size_reason(parsed)
    if reason:
        return Execution(state="not tried", reason=reason)
    inputs = [tuple(_neutral(tensor) for tensor in parsed.main_subgraph.input_tensors)]
    try:
        LocalBackend().run_samples(model, inputs)
    except ModelError as error:
        if "invoke" in str(error.got) and _runs_at_upper_ends(model, parsed):
            return Execution(state="runs")
        return failed_execution(model, parsed, inputs, error)
    except BackendError as error:
        return Execution(state="not tried", reason=str(error))
    return Execution(state="runs")


def _runs_at_upper_ends(model: bytes, parsed: Model) -> bool:
    """Check whether the model runs on the largest quantized values, and on ones for float inputs."""
    inputs = []
    for tensor in parsed.main_subgraph.input_tensors:
        values = _neutral(tensor)
        if tensor.is_quantized:
            values = np.full_like(values, np.iinfo(values.dtype).max)
        elif values.dtype.kind == "f":
            values = np.ones_like(values)
        inputs.append(values)
    try:
        LocalBackend().run_samples(model, [tuple(inputs)])
    except TfqError:
        return False
    return True


def audit_and_run(model: PathOrBytes, config: AuditConfig | None = None, *, execute: bool | None = None) -> AuditReport:
    """Check what a flatbuffer is quantized as and whether a target can run it, and run it once.

    Examples:
        >>> report = tfq.audit("model_int8.tflite", tfq.AuditConfig(require="full_int8"))
        >>> print(report.to_text())

    Args:
        model: The flatbuffer: its bytes or its path.
        config: The requirements; None means `AuditConfig()`, which requires nothing.
        execute: Whether to run it on neutral inputs in a child process; None means `config.execute`. A model that fails
            there fails the audit. A model that cannot be run on this machine, because it has a custom op or was
            compiled for another device, does not fail for that.

    Returns:
        The report. Its `execution` is None if the model was not run.

    Raises:
        FlatbufferError: The bytes are not a TFLite flatbuffer, or it is damaged.
        InputError: There is no such file, or it cannot be read.
    """
    config = config or AuditConfig()
    execute = config.execute if execute is None else execute
    content = content_of(model, "model")
    if execute:
        LocalBackend().prepare()  # starting it takes a third of a second, during which the audit runs
    report = auditing.audit_model(content, config)
    if not execute:
        return report
    with stage("running the model once"):
        return report.with_execution(try_to_run(content))


def not_runnable_here(parsed: Model) -> str | None:
    """Return why no interpreter on this machine can run the model, although the model may be correct; or None."""
    for graph in parsed.subgraphs:
        for op in graph.ops:
            if op.name == "CUSTOM" and op.custom_code not in CUSTOM_KERNELS:
                kind = "TensorFlow's Flex delegate" if op.custom_code.startswith("Flex") else "the application"
                kind = COMPILED_OPS.get(op.custom_code, kind)
                return f"{title(graph, op)} is the custom op {op.custom_code!r} for {kind}, which has no kernel here"
            if op.name.startswith("UNKNOWN_"):
                return f"{title(graph, op)} has an operator code that this version does not know"
    return LocalBackend().unavailable()


def failed_execution(model: bytes, parsed: Model, inputs: Sequence[Sequence[NDArray]], error: TfqError) -> Execution:
    """Return the record of a failed run, with the first op that makes it fail."""
    message = " ".join(str(error.got if isinstance(error.got, str) else error).split()).rstrip(".")
    message = f"the interpreter was killed by signal {message}" if message.startswith("SIG") else message
    message = re.sub(r"(?<=\w)\.?(?=Node number)", ". ", message)  # the runtime joins its messages without a space
    index = first_failing_op(model, parsed, [tuple(inputs[0])])
    graph = parsed.main_subgraph
    op = None if index is None else title(graph, graph.ops[index])
    return Execution(state="fails", reason=message, op_index=index, op=op)


def first_failing_op(model: bytes, parsed: Model, inputs: Sequence[tuple[NDArray, ...]]) -> int | None:
    """Return the smallest op number such that the model cut off after it fails; None if no prefix fails.

    The ops of subgraph 0 are bisected with about log2(number of ops) short runs in child processes.
    """
    low, high = 0, len(parsed.main_subgraph.ops) - 1  # the prefix that ends at `high` is known to fail
    if high < 0 or not _prefix_fails(model, high, inputs):
        return None
    while low < high:
        middle = (low + high) // 2
        if _prefix_fails(model, middle, inputs):
            high = middle
        else:
            low = middle + 1
    return low


def _prefix_fails(model: bytes, last: int, inputs: Sequence[tuple[NDArray, ...]]) -> bool:
    """Check whether the model cut off after op number `last` fails. False if it cannot be cut."""
    try:
        cut = tflite.cut_after(model, last)
    except Exception:  # the schema's code checks no bounds, so damaged files may raise any exception
        return False
    try:
        LocalBackend().run_samples(cut, inputs)
    except ModelError:
        return True
    except TfqError:
        return False
    return False


def encode(parsed: Model, samples: Sequence[Sample]) -> list[tuple[NDArray, ...]]:
    """Return the samples in the types of the model's inputs, quantized if an input is."""
    pairs = list(zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True))
    return [tuple(as_input(np.asarray(sample[name]), tensor) for name, tensor in pairs) for sample in samples]


def title(graph: Subgraph, op: Op) -> str:
    """Return a readable name of an op: "op #5 ADD (add_1)"."""
    return f"op #{op.index} {op.name} ({graph.layer_of(op)})"


def _neutral(tensor: Tensor) -> NDArray:
    shape = tuple(max(size, 1) for size in tensor.shape)
    if tensor.is_quantized:
        limits = np.iinfo(np.dtype(tensor.dtype))
        value = int(np.clip(tensor.zero_point[0], limits.min, limits.max))
        return np.full(shape, value, tensor.dtype)
    return np.zeros(shape, tensor.dtype)


def _size_reason(parsed: Model) -> str | None:
    """Return why the model needs more memory than it may have, before any is allocated."""
    try:
        memory_limit(parsed)
    except ModelError as error:
        return str(error)
    return None


def _shape_reason(parsed: Model) -> str | None:
    """Return why an input cannot be generated: an unknown dimension other than the batch, or an unknown dtype."""
    for name, tensor in zip(parsed.input_names, parsed.main_subgraph.input_tensors, strict=True):
        if any(size < 0 for size in tensor.shape_signature[1:]):
            return f"input {name!r} has the shape {list(tensor.shape_signature)}, in which a size is unknown"
        try:
            np.dtype(tensor.dtype)
        except TypeError:
            return f"input {name!r} is {tensor.dtype}, which NumPy does not have, so it cannot be filled"
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


def _agreement(check: OutputCheck) -> str:
    return "" if check.agreement is None else f", agreement {check.agreement:.1%}"


def _word(cures: bool) -> str:
    return "right" if cures else "still collapsed"


def _problem(problem: Problem) -> dict[str, Any]:
    values = asdict(problem)
    values["remedies"] = [{**asdict(item), "sqnr_db": finite(item.sqnr_db)} for item in problem.remedies]
    return values

# SPDX-License-Identifier: Apache-2.0
"""The protocol of backends: what they take, what they return, and what each kind declares about itself.

A backend runs a flatbuffer, or estimates what it costs, somewhere: on this machine, in an emulator, on a device, in a
model of a chip. To add one, register a `BackendKind` whose `open` returns an object with `assess`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.config import KERNELS
from tfq.errors import BackendError, InputError, did_you_mean

if TYPE_CHECKING:
    from tfq.backends.timing import OpEvent, TimedModel, Timing, TimingRequest

How = Literal["measured", "emulated", "estimated"]
NOT_REPORTED = "this backend does not report it"


@dataclass(frozen=True, kw_only=True, eq=False)
class InputStream:
    """Inputs that are never in memory all at once.

    num_examples: how many there are in all, >= 1.
    pieces: each call starts over and gives tuples of arrays, one a model input, (k, ...) each with one k >= 1 (which
        may differ from piece to piece), together `num_examples` of them in order. Dtypes and shapes stay the same.
    """

    num_examples: int
    pieces: Callable[[], Iterator[tuple[NDArray, ...]]]

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise InputError(
                f"a stream of {self.num_examples} examples: expected at least one",
                field="num_examples",
                got=self.num_examples,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRequest:
    """A request to run one model on n examples, and how to run and time it.

    Args:
        model: The content of a `.tflite` file.
        inputs: One array per input of subgraph 0, in its order: shape (n, ...) in the model's own dtype (quantized
            values for a quantized input), without the model's batch dimension. Axis 0 counts the examples; n >= 1 is
            the same for all. Or an `InputStream` of such arrays.
        num_threads: Threads of each interpreter, >= 1.
        kernels: "xnnpack", "builtin" (TFLite's optimized kernels without a delegate) or "reference".
        num_workers: Interpreters that share the examples; 0 means one per hardware thread. The outputs do not depend on
            it.
        timeout_secs: Seconds without any progress after which the run is aborted; 0 derives it from the model's work.
        warmup_runs: Untimed inferences before the timed ones, on the interpreter that is timed.
        num_runs: Timed inferences, on one interpreter while no other runs, after all outputs have been computed. They
            cycle over the first examples. 0 measures no latency.
        outputs: Whether the outputs of the examples are needed.
        count_instructions: Whether the number of instructions of one inference on the first example is needed.

    Raises:
        InputError: A value is out of range, or the arrays differ in length.
    """

    model: bytes
    inputs: tuple[NDArray, ...] | InputStream
    num_threads: int = 1
    kernels: str = "xnnpack"
    num_workers: int = 0
    timeout_secs: float = 0
    warmup_runs: int = 0
    num_runs: int = 0
    outputs: bool = True
    count_instructions: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("the model is empty: expected the bytes of a .tflite", field="model", got=b"")
        if not isinstance(self.inputs, InputStream):
            check_arrays(self.inputs)
        if self.kernels not in KERNELS:
            raise InputError(
                f"unknown kernels {self.kernels!r}: {did_you_mean(self.kernels, KERNELS)}",
                field="kernels",
                expected=KERNELS,
                got=self.kernels,
            )
        least = {"num_threads": 1, "num_workers": 0, "timeout_secs": 0, "warmup_runs": 0, "num_runs": 0}
        for name, lowest in least.items():
            if not getattr(self, name) >= lowest:
                raise InputError(
                    f"{name}={getattr(self, name)}: expected at least {lowest}",
                    field=name,
                    expected=lowest,
                    got=getattr(self, name),
                )

    @property
    def num_examples(self) -> int:
        """n, the length of every input."""
        return self.inputs.num_examples if isinstance(self.inputs, InputStream) else len(self.inputs[0])

    def pieces(self) -> Iterator[tuple[NDArray, ...]]:
        """Iterate over the examples, as `InputStream.pieces` does, whether they are in memory or a stream."""
        if isinstance(self.inputs, InputStream):
            yield from self.inputs.pieces()
        else:
            yield self.inputs


@dataclass(frozen=True, kw_only=True)
class InstructionCounts:
    """The instructions that one inference (one `invoke`, at the model's batch, on one thread) executes.

    Args:
        instructions: The median of `inferences` counted ones.
        lowest: The lowest of these counts.
        highest: The highest of these counts.
        inferences: How many inferences were counted.
        batch: Examples in each inference.
        counted_by: What counted, with its version.
    """

    instructions: int
    lowest: int
    highest: int
    inferences: int
    batch: int
    counted_by: str


@dataclass(frozen=True, kw_only=True, eq=False)
class BackendResult:
    """The answer to one `RunRequest`. Every figure is a value, or None with the reason next to it.

    Args:
        how: "measured" on the hardware itself, "emulated", or "estimated" by a model of it.
        outputs: One array for each output of subgraph 0, in its order: (n, ...) in the model's own dtype (quantized
            values, if it is quantized). None if the backend computes none, or was not asked to.
        outputs_reason: Why there are no outputs.
        latencies_ms: (num_runs,) milliseconds of each timed inference.
        latency_reason: Why nothing was timed.
        instructions: What one inference executes.
        instructions_reason: Why nothing was counted.
        memory_bytes: Bytes by what they are used for, such as {"arena": 23_456}.
        memory_reason: Why no memory is reported.
        figures: Other costs by name and unit, such as {"multiply_adds": 1_200_000}.
        total_ops: Ops of subgraph 0; None if the backend cannot tell, with a note that says so.
        delegated_ops: Those of them that an accelerated delegate (XNNPACK, a GPU, an NPU) executes.
        machine: Architecture, CPU and versions of what ran; of an emulator or estimator its name, version and target.
        notes: What was done that was not asked for, or could not be done.

    Raises:
        InputError: `how` is unknown, or there is a value as well as a reason why it is missing.
    """

    how: How
    outputs: tuple[NDArray, ...] | None = None
    outputs_reason: str | None = None
    latencies_ms: NDArray[np.float64] | None = None
    latency_reason: str | None = None
    instructions: InstructionCounts | None = None
    instructions_reason: str | None = None
    memory_bytes: Mapping[str, int] | None = None
    memory_reason: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    total_ops: int | None = None
    delegated_ops: int | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_how(self.how)
        for name, reason in _REASONS.items():
            missing = getattr(self, name) is None
            if missing and getattr(self, reason) is None:
                object.__setattr__(self, reason, NOT_REPORTED)
            elif not missing and getattr(self, reason) is not None:
                raise InputError(f"a backend's result has both {name} and {reason}: expected one of them", field=reason)

    def computed_outputs(self) -> tuple[NDArray, ...]:
        """Return the outputs.

        Raises:
            BackendError: There are none.
        """
        if self.outputs is None:
            raise BackendError(f"no outputs were computed: {self.outputs_reason}")
        return self.outputs


_REASONS = {
    "outputs": "outputs_reason",
    "latencies_ms": "latency_reason",
    "instructions": "instructions_reason",
    "memory_bytes": "memory_reason",
}


@runtime_checkable
class Backend(Protocol):
    """A place that runs a flatbuffer or estimates its cost; an instance of one `BackendKind`.

    Subclass it and write `assess`; the other methods have defaults.

    Attributes:
        kind: The facts that all backends of this kind share.
        address: The part after the colon in `kind:address`; "" if there is none.
    """

    kind: "BackendKind"
    address: str = ""

    @property
    def name(self) -> str:
        """What users write: `kind` or `kind:address`."""
        return f"{self.kind.name}:{self.address}" if self.address else self.kind.name

    def unavailable(self) -> str | None:
        """Return why this backend cannot be used here and what to do about it, or None if it can."""
        return self.kind.unavailable()

    def prepare(self) -> None:
        """Start early what the first `assess` would wait for. Never fails: `assess` reports what is wrong."""

    def fingerprint(self) -> list[object]:
        """Return, as JSON values, what results depend on besides the request and this machine: installed versions."""
        return []

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the model of the request, or estimate its cost.

        Raises:
            InputError: The model does not take these inputs.
            ModelError: The model fails, crashes or never ends.
            BackendError: Anything else went wrong.
        """
        ...


@runtime_checkable
class TimingBackend(Protocol):
    """A backend whose kind has `times`: it compares latencies of several models in one process."""

    def time_models(self, request: "TimingRequest") -> "tuple[list[Timing], dict[str, Any]]":
        """Return the timing of each of `request.entries`, and the machine that it was taken on."""
        ...

    def profile_ops(self, request: "TimingRequest", model: "TimedModel", kernels: str) -> "list[OpEvent] | str":
        """Return the time of each op of `model`, or the reason why there is none."""
        ...


def _available() -> str | None:
    return None


@registry.extension_point("backend")
@dataclass(frozen=True, kw_only=True)
class BackendKind:
    """A kind of backend: its name, what it can do, and how to open one.

    Higher packages read these facts and never ask which backend it is.

    Args:
        name: What users write before the colon in `evaluation.backend`.
        help: What it runs or estimates, for `--help` and the documentation.
        open: (address) -> backend. Cheap: it neither connects nor starts anything. It raises InputError on an address
            that cannot be one.
        how: "measured" (on the hardware itself), "emulated" or "estimated" (by a model of the hardware).
        computes_outputs: It runs the model, so accuracy and agreement can be evaluated. Estimators do not.
        times: Its latencies are those of the hardware; `open` returns a `TimingBackend`. Emulators never have this.
        counts_instructions: It answers `RunRequest.count_instructions`.
        reports_memory: Its results have `memory_bytes`.
        address: What stands after the colon, such as "[user@]host[:port]"; "" if nothing may.
        addresses: All that it may be, if that is a fixed list.
        needs_address: Whether there must be an address; always true of a fixed list.
        unavailable: Cheap check: () -> why no backend of this kind can be used here and what to do, or None.
    """

    name: str
    help: str
    open: Callable[[str], Backend]
    how: How = "measured"
    computes_outputs: bool = True
    times: bool = False
    counts_instructions: bool = False
    reports_memory: bool = False
    address: str = ""
    addresses: tuple[str, ...] = ()
    needs_address: bool = False
    unavailable: Callable[[], str | None] = _available

    def __post_init__(self) -> None:
        _check_how(self.how)
        if ":" in self.name:
            raise InputError(f"a backend is named {self.name!r}: a colon begins its address", field="name")
        if self.addresses and not self.address:
            raise InputError(f"backend {self.name}: say what its addresses are, as in address='CPU'", field="address")
        if self.times and self.how != "measured":
            raise InputError(f"backend {self.name}: {self.how} latencies say nothing about a device", field="times")

    @property
    def columns(self) -> dict[str, str]:
        """Return the further cells of its row in the documentation."""
        facts = {
            "outputs": self.computes_outputs,
            "latency": self.times,
            "instructions": self.counts_instructions,
            "memory": self.reports_memory,
        }
        return {
            "spelling": ", ".join(f"`{choice}`" for choice in self.choices()),
            "figures are": self.how,
            "reports": ", ".join(name for name, reported in facts.items() if reported) or "other costs",
        }

    @property
    def emulated(self) -> bool:
        """Whether it emulates: its outputs and counts are the device's, its time is not."""
        return self.how == "emulated"

    def choices(self) -> tuple[str, ...]:
        """Return what users may write, free addresses as they are described: ("qemu:cortex-a53", ...)."""
        if self.addresses:
            return tuple(f"{self.name}:{address}" for address in self.addresses)
        if not self.address:
            return (self.name,)
        return (f"{self.name}:{self.address}" if self.needs_address else f"{self.name}[:{self.address}]",)

    def takes(self, address: str) -> bool:
        """Check whether `address`, empty for none, may follow the name."""
        if self.addresses:
            return address in self.addresses
        return not self.needs_address if not address else bool(self.address)

    def label(self, address: str) -> str:
        """Return the short name of a backend in tables: the address where there is a fixed list of them."""
        if self.addresses:
            return address
        return f"{self.name}:{address}" if address else self.name


def backend_choices() -> tuple[str, ...]:
    """Return every name that a backend may have, free addresses as they are described."""
    return tuple(choice for kind in registry.entries(BackendKind).values() for choice in kind.choices())


def find_kind(name: str) -> BackendKind | None:
    """Return the kind of the backend called `name`, or None if none of that name is registered."""
    return registry.entries(BackendKind).get(name.partition(":")[0])


def kind_of(name: str, *, field: str = "evaluation.backend") -> BackendKind:
    """Return the kind of the backend called `name`, `kind` or `kind:address`.

    Raises:
        InputError: There is none, or it takes no such address; about the config path `field`.
    """
    kind = find_kind(name)
    _, colon, address = name.partition(":")
    if kind is None or not kind.takes(address) or (colon and not address):
        choices = backend_choices()
        raise InputError(
            f"unknown backend {name!r}: {did_you_mean(name, choices)}", field=field, expected=choices, got=name
        )
    return kind


def make_backend(name: str, *, field: str = "evaluation.backend") -> Backend:
    """Return the backend called `name`, `kind` or `kind:address`. It may still be unavailable on this machine.

    Raises:
        InputError: There is none; about the config path `field`.
    """
    return kind_of(name, field=field).open(name.partition(":")[2])


def timing_backend(backend: Backend) -> TimingBackend:
    """Return `backend` as one that times models.

    Raises:
        BackendError: It does not.
    """
    if not backend.kind.times:
        able = [kind.name for kind in registry.entries(BackendKind).values() if kind.times]
        raise BackendError(
            f"{backend.name} does not time models: use benchmark.backend={' or '.join(able)}",
            field="benchmark.backend",
            expected=tuple(able),
            got=backend.name,
        )
    return cast(TimingBackend, backend)


def _check_how(how: str) -> None:
    known = ("measured", "emulated", "estimated")
    if how not in known:
        raise InputError(f"how is {how!r}: {did_you_mean(str(how), known)}", field="how", expected=known, got=how)


def check_arrays(arrays: tuple[NDArray, ...]) -> None:
    """Raises InputError unless `arrays` are numbers, (n, ...) each with one n >= 1."""
    if not arrays:
        raise InputError("no input arrays: expected one for each input of the model", field="inputs", got=0)
    for index, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            message = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(
                f"input {index} is a {message}: expected a NumPy array of numbers",
                field=f"inputs[{index}]",
                got=message,
            )
        if not array.ndim or not array.size:
            raise InputError(
                f"input {index} has shape {array.shape}: expected at least one example along the first axis",
                field=f"inputs[{index}]",
                got=array.shape,
            )
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise InputError(f"the inputs hold {lengths} examples: expected as many in each", field="inputs", got=lengths)

# SPDX-License-Identifier: Apache-2.0
"""Define the protocol of backends: requests, results, and the facts that each kind declares.

A backend runs a flatbuffer or estimates its cost: on this machine, in an emulator, on a device, or in a model of a
chip. To add one, register a `BackendKind` whose `open` returns an object with `assess`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """Inputs that do not have to fit into memory.

    Args:
        num_examples: Total number of examples, >= 1.
        pieces: Returns a new iterator over tuples of arrays, one array per model input. Each array has shape (k, ...)
            with the same k >= 1 within a tuple. k may change from tuple to tuple, dtypes and other dimensions may not.
            Together the tuples hold `num_examples` examples in order.

    Raises:
        InputError: `num_examples` is less than 1.
    """

    num_examples: int
    pieces: Callable[[], Iterator[tuple[NDArray, ...]]]

    def __post_init__(self) -> None:
        """Check the number of examples."""
        if self.num_examples < 1:
            raise InputError(
                f"the stream has {self.num_examples} examples, expected at least one",
                field="num_examples",
                got=self.num_examples,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRequest:
    """One model, n examples, and how to run and time it.

    Args:
        model: The bytes of a `.tflite`.
        inputs: One array for each input of subgraph 0, in its order, or an `InputStream` of such arrays. Each array has
            shape (n, ...) with the same n >= 1: the examples are along axis 0, in place of the model's batch dimension.
            If the inputs share no batch dimension, each inference has one example; an example of an input that does not
            start with a dimension of 1 is the whole input. The dtype is the model's own (quantized values, if the input
            is quantized).
        num_threads: Threads of each interpreter, >= 1.
        kernels: "xnnpack"; "builtin" for TFLite's kernels without a delegate; or "reference" for its reference kernels.
        num_workers: Number of interpreters that share the examples; 0 chooses one for each `num_threads` cores. The
            outputs do not depend on it.
        timeout_secs: Longest time without progress before the run is stopped; 0 derives it from the model's size.
        warmup_runs: Untimed inferences before the timed ones.
        num_runs: Timed inferences; 0 measures no latency. They run after all outputs are computed, on one interpreter
            with nothing else running, and cycle over the first examples.
        outputs: Whether the outputs of the examples are needed.
        count_instructions: Whether to count the instructions of one inference of the first example.
        measure_memory: Whether to measure the memory of the process that runs the model, which is also measured if
            `num_runs` is not 0: XNNPACK's packed weights need another preparation of the model.

    Raises:
        InputError: A value is invalid for every model.
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
    measure_memory: bool = False

    def __post_init__(self) -> None:
        """Check everything that does not depend on the model."""
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
        """Number of examples, n."""
        return self.inputs.num_examples if isinstance(self.inputs, InputStream) else len(self.inputs[0])

    def pieces(self) -> Iterator[tuple[NDArray, ...]]:
        """Iterate over the examples as `InputStream.pieces` does, for arrays as well as streams."""
        if isinstance(self.inputs, InputStream):
            yield from self.inputs.pieces()
        else:
            yield self.inputs


@dataclass(frozen=True, kw_only=True)
class InstructionCounts:
    """Instructions executed by one inference: one `invoke` of the model's batch size on one thread.

    Args:
        instructions: Median of the counted inferences.
        lowest: Minimum of the counted inferences.
        highest: Maximum of the counted inferences.
        inferences: Number of counted inferences.
        batch: Examples in each inference.
        counted_by: Name and version of the counter.
    """

    instructions: int
    lowest: int
    highest: int
    inferences: int
    batch: int
    counted_by: str


@dataclass(frozen=True, kw_only=True, eq=False)
class BackendResult:
    """Result of one `RunRequest`. A figure is either a value, or None with a reason.

    Args:
        how: "measured" on the hardware itself, "emulated", or "estimated" by a model of it.
        outputs: One array for each output of subgraph 0, in its order, with shape (n, ...) and the model's own dtype
            (quantized values, if the output is quantized). None if the backend computes no outputs or was not asked to.
        outputs_reason: Why there are no outputs.
        latencies_ms: Milliseconds of each timed inference, shape (num_runs,).
        latency_reason: Why no latency was measured.
        instructions: Instructions of one inference.
        instructions_reason: Why no instructions were counted.
        memory_bytes: Bytes by purpose, such as {"arena": 23_456}. `evaluation.require` bounds "arena" (a tensor arena,
            or "arena_minimum" if that is larger), "sram", and the sum of the purposes that end in "flash". An item of a
            total has the total's name, a dot and its own name ("arena.head").
        memory_reason: Why no memory is reported.
        figures: Other costs by name, such as {"multiply_adds": 1_200_000}.
        op_figures: Costs of single ops: title of the op ("op #0 CONV_2D (stem)") -> {name: value}.
        total_ops: Number of ops of subgraph 0; None if the backend cannot determine it (a note says why).
        delegated_ops: How many of them run on an accelerated delegate (XNNPACK, a GPU, an NPU).
        unaccelerated: Ops that the accelerator leaves to the CPU: title of the op -> the reason in the runtime's or
            compiler's words, "" if it gives none. Empty if the backend has no accelerator or does not list them.
        machine: Architecture, CPU and versions of what ran. For an emulator or estimator: its name, version and target.
        notes: Deviations from the request, and parts of it that could not be done.
        caveats: What the figures of this backend leave out or assume, for every model; shown next to them.

    Raises:
        InputError: `how` is unknown, or a figure has both a value and a reason why it is missing.
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
    op_figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    total_ops: int | None = None
    delegated_ops: int | None = None
    unaccelerated: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the figures; a missing one without a reason gets a general reason."""
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
            BackendError: No outputs were computed.
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
        """Name in configs and flags: `kind` or `kind:address`."""
        return f"{self.kind.name}:{self.address}" if self.address else self.kind.name

    def unavailable(self) -> str | None:
        """Return why this backend cannot be used here and what to do about it, or None if it can."""
        return self.kind.unavailable()

    def prepare(self) -> None:
        """Start slow preparations in the background. Never fails: `assess` reports problems."""
        return

    def fingerprint(self) -> list[object]:
        """Return JSON values that identify what results depend on, besides the request and this machine.

        Installed versions, for example. A stored result is reused only if they are equal.
        """
        return []

    def assess(self, request: RunRequest) -> BackendResult:
        """Run the model of the request, or estimate its cost.

        Raises:
            InputError: The model does not take these inputs.
            ModelError: The model fails, crashes or does not finish.
            BackendError: Anything else went wrong.
        """
        ...


@runtime_checkable
class TimingBackend(Protocol):
    """A backend whose kind has `times`: it compares the latencies of several models in one process."""

    def time_models(self, request: "TimingRequest") -> "tuple[list[Timing], dict[str, Any]]":
        """Return the timing of each of `request.entries`, and the machine that they were measured on."""
        ...

    def profile_ops(self, request: "TimingRequest", model: "TimedModel", kernels: str) -> "list[OpEvent] | str":
        """Return the time of each op of `model`, or the reason why it could not be measured."""
        ...


def _available() -> str | None:
    return None


@registry.extension_point("backend")
@dataclass(frozen=True, kw_only=True)
class BackendKind:
    """A kind of backend: its name, its capabilities, and how to open one.

    Other packages decide by these capabilities, never by the backend's name.

    Args:
        name: The part of `evaluation.backend` before the colon.
        help: What it runs or estimates, for `--help` and the documentation.
        open: (address) -> backend. It must be cheap: it does not connect or start anything. Raises InputError if the
            address is malformed.
        how: "measured" (on the hardware itself), "emulated" or "estimated" (by a model of the hardware).
        computes_outputs: Whether it runs the model, so that accuracy and agreement can be evaluated. Estimators do not.
        times: Whether its latencies are those of the hardware; then `open` returns a `TimingBackend`. Always False for
            emulators.
        counts_instructions: Whether it supports `RunRequest.count_instructions`.
        reports_memory: Whether its results have `memory_bytes`.
        has_cpu_kernels: Whether `RunRequest.kernels` chooses its kernels, because it runs LiteRT on a CPU. Others
            ignore that setting, and their records do not mention XNNPACK.
        in_default_list: Whether it stands for its family in a list of all backends. Members of a large family, whose
            results differ little, set this to False; users name them.
        address: Description of the part after the colon, such as "[user@]host[:port]"; "" if there is none.
        addresses: All valid addresses, if they are a fixed list.
        needs_address: Whether an address is required; ignored if `addresses` is a fixed list, which requires one.
        private_address: Whether an address names a machine, a user or a serial number. Records leave it out then.
        unavailable: () -> the reason why no backend of this kind can be used here and what to do, or None. Must be
            cheap.
    """

    name: str
    help: str
    open: Callable[[str], Backend]
    how: How = "measured"
    computes_outputs: bool = True
    times: bool = False
    counts_instructions: bool = False
    reports_memory: bool = False
    has_cpu_kernels: bool = True
    in_default_list: bool = True
    address: str = ""
    addresses: tuple[str, ...] = ()
    needs_address: bool = False
    private_address: bool = False
    unavailable: Callable[[], str | None] = _available

    def __post_init__(self) -> None:
        """Check that the declared facts are consistent."""
        _check_how(self.how)
        if ":" in self.name:
            raise InputError(
                f"the backend name {self.name!r} contains a colon, which separates name and address: remove it",
                field="name",
            )
        if self.addresses and not self.address:
            raise InputError(
                f"backend {self.name} has addresses but does not describe them: set `address`, as in address='CPU'",
                field="address",
            )
        if self.times and self.how != "measured":
            raise InputError(
                f"backend {self.name} has times=True and how={self.how!r}: only measured latencies are reported",
                field="times",
            )

    @property
    def columns(self) -> dict[str, str]:
        """Additional cells of its row in the documentation."""
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
        """Whether it is an emulator: its outputs and counts are those of the device, its latency is not."""
        return self.how == "emulated"

    def choices(self) -> tuple[str, ...]:
        """Return the valid names, such as ("qemu:cortex-a53", ...), with free addresses as placeholders."""
        if self.addresses:
            return tuple(f"{self.name}:{address}" for address in self.addresses)
        if not self.address:
            return (self.name,)
        return (f"{self.name}:{self.address}" if self.needs_address else f"{self.name}[:{self.address}]",)

    def accepts_address(self, address: str) -> bool:
        """Check whether `address` (empty for none) is valid after the name."""
        if self.addresses:
            return address in self.addresses
        return not self.needs_address if not address else bool(self.address)

    def label(self, address: str) -> str:
        """Return the short name for tables: only the address, if addresses are a fixed list."""
        if self.addresses:
            return address
        return f"{self.name}:{address}" if address else self.name


def backend_choices() -> tuple[str, ...]:
    """Return all valid backend names, with free addresses as placeholders."""
    return tuple(choice for kind in registry.entries(BackendKind).values() for choice in kind.choices())


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Return {name of a backend: its name in a record}.

    A private address is left out, or replaced by a number if several backends differ only in it: "ssh", "ssh:2".
    """
    results: dict[str, str] = {}
    for name in dict.fromkeys(names):
        public = registry.public_name("backend", name)
        count = sum(other == public or other.startswith(f"{public}:") for other in results.values())
        results[name] = f"{public}:{count + 1}" if count and public != name else public
    return results


def find_kind(name: str) -> BackendKind | None:
    """Return the kind of the backend called `name` (`kind` or `kind:address`), or None if it is not registered."""
    return registry.entries(BackendKind).get(name.partition(":")[0])


def kind_of(name: str, *, field: str = "evaluation.backend") -> BackendKind:
    """Return the kind of the backend called `name` (`kind` or `kind:address`).

    Args:
        name: The backend's name.
        field: The config path that the error refers to.

    Raises:
        InputError: The kind is unknown, or the address is not valid for it.
    """
    kind = find_kind(name)
    _, colon, address = name.partition(":")
    if kind is None or not kind.accepts_address(address) or (colon and not address):
        choices = backend_choices()
        raise InputError(
            f"unknown backend {name!r}: {did_you_mean(name, choices)}", field=field, expected=choices, got=name
        )
    return kind


def make_backend(name: str, *, field: str = "evaluation.backend") -> Backend:
    """Return the backend called `name` (`kind` or `kind:address`). It may still be unavailable on this machine.

    Args:
        name: The backend's name.
        field: The config path that the error refers to.

    Raises:
        InputError: The kind is unknown, or the address is not valid for it.
    """
    return kind_of(name, field=field).open(name.partition(":")[2])


def timing_backend(backend: Backend) -> TimingBackend:
    """Return `backend` as a TimingBackend.

    Raises:
        BackendError: The backend cannot measure latencies.
    """
    if not backend.kind.times:
        choices = [kind.name for kind in registry.entries(BackendKind).values() if kind.times]
        raise BackendError(
            f"{backend.name} cannot measure latencies: use benchmark.backend={' or '.join(choices)}",
            field="benchmark.backend",
            expected=tuple(choices),
            got=backend.name,
        )
    return cast(TimingBackend, backend)


def _check_how(how: str) -> None:
    known = ("measured", "emulated", "estimated")
    if how not in known:
        raise InputError(f"how={how!r}: {did_you_mean(str(how), known)}", field="how", expected=known, got=how)


def check_arrays(arrays: tuple[NDArray, ...]) -> None:
    """Raise InputError unless `arrays` are numeric arrays of shape (n, ...) with the same n >= 1."""
    if not arrays:
        raise InputError("there are no input arrays, expected one for each model input", field="inputs", got=0)
    for index, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            kind = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(
                f"input {index} is of type {kind}, expected a NumPy array of numbers",
                field=f"inputs[{index}]",
                got=kind,
            )
        if not array.ndim or not array.size:
            raise InputError(
                f"input {index} has shape {array.shape}, expected at least one example along the first axis",
                field=f"inputs[{index}]",
                got=array.shape,
            )
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise InputError(
            f"the inputs have {lengths} examples, expected the same number in each", field="inputs", got=lengths
        )

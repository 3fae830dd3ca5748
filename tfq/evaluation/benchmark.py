# SPDX-License-Identifier: Apache-2.0
"""Benchmark models side by side on one backend."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import content_of
from tfq.backends import Backend, RunRequest, make_backend, place_of, public_names, timing_backend
from tfq.backends.timing import TimedModel, Timing, TimingRequest
from tfq.config import BenchmarkConfig
from tfq.data import Split, batch_size_of
from tfq.errors import BackendError, InputError, warn
from tfq.evaluation.benchmark_record import BenchmarkRecord, ModelTimes, TimeRatio
from tfq.evaluation.costs import Costs
from tfq.evaluation.inputs import prepare_inputs
from tfq.evaluation.instructions import count_instructions
from tfq.evaluation.op_costs import OpCost, op_costs
from tfq.evaluation.paired import latency_statistics, paired_ratio
from tfq.evaluation.throughput import measure_throughput
from tfq.progress import stage
from tfq.tflite import Model, Tensor
from tfq.tflite.workload import workload
from tfq.typing import PathOrBytes

NUM_INPUTS = 16


@dataclass(frozen=True, kw_only=True)
class InputSource:
    """The inputs of a model: a description, and why the user's examples were not used (None if they were)."""

    what: str
    reason: str | None = None


def timed_model(
    name: str, content: bytes, model: Model, data: Split | None, seed: int
) -> tuple[TimedModel, InputSource]:
    """Return a model with the inputs that its runs alternate between, and their description.

    The inputs are the examples in `data` if they fit the model, else random. Random quantized inputs cover all values
    of their type, floats are between -1 and 1, and integers without a scale are 0 or 1, because they may be indices.
    The same seed gives the same inputs.

    Raises:
        InputError: An input has a type that NumPy does not have.
    """
    tensors = model.main_subgraph.input_tensors
    arrays, sources = None, InputSource(what=f"random, seed {seed}")
    if data is not None:
        try:
            arrays = tuple(
                _in_batches(array, tensor)
                for array, tensor in zip(prepare_inputs(model, data).arrays, tensors, strict=True)
            )
            sources = InputSource(what=f"{data.source} ({data.name}), {data.num_examples} examples")
        except InputError as error:
            sources = dataclasses.replace(sources, reason=str(error))
    if arrays is None:
        generator = np.random.default_rng(seed)
        arrays = tuple(_random(tensor, generator) for tensor in tensors)
    indices = tuple(tensor.index for tensor in tensors)
    return TimedModel(name=name, model=content, inputs=arrays, tensors=indices), sources


def fits(model: Model, data: Split) -> bool:
    """Check whether the examples fit the model's inputs."""
    try:
        prepare_inputs(model, data.take(1))
    except InputError:
        return False
    return True


def _in_batches(examples: NDArray, tensor: Tensor) -> NDArray:
    """Return examples (n, ...) as inputs (k, batch, ...); the first ones are repeated to fill the last batch."""
    if examples.ndim - 1 == len(tensor.shape):  # the inputs share no batch dimension: an example is a whole input
        return examples
    batch = tensor.shape[0]
    count = -(-len(examples) // batch)
    chosen = np.resize(np.arange(len(examples)), count * batch)
    return examples[chosen].reshape(count, batch, *examples.shape[1:])


def _random(tensor: Tensor, generator: np.random.Generator) -> NDArray:
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError as error:
        raise InputError(
            f"input {tensor.name!r} is {tensor.dtype}, which NumPy does not have, so it cannot be filled",
            field=tensor.name,
            got=tensor.dtype,
            limit="unknown-dtypes",
        ) from error
    if dtype.kind not in "fiub":
        raise InputError(f"input {tensor.name!r} is {dtype}, expected real numbers", field=tensor.name, got=str(dtype))
    count = max(1, min(NUM_INPUTS, _MAX_INPUT_BYTES // max(1, math.prod(tensor.shape) * dtype.itemsize)))
    if dtype.kind in "iu" and tensor.is_quantized:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, (count, *tensor.shape), dtype=dtype, endpoint=True)
    result = np.empty((count, *tensor.shape), dtype)
    # One at a time, because the generator's numbers need up to eight times the memory.
    for place in range(count):
        if dtype.kind == "f":
            result[place] = generator.uniform(-1, 1, tensor.shape)
        else:
            result[place] = generator.integers(0, 2, tensor.shape, np.uint8)
    return result


# The random inputs are fewer than NUM_INPUTS if they would need more memory.
_MAX_INPUT_BYTES = 64 << 20
NOT_TIMED = "not measured: the time that an emulator needs does not predict the time on a device"
OPS_BY = (
    "LiteRT's profiler, in separate inferences through CompiledModel. XNNPACK reports its own kernels, rounded down to "
    "whole microseconds"
)
OPS_OFF = "not requested (benchmark.ops=False)"


def benchmark_models(
    models: Mapping[str, PathOrBytes],
    config: BenchmarkConfig | None = None,
    *,
    data: Split | None = None,
    seed: int = 0,
) -> BenchmarkRecord:
    """Measure how long one inference of each model takes, and the ratios between the models.

    All models run alternately in one child process, in short blocks of random order. A backend that does not measure
    time reports what it has instead: counts of instructions, or memory and estimated cycles.

    Examples:
        >>> record = tfq.benchmark({"float32": "model_float32.tflite", "int8": "model_int8.tflite"})
        >>> print(record.to_text())

    Args:
        models: Name -> flatbuffer (its bytes or its path). Ratios are to the first one.
        config: Backend, kernels and number of runs; None means `BenchmarkConfig()`. `against` is ignored here: the
            command adds those files to `models`.
        data: Examples to run the models on, where they fit. The models run on random numbers otherwise, and the record
            says so.
        seed: Seed of the random inputs and of the order of the blocks.

    Returns:
        The latency or the instruction counts of each model with each of `config.kernels`, and the ratios.

    Raises:
        InputError: There is no model, a model is damaged, or the backend is unknown.
        ModelError: A model fails or crashes the interpreter.
        BackendError: The backend cannot run.
    """
    config = config or BenchmarkConfig()
    if not models:
        raise InputError("models is empty: expected at least one model to benchmark", field="models", got=0)
    contents = {name: content_of(model, f"models[{name!r}]") for name, model in models.items()}
    backend = make_backend(config.backend, field="benchmark.backend")
    if not backend.kind.times and (config.batch_sizes or config.thread_counts):
        raise InputError(
            f"benchmark.batch_sizes and benchmark.thread_counts need a backend that measures time, not {backend.name}: "
            "leave them out, or use another backend",
            field="benchmark.batch_sizes" if config.batch_sizes else "benchmark.thread_counts",
            got=backend.name,
        )
    reason = backend.unavailable()
    if reason:
        raise BackendError(f"{backend.name}: {reason}")
    parsed = {name: tflite.read(bytes(content)) for name, content in contents.items()}
    for name, model in parsed.items():
        if note := tflite.main_subgraph_note(model, "timed"):
            warn(f"{name}: {note}")
    if not backend.kind.times and backend.kind.counts_instructions:
        return _counted(contents, parsed, config, data)
    if not backend.kind.times and (backend.kind.reports_memory or not backend.kind.computes_outputs):
        return _costs(contents, parsed, config, data, seed, backend)
    timer = timing_backend(backend)
    sources = {name: timed_model(name, contents[name], model, data, seed) for name, model in parsed.items()}
    request = TimingRequest(
        models=tuple(model for model, _ in sources.values()),
        kernels=tuple(dict.fromkeys(config.kernels)),
        num_threads=config.num_threads,
        warmup_runs=config.warmup_runs,
        num_runs=config.num_runs,
        min_secs=config.min_secs,
        seed=seed,
    )
    count = len(request.entries)
    timed = f"{count} combination{'' if count == 1 else 's'} of model and kernels"
    with stage(f"timing {timed} on {place_of(config.backend)}"):
        timings, machine = timer.time_models(request)
    with stage("timing single ops" if config.ops else "comparing times"):
        times = [
            _times(parsed[model.name], model, kernels, timing, sources[model.name][1], request, config, backend)
            for (model, kernels), timing in zip(request.entries, timings, strict=True)
        ]
    with stage("measuring throughput"):
        throughput = measure_throughput(request.models, parsed, config, timer, seed)
    return BenchmarkRecord(
        backend=public_names([config.backend])[config.backend],
        num_threads=config.num_threads,
        models=tuple(times),
        ratios=_ratios(request, timings),
        throughput=throughput,
        machine=machine,
    )


def model_names(paths: list[str]) -> list[str]:
    """Return a name per file, in order: its stem, or its path if stems are equal. Repeated paths are numbered."""
    stems = [Path(path).stem for path in paths]
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        same_stem = {other for other, other_stem in zip(paths, stems, strict=True) if other_stem == stem}
        name = stem if len(same_stem) == 1 else path
        repeated = sum(1 for other in names if other == name or other.startswith(f"{name} #"))
        names.append(f"{name} #{repeated + 1}" if repeated else name)
    return names


def _times(
    parsed: Model,
    model: TimedModel,
    kernels: str,
    timing: Timing,
    sources: InputSource,
    request: TimingRequest,
    config: BenchmarkConfig,
    backend: Backend,
) -> ModelTimes:
    ops: list[OpCost] | str = OPS_OFF
    if config.ops:
        events = timing_backend(backend).profile_ops(request, model, kernels)
        ops = events if isinstance(events, str) else op_costs(parsed, events)
    overhead = timing.blocks_ms[:, 1] - timing.blocks_ms[:, 0]
    return ModelTimes(
        name=model.name,
        kernels=kernels,
        model_bytes=len(model.model),
        inputs=sources.what,
        inputs_reason=sources.reason,
        initialization_ms=timing.initialization_ms,
        first_ms=timing.first_ms,
        num_runs=len(timing.latencies_ms),
        **latency_statistics(timing.latencies_ms),  # type: ignore[arg-type]
        overhead_ms=float(overhead.mean()),
        total_ops=timing.total_ops,
        delegated_ops=timing.delegated_ops,
        ops=None if isinstance(ops, str) else tuple(ops),
        ops_by=None if isinstance(ops, str) else OPS_BY,
        ops_reason=ops if isinstance(ops, str) else None,
        costs=_memory(parsed, model, kernels, config, backend) if backend.kind.reports_memory else None,
        workload=workload(parsed),
    )


def _memory(parsed: Model, model: TimedModel, kernels: str, config: BenchmarkConfig, backend: Backend) -> Costs:
    """Return the memory of one inference in a separate process, because other models add to that of a shared one."""
    request = RunRequest(
        model=model.model,
        inputs=_first_inference(parsed, model),
        num_threads=config.num_threads,
        kernels=kernels,
        outputs=False,
        measure_memory=True,
    )
    return Costs.of(backend.assess(request))


def _first_inference(parsed: Model, model: TimedModel) -> tuple[NDArray, ...]:
    """Return the examples of the first inference, with the examples along axis 0."""
    has_batch = batch_size_of(parsed) is not None
    return tuple(array[0] if has_batch else array[:1] for array in model.inputs)


def _ratios(request: TimingRequest, timings: list[Timing]) -> tuple[TimeRatio, ...]:
    """Return the ratios of the other models to the first on the same kernels, and of the first to itself on others."""
    entries = [(model.name, kernels) for model, kernels in request.entries]
    blocks = {entry: timing.blocks_ms[:, 0] for entry, timing in zip(entries, timings, strict=True)}
    first, kernels = entries[0]
    results = []
    for name, entry_kernels in entries:
        base = (first, entry_kernels) if name != first else (first, kernels)
        if (name, entry_kernels) == base:
            continue
        ratio = paired_ratio(blocks[name, entry_kernels], blocks[base])
        results.append(
            TimeRatio(model=base[0], model_kernels=base[1], against=name, kernels=entry_kernels, **vars(ratio))
        )
    return tuple(results)


def _counted(
    models: Mapping[str, bytes], parsed: Mapping[str, Model], config: BenchmarkConfig, data: Split | None
) -> BenchmarkRecord:
    """Return a record of the instructions per inference of each model, counted by the emulator."""
    times = []
    for name, content in models.items():
        fitting_data = data if data is not None and fits(parsed[name], data) else None
        for kernels in config.kernels:
            counted = count_instructions(bytes(content), config.backend, fitting_data, kernels=kernels)
            times.append(
                ModelTimes(
                    name=name,
                    kernels=kernels,
                    model_bytes=len(content),
                    inputs=counted.inputs,
                    time_reason=NOT_TIMED,
                    total_ops=counted.total_ops,
                    delegated_ops=counted.delegated_ops,
                    ops_reason=NOT_TIMED,
                    instructions={config.backend: counted.to_dict()},
                    workload=workload(parsed[name]),
                )
            )
    return BenchmarkRecord(backend=config.backend, num_threads=1, models=tuple(times), ratios=())


def _costs(
    models: Mapping[str, bytes],
    parsed: Mapping[str, Model],
    config: BenchmarkConfig,
    data: Split | None,
    seed: int,
    backend: Backend,
) -> BenchmarkRecord:
    """Return a record of what each model costs on a backend that reports memory or estimates instead of times."""
    times, machine = [], {}
    for name, content in models.items():
        model, source = timed_model(name, bytes(content), parsed[name], data, seed)
        with stage(f"assessing {name} on {place_of(config.backend)}"):
            first = _first_inference(parsed[name], model)
            result = backend.assess(RunRequest(model=bytes(content), inputs=first, outputs=False))
        for note in result.notes:
            warn(f"{name}: {note}")
        times.append(
            ModelTimes(
                name=name,
                kernels="",
                model_bytes=len(content),
                inputs=source.what,
                inputs_reason=source.reason,
                time_reason=result.latency_reason,
                total_ops=result.total_ops,
                delegated_ops=result.delegated_ops,
                ops_reason=result.latency_reason,
                costs=Costs.of(result),
                workload=workload(parsed[name]),
            )
        )
        machine = dict(result.machine)
    return BenchmarkRecord(
        backend=config.backend, num_threads=config.num_threads, models=tuple(times), ratios=(), machine=machine
    )

# SPDX-License-Identifier: Apache-2.0
"""Measure examples per second at several batch sizes and numbers of threads."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfq.backends.protocol import TimingBackend
from tfq.backends.timing import TimedModel, TimingRequest
from tfq.config import BenchmarkConfig
from tfq.data import batch_size_of
from tfq.errors import InputError, ModelError
from tfq.evaluation.benchmark_record import Throughput
from tfq.tflite import Model

# An inference of a large batch takes long, and no interval is computed from the runs.
MAX_RUNS = 20


def measure_throughput(
    models: Sequence[TimedModel], parsed: Mapping[str, Model], config: BenchmarkConfig, timer: TimingBackend, seed: int
) -> tuple[Throughput, ...]:
    """Return the throughput of each model and set of kernels at each batch size and number of threads.

    All combinations with the same number of threads are timed in turns. One that cannot be measured has a reason.

    Args:
        models: The models with their inputs.
        parsed: The same models by name.
        config: The batch sizes, numbers of threads, kernels and runs.
        timer: The backend.
        seed: Seed of the order of the blocks.
    """
    results: list[Throughput] = []
    if not config.batch_sizes and not config.thread_counts:
        return ()
    for num_threads in dict.fromkeys(config.thread_counts or (config.num_threads,)):
        request = TimingRequest(
            models=tuple(models),
            kernels=tuple(dict.fromkeys(config.kernels)),
            num_threads=num_threads,
            warmup_runs=min(config.warmup_runs, MAX_RUNS),
            num_runs=min(config.num_runs, MAX_RUNS),
            min_secs=config.min_secs,
            seed=seed,
        )
        batched: dict[tuple[str, int], TimedModel] = {}
        for model in models:
            own = batch_size_of(parsed[model.name])
            for batch in dict.fromkeys(config.batch_sizes or (own or 1,)):
                reason = _why_not(parsed[model.name], own, batch)
                if reason is None:
                    batched[model.name, batch] = in_batches_of(model, own, batch)
                else:
                    results += [
                        Throughput(name=model.name, kernels=name, batch=batch, num_threads=num_threads, reason=reason)
                        for name in request.kernels
                    ]
        results += _measure(batched, request, timer)
    names, sizes = [model.name for model in models], list(config.batch_sizes)

    def position(item: Throughput) -> tuple[int, ...]:
        return (
            names.index(item.name),
            config.kernels.index(item.kernels),
            sizes.index(item.batch) if sizes else 0,
        )

    return tuple(sorted(results, key=position))


def in_batches_of(model: TimedModel, own: int | None, batch: int) -> TimedModel:
    """Return a model with one input of `batch` examples, which repeat those of its inputs.

    Args:
        model: The model; its inputs have shape (k, own, ...).
        own: The batch size of its file; None if its inputs share no batch dimension. Then the model is unchanged.
        batch: Number of examples.
    """
    if own is None:
        return model
    inputs = []
    for array in model.inputs:
        examples = array.reshape(-1, *array.shape[2:])
        inputs.append(examples[np.arange(batch) % len(examples)][np.newaxis])
    return dataclasses.replace(model, inputs=tuple(inputs))


def _why_not(model: Model, own: int | None, batch: int) -> str | None:
    """Return why the model cannot run on `batch` examples at once, or None if it can."""
    if own is None:
        return None if batch == 1 else "the inputs share no batch dimension"
    is_dynamic = all(tensor.shape_signature[0] == -1 for tensor in model.main_subgraph.input_tensors)
    if batch == own or is_dynamic:
        return None
    return f"the batch size of the file is fixed to {own}: convert the model with conversion.batch_size=0 or {batch}"


def _measure(
    batched: Mapping[tuple[str, int], TimedModel], request: TimingRequest, timer: TimingBackend
) -> list[Throughput]:
    """Time all models in turns; if one of them fails, time each alone, so that only this one has no figure."""
    if not batched:
        return []
    entries = [(name, batch, kernels) for name, batch in batched for kernels in request.kernels]
    try:
        timings, _ = timer.time_models(dataclasses.replace(request, models=tuple(batched.values())))
    except (InputError, ModelError) as error:
        if len(entries) > 1:
            alone = [
                ({(name, batch): batched[name, batch]}, dataclasses.replace(request, kernels=(kernels,)))
                for name, batch, kernels in entries
            ]
            return [item for models, other in alone for item in _measure(models, other, timer)]
        (name, batch, kernels), reason = entries[0], str(error)
        return [Throughput(name=name, kernels=kernels, batch=batch, num_threads=request.num_threads, reason=reason)]
    return [
        Throughput(
            name=name,
            kernels=kernels,
            batch=batch,
            num_threads=request.num_threads,
            mean_ms=float(timing.latencies_ms.mean()),
            num_runs=len(timing.latencies_ms),
        )
        for (name, batch, kernels), timing in zip(entries, timings, strict=True)
    ]

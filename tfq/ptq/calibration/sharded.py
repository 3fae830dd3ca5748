# SPDX-License-Identifier: Apache-2.0
"""Observe activations on samples that the workers of an executor share.

A worker returns the extremes of each sample and the counts of its histograms. Counts add up exactly. Extremes are
passed on in the order of the samples, so that moving averages, which depend on it, are those of one process, bit for
bit.
"""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfq.executors import Distribution, Task
from tfq.ptq.calibration.histogram import Histogram
from tfq.ptq.calibration.observation import TensorObservation
from tfq.typing import JSON


class RunOptions(NamedTuple):
    """Which samples of a run count.

    Args:
        axes: The axis of each observed tensor that has the samples of a batch; None if it has none.
        batch_size: The number of samples in a run.
        used: How many of them count.
    """

    axes: list[int | None]
    batch_size: int
    used: int


# (minimum, maximum) of each sample of a run, for each tensor; and the outputs of the run.
Run = tuple[list[list[tuple[float, float]]], tuple[NDArray, ...]]


def runs_in_shards(
    distribution: Distribution,
    model: bytes,
    tensors: Sequence[int],
    outputs: Sequence[int],
    samples: Sequence[Mapping[str, NDArray]],
    observed: Sequence[TensorObservation],
    options: RunOptions,
    keep: Collection[int],
) -> Iterator[Run]:
    """Run a flatbuffer on samples, and yield the extremes of the activations for each, in order.

    Args:
        distribution: Who runs it.
        model: The flatbuffer.
        tensors: The activations.
        outputs: Other tensors whose values are returned.
        samples: {input name: array}; a batch each.
        observed: To whose histograms the values of `tensors` are added.
        options: Which samples of a batch count.
        keep: Indices of the batches whose `outputs` are returned; () for the others.
    """
    if not samples:
        return
    needed = distribution.content("the model to calibrate", {"model.tflite": model})
    tasks = []
    ranges = distribution.ranges(len(samples))
    for number, (start, stop) in enumerate(ranges, 1):
        part = distribution.content("calibration samples", {"samples.npz": _packed(samples[start:stop])})
        arguments = {
            "tensors": list(tensors),
            "outputs": list(outputs),
            "has_histograms": any(observation.histogram is not None for observation in observed),
            "options": list(options),
            "keep": [index - start for index in keep if start <= index < stop],
        }
        tasks.append(
            Task(
                name=f"calibration, part {number} of {len(ranges)}",
                function="tfq.ptq.calibration.sharded:observe_shard",
                arguments=arguments,
                inputs=arguments,
                needs={"model": needed, "samples": part},
            )
        )
    for result in distribution.run(tasks):
        yield from _runs_of(result.directory, observed, len(outputs))


def observe_shard(
    directory: Path,
    needs: Mapping[str, Path],
    *,
    tensors: Sequence[int],
    outputs: Sequence[int],
    has_histograms: bool,
    options: Sequence[Any],
    keep: Collection[int],
) -> JSON:
    """Run the flatbuffer on a part of the samples, and write extremes, counts and outputs. Runs in a worker."""
    from tfq.ptq.calibration.observer import map_activations, reader

    model = (needs["model"] / "model.tflite").read_bytes()
    observed = [TensorObservation(name="", histogram=Histogram() if has_histograms else None) for _ in tensors]
    read = reader(observed, RunOptions(*options))
    samples = _unpacked(needs["samples"] / "samples.npz")
    extremes, arrays = [], {}
    for run, (ends, values) in enumerate(
        map_activations(model, [*tensors, *outputs], samples, read, num_workers=1, total=len(samples))
    ):
        extremes.append(ends)
        if run in keep:
            arrays.update({f"output:{run}:{place}": array for place, array in enumerate(values)})
    arrays["extremes"] = np.asarray(extremes, np.float64)
    for place, observation in enumerate(observed):
        if observation.histogram is not None:
            (filled,) = np.nonzero(observation.histogram.counts)
            arrays[f"bins:{place}"], arrays[f"counts:{place}"] = filled, observation.histogram.counts[filled]
    np.savez(directory / "observed.npz", **arrays)  # type: ignore[arg-type]
    return {"num_runs": len(extremes)}


def _runs_of(directory: Path, observed: Sequence[TensorObservation], num_outputs: int) -> Iterator[Run]:
    with np.load(directory / "observed.npz") as arrays:
        for place, observation in enumerate(observed):
            if observation.histogram is not None:
                observation.histogram.counts[arrays[f"bins:{place}"]] += arrays[f"counts:{place}"]
        for run, extremes in enumerate(arrays["extremes"]):
            ends = [[(float(low), float(high)) for low, high in rows] for rows in extremes]
            kept = f"output:{run}:0" in arrays
            yield ends, tuple(arrays[f"output:{run}:{place}"] for place in range(num_outputs) if kept)


def _packed(samples: Sequence[Mapping[str, NDArray]]) -> bytes:
    file = io.BytesIO()
    arrays = {f"{index}:{name}": array for index, sample in enumerate(samples) for name, array in sample.items()}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _unpacked(path: Path) -> list[dict[str, NDArray]]:
    samples: dict[int, dict[str, NDArray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            index, _, name = key.partition(":")
            samples.setdefault(int(index), {})[name] = arrays[key]
    return [samples[index] for index in sorted(samples)]

# SPDX-License-Identifier: Apache-2.0
"""Observe activations on samples that the workers of an executor share.

A worker returns the extremes of each sample and the counts of its histograms. Counts add up exactly. Extremes are
passed on in the order of the samples, so that moving averages, which depend on it, are those of one process, bit for
bit.
"""

import dataclasses
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfq.backends.statistics import Observed, Requested
from tfq.executors import Distribution, Task
from tfq.ptq.calibration.histogram import Histogram
from tfq.ptq.calibration.observation import TensorObservation
from tfq.typing import JSON


def observe_in_shards(
    distribution: Distribution,
    model: bytes,
    requested: Requested,
    samples: Sequence[Mapping[str, NDArray]],
    observed: Sequence[TensorObservation],
    keep: Collection[int],
    num_samples: int | None,
) -> Iterator[Observed]:
    """Run a flatbuffer on samples, and yield what was observed in each part, in order.

    Args:
        distribution: Who runs it.
        model: The flatbuffer.
        requested: What to observe. All values are counted, so that the results do not depend on the parts.
        samples: {input name: array}; a batch each.
        observed: The tensors, to whose histograms the counts are added.
        keep: Indices of the batches whose outputs are returned.
        num_samples: How many samples count, if not all of the last batch do.
    """
    needed = distribution.content("the model to calibrate", {"model.tflite": model})
    tasks = []
    ranges = distribution.ranges(len(samples))
    for number, (start, stop) in enumerate(ranges, 1):
        part = distribution.content("calibration samples", {"samples.npz": _packed(samples[start:stop])})
        arguments = {
            "requested": dataclasses.asdict(dataclasses.replace(requested, share=0.0)),
            "keep": [index - start for index in keep if start <= index < stop],
            "num_samples": None if num_samples is None else num_samples - start * requested.batch_size,
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
        yield _observed(result.directory, observed, len(requested.outputs))


def observe_shard(
    directory: Path, needs: Mapping[str, Path], *, requested: JSON, keep: Collection[int], num_samples: int | None
) -> JSON:
    """Run the flatbuffer on a part of the samples, and write extremes, counts and outputs. Runs in a worker."""
    from tfq.ptq.calibration.observer import observe_runs

    model = (needs["model"] / "model.tflite").read_bytes()
    what = Requested(**requested)
    observed = [TensorObservation(name="", histogram=Histogram() if what.num_bins else None) for _ in what.tensors]
    samples = _unpacked(needs["samples"] / "samples.npz")
    extremes: list[NDArray[np.float32]] = []
    arrays = {}
    for part, outputs in observe_runs(
        model, what, samples, observed, keep, num_samples, num_workers=1, total=len(samples)
    ):
        for number, values in outputs.items():
            run = len(extremes) + number
            arrays.update({f"output:{run}:{place}": array for place, array in enumerate(values)})
        extremes += list(part)
    # The last batch may have fewer samples that count.
    arrays["extremes"] = np.concatenate(extremes)
    arrays["lengths"] = np.array(list(map(len, extremes)))
    for place, observation in enumerate(observed):
        if observation.histogram is not None:
            (filled,) = np.nonzero(observation.histogram.counts)
            arrays[f"bins:{place}"], arrays[f"counts:{place}"] = filled, observation.histogram.counts[filled]
    np.savez(directory / "observed.npz", **arrays)  # type: ignore[arg-type]
    return {"num_runs": len(extremes)}


def _observed(directory: Path, observed: Sequence[TensorObservation], num_outputs: int) -> Observed:
    with np.load(directory / "observed.npz") as arrays:
        for place, observation in enumerate(observed):
            if observation.histogram is not None:
                observation.histogram.counts[arrays[f"bins:{place}"]] += arrays[f"counts:{place}"]
        extremes = np.split(arrays["extremes"], np.cumsum(arrays["lengths"])[:-1])
        kept = [run for run in range(len(extremes)) if f"output:{run}:0" in arrays]
        outputs = {run: tuple(arrays[f"output:{run}:{place}"] for place in range(num_outputs)) for run in kept}
        return Observed(extremes, outputs)


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

# SPDX-License-Identifier: Apache-2.0
"""Run a flatbuffer on examples that the workers of an executor share.

A worker reads its part of a streamed source itself; arrays in memory are sent to it. It returns the outputs in the
model's own types, and counts of how the inputs fit their ranges. Outputs are put together in the order of the examples,
so every metric is computed from the same arrays as in one process. Latency, memory and the machine are those of this
process, measured on the first examples.
"""

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import Backend, BackendResult, RunRequest, make_backend
from tfq.backends.protocol import InputStream
from tfq.config import DataConfig
from tfq.data import AnySplit, Split, SplitStream, batch_size_of, load_split
from tfq.data.split import ContentDigest, check_finite
from tfq.errors import InputError, TfqError
from tfq.evaluation.inputs import Feed, Tallies, encode_inputs
from tfq.executors import Distribution, Task, current_distribution
from tfq.typing import JSON

# The fields of a RunRequest that a worker needs, besides the model and the inputs.
_SETTINGS = ("num_threads", "kernels", "timeout_secs")


class ShardedFeed:
    """How the inputs of all parts fit the ranges of a model; see `Feed`."""

    def __init__(self, tallies: Tallies) -> None:
        """Use the sum of the parts."""
        self.clipped_fraction = tallies.clipped_fraction
        self.unused_fraction = tallies.unused_fraction
        self.warnings = tallies.warnings


AnyFeed = Feed | ShardedFeed


def assess(
    model: bytes, data: AnySplit, backend: str, runner: Backend, settings: Mapping[str, Any]
) -> tuple[BackendResult, AnyFeed]:
    """Run a flatbuffer on examples: in this process, or inside of `executors.distributed` on its workers.

    Args:
        model: The bytes of a `.tflite`.
        data: The examples.
        backend: The name of what runs the model, with which workers create their own.
        runner: What runs the model here.
        settings: The other fields of `RunRequest`, except `inputs`.

    Returns:
        The result, with the outputs for all examples; and how the data fits the ranges of the inputs.

    Raises:
        InputError: The data does not fit the model.
        BackendError: The backend cannot run the model.
    """
    distribution = current_distribution()
    if distribution is None or data.num_examples < 2:
        feed = Feed(tflite.read(model), data)
        return runner.assess(RunRequest(model=model, inputs=feed.inputs, **settings)), feed
    batch_size = batch_size_of(tflite.read(model)) or 1
    # Timed runs cycle over the first examples.
    first = data.take(min(data.num_examples, -(-max(1, settings.get("num_runs", 0)) // batch_size) * batch_size))
    here = runner.assess(RunRequest(model=model, inputs=Feed(tflite.read(model), _in_memory(first)).inputs, **settings))
    if here.outputs is None:
        return here, Feed(tflite.read(model), data)
    outputs, tallies, notes = outputs_in_shards(distribution, model, data, backend, settings, batch_size)
    return dataclasses.replace(here, outputs=outputs, notes=tuple(dict.fromkeys([*here.notes, *notes]))), ShardedFeed(
        tallies
    )


def outputs_in_shards(
    distribution: Distribution,
    model: bytes,
    data: AnySplit,
    backend: str,
    settings: Mapping[str, Any],
    batch_size: int,
) -> tuple[tuple[NDArray, ...], Tallies, list[str]]:
    """Return the outputs of all examples, the counts of their inputs, and the notes of the backend.

    The labels and the hash of a streamed source become known too, so that this process need not read it.
    """
    needed = distribution.content("the model to evaluate", {"model.tflite": model})
    source = distribution.sources.get(id(data))
    ranges = distribution.ranges(data.num_examples, multiple_of=batch_size)
    num_threads = int(settings.get("num_threads", 1))
    tasks = []
    for number, (start, stop) in enumerate(ranges, 1):
        needs = {"model": needed}
        if source is None:
            needs["data"] = distribution.content("examples", {"examples.npz": _packed(_part(data, start, stop))})
        arguments = {
            "backend": backend,
            "settings": {name: settings[name] for name in _SETTINGS if name in settings},
            "start": start,
            "stop": stop,
            "total": data.num_examples,
            "where": [data.name, data.source],
            "source": source,
        }
        tasks.append(
            Task(
                name=f"evaluation, part {number} of {len(ranges)}",
                function="tfq.evaluation.sharded:assess_shard",
                arguments=arguments,
                inputs=arguments,
                needs=needs,
                num_threads=num_threads,
            )
        )
    hashing = [] if source is None else [_hashing(source, ranges, num_threads)]
    results = distribution.run([*hashing, *tasks])
    parts = results[len(hashing) :]
    if hashing:
        assert isinstance(data, SplitStream)
        _remember(data, results[0].details, [(part.directory, part.details) for part in parts])
    tallies = Tallies()
    tensors = dict(zip(tflite.read(model).input_names, tflite.read(model).main_subgraph.input_tensors, strict=True))
    for part in parts:
        for name, counts in part.details["tallies"].items():
            tallies.count(name, tensors[name], *counts)
    pieces = [_arrays(part.directory / "outputs.npz") for part in parts]
    outputs = tuple(np.concatenate([piece[place] for piece in pieces]) for place in range(len(pieces[0])))
    return outputs, tallies, [note for part in parts for note in part.details["notes"]]


def assess_shard(
    directory: Path,
    needs: Mapping[str, Path],
    *,
    backend: str,
    settings: JSON,
    start: int,
    stop: int,
    total: int,
    where: Sequence[str],
    source: JSON | None,
) -> JSON:
    """Run the flatbuffer on examples `start` to `stop`, and write its outputs and the labels. Runs in a worker."""
    model = (needs["model"] / "model.tflite").read_bytes()
    parsed, tallies, digest = tflite.read(model), Tallies(), ContentDigest()
    if source is None:
        data: AnySplit = _unpacked(needs["data"] / "examples.npz", where)
    else:
        data = _part(_opened(source, total), start, stop)
    labels: list[NDArray] = []

    def pieces() -> Iterator[tuple[NDArray, ...]]:
        done = start
        for piece in data.pieces():
            if source is None:
                check_finite(piece.inputs, f"data {where[1]} ({where[0]})", first=done, total=total)
            else:
                digest.update(piece.inputs, piece.labels)
                labels.extend([] if piece.labels is None else [piece.labels])
            arrays = encode_inputs(parsed, piece, tallies, done)
            done += piece.num_examples
            yield arrays

    runner = make_backend(backend)
    runner.prepare()
    inputs = InputStream(num_examples=stop - start, pieces=pieces)
    result = runner.assess(RunRequest(model=model, inputs=inputs, num_workers=1, **settings))
    np.savez(directory / "outputs.npz", *result.computed_outputs())
    if labels:
        np.savez(directory / "labels.npz", np.concatenate(labels))
    return {
        "tallies": tallies.counts(),
        "notes": list(result.notes),
        "sha256": digest.hexdigest() if source is not None else None,
    }


def hash_source(directory: Path, needs: Mapping[str, Path], *, source: JSON, ranges: Sequence[Sequence[int]]) -> JSON:
    """Return the hashes of a streamed split, and of each part of it. Runs in a worker."""
    data = _opened(source, ranges[-1][1])
    whole, parts = ContentDigest(), []
    for start, stop in ranges:
        part = ContentDigest()
        for piece in _part(data, start, stop).pieces():
            for digest in (whole, part):
                digest.update(piece.inputs, piece.labels)
        parts.append(part.hexdigest())
    return {"sha256": whole.hexdigest(), "part_hashes": whole.part_hashes(), "ranges": parts}


def source_of(config: DataConfig, split: str, limit: int) -> JSON:
    """Return the JSON values from which a worker reads a split itself."""
    return {"config": config.to_dict(), "split": split, "limit": limit}


def _hashing(source: JSON, ranges: Sequence[tuple[int, int]], num_threads: int) -> Task:
    arguments = {"source": source, "ranges": [list(ends) for ends in ranges]}
    return Task(
        name=f"hash of the {source['split']} split",
        function="tfq.evaluation.sharded:hash_source",
        arguments=arguments,
        inputs=arguments,
        num_threads=num_threads,
    )


def _remember(data: SplitStream, hashed: JSON, parts: Sequence[tuple[Path, JSON]]) -> None:
    """Keep the labels and hashes of a stream.

    Raises:
        TfqError: A worker read other examples than the worker that computed the hash.
    """
    for number, (expected, (_, details)) in enumerate(zip(hashed["ranges"], parts, strict=True), 1):
        if details["sha256"] != expected:
            raise TfqError(
                f"data {data.source} ({data.name}): two workers read different examples for part {number}. Every "
                "machine needs the same files under the same path",
                field="data",
                expected=expected,
                got=details["sha256"],
            )
    labels = [_arrays(folder / "labels.npz")[0] for folder, _ in parts if (folder / "labels.npz").exists()]
    data.remember(np.concatenate(labels) if labels else None, hashed["sha256"], hashed["part_hashes"])


def _opened(source: JSON, num_examples: int) -> AnySplit:
    """Return the split of a source, as this machine sees it.

    Raises:
        InputError: It has another number of examples here than for the driver.
    """
    data = load_split(DataConfig.from_dict(source["config"]), source["split"], limit=source["limit"])
    if data.num_examples != num_examples:
        raise InputError(
            f"data {data.source} ({data.name}) has {data.num_examples:,} examples on this machine, expected "
            f"{num_examples:,} as for the driver. Every machine needs the same files under the same path",
            field="data",
            expected=num_examples,
            got=data.num_examples,
        )
    return data


def _part(data: AnySplit, start: int, stop: int) -> AnySplit:
    """Return examples `start` to `stop` of a split."""
    if isinstance(data, SplitStream):

        def read(first: int, last: int) -> Iterator[Split]:
            return data.read(start + first, start + last)

        return dataclasses.replace(data, num_examples=stop - start, read=read)
    inputs = {name: array[start:stop] for name, array in data.inputs.items()}
    return dataclasses.replace(data, inputs=inputs, labels=None if data.labels is None else data.labels[start:stop])


def _in_memory(data: AnySplit) -> Split:
    """Return a short split in memory, without labels."""
    pieces = list(data.pieces())
    inputs = {name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in pieces[0].inputs}
    return dataclasses.replace(pieces[0], inputs=inputs, labels=None)


def _packed(data: AnySplit) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{f"input:{name}": array for name, array in _in_memory(data).inputs.items()})  # type: ignore[arg-type]
    return file.getvalue()


def _unpacked(path: Path, where: Sequence[str]) -> Split:
    with np.load(path) as arrays:
        inputs = {key.partition(":")[2]: arrays[key] for key in arrays.files}
    return Split(name=where[0], inputs=inputs, labels=None, source=where[1])


def _arrays(path: Path) -> list[NDArray]:
    with np.load(path) as arrays:
        return [arrays[key] for key in arrays.files]

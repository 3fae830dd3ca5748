# SPDX-License-Identifier: Apache-2.0
"""The activations of a float flatbuffer, seen by an interpreter with all of them exposed as outputs."""

import collections
import concurrent.futures
import math
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from tfq import flatbuffer
from tfq.artifacts import sha256
from tfq.calibration.histogram import Histogram
from tfq.calibration.observation import Observations, TensorObservation
from tfq.data import SampleDigest
from tfq.errors import InputError

Sample = Mapping[str, NDArray]
# Samples that wait for a worker, for each of them.
_AHEAD = 4


def observe(
    model: bytes, samples: Iterable[Sample], *, histograms: bool = True, num_workers: int = 0, total: int | None = None
) -> Observations:
    """Run the float flatbuffer `model` on all of `samples` under XNNPACK, and keep what every activation held.

    samples: each {input name: array of the input's shape and dtype}, drawn one by one: what is kept in memory does not
        grow with their number.
    histograms: keep a Histogram of each tensor (256 kB), and not its extremes alone.
    num_workers: threads with an interpreter each; 0 is one for each core. The result is the same to the bit.
    total: how many samples there are, for the progress bar.
    Seen are the inputs and what the ops of the main subgraph give out in float32; no activation inside of control flow.
    Raises InputError where there are no samples, where they do not fit the model, and where a tensor holds NaN or
    infinity, with the sample, the tensor and its layer.
    """
    from tqdm import tqdm

    parsed = flatbuffer.read(model)
    tensors = _activations(parsed)
    plan = _Plan(parsed, model, tensors, histograms)
    digest, count = SampleDigest(), 0
    num_workers = num_workers or len(os.sched_getaffinity(0))
    bar = tqdm(total=total, desc="calibrating", unit=" samples", disable=None, leave=False, delay=0.5)
    with bar, concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        try:
            for index, extremes in _in_order(pool, plan, samples, digest, num_workers * _AHEAD):
                plan.check_finite(index, extremes)
                for seen, (minimum, maximum) in zip(plan.observed.values(), extremes, strict=True):
                    seen.add_extremes(minimum, maximum)
                count = index + 1
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    if not count:
        raise InputError("no samples to calibrate with: wanted at least one")
    return Observations(
        tensors=plan.observed,
        num_samples=count,
        model_sha256=sha256(model),
        data_sha256=(digest.hexdigest(),),
    )


def _activations(parsed: flatbuffer.Model) -> list[flatbuffer.Tensor]:
    """The float tensors of the main subgraph that differ from sample to sample: inputs, then as ops give them out."""
    graph = parsed.main_subgraph
    indices = [*graph.inputs, *(output for op in graph.ops for output in op.outputs)]
    tensors = (graph.tensors[index] for index in dict.fromkeys(indices))
    found = [tensor for tensor in tensors if tensor.dtype == "float32" and not tensor.is_constant]
    if not found:
        raise InputError("the flatbuffer has no float32 activation to calibrate: wanted a float one")
    return found


def _in_order(
    pool: concurrent.futures.Executor, plan: "_Plan", samples: Iterable[Sample], digest: SampleDigest, most: int
) -> Iterator[tuple[int, list[tuple[float, float]]]]:
    """(index, extremes of each tensor) of each sample; at most `most` are drawn and not given yet."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    done = 0
    for sample in samples:
        digest.add(sample)
        pending.append(pool.submit(plan.look, sample))
        if len(pending) >= most:
            yield done, pending.popleft().result()
            done += 1
    while pending:
        yield done, pending.popleft().result()
        done += 1


class _Plan:
    """What is looked at, and the interpreters that look."""

    def __init__(self, parsed: flatbuffer.Model, model: bytes, tensors: list[flatbuffer.Tensor], histograms: bool):
        graph = parsed.main_subgraph
        self._names = dict(zip(graph.inputs, parsed.input_names, strict=True))
        self._indices = [tensor.index for tensor in tensors]
        self._exposed, _ = flatbuffer.expose_tensors(model, self._indices)
        layers = {output: op.keras_layer for op in graph.ops for output in op.outputs}
        self.observed = {
            (graph.index, tensor.index): TensorObservation(
                name=tensor.name, layer=layers.get(tensor.index), histogram=Histogram() if histograms else None
            )
            for tensor in tensors
        }
        # NumPy lets other threads run while it adds.
        self._locks = [threading.Lock() for _ in tensors]
        self._idle: queue.SimpleQueue[_Interpreter] = queue.SimpleQueue()

    def look(self, sample: Sample) -> list[tuple[float, float]]:
        """(minimum, maximum) of each tensor on a sample; what they hold is counted. NaN where one holds NaN."""
        interpreter = self._interpreter()
        try:
            interpreter.run(sample)
            return [
                self._look_at(interpreter.view(index), lock, seen.histogram)
                for index, lock, seen in zip(self._indices, self._locks, self.observed.values(), strict=True)
            ]
        finally:
            self._idle.put(interpreter)

    def check_finite(self, sample: int, extremes: list[tuple[float, float]]) -> None:
        """Raises InputError at the first tensor, in the order of the graph, whose values are not all finite."""
        for seen, ends in zip(self.observed.values(), extremes, strict=True):
            if not all(map(math.isfinite, ends)):
                what = "NaN" if any(map(math.isnan, ends)) else "infinity"
                raise InputError(
                    f"calibration: on sample {sample}, tensor {seen.name!r} (layer {seen.layer or 'unknown'}) holds "
                    f"{what}: no range can hold it: mend the model or the sample"
                )

    def _interpreter(self) -> "_Interpreter":
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _Interpreter(self._exposed, self._names)

    def _look_at(self, values: NDArray, lock: threading.Lock, histogram: Histogram | None) -> tuple[float, float]:
        if not values.size:
            return 0.0, 0.0
        ends = float(values.min()), float(values.max())
        if histogram is not None and all(map(math.isfinite, ends)):
            with lock:
                histogram.add(values)
        return ends


class _Interpreter:
    """One of them: fed by the names of the inputs, looked into without a copy."""

    def __init__(self, model: bytes, names: Mapping[int, str]) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter, self._names = Interpreter(model_content=model, num_threads=1), names
        self._shapes: dict[int, tuple[int, ...]] = {}

    def run(self, sample: Sample) -> None:
        """Compute all tensors of a sample. Inputs take its shapes, where they can."""
        shapes = {index: np.shape(sample[name]) for index, name in self._names.items()}
        try:
            if shapes != self._shapes:
                for index, shape in shapes.items():
                    self._interpreter.resize_tensor_input(index, shape)
                self._interpreter.allocate_tensors()
                self._shapes = shapes
            for index, name in self._names.items():
                self._interpreter.set_tensor(index, sample[name])
            self._interpreter.reset_all_variables()
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"calibration: the model does not run on the representative dataset: {error}") from error

    def view(self, index: int) -> NDArray:
        """What a tensor holds, until the next run."""
        return self._interpreter.tensor(index)()

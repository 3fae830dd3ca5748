# SPDX-License-Identifier: Apache-2.0
"""Run a float flatbuffer on samples and observe its activations."""

import collections
import concurrent.futures
import math
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import sha256
from tfq.data import SampleDigest
from tfq.errors import InputError
from tfq.ptq.calibration.histogram import Histogram
from tfq.ptq.calibration.observation import Observations, TensorObservation

Sample = Mapping[str, NDArray]
Found = TypeVar("Found")
# Samples that wait for a worker, for each of them.
_AHEAD = 4


def map_activations(
    model: bytes,
    tensors: Sequence[int],
    samples: Iterable[Sample],
    look: Callable[[list[NDArray]], Found],
    *,
    num_workers: int = 0,
    total: int | None = None,
) -> Iterator[Found]:
    """What `look` finds in the values of `tensors`, sample by sample, in the order of `samples`.

    model: float or integer; its main subgraph's inputs have the names that the samples do. tensors: indices in it.
    look: called in a worker thread with an array for each tensor, which is the interpreter's own memory and is gone
        after the call.
    num_workers: threads with an interpreter each; 0 is one for each core. total: of samples, for the progress bar.
    Samples are drawn as they are needed. Raises InputError where the model does not run on one.
    """
    from tqdm import tqdm

    num_workers = num_workers or len(os.sched_getaffinity(0))
    parsed = tflite.read(model)
    names = dict(zip(parsed.main_subgraph.inputs, parsed.input_names, strict=True))
    exposed, _ = tflite.expose_tensors(model, tensors)
    idle: queue.SimpleQueue[_Interpreter] = queue.SimpleQueue()

    def work(sample: Sample) -> Found:
        try:
            interpreter = idle.get_nowait()
        except queue.Empty:
            interpreter = _Interpreter(exposed, names)
        try:
            interpreter.run(sample)
            return look([interpreter.view(index) for index in tensors])
        finally:
            idle.put(interpreter)

    bar = tqdm(total=total, desc="calibrating", unit=" samples", disable=None, leave=False, delay=0.5)
    with bar, concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        pending: collections.deque[concurrent.futures.Future[Found]] = collections.deque()
        try:
            for sample in samples:
                pending.append(pool.submit(work, sample))
                if len(pending) >= num_workers * _AHEAD:
                    yield pending.popleft().result()
                    bar.update()
            while pending:
                yield pending.popleft().result()
                bar.update()
        finally:
            # Whoever listens may stop before the end.
            pool.shutdown(cancel_futures=True)


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
            # Examples are independent: no state of a recurrent layer goes from one to the next.
            self._interpreter.reset_all_variables()
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"calibration: the model does not run on the representative dataset: {error}",
                field="representative_dataset",
                expected="samples that the model runs on",
                got=str(error),
            ) from error

    def view(self, index: int) -> NDArray:
        """What a tensor holds, until the next run."""
        return self._interpreter.tensor(index)()


def observe(
    model: bytes,
    samples: Iterable[Sample],
    *,
    histograms: bool = True,
    num_workers: int = 0,
    total: int | None = None,
    keep: Collection[int] = (),
) -> Observations:
    """Run the float flatbuffer `model` on all of `samples` under XNNPACK, and keep what every activation held.

    samples: each {input name: array of the input's shape and dtype}, drawn one by one: what is kept in memory does not
        grow with their number.
    histograms: keep a Histogram of each tensor (256 kB), and not its extremes alone.
    num_workers: threads with an interpreter each; 0 is one for each core. The result is the same to the bit.
    total: how many samples there are, for the progress bar.
    keep: numbers of the samples whose outputs are kept in `Observations.outputs`.
    Seen are the inputs and what the ops of the main subgraph give out in float32; no activation inside of control flow.
    Raises InputError where there are no samples, where they do not fit the model, and where a tensor holds NaN or
    infinity, with the sample, the tensor and its layer.
    """
    parsed = tflite.read(model)
    graph, tensors = parsed.main_subgraph, _activations(parsed)
    layers = {output: op.keras_layer for op in graph.ops for output in op.outputs}
    observed = [
        TensorObservation(
            name=tensor.name, layer=layers.get(tensor.index), histogram=Histogram() if histograms else None
        )
        for tensor in tensors
    ]
    # NumPy lets other threads run while it adds.
    locks = [threading.Lock() for _ in tensors]
    digest, count = SampleDigest(), 0

    # Outputs of other types than float32, such as class numbers, are not among the activations.
    extra = graph.outputs if keep else ()

    def look(values: list[NDArray]) -> tuple[list[tuple[float, float]], tuple[NDArray, ...]]:
        extremes = [
            _extremes(array, lock, seen.histogram)
            for array, lock, seen in zip(values[: len(tensors)], locks, observed, strict=True)
        ]
        return extremes, tuple(array.copy() for array in values[len(tensors) :])

    def digested() -> Iterator[Sample]:
        for sample in samples:
            digest.add(sample)
            yield sample

    indices = [tensor.index for tensor in tensors]
    outputs: dict[int, tuple[NDArray, ...]] = {}
    for extremes, values in map_activations(
        model, [*indices, *extra], digested(), look, num_workers=num_workers, total=total
    ):
        if count in keep:
            outputs[count] = values
        for seen, ends in zip(observed, extremes, strict=True):
            if not all(map(math.isfinite, ends)):
                _refuse(count, seen, ends)
            seen.add_extremes(count, *ends)
        count += 1
    if not count:
        raise InputError(
            "no samples to calibrate with: expected at least one",
            field="representative_dataset",
            expected="at least one sample",
            got=0,
        )
    return Observations(
        tensors={(graph.index, index): seen for index, seen in zip(indices, observed, strict=True)},
        num_samples=count,
        model_sha256=sha256(model),
        data_sha256=(digest.hexdigest(),),
        outputs=outputs,
    )


def _activations(parsed: tflite.Model) -> list[tflite.Tensor]:
    """The float tensors of the main subgraph that differ from sample to sample: inputs, then as ops give them out."""
    graph = parsed.main_subgraph
    indices = [*graph.inputs, *(output for op in graph.ops for output in op.outputs)]
    tensors = (graph.tensors[index] for index in dict.fromkeys(indices))
    results = [tensor for tensor in tensors if tensor.dtype == "float32" and not tensor.is_constant]
    if not results:
        raise InputError(
            "the flatbuffer has no float32 activation to calibrate: expected a float one",
            field="model",
            expected="float32 activations",
        )
    return results


def _extremes(values: NDArray, lock: threading.Lock, histogram: Histogram | None) -> tuple[float, float]:
    """(minimum, maximum) of a sample's values, which are counted if they are finite; NaN where one of them is."""
    if not values.size:
        return 0.0, 0.0
    ends = float(values.min()), float(values.max())
    if histogram is not None and all(map(math.isfinite, ends)):
        with lock:
            histogram.add(values)
    return ends


def _refuse(sample: int, seen: TensorObservation, ends: tuple[float, float]) -> None:
    what = "NaN" if any(map(math.isnan, ends)) else "infinity"
    raise InputError(
        f"calibration: on sample {sample}, tensor {seen.name!r} (layer {seen.layer or 'unknown'}) holds {what}: no "
        "range can hold it: fix the model or the sample",
        field=f"representative_dataset[{sample}]",
        expected="finite activations",
        got=what,
    )

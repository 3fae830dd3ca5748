# SPDX-License-Identifier: Apache-2.0
"""Any flatbuffer run on samples with chosen tensors exposed, in worker threads, and looked at sample by sample."""

import collections
import concurrent.futures
import os
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.errors import InputError

Sample = Mapping[str, NDArray]
Found = TypeVar("Found")
# Samples that wait for a worker, for each of them.
_AHEAD = 4


def look_at_each(
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
            raise InputError(f"calibration: the model does not run on the representative dataset: {error}") from error

    def view(self, index: int) -> NDArray:
        """What a tensor holds, until the next run."""
        return self._interpreter.tensor(index)()

# SPDX-License-Identifier: Apache-2.0
"""Run a float flatbuffer on samples and observe its activations."""

import collections
import concurrent.futures
import contextlib
import math
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tfq import progress, tflite
from tfq.artifacts import sha256
from tfq.data import SampleDigest
from tfq.errors import InputError
from tfq.native_stderr import captured_stderr
from tfq.ptq.calibration.histogram import Histogram
from tfq.ptq.calibration.observation import Observations, TensorObservation

# {input name: array}.
Sample = Mapping[str, NDArray]
Result = TypeVar("Result")
# Samples per worker that are read ahead.
_QUEUED_PER_WORKER = 4


def map_activations(
    model: bytes,
    tensors: Sequence[int],
    samples: Iterable[Sample],
    function: Callable[[list[NDArray]], Result],
    *,
    num_workers: int = 0,
    total: int | None = None,
) -> Iterator[Result]:
    """Run a flatbuffer on samples, and yield a function of the values of some tensors for each sample.

    Args:
        model: A float or quantized flatbuffer.
        tensors: Tensor indices in its main subgraph.
        samples: {input name: array in the type of the input}. They are read as they are needed.
        function: Called in a worker thread with the values of `tensors`. The arrays are the interpreter's memory and
            are invalid after the call.
        num_workers: Threads, each with an interpreter; 0 means one per core.
        total: The number of samples, for the progress bar.

    Yields:
        The results of `function`, in the order of `samples`.

    Raises:
        InputError: The model does not run on a sample.
    """
    num_workers = num_workers or len(os.sched_getaffinity(0))
    parsed = tflite.read(model)
    names = dict(zip(parsed.main_subgraph.inputs, parsed.input_names, strict=True))
    exposed, _ = tflite.expose_tensors(model, tensors)
    idle: queue.SimpleQueue[_Interpreter] = queue.SimpleQueue()

    def work(sample: Sample) -> Result:
        try:
            interpreter = idle.get_nowait()
        except queue.Empty:
            interpreter = _Interpreter(exposed, names)
        try:
            interpreter.run(sample)
            return function([interpreter.view(index) for index in tensors])
        finally:
            idle.put(interpreter)

    shown = progress.bar("running samples", total, " samples")
    with shown as bar, concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        try:
            for sample in samples:
                pending.append(pool.submit(work, sample))
                if len(pending) >= num_workers * _QUEUED_PER_WORKER:
                    yield pending.popleft().result()
                    bar.update()
            while pending:
                yield pending.popleft().result()
                bar.update()
        finally:
            # The consumer of this generator may stop early.
            pool.shutdown(cancel_futures=True)


class _Interpreter:
    """A single-threaded LiteRT interpreter that reads inputs by name and exposes tensors without a copy."""

    def __init__(self, model: bytes, names: Mapping[int, str]) -> None:
        """Load `model`; `names` maps its input tensors to the names in samples."""
        from ai_edge_litert.interpreter import Interpreter

        with captured_stderr():
            self._interpreter, self._names = Interpreter(model_content=model, num_threads=1), names
        self._shapes: dict[int, tuple[int, ...]] = {}

    def run(self, sample: Sample) -> None:
        """Run the model on a sample. Inputs are resized to the sample's shapes if they allow it."""
        shapes = {index: np.shape(sample[name]) for index, name in self._names.items()}
        try:
            if shapes != self._shapes:
                for index, shape in shapes.items():
                    self._interpreter.resize_tensor_input(index, shape)
                # The first interpreter of a process reports that it has created a delegate.
                with contextlib.nullcontext() if self._shapes else captured_stderr():
                    self._interpreter.allocate_tensors()
                self._shapes = shapes
            for index, name in self._names.items():
                self._interpreter.set_tensor(index, sample[name])
            # Samples are independent: the state of a recurrent layer must not carry over.
            self._interpreter.reset_all_variables()
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise InputError(
                "calibration: the model does not run on a sample of the representative dataset. Check that the names, "
                f"shapes and types of the sample's arrays match the model's inputs. The interpreter says: {error}",
                field="representative_dataset",
                expected="samples that the model runs on",
                got=str(error),
            ) from error

    def view(self, index: int) -> NDArray:
        """Return the values of a tensor, which are valid until the next run."""
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
    """Run a float flatbuffer on samples with XNNPACK, and record the values of its float32 activations.

    Activations are the inputs of the main subgraph and the outputs of its ops. Tensors inside control flow are not
    observed.

    Args:
        model: A float flatbuffer.
        samples: {input name: array of the input's shape and dtype}. They are read one by one, so memory does not grow
            with their number.
        histograms: Record a Histogram (256 kB) of each tensor in addition to its extremes.
        num_workers: Threads, each with an interpreter; 0 means one per core. The result does not depend on it.
        total: The number of samples, for the progress bar.
        keep: Indices of the samples whose outputs are stored in `Observations.outputs`.

    Raises:
        InputError: There are no samples, the model does not run on one, or an activation is NaN or infinite. The
            message names the sample, the tensor and the layer.
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
    # NumPy releases the GIL while it adds.
    locks = [threading.Lock() for _ in tensors]
    digest, count = SampleDigest(), 0

    # Outputs that are not float32, such as class indices, are not among the activations.
    extra = graph.outputs if keep else ()

    def extremes_and_outputs(values: list[NDArray]) -> tuple[list[tuple[float, float]], tuple[NDArray, ...]]:
        extremes = [
            _extremes(array, lock, observation.histogram)
            for array, lock, observation in zip(values[: len(tensors)], locks, observed, strict=True)
        ]
        return extremes, tuple(array.copy() for array in values[len(tensors) :])

    def digested() -> Iterator[Sample]:
        for sample in samples:
            digest.add(sample)
            yield sample

    indices = [tensor.index for tensor in tensors]
    outputs: dict[int, tuple[NDArray, ...]] = {}
    for extremes, values in map_activations(
        model, [*indices, *extra], digested(), extremes_and_outputs, num_workers=num_workers, total=total
    ):
        if count in keep:
            outputs[count] = values
        for observation, ends in zip(observed, extremes, strict=True):
            if not all(map(math.isfinite, ends)):
                _raise_not_finite(count, observation, ends)
            observation.add_extremes(count, *ends)
        count += 1
    if not count:
        raise InputError(
            "calibration needs data: expected at least one sample, got none. Pass a representative dataset",
            field="representative_dataset",
            expected="at least one sample",
            got=0,
        )
    return Observations(
        tensors={(graph.index, index): observation for index, observation in zip(indices, observed, strict=True)},
        num_samples=count,
        model_sha256=sha256(model),
        data_sha256=(digest.hexdigest(),),
        outputs=outputs,
    )


def _activations(parsed: tflite.Model) -> list[tflite.Tensor]:
    """Return the float32 inputs and op outputs of the main subgraph that are not constants, in graph order."""
    graph = parsed.main_subgraph
    indices = [*graph.inputs, *(output for op in graph.ops for output in op.outputs)]
    tensors = (graph.tensors[index] for index in dict.fromkeys(indices))
    results = [tensor for tensor in tensors if tensor.dtype == "float32" and not tensor.is_constant]
    if not results:
        raise InputError(
            "calibration needs a float flatbuffer, but this one has no float32 activation. Pass the model from before "
            "its quantization",
            field="model",
            expected="float32 activations",
        )
    return results


def _extremes(values: NDArray, lock: threading.Lock, histogram: Histogram | None) -> tuple[float, float]:
    """Return (minimum, maximum) of a sample's values, and add them to the histogram if they are all finite."""
    if not values.size:
        return 0.0, 0.0
    ends = float(values.min()), float(values.max())
    if histogram is not None and all(map(math.isfinite, ends)):
        with lock:
            histogram.add(values)
    return ends


def _raise_not_finite(sample: int, observation: TensorObservation, ends: tuple[float, float]) -> None:
    value = "NaN" if any(map(math.isnan, ends)) else "infinity"
    raise InputError(
        f"calibration: tensor {observation.name!r} (layer {observation.layer or 'unknown'}) is {value} on sample "
        f"{sample}, expected finite values. Check this sample and its preprocessing, then the weights of the model",
        field=f"representative_dataset[{sample}]",
        expected="finite activations",
        got=value,
    )

# SPDX-License-Identifier: Apache-2.0
"""Run a float flatbuffer on samples and observe its activations."""

import itertools
import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import sha256
from tfq.backends.activations import map_in_children
from tfq.data import SampleDigest, common_batch_size, input_specs
from tfq.errors import InputError, ModelError
from tfq.executors import current_distribution
from tfq.ptq.calibration.histogram import Histogram
from tfq.ptq.calibration.observation import Observations, TensorObservation
from tfq.ptq.calibration.rows import digests, of_samples, sample_axes, shifted
from tfq.ptq.calibration.sharded import Run, RunOptions, runs_in_shards

# {input name: array}.
Sample = Mapping[str, NDArray]
Result = TypeVar("Result")


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
        function: Called in a worker thread with the values of `tensors`. The arrays are invalid after the call.
        num_workers: Child processes, each with an interpreter; 0 means one per core.
        total: The number of samples, for the progress bar.

    Yields:
        The results of `function`, in the order of `samples`.

    Raises:
        InputError: The model does not run on a sample.
        ModelError: The model crashes, does not finish or needs more memory than there is.
    """
    parsed = tflite.read(model)
    names = parsed.input_names
    exposed, _ = tflite.expose_tensors(model, tensors)
    arrays = (tuple(np.ascontiguousarray(sample[name]) for name in names) for sample in samples)
    try:
        yield from map_in_children(exposed, tensors, arrays, function, num_workers=num_workers, total=total)
    except InputError as error:
        if isinstance(error, ModelError) or error.field != "inputs":
            raise
        reason = str(error).removeprefix("local: ")
        raise InputError(
            "calibration: the model does not run on a sample of the representative dataset. Check that the names, "
            f"shapes and types of the sample's arrays match the model's inputs. The interpreter says: {reason}",
            field="representative_dataset",
            expected="samples that the model runs on",
            got=str(error),
        ) from error


def observe(
    model: bytes,
    samples: Iterable[Sample],
    *,
    histograms: bool = True,
    num_workers: int = 0,
    total: int | None = None,
    keep: Collection[int] = (),
    num_samples: int | None = None,
) -> Observations:
    """Run a float flatbuffer on samples with XNNPACK, and record the values of its float32 activations.

    Activations are the inputs of the main subgraph and the outputs of its ops. Tensors inside control flow are not
    observed.

    Args:
        model: A float flatbuffer.
        samples: {input name: array of the input's shape and dtype}. They are read one by one, so memory does not grow
            with their number. If the model has a batch size, each is a batch of as many samples.
        histograms: Record a Histogram (256 kB) of each tensor in addition to its extremes.
        num_workers: Child processes, each with an interpreter; 0 means one per core. The result does not depend on it.
        total: The number of `samples`, for the progress bar.
        keep: Indices of the `samples` whose outputs are stored in `Observations.outputs`.
        num_samples: How many samples to count, if the last batch was filled up with copies; None for all.

    Raises:
        InputError: There are no samples, the model does not run on one, or an activation is NaN or infinite. The
            message names the sample, the tensor and the layer.
    """
    graph = tflite.read(model).main_subgraph
    indices, observed = _activations(graph, histograms)
    digest, run, count = SampleDigest(), 0, 0
    outputs: dict[int, tuple[NDArray, ...]] = {}

    def digested() -> Iterator[Sample]:
        for sample in samples:
            digest.add(sample)
            yield sample

    batches = digested()
    first = next(batches, None)
    if first is None:
        raise InputError(
            "calibration needs data: expected at least one sample, got none. Pass a representative dataset",
            field="representative_dataset",
            expected="at least one sample",
            got=0,
        )
    batch_size = _batch_size(model, first)
    axes = _axes(model, indices, first, batch_size)
    complete = None if num_samples is None else num_samples // batch_size
    runs = itertools.chain([first], batches)
    for group, used in (
        (itertools.islice(runs, complete), batch_size),
        *([(runs, num_samples % batch_size)] if num_samples is not None and num_samples % batch_size else []),
    ):
        # Outputs that are not float32, such as class indices, are not among the activations.
        extra = graph.outputs if keep else ()
        distribution, options = current_distribution(), RunOptions(axes, batch_size, used)
        if distribution is None:
            read = reader(observed, options)
            results = map_activations(model, [*indices, *extra], group, read, num_workers=num_workers, total=total)
        else:
            kept = {index - run for index in keep}
            results = runs_in_shards(distribution, model, indices, extra, list(group), observed, options, kept)
        for extremes, values in results:
            if run in keep:
                outputs[run] = values
            for observation, rows in zip(observed, extremes, strict=True):
                for place, (low, high) in enumerate(rows):
                    if not (math.isfinite(low) and math.isfinite(high)):
                        _raise_not_finite(count + place, observation, (low, high))
                    observation.add_extremes(count + place, low, high)
            run, count = run + 1, count + used
    return Observations(
        tensors={(graph.index, index): observation for index, observation in zip(indices, observed, strict=True)},
        num_samples=count,
        model_sha256=sha256(model),
        data_sha256=(digest.hexdigest(),),
        outputs=outputs,
    )


def _batch_size(model: bytes, sample: Sample) -> int:
    """Return how many samples an inference on `sample` computes."""
    size = common_batch_size(input_specs(model)) or 1
    return size if all(len(array) == size for array in sample.values() if size > 1) else 1


def _axes(model: bytes, tensors: Sequence[int], sample: Sample, batch_size: int) -> list[int | None]:
    """Return the axis of each tensor that has the samples of a batch; None if it has none."""
    if batch_size == 1:
        return [None for _ in tensors]
    runs = [sample, shifted(sample)]
    return sample_axes(
        *map_activations(model, tensors, runs, lambda values: [digests(array, batch_size) for array in values])
    )


def reader(observed: Sequence[TensorObservation], options: RunOptions) -> Callable[[list[NDArray]], Run]:
    """Return a function of the values of a run: it adds to the histograms, and returns extremes and outputs.

    Args:
        observed: Where to add the values of the first tensors.
        options: Which samples of a run count. Values without an axis for them count for every sample of the batch.
    """
    axes, batch_size, used = options
    # NumPy releases the GIL while it adds.
    locks = [threading.Lock() for _ in observed]

    def read(values: list[NDArray]) -> Run:
        extremes = []
        for array, axis, lock, observation in zip(values[: len(observed)], axes, locks, observed, strict=True):
            if axis is None:
                extremes.append([_extremes(array, lock, observation.histogram)] * used)
                continue
            rows = of_samples(array, axis, batch_size)[:used]
            extremes.append([_extremes(row, lock, observation.histogram) for row in rows])
        return extremes, tuple(array.copy() for array in values[len(observed) :])

    return read


def _activations(graph: tflite.Subgraph, histograms: bool) -> tuple[list[int], list[TensorObservation]]:
    """Return the indices and empty observations of the float32 inputs and op outputs that are not constants.

    They are in graph order.
    """
    outputs = [output for op in graph.ops for output in op.outputs]
    tensors = [graph.tensors[index] for index in dict.fromkeys([*graph.inputs, *outputs])]
    tensors = [tensor for tensor in tensors if tensor.dtype == "float32" and not tensor.is_constant]
    if not tensors:
        raise InputError(
            "calibration needs a float flatbuffer, but this one has no float32 activation. Pass the model from before "
            "its quantization",
            field="model",
            expected="float32 activations",
        )
    layers = {output: op.keras_layer for op in graph.ops for output in op.outputs}
    observed = [
        TensorObservation(
            name=tensor.name, layer=layers.get(tensor.index), histogram=Histogram() if histograms else None
        )
        for tensor in tensors
    ]
    return [tensor.index for tensor in tensors], observed


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

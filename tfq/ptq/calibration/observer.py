# SPDX-License-Identifier: Apache-2.0
"""Run a float flatbuffer on samples and observe its activations."""

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import sha256
from tfq.backends.activations import map_in_children
from tfq.backends.statistics import Counted, Inference, Observed, Requested, observe_in_children
from tfq.data import SampleDigest, common_batch_size, input_specs
from tfq.errors import InputError, ModelError
from tfq.executors import current_distribution
from tfq.ptq.calibration.histogram import NUM_BINS, SHIFT, Histogram
from tfq.ptq.calibration.observation import Observations, TensorObservation, add_extremes
from tfq.ptq.calibration.rows import digests, sample_axes, shifted
from tfq.ptq.calibration.sharded import observe_in_shards

# {input name: array}.
Sample = Mapping[str, NDArray]
Result = TypeVar("Result")
# Values that are counted at each end, in multiples of the fraction that is needed: the first samples tell where the
# ends are.
_SHARE_PER_TAIL = 10
# Inferences whose extremes are added together.
_EXTREMES_TOGETHER = 256


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
    with _explained():
        yield from map_in_children(exposed, tensors, arrays, function, num_workers=num_workers, total=total)


def observe(
    model: bytes,
    samples: Iterable[Sample],
    *,
    histograms: bool = True,
    num_workers: int = 0,
    total: int | None = None,
    keep: Collection[int] = (),
    num_samples: int | None = None,
    tails: float = 0.0,
    leave_out: Collection[int] = (),
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
        tails: 0 to count all values. Otherwise only quantiles below this fraction and above 1 - this fraction are
            needed, which is faster: the values in the middle are not counted one by one. The other quantiles then
            raise UnknownQuantileError, and in rare cases these do, too.
        leave_out: Indices of activations that are not observed.

    Raises:
        InputError: There are no samples, the model does not run on one, or an activation is NaN or infinite. The
            message names the sample, the tensor and the layer.
    """
    graph = tflite.read(model).main_subgraph
    indices, observed = _activations(graph, histograms, leave_out)
    digest, count = SampleDigest(), 0
    outputs: dict[int, tuple[NDArray, ...]] = {}

    def digested() -> Iterator[Sample]:
        for sample in samples:
            digest.add(sample)
            yield sample

    runs = digested()
    first = _first(runs)
    batch_size = _batch_size(model, first)
    requested = Requested(
        tensors=indices,
        # Outputs that are not float32, such as class indices, are not among the activations.
        outputs=graph.outputs if keep else (),
        axes=_axes(model, indices, first, batch_size),
        batch_size=batch_size,
        num_bins=NUM_BINS if histograms else 0,
        shift=SHIFT,
        share=_SHARE_PER_TAIL * tails,
    )
    runs = itertools.chain([first], runs)
    distribution = current_distribution()
    if distribution is None:
        results = observe_runs(
            model, requested, runs, observed, keep, num_samples, num_workers=num_workers, total=total
        )
    else:
        results = observe_in_shards(distribution, model, requested, list(runs), observed, keep, num_samples)
    pending: list[NDArray[np.float32]] = []
    run = num_read = 0
    for extremes, values in results:
        outputs.update({run + place: arrays for place, arrays in values.items()})
        run += len(extremes)
        for each in extremes:
            _check_finite(each, num_read, observed)
            pending.append(each)
            num_read += len(each)
        if len(pending) >= _EXTREMES_TOGETHER:
            count = _add_pending(observed, pending, count)
    count = _add_pending(observed, pending, count)
    return Observations(
        tensors={(graph.index, index): observation for index, observation in zip(indices, observed, strict=True)},
        num_samples=count,
        model_sha256=sha256(model),
        data_sha256=(digest.hexdigest(),),
        outputs=outputs,
    )


def _first(runs: Iterator[Sample]) -> Sample:
    first = next(runs, None)
    if first is None:
        raise InputError(
            "calibration needs data: expected at least one sample, got none. Pass a representative dataset",
            field="representative_dataset",
            expected="at least one sample",
            got=0,
        )
    return first


def _add_pending(observed: Sequence[TensorObservation], pending: list[NDArray[np.float32]], count: int) -> int:
    """Add the extremes of inferences, empty the list, and return the number of samples so far."""
    if not pending:
        return count
    extremes = np.concatenate(pending)
    pending.clear()
    add_extremes(observed, extremes, count)
    return count + len(extremes)


def _check_finite(extremes: NDArray[np.float32], count: int, observed: Sequence[TensorObservation]) -> None:
    if np.isfinite(extremes).all():
        return
    place, tensor = min(map(tuple, np.argwhere(~np.isfinite(extremes).all(axis=2))), key=lambda each: each[::-1])
    ends = extremes[place, tensor]
    _raise_not_finite(count + int(place), observed[tensor], (float(ends[0]), float(ends[1])))


def observe_runs(
    model: bytes,
    requested: Requested,
    runs: Iterable[Sample],
    observed: Sequence[TensorObservation],
    keep: Collection[int] = (),
    num_samples: int | None = None,
    *,
    num_workers: int = 0,
    total: int | None = None,
) -> Iterator[Observed]:
    """Run a float flatbuffer on samples, and yield what was observed.

    Args:
        model: The flatbuffer.
        requested: What to observe.
        runs: {input name: array}; a batch each.
        observed: The tensors, whose histograms have all counts when the iterator ends.
        keep: Indices of the `runs` whose outputs are returned.
        num_samples: How many samples count, if not all of the last batch do.
        num_workers: As in `observe`.
        total: The number of `runs`, for the progress bar.
    """
    names, size = tflite.read(model).input_names, requested.batch_size

    def inferences() -> Iterator[Inference]:
        for number, sample in enumerate(runs):
            used = size if num_samples is None else min(size, num_samples - number * size)
            yield Inference(tuple(np.ascontiguousarray(sample[name]) for name in names), used, number in keep)

    def add(place: int, counted: Counted) -> None:
        histogram = observed[place].histogram
        assert histogram is not None  # counts were requested
        histogram.merge(Histogram.of_counts(*counted))

    with _explained():
        yield from observe_in_children(model, requested, inferences(), add, num_workers=num_workers, total=total)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Explain errors about a sample."""
    try:
        yield
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


def _activations(
    graph: tflite.Subgraph, histograms: bool, leave_out: Collection[int]
) -> tuple[list[int], list[TensorObservation]]:
    """Return the indices and empty observations of the float32 inputs and op outputs that are not constants.

    They are in graph order, without those of `leave_out`.
    """
    outputs = [output for op in graph.ops for output in op.outputs if output not in leave_out]
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


def _raise_not_finite(sample: int, observation: TensorObservation, ends: tuple[float, float]) -> None:
    value = "NaN" if any(map(math.isnan, ends)) else "infinity"
    raise InputError(
        f"calibration: tensor {observation.name!r} (layer {observation.layer or 'unknown'}) is {value} on sample "
        f"{sample}, expected finite values. Check this sample and its preprocessing, then the weights of the model",
        field=f"representative_dataset[{sample}]",
        expected="finite activations",
        got=value,
    )

# SPDX-License-Identifier: Apache-2.0
"""What the activations of a float flatbuffer hold, over a data set."""

import math
import threading
from collections.abc import Iterable, Iterator

from numpy.typing import NDArray

from tfq import tflite
from tfq.artifacts import sha256
from tfq.data import SampleDigest
from tfq.errors import InputError
from tfq.ptq.calibration.activations import Sample, look_at_each
from tfq.ptq.calibration.histogram import Histogram
from tfq.ptq.calibration.observation import Observations, TensorObservation


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

    def look(values: list[NDArray]) -> list[tuple[float, float]]:
        return [
            _extremes(array, lock, seen.histogram) for array, lock, seen in zip(values, locks, observed, strict=True)
        ]

    def digested() -> Iterator[Sample]:
        for sample in samples:
            digest.add(sample)
            yield sample

    indices = [tensor.index for tensor in tensors]
    for extremes in look_at_each(model, indices, digested(), look, num_workers=num_workers, total=total):
        for seen, ends in zip(observed, extremes, strict=True):
            if not all(map(math.isfinite, ends)):
                _refuse(count, seen, ends)
            seen.add_extremes(count, *ends)
        count += 1
    if not count:
        raise InputError("no samples to calibrate with: wanted at least one")
    return Observations(
        tensors={(graph.index, index): seen for index, seen in zip(indices, observed, strict=True)},
        num_samples=count,
        model_sha256=sha256(model),
        data_sha256=(digest.hexdigest(),),
    )


def _activations(parsed: tflite.Model) -> list[tflite.Tensor]:
    """The float tensors of the main subgraph that differ from sample to sample: inputs, then as ops give them out."""
    graph = parsed.main_subgraph
    indices = [*graph.inputs, *(output for op in graph.ops for output in op.outputs)]
    tensors = (graph.tensors[index] for index in dict.fromkeys(indices))
    found = [tensor for tensor in tensors if tensor.dtype == "float32" and not tensor.is_constant]
    if not found:
        raise InputError("the flatbuffer has no float32 activation to calibrate: wanted a float one")
    return found


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
        "range can hold it: mend the model or the sample"
    )

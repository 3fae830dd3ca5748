# SPDX-License-Identifier: Apache-2.0
"""What a model is fed while it is timed: examples where they fit, else random numbers."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq.backends.timing import TimedModel
from tfq.data import Split
from tfq.errors import InputError
from tfq.evaluation.inputs import prepare_inputs
from tfq.tflite import Model, Tensor

NUM_INPUTS = 16


@dataclass(frozen=True, kw_only=True)
class Fed:
    """What a model was fed; reason: why not the examples that were given, or None."""

    what: str
    reason: str | None = None


def timed_model(name: str, content: bytes, model: Model, data: Split | None, seed: int) -> tuple[TimedModel, Fed]:
    """`content` with whole inputs that take turns, and what they are: examples of `data` where it fits, else random.

    Random codes are drawn from all that the type of a quantized input holds, floats from -1 to 1, and integers without
    a scale are 0 or 1: they may be indices. What is random is the same for a seed. Raises InputError on an input whose
    type NumPy does not have.
    """
    tensors = model.main_subgraph.input_tensors
    arrays, fed = None, Fed(what=f"random, seed {seed}")
    if data is not None:
        try:
            arrays = tuple(
                _whole(array, tensor) for array, tensor in zip(prepare_inputs(model, data).arrays, tensors, strict=True)
            )
            fed = Fed(what=f"{data.source} ({data.name}), {data.num_examples} examples")
        except InputError as error:
            fed = dataclasses.replace(fed, reason=str(error))
    if arrays is None:
        generator = np.random.default_rng(seed)
        arrays = tuple(_random(tensor, generator) for tensor in tensors)
    indices = tuple(tensor.index for tensor in tensors)
    return TimedModel(name=name, model=content, inputs=arrays, tensors=indices), fed


def fits(model: Model, data: Split) -> bool:
    """Whether the model takes these examples."""
    try:
        prepare_inputs(model, data.take(1))
    except InputError:
        return False
    return True


def _whole(examples: NDArray, tensor: Tensor) -> NDArray:
    """(n, ...) examples as (k, batch, ...) inputs of a model of this batch; the first ones again fill up the last."""
    batch = tensor.shape[0] if tensor.shape else 1
    count = -(-len(examples) // batch)
    chosen = np.resize(np.arange(len(examples)), count * batch)
    return examples[chosen].reshape(count, batch, *examples.shape[1:])


def _random(tensor: Tensor, generator: np.random.Generator) -> NDArray:
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError as error:
        raise InputError(f"input {tensor.name!r} is {tensor.dtype}: NumPy has no such type to feed it") from error
    shape = (NUM_INPUTS, *tensor.shape)
    if dtype.kind == "f":
        return generator.uniform(-1, 1, shape).astype(dtype)
    if dtype.kind in "iu" and tensor.is_quantized:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    raise InputError(f"input {tensor.name!r} is {dtype}: wanted real numbers")

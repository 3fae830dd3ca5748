# SPDX-License-Identifier: Apache-2.0
"""Measure the difference between a rebuilt model and the user's model, on random data and on provided data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data import shape_fits
from tfq.errors import InputError, TfqError
from tfq.keras_bridge.environment import import_keras, model_kind
from tfq.keras_bridge.walk import layer_of

TOLERANCE = 1e-4
# If a change in the last bit of the inputs changes an output by more than this fraction of its range, a difference of
# TOLERANCE may be caused by rounding, so the data is not informative.
MAX_NOISE = 1e-5
# Number of compared examples of each kind of random data, and of provided data.
RANDOM_EXAMPLES, PROVIDED_EXAMPLES = 2, 32
# Layers that read masks as tensors.
_MASKED_LAYERS = ("MaskedScores", "MaskedWeights", "MultiHeadAttention", "Softmax", "WithMask")
# Unknown sizes in random data. The side of an image must be large enough for many strides.
_SIDE, _LENGTH = 64, 12


def random_inputs(model: Any, seed: int = 0) -> list[list[NDArray]]:
    """Return sets of inputs of a flat tf_keras model; each set is a flat list of arrays.

    All kinds of `random_inputs_by_kind` are concatenated to one set, because a large model takes seconds to run. If the
    batch size is fixed, each kind is a set.
    """
    sets = list(random_inputs_by_kind(model, seed).values())
    if any(tensor.shape[0] is not None for tensor in model.inputs):
        return sets
    return [[np.concatenate(arrays) for arrays in zip(*sets, strict=True)]]


def random_inputs_by_kind(model: Any, seed: int = 0) -> dict[str, list[NDArray]]:
    """Return kind of data -> inputs of a flat tf_keras model: standard normal values, and pixels in [0, 255].

    An input of an Embedding or a CategoryEncoding gets valid indices. An integer mask gets ones and zeros, the first
    of them a one. For other numbers, and if nothing remains of a row, the softmax of each Keras version computes
    something else.
    """
    rng = np.random.default_rng(seed)
    return {
        message: [_random_input(tensor, kind, rng) for tensor in model.inputs]
        for kind, message in (("normal", "normal noise"), ("pixels", "pixels of noise"))
    }


def _random_input(tensor: Any, kind: str, rng: np.random.Generator) -> NDArray:
    shape = [RANDOM_EXAMPLES if tensor.shape[0] is None else tensor.shape[0]]
    shape += [(_SIDE if tensor.shape.rank >= 4 else _LENGTH) if n is None else n for n in tensor.shape[1:]]
    rows, dtype = _num_rows(tensor), tensor.dtype.as_numpy_dtype
    if dtype is np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if rows is not None:
        return rng.integers(0, rows, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer) and _is_mask(tensor):
        mask = rng.integers(0, 2, shape).astype(dtype)
        mask[..., :1] = 1
        return mask
    if kind == "pixels" or not np.issubdtype(dtype, np.floating):
        return rng.integers(0, 128 if dtype is np.int8 else 256, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def _num_rows(tensor: Any) -> int | None:
    """Return the smallest number of rows of the tables that the input indexes; None if it indexes none."""
    result = []
    for node in _readers(tensor):
        layer = node.layer
        rows = getattr(layer, "input_dim", None) or getattr(layer, "num_tokens", None)
        if type(layer).__name__ in ("Embedding", "CategoryEncoding"):
            result.append(int(rows or 2))
        elif getattr(layer, "operation", "") == "numpy.Take" and node.keras_inputs[-1].dtype.is_integer:
            result.append(int(node.keras_inputs[0].shape[0] or 2))
    return min(result) if result else None


def _is_mask(tensor: Any) -> bool:
    """Check whether a layer that masks reads the input."""
    return any(type(node.layer).__name__ in _MASKED_LAYERS for node in _readers(tensor))


def _readers(tensor: Any) -> list[Any]:
    """Return the calls that read the input, directly or after layers without weights and tables."""
    result, stack, seen = [], list(layer_of(tensor).outbound_nodes), set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        result.append(node)
        layer = node.layer
        is_table = type(layer).__name__ == "CategoryEncoding" or getattr(layer, "operation", "") == "numpy.Take"
        if not (layer.weights or is_table):
            stack.extend(layer.outbound_nodes)
    return result


def provided_inputs(model: Any, data: Any) -> list[NDArray]:
    """Return the first examples of `data` as a flat list of inputs.

    Args:
        model: A tf_keras model.
        data: An array, a list or dict of arrays, or a tfq Split.

    Raises:
        InputError: The inputs or their shapes do not match those of `model`.
    """
    data = getattr(data, "inputs", data)
    if isinstance(data, Mapping):
        if len(data) == 1:
            data = list(data.values())
        else:
            missing = [name for name in model.input_names if name not in data]
            if missing:
                raise InputError(
                    f"the data has no input {', '.join(missing)}, only {', '.join(data)}",
                    field="data",
                    expected=tuple(missing),
                    got=tuple(data),
                )
            data = [data[name] for name in model.input_names]
    arrays = [np.asarray(array) for array in (data if isinstance(data, (list, tuple)) else [data])]
    if len(arrays) != len(model.inputs):
        raise InputError(
            f"the data has {len(arrays)} inputs, expected the {len(model.inputs)} of the model {model.name!r}",
            field="data",
            expected=len(model.inputs),
            got=len(arrays),
        )
    for name, array, tensor in zip(model.input_names, arrays, model.inputs, strict=True):
        if not _accepts(tuple(tensor.shape)[1:], array.shape[1:]):
            raise InputError(
                f"the data's examples for the input {name!r} have shape {array.shape[1:]}, expected "
                f"{tuple(tensor.shape)[1:]} for the model {model.name!r}",
                field="data",
                expected=tuple(tensor.shape)[1:],
                got=array.shape[1:],
            )
    pairs = zip(arrays, model.inputs, strict=True)
    return [array[:PROVIDED_EXAMPLES].astype(tensor.dtype.as_numpy_dtype) for array, tensor in pairs]


def _accepts(input_shape: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    # Both Keras versions add a missing last axis of size 1, and remove an extra one.
    shapes = [shape, (*shape, 1), *([shape[:-1]] if shape[-1:] == (1,) else [])]
    return any(shape_fits(item, input_shape) for item in shapes)


def rounded_to(tensors: list[Any], inputs: list[NDArray]) -> list[NDArray]:
    """Return inputs with values that the user's input tensors can represent, because a float16 input rounds them."""
    import tensorflow as tf

    results = []
    for tensor, array in zip(tensors, inputs, strict=True):
        dtype = tf.as_dtype(tensor.dtype)
        is_narrower = dtype in (tf.float16, tf.bfloat16) and array.dtype == np.float32
        results.append(tf.cast(tf.cast(array, dtype), array.dtype).numpy() if is_narrower else array)
    return results


def outputs_of(model: Any, structure: Any, inputs: list[NDArray]) -> list[NDArray]:
    """Return the flat outputs of a model of either Keras in inference, as float32.

    Args:
        model: The model.
        structure: Its input tensors in their structure.
        inputs: The flat inputs.
    """
    import tensorflow as tf

    kind = model_kind(model)
    tree = import_keras().tree if kind == "keras" else tf.nest
    tensors = [tf.constant(array) for array in inputs]
    outputs = model(tree.pack_sequence_as(structure, tensors), training=False)
    return [np.asarray(tf.cast(output, tf.float32)) for output in tree.flatten(outputs)]


def difference(expected: list[list[NDArray]], actual: list[list[NDArray]]) -> float:
    """Return the largest |expected - actual| as a fraction of the range of that output over all data.

    The range is at least a hundredth of the output's largest magnitude. With a smaller range, the result would measure
    the precision of float32. The result is inf if one value is finite and the other is not.

    Args:
        expected: For each set of inputs, a list of outputs.
        actual: The outputs to compare, likewise.
    """
    worst = 0.0
    for reference, rebuilt in zip(zip(*expected, strict=True), zip(*actual, strict=True), strict=True):
        a = np.concatenate([array.reshape(-1) for array in reference]).astype(np.float64)
        b = np.concatenate([array.reshape(-1) for array in rebuilt]).astype(np.float64)
        if a.shape != b.shape:
            raise TfqError(f"outputs of {a.size} values became {b.size}", field="model", expected=a.size, got=b.size)
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)) or not finite.any():
            return float("inf")
        a, b = a[finite], b[finite]
        scale = max(float(np.ptp(a)), 0.01 * float(np.abs(a).max()))
        largest = float(np.abs(a - b).max())
        if largest:
            worst = max(worst, largest / scale if scale else float("inf"))
    return worst


def next_floats(inputs: list[NDArray]) -> list[NDArray]:
    """Return the next larger float of the same dtype for each float; integers stay."""
    return [np.nextafter(array, array.dtype.type(np.inf)) if array.dtype.kind == "f" else array for array in inputs]

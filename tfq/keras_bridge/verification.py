# SPDX-License-Identifier: Apache-2.0
"""How far a rebuilt model is from the user's, on random data and on given data.

Private symbol: `_set_dtype_policy` of a tf_keras layer, read in tf_keras 2.21.0; test_keras_bridge_bridge.py's nested
mixed_float16 model fails when it moves.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.data import shape_fits
from tfq.errors import InputError, TfqError
from tfq.keras_bridge.environment import import_keras, model_kind
from tfq.keras_bridge.layers.config import NARROW
from tfq.keras_bridge.walk import all_layers, layer_of

TOLERANCE = 1e-4
# Where float32's last bit in the inputs makes more than this, data cannot tell a mistake of TOLERANCE from rounding.
MOST_NOISE = 1e-5
# Examples of each kind of random data, and of given data, that are compared.
RANDOM_EXAMPLES, GIVEN_EXAMPLES = 2, 32
# What an unknown size becomes in random data: a picture's side must live through many strides.
_SIDE, _LENGTH = 64, 12


def random_inputs(model: Any, seed: int = 0) -> list[list[NDArray]]:
    """Sets of inputs of a flat tf_keras model, each a flat list, with what `random_inputs_by_kind` gives.

    Both kinds are one set, for a large model costs seconds to run, unless the batch is fixed.
    """
    sets = list(random_inputs_by_kind(model, seed).values())
    if any(tensor.shape[0] is not None for tensor in model.inputs):
        return sets
    return [[np.concatenate(arrays) for arrays in zip(*sets, strict=True)]]


def random_inputs_by_kind(model: Any, seed: int = 0) -> dict[str, list[NDArray]]:
    """{what they are: inputs of a flat tf_keras model}: about 0 and 1 wide, and pixels in [0, 255].

    An input that reaches an Embedding or a CategoryEncoding has whole numbers that it has rows for.
    """
    rng = np.random.default_rng(seed)
    return {
        message: [_random_input(tensor, kind, rng) for tensor in model.inputs]
        for kind, message in (("normal", "normal noise"), ("pixels", "pixels of noise"))
    }


def _random_input(tensor: Any, kind: str, rng: np.random.Generator) -> NDArray:
    shape = [RANDOM_EXAMPLES if tensor.shape[0] is None else tensor.shape[0]]
    shape += [(_SIDE if tensor.shape.rank >= 4 else _LENGTH) if n is None else n for n in tensor.shape[1:]]
    rows, dtype = _rows_behind(tensor), tensor.dtype.as_numpy_dtype
    if dtype is np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if rows is not None:
        return rng.integers(0, rows, shape).astype(dtype)
    if kind == "pixels" or not np.issubdtype(dtype, np.floating):
        return rng.integers(0, 128 if dtype is np.int8 else 256, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def _rows_behind(tensor: Any) -> int | None:
    """The fewest rows of any table that the input's values number, or None where there is no such table."""
    result, stack, seen = [], list(layer_of(tensor).outbound_nodes), set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        layer = node.layer
        rows = getattr(layer, "input_dim", None) or getattr(layer, "num_tokens", None)
        if type(layer).__name__ in ("Embedding", "CategoryEncoding"):
            result.append(int(rows or 2))
        elif not layer.weights:
            stack.extend(layer.outbound_nodes)
    return min(result) if result else None


def given_inputs(model: Any, data: Any) -> list[NDArray]:
    """The first examples of `data` (an array, a list or a dict of arrays, or a tfq Split) as a flat list of inputs.

    Raises InputError where it has other inputs than `model`, a tf_keras model, or examples of another shape.
    """
    data = getattr(data, "inputs", data)
    if isinstance(data, Mapping):
        if len(data) == 1:
            data = list(data.values())
        else:
            missing = [name for name in model.input_names if name not in data]
            if missing:
                raise InputError(
                    f"the data has no input {', '.join(missing)}: it has {', '.join(data)}",
                    field="data",
                    expected=tuple(missing),
                    got=tuple(data),
                )
            data = [data[name] for name in model.input_names]
    arrays = [np.asarray(array) for array in (data if isinstance(data, (list, tuple)) else [data])]
    if len(arrays) != len(model.inputs):
        raise InputError(
            f"the data has {len(arrays)} inputs, the model {model.name!r} has {len(model.inputs)}",
            field="data",
            expected=len(model.inputs),
            got=len(arrays),
        )
    for name, array, tensor in zip(model.input_names, arrays, model.inputs, strict=True):
        if not _takes(tuple(tensor.shape)[1:], array.shape[1:]):
            raise InputError(
                f"the data's examples for the input {name!r} have shape {array.shape[1:]}, the model {model.name!r} "
                f"wants {tuple(tensor.shape)[1:]}",
                field="data",
                expected=tuple(tensor.shape)[1:],
                got=array.shape[1:],
            )
    pairs = zip(arrays, model.inputs, strict=True)
    return [array[:GIVEN_EXAMPLES].astype(tensor.dtype.as_numpy_dtype) for array, tensor in pairs]


def _takes(wanted: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    # Both Kerases add a last axis of 1 where it is missing, and take it away where it is too many.
    tried = [shape, (*shape, 1), *([shape[:-1]] if shape[-1:] == (1,) else [])]
    return any(shape_fits(item, wanted) for item in tried)


def outputs_of(model: Any, structure: Any, inputs: list[NDArray]) -> list[NDArray]:
    """Flat outputs of either Keras' model in inference. structure: its input tensors as it nests them."""
    import tensorflow as tf

    kind = model_kind(model)
    tree = import_keras().tree if kind == "keras" else tf.nest
    tensors = [tf.constant(array) for array in inputs]
    outputs = model(tree.pack_sequence_as(structure, tensors), training=False)
    return [np.asarray(tf.cast(output, tf.float32)) for output in tree.flatten(outputs)]


def difference(theirs: list[list[NDArray]], ours: list[list[NDArray]]) -> float:
    """The largest |theirs - ours| as a share of the range of that output over all the data.

    A range under a hundredth of the output's magnitude counts as that: below it float32 itself is what is measured.
    theirs, ours: a list for each set of inputs of a list for each output. inf where one is finite and the other not.
    """
    worst = 0.0
    for reference, rebuilt in zip(zip(*theirs, strict=True), zip(*ours, strict=True), strict=True):
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


def one_step_up(inputs: list[NDArray]) -> list[NDArray]:
    """The next number of its type for each real; whole numbers stay."""
    return [np.nextafter(array, array.dtype.type(np.inf)) if array.dtype.kind == "f" else array for array in inputs]


@contextlib.contextmanager
def computing_in_float32(model: Any) -> Iterator[None]:
    """Within, a model's float16, bfloat16 and mixed layers compute in float32, with the weights they have."""
    layers = [layer for layer in all_layers(model) if layer.compute_dtype in NARROW]
    of_keras = model_kind(model) == "keras"
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            if of_keras:
                layer.dtype_policy = _float32_policy(layer.variable_dtype)
            else:
                layer._set_dtype_policy("float32")
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            if of_keras:
                layer.dtype_policy = policy
            else:
                layer._set_dtype_policy(policy)


def _float32_policy(variable_dtype: str) -> Any:
    base: Any = import_keras().dtype_policies.DTypePolicy

    class Float32Policy(base):
        """Computes in float32 whatever the weights are."""

        @property
        def compute_dtype(self) -> str:
            return "float32"

        @property
        def variable_dtype(self) -> str:
            return variable_dtype

    return Float32Policy("float32")


def narrow_layers(model: Any) -> list[str]:
    """Names of a tf_keras model's layers that do not compute in float32 but in another float."""
    return [layer.name for layer in all_layers(model) if layer.compute_dtype in NARROW]

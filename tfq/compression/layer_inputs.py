# SPDX-License-Identifier: Apache-2.0
"""The vectors that the kernels of a model's layers are multiplied with, for least squares and Gram matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.keras_bridge import import_tf_keras

# Rows taken from one batch.
_ROWS = 1 << 15


def is_matrix_product(layer: Any) -> bool:
    """Check whether a tf_keras layer multiplies patches of its input with one matrix: a plain Conv2D or Dense."""
    keras = import_tf_keras()
    if type(layer) is keras.layers.Conv2D:
        return layer.groups == 1 and layer.data_format == "channels_last"
    return type(layer) is keras.layers.Dense


def inputs_of(model: Any, layer: Any) -> Callable[[Sequence[NDArray]], NDArray]:
    """Return a function that computes the layer's input for a batch of model inputs."""
    inputs = inputs_of_layers(model, [layer])
    return lambda batch: inputs(batch)[0]


def inputs_of_layers(model: Any, layers: Sequence[Any]) -> Callable[[Sequence[NDArray]], list[NDArray]]:
    """Return a function that computes the input of each layer for a batch of model inputs."""
    submodel = import_tf_keras().Model(model.inputs, [layer.input for layer in layers])

    def inputs(batch: Sequence[NDArray]) -> list[NDArray]:
        results = submodel(list(batch) if len(batch) > 1 else batch[0], training=False)
        return [np.asarray(item) for item in (results if isinstance(results, (list, tuple)) else [results])]

    return inputs


def rows_of(layer: Any, inputs: NDArray, limit: int = _ROWS) -> NDArray[np.float64]:
    """Return the vectors that the kernel is multiplied with, at a sample of positions.

    Args:
        layer: A layer of `is_matrix_product`.
        inputs: Its input for a batch.
        limit: About how many rows to return at most, spread over the examples and positions.

    Returns:
        Shape (rows, weights of one filter), with a last column of ones if the layer has a bias.
    """
    import tensorflow as tf

    if type(layer) is import_tf_keras().layers.Dense:
        rows = inputs.reshape(-1, inputs.shape[-1])
    else:
        height, width = layer.kernel_size
        patches = tf.image.extract_patches(
            inputs,
            (1, height, width, 1),
            (1, *layer.strides, 1),
            (1, *layer.dilation_rate, 1),
            layer.padding.upper(),
        )
        rows = np.asarray(patches).reshape(-1, patches.shape[-1])
    rows = rows[:: max(1, len(rows) // limit)].astype(np.float64)
    return np.hstack([rows, np.ones((len(rows), 1))]) if layer.use_bias else rows

# SPDX-License-Identifier: Apache-2.0
"""Codebooks: kernels whose weights share a few values, chosen so that the int8 weights share a few values as well.

tfmot clusters the float values of a kernel. The quantizer then uses a separate scale for each output channel, so that
16 float values become up to 16 int8 values per channel, which differ from channel to channel. The compressed file
hardly shrinks. Here all channels share one codebook of levels from -1 to 1:

    weight = scale[channel] * level[assignment of the weight]

Levels are multiples of 1/127, and each channel uses the level 1 or -1. The quantizer therefore finds the same scales
(times any factor that it folds into a channel), the int8 weights are 127 * level, and rounding adds no error.

Sources: k-means, Lloyd 1982, "Least squares quantization in PCM"; clustering of weights, Han et al. 2016, "Deep
compression"; a codebook shared by normalized vectors, gain-shape vector quantization, Sabin and Gray 1984.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A kernel with a number of distinct int8 values in this range counts as clustered.
MIN_CLUSTERS, MAX_CLUSTERS = 3, 64
# The largest quantized weight: int8, symmetric, narrow range.
_INT8_MAX = 127
# In steps of the int8 scale. The folding of a BatchNormalization in float32 has an error of about 1e-4 steps.
_TOLERANCE = 1e-3
# Initial scales, as fractions of each channel's largest magnitude. The best result is used.
_INITIAL_SCALES = (1.0, 0.85, 0.7, 0.55)
_ITERATIONS = 25
_BINS = 1024


class Codebook:
    """The scales and levels of one kernel, and the assignment of each weight to a level.

    The state is in TensorFlow variables, so that updates can run in graphs.
    """

    def __init__(self, kernel: Any, channel_axis: int | None, clusters: int | None = None) -> None:
        """Cluster a kernel, and assign it the clustered values.

        Args:
            kernel: The variable. Its zeros stay zero.
            channel_axis: Axis of the kernel that is quantized per channel; None for one scale.
            clusters: Number of levels, including zero if the kernel has zeros; None uses the levels of a kernel that
                is already clustered.
        """
        import tensorflow as tf

        self.kernel = kernel
        self._axis, self._shape = channel_axis, tuple(kernel.shape)
        rows = _rows(kernel, channel_axis).numpy()
        scales, levels = _existing(rows) if clusters is None else _initialize(rows, clusters)
        self._fixed = np.isin(levels, [-1.0, 0.0, 1.0] if (rows == 0).any() else [-1.0, 1.0])
        # The weights without clustering, which accumulate the updates of the training.
        self._unclustered = tf.Variable(rows, trainable=False)
        self._nonzero = tf.constant(rows != 0, rows.dtype)
        self._scales = tf.Variable(scales, trainable=False)
        self._levels = tf.Variable(levels, trainable=False)
        self._nearest = tf.Variable(nearest_levels(rows, scales, levels), trainable=False)
        self._clustered = tf.Variable(rows, trainable=False)
        self._assign_clustered()

    def step(self, *, reassign: bool) -> None:
        """Apply the update that a training step made to the kernel, and cluster the kernel again.

        The update is added to unclustered copies of the weights. Levels and scales are fitted to these copies by
        least squares, and the kernel gets the clustered values.

        Args:
            reassign: Whether weights first move to the level nearest to their unclustered copy.
        """
        trained = _rows(self.kernel, self._axis)
        self._unclustered.assign((self._unclustered + trained - self._clustered) * self._nonzero)
        if reassign:
            self._scales.assign(_limited(self._scales, self._unclustered))
            self._nearest.assign(nearest_levels(self._unclustered, self._scales, self._levels))
        levels, scales = least_squares(self._unclustered, self._scales, self._levels, self._nearest, self._fixed)
        self._levels.assign(levels)
        self._scales.assign(scales)
        self._assign_clustered()

    def num_quantized_values(self) -> int | None:
        """Return `count_quantized_values` of the current kernel."""
        return count_quantized_values(self.kernel.numpy(), self._axis)

    def _assign_clustered(self) -> None:
        """Assign the values of its clusters to the kernel."""
        import tensorflow as tf

        rounded = tf.round(self._levels * _INT8_MAX) / _INT8_MAX
        self._clustered.assign(self._scales[:, None] * tf.gather(rounded, self._nearest) * self._nonzero)
        self.kernel.assign(_from_rows(self._clustered, self._shape, self._axis))


def nearest_levels(rows: Any, scales: Any, levels: Any) -> Any:
    """Return the index of the level that is nearest to each normalized weight.

    Args:
        rows: Weights, shape (channels, n).
        scales: Shape (channels,).
        levels: Ascending, shape (clusters,).

    Returns:
        int32, shape (channels, n): the nearest level to rows / scales.
    """
    import tensorflow as tf

    midpoints = (levels[1:] + levels[:-1]) / 2
    normalized = tf.reshape(rows / scales[:, None], (-1,))
    return tf.reshape(tf.searchsorted(midpoints, normalized, out_type=tf.int32), tf.shape(rows))


def least_squares(rows: Any, scales: Any, levels: Any, nearest: Any, fixed: NDArray[np.bool_]) -> tuple[Any, Any]:
    """Minimize the sum of (row - scale * level)^2 for fixed assignments: over the levels first, then over the scales.

    With scales s[c], the level of a cluster K is sum(s[c] * row) / sum(s[c]^2) over the weights of K. With levels l,
    the scale of a channel is sum(row * l) / sum(l^2) over its weights.

    Args:
        rows: Weights, shape (channels, n).
        scales: Shape (channels,).
        levels: Shape (clusters,).
        nearest: The assignments, as returned by `nearest_levels`.
        fixed: Shape (clusters,). Where it is true, the level does not change.

    Returns:
        (levels, scales). A scale is at most the largest magnitude in its channel, so that this weight is nearest to
        -1 or 1. The scale of a channel of zeros does not change.
    """
    import tensorflow as tf

    weights = tf.broadcast_to(tf.square(scales)[:, None], rows.shape)
    sums = tf.math.unsorted_segment_sum(rows * scales[:, None], nearest, len(fixed))
    sizes = tf.math.unsorted_segment_sum(weights, nearest, len(fixed))
    is_free = (sizes > 0) & ~fixed
    levels = tf.where(is_free, sums / tf.where(is_free, sizes, 1.0), levels)
    chosen = tf.gather(levels, nearest)
    fitted = tf.math.divide_no_nan(tf.reduce_sum(rows * chosen, axis=1), tf.reduce_sum(tf.square(chosen), axis=1))
    return levels, _limited(tf.where(fitted > 0, fitted, scales), rows)


def _limited(scales: Any, rows: Any) -> Any:
    """Return the scales, limited to the largest magnitude of each row that is not all zeros."""
    import tensorflow as tf

    largest = tf.reduce_max(tf.abs(rows), axis=1)
    return tf.where(largest > 0, tf.minimum(scales, largest), scales)


def count_quantized_values(kernel: NDArray, channel_axis: int | None) -> int | None:
    """Return the number of distinct int8 values of a kernel; None if quantization to int8 would round its values."""
    rows = _rows(kernel, channel_axis).numpy()
    largest = np.abs(rows).max(axis=1, keepdims=True)
    quantized = np.divide(rows * _INT8_MAX, largest, out=np.zeros_like(rows), where=largest > 0)
    if np.abs(quantized - np.rint(quantized)).max(initial=0) > _TOLERANCE:
        return None
    return int(np.unique(np.rint(quantized)).size)


def _rows(kernel: Any, axis: int | None) -> Any:
    """Return the kernel as a matrix (channels, weights per channel)."""
    import tensorflow as tf

    if axis is None:
        return tf.reshape(kernel, (1, -1))
    return tf.reshape(tf.transpose(kernel, _order(len(kernel.shape), axis)), (kernel.shape[axis], -1))


def _from_rows(rows: Any, shape: Sequence[int], axis: int | None) -> Any:
    """Invert `_rows`."""
    import tensorflow as tf

    if axis is None:
        return tf.reshape(rows, shape)
    axes = _order(len(shape), axis)
    return tf.transpose(tf.reshape(rows, [shape[item] for item in axes]), np.argsort(axes))


def _order(rank: int, axis: int) -> list[int]:
    axis %= rank
    return [axis, *(item for item in range(rank) if item != axis)]


def _existing(rows: NDArray) -> tuple[NDArray, NDArray]:
    """Return (scales, levels) of a clustered kernel."""
    scales = _largest_magnitudes(rows)
    quantized = np.unique(np.rint(rows / scales[:, None] * _INT8_MAX))
    return scales, (np.union1d(quantized, [-_INT8_MAX, _INT8_MAX]) / _INT8_MAX).astype(np.float32)


def _initialize(rows: NDArray, clusters: int) -> tuple[NDArray, NDArray]:
    """Return (scales, levels) of the best of several runs of k-means, which start from different scales."""
    ends = [-1.0, 0.0, 1.0] if (rows == 0).any() else [-1.0, 1.0]
    results = []
    for fraction in _INITIAL_SCALES:
        scales = _largest_magnitudes(rows) * np.float32(fraction)
        levels = np.union1d(ends, _initial_levels(rows / scales[:, None], clusters - len(ends))).astype(np.float32)
        fixed = np.isin(levels, ends)
        for _ in range(_ITERATIONS):
            nearest = nearest_levels(rows, scales, levels)
            levels, scales = (np.asarray(item) for item in least_squares(rows, scales, levels, nearest, fixed))
        chosen = levels[np.asarray(nearest_levels(rows, scales, levels))]
        results.append((float(np.square(rows - scales[:, None] * chosen).sum()), scales, levels))
    _, scales, levels = min(results, key=lambda item: item[0])
    return scales, levels


def _largest_magnitudes(rows: NDArray) -> NDArray:
    """Return the largest magnitude of each channel; 1 for a channel of zeros."""
    largest = np.abs(rows).max(axis=1)
    return np.where(largest > 0, largest, 1).astype(np.float32)


def _initial_levels(values: NDArray, count: int) -> NDArray:
    """Return `count` initial levels between -1 and 1.

    Their density is proportional to the cube root of the density of the values, which is optimal for many levels
    (Panter and Dite 1951).
    """
    inside = values[(np.abs(values) < 1) & (values != 0)]
    if count < 1 or not inside.size:
        return np.empty(0)
    counts, edges = np.histogram(inside, _BINS, (-1, 1))
    cumulative = np.concatenate([[0], np.cumsum(np.cbrt(counts))])
    return np.interp((np.arange(count) + 0.5) / count * cumulative[-1], cumulative, edges)

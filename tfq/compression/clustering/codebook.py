# SPDX-License-Identifier: Apache-2.0
"""Kernels made of a few values, chosen as the codes that they will have in the int8 flatbuffer.

tfmot clusters the float values of a whole kernel. The quantizer then scales each output channel by itself, and 16
values become up to 16 codes a channel, other ones in each: the compressed file hardly shrinks. Here a weight is
scale[channel] * level, with one codebook of levels from -1 to 1 for all channels. Levels are multiples of 1/127 and
each channel uses 1 or -1, so that the quantizer finds the same scales (times what it folds into a channel), its codes
are 127 * level, and rounding adds no error.
Sources: k-means, Lloyd 1982; of weights, Han et al. 2016, "Deep compression"; of channels that share a codebook by
normalizing them, product quantization's gain-shape codes (Sabin and Gray 1984).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A kernel of as many codes is taken for a clustered one.
FEWEST_CLUSTERS, MOST_CLUSTERS = 3, 64
# The largest code of a weight: int8, symmetric, narrow range.
_CODES = 127
# In codes. float32 keeps a 10,000th of one through the folding of a BatchNormalization.
_OFF = 1e-3
# Where scales begin, of each channel's largest weight: the best of them is taken.
_SHARES = (1.0, 0.85, 0.7, 0.55)
_SWEEPS = 25
_BINS = 1024


class Codebook:
    """One kernel's levels, and which of them each weight has. In variables of TensorFlow: updated in graphs.

    kernel: variable, given its clustered values at once. channel_axis: of the output channels that have a scale each in
    the flatbuffer; None is one scale for all. clusters: of the whole kernel, its zero among them where it has any; None
    takes the levels of a kernel that is clustered.
    """

    def __init__(self, kernel: Any, channel_axis: int | None, clusters: int | None = None) -> None:
        import tensorflow as tf

        self.kernel = kernel
        self._axis, self._shape = channel_axis, tuple(kernel.shape)
        rows = _rows(kernel, channel_axis).numpy()
        scales, levels = _found(rows) if clusters is None else _begin(rows, clusters)
        self._fixed = np.isin(levels, [-1.0, 0.0, 1.0] if (rows == 0).any() else [-1.0, 1.0])
        # What the steps of the training add up in, unrounded.
        self._free = tf.Variable(rows, trainable=False)
        self._nonzero = tf.constant(rows != 0, rows.dtype)
        self._scales = tf.Variable(scales, trainable=False)
        self._levels = tf.Variable(levels, trainable=False)
        self._nearest = tf.Variable(nearest_levels(rows, scales, levels), trainable=False)
        self._clustered = tf.Variable(rows, trainable=False)
        self._put()

    def step(self, *, reassign: bool) -> None:
        """After a training step: what it added to the kernel moves levels and scales; reassign: and weights, to others.

        A weight is moved to another level where what the steps have added up to is nearer to that.
        """
        trained = _rows(self.kernel, self._axis)
        self._free.assign((self._free + trained - self._clustered) * self._nonzero)
        if reassign:
            self._scales.assign(_no_wider(self._scales, self._free))
            self._nearest.assign(nearest_levels(self._free, self._scales, self._levels))
        levels, scales = least_squares(self._free, self._scales, self._levels, self._nearest, self._fixed)
        self._levels.assign(levels)
        self._scales.assign(scales)
        self._put()

    def codes(self) -> int | None:
        """`count_codes` of the kernel as it is now."""
        return count_codes(self.kernel.numpy(), self._axis)

    def _put(self) -> None:
        """Gives the kernel the values of its clusters, whatever it has."""
        import tensorflow as tf

        coded = tf.round(self._levels * _CODES) / _CODES
        self._clustered.assign(self._scales[:, None] * tf.gather(coded, self._nearest) * self._nonzero)
        self.kernel.assign(_kernel(self._clustered, self._shape, self._axis))


def nearest_levels(rows: Any, scales: Any, levels: Any) -> Any:
    """int32, as rows (channels, n): the index of the level that is nearest to each weight / its channel's scale."""
    import tensorflow as tf

    middles = (levels[1:] + levels[:-1]) / 2
    relative = tf.reshape(rows / scales[:, None], (-1,))
    return tf.reshape(tf.searchsorted(middles, relative, out_type=tf.int32), tf.shape(rows))


def least_squares(rows: Any, scales: Any, levels: Any, nearest: Any, fixed: NDArray[np.bool_]) -> tuple[Any, Any]:
    """(levels, scales) of the least sum of (row - scale * level)^2 for given clusters: levels first, then scales.

    rows (channels, n); nearest: as `nearest_levels` has it. Levels that are `fixed` stay; a scale stays within its
    channel's largest weight, which thereby is nearest to -1 or 1, and where a channel is all zeros.
    """
    import tensorflow as tf

    weights = tf.broadcast_to(tf.square(scales)[:, None], rows.shape)
    sums = tf.math.unsorted_segment_sum(rows * scales[:, None], nearest, len(fixed))
    sizes = tf.math.unsorted_segment_sum(weights, nearest, len(fixed))
    moves = (sizes > 0) & ~fixed
    levels = tf.where(moves, sums / tf.where(moves, sizes, 1.0), levels)
    chosen = tf.gather(levels, nearest)
    fitted = tf.math.divide_no_nan(tf.reduce_sum(rows * chosen, axis=1), tf.reduce_sum(tf.square(chosen), axis=1))
    return levels, _no_wider(tf.where(fitted > 0, fitted, scales), rows)


def _no_wider(scales: Any, rows: Any) -> Any:
    """Scales of at most each row's largest weight, where it has any but zeros."""
    import tensorflow as tf

    largest = tf.reduce_max(tf.abs(rows), axis=1)
    return tf.where(largest > 0, tf.minimum(scales, largest), scales)


def count_codes(kernel: NDArray, channel_axis: int | None) -> int | None:
    """How many codes a kernel has in int8, all channels together; None where its values lie between codes."""
    rows = _rows(kernel, channel_axis).numpy()
    largest = np.abs(rows).max(axis=1, keepdims=True)
    quantized = np.divide(rows * _CODES, largest, out=np.zeros_like(rows), where=largest > 0)
    if np.abs(quantized - np.rint(quantized)).max(initial=0) > _OFF:
        return None
    return int(np.unique(np.rint(quantized)).size)


def _rows(kernel: Any, axis: int | None) -> Any:
    """The kernel as (channels, weights of each)."""
    import tensorflow as tf

    if axis is None:
        return tf.reshape(kernel, (1, -1))
    return tf.reshape(tf.transpose(kernel, _order(len(kernel.shape), axis)), (kernel.shape[axis], -1))


def _kernel(rows: Any, shape: Sequence[int], axis: int | None) -> Any:
    """`_rows` turned back."""
    import tensorflow as tf

    if axis is None:
        return tf.reshape(rows, shape)
    axes = _order(len(shape), axis)
    return tf.transpose(tf.reshape(rows, [shape[item] for item in axes]), np.argsort(axes))


def _order(rank: int, axis: int) -> list[int]:
    axis %= rank
    return [axis, *(item for item in range(rank) if item != axis)]


def _found(rows: NDArray) -> tuple[NDArray, NDArray]:
    """(scales, levels) of a kernel that is clustered."""
    scales = _widths(rows)
    quantized = np.unique(np.rint(rows / scales[:, None] * _CODES))
    return scales, (np.union1d(quantized, [-_CODES, _CODES]) / _CODES).astype(np.float32)


def _begin(rows: NDArray, clusters: int) -> tuple[NDArray, NDArray]:
    """(scales, levels): the best of a few k-means that begin with scales of different widths."""
    ends = [-1.0, 0.0, 1.0] if (rows == 0).any() else [-1.0, 1.0]
    results = []
    for fraction in _SHARES:
        scales = _widths(rows) * np.float32(fraction)
        levels = np.union1d(ends, _dense(rows / scales[:, None], clusters - len(ends))).astype(np.float32)
        fixed = np.isin(levels, ends)
        for _ in range(_SWEEPS):
            nearest = nearest_levels(rows, scales, levels)
            levels, scales = (np.asarray(item) for item in least_squares(rows, scales, levels, nearest, fixed))
        chosen = levels[np.asarray(nearest_levels(rows, scales, levels))]
        results.append((float(np.square(rows - scales[:, None] * chosen).sum()), scales, levels))
    _, scales, levels = min(results, key=lambda item: item[0])
    return scales, levels


def _widths(rows: NDArray) -> NDArray:
    """The largest weight of each channel; 1 where there are zeros alone."""
    largest = np.abs(rows).max(axis=1)
    return np.where(largest > 0, largest, 1).astype(np.float32)


def _dense(values: NDArray, count: int) -> NDArray:
    """`count` levels between -1 and 1, as dense as the cube root of the values' density (Panter and Dite 1951)."""
    inside = values[(np.abs(values) < 1) & (values != 0)]
    if count < 1 or not inside.size:
        return np.empty(0)
    counts, edges = np.histogram(inside, _BINS, (-1, 1))
    reached = np.concatenate([[0], np.cumsum(np.cbrt(counts))])
    return np.interp((np.arange(count) + 0.5) / count * reached[-1], reached, edges)

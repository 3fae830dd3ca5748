# SPDX-License-Identifier: Apache-2.0
"""What the weights of a layer are multiplied with: the patches of its data, place by place."""

import numpy as np
from numpy.typing import NDArray

from tfq.ptq.weighted_ops import Weighted

_SAME_PADDING = 0
# Places of an image that are taken of each sample; neighbours tell little more.
_MOST_PLACES = 256


def patches_of(layer: Weighted, data: NDArray[np.float32]) -> NDArray[np.float32]:
    """(groups, places, K): what each output channel of a group weighs, in the order of `Weighted.by_output`.

    data: of a sample: NHWC of a convolution, (..., inputs) of a fully connected layer. A convolution and a fully
    connected layer are one group; a depthwise convolution has a group for each channel of its data.
    Of an image with more than 256 places, evenly spaced ones are taken.
    """
    if layer.name == "FULLY_CONNECTED":
        return data.reshape(1, -1, layer.weights.shape[1])
    options, weights = layer.op.builtinOptions, layer.weights
    kernel = weights.shape[1:3]
    stride = options.strideH, options.strideW
    dilation = options.dilationHFactor, options.dilationWFactor
    padded = data
    if options.padding == _SAME_PADDING:
        sizes = [
            same_padding(size, *each) for size, *each in zip(data.shape[1:3], kernel, stride, dilation, strict=True)
        ]
        padded = np.pad(data, ((0, 0), *sizes, (0, 0)))
    reach = [(size - 1) * by + 1 for size, by in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (1, 2))
    # (batch, rows, columns, channels, kernel rows, kernel columns)
    windows = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    rows, columns = np.unravel_index(_places(windows.shape[1] * windows.shape[2]), windows.shape[1:3])
    chosen = windows[:, rows, columns].reshape(-1, *windows.shape[3:])
    if layer.is_depthwise:
        return np.ascontiguousarray(chosen.transpose(1, 0, 2, 3)).reshape(chosen.shape[1], len(chosen), -1)
    return chosen.transpose(0, 2, 3, 1).reshape(1, len(chosen), -1)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, behind) of one dimension, where padding is SAME: the odd one lies behind."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _places(count: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, min(count, _MOST_PLACES)).astype(np.int64)

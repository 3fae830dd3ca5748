# SPDX-License-Identifier: Apache-2.0
"""A small single-stage object detector: a box and class scores for each cell of a grid."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.typing import KerasLayer, KerasModel, KerasTensor

STRIDE = 8


def build_grid_detector(keras: ModuleType, input_shape: tuple[int, ...] = (64, 64, 3), classes: int = 10) -> KerasModel:
    """Build an anchor-free detector with one box for each cell of 8x8 pixels, uncompiled and with random weights.

    Input "image": (n, 64, 64, 3) float32, pixels from 0 to 1. Outputs: "boxes" (n, 64, 4), ymin, xmin, ymax, xmax as
    fractions of the image, one for each of the 8x8 cells; and "scores" (n, 64, classes), sigmoid. Overlapping boxes are
    removed after the model, as `tfq.decode_raw` does and the metric coco_map by itself. It has 30,286 parameters, of
    which 1,024 are moving statistics.

    The last step is part of the model: each cell's center is added to four predicted distances. `grid_targets` returns
    the labels that it is trained with, by `box_loss` and `score_loss`.

    Source: tfq's own; a cell is responsible for a box as in FCOS (Tian et al. 2019), the blocks are those of MobileNet
    (Howard et al. 2017).

    Args:
        keras: The module `keras` (Keras 3) or `tf_keras`.
        input_shape: The shape of one example; height and width are multiples of 8.
        classes: The number of classes.

    Raises:
        ValueError: Height or width is not a multiple of 8.
    """
    layers = keras.layers
    height, width = input_shape[:2]
    if height % STRIDE or width % STRIDE:
        raise ValueError(f"height and width must be multiples of {STRIDE}")

    def unit(x: KerasTensor, layer: KerasLayer) -> KerasTensor:
        x = layers.BatchNormalization(momentum=0.9, name=f"{layer.name}_bn")(layer(x))
        return layers.ReLU(6.0, name=f"{layer.name}_relu")(x)

    def block(x: KerasTensor, name: str, filters: int, strides: int = 1) -> KerasTensor:
        depthwise = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False, name=f"{name}_depthwise")
        x = unit(x, depthwise)
        return unit(x, layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pointwise"))

    image = keras.Input(input_shape, name="image")
    x = unit(image, layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem"))
    x = block(x, "block1", 32, strides=2)
    x = block(x, "block2", 32)
    x = block(x, "block3", 64, strides=2)
    x = block(x, "block4", 64)
    x = block(x, "block5", 96)
    cells = (height // STRIDE) * (width // STRIDE)
    # A start of 0.01, so that the many empty cells do not dominate the first steps (Lin et al. 2017, focal loss).
    prior = keras.initializers.Constant(-float(np.log(99)))
    scores = layers.Conv2D(classes, 3, padding="same", bias_initializer=prior, name="score_map")(x)
    scores = layers.Reshape((cells, classes), name="score_rows")(scores)
    scores = layers.Activation("sigmoid", name="scores")(scores)
    distances = layers.Conv2D(4, 3, padding="same", name="distance_map")(x)
    distances = layers.Reshape((cells, 4), name="distances")(distances)
    boxes = layers.Rescaling(1.0, offset=cell_centers(height, width).tolist(), name="boxes")(distances)
    model: KerasModel = keras.Model(image, [boxes, scores], name="grid_detector")
    return model


def cell_centers(height: int, width: int) -> NDArray[np.float32]:
    """Return the centers of the cells, (cells, 4): y, x, y, x as fractions of the image, row by row."""
    rows, columns = height // STRIDE, width // STRIDE
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack([y, x, y, x], axis=-1).reshape(-1, 4).astype(np.float32)


def grid_targets(
    labels: NDArray, input_shape: tuple[int, ...] = (64, 64, 3), classes: int = 10
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what each cell should predict for labeled boxes.

    The cells whose centers are in the middle half of a box (in both directions) predict it, and so does the cell that
    its center is in. If several boxes claim a cell, the smallest one gets it. Crowds are left out.

    Args:
        labels: (n, max_boxes, 6 or more) as the source coco has them: class, ymin, xmin, ymax, xmax (fractions of the
            image), is_crowd; rows with class -1 are padding.
        input_shape: The shape of one image.
        classes: The number of classes.

    Returns:
        (n, cells, 5) the boxes and 1 for the cells that predict one, else zeros; (n, cells, classes) their classes,
        one-hot, else zeros.
    """
    height, width = input_shape[:2]
    centers = cell_centers(height, width)[:, :2]
    boxes = np.zeros((len(labels), len(centers), 5), np.float32)
    scores = np.zeros((len(labels), len(centers), classes), np.float32)
    reach = np.asarray([STRIDE / height, STRIDE / width]) / 2
    for image, rows in enumerate(labels):
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 5] == 0)]
        areas = (rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2])
        for row in rows[np.argsort(-areas, kind="stable")]:
            middle, size = (row[1:3] + row[3:5]) / 2, row[3:5] - row[1:3]
            chosen = (np.abs(centers - middle) <= np.maximum(size / 4, reach)).all(axis=1)
            boxes[image, chosen] = [*row[1:5], 1]
            scores[image, chosen] = np.eye(classes, dtype=np.float32)[int(row[0])]
    return boxes, scores


def box_loss(targets: KerasTensor, boxes: KerasTensor) -> KerasTensor:
    """Return for each image the mean over its cells with a box of 1 - IoU plus ten times the absolute error.

    Args:
        targets: (n, cells, 5), the first result of `grid_targets`.
        boxes: (n, cells, 4), the model's output.

    Returns:
        (n,) losses.
    """
    import tensorflow as tf

    rows: Any = targets
    corners: Any = boxes
    expected, is_box = rows[..., :4], rows[..., 4]
    overlap = tf.nn.relu(
        tf.minimum(corners[..., 2:], expected[..., 2:]) - tf.maximum(corners[..., :2], expected[..., :2])
    )
    intersection = tf.reduce_prod(overlap, axis=-1)
    areas = [tf.reduce_prod(tf.nn.relu(corner[..., 2:4] - corner[..., :2]), axis=-1) for corner in (corners, expected)]
    iou = intersection / (areas[0] + areas[1] - intersection + 1e-6)
    error = 1 - iou + 10 * tf.reduce_mean(tf.abs(corners - expected), axis=-1)
    loss: KerasTensor = tf.reduce_sum(error * is_box, axis=-1) / (tf.reduce_sum(is_box, axis=-1) + 1)
    return loss


def score_loss(targets: KerasTensor, scores: KerasTensor) -> KerasTensor:
    """Return for each image the focal loss (Lin et al. 2017; alpha 0.25, gamma 2) per cell with a box.

    Args:
        targets: (n, cells, classes), the second result of `grid_targets`.
        scores: (n, cells, classes), the model's output.

    Returns:
        (n,) losses.
    """
    import tensorflow as tf

    is_class: Any = targets
    predicted = tf.clip_by_value(scores, 1e-6, 1 - 1e-6)
    positive = -0.25 * is_class * (1 - predicted) ** 2 * tf.math.log(predicted)
    negative = -0.75 * (1 - is_class) * predicted**2 * tf.math.log(1 - predicted)
    loss: KerasTensor = tf.reduce_sum(positive + negative, axis=[1, 2]) / (tf.reduce_sum(is_class, axis=[1, 2]) + 1)
    return loss

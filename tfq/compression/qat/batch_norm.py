# SPDX-License-Identifier: Apache-2.0
"""Freeze the statistics of BatchNormalization late in quantization-aware training.

The batch statistics that training normalizes with differ from the moving statistics that the converter folds into the
kernel. Once the statistics are frozen, training computes what the flatbuffer computes. Source: Krishnamoorthi 2018,
"Quantizing deep convolutional networks for efficient inference", section 3.2.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from tfq.compression._tfmot.tfmot_symbols import wrapped
from tfq.compression.graph import steps_of_training
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.strategies import synchronize


@contextlib.contextmanager
def frozen_from_step(model: Any, step: int) -> Iterator[list[Any]]:
    """Freeze the moving statistics of each BatchNormalization from a training step on, inside a `with` block.

    From that step on, layers normalize with their moving statistics, which do not change any more. Gamma and beta are
    still trained.

    Args:
        model: A QAT model.
        step: Number of training steps before the freeze; -1 is nine tenths of the training (of the first `model.fit`
            if there are several).

    Yields:
        The callbacks that `fit` must pass on; none if the model has no trainable BatchNormalization.

    Raises:
        TfqError: At the end of the block, if the callbacks were needed but not used.
        InputError: `step` is -1, and Keras does not know the number of training steps in advance.
    """
    import tensorflow as tf

    layers = [layer for layer in map(wrapped, model.layers) if _has_moving_statistics(layer)]
    if not layers:
        yield []
        return
    # Variables, because the training step that reads them is traced before they change.
    steps_done = tf.Variable(0, dtype=tf.int64, trainable=False)
    freeze_step = tf.Variable(max(step, 0), dtype=tf.int64, trainable=False)
    callback = _counting(steps_done, freeze_step, step)
    try:
        for layer in layers:
            layer.call = _call(layer.call, steps_done, freeze_step)
        yield [callback]
    finally:
        for layer in layers:
            del layer.call
    if step and not callback.began:
        raise TfqError(
            "qat: fit did not pass on the callbacks that it received, which freeze the statistics of "
            "BatchNormalization: call model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
        )


def _call(call: Any, steps_done: Any, freeze_step: Any) -> Any:
    # The parameter must be named `training`, or tfmot's wrapper does not pass it.
    def with_frozen_statistics(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return call(inputs, training=steps_done < freeze_step if training else training, mask=mask)

    return with_frozen_statistics


def _counting(steps_done: Any, freeze_step: Any, step: int) -> Any:
    class FreezeBatchNormalization(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.began = False
            self._before = 0
            self._is_frozen = False

        def on_train_begin(self, logs: Any = None) -> None:
            if step == -1 and not self.began:
                freeze_step.assign(_nine_tenths(self.params or {}))
            self.began = True

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._before = int(steps_done.numpy())

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # With steps_per_execution, `batch` is the last of several.
            steps_done.assign(self._before + batch + 1)
            if not self._is_frozen and steps_done.numpy() >= freeze_step.numpy():
                self._is_frozen = True
                synchronize(self.model)

    return FreezeBatchNormalization()


def _nine_tenths(params: dict[str, Any]) -> int:
    """Return nine tenths of the training steps.

    With the freeze at half of one epoch, the accuracy of ResNet8 on CIFAR-10 was 0.9 points lower.
    """
    return max(1, steps_of_training(params, "qat", "freeze_batch_norm_step", "nine tenths") * 9 // 10)


def _has_moving_statistics(layer: Any) -> bool:
    """Check whether the layer is a BatchNormalization whose statistics change in training."""
    return isinstance(layer, import_tf_keras().layers.BatchNormalization) and layer.trainable

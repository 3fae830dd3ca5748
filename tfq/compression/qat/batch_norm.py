# SPDX-License-Identifier: Apache-2.0
"""BatchNormalization in quantization-aware training: its statistics move at first, and then stand still.

With fake quantization, a batch's own mean and variance are not those that the converter folds into the kernel before
it. Once they are frozen, training computes what the flatbuffer will. Source: Krishnamoorthi 2018, "Quantizing deep
convolutional networks for efficient inference", section 3.2.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from tfq.compression._tfmot.tfmot_symbols import wrapped
from tfq.compression.graph import steps_of_training
from tfq.errors import TfqError
from tfq.keras_bridge import import_tf_keras


@contextlib.contextmanager
def frozen_from_step(model: Any, step: int) -> Iterator[list[Any]]:
    """Within, each BatchNormalization of a tf_keras model computes with its moving statistics from `step` on.

    They do not change any more then; gamma and beta go on learning.
    step: training steps before that, 0 for none; -1: nine tenths of the training (of the first fit, if there are
        several).
    Gives the callbacks that fit must pass on, none where the model has no BatchNormalization that learns.
    Raises TfqError at the end where they were not used and the statistics should have been frozen by them; InputError
    when training begins with step -1 and nobody knows how long it is.
    """
    import tensorflow as tf

    layers = [layer for layer in map(wrapped, model.layers) if _moves(layer)]
    if not layers:
        yield []
        return
    # Variables, for the training step that reads them is traced before they change.
    seen = tf.Variable(0, dtype=tf.int64, trainable=False)
    last = tf.Variable(max(step, 0), dtype=tf.int64, trainable=False)
    callback = _counting(seen, last, step)
    try:
        for layer in layers:
            layer.call = _call(layer.call, seen, last)
        yield [callback]
    finally:
        for layer in layers:
            del layer.call
    if step and not callback.began:
        raise TfqError(
            "qat: fit did not pass on the callbacks that it was given, which freeze the statistics of "
            "BatchNormalization: model.fit(..., callbacks=callbacks)",
            field="fit",
            expected="a fit that passes on the callbacks",
        )


def _call(call: Any, seen: Any, last: Any) -> Any:
    # tfmot's wrapper passes `training` to a call that names it.
    def with_own_statistics(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return call(inputs, training=seen < last if training else training, mask=mask)

    return with_own_statistics


def _counting(seen: Any, last: Any, step: int) -> Any:
    class FreezeBatchNormalization(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.began = False
            self._before = 0

        def on_train_begin(self, logs: Any = None) -> None:
            if step == -1 and not self.began:
                last.assign(_nine_tenths(self.params or {}))
            self.began = True

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._before = int(seen.numpy())

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # `batch` is the last of several where compile was given steps_per_execution.
            seen.assign(self._before + batch + 1)

    return FreezeBatchNormalization()


def _nine_tenths(params: dict[str, Any]) -> int:
    """Steps before the freeze. Frozen at half of one epoch of ResNet8 on CIFAR-10, accuracy was 0.9 points lower."""
    return max(1, steps_of_training(params, "qat", "freeze_batch_norm_step", "nine tenths") * 9 // 10)


def _moves(layer: Any) -> bool:
    """Whether the layer is a BatchNormalization whose statistics training changes."""
    return isinstance(layer, import_tf_keras().layers.BatchNormalization) and layer.trainable

# SPDX-License-Identifier: Apache-2.0
"""Activation ranges of QAT that are right after a short training."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tfq.compression import tfmot_private
from tfq.keras_bridge import import_tfmot


@contextlib.contextmanager
def ranges_from_first_batch(model: Any) -> Iterator[Callable[[], int]]:
    """Within, the moving averages of a QAT model's ranges start at the first batch and forget early ones.

    tfmot starts them at [-6, 6] with a fixed decay of 0.999: after 300 steps three quarters of that guess still
    stand. Here the decay is 0 in the first step and then min(0.999, (1 + n) / (10 + n)) in step n + 1, the rule of
    tf.train.ExponentialMovingAverage(num_updates). After, tfmot's own quantizers are back, with the ranges learned.
    Gives a function that says how many training steps have been seen.
    """
    places = tfmot_private.moving_average_places(model)
    replacements = [_debiased(quantizer) for _, _, quantizer in places]
    try:
        for (owner, attribute, _), debiased in zip(places, replacements, strict=True):
            _put(owner, attribute, debiased)
        # The maximum, for a quantizer behind an activation that does nothing is never called.
        yield lambda: max(int(debiased.seen.numpy()) for debiased in replacements)
    finally:
        for owner, attribute, quantizer in places:
            _put(owner, attribute, quantizer)


def _put(owner: Any, attribute: str, quantizer: Any) -> None:
    setattr(owner, attribute, [quantizer] if attribute == "_output_quantizers" else quantizer)


def _debiased(quantizer: Any) -> Any:
    import tensorflow as tf

    # Found here, not in __call__, which TensorFlow traces.
    moving_average_quantize = tfmot_private.moving_average_quantize()

    base: Any = import_tfmot().quantization.keras.quantizers.MovingAverageQuantizer

    class Debiased(base):
        def __init__(self) -> None:
            super().__init__(**quantizer.get_config())
            self.seen = tf.Variable(0, dtype=tf.int64, trainable=False)

        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            if not training:
                return super().__call__(inputs, training, weights, **kwargs)
            n = tf.cast(self.seen.assign_add(1) - 1, tf.float32)
            decay = tf.where(n > 0, tf.minimum(0.999, (1 + n) / (10 + n)), 0.0)
            return moving_average_quantize(self, inputs, weights, decay)

    return Debiased()

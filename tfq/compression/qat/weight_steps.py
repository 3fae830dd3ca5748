# SPDX-License-Identifier: Apache-2.0
"""Train weights of 4 bits with learned step sizes (LSQ).

A weight w of an output channel with the step s is quantized to q * s, where q = clip(round(w / s), -7, 7). The
gradients are those of `ranges`, with n = p = 7. The gradient of s is divided by sqrt(7 N), where N is the number of
weights of the channel, so that steps and weights change at similar relative rates.

The trained parameter of a channel is f, for the step s = s0 * exp(f). The initial step s0 has the least squared error.

Source: Esser et al. 2020, "Learned step size quantization".
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression._tfmot import tfmot_symbols
from tfq.ptq.weight_scales import least_error_scales

# The largest 4-bit quantized value. Values are symmetric: a BatchNormalization after the layer can change their signs.
HIGHEST = 7


def int4_weights(model: Any) -> list[tuple[str, Any, Any, dict[str, Any]]]:
    """Return `tfmot_symbols.weight_ranges` of the weights of a QAT model that are trained with 4 bits."""
    return [place for place in tfmot_symbols.weight_ranges(model) if has_int4(place[2])]


def has_int4(quantizer: Any) -> bool:
    """Check whether the quantizer of a weight rounds to 4 bits."""
    return getattr(quantizer, "num_bits", 8) == 4


def initialize_steps(model: Any) -> None:
    """Set the ranges of 4-bit weights to -7 and 7 times the steps with the least squared error."""
    for _, weight, quantizer, variables in int4_weights(model):
        rows = np.asarray(quantizer.rows(weight)).T.astype(np.float64)
        # Magnitudes have the errors of symmetric values, of which the file format has one more on the negative side.
        assign_steps(variables, least_error_scales(np.abs(rows), 4))


@contextlib.contextmanager
def lsq_steps(model: Any, trained: Any) -> Iterator[None]:
    """Train the steps of a QAT model's 4-bit weights by LSQ, inside a `with` block.

    After the block, the ranges of the weights have the trained steps, and everything else is restored.

    Args:
        model: The QAT model.
        trained: The model that `fit` receives: `model`, or a model with the same layers. The parameters are added to
            its trainable variables.
    """
    import tensorflow as tf

    places = int4_weights(model)
    learned = []
    try:
        for number, (_, _, quantizer, variables) in enumerate(places):
            initial = np.asarray(variables["max_var"].numpy(), np.float32) / HIGHEST
            factor = tf.Variable(np.zeros_like(initial), name=f"learned_step_{number}", trainable=True)
            setattr(trained, f"_learned_step_{number}", factor)
            quantizer.learned = _lsq_quantizer(factor, initial)
            learned.append((factor, initial))
        yield
        for (*_, variables), (factor, initial) in zip(places, learned, strict=True):
            assign_steps(variables, initial * np.exp(factor.numpy()))
    finally:
        for number, (_, _, quantizer, _) in enumerate(places[: len(learned)]):
            quantizer.learned = None
            delattr(trained, f"_learned_step_{number}")


def _lsq_quantizer(factor: Any, initial: NDArray) -> Any:
    """Return a function (quantizer, rows) that rounds rows (weights of a channel, channels) with learned steps."""
    import tensorflow as tf

    fake_quantized = tfmot_symbols.fake_quantize()

    def quantize(quantizer: Any, rows: Any) -> Any:
        step = initial * tf.exp(factor)
        rounded = fake_quantized(quantizer, rows, -HIGHEST * step, HIGHEST * step)
        gradient = lsq_quantize(rows, step)
        return gradient + tf.stop_gradient(rounded - gradient)

    return quantize


def lsq_quantize(rows: Any, step: Any) -> Any:
    """Round `rows` (weights of a channel, channels) to steps (channels,), with the LSQ gradients of this module."""
    import tensorflow as tf

    fraction = 1 / math.sqrt(HIGHEST * int(rows.shape[0]))
    step = step * fraction + tf.stop_gradient(step * (1 - fraction))
    steps = rows / step
    steps = tf.clip_by_value(steps + tf.stop_gradient(tf.round(steps) - steps), -HIGHEST, HIGHEST)
    return steps * step


def steps_of(variables: dict[str, Any]) -> NDArray[np.float64]:
    """Return the steps of the channels of a 4-bit weight, from its range variables: (channels,)."""
    return np.asarray(variables["max_var"].numpy(), np.float64).reshape(-1) / HIGHEST


def assign_steps(variables: dict[str, Any], steps: NDArray) -> None:
    """Set the ranges of a 4-bit weight to -7 and 7 times its steps: (channels,)."""
    steps = np.asarray(steps, np.float32).reshape(np.shape(variables["max_var"]))
    tfmot_symbols.assign_ends(variables, -HIGHEST * steps, HIGHEST * steps)

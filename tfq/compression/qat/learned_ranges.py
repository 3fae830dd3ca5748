# SPDX-License-Identifier: Apache-2.0
"""Ranges of activations that are trained with the weights: where to clip is learned from the loss.

A wider range clips less and rounds more coarsely; the gradient of its step has both: of values within what rounding did
to them, of values beyond that they are clipped. Sources: Esser et al. 2020, "Learned step size quantization" (LSQ), and
of clipping Choi et al. 2018, "PACT". Learned is the logarithm of a factor to where the range begins, so that one
learning rate suits ranges of any size.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat.ranges import quantizer_class, replaced
from tfq.compression.qat.shared_ranges import shared_ranges

Pair = dict[str, Any]


@contextlib.contextmanager
def learned_ranges(model: Any, trained: Any) -> Iterator[Callable[[], int]]:
    """Within, the ranges of a QAT model are trained; after, they stay as they have become, and nothing else is left.

    model: calibrated. trained: what fit is given, `model` itself or one of the same layers: it has the factors among
        its trainable variables.
    Learned are the ranges that tfmot averages, those of tensors that have one scale in the flatbuffer together; one
    that is empty stays so. Gives a function that says how many training steps there have been.
    """
    import tensorflow as tf

    places = tfmot_symbols.activation_quantizers(model)
    shared = shared_ranges(model)
    in_groups = {id(pair["min_var"]) for group in shared for pair in group}
    singles = [
        [pair]
        for place in places
        if place.is_moving_average
        for pair in place.ranges
        if id(pair["min_var"]) not in in_groups
    ]
    ends: dict[int, tuple[Any, float, float]] = {}
    groups: list[tuple[list[Pair], Any, float, float]] = []
    for group in (*shared, *singles):
        low = min(float(pair["min_var"].numpy()) for pair in group)
        high = max(float(pair["max_var"].numpy()) for pair in group)
        if high > low:
            factor = tf.Variable(0.0, name=f"learned_range_{len(groups)}")
            groups.append((group, factor, low, high))
            ends |= {id(pair["min_var"]): (factor, low, high) for pair in group}
    chosen = [place for place in places if any(id(pair["min_var"]) in ends for pair in place.ranges)]
    names = [f"_learned_range_{number}" for number in range(len(groups))]
    with contextlib.ExitStack() as around:
        for name, (_, factor, _, _) in zip(names, groups, strict=True):
            setattr(trained, name, factor)
            around.callback(delattr, trained, name)
        around.enter_context(replaced(chosen, lambda quantizer: _learning(quantizer, ends)))
        yield lambda: int(trained.optimizer.iterations.numpy()) if getattr(trained, "optimizer", None) else 0
        for group, factor, low, high in groups:
            learned = float(tf.exp(factor).numpy())
            for pair in group:
                tfmot_symbols.assign_ends(pair, low * learned, high * learned)


def _learning(quantizer: Any, ends: dict[int, tuple[Any, float, float]]) -> Any:
    """The same quantizer with the learned ends, by id(min_var)."""
    import tensorflow as tf

    base: Any = quantizer_class(quantizer)

    class Learning(base):
        def __call__(self, inputs: Any, training: bool, weights: Pair, **kwargs: Any) -> Any:
            found = ends.get(id(weights["min_var"]))
            if found is None:
                return super().__call__(inputs, training, weights, **kwargs)
            low, high = (tf.exp(found[0]) * end for end in found[1:])
            rounded = tfmot_symbols.fake_quantized(self, inputs, low, high)
            gradient = _with_gradient_of_step(inputs, low, high, 2**self.num_bits - 1)
            return gradient + tf.stop_gradient(rounded - gradient)

    return Learning(**quantizer.get_config())


def _with_gradient_of_step(inputs: Any, low: Any, high: Any, levels: int) -> Any:
    """`inputs` rounded to so many steps from low to high, with the gradient of LSQ to both."""
    import tensorflow as tf

    step = (high - low) / levels
    below = tf.stop_gradient(tf.round(-low / step))
    steps = inputs / step
    steps = tf.clip_by_value(steps + tf.stop_gradient(tf.round(steps) - steps), -below, levels - below)
    return steps * step

# SPDX-License-Identifier: Apache-2.0
"""The ranges of fake quantization: calibrated first, tracked or learned in training, shared as TFLite shares them.

What is joined has the scale of the join, and what is pooled or moved keeps the scale that it came with (TFLite 8-bit
quantization specification: "inputs and outputs must all have same scale"). Such tensors hang together through the whole
model: in a DenseNet, those of a block of sixty layers. Each with a range of its own would be rounded otherwise in the
flatbuffer than in the QAT model, and clipped where another one's is narrower.

A wider range clips less and rounds more coarsely; the gradient of its step has both: of values within what rounding did
to them, of values beyond that they are clipped. Sources: Esser et al. 2020, "Learned step size quantization" (LSQ), and
of clipping Choi et al. 2018, "PACT". Learned is the logarithm of a factor to where the range begins, so that one
learning rate suits ranges of any size.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat.layer_facts import joins, passes_on
from tfq.compression.training import batches_of
from tfq.errors import TfqError
from tfq.keras_bridge import import_tfmot
from tfq.ptq.calibration.observation import FarthestSamples, without_outliers

# A call of a layer: what it gives is one tensor.
_Call = tuple[int, int]

# "min_var" and "max_var", scalars.
Variables = dict[str, Any]


def shared_ranges(model: Any) -> list[list[Variables]]:
    """The ranges of activations that must be one, two or more each; a fixed one is in none.

    But it connects: two joins of a sigmoid have one range, for TensorFlow's quantizer rounds the sigmoid once more for
    all joins that read it, and refuses the model where these differ.
    """
    # Each call -> another one of its group; at the end of the way, itself.
    leads: dict[_Call, _Call] = {}

    def first(call: _Call) -> _Call:
        while leads.setdefault(call, call) != call:
            call = leads[call]
        return call

    ranges: dict[_Call, Variables] = {}
    for call, (layer, sources) in _calls(model).items():
        variables = tfmot_symbols.output_variables(layer)
        if variables is not None:
            ranges[call] = variables
        if joins(layer) or passes_on(layer):
            for source in sources:
                leads[first(source)] = first(call)
    groups: dict[_Call, list[Variables]] = {}
    for call, variables in ranges.items():
        groups.setdefault(first(call), []).append(variables)
    return [group for group in groups.values() if len(group) > 1]


def unite_ranges(model: Any) -> None:
    """Gives all of a group the range that holds those of each."""
    for group in shared_ranges(model):
        lows, highs = zip(*map(tfmot_symbols.ends_of, group), strict=True)
        for pair in group:
            tfmot_symbols.assign_ends(pair, min(lows), max(highs))


def _calls(model: Any) -> dict[_Call, tuple[Any, list[_Call]]]:
    """Each call in the model -> its layer, and the calls that it reads.

    By its tensors: a layer without fake quantization is in the model that tfmot made this one of as well.
    """
    results: dict[_Call, tuple[Any, list[_Call]]] = {}
    waiting = [tensor._keras_history for tensor in model.outputs]
    while waiting:
        layer, index, _ = waiting.pop()
        call = id(layer), index
        if call in results:
            continue
        read = [tensor._keras_history for tensor in layer.inbound_nodes[index].keras_inputs]
        results[call] = layer, [(id(source.layer), source.node_index) for source in read]
        waiting += read
    return results


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
            result = ends.get(id(weights["min_var"]))
            if result is None:
                return super().__call__(inputs, training, weights, **kwargs)
            low, high = (tf.exp(result[0]) * end for end in result[1:])
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


# Of a batch, the share of examples beyond which they are no exceptions.
_MOST_FAR = 0.25


def calibrate_ranges(model: Any, calibration: Any, steps: int) -> int:
    """Set every range of a QAT model that was never trained to what it sees on data; gives the number of batches.

    calibration: inputs in the model's real units: a Split or SplitStream, an array, a dict of arrays by input name, or
        what else `tfq.data.as_split` takes. steps: examples of it that are used, at least 1.
    Activations: minimum and maximum over all examples, of the model without any rounding in inference mode, but for
    examples that reach far beyond all others, as post-training quantization leaves them out; zero is within; one for
    tensors that have one scale in the flatbuffer.
    Weights: by their own quantizer.
    """
    batches = 0
    with _observed(model) as observed, tfmot_symbols.fake_quant_as_identity():
        for batch in batches_of(model, calibration, steps, "qat: calibration"):
            model(batch if len(batch) > 1 else batch[0], training=False)
            batches += 1
    for name, variables in _activation_ranges(model):
        # A quantizer behind an activation that another layer has taken over is never called: its range is not used.
        if (result := observed.get(id(variables["min_var"]))) is None:
            continue
        ends = np.concatenate(result)
        if not np.isfinite(ends).all():
            raise TfqError(
                f"qat: the activations of {name!r} on the calibration data are not finite ({ends[:, 0].min():g} to "
                f"{ends[:, 1].max():g}): look at the scale of the data, and at the weights of the model",
                field="calibration",
                expected="finite activations",
                got=name,
            )
        down, up = (
            FarthestSamples((far, example) for example, far in enumerate(side)) for side in (-ends[:, 0], ends[:, 1])
        )
        low, high, _ = without_outliers(down, up, len(ends))
        tfmot_symbols.assign_ends(variables, min(0.0, low), max(0.0, high))
    unite_ranges(model)
    measure_weights(model)
    return batches


def measure_weights(model: Any) -> None:
    """Sets the ranges of a QAT model's weights to those of the weights as they are, by their own quantizers.

    A step of training measures them before it changes them: after the last one, they are those of the step before.
    """
    for _, weight, quantizer, variables in tfmot_symbols.weight_ranges(model):
        quantizer(weight, True, weights=variables)


@contextlib.contextmanager
def _observed(model: Any) -> Iterator[dict[int, list[NDArray]]]:
    """Within, eager calls leave activations as they are: id(min_var) -> of each call, (minimum, maximum) by example."""
    results: dict[int, list[NDArray]] = {}
    base: Any = import_tfmot().quantization.keras.quantizers.Quantizer

    class Observer(base):
        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return {}

        def get_config(self) -> dict[str, Any]:
            return {}

        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            values = inputs.numpy()
            values = values.reshape(len(values), -1)
            ends = np.stack([values.min(axis=1), values.max(axis=1)], axis=1)
            results.setdefault(id(weights["min_var"]), []).append(ends)
            return inputs

    with replaced(tfmot_symbols.activation_quantizers(model), lambda quantizer: Observer()):
        yield results


@contextlib.contextmanager
def debiased_ranges(model: Any, seen: int = 0) -> Iterator[Callable[[], int]]:
    """Within, the moving averages of a QAT model's ranges forget what they began with as they learn.

    tfmot starts them at [-6, 6] with a fixed decay of 0.999: after 300 steps three quarters of that guess still
    stand. Here the decay of the call after n is min(0.999, (1 + n) / (10 + n)), the rule of
    tf.train.ExponentialMovingAverage(num_updates), and 0 where n is 0. Examples that go farther beyond the range than
    that is wide count as if they did not, unless they are more than a quarter of the batch: a single one can be
    hundreds of times as large as all others. After, tfmot's own quantizers are back.
    Tensors that have one scale in the flatbuffer are rounded to the one range that holds the averages of each.
    seen: n to begin with: as many batches as the ranges come from, 0 where they are to be forgotten.
    Gives a function that says how many training steps there have been.
    """
    import tensorflow as tf

    shared = {id(pair["min_var"]): group for group in shared_ranges(model) for pair in group}
    # The input's range is the widest that was ever seen: nothing to forget.
    places = [
        place
        for place in tfmot_symbols.activation_quantizers(model)
        if place.is_moving_average or any(id(pair["min_var"]) in shared for pair in place.ranges)
    ]
    counts = {
        id(variables["min_var"]): tf.Variable(seen, dtype=tf.int64, trainable=False)
        for place in places
        if place.is_moving_average
        for variables in place.ranges
    }
    with replaced(places, lambda quantizer: _sharing(quantizer, counts, shared)):
        # The maximum, for a quantizer behind an activation that does nothing is never called.
        yield lambda: max((int(count.numpy()) for count in counts.values()), default=seen) - seen


def _sharing(quantizer: Any, counts: dict[int, Any], shared: dict[int, list[dict[str, Any]]]) -> Any:
    """The same quantizer with a debiased average, and the range of its group. counts, shared: by id(min_var)."""
    import tensorflow as tf

    # Found here, not in __call__, which TensorFlow traces.
    moving_average_quantize = tfmot_symbols.moving_average_quantize()
    base: Any = quantizer_class(quantizer)

    class Sharing(base):
        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            own = id(weights["min_var"])
            if training and own in counts:
                n = tf.cast(counts[own].assign_add(1) - 1, tf.float32)
                decay = tf.where(n > 0, tf.minimum(0.999, (1 + n) / (10 + n)), 0.0)
                inputs = without_far_examples(inputs, weights["min_var"], weights["max_var"], n > 0)
                rounded = moving_average_quantize(self, inputs, weights, decay)
            else:
                rounded = super().__call__(inputs, training, weights, **kwargs)
            if own not in shared:
                return rounded
            low, high = (tf.stack([pair[end] for pair in shared[own]]) for end in ("min_var", "max_var"))
            return tfmot_symbols.fake_quantized(self, inputs, tf.reduce_min(low), tf.reduce_max(high))

    return Sharing(**quantizer.get_config())


def quantizer_class(quantizer: Any) -> Any:
    """tfmot's own class of a quantizer that learns a range, of which another one can be derived."""
    quantizers: Any = import_tfmot().quantization.keras.quantizers
    averages = isinstance(quantizer, quantizers.MovingAverageQuantizer)
    return quantizers.MovingAverageQuantizer if averages else quantizers.AllValuesQuantizer


def without_far_examples(inputs: Any, low: Any, high: Any, known: Any) -> Any:
    """`inputs` (n, ...), cut off where single examples go farther beyond the range than it is wide.

    low, high: ends of the range, scalar tensors. known: whether that range is one yet. What is rounded to a range that
    comes of this one, and its gradient, are the same: it ends before.
    """
    import tensorflow as tf

    room = high - low
    flat = tf.reshape(inputs, [tf.shape(inputs)[0], -1])
    far = (tf.reduce_max(flat, axis=1) > high + room) | (tf.reduce_min(flat, axis=1) < low - room)
    few = known & (tf.reduce_mean(tf.cast(far, tf.float32)) <= _MOST_FAR)
    limit = tf.where(few, room, tf.float32.max)
    return tf.clip_by_value(inputs, low - limit, high + limit)


@contextlib.contextmanager
def replaced(places: list[tfmot_symbols.ActivationQuantizer], other: Callable[[Any], Any]) -> Iterator[None]:
    """Within, other(quantizer) stands for each quantizer."""
    replacements = [other(place.quantizer) for place in places]
    try:
        for place, replacement in zip(places, replacements, strict=True):
            place.replace(replacement)
        yield
    finally:
        for place in places:
            place.replace(place.quantizer)


def _activation_ranges(model: Any) -> list[tuple[str, dict[str, Any]]]:
    """(layer, variables) of each range of activations, in layer order."""
    return [(place.layer, pair) for place in tfmot_symbols.activation_quantizers(model) for pair in place.ranges]

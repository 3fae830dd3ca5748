# SPDX-License-Identifier: Apache-2.0
"""Range estimators of fake quantization: calibration, exponential moving averages (EMA), and learned ranges (LSQ).

Shared ranges: TFLite requires one scale for all operands and the output of ops such as concatenation, and for input
and output of pooling and reshaping (TFLite 8-bit quantization specification: "inputs and outputs must all have same
scale"). Tensors can be coupled through a large part of a model, such as a DenseNet block of sixty layers. With separate
ranges, the flatbuffer would round them differently than the QAT model, and clip where another range is narrower.

LSQ: a value v is quantized with step s to q * s, where q = clip(round(v / s), -n, p). With the straight-through
estimator, the gradients are

    d(q * s) / dv = 1 within the range, 0 outside
    d(q * s) / ds = round(v / s) - v / s within the range, -n or p outside

The trained parameter is f, for the range [low * exp(f), high * exp(f)] with the calibrated low and high. One learning
rate therefore suits ranges of any size. Sources: Esser et al. 2020, "Learned step size quantization"; learned
clipping, Choi et al. 2018, "PACT".
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat.layer_facts import preserves_range, shares_range
from tfq.compression.training import batches_of
from tfq.errors import TfqError
from tfq.keras_bridge import import_tfmot
from tfq.keras_bridge.strategies import extremes_over_replicas, num_replicas, sum_over_replicas
from tfq.ptq.calibration.histogram import Histogram
from tfq.ptq.calibration.observation import FarthestSamples, without_outliers

# A call of a layer, (id of the layer, node index), which identifies its output tensor.
_CallKey = tuple[int, int]

# A range: "min_var" and "max_var", scalar variables.
Variables = dict[str, Any]


def shared_ranges(model: Any) -> list[list[Variables]]:
    """Return the groups of activation ranges that must be equal, with at least two ranges each.

    Fixed ranges are in no group, but they connect others: two concatenations that read the same sigmoid have one
    range. TensorFlow's quantizer requantizes the sigmoid for all of its readers, and rejects the model if their scales
    differ.
    """
    # Union-find: call -> another call of its group; the root of a group refers to itself.
    parents: dict[_CallKey, _CallKey] = {}

    def root(call: _CallKey) -> _CallKey:
        while parents.setdefault(call, call) != call:
            call = parents[call]
        return call

    ranges: dict[_CallKey, Variables] = {}
    first_calls: dict[int, _CallKey] = {}
    for call, (layer, sources) in layer_calls(model).items():
        variables = tfmot_symbols.output_variables(layer)
        if variables is not None:
            ranges[call] = variables
            # All calls of a layer have one range.
            parents[root(first_calls.setdefault(id(layer), call))] = root(call)
        if shares_range(layer) or preserves_range(layer):
            for source in sources:
                parents[root(source)] = root(call)
    groups: dict[_CallKey, dict[int, Variables]] = {}
    for call, variables in ranges.items():
        groups.setdefault(root(call), {})[id(variables["min_var"])] = variables
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def unify_ranges(model: Any) -> None:
    """Set all ranges of a group to the smallest range that contains them."""
    for group in shared_ranges(model):
        lows, highs = zip(*map(tfmot_symbols.ends_of, group), strict=True)
        for pair in group:
            tfmot_symbols.assign_ends(pair, min(lows), max(highs))


def layer_calls(model: Any) -> dict[_CallKey, tuple[Any, list[_CallKey]]]:
    """Return each layer call of the model -> (its layer, the calls that it reads).

    The graph is traversed from the output tensors, because a layer without fake quantization also belongs to the model
    before tfmot's rewrite.
    """
    results: dict[_CallKey, tuple[Any, list[_CallKey]]] = {}
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
def lsq_ranges(model: Any, trained: Any) -> Iterator[Callable[[], int]]:
    """Train the activation ranges of a QAT model by LSQ, inside a `with` block.

    The ranges that tfmot estimates by moving averages are trained. Shared ranges have one parameter. Empty ranges do
    not change. After the block, the ranges have their trained values, and everything else is restored.

    Args:
        model: The QAT model, with calibrated ranges.
        trained: The model that `fit` receives: `model`, or a model with the same layers. The parameters are added to
            its trainable variables.

    Yields:
        A function that returns the number of training steps so far.
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
    with contextlib.ExitStack() as stack:
        for name, (_, factor, _, _) in zip(names, groups, strict=True):
            setattr(trained, name, factor)
            stack.callback(delattr, trained, name)
        stack.enter_context(replaced(chosen, lambda quantizer: _lsq_quantizer(quantizer, ends)))
        stack.enter_context(_input_ranges_over_replicas([place for place in places if place not in chosen]))
        yield lambda: int(trained.optimizer.iterations.numpy()) if getattr(trained, "optimizer", None) else 0
        for group, factor, low, high in groups:
            learned = float(tf.exp(factor).numpy())
            for pair in group:
                tfmot_symbols.assign_ends(pair, low * learned, high * learned)


def _lsq_quantizer(quantizer: Any, ends: dict[int, tuple[Any, float, float]]) -> Any:
    """Return a copy of a quantizer that uses learned ranges.

    Args:
        quantizer: tfmot's quantizer.
        ends: id(min_var) -> (parameter, calibrated low, calibrated high). Other ranges are quantized as before.
    """
    import tensorflow as tf

    fake_quantized = tfmot_symbols.fake_quantize()
    base: Any = quantizer_class(quantizer)

    class LSQ(base):
        def __call__(self, inputs: Any, training: bool, weights: Pair, **kwargs: Any) -> Any:
            result = ends.get(id(weights["min_var"]))
            if result is None:
                return super().__call__(inputs, training, weights, **kwargs)
            low, high = (tf.exp(result[0]) * end for end in result[1:])
            rounded = fake_quantized(self, inputs, low, high)
            gradient = _lsq_quantize(inputs, low, high, 2**self.num_bits - 1)
            return gradient + tf.stop_gradient(rounded - gradient)

    return LSQ(**quantizer.get_config())


def _lsq_quantize(inputs: Any, low: Any, high: Any, levels: int) -> Any:
    """Quantize `inputs` to `levels` steps from `low` to `high`, with the gradients in the module docstring."""
    import tensorflow as tf

    step = (high - low) / levels
    below = tf.stop_gradient(tf.round(-low / step))
    steps = inputs / step
    steps = tf.clip_by_value(steps + tf.stop_gradient(tf.round(steps) - steps), -below, levels - below)
    return steps * step


# Above this fraction of a batch, examples do not count as outliers.
_MAX_OUTLIER_FRACTION = 0.25


def calibrate_ranges(model: Any, calibration: Any, steps: int, *, percentile: float = 100.0) -> int:
    """Set all ranges of an untrained QAT model by calibration.

    Activation ranges are those of the values over all examples, of the model in inference mode without rounding.
    Examples that reach far beyond all others are left out, as in post-training quantization. Ranges contain zero, and
    shared ranges are equal. Weight ranges are set by the weights' quantizers.

    Args:
        model: The QAT model. Its ranges are changed in place.
        calibration: Inputs in the model's real units, in any form that `tfq.data.as_split` accepts.
        steps: Number of examples to use, at least 1.
        percentile: How many percent of the values a range covers at each end. That of the model's input covers all.

    Returns:
        The number of batches.

    Raises:
        TfqError: Activations are NaN or infinite.
    """
    batches = 0
    with _observed(model, histograms=percentile < 100) as observed, tfmot_symbols.fake_quant_as_identity():
        for batch in batches_of(model, calibration, steps, "qat: calibration"):
            model(batch if len(batch) > 1 else batch[0], training=False)
            batches += 1
    for place, variables in _activation_ranges(model):
        # A quantizer after an activation that another layer replaces is never called, and its range is not used.
        if (result := observed.get(id(variables["min_var"]))) is None:
            continue
        ends = np.concatenate(result.ends)
        if not np.isfinite(ends).all():
            raise TfqError(
                f"qat: the activations of {place.layer!r} on the calibration data are not finite "
                f"({ends[:, 0].min():g} to {ends[:, 1].max():g}): "
                "check the scale of the data and the weights of the model",
                field="calibration",
                expected="finite activations",
                got=place.layer,
            )
        down, up = (
            FarthestSamples((far, example) for example, far in enumerate(side)) for side in (-ends[:, 0], ends[:, 1])
        )
        low, high, _ = without_outliers(down, up, len(ends))
        if percentile < 100 and place.is_moving_average:  # tfmot does not average the range of the model's input
            bins, fraction = result.histogram.bins(), percentile / 100
            low, high = max(low, bins.quantile(1 - fraction)), min(high, bins.quantile(fraction))
        tfmot_symbols.assign_ends(variables, min(0.0, low), max(0.0, high))
    unify_ranges(model)
    measure_weights(model)
    return batches


def measure_weights(model: Any) -> None:
    """Set the ranges of a QAT model's weights to those of the current weights, by the weights' quantizers.

    A training step measures the ranges before it updates the weights, so that they are one step behind after training.
    """
    for _, weight, quantizer, variables in tfmot_symbols.weight_ranges(model):
        quantizer(weight, True, weights=variables)


@dataclass(frozen=True)
class _Observed:
    """What was observed of a tensor.

    Attributes:
        ends: One array (examples, 2) per call, with the minimum and maximum of each example.
        histogram: The distribution of all values, if histograms were requested and the values are finite.
    """

    ends: list[NDArray] = field(default_factory=list)
    histogram: Histogram = field(default_factory=Histogram)


@contextlib.contextmanager
def _observed(model: Any, *, histograms: bool) -> Iterator[dict[int, _Observed]]:
    """Observe activations in eager calls, without quantizing them, inside a `with` block.

    Yields:
        id(min_var) -> what was observed.
    """
    results: dict[int, _Observed] = {}
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
            observed = results.setdefault(id(weights["min_var"]), _Observed())
            observed.ends.append(ends)
            if histograms and np.isfinite(ends).all():
                observed.histogram.add(np.asarray(values, np.float32))
            return inputs

    with replaced(tfmot_symbols.activation_quantizers(model), lambda quantizer: Observer()):
        yield results


@contextlib.contextmanager
def ema_ranges(model: Any, seen: int = 0) -> Iterator[Callable[[], int]]:
    """Estimate the activation ranges of a QAT model by debiased moving averages, inside a `with` block.

    The range r of a tensor is updated with the range b of each batch:

        r = decay * r + (1 - decay) * b,    decay = min(0.999, (1 + n) / (10 + n)) after n > 0 updates, 0 for n = 0

    This is the rule of tf.train.ExponentialMovingAverage(num_updates). tfmot starts with [-6, 6] and a fixed decay of
    0.999, so that three quarters of the initial range remain after 300 steps.

    Examples that exceed the range by more than its width are clipped, unless they are more than a quarter of the batch,
    because a single example can be hundreds of times larger than all others. Tensors with a shared range are quantized
    to the smallest range that contains their averages. After the block, tfmot's quantizers are restored.

    A layer that is called several times has one range for all calls. It grows to the batch of each call at once, and
    shrinks with the decay 0.999, so that it contains the widest call.

    Under a tf.distribute strategy, a batch is the global batch, so that all replicas have the ranges of training on one
    device. Unmodified tfmot averages the ranges of the replicas' batches, and the range of the model's input is that of
    the first replica's examples.

    Args:
        model: The QAT model.
        seen: Initial n: the number of batches that the ranges were calibrated on, 0 to discard the initial ranges.

    Yields:
        A function that returns the number of training steps so far.
    """
    import tensorflow as tf

    shared = {id(pair["min_var"]): group for group in shared_ranges(model) for pair in group}
    # The range of the model's input is the minimum and maximum over all batches, not an average.
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
    calls = Counter(layer.name for layer, _ in layer_calls(model).values())
    repeated = {id(pair["min_var"]) for place in places if calls[place.layer] > 1 for pair in place.ranges}
    others = [place for place in tfmot_symbols.activation_quantizers(model) if place not in places]
    with (
        replaced(places, lambda quantizer: _ema_quantizer(quantizer, counts, shared, repeated)),
        _input_ranges_over_replicas(others),
    ):
        # The maximum, because a quantizer after a linear activation is never called.
        yield lambda: max((int(count.numpy()) for count in counts.values()), default=seen) - seen


def _ema_quantizer(
    quantizer: Any, counts: dict[int, Any], shared: dict[int, list[dict[str, Any]]], repeated: set[int]
) -> Any:
    """Return a copy of a quantizer with a debiased average, and the range of its group.

    Args:
        quantizer: tfmot's quantizer.
        counts: id(min_var) -> number of updates of each averaged range.
        shared: id(min_var) -> all ranges of its group.
        repeated: id(min_var) of ranges that several calls of a layer have.
    """
    import tensorflow as tf

    # Imported here, and not in __call__, which TensorFlow traces.
    moving_average_quantize, fake_quantized = tfmot_symbols.moving_average_quantize(), tfmot_symbols.fake_quantize()
    base: Any = quantizer_class(quantizer)

    class EMA(base):
        def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
            own = id(weights["min_var"])
            if training and own in counts:
                n = tf.cast(counts[own].assign_add(1) - 1, tf.float32)
                decay = tf.where(n > 0, tf.minimum(0.999, (1 + n) / (10 + n)), 0.0)
                inputs = clip_outlier_examples(inputs, weights["min_var"], weights["max_var"], n > 0)
                if own in repeated:
                    _grow(weights, _global_extremes(inputs), tf.where(n > 0, 0.999, 0.0))
                    rounded = fake_quantized(self, inputs, weights["min_var"], weights["max_var"])
                elif num_replicas() > 1:
                    moving_average_quantize(self, _global_extremes(inputs), weights, decay)
                    rounded = fake_quantized(self, inputs, weights["min_var"], weights["max_var"])
                else:
                    rounded = moving_average_quantize(self, inputs, weights, decay)
            elif training and num_replicas() > 1:
                super().__call__(_global_extremes(inputs), training, weights, **kwargs)
                rounded = fake_quantized(self, inputs, weights["min_var"], weights["max_var"])
            else:
                rounded = super().__call__(inputs, training, weights, **kwargs)
            if own not in shared:
                return rounded
            low, high = (tf.stack([pair[end] for pair in shared[own]]) for end in ("min_var", "max_var"))
            return fake_quantized(self, inputs, tf.reduce_min(low), tf.reduce_max(high))

    return EMA(**quantizer.get_config())


def _grow(variables: Variables, extremes: Any, decay: Any) -> None:
    """Extend a range to [minimum, maximum, 0] of a batch, or move its ends towards them by 1 - decay."""
    import tensorflow as tf

    for end, batch, wider in (("min_var", extremes[0], tf.minimum), ("max_var", extremes[1], tf.maximum)):
        batch = wider(batch, 0.0)
        variables[end].assign(wider(batch, decay * variables[end] + (1 - decay) * batch))


def _global_extremes(inputs: Any) -> Any:
    """Return [minimum, maximum] of a tensor over all replicas, from which a quantizer can update its range."""
    import tensorflow as tf

    return tf.stack(extremes_over_replicas(tf.reduce_min(inputs), tf.reduce_max(inputs)))


def _input_ranges_over_replicas(places: list[tfmot_symbols.ActivationQuantizer]) -> Any:
    """Return a context in which quantizers that are not averaged use the global batch, not that of their replica."""
    if num_replicas() == 1:
        return contextlib.nullcontext()
    return replaced(
        [place for place in places if not place.is_moving_average],
        lambda quantizer: _ema_quantizer(quantizer, {}, {}, set()),
    )


def quantizer_class(quantizer: Any) -> Any:
    """Return the class of tfmot to derive from, for a quantizer that estimates a range."""
    quantizers: Any = import_tfmot().quantization.keras.quantizers
    averages = isinstance(quantizer, quantizers.MovingAverageQuantizer)
    return quantizers.MovingAverageQuantizer if averages else quantizers.AllValuesQuantizer


def clip_outlier_examples(inputs: Any, low: Any, high: Any, known: Any) -> Any:
    """Clip `inputs` if few examples exceed the range by more than its width.

    The fake-quantized values and their gradients do not change, because the updated range ends before the limits.

    Args:
        inputs: Shape (n, ...).
        low: Lower end of the range, a scalar tensor.
        high: Upper end of the range, a scalar tensor.
        known: Whether the range has been estimated. Otherwise nothing is clipped.
    """
    import tensorflow as tf

    width = high - low
    flat = tf.reshape(inputs, [tf.shape(inputs)[0], -1])
    is_outlier = (tf.reduce_max(flat, axis=1) > high + width) | (tf.reduce_min(flat, axis=1) < low - width)
    counts = sum_over_replicas(
        tf.stack([tf.reduce_sum(tf.cast(is_outlier, tf.float32)), tf.cast(tf.size(is_outlier), tf.float32)])
    )
    are_few = known & (counts[0] / counts[1] <= _MAX_OUTLIER_FRACTION)
    limit = tf.where(are_few, width, tf.float32.max)
    return tf.clip_by_value(inputs, low - limit, high + limit)


@contextlib.contextmanager
def replaced(places: list[tfmot_symbols.ActivationQuantizer], other: Callable[[Any], Any]) -> Iterator[None]:
    """Replace each quantizer by other(quantizer), inside a `with` block."""
    replacements = [other(place.quantizer) for place in places]
    try:
        for place, replacement in zip(places, replacements, strict=True):
            place.replace(replacement)
        yield
    finally:
        for place in places:
            place.replace(place.quantizer)


def _activation_ranges(model: Any) -> list[tuple[tfmot_symbols.ActivationQuantizer, Variables]]:
    """Return (quantizer, variables) of each activation range, in layer order."""
    return [(place, pair) for place in tfmot_symbols.activation_quantizers(model) for pair in place.ranges]

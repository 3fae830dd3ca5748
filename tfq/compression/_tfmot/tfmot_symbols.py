# SPDX-License-Identifier: Apache-2.0
"""Every private symbol of tfmot and tf_keras that compression touches, and nothing else.

Read in tensorflow-model-optimization 0.8.1 and tf_keras 2.21.0. A test asks for each of them by name.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tfq.keras_bridge import import_tfmot

_CORE = "tensorflow_model_optimization.python.core"


def _module(name: str) -> ModuleType:
    import_tfmot()
    return importlib.import_module(f"{_CORE}.{name}")


def is_graph_model(model: Any) -> bool:
    """Whether a tf_keras model is functional or a built sequential one, so that its layers are all that it does."""
    return bool(getattr(model, "_is_graph_network", False))


def mask_updater(
    pairs: list[tuple[Any, Any]], sparsity: Any, block_size: tuple[int, int], m_by_n: tuple[int, int] | None
) -> Callable[[], Any]:
    """A function that sets each mask of `pairs` (weight, mask) by the magnitudes of its weight, as tfmot does.

    sparsity: a scalar variable, read at every call; m_by_n takes no notice of it.
    """
    import tensorflow as tf

    pruning = _module("sparsity.keras.pruning_impl").Pruning(
        # m:n masks are made in step 1 alone: for tfmot, every call is in that step.
        training_step_fn=lambda: tf.constant(1, tf.int64),
        pruning_vars=[(weight, mask, tf.Variable(0, dtype=mask.dtype, trainable=False)) for weight, mask in pairs],
        pruning_schedule=lambda step: (tf.constant(True), sparsity),
        block_size=block_size,
        block_pooling_type="AVG",
        sparsity_m_by_n=m_by_n,
    )
    return pruning.conditional_mask_update


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationQuantizer:
    """A quantizer of activations in a QAT model, and the ranges that it keeps.

    ranges: "min_var" and "max_var", scalar variables, of each; two where it quantizes before and behind an activation.
    """

    layer: str
    quantizer: Any
    ranges: tuple[dict[str, Any], ...]
    is_moving_average: bool
    owner: Any
    attribute: str

    def replace(self, other: Any) -> None:
        """`other` quantizes in its place."""
        setattr(self.owner, self.attribute, [other] if self.attribute == "_output_quantizers" else other)


def activation_quantizers(model: Any) -> list[ActivationQuantizer]:
    """Every quantizer of activations that learns a range, in layer order; those of fixed ranges are left out."""
    wrapper = _module("quantization.keras.quantize_wrapper").QuantizeWrapper
    places: list[tuple[str, Any, str, Any, tuple[Any, ...]]] = []
    for layer in model.layers:
        if isinstance(layer, _module("quantization.keras.quantize_layer").QuantizeLayer) and layer.quantizer:
            places.append((layer.name, layer, "quantizer", layer.quantizer, (layer.quantizer_vars,)))
        elif isinstance(layer, wrapper):
            for held in layer._quantize_activations:
                ranges = tuple(getattr(held, f"_{side}_activation_vars", {}) for side in ("pre", "post"))
                places.append((layer.name, held, "quantizer", held.quantizer, ranges))
            if layer._output_quantizers:
                quantizer = layer._output_quantizers[0]
                places.append((layer.name, layer, "_output_quantizers", quantizer, (layer._output_quantizer_vars,)))
    average = _module("quantization.keras.quantizers").MovingAverageQuantizer
    return [
        ActivationQuantizer(
            layer=name,
            quantizer=quantizer,
            ranges=learned,
            is_moving_average=isinstance(quantizer, average),
            owner=owner,
            attribute=attribute,
        )
        for name, owner, attribute, quantizer, ranges in places
        if (learned := tuple(pair for pair in ranges if isinstance(pair, dict) and "min_var" in pair))
    ]


def wrapped(layer: Any) -> Any:
    """The layer that a wrapper of a QAT model holds, or `layer` itself."""
    return layer.layer if hasattr(layer, "quantize_config") else layer


def without_autograph(function: Callable[..., Any], layers: Iterable[Any]) -> Callable[..., Any]:
    """`function`, which calls `layers` in a graph, so that TensorFlow does not rewrite the source of what it calls.

    That rewriting, for control flow on tensors, is a third of the time that a QAT model takes to be built and traced,
    and there is none in what Keras, tfmot and we have written. What a user has written may have such: then `function`
    itself is given back.
    """
    import tensorflow as tf

    written = [thing for layer in map(wrapped, layers) for thing in (type(layer), getattr(layer, "activation", None))]
    known = all(
        thing is None or getattr(thing, "__module__", "").partition(".")[0] in ("tf_keras", "tensorflow", "tfq")
        for thing in written
    )
    return tf.autograph.experimental.do_not_convert(function) if known else function


def output_range(layer: Any) -> tuple[float, float] | None:
    """(minimum, maximum) that a layer of a QAT model rounds to as its last step; None where it ends otherwise."""
    quantizer = (getattr(layer, "_output_quantizers", None) or [None])[0]
    if isinstance(quantizer, _module("quantization.keras.quantizers").FixedQuantizer):
        return float(quantizer.init_min), float(quantizer.init_max)
    variables = output_variables(layer)
    return None if variables is None else ends_of(variables)


def output_variables(layer: Any) -> dict[str, Any] | None:
    """The "min_var" and "max_var" of `output_range`; None where it is fixed, or there is none."""
    result: Any = None
    if isinstance(layer, _module("quantization.keras.quantize_layer").QuantizeLayer):
        result = layer.quantizer_vars
    elif isinstance(layer, _module("quantization.keras.quantize_wrapper").QuantizeWrapper):
        if layer._output_quantizers:
            result = layer._output_quantizer_vars
        else:
            held = [item for item in layer._quantize_activations if item is getattr(layer.layer, "activation", None)]
            result = getattr(held[0], "_post_activation_vars", None) if held else None
    return result if result and "min_var" in result else None


def inner_range(layer: Any, attribute: str) -> tuple[float, float] | None:
    """(minimum, maximum) of what the function `attribute` inside a layer of a QAT model is called with."""
    variables = getattr(getattr(layer.layer, attribute, None), "_post_activation_vars", None)
    return ends_of(variables) if variables and "min_var" in variables else None


def ends_of(variables: dict[str, Any]) -> tuple[float, float]:
    """(minimum, maximum) of a range of activations."""
    return float(variables["min_var"]), float(variables["max_var"])


def assign_ends(variables: dict[str, Any], low: Any, high: Any) -> None:
    """Sets a range, of activations or of a weight."""
    variables["min_var"].assign(low)
    variables["max_var"].assign(high)


def weight_ranges(model: Any) -> list[tuple[str, Any, Any, dict[str, Any]]]:
    """(layer, weight, quantizer, variables) of each quantized weight in a QAT model.

    `quantizer(weight, True, weights=variables)` sets the range; variables: "min_var", "max_var", scalars or one value a
    channel, and what else the quantizer keeps.
    """
    return [(layer.name, *held) for layer in model.layers for held in getattr(layer, "_weight_vars", ())]


def moving_average_quantize() -> Callable[[Any, Any, dict[str, Any], Any], Any]:
    """One training step of a MovingAverageQuantizer with a decay of our own in place of its fixed 0.999.

    Called with the quantizer, the tensor, the quantizer's variables, and the decay (a scalar tensor).
    """
    quantize = _module("quantization.keras.quant_ops").MovingAvgQuantize

    def step(quantizer: Any, inputs: Any, variables: dict[str, Any], decay: Any) -> Any:
        return quantize(
            inputs,
            variables["min_var"],
            variables["max_var"],
            ema_decay=decay,
            is_training=True,
            num_bits=quantizer.num_bits,
            per_channel=quantizer.per_axis,
            symmetric=quantizer.symmetric,
            narrow_range=quantizer.narrow_range,
        )

    return step


def fake_quantized(quantizer: Any, inputs: Any, low: Any, high: Any) -> Any:
    """`inputs` in the steps of a range whose ends are scalar tensors, as the quantizer rounds."""
    return _module("quantization.keras.quant_ops")._FakeQuantWithMinMaxVars(
        inputs, low, high, quantizer.per_axis, quantizer.num_bits, quantizer.narrow_range
    )


@contextlib.contextmanager
def fake_quant_as_identity() -> Iterator[None]:
    """Within, eager calls of QAT models do not quantize. Not for calls that a tf.function has traced before."""
    quant_ops = _module("quantization.keras.quant_ops")
    names = ("_FakeQuantWithMinMaxVars", "FixedQuantize")
    before = {name: getattr(quant_ops, name) for name in names}
    try:
        for name in names:
            setattr(quant_ops, name, lambda inputs, *args, **kwargs: inputs)
        yield
    finally:
        for name, function in before.items():
            setattr(quant_ops, name, function)


@contextlib.contextmanager
def automatic_names_from_zero(avoid: Iterable[str]) -> Iterator[None]:
    """Within, layers that name themselves do so as in a fresh process, but past the names in `avoid`.

    tfmot makes such layers (quantize_layer, the halves of a SeparableConv2D). Their names should not depend on what
    this process built before; and where one is taken, tfmot rebuilds the model for ever.
    """
    from tf_keras.src import backend

    counters = backend.get_default_graph_uid_map()
    before = dict(counters)
    counters.clear()
    try:
        for name in avoid:
            prefix, _, number = name.rpartition("_")
            for key, used in ((name, 0), (prefix, int(number) if number.isdecimal() else -1)):
                counters["", key] = max(counters["", key], used + 1)
        yield
    finally:
        counters.clear()
        counters.update(before)

# SPDX-License-Identifier: Apache-2.0
"""What layers do with channels: which axes of their weights hold them, their config, their multiply-adds.

A layer's BridgedLayer chooses its rule by name (`channels`).

Only layers whose channels are on the last axis, and only the classes themselves: a subclass may compute anything.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.structured_pruning.channels import Term
from tfq.errors import InputError
from tfq.keras_bridge import import_tf_keras
from tfq.keras_bridge.layers.bridged_layer import BridgedLayer, facts_of

# What an axis of a weight runs over: the layer's channels in or out, or (separable) those in between.
IN, OUT, BETWEEN = "in", "out", "between"
Axes = dict[str, tuple[str | None, ...]]
Shape = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a kind of layer does with channels.

    axes(layer): for each weight, by its attribute, what its axes run over. terms(layer, input shape, output shape): its
    multiply-adds. resized(layer, kept): config for only the channels kept[IN], kept[OUT] (places on the last axis).
    makes_channels: it has whole filters, which can be removed; otherwise what comes in goes out, place by place.
    filters: the attribute by whose norm filters are ranked. zeroed: attributes that are 0 where a channel is removed.
    gives_zero(layer, input is zero): whether a removed channel then leaves it as zeros, before any activation.
    """

    axes: Callable[[Any], Axes]
    terms: Callable[[Any, Shape, Shape], tuple[Term, ...]] = lambda layer, before, after: ()
    resized: Callable[[Any, dict[str, NDArray]], dict[str, Any]] = lambda layer, kept: {}
    makes_channels: bool = False
    filters: str | None = None
    zeroed: tuple[str, ...] = ()
    gives_zero: Callable[[Any, bool], bool] = lambda layer, before: True


def channels_of(layer: Any) -> str:
    """Return the fact `channels` of this layer: by default, and of a subclass of a tf_keras layer, "by_trial"."""
    facts = facts_of(layer)
    # By the name alone where tf_keras has no public class of that name: tfq's own, the user's, and LayerScale.
    is_exact = getattr(import_tf_keras().layers, facts.name, type(layer)) is type(layer)
    return facts.channels if is_exact else "by_trial"


def rule_of(layer: Any) -> Rule | None:
    """Return the rule for this layer, or None where its channels are not followed by a rule."""
    channels = channels_of(layer)
    return _per_channel(facts_of(layer)) if channels == "per_channel" else RULES.get(channels)


def reason_against(layer: Any, shape: Shape) -> str | None:
    """Why the rule of its class does not fit this layer, which takes a tensor of this shape."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "has its channels on another axis than the last (data_format)"
    axis = getattr(layer, "axis", None)
    if axis is not None and [at % len(shape) for at in np.atleast_1d(axis)] != [len(shape) - 1]:
        return f"works along axis {[int(at) for at in np.atleast_1d(axis)]}, which is not the last alone"
    return None


def multiplier(layer: Any) -> int:
    """Channels that a depthwise kernel makes of each."""
    return int(getattr(layer, "depth_multiplier", 1))


def kernel_groups(layer: Any) -> int:
    """Groups of a convolution; 1 for any other layer."""
    return int(getattr(layer, "groups", 1)) if hasattr(layer, "kernel") else 1


def kept_places(layer: Any, inputs: NDArray, outputs: NDArray) -> dict[str, NDArray]:
    """Places on each kind of axis that stay, from those on the layer's inputs and outputs."""
    factor = multiplier(layer)
    between = (inputs[:, None] * factor + np.arange(factor)).ravel()
    return {IN: inputs, OUT: outputs, BETWEEN: between}


def weight_axes(layer: Any, rule: Rule) -> list[tuple[str, tuple[str | None, ...]]]:
    """(attribute, axes) of each weight, in the order of layer.get_weights(); one that the rule leaves out has ()."""
    axes = rule.axes(layer)
    held = {id(getattr(layer, name)): name for name in axes if getattr(layer, name, None) is not None}
    return [(held.get(id(weight), ""), axes.get(held.get(id(weight), ""), ())) for weight in layer.weights]


def filter_norms(layer: Any, rule: Rule, norm: str) -> NDArray | None:
    """L1 or L2 norm of each filter, shape (output channels,) float64; None for a layer without filters."""
    if rule.filters is None:
        return None
    axes = rule.axes(layer)[rule.filters]
    weights = np.abs(np.asarray(getattr(layer, rule.filters), np.float64))
    weights = weights**2 if norm == "l2" else weights
    if OUT in axes:
        sums = weights.sum(axis=tuple(at for at, role in enumerate(axes) if role != OUT))
    else:  # depthwise: output channel i * multiplier + j is kernel[..., i, j]
        sums = weights.sum(axis=tuple(range(weights.ndim - 2))).ravel()
    return np.sqrt(sums) if norm == "l2" else sums


def _kernel(*last: str | None) -> Callable[[Any], Axes]:
    def axes(layer: Any) -> Axes:
        rank = len(layer.kernel.shape)
        roles = (None, OUT) if kernel_groups(layer) > 1 else last
        return {"kernel": (None,) * (rank - len(roles)) + roles, "bias": (OUT,)}

    return axes


def _depthwise_kernel(layer: Any) -> Axes:
    spatial = (None,) * (len(layer.depthwise_kernel.shape) - 2)
    return {"depthwise_kernel": (*spatial, IN, None), "bias": (OUT,)}


def _separable_kernels(layer: Any) -> Axes:
    spatial = (None,) * (len(layer.depthwise_kernel.shape) - 2)
    return {"depthwise_kernel": (*spatial, IN, None), "pointwise_kernel": (*spatial, BETWEEN, OUT), "bias": (OUT,)}


def _alpha(layer: Any) -> Axes:
    shape = layer.alpha.shape
    is_shared = layer.shared_axes is not None and len(shape) in layer.shared_axes
    return {"alpha": (*(None,) * (len(shape) - 1), None if is_shared else OUT)}


def _each(*names: str) -> Callable[[Any], Axes]:
    return lambda layer: dict.fromkeys(names, (OUT,))


def _size(layer: Any, shape: Shape) -> int:
    """Places of a tensor, without batch and channels."""
    if None in shape[1:-1]:
        raise InputError(
            f"structured_pruning: layer {layer.name!r} has a tensor of shape {shape}, whose multiply-adds cannot be "
            f"counted: "
            "build the model with an input of a fixed shape",
            field="model",
            expected="a fixed shape",
            got=layer.name,
        )
    return math.prod(size for size in shape[1:-1] if size is not None)


def _conv_terms(layer: Any, before: Shape, after: Shape) -> tuple[Term, ...]:
    taps = _size(layer, after) * math.prod(layer.kernel_size)
    if kernel_groups(layer) > 1:
        return (Term(factor=taps * int(layer.kernel.shape[-2]), per_output=True),)
    return (Term(factor=taps, per_input=True, per_output=True),)


def _transposed_terms(layer: Any, before: Shape, after: Shape) -> tuple[Term, ...]:
    return (Term(factor=_size(layer, before) * math.prod(layer.kernel_size), per_input=True, per_output=True),)


def _depthwise_terms(layer: Any, before: Shape, after: Shape) -> tuple[Term, ...]:
    return (Term(factor=_size(layer, after) * math.prod(layer.kernel_size), per_output=True),)


def _separable_terms(layer: Any, before: Shape, after: Shape) -> tuple[Term, ...]:
    places = _size(layer, after) * multiplier(layer)
    return (
        Term(factor=places * math.prod(layer.kernel_size), per_input=True),
        Term(factor=places, per_input=True, per_output=True),
    )


def _dense_terms(layer: Any, before: Shape, after: Shape) -> tuple[Term, ...]:
    return (Term(factor=_size(layer, after), per_input=True, per_output=True),)


def _fewer_filters(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    groups = kernel_groups(layer)
    fewer = {"filters": len(kept[OUT])}
    return {**fewer, "groups": groups * len(kept[OUT]) // int(layer.filters)} if groups > 1 else fewer


def _statistics(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    config = layer.get_config()
    provided = {name: config.get(name) for name in ("mean", "variance")}
    return {name: _of_list(value, kept) for name, value in provided.items() if value is not None}


def _factors(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    return {name: _of_list(getattr(layer, name), kept) for name in ("scale", "offset")}


def _of_list(value: Any, kept: dict[str, NDArray]) -> Any:
    values = np.asarray(value)
    return np.take(values, kept[OUT], axis=-1).tolist() if values.ndim and values.shape[-1] > 1 else values.tolist()


def _reshaped(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    return {"target_shape": (*layer.target_shape[:-1], len(kept[OUT]))}


_CONV = Rule(
    axes=_kernel(IN, OUT), terms=_conv_terms, resized=_fewer_filters, makes_channels=True, filters="kernel",
    zeroed=("kernel", "bias"),
)  # fmt: skip
_TRANSPOSED = Rule(
    axes=_kernel(OUT, IN), terms=_transposed_terms, resized=_fewer_filters, makes_channels=True, filters="kernel",
    zeroed=("kernel", "bias"),
)  # fmt: skip
_SEPARABLE = Rule(
    axes=_separable_kernels, terms=_separable_terms, resized=_fewer_filters, makes_channels=True,
    filters="pointwise_kernel", zeroed=("pointwise_kernel", "bias"),
)  # fmt: skip
_DEPTHWISE = Rule(
    axes=_depthwise_kernel, terms=_depthwise_terms, filters="depthwise_kernel", zeroed=("depthwise_kernel", "bias")
)
_DENSE = Rule(
    axes=_kernel(IN, OUT), terms=_dense_terms, resized=lambda layer, kept: {"units": len(kept[OUT])},
    makes_channels=True, filters="kernel", zeroed=("kernel", "bias"),
)  # fmt: skip

# By the fact `channels`; "per_channel" is made of the other facts. trace.py follows layers of these by their name:
# "flatten", "concatenate", "lookup" (a table of weights without multiply-adds) and "by_trial".
RULES: dict[str, Rule] = {
    "convolution": _CONV,
    "transposed_convolution": _TRANSPOSED,
    "dense": _DENSE,
    "depthwise_convolution": _DEPTHWISE,
    "separable_convolution": _SEPARABLE,
    "batch_normalization": Rule(
        axes=_each("gamma", "beta", "moving_mean", "moving_variance"),
        zeroed=("gamma", "beta", "moving_mean"),
        gives_zero=lambda layer, before: layer.scale or before,
    ),
    "normalization": Rule(
        axes=_each("adapt_mean", "adapt_variance"), resized=_statistics, gives_zero=lambda layer, before: False
    ),
    "prelu": Rule(axes=_alpha, gives_zero=lambda layer, before: before),
    # Without weights, but with numbers of channels in the config.
    "rescaling": Rule(
        axes=_each(), resized=_factors, gives_zero=lambda layer, before: before and not np.any(layer.offset)
    ),
    "reshape": Rule(axes=_each(), resized=_reshaped),
}
FOLLOWED_BY_NAME = ("per_channel", "flatten", "concatenate", "lookup", "by_trial")


def _per_channel(facts: BridgedLayer) -> Rule:
    def resized(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
        return {facts.channel_count: len(kept[OUT])} if facts.channel_count else {}

    return Rule(axes=_each(*facts.channel_weights), resized=resized, zeroed=facts.channel_weights)

# SPDX-License-Identifier: Apache-2.0
"""Rules that describe how each kind of layer uses channels: axes of its weights, config, multiply-adds.

The fact `channels` of a layer's BridgedLayer is the name of its rule. Rules apply to layers whose channels are on the
last axis. They do not apply to subclasses, which may compute something else.
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

# The role of a weight's axis: input channels, output channels, or the channels between the two kernels of a separable
# convolution.
IN, OUT, BETWEEN = "in", "out", "between"
Axes = dict[str, tuple[str | None, ...]]
Shape = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A description of how one kind of layer uses channels.

    Attributes:
        axes: axes(layer) returns the roles of the axes of each weight, by the weight's attribute name.
        terms: terms(layer, input shape, output shape) returns the terms of its multiply-adds.
        resized: resized(layer, kept) returns the config entries that change with only the channels kept[IN] and
            kept[OUT] (indices on the last axis).
        makes_channels: Whether it has whole filters that can be removed. Otherwise output channels correspond to
            input channels.
        filters: Attribute name of the weight whose norm ranks the filters.
        zeroed: Attribute names of the weights that are zero for a removed channel in the masked model.
        output_is_zero: output_is_zero(layer, input is zero) returns whether a removed channel of the output is zero in
            the masked model, before the activation.
    """

    axes: Callable[[Any], Axes]
    terms: Callable[[Any, Shape, Shape], tuple[Term, ...]] = lambda layer, input_shape, output_shape: ()
    resized: Callable[[Any, dict[str, NDArray]], dict[str, Any]] = lambda layer, kept: {}
    makes_channels: bool = False
    filters: str | None = None
    zeroed: tuple[str, ...] = ()
    output_is_zero: Callable[[Any, bool], bool] = lambda layer, input_is_zero: True


def channels_of(layer: Any) -> str:
    """Return the fact `channels` of a layer. It is "by_trial" by default and for subclasses of tf_keras layers."""
    facts = facts_of(layer)
    # Only the name is compared if tf_keras has no public class of that name: layers of tfq, of users, and LayerScale.
    is_exact = getattr(import_tf_keras().layers, facts.name, type(layer)) is type(layer)
    return facts.channels if is_exact else "by_trial"


def rule_of(layer: Any) -> Rule | None:
    """Return the rule for a layer, or None if no rule describes it."""
    channels = channels_of(layer)
    return _per_channel(facts_of(layer)) if channels == "per_channel" else RULES.get(channels)


def reason_unsupported(layer: Any, shape: Shape) -> str | None:
    """Return why the rule of its class does not apply to a layer with an input of this shape, or None if it does."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "does not have its channels on the last axis (data_format)"
    axis = getattr(layer, "axis", None)
    if axis is not None and [item % len(shape) for item in np.atleast_1d(axis)] != [len(shape) - 1]:
        return f"works along axis {[int(item) for item in np.atleast_1d(axis)]}, expected the last axis only"
    return None


def depth_multiplier(layer: Any) -> int:
    """Return the number of output channels per input channel of a depthwise kernel; 1 for other layers."""
    return int(getattr(layer, "depth_multiplier", 1))


def kernel_groups(layer: Any) -> int:
    """Return the number of groups of a convolution; 1 for other layers."""
    return int(getattr(layer, "groups", 1)) if hasattr(layer, "kernel") else 1


def kept_indices(layer: Any, inputs: NDArray, outputs: NDArray) -> dict[str, NDArray]:
    """Return the kept indices on each kind of axis, from those of the layer's inputs and outputs."""
    factor = depth_multiplier(layer)
    between = (inputs[:, None] * factor + np.arange(factor)).ravel()
    return {IN: inputs, OUT: outputs, BETWEEN: between}


def weight_axes(layer: Any, rule: Rule) -> list[tuple[str, tuple[str | None, ...]]]:
    """Return (attribute, axes) of each weight, in the order of layer.get_weights(); ("", ()) if the rule has none."""
    axes = rule.axes(layer)
    names = {id(getattr(layer, name)): name for name in axes if getattr(layer, name, None) is not None}
    return [(names.get(id(weight), ""), axes.get(names.get(id(weight), ""), ())) for weight in layer.weights]


def filter_norms(layer: Any, rule: Rule, norm: str) -> NDArray | None:
    """Return the L1 or L2 norm of each filter, shape (output channels,), float64; None for a layer without filters.

    Args:
        layer: The layer.
        rule: Its rule.
        norm: "l1" or "l2".
    """
    if rule.filters is None:
        return None
    axes = rule.axes(layer)[rule.filters]
    weights = np.abs(np.asarray(getattr(layer, rule.filters), np.float64))
    weights = weights**2 if norm == "l2" else weights
    if OUT in axes:
        sums = weights.sum(axis=tuple(axis for axis, role in enumerate(axes) if role != OUT))
    else:  # depthwise: output channel i * depth_multiplier + j is kernel[..., i, j]
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


def _per_output_channel(*names: str) -> Callable[[Any], Axes]:
    return lambda layer: dict.fromkeys(names, (OUT,))


def _num_positions(layer: Any, shape: Shape) -> int:
    """Return the number of positions of a tensor: its size without batch and channels."""
    if None in shape[1:-1]:
        raise InputError(
            f"structured_pruning: the multiply-adds of layer {layer.name!r} cannot be counted, because it has a tensor "
            f"of shape {shape}: build the model with a fixed input shape",
            field="model",
            expected="a fixed shape",
            got=layer.name,
            limit="open-sizes-macs",
        )
    return math.prod(size for size in shape[1:-1] if size is not None)


def _conv_terms(layer: Any, input_shape: Shape, output_shape: Shape) -> tuple[Term, ...]:
    positions = _num_positions(layer, output_shape)
    taps = positions * math.prod(layer.kernel_size)
    if kernel_groups(layer) > 1:
        return (Term(factor=taps * int(layer.kernel.shape[-2]), per_output=True, positions=positions),)
    return (Term(factor=taps, per_input=True, per_output=True, positions=positions),)


def _transposed_terms(layer: Any, input_shape: Shape, output_shape: Shape) -> tuple[Term, ...]:
    positions = _num_positions(layer, input_shape)
    return (
        Term(factor=positions * math.prod(layer.kernel_size), per_input=True, per_output=True, positions=positions),
    )


def _depthwise_terms(layer: Any, input_shape: Shape, output_shape: Shape) -> tuple[Term, ...]:
    positions = _num_positions(layer, output_shape)
    return (Term(factor=positions * math.prod(layer.kernel_size), per_output=True, positions=positions),)


def _separable_terms(layer: Any, input_shape: Shape, output_shape: Shape) -> tuple[Term, ...]:
    positions = _num_positions(layer, output_shape)
    count = positions * depth_multiplier(layer)
    return (
        Term(factor=count * math.prod(layer.kernel_size), per_input=True, positions=positions),
        Term(factor=count, per_input=True, per_output=True, positions=positions),
    )


def _dense_terms(layer: Any, input_shape: Shape, output_shape: Shape) -> tuple[Term, ...]:
    positions = _num_positions(layer, output_shape)
    return (Term(factor=positions, per_input=True, per_output=True, positions=positions),)


def _resized_filters(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    groups = kernel_groups(layer)
    filters = {"filters": len(kept[OUT])}
    return {**filters, "groups": groups * len(kept[OUT]) // int(layer.filters)} if groups > 1 else filters


def _resized_statistics(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    config = layer.get_config()
    statistics = {name: config.get(name) for name in ("mean", "variance")}
    return {name: _select_channels(value, kept) for name, value in statistics.items() if value is not None}


def _resized_scale_and_offset(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    return {name: _select_channels(getattr(layer, name), kept) for name in ("scale", "offset")}


def _select_channels(value: Any, kept: dict[str, NDArray]) -> Any:
    values = np.asarray(value)
    return np.take(values, kept[OUT], axis=-1).tolist() if values.ndim and values.shape[-1] > 1 else values.tolist()


def _resized_target_shape(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
    return {"target_shape": (*layer.target_shape[:-1], len(kept[OUT]))}


_CONV = Rule(
    axes=_kernel(IN, OUT), terms=_conv_terms, resized=_resized_filters, makes_channels=True, filters="kernel",
    zeroed=("kernel", "bias"),
)  # fmt: skip
_TRANSPOSED = Rule(
    axes=_kernel(OUT, IN), terms=_transposed_terms, resized=_resized_filters, makes_channels=True, filters="kernel",
    zeroed=("kernel", "bias"),
)  # fmt: skip
_SEPARABLE = Rule(
    axes=_separable_kernels, terms=_separable_terms, resized=_resized_filters, makes_channels=True,
    filters="pointwise_kernel", zeroed=("pointwise_kernel", "bias"),
)  # fmt: skip
_DEPTHWISE = Rule(
    axes=_depthwise_kernel, terms=_depthwise_terms, filters="depthwise_kernel", zeroed=("depthwise_kernel", "bias")
)
_DENSE = Rule(
    axes=_kernel(IN, OUT), terms=_dense_terms, resized=lambda layer, kept: {"units": len(kept[OUT])},
    makes_channels=True, filters="kernel", zeroed=("kernel", "bias"),
)  # fmt: skip

# By the fact `channels`. The rule "per_channel" is built from other facts of the layer. The names in FOLLOWED_BY_NAME
# have no rule here; trace.py handles them. "lookup" is a table of weights without multiply-adds.
RULES: dict[str, Rule] = {
    "convolution": _CONV,
    "transposed_convolution": _TRANSPOSED,
    "dense": _DENSE,
    "depthwise_convolution": _DEPTHWISE,
    "separable_convolution": _SEPARABLE,
    "batch_normalization": Rule(
        axes=_per_output_channel("gamma", "beta", "moving_mean", "moving_variance"),
        zeroed=("gamma", "beta", "moving_mean"),
        output_is_zero=lambda layer, input_is_zero: layer.scale or input_is_zero,
    ),
    "normalization": Rule(
        axes=_per_output_channel("adapt_mean", "adapt_variance"),
        resized=_resized_statistics,
        output_is_zero=lambda layer, input_is_zero: False,
    ),
    "prelu": Rule(axes=_alpha, output_is_zero=lambda layer, input_is_zero: input_is_zero),
    # Layers without weights whose config contains the number of channels.
    "rescaling": Rule(
        axes=_per_output_channel(),
        resized=_resized_scale_and_offset,
        output_is_zero=lambda layer, input_is_zero: input_is_zero and not np.any(layer.offset),
    ),
    "reshape": Rule(axes=_per_output_channel(), resized=_resized_target_shape),
}
FOLLOWED_BY_NAME = ("per_channel", "flatten", "concatenate", "lookup", "by_trial")


def _per_channel(facts: BridgedLayer) -> Rule:
    def resized(layer: Any, kept: dict[str, NDArray]) -> dict[str, Any]:
        return {facts.channel_count: len(kept[OUT])} if facts.channel_count else {}

    return Rule(axes=_per_output_channel(*facts.channel_weights), resized=resized, zeroed=facts.channel_weights)

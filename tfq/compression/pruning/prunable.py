# SPDX-License-Identifier: Apache-2.0
"""Find the prunable weights of a layer, or the reason why it has none."""

import operator
from collections.abc import Sequence
from typing import Any

from tfq.compression.graph import reasons_by_layer
from tfq.compression.pruning.allocation import block_size, m_by_n
from tfq.compression.pruning.mask_shapes import reason_against_blocks
from tfq.config import PruneConfig
from tfq.keras_bridge.layers.bridged_layer import facts_of, inherited_facts


def prunable_weights(layer: Any) -> list[Any] | None:
    """Return the prunable weights of a built tf_keras layer, or None if they are not known.

    A custom layer lists them in `get_prunable_weights()` or in its BridgedLayer. Otherwise they follow from the
    nearest base class whose BridgedLayer states `prunable` or `wraps`.
    """
    if hasattr(layer, "get_prunable_weights"):
        return list(layer.get_prunable_weights())
    for facts in inherited_facts(layer):
        if facts.wraps:
            inner = [getattr(layer, name) for name in facts.wraps]
            parts = [prunable_weights(part) for item in inner for part in (item if isinstance(item, list) else [item])]
            return None if None in parts else [weight for part in parts if part for weight in part]
        if isinstance(facts.prunable, str):
            return []
        if facts.prunable is not None:
            return _attributes(layer, facts.prunable)
    return None


def _attributes(layer: Any, names: Sequence[str]) -> list[Any] | None:
    try:
        return [operator.attrgetter(name)(layer) for name in names]
    except AttributeError:  # a subclass that names its weights differently
        return None


def reason_not_prunable(layer: Any, config: PruneConfig | None = None) -> str | None:
    """Return why a built tf_keras layer cannot be pruned, or None if it can.

    Args:
        layer: The layer.
        config: If provided, its block size or m:n sparsity must also fit the layer's kernels.
    """
    kind = type(layer).__name__
    weights = prunable_weights(layer)
    if weights is None and not layer.weights:
        return f"{kind} has no weights"
    if weights is None:
        return f"tfmot cannot prune {kind} (a custom layer lists its prunable weights in get_prunable_weights())"
    reason = facts_of(layer).prunable
    if not weights and isinstance(reason, str):
        return reason
    if not weights:
        return f"tfmot prunes no weight of {kind}" if layer.weights else f"{kind} has no weights"
    if config is None:
        return None
    shapes = [tuple(weight.shape) for weight in weights]
    groups = m_by_n(config)
    if groups:
        return _reason_against_m_by_n(layer, shapes, *groups)
    return _reason_against_blocks(layer, shapes, block_size(config))


def layer_reasons(model: Any, config: PruneConfig) -> dict[str, str | None]:
    """Return layer -> why it cannot be pruned with `config`, or None if it can."""
    return reasons_by_layer(model, lambda layer: reason_not_prunable(layer, config))


def m_by_n_sparsity(shape: Sequence[int], m: int, n: int) -> float:
    """Return the fraction of zeros in a kernel (..., inputs, outputs) with m zeros in every n inputs.

    An incomplete last group keeps up to n - m of its weights.
    """
    groups, rest = divmod(shape[-2], n)
    return (groups * m + max(0, rest - (n - m))) / shape[-2]


def _reason_against_m_by_n(layer: Any, shapes: Sequence[tuple[int, ...]], m: int, n: int) -> str | None:
    wrong = next((facts.name for facts in inherited_facts(layer) if not facts.prunable_m_by_n), None)
    if wrong:
        return f"m:n masks run along the input channels, which the kernel of {wrong} has on another axis"
    for shape in shapes:
        if len(shape) not in (2, 4):
            return f"tfmot makes m:n masks for kernels of rank 2 and 4, but this kernel is {_format_shape(shape)}"
        if not m_by_n_sparsity(shape, m, n):
            return f"it has only {shape[-2]} input channels, so that {m}:{n} masks would prune none of them"
    return None


def _reason_against_blocks(layer: Any, shapes: Sequence[tuple[int, ...]], block: tuple[int, int]) -> str | None:
    if block == (1, 1):
        return None
    wrong = next((facts.name for facts in inherited_facts(layer) if not facts.prunable_m_by_n), None)
    if wrong and any(len(shape) > 2 for shape in shapes):
        return f"blocks cover input and output channels, which the kernel of {wrong} has on other axes"
    return next((reason for shape in shapes if (reason := reason_against_blocks(shape, block))), None)


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)

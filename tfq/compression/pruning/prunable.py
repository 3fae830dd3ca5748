# SPDX-License-Identifier: Apache-2.0
"""Which weights of a layer can be pruned, and of any other layer why not."""

import math
import operator
from collections.abc import Sequence
from typing import Any

from tfq.compression.graph import reasons_by_layer
from tfq.compression.pruning.allocation import block_size, m_by_n
from tfq.config import PruneConfig
from tfq.keras_bridge.layers.bridged_layer import facts_of, inherited_facts


def prunable_weights(layer: Any) -> list[Any] | None:
    """The weights of a built tf_keras layer that pruning masks; None where nobody knows which they are.

    A custom layer lists them in `get_prunable_weights()` or in its BridgedLayer. Otherwise the nearest base class with
    the fact `prunable` or `wraps` decides.
    """
    if hasattr(layer, "get_prunable_weights"):
        return list(layer.get_prunable_weights())
    for facts in inherited_facts(layer):
        if facts.wraps:
            inside = [getattr(layer, name) for name in facts.wraps]
            parts = [prunable_weights(part) for item in inside for part in (item if isinstance(item, list) else [item])]
            return None if None in parts else [weight for part in parts if part for weight in part]
        if isinstance(facts.prunable, str):
            return []
        if facts.prunable is not None:
            return _attributes(layer, facts.prunable)
    return None


def _attributes(layer: Any, names: Sequence[str]) -> list[Any] | None:
    try:
        return [operator.attrgetter(name)(layer) for name in names]
    except AttributeError:  # a subclass that builds itself otherwise
        return None


def reason_not_prunable(layer: Any, config: PruneConfig | None = None) -> str | None:
    """Why a built tf_keras layer is not pruned; None when it is. With `config`, also its blocks and m:n masks count."""
    kind = type(layer).__name__
    weights = prunable_weights(layer)
    if weights is None and not layer.weights:
        return f"{kind} has no weights"
    if weights is None:
        return f"tfmot cannot prune {kind} (a layer of your own lists its weights to prune in get_prunable_weights())"
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
        return _no_groups(layer, shapes, *groups)
    return _no_blocks(shapes, *block_size(config))


def layer_reasons(model: Any, config: PruneConfig) -> dict[str, str | None]:
    """`reasons_by_layer` of why a layer is not pruned."""
    return reasons_by_layer(model, lambda layer: reason_not_prunable(layer, config))


def m_by_n_sparsity(shape: Sequence[int], m: int, n: int) -> float:
    """Fraction of zeros of a kernel (..., inputs, outputs) with m zeros in each n inputs.

    What is left over behind the last whole group keeps n - m of its weights.
    """
    groups, rest = divmod(shape[-2], n)
    return (groups * m + max(0, rest - (n - m))) / shape[-2]


def _no_groups(layer: Any, shapes: Sequence[tuple[int, ...]], m: int, n: int) -> str | None:
    wrong = next((facts.name for facts in inherited_facts(layer) if not facts.prunable_m_by_n), None)
    if wrong:
        return f"m:n masks run along the input channels, and the kernel of {wrong} has them elsewhere"
    for shape in shapes:
        if len(shape) not in (2, 4):
            return f"tfmot makes m:n masks for kernels of rank 2 and 4, and this has the shape {_by(shape)}"
        if not m_by_n_sparsity(shape, m, n):
            return f"it has {shape[-2]} input channels, and {m} zeros in every {n} leave all of them"
    return None


def _no_blocks(shapes: Sequence[tuple[int, ...]], height: int, width: int) -> str | None:
    if (height, width) == (1, 1):
        return None
    for shape in shapes:
        if len(shape) != 2:
            return f"tfmot makes blocks in kernels of rank 2, and this has the shape {_by(shape)}"
        # tfmot 0.8.1 pools from -(padding // 2) on, and masks from 0 on, where blocks do not fill the kernel; and its
        # squeeze takes an axis of one block away, and then fails.
        if shape[0] % height or shape[1] % width or math.prod(shape) == height * width:
            return f"blocks of {height}x{width} do not divide its kernel of {_by(shape)}"
        if shape[0] == height or shape[1] == width:
            return f"tfmot wants two blocks of {height}x{width} along each axis at least, of its {_by(shape)}"
    return None


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)

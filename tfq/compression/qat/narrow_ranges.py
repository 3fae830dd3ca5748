# SPDX-License-Identifier: Apache-2.0
"""Ranges that are too narrow for an integer kernel, as a layer that died leaves them, and what is made of them.

A kernel multiplies its accumulator by input_scale * weight_scale / output_scale. XNNPACK refuses the whole model where
that is 256 or more, or a scale is not a normal number (measured: a convolution whose ReLU never opens, range 1e-9). An
output scale so fine says nothing: the accumulator's own step is that many times coarser.
"""

import math
from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.errors import warn

# Half of what XNNPACK takes, for rounding on the way.
_MOST_RATIO = 128.0
# Of the widest channel of a weight; a bias in steps of input_scale * weight_scale still fits 32 bits.
_NARROWEST_CHANNEL = 2.0**-12
# Widths below it have no scale that is a normal float32.
_TINY = 1e-30
# Their numbers are as large as those that they get, or a product of them.
_SAME_SIZE = ("Add", "Subtract", "Multiply", "Concatenate", "ReLU", "Pooling", "Dropout", "Reshape", "Flatten")


def widen_ranges(model: Any, told: frozenset[str] = frozenset()) -> frozenset[str]:
    """Widen the ranges of a QAT model that are too narrow to work with; gives the layers whose activations these were.

    An activation narrower than 1/128 of a step of the accumulator that it comes from: to the width of what it is
    computed from. Nothing is lost, for in integers it is zero. A TfqWarning names the layers that are not in `told`.
    A weight's channel: to 2^-12 of the widest one, so that one of zeros alone has a scale; all zeros, to [-1, 1].
    """
    for _, _, _, variables in tfmot_symbols.weight_ranges(model):
        _widen_channels(variables)
    steps = _Steps(model)
    widened: dict[str, str] = {}
    for place in tfmot_symbols.activation_quantizers(model):
        for variables in place.ranges:
            low, high = tfmot_symbols.ends_of(variables)
            narrowest, width = steps.narrowest(model.get_layer(place.layer))
            if high - low >= narrowest:
                continue
            new = (-width / 2, width / 2) if low < 0 else (0.0, width)
            tfmot_symbols.assign_ends(variables, *new)
            steps.widths[place.layer] = max(steps.widths[place.layer], width)
            widened[place.layer] = f"{place.layer} ({low:.3g} to {high:.3g}, now {new[0]:.3g} to {new[1]:.3g})"
    untold = [text for name, text in widened.items() if name not in told]
    if untold:
        warn(
            f"qat: activations that are next to nothing on all data, and nothing at all in integers: "
            f"{'; '.join(untold)}: their ranges are now as wide as those of what they come from; dead layers?"
        )
    return told | frozenset(widened)


def _widen_channels(variables: dict[str, Any]) -> None:
    low, high = variables["min_var"].numpy(), variables["max_var"].numpy()
    bound = np.maximum(-low, high)
    widest = float(np.max(bound, initial=0.0))
    narrowest = widest * _NARROWEST_CHANNEL if widest > _TINY else 1.0
    narrow = bound < narrowest
    if narrow.any():
        tfmot_symbols.assign_ends(variables, np.where(narrow, -narrowest, low), np.where(narrow, narrowest, high))


class _Steps:
    """How narrow the range behind a layer may be, from the ranges and weights in front of it."""

    def __init__(self, model: Any) -> None:
        self.widths: dict[str, float] = {}
        for place in tfmot_symbols.activation_quantizers(model):
            for pair in place.ranges:
                low, high = tfmot_symbols.ends_of(pair)
                self.widths[place.layer] = max(self.widths.get(place.layer, 0.0), high - low)
        self._largest: dict[str, float] = {}
        for name, _, _, pair in tfmot_symbols.weight_ranges(model):
            bound = float(np.max(np.maximum(-pair["min_var"].numpy(), pair["max_var"].numpy())))
            # Of two weights in one layer, its ranges inside come behind the first alone.
            self._largest[name] = max(bound, self._largest.get(name, 0.0), self._largest.get(name, 0.0) * bound)

    def narrowest(self, layer: Any) -> tuple[float, float]:
        """The narrowest width of a range behind `layer`, and the width of the widest range in front of it.

        In front of the model's own input there is none: a constant zero has a range of 1.
        """
        seen: dict[int, tuple[float, float]] = {}
        results = [way for node in layer.inbound_nodes if (way := self._in_front(layer, node, seen))[1]]
        if not results:
            return _TINY, 1.0
        return max(_TINY, *(step / _MOST_RATIO for step, _ in results)), max(width for _, width in results)

    def _in_front(self, layer: Any, node: Any, seen: dict[int, tuple[float, float]]) -> tuple[float, float]:
        """(step of the output times 255, width of the widest range) by all ways back from one call of a layer."""
        if id(node) not in seen:
            ways = [(0.0, 0.0)]
            for tensor in node.keras_inputs:
                before, index, _ = tensor._keras_history
                if before.name in self.widths:
                    ways.append((self.widths[before.name], self.widths[before.name]))
                else:
                    ways.append(self._in_front(before, before.inbound_nodes[index], seen))
            widest = max(width for _, width in ways)
            steps = [step for step, _ in ways[1:]]
            # Two scales are multiplied.
            step = math.prod(steps) / 255 if _kind(layer) == "Multiply" else max(steps, default=0.0)
            seen[id(node)] = step * self._gain(layer), widest
        return seen[id(node)]

    def _gain(self, layer: Any) -> float:
        """Step of the output in steps of the input: of folded weights, 1 where numbers keep their size."""
        inner = tfmot_symbols.wrapped(layer)
        if layer.name in self._largest:
            return self._largest[layer.name] / 127
        if hasattr(inner, "moving_variance"):
            factor = 1 / np.sqrt(np.asarray(inner.moving_variance) + inner.epsilon)
            return float(np.max(np.abs(factor * (np.asarray(inner.gamma) if inner.scale else 1.0))))
        # Of another layer, which may make small numbers of large ones, nothing is known.
        return 1.0 if not inner.weights and any(part in _kind(layer) for part in _SAME_SIZE) else 0.0


def _kind(layer: Any) -> str:
    return type(tfmot_symbols.wrapped(layer)).__name__

# SPDX-License-Identifier: Apache-2.0
"""Widen ranges that are too narrow for an integer kernel, such as those of dead layers.

A kernel multiplies its accumulator by input_scale * weight_scale / output_scale. XNNPACK rejects the whole model if
this ratio is 256 or more, or if a scale is not a normal float (measured with a convolution whose ReLU is always zero,
range 1e-9). Such a fine output scale has no benefit, because the step of the accumulator is coarser by this ratio.
"""

import math
from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.errors import warn

# Half of XNNPACK's limit, as a margin for rounding.
_MAX_RATIO = 128.0
# Minimum range of a channel, as a fraction of the widest channel of the weight. A bias in steps of
# input_scale * weight_scale still fits into 32 bits.
_MIN_CHANNEL_RATIO = 2.0**-12
# Narrower ranges have a scale that is not a normal float32.
_MIN_WIDTH = 1e-30
# Layers whose outputs have the magnitude of their inputs, or of a product of them.
_SAME_MAGNITUDE = (
    "Add",
    "Subtract",
    "Multiply",
    "Concatenate",
    "ReLU",
    "Pooling",
    "Dropout",
    "Reshape",
    "Flatten",
)


def widen_ranges(model: Any, reported: frozenset[str] = frozenset()) -> frozenset[str]:
    """Widen the ranges of a QAT model that are too narrow for integer kernels.

    The range of an activation is too narrow if its scale is below 1/128 of the step of the accumulator that it is
    computed from. It is widened to the width of the ranges that it is computed from. Nothing is lost, because such an
    activation is zero in integers. The range of a weight's channel is widened to 2^-12 of the widest channel, so that
    a channel of zeros has a scale. If all channels are zero, it becomes [-1, 1].

    Args:
        model: The QAT model. Its ranges are changed in place.
        reported: Layers that were already reported. No warning names them again.

    Returns:
        The layers whose activation ranges were widened, and those in `reported`.

    Warns:
        TfqWarning: Activation ranges were widened.
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
    unreported = [text for name, text in widened.items() if name not in reported]
    if unreported:
        warn(
            f"qat: the activations of {'; '.join(unreported)} are almost zero on all data, and zero in integers. Their "
            "ranges were widened to those of the layers' inputs. These layers may be dead"
        )
    return reported | frozenset(widened)


def _widen_channels(variables: dict[str, Any]) -> None:
    low, high = variables["min_var"].numpy(), variables["max_var"].numpy()
    bound = np.maximum(-low, high)
    widest = float(np.max(bound, initial=0.0))
    narrowest = widest * _MIN_CHANNEL_RATIO if widest > _MIN_WIDTH else 1.0
    narrow = bound < narrowest
    if narrow.any():
        tfmot_symbols.assign_ends(variables, np.where(narrow, -narrowest, low), np.where(narrow, narrowest, high))


class _Steps:
    """Computes the minimum width of the range after a layer, from the ranges and weights before it."""

    def __init__(self, model: Any) -> None:
        self.widths: dict[str, float] = {}
        for place in tfmot_symbols.activation_quantizers(model):
            for pair in place.ranges:
                low, high = tfmot_symbols.ends_of(pair)
                self.widths[place.layer] = max(self.widths.get(place.layer, 0.0), high - low)
        self._largest: dict[str, float] = {}
        for name, _, quantizer, pair in tfmot_symbols.weight_ranges(model):
            bound = float(np.max(np.maximum(-pair["min_var"].numpy(), pair["max_var"].numpy())))
            bound *= 127 / (2 ** (quantizer.num_bits - 1) - 1)  # steps of 4-bit weights are larger
            # If a layer has two weights, its inner range is after the first one only.
            self._largest[name] = max(bound, self._largest.get(name, 0.0), self._largest.get(name, 0.0) * bound)

    def narrowest(self, layer: Any) -> tuple[float, float]:
        """Return the minimum width of the range after `layer`, and the width of the widest range before it.

        There is no range before an input of the model. The width is then 1, for a constant zero.
        """
        seen: dict[int, tuple[float, float]] = {}
        results = [pair for node in layer.inbound_nodes if (pair := self._upstream(layer, node, seen))[1]]
        if not results:
            return _MIN_WIDTH, 1.0
        return max(_MIN_WIDTH, *(step / _MAX_RATIO for step, _ in results)), max(width for _, width in results)

    def _upstream(self, layer: Any, node: Any, seen: dict[int, tuple[float, float]]) -> tuple[float, float]:
        """Return (step of the output times 255, width of the widest range) over all paths that lead to a call."""
        if id(node) not in seen:
            paths = [(0.0, 0.0)]
            for tensor in node.keras_inputs:
                before, index, _ = tensor._keras_history
                if before.name in self.widths:
                    paths.append((self.widths[before.name], self.widths[before.name]))
                else:
                    paths.append(self._upstream(before, before.inbound_nodes[index], seen))
            widest = max(width for _, width in paths)
            steps = [step for step, _ in paths[1:]]
            # The accumulator's step is the product of both scales.
            step = math.prod(steps) / 255 if _kind(layer) == "Multiply" else max(steps, default=0.0)
            seen[id(node)] = step * self._gain(layer), widest
        return seen[id(node)]

    def _gain(self, layer: Any) -> float:
        """Return the output's step divided by the input's step, from the (folded) weights; 0 if it is not known."""
        inner = tfmot_symbols.wrapped(layer)
        if layer.name in self._largest:
            return self._largest[layer.name] / 127
        if hasattr(inner, "moving_variance"):
            factor = 1 / np.sqrt(np.asarray(inner.moving_variance) + inner.epsilon)
            return float(np.max(np.abs(factor * (np.asarray(inner.gamma) if inner.scale else 1.0))))
        # Any other layer may map large numbers to small ones.
        return 1.0 if not inner.weights and any(part in _kind(layer) for part in _SAME_MAGNITUDE) else 0.0


def _kind(layer: Any) -> str:
    return type(tfmot_symbols.wrapped(layer)).__name__

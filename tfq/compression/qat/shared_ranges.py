# SPDX-License-Identifier: Apache-2.0
"""Tensors of a QAT model that have one scale in the flatbuffer, and so must have one range here.

What is joined has the scale of the join, and what is pooled or moved keeps the scale that it came with (TFLite 8-bit
quantization specification: "inputs and outputs must all have same scale"). Such tensors hang together through the whole
model: in a DenseNet, those of a block of sixty layers. Each with a range of its own would be rounded otherwise in the
flatbuffer than in the QAT model, and clipped where another one's is narrower.
"""

from typing import Any

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.qat.layer_facts import joins, passes_on

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
    found: dict[_Call, tuple[Any, list[_Call]]] = {}
    waiting = [tensor._keras_history for tensor in model.outputs]
    while waiting:
        layer, index, _ = waiting.pop()
        call = id(layer), index
        if call in found:
            continue
        read = [tensor._keras_history for tensor in layer.inbound_nodes[index].keras_inputs]
        found[call] = layer, [(id(source.layer), source.node_index) for source in read]
        waiting += read
    return found

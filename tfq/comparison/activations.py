# SPDX-License-Identifier: Apache-2.0
"""Compare the quantization parameters of matched activations."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tfq.comparison.alignment import Alignment
from tfq.comparison.change import Change
from tfq.comparison.structure import tensor_changes
from tfq.ptq.causes import op_label
from tfq.tflite import ABSENT, Op, Tensor


@dataclass(frozen=True, kw_only=True)
class ActivationDifference:
    """An activation whose scale or zero point differs.

    Attributes:
        where: The label of the op that computes it.
        layer: The Keras layer of the op, or the name of the tensor.
        tensor: The name of the tensor in the reference.
        dtype: Its type in both files.
        reference_scale: The scale in the reference, the first one if there are several.
        model_scale: The scale in the model.
        scale_ratio: The model's scale divided by the reference's: 2 means that the model has half the resolution. With
            several scales, the one that is farthest from 1. None if it is not a finite number.
        reference_zero_point: The zero point in the reference.
        model_zero_point: The zero point in the model.
    """

    where: str
    layer: str
    tensor: str
    dtype: str
    reference_scale: float
    model_scale: float
    scale_ratio: float | None
    reference_zero_point: int
    model_zero_point: int

    @property
    def size(self) -> float:
        """A number to sort by: the logarithm of the ratio of the scales, without its sign."""
        return math.inf if not self.scale_ratio or self.scale_ratio < 0 else abs(math.log(self.scale_ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def compare_activations(alignment: Alignment) -> Iterator[ActivationDifference | Change]:
    """Yield the differences of each pair of matched activations: parameters, name, type and shape.

    The outputs of the subgraphs are left out: `interface_changes` compares them.
    """
    graphs = alignment.reference.graph, alignment.model.graph
    pairs: dict[int, tuple[int, str, str]] = {}
    for our_op, their_op in alignment.pairs():
        for what, place, ours, theirs in _tensors_of(alignment, our_op, their_op):
            label = op_label(graphs[0], our_op.index) + (f" {what} {place}" if (what, place) != ("output", 0) else "")
            pairs.setdefault(ours, (theirs, label, graphs[0].layer_of(our_op)))
    for index, (other, where, layer) in pairs.items():
        if index in graphs[0].outputs and other in graphs[1].outputs:
            continue
        pair = graphs[0].tensors[index], graphs[1].tensors[other]
        yield from tensor_changes(where, *pair)
        both_quantized = all(tensor.is_quantized for tensor in pair) and pair[0].dtype == pair[1].dtype
        if both_quantized and not _same_grid(*pair):
            yield _difference(where, layer, *pair)


def _tensors_of(alignment: Alignment, ours: Op, theirs: Op) -> Iterator[tuple[str, int, int, int]]:
    """Yield ("output", number, tensor of the reference, of the model) of the tensors that two matched ops hold.

    Besides outputs these are the intermediate values of a recurrent op, which have only a scale, and its states: inputs
    that are variables.
    """
    graphs = alignment.reference.graph, alignment.model.graph
    for what, pairs in (
        ("output", zip(ours.outputs, theirs.outputs, strict=False)),
        ("intermediate", zip(ours.intermediates, theirs.intermediates, strict=False)),
        ("input", zip(ours.inputs, theirs.inputs, strict=False)),
    ):
        for place, (left, right) in enumerate(pairs):
            if ABSENT in (left, right):
                continue
            is_state = graphs[0].tensors[left].is_variable and graphs[1].tensors[right].is_variable
            if what != "input" or (is_state and ours.name == theirs.name):
                yield what, place, left, right


def _same_grid(ours: Tensor, theirs: Tensor) -> bool:
    same_axis = len(ours.scale) == 1 or ours.quantized_dimension == theirs.quantized_dimension
    return (
        same_axis and ours.zero_point == theirs.zero_point and np.array_equal(ours.scale, theirs.scale, equal_nan=True)
    )


def _difference(where: str, layer: str, ours: Tensor, theirs: Tensor) -> ActivationDifference:
    pairs = list(zip(ours.scale, theirs.scale, strict=False))
    ratios = [theirs / ours for ours, theirs in pairs if ours]
    ratio = max(ratios, key=lambda value: abs(math.log(value)) if value > 0 else math.inf, default=math.nan)
    return ActivationDifference(
        where=where,
        layer=layer,
        tensor=ours.name,
        dtype=ours.dtype,
        reference_scale=ours.scale[0],
        model_scale=theirs.scale[0],
        scale_ratio=ratio if math.isfinite(ratio) else None,
        reference_zero_point=ours.zero_point[0],
        model_zero_point=theirs.zero_point[0],
    )

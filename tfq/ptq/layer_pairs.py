# SPDX-License-Identifier: Apache-2.0
"""Two layers of which one alone reads what the other gives, channel by channel."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tfq import tflite
from tfq.ptq.weighted_ops import Weighted, weighted_ops

# Fused activations, by their numbers in the schema.
NO_ACTIVATION, RELU, RELU6 = 0, 1, 3


@dataclass(frozen=True, kw_only=True)
class PairRepair:
    """A float flatbuffer of which pairs of layers were changed. model: of the same function as before.

    pairs: what was done to each, a dataclass. skipped: {layer: why nothing was}. difference: the largest of any output
    from what it was, as a share of the largest output; over num_samples samples.
    """

    model: bytes
    pairs: tuple[Any, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    difference: float
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the flatbuffer."""
        return {
            "difference": self.difference,
            "num_samples": self.num_samples,
            "pairs": [asdict(pair) for pair in self.pairs],
            "skipped": dict(self.skipped),
        }


def partners(
    edited: Any,
    parsed: tflite.Model,
    passing: Collection[str],
    why_not: Callable[[Weighted, Weighted | None], str],
) -> tuple[list[tuple[Weighted, Weighted]], dict[str, str]]:
    """(the pairs of layers with nothing but ops of the names `passing` between them, {other layer: why it has none}).

    edited: `parsed` in its object form. why_not: what speaks against a first layer (with None), and then against a
    pair; "" where nothing does.
    """
    graph = parsed.main_subgraph
    by_output = {each.output: each for each in weighted_ops(edited, parsed)}
    readers: dict[int, list[tflite.Op]] = {}
    for op in graph.ops:
        for index in set(op.tensors) & set(op.inputs):
            readers.setdefault(index, []).append(op)
    found, skipped = [], {}
    for first in by_output.values():
        second, reason = None, why_not(first, None)
        if not reason:
            second, reason = _reader(first, graph, readers, by_output, passing)
        if second is not None:
            reason = why_not(first, second)
        if second is None or reason:
            skipped[first.layer] = reason
        else:
            found.append((first, second))
    return found, skipped


def _reader(
    first: Weighted,
    graph: tflite.Subgraph,
    readers: Mapping[int, list[tflite.Op]],
    by_output: Mapping[int, Weighted],
    passing: Collection[str],
) -> tuple[Weighted | None, str]:
    """The layer that alone reads what `first` gives; or None, and why there is none."""
    tensor = first.output
    while True:
        if tensor in graph.outputs:
            return None, "an output of the model"
        ops = readers.get(tensor, [])
        if len(ops) != 1:
            return None, f"{len(ops)} ops read what it gives"
        (op,) = ops
        second = by_output.get(op.outputs[0])
        if second is not None and op.inputs[0] == tensor:
            if second.is_depthwise and second.num_inputs != first.num_outputs:
                return None, "its channels are others where they are read again"
            return second, ""
        if op.name not in passing or not _keeps_channels(op, graph, first.num_outputs):
            return None, f"{op.name} reads what it gives"
        tensor = op.outputs[0]


def _keeps_channels(op: tflite.Op, graph: tflite.Subgraph, channels: int) -> bool:
    """Whether the op's output still has the channels innermost: one place of an image, or all of them, flattened."""
    shape = graph.tensors[op.outputs[0]].shape
    if op.name == "RESHAPE":
        return bool(shape) and shape[-1] % channels == 0
    return bool(shape) and shape[-1] == channels

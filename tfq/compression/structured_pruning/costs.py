# SPDX-License-Identifier: Apache-2.0
"""The costs of channels: multiply-adds, estimated instructions of ARM cores, estimated bytes of tensors in memory.

Multiply-adds are counted. The other costs are estimates of the int8 flatbuffer that the model becomes, from the shapes
of its layers alone, so that a search can try thousands of shapes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.compression.structured_pruning.channels import Counts, Graph, Site, Term
from tfq.registry import register

# The exponent of the norm that replaces the maximum over all steps during the search. With the maximum itself, no
# single reduction helps where two steps need the same memory.
_NORM = 16


# (numbers of remaining channels) -> cost.
CountsToCost = Callable[[Counts], float]


@registry.extension_point("channel_cost")
@dataclass(frozen=True, kw_only=True)
class ChannelCost:
    """A cost that structured pruning can limit.

    Args:
        name: The name that users write: `compression.structured_pruning.cost`.
        help: What it is, for `--help` and the documentation.
        unit: What is counted, in the plural.
        measure: Graph -> the function from the numbers of remaining channels to the cost.
        objective: Graph -> the function that each step of the search reduces instead, a smooth one close to the cost;
            None for the cost itself.
        basis: What an estimate is based on, for records and messages; "" if the cost is counted.
    """

    name: str
    help: str
    unit: str
    measure: Callable[[Graph], CountsToCost]
    objective: Callable[[Graph], CountsToCost] | None = None
    basis: str = ""

    @property
    def columns(self) -> dict[str, str]:
        """The cells of the row in the documentation, besides the name and the help."""
        return {"basis": self.basis or "counted"}

    @property
    def noun(self) -> str:
        """The unit, with a remark if it is an estimate."""
        return f"estimated {self.unit}" if self.basis else self.unit


def _multiply_adds(graph: Graph) -> CountsToCost:
    def total(counts: Counts) -> int:
        pairs = zip(counts.inputs.tolist(), counts.outputs.tolist(), strict=True)
        return sum(site_macs(site, *pair) for site, pair in zip(graph.sites, pairs, strict=True))

    return total


def site_macs(site: Site, inputs: int, outputs: int) -> int:
    """Return the multiply-adds of a site with these numbers of channels."""
    return sum(term.macs(inputs, outputs) for term in site.terms)


@dataclass(frozen=True, kw_only=True)
class InstructionTable:
    """Instructions of XNNPACK's int8 kernels on one core.

    A kernel computes tiles of one position and `tile` channels. An incomplete tile takes as long as a complete one.
    With `taps`, the number of positions of the kernel (9 for 3x3), a convolution or Dense layer takes

        positions * (per_position + ceil(outputs / tile) * (per_tile + taps * (per_tap + per_product * inputs)))

    and a depthwise convolution

        positions * (depthwise_per_position + depthwise_per_tap * taps
                     + ceil(channels / tile) * (depthwise_per_tile + depthwise_per_product * taps))

    Any other op takes `per_read` and `per_written` for each value that it reads and writes.

    Attributes:
        tile: Output channels of a tile.
        per_call: Instructions of one inference that do not depend on the layers.
        per_product: Instructions for one input channel at one tap of a tile.
        per_tap: Instructions for one tap of a tile.
        per_tile: Instructions for one tile.
        per_position: Instructions for one position of the output.
        depthwise_per_product: Instructions for one tap of a tile of a depthwise convolution.
        depthwise_per_tile: Instructions for one such tile.
        depthwise_per_tap: Instructions for one tap of one position.
        depthwise_per_position: Instructions for one position of the output.
        per_read: Instructions for each value that an op without weights reads.
        per_written: Instructions for each value that it writes.
    """

    tile: int
    per_call: float
    per_product: float
    per_tap: float
    per_tile: float
    per_position: float
    depthwise_per_product: float
    depthwise_per_tile: float
    depthwise_per_tap: float
    depthwise_per_position: float
    per_read: float
    per_written: float

    def of_term(self, term: Term, inputs: int, outputs: int) -> float:
        """Return the instructions of one term of a layer."""
        taps = term.factor / term.positions
        if term.per_input and term.per_output:
            tiles = math.ceil(outputs / self.tile)
            instructions = self.per_position + tiles * (
                self.per_tile + taps * (self.per_tap + self.per_product * inputs)
            )
        else:
            tiles = math.ceil((outputs if term.per_output else inputs if term.per_input else 1) / self.tile)
            instructions = self.depthwise_per_position + self.depthwise_per_tap * taps
            instructions += tiles * (self.depthwise_per_tile + self.depthwise_per_product * taps)
        return term.positions * instructions


def _instructions(graph: Graph, table: InstructionTable) -> CountsToCost:
    by_channels: dict[tuple[int, int, int], float] = {}
    others = [step for step in graph.steps if not step.has_weights]

    def of_site(index: int, inputs: int, outputs: int) -> float:
        key = index, inputs, outputs
        if key not in by_channels:
            by_channels[key] = sum(table.of_term(term, inputs, outputs) for term in graph.sites[index].terms)
        return by_channels[key]

    def total(counts: Counts) -> int:
        pairs = zip(counts.inputs.tolist(), counts.outputs.tolist(), strict=True)
        values = [
            (item.positions or 0) * width for item, width in zip(graph.buffers, counts.widths.tolist(), strict=True)
        ]
        result = table.per_call + sum(of_site(index, *pair) for index, pair in enumerate(pairs))
        result += table.per_read * sum(values[index] for step in others for index in step.reads)
        return round(result + table.per_written * sum(values[step.writes] for step in others))

    return total


def _bytes_by_step(graph: Graph) -> Callable[[Counts], NDArray[np.float64]]:
    """Return a function from the numbers of channels to the bytes of the tensors that each step needs."""
    first, last = np.zeros(len(graph.buffers), int), np.zeros(len(graph.buffers), int)
    for index, step in enumerate(graph.steps):
        first[step.writes] = index
        last[[step.writes, *step.reads]] = index
    first[list(graph.inputs)] = 0
    last[list(graph.outputs)] = len(graph.steps)
    steps = np.arange(max(1, len(graph.steps)))[:, None]
    alive = ((first <= steps) & (steps <= last)).astype(np.float64)
    positions = np.array([buffer.positions or 0 for buffer in graph.buffers], np.float64)
    return lambda counts: np.asarray(alive @ (positions * counts.widths))


def _memory(graph: Graph) -> CountsToCost:
    by_step = _bytes_by_step(graph)
    return lambda counts: int(by_step(counts).max(initial=0))


def _smooth_memory(graph: Graph) -> CountsToCost:
    by_step = _bytes_by_step(graph)
    return lambda counts: float(np.linalg.norm(by_step(counts), _NORM))


# Fitted by benchmarks/instruction_table.py to the counts of 64 int8 models of one layer (QEMU 7.2, ai-edge-litert
# 2.3.0, 2026-11-30). The mean error is 2%, the largest one 14%.
CORTEX_A53 = InstructionTable(
    tile=16,
    per_call=5343,
    per_product=5.83,
    per_tap=5.44,
    per_tile=21.5,
    per_position=5.94,
    depthwise_per_product=9.9,
    depthwise_per_tile=11.5,
    depthwise_per_tap=1.08,
    depthwise_per_position=31.4,
    per_read=0.25,
    per_written=3.62,
)

register(
    ChannelCost(
        name="macs",
        help="multiply-adds of convolutions and Dense layers",
        unit="multiply-adds",
        measure=_multiply_adds,
    )
)
register(
    ChannelCost(
        name="instructions_a53",
        help="instructions of an Arm Cortex-A53 with XNNPACK's int8 kernels, estimated from the shapes of the layers",
        unit="Cortex-A53 instructions",
        measure=lambda graph: _instructions(graph, CORTEX_A53),
        basis="a formula fitted to counts of single int8 layers; count the converted file to check it",
    )
)
register(
    ChannelCost(
        name="arena",
        help="peak bytes of the int8 tensors that are needed at the same time, estimated from the model's graph",
        unit="bytes of tensors",
        measure=_memory,
        objective=_smooth_memory,
        basis="the sizes of int8 tensors in the order of the Keras graph; an allocator needs as much or more",
    )
)

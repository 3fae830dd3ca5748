# SPDX-License-Identifier: Apache-2.0
"""Match the ops of two subgraphs: by the names of their outputs, by Keras layer, by topology, and by position.

The rules are tried in this order, from the strongest evidence to the weakest. QUANTIZE, DEQUANTIZE and DENSIFY are
skipped when a rule follows a tensor to its producer or its readers, because converters insert them anywhere.
"""

import bisect
import collections
import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfq.tflite import ABSENT, Op, Subgraph
from tfq.tflite.op_types import names

CONVERTING_OPS = names("QUANTIZE DEQUANTIZE DENSIFY")
NAME, LAYER, TOPOLOGY, POSITION = "output name", "Keras layer", "topology", "position"
# Limits of the work on graphs that no converter writes. What is left then stays unmatched.
_MOST_CELLS, _MOST_READERS = 2_000_000, 5_000_000


class Side:
    """One of the two subgraphs, with the producers and readers of its tensors across converting ops.

    Attributes:
        graph: The subgraph.
    """

    def __init__(self, graph: Subgraph) -> None:
        """Index the subgraph."""
        self.graph = graph
        self._sources: dict[int, int] = {}
        for op in graph.ops:
            if op.name in CONVERTING_OPS and op.inputs and op.outputs:
                self._sources[op.outputs[0]] = self.source(op.inputs[0])

    def source(self, tensor: int) -> int:
        """Return the tensor that `tensor` has its values from: `tensor` itself, or the input of converting ops."""
        return self._sources.get(tensor, tensor)

    def producer(self, tensor: int) -> Op | None:
        """Return the op that computes the values of a tensor, or None for inputs and constants."""
        return self.graph.producers.get(self.source(tensor))

    @functools.cached_property
    def readers(self) -> Mapping[int, list[tuple[Op, int]]]:
        """Source tensor -> (op, input slot) of the ops that read its values, other than converting ops."""
        results: dict[int, list[tuple[Op, int]]] = {}
        for op in self.graph.ops:
            if op.name not in CONVERTING_OPS:
                for slot, tensor in enumerate(op.inputs):
                    if tensor != ABSENT:
                        results.setdefault(self.source(tensor), []).append((op, slot))
        return results

    def shapes(self, op: Op) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the outputs of an op."""
        return tuple(self.graph.tensors[index].shape for index in op.outputs)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The matched ops and tensors of two subgraphs; all numbers are indices of ops or tensors.

    Attributes:
        reference: The reference's subgraph.
        model: The model's subgraph.
        ops: (op of the reference, op of the model) of each pair, in the order of the reference.
        rules: Op of the reference -> the rule that matched it.
        removed: Ops of the reference without a counterpart.
        added: Ops of the model without a counterpart.
        moved: Pairs to leave out so that the other pairs have the same order in both files; as few as possible.
        tensors: Tensor of the reference -> tensor of the model, of inputs of the subgraph and of matched ops.
    """

    reference: Side
    model: Side
    ops: tuple[tuple[int, int], ...]
    rules: Mapping[int, str]
    removed: tuple[int, ...]
    added: tuple[int, ...]
    moved: tuple[tuple[int, int], ...]
    tensors: Mapping[int, int]

    @functools.cached_property
    def matches(self) -> Mapping[int, int]:
        """Op of the reference -> op of the model."""
        return dict(self.ops)

    def pairs(self) -> Iterator[tuple[Op, Op]]:
        """Yield the matched ops."""
        for ours, theirs in self.ops:
            yield self.reference.graph.ops[ours], self.model.graph.ops[theirs]


def align(reference: Subgraph, model: Subgraph) -> Alignment:
    """Match the ops of two subgraphs, each at most once."""
    return _Matcher(Side(reference), Side(model)).alignment()


class _Matcher:
    def __init__(self, reference: Side, model: Side) -> None:
        self.sides = (reference, model)
        self.matches: dict[int, int] = {}
        self.matched: set[int] = set()
        self.rules: dict[int, str] = {}
        self.inputs = _paired_inputs(reference.graph, model.graph)
        self.cells, self.reads = _MOST_CELLS, _MOST_READERS

    def alignment(self) -> Alignment:
        self._match_groups(NAME, _name_key)
        self._match_groups(LAYER, _layer_key, several=True)
        self._follow(_same_op)
        self._match_gaps()
        self._follow(_same_op)
        self._follow(_any_op)
        self._match_converting()
        pairs = tuple(sorted(self.matches.items()))
        reference, model = (side.graph for side in self.sides)
        return Alignment(
            reference=self.sides[0],
            model=self.sides[1],
            ops=pairs,
            rules=self.rules,
            removed=tuple(op.index for op in reference.ops if op.index not in self.matches),
            added=tuple(op.index for op in model.ops if op.index not in self.matched),
            moved=_moved(pairs),
            tensors=self._tensors(pairs),
        )

    def _match(self, ours: Op, theirs: Op, rule: str) -> bool:
        if ours.index in self.matches or theirs.index in self.matched:
            return False
        self.matches[ours.index] = theirs.index
        self.matched.add(theirs.index)
        self.rules[ours.index] = rule
        return True

    def _free(self, side: int, ops: Iterable[Op]) -> list[Op]:
        known = self.matched if side else self.matches
        return [op for op in ops if op.index not in known]

    def _match_groups(self, rule: str, key: Callable[[Subgraph, Op], Hashable], *, several: bool = False) -> None:
        """Match ops with the same key that are unique on both sides; if `several`, equally many of them in order."""
        groups: tuple[dict[Hashable, list[Op]], ...] = ({}, {})
        for side, group in enumerate(groups):
            graph = self.sides[side].graph
            for op in self._free(side, graph.ops):
                if value := key(graph, op):
                    group.setdefault(value, []).append(op)
        for value, ours in groups[0].items():
            theirs = groups[1].get(value, [])
            if len(ours) == len(theirs) and (several or len(ours) == 1):
                for pair in zip(ours, theirs, strict=True):
                    self._match(*pair, rule)

    def _follow(self, key: Callable[[Side, Op], Hashable]) -> None:
        """Match readers of matched tensors, and producers of what matched ops read, until nothing changes."""
        reference, model = self.sides
        waiting = collections.deque(sorted(self.matches.items()))
        for ours, theirs in self.inputs.items():
            waiting.extend(self._match_readers(ours, theirs, key))
        for ours, theirs in zip(reference.graph.outputs, model.graph.outputs, strict=False):
            waiting.extend(self._match_producers(ours, theirs, key))
        while waiting:
            ours, theirs = waiting.popleft()
            our_op, their_op = reference.graph.ops[ours], model.graph.ops[theirs]
            for tensors in dict.fromkeys(zip(our_op.outputs, their_op.outputs, strict=False)):
                waiting.extend(self._match_readers(*tensors, key))
            for tensors in dict.fromkeys(zip(our_op.inputs, their_op.inputs, strict=False)):
                if ABSENT not in tensors:
                    waiting.extend(self._match_producers(*tensors, key))
                    waiting.extend(self._match_readers(*tensors, key))

    def _match_readers(self, ours: int, theirs: int, key: Callable[[Side, Op], Hashable]) -> Iterator[tuple[int, int]]:
        groups: tuple[dict[Hashable, list[Op]], ...] = ({}, {})
        for side, tensor in enumerate((ours, theirs)):
            read = self.sides[side].readers.get(self.sides[side].source(tensor), [])
            self.reads -= len(read)
            if self.reads < 0:
                return
            for op, slot in read:
                if self._free(side, [op]):
                    groups[side].setdefault((key(self.sides[side], op), slot), []).append(op)
        for value, candidates in groups[0].items():
            others = groups[1].get(value, [])
            if len(candidates) == len(others) == 1 and self._match(candidates[0], others[0], TOPOLOGY):
                yield candidates[0].index, others[0].index

    def _match_producers(
        self, ours: int, theirs: int, key: Callable[[Side, Op], Hashable]
    ) -> Iterator[tuple[int, int]]:
        pair = self.sides[0].producer(ours), self.sides[1].producer(theirs)
        if pair[0] is None or pair[1] is None or CONVERTING_OPS & {pair[0].name, pair[1].name}:
            return
        if key(self.sides[0], pair[0]) == key(self.sides[1], pair[1]) and self._match(pair[0], pair[1], TOPOLOGY):
            yield pair[0].index, pair[1].index

    def _match_gaps(self) -> None:
        """Match the remaining ops between two matched pairs: the longest common sequence of names and shapes."""
        anchors = sorted(set(self.matches.items()) - set(_moved(tuple(sorted(self.matches.items())))))
        ends = [(ABSENT, ABSENT), *anchors, (len(self.sides[0].graph.ops), len(self.sides[1].graph.ops))]
        for first, last in itertools.pairwise(ends):
            gaps = [
                [op for op in self._free(side, ops) if op.name not in CONVERTING_OPS]
                for side in (0, 1)
                for ops in [self.sides[side].graph.ops[first[side] + 1 : last[side]]]
            ]
            self.cells -= len(gaps[0]) * len(gaps[1])
            if self.cells < 0:
                return
            keys = [[_same_op(self.sides[side], op) for op in gap] for side, gap in enumerate(gaps)]
            for left, right in _common_sequence(*keys):
                self._match(gaps[0][left], gaps[1][right], POSITION)

    def _match_converting(self) -> None:
        """Match converting ops of the same type that read the same values, in order."""
        groups: tuple[dict[Hashable, list[Op]], ...] = ({}, {})
        reference, model = self.sides
        tensors = self._tensors(tuple(self.matches.items()))
        sources = {reference.source(ours): model.source(theirs) for ours, theirs in tensors.items()}
        for side in (0, 1):
            for op in self._free(side, self.sides[side].graph.ops):
                if op.name in CONVERTING_OPS and op.inputs:
                    source = self.sides[side].source(op.inputs[0])
                    source = sources.get(source, ABSENT) if side == 0 else source
                    groups[side].setdefault((op.name, source), []).append(op)
        for value, ours in groups[0].items():
            for pair in zip(ours, groups[1].get(value, []), strict=False):
                self._match(*pair, TOPOLOGY)

    def _tensors(self, pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
        results = dict(self.inputs)
        for ours, theirs in pairs:
            ops = self.sides[0].graph.ops[ours], self.sides[1].graph.ops[theirs]
            same_slots = ops[0].name == ops[1].name
            for sides in ((ops[0].outputs, ops[1].outputs), *([(ops[0].inputs, ops[1].inputs)] * same_slots)):
                for left, right in zip(*sides, strict=False):
                    if ABSENT not in (left, right):
                        results.setdefault(left, right)
        return results


def _paired_inputs(reference: Subgraph, model: Subgraph) -> dict[int, int]:
    """Return {input of the reference: input of the model}: by name if the names are the same, otherwise in order."""
    ours = {tensor.name: tensor.index for tensor in reference.input_tensors}
    theirs = {tensor.name: tensor.index for tensor in model.input_tensors}
    if set(ours) == set(theirs) and len(ours) == len(reference.inputs):
        return {ours[name]: theirs[name] for name in ours}
    return dict(zip(reference.inputs, model.inputs, strict=False))


def _name_key(graph: Subgraph, op: Op) -> Hashable:
    name = graph.tensors[op.outputs[0]].name if op.outputs else ""
    return (op.name, name) if name else None


def _layer_key(graph: Subgraph, op: Op) -> Hashable:
    return (op.name, op.keras_layer) if op.keras_layer and op.name not in CONVERTING_OPS else None


def _same_op(side: Side, op: Op) -> Hashable:
    return op.name, op.custom_code, side.shapes(op)


def _any_op(side: Side, op: Op) -> Hashable:
    return side.shapes(op)


def _moved(pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Return the pairs that are not in a longest increasing sequence of both indices."""
    tails: list[int] = []
    lengths = []
    for _, theirs in pairs:
        place = bisect.bisect_left(tails, theirs)
        tails[place : place + 1] = [theirs]
        lengths.append(place + 1)
    results, length = [], len(tails)
    for pair, place in zip(reversed(pairs), reversed(lengths), strict=True):
        if place == length:
            length -= 1
        else:
            results.append(pair)
    return tuple(reversed(results))


def _common_sequence(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return the places of a longest common subsequence, by dynamic programming."""
    if not ours or not theirs:
        return []
    lengths = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for row in range(len(ours) - 1, -1, -1):
        for column in range(len(theirs) - 1, -1, -1):
            if ours[row] == theirs[column]:
                lengths[row][column] = lengths[row + 1][column + 1] + 1
            else:
                lengths[row][column] = max(lengths[row + 1][column], lengths[row][column + 1])
    results, row, column = [], 0, 0
    while row < len(ours) and column < len(theirs):
        if ours[row] == theirs[column] and lengths[row][column] == lengths[row + 1][column + 1] + 1:
            results.append((row, column))
            row, column = row + 1, column + 1
        elif lengths[row + 1][column] >= lengths[row][column + 1]:
            row += 1
        else:
            column += 1
    return results

# SPDX-License-Identifier: Apache-2.0
"""Coupled channels: sets that must be removed together, groups of such sets, and the multiply-adds they cost.

Two channels are coupled if removing one requires removing the other, such as the two operands of a residual sum. This
module knows neither Keras nor TensorFlow.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfq.patterns import Target, check_fits, check_selection, fits


class Channels:
    """A disjoint-set forest (union-find) of channels, which are integers.

    The channels of one set are coupled: they are removed together or not at all.
    """

    def __init__(self) -> None:
        """Create a forest without channels."""
        self._parents: list[int] = []
        self._frozen: dict[int, str] = {}

    def add(self, count: int) -> NDArray:
        """Add `count` channels, each in a separate set, and return them."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, channel: int) -> int:
        """Return the channel that represents the set of `channel`. It may change with the next `join`."""
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def roots(self, channels: NDArray) -> NDArray:
        """Return the `root` of each channel, shape (n,)."""
        return np.array([self.root(int(channel)) for channel in channels], np.int64)

    def join(self, some: NDArray, others: NDArray) -> None:
        """Merge the sets of some[i] and others[i], for every i.

        If either set is frozen, the merged set is frozen for the same reason.
        """
        for one, other in zip(some, others, strict=True):
            root, merged = self.root(int(one)), self.root(int(other))
            if root == merged:
                continue
            self._parents[merged] = root
            reason = self._frozen.pop(merged, None)
            if reason is not None:
                self._frozen.setdefault(root, reason)

    def freeze(self, channels: NDArray, reason: str) -> None:
        """Mark the sets of these channels as not removable. A set keeps the reason of the first call."""
        for channel in channels:
            self._frozen.setdefault(self.root(int(channel)), reason)

    def reason(self, channel: int) -> str | None:
        """Return why the set of `channel` is frozen, or None if it is not."""
        return self._frozen.get(self.root(int(channel)))


@dataclass(frozen=True, kw_only=True)
class Term:
    """A number of multiply-adds of a layer, as a function of its channels.

    It is `factor`, multiplied by the number of input channels if `per_input`, and by the number of output channels if
    `per_output`.

    Attributes:
        factor: The multiply-adds of one input and one output channel, or of all where they do not count.
        per_input: Whether the term grows with the number of input channels.
        per_output: Whether it grows with the number of output channels.
        positions: The number of positions that `factor` includes. At each of them, a kernel runs once.
    """

    factor: int
    per_input: bool = False
    per_output: bool = False
    positions: int = 1

    def macs(self, inputs: int, outputs: int) -> int:
        """Return the multiply-adds with these numbers of input and output channels."""
        return self.factor * (inputs if self.per_input else 1) * (outputs if self.per_output else 1)


@dataclass(kw_only=True)
class Site:
    """One call of a layer that has weights.

    Attributes:
        layer: Name of the layer.
        inputs: Channels of its input, one for each index on the last axis.
        outputs: Channels of its output, one for each index on the last axis.
        terms: Its multiply-adds are the sum of these.
        makes_channels: Whether it has whole filters that can be removed, one for each output channel.
        norms: Norm of the filter of each output channel; None if it has no filters.
        input_is_zero: Whether a removed channel of its input is zero once the filters that produce it are zero.
    """

    layer: str
    inputs: NDArray
    outputs: NDArray
    terms: tuple[Term, ...] = ()
    makes_channels: bool = False
    norms: NDArray | None = None
    input_is_zero: bool = True

    def macs(self) -> int:
        """Return the multiply-adds for one example, with all channels."""
        return sum(term.macs(len(self.inputs), len(self.outputs)) for term in self.terms)


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A tensor that an int8 flatbuffer of the model has in memory.

    Attributes:
        channels: Its channels, one for each index on the last axis.
        positions: Its size without batch and channels; None if a dimension is open.
    """

    channels: NDArray
    positions: int | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One op of an int8 flatbuffer of the model, in the order of execution.

    Attributes:
        layer: Name of the layer.
        reads: Indices of the buffers that it reads.
        writes: Index of the buffer that it writes.
        has_weights: Whether its work is that of a site.
    """

    layer: str
    reads: tuple[int, ...]
    writes: int
    has_weights: bool


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The input of cost computations: the layers, tensors and ops of a model.

    Attributes:
        sites: The calls of layers with weights.
        buffers: The tensors in memory.
        steps: The ops, in the order of execution.
        inputs: Indices of the buffers that are inputs of the model.
        outputs: Indices of the buffers that are outputs of the model.
    """

    sites: Sequence[Site]
    buffers: Sequence[Buffer] = ()
    steps: Sequence[Step] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """The sets of channels that the same layers produce, in ascending order of importance.

    Attributes:
        layers: Names of these layers.
        roots: Root of each set.
        scores: Importance of each set by the criterion, at least 0. Magnitudes if it has no score for some of them.
        width: Number of channels of one layer in one set. It is above 1 after grouped convolutions and repeated
            channels.
        fraction: Fraction of the sets to keep, if the user has set a target.
        by_magnitude: Whether the criterion has no score for some of the sets, so that all are ranked by magnitude.
    """

    layers: tuple[str, ...]
    roots: NDArray
    scores: NDArray
    width: int = 1
    fraction: float | None = None
    by_magnitude: bool = False

    def next_size(self, size: int, channel_multiple: int) -> int | None:
        """Return the largest permitted number of sets below `size`, or None if there is none.

        The number of channels must be a multiple of `channel_multiple`, and at least an eighth of all channels.
        """
        unit, minimum = self._unit_and_minimum(channel_multiple)
        smaller = (size - 1) // unit * unit
        return smaller if smaller >= minimum else None

    def target_size(self, channel_multiple: int) -> int:
        """Return the permitted number of sets that is nearest to `fraction` of them; all of them if it is 1."""
        assert self.fraction is not None
        unit, minimum = self._unit_and_minimum(channel_multiple)
        nearest = unit * round(self.fraction * len(self.roots) / unit)
        return len(self.roots) if self.fraction == 1 else min(len(self.roots), max(minimum, nearest))

    def _unit_and_minimum(self, channel_multiple: int) -> tuple[int, int]:
        unit = channel_multiple // int(np.gcd(channel_multiple, self.width))
        return unit, max(unit, -(-len(self.roots) // 8))


def groups_of(
    channels: Channels,
    sites: Sequence[Site],
    patterns: Sequence[str],
    channel_multiple: int,
    targets: Sequence[Target] = (),
    scores: Mapping[int, float] | None = None,
) -> tuple[list[Group], dict[str, str]]:
    """Return the groups that may lose channels, and the reason for each layer that may not.

    Args:
        channels: The sets of coupled channels.
        sites: All calls of layers with weights.
        patterns: Name patterns of the layers that may lose filters. A group may lose channels if all of its layers
            match.
        channel_multiple: The number of remaining channels of a layer must be a multiple of this.
        targets: Fractions of filters to keep. A target applies to the whole group of each layer that it matches, and
            the last matching target counts.
        scores: The importance of each set of channels, by its root. A group with a set that is left out has
            `magnitude_scores`, because scores of two kinds cannot be compared. None: `magnitude_scores` for all.

    Returns:
        (groups, layer -> why it keeps all of its filters).

    Raises:
        InputError: A pattern matches no layer with filters, or a target matches no layer that may lose filters. The
            error suggests the nearest name.
    """
    makers = [site for site in sites if site.makes_channels]
    names = [site.layer for site in makers]
    reasons = {site.layer: None if site.makes_channels else "it has no filters that can be removed" for site in sites}
    check_selection(
        "structured_pruning: layers",
        patterns,
        reasons,
        field="compression.structured_pruning.layers",
        layers="layer that has filters",
    )
    selected = {name for name in names if fits(name, patterns)}
    producers: defaultdict[int, set[str]] = defaultdict(set)
    widths: defaultdict[int, int] = defaultdict(int)
    for site in makers:
        for root, count in zip(*np.unique(channels.roots(site.outputs), return_counts=True), strict=True):
            producers[int(root)].add(site.layer)
            widths[int(root)] = max(widths[int(root)], int(count))
    magnitudes = magnitude_scores(channels, sites)
    scores = magnitudes if scores is None else scores
    roots_by_layers: defaultdict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
    skipped: dict[str, str] = {}
    for root, layers in producers.items():
        reason = channels.reason(root)
        unselected = sorted(layers - selected)
        if reason is None and not unselected:
            roots_by_layers[tuple(name for name in names if name in layers), widths[root]].append(root)
            continue
        for name in sorted(layers):
            if reason is None:
                coupled = f"its channels are coupled to those of {', '.join(map(repr, unselected))}"
                coupled += ", which no pattern matches"
                skipped.setdefault(name, coupled if name in selected else "no pattern in layers matches its name")
            else:
                skipped.setdefault(name, reason)
    groups = []
    for (group_layers, width), roots in roots_by_layers.items():
        group = _ranked(group_layers, width, roots, scores, magnitudes)
        if group.next_size(len(roots), channel_multiple) is None:
            for name in group_layers:
                too_few = f"it has {len(roots) * width} filters, too few to remove any with multiples of "
                skipped.setdefault(name, f"{too_few}{channel_multiple}")
        else:
            groups.append(group)
    prunable = {name for group in groups for name in group.layers}
    reasons = {name: None if name in prunable else skipped.get(name) for name in names}
    groups = _with_targets(groups, targets, reasons)
    return groups, {name: skipped[name] for name in names if name in skipped and name not in prunable}


def _ranked(
    layers: tuple[str, ...],
    width: int,
    roots: Sequence[int],
    scores: Mapping[int, float],
    magnitudes: Mapping[int, float],
) -> Group:
    """Return a group in the order of its scores, or of its magnitudes if a score is missing."""
    by_magnitude = any(root not in scores for root in roots)
    values = magnitudes if by_magnitude else scores
    order = sorted(roots, key=lambda root: (values[root], root))
    return Group(
        layers=layers,
        roots=np.array(order),
        scores=np.array([values[root] for root in order]),
        width=width,
        by_magnitude=by_magnitude,
    )


def _with_targets(groups: list[Group], targets: Sequence[Target], reasons: Mapping[str, str | None]) -> list[Group]:
    """Return the groups with the fraction of the last target that matches one of their layers.

    Args:
        groups: The groups that may lose channels.
        targets: The user's targets.
        reasons: Layer -> why it may lose no filters, or None if it may.
    """
    for target in targets:
        check_fits(
            f"structured_pruning: the target {target.text!r}",
            target.pattern,
            reasons,
            field="compression.structured_pruning.targets",
        )
        groups = [
            dataclasses.replace(group, fraction=target.value)
            if any(fits(name, (target.pattern,)) for name in group.layers)
            else group
            for group in groups
        ]
    return groups


def magnitude_scores(channels: Channels, sites: Sequence[Site]) -> dict[int, float]:
    """Return the mean of the norms of each set's filters, each divided by the mean norm of its layer, by root."""
    result: defaultdict[int, list[float]] = defaultdict(list)
    for site in sites:
        if site.norms is None:
            continue
        mean = float(site.norms.mean())
        for root, norm in zip(channels.roots(site.outputs), site.norms, strict=True):
            result[int(root)].append(float(norm) / mean if mean else 0.0)
    return {root: float(np.mean(relative_norms)) for root, relative_norms in result.items()}


@dataclass(kw_only=True)
class Counts:
    """The numbers of remaining channels of each site and buffer, which determine the costs.

    Attributes:
        inputs: Remaining input channels of each site.
        outputs: Remaining output channels of each site.
        widths: Remaining channels of each buffer.
        num_sites: For each group, the number of sites with multiply-adds that it affects.
    """

    inputs: NDArray
    outputs: NDArray
    widths: NDArray
    num_sites: list[int] = field(default_factory=list)
    _per_set: list[list[tuple[NDArray, int, NDArray]]] = field(default_factory=list)

    @classmethod
    def of(cls, channels: Channels, graph: Graph, groups: Sequence[Group]) -> "Counts":
        """Return the counts before any channel is removed."""
        counts = cls(
            inputs=np.array([len(site.inputs) for site in graph.sites], np.int64),
            outputs=np.array([len(site.outputs) for site in graph.sites], np.int64),
            widths=np.array([len(buffer.channels) for buffer in graph.buffers], np.int64),
        )
        position = {int(root): (g, i) for g, group in enumerate(groups) for i, root in enumerate(group.roots)}
        places: list[tuple[NDArray, int, NDArray]] = []
        for index, site in enumerate(graph.sites):
            places += [(counts.inputs, index, site.inputs), (counts.outputs, index, site.outputs)]
        places += [(counts.widths, index, buffer.channels) for index, buffer in enumerate(graph.buffers)]
        counts._per_set = [[] for _ in groups]
        affected: list[set[int]] = [set() for _ in groups]
        for sizes, index, ends in places:
            losses: dict[int, NDArray] = {}
            for root in channels.roots(ends):
                if (where := position.get(int(root))) is not None:
                    losses.setdefault(where[0], np.zeros(len(groups[where[0]].roots), np.int64))[where[1]] += 1
            for group, by_set in losses.items():
                counts._per_set[group].append((sizes, index, by_set))
                if sizes is not counts.widths and graph.sites[index].terms:
                    affected[group].add(index)
        counts.num_sites = [len(indices) for indices in affected]
        return counts

    def change(self, group: int, size: int, new_size: int) -> None:
        """Update the counts for a change of a group from `size` to `new_size` sets."""
        for sizes, index, by_set in self._per_set[group]:
            part = slice(len(by_set) - max(size, new_size), len(by_set) - min(size, new_size))
            sizes[index] -= (1 if new_size < size else -1) * by_set[part].sum()

# SPDX-License-Identifier: Apache-2.0
"""Channels that stand and fall together: sets of them, the groups that can lose some, and what that saves.

Arithmetic alone: nothing here knows Keras or TensorFlow.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfq.patterns import Target, check_fits, fits


class Channels:
    """Disjoint sets of channels. A channel is a number; those of one set are removed together, or not at all."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._frozen: dict[int, str] = {}

    def new(self, count: int) -> NDArray:
        """`count` channels, each in a set of its own."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, channel: int) -> int:
        """The channel that stands for the set of `channel`. Another may stand for it after the next `join`."""
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def roots(self, channels: NDArray) -> NDArray:
        """`root` of each, in the same shape (n,)."""
        return np.array([self.root(int(channel)) for channel in channels], np.int64)

    def join(self, some: NDArray, others: NDArray) -> None:
        """Makes one set of the sets of some[i] and others[i]. What is frozen freezes the other, for its reason."""
        for one, other in zip(some, others, strict=True):
            kept, gone = self.root(int(one)), self.root(int(other))
            if kept == gone:
                continue
            self._parents[gone] = kept
            reason = self._frozen.pop(gone, None)
            if reason is not None:
                self._frozen.setdefault(kept, reason)

    def freeze(self, channels: NDArray, reason: str) -> None:
        """Nothing of these sets may be removed; the first reason is the one that is kept."""
        for channel in channels:
            self._frozen.setdefault(self.root(int(channel)), reason)

    def reason(self, channel: int) -> str | None:
        """Why the set of `channel` is frozen; None where it is not."""
        return self._frozen.get(self.root(int(channel)))


@dataclass(frozen=True, kw_only=True)
class Term:
    """Multiply-adds of a layer: `factor`, times its channels in, times its channels out, where these count."""

    factor: int
    per_input: bool = False
    per_output: bool = False

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiply-adds with so many channels in and out."""
        return self.factor * (inputs if self.per_input else 1) * (outputs if self.per_output else 1)


@dataclass(kw_only=True)
class Site:
    """A layer with weights, where it is called.

    inputs, outputs: the channels of its tensors, one number for each place on the last axis.
    terms: its multiply-adds. makes_channels: whether its filters are what channels are removed with.
    norms: of the filters, one for each output channel; None where it has none.
    input_is_zero: whether a removed channel arrives as zeros, once the filters that made it are zero.
    """

    layer: str
    inputs: NDArray
    outputs: NDArray
    terms: tuple[Term, ...] = ()
    makes_channels: bool = False
    norms: NDArray | None = None
    input_is_zero: bool = True

    def macs(self) -> int:
        """Multiply-adds for one example, with all its channels."""
        return sum(term.macs(len(self.inputs), len(self.outputs)) for term in self.terms)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Sets of channels that are made by the same layers, the least important set first.

    roots: which sets. scores: the mean of their filters' norms, each as a share of its layer's mean norm.
    width: channels of one layer that are in one set; more than 1 behind grouped convolutions and repeats.
    share: of the sets that are to stay, where the user says it.
    """

    layers: tuple[str, ...]
    roots: NDArray
    scores: NDArray
    width: int = 1
    share: float | None = None

    def fewer(self, kept: int, channel_multiple: int) -> int | None:
        """The next number of sets below `kept` that may stay: channels in multiples, an eighth of them at least."""
        unit, least = self._unit_and_least(channel_multiple)
        wanted = (kept - 1) // unit * unit
        return wanted if wanted >= least else None

    def wanted(self, channel_multiple: int) -> int:
        """How many sets stay by `share`: in multiples, an eighth of them at least; all of them by a share of 1."""
        assert self.share is not None
        unit, least = self._unit_and_least(channel_multiple)
        nearest = unit * round(self.share * len(self.roots) / unit)
        return len(self.roots) if self.share == 1 else min(len(self.roots), max(least, nearest))

    def _unit_and_least(self, channel_multiple: int) -> tuple[int, int]:
        unit = channel_multiple // int(np.gcd(channel_multiple, self.width))
        return unit, max(unit, -(-len(self.roots) // 8))


def groups_of(
    channels: Channels,
    sites: Sequence[Site],
    patterns: Sequence[str],
    channel_multiple: int,
    targets: Sequence[Target] = (),
) -> tuple[list[Group], dict[str, str]]:
    """The groups that may lose channels, and of each layer that may lose none the reason.

    targets: of layers whose share the user says. It holds for all layers of a group; the last that fits one counts.
    Raises InputError when a pattern fits no layer that has filters of its own, or a target's none that may lose some,
    with the nearest name.
    """
    makers = [site for site in sites if site.makes_channels]
    names = [site.layer for site in makers]
    reasons = {site.layer: None if site.makes_channels else "it has no filters of its own to lose" for site in sites}
    for pattern in patterns:
        check_fits(
            f"structured_pruning: the pattern {pattern!r} in layers",
            pattern,
            reasons,
            field="compression.structured_pruning.layers",
            layers="layer that has filters of its own",
        )
    chosen = {name for name in names if fits(name, patterns)}
    made_by: defaultdict[int, set[str]] = defaultdict(set)
    widths: defaultdict[int, int] = defaultdict(int)
    for site in makers:
        for root, count in zip(*np.unique(channels.roots(site.outputs), return_counts=True), strict=True):
            made_by[int(root)].add(site.layer)
            widths[int(root)] = max(widths[int(root)], int(count))
    scores = _scores(channels, sites)
    alike: defaultdict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
    skipped: dict[str, str] = {}
    for root, layers in made_by.items():
        reason = channels.reason(root)
        strangers = sorted(layers - chosen)
        if reason is None and not strangers:
            alike[tuple(name for name in names if name in layers), widths[root]].append(root)
            continue
        for name in sorted(layers):
            if reason is None:
                tied = f"its channels are tied to those of {', '.join(map(repr, strangers))}, which no pattern fits"
                skipped.setdefault(name, tied if name in chosen else "no pattern in layers fits its name")
            else:
                skipped.setdefault(name, reason)
    groups = []
    for (tied_layers, width), roots in alike.items():
        order = np.array(sorted(roots, key=lambda root: (scores[root], root)))
        by_score = np.array([scores[root] for root in order])
        group = Group(layers=tied_layers, roots=order, scores=by_score, width=width)
        if group.fewer(len(roots), channel_multiple) is None:
            for name in tied_layers:
                few = f"{len(roots) * width} filters are too few to go on in multiples of {channel_multiple}"
                skipped.setdefault(name, few)
        else:
            groups.append(group)
    able = {name for group in groups for name in group.layers}
    whether = {name: None if name in able else skipped.get(name) for name in names}
    groups = _with_targets(groups, targets, whether)
    return groups, {name: skipped[name] for name in names if name in skipped and name not in able}


def _with_targets(groups: list[Group], targets: Sequence[Target], whether: Mapping[str, str | None]) -> list[Group]:
    """The groups with the share that the last fitting target gives them. whether: layer -> why it may lose none."""
    for target in targets:
        check_fits(
            f"structured_pruning: the target {target.text!r}",
            target.pattern,
            whether,
            field="compression.structured_pruning.targets",
        )
        groups = [
            dataclasses.replace(group, share=target.value)
            if any(fits(name, (target.pattern,)) for name in group.layers)
            else group
            for group in groups
        ]
    return groups


def _scores(channels: Channels, sites: Sequence[Site]) -> dict[int, float]:
    result: defaultdict[int, list[float]] = defaultdict(list)
    for site in sites:
        if site.norms is None:
            continue
        mean = float(site.norms.mean())
        for root, norm in zip(channels.roots(site.outputs), site.norms, strict=True):
            result[int(root)].append(float(norm) / mean if mean else 0.0)
    return {root: float(np.mean(shares)) for root, shares in result.items()}


@dataclass(kw_only=True)
class Counts:
    """How many channels each site has left, and how many of them each group would take: for the multiply-adds.

    taken[group] is (site, of its inputs, of its outputs): of how many each removed set robs the site, least first.
    """

    sites: Sequence[Site]
    inputs: list[int]
    outputs: list[int]
    taken: list[list[tuple[int, NDArray, NDArray]]] = field(default_factory=list)

    @classmethod
    def of(cls, channels: Channels, sites: Sequence[Site], groups: Sequence[Group]) -> "Counts":
        """With nothing removed."""
        counts = cls(sites=sites, inputs=[len(s.inputs) for s in sites], outputs=[len(s.outputs) for s in sites])
        place = {int(root): (g, at) for g, group in enumerate(groups) for at, root in enumerate(group.roots)}
        taken: list[dict[int, NDArray]] = [{} for _ in groups]
        for index, site in enumerate(sites):
            for side, ends in enumerate((site.inputs, site.outputs)):
                for root in channels.roots(ends) if site.terms else ():
                    if (where := place.get(int(root))) is not None:
                        empty = np.zeros((2, len(groups[where[0]].roots)), np.int64)
                        taken[where[0]].setdefault(index, empty)[side, where[1]] += 1
        counts.taken = [[(index, *both) for index, both in item.items()] for item in taken]
        return counts

    def macs(self) -> int:
        """Multiply-adds of all sites with what is left."""
        return sum(self._macs(index, 0, 0) for index in range(len(self.sites)))

    def saved(self, group: int, kept: int, then: int) -> int:
        """Multiply-adds that go when a group has `then` sets in place of `kept`, as things stand; below 0 if more."""
        total = 0
        for index, inputs, outputs in self._fewer(group, kept, then):
            total += self._macs(index, 0, 0) - self._macs(index, inputs, outputs)
        return total

    def change(self, group: int, kept: int, then: int) -> None:
        """Leaves a group `then` sets in place of `kept`."""
        for index, inputs, outputs in self._fewer(group, kept, then):
            self.inputs[index] -= inputs
            self.outputs[index] -= outputs

    def _fewer(self, group: int, kept: int, then: int) -> Iterator[tuple[int, int, int]]:
        for index, inputs, outputs in self.taken[group]:
            part = slice(len(inputs) - max(kept, then), len(inputs) - min(kept, then))
            sign = 1 if then < kept else -1
            yield index, sign * int(inputs[part].sum()), sign * int(outputs[part].sum())

    def _macs(self, index: int, fewer_inputs: int, fewer_outputs: int) -> int:
        left = self.inputs[index] - fewer_inputs, self.outputs[index] - fewer_outputs
        return sum(term.macs(*left) for term in self.sites[index].terms)

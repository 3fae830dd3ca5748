# SPDX-License-Identifier: Apache-2.0
"""Which channels go: as little of the filters' norms as possible for the multiply-adds that must be saved."""

import heapq
import math
from collections.abc import Sequence

import numpy as np

from tfq.compression.structured_pruning.channels import Channels, Counts, Group, Site


def choose(
    channels: Channels, sites: Sequence[Site], groups: Sequence[Group], *, target_macs: float, multiple_of: int
) -> tuple[set[int], int]:
    """(roots of the sets of channels to remove, multiply-adds that are left).

    Greedy over all groups: each step takes the sets of least score from the group where a multiply-add costs least. The
    cost of a step is log(sum of the group's scores before / after), for each layer that loses filters or inputs by it:
    a group pays more for each share of itself the less of it is left, so that none is emptied for the sake of the
    others, and a residual stream, which many write and read, more than what one block has for itself. Steps that were
    not needed in the end are taken back, the most costly first. Groups with a share of their own get that before, and
    nothing else.
    target_macs: share of the multiply-adds that is to stay; where it cannot be reached, all goes that may go.
    """
    state = _State(channels, sites, groups, multiple_of)
    wanted = target_macs * state.left
    free = []
    for index, group in enumerate(groups):
        if group.share is None:
            free.append(index)
        else:
            state.leave(index, group.wanted(multiple_of))
    queue = [(price, index) for index in free if (price := state.price(index)) is not None]
    heapq.heapify(queue)
    while state.left > wanted and queue:
        _, index = heapq.heappop(queue)
        # A step saves less once others have been taken, so a price only rises and the queue's is a lower bound.
        price = state.price(index)
        if price is not None and not (queue and price > queue[0][0]):
            state.step(index)
            price = state.price(index)
        if price is not None:
            heapq.heappush(queue, (price, index))
    state.take_back(wanted)
    gone = (group.roots[: len(group.roots) - stay[-1]] for group, stay in zip(groups, state.kept, strict=True))
    return {int(root) for roots in gone for root in roots}, state.left


class _State:
    """How many sets each group keeps, as a list of all numbers so far."""

    def __init__(self, channels: Channels, sites: Sequence[Site], groups: Sequence[Group], multiple_of: int) -> None:
        self.groups, self.multiple_of = groups, multiple_of
        self.counts = Counts.of(channels, sites, groups)
        self.left = self.counts.macs()
        self.kept = [[len(group.roots)] for group in groups]

    def price(self, index: int) -> float | None:
        """Cost of a group's next step for each multiply-add that it saves; None where there is no step to gain by."""
        group, kept = self.groups[index], self.kept[index][-1]
        fewer = group.fewer(kept, self.multiple_of)
        if fewer is None:
            return None
        saved = self.counts.saved(index, kept, fewer)
        return self.cost(index, kept, fewer) / saved if saved else None

    def cost(self, index: int, kept: int, fewer: int) -> float:
        """What is lost where a group has `fewer` sets in place of `kept`, in all layers that it touches."""
        scores = self.groups[index].scores
        before, after = float(np.sum(scores[len(scores) - kept :])), float(np.sum(scores[len(scores) - fewer :]))
        if before <= 0:
            return 0.0
        return len(self.counts.taken[index]) * math.log(before / after) if after > 0 else math.inf

    def step(self, index: int) -> None:
        """Removes what the group's next step removes."""
        fewer = self.groups[index].fewer(self.kept[index][-1], self.multiple_of)
        assert fewer is not None
        self.leave(index, fewer)

    def leave(self, index: int, fewer: int) -> None:
        """Leaves the group so many sets."""
        kept = self.kept[index][-1]
        self.left -= self.counts.saved(index, kept, fewer)
        self.counts.change(index, kept, fewer)
        self.kept[index].append(fewer)

    def take_back(self, wanted: float) -> None:
        """Undoes last steps of groups as long as no more than `wanted` multiply-adds are left then."""
        while True:
            able = []
            for index, kept in enumerate(self.kept):
                if len(kept) > 1 and self.groups[index].share is None:
                    grown = self.left - self.counts.saved(index, kept[-1], kept[-2])
                    if grown <= wanted:
                        able.append((self.cost(index, kept[-2], kept[-1]), index, grown))
            if not able:
                return
            _, index, self.left = max(able)
            fewer = self.kept[index].pop()
            self.counts.change(index, fewer, self.kept[index][-1])

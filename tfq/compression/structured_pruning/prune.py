# SPDX-License-Identifier: Apache-2.0
"""Structured pruning: choose whole channels by importance, and remove them from the model.

Filters are ranked by the norm of their weights, as in "Pruning Filters for Efficient ConvNets" (Li et al., 2017), and
those that a graph ties together (residual sums, depthwise convolutions, gates) go together.
"""

import contextlib
import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.graph import check_finite, cloned, named_layers, require_graph_model
from tfq.compression.structured_pruning import rebuild
from tfq.compression.structured_pruning.channels import Channels, Counts, Group, Site, groups_of
from tfq.compression.structured_pruning.rebuild import refit
from tfq.compression.structured_pruning.trace import Trace, traced
from tfq.config import DistillationConfig, StructuredPruningConfig
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge.copies import check_own_training, keep_class
from tfq.patterns import Target, fits, parse_targets
from tfq.typing import Data, Fit, KerasModel, Teacher


def choose(
    channels: Channels, sites: Sequence[Site], groups: Sequence[Group], *, target_macs: float, channel_multiple: int
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
    state = _State(channels, sites, groups, channel_multiple)
    wanted = target_macs * state.left
    free = []
    for index, group in enumerate(groups):
        if group.share is None:
            free.append(index)
        else:
            state.leave(index, group.wanted(channel_multiple))
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

    def __init__(
        self, channels: Channels, sites: Sequence[Site], groups: Sequence[Group], channel_multiple: int
    ) -> None:
        self.groups, self.channel_multiple = groups, channel_multiple
        self.counts = Counts.of(channels, sites, groups)
        self.left = self.counts.macs()
        self.kept = [[len(group.roots)] for group in groups]

    def price(self, index: int) -> float | None:
        """Cost of a group's next step for each multiply-add that it saves; None where there is no step to gain by."""
        group, kept = self.groups[index], self.kept[index][-1]
        fewer = group.fewer(kept, self.channel_multiple)
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
        fewer = self.groups[index].fewer(self.kept[index][-1], self.channel_multiple)
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


@dataclass(frozen=True, kw_only=True)
class StructuredPruningResult:
    """A model without its least important filters, and what was removed from each layer.

    Attributes:
        model: The small model, a tf_keras model that is not compiled.
        removed: Layer -> (number of filters that remain, number of filters before).
        skipped: Layer -> why it kept all filters.
        macs_before: Multiply-adds of convolutions and Dense layers for one example, before pruning.
        macs_after: The same after pruning.
        parameters_before: Number of parameters before pruning.
        parameters_after: Number of parameters after pruning.
        uncounted: Layers with other multiply-adds, which `macs_before` and `macs_after` do not include.
        max_difference: The largest difference between a tensor of the small model, before refitting and training, and
            the same tensor of the original model with the removed filters at zero, as a fraction of the tensor's
            largest value.
        refit: Refit layer -> relative error of its output before and after the refit; see `refit.refit`.
    """

    model: KerasModel = field(repr=False)
    removed: dict[str, tuple[int, int]]
    skipped: dict[str, str]
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    uncounted: tuple[str, ...]
    max_difference: float
    refit: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All but the model, for JSON. removed: {layer: {"kept": int, "of": int}}; refit: {"before", "after"}."""
        return {
            "removed": {name: {"kept": kept, "of": of} for name, (kept, of) in self.removed.items()},
            "skipped": dict(self.skipped),
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "uncounted": list(self.uncounted),
            "max_difference": self.max_difference,
            "refit": {name: {"before": before, "after": after} for name, (before, after) in self.refit.items()},
        }

    def to_text(self) -> str:
        """A few lines for people: the gain, then each layer."""
        macs = f"multiply-adds {self.macs_before:,} -> {self.macs_after:,} ({self.macs_after / self.macs_before:.1%})"
        shares = f"{self.parameters_after / self.parameters_before:.1%}"
        lines = [f"{macs}, parameters {self.parameters_before:,} -> {self.parameters_after:,} ({shares})"]
        lines += [f"  {name}: {kept} of {of} filters stay" for name, (kept, of) in self.removed.items()]
        lines += [f"  {name}: refit, error {before:.1%} -> {after:.1%}" for name, (before, after) in self.refit.items()]
        lines += [f"  {name}: all stay: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  {name}: its multiply-adds are not counted" for name in self.uncounted]
        return "\n".join(lines)


def prune_structured(
    model: KerasModel,
    fit: Fit | None = None,
    config: StructuredPruningConfig | None = None,
    *,
    data: Data = None,
    teacher: Teacher | None = None,
) -> StructuredPruningResult:
    """Remove the least important filters of `model`, until `config.target_macs` of its multiply-adds remain.

    The small model has the layer names and the `trainable` flags of `model`, which does not change. Before training, it
    is compared layer by layer, on random inputs, with a copy of `model` whose removed filters are zero. A TfqWarning
    names the layers whose multiply-adds are not counted.

    Example:
        result = tfq.prune_structured(model, fit, tfq.StructuredPruningConfig(target_macs=0.5), data=x)
        print(result.to_text())
        small = result.model

    Args:
        model: A functional or sequential tf_keras model with trained weights.
        fit: Called as `fit(model, callbacks)`. It compiles the small model and trains it in place. None skips training.
        config: Settings of the pruning; None means `StructuredPruningConfig()`.
        data: Inputs on which the layers after removed filters are refit by least squares before training
            (`config.refit_examples` of them), in any form that `evaluate` accepts. None skips the refit.
        teacher: One or several models (an ensemble) whose outputs `config.distillation` trains towards; None means
            `model` itself.

    Returns:
        The small model, and the number of filters that each layer kept.

    Raises:
        InputError: `model` is a Keras 3 model, nothing or not enough can be removed, or a pattern matches no layer.
        TfqError: The comparison fails, or `fit` did not train the model.
    """
    config = config or StructuredPruningConfig()
    refuse_unused_teacher(teacher, config.distillation, "structured_pruning")
    if fit is not None:
        check_own_training(model, "structured_pruning")
    require_graph_model(model, "filter pruning")
    _check_target_macs(config.target_macs)
    _require_finite(model)
    provided, _ = cloned(model)
    trace = traced(provided, config.norm)
    targets = parse_targets(config.targets, "structured_pruning", "share", 1)
    groups, skipped = groups_of(trace.channels, trace.sites, config.layers, config.channel_multiple, targets)
    if not groups:
        raise InputError(
            f"structured_pruning: no layer of {model.name!r} can lose filters: {_told(skipped)}",
            field="model",
            expected="a layer that can lose filters",
            got=model.name,
        )
    before = _macs(trace)
    gone, after = choose(
        trace.channels, trace.sites, groups, target_macs=config.target_macs, channel_multiple=config.channel_multiple
    )
    if after > config.target_macs * before:
        raise _unreachable(config, after / before, skipped)
    kept = rebuild.kept_channels(provided, trace.channels, trace.sites, gone)
    small = rebuild.smaller(provided, kept)
    difference = _proven(provided, small, trace, kept)
    if trace.uncounted:
        message = ", ".join(trace.uncounted)
        warn(f"structured_pruning: the multiply-adds of {message} are not counted")
    refitted: dict[str, tuple[float, float]] = {}
    if data is not None and config.refit_examples:
        refitted = refit(provided, small, kept, data, config.refit_examples)
    keep_class(model, small, {id(layer): small.get_layer(layer.name) for layer in model.layers}, "structured_pruning")
    if fit is not None:
        small = _trained(small, fit, teacher or model, config.distillation)
    removed, left = _by_layer(trace, kept)
    for name in left:
        skipped.setdefault(name, _why_kept(name, targets))
    return StructuredPruningResult(
        model=small,
        removed=removed,
        skipped=skipped,
        macs_before=before,
        macs_after=after,
        parameters_before=model.count_params(),
        parameters_after=small.count_params(),
        uncounted=tuple(trace.uncounted),
        max_difference=difference,
        refit=refitted,
    )


def _unreachable(config: StructuredPruningConfig, least: float, skipped: dict[str, str]) -> InputError:
    return InputError(
        f"structured_pruning: target_macs={config.target_macs:g} cannot be reached: {least:.3f} of the multiply-adds "
        "stay where each layer that may lose filters keeps an eighth, in multiples of "
        f"{config.channel_multiple}, or what its target says. Ask for a larger share, or a smaller channel_multiple. "
        f"All filters stay in: {_told(skipped)}",
        field="compression.structured_pruning.target_macs",
        expected=least,
        got=config.target_macs,
    )


def _why_kept(name: str, targets: Sequence[Target]) -> str:
    if fits(name, [target.pattern for target in targets]):
        return "its target keeps them"
    return "others had less to lose for the multiply-adds that they cost"


def _check_target_macs(target: float) -> None:
    if not 0 < target < 1:
        raise InputError(
            f"structured_pruning: target_macs is the share of the multiply-adds that stays, expected between 0 and 1, "
            f"got "
            f"{target:g}" + (": then nothing is to go" if target == 1 else ""),
            field="compression.structured_pruning.target_macs",
            expected="a number between 0 and 1",
            got=target,
        )


def count_macs(model: Any) -> dict[str, int]:
    """Multiply-adds for one example of each convolution and Dense of a functional or sequential tf_keras model.

    A bias, an activation and a normalization count nothing; a layer that is called twice counts twice.
    """
    require_graph_model(model, "counting multiply-adds")
    counts: Counter[str] = Counter()
    for site in traced(cloned(model)[0], "l1").sites:
        if site.terms:
            counts[site.layer] += site.macs()
    return dict(counts)


def _macs(trace: Trace) -> int:
    return sum(site.macs() for site in trace.sites)


def _proven(provided: Any, small: Any, trace: Trace, kept: rebuild.Kept) -> float:
    """The check of what was built; see rebuild.check_equal."""
    calls = Counter(site.layer for site in trace.sites)
    channels = {
        site.layer: kept[site.layer]["out"] if site.layer in kept else np.arange(len(site.outputs))
        for site in trace.sites
        if calls[site.layer] == 1
    }
    return rebuild.check_equal(rebuild.masked(provided, kept, trace.sites), small, channels)


def _by_layer(trace: Trace, kept: rebuild.Kept) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """({layer: (kept, of)} of those that lost filters, the names of those that lost none)."""
    removed: dict[str, tuple[int, int]] = {}
    left: list[str] = []
    for site in trace.sites:
        if not site.makes_channels:
            continue
        stay = len(kept[site.layer]["out"]) if site.layer in kept else len(site.outputs)
        if stay < len(site.outputs):
            removed[site.layer] = stay, len(site.outputs)
        else:
            left.append(site.layer)
    return removed, left


def _trained(small: Any, fit: Fit, teacher: Any, distillation: DistillationConfig) -> Any:
    """A copy of `small`, trained and not compiled."""
    before = small.get_weights()
    with contextlib.ExitStack() as around:
        student = small
        if distillation.enabled:
            student = around.enter_context(distilled(small, teacher, distillation, "structured_pruning"))
        fit(student, [])
    steps = getattr(student.optimizer, "iterations", None) if student.optimizer is not None else None
    unchanged = all(np.array_equal(a, b) for a, b in zip(before, small.get_weights(), strict=True))
    if unchanged and (steps is None or int(steps) < 1):
        raise TfqError(
            "structured_pruning: fit did not train the model that it was given (no weight changed): it must compile "
            "that model "
            "and call its fit",
            field="fit",
            expected="a fit that trains the model",
        )
    check_finite(small, "the fine-tuning of what filter pruning left")
    result, pairs = cloned(small)
    keep_class(small, result, {id(old): new for old, new in pairs}, "structured_pruning")
    return result


def _require_finite(model: Any) -> None:
    for name, layer in named_layers(model):
        if any(not np.isfinite(weight).all() for weight in layer.get_weights() if weight.dtype.kind == "f"):
            raise InputError(
                f"structured_pruning: layer {name!r} of {model.name!r} holds weights that are NaN or infinite",
                field="model",
                expected="finite weights",
                got=name,
            )


def _told(skipped: dict[str, str], limit: int = 8) -> str:
    messages = [f"{name} ({reason})" for name, reason in list(skipped.items())[:limit]]
    more = [f"and {len(skipped) - limit} more"] if len(skipped) > limit else []
    return "; ".join(messages + more) or "it has no convolution and no Dense"

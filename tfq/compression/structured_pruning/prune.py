# SPDX-License-Identifier: Apache-2.0
"""Structured pruning: select whole channels by importance, and remove them from the model.

A criterion ranks the filters, by default the norm of their weights.
Channels that the graph couples (residual sums, depthwise convolutions, gates) are removed together. Before, whole
branches can be removed.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.compression.criteria import Examples, PruningCriterion
from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.gate import in_float32
from tfq.compression.graph import check_finite, cloned, named_layers, require_graph_model, run_fit
from tfq.compression.layer_inputs import is_matrix_product
from tfq.compression.structured_pruning import rebuild
from tfq.compression.structured_pruning.branches import readers_of, without_branches
from tfq.compression.structured_pruning.channels import Channels, Counts, Graph, Group, groups_of
from tfq.compression.structured_pruning.costs import ChannelCost, site_macs
from tfq.compression.structured_pruning.rebuild import refit
from tfq.compression.structured_pruning.trace import Trace, trace_channels
from tfq.config import DistillationConfig, StructuredPruningConfig
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge.copies import check_own_training, keep_class
from tfq.keras_bridge.strategies import in_strategy
from tfq.keras_bridge.wrapped import without_wrappers
from tfq.notebook import NotebookRecord
from tfq.patterns import Target, fits, parse_targets
from tfq.typing import Data, Fit, KerasModel, Teacher

# Sizes that one step of the search can reach: a kernel that computes 16 channels at a time saves nothing by one less.
_LOOKAHEAD = 4


def select_channels(
    channels: Channels,
    graph: Graph,
    groups: Sequence[Group],
    *,
    target_cost: float,
    channel_multiple: int,
    cost: str = "macs",
    before: int | None = None,
) -> tuple[set[int], int, int]:
    """Select the sets of channels to remove, by a greedy search over all groups.

    Each step shrinks one group to one of its next permitted sizes by removing its sets of lowest score. The loss of a
    step is

        (number of sites that lose inputs or outputs) * log(sum of the group's scores before / sum after)

    and the next step is the one with the lowest loss per saved unit of the cost. The logarithm makes the same reduction
    more expensive the smaller the group already is, so that no group is emptied for the others. The number of sites
    makes a residual stream, which many layers read and write, more expensive than the inner channels of one block.
    In the end, steps that the target did not need are undone, the largest loss first. Groups with a target of the
    user (`Group.fraction`) are set to their size first, and are not changed by the search.

    Args:
        channels: The sets of coupled channels.
        graph: What costs are computed from.
        groups: The groups that may lose channels.
        target_cost: Fraction of the cost to keep. If it cannot be reached, every group without a target of the user is
            reduced until the cost no longer falls.
        channel_multiple: The number of remaining channels of a layer must be a multiple of this.
        cost: The name of a `ChannelCost`.
        before: The cost that `target_cost` is a fraction of; None is that of `graph`.

    Returns:
        (roots of the sets of channels to remove, cost before, cost after).
    """
    state = _Selection(channels, graph, groups, channel_multiple, registry.get(ChannelCost, cost))
    before = state.cost if before is None else before
    for index, group in enumerate(groups):
        if group.fraction is not None:
            state.resize(index, group.target_size(channel_multiple))
    while state.cost > target_cost * before and (step := state.best_step()) is not None:
        state.resize(*step)
    state.undo_unneeded_steps(target_cost * before)
    removed = (group.roots[: len(group.roots) - sizes[-1]] for group, sizes in zip(groups, state.sizes, strict=True))
    return {int(root) for roots in removed for root in roots}, before, state.cost


class _Selection:
    """The state of the search: for each group, its sizes (numbers of sets) so far; the last one is current."""

    def __init__(
        self, channels: Channels, graph: Graph, groups: Sequence[Group], channel_multiple: int, cost: ChannelCost
    ) -> None:
        self.groups, self.channel_multiple = groups, channel_multiple
        self.measure = cost.measure(graph)
        self.objective = cost.objective(graph) if cost.objective else self.measure
        self.counts = Counts.of(channels, graph, groups)
        self.sizes = [[len(group.roots)] for group in groups]
        self.cost = int(self.measure(self.counts))

    def best_step(self) -> tuple[int, int] | None:
        """Return (group, its new size) of the step with the lowest loss per saved cost; None if none saves any."""
        now, best, lowest = self.objective(self.counts), None, math.inf
        for index, group in enumerate(self.groups):
            size = new_size = self.sizes[index][-1]
            for _ in range(_LOOKAHEAD if group.fraction is None else 0):
                smaller = group.next_size(new_size, self.channel_multiple)
                if smaller is None:
                    break
                new_size = smaller
                saved = now - self._changed(index, size, new_size, self.objective)
                if saved > 0 and (best is None or self.loss(index, size, new_size) / saved < lowest):
                    best, lowest = (index, new_size), self.loss(index, size, new_size) / saved
        return best

    def _changed(self, index: int, size: int, new_size: int, function: Callable[[Counts], float]) -> float:
        """Return a function of the counts after a change of one group's size. The counts do not change."""
        self.counts.change(index, size, new_size)
        result = function(self.counts)
        self.counts.change(index, new_size, size)
        return result

    def loss(self, index: int, size: int, new_size: int) -> float:
        """Return the loss by shrinking a group from `size` to `new_size` sets; see `select_channels`."""
        scores = self.groups[index].scores
        before, after = float(np.sum(scores[len(scores) - size :])), float(np.sum(scores[len(scores) - new_size :]))
        if before <= 0:
            return 0.0
        return self.counts.num_sites[index] * math.log(before / after) if after > 0 else math.inf

    def resize(self, index: int, new_size: int) -> None:
        """Set a group to `new_size` sets."""
        self.counts.change(index, self.sizes[index][-1], new_size)
        self.sizes[index].append(new_size)
        self.cost = int(self.measure(self.counts))

    def undo_unneeded_steps(self, max_cost: float) -> None:
        """Undo the last steps of groups, the largest loss first, while the cost is at most `max_cost`."""
        while True:
            candidates = []
            for index, sizes in enumerate(self.sizes):
                if len(sizes) == 1 or self.groups[index].fraction is not None:
                    continue
                if self._changed(index, sizes[-1], sizes[-2], self.measure) <= max_cost:
                    candidates.append((self.loss(index, sizes[-2], sizes[-1]), index))
            if not candidates:
                return
            _, index = max(candidates)
            size = self.sizes[index].pop()
            self.counts.change(index, size, self.sizes[index][-1])
            self.cost = int(self.measure(self.counts))


@dataclass(frozen=True, kw_only=True)
class StructuredPruningResult(NotebookRecord):
    """A model without its least important filters, and what was removed from each layer.

    Attributes:
        model: The small model, a tf_keras model that is not compiled.
        removed: Layer -> (number of filters that remain, number of filters before).
        skipped: Layer -> why it kept all filters.
        branches: Residual sum -> the layers of its branch, which was removed.
        macs_before: Multiply-adds of convolutions and Dense layers for one example, before pruning.
        macs_after: The same after pruning.
        cost: The name of the cost that was limited.
        cost_before: The cost before pruning.
        cost_after: The cost after pruning.
        cost_unit: The unit of both, which says if they are estimates.
        cost_basis: What an estimate is based on; "" if the cost is counted.
        parameters_before: Number of parameters before pruning.
        parameters_after: Number of parameters after pruning.
        uncounted: Layers with other multiply-adds, which `macs_before` and `macs_after` do not include.
        max_difference: The largest difference between a tensor of the small model, before refitting and training, and
            the same tensor of the original model with the removed filters at zero and without the removed branches, as
            a fraction of the tensor's largest value.
        refit: Refit layer -> relative error of its output before and after the refit; see `rebuild.refit`.
    """

    model: KerasModel = field(repr=False)
    removed: dict[str, tuple[int, int]]
    skipped: dict[str, str]
    macs_before: int
    macs_after: int
    cost: str
    cost_before: int
    cost_after: int
    cost_unit: str
    cost_basis: str
    parameters_before: int
    parameters_after: int
    uncounted: tuple[str, ...]
    max_difference: float
    refit: dict[str, tuple[float, float]] = field(default_factory=dict)
    branches: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the model as JSON values.

        The values of "removed" are {"kept": int, "of": int}, those of "refit" {"before": float, "after": float}.
        """
        return {
            "removed": {name: {"kept": kept, "of": of} for name, (kept, of) in self.removed.items()},
            "skipped": dict(self.skipped),
            "branches": {name: list(layers) for name, layers in self.branches.items()},
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "cost": self.cost,
            "cost_before": self.cost_before,
            "cost_after": self.cost_after,
            "cost_unit": self.cost_unit,
            "cost_basis": self.cost_basis,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "uncounted": list(self.uncounted),
            "max_difference": self.max_difference,
            "refit": {name: {"before": before, "after": after} for name, (before, after) in self.refit.items()},
        }

    def to_text(self) -> str:
        """Return a summary as text: multiply-adds and parameters, the limited cost, then one line per layer."""
        macs = f"multiply-adds {self.macs_before:,} -> {self.macs_after:,} ({self.macs_after / self.macs_before:.1%})"
        fraction = f"{self.parameters_after / self.parameters_before:.1%}"
        lines = [f"{macs}, parameters {self.parameters_before:,} -> {self.parameters_after:,} ({fraction})"]
        if self.cost_basis:
            ratio = f"{self.cost_after / self.cost_before:.1%}"
            lines.append(f"  {self.cost_unit} {self.cost_before:,} -> {self.cost_after:,} ({ratio}): {self.cost_basis}")
        lines += [f"  {name}: without {', '.join(layers)}" for name, layers in self.branches.items()]
        lines += [f"  {name}: {kept} of {of} filters kept" for name, (kept, of) in self.removed.items()]
        lines += [f"  {name}: refit, error {before:.1%} -> {after:.1%}" for name, (before, after) in self.refit.items()]
        lines += [f"  {name}: all filters kept: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  {name}: its multiply-adds are not counted" for name in self.uncounted]
        return "\n".join(lines)


@in_strategy
def prune_structured(
    model: KerasModel,
    fit: Fit | None = None,
    config: StructuredPruningConfig | None = None,
    *,
    data: Data = None,
    teacher: Teacher | None = None,
) -> StructuredPruningResult:
    """Remove the least important filters of `model`, until `config.target_cost` of its cost remains.

    Before, the branches of `config.branches` are removed. The small model has the layer names and the `trainable` flags
    of `model`, which does not change. Before training, it is compared layer by layer, on random inputs, with a copy of
    `model` whose removed filters are zero. A TfqWarning names the layers whose multiply-adds are not counted.

    Examples:
        >>> result = tfq.prune_structured(model, fit, tfq.StructuredPruningConfig(target_cost=0.5), data=x)
        >>> print(result.to_text())
        >>> small = result.model

    Args:
        model: A functional or sequential tf_keras model with trained weights.
        fit: Called as `fit(model, callbacks)`. It compiles the small model and trains it in place. None skips training.
        config: Settings of the pruning; None means `StructuredPruningConfig()`.
        data: Inputs on which the layers after removed filters are refit by least squares before training
            (`config.refit_examples` of them), in any form that `evaluate` accepts. None skips the refit. Criteria other
            than magnitude are computed from the first `config.criterion_examples`; taylor needs labels.
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
    require_graph_model(model, "structured pruning")
    model = in_float32(without_wrappers(model, "structured_pruning"), "structured_pruning")
    _check_target_cost(config.target_cost)
    _require_finite(model)
    original, _ = cloned(model)
    remaining, branches = without_branches(original, config.branches)
    complete_trace = trace_channels(original, config.norm)
    trace = trace_channels(remaining, config.norm) if branches else complete_trace
    targets = parse_targets(config.targets, "structured_pruning", "fraction", 1)
    scores = _scores(remaining, trace, config, data)
    groups, skipped = groups_of(trace.channels, trace.sites, config.layers, config.channel_multiple, targets, scores)
    if not groups and not branches:
        raise _nothing_to_prune(model, skipped)
    _warn_of_limits(trace, groups, config)
    cost = registry.get(ChannelCost, config.cost, field="compression.structured_pruning.cost")
    removed_roots, before, after = _selected(complete_trace, trace, groups, config, cost, skipped)
    kept = rebuild.kept_channels(remaining, trace.channels, trace.sites, removed_roots)
    small = rebuild.without_channels(remaining, kept)
    difference = _max_difference(remaining, small, trace, kept)
    refit_errors = _refit(original, small, kept, branches, data, config.refit_examples)
    layers = {layer.name: layer for layer in small.layers}
    pairs = {id(layer): layers[layer.name] for layer in model.layers if layer.name in layers}
    keep_class(model, small, pairs, "structured_pruning")
    if fit is not None:
        small = _fine_tune(small, fit, teacher or model, config.distillation)
    removed, complete = _filters_by_layer(trace, kept)
    for name in complete:
        skipped.setdefault(name, _reason_kept(name, targets))
    return StructuredPruningResult(
        model=small,
        removed=removed,
        skipped=skipped,
        branches=branches,
        macs_before=_macs(complete_trace),
        macs_after=_macs(trace, removed_roots),
        cost=config.cost,
        cost_before=before,
        cost_after=after,
        cost_unit=cost.noun,
        cost_basis=cost.basis,
        parameters_before=model.count_params(),
        parameters_after=small.count_params(),
        uncounted=tuple(trace.uncounted),
        max_difference=difference,
        refit=refit_errors,
    )


def _refit(
    original: Any, small: Any, kept: rebuild.Kept, branches: Iterable[str], data: Data, examples: int
) -> dict[str, tuple[float, float]]:
    """Return `rebuild.refit`, also of the layers that read sums without their branch; nothing without data."""
    if data is None or not examples:
        return {}
    return refit(original, small, kept, data, examples, readers_of(original, branches, is_matrix_product))


def _scores(original: Any, trace: Trace, config: StructuredPruningConfig, data: Data) -> Mapping[int, float]:
    """Return the scores of all sets of channels by the criterion of a config."""
    criterion = registry.get(PruningCriterion, config.criterion, field="compression.structured_pruning.criterion")
    criterion.check_data(data, "structured_pruning")
    examples = Examples(data, config.criterion_examples, "structured_pruning")
    scores = criterion.of_channels(original, trace.graph, trace.channels, examples)
    if not all(map(math.isfinite, scores.values())):
        raise InputError(
            f"structured_pruning: scores of the criterion {config.criterion} are NaN or infinite: the examples, or "
            "what the model computes from them, are not finite. Remove such examples, or choose criterion=magnitude",
            field="data",
            expected="examples with finite gradients and activations",
            got=config.criterion,
        )
    return scores


def _warn_of_limits(trace: Trace, groups: Sequence[Group], config: StructuredPruningConfig) -> None:
    """Warn of layers whose multiply-adds are not counted, and of filters that the criterion cannot rank."""
    if trace.uncounted:
        warn(f"structured_pruning: the multiply-adds of {', '.join(trace.uncounted)} are not counted")
    names = [name for group in groups if group.by_magnitude for name in group.layers]
    if names:
        warn(
            f"structured_pruning: filters of {', '.join(dict.fromkeys(names))} are ranked by magnitude, because the "
            f"criterion {config.criterion} cannot score all layers that read them: "
            f"{registry.get(PruningCriterion, config.criterion).limits}"
        )


def _selected(
    complete: Trace,
    trace: Trace,
    groups: list[Group],
    config: StructuredPruningConfig,
    cost: ChannelCost,
    skipped: dict[str, str],
) -> tuple[set[int], int, int]:
    """Return `select_channels` for a config, or refuse a cost that is not known or cannot be reached.

    Args:
        complete: The model with all branches, of whose cost the config's target is a fraction.
        trace: The model without the removed branches.
        groups: The groups that may lose channels.
        config: The settings.
        cost: The cost to limit.
        skipped: Layer -> why it keeps all filters.
    """
    if cost.basis:
        _check_sizes(complete.graph, cost)
    result = select_channels(
        trace.channels,
        trace.graph,
        groups,
        target_cost=config.target_cost,
        channel_multiple=config.channel_multiple,
        cost=cost.name,
        before=int(cost.measure(complete.graph)(Counts.of(complete.channels, complete.graph, []))),
    )
    _, before, after = result
    if after > config.target_cost * before:
        raise _unreachable(config, cost, after / before, skipped)
    return result


def _nothing_to_prune(model: Any, skipped: dict[str, str]) -> InputError:
    return InputError(
        f"structured_pruning: no layer of {model.name!r} can lose filters: {_format_reasons(skipped)}",
        field="model",
        expected="a layer that can lose filters",
        got=model.name,
        limit="nothing-to-compress",
    )


def _unreachable(
    config: StructuredPruningConfig, cost: ChannelCost, minimum: float, skipped: dict[str, str]
) -> InputError:
    return InputError(
        f"structured_pruning: target_cost={config.target_cost:g} cannot be reached. At least {minimum:.3f} of the "
        f"{cost.noun} remain, because a layer keeps at least an eighth of its filters, in multiples of "
        f"{config.channel_multiple}, or what its target says. Choose a larger target_cost or a smaller "
        f"channel_multiple. Layers that keep all filters: {_format_reasons(skipped)}",
        field="compression.structured_pruning.target_cost",
        expected=minimum,
        got=config.target_cost,
    )


def _check_sizes(graph: Graph, cost: ChannelCost) -> None:
    """Check that the sizes of all tensors are known."""
    for step in graph.steps:
        if any(graph.buffers[index].positions is None for index in (*step.reads, step.writes)):
            raise InputError(
                f"structured_pruning: the {cost.noun} of layer {step.layer!r} are not known, because it has a tensor "
                "of an open size: build the model with a fixed input shape",
                field="model",
                expected="a fixed shape",
                got=step.layer,
                limit="open-sizes-macs",
            )


def _reason_kept(name: str, targets: Sequence[Target]) -> str:
    if fits(name, [target.pattern for target in targets]):
        return "its target keeps them"
    return "removing filters of other layers loses less per saved unit of the cost"


def _check_target_cost(target: float) -> None:
    if not 0 < target < 1:
        raise InputError(
            f"structured_pruning: target_cost is the fraction of the cost to keep: expected a number between "
            f"0 and 1, got {target:g}" + (", which removes nothing" if target == 1 else ""),
            field="compression.structured_pruning.target_cost",
            expected="a number between 0 and 1",
            got=target,
        )


def count_macs(model: Any) -> dict[str, int]:
    """Return the multiply-adds of each convolution and Dense layer for one example.

    Biases, activations and normalizations are not counted. A layer that is called twice counts twice.

    Args:
        model: Functional or sequential tf_keras model.

    Returns:
        Layer -> multiply-adds.
    """
    require_graph_model(model, "counting multiply-adds")
    counts: Counter[str] = Counter()
    for site in trace_channels(cloned(model)[0], "l1").sites:
        if site.terms:
            counts[site.layer] += site.macs()
    return dict(counts)


def _macs(trace: Trace, removed: Collection[int] = ()) -> int:
    """Return the multiply-adds without the removed sets of channels."""

    def kept(ends: NDArray) -> int:
        return int((~np.isin(trace.channels.roots(ends), list(removed))).sum())

    return sum(site_macs(site, kept(site.inputs), kept(site.outputs)) for site in trace.sites if site.terms)


def _max_difference(original: Any, small: Any, trace: Trace, kept: rebuild.Kept) -> float:
    """Compare the small model with the masked original; see rebuild.check_equal."""
    calls = Counter(site.layer for site in trace.sites)
    channels = {
        site.layer: kept[site.layer]["out"] if site.layer in kept else np.arange(len(site.outputs))
        for site in trace.sites
        if calls[site.layer] == 1
    }
    return rebuild.check_equal(rebuild.masked(original, kept, trace.sites), small, channels)


def _filters_by_layer(trace: Trace, kept: rebuild.Kept) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return (layer -> (kept filters, all filters) if it lost any, names of the layers that lost none)."""
    removed: dict[str, tuple[int, int]] = {}
    complete: list[str] = []
    for site in trace.sites:
        if not site.makes_channels:
            continue
        num_kept = len(kept[site.layer]["out"]) if site.layer in kept else len(site.outputs)
        if num_kept < len(site.outputs):
            removed[site.layer] = num_kept, len(site.outputs)
        else:
            complete.append(site.layer)
    return removed, complete


def _fine_tune(small: Any, fit: Fit, teacher: Any, distillation: DistillationConfig) -> Any:
    """Train `small` in place, and return a copy that is not compiled."""
    before = small.get_weights()
    with contextlib.ExitStack() as stack:
        student = small
        if distillation.enabled:
            student = stack.enter_context(distilled(small, teacher, distillation, "structured_pruning"))
        run_fit(fit, student, [])
    steps = getattr(student.optimizer, "iterations", None) if student.optimizer is not None else None
    unchanged = all(np.array_equal(a, b) for a, b in zip(before, small.get_weights(), strict=True))
    if unchanged and (steps is None or int(steps) < 1):
        raise TfqError(
            "structured_pruning: fit did not train the model that it received (no weight changed): it must compile "
            "that model and call its fit",
            field="fit",
            expected="a fit that trains the model",
        )
    check_finite(small, "the fine-tuning after structured pruning")
    result, pairs = cloned(small)
    keep_class(small, result, {id(old): new for old, new in pairs}, "structured_pruning")
    return result


def _require_finite(model: Any) -> None:
    for name, layer in named_layers(model):
        if any(not np.isfinite(weight).all() for weight in layer.get_weights() if weight.dtype.kind == "f"):
            raise InputError(
                f"structured_pruning: layer {name!r} of {model.name!r} has weights that are NaN or infinite",
                field="model",
                expected="finite weights",
                got=name,
            )


def _format_reasons(skipped: dict[str, str], limit: int = 8) -> str:
    messages = [f"{name} ({reason})" for name, reason in list(skipped.items())[:limit]]
    more = [f"and {len(skipped) - limit} more"] if len(skipped) > limit else []
    return "; ".join(messages + more) or "it has no convolution and no Dense"

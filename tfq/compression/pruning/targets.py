# SPDX-License-Identifier: Apache-2.0
"""Which layers are to have which sparsity, and settings that contradict each other. No TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfq import patterns
from tfq.config import PruneConfig
from tfq.errors import InputError
from tfq.patterns import Target, check_fits, fits

# As `PruneConfig.final_sparsity` has it, and what the m:n masks cannot follow.
_HIGHEST = 0.99
_GRADUAL = ("initial_sparsity", "end_step", "frequency")


def parse_targets(texts: Sequence[str]) -> tuple[Target, ...]:
    """The targets that `PruneConfig.targets` names, of which 0 is a layer that is not pruned."""
    return patterns.parse_targets(texts, "prune", "sparsity", _HIGHEST)


def check_settings(config: PruneConfig) -> None:
    """Raises InputError where settings contradict each other, saying what to do; parses the targets too."""
    targets = parse_targets(config.targets)
    if config.end_step != -1 and config.end_step <= config.begin_step:
        raise InputError(
            f"prune: end_step {config.end_step} is not after begin_step {config.begin_step}: wanted a later one, or -1"
        )
    if config.order != "uniform" and targets:
        decides = {"sensitivity": "its measured sensitivity", "erk": "its shape", "lamp": "its weights"}[config.order]
        raise InputError(
            f"prune: targets with order={config.order}: either the targets say how sparse a layer becomes, or "
            f"{decides} does: leave one out (what `layers` does not name stays dense with both)"
        )
    if config.block_size and len(config.block_size) != 2:
        raise InputError(f"prune: block_size {_listed(config.block_size)}: wanted two numbers, height,width")
    if config.sparsity_m_by_n:
        _check_m_by_n(config)
    elif config.schedule == "polynomial":
        _check_initial(config, targets)


def m_by_n(config: PruneConfig) -> tuple[int, int] | None:
    """(m, n) of a config that was checked: m zeros in every n weights; None where it asks for no such masks."""
    return (config.sparsity_m_by_n[0], config.sparsity_m_by_n[1]) if config.sparsity_m_by_n else None


def block_size(config: PruneConfig) -> tuple[int, int]:
    """(height, width) of a config that was checked; (1, 1) prunes each weight by itself."""
    return (config.block_size[0], config.block_size[1]) if config.block_size else (1, 1)


def chosen_sparsities(config: PruneConfig, reasons: Mapping[str, str | None]) -> dict[str, float]:
    """Layer -> final_sparsity of each layer to prune, in order; a target of 0 leaves its layer out.

    reasons: every layer's name -> why it cannot be pruned, None where it can.
    Raises InputError on a pattern in layers or targets that fits no layer that can be pruned, with the nearest name.
    """
    if not config.layers:
        raise InputError(
            "prune: layers is empty: name patterns of the layers to prune, or switch pruning off (--noprune)"
        )
    prunable = [name for name, reason in reasons.items() if reason is None]
    for pattern in config.layers:
        check_fits(f"prune: the pattern {pattern!r} in layers", pattern, reasons)
    named = [name for name in prunable if fits(name, config.layers)]
    sparsities = dict.fromkeys(named, config.final_sparsity)
    for target in parse_targets(config.targets):
        what = f"prune: the target {target.text!r}"
        check_fits(what, target.pattern, reasons)
        fitting = [name for name in named if fits(name, (target.pattern,))]
        if not fitting:
            outside = next(name for name in prunable if fits(name, (target.pattern,)))
            raise InputError(
                f"{what} fits only layers that `layers` leaves out, such as {outside!r}: add a pattern to "
                "layers, or take the target away"
            )
        sparsities.update(dict.fromkeys(fitting, target.value))
    chosen = {name: sparsity for name, sparsity in sparsities.items() if sparsity or not config.targets}
    if not chosen:
        raise InputError("prune: every layer's target is 0: nothing would be pruned: switch pruning off (--noprune)")
    return chosen


def _check_m_by_n(config: PruneConfig) -> None:
    told = f"sparsity_m_by_n={_listed(config.sparsity_m_by_n)}"
    if len(config.sparsity_m_by_n) != 2 or config.sparsity_m_by_n[0] >= config.sparsity_m_by_n[1]:
        raise InputError(f"prune: {told}: wanted m,n with m below n, as in 2,4: two zeros in every four weights")
    zeros, group = config.sparsity_m_by_n
    if block_size(config) != (1, 1):
        raise InputError(f"prune: {told} with block_size: a mask has one form: leave one of them out")
    if config.order != "uniform":
        raise InputError(
            f"prune: {told} with order={config.order}: m:n makes every layer {zeros / group:g} sparse and leaves "
            "nothing to choose: leave one of them out"
        )
    if config.targets:
        raise InputError(
            f"prune: {told} with targets: m:n makes every layer {zeros / group:g} sparse: leave the targets out, and "
            "name in `layers` the layers to prune"
        )
    if config.final_sparsity not in (_default("final_sparsity"), zeros / group):
        raise InputError(
            f"prune: {told} with final_sparsity={config.final_sparsity:g}: {zeros} zeros in every {group} weights are "
            f"{zeros / group:g}: leave final_sparsity out, or choose another m,n"
        )
    wrong = [name for name in _GRADUAL if getattr(config, name) != _default(name)]
    if wrong:
        raise InputError(
            f"prune: {told} with {', '.join(wrong)}: these masks are made once, in begin_step, and do not grow: leave "
            f"{'it' if len(wrong) == 1 else 'them'} out"
        )


def _check_initial(config: PruneConfig, targets: Sequence[Target]) -> None:
    if config.initial_sparsity > config.final_sparsity:
        raise InputError(
            f"prune: initial_sparsity {config.initial_sparsity:g} is above final_sparsity {config.final_sparsity:g}"
        )
    for target in targets:
        if 0 < target.value < config.initial_sparsity:
            raise InputError(
                f"prune: initial_sparsity {config.initial_sparsity:g} is above the target {target.text!r}: lower "
                "initial_sparsity"
            )


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(PruneConfig) if field.name == name)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(str(number) for number in numbers)

# SPDX-License-Identifier: Apache-2.0
"""Layer-wise sparsity: how sparse each layer becomes. Uniform, ERK, LAMP or the user's targets. No TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import patterns
from tfq.config import PruneConfig
from tfq.errors import InputError
from tfq.patterns import Target, check_fits, fits

HIGHEST = 0.99


def erdos_renyi_kernel(kernels: Mapping[str, Sequence[NDArray]], final_sparsity: float) -> dict[str, float]:
    """Layer -> sparsity, `final_sparsity` over all weights.

    kernels: layer -> its kernels, (height, width, inputs, outputs) of a convolution; only their shapes count.
    The share of weights that stay is in proportion to the sum of a kernel's dimensions over their product: a layer
    keeps as many weights as it has inputs, outputs and places, times a number that is the same for all. A layer that
    would keep more than it has stays dense, and the others make up for it.
    Source: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", section 3 (Erdős-Rényi-Kernel).
    """
    sizes = {name: sum(kernel.size for kernel in values) for name, values in kernels.items()}
    edges = {name: sum(sum(kernel.shape) for kernel in values) for name, values in kernels.items()}
    kept = (1 - final_sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        open_layers = [name for name in kernels if name not in dense]
        left = kept - sum(sizes[name] for name in dense)
        number = left / sum(edges[name] for name in open_layers) if open_layers else 0.0
        full = {name for name in open_layers if number * edges[name] >= sizes[name]}
        if not full:
            break
        dense |= full
    return {name: 0.0 if name in dense else min(HIGHEST, 1 - number * edges[name] / sizes[name]) for name in kernels}


def layer_adaptive(kernels: Mapping[str, Sequence[NDArray]], final_sparsity: float) -> dict[str, float]:
    """Layer -> sparsity, `final_sparsity` over all weights.

    kernels: layer -> the values of its kernels. The score of a weight is its square over the sum of the squares of all
    in its kernel that are no smaller: how much of what would be left of the kernel goes with it. Of all weights those
    with the lowest scores go; a layer's sparsity is the share of its weights among them, at most 0.99.
    Source: Lee et al. 2021, "Layer-adaptive sparsity for the Magnitude-based Pruning" (LAMP).
    """
    scores = {name: np.concatenate([_scores(kernel) for kernel in values]) for name, values in kernels.items()}
    ordered = np.sort(np.concatenate(list(scores.values())))
    count = round(final_sparsity * ordered.size)
    if not count:
        return dict.fromkeys(kernels, 0.0)
    threshold = ordered[count - 1]
    return {name: min(HIGHEST, float((item <= threshold).mean())) for name, item in scores.items()}


def _scores(kernel: NDArray) -> NDArray[np.float64]:
    squares = np.sort(np.asarray(kernel, np.float64).reshape(-1) ** 2)
    no_smaller = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, no_smaller, out=np.zeros_like(squares), where=no_smaller > 0)


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
            f"prune: end_step {config.end_step} is not after begin_step {config.begin_step}: expected a later one, "
            f"or -1",
            field="compression.prune.end_step",
            expected=f"a step after {config.begin_step}, or -1",
            got=config.end_step,
        )
    if config.allocation != "uniform" and targets:
        decides = {"sensitivity": "its measured sensitivity", "erk": "its shape", "lamp": "its weights"}[
            config.allocation
        ]
        raise InputError(
            f"prune: targets with allocation={config.allocation}: either the targets say how sparse a layer becomes, "
            f"or "
            f"{decides} does: leave one out (what `layers` does not name stays dense with both)",
            field="compression.prune.targets",
            expected=(),
            got=config.targets,
        )
    if config.block_size and len(config.block_size) != 2:
        raise InputError(
            f"prune: block_size {_listed(config.block_size)}: expected two numbers, height,width",
            field="compression.prune.block_size",
            expected="two numbers",
            got=config.block_size,
        )
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
            "prune: layers is empty: name patterns of the layers to prune, or switch pruning off "
            "(compression.prune.enabled=False)",
            field="compression.prune.layers",
            expected="name patterns",
            got=(),
        )
    prunable = [name for name, reason in reasons.items() if reason is None]
    for pattern in config.layers:
        check_fits(f"prune: the pattern {pattern!r} in layers", pattern, reasons, field="compression.prune.layers")
    named = [name for name in prunable if fits(name, config.layers)]
    sparsities = dict.fromkeys(named, config.final_sparsity)
    for target in parse_targets(config.targets):
        what = f"prune: the target {target.text!r}"
        check_fits(what, target.pattern, reasons, field="compression.prune.targets")
        fitting = [name for name in named if fits(name, (target.pattern,))]
        if not fitting:
            outside = next(name for name in prunable if fits(name, (target.pattern,)))
            raise InputError(
                f"{what} fits only layers that `layers` leaves out, such as {outside!r}: add a pattern to "
                "layers, or take the target away",
                field="compression.prune.targets",
                got=target.text,
            )
        sparsities.update(dict.fromkeys(fitting, target.value))
    chosen = {name: sparsity for name, sparsity in sparsities.items() if sparsity or not config.targets}
    if not chosen:
        raise InputError(
            "prune: every layer's target is 0: nothing would be pruned: switch pruning off "
            "(compression.prune.enabled=False)",
            field="compression.prune.targets",
            expected="a target above 0",
            got=config.targets,
        )
    return chosen


def _check_m_by_n(config: PruneConfig) -> None:
    message = f"sparsity_m_by_n={_listed(config.sparsity_m_by_n)}"
    if len(config.sparsity_m_by_n) != 2 or config.sparsity_m_by_n[0] >= config.sparsity_m_by_n[1]:
        raise InputError(
            f"prune: {message}: expected m,n with m below n, as in 2,4: two zeros in every four weights",
            field="compression.prune.sparsity_m_by_n",
            expected="m,n with m below n",
            got=config.sparsity_m_by_n,
        )
    zeros, group = config.sparsity_m_by_n
    if block_size(config) != (1, 1):
        raise InputError(
            f"prune: {message} with block_size: a mask has one form: leave one of them out",
            field="compression.prune.block_size",
            expected=(),
            got=config.block_size,
        )
    if config.allocation != "uniform":
        raise InputError(
            f"prune: {message} with allocation={config.allocation}: m:n makes every layer {zeros / group:g} sparse and "
            f"leaves "
            "nothing to choose: leave one of them out",
            field="compression.prune.allocation",
            expected="uniform",
            got=config.allocation,
        )
    if config.targets:
        raise InputError(
            f"prune: {message} with targets: m:n makes every layer {zeros / group:g} sparse: leave the targets out, "
            f"and "
            "name in `layers` the layers to prune",
            field="compression.prune.targets",
            expected=(),
            got=config.targets,
        )
    if config.final_sparsity not in (_default("final_sparsity"), zeros / group):
        raise InputError(
            f"prune: {message} with final_sparsity={config.final_sparsity:g}: {zeros} zeros in every {group} weights "
            f"are "
            f"{zeros / group:g}: leave final_sparsity out, or choose another m,n",
            field="compression.prune.final_sparsity",
            expected=zeros / group,
            got=config.final_sparsity,
        )
    wrong = [name for name in _GRADUAL if getattr(config, name) != _default(name)]
    if wrong:
        raise InputError(
            f"prune: {message} with {', '.join(wrong)}: these masks are made once, in begin_step, and do not grow: "
            f"leave "
            f"{'it' if len(wrong) == 1 else 'them'} out",
            field=f"compression.prune.{wrong[0]}",
            expected=_default(wrong[0]),
            got=getattr(config, wrong[0]),
        )


def _check_initial(config: PruneConfig, targets: Sequence[Target]) -> None:
    if config.initial_sparsity > config.final_sparsity:
        raise InputError(
            f"prune: initial_sparsity {config.initial_sparsity:g} is above final_sparsity {config.final_sparsity:g}",
            field="compression.prune.initial_sparsity",
            expected=config.final_sparsity,
            got=config.initial_sparsity,
        )
    for target in targets:
        if 0 < target.value < config.initial_sparsity:
            raise InputError(
                f"prune: initial_sparsity {config.initial_sparsity:g} is above the target {target.text!r}: lower "
                "initial_sparsity",
                field="compression.prune.initial_sparsity",
                expected=target.value,
                got=config.initial_sparsity,
            )


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(PruneConfig) if field.name == name)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(str(number) for number in numbers)

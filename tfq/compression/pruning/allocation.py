# SPDX-License-Identifier: Apache-2.0
"""Layer-wise sparsity allocation: uniform, ERK, LAMP, or the user's targets. Does not import TensorFlow.

Allocation by measured sensitivity is in `sensitivity.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import patterns
from tfq.config import PruneConfig
from tfq.errors import InputError
from tfq.patterns import Target, check_fits, check_selection, fits

# The upper limit that `PruneConfig.final_sparsity` has as well.
MAX_SPARSITY = 0.99
# Settings that m:n masks cannot follow: these masks are computed once.
_GRADUAL = ("initial_sparsity", "end_step", "frequency")


def erk_sparsities(kernels: Mapping[str, Sequence[NDArray]], final_sparsity: float) -> dict[str, float]:
    """Return the sparsity of each layer by the Erdős-Rényi-Kernel rule.

    The density of a layer is proportional to (sum of the kernel's dimensions) / (product of the kernel's dimensions):

        density = epsilon * (height + width + inputs + outputs) / (height * width * inputs * outputs)

    `epsilon` is the same for all layers, and is chosen so that `final_sparsity` of all weights are zero. A layer whose
    density would reach 1 stays dense, and `epsilon` is computed again for the other layers.
    Source: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", section 3.

    Args:
        kernels: Layer -> its kernels, such as (height, width, inputs, outputs) for a convolution. Only their shapes
            are used.
        final_sparsity: Fraction of zeros over all weights.

    Returns:
        Layer -> sparsity, at most 0.99.
    """
    sizes = {name: sum(kernel.size for kernel in values) for name, values in kernels.items()}
    dimension_sums = {name: sum(sum(kernel.shape) for kernel in values) for name, values in kernels.items()}
    num_nonzero = (1 - final_sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        sparse = [name for name in kernels if name not in dense]
        remaining = num_nonzero - sum(sizes[name] for name in dense)
        epsilon = remaining / sum(dimension_sums[name] for name in sparse) if sparse else 0.0
        full = {name for name in sparse if epsilon * dimension_sums[name] >= sizes[name]}
        if not full:
            break
        dense |= full
    return {
        name: 0.0 if name in dense else min(MAX_SPARSITY, 1 - epsilon * dimension_sums[name] / sizes[name])
        for name in kernels
    }


def lamp_sparsities(kernels: Mapping[str, Sequence[NDArray]], final_sparsity: float) -> dict[str, float]:
    """Return the sparsity of each layer by layer-adaptive magnitude pruning (LAMP).

    With the squared weights of a kernel sorted in ascending order, the score of weight u is

        score(u) = w[u]^2 / sum of w[v]^2 for all v >= u

    All weights of the model are ranked by their scores, and the lowest `final_sparsity` of them count as pruned. The
    sparsity of a layer is the fraction of its weights that count as pruned.
    Source: Lee et al. 2021, "Layer-adaptive sparsity for the Magnitude-based Pruning".

    Args:
        kernels: Layer -> the values of its kernels.
        final_sparsity: Fraction of zeros over all weights.

    Returns:
        Layer -> sparsity, at most 0.99.
    """
    scores = {name: np.concatenate([_lamp_scores(kernel) for kernel in values]) for name, values in kernels.items()}
    ordered = np.sort(np.concatenate(list(scores.values())))
    count = round(final_sparsity * ordered.size)
    if not count:
        return dict.fromkeys(kernels, 0.0)
    threshold = ordered[count - 1]
    return {name: min(MAX_SPARSITY, float((item <= threshold).mean())) for name, item in scores.items()}


def _lamp_scores(kernel: NDArray) -> NDArray[np.float64]:
    squares = np.sort(np.asarray(kernel, np.float64).reshape(-1) ** 2)
    tail_sums = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, tail_sums, out=np.zeros_like(squares), where=tail_sums > 0)


def parse_targets(texts: Sequence[str]) -> tuple[Target, ...]:
    """Return the parsed `PruneConfig.targets`. A target of 0 means that the layer is not pruned."""
    return patterns.parse_targets(texts, "prune", "sparsity", MAX_SPARSITY)


def check_settings(config: PruneConfig) -> None:
    """Raise InputError if settings contradict each other or a target cannot be parsed."""
    targets = parse_targets(config.targets)
    if config.end_step != -1 and config.end_step <= config.begin_step:
        raise InputError(
            f"prune: end_step {config.end_step} is not after begin_step {config.begin_step}: expected a later step, "
            "or -1",
            field="compression.prune.end_step",
            expected=f"a step after {config.begin_step}, or -1",
            got=config.end_step,
        )
    if config.allocation != "uniform" and targets:
        criterion = {"sensitivity": "its measured sensitivity", "erk": "its shape", "lamp": "its weights"}[
            config.allocation
        ]
        raise InputError(
            f"prune: targets cannot be combined with allocation={config.allocation}, which sets the sparsity of each "
            f"layer by {criterion}: leave one of them out. Layers that no pattern in `layers` matches stay dense in "
            "both cases",
            field="compression.prune.targets",
            expected=(),
            got=config.targets,
        )
    if config.allocation == "sensitivity" and config.criterion != "magnitude":
        raise InputError(
            f"prune: criterion={config.criterion} cannot be combined with allocation=sensitivity, which measures the "
            "effect of pruning by magnitude: leave one of them out",
            field="compression.prune.criterion",
            expected="magnitude",
            got=config.criterion,
        )
    if config.block_size and len(config.block_size) != 2:
        raise InputError(
            f"prune: block_size {_comma_separated(config.block_size)}: expected two numbers, height,width",
            field="compression.prune.block_size",
            expected="two numbers",
            got=config.block_size,
        )
    if config.sparsity_m_by_n:
        _check_m_by_n(config)
    elif config.schedule == "polynomial":
        _check_initial(config, targets)


def m_by_n(config: PruneConfig) -> tuple[int, int] | None:
    """Return (m, n) of a checked config, for m zeros in every n weights; None without m:n sparsity."""
    return (config.sparsity_m_by_n[0], config.sparsity_m_by_n[1]) if config.sparsity_m_by_n else None


def block_size(config: PruneConfig) -> tuple[int, int]:
    """Return (height, width) of a checked config; (1, 1) is unstructured pruning."""
    return (config.block_size[0], config.block_size[1]) if config.block_size else (1, 1)


def target_sparsities(config: PruneConfig, reasons: Mapping[str, str | None]) -> dict[str, float]:
    """Return the final sparsity of each layer to prune, in layer order, from `config.layers` and `config.targets`.

    Args:
        config: A checked config.
        reasons: Layer -> why it cannot be pruned, or None if it can. Has an entry for every layer.

    Returns:
        Layer -> final sparsity. A layer with a target of 0 is left out.

    Raises:
        InputError: No layer is selected, or a pattern in `layers` or `targets` matches no prunable layer. The error
            suggests the nearest name.
    """
    if not config.layers:
        raise InputError(
            "prune: layers is empty: expected name patterns of the layers to prune. To switch pruning off, set "
            "compression.prune.enabled=False",
            field="compression.prune.layers",
            expected="name patterns",
            got=(),
        )
    prunable = [name for name, reason in reasons.items() if reason is None]
    check_selection("prune: layers", config.layers, reasons, field="compression.prune.layers")
    selected = [name for name in prunable if fits(name, config.layers)]
    sparsities = dict.fromkeys(selected, config.final_sparsity)
    for target in parse_targets(config.targets):
        what = f"prune: the target {target.text!r}"
        check_fits(what, target.pattern, reasons, field="compression.prune.targets")
        matches = [name for name in selected if fits(name, (target.pattern,))]
        if not matches:
            outside = next(name for name in prunable if fits(name, (target.pattern,)))
            raise InputError(
                f"{what} matches only layers that `layers` does not select, such as {outside!r}: add a pattern to "
                "`layers`, or remove the target",
                field="compression.prune.targets",
                got=target.text,
            )
        sparsities.update(dict.fromkeys(matches, target.value))
    chosen = {name: sparsity for name, sparsity in sparsities.items() if sparsity or not config.targets}
    if not chosen:
        raise InputError(
            "prune: every layer's target is 0, so nothing would be pruned. To switch pruning off, set "
            "compression.prune.enabled=False",
            field="compression.prune.targets",
            expected="a target above 0",
            got=config.targets,
        )
    return chosen


def _check_m_by_n(config: PruneConfig) -> None:
    message = f"sparsity_m_by_n={_comma_separated(config.sparsity_m_by_n)}"
    if len(config.sparsity_m_by_n) != 2 or config.sparsity_m_by_n[0] >= config.sparsity_m_by_n[1]:
        raise InputError(
            f"prune: {message}: expected m,n with m below n, such as 2,4 for two zeros in every four weights",
            field="compression.prune.sparsity_m_by_n",
            expected="m,n with m below n",
            got=config.sparsity_m_by_n,
        )
    zeros, group = config.sparsity_m_by_n
    if block_size(config) != (1, 1):
        raise InputError(
            f"prune: {message} cannot be combined with block_size: leave one of them out",
            field="compression.prune.block_size",
            expected=(),
            got=config.block_size,
        )
    if config.allocation != "uniform":
        raise InputError(
            f"prune: {message} cannot be combined with allocation={config.allocation}, because m:n sparsity fixes the "
            f"sparsity of every layer at {zeros / group:g}: leave one of them out",
            field="compression.prune.allocation",
            expected="uniform",
            got=config.allocation,
        )
    if config.targets:
        raise InputError(
            f"prune: {message} cannot be combined with targets, because m:n sparsity fixes the sparsity of every "
            f"layer at {zeros / group:g}: leave the targets out, and select the layers to prune with `layers`",
            field="compression.prune.targets",
            expected=(),
            got=config.targets,
        )
    if config.final_sparsity not in (_default("final_sparsity"), zeros / group):
        raise InputError(
            f"prune: {message} contradicts final_sparsity={config.final_sparsity:g}: {zeros} zeros in every {group} "
            f"weights are a sparsity of {zeros / group:g}. Leave final_sparsity out, or choose another m,n",
            field="compression.prune.final_sparsity",
            expected=zeros / group,
            got=config.final_sparsity,
        )
    wrong = [name for name in _GRADUAL if getattr(config, name) != _default(name)]
    if wrong:
        raise InputError(
            f"prune: {message} cannot be combined with {', '.join(wrong)}: m:n masks are computed once, in "
            f"begin_step. Leave {'it' if len(wrong) == 1 else 'them'} out",
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


def _comma_separated(numbers: Sequence[int]) -> str:
    return ",".join(str(number) for number in numbers)

# SPDX-License-Identifier: Apache-2.0
"""Magnitude pruning: the smallest weights of each layer become zero on a schedule, and stay zero."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.gate import copy_after_training, copy_for_training
from tfq.compression.graph import check_finite, fit_with, named_layers, require_graph_model
from tfq.compression.pruning.allocation import (
    block_size,
    check_settings,
    chosen_sparsities,
    erdos_renyi_kernel,
    layer_adaptive,
)
from tfq.compression.pruning.masks import Masks, Schedule, pruning_callback
from tfq.compression.pruning.prunable import layer_reasons, m_by_n_sparsity, prunable_weights
from tfq.compression.pruning.sensitivity import SensitivityTable, allocated
from tfq.config import PruneConfig
from tfq.errors import InputError, warn
from tfq.keras_bridge.copies import check_own_training
from tfq.patterns import fits
from tfq.typing import Data, Fit, KerasModel, Teacher

# What needs no data to choose the layers' sparsities.
_BY_WEIGHTS = {"erk": erdos_renyi_kernel, "lamp": layer_adaptive}
# tfmot counts the weights to keep in float32.
_ROUNDING = 2.0**-22


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which layers are pruned, and of every other one why not. Names as in `measure_sparsity`.

    sparsities: layer -> fraction of zeros that it is to end with; empty as long as allocation=sensitivity has not
    measured. sensitivity: the table that they were chosen by, with allocation=sensitivity.
    """

    pruned: tuple[str, ...]
    skipped: dict[str, str]
    sparsities: dict[str, float] = field(default_factory=dict)
    sensitivity: SensitivityTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: pruned [names], skipped {name: reason}, sparsities {name: fraction}, sensitivity."""
        return {
            "pruned": list(self.pruned),
            "skipped": dict(self.skipped),
            "sparsities": dict(self.sparsities),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
        }


def pruning_plan(model: KerasModel, config: PruneConfig | None = None, calibration: Data = None) -> PruningPlan:
    """What `prune_model` would prune in a functional or sequential tf_keras model, and how far.

    calibration: representative inputs, as `tfq.data.as_split` takes them, for allocation=sensitivity; without them the
    plan
        has no sparsities yet.
    Raises InputError on settings that contradict each other, and on a pattern in layers or targets that fits no layer
    that can be pruned, with the nearest name.
    """
    config = config or PruneConfig()
    check_settings(config)
    require_graph_model(model, "pruning")
    reasons = layer_reasons(model, config)
    _check_any(model, config, reasons)
    chosen = chosen_sparsities(config, reasons)
    skipped = {name: reason or _why_not_chosen(name, config) for name, reason in reasons.items() if name not in chosen}
    sparsities: Mapping[str, float] = chosen
    table = None
    if config.allocation == "sensitivity":
        sparsities = {}
        if calibration is not None:
            sparsities, table = allocated(model, calibration, config, list(chosen))
    elif config.allocation != "uniform":
        weights = {name: prunable_weights(layer) or [] for name, layer in named_layers(model) if name in chosen}
        kernels = {name: [weight.numpy() for weight in weights[name]] for name in chosen}
        sparsities = _BY_WEIGHTS[config.allocation](kernels, config.final_sparsity)
    elif config.sparsity_m_by_n:
        sparsities = _m_by_n_sparsities(model, chosen, *config.sparsity_m_by_n)
    return PruningPlan(pruned=tuple(chosen), skipped=skipped, sparsities=dict(sparsities), sensitivity=table)


def prune_model(
    model: KerasModel,
    fit: Fit,
    config: PruneConfig | None = None,
    calibration: Data = None,
    *,
    plan: PruningPlan | None = None,
    teacher: Teacher | None = None,
) -> KerasModel:
    """Return a pruned and trained copy of `model` (magnitude pruning of single weights).

    `model` itself does not change, and the result is not compiled. A TfqWarning names each layer that misses its
    sparsity.

    Example:
        def fit(model, callbacks):
            model.compile("adam", "sparse_categorical_crossentropy")
            model.fit(x, y, epochs=10, callbacks=callbacks)

        pruned = tfq.prune(model, fit, tfq.PruneConfig(final_sparsity=0.8))

    Args:
        model: A functional or sequential tf_keras model with trained weights.
        fit: Called as `fit(model, callbacks)`. It compiles the model that it receives and trains it in place with
            `model.fit(..., callbacks=callbacks)`; it may append callbacks.
        config: Settings of the pruning; None means `PruneConfig()`. `end_step=-1` is three quarters of the first call
            of `model.fit`. m:n zeros run along the input channels of kernels of shape (..., inputs, outputs), the last
            axis of TFLite's weights. A block of height x width covers inputs x outputs.
        calibration: Representative inputs for `allocation="sensitivity"`, in any form that `evaluate` accepts. The
            other allocations ignore them.
        plan: The result of `pruning_plan` for this model and config, which is then not computed again.
        teacher: One or several models (an ensemble) whose outputs `config.distillation` trains towards; None means
            `model` itself. The result does not contain them.

    Returns:
        The pruned model, a tf_keras model with the layers of `model`.

    Raises:
        InputError: The model cannot be pruned, or the settings contradict each other.
        TfqError: `fit` did not train the model or did not pass on the callbacks, weights became NaN, or the copy
            computes a different function.
    """
    config = config or PruneConfig()
    refuse_unused_teacher(teacher, config.distillation, "prune")
    check_own_training(model, "prune")
    plan = plan or pruning_plan(model, config, calibration)
    if plan.pruned and not plan.sparsities:
        allocated(model, None, config, plan.pruned)
    trained, pairs = copy_for_training(model, "prune")
    layers = dict(named_layers(trained))
    masks = Masks({name: prunable_weights(layers[name]) or [] for name in plan.pruned}, config)
    schedule = Schedule(config)
    callback = pruning_callback(masks, schedule, plan.sparsities)
    with contextlib.ExitStack() as around:
        student = trained
        if config.distillation.enabled:
            student = around.enter_context(distilled(trained, teacher or model, config.distillation, "prune"))
        fit_with(fit, student, callback, "prune")
    _warn_of_weights_put_back(masks)
    masks.apply()
    check_finite(trained, "pruning")
    lengths = f"training ended at step {callback.steps}, end_step is {schedule.end_step}"
    _warn_of_misses(masks, plan.sparsities, config, lengths)
    return copy_after_training(model, trained, pairs, "prune")


def _check_any(model: Any, config: PruneConfig, reasons: Mapping[str, str | None]) -> None:
    if any(reason is None for reason in reasons.values()):
        return
    if not config.sparsity_m_by_n and not config.block_size:
        raise InputError(
            f"{model.name!r} has no layer that can be pruned: it needs a Dense or a convolution",
            field="model",
            expected="a Dense or a convolution",
            got=model.name,
        )
    form = "sparsity_m_by_n" if config.sparsity_m_by_n else "block_size"
    plain = layer_reasons(model, PruneConfig())
    messages = [f"{name}: {reasons[name]}" for name, reason in plain.items() if reason is None]
    raise InputError(
        f"prune: no layer of {model.name!r} can have {form}={','.join(map(str, getattr(config, form)))}: leave it out. "
        + "; ".join(messages),
        field=f"compression.prune.{form}",
        got=getattr(config, form),
    )


def _why_not_chosen(name: str, config: PruneConfig) -> str:
    return "its target is 0" if fits(name, config.layers) else "no pattern in layers fits its name"


def _m_by_n_sparsities(model: Any, chosen: Mapping[str, float], m: int, n: int) -> dict[str, float]:
    results = {}
    for name, layer in named_layers(model):
        if name in chosen:
            shapes = [tuple(weight.shape) for weight in prunable_weights(layer) or []]
            sizes = [int(np.prod(shape)) for shape in shapes]
            zeros = sum(size * m_by_n_sparsity(shape, m, n) for size, shape in zip(sizes, shapes, strict=True))
            results[name] = zeros / sum(sizes)
    return results


def _warn_of_weights_put_back(masks: Masks) -> None:
    put_back = masks.violated()
    if put_back:
        warn(
            f"prune: after the last training step, weights that were pruned have been put back in "
            f"{', '.join(put_back)} (EarlyStopping with restore_best_weights?); they are zero again, and no training "
            "came after that: restore the weights of an epoch after end_step only"
        )


def _warn_of_misses(masks: Masks, wanted: Mapping[str, float], config: PruneConfig, why: str) -> None:
    block = int(np.prod(block_size(config)))
    for name, pairs in masks.pairs.items():
        kernels = [weight.numpy() for weight, _ in pairs]
        size = sum(kernel.size for kernel in kernels)
        sparsity = 1 - sum(np.count_nonzero(kernel) for kernel in kernels) / size
        if sparsity < wanted[name] - len(kernels) * block / size - _ROUNDING:
            warn(f"prune: {name} has {sparsity:.1%} zeros, wanted {wanted[name]:.1%}: {why}")

# SPDX-License-Identifier: Apache-2.0
"""Pruning of weights: the least important ones of each layer are set to zero on a schedule, and stay zero."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfq import registry
from tfq.compression.criteria import Examples, PruningCriterion
from tfq.compression.distillation import distilled, refuse_unused_teacher
from tfq.compression.gate import copy_after_training, copy_for_training, in_float32
from tfq.compression.graph import check_finite, fit_with, named_layers, require_graph_model
from tfq.compression.pruning.allocation import (
    block_size,
    check_settings,
    erk_sparsities,
    lamp_sparsities,
    target_sparsities,
)
from tfq.compression.pruning.mask_shapes import block_shape
from tfq.compression.pruning.masks import Masks, Schedule, pruning_callback
from tfq.compression.pruning.prunable import layer_reasons, m_by_n_sparsity, prunable_weights
from tfq.compression.pruning.sensitivity import SensitivityTable, allocate_by_sensitivity
from tfq.config import PruneConfig
from tfq.errors import InputError, warn
from tfq.keras_bridge.copies import check_own_training
from tfq.keras_bridge.strategies import in_strategy
from tfq.keras_bridge.wrapped import without_wrappers
from tfq.patterns import fits
from tfq.typing import Data, Fit, KerasModel, Teacher

# Allocations that need no data.
_ALLOCATIONS = {"erk": erk_sparsities, "lamp": lamp_sparsities}
# The sparsity of the schedule is not exact.
_ROUNDING = 2.0**-22


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """The layers to prune, their final sparsities, and the reason why each other layer is not pruned.

    Layers have their names of `measure_sparsity`.

    Attributes:
        pruned: The layers to prune.
        skipped: Layer -> why it is not pruned.
        sparsities: Layer -> fraction of zeros after training. Empty if allocation=sensitivity had no examples yet.
        sensitivity: The measurements that `sparsities` are based on, with allocation=sensitivity.
    """

    pruned: tuple[str, ...]
    skipped: dict[str, str]
    sparsities: dict[str, float] = field(default_factory=dict)
    sensitivity: SensitivityTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, with the names of its attributes as keys."""
        return {
            "pruned": list(self.pruned),
            "skipped": dict(self.skipped),
            "sparsities": dict(self.sparsities),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
        }


@in_strategy
def pruning_plan(model: KerasModel, config: PruneConfig | None = None, calibration: Data = None) -> PruningPlan:
    """Return the layers that `prune_model` would prune, and their final sparsities.

    Args:
        model: Functional or sequential tf_keras model.
        config: The pruning settings.
        calibration: Representative inputs for allocation=sensitivity, in any form that `tfq.data.as_split` accepts.
            Without them, a plan with allocation=sensitivity has no sparsities yet.

    Raises:
        InputError: Settings contradict each other, no layer can be pruned, or a pattern in `layers` or `targets`
            matches no prunable layer. The error suggests the nearest name.
    """
    config = config or PruneConfig()
    check_settings(config)
    require_graph_model(model, "pruning")
    model = without_wrappers(model, "prune")
    reasons = layer_reasons(model, config)
    _check_any(model, config, reasons)
    chosen = target_sparsities(config, reasons)
    skipped = {
        name: reason or _reason_not_chosen(name, config) for name, reason in reasons.items() if name not in chosen
    }
    sparsities: Mapping[str, float] = chosen
    table = None
    if config.allocation == "sensitivity":
        sparsities = {}
        if calibration is not None:
            sparsities, table = allocate_by_sensitivity(model, calibration, config, list(chosen))
    elif config.allocation != "uniform":
        weights = {name: prunable_weights(layer) or [] for name, layer in named_layers(model) if name in chosen}
        kernels = {name: [weight.numpy() for weight in weights[name]] for name in chosen}
        sparsities = _ALLOCATIONS[config.allocation](kernels, config.final_sparsity)
    elif config.sparsity_m_by_n:
        sparsities = _m_by_n_sparsities(model, chosen, *config.sparsity_m_by_n)
    return PruningPlan(pruned=tuple(chosen), skipped=skipped, sparsities=dict(sparsities), sensitivity=table)


@in_strategy
def prune_model(
    model: KerasModel,
    fit: Fit,
    config: PruneConfig | None = None,
    calibration: Data = None,
    *,
    plan: PruningPlan | None = None,
    teacher: Teacher | None = None,
) -> KerasModel:
    """Return a pruned and trained copy of `model`: the least important weights by `config.criterion` are zero.

    `model` itself does not change, and the result is not compiled. A TfqWarning names each layer that misses its
    sparsity.

    Examples:
        >>> def fit(model, callbacks):
        ...     model.compile("adam", "sparse_categorical_crossentropy")
        ...     model.fit(x, y, epochs=10, callbacks=callbacks)

        >>> pruned = tfq.prune(model, fit, tfq.PruneConfig(final_sparsity=0.8))

    Args:
        model: A functional or sequential tf_keras model with trained weights.
        fit: Called as `fit(model, callbacks)`. It compiles the model that it receives and trains it in place with
            `model.fit(..., callbacks=callbacks)`; it may append callbacks.
        config: Settings of the pruning; None means `PruneConfig()`. `end_step=-1` is three quarters of the first call
            of `model.fit`. m:n zeros run along the input channels of kernels of shape (..., inputs, outputs), the last
            axis of TFLite's weights. A block of height x width covers inputs x outputs.
        calibration: Representative inputs for `allocation="sensitivity"` and for a criterion that needs them (taylor
            also needs labels), in any form that `evaluate` accepts. Otherwise they are ignored.
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
    require_graph_model(model, "pruning")
    model = without_wrappers(model, "prune")
    model = in_float32(model, "prune")
    criterion = registry.get(PruningCriterion, config.criterion, field="compression.prune.criterion")
    criterion.check_data(calibration, "prune")
    plan = plan or pruning_plan(model, config, calibration)
    if plan.pruned and not plan.sparsities:
        allocate_by_sensitivity(model, None, config, plan.pruned)
    trained, pairs = copy_for_training(model, "prune")
    layers = dict(named_layers(trained))
    kernels = {name: prunable_weights(layers[name]) or [] for name in plan.pruned}
    examples = Examples(calibration, config.criterion_examples, "prune")
    masks = Masks(kernels, config, criterion.of_weights(trained, kernels, examples))
    schedule = Schedule(config)
    callback = pruning_callback(masks, schedule, plan.sparsities)
    with contextlib.ExitStack() as stack:
        student = trained
        if config.distillation.enabled:
            student = stack.enter_context(distilled(trained, teacher or model, config.distillation, "prune"))
        fit_with(fit, student, callback, "prune")
    _warn_of_restored_weights(masks)
    masks.apply()
    check_finite(trained, "pruning")
    explanation = f"training ended at step {callback.steps}, and end_step is {schedule.end_step}"
    _warn_of_missed_sparsity(masks, plan.sparsities, config, explanation)
    return copy_after_training(model, trained, pairs, "prune")


def _check_any(model: Any, config: PruneConfig, reasons: Mapping[str, str | None]) -> None:
    if any(reason is None for reason in reasons.values()):
        return
    if not config.sparsity_m_by_n and not config.block_size:
        raise InputError(
            f"{model.name!r} has no layer that can be pruned: expected a Dense or a convolution",
            field="model",
            expected="a Dense or a convolution",
            got=model.name,
            limit="nothing-to-compress",
        )
    form = "sparsity_m_by_n" if config.sparsity_m_by_n else "block_size"
    unstructured = layer_reasons(model, PruneConfig())
    messages = [f"{name}: {reasons[name]}" for name, reason in unstructured.items() if reason is None]
    raise InputError(
        f"prune: no layer of {model.name!r} can have {form}={','.join(map(str, getattr(config, form)))}: leave it out. "
        + "; ".join(messages),
        field=f"compression.prune.{form}",
        got=getattr(config, form),
    )


def _reason_not_chosen(name: str, config: PruneConfig) -> str:
    return "its target is 0" if fits(name, config.layers) else "no pattern in layers matches its name"


def _m_by_n_sparsities(model: Any, chosen: Mapping[str, float], m: int, n: int) -> dict[str, float]:
    results = {}
    for name, layer in named_layers(model):
        if name in chosen:
            shapes = [tuple(weight.shape) for weight in prunable_weights(layer) or []]
            sizes = [int(np.prod(shape)) for shape in shapes]
            zeros = sum(size * m_by_n_sparsity(shape, m, n) for size, shape in zip(sizes, shapes, strict=True))
            results[name] = zeros / sum(sizes)
    return results


def _warn_of_restored_weights(masks: Masks) -> None:
    restored = masks.violated_layers()
    if restored:
        warn(
            f"prune: after the last training step, pruned weights of {', '.join(restored)} were restored (possibly by "
            "EarlyStopping with restore_best_weights). They are set to zero again without further training. Restore "
            "only weights of epochs after end_step"
        )


def _warn_of_missed_sparsity(
    masks: Masks, expected: Mapping[str, float], config: PruneConfig, explanation: str
) -> None:
    for name, pairs in masks.pairs.items():
        kernels = [weight.numpy() for weight, _ in pairs]
        size = sum(kernel.size for kernel in kernels)
        sparsity = 1 - sum(np.count_nonzero(kernel) for kernel in kernels) / size
        largest = sum(math.prod(block_shape(kernel.shape, block_size(config))) for kernel in kernels)
        if sparsity < expected[name] - largest / size - _ROUNDING:
            warn(f"prune: {name} has {sparsity:.1%} zeros, expected {expected[name]:.1%}: {explanation}")

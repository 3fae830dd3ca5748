# SPDX-License-Identifier: Apache-2.0
"""Magnitude pruning: the smallest weights of each layer become zero, and stay zero."""

import fnmatch
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfq.compression import tfmot_private
from tfq.compression.graph import Fit, check_finite, cloned, named_layers, require_graph_model
from tfq.compression.schedule import check_schedule, make_callback, make_schedule
from tfq.config import PruneConfig
from tfq.errors import InputError, TfqError, TfqWarning, did_you_mean
from tfq.keras_bridge import import_tfmot


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which layers are pruned, and of every other one why not. Names as in `measure_sparsity`."""

    pruned: tuple[str, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """{"pruned": [names], "skipped": {name: reason}}"""
        return {"pruned": list(self.pruned), "skipped": dict(self.skipped)}


def pruning_plan(model: Any, config: PruneConfig | None = None) -> PruningPlan:
    """What `prune_model` would prune in a functional or sequential tf_keras model.

    Raises InputError when a pattern in config.layers fits no layer that can be pruned, with the nearest name.
    """
    config = config or PruneConfig()
    require_graph_model(model, "pruning")
    reasons = {name: _reason_to_skip(layer) for name, layer in named_layers(model)}
    prunable = [name for name, reason in reasons.items() if reason is None]
    if not prunable:
        raise InputError(f"{model.name!r} has no layer that can be pruned: it needs a Dense or a convolution")
    for pattern in config.layers:
        if not fnmatch.filter(prunable, pattern):
            unprunable = fnmatch.filter(reasons, pattern)
            why = f"fits only {unprunable[0]!r} ({reasons[unprunable[0]]})" if unprunable else "fits no layer"
            raise InputError(f"prune: the pattern {pattern!r} in layers {why}: {did_you_mean(pattern, prunable)}")
    if not config.layers:
        raise InputError(
            "prune: layers is empty: name patterns of the layers to prune, or switch pruning off (--noprune)"
        )
    chosen = [name for name in prunable if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.layers)]
    skipped = {name: reason or "no pattern in layers fits its name" for name, reason in reasons.items()}
    return PruningPlan(pruned=tuple(chosen), skipped={name: why for name, why in skipped.items() if name not in chosen})


def prune_model(model: Any, fit: Fit, config: PruneConfig | None = None) -> Any:
    """A pruned copy of `model`, trained by `fit`, without wrappers and not compiled; `model` stays as it is.

    model: functional or sequential tf_keras model, with the weights to start from.
    fit: fit(model, callbacks) compiles the model that it is given and trains it in place with
        `model.fit(..., callbacks=callbacks)`, its own callbacks added as it likes.
    config.end_step == -1 is three quarters of that fit (of the first, when it calls model.fit several times).
    Raises InputError on a model or settings that cannot be pruned, and TfqError when fit does not train the model or
    forgets the callbacks, or weights become NaN. Warns (TfqWarning) of each layer that misses final_sparsity.
    """
    config = config or PruneConfig()
    check_schedule(config)
    plan = pruning_plan(model, config)
    prune_low_magnitude = import_tfmot().sparsity.keras.prune_low_magnitude
    chosen = {id(layer) for name, layer in named_layers(model) if name in plan.pruned}
    schedule = make_schedule(config)

    def wrap(old: Any, new: Any) -> Any:
        return prune_low_magnitude(new, pruning_schedule=schedule) if id(old) in chosen else new

    pruned, pairs = cloned(model, wrap)
    wrappers = [new for old, new in pairs if id(old) in chosen]
    _trained(fit, pruned, make_callback(config, schedule), wrappers)
    for wrapper in wrappers:
        for weight, mask in tfmot_private.pruning_variables(wrapper):
            weight.assign(weight * mask)
    check_finite(pruned, "pruning")
    _warn_of_misses(wrappers, config, schedule)
    trained = {id(old): new for old, new in pairs}
    stripped, fresh = cloned(model)
    for old, new in fresh:
        new.set_weights(trained[id(old)].get_weights())
    return stripped


def _reason_to_skip(layer: Any) -> str | None:
    kind = type(layer).__name__
    names = tfmot_private.prunable_weight_names(layer)
    if names is None:
        return f"tfmot cannot prune {kind}"
    if not names:
        return f"tfmot prunes no weight of {kind}" if layer.weights else f"{kind} has no weights"
    return None


def _trained(fit: Fit, model: Any, callback: Any, wrappers: list[Any]) -> None:
    import tensorflow as tf

    forgotten = "prune: fit did not pass on the callbacks that it was given: model.fit(..., callbacks=callbacks)"
    try:
        fit(model, [callback])
    except tf.errors.InvalidArgumentError as error:
        if "UpdatePruningStep" in str(error):
            raise TfqError(forgotten) from error
        raise
    if tfmot_private.pruning_step(wrappers[0]) < 1:
        raise TfqError(
            "prune: fit did not train the model that it was given (no step was counted): it must compile that model "
            "and call its fit with the callbacks, for at least one step"
        )


def _warn_of_misses(wrappers: list[Any], config: PruneConfig, schedule: Any) -> None:
    for wrapper in wrappers:
        for weight, _ in tfmot_private.pruning_variables(wrapper):
            values = weight.numpy()
            sparsity = 1 - np.count_nonzero(values) / values.size
            if sparsity < config.final_sparsity - 1 / values.size:
                warnings.warn(
                    f"prune: {wrapper.layer.name} has {sparsity:.1%} zeros, wanted {config.final_sparsity:.1%}: "
                    f"training ended at step {tfmot_private.pruning_step(wrapper)}, end_step is "
                    f"{int(schedule.end_step.numpy())}",
                    TfqWarning,
                    stacklevel=3,
                )

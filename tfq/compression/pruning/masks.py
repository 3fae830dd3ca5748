# SPDX-License-Identifier: Apache-2.0
"""The masks of a model's kernels, made by tfmot from their magnitudes, and the callback that keeps them in training.

The model itself stays as it is: tfmot's wrappers (0.8.1) lose an Embedding's mask and activity regularizers without a
word, and fail on MultiHeadAttention. The function of the model is then the same by construction, which is checked.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.graph import steps_of_training
from tfq.compression.pruning.allocation import (
    block_size,
    m_by_n,
)
from tfq.config import PruneConfig
from tfq.errors import InputError, warn
from tfq.keras_bridge import import_tf_keras


class Schedule:
    """The steps in which masks are updated, and the sparsity in each. Steps count from 1.

    Masks are updated in the steps begin_step, begin_step + frequency, ..., always in the first one, and in end_step
    itself. tfmot's own schedules leave end_step out unless it falls on a multiple of frequency, and then miss
    final_sparsity. Masks of m zeros in n have nothing to grow by: they are made once, in the first step.
    Polynomial: s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3, Zhu and Gupta 2017,
    "To prune, or not to prune", eq. 1. Constant: final_sparsity from begin_step on.

    end_step: None until it is known, where config.end_step is -1.
    """

    def __init__(self, config: PruneConfig) -> None:
        self._config = config
        self._first = max(config.begin_step, 1)
        self._once = bool(config.sparsity_m_by_n)
        self.end_step: int | None = None if config.end_step == -1 else config.end_step
        if self._once:
            self.end_step = self._first

    def is_due(self, step: int, before: int | None = None) -> bool:
        """Whether masks are updated in `step`, or in a step after `before` that nobody looked at; None: step alone."""
        begin = step - 1 if before is None else before
        return any(self._updates(item) for item in range(begin + 1, step + 1))

    def sparsity(self, step: int, final: float | None = None) -> float:
        """The sparsity after the update in `step`, of a layer whose final_sparsity is `final` (None: the config's)."""
        config = self._config
        final = config.final_sparsity if final is None else final
        if config.schedule == "constant" or self._once or self.end_step is None:
            return final
        initial = min(config.initial_sparsity, final)
        passed = min(max((step - config.begin_step) / (self.end_step - config.begin_step), 0.0), 1.0)
        return final + (initial - final) * (1 - passed) ** 3

    def learn_length(self, params: dict[str, Any]) -> None:
        """Sets end_step, where it is not known, to three quarters of the training that Keras describes by `params`.

        Raises InputError where that is not known beforehand, or not after begin_step.
        """
        if self.end_step is not None:
            return
        steps = steps_of_training(params, "prune", "end_step", "three quarters")
        end = max(1, steps * 3 // 4)
        if end <= self._config.begin_step:
            raise InputError(
                f"prune: begin_step {self._config.begin_step} is not before three quarters of the training ({end} of "
                f"{steps} steps): lower it, or train for longer",
                field="compression.prune.begin_step",
                expected=f"a step before {end}",
                got=self._config.begin_step,
            )
        self.end_step = end

    def _updates(self, step: int) -> bool:
        if step < self._first or (self.end_step is not None and step > self.end_step):
            return False
        in_turn = (step - self._config.begin_step) % self._config.frequency == 0
        return step in (self._first, self.end_step) or (in_turn and not self._once)


class Masks:
    """One mask for each of `weights` (layer -> variables), all ones at first."""

    def __init__(self, weights: Mapping[str, list[Any]], config: PruneConfig) -> None:
        import tensorflow as tf

        self.pairs = {
            name: [(item, tf.Variable(tf.ones_like(item), trainable=False)) for item in variables]
            for name, variables in weights.items()
        }
        self._sparsities = {name: tf.Variable(0.0, trainable=False) for name in weights}
        self._updaters = [
            tfmot_symbols.mask_updater(pairs, self._sparsities[name], block_size(config), m_by_n(config))
            for name, pairs in self.pairs.items()
        ]

        def apply() -> None:
            for pairs in self.pairs.values():
                for weight, mask in pairs:
                    weight.assign(weight * mask)

        self.apply = tf.function(apply)

    def update(self, sparsities: Mapping[str, float]) -> None:
        """Masks the smallest weights again, `sparsities` (layer -> fraction) of them; the weights stay as they are."""
        for name, sparsity in sparsities.items():
            self._sparsities[name].assign(sparsity)
        # Eagerly: to trace tfmot's ops takes 0.2 s a layer, and an update a few ms.
        for updater in self._updaters:
            updater()

    def violated(self) -> list[str]:
        """Layers with a weight that is not zero where its mask is."""
        return [
            name
            for name, pairs in self.pairs.items()
            if any(np.any((weight.numpy() != 0) & (mask.numpy() == 0)) for weight, mask in pairs)
        ]


def pruning_callback(masks: Masks, schedule: Schedule, finals: Mapping[str, float]) -> Any:
    """A tf_keras callback that updates `masks` in the steps of `schedule`, and puts them on after every step.

    finals: layer -> its final_sparsity. `steps` of the callback counts the training steps of all fits.
    """

    class PruningSteps(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps = 0
            self._looked_at = 0
            self._optimizer_step: int | None = None

        def on_train_begin(self, logs: Any = None) -> None:
            schedule.learn_length(self.params or {})

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            step = self.steps + 1
            self._optimizer_step = _optimizer_step(self.model)
            if schedule.is_due(step, self._looked_at):
                masks.update({name: schedule.sparsity(step, final) for name, final in finals.items()})
                masks.apply()
            self._looked_at = step

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = _optimizer_step(self.model)
            taken = 1 if now is None or self._optimizer_step is None else max(1, now - self._optimizer_step)
            if taken > 1 and self.steps == 0:
                warn(
                    f"prune: this training takes {taken} steps between two calls of its callbacks "
                    f"(steps_per_execution): pruned weights grow for {taken} steps before they are zero again"
                )
            self.steps += taken
            masks.apply()

    return PruningSteps()


def _optimizer_step(model: Any) -> int | None:
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    return None if iterations is None else int(iterations.numpy())

# SPDX-License-Identifier: Apache-2.0
"""The masks of a model's kernels, made by tfmot from their magnitudes, and the callback that keeps them in training.

The model itself stays as it is: tfmot's wrappers (0.8.1) lose an Embedding's mask and activity regularizers without a
word, and fail on MultiHeadAttention. The function of the model is then the same by construction, which is checked.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfq.compression._tfmot import tfmot_symbols
from tfq.compression.pruning.schedule import Schedule
from tfq.compression.pruning.targets import block_size, m_by_n
from tfq.config import PruneConfig
from tfq.errors import TfqWarning
from tfq.keras_bridge import import_tf_keras


class Masks:
    """One mask for each of `weights` (layer -> variables), all ones at first."""

    def __init__(self, weights: Mapping[str, list[Any]], config: PruneConfig) -> None:
        import tensorflow as tf

        self.pairs = {
            name: [(each, tf.Variable(tf.ones_like(each), trainable=False)) for each in variables]
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
        """Masks the smallest weights anew, `sparsities` (layer -> fraction) of them; the weights stay as they are."""
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
                warnings.warn(
                    f"prune: this training takes {taken} steps between two calls of its callbacks "
                    f"(steps_per_execution): pruned weights grow for {taken} steps before they are zero again",
                    TfqWarning,
                    stacklevel=2,
                )
            self.steps += taken
            masks.apply()

    return PruningSteps()


def _optimizer_step(model: Any) -> int | None:
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    return None if iterations is None else int(iterations.numpy())

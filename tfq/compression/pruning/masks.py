# SPDX-License-Identifier: Apache-2.0
"""Pruning masks, the schedule of their updates, and the callback that applies them during training.

tfmot's layer wrappers are not used: in tfmot 0.8.1 they silently lose an Embedding's mask and activity regularizers,
and they fail on MultiHeadAttention. Its masks have blocks in kernels of rank 2 only, and other blocks than it measures
if they do not fill the kernel. Without wrappers, the architecture does not change.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq.compression.criteria import Scores
from tfq.compression.graph import steps_of_training
from tfq.compression.pruning.allocation import block_size, m_by_n
from tfq.compression.pruning.mask_shapes import mask_of_blocks, mask_of_groups
from tfq.config import PruneConfig
from tfq.errors import InputError, TfqError, warn
from tfq.keras_bridge import import_tf_keras


class Schedule:
    """The training steps in which masks are updated, and the sparsity after each update. Steps count from 1.

    Masks are updated in begin_step (in step 1 if begin_step is 0), in every begin_step + i * frequency, and in
    end_step. tfmot's schedules skip end_step unless it is a multiple of frequency, and then miss final_sparsity.
    Masks for m:n sparsity are computed once, in the first of these steps.

    Polynomial schedule, from Zhu and Gupta 2017, "To prune, or not to prune", eq. 1:

        s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin))^3

    Constant schedule: s(t) = final from begin_step on.

    Attributes:
        end_step: Last step that updates masks. None while config.end_step is -1 and training has not begun.
    """

    def __init__(self, config: PruneConfig) -> None:
        """Derive the schedule from `config`."""
        self._config = config
        self._first = max(config.begin_step, 1)
        self._once = bool(config.sparsity_m_by_n)
        self.end_step: int | None = None if config.end_step == -1 else config.end_step
        if self._once:
            self.end_step = self._first

    def is_due(self, step: int, last_checked: int | None = None) -> bool:
        """Check whether a mask update falls in the steps (last_checked, step].

        Args:
            step: The current step.
            last_checked: The last step that was checked, if steps were skipped since (steps_per_execution). None
                checks `step` alone.
        """
        begin = step - 1 if last_checked is None else last_checked
        return any(self._updates(item) for item in range(begin + 1, step + 1))

    def sparsity(self, step: int, final: float | None = None) -> float:
        """Return the sparsity of a layer after an update in `step`.

        Args:
            step: The current step.
            final: The layer's final sparsity; None is `config.final_sparsity`.
        """
        config = self._config
        final = config.final_sparsity if final is None else final
        if config.schedule == "constant" or self._once or self.end_step is None:
            return final
        initial = min(config.initial_sparsity, final)
        progress = min(max((step - config.begin_step) / (self.end_step - config.begin_step), 0.0), 1.0)
        return final + (initial - final) * (1 - progress) ** 3

    def set_end_step(self, params: dict[str, Any]) -> None:
        """Set `end_step` to three quarters of the training steps, unless it is already known.

        Args:
            params: The `params` of a Keras callback, with the numbers of epochs and steps.

        Raises:
            InputError: Keras does not know the number of steps in advance, or the end would not be after begin_step.
        """
        if self.end_step is not None:
            return
        steps = steps_of_training(params, "prune", "end_step", "three quarters")
        end = max(1, steps * 3 // 4)
        if end <= self._config.begin_step:
            raise InputError(
                f"prune: begin_step {self._config.begin_step} is not before end_step, which is {end} (three quarters "
                f"of {steps} training steps): lower begin_step, or train longer",
                field="compression.prune.begin_step",
                expected=f"a step before {end}",
                got=self._config.begin_step,
            )
        self.end_step = end

    def _updates(self, step: int) -> bool:
        if step < self._first or (self.end_step is not None and step > self.end_step):
            return False
        is_multiple = (step - self._config.begin_step) % self._config.frequency == 0
        return step in (self._first, self.end_step) or (is_multiple and not self._once)


class Masks:
    """One pruning mask per weight variable.

    Attributes:
        pairs: Layer -> (weight, mask) of each of its variables.
        apply: Function without arguments that multiplies every weight by its mask, in place.
    """

    def __init__(self, weights: Mapping[str, list[Any]], config: PruneConfig, scores: Scores | None = None) -> None:
        """Create masks of ones.

        Args:
            weights: Layer -> the variables to prune.
            config: Its block size or m:n sparsity determines the form of the masks.
            scores: Returns layer -> the current score of each weight of each variable; those with the lowest scores
                are pruned. None: the magnitudes.
        """
        import tensorflow as tf

        self.pairs = {
            name: [(item, tf.Variable(tf.ones_like(item), trainable=False)) for item in variables]
            for name, variables in weights.items()
        }
        self._sparsities = dict.fromkeys(weights, 0.0)
        self._block, self._groups = block_size(config), m_by_n(config)
        self._scores = scores or self._magnitudes

        def apply() -> None:
            for pairs in self.pairs.values():
                for weight, mask in pairs:
                    weight.assign(weight * mask)

        self.apply = tf.function(apply)

    def update(self, sparsities: Mapping[str, float]) -> None:
        """Recompute all masks from the current scores of the weights. The weights do not change.

        Args:
            sparsities: Layer -> new fraction of zeros. Other layers keep their last one.

        Raises:
            InputError: Scores are NaN or infinite although the weights are finite.
            TfqError: Weights are NaN or infinite.
        """
        self._sparsities.update(sparsities)
        scores = self._scores()
        for name, pairs in self.pairs.items():
            for (weight, mask), values in zip(pairs, scores[name], strict=True):
                if not np.isfinite(values).all():
                    raise _not_finite(name, weight.numpy())
                if self._groups:
                    kept = mask_of_groups(values, *self._groups)
                else:
                    kept = mask_of_blocks(values, self._sparsities[name], self._block)
                mask.assign(kept.astype(mask.dtype.as_numpy_dtype))

    def _magnitudes(self) -> dict[str, list[NDArray]]:
        return {name: [np.abs(weight.numpy()) for weight, _ in pairs] for name, pairs in self.pairs.items()}

    def violated_layers(self) -> list[str]:
        """Return the layers with a nonzero weight where the mask is zero."""
        return [
            name
            for name, pairs in self.pairs.items()
            if any(np.any((weight.numpy() != 0) & (mask.numpy() == 0)) for weight, mask in pairs)
        ]


def _not_finite(name: str, weights: NDArray) -> TfqError:
    if np.isfinite(weights).all():
        return InputError(
            f"prune: scores of the weights of {name!r} are NaN or infinite: the examples of the criterion, or what the "
            "model computes from them, are not finite. Remove such examples, or choose criterion=magnitude",
            field="calibration",
            expected="examples with finite gradients and activations",
            got=name,
        )
    return TfqError(
        f"prune: weights of {name!r} are NaN or infinite when its mask is computed: pass a model with finite weights, "
        "or lower the learning rate if they became so in training",
        field="model",
        expected="finite weights",
        got=(name,),
    )


def pruning_callback(masks: Masks, schedule: Schedule, final_sparsities: Mapping[str, float]) -> Any:
    """Return a tf_keras callback that updates masks by a schedule and applies them after every training step.

    Args:
        masks: The masks to update and apply.
        schedule: The steps of the updates.
        final_sparsities: Layer -> its final sparsity.

    Returns:
        A callback. Its attribute `steps` counts the training steps of all calls of `fit`.
    """

    class PruningSteps(import_tf_keras().callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps = 0
            self._last_checked = 0
            self._optimizer_step: int | None = None

        def on_train_begin(self, logs: Any = None) -> None:
            schedule.set_end_step(self.params or {})

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            step = self.steps + 1
            self._optimizer_step = _optimizer_step(self.model)
            if schedule.is_due(step, self._last_checked):
                masks.update({name: schedule.sparsity(step, final) for name, final in final_sparsities.items()})
                masks.apply()
            self._last_checked = step

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = _optimizer_step(self.model)
            taken = 1 if now is None or self._optimizer_step is None else max(1, now - self._optimizer_step)
            if taken > 1 and self.steps == 0:
                warn(
                    f"prune: training runs {taken} steps between two callback calls (steps_per_execution): pruned "
                    f"weights are nonzero for up to {taken} steps before the masks are applied again"
                )
            self.steps += taken
            masks.apply()

    return PruningSteps()


def _optimizer_step(model: Any) -> int | None:
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    return None if iterations is None else int(iterations.numpy())

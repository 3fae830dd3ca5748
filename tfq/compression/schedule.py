# SPDX-License-Identifier: Apache-2.0
"""When masks are updated and to which sparsity, and the callback that counts the steps."""

from typing import Any

from tfq.config import PruneConfig
from tfq.errors import InputError
from tfq.keras_bridge import import_tfmot


def check_schedule(config: PruneConfig) -> None:
    """Raises InputError when the settings contradict each other."""
    if config.end_step != -1 and config.end_step <= config.begin_step:
        raise InputError(
            f"prune: end_step {config.end_step} is not after begin_step {config.begin_step}: wanted a later one, or -1"
        )
    if config.schedule == "polynomial" and config.initial_sparsity > config.final_sparsity:
        raise InputError(
            f"prune: initial_sparsity {config.initial_sparsity:g} is above final_sparsity {config.final_sparsity:g}"
        )


def make_schedule(config: PruneConfig) -> Any:
    """A tfmot PruningSchedule whose `end_step` (a variable) may still be set when training begins.

    Masks are updated in the steps begin_step, begin_step + frequency, ... and always in the first one (steps count
    from 1) and in end_step itself. tfmot's own schedules leave end_step out unless it falls on a multiple of
    frequency, and then miss final_sparsity.
    Polynomial: s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3, Zhu and Gupta 2017,
    "To prune, or not to prune", eq. 1. Constant: final_sparsity from begin_step on.
    """
    import tensorflow as tf

    base: Any = import_tfmot().sparsity.keras.PruningSchedule

    class Schedule(base):
        def __init__(self) -> None:
            # A variable, for the training step that reads it may have been traced before it is known.
            self.end_step = tf.Variable(config.end_step, dtype=tf.int64, trainable=False)

        def __call__(self, step: Any) -> tuple[Any, Any]:
            step = tf.cast(step, tf.int64)
            first = max(config.begin_step, 1)
            in_turn = tf.equal((step - config.begin_step) % config.frequency, 0)
            update = (step >= first) & (step <= self.end_step) & (in_turn | (step == first) | (step == self.end_step))
            return update, self._sparsity(step)

        def _sparsity(self, step: Any) -> Any:
            final = tf.constant(config.final_sparsity, tf.float32)
            if config.schedule == "constant":
                return final
            length = tf.cast(self.end_step - config.begin_step, tf.float32)
            passed = tf.clip_by_value(tf.cast(step - config.begin_step, tf.float32) / length, 0.0, 1.0)
            return final + (config.initial_sparsity - config.final_sparsity) * (1.0 - passed) ** 3

        def get_config(self) -> dict[str, Any]:
            return {"class_name": "tfq>Schedule", "config": config.to_dict()}

    return Schedule()


def make_callback(config: PruneConfig, schedule: Any) -> Any:
    """tfmot's UpdatePruningStep, which also sets the schedule's end_step when training first begins."""

    base: Any = import_tfmot().sparsity.keras.UpdatePruningStep

    class PruningSteps(base):
        def on_train_begin(self, logs: Any = None) -> None:
            if int(schedule.end_step.numpy()) == -1:
                schedule.end_step.assign(_three_quarters(self.params or {}, config))
            super().on_train_begin(logs)

    return PruningSteps()


def _three_quarters(params: dict[str, Any], config: PruneConfig) -> int:
    epochs, steps = params.get("epochs"), params.get("steps")
    if not epochs or not steps:
        raise InputError(
            "prune: end_step is -1 (three quarters of the training), and the length of this training is not known "
            "beforehand: set end_step (--prune.end_step), or give fit a steps_per_epoch"
        )
    end = max(1, epochs * steps * 3 // 4)
    if end <= config.begin_step:
        raise InputError(
            f"prune: begin_step {config.begin_step} is not before three quarters of the training ({end} of "
            f"{epochs * steps} steps): lower it, or train for longer"
        )
    return end

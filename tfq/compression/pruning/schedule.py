# SPDX-License-Identifier: Apache-2.0
"""When masks are updated, and to which sparsity. Plain arithmetic: no TensorFlow."""

from typing import Any

from tfq.compression.graph import steps_of_training
from tfq.config import PruneConfig
from tfq.errors import InputError


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
        return any(self._updates(each) for each in range(begin + 1, step + 1))

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
                f"{steps} steps): lower it, or train for longer"
            )
        self.end_step = end

    def _updates(self, step: int) -> bool:
        if step < self._first or (self.end_step is not None and step > self.end_step):
            return False
        in_turn = (step - self._config.begin_step) % self._config.frequency == 0
        return step in (self._first, self.end_step) or (in_turn and not self._once)

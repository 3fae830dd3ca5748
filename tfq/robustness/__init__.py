# SPDX-License-Identifier: Apache-2.0
"""Corrupt the inputs of models as the field does, and measure how much float and compressed models lose."""

from typing import TYPE_CHECKING

import tfq.robustness.deployment_mistakes
import tfq.robustness.image_corruptions
import tfq.robustness.signal_corruptions  # noqa: F401  all three register their corruptions

if TYPE_CHECKING:
    from tfq.robustness.corruption import Corruption, corrupt
    from tfq.robustness.evaluate import evaluate_robustness
    from tfq.robustness.record import RobustnessRecord
else:
    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)

__all__ = ["Corruption", "RobustnessRecord", "corrupt", "evaluate_robustness"]

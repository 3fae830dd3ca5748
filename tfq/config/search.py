# SPDX-License-Identifier: Apache-2.0
"""What an int8 model may cost, and how far to go for it."""

from dataclasses import dataclass

from tfq.config.base import Config, check_fraction, section, setting


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Config):
    """What the chosen model must keep within."""

    max_accuracy_drop: float = setting(
        0.005,
        "largest loss of accuracy against the float model, a fraction: 0.005 is half a percentage point",
        minimum=0,
    )
    max_bytes: int = setting(0, "largest size of the .tflite; 0 is any", minimum=0)
    max_latency_ratio: float = setting(
        0, "longest time of an inference here, as a ratio to the plain int8 model's; 0 is any", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("search.budget.max_accuracy_drop", self.max_accuracy_drop)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """The cheapest way to an int8 model within a budget, without training."""

    budget: BudgetConfig = section(BudgetConfig, "what the chosen model must keep within")
    methods: tuple[str, ...] = setting(
        ("percentile", "mse", "min_max"), "calibration methods to try, in turn", choices_of="calibration_method"
    )
    max_mixed_layers: int = setting(
        4,
        "layers that may stay float, the most sensitive first (with the conversion's quantizer=litert, int16 before "
        "that); 0 is none",
        minimum=0,
    )
    sensitivity_examples: int = setting(128, "training examples to rank layers by", minimum=1)
    full: bool = setting(False, "try every candidate, not only until one keeps the budget")

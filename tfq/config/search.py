# SPDX-License-Identifier: Apache-2.0
"""Settings of the search for an int8 model: its budget and its search space."""

from dataclasses import dataclass

from tfq.config.base import Config, check_fraction, section, setting
from tfq.errors import install_hint

LEVELS = ("float", "int16", "int8", "int8_per_tensor", "int4")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Config):
    """The budget that the chosen model must stay within."""

    max_accuracy_drop: float = setting(
        0.005,
        "largest loss of accuracy against the float model, as a fraction: 0.005 is half a percentage point; for "
        "another search.metric in its unit; without labels, the largest fraction of examples with another class, or "
        "with a lower SQNR than min_sqnr_db",
        minimum=0,
    )
    min_sqnr_db: float = setting(
        20.0, "SQNR that an example's outputs need, in dB, if there are no labels and no output predicts a class"
    )
    max_bytes: int = setting(0, "largest size of the .tflite in bytes; 0 is unlimited", minimum=0)
    max_latency_ratio: float = setting(
        0, "largest latency on this machine, relative to the first int8 candidate; 0 is unlimited", minimum=0
    )
    max_arena_bytes: int = setting(
        0,
        "most bytes of activations that are alive at the same time, computed from the file: a lower bound of the "
        "tensor arena; 0 is unlimited",
        minimum=0,
    )
    max_instructions: int = setting(
        0, "most instructions of an inference, counted by instructions_backend; 0 is unlimited", minimum=0
    )
    instructions_backend: str = setting(
        "qemu:cortex-a53", "emulator that counts the instructions, for max_instructions", choices_of="backend"
    )


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """Settings of the search for the cheapest int8 model within a budget, without training."""

    budget: BudgetConfig = section(BudgetConfig, "budget that the chosen model must stay within")
    metric: str = setting(
        "",
        "metric by which candidates are compared with the float model; empty is top1 if there are class labels, else "
        "agreement with the float model",
        choices_of="metric",
    )
    methods: tuple[str, ...] = setting(
        ("percentile", "mse", "min_max"), "calibration methods to try, in this order", choices_of="calibration_method"
    )
    max_mixed_layers: int = setting(
        4,
        "number of layers that may stay float, the most sensitive first (with conversion.quantizer=litert, int16 "
        "is tried before float); 0 is none",
        minimum=0,
    )
    pareto_points: int = setting(
        0,
        "number of files between the smallest possible and the most accurate (at most budget.max_bytes) whose layers "
        f"get their levels by integer programming, within the budget's bounds on costs ({install_hint('mixed')}); 0 "
        "is none",
        minimum=0,
    )
    levels: tuple[str, ...] = setting(
        (),
        "number formats that pareto_points may give to a layer, in addition to int8 with a scale per output channel: "
        "float, int16 (activations), int8_per_tensor (one scale for the weights), int4 (weights); empty is all that "
        "conversion.quantizer and conversion.target support",
        choices=LEVELS,
    )
    refinements: int = setting(
        0,
        "how many times at most the levels of each size are improved: the effects of all levels are measured again "
        "around the best assignment so far, which takes as long as the first time",
        minimum=0,
    )
    sensitivity_examples: int = setting(128, "training examples used to measure the sensitivity of layers", minimum=1)
    full: bool = setting(
        False,
        "try all candidates, instead of stopping at the first one within the budget; with pareto_points, all "
        "methods and techniques are tried without it too",
    )

    def __post_init__(self) -> None:
        """Check that the bound on the default metric is a fraction."""
        super().__post_init__()
        if not self.metric:
            check_fraction("search.budget.max_accuracy_drop", self.budget.max_accuracy_drop)

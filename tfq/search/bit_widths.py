# SPDX-License-Identifier: Apache-2.0
"""Measure accuracy by the bit width of weights, of activations and of both, without training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, auditing
from tfq.analysis import with_few_bits
from tfq.config import FLOAT_BITS, BitWidthsConfig
from tfq.data import AnySplit, input_specs, representative_samples
from tfq.errors import warn
from tfq.evaluation.paired import PairedDifference
from tfq.ptq.calibration import observe
from tfq.search.criterion import BY_LABELS, Criterion, choose_criterion
from tfq.search.sample import Sample
from tfq.store import StageStore
from tfq.text_table import aligned

SIMULATED = "simulated"


@dataclass(frozen=True, kw_only=True)
class BitWidthResult:
    """A combination of bit widths and its accuracy. 32 bits mean float.

    Attributes:
        weight_bits: Bits of the weights.
        activation_bits: Bits of the activations.
        grid: The grid of the weights, such as "uniform".
        runs_as: The setting that converts to this combination, or SIMULATED if TFLite does not run it.
        accuracy: Top-1 on the test split.
        against_float: The paired difference to the float model on the same examples.
    """

    weight_bits: int
    activation_bits: int
    grid: str
    runs_as: str
    accuracy: float
    against_float: PairedDifference

    @property
    def name(self) -> str:
        """The combination as in "W4 A8, uniform"."""
        weights = "" if self.weight_bits == FLOAT_BITS else f"W{self.weight_bits}"
        activations = "" if self.activation_bits == FLOAT_BITS else f"A{self.activation_bits}"
        return " ".join(part for part in (weights, activations) if part) + (f", {self.grid}" if weights else "")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; 32 bits mean float."""
        return {**self.__dict__, "name": self.name, "against_float": self.against_float.to_dict()}


@dataclass(frozen=True, kw_only=True)
class BitWidthsResult:
    """The accuracy of all combinations.

    Attributes:
        ways: First those with fewer bits for weights only, then for activations only, then for both.
        float_accuracy: Top-1 of the float model.
        num_examples: The number of test examples.
        criterion: What the models were compared by. Every accuracy here is the fraction of examples that are right by
            it.
    """

    ways: tuple[BitWidthResult, ...]
    float_accuracy: float
    num_examples: int
    criterion: Criterion = BY_LABELS

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "criterion": self.criterion.to_dict(),
            "float_accuracy": self.float_accuracy,
            "num_examples": self.num_examples,
            "ways": [item.to_dict() for item in self.ways],
        }

    def to_text(self) -> str:
        """Return a table for the terminal, with a line for each combination."""
        head = ["weights", "activations", "grid", self.criterion.title, "against float", "on TFLite"]
        rows = [
            [
                _bits(item.weight_bits),
                _bits(item.activation_bits),
                "" if item.weight_bits == FLOAT_BITS else item.grid,
                f"{item.accuracy:.2%}",
                f"{100 * item.against_float.difference:+.2f}",
                item.runs_as,
            ]
            for item in self.ways
        ]
        lines = [*([self.criterion.note] if self.criterion.note else []), *aligned([head, *rows], left=3)]
        return "\n".join([*lines, "", f"{self.num_examples:,} test examples, float {self.float_accuracy:.2%}"])


def accuracy_by_bit_widths(
    floating: bytes,
    train: AnySplit,
    test: AnySplit,
    config: BitWidthsConfig | None = None,
    *,
    store: StageStore,
    progress: Callable[[str], object] = lambda line: None,
) -> BitWidthsResult:
    """Measure the test accuracy of a float flatbuffer with fewer bits, simulated in float.

    Args:
        floating: The bytes of the float flatbuffer.
        train: Its first config.num_calibration_samples examples give the ranges of the activations.
        test: Examples with class labels; without them, models are compared with the float model (see `Criterion`).
        config: The bit widths and grids; None means `BitWidthsConfig()`.
        store: Keeps the result of each combination, so that an interrupted run resumes.
        progress: Called with one line of text after each combination.

    Raises:
        InputError: The model is not float, class labels do not fit it, or a pattern in config.keep fits no layer.
    """
    config = config or BitWidthsConfig()
    floating = auditing.float_source(floating)
    criterion = choose_criterion(floating, [test], config.min_sqnr_db)
    if criterion.note:
        warn(f"analysis.bit_widths: {criterion.note}")
    float_sample = criterion.sample(floating, floating, test)
    samples = representative_samples(train, input_specs(floating), config.num_calibration_samples).samples
    observations = observe(floating, samples, total=len(samples))
    basis = {
        "model": artifacts.sha256(floating),
        "samples": list(observations.data_sha256),
        "test": test.sha256(),
        "keep": list(config.keep),
        "criterion": criterion.to_dict(),
    }
    ways, combinations = [], list(_combinations(config))
    for number, (weight_bits, activation_bits, grid) in enumerate(combinations, 1):

        def make(directory: Path, bits: tuple[int, int, str] = (weight_bits, activation_bits, grid)) -> dict[str, Any]:
            content = with_few_bits(
                floating,
                observations,
                weight_bits=bits[0],
                activation_bits=bits[1],
                grid=bits[2],
                keep=config.keep,
            )
            return {"sample": criterion.sample(content, floating, test).to_dict()}

        inputs = {**basis, "weight_bits": weight_bits, "activation_bits": activation_bits, "grid": grid}
        name = f"bit widths: {grid} {weight_bits} {activation_bits}"
        sample = Sample.from_dict(store.run(name, inputs, make).details["sample"])
        way = BitWidthResult(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            grid=grid,
            runs_as=_runs_as(weight_bits, activation_bits, grid),
            accuracy=sample.value,
            against_float=sample.minus(float_sample),
        )
        ways.append(way)
        progress(f"[{number}/{len(combinations)}] {way.name}: {way.accuracy:.2%} ({way.runs_as})")
    return BitWidthsResult(
        ways=tuple(ways),
        float_accuracy=float_sample.value,
        num_examples=float_sample.num_examples,
        criterion=criterion,
    )


def _combinations(config: BitWidthsConfig) -> Iterator[tuple[int, int, str]]:
    """Yield (weight bits, activation bits, grid of the weights)."""
    for grid in config.grids:
        for bits in config.weights:
            # With one bit, all grids except kmeans are the same.
            if bits > 1 or grid in ("kmeans", config.grids[0]):
                yield bits, FLOAT_BITS, grid
    for bits in config.activations:
        yield FLOAT_BITS, bits, config.grids[0]
    for bits in config.weights:
        if bits in config.activations:
            yield bits, bits, config.grids[0]
    for bits in config.weights:
        if bits < 8 <= max(config.activations, default=0):
            yield bits, 8, config.grids[0]


def _runs_as(weight_bits: int, activation_bits: int, grid: str) -> str:
    """Return the setting that converts to this combination, or SIMULATED."""
    if grid == "uniform" and activation_bits == FLOAT_BITS and weight_bits in (8, 4, 2):
        return f"conversion.scheme=weight_only_int{weight_bits}"
    if activation_bits == 8 and grid == "uniform":
        return {8: "conversion.scheme=int8", 4: "conversion.int4_layers"}.get(weight_bits, SIMULATED)
    return SIMULATED


def _bits(count: int) -> str:
    return "float" if count == FLOAT_BITS else str(count)

# SPDX-License-Identifier: Apache-2.0
"""How low a model can go: accuracy against bits, weights and activations each and together, without training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import artifacts, auditing, tflite
from tfq.analysis import with_few_bits
from tfq.config import FLOAT_BITS, BitWidthsConfig
from tfq.data import AnySplit, input_specs, representative_samples
from tfq.errors import InputError
from tfq.evaluation.paired import PairedDifference, paired_difference
from tfq.ptq.calibration import observe
from tfq.search.record import classes_of, labels_of, packed, scored_output, unpacked
from tfq.store import StageStore
from tfq.text_table import aligned

SIMULATED = "simulated"


@dataclass(frozen=True, kw_only=True)
class BitWidthResult:
    """A way to have fewer bits. runs_as: what TFLite has of it, or SIMULATED. accuracy: on the test split."""

    weight_bits: int
    activation_bits: int
    grid: str
    runs_as: str
    accuracy: float
    against_float: PairedDifference

    @property
    def name(self) -> str:
        """As in "W4 A8, uniform"."""
        weights = "" if self.weight_bits == FLOAT_BITS else f"W{self.weight_bits}"
        activations = "" if self.activation_bits == FLOAT_BITS else f"A{self.activation_bits}"
        return " ".join(part for part in (weights, activations) if part) + (f", {self.grid}" if weights else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: 32 bits are float."""
        return {**self.__dict__, "name": self.name, "against_float": self.against_float.to_dict()}


@dataclass(frozen=True, kw_only=True)
class BitWidthsResult:
    """ways: weights alone, activations alone, both. float_accuracy: of the float model; all on num_examples."""

    ways: tuple[BitWidthResult, ...]
    float_accuracy: float
    num_examples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "float_accuracy": self.float_accuracy,
            "num_examples": self.num_examples,
            "ways": [item.to_dict() for item in self.ways],
        }

    def to_text(self) -> str:
        """For the terminal: a line a way."""
        head = ["weights", "activations", "grid", "accuracy", "against float", "on TFLite"]
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
        lines = aligned([head, *rows], left=3)
        return "\n".join([*lines, "", f"{self.num_examples:,} test examples, float {self.float_accuracy:.2%}"])


def accuracy_by_bit_widths(
    floating: bytes,
    train: AnySplit,
    test: AnySplit,
    config: BitWidthsConfig | None = None,
    *,
    store: StageStore,
    told: Callable[[str], None] = lambda line: None,
) -> BitWidthsResult:
    """The test accuracy of the float flatbuffer `floating` with fewer and fewer bits, each way on its own.

    train: its first config.num_calibration_samples examples give the ranges of activations. store: keeps each way, so
    that a run that was killed goes on. told: is given a line after each. Raises InputError on a model that is not
    float, data without class labels, and a pattern in config.keep that fits no layer.
    """
    config = config or BitWidthsConfig()
    if auditing.audit_model(floating).scheme != "float32":
        raise InputError(
            "bits: expected a float32 .tflite, whose numbers can be given fewer bits", field="model", expected="float32"
        )
    output = scored_output(floating, test, "bits")
    labels = labels_of(test, "bits", tflite.read(floating), output)
    right = classes_of(floating, test, output) == labels
    samples = representative_samples(train, input_specs(floating), config.num_calibration_samples).samples
    observations = observe(floating, samples, total=len(samples))
    basis = {
        "model": artifacts.sha256(floating),
        "samples": list(observations.data_sha256),
        "test": test.sha256(),
        "keep": list(config.keep),
    }
    ways, every = [], list(_ways(config))
    for number, (weight_bits, activation_bits, grid) in enumerate(every, 1):

        def make(directory: Path, asked: tuple[int, int, str] = (weight_bits, activation_bits, grid)) -> dict[str, Any]:
            content = with_few_bits(
                floating,
                observations,
                weight_bits=asked[0],
                activation_bits=asked[1],
                grid=asked[2],
                keep=config.keep,
            )
            return {"right": packed(classes_of(content, test, output) == labels)}

        inputs = {**basis, "weight_bits": weight_bits, "activation_bits": activation_bits, "grid": grid}
        name = f"bits: {grid} {weight_bits} {activation_bits}"
        result = unpacked(store.run(name, inputs, make).details["right"], labels.size)
        way = BitWidthResult(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            grid=grid,
            runs_as=_runs_as(weight_bits, activation_bits, grid),
            accuracy=float(result.mean()),
            against_float=paired_difference(result, right),
        )
        ways.append(way)
        told(f"[{number}/{len(every)}] {way.name}: {way.accuracy:.2%} ({way.runs_as})")
    return BitWidthsResult(ways=tuple(ways), float_accuracy=float(right.mean()), num_examples=labels.size)


def _ways(config: BitWidthsConfig) -> Iterator[tuple[int, int, str]]:
    """(weight bits, activation bits, grid)."""
    for grid in config.grids:
        for bits in config.weights:
            # Of one bit all grids but kmeans are one.
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
    """What TFLite runs of it."""
    if grid == "uniform" and activation_bits == FLOAT_BITS and weight_bits == 8:
        return "conversion.scheme=weight_only_int8"
    if activation_bits == 8 and grid == "uniform":
        return {8: "conversion.scheme=int8", 4: "conversion.int4_layers"}.get(weight_bits, SIMULATED)
    return SIMULATED


def _bits(count: int) -> str:
    return "float" if count == FLOAT_BITS else str(count)

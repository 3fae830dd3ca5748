# SPDX-License-Identifier: Apache-2.0
"""What a search found."""

from dataclasses import dataclass, field
from typing import Any

from tfq.search.ladder import Rung
from tfq.search.paired import PairedDifference
from tfq.text_table import aligned


@dataclass(frozen=True, kw_only=True)
class Climbed:
    """A rung, tried. accuracy: on the validation split. against_float: that of the float model on the same examples.

    latency_ratio: time of an inference here, to that of the first rung; None where it was not measured. secs: that it
    took to convert. layers: those with the rung's scheme. missed: what of the budget it does not keep.
    """

    rung: Rung
    accuracy: float
    agreement: float
    against_float: PairedDifference
    model_bytes: int
    latency_ratio: float | None
    secs: float
    layers: tuple[str, ...]
    missed: tuple[str, ...]

    @property
    def name(self) -> str:
        """The rung's."""
        return self.rung.name

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "kind": self.rung.kind,
            "method": self.rung.method,
            "repair": list(self.rung.repair),
            "scheme": self.rung.scheme if self.layers else "",
            "layers": list(self.layers),
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "against_float": self.against_float.to_dict(),
            "bytes": self.model_bytes,
            "latency_ratio": self.latency_ratio,
            "secs": self.secs,
            "missed": list(self.missed),
        }


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The ladder as far as it was climbed, in order, and the rung that was chosen.

    validation, test: examples of each. float_accuracy: of the float model on validation. chosen: the first rung that
    keeps the budget, else the one with the best accuracy. holds: whether it keeps the budget.
    test_accuracy, test_float_accuracy, test_against_float, test_against_plain: of the chosen one on the test split,
    which nothing was chosen by; the last is against the first rung.
    """

    rungs: tuple[Climbed, ...]
    chosen: Climbed
    holds: bool
    validation: int
    float_accuracy: float
    test: int
    test_accuracy: float
    test_float_accuracy: float
    test_against_float: PairedDifference
    test_against_plain: PairedDifference
    advice: tuple[str, ...] = ()
    content: bytes = field(default=b"", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the flatbuffer."""
        return {
            "chosen": self.chosen.name,
            "holds": self.holds,
            "rungs": [rung.to_dict() for rung in self.rungs],
            "validation": {"examples": self.validation, "float_accuracy": self.float_accuracy},
            "test": {
                "examples": self.test,
                "accuracy": self.test_accuracy,
                "float_accuracy": self.test_float_accuracy,
                "against_float": self.test_against_float.to_dict(),
                "against_plain": self.test_against_plain.to_dict(),
            },
            "advice": list(self.advice),
        }

    def to_text(self) -> str:
        """For the terminal: the ladder, then what the chosen one does on the test split."""
        head = ["", "rung", "accuracy", "against float", "agreement", "bytes", "latency", "secs"]
        rows = [
            [
                "*" if rung is self.chosen else "",
                rung.name,
                f"{rung.accuracy:.2%}",
                f"{100 * rung.against_float.difference:+.2f}",
                f"{rung.agreement:.2%}",
                f"{rung.model_bytes:,}",
                "" if rung.latency_ratio is None else f"{rung.latency_ratio:.2f}x",
                f"{rung.secs:.1f}",
            ]
            for rung in self.rungs
        ]
        lines = [f"float: {self.float_accuracy:.2%} of {self.validation:,} validation examples"]
        lines += aligned([head, *rows], left=2)
        gain = self.test_against_plain
        told = "which is no more than chance" if gain.is_noise else "which is more than chance"
        if self.chosen is self.rungs[0]:
            told = "the plain one is the chosen one"
        lines += [
            "",
            f"chosen: {self.chosen.name}; on {self.test:,} test examples {self.test_accuracy:.2%}, float "
            f"{self.test_float_accuracy:.2%}: {points(self.test_against_float)}",
            f"against the plain int8 model: {points(gain)}, {told}",
            *self.advice,
        ]
        return "\n".join(lines)


def points(found: PairedDifference) -> str:
    """In percentage points, with its interval."""
    return f"{100 * found.difference:+.2f} points ({100 * found.low:+.2f} to {100 * found.high:+.2f})"

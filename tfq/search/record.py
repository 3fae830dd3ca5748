# SPDX-License-Identifier: Apache-2.0
"""The candidates and the result of a search, and the predictions by which they are compared."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import tflite
from tfq.backends import HOST, RunRequest, make_backend
from tfq.config import ConversionConfig
from tfq.data import AnySplit
from tfq.errors import InputError
from tfq.evaluation import decode_outputs, is_class_vector, predicted_classes, prepare_inputs, reference_outputs
from tfq.evaluation.metrics import checked_labels
from tfq.evaluation.paired import PairedDifference
from tfq.evaluation.scores import reconstructs
from tfq.requirement import Requirement
from tfq.text_table import aligned

# Examples that are run to see which output predicts a class.
NUM_LOOKED_AT = 20


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The settings of a conversion that a search tries.

    Attributes:
        name: Its name in the result, such as "min_max, bias_correction".
        kind: What it adds to the candidates before: "calibration", "techniques" or "mixed".
        method: The calibration method.
        techniques: Post-training techniques.
        layers: How many layers have another scheme, the most sensitive first.
        scheme: The scheme of these layers: "float", or "int16" activations.
    """

    name: str
    kind: str
    method: str
    techniques: tuple[str, ...] = ()
    layers: int = 0
    scheme: str = "float"

    def conversion(self, base: ConversionConfig, layers: tuple[str, ...]) -> ConversionConfig:
        """Return `base` with the settings of this candidate; `layers` are those with another scheme."""
        calibration = dataclasses.replace(base.calibration, method=self.method)
        candidate = dataclasses.replace(base, calibration=calibration, techniques=self.techniques)
        if self.scheme == "int16":
            return dataclasses.replace(candidate, int16_layers=(*base.int16_layers, *layers))
        return dataclasses.replace(candidate, float_layers=(*base.float_layers, *layers))


def scored_output(floating: bytes, split: AnySplit, what: str) -> int:
    """Return the index of the output whose classes are compared with the labels.

    Args:
        floating: The float model.
        split: Examples; a few of the first are run if the model has several outputs.
        what: The step that needs it, for messages.

    Raises:
        InputError: The model reconstructs its input, or does not have exactly one output that predicts a class.
    """
    parsed = tflite.read(floating)
    if reconstructs(parsed):
        raise InputError(
            f"{what}: the model reconstructs its input, and candidates are compared by top-1 accuracy: expected a "
            "classifier",
            field="model",
            expected="an output that predicts a class",
            got="a reconstruction",
        )
    if len(parsed.output_names) == 1:
        return 0
    outputs = reference_outputs(floating, split.take(NUM_LOOKED_AT)).outputs
    pairs = zip(parsed.main_subgraph.outputs, outputs, strict=True)
    matches = [i for i, (index, values) in enumerate(pairs) if is_class_vector(parsed.main_subgraph, index, values)]
    if len(matches) != 1:
        raise InputError(
            f"{what}: {len(matches)} of the {len(outputs)} outputs predict a class ({', '.join(parsed.output_names)}): "
            "expected one, which is compared with the labels",
            field="model",
            expected=1,
            got=len(matches),
        )
    return matches[0]


def labels_of(split: AnySplit, what: str, model: tflite.Model, output: int) -> NDArray[np.int64]:
    """Return the (n,) classes of the examples, from class numbers or one-hot rows.

    Args:
        split: The examples.
        what: The step that needs them, for messages.
        model: The float model.
        output: The index of its output whose classes they are.

    Raises:
        InputError: There are no labels, or they are not classes of the model, such as values of a regression.
    """
    pieces = [piece.labels for piece in split.pieces()]
    if any(labels is None for labels in pieces):
        raise InputError(
            f"{what}: the {split.name} split has no labels: expected class numbers or one-hot rows",
            field="data",
            expected="labels",
            got=split.name,
        )
    labels = np.concatenate([labels for labels in pieces if labels is not None])
    tensor = model.main_subgraph.output_tensors[output]
    dtype = tensor.dtype if tensor.dtype.startswith("int") and not tensor.is_quantized else "float32"
    return checked_labels(labels, np.broadcast_to(np.zeros((), dtype), (len(labels), *tensor.shape[1:])))


def packed(correct: NDArray[np.bool_]) -> list[int]:
    """Return an array of booleans for JSON: eight in a byte, the first in the highest bit."""
    results: list[int] = np.packbits(correct).tolist()
    return results


def unpacked(values: list[int], count: int) -> NDArray[np.bool_]:
    """Return the first `count` booleans of what `packed` returned."""
    return np.unpackbits(np.array(values, np.uint8))[:count].astype(bool)


def classes_of(content: bytes, split: AnySplit, output: int) -> NDArray[np.int64]:
    """Return the class that the output of this index predicts for each example, as top-1 reads it."""
    parsed = tflite.read(content)
    results = []
    for piece in split.pieces():
        inputs = prepare_inputs(parsed, piece).arrays
        outputs = make_backend(HOST).assess(RunRequest(model=content, inputs=inputs)).computed_outputs()
        results.append(predicted_classes(decode_outputs(parsed, outputs)[output]))
    return np.concatenate(results)


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """The measurements of a candidate.

    Attributes:
        candidate: The settings.
        accuracy: Top-1 on the validation split.
        agreement: The fraction of validation examples with the class that the float model predicts.
        against_float: The paired difference in accuracy to the float model on the same examples.
        model_bytes: The size of the flatbuffer.
        latency_ratio: The time of an inference on this machine divided by that of the first candidate; None if it was
            not measured.
        secs: The time of the conversion in seconds.
        layers: The layers that have the scheme of the candidate.
        missed: A sentence for each bound of the budget that is not met.
        requirements: All bounds of the budget with the candidate's values.
        collapsed: The problems that verification found. A candidate with any is never within the budget.
    """

    candidate: Candidate
    accuracy: float
    agreement: float
    against_float: PairedDifference
    model_bytes: int
    latency_ratio: float | None
    secs: float
    layers: tuple[str, ...]
    missed: tuple[str, ...]
    requirements: tuple[Requirement, ...] = ()
    collapsed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the candidate."""
        return self.candidate.name

    @property
    def short_missed(self) -> tuple[str, ...]:
        """`missed` with the single word "collapsed" instead of the messages of verification."""
        bounds = self.missed[: len(self.missed) - len(self.collapsed)]
        return (*bounds, *(("collapsed",) if self.collapsed else ()))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "kind": self.candidate.kind,
            "method": self.candidate.method,
            "techniques": list(self.candidate.techniques),
            "scheme": self.candidate.scheme if self.layers else "",
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
    """The candidates of a search in the order in which they were tried, and the chosen one.

    Attributes:
        candidates: All candidates that were tried.
        chosen: The first candidate within the budget, or if there is none, the one with the best accuracy.
        holds: Whether the chosen candidate is within the budget.
        validation: Number of validation examples.
        float_accuracy: Accuracy of the float model on the validation split.
        test: Number of test examples.
        test_accuracy: Accuracy of the chosen candidate on the test split, which played no part in choosing it.
        test_float_accuracy: Accuracy of the float model on the test split.
        test_against_float: Difference in accuracy between the chosen candidate and the float model on the test split.
        test_against_plain: Difference in accuracy between the chosen and the first candidate on the test split.
        advice: What to try next.
        content: The flatbuffer of the chosen candidate.
    """

    candidates: tuple[CandidateResult, ...]
    chosen: CandidateResult
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
        """Return JSON values, without the flatbuffer."""
        return {
            "chosen": self.chosen.name,
            "holds": self.holds,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "validation": {"examples": self.validation, "float_accuracy": self.float_accuracy},
            "test": {
                "examples": self.test,
                "accuracy": self.test_accuracy,
                "float_accuracy": self.test_float_accuracy,
                "against_float": self.test_against_float.to_dict(),
                "against_plain": self.test_against_plain.to_dict(),
            },
            "requirements": [item.to_dict() for item in self.chosen.requirements],
            "advice": list(self.advice),
        }

    def to_text(self) -> str:
        """Return text for the terminal: all candidates, then the results of the chosen one on the test split."""
        head = ["", "candidate", "accuracy", "against float", "agreement", "bytes", "latency", "secs", ""]
        rows = [
            [
                "*" if candidate is self.chosen else "",
                candidate.name,
                f"{candidate.accuracy:.2%}",
                f"{100 * candidate.against_float.difference:+.2f}",
                f"{candidate.agreement:.2%}",
                f"{candidate.model_bytes:,}",
                "" if candidate.latency_ratio is None else f"{candidate.latency_ratio:.2f}x",
                f"{candidate.secs:.1f}",
                "collapsed" if candidate.collapsed else "",
            ]
            for candidate in self.candidates
        ]
        lines = [f"float: {self.float_accuracy:.2%} of {self.validation:,} validation examples"]
        lines += aligned([head, *rows], left=2)
        gain = self.test_against_plain
        message = "within what chance explains" if gain.is_noise else "more than chance explains"
        if self.chosen is self.candidates[0]:
            message = "because it is the chosen model"
        lines += [
            "",
            f"chosen: {self.chosen.name}; on {self.test:,} test examples {self.test_accuracy:.2%}, float "
            f"{self.test_float_accuracy:.2%}: {points(self.test_against_float)}",
            f"against the plain int8 model: {points(gain)}, {message}",
            *self.advice,
        ]
        return "\n".join(lines)


def points(difference: PairedDifference) -> str:
    """Return a difference in percentage points with its interval, as text."""
    return f"{100 * difference.difference:+.2f} points ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"

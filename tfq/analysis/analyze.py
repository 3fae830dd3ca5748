# SPDX-License-Identifier: Apache-2.0
"""Run the whole analysis of a flatbuffer, and check it against requirements."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from tfq import auditing, tflite
from tfq.analysis.findings import Finding, find
from tfq.analysis.histograms import OpHistogram, op_histograms
from tfq.analysis.joins import Join, joins
from tfq.analysis.op_errors import OpError, measure
from tfq.analysis.sensitivity import OpSensitivity, op_sensitivity
from tfq.artifacts import content_of
from tfq.config import AnalysisConfig, AnalysisRequireConfig
from tfq.data import data_of_main_subgraph, input_specs, representative_samples
from tfq.errors import RequirementError, warn
from tfq.notebook import NotebookRecord, NotebookTable
from tfq.progress import stage
from tfq.ptq.calibration import calibrate
from tfq.requirement import Requirement, at_least
from tfq.text_table import aligned
from tfq.typing import Data, PathOrBytes

# The text lists this many findings of a kind; the record has all.
_MAX_PER_KIND = 3
# Title of a column -> its legend. The titles are those of the HTML page, if it has the column.
_COLUMNS = {
    "SQNR dB": "SQNR of the output, including the errors of all ops before it (low values are bad)",
    "rounding alone": "SQNR with only the rounding to the scale of this output, dB",
    "values in range": "SQNR of the values inside the quantized range: rounding, and inherited errors, dB",
    "clipped values": "SQNR of the values that the range clips, dB",
    "worst weights": "SQNR of the weights of the worst channel, dB",
    "mean shift": "largest mean error of a channel, relative to the standard deviation of the tensor",
    "max LSB": "largest error, in quantization steps",
    "clipped": "fraction of the values that are clipped",
    "range used": "fraction of the quantized range that the values span",
    "dead": "number of channels whose values never reach half a quantization step",
}
_ALONE = {"alone dB": "SQNR of the model's outputs with only this op quantized"}


@dataclass(frozen=True, kw_only=True)
class Analysis(NotebookRecord):
    """Why an int8 flatbuffer differs from its float flatbuffer.

    Attributes:
        ops: The error of each quantized input and of each op's output, in the order of the ops.
        joins: The ops that join several tensors into one scale.
        sensitivity: The sensitivity of each op, the most sensitive first; empty if it was not measured.
        findings: What costs accuracy, and what to do.
        num_samples: The number of samples that were compared.
        histograms: One for each op; empty if they were not requested.
    """

    ops: tuple[OpError, ...]
    joins: tuple[Join, ...]
    sensitivity: tuple[OpSensitivity, ...]
    findings: tuple[Finding, ...]
    num_samples: int
    histograms: tuple[OpHistogram, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "num_samples": self.num_samples,
            "ops": [item.to_dict() for item in self.ops],
            "joins": [item.to_dict() for item in self.joins],
            "sensitivity": [item.to_dict() for item in self.sensitivity],
            "histograms": [item.to_dict() for item in self.histograms],
            "findings": [asdict(item) for item in self.findings],
        }

    def to_text(self) -> str:
        """Return lines for the terminal: one for each input and op, the legend of the columns, then the findings."""
        columns, rows = self._rows()
        result = [*_first_of_each_kind(self.findings)] or ["no problems found"]
        # The titles take two lines, so that the table is not wider than the screen.
        titles = [title.partition(" ") for title in ("op", *columns)]
        heading = [[first for first, _, _ in titles], [rest for _, _, rest in titles]]
        table = aligned([*heading, *rows], left=1)
        legend = aligned(list(columns.items()), left=2)
        return "\n".join([*table, "", *legend, "", f"{self.num_samples} samples", *result])

    def notebook_tables(self) -> list[NotebookTable]:
        """Return the table of `to_text`, and the findings."""
        columns, rows = self._rows()
        findings = [(item.kind, item.message) for item in self.findings] or [("", "no problems found")]
        caption = f"{self.num_samples} samples"
        return [
            NotebookTable(columns=("op", *columns), rows=rows, caption=caption),
            NotebookTable(columns=("finding", ""), rows=findings, left=2),
        ]

    def _rows(self) -> tuple[dict[str, str], list[list[str]]]:
        """Return title -> legend of each column after the first, and a row for each input and op."""
        columns = _COLUMNS | (_ALONE if self.sensitivity else {})
        counts = Counter(item.tensor for item in self.sensitivity)
        # Tensors with the same name cannot be matched between the two files.
        alone = {item.tensor: item.sqnr_db for item in self.sensitivity if counts[item.tensor] == 1}
        rows = [
            [
                item.label,
                "dead" if item.dead else _decibels(item.sqnr_db),
                _decibels(item.expected_sqnr_db),
                _decibels(item.rounding_sqnr_db),
                "" if math.isinf(item.clipping_sqnr_db) else _decibels(item.clipping_sqnr_db),
                "" if item.weights is None else _decibels(item.weights.worst_channel_sqnr_db),
                "" if item.mean_shift is None else f"{item.mean_shift:.1%}",
                f"{item.max_abs_error_lsb:.1f}",
                f"{item.saturated:.2%}",
                f"{item.range_use:.0%}",
                str(len(item.dead_channels)),
                *([_decibels(alone[item.tensor]) if item.tensor in alone else ""] if self.sensitivity else []),
            ]
            for item in self.ops
        ]
        return columns, rows


def analyze(
    quantized: PathOrBytes, floating: PathOrBytes, data: Data, config: AnalysisConfig | None = None
) -> Analysis:
    """Compare an int8 flatbuffer with the float flatbuffer that it was converted from, op by op.

    Examples:
        >>> analysis = tfq.analyze("model_int8.tflite", "model_float32.tflite", "npz:examples.npz")
        >>> print(analysis.to_text())

    Args:
        quantized: The int8 (or int16x8) flatbuffer: its bytes or its path.
        floating: The float flatbuffer that it was converted from: its bytes or its path.
        data: Samples of the model's inputs, as real values, in any form that `convert` accepts as a representative
            dataset. The first `config.limit` samples are used.
        config: Settings of the analysis; None means `AnalysisConfig()`. `sensitivity` also measures what each op,
            quantized alone, does to the outputs. That takes one run of the float flatbuffer per op. `histograms` stores
            the distribution of values. `require` is ignored here; apply it with
            `tfq.analysis.analyze.check_requirements`.

    Returns:
        The errors of all ops, what they add up to, and their causes.

    Raises:
        InputError: The flatbuffers do not belong together, the first one is not quantized, or the data does not fit.
    """
    config = config or AnalysisConfig()
    quantized = content_of(quantized, "quantized", "an int8 .tflite file")
    floating = auditing.float_source(content_of(floating, "floating", "a float .tflite file"), "analysis.reference")
    parsed = tflite.read(floating)
    if note := tflite.main_subgraph_note(parsed, "analyzed"):
        warn(note)
    data = data_of_main_subgraph(parsed, data)
    checked = representative_samples(data, input_specs(floating), config.limit)
    samples = checked.samples
    with stage(f"comparing op by op on {checked.num_samples} examples"):
        measured = measure(quantized, floating, samples)
    joined = joins(measured.diagnosis)
    sensitivity: tuple[OpSensitivity, ...] = ()
    if config.sensitivity:
        with stage("measuring the sensitivity of each op"):
            sensitivity = op_sensitivity(floating, calibrate(floating, samples), samples)
    return Analysis(
        ops=measured.errors,
        joins=joined,
        sensitivity=sensitivity,
        findings=tuple(find(measured.errors, joined, measured.diagnosis)),
        num_samples=checked.num_samples,
        histograms=op_histograms(quantized, floating, samples) if config.histograms else (),
    )


def requirements_of(analysis: Analysis, require: AnalysisRequireConfig) -> tuple[Requirement, ...]:
    """Return every bound that `require` sets, with the value in the analysis and the verdict.

    The value of `min_layer_sqnr_db` is that of the worst op. Ops that are 0 on all samples or never selected, and the
    model's inputs, are not counted. If no op has an error, the value is None and the bound is met.
    """
    bound = require.min_layer_sqnr_db
    if bound is None:
        return ()
    name = "min_layer_sqnr_db"
    worst = _worst(analysis)
    if worst is None:
        return (Requirement(name=name, bound=bound, value=None, holds=True, reason="no op has an error"),)
    if math.isinf(worst.sqnr_db):
        reason = f"{worst.label} has an error and no signal"
        return (Requirement(name=name, bound=bound, value=None, holds=False, reason=reason),)
    return (at_least(name, bound, worst.sqnr_db),)


def check_requirements(analysis: Analysis, require: AnalysisRequireConfig) -> None:
    """Raise RequirementError with the name of the worst op if a bound of `require` is missed."""
    missed = [item for item in requirements_of(analysis, require) if not item.holds]
    worst = _worst(analysis)
    if missed and worst is not None:
        raise RequirementError(
            f"the SQNR of {worst.label} is {worst.sqnr_db:.1f} dB, but analysis.require.min_layer_sqnr_db is "
            f"{require.min_layer_sqnr_db:g}. The findings of the analysis say what to do",
            field="analysis.require.min_layer_sqnr_db",
            expected=require.min_layer_sqnr_db,
            got=worst.sqnr_db,
        )


def _worst(analysis: Analysis) -> OpError | None:
    """Return the op with the lowest SQNR; None if no op has an error."""
    counted = [item for item in analysis.ops if item.op_index is not None and item.sqnr_db < math.inf]
    counted = [item for item in counted if not item.dead and not item.never_selected]
    return min(counted, key=lambda item: item.sqnr_db, default=None)


def _first_of_each_kind(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a line per finding; if there are many of a kind, only the first ones and a line with the others' names."""
    for kind, result in groupby(findings, key=lambda item: item.kind):
        listed = list(result)
        yield from (f"- {item.message}" for item in listed[:_MAX_PER_KIND])
        if len(listed) > _MAX_PER_KIND:
            labels = ", ".join(item.label for item in listed[_MAX_PER_KIND:])
            yield f"  and {len(listed) - _MAX_PER_KIND} more of this kind ({kind}): {labels}"


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"

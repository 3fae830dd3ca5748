# SPDX-License-Identifier: Apache-2.0
"""The figures of a model that a record has: one registration for each, with what a comparison needs to know about it.

The gate compares them, and the table in docs/ci.md lists them. To add one, add a `Figure` to `FIGURES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tfq.errors import InputError, did_you_mean
from tfq.evaluation import figure_readers as readers
from tfq.evaluation.figure_readers import Direction, Read, Reading
from tfq.evaluation.paired import bootstrap_difference
from tfq.evaluation.per_example import (
    Difference,
    difference_of_intervals,
    difference_of_noise,
    difference_of_pair,
    difference_of_scores,
)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much worse a figure may be than in the baseline.

    Attributes:
        value: The largest change for the worse; a fraction of the old value if it is relative.
        is_relative: Whether it is relative to the old value.
    """

    value: float
    is_relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Tolerance":
        """Return the tolerance in "0.01" (in the figure's unit) or "1%" (relative).

        Raises:
            ValueError: It is neither, or negative.
        """
        is_relative = text.endswith("%")
        value = float(text.removesuffix("%")) / (100 if is_relative else 1)
        if not 0 <= value < float("inf"):
            raise ValueError(text)
        return cls(value=value, is_relative=is_relative)

    def largest_change(self, base: float) -> float:
        """Return the largest change for the worse of a figure with this old value; 0 for a fraction of infinity."""
        if not self.is_relative:
            return self.value
        return 0.0 if math.isinf(base) else self.value * abs(base)

    def __str__(self) -> str:
        """Return the spelling that `parse` reads."""
        return f"{100 * self.value:g}%" if self.is_relative else f"{self.value:g}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a model that records have.

    Attributes:
        name: Its name: in `comparison.tolerance`, in messages and records.
        help: What it is.
        source: Where it is in a record, for the documentation.
        direction: Which values are better. A metric may say otherwise.
        unit: "fraction", "bytes", "count", "dB", "LSB", "ratio" or "ms". A metric may say otherwise.
        tolerance: The default tolerance.
        noise: What makes it differ between two runs of the same file, for the documentation.
        read: Measured -> (place, Reading) for each place where the record has the figure: "" or "on gpu".
        depends_on: "values" if it depends on the values that the model computes, "structure" if only on its ops, shapes
            and types: which changes may explain it.
        difference: (new pairs, old pairs) -> the paired difference, for figures whose readings have `pairs`.
        bound: The field of `evaluation.require` and `benchmark.require` that bounds every reading; "" if none does.
        other_bounds: Fields that bound it by separate rules, for the documentation.
    """

    name: str
    help: str
    source: str
    direction: Direction
    unit: str
    tolerance: Tolerance
    noise: str
    read: Read
    depends_on: Literal["values", "structure"] = "structure"
    difference: Callable[[Any, Any], Difference | None] | None = None
    bound: str = ""
    other_bounds: tuple[str, ...] = ()

    def compare(self, new: Reading, old: Reading, *, same_examples: bool) -> Difference:
        """Return the new value minus the old one, with an interval if the records have what it needs.

        Args:
            new: The new reading, with a value.
            old: The old reading, with a value.
            same_examples: Whether both records evaluated the same examples in the same order.
        """
        assert new.value is not None and old.value is not None
        if new.value == old.value and math.inf in (new.value, old.value):
            return Difference(value=0.0)
        if same_examples and self.difference is not None and new.pairs is not None and old.pairs is not None:
            paired = self.difference(new.pairs, old.pairs)
            if paired is not None:
                return paired
        if new.interval is not None and old.interval is not None:
            return difference_of_intervals(new.value, old.value, new.interval, old.interval)
        return Difference(value=new.value - old.value)


def _same_length(function: Callable[[Any, Any], Difference]) -> Callable[[Any, Any], Difference | None]:
    def compare(new: Any, old: Any) -> Difference | None:
        return function(new, old) if len(new) == len(old) else None

    return compare


def difference_of_metric(new: readers.MetricPairs, old: readers.MetricPairs) -> Difference | None:
    """Return the paired difference of a metric; None if a record does not keep what it needs."""
    if new.num_examples != old.num_examples:
        return None
    if new.scores is not None and old.scores is not None:
        return difference_of_scores(new.scores, old.scores)
    if new.replicates is None or old.replicates is None or new.value is None or old.value is None:
        return None
    pair, _ = bootstrap_difference(new.value, old.value, new.replicates, old.replicates, new.num_examples)
    return None if pair is None else difference_of_pair(pair)


EXACT = "none: the same file gives the same figure"
ROUNDING = "rounding of the CPU's kernels; the interval is that of the same examples, paired"
FIGURES = (
    Figure(
        name="accuracy",
        help="the metric against the labels, on each backend",
        source="evaluation.accuracy",
        direction="higher",
        unit="fraction",
        tolerance=Tolerance(value=0.005),
        noise=ROUNDING,
        read=readers.accuracy,
        depends_on="values",
        difference=difference_of_metric,
        other_bounds=("min_accuracy", "max_accuracy_drop"),
    ),
    Figure(
        name="score",
        help="each other metric: chosen, or reported with the main one, such as top5",
        source="evaluation.scores",
        direction="higher",
        unit="fraction",
        tolerance=Tolerance(value=0.01),
        noise="as accuracy",
        read=readers.other_scores,
        depends_on="values",
        difference=difference_of_metric,
        other_bounds=("metrics",),
    ),
    Figure(
        name="output_accuracy",
        help="the metric of each output with separate labels",
        source="evaluation.outputs.accuracy",
        direction="higher",
        unit="fraction",
        tolerance=Tolerance(value=0.005),
        noise="as accuracy; without an interval",
        read=readers.output_accuracies,
        depends_on="values",
    ),
    Figure(
        name="agreement",
        help="the fraction of examples with the reference's class, on each backend",
        source="evaluation.agreement",
        direction="higher",
        unit="fraction",
        tolerance=Tolerance(value=0.005),
        noise=ROUNDING,
        read=readers.agreement_with_reference,
        depends_on="values",
        difference=_same_length(difference_of_scores),
        other_bounds=("min_agreement",),
    ),
    Figure(
        name="output_sqnr_db",
        help="the SQNR of the worst output against the reference, on each backend",
        source="evaluation.output_sqnr_db",
        direction="higher",
        unit="dB",
        tolerance=Tolerance(value=0.5),
        noise=ROUNDING,
        read=readers.sqnr,
        depends_on="values",
        difference=difference_of_noise,
        other_bounds=("min_sqnr_db",),
    ),
    Figure(
        name="robustness_accuracy",
        help="the mean of the metric over corruptions and severities",
        source="evaluation.robustness.mean",
        direction="higher",
        unit="fraction",
        tolerance=Tolerance(value=0.01),
        noise="as accuracy; the examples of the two records are not paired",
        read=readers.robustness("mean"),
        depends_on="values",
    ),
    Figure(
        name="robustness_drop",
        help="how much worse that is than on clean inputs",
        source="evaluation.robustness.drop",
        direction="lower",
        unit="fraction",
        tolerance=Tolerance(value=0.01),
        noise="as accuracy; the examples of the two records are not paired",
        read=readers.robustness("drop"),
        depends_on="values",
        bound="max_robustness_drop",
    ),
    Figure(
        name="robustness_extra_drop",
        help="this drop minus the reference's on the same corrupted inputs",
        source="evaluation.robustness.extra_drop",
        direction="lower",
        unit="fraction",
        tolerance=Tolerance(value=0.01),
        noise="as accuracy",
        read=readers.robustness("extra_drop"),
        depends_on="values",
        bound="max_robustness_extra_drop",
    ),
    Figure(
        name="clipped_input_fraction",
        help="the fraction of the input values outside of the quantized range",
        source="evaluation.clipped_input_fraction",
        direction="lower",
        unit="fraction",
        tolerance=Tolerance(value=0.01),
        noise=EXACT,
        read=readers.clipped_inputs,
        depends_on="values",
        bound="max_clipped_input_fraction",
    ),
    Figure(
        name="model_bytes",
        help="the size of the file",
        source="evaluation.model_bytes",
        direction="lower",
        unit="bytes",
        tolerance=Tolerance(value=0.01, is_relative=True),
        noise=EXACT,
        read=readers.size("model_bytes"),
        bound="max_model_bytes",
    ),
    Figure(
        name="gzip_bytes",
        help="its size after gzip",
        source="evaluation.gzip_bytes",
        direction="lower",
        unit="bytes",
        tolerance=Tolerance(value=0.02, is_relative=True),
        noise="another version of zlib may differ by a few bytes",
        read=readers.size("gzip_bytes"),
        bound="max_gzip_bytes",
    ),
    Figure(
        name="total_ops",
        help="the number of ops in the file",
        source="digest.layers",
        direction="lower",
        unit="count",
        tolerance=Tolerance(value=0),
        noise=EXACT,
        read=readers.total_ops,
        bound="max_total_ops",
    ),
    Figure(
        name="float_ops",
        help="the number of ops that compute in floating point",
        source="digest.layers",
        direction="lower",
        unit="count",
        tolerance=Tolerance(value=0),
        noise=EXACT,
        read=readers.float_ops,
        bound="max_float_ops",
    ),
    Figure(
        name="accelerated_fraction",
        help="the fraction of the ops that the backend's accelerator runs, on each backend",
        source="evaluation.delegated_ops, evaluation.total_ops",
        direction="higher",
        unit="fraction",
        tolerance=Tolerance(value=0),
        noise="none; another version of the runtime may accelerate other ops",
        read=readers.accelerated_fraction,
        other_bounds=("min_accelerated_fraction",),
    ),
    Figure(
        name="memory_bytes",
        help="the memory for each purpose (arena, sram, flash), on each backend that reports it",
        source="evaluation.memory_bytes",
        direction="lower",
        unit="bytes",
        tolerance=Tolerance(value=0.01, is_relative=True),
        noise="none; another version of the runtime may differ; measured memory is compared on the same CPU only",
        read=readers.memory,
        other_bounds=("max_arena_bytes", "max_sram_bytes", "max_flash_bytes"),
    ),
    Figure(
        name="process_memory_bytes",
        help="the peak memory of a process that runs one inference, minus what it had before the model",
        source="evaluation.memory_bytes.peak_rss",
        direction="lower",
        unit="bytes",
        tolerance=Tolerance(value=0.1, is_relative=True),
        noise="1.5% in five runs on one machine; compared on the same CPU only",
        read=readers.process_memory,
        bound="max_process_memory_bytes",
    ),
    Figure(
        name="cost",
        help="other costs that a backend reports, such as estimated cycles",
        source="evaluation.figures",
        direction="lower",
        unit="count",
        tolerance=Tolerance(value=0.01, is_relative=True),
        noise="none; another version of the estimator may differ",
        read=readers.costs,
    ),
    Figure(
        name="instructions",
        help="the ARM instructions of one inference, on each backend that counts them",
        source="portability.rows.instructions",
        direction="lower",
        unit="count",
        tolerance=Tolerance(value=0.001, is_relative=True),
        noise="none on one system; 3 of 1,509,145 between Debian 12 and 13",
        read=readers.instructions,
        bound="max_instructions",
    ),
    Figure(
        name="difference_lsb",
        help="the largest difference of an output from XNNPACK's on this machine, on each backend (GPU, TFLM ...)",
        source="portability.rows.difference.max_abs_error_lsb",
        direction="lower",
        unit="LSB",
        tolerance=Tolerance(value=1),
        noise="a single value decides it",
        read=readers.difference_from_xnnpack("lsb"),
        depends_on="values",
        bound="max_difference_lsb",
    ),
    Figure(
        name="different_fraction",
        help="the fraction of the output values that differ from XNNPACK's on this machine, on each backend",
        source="portability.rows.difference",
        direction="lower",
        unit="fraction",
        tolerance=Tolerance(value=0.01),
        noise="rounding of the kernels",
        read=readers.difference_from_xnnpack("fraction"),
        depends_on="values",
        bound="max_different_fraction",
    ),
    Figure(
        name="same_class",
        help="the fraction of examples with the class that XNNPACK computes on this machine, on each backend",
        source="portability.rows.agreement",
        direction="higher",
        unit="fraction",
        tolerance=Tolerance(value=0.005),
        noise="rounding of the kernels",
        read=readers.same_class,
        depends_on="values",
        bound="min_same_class",
    ),
    Figure(
        name="latency_ratio",
        help="the time relative to another model that the same benchmark timed in turns",
        source="benchmark.ratios",
        direction="lower",
        unit="ratio",
        tolerance=Tolerance(value=0.05, is_relative=True),
        noise="that of the machine; the interval is that of blocks in turns",
        read=readers.latency_ratio,
    ),
    Figure(
        name="latency_ms",
        help="the median time of an inference; listed, but never gated",
        source="evaluation.latency_p50_ms, benchmark.models.p50_ms",
        direction="lower",
        unit="ms",
        tolerance=Tolerance(value=0),
        noise="that of the machine: two sessions cannot be compared",
        read=readers.latency,
        bound="max_latency_ms",
    ),
    Figure(
        name="initialization_ms",
        help="the time to create an interpreter; listed, but never gated",
        source="benchmark.models.initialization_ms",
        direction="lower",
        unit="ms",
        tolerance=Tolerance(value=0),
        noise="that of the machine: two sessions cannot be compared",
        read=readers.time("initialization_ms"),
        bound="max_initialization_ms",
    ),
    Figure(
        name="examples_per_second",
        help="the throughput at the batch size of the file; listed, but never gated",
        source="benchmark.models.examples_per_second",
        direction="higher",
        unit="count",
        tolerance=Tolerance(value=0),
        noise="that of the machine: two sessions cannot be compared",
        read=readers.time("examples_per_second"),
        bound="min_examples_per_second",
    ),
)


def figure_named(name: str) -> Figure:
    """Return the registered figure of this name.

    Raises:
        InputError: There is none.
    """
    for figure in FIGURES:
        if figure.name == name:
            return figure
    names = [figure.name for figure in FIGURES]
    raise InputError(
        f"comparison.tolerance names the figure {name!r}: {did_you_mean(name, names)}",
        field="comparison.tolerance",
        expected=tuple(names),
        got=name,
    )

# SPDX-License-Identifier: Apache-2.0
"""The whole analysis in one call, and its record."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from tfq import auditing, tflite
from tfq.analysis.findings import Finding, find
from tfq.analysis.histograms import LayerHistogram, layer_histograms
from tfq.analysis.layers import Join, LayerError, joins, layer_errors
from tfq.analysis.sensitivity import LayerSensitivity, layer_sensitivity
from tfq.artifacts import content_of
from tfq.config import AnalysisConfig
from tfq.data import input_specs, representative_samples
from tfq.errors import InputError
from tfq.ptq.calibration import calibrate
from tfq.text_table import aligned
from tfq.typing import Data, PathOrBytes

# Lines of text: the record has all.
_MOST_OF_A_KIND = 3


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Why an int8 flatbuffer differs from its float one.

    layers, joins: in the order of the ops. sensitivity: the most sensitive first; empty where it was not measured.
    histograms: one for each of layers; empty where they were not asked for. findings: in plain words. num_samples: of
    the data.
    """

    layers: tuple[LayerError, ...]
    joins: tuple[Join, ...]
    sensitivity: tuple[LayerSensitivity, ...]
    findings: tuple[Finding, ...]
    num_samples: int
    histograms: tuple[LayerHistogram, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "num_samples": self.num_samples,
            "layers": [item.to_dict() for item in self.layers],
            "joins": [{**asdict(item), "ratio": item.ratio} for item in self.joins],
            "sensitivity": [item.to_dict() for item in self.sensitivity],
            "histograms": [item.to_dict() for item in self.histograms],
            "findings": [asdict(item) for item in self.findings],
        }

    def to_text(self) -> str:
        """For the terminal: a line a layer, then what was found."""
        head = ["layer", "op", "SQNR dB", "by rounding", "max LSB", "clipped", "codes used", "dead", "alone dB"]
        alone = {item.layer: item.sqnr_db for item in self.sensitivity}
        rows = [
            [
                item.layer,
                item.op,
                _decibels(item.sqnr_db),
                _decibels(item.expected_sqnr_db),
                f"{item.max_abs_error_lsb:.1f}",
                f"{item.saturated:.2%}",
                f"{item.range_use:.0%}",
                str(len(item.dead_channels)),
                _decibels(alone[item.layer]) if item.layer in alone else "",
            ]
            for item in self.layers
        ]
        result = [*_first_of_each_kind(self.findings)] or ["nothing stands out"]
        return "\n".join([*aligned([head, *rows], left=2), "", f"{self.num_samples} samples", *result])


def analyze(
    quantized: PathOrBytes, floating: PathOrBytes, data: Data, config: AnalysisConfig | None = None
) -> Analysis:
    """Compare the int8 flatbuffer with the float one that it was made of, tensor by tensor.

    data: what a representative dataset may be, real values; its first config.limit samples.
    config.sensitivity: measure as well what each layer, quantized alone, does to the outputs; a run of the float
        flatbuffer for each layer. config.histograms: keep the values' distribution as well.
    Raises InputError on flatbuffers that do not belong together, on an int8 one that has no codes, and on data that do
    not fit.
    """
    config = config or AnalysisConfig()
    quantized = content_of(quantized, "quantized", "an int8 .tflite file")
    floating = content_of(floating, "floating", "a float .tflite file")
    if auditing.audit_model(floating).scheme != "float32":
        raise InputError("analysis.reference: expected the float32 .tflite that the int8 one was made of")
    samples = representative_samples(data, input_specs(floating), config.limit).samples
    layers, joined = layer_errors(quantized, floating, samples), joins(quantized, floating, samples)
    sensitivity: tuple[LayerSensitivity, ...] = ()
    if config.sensitivity:
        sensitivity = layer_sensitivity(floating, calibrate(floating, samples), samples)
    return Analysis(
        layers=layers,
        joins=joined,
        sensitivity=sensitivity,
        findings=tuple(find(layers, joined, _sources(quantized))),
        num_samples=len(samples),
        histograms=layer_histograms(quantized, floating, samples) if config.histograms else (),
    )


def _first_of_each_kind(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each finding, and where there are many of a kind, for the first ones of it."""
    for kind, result in groupby(findings, key=lambda item: item.kind):
        listed = list(result)
        yield from (f"- {item.message}" for item in listed[:_MOST_OF_A_KIND])
        if len(listed) > _MOST_OF_A_KIND:
            layers = ", ".join(item.layer for item in listed[_MOST_OF_A_KIND:])
            yield f"  and {len(listed) - _MOST_OF_A_KIND} more of this kind ({kind}): {layers}"


def _sources(quantized: bytes) -> dict[str, list[str]]:
    """Layer -> the layers whose outputs it reads, by the names of `layer_errors`."""
    graph = tflite.read(quantized).main_subgraph
    names = graph.layers_by_output
    return {
        names[output]: [names[index] for index in op.inputs if index in names]
        for op in graph.ops
        for output in op.outputs
    }


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"

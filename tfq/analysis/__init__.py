# SPDX-License-Identifier: Apache-2.0
"""Why an int8 flatbuffer computes something else than its float flatbuffer, op by op."""

from tfq.analysis.analyze import Analysis, analyze, check_requirements, requirements_of
from tfq.analysis.explain import ExampleMaps, Explanation, explain
from tfq.analysis.findings import Finding
from tfq.analysis.histograms import Bars, OpHistogram, op_histograms
from tfq.analysis.joins import Join, joins
from tfq.analysis.low_bits import with_few_bits
from tfq.analysis.op_errors import OpError, op_errors
from tfq.analysis.sensitivity import OpSensitivity, op_sensitivity, quantized_alone
from tfq.analysis.weight_errors import WeightError
from tfq.analysis.weight_grids import GRIDS

__all__ = [
    "GRIDS",
    "Analysis",
    "Bars",
    "ExampleMaps",
    "Explanation",
    "Finding",
    "Join",
    "OpError",
    "OpHistogram",
    "OpSensitivity",
    "WeightError",
    "analyze",
    "check_requirements",
    "explain",
    "joins",
    "op_errors",
    "op_histograms",
    "op_sensitivity",
    "quantized_alone",
    "requirements_of",
    "with_few_bits",
]

# SPDX-License-Identifier: Apache-2.0
"""Why an int8 flatbuffer computes something else than its float one: tensor by tensor, layer by layer."""

from tfq.analysis.analyze import Analysis, analyze
from tfq.analysis.findings import Finding
from tfq.analysis.histograms import Bars, LayerHistogram, layer_histograms
from tfq.analysis.layers import Join, LayerError, joins, layer_errors
from tfq.analysis.low_bits import with_few_bits
from tfq.analysis.sensitivity import LayerSensitivity, layer_sensitivity, quantized_alone
from tfq.analysis.weight_grids import GRIDS

__all__ = [
    "GRIDS",
    "Analysis",
    "Bars",
    "Finding",
    "Join",
    "LayerError",
    "LayerHistogram",
    "LayerSensitivity",
    "analyze",
    "joins",
    "layer_errors",
    "layer_histograms",
    "layer_sensitivity",
    "quantized_alone",
    "with_few_bits",
]

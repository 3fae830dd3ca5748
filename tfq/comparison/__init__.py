# SPDX-License-Identifier: Apache-2.0
"""Compare two .tflite files: ops, constants, quantization parameters, inputs and outputs, signatures, metadata."""

from tfq.comparison.compare import compare_models
from tfq.comparison.gate import check_gate, gate_records, tolerances
from tfq.comparison.gate_layers import NUM_SAMPLES, layer_errors
from tfq.comparison.gate_output import to_junit, to_markdown, to_text
from tfq.comparison.gate_result import FigureResult, Gate, GatedModel
from tfq.comparison.record import ComparisonRecord, check_requirements, requirements_of
from tfq.comparison.subjects import Subject, check_same_kind, check_unset, read_subject
from tfq.comparison.text import outputs_text

__all__ = [
    "NUM_SAMPLES",
    "ComparisonRecord",
    "FigureResult",
    "Gate",
    "GatedModel",
    "Subject",
    "check_gate",
    "check_requirements",
    "check_same_kind",
    "check_unset",
    "compare_models",
    "gate_records",
    "layer_errors",
    "outputs_text",
    "read_subject",
    "requirements_of",
    "to_junit",
    "to_markdown",
    "to_text",
    "tolerances",
]

# SPDX-License-Identifier: Apache-2.0
"""Compare two .tflite files: ops, constants, quantization parameters, inputs and outputs, signatures, metadata."""

from tfq.comparison.compare import compare_models
from tfq.comparison.record import ComparisonRecord, check_requirements, requirements_of
from tfq.comparison.subjects import Subject, check_same_kind, read_subject

__all__ = [
    "ComparisonRecord",
    "Subject",
    "check_requirements",
    "check_same_kind",
    "compare_models",
    "read_subject",
    "requirements_of",
]

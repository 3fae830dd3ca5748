# SPDX-License-Identifier: Apache-2.0
"""What is learned from running a flatbuffer: (bytes, data, runner) -> records."""

from tfq.evaluation.accuracy import evaluate_model
from tfq.evaluation.inputs import decode_outputs, prepare_inputs
from tfq.evaluation.latency import latency_percentiles
from tfq.evaluation.metrics import agreement, predicted_classes, top1
from tfq.evaluation.parity import (
    ParityRecord,
    check_runners,
    compare_outputs,
    compare_runners,
    compare_runners_or_reason,
)
from tfq.evaluation.record import EvaluationRecord, check_requirements, missed_requirements
from tfq.evaluation.reference import ReferenceOutputs, reference_outputs

__all__ = [
    "EvaluationRecord",
    "ParityRecord",
    "ReferenceOutputs",
    "agreement",
    "check_requirements",
    "check_runners",
    "compare_outputs",
    "compare_runners",
    "compare_runners_or_reason",
    "decode_outputs",
    "evaluate_model",
    "latency_percentiles",
    "missed_requirements",
    "predicted_classes",
    "prepare_inputs",
    "reference_outputs",
    "top1",
]

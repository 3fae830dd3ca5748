# SPDX-License-Identifier: Apache-2.0
"""What is learned from running a flatbuffer: (bytes, data, backend) -> records."""

from tfq.evaluation.accuracy import evaluate_model
from tfq.evaluation.benchmark import benchmark_models, model_names
from tfq.evaluation.benchmark_record import BenchmarkRecord
from tfq.evaluation.inputs import decode_outputs, prepare_inputs
from tfq.evaluation.instructions import (
    InstructionRecord,
    count_instructions,
    count_instructions_or_reason,
    count_on_backends,
    instructions_to_dict,
)
from tfq.evaluation.metrics import agreement, mean_absolute_error, predicted_classes, roc_auc, top1, topk
from tfq.evaluation.paired import latency_percentiles, latency_statistics
from tfq.evaluation.parity import (
    ParityRecord,
    check_backends,
    compare_backends,
    compare_backends_or_reason,
    compare_outputs,
)
from tfq.evaluation.record import EvaluationRecord, check_requirements, missed_requirements, score_text
from tfq.evaluation.reference import ReferenceOutputs, reference_outputs
from tfq.evaluation.scores import METRICS, Metric, check_metric, choose_metric, score_outputs
from tfq.evaluation.user_metric import metric_sha256

__all__ = [
    "METRICS",
    "BenchmarkRecord",
    "EvaluationRecord",
    "InstructionRecord",
    "Metric",
    "ParityRecord",
    "ReferenceOutputs",
    "agreement",
    "benchmark_models",
    "check_backends",
    "check_metric",
    "check_requirements",
    "choose_metric",
    "compare_backends",
    "compare_backends_or_reason",
    "compare_outputs",
    "count_instructions",
    "count_instructions_or_reason",
    "count_on_backends",
    "decode_outputs",
    "evaluate_model",
    "instructions_to_dict",
    "latency_percentiles",
    "latency_statistics",
    "mean_absolute_error",
    "metric_sha256",
    "missed_requirements",
    "model_names",
    "predicted_classes",
    "prepare_inputs",
    "reference_outputs",
    "roc_auc",
    "score_outputs",
    "score_text",
    "top1",
    "topk",
]

# SPDX-License-Identifier: Apache-2.0
"""Run flatbuffers on data and backends: accuracy, comparison with a reference, latency, and other costs."""

from typing import TYPE_CHECKING

# Importing these modules registers their metrics, in the order of the documentation.
# isort: off
import tfq.evaluation.metrics
import tfq.evaluation.class_metrics
import tfq.evaluation.ranking_metrics
import tfq.evaluation.probability_metrics
import tfq.evaluation.value_metrics
import tfq.evaluation.position_metrics
import tfq.evaluation.detection.metrics  # noqa: F401

# isort: on

if TYPE_CHECKING:
    from tfq.evaluation.accuracy import evaluate_model
    from tfq.evaluation.benchmark import benchmark_models, model_names
    from tfq.evaluation.benchmark_record import (
        BenchmarkRecord,
        benchmark_requirements,
        check_benchmark_requirements,
    )
    from tfq.evaluation.classes import agreement, is_class_vector
    from tfq.evaluation.costs import Costs
    from tfq.evaluation.inputs import decode_outputs, prepare_inputs
    from tfq.evaluation.instructions import (
        InstructionRecord,
        count_instructions,
        count_instructions_or_reason,
    )
    from tfq.evaluation.layer_digest import digest_of
    from tfq.evaluation.metric import (
        Contract,
        Metric,
        MetricChoice,
        MetricTable,
        Reconstruction,
        add_states,
        as_metric,
        as_metrics,
        concatenate_states,
    )
    from tfq.evaluation.metric_text import score_text
    from tfq.evaluation.metrics import mean_absolute_error, predicted_classes, top1, topk
    from tfq.evaluation.output_scores import score_outputs
    from tfq.evaluation.paired import latency_percentiles, latency_statistics
    from tfq.evaluation.parity import (
        ParityRecord,
        compare_backends,
        compare_outputs,
    )
    from tfq.evaluation.portability import assess_backends, check_backends, chosen_backends
    from tfq.evaluation.portability_record import BackendRow, PortabilityTable
    from tfq.evaluation.probability_metrics import expected_calibration_error, negative_log_likelihood
    from tfq.evaluation.ranking_metrics import average_precision, roc_auc
    from tfq.evaluation.record import EvaluationRecord
    from tfq.evaluation.reference import ReferenceOutputs, reference_outputs
    from tfq.evaluation.requirements import (
        check_requirements,
        check_requirements_on_backends,
        missed_on_backends,
        missed_requirements,
        requirements_of,
        requirements_on_backends,
    )
    from tfq.evaluation.scores import check_metric, default_metric, metric_for_labels
    from tfq.evaluation.verification import Verification, audit_and_run, try_to_run, verify
else:
    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)

__all__ = [
    "BackendRow",
    "BenchmarkRecord",
    "Contract",
    "Costs",
    "EvaluationRecord",
    "InstructionRecord",
    "Metric",
    "MetricChoice",
    "MetricTable",
    "ParityRecord",
    "PortabilityTable",
    "Reconstruction",
    "ReferenceOutputs",
    "Verification",
    "add_states",
    "agreement",
    "as_metric",
    "as_metrics",
    "assess_backends",
    "audit_and_run",
    "average_precision",
    "benchmark_models",
    "benchmark_requirements",
    "check_backends",
    "check_benchmark_requirements",
    "check_metric",
    "check_requirements",
    "check_requirements_on_backends",
    "chosen_backends",
    "compare_backends",
    "compare_outputs",
    "concatenate_states",
    "count_instructions",
    "count_instructions_or_reason",
    "decode_outputs",
    "default_metric",
    "digest_of",
    "evaluate_model",
    "expected_calibration_error",
    "is_class_vector",
    "latency_percentiles",
    "latency_statistics",
    "mean_absolute_error",
    "metric_for_labels",
    "missed_on_backends",
    "missed_requirements",
    "model_names",
    "negative_log_likelihood",
    "predicted_classes",
    "prepare_inputs",
    "reference_outputs",
    "requirements_of",
    "requirements_on_backends",
    "roc_auc",
    "score_outputs",
    "score_text",
    "top1",
    "topk",
    "try_to_run",
    "verify",
]

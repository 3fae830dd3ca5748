# SPDX-License-Identifier: Apache-2.0
"""Compare the outputs of two flatbuffers on the same examples."""

from typing import Any

from tfq import data, evaluation, progress
from tfq.config import DataConfig, EvaluationConfig, RunConfig
from tfq.errors import TfqError
from tfq.evaluation import EvaluationRecord
from tfq.workflows.models import load_split


def compare_outputs(reference: bytes, model: bytes, config: RunConfig) -> EvaluationRecord | None:
    """Run both flatbuffers on the test split of config.data; return None if no data is named.

    The metric is the default one, or the one that is meant for the labels: mean_iou for maps of classes, coco_map for
    boxes.

    Raises:
        InputError: The data cannot be read, or does not fit the models.
    """
    if not config.data.source:
        return None
    test = load_split(config.data, "test", limit=config.comparison.limit)
    with progress.stage(f"running both files on {test.num_examples:,} examples"):
        return _compared(reference, model, test, config.data)


def differing_examples(reference: bytes, model: bytes, test: data.AnySplit, config: DataConfig) -> dict[str, Any]:
    """Return `compared`, `differing_examples` and `differing_examples_reason` of an evaluation of two flatbuffers.

    If it fails, the reason is the error: an analysis of the ops does not need it.
    """
    try:
        with progress.stage(f"looking for examples that differ among {test.num_examples:,}"):
            record = _compared(reference, model, test, config)
    except TfqError as error:
        return {"compared": 0, "differing_examples": None, "differing_examples_reason": str(error)}
    return {
        "compared": record.compared,
        "differing_examples": record.differing_examples,
        "differing_examples_reason": record.differing_examples_reason,
    }


def _compared(reference: bytes, model: bytes, test: data.AnySplit, config: DataConfig) -> EvaluationRecord:
    return evaluation.evaluate_model(
        model,
        test,
        EvaluationConfig(num_runs=0),
        reference=reference,
        metric=evaluation.metric_for_labels(next(iter(test.take(1).pieces())).labels),
        preprocessing=data.preprocessing_record(config),
    )

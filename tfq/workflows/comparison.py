# SPDX-License-Identifier: Apache-2.0
"""Compare the outputs of two flatbuffers on the same examples."""

from tfq import data, evaluation, progress
from tfq.config import EvaluationConfig, RunConfig
from tfq.evaluation import EvaluationRecord
from tfq.workflows.models import load_split


def compare_outputs(reference: bytes, model: bytes, config: RunConfig) -> EvaluationRecord | None:
    """Run both flatbuffers on the test split of config.data; return None if no data is named.

    Raises:
        InputError: The data cannot be read, or does not fit the models.
    """
    if not config.data.source:
        return None
    settings = EvaluationConfig(limit=config.comparison.limit, num_runs=0)
    test = load_split(config.data, "test", limit=settings.limit)
    with progress.stage(f"running both files on {test.num_examples:,} examples"):
        return evaluation.evaluate_model(
            model, test, settings, reference=reference, preprocessing=data.preprocessing_record(config.data)
        )

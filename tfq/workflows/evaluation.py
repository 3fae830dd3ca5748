# SPDX-License-Identifier: Apache-2.0
"""Evaluate a flatbuffer on the test split: on one backend, in the table of others, and on corrupted inputs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfq import artifacts, data, evaluation, progress, tflite
from tfq.backends import place_of
from tfq.config import RunConfig
from tfq.errors import InputError
from tfq.evaluation import EvaluationRecord, PortabilityTable
from tfq.evaluation.sharded import source_of
from tfq.robustness import RobustnessRecord, evaluate_robustness
from tfq.robustness.inputs import check_corruptions
from tfq.workflows.distribution import on_executor
from tfq.workflows.models import load_flatbuffer, load_split


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation on one backend, and how the model runs on others.

    Attributes:
        evaluation: The evaluation on evaluation.backend.
        portability: The table of evaluation.backends.
        sha256: The hashes of the model, the data and the reference.
        digest: The digest of the file and its layers; see `tfq.evaluation.layer_digest`.
        robustness: The results on corrupted inputs; None if evaluation.robustness is not enabled.
    """

    evaluation: EvaluationRecord
    portability: PortabilityTable
    sha256: dict[str, Any]
    digest: dict[str, Any]
    robustness: RobustnessRecord | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "sha256": self.sha256,
            "evaluation": self.evaluation.to_dict(),
            "portability": self.portability.to_dict(),
            "digest": self.digest,
            "robustness": None if self.robustness is None else self.robustness.to_dict(),
        }

    def to_text(self) -> str:
        """Return the evaluation as text for the terminal, then the table."""
        texts = [self.evaluation.to_text(), self.portability.to_text()]
        texts += [] if self.robustness is None else [self.robustness.to_text()]
        return "\n\n".join(filter(None, texts))


def _read_reference(config: RunConfig, *, allow_code: bool) -> bytes | None:
    """Return the flatbuffer in evaluation.reference, or None if none is named. Another model is converted to float32.

    Raises:
        InputError: There is no such file, it is not a flatbuffer, or none is named and a requirement needs one.
    """
    settings = config.evaluation
    if settings.reference:
        return load_flatbuffer(settings.reference, config, field="evaluation.reference", allow_code=allow_code)
    for name in ("max_accuracy_drop", "min_agreement", "min_sqnr_db"):
        bound = getattr(settings.require, name)
        if bound is not None:
            raise InputError(
                f"evaluation.require.{name}={bound:g} needs a model to compare with: set evaluation.reference to the "
                "float .tflite",
                field=f"evaluation.require.{name}",
                expected="evaluation.reference",
                got=bound,
            )
    return None


def evaluate(
    model: bytes,
    config: RunConfig,
    *,
    reference: Any = None,
    test: data.AnySplit | None = None,
    allow_code: bool = False,
) -> Evaluated:
    """Evaluate a flatbuffer on config.data with evaluation.backend, and run some examples on evaluation.backends.

    Args:
        model: The bytes of the flatbuffer.
        config: The settings: config.evaluation and config.data.
        reference: What to compare with: the bytes of a float flatbuffer, or ReferenceOutputs. None is the file in
            evaluation.reference, if there is one.
        test: The examples; None loads the test split of config.data.
        allow_code: Whether code in the file of evaluation.reference may run; see `load_model`.

    Raises:
        InputError: The model, the data or the config cannot be used.
        BackendError: evaluation.backend cannot run the model.
    """
    settings = config.evaluation
    named = _read_reference(config, allow_code=allow_code) if reference is None else None
    evaluation.check_backends(settings)
    evaluation.check_metric(settings)
    tflite.read(model)
    reference = reference if named is None else named
    is_of_config = test is None
    test = test or load_split(config.data, "test", limit=settings.limit)
    if settings.robustness.enabled:
        check_corruptions(test, settings.robustness)
    with (
        progress.stage(f"evaluating {test.num_examples:,} examples on {place_of(settings.backend)}"),
        on_executor(config) as distribution,
    ):
        if distribution is not None and isinstance(test, data.SplitStream) and is_of_config:
            distribution.sources[id(test)] = source_of(config.data, "test", settings.limit)
        record = evaluation.evaluate_model(
            model,
            test,
            settings,
            reference=reference,
            preprocessing=data.preprocessing_record(config.data),
        )
    # After the evaluation, which may have read a streamed split on other machines.
    hashes: dict[str, Any] = {"model": artifacts.sha256(model), "data": {test.name: test.sha256()}}
    hashes["data_parts"] = {test.name: {**test.part_hashes(), "class_names": list(test.class_names)}}
    if named is not None:
        hashes["reference"] = artifacts.sha256(named)
    table = evaluation.assess_backends(model, test, settings, reference=reference, evaluated=record)
    robustness = None
    if settings.robustness.enabled:
        others = {REFERENCE: reference} if isinstance(reference, bytes) else {}
        robustness = corrupted({**others, MODEL: model}, config, test, reference=REFERENCE if others else "")
        record = dataclasses.replace(record, **robustness_fields(robustness.to_dict(), MODEL))
    return Evaluated(
        evaluation=record,
        portability=table,
        sha256=hashes,
        digest=evaluation.digest_of(model),
        robustness=robustness,
    )


# The names of the models in the record of an evaluation on corrupted inputs.
MODEL, REFERENCE = "model", "reference"


def corrupted(
    models: Mapping[str, bytes], config: RunConfig, test: data.AnySplit, *, reference: str
) -> RobustnessRecord:
    """Evaluate flatbuffers on the same corrupted inputs, with the settings in evaluation.robustness.

    Args:
        models: The bytes of each flatbuffer by name.
        config: The settings.
        test: The examples.
        reference: The name of the model that the others are compared with, or "".

    Raises:
        InputError: The data or the settings do not fit.
        BackendError: A model cannot run.
    """
    return evaluate_robustness(models, test, config.evaluation, reference=reference)


def robustness_fields(record: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the fields of an EvaluationRecord about corrupted inputs, from the record of `corrupted`."""
    values = next(item for item in record["models"] if item["model"] == model)
    return {"robustness": {**values, "reason": record["accuracy_reason"]}, "robustness_reason": None}

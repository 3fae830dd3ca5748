# SPDX-License-Identifier: Apache-2.0
"""A flatbuffer on the test split, on every backend."""

from dataclasses import dataclass
from typing import Any

from tfq import artifacts, data, evaluation, tflite
from tfq.backends import HOST
from tfq.config import RunConfig
from tfq.errors import FlatbufferError, InputError
from tfq.evaluation import EvaluationRecord, InstructionRecord, ParityRecord
from tfq.workflows.training import load_split


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation and the comparisons between backends that went with it."""

    evaluation: EvaluationRecord
    parity: dict[str, ParityRecord | str]
    instructions: dict[str, InstructionRecord | str]
    sha256: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a backend that could not be had is {"not_run": its reason}."""
        return {
            "sha256": self.sha256,
            "evaluation": self.evaluation.to_dict(),
            "instructions": evaluation.instructions_to_dict(self.instructions),
            "parity": {
                backend: {"not_run": outcome} if isinstance(outcome, str) else outcome.to_dict()
                for backend, outcome in self.parity.items()
            },
        }

    def to_text(self) -> str:
        """For the terminal: the evaluation, then a line a backend."""
        lines = [self.evaluation.to_text()]
        lines += [
            f"{backend}: not run: {outcome}" if isinstance(outcome, str) else outcome.to_text()
            for backend, outcome in self.parity.items()
        ]
        lines += [
            f"{backend}: instructions not counted: {outcome}" if isinstance(outcome, str) else outcome.to_text()
            for backend, outcome in self.instructions.items()
        ]
        return "\n".join(lines)


def _read_reference(config: RunConfig) -> bytes | None:
    """Return the flatbuffer in evaluation.reference, None if none is named.

    Raises:
        InputError: There is no such file, it is no flatbuffer, or none is named and a requirement needs one.
    """
    settings = config.evaluation
    if settings.reference:
        content = artifacts.read_bytes(settings.reference, "a float .tflite file", field="evaluation.reference")
        try:
            tflite.read(content)
        except FlatbufferError as error:
            raise FlatbufferError(
                f"evaluation.reference={settings.reference}: {error}",
                field="evaluation.reference",
                expected=error.expected,
                got=error.got,
            ) from error
        return content
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
    model: bytes, config: RunConfig, *, reference: Any = None, parity: bool = True, test: data.AnySplit | None = None
) -> Evaluated:
    """`model` on the test split of config.data, on evaluation.backend; then the same inputs on each of
    evaluation.parity_backends.

    reference: float flatbuffer bytes, or ReferenceOutputs; without it, that in evaluation.reference, if any.
    Any other backend is compared with `local` as well. Instructions are counted on every backend that can.
    """
    settings = config.evaluation
    named = _read_reference(config) if reference is None else None
    evaluation.check_backends(settings)
    evaluation.check_metric(settings)
    tflite.read(model)
    test = test or load_split(config.data, "test", limit=settings.limit)
    hashes: dict[str, Any] = {"model": artifacts.sha256(model), "data": {test.name: test.sha256()}}
    if named is not None:
        reference, hashes["reference"] = named, artifacts.sha256(named)
    record = evaluation.evaluate_model(
        model, test, settings, reference=reference, preprocessing=data.preprocessing_record(config.data)
    )
    others = list(settings.parity_backends) if parity else []
    if HOST not in (settings.backend, *others):
        others.append(HOST)
    comparisons: dict[str, ParityRecord | str] = {}
    for other in others:
        comparisons[other] = evaluation.compare_backends_or_reason(model, test, settings, other)
    counted = evaluation.count_on_backends(
        model,
        (settings.backend, *settings.parity_backends),
        test,
        kernels="xnnpack" if settings.xnnpack else "builtin",
        timeout_secs=settings.timeout_secs,
    )
    return Evaluated(evaluation=record, parity=comparisons, instructions=counted, sha256=hashes)

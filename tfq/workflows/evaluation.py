# SPDX-License-Identifier: Apache-2.0
"""Evaluate a flatbuffer on the test split, on every backend."""

import contextlib
from dataclasses import dataclass
from typing import Any

from tfq import artifacts, data, evaluation, progress, tflite
from tfq.backends import HOST, kind_of, place_of
from tfq.config import RunConfig
from tfq.errors import FlatbufferError, InputError
from tfq.evaluation import EvaluationRecord, InstructionRecord, ParityRecord
from tfq.workflows.models import load_flatbuffer, load_split


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation on one backend, and its comparisons with other backends.

    Attributes:
        evaluation: The evaluation on evaluation.backend.
        parity: By backend, how its outputs differ from those of evaluation.backend, or why it was not run.
        instructions: By backend, the instructions of an inference, or why they were not counted.
        sha256: The hashes of the model, the data and the reference.
    """

    evaluation: EvaluationRecord
    parity: dict[str, ParityRecord | str]
    instructions: dict[str, InstructionRecord | str]
    sha256: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; a backend that is not available is {"not_run": the reason}."""
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
        """Return the evaluation as text for the terminal, then a line for each backend."""
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


def _read_reference(config: RunConfig, *, allow_code: bool) -> bytes | None:
    """Return the flatbuffer in evaluation.reference, or None if none is named. Another model is converted to float32.

    Raises:
        InputError: There is no such file, it is not a flatbuffer, or none is named and a requirement needs one.
    """
    settings = config.evaluation
    if settings.reference:
        content = load_flatbuffer(settings.reference, config, field="evaluation.reference", allow_code=allow_code)
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
    model: bytes,
    config: RunConfig,
    *,
    reference: Any = None,
    parity: bool = True,
    test: data.AnySplit | None = None,
    allow_code: bool = False,
) -> Evaluated:
    """Evaluate a flatbuffer on config.data with evaluation.backend, and compare other backends with it.

    The same inputs are run on each of evaluation.parity_backends, and on `local` if it is none of them. Instructions
    are counted on every backend that can count them.

    Args:
        model: The bytes of the flatbuffer.
        config: The settings: config.evaluation and config.data.
        reference: What to compare with: the bytes of a float flatbuffer, or ReferenceOutputs. None is the file in
            evaluation.reference, if there is one.
        parity: Whether to run evaluation.parity_backends too.
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
    test = test or load_split(config.data, "test", limit=settings.limit)
    hashes: dict[str, Any] = {"model": artifacts.sha256(model), "data": {test.name: test.sha256()}}
    if named is not None:
        reference, hashes["reference"] = named, artifacts.sha256(named)
    with progress.stage(f"evaluating {test.num_examples:,} examples on {place_of(settings.backend)}"):
        record = evaluation.evaluate_model(
            model, test, settings, reference=reference, preprocessing=data.preprocessing_record(config.data)
        )
    others = list(settings.parity_backends) if parity else []
    if HOST not in (settings.backend, *others):
        others.append(HOST)
    comparisons: dict[str, ParityRecord | str] = {}
    for other in others:
        with progress.stage(f"comparing with {place_of(other)}"):
            comparisons[other] = evaluation.compare_backends_or_reason(model, test, settings, other)
    named_backends = (settings.backend, *settings.parity_backends)
    counts = any(kind_of(backend).counts_instructions for backend in named_backends)
    with progress.stage("counting instructions") if counts else contextlib.nullcontext():
        counted = evaluation.count_on_backends(
            model,
            named_backends,
            test,
            kernels="xnnpack" if settings.xnnpack else "builtin",
            timeout_secs=settings.timeout_secs,
        )
    return Evaluated(evaluation=record, parity=comparisons, instructions=counted, sha256=hashes)

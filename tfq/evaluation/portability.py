# SPDX-License-Identifier: Apache-2.0
"""Run one flatbuffer on several backends, and compare each with XNNPACK on this machine."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from tfq import progress, registry, tflite
from tfq.backends import HOST, BackendKind, BackendResult, kind_of, make_backend, place_of, public_names
from tfq.config import EvaluationConfig
from tfq.data import AnySplit, as_split
from tfq.errors import BackendError, InputError, ModelError, TfqError
from tfq.evaluation.accuracy import Assessment, assess_model
from tfq.evaluation.costs import check_computes_outputs
from tfq.evaluation.inputs import decode_outputs
from tfq.evaluation.instructions import InstructionRecord, record_of_counts
from tfq.evaluation.parity import ParityRecord, compare_outputs
from tfq.evaluation.portability_record import NOT_COUNTED, BackendRow, PortabilityTable
from tfq.evaluation.record import EvaluationRecord
from tfq.evaluation.reference import ReferenceOutputs, reference_outputs

NO_TABLE = "none"


def assess_backends(
    model: bytes,
    data: Any,
    config: EvaluationConfig,
    *,
    reference: bytes | ReferenceOutputs | None = None,
    evaluated: EvaluationRecord | None = None,
) -> PortabilityTable:
    """Run a flatbuffer on each of `config.backends`, and compare each with XNNPACK on this machine.

    A backend that is not available, or on which the model fails, is a row that says why; the others still run.

    Args:
        model: The flatbuffer.
        data: Data in any form that `evaluate_model` accepts. The first `config.backends_limit` examples are used.
        config: The backends, the metric, and how to run the model.
        reference: The float model, or its outputs on `data`.
        evaluated: The evaluation on `config.backend`; its latency is shown in that backend's row.

    Raises:
        InputError: A backend is unknown, or the data does not fit the model.
    """
    names, missing = chosen_backends(config)
    limit = min(config.backends_limit, config.limit) if config.limit else config.backends_limit
    data = as_split(data, limit=limit)
    if not names:
        return PortabilityTable(rows=(), num_examples=data.num_examples, not_available=missing)
    if isinstance(reference, bytes):
        reference = reference_outputs(reference, data, config)
    elif reference is not None:
        reference = _first_outputs(reference, data)
    base = dataclasses.replace(config, limit=0, num_runs=0, xnnpack=True)
    own = _on_this_machine(model, data, base, reference)
    yardstick, yardstick_reason = _yardstick(model, data, base, own)
    rows, public = [], public_names(names)
    for name in names:
        with progress.stage(f"running {data.num_examples:,} examples on {place_of(name)}"):
            settings = dataclasses.replace(base, backend=name, xnnpack=config.xnnpack)
            times = kind_of(name).times and (evaluated is None or name != config.backend)
            settings = dataclasses.replace(settings, num_runs=config.num_runs if times else 0)
            row = _row(model, data, settings, reference, own, public[name])
        if evaluated is not None and name == config.backend and row.evaluation is not None:
            row = dataclasses.replace(row, evaluation=_with_latency(row.evaluation, evaluated))
        rows.append(row)
    return PortabilityTable(
        rows=tuple(rows),
        num_examples=data.num_examples,
        yardstick=yardstick,
        yardstick_reason=yardstick_reason,
        not_available=missing,
    )


def chosen_backends(config: EvaluationConfig) -> tuple[list[str], dict[str, str]]:
    """Return the backends of the table, and the ones that are left out because they cannot be used here -> why.

    Named backends are never left out: a row says why one was not run.

    Raises:
        InputError: A backend is unknown, or `none` is not the only entry.
    """
    if config.backends == (NO_TABLE,):
        return [], {}
    if NO_TABLE in config.backends:
        raise InputError(
            f"evaluation.backends contains {NO_TABLE} and other backends: remove one of them",
            field="evaluation.backends",
            got=config.backends,
        )
    if config.backends:
        for name in config.backends:
            make_backend(name, field="evaluation.backends")
        return list(dict.fromkeys(config.backends)), {}
    names = [
        name
        for kind in registry.entries(BackendKind).values()
        if kind.in_default_list and (kind.addresses or not kind.needs_address)
        for name in (kind.choices() if kind.addresses else (kind.name,))
    ]
    reasons = {name: make_backend(name).unavailable() for name in names}
    available = [name for name, reason in reasons.items() if reason is None]
    return available, {name: reason for name, reason in reasons.items() if reason is not None}


def check_backends(config: EvaluationConfig, *, needs_outputs: str | None = None) -> None:
    """Check the backends of `config` before long work, and start what its own backend needs.

    Args:
        config: The config.
        needs_outputs: What needs the outputs of the model besides the settings of `config`, for the error.

    Raises:
        InputError: A backend is unknown; or the backend of `config` computes no outputs, and a setting needs them.
        BackendError: The backend of `config` cannot run here.
    """
    chosen_backends(config)
    backend = make_backend(config.backend)
    check_computes_outputs(backend.kind, config, {needs_outputs: True} if needs_outputs else {})
    reason = backend.unavailable()
    if reason:
        raise BackendError(f"{backend.name}: {reason}")
    backend.prepare()


def _row(
    model: bytes,
    data: AnySplit,
    config: EvaluationConfig,
    reference: ReferenceOutputs | None,
    own: Assessment | str,
    name: str,
) -> BackendRow:
    """Return the row `name` of `config.backend`; `own` is the assessment on this machine, or why there is none."""
    backend = make_backend(config.backend)
    kind = backend.kind
    blank = BackendRow(backend=name, how=kind.how, status="not run")
    unavailable = backend.unavailable()
    if unavailable is not None:
        return dataclasses.replace(blank, reason=f"not available: {unavailable}")
    try:
        assessed = assess_model(
            model,
            data,
            config,
            reference=reference,
            count_instructions=kind.counts_instructions,
            measure_memory=kind.reports_memory,
        )
    except (ModelError, InputError) as error:
        return dataclasses.replace(blank, status="failed", reason=str(error))
    except BackendError as error:
        return dataclasses.replace(blank, reason=str(error))
    record, result = assessed.record, assessed.result
    counts: InstructionRecord | str = NOT_COUNTED
    if kind.counts_instructions:
        kernels = "xnnpack" if config.xnnpack else "builtin"
        counts = record_of_counts(backend, result, kernels=kernels, inputs="the first example")
    difference, difference_reason = _difference(model, own, result, name)
    agreement, agreement_reason = (
        (None, own) if isinstance(own, str) else assessed.agreement_with(_real_outputs(model, own.result))
    )
    return dataclasses.replace(
        blank,
        how=result.how,
        status="ran",
        evaluation=dataclasses.replace(record, warnings=result.notes),
        fully_accelerated=_is_fully_accelerated(result),
        difference=difference,
        difference_reason=difference_reason,
        agreement=agreement,
        agreement_reason=agreement_reason,
        instructions=None if isinstance(counts, str) else counts,
        instructions_reason=counts if isinstance(counts, str) else None,
    )


def _on_this_machine(
    model: bytes, data: AnySplit, config: EvaluationConfig, reference: ReferenceOutputs | None
) -> Assessment | str:
    """Return the assessment with XNNPACK on this machine, or why the model does not run here."""
    try:
        return assess_model(model, data, dataclasses.replace(config, backend=HOST), reference=reference)
    except (ModelError, BackendError) as error:
        return str(error)


def _yardstick(
    model: bytes, data: AnySplit, config: EvaluationConfig, own: Assessment | str
) -> tuple[ParityRecord | None, str | None]:
    """Return the builtin kernels compared with XNNPACK on this machine, or why they were not compared."""
    try:
        builtin = assess_model(model, data, dataclasses.replace(config, backend=HOST, xnnpack=False))
    except (ModelError, BackendError) as error:
        return None, str(error)
    return _difference(model, own, builtin.result, f"{HOST} (builtin)")


def _difference(
    model: bytes, own: Assessment | str, result: BackendResult, name: str
) -> tuple[ParityRecord | None, str | None]:
    if isinstance(own, str):
        return None, f"the model does not run on this machine: {own}"
    if result.outputs is None:
        return None, result.outputs_reason
    names = tflite.read(model).output_names
    try:
        compared = compare_outputs(names, own.result.computed_outputs(), result.outputs, backend_a=HOST, backend_b=name)
    except TfqError as error:  # other shapes, or values that are not finite
        return None, str(error)
    return compared, None


def _real_outputs(model: bytes, result: BackendResult) -> Sequence[NDArray]:
    return decode_outputs(tflite.read(model), result.computed_outputs())


def _first_outputs(reference: ReferenceOutputs, data: AnySplit) -> ReferenceOutputs:
    """Return the reference's outputs on the first examples, which are `data`."""
    count = data.num_examples
    return ReferenceOutputs(
        data=data, names=reference.names, outputs=tuple(output[:count] for output in reference.outputs)
    )


def _with_latency(record: EvaluationRecord, evaluated: EvaluationRecord) -> EvaluationRecord:
    """Return `record` with the latencies of `evaluated`."""
    names = [item.name for item in dataclasses.fields(record) if item.name.startswith("latency_")]
    return dataclasses.replace(record, **{name: getattr(evaluated, name) for name in names})


def _is_fully_accelerated(result: BackendResult) -> bool | None:
    if result.unaccelerated:
        return False
    if result.total_ops is None or result.delegated_ops is None:
        return None
    return result.delegated_ops == result.total_ops

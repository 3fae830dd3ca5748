# SPDX-License-Identifier: Apache-2.0
"""Verify a conversion before it is returned: run it next to its float twin, and measure remedies if it collapsed."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence

from numpy.typing import NDArray

from tfq import tflite
from tfq.auditing import Execution
from tfq.backends import LocalBackend
from tfq.config import ConversionConfig
from tfq.conversion.quantize import Conversion, Evidence, quantize_after_training
from tfq.conversion.weights import quantize_weights
from tfq.errors import ModelError, TfqError, TfqWarning, VerificationError, warn
from tfq.evaluation.collapse import Location, gradual_note, is_gradual, locate
from tfq.evaluation.output_checks import OutputCheck
from tfq.evaluation.verification import Problem, Remedy, Verification, encode, failed, try_to_run, verify
from tfq.progress import stage
from tfq.ptq.causes import CLIPPED, MIXED_INPUT_SCALES, UNEVEN_CHANNELS, UNKNOWN, WEIGHTS
from tfq.typing import Data

# Causes that cross-layer equalization may cure.
_UNEVEN = (UNEVEN_CHANNELS, WEIGHTS, UNKNOWN)

# What may go wrong in a verification without the conversion being lost.
_FAILURES = (TfqError, OSError, MemoryError)


@stage("verifying")
def verified(
    conversion: Conversion, config: ConversionConfig, *, examples: Data = None, remedies: bool = True
) -> Conversion:
    """Return `conversion` with its verification, and without the evidence that was needed for it.

    A collapsed result is a TfqWarning for each problem.

    Args:
        conversion: Of any scheme but float32.
        config: What it was converted by.
        examples: What it is verified with if its evidence has no samples.
        remedies: Whether to measure what other settings would do.

    Raises:
        VerificationError: The result collapsed, and config.strict is set.
    """
    evidence, conversion = conversion.evidence, dataclasses.replace(conversion, evidence=None)
    try:
        if evidence is not None and not evidence.samples:
            evidence = _with_samples(evidence, examples)
        result = _without_dead(_verification(conversion.content, evidence), conversion)
    except _FAILURES as error:  # of the float model, of this machine, or of data that this model does not take
        message = f"the outputs were not compared with those of the float model: {error}"
        warn(message)
        result = _only_run(conversion.content, message, evidence)
    if evidence is not None and result.collapsed:
        result = _explained(result, conversion.content, evidence, config if remedies else None)
    for problem in result.collapsed:
        if config.strict:
            raise VerificationError(problem.message, field="conversion.strict", got=problem.kind)
        warn(problem.message)
    return dataclasses.replace(conversion, verification=_with_others(result, conversion.verification))


def _with_samples(evidence: Evidence, examples: Data) -> Evidence | None:
    """The evidence with the first of `examples`; None without any."""
    if examples is None:
        return None
    floating = evidence.floating
    if floating is None and evidence.trained is not None:
        floating = evidence.trained()
    if floating is None:
        return None
    return dataclasses.replace(evidence, floating=floating, samples=Evidence.of(floating, examples).samples)


def _verification(content: bytes, evidence: Evidence | None) -> Verification:
    if evidence is None:
        return _only_run(content, "there were no samples to compare the outputs with those of the float model")
    result = verify(content, evidence.samples, float_outputs(evidence))
    if evidence.trained is None or (result.ok and not any(note.kind == "sqnr" for note in result.notes)):
        return result
    # Without its rounding, a model that was trained with it may well compute something else.
    trained = tflite.read(built := evidence.trained())
    return verify(content, evidence.samples, LocalBackend().run_samples(built, encode(trained, evidence.samples)))


def _without_dead(result: Verification, conversion: Conversion) -> Verification:
    """The result with notes of outputs of dead layers, whose range was widened to what kernels run with."""
    if not conversion.dead_layers or not result.collapsed:
        return result
    parsed = tflite.read(conversion.content)
    layers = parsed.main_subgraph.layers_by_output
    names = zip(parsed.output_names, parsed.main_subgraph.outputs, strict=True)
    dead = {name for name, tensor in names if layers.get(tensor) in conversion.dead_layers}
    moved = [item for item in result.collapsed if item.kind == "out_of_scale" and item.output in dead]
    notes = (*result.notes, *(dataclasses.replace(item, kind="dead") for item in moved))
    return dataclasses.replace(
        result, collapsed=tuple(item for item in result.collapsed if item not in moved), notes=notes
    )


def _with_others(result: Verification, others: Verification | None) -> Verification:
    """Add the problems and notes of the other signatures' subgraphs, which were verified before."""
    if others is None:
        return result
    return dataclasses.replace(
        result, collapsed=(*result.collapsed, *others.collapsed), notes=(*result.notes, *others.notes)
    )


def _only_run(content: bytes, reason: str, evidence: Evidence | None = None) -> Verification:
    """The result of a run on neutral inputs, with the reason why there was no comparison.

    A file whose float twin fails in the same way is no worse than that: it was not tried.
    """
    try:
        execution = try_to_run(content)
        if execution.state == "fails" and evidence is not None and evidence.floating is not None:
            floating = try_to_run(evidence.floating)
            if floating.state == "fails":
                execution = Execution(state="not tried", reason=f"the float model fails as well: {floating.reason}")
    except _FAILURES as error:
        execution = Execution(state="not tried", reason=str(error))
    if execution.state == "fails":
        return failed(execution)
    return Verification(execution=execution, notes=(Problem(kind="not_compared", message=reason),))


def float_outputs(evidence: Evidence) -> Sequence[Sequence[NDArray]]:
    """Return the float model's outputs for each sample; run it in a child if calibration has not computed them."""
    if evidence.outputs is not None:
        return evidence.outputs
    if evidence.floating is None:
        raise ModelError("there is no float model to compare with", field="model")
    floating = tflite.read(evidence.floating)
    return LocalBackend().run_samples(evidence.floating, encode(floating, evidence.samples))


def _explained(
    result: Verification, content: bytes, evidence: Evidence, config: ConversionConfig | None
) -> Verification:
    """Add the first op where it happened, the cause, and the remedies that `config` leaves open, to each problem.

    A ratio that is low because rounding adds up over many layers becomes a note.
    """
    problems, notes = [], list(result.notes)
    checks = {check.name: check for check in result.outputs}
    for problem in result.collapsed:
        location = Location()
        remedies: tuple[Remedy, ...] = ()
        with contextlib.suppress(*_FAILURES):  # what is known of the collapse is reported all the same
            if evidence.floating is not None:
                location = locate(content, evidence.floating, _samples_for(problem, checks, evidence), problem)
            ratio = checks[problem.output].sqnr_db if problem.output in checks else None
            if problem.kind == "low_sqnr" and ratio is not None and is_gradual(ratio, location.noise_share):
                notes.append(gradual_note(problem, location.noise_share))
                continue
            if config is not None:
                remedies = tuple(_remedies(problem, location, evidence, config))
        problems.append(_with_details(problem, location, remedies))
    return dataclasses.replace(result, collapsed=tuple(problems), notes=tuple(notes))


def _samples_for(
    problem: Problem, checks: Mapping[str, OutputCheck], evidence: Evidence
) -> Sequence[dict[str, NDArray]]:
    """The samples, those first on which the output in question is worst."""
    check = checks.get(problem.output or "")
    if problem.kind != "low_sqnr" or check is None:
        return evidence.samples
    order = [*check.worst_samples, *(n for n in range(len(evidence.samples)) if n not in check.worst_samples)]
    return [evidence.samples[number] for number in order]


def _with_details(problem: Problem, location: Location, remedies: tuple[Remedy, ...]) -> Problem:
    """The problem with its place, cause and remedies, and a message that names them all."""
    remedies = tuple(sorted(remedies, key=lambda item: (not item.cures, -(item.sqnr_db or 0.0))))
    parts = [problem.message]
    if location.title and problem.op is None:
        parts.append(f"First at {location.title}")
    if location.cause is not None:
        parts.append(location.cause.message)
    if remedies:
        parts.append(f"Measured on the same samples: {'; '.join(item.to_text() for item in remedies)}")
    return dataclasses.replace(
        problem,
        message=". ".join(parts),
        op_index=problem.op_index if location.op_index is None else location.op_index,
        op=location.title or problem.op,
        layer=location.layer or problem.layer,
        cause=location.cause.kind if location.cause else problem.cause,
        remedies=remedies,
    )


def _remedies(problem: Problem, location: Location, evidence: Evidence, config: ConversionConfig) -> Iterator[Remedy]:
    """Measure what existing options do to the output in question."""
    if evidence.quantize is None:
        return
    reference = float_outputs(evidence)
    for setting, other in _alternatives(location, config):
        try:
            content = _other(evidence, other)
            result = verify(content, evidence.samples, reference)
        except TfqError as error:
            yield Remedy(setting=setting, reason=f"cannot be converted ({str(error).split(':')[0]})")
            continue
        if result.execution.state != "runs":
            yield Remedy(setting=setting, reason="does not run")
            continue
        checks = [item for item in result.outputs if item.name == problem.output]
        ratios = [item.sqnr_db for item in checks or result.outputs if item.sqnr_db is not None]
        yield Remedy(
            setting=setting,
            sqnr_db=min(ratios, default=None),
            cures=all(item.collapse is None for item in checks) if checks else result.ok,
        )


def _other(evidence: Evidence, config: ConversionConfig) -> bytes:
    if evidence.floating is not None and config.techniques:
        # Techniques change the model and its ranges: calibrated again, on the samples of the verification.
        again = dataclasses.replace(config, verify=False, strict=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TfqWarning)
            return quantize_after_training(evidence.floating, list(evidence.samples), again).content
    if evidence.floating is not None and (evidence.quantize is None or not config.needs_ranges):
        return quantize_weights(evidence.floating, config)
    assert evidence.quantize is not None  # `_remedies` measures nothing without it
    return evidence.quantize(config)


def _alternatives(location: Location, config: ConversionConfig) -> Iterator[tuple[str, ConversionConfig]]:
    """(setting, the config with it) of each option that may help."""
    plain = ConversionConfig(
        verify=False,
        per_channel=config.per_channel,
        per_channel_dense=config.per_channel_dense,
        calibration=config.calibration,
        batch_size=config.batch_size,
    )
    if config.scheme == "int8" and location.layer:
        yield from _in_float(location, config)
    cause = location.cause.kind if location.cause is not None else None
    if cause == CLIPPED and config.calibration.method != "min_max":
        calibration = dataclasses.replace(config.calibration, method="min_max", tensors=())
        yield "conversion.calibration.method=min_max", dataclasses.replace(config, calibration=calibration)
    if config.scheme == "int8" and cause in _UNEVEN and not config.techniques:
        techniques = ("cross_layer_equalization",)
        yield f"conversion.techniques={techniques[0]}", dataclasses.replace(config, techniques=techniques)
    for scheme in ("int8", "int16x8", "dynamic_range"):
        if scheme != config.scheme:
            yield f"conversion.scheme={scheme}", dataclasses.replace(plain, scheme=scheme)


def _in_float(location: Location, config: ConversionConfig) -> Iterator[tuple[str, ConversionConfig]]:
    """The layer in float; where it is at a border of the model, with that border in float as well."""
    layers = (*config.float_layers, location.layer or "")
    setting, other = f"conversion.float_layers={','.join(layers)}", dataclasses.replace(config, float_layers=layers)
    border = ""
    if location.cause is not None and location.cause.kind == MIXED_INPUT_SCALES:
        border, other = "input", dataclasses.replace(other, inference_input_type="float32")
    elif location.is_output:
        border, other = "output", dataclasses.replace(other, inference_output_type="float32")
    yield (f"conversion.inference_{border}_type=float32 with {setting}" if border else setting), other

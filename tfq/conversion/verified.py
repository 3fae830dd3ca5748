# SPDX-License-Identifier: Apache-2.0
"""Verify a conversion: compare it with the float model, and measure remedies if its outputs lost their information."""

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

# Causes that cross-layer equalization may fix.
_UNEVEN = (UNEVEN_CHANNELS, WEIGHTS, UNKNOWN)

# Errors of a verification that do not fail the conversion.
_FAILURES = (TfqError, OSError, MemoryError)


@stage("verifying")
def verified(
    conversion: Conversion,
    config: ConversionConfig,
    *,
    examples: Data = None,
    remedies: bool = True,
    warn_if_collapsed: bool = True,
) -> Conversion:
    """Verify a conversion; return it with the verification and without the evidence.

    Args:
        conversion: A conversion of any scheme except float32.
        config: The config that it was converted with.
        examples: Data to verify with if the evidence has no samples.
        remedies: Whether to measure other settings if the result collapsed.
        warn_if_collapsed: Whether each problem of a collapsed result is a TfqWarning.

    Raises:
        VerificationError: The result collapsed, and config.strict is set.
    """
    evidence, conversion = conversion.evidence, dataclasses.replace(conversion, evidence=None)
    try:
        if evidence is not None and not evidence.samples:
            evidence = _with_samples(evidence, examples)
        result = _without_dead(_verification(conversion.content, evidence), conversion)
    except _FAILURES as error:  # caused by the float model, this machine, or data that does not fit the model
        message = f"verification: the outputs were not compared with those of the float model: {error}"
        warn(message)
        result = _only_run(conversion.content, message, evidence)
    if evidence is not None and result.collapsed:
        result = _explained(result, conversion.content, evidence, config if remedies else None)
    for problem in result.collapsed:
        if config.strict:
            raise VerificationError(problem.message, field="conversion.strict", got=problem.kind)
        if warn_if_collapsed:
            warn(problem.message)
    return dataclasses.replace(conversion, verification=_with_others(result, conversion.verification))


def _with_samples(evidence: Evidence, examples: Data) -> Evidence | None:
    """Return the evidence with the first of `examples`; None if there are no examples or no float model."""
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
        return _only_run(content, "there were no samples to compare the outputs with those of the float model on")
    result = verify(content, evidence.samples, float_outputs(evidence))
    if evidence.trained is None or (result.ok and not any(note.kind == "sqnr" for note in result.notes)):
        return result
    # A model that was trained with rounding can compute a different function without it.
    trained = tflite.read(built := evidence.trained())
    return verify(content, evidence.samples, LocalBackend().run_samples(built, encode(trained, evidence.samples)))


def _without_dead(result: Verification, conversion: Conversion) -> Verification:
    """Return the result with the problems of dead outputs as notes: their ranges were widened on purpose."""
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
    """Return the result of a run on neutral inputs, with the reason why there was no comparison.

    If the float model fails as well, the failure is not blamed on the conversion: the state is "not tried".
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
        raise ModelError("verification: there is no float model to compare with", field="model")
    floating = tflite.read(evidence.floating)
    return LocalBackend().run_samples(evidence.floating, encode(floating, evidence.samples))


def _explained(
    result: Verification, content: bytes, evidence: Evidence, config: ConversionConfig | None
) -> Verification:
    """Add to each problem the op where it starts, its cause, and the remedies that `config` does not use yet.

    If an SQNR is low because rounding errors add up over many layers, the problem becomes a note.
    """
    problems, notes = [], list(result.notes)
    checks = {check.name: check for check in result.outputs}
    for problem in result.collapsed:
        location = Location()
        remedies: tuple[Remedy, ...] = ()
        with contextlib.suppress(*_FAILURES):  # the collapse is reported even if it cannot be explained
            if evidence.floating is not None:
                location = locate(content, evidence.floating, _samples_for(problem, checks, evidence), problem)
            ratio = checks[problem.output].sqnr_db if problem.output in checks else None
            if problem.kind == "low_sqnr" and ratio is not None and is_gradual(ratio, location.noise_fraction):
                notes.append(gradual_note(problem, location.noise_fraction))
                continue
            if config is not None:
                remedies = tuple(_remedies(problem, location, evidence, config))
        problems.append(_with_details(problem, location, remedies))
    return dataclasses.replace(result, collapsed=tuple(problems), notes=tuple(notes))


def _samples_for(
    problem: Problem, checks: Mapping[str, OutputCheck], evidence: Evidence
) -> Sequence[dict[str, NDArray]]:
    """Return the samples, those on which the output of the problem is worst first."""
    check = checks.get(problem.output or "")
    if problem.kind != "low_sqnr" or check is None:
        return evidence.samples
    order = [*check.worst_samples, *(n for n in range(len(evidence.samples)) if n not in check.worst_samples)]
    return [evidence.samples[number] for number in order]


def _with_details(problem: Problem, location: Location, remedies: tuple[Remedy, ...]) -> Problem:
    """Return the problem with its location, cause and remedies, also in its message."""
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
    """Measure how other settings change the output of the problem."""
    if evidence.quantize is None:
        return
    reference = float_outputs(evidence)
    for setting, other in _alternatives(location, config):
        try:
            content = _converted_with(evidence, other)
            result = verify(content, evidence.samples, reference)
        except TfqError as error:
            yield Remedy(setting=setting, reason=f"cannot be converted ({str(error).partition('. ')[0]})")
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


def _converted_with(evidence: Evidence, config: ConversionConfig) -> bytes:
    """Convert the model with another config."""
    if evidence.floating is not None and config.techniques:
        # Techniques change the model and its ranges, so it is calibrated again, on the samples of the verification.
        unverified = dataclasses.replace(config, verify=False, strict=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TfqWarning)
            return quantize_after_training(evidence.floating, list(evidence.samples), unverified).content
    if evidence.floating is not None and (evidence.quantize is None or not config.needs_ranges):
        return quantize_weights(evidence.floating, config)
    assert evidence.quantize is not None  # `_remedies` measures nothing without it
    return evidence.quantize(config)


def _alternatives(location: Location, config: ConversionConfig) -> Iterator[tuple[str, ConversionConfig]]:
    """Yield (setting, the config with it) for each setting that may help."""
    without_mixed_precision = ConversionConfig(
        verify=False,
        per_channel=config.per_channel,
        per_channel_dense=config.per_channel_dense,
        calibration=config.calibration,
        batch_size=config.batch_size,
    )
    if config.scheme == "int8" and location.layer:
        yield from _float_layer_settings(location, config)
    cause = location.cause.kind if location.cause is not None else None
    if cause == CLIPPED and config.calibration.method != "min_max":
        calibration = dataclasses.replace(config.calibration, method="min_max", tensors=())
        yield "conversion.calibration.method=min_max", dataclasses.replace(config, calibration=calibration)
    if config.scheme == "int8" and cause in _UNEVEN and not config.techniques:
        techniques = ("cross_layer_equalization",)
        yield f"conversion.techniques={techniques[0]}", dataclasses.replace(config, techniques=techniques)
    for scheme in ("int8", "int16x8", "dynamic_range"):
        if scheme != config.scheme:
            yield f"conversion.scheme={scheme}", dataclasses.replace(without_mixed_precision, scheme=scheme)


def _float_layer_settings(location: Location, config: ConversionConfig) -> Iterator[tuple[str, ConversionConfig]]:
    """Yield the setting that keeps the layer in float, and the model's input or output if the layer touches it."""
    layers = (*config.float_layers, location.layer or "")
    setting, other = f"conversion.float_layers={','.join(layers)}", dataclasses.replace(config, float_layers=layers)
    side = ""
    if location.cause is not None and location.cause.kind == MIXED_INPUT_SCALES:
        side, other = "input", dataclasses.replace(other, inference_input_type="float32")
    elif location.is_output:
        side, other = "output", dataclasses.replace(other, inference_output_type="float32")
    yield (f"conversion.inference_{side}_type=float32 with {setting}" if side else setting), other

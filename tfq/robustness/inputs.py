# SPDX-License-Identifier: Apache-2.0
"""Decide what the inputs of a model are, which values they have, and which corruptions apply to them."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfq import registry
from tfq.config import RobustnessConfig
from tfq.data import AnySplit, as_split
from tfq.errors import InputError, install_hint
from tfq.evaluation.pictures import MIN_SIDE
from tfq.robustness.corruption import Corruption, InputKind, Limits

_RANGES: tuple[Limits, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
# Rounding of preprocessing may leave a range by this fraction of its width.
_TOLERANCE = 1e-3
# Images that use less of a range, such as values up to 16 of 255, probably have another white.
_LEAST_USED = 0.5
LARGEST_CIFAR_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The only input of a model.

    Attributes:
        name: Its name in the data.
        shape: That of one example.
        kind: "image" or "signal".
        limits: The lowest and the highest value.
        limits_reason: Where they come from.
        parameter_set: The published parameters for images of this size; "" for signals.
        parameter_reason: Why these.
    """

    name: str
    shape: tuple[int, ...]
    kind: InputKind
    limits: Limits
    limits_reason: str
    parameter_set: str
    parameter_reason: str


def inputs_of(data: AnySplit, config: RobustnessConfig) -> Inputs:
    """Return what the inputs are, from the settings or from the data itself.

    Raises:
        InputError: There are several inputs, or they are neither images nor signals, or their range is not known.
    """
    first = next(iter(data.take(1).pieces()))
    if len(first.inputs) != 1:
        raise InputError(
            f"the data has {len(first.inputs)} inputs ({', '.join(first.inputs)}): corruptions are defined for models "
            "with one input. Disable evaluation.robustness",
            field="evaluation.robustness",
            expected=1,
            got=len(first.inputs),
        )
    ((name, array),) = first.inputs.items()
    shape = tuple(array.shape[1:])
    kind = _kind(shape, array.dtype, config)
    limits, reason = _limits(data, name, kind, config)
    parameter_set, parameter_reason = "", ""
    if kind == "image":
        parameter_set, parameter_reason = config.parameters, "evaluation.robustness.parameters"
        if parameter_set == "auto":
            is_small = max(shape[:2]) <= LARGEST_CIFAR_SIDE
            parameter_set = "cifar10_c" if is_small else "imagenet_c"
            parameter_reason = f"the images have {shape[0]} x {shape[1]} pixels"
    return Inputs(
        name=name,
        shape=shape,
        kind=kind,
        limits=limits,
        limits_reason=reason,
        parameter_set=parameter_set,
        parameter_reason=parameter_reason,
    )


def _kind(shape: tuple[int, ...], dtype: np.dtype, config: RobustnessConfig) -> InputKind:
    is_image = len(shape) == 3 and shape[-1] in (1, 3) and min(shape[:2]) >= MIN_SIDE
    chosen = config.input_kind if config.input_kind != "auto" else ("image" if is_image else "signal")
    if dtype.kind != "f":
        problem = f"holds {dtype}, which may be indices"
    elif chosen == "image":
        problem = "" if is_image else "is not an image: expected (height, width, 1 or 3)"
    else:
        problem = "" if len(shape) >= 1 and shape[0] > 1 else "is not a signal: expected the time on the first axis"
    if problem:
        raise InputError(
            f"corruptions do not apply to this data: the input of shape {shape} {problem}. Set "
            "evaluation.robustness.input_kind, or disable evaluation.robustness",
            field="evaluation.robustness.input_kind",
            expected=config.input_kind,
            got=shape,
        )
    return "image" if chosen == "image" else "signal"


def _limits(data: AnySplit, name: str, kind: InputKind, config: RobustnessConfig) -> tuple[Limits, str]:
    if config.input_range:
        return (config.input_range[0], config.input_range[1]), "evaluation.robustness.input_range"
    ends = [(float(piece.inputs[name].min()), float(piece.inputs[name].max())) for piece in data.pieces()]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    for start, stop in _RANGES:
        close = _TOLERANCE * (stop - start)
        if start - close <= low and high <= stop + close and high - low >= _LEAST_USED * (stop - start):
            return (start, stop), f"the narrowest usual range of values from {low:.4g} to {high:.4g}"
    if kind == "image" or low == high:
        raise InputError(
            f"the values of the images are from {low:.4g} to {high:.4g}, so it is not known which are black and white. "
            "Set evaluation.robustness.input_range",
            field="evaluation.robustness.input_range",
            expected=("lowest", "highest"),
            got=(low, high),
        )
    return (low, high), "the lowest and the highest value of the data"


def chosen_corruptions(inputs: Inputs, config: RobustnessConfig) -> tuple[list[Corruption], dict[str, str]]:
    """Return the corruptions to apply, and {name: why not} of the others that are for such inputs.

    Raises:
        InputError: A corruption that the settings name does not apply, or none does.
    """
    known = registry.entries(Corruption)
    names: Sequence[str] = config.corruptions or [name for name, item in known.items() if item.kind == inputs.kind]
    chosen, skipped = [], {}
    for name in dict.fromkeys(names):
        reason = _why_not(registry.get(Corruption, name, field="evaluation.robustness.corruptions"), inputs, config)
        if reason is None:
            chosen.append(known[name])
        elif config.corruptions:
            raise InputError(
                f"evaluation.robustness.corruptions names {name}, which does not apply: {reason}",
                field="evaluation.robustness.corruptions",
                expected=tuple(other for other, item in known.items() if item.kind == inputs.kind),
                got=name,
            )
        else:
            skipped[name] = reason
    if not chosen:
        raise InputError(
            f"no corruption applies to inputs of shape {inputs.shape}: {'; '.join(skipped.values())}",
            field="evaluation.robustness.corruptions",
            got=(),
        )
    return chosen, skipped


def _why_not(corruption: Corruption, inputs: Inputs, config: RobustnessConfig) -> str | None:
    if corruption.kind != inputs.kind:
        return f"it is for inputs of kind {corruption.kind}, and these are of kind {inputs.kind}"
    if corruption.needs and importlib.util.find_spec(corruption.needs[0]) is None:
        return f"{corruption.needs[0]} is not installed: {install_hint(corruption.needs[1])}"
    severities = corruption.severities(inputs.parameter_set)
    if len(severities) > 1 and not set(severities) & set(config.severities):
        return f"it has no severity of {', '.join(map(str, config.severities))}"
    return corruption.refuses(inputs.shape, inputs.limits)


def check_corruptions(data: AnySplit, config: RobustnessConfig) -> None:
    """Check that corruptions apply to the data, before a long computation whose last part they are.

    Raises:
        InputError: As `inputs_of` and `chosen_corruptions`.
    """
    chosen_corruptions(inputs_of(as_split(data, limit=config.limit), config), config)


def severities_of(corruption: Corruption, inputs: Inputs, config: RobustnessConfig) -> tuple[int, ...]:
    """Return the severities to apply: those of the settings, or the only one of a corruption without severities."""
    known = corruption.severities(inputs.parameter_set)
    return known if len(known) == 1 else tuple(item for item in known if item in config.severities)

# SPDX-License-Identifier: Apache-2.0
"""The interface of corruptions: what changes the inputs of a model, by how much, and which inputs it applies to."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tfq import registry
from tfq.errors import InputError

InputKind = Literal["image", "signal"]
# The lowest and the highest value of a model's input in its own units.
Limits = tuple[float, float]
# The published sets of parameters, by name: which inputs they were chosen for.
PARAMETER_SETS = {
    "imagenet_c": "those of ImageNet-C, for images of 224 pixels",
    "cifar10_c": "those of CIFAR-10-C, for images of 32 pixels",
}
SEVERITIES = (1, 2, 3, 4, 5)


class Draws(Protocol):
    """The source of random numbers: `numpy.random.Generator`, of which a corruption uses only these methods."""

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: object = None) -> NDArray[np.float64]:
        """Draw from a normal distribution."""

    def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> NDArray[np.float64]:
        """Draw from a uniform distribution."""

    def random(self, size: object = None) -> NDArray[np.float64]:
        """Draw from [0, 1)."""

    def poisson(self, lam: object = 1.0, size: object = None) -> NDArray[np.float64]:
        """Draw from a Poisson distribution."""


Apply = Callable[..., NDArray[np.float32]]


@registry.extension_point("corruption")
@dataclass(frozen=True, kw_only=True)
class Corruption:
    """A change of a model's input that happens in the field.

    Args:
        name: The name that users write: `evaluation.robustness.corruptions`.
        help: What it changes, for `--help` and the documentation.
        kind: The inputs that it applies to: an "image" (height, width, 1 or 3) or a "signal" (time,) or (time,
            channels).
        apply: (input, parameter, draws, limits) -> the corrupted input. Both are float32 arrays of one example in the
            model's units and may not share memory; `limits` are the lowest and highest value of the model's input.
            All randomness comes from `draws`.
        parameters: {set of parameters: the parameter of each severity}. One of `PARAMETER_SETS`, or "" for the only
            set. A corruption without severities, such as a wrong channel order, has one parameter.
        unit: What a parameter is, for tables.
        source: Where the definition and the parameters come from.
        is_mistake: Whether it is a mistake of the app (a deployment error) instead of a property of the scene. Mistakes
            are left out of means over corruptions.
        refuses: (shape of an example, limits) -> why it does not apply to such inputs, or None.
        needs: The package that `apply` imports, with its extra: ("PIL", "images"); () if it needs none.
    """

    name: str
    help: str
    kind: InputKind
    apply: Apply
    parameters: Mapping[str, tuple[object, ...]]
    unit: str = ""
    source: str = ""
    is_mistake: bool = False
    refuses: Callable[[tuple[int, ...], Limits], str | None] = lambda shape, limits: None
    needs: tuple[str, str] | tuple[()] = ()

    def __post_init__(self) -> None:
        """Check that every set of parameters has one parameter, or one for each severity."""
        for name, values in self.parameters.items():
            if len(values) not in (1, len(SEVERITIES)):
                raise InputError(
                    f"corruption {self.name}: {len(values)} parameters in {name or 'its set'!r}, expected 1 or "
                    f"{len(SEVERITIES)}, one for each severity",
                    field="parameters",
                    expected=(1, len(SEVERITIES)),
                    got=len(values),
                )

    @property
    def columns(self) -> dict[str, str]:
        """The further cells of its row in the documentation."""
        texts = [f"{name.replace('_', '-')}: {_listed(values)}" for name, values in self.parameters.items() if name]
        texts += [_listed(values) for name, values in self.parameters.items() if not name]
        kind = "mistake" if self.is_mistake else self.kind
        return {"for": kind, "parameter": self.unit, "severities 1 to 5": "; ".join(texts), "source": self.source}

    def values(self, parameter_set: str) -> tuple[object, ...]:
        """Return the parameters of the set; of the only set if the corruption has one."""
        return self.parameters[parameter_set] if parameter_set in self.parameters else self.parameters[""]

    def severities(self, parameter_set: str) -> tuple[int, ...]:
        """Return the severities that it has: 1 to 5, or only 1."""
        return SEVERITIES[: len(self.values(parameter_set))]


def parameter_text(parameter: object) -> str:
    """Return a parameter as text; "" for None."""
    if parameter is None:
        return ""
    return ", ".join(f"{value:g}" for value in (parameter if isinstance(parameter, tuple) else (parameter,)))


def _listed(values: tuple[object, ...]) -> str:
    texts = [f"({parameter_text(item)})" if isinstance(item, tuple) else parameter_text(item) for item in values]
    return ", ".join(texts)


def draws_of(name: str, severity: int, index: int, seed: int) -> np.random.Generator:
    """Return the random numbers of one example: they depend on these values only, not on batches or their order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), severity, index])


def corrupt(
    examples: NDArray[Any],
    corruption: Corruption,
    severity: int,
    *,
    limits: Limits,
    first: int = 0,
    seed: int = 0,
    parameter_set: str = "",
) -> NDArray[np.float32]:
    """Return corrupted examples, float32 of the same shape.

    Args:
        examples: (n, ...) inputs of the model in its own units.
        corruption: What to apply.
        severity: From 1 to 5.
        limits: The lowest and the highest value of the model's input.
        first: The index of the first example among all examples, so that pieces and shards give the same values.
        seed: Of the random numbers.
        parameter_set: One of `PARAMETER_SETS`; ignored by corruptions with one set.

    Raises:
        InputError: The corruption does not have this severity, or returned another shape.
    """
    if severity not in corruption.severities(parameter_set):
        raise InputError(
            f"corruption {corruption.name} has no severity {severity}",
            field="evaluation.robustness.severities",
            expected=corruption.severities(parameter_set),
            got=severity,
        )
    parameter = corruption.values(parameter_set)[severity - 1]
    results = np.empty(examples.shape, np.float32)
    for place, example in enumerate(examples):
        draws = draws_of(corruption.name, severity, first + place, seed)
        changed = corruption.apply(np.asarray(example, np.float32), parameter, draws, limits)
        if changed.shape != example.shape:
            raise InputError(
                f"corruption {corruption.name} returned shape {changed.shape} for an input of shape {example.shape}",
                field="apply",
                expected=example.shape,
                got=changed.shape,
            )
        results[place] = changed
    return results

# SPDX-License-Identifier: Apache-2.0
"""Measure what each layer's number format costs and distorts: convert real files that differ in one layer.

The distortion of a file is the Kullback-Leibler divergence of its class probabilities from the float model's, in nats,
and for other outputs the squared error divided by the variance of the float model's values (by their mean square if
they hardly vary); both are means over the examples. Several outputs add up.

The bytes of a file are those after packing its flatbuffer again, as post-training techniques and 4-bit weights do, so
that the difference of two files is that of the layer.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfq import auditing, tflite
from tfq.backends import make_backend
from tfq.config import AuditConfig, BudgetConfig, ConversionConfig
from tfq.data import AnySplit
from tfq.errors import BackendError, InputError, TfqError, TfqWarning, install_hint
from tfq.evaluation.instructions import count_instructions, why_it_cannot_count
from tfq.search.assignment import LevelEffect, LevelTable
from tfq.search.criterion import outputs_of
from tfq.store import StageStore
from tfq.tflite.workload import peak_activation_bytes


@dataclass(frozen=True, kw_only=True)
class Level:
    """A number format of a layer in an int8 model.

    Attributes:
        name: Its name in `search.levels`.
        field: The field of `ConversionConfig` that lists its layers; "" for the scheme of the whole model.
        quantizers: The quantizers that can give it to single layers.
        audit_field: The field of `AuditConfig` that allows it in an int8 model; "" if it needs none.
    """

    name: str
    field: str
    quantizers: tuple[str, ...]
    audit_field: str = ""


LEVELS = {
    level.name: level
    for level in (
        Level(name="float", field="float_layers", quantizers=("tensorflow", "litert"), audit_field="allow_float"),
        Level(name="int16", field="int16_layers", quantizers=("litert",), audit_field="allow_int16"),
        Level(name="int8", field="", quantizers=("tensorflow", "litert")),
        Level(name="int8_per_tensor", field="per_tensor_layers", quantizers=("litert",)),
        Level(name="int4", field="int4_layers", quantizers=("tensorflow", "litert"), audit_field="allow_int4"),
    )
}
BASE_LEVEL = "int8"
# Probabilities below half a step of an int8 softmax count as this.
_LEAST_PROBABILITY = 0.5 / 256
# A variance below this fraction of the mean square is that of a constant: it is mostly the rounding of float32.
_LEAST_VARIANCE = 1e-10
# A mean square below this is that of zeros.
_LEAST_POWER = 1e-30


def available_levels(conversion: ConversionConfig, requested: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the levels that the quantizer can give to single layers, the base level included.

    Args:
        conversion: The settings that all candidates have in common.
        requested: Names of levels; empty means all that are available.

    Raises:
        InputError: The quantizer does not have a requested level.
    """
    chosen = [LEVELS[name] for name in requested] or list(LEVELS.values())
    for level in chosen:
        if requested and conversion.quantizer not in level.quantizers:
            raise InputError(
                f"search.levels: {level.name} of single layers needs conversion.quantizer="
                f"{' or '.join(level.quantizers)} ({install_hint('litert')}), got {conversion.quantizer}",
                field="search.levels",
                expected=tuple(name for name, item in LEVELS.items() if conversion.quantizer in item.quantizers),
                got=level.name,
            )
    names = [level.name for level in chosen if conversion.quantizer in level.quantizers]
    if not conversion.per_channel:
        names = [name for name in names if name != "int8_per_tensor"]  # the base is per tensor already
    return tuple(dict.fromkeys((BASE_LEVEL, *names)))


def with_levels(conversion: ConversionConfig, levels: Mapping[str, str]) -> ConversionConfig:
    """Return a config with the level of each layer in `levels`, {layer: name of the level}."""
    added: dict[str, tuple[str, ...]] = {}
    for layer, name in levels.items():
        if field := LEVELS[name].field:
            added[field] = (*added.get(field, getattr(conversion, field)), layer)
    return dataclasses.replace(conversion, **added)  # type: ignore[arg-type]


def output_distortion(outputs: Sequence[NDArray], expected: Sequence[NDArray]) -> float:
    """Return how far outputs are from the float model's; see the module docstring.

    Args:
        outputs: Real values of each output, (n, ...).
        expected: Those of the float model.
    """
    total = 0.0
    for values, reference in zip(outputs, expected, strict=True):
        values, reference = values.astype(np.float64), reference.astype(np.float64)
        if _are_probabilities(reference):
            p, q = (np.maximum(item, _LEAST_PROBABILITY) for item in (reference, values))
            p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
            total += float((p * np.log(p / q)).sum(axis=-1).mean())
        else:
            total += float(((values - reference) ** 2).mean() / _signal(reference))
    return total if math.isfinite(total) else math.inf


def _signal(values: NDArray) -> float:
    """Return what errors of an output are relative to: its variance, its mean square if constant, or 1 if zero."""
    variance, power = float(values.var()), float((values**2).mean())
    if power < _LEAST_POWER:
        return 1.0
    return variance if variance > _LEAST_VARIANCE * power else power


def _are_probabilities(values: NDArray) -> bool:
    """Check whether the last axis has probabilities of at least two classes."""
    return (
        values.ndim > 1
        and values.shape[-1] > 1
        and values.min() >= 0
        and np.allclose(values.sum(axis=-1), 1, atol=1e-3)
    )


def costs_of(content: bytes, budget: BudgetConfig) -> dict[str, float]:
    """Return the costs of a flatbuffer that are bounded: its "bytes", "arena_bytes" and "instructions".

    The bytes are always in it. "latency_ratio", which needs another file to compare with, is not.

    Raises:
        BackendError: Instructions are bounded, and budget.instructions_backend cannot count them here.
    """
    costs: dict[str, float] = {"bytes": len(content)}
    if budget.max_arena_bytes:
        costs["arena_bytes"] = peak_activation_bytes(tflite.read(content))
    if budget.max_instructions:
        costs["instructions"] = count_instructions(content, budget.instructions_backend).instructions
    return costs


def check_costs(budget: BudgetConfig) -> None:
    """Check that `costs_of` can measure the costs that are bounded, without a file.

    Raises:
        InputError: budget.instructions_backend does not exist.
        BackendError: Instructions are bounded, and budget.instructions_backend cannot count them here.
    """
    field, name = "search.budget.instructions_backend", budget.instructions_backend
    if budget.max_instructions and (reason := why_it_cannot_count(make_backend(name, field=field))):
        raise BackendError(
            f"{field}={name}, which search.budget.max_instructions needs: {reason}", field=field, got=name
        )


def costs_key(budget: BudgetConfig) -> dict[str, Any]:
    """Return JSON values that say which costs `costs_of` and a search measure, for keys of stored results."""
    counts = bool(budget.max_instructions)
    return {
        "arena": bool(budget.max_arena_bytes),
        "latency": bool(budget.max_latency_ratio),
        "instructions": budget.instructions_backend if counts else None,
    }


def cost_bounds(budget: BudgetConfig) -> dict[str, float]:
    """Return {cost: bound} of all costs that the budget bounds."""
    bounds = {
        "bytes": budget.max_bytes,
        "arena_bytes": budget.max_arena_bytes,
        "instructions": budget.max_instructions,
        "latency_ratio": budget.max_latency_ratio,
    }
    return {name: bound for name, bound in bounds.items() if bound}


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelMeasurement:
    """Measures the levels of layers.

    Attributes:
        floating: The float flatbuffer.
        base: The flatbuffer with all layers at the base level.
        train: The data that conversions calibrate with.
        examples: The data that distortions are measured on; it needs no labels.
        conversion: The settings of the base.
        costs: (flatbuffer) -> {cost: value}; "bytes" is added.
        store: Keeps each measurement.
        basis: JSON values that determine all measurements, for the store.
    """

    floating: bytes
    base: bytes
    train: AnySplit
    examples: AnySplit
    conversion: ConversionConfig
    costs: Callable[[bytes], Mapping[str, float]]
    store: StageStore
    basis: Mapping[str, Any]

    def table(
        self,
        layers: Sequence[str],
        levels: Sequence[str],
        progress: Callable[[str], object] = lambda line: None,
        *,
        around: Mapping[str, str] | None = None,
    ) -> LevelTable:
        """Measure every layer at every level, while the other layers have those of `around`.

        Args:
            layers: The names of the layers.
            levels: The names of the levels, of `LEVELS`.
            progress: Called with one line of text after each layer.
            around: {layer: level}. The effects are changes from this assignment; None is the base level for all layers.

        Raises:
            TfqError: The outputs of the base or of the float model are not finite, or a cost of the base cannot be
                measured.
        """
        expected = outputs_of(self.floating, self.examples)
        present = {layer: level for layer, level in (around or {}).items() if level != BASE_LEVEL}
        center = with_levels(self.conversion, present)
        base = self._measured("base", center, expected, None if present else lambda: self.base)
        if "impossible" in base:
            raise TfqError(
                f"search.pareto_points: levels cannot be compared with the base, which is every layer in {BASE_LEVEL}: "
                f"{base['impossible']}, or those of the float model. Check the training examples for values that are "
                "not finite or outside of the model's range, or leave search.pareto_points out",
                field="search.pareto_points",
            )
        effects, impossible = [], {}
        for number, layer in enumerate(layers, 1):
            for level in dict.fromkeys((BASE_LEVEL, *levels)):
                if level == present.get(layer, BASE_LEVEL):
                    unchanged = dict.fromkeys(base["costs"], 0.0)
                    effects.append(LevelEffect(layer=layer, level=level, distortion=0.0, costs=unchanged))
                    continue
                changed = with_levels(self.conversion, {**present, layer: level})
                found = self._measured(f"{layer} in {level}", changed, expected, None)
                if "impossible" in found:
                    impossible[f"{layer} in {level}"] = found["impossible"]
                    continue
                changes = {name: found["costs"][name] - value for name, value in base["costs"].items()}
                distortion = found["distortion"] - base["distortion"]
                effects.append(LevelEffect(layer=layer, level=level, distortion=distortion, costs=changes))
            shown = ", ".join(f"{item.level} {item.distortion:+.2g}" for item in effects if item.layer == layer)
            progress(f"[{number}/{len(layers)}] {layer}: distortion of the outputs {shown}")
        return LevelTable(
            base_level=BASE_LEVEL,
            base_distortion=base["distortion"],
            base_costs=base["costs"],
            effects=tuple(effects),
            impossible=impossible,
        )

    def distortion(self, content: bytes) -> float:
        """Return the distortion of a file on the examples."""
        return output_distortion(outputs_of(content, self.examples), outputs_of(self.floating, self.examples))

    def _measured(
        self,
        name: str,
        conversion: ConversionConfig,
        expected: Sequence[NDArray],
        content: Callable[[], bytes] | None,
    ) -> dict[str, Any]:
        """Return the "distortion" and the "costs" of a file, or why it is "impossible"."""

        def make(directory: Path) -> dict[str, Any]:
            try:
                built = content() if content else self._converted(conversion)
                distortion = output_distortion(outputs_of(built, self.examples), expected)
                costs = self.costs(built) if math.isfinite(distortion) else {}
            except TfqError as error:
                if content:
                    raise
                return {"impossible": str(error)}
            if not math.isfinite(distortion):
                return {"impossible": "its outputs are not finite"}
            # Packing again adds a constant to the file of a quantizer; files with 4-bit weights or techniques have it.
            size = len(tflite.pack(tflite.unpack(built), len(built)))
            return {"distortion": distortion, "costs": {**costs, "bytes": size}}

        return self.store.run(f"search: level, {name}", {**self.basis, "candidate": conversion.to_dict()}, make).details

    def _converted(self, conversion: ConversionConfig) -> bytes:
        """Convert without verification and without warnings.

        Raises:
            TfqError: The conversion is not possible, or the target cannot run its result.
        """
        from tfq.conversion import convert_with_record

        with warnings.catch_warnings():
            # They would be repeated for every layer; those of the candidates are shown.
            warnings.simplefilter("ignore", TfqWarning)
            settings = dataclasses.replace(conversion, verify=False, strict=False)
            built = convert_with_record(self.floating, self.train, settings).content
        if conversion.target:
            failures = _failures(built, conversion.target)
            if len(failures) > len(_failures(self.base, conversion.target)):
                raise TfqError(f"{conversion.target}: {failures[0]}")
        return built


def _failures(content: bytes, target: str) -> list[str]:
    return [finding.message for finding in auditing.audit_model(content, AuditConfig(require=target)).failures]

# SPDX-License-Identifier: Apache-2.0
"""What a model costs on a backend besides time: memory, cycles, ops on the CPU; and the bounds on these costs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfq import registry
from tfq.backends import BackendKind, BackendResult
from tfq.config import CostRequireConfig, EvaluationConfig
from tfq.errors import InputError
from tfq.requirement import Requirement, at_least, at_most


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs in a `BackendResult`; an `EvaluationRecord` has the same fields.

    Attributes:
        how: How the backend obtained its figures: "measured", "emulated" or "estimated".
        memory_bytes: Bytes by purpose; None if the backend does not report them.
        memory_reason: Why there is no memory_bytes.
        figures: Other costs by name.
        op_figures: Costs of single ops: title of the op -> {name: value}.
        total_ops: Number of ops; None if unknown.
        delegated_ops: Number of ops on an accelerator; None if unknown.
        unaccelerated: Ops that the accelerator leaves to the CPU: title of the op -> reason, or "".
        caveats: What the figures leave out or assume, for every model.
        notes: Deviations from what was requested.
    """

    how: str
    memory_bytes: dict[str, int] | None
    memory_reason: str | None
    figures: dict[str, float]
    op_figures: dict[str, dict[str, float]]
    total_ops: int | None
    delegated_ops: int | None
    unaccelerated: dict[str, str]
    caveats: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, result: BackendResult) -> "Costs":
        """Return the costs in a result."""
        return cls(
            how=result.how,
            memory_bytes=None if result.memory_bytes is None else dict(result.memory_bytes),
            memory_reason=result.memory_reason,
            figures=dict(result.figures),
            op_figures={op: dict(figures) for op, figures in result.op_figures.items()},
            total_ops=result.total_ops,
            delegated_ops=result.delegated_ops,
            unaccelerated=dict(result.unaccelerated),
            caveats=result.caveats,
            notes=result.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "caveats": list(self.caveats), "notes": list(self.notes)}


def cost_rows(costs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) rows for the terminal: memory, figures, ops on the CPU, caveats.

    Args:
        costs: Has the keys of `Costs`. The items of a total in memory_bytes ("arena.head") are listed after it.
    """
    how, memory = costs["how"], costs["memory_bytes"] or {}
    rows = []
    for name, value in memory.items():
        if "." not in name:
            items = {key[len(name) + 1 :]: size for key, size in memory.items() if key.startswith(f"{name}.")}
            listed = ", ".join(f"{_words(key)} {size:,}" for key, size in items.items())
            rows.append((_words(name), f"{value:,} bytes ({how}){f': {listed}' if listed else ''}"))
    for name, value in costs["figures"].items():
        rows.append((_words(name), f"{value:,} ({how})" if value == int(value) else f"{value:,.6g} ({how})"))
    rows += [("on the CPU", f"{op}{f': {reason}' if reason else ''}") for op, reason in costs["unaccelerated"].items()]
    return [*rows, *(("note", caveat) for caveat in costs["caveats"])]


def cost_requirements(costs: Mapping[str, Any], backend: str, require: CostRequireConfig) -> list[Requirement]:
    """Return every bound of `require` on a cost, with the value and the verdict. A missing value misses its bound.

    Args:
        costs: Has the keys of `Costs`.
        backend: The name of the backend, for reasons.
        require: The bounds.
    """
    memory = costs.get("memory_bytes") or {}
    flash = [size for purpose, size in memory.items() if purpose.endswith("flash")]
    values = {
        # The arena that is needed may be larger than what the runtime records.
        "arena": max((memory[name] for name in ("arena", "arena_minimum") if name in memory), default=None),
        "sram": memory.get("sram"),
        "flash": sum(flash) if flash else None,
    }
    requirements = []
    for purpose, value in values.items():
        name = f"max_{purpose}_bytes"
        bound = getattr(require, name)
        if bound is not None:
            requirements.append(at_most(name, bound, value, _missing_memory(costs, backend, purpose)))
    if require.min_accelerated_fraction is not None:
        total, delegated = costs.get("total_ops"), costs.get("delegated_ops")
        fraction = delegated / total if total and delegated is not None else None
        reason = f"{backend} does not report which ops an accelerator runs"
        requirements.append(at_least("min_accelerated_fraction", require.min_accelerated_fraction, fraction, reason))
    return requirements


# Settings of an evaluation that need the model's outputs.
_NEED_OUTPUTS = ("reference", "metric", "output_metrics", "output")
_BOUNDS_ON_OUTPUTS = ("min_accuracy", "max_accuracy_drop", "min_agreement", "min_sqnr_db")


def check_computes_outputs(kind: BackendKind, config: EvaluationConfig, arguments: Mapping[str, object]) -> None:
    """Raise InputError if backends of this kind compute no outputs, but a setting needs them.

    Args:
        kind: The kind of config.backend.
        config: The settings.
        arguments: What else needs outputs, by its name in messages, unless it is None.
    """
    settings: dict[str, object] = {f"evaluation.{name}": getattr(config, name) or None for name in _NEED_OUTPUTS}
    bounds = {f"evaluation.require.{name}": getattr(config.require, name) for name in _BOUNDS_ON_OUTPUTS}
    need = [name for name, value in {**settings, **bounds, **arguments}.items() if value is not None]
    if kind.computes_outputs or not need:
        return
    others = [name for name, other in registry.entries(BackendKind).items() if other.computes_outputs]
    raise InputError(
        f"evaluation.backend={config.backend} estimates costs and computes no outputs, but these need outputs: "
        f"{', '.join(need)}. Use a backend that computes them ({', '.join(others)}), or leave these out",
        field="evaluation.backend",
        expected=tuple(others),
        got=config.backend,
    )


def _missing_memory(costs: Mapping[str, Any], backend: str, purpose: str) -> str:
    if costs.get("memory_bytes"):
        purposes = ", ".join(name for name in costs["memory_bytes"] if "." not in name)
        reported = f"{backend} reports no {purpose}, only {purposes}"
    else:
        reported = f"{backend}: {costs.get('memory_reason')}"
    every = registry.entries(BackendKind)
    kinds = [name for name, kind in every.items() if kind.reports_memory and kind.in_default_list]
    return f"{reported}. Backends that report memory: {', '.join(kinds)}"


def _words(name: str) -> str:
    return name.replace("_", " ")

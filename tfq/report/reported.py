# SPDX-License-Identifier: Apache-2.0
"""The models of a record as the sections of a report know them. Any part of a record may be missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfq.report.formatting import is_number, model_label, plain

Record = Mapping[str, Any]

# The float model is what the others are compared with: that its ops are float is no finding.
REFERENCE = "float"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A model of the record. series: its number, which is its colour. Parts that the record does not have are empty."""

    name: Any
    label: str
    series: int
    file: Any
    evaluation: Record
    audit: Record
    parity: Record
    instructions: Record
    qat_parity: Record
    sha256: Record


def models_of(record: Record) -> list[Reported]:
    """Every model of the record, in its order."""
    return [
        Reported(
            name=model.get("name", "?"),
            label=model_label(model.get("name", "?")),
            series=series,
            file=model.get("file"),
            evaluation=part(model, "evaluation"),
            audit=part(model, "audit"),
            parity=part(model, "parity"),
            instructions=part(model, "instructions"),
            qat_parity=part(model, "qat_parity"),
            sha256=part(model, "sha256"),
        )
        for series, model in enumerate(record.get("models") or [])
    ]


def reference_of(models: Sequence[Reported]) -> Reported | None:
    """The float model, None where the record has none."""
    return next((model for model in models if model.label == REFERENCE), None)


def part(record: Record, key: str) -> Record:
    """An object of the record, empty where it is missing or null."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def runners_of(models: Sequence[Reported], key: str) -> list[str]:
    """Every runner that has a word on "parity" or "instructions" of a model; in the order met."""
    return list(dict.fromkeys(runner for model in models for runner in getattr(model, key)))


def benchmark_of(record: Record) -> tuple[Record, list[Record]]:
    """What the record has on the benchmark, and its models with numbers."""
    benchmark = part(record, "benchmark")
    timed = [model for model in benchmark.get("models") or [] if is_number(model.get("p50_ms"))]
    return benchmark, timed


def series_of(record: Record, name: Any) -> int:
    """The number of the model of that name; one past the last for a stranger."""
    names = [model.get("name") for model in record.get("models") or []]
    return names.index(name) if name in names else len(names)


def title_of(record: Record) -> str:
    """The heading: "tfq run: digits_cnn"."""
    model = plain(part(record, "config").get("model") or "a model").rstrip("/").rpartition("/")[2]
    return f"tfq {plain(record.get('script', 'run'))}: {model}"


def warnings_of(record: Record) -> list[str]:
    """Every warning of the run once: its own, then those of each evaluation, with the model's label."""
    told = [plain(warning) for warning in record.get("warnings") or []]
    for model in models_of(record):
        for warning in model.evaluation.get("warnings") or []:
            if plain(warning) not in told:
                told.append(f"{model.label}: {plain(warning)}")
    return list(dict.fromkeys(told))

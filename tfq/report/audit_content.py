# SPDX-License-Identifier: Apache-2.0
"""The sections on the audit (verdicts, types of ops, findings) and on layers (size and zeros of their weights)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfq.auditing import find_target
from tfq.report.formatting import DASH, count, is_number, number_of, percent, plain, scalar
from tfq.report.record import REFERENCE, Record, Reported, models_of, part
from tfq.report.tables import SORTABLE_FROM, Bars, Section, Table, fractions

_MOST_FINDINGS = 60

_SCHEMES = {
    "full_int8": "full int8",
    "int8_float_io": "int8, float inputs or outputs",
    "int8_uint8_io": "int8, uint8 inputs or outputs",
    "int16x8": "int16 activations, int8 weights",
    "dynamic_range": "dynamic range: int8 weights in float ops",
    "weight_only": "int8 weights alone, float ops",
    "weight_only_int8": "int8 weights alone, float ops",
    "weight_only_int4": "int4 weights alone, float ops",
    "weight_only_int2": "int2 weights alone, float ops",
    "float16": "float16 weights",
    "float32": "float32",
}


def audit_section(record: Record) -> Section:
    """Return the audit's verdict on each model, the number of ops by kind and type, and the findings."""
    audited = [model for model in models_of(record) if model.audit]
    if not audited:
        return Section(key="audit", title="Audit: types of all ops", paragraphs=("No model was audited.",))
    about = [
        "The audit reads the type of each tensor of each op in the files. A finding is an op or tensor that does not "
        "have the required type."
    ]
    if any(model.label == REFERENCE for model in audited):
        about.append("Nothing is required of the float model, so its findings are not listed.")
    listed = [model for model in audited if model.label != REFERENCE and model.audit.get("findings")]
    tables = [_verdicts(audited)]
    if ops := _op_table(audited):
        tables.append(ops)
    tables += [_findings(model.label, model.audit["findings"]) for model in listed]
    fails = sum(_is_failure(finding) for model in listed for finding in model.audit["findings"])
    gist = "; ".join(f"{model.label}: {verdict_of(model.label, model.audit)}" for model in audited)
    return Section(
        key="audit",
        title="Audit: types of all ops",
        gist=f"{gist}; {number_of(fails, 'failure')}" if fails else gist,
        paragraphs=tuple(about),
        tables=tuple(tables),
    )


def is_clean(audit: Record) -> bool:
    """Check whether the audit passed."""
    return bool(audit.get("ok"))


def scheme_text(scheme: Any) -> str:
    """Return the scheme that the audit recognized in a file, in words."""
    if not isinstance(scheme, str):
        return scalar(scheme)
    target = find_target(scheme)
    return _SCHEMES.get(scheme) or (target.short_title if target else plain(scheme))


def verdict_of(label: str, audit: Record) -> str:
    """Return the verdict: the scheme in words, "not full int8", or "reference" for the float model."""
    if label == REFERENCE:
        return "reference"
    required = audit.get("requirement") or "full_int8"
    if not is_clean(audit):
        return f"not {scheme_text(required)}"
    scheme = scheme_text(audit.get("scheme"))
    target = find_target(required)
    return f"{scheme}, runs on {target.short_title}" if target else scheme


def findings_text(audit: Record) -> str:
    """Return the number of findings by severity: "2 fail, 1 noted", "none"."""
    findings = audit.get("findings") or []
    fails = sum(_is_failure(finding) for finding in findings)
    allowed = sum(bool(finding.get("allowed")) for finding in findings)
    parts = [(fails, "fail"), (allowed, "allowed"), (len(findings) - fails - allowed, "noted")]
    return ", ".join(f"{count(number)} {word}" for number, word in parts if number) or "none"


def _is_failure(finding: Record) -> bool:
    return finding.get("severity", "fails") == "fails" and not finding.get("allowed")


def _verdicts(models: Sequence[Reported]) -> Table:
    rows = tuple(
        (
            model.label,
            verdict_of(model.label, model.audit),
            scalar(model.audit.get("scheme")),
            f"{count(len(model.audit.get('findings') or []))}, not listed"
            if model.label == REFERENCE
            else findings_text(model.audit),
            scalar(model.audit.get("granularity")),
            scalar(model.audit.get("input_types")),
            scalar(model.audit.get("output_types")),
        )
        for model in models
    )
    return Table(
        key="verdicts",
        columns=("model", "verdict", "scheme", "findings", "weights", "inputs", "outputs"),
        rows=rows,
        numeric=(False,) * 7,
        row_series=tuple(model.series for model in models),
        bad=frozenset(
            (row, 1) for row, model in enumerate(models) if model.label != REFERENCE and not is_clean(model.audit)
        ),
    )


def _op_table(models: Sequence[Reported]) -> Table | None:
    counts = [model.audit.get("op_counts") or {} for model in models]
    names = sorted({name for of_model in counts for name in of_model})
    if not names:
        return None
    rows = tuple(
        (
            plain(name),
            *(_op_cell(model.audit, name, of_model) for model, of_model in zip(models, counts, strict=True)),
            _op_findings(models, name),
        )
        for name in names
    )
    totals = ("all ops", *(count(sum(of_model.values())) for of_model in counts), "")
    typed = any(model.audit.get("op_types") for model in models)
    return Table(
        key="ops",
        columns=("op", *(model.label for model in models), "findings"),
        rows=(*rows, totals),
        numeric=(False, *(True for _ in models), False),
        caption="Ops in each file" + (", by type" if typed else ""),
        column_series={1 + column: model.series for column, model in enumerate(models)},
        totals=1,
        sortable=len(rows) > 10,
    )


def _op_cell(audit: Record, name: str, counts: Record) -> str:
    """Return the number of such ops by type: "4 int8", "3 int8, 1 float32"; "4" if the record has no types."""
    types = (audit.get("op_types") or {}).get(name)
    if not counts.get(name):
        return "0"
    if not isinstance(types, Mapping) or not types:
        return count(counts[name])
    return ", ".join(f"{count(number)} {plain(dtype)}" for dtype, number in types.items())


def _op_findings(models: Sequence[Reported], name: str) -> str:
    parts = []
    for model in models:
        results = [f for f in model.audit.get("findings") or [] if f.get("op") == name.partition(":")[0]]
        fails = sum(_is_failure(finding) for finding in results)
        if model.label != REFERENCE and results:
            grave = number_of(fails, "failure") if fails else number_of(len(results), "note")
            parts.append(f"{model.label}: {grave}")
    return "; ".join(parts) or DASH


def _findings(label: str, findings: Sequence[Record]) -> Table:
    ordered = sorted(findings, key=lambda finding: not _is_failure(finding))
    rows = tuple(
        (
            DASH if finding.get("op_index") is None else f"#{plain(finding['op_index'])}",
            *(plain(finding.get(key) or DASH) for key in ("op", "keras_layer")),
            "allowed" if finding.get("allowed") else plain(finding.get("severity") or DASH),
            plain(finding.get("message") or finding.get("kind") or DASH),
        )
        for finding in ordered[:_MOST_FINDINGS]
    )
    further = len(ordered) - len(rows)
    return Table(
        key="findings",
        columns=("op #", "op", "layer", "severity", "finding, reason and remedy"),
        rows=rows,
        numeric=(False,) * 5,
        caption=f"Findings in {label}",
        bad=frozenset((row, 3) for row, finding in enumerate(ordered[:_MOST_FINDINGS]) if _is_failure(finding)),
        notes=(f"{number_of(further, 'further finding')} in report.json",) if further else (),
    )


@dataclass
class _Weights:
    """The weights of a layer in one file."""

    bytes: int = 0
    values: int = 0
    zeros: int = 0
    dtypes: dict[str, None] = field(default_factory=dict)
    uncounted: bool = False

    def add(self, weight: Record) -> None:
        """Add a tensor of the layer."""
        self.bytes += weight["bytes"]
        if is_number(weight.get("values")) and is_number(weight.get("zeros")):
            self.values += weight["values"]
            self.zeros += weight["zeros"]
        else:
            self.uncounted = True
        self.dtypes[plain(weight.get("dtype") or "?")] = None

    @property
    def sparsity(self) -> float | None:
        """Fraction of exact zeros; None if they were not counted."""
        return self.zeros / self.values if self.values and not self.uncounted else None


def layers_section(record: Record) -> Section:
    """Return bytes and zeros by Keras layer for each file, and the zeros of the Keras model."""
    models = [model for model in models_of(record) if model.audit.get("weights")]
    sparsity = {plain(layer): value for layer, value in part(record, "sparsity").items() if is_number(value)}
    title = "Layers: size and sparsity"
    if not models and not sparsity:
        message = "The record has neither the size of the layers' weights nor their sparsity."
        return Section(key="layers", title=title, paragraphs=(message,))
    if not models:
        message = (
            "Fraction of zeros among each layer's weights in the Keras model. The record does not have the size of the "
            "weights in the files."
        )
        return Section(key="layers", title=title, paragraphs=(message,), tables=(_sparsities(sparsity),))
    about = "Bytes of each Keras layer's weights in each file, and the fraction of them that is exactly zero."
    if sparsity:
        about += " The last column is the compressed Keras model before its conversion."
    else:
        about += " No weights were pruned, or the sparsity of the Keras model was not measured."
    weights = {model.series: _by_layer(model.audit["weights"]) for model in models}
    return Section(key="layers", title=title, paragraphs=(about,), tables=(_layers(models, weights, sparsity),))


def _by_layer(weights: Sequence[Record]) -> dict[str, _Weights]:
    results: dict[str, _Weights] = {}
    for weight in weights:
        if isinstance(weight, Mapping) and is_number(weight.get("bytes")):
            # A tensor of an unknown layer is listed under its own name.
            layer = plain(weight.get("keras_layer") or weight.get("tensor") or "?")
            results.setdefault(layer, _Weights()).add(weight)
    return results


def zeros_of(model: Reported) -> float | None:
    """Return the fraction of exact zeros among all weights of a file; None if not all were counted."""
    return _sum(_by_layer(model.audit.get("weights") or [])).sparsity


def _sum(layers: Mapping[str, _Weights]) -> _Weights:
    total = _Weights()
    for item in layers.values():
        total.bytes, total.values, total.zeros = (
            total.bytes + item.bytes,
            total.values + item.values,
            total.zeros + item.zeros,
        )
        total.uncounted |= item.uncounted
    return total


def _layers(
    models: Sequence[Reported], weights: Mapping[int, Mapping[str, _Weights]], sparsity: Mapping[str, float]
) -> Table:
    layers = list(dict.fromkeys([*(layer for of_model in weights.values() for layer in of_model), *sparsity]))
    missing = _Weights()
    cells = {layer: [weights[model.series].get(layer, missing) for model in models] for layer in layers}
    rows = [
        (
            layer,
            *(count(item.bytes) if item.dtypes else DASH for item in cells[layer]),
            *(percent(item.sparsity) for item in cells[layer]),
            *([percent(sparsity.get(layer))] if sparsity else []),
        )
        for layer in layers
    ]
    columns = (
        "layer",
        *(f"{model.label}, {_dtypes(weights[model.series])} bytes" for model in models),
        *(f"{model.label}, zeros" for model in models),
        *(["Keras model, zeros"] if sparsity else []),
    )
    number, series = len(models), tuple(model.series for model in models)
    totals = _totals(models, weights, len(columns))
    blank = (None,) * number
    sizes = fractions([float(item.bytes) for layer in layers for item in cells[layer]])
    size_bars = (*(sizes[row * number : (row + 1) * number] for row in range(len(layers))), *(blank for _ in totals))
    zero_bars = (*(tuple(item.sparsity for item in cells[layer]) for layer in layers), *(blank for _ in totals))
    return Table(
        key="layers",
        columns=columns,
        rows=(*rows, *totals),
        column_series={1 + at + more: one for more in (0, number) for at, one in enumerate(series)},
        bars=(
            Bars(before=1, title="bytes", rows=size_bars, series=series),
            Bars(before=1 + number, title="zeros", rows=zero_bars, series=series),
        ),
        totals=len(totals),
        sortable=len(layers) >= SORTABLE_FROM,
    )


def _dtypes(layers: Mapping[str, _Weights]) -> str:
    return "/".join(dict.fromkeys(dtype for item in layers.values() for dtype in item.dtypes))


def _totals(
    models: Sequence[Reported], weights: Mapping[int, Mapping[str, _Weights]], width: int
) -> list[tuple[str, ...]]:
    """Return the rows for all weights of each file, and for the rest: graph, names, biases and scales."""
    sums = [_sum(weights[model.series]) for model in models]
    sizes = [model.audit.get("model_bytes") or model.evaluation.get("model_bytes") for model in models]
    rests = [count(size - total.bytes) if is_number(size) else DASH for size, total in zip(sizes, sums, strict=True)]
    pad = ("",) * (width - 1 - 2 * len(models))
    return [
        ("all weights", *(count(total.bytes) for total in sums), *(percent(total.sparsity) for total in sums), *pad),
        ("rest of the file", *rests, *("" for _ in models), *pad),
    ]


def _sparsities(sparsity: Mapping[str, float]) -> Table:
    return Table(
        key="layers",
        columns=("layer", "zeros"),
        rows=tuple((layer, percent(fraction)) for layer, fraction in sparsity.items()),
        bars=(Bars(before=1, title="", rows=tuple((value,) for value in sparsity.values()), series=(0,)),),
        sortable=len(sparsity) >= SORTABLE_FROM,
    )

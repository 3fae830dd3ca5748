# SPDX-License-Identifier: Apache-2.0
"""The report's section on the audits: the verdicts, what was found, and the ops of each file."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq.report.formatting import DASH, count, model_label, plain, scalar
from tfq.report.tables import Section, Table

Record = Mapping[str, Any]

# The float model is what the others are compared with: that its ops are float is no finding.
REFERENCE = "float"


def audit_section(record: Record) -> Section:
    """The audit's verdict on each model, its findings, and how many ops of each kind there are."""
    audits = {model_label(model.get("name", "?")): model.get("audit") for model in record.get("models") or []}
    audited = {label: audit for label, audit in audits.items() if audit}
    if not audited:
        return Section(title="Audit", paragraphs=("No model was audited.",))
    about = ["Whether every tensor of every op is an integer; what is not is named, with the layer that it came from."]
    if REFERENCE in audited:
        about.append("The float model is the reference: its float ops are counted, not listed.")
    listed = {label: audit for label, audit in audited.items() if label != REFERENCE and audit.get("findings")}
    tables = [_verdicts(audited), *(_findings(label, audit["findings"]) for label, audit in listed.items())]
    if ops := _op_counts(audited):
        tables.append(ops)
    return Section(title="Audit", paragraphs=tuple(about), tables=tuple(tables))


def verdict_of(label: str, audit: Record) -> str:
    """The verdict: "full int8", "not full int8", or that nothing was asked of the reference."""
    if label == REFERENCE:
        return "reference"
    return "full int8" if audit.get("ok") else "not full int8"


def findings_text(audit: Record) -> str:
    """What was found, by how grave it is: "2 fail, 1 noted", "none"."""
    findings = audit.get("findings") or []
    fails = sum(finding.get("severity", "fails") == "fails" and not finding.get("allowed") for finding in findings)
    allowed = sum(bool(finding.get("allowed")) for finding in findings)
    parts = [(fails, "fail"), (allowed, "allowed"), (len(findings) - fails - allowed, "noted")]
    return ", ".join(f"{count(number)} {word}" for number, word in parts if number) or "none"


def _verdicts(audits: Record) -> Table:
    rows = tuple(
        (
            label,
            verdict_of(label, audit),
            scalar(audit.get("scheme")),
            f"{count(len(audit.get('findings') or []))}, not listed" if label == REFERENCE else findings_text(audit),
            scalar(audit.get("granularity")),
            scalar(audit.get("input_types")),
            scalar(audit.get("output_types")),
        )
        for label, audit in audits.items()
    )
    columns = ("model", "verdict", "scheme", "findings", "weights", "inputs", "outputs")
    return Table(columns=columns, rows=rows, numeric=(False,) * 7)


def _findings(label: str, findings: Sequence[Record]) -> Table:
    rows = tuple(
        (
            DASH if finding.get("op_index") is None else f"#{plain(finding['op_index'])}",
            *(plain(finding.get(key) or DASH) for key in ("op", "keras_layer", "tensor")),
            "allowed" if finding.get("allowed") else plain(finding.get("severity") or DASH),
            plain(finding.get("message") or finding.get("kind") or DASH),
        )
        for finding in findings
    )
    columns = ("op #", "op", "layer", "tensor", "severity", "what was found")
    return Table(columns=columns, rows=rows, numeric=(False,) * 6, caption=f"Findings in {label}")


def _op_counts(audits: Record) -> Table | None:
    counts = {label: audit.get("op_counts") or {} for label, audit in audits.items()}
    names = sorted({name for of_model in counts.values() for name in of_model})
    if not names:
        return None
    rows = tuple((plain(name), *(count(of_model.get(name, 0)) for of_model in counts.values())) for name in names)
    return Table(columns=("op", *counts), rows=rows, caption="Ops in each file")

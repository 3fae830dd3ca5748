# SPDX-License-Identifier: Apache-2.0
"""Show the result of a gate: text for the terminal, JUnit XML for CI systems, Markdown for a pull request."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from tfq.comparison.gate_result import (
    FigureResult,
    Gate,
    GatedModel,
    change_sentence,
    change_text,
    number,
    sentence,
    tolerance_text,
)
from tfq.comparison.metric_changes import metric_lines
from tfq.text_table import aligned

# Statuses of figures that did not change, which the Markdown summary leaves out.
_UNCHANGED = ("same", "not gated")
# How many changes of layers the text lists.
_MOST_CHANGES = 12


def to_text(gate: Gate) -> str:
    """Return the result as text for the terminal: a table of all figures of each model, causes, and the verdict."""
    lines: list[str] = []
    for model in gate.models:
        if len(gate.models) > 1:
            lines += [f"{model.name} ({model.file or 'not in the new record'})"]
        if model.figures:
            rows = [["figure", "baseline", "new", "change", "tolerance", "verdict"]]
            rows += [_cells(item) for item in model.figures]
            lines += aligned(rows, left=1)
        lines += _ungated_lines(model)
        lines += _pairing_note(model)
        lines += metric_lines(model.metrics, "baseline", "new")
        lines += _change_lines(model)
        lines.append("")
    lines += [f"{name} is not in the baseline" for name in gate.new_models]
    failures = gate.failures
    lines += [f"FAILED: {failure}" for failure in failures]
    lines.append(_verdict(gate))
    return "\n".join(lines)


def _cells(item: FigureResult) -> list[str]:
    return [
        item.name,
        number(item.old, item.unit),
        number(item.new, item.unit),
        change_text(item),
        tolerance_text(item),
        item.status,
    ]


def _ungated_lines(model: GatedModel) -> list[str]:
    """Return a line for each reason why figures are not gated or something is not compared, with the names."""
    names: dict[str | None, list[str]] = {}
    for item in model.figures:
        if item.status == "not gated":
            names.setdefault(item.reason, []).append(item.name)
    lines = [f"Not gated: {', '.join(items)}: {reason}" for reason, items in names.items()]
    return lines + [f"Not compared: {kind}: {reason}" for kind, reason in model.unchecked.items()]


def _pairing_note(model: GatedModel) -> list[str]:
    """Return what kind of intervals the table has."""
    with_interval = [item for item in model.figures if item.difference is not None and item.difference.low is not None]
    unpaired = [item.name for item in with_interval if item.difference is not None and not item.difference.paired]
    lines = []
    if len(unpaired) < len(with_interval):
        lines.append("Intervals are 95%, paired by example")
    if unpaired:
        has_other_examples = any(change.kind == "data" and change.breaks for change in model.changes)
        reason = " because the examples differ" if has_other_examples else ""
        lines.append(f"Intervals not paired{reason}, and therefore wider: {', '.join(unpaired)}")
    return lines


def _change_lines(model: GatedModel) -> list[str]:
    lines = [f"  {change.kind} {change.where}: {change.message}" for change in model.changes[:_MOST_CHANGES]]
    more = len(model.changes) - len(lines)
    lines += [f"  and {more} more; compare.json has all"] if more > 0 else []
    return ["Other changes since the baseline, the most suspicious first:", *lines] if lines else []


def _verdict(gate: Gate) -> str:
    counts = [sum(item.status not in ("new", "not gated") for item in model.figures) for model in gate.models]
    noisy = [item.name for model in gate.models for item in model.figures if item.status == "noise"]
    if not gate.holds:
        return f"{len(gate.failures)} of the checks failed"
    text = f"passed: {sum(counts)} figures are not worse than in the baseline"
    return f"{text}; beyond the tolerance but within noise: {', '.join(noisy)}" if noisy else text


def to_markdown(gate: Gate, title: str = "tfq compare") -> str:
    """Return a short summary for a pull request: the verdict, the failures with their causes, and what changed."""
    verdict = "passed" if gate.holds else "**failed**"
    lines = [f"### {_escaped(title)}: {verdict}", ""]
    for model in gate.models:
        failing = list(gate.failures_of(model))
        changed = [item for item in model.figures if item.status not in _UNCHANGED]
        if len(gate.models) > 1:
            lines += [f"#### {_escaped(model.name)}: {'failed' if failing else 'passed'}", ""]
        lines += [f"- {_escaped(failure)}" for failure in failing]
        lines += [""] if failing else []
        if changed:
            lines += ["| figure | baseline | new | change | tolerance | verdict |", "|---|---:|---:|---:|---:|---|"]
            for item in changed:
                cells = [_escaped(cell) for cell in _cells(item)]
                lines.append(
                    f"| {' | '.join(cells[:-1])} | {'**' + cells[-1] + '**' if gate.fails(item) else cells[-1]} |"
                )
            lines.append("")
        same = sum(item.status == "same" for item in model.figures)
        if not model.missing:
            lines += [f"{same} other figures are unchanged." if changed else f"{same} figures are unchanged.", ""]
        for line in _ungated_lines(model):
            lines += [_escaped(line), ""]
        layers = [change for change in model.changes if change.kind == "layer" or change.breaks][:5]
        if layers and failing:
            lines += ["Most suspicious changes:", ""]
            lines += [
                f"- {_escaped(change.kind)} {_escaped(change.where)}: {_escaped(change.message)}" for change in layers
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line: names of layers and files may contain anything."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def to_junit(gate: Gate, suite: str = "tfq compare") -> bytes:
    """Return JUnit XML: a test suite for each model, with a test case for each figure and each check.

    It has the elements and attributes that Jenkins, GitLab and the GitHub actions for test reports read.
    """
    root = ElementTree.Element("testsuites", name=suite)
    totals = {"tests": 0, "failures": 0}
    for model in gate.models:
        cases = list(_cases(gate, model))
        failures = sum(message is not None for _, message, _ in cases)
        skipped = sum(reason is not None for _, _, reason in cases)
        counts = {"tests": len(cases), "failures": failures, "errors": 0, "skipped": skipped}
        attributes = {"name": _xml(f"{suite}: {model.name}"), "time": "0"}
        attributes |= {key: str(value) for key, value in counts.items()}
        element = ElementTree.SubElement(root, "testsuite", attributes)
        for name, message, reason in cases:
            case = ElementTree.SubElement(
                element, "testcase", classname=_xml(f"tfq.compare.{model.name}"), name=_xml(name), time="0"
            )
            if message is not None:
                ElementTree.SubElement(case, "failure", message=_xml(message), type="regression").text = _xml(message)
            elif reason is not None:
                ElementTree.SubElement(case, "skipped", message=_xml(reason))
        totals["tests"] += len(cases)
        totals["failures"] += failures
    for key, value in {**totals, "errors": 0}.items():
        root.set(key, str(value))
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _cases(gate: Gate, model: GatedModel) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield (name, failure message or None, reason why it is skipped or None) of each test case."""
    if model.missing:
        yield "model", model.missing, None
        return
    for name, kind in (("same data and settings", "data"), ("same interface", "interface")):
        broken = [change_sentence(change) for change in model.changes if change.breaks and change.kind == kind]
        yield name, "; ".join(broken) or None, None if broken else model.unchecked.get(kind)
    for item in model.figures:
        failure = sentence(item) if gate.fails(item) else None
        reason = {"new": "the baseline does not have it", "not gated": item.reason}.get(item.status)
        yield item.name, failure, None if failure else reason


def _xml(text: str) -> str:
    """Return text without the characters that XML 1.0 does not allow."""
    return re.sub(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]", "\N{REPLACEMENT CHARACTER}", text)

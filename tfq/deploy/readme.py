# SPDX-License-Identifier: Apache-2.0
"""README.md of a bundle: origin, accuracy, size, backends, limits, and how to run each self-test."""

import gzip
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfq.deploy.platform import BundleContents, Platform, SelfTestResult
from tfq.deploy.results import table_text
from tfq.deploy.templates import read_source
from tfq.evaluation import score_text
from tfq.provenance import package_versions
from tfq.text_table import shown

_MARKUP, _ENTITIES = re.compile(r"[\\`*_\[\]#|~<&]"), {"<": "&lt;", "&": "&amp;"}


def readme(
    contents: BundleContents,
    platforms: Sequence[Platform],
    tests: Sequence[SelfTestResult],
    warnings: Sequence[str] = (),
) -> str:
    """Return the text of README.md.

    Args:
        contents: The contents of the bundle.
        platforms: The platforms that it has sources for.
        tests: The results of the self-tests on the machine that exported it.
        warnings: What the platforms warn about.
    """
    sections = [
        f"# {_literal(contents.name)}",
        "\n".join(f"> **Warning**: {_literal(warning)}.\n" for warning in dict.fromkeys(warnings)).strip(),
        _origin(contents),
        _inputs_and_outputs(contents),
        _accuracy(contents),
        _backends(contents),
        _golden(contents),
        _self_tests(platforms, tests),
        _limits(contents, platforms),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _origin(contents: BundleContents) -> str:
    results, versions = contents.results, package_versions()
    rows = {
        "model": "`model.tflite`",
        "size": f"{len(contents.model):,} bytes, {len(gzip.compress(contents.model, mtime=0)):,} after gzip",
        "exported file, SHA-256": f"`{contents.source_sha256}`",
        "exported by": ", ".join(
            f"{name} {versions[name]}" for name in ("tfq", "ai-edge-litert") if versions.get(name)
        ),
        "evaluated by": _evaluated_by(results),
    }
    return _table(["", ""], [[name, value] for name, value in rows.items()])


def _evaluated_by(results: Any) -> str:
    if results.missing:
        return f"not known: {results.missing}"
    version = results.packages.get("tfq")
    commit = f", commit {results.git_commit[:12]}" if results.git_commit else ""
    return f"tfq {version}{commit}, {_code(results.record)}, settings `{str(results.config_hash)[:16]}`"


def _inputs_and_outputs(contents: BundleContents) -> str:
    rows = []
    for side in ("inputs", "outputs"):
        for entry in contents.io[side]:
            quantization = (
                f"scale {entry['scale']!r}, zero point {entry['zero_point']}" if entry["scale"] is not None else "none"
            )
            shape = " x ".join("any" if length == -1 else str(length) for length in entry["shape"]) or "a single value"
            rows.append([side[:-1], _code(entry["name"]), shape, entry["dtype"], quantization])
    table = _table(["", "name", "shape", "type", "quantization"], rows)
    return f"## Inputs and outputs\n\n{table}\n\n`io.json` has all of it, with the preprocessing in order."


def _accuracy(contents: BundleContents) -> str:
    results, evaluation = contents.results, contents.results.evaluation
    if results.missing:
        return f"## Accuracy\n\n{read_source('readme/missing_accuracy.md').strip()}"
    value = evaluation.get("accuracy")
    if value is None:
        return f"## Accuracy\n\nNot known: {evaluation.get('accuracy_reason')}."
    metric = str(evaluation["metric"])
    facts = (evaluation.get("metrics") or {}).get(metric) or {}
    unit = str(facts.get("unit"))
    text = f"{metric}: {score_text(unit, value)} on {evaluation['num_examples']:,} test examples"
    if facts.get("interval"):
        low, high = facts["interval"]
        text += f", 95% interval {score_text(unit, low)} to {score_text(unit, high)}"
    if evaluation.get("reference_accuracy") is not None:
        text += f". The float model has {score_text(unit, evaluation['reference_accuracy'])}"
    if evaluation.get("agreement") is not None:
        text += f"; both predict the same class for {evaluation['agreement']:.2%} of the examples"
    return f"## Accuracy\n\n{text}."


def _backends(contents: BundleContents) -> str:
    lines = table_text(contents.results)
    if not lines:
        return f"## Backends\n\n{read_source('readme/missing_backends.md').strip()}"
    return "## Backends\n\n```text\n" + "\n".join(lines) + "\n```"


def _golden(contents: BundleContents) -> str:
    document = contents.golden.document
    kind = "" if document["is_real"] else " They test the sources, but say nothing about real inputs."
    return (
        f"## Golden vectors\n\n`golden/` has {len(contents.golden.examples)} inputs and the outputs that XNNPACK gave "
        f"for them: {_literal(document['data'])}.{kind} `golden/golden.json` lists the files, and how far the "
        "outputs of each backend were from XNNPACK's. All files are raw arrays in row order, little-endian."
    )


def _self_tests(platforms: Sequence[Platform], results: Sequence[SelfTestResult]) -> str:
    by_name: Mapping[str, SelfTestResult] = {result.name: result for result in results}
    parts = ["## Self-tests\n\nRun them in this folder. A test fails if an output differs from the golden vectors."]
    for platform in platforms:
        for test in platform.self_tests:
            result = by_name[test.name]
            parts.append(
                f"### {test.name}\n\nWhere the bundle was exported: {result.status} ({_literal(result.detail)})."
            )
            if test.commands:
                parts.append("```bash\n" + "\n".join(test.commands) + "\n```")
    return "\n\n".join(parts)


def _limits(contents: BundleContents, platforms: Sequence[Platform]) -> str:
    lines = [f"- {platform.name}: {platform.tried}" for platform in platforms]
    if not contents.labels:
        lines.append("- There are no labels: the exported file and the data have no class names.")
    return "## How far this was tried\n\n" + "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _literal(text: str) -> str:
    """Return text on one line, so that Markdown shows it literally."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), line)


def _code(text: str) -> str:
    """Return a name as code. Code with backticks has more of them around it."""
    name = shown(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    return f"`{name}`" if fence == "`" else f"{fence} {name} {fence}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/robustness.md from a record of an evaluation on corrupted inputs."""

from collections.abc import Mapping
from typing import Any


def tables_of(record: Mapping[str, Any]) -> str:
    """Return Markdown: the models over all corruptions, then each corruption, then the mistakes of apps."""
    models = [item["model"] for item in record["models"]]
    head = "| | clean | corrupted | drop | more than float | agreement | ECE, clean and corrupted |"
    lines = [head, "|---" * 7 + "|"]
    for item in record["models"]:
        cells = [
            percent(item["clean"]),
            percent(item["mean"]),
            points(item["drop"]),
            points(item["extra_drop"]),
            "" if item["agreement"] is None else f"{item['agreement']:.1%}",
            ", ".join(filter(None, (error(item["clean_ece"]), error(item["ece"])))),
        ]
        lines.append(f"| {item['model']} | {' | '.join(cells)} |")
    for is_mistake in (False, True):
        lines += ["", f"| {'mistake' if is_mistake else 'corruption'} | " + " | ".join(models) + " |"]
        lines.append("|---" * (len(models) + 1) + "|")
        scores = [item for item in record["corruptions"] if item["is_mistake"] == is_mistake]
        for name in dict.fromkeys(item["corruption"] for item in scores):
            row = [percent(item["accuracy"]) for item in scores if item["corruption"] == name]
            lines.append(f"| {name} | {' | '.join(row)} |")
    lines += ["", f"{record['num_examples']:,} examples, {record['secs']:.0f} s, parameters {record['parameters']!r}"]
    return "\n".join(lines)


def percent(item: Mapping[str, Any]) -> str:
    """Return a fraction with half the width of its interval."""
    value, low, high = item["value"], item["low"], item["high"]
    return f"{value:.1%}" + ("" if low is None else f" ± {50 * (high - low):.1f}")


def error(item: Mapping[str, Any]) -> str:
    """Return a calibration error with its interval."""
    ends = "" if item["low"] is None else f" ({item['low']:.3f} to {item['high']:.3f})"
    return "" if item["value"] is None else f"{item['value']:.3f}{ends}"


def points(item: Mapping[str, Any]) -> str:
    """Return a difference in percentage points with its interval."""
    if item["value"] is None:
        return ""
    ends = "" if item["low"] is None else f" ({100 * item['low']:+.2f} to {100 * item['high']:+.2f})"
    return f"{100 * item['value']:+.2f}{ends}"

# SPDX-License-Identifier: Apache-2.0
"""Bounds on a family's numbers, and the table of all families. Needs neither TensorFlow nor a model."""

from collections.abc import Mapping, Sequence
from typing import Any

MIN_ACCURACY = 0.7
MAX_BRIDGE_DIFFERENCE = 1e-4
FINAL_SPARSITY = 0.5
# tfmot keeps all weights equal to the smallest one that stays. One additional weight of 589,824 has been observed.
EQUAL_WEIGHTS = 1e-5
MIN_IMAGES = 256
MIN_LOGIT_SQNR_DB = 20.0
MAX_MARGIN_LSB = 4.0

# Family -> the layer and the cause for which its flatbuffer may differ from the QAT model. Nothing else is excused.
EXCUSED: dict[str, str] = {}

COLUMNS = (
    "family", "float", "bridge", "QAT / PTQ only / refused", "identity", "pruned", "QAT", "zeros", "int8", "audit",
    "top-1 differs", "lead, LSB", "logits, dB", "verdict", "stock, tf_keras", "stock, Keras 3", "minutes",
)  # fmt: skip

LEGEND = f"""\
float, pruned, QAT, int8: accuracy on the test images of the trained Keras 3 model, after pruning, after QAT, and of the
flatbuffer. bridge: largest output difference between Keras 3 and tf_keras as a fraction of the range. QAT / PTQ only /
refused: layers by preflight. identity: output difference by fake quantization without rounding. zeros: the smallest
fraction in a pruned layer, counted in the flatbuffer. top-1 differs: images with another class in the flatbuffer than
in the QAT model; lead: the QAT model's largest top-2 margin among those, in LSB of the logits (must be below
{MAX_MARGIN_LSB:g}). logits: SQNR (must be at least {MIN_LOGIT_SQNR_DB:g} dB). stock: only
tfmot.quantization.keras.quantize_model. minutes: of everything except stock."""


def misses(record: Mapping[str, Any], name: str = "") -> list[str]:
    """Return the reasons why a family fails, one sentence each; empty if it passes. `name`: its key in EXCUSED."""
    stages = record.get("stages", {})
    results = [miss for stage, check in _CHECKS.items() if stage in stages for miss in check(stages[stage])]
    if "parity" in stages and name not in EXCUSED:
        results += _parity_misses(stages["parity"])
    if error := record.get("error"):
        results.append(f"{error['stage']}: {error['type']}: {' '.join(error['message'].split())[:300]}")
    elif "parity" not in stages:
        results.append("did not come to its end")
    return results


def _train_misses(stage: Mapping[str, Any]) -> list[str]:
    return [] if stage["accuracy"] >= MIN_ACCURACY else [f"train: accuracy {stage['accuracy']:.1%} says nothing"]


def _bridge_misses(stage: Mapping[str, Any]) -> list[str]:
    difference = stage["max_difference"]
    return [] if difference <= MAX_BRIDGE_DIFFERENCE else [f"bridge: outputs differ by {difference:.2g} of their range"]


def _preflight_misses(stage: Mapping[str, Any]) -> list[str]:
    if stage["ok"] and not stage["unsupported"]:
        return []
    return [f"preflight: {stage['unsupported']} layer(s) refused"]


def _prune_misses(stage: Mapping[str, Any]) -> list[str]:
    wrong = stage["not_as_promised"]
    return [f"preflight: wrong about what is pruned: {', '.join(wrong)}"] if wrong else []


def _qat_misses(stage: Mapping[str, Any]) -> list[str]:
    return [] if stage["identity"] == 0.0 else [f"qat: identity gate {stage['identity']:.2g}, expected 0.0"]


def _convert_misses(stage: Mapping[str, Any]) -> list[str]:
    result = [] if stage["audit_ok"] else [f"audit: {(stage['audit_failures'] or ['failed'])[0]}"]
    sparsity = stage["sparsity"]
    # Among n weights, the integer part is zero.
    result += [
        f"zeros: {layer} has {fraction['zeros'] / fraction['values']:.2%} in the flatbuffer, expected "
        f"{FINAL_SPARSITY:.0%}"
        for layer, fraction in sparsity["layers"].items()
        if fraction["zeros"] < int(FINAL_SPARSITY * (1 - EQUAL_WEIGHTS) * fraction["values"])
    ]
    if sparsity["missing"]:
        result.append(f"zeros: not counted, for not found in the flatbuffer: {', '.join(sparsity['missing'])}")
    return result


def _parity_misses(stage: Mapping[str, Any]) -> list[str]:
    results = []
    if stage["num_examples"] < MIN_IMAGES:
        results.append(f"parity: {stage['num_examples']} images, expected at least {MIN_IMAGES}")
    clear = [lead for lead in leads(stage) if not lead < MAX_MARGIN_LSB]
    if clear:
        results.append(f"parity: {len(clear)} image(s) get another class at a lead of {max(clear):.1f} LSB or less")
    # An infinite value is recorded as "inf".
    if not float(stage["logit_sqnr_db"]) >= MIN_LOGIT_SQNR_DB:
        results.append(f"parity: SQNR of the logits {float(stage['logit_sqnr_db']):.1f} dB, first departure "
                     f"{stage['first_departure']}")  # fmt: skip
    return results


_CHECKS = {
    "train": _train_misses,
    "bridge": _bridge_misses,
    "preflight": _preflight_misses,
    "prune": _prune_misses,
    "qat": _qat_misses,
    "convert": _convert_misses,
}


def leads(parity: Mapping[str, Any]) -> list[float]:
    """Return the QAT model's top-2 margin in output LSB for each image that the flatbuffer assigns to another class."""
    return [float(item["margin_lsb"]) for output in parity["outputs"] for item in output["disagreements"]]


def stock_cell(result: Mapping[str, Any] | None) -> str:
    """Return a cell of the table."""
    if not result:
        return "not run"
    if result["result"] == "error":
        return f"{result['error']}: {result['message'][:90]}"
    if result["result"] == "wrong function":
        return f"wrong function (by {result['difference']:.2g})"
    return str(result["result"])


def row(name: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one family in the order of COLUMNS; stages that were not reached are a dash."""
    stages = record.get("stages", {})
    result = misses(record, name)
    parity, zeros = stages.get("parity"), _least_sparsity(stages.get("convert"))
    preflight = stages.get("preflight")
    stock = record.get("stock", {})
    differs = leads(parity) if parity else []
    audited = stages.get("convert", {}).get("audit_ok")
    return (
        name,
        _cell(stages, "train", "accuracy", "{:.1%}"),
        _cell(stages, "bridge", "max_difference", "{:.1g}"),
        "{qat} / {ptq_only} / {unsupported}".format(**preflight) if preflight else "—",
        _cell(stages, "qat", "identity", "{:.2g}"),
        _cell(stages, "prune", "accuracy", "{:.1%}"),
        _cell(stages, "qat", "accuracy", "{:.1%}"),
        "—" if zeros is None else f"{zeros:.1%}",
        _cell(stages, "parity", "accuracy", "{:.1%}"),
        "—" if audited is None else "clean" if audited else "FAILS",
        f"{len(differs)} of {parity['num_examples']}" if parity else "—",
        f"{max(differs):.1f}" if differs else "—",
        f"{float(parity['logit_sqnr_db']):.1f}" if parity else "—",
        result[0] if result else f"passes, excused: {EXCUSED[name]}" if name in EXCUSED else "passes",
        stock_cell(stock.get("tf_keras")),
        stock_cell(stock.get("keras")),
        f"{sum(stage['secs'] for stage in stages.values()) / 60:.1f}",
    )


def _cell(stages: Mapping[str, Any], stage: str, number: str, form: str) -> str:
    return form.format(stages[stage][number]) if stage in stages else "—"


def _least_sparsity(stage: Mapping[str, Any] | None) -> float | None:
    layers = stage["sparsity"]["layers"].values() if stage else ()
    return min((fraction["zeros"] / fraction["values"] for fraction in layers), default=None)


def table(records: Mapping[str, Mapping[str, Any]], heading: Sequence[str]) -> str:
    """Return Markdown: `heading`, a row for each family, the legend, and the fraction that passes."""
    lines = [*heading, "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(row(name, record)) for name, record in records.items()]
    passing = sum(not misses(record, name) for name, record in records.items())
    right = sum(record.get("stock", {}).get("tf_keras", {}).get("result") == "right" for record in records.values())
    lines += [
        "",
        LEGEND,
        "",
        f"{passing} of {len(records)} families pass; stock tfmot computes the right function for {right}.",
    ]
    for name, record in records.items():
        lines += [f"- {name}: {miss}" for miss in misses(record, name)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

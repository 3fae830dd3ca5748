# SPDX-License-Identifier: Apache-2.0
"""The part of a report about corrupted inputs: tables, pictures of examples, and accuracy by severity as a plot."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfq import registry
from tfq.report.formatting import (
    DASH,
    NO_INTERVAL,
    class_text,
    count,
    is_number,
    model_label,
    percent,
    plain,
    significant,
    value_text,
)
from tfq.report.plots import Plot, color_of, drawn, figure_of, marker_of, svg_of
from tfq.report.record import Record, part
from tfq.report.tables import SORTABLE_FROM, Section, Table
from tfq.robustness.corruption import Corruption
from tfq.text_table import aligned

KEY = "robustness"
_MOST_CLASSES = 20
_COLUMNS = 4


def robustness_section(record: Record) -> Section | None:
    """Return the results on corrupted inputs; None if the record has none."""
    values = part(record, KEY)
    models = _items(values, "models")
    if not models:
        return None
    tables = [_summary(values, models), *_by_corruption(values, models)]
    tables[1:1] = [table for table in (_calibration(models),) if table is not None]
    tables += [table for table in (_classes(values, models), _examples(values, models)) if table is not None]
    skipped = [f"not applied: {plain(name)}: {plain(reason)}" for name, reason in part(values, "skipped").items()]
    return Section(
        key=KEY,
        title="Corrupted inputs",
        gist=_gist(values, models),
        paragraphs=(_about(values),),
        items=(*skipped, *_missing(values)),
        tables=tuple(tables),
        plots=(KEY,),
    )


def robustness_text(record: Record) -> str:
    """Return the means over corruptions as text for the terminal; "" if the record has none."""
    values = part(record, KEY)
    models = _items(values, "models")
    if not models:
        return ""
    lines = [f"on corrupted inputs: {count(values.get('num_examples'))} examples"]
    for table in (_summary(values, models), _calibration(models)):
        if table is not None:
            lines += ["", table.caption, *aligned([table.columns, *table.rows], 1)]
    reasons = _missing(values)
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def robustness_plots(record: Record) -> dict[str, Plot]:
    """Return the plot of the accuracy by severity; {} if the record has no results on corrupted inputs."""
    values = part(record, KEY)
    if not _items(values, "models"):
        return {}
    return {KEY: drawn("Accuracy by severity", lambda: _draw(values), wide=True)}


def _items(values: Record, key: str) -> list[Mapping[str, Any]]:
    return [item for item in values.get(key) or () if isinstance(item, Mapping)]


def _score(values: Record, item: Any) -> str:
    """Return an estimate of the metric as text."""
    value = item.get("value") if isinstance(item, Mapping) else None
    return value_text(value, plain(values.get("unit")))


def _with_interval(values: Record, item: Any) -> str:
    """Return an estimate of the metric with its interval."""
    text = _score(values, item)
    ends = [_score(values, {"value": item.get(key)}).rstrip("%") for key in ("low", "high")] if text != DASH else []
    return f"{text} ({ends[0]} to {ends[1]})" if ends and DASH not in ends else text


def _change(values: Record, item: Any) -> str:
    """Return an estimate of a difference with its interval, in percentage points if the metric is a fraction."""
    numbers = [item.get(key) for key in ("value", "low", "high")] if isinstance(item, Mapping) else []
    if not numbers or not is_number(numbers[0]):
        return DASH
    factor, places = (100, 2) if values.get("unit") == "fraction" else (1, 4)
    texts = [f"{factor * number:+.{places}f}".replace("-", "−") for number in numbers if is_number(number)]
    return f"{texts[0]} ({texts[1]} to {texts[2]})" if len(texts) == 3 else f"{texts[0]} ({NO_INTERVAL})"


def _about(values: Record) -> str:
    reference = plain(values.get("reference") or "")
    low, high = [*(values.get("input_range") or ()), None, None][:2]
    texts = [
        f"{count(values.get('num_examples'))} examples, seed {plain(values.get('seed'))}, severities "
        f"{', '.join(map(plain, values.get('severities') or ()))}.",
        f"The inputs are from {significant(low)} to {significant(high)}: {plain(values.get('input_range_reason'))}.",
    ]
    if values.get("parameters"):
        texts.append(f"Parameters: {plain(values['parameters'])}, because {plain(values.get('parameters_reason'))}.")
    texts.append("All models get the same corrupted inputs. The means leave out mistakes of apps.")
    if reference:
        texts.append(f"Differences from {model_label(reference)} are paired by example, with 95% intervals.")
    return " ".join(texts)


def _missing(values: Record) -> tuple[str, ...]:
    words = {"accuracy_reason": "no accuracy", "interval_reason": "no intervals", "classes_reason": "no classes"}
    words |= {"ece_reason": "no calibration error, or no interval of it", "degraded_reason": "no examples"}
    reasons = {key: values.get(key) for key in words}
    return tuple(f"{words[key]}: {plain(reason)}" for key, reason in reasons.items() if reason)


def _gist(values: Record, models: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean of each model."""
    return ", ".join(f"{model_label(item.get('model'))} {_score(values, item.get('mean'))}" for item in models)


def _summary(values: Record, models: Sequence[Mapping[str, Any]]) -> Table:
    unit = ", points" if values.get("unit") == "fraction" else ""
    rows = tuple(
        (
            model_label(item.get("model")),
            _with_interval(values, item.get("clean")),
            _with_interval(values, item.get("mean")),
            _change(values, item.get("drop")),
            _change(values, item.get("extra_drop")),
            percent(item["agreement"]) if is_number(item.get("agreement")) else DASH,
            plain(item.get("worst") or DASH),
        )
        for item in models
    )
    return Table(
        key=KEY,
        columns=(
            "model",
            "clean",
            "corrupted",
            f"drop{unit}",
            f"more than the reference's{unit}",
            "agreement",
            "largest drop",
        ),
        rows=rows,
        numeric=(False, *(True,) * 5, False),
        caption=f"{plain(values.get('metric'))}: mean over corruptions and severities, with 95% intervals",
        row_series=tuple(range(len(models))),
    )


def _calibration(models: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the calibration error of each model; None if the outputs are not class probabilities."""
    if not any(is_number(part(item, "ece").get("value")) for item in models):
        return None
    rows = tuple(
        (
            model_label(item.get("model")),
            _error(part(item, "clean_ece")),
            _error(part(item, "ece")),
            _error(part(item, "extra_ece"), signed=True),
        )
        for item in models
    )
    return Table(
        key="robustness_calibration",
        columns=("model", "clean", "corrupted", "increase minus the reference's"),
        rows=rows,
        caption="Expected calibration error (ECE): mean over corruptions and severities, with 95% intervals",
        row_series=tuple(range(len(models))),
    )


def _error(item: Mapping[str, Any], *, signed: bool = False) -> str:
    """Return a calibration error, or a difference of two, with its interval."""
    numbers = [number for key in ("value", "low", "high") if is_number(number := item.get(key))]
    if not is_number(item.get("value")):
        return DASH
    texts = [f"{number:+.3f}".replace("-", "−") if signed else f"{number:.3f}" for number in numbers]
    return f"{texts[0]} ({texts[1]} to {texts[2]})" if len(texts) == 3 else f"{texts[0]} ({NO_INTERVAL})"


def _by_corruption(values: Record, models: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return a table of corruptions and one of mistakes: the metric of each model, and the agreement without labels."""
    results = []
    for key, caption, is_mistake in (
        ("corruptions", "Each corruption, mean over severities", False),
        ("mistakes", "Mistakes of apps, as the failure looks in the field", True),
    ):
        scores = [item for item in _items(values, "corruptions") if bool(item.get("is_mistake")) == is_mistake]
        names = list(dict.fromkeys(plain(item.get("corruption")) for item in scores))
        if not names:
            continue
        cells = {(plain(item.get("corruption")), item.get("model")): item for item in scores}
        known = registry.entries(Corruption)
        helps = {name: known[name].help if name in known else "" for name in names}
        rows = tuple(
            (name, helps[name], *(_cell(values, cells.get((name, model.get("model"))) or {}) for model in models))
            for name in names
        )
        heads = tuple(model_label(model.get("model")) for model in models)
        what = "agreement with the reference" if values.get("accuracy_reason") else f"{plain(values.get('metric'))}"
        results.append(
            Table(
                key=key,
                columns=("mistake" if is_mistake else "corruption", "what it is", *heads),
                rows=rows,
                numeric=(False, False, *(True for _ in heads)),
                caption=f"{caption}: {what}",
                column_series={place + 2: place for place in range(len(models))},
                sortable=len(rows) >= SORTABLE_FROM,
            )
        )
    return results


def _cell(values: Record, item: Mapping[str, Any]) -> str:
    if values.get("accuracy_reason"):
        return percent(item["agreement"]) if is_number(item.get("agreement")) else DASH
    return _score(values, item.get("accuracy"))


def _classes(values: Record, models: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the classes in the order of what the last model loses by corruption."""
    classes = part(values, "classes")
    of_models = part(classes, "models")
    numbers, examples = classes.get("class"), classes.get("examples")
    if not isinstance(numbers, list) or not isinstance(examples, list) or not of_models:
        return None
    names = classes.get("name") or [None] * len(numbers)
    last = part(of_models, str(models[-1].get("model")))
    order = sorted(range(len(numbers)), key=lambda place: last["corrupted"][place] - last["clean"][place])
    rows = tuple(
        (
            class_text(numbers[place], names[place]),
            count(examples[place]),
            *(
                f"{percent(fractions['clean'][place])} → {percent(fractions['corrupted'][place])}"
                for fractions in of_models.values()
            ),
        )
        for place in order[:_MOST_CLASSES]
    )
    further = len(order) - _MOST_CLASSES
    return Table(
        key="robustness_classes",
        columns=("class", "examples", *(model_label(name) for name in of_models)),
        rows=rows,
        caption="Accuracy of each class, clean → corrupted; the class that degrades most is first",
        notes=(f"{count(further)} further classes in the record",) if further > 0 else (),
    )


def _examples(values: Record, models: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return two rows for each example: clean and corrupted, with what each model predicts."""
    degraded = part(values, "degraded")
    examples = _items(degraded, "examples")
    if not examples:
        return None
    names = degraded.get("class_names") or []

    def text(number: Any) -> str:
        if not isinstance(number, int):
            return DASH
        return class_text(number, names[number] if 0 <= number < len(names) else None)

    rows: list[tuple[str, ...]] = []
    pictures: list[Any] = []
    wrong: set[tuple[int, int]] = set()
    for item in examples:
        condition = f"{plain(item.get('corruption'))}, severity {plain(item.get('severity'))}"
        for what, key, picture in (("clean", "clean_classes", "clean"), (condition, "classes", "corrupted")):
            predictions = [part(item, key).get(str(model.get("model"))) for model in models]
            wrong |= {
                (len(rows), place + 4)
                for place, prediction in enumerate(predictions)
                if prediction is not None and prediction != item.get("label")
            }
            lost = f"{count(item.get('lost'))} of {count(degraded.get('conditions'))}" if key == "classes" else ""
            label = text(item.get("label"))
            rows.append((f"#{plain(item.get('index'))}", label, what, lost, *map(text, predictions)))
            pictures.append(item.get(picture))
    reason, subject = degraded.get("picture_reason"), degraded.get("subject")
    order = plain(degraded.get("order")).replace(plain(subject), model_label(subject))
    return Table(
        key="robustness_examples",
        columns=("example", "label", "input", "lost versions", *(model_label(model.get("model")) for model in models)),
        rows=tuple(rows),
        numeric=(False,) * (4 + len(models)),
        caption=f"Examples that degrade most, {order}",
        notes=(f"no pictures: {plain(reason)}",) if reason else (),
        pictures=tuple(pictures),
        bad=frozenset(wrong),
    )


def _draw(values: Record) -> tuple[str, str]:
    """Draw a panel for each corruption: a line for each model, with intervals; the clean metric at severity 0."""
    key = "agreement" if values.get("accuracy_reason") else "accuracy"
    of_apps = {item.get("corruption") for item in _items(values, "corruptions") if item.get("is_mistake")}
    conditions = [item for item in _items(values, "conditions") if item.get("corruption") not in of_apps]
    names = list(dict.fromkeys(plain(item.get("corruption")) for item in conditions))
    models = [item.get("model") for item in _items(values, "models")]
    if not names:
        return "", "not drawn: only mistakes of apps were applied"
    is_fraction = key == "agreement" or values.get("unit") == "fraction"
    factor = 100 if is_fraction else 1
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure, axes = figure_of(0.7 + 1.35 * rows, rows, wide=True, columns=columns)
    panels = list(axes.flat) if hasattr(axes, "flat") else [axes]
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names, strict=False):
        for place, model in enumerate(models):
            points = _points(values, conditions, name, model, key)
            # Next to each other, so that no model hides another one.
            shift = (place - (len(models) - 1) / 2) * min(0.12, 0.5 / len(models))
            at = [severity + shift for severity, _, _ in points]
            heights = [factor * value for _, value, _ in points]
            panel.plot(
                at,
                heights,
                "-" + marker_of(place),
                color=color_of(place),
                linewidth=1.2,
                ms=3,
                label=model_label(model),
            )
            for x, (_, _, ends) in zip(at, points, strict=True):
                if ends is not None:
                    panel.plot([x] * 2, [factor * end for end in ends], "-", color=color_of(place), linewidth=0.6)
        panel.set_title(name.replace("_", " "), fontsize=9)
        panel.grid(True)
        panel.set_xticks(range(6))
    for panel in panels[max(0, len(names) - columns) : len(names)]:
        # The last panel of each column, which need not be in the last row.
        panel.tick_params(axis="x", labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(5, len(models)))
    figure.supxlabel("severity; 0 is clean", fontsize=9)
    figure.supylabel(f"{key}, %" if is_fraction else plain(values.get("metric")), fontsize=9)
    caption = "Each panel is a corruption; the panels share their vertical axis"
    caption += ", which does not start at 0." if panels[0].get_ylim()[0] > 0 else "."
    if key == "accuracy" and not values.get("interval_reason"):
        caption += " Vertical lines: 95% intervals of each model alone; paired ones are narrower."
    return svg_of(figure, "Accuracy by severity"), caption


def _points(
    values: Record, conditions: Sequence[Mapping[str, Any]], name: str, model: Any, key: str
) -> list[tuple[int, float, tuple[float, float] | None]]:
    """Return (severity, value, interval) of a model under a corruption, the clean one first."""
    own = next((item for item in _items(values, "models") if item.get("model") == model), {})
    clean = own.get("clean") if key == "accuracy" else {"value": own.get("clean_agreement")}
    found = [(0, clean)]
    for item in conditions:
        if plain(item.get("corruption")) == name and item.get("model") == model:
            value = item.get(key)
            found.append((item.get("severity") or 0, value if key == "accuracy" else {"value": value}))
    results = []
    for severity, estimate in found:
        numbers = estimate if isinstance(estimate, Mapping) else {}
        value, low, high = (numbers.get(end) for end in ("value", "low", "high"))
        if is_number(value):
            results.append((severity, value, (low, high) if is_number(low) and is_number(high) else None))
    return results

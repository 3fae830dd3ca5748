# SPDX-License-Identifier: Apache-2.0
"""The section on layers: size of the weights of each layer in each file, and the fraction of zeros."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tfq.report.formatting import DASH, count, is_number, percent, plain
from tfq.report.record import Record, Reported, models_of, part
from tfq.report.tables import SORTABLE_FROM, Bars, Section, Table, fractions


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

# SPDX-License-Identifier: Apache-2.0
"""Write node data for Model Explorer: a figure of each op, which it draws as colors on the graph of a .tflite.

Format: ai-edge-model-explorer 0.1.34, model_explorer/node_data_builder.py. Model Explorer ignores graph ids and node
keys that it does not have, without a message. So both are derived from the file, and every index is checked.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfq import tflite
from tfq.artifacts import content_of, make_out_dir, write_json
from tfq.errors import InputError
from tfq.report.formatting import is_number, number_of
from tfq.typing import PathOrBytes

_BAD, _GOOD = "#d64545", "#ffffff"
# What Model Explorer calls a graph that has neither a name nor a signature.
_UNNAMED = "main"


@dataclass(frozen=True, kw_only=True)
class NodeData:
    """A figure of each op of a flatbuffer.

    Attributes:
        file: The name of the JSON file.
        title: What the figure is, with its unit.
        values: Index of the op in the main subgraph -> the figure.
        low_is_bad: Whether low values are colored; otherwise high ones are.
        note: What is left out, or "".
    """

    file: str
    title: str
    values: Mapping[int, float]
    low_is_bad: bool
    note: str = ""

    def to_dict(self, model: tflite.Model) -> dict[str, Any]:
        """Return the JSON value for a flatbuffer.

        Raises:
            InputError: The flatbuffer has no such op.
        """
        count = len(model.main_subgraph.ops)
        unknown = [index for index in self.values if not 0 <= index < count]
        if unknown:
            raise InputError(
                f"{self.file}: the figures are about op #{unknown[0]}, but the model has {count} ops. Use the model "
                "that was analyzed",
                field="model",
                expected=count,
                got=unknown,
            )
        ends = (_BAD, _GOOD) if self.low_is_bad else (_GOOD, _BAD)
        return {
            graph_id(model): {
                # Node ids are the indices of the ops. Model Explorer shows all digits, in narrow columns.
                "results": {
                    str(index): {"value": float(f"{value:.4g}")} for index, value in sorted(self.values.items())
                },
                "name": self.title,
                "gradient": [{"stop": stop, "bgColor": color} for stop, color in enumerate(ends)],
            }
        }


def graph_id(model: tflite.Model) -> str:
    """Return Model Explorer's id of the main subgraph: its name, else the key of its signature, else "main"."""
    keys = [signature.key for signature in model.signatures if signature.subgraph == model.main_subgraph.index]
    return model.main_subgraph.name or next(iter(keys), "") or _UNNAMED


def write_node_data(
    record: Mapping[str, Any], models: Mapping[str, PathOrBytes], out: str | os.PathLike[str]
) -> list[str]:
    """Write the figures of single ops in a record as node data for Model Explorer.

    From an analysis: model_explorer_sqnr.json and, if it was measured, model_explorer_sensitivity.json. From a
    benchmark: model_explorer_time.json of the first model, and model_explorer_time_NAME.json of each other one.

    Examples:
        >>> analysis = tfq.analyze("model_int8.tflite", "model_float32.tflite", x_test)
        >>> tfq.write_node_data(analysis.to_dict(), {"model": "model_int8.tflite"}, "out")

    Args:
        record: What `to_dict` of an `Analysis` or a `BenchmarkRecord` returns, or the record of `tfq analyze` or
            `tfq benchmark`.
        models: The flatbuffers by their names in the benchmark; for an analysis, the int8 one under any name.
        out: The directory; it is created if it does not exist.

    Returns:
        A line for each file: its path, and how many of the model's ops have a figure.

    Raises:
        InputError: The record is not about these models.
    """
    parsed = {name: tflite.read(content_of(model, f"models[{name!r}]")) for name, model in models.items()}
    benchmark = record.get("benchmark") if isinstance(record.get("benchmark"), Mapping) else record
    lines = []
    for name, data in _of_analysis(record, parsed) if "ops" in record else _of_benchmark(benchmark or {}):
        if name not in parsed:
            raise InputError(
                f"the record has the model {name!r}, which is not in models",
                field="models",
                expected=name,
                got=tuple(parsed),
            )
        if data.values:
            path = write_json(Path(make_out_dir(out)) / data.file, data.to_dict(parsed[name]))
            total = number_of(len(parsed[name].main_subgraph.ops), "op")
            lines.append(f"{path}: {len(data.values)} of {total}{f'; {data.note}' if data.note else ''}")
    return lines


def _of_analysis(record: Mapping[str, Any], models: Mapping[str, tflite.Model]) -> Iterator[tuple[str, NodeData]]:
    """Yield the name of the model, and the error and the sensitivity of its ops."""
    if len(models) != 1:
        raise InputError("an analysis is about one int8 model", field="models", expected=1, got=len(models))
    ((name, model),) = models.items()
    errors = {
        item["op_index"]: item["sqnr_db"]
        for item in reversed(record["ops"])  # of an op with several outputs, the first
        if item.get("op_index") is not None and is_number(item.get("sqnr_db"))
    }
    exact = sum(item.get("op_index") is not None and item.get("sqnr_db") is None for item in record["ops"])
    note = f"{exact} without an error" if exact else ""
    yield name, NodeData(file="model_explorer_sqnr.json", title="SQNR, dB", values=errors, low_is_bad=True, note=note)
    # The sensitivity is measured on the float file: its ops are found in this one by the names of their outputs.
    graph = model.main_subgraph
    tensors = Counter(graph.tensors[output].name for op in graph.ops for output in op.outputs)
    ops = {graph.tensors[output].name: op.index for op in graph.ops for output in op.outputs}
    measured = [item for item in record.get("sensitivity") or [] if is_number(item.get("sqnr_db"))]
    found = {ops[item["tensor"]]: item["sqnr_db"] for item in measured if tensors[item["tensor"]] == 1}
    missing = len(measured) - len(found)
    note = f"{missing} more have no op with an output of the same name in this file" if missing else ""
    title = "SQNR of the outputs if only this op is quantized, dB"
    yield name, NodeData(file="model_explorer_sensitivity.json", title=title, values=found, low_is_bad=True, note=note)


def _of_benchmark(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, NodeData]]:
    """Yield the name of each model, and the times of its ops."""
    for place, item in enumerate(benchmark.get("models") or []):
        timed = [op for op in item.get("ops") or [] if op.get("index") is not None and is_number(op.get("ms"))]
        others = len(item.get("ops") or []) - len(timed)
        kernels = item.get("kernels") or ""
        suffix = re.sub(r"[^\w.-]", "_", f"_{item['name']}_{kernels}".rstrip("_")) if place else ""
        note = f"{number_of(others, 'kernel')} belong to no single op" if others else ""
        title = f"time, ms ({kernels})" if kernels else "time, ms"
        yield (
            item["name"],
            NodeData(
                file=f"model_explorer_time{suffix}.json",
                title=title,
                values={op["index"]: op["ms"] for op in timed},
                low_is_bad=False,
                note=note,
            ),
        )

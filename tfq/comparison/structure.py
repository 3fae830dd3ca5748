# SPDX-License-Identifier: Apache-2.0
"""Differences of two aligned subgraphs other than values: ops, options, connections, types, shapes, names, versions."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from tfq.comparison.alignment import Alignment, Side
from tfq.comparison.change import Change, field_changes
from tfq.ptq.causes import op_label
from tfq.tflite import ABSENT, Op, Tensor

# Field of an options table -> the enum of the schema that its number is from.
_ENUMS = {
    "fusedActivationFunction": "ActivationFunctionType",
    "padding": "Padding",
    "weightsFormat": "FullyConnectedOptionsWeightsFormat",
    "kernelType": "LSTMKernelType",
    "mode": "MirrorPadMode",
    "combiner": "CombinerType",
    **dict.fromkeys(("inDataType", "outDataType", "outputType", "idxOutType", "outType"), "TensorType"),
    "quantizedBiasType": "TensorType",
}


def structure_changes(alignment: Alignment, edited: tuple[Any, Any]) -> Iterator[Change]:
    """Yield the differences of two aligned subgraphs.

    Args:
        alignment: The matched ops.
        edited: Both subgraphs in the form of `tfq.tflite.unpack`, for the options of ops.
    """
    graphs = alignment.reference.graph, alignment.model.graph
    for index in alignment.removed:
        yield Change(
            part="ops",
            where=op_label(graphs[0], index),
            what="removed",
            reference=_facts(0, alignment, index),
            model=None,
        )
    for index in alignment.added:
        yield Change(
            part="ops",
            where=op_label(graphs[1], index),
            what="added",
            reference=None,
            model=_facts(1, alignment, index),
        )
    for pair in alignment.moved:
        where = op_label(graphs[0], pair[0])
        yield Change(part="ops", where=where, what="order", reference=pair[0], model=pair[1])
    for ours, theirs in alignment.pairs():
        where = op_label(graphs[0], ours.index)
        yield from _op_changes(where, ours, theirs)
        yield from _connections(where, alignment, ours, theirs)
        if ours.name == theirs.name:
            options = (_options(graph.operators[op.index]) for graph, op in zip(edited, (ours, theirs), strict=True))
            yield from field_changes("options", where, *options)
    yield from _output_connections(alignment)


def _facts(side: int, alignment: Alignment, index: int) -> str:
    graph = (alignment.reference, alignment.model)[side].graph
    op = graph.ops[index]
    shapes = ", ".join(f"{graph.tensors[tensor].dtype} {list(graph.tensors[tensor].shape)}" for tensor in op.outputs)
    return f"{op.custom_code or op.name} -> {shapes}" if shapes else op.custom_code or op.name


def _op_changes(where: str, ours: Op, theirs: Op) -> Iterator[Change]:
    names = [op.custom_code or op.name for op in (ours, theirs)]
    yield from field_changes("ops", where, {"type": names[0]}, {"type": names[1]})
    if names[0] == names[1]:
        yield from field_changes("versions", where, {"version": ours.version}, {"version": theirs.version})


def _connections(where: str, alignment: Alignment, ours: Op, theirs: Op) -> Iterator[Change]:
    """Yield the inputs that come from another op than in the reference."""
    if ours.name != theirs.name:
        return
    slots = max(len(ours.inputs), len(theirs.inputs))
    for slot in range(slots):
        tensors = [op.inputs[slot] if slot < len(op.inputs) else ABSENT for op in (ours, theirs)]
        yield from _connection(where, f"input {slot}", alignment, *tensors)


def _output_connections(alignment: Alignment) -> Iterator[Change]:
    graphs = alignment.reference.graph, alignment.model.graph
    for place, tensors in enumerate(zip(graphs[0].outputs, graphs[1].outputs, strict=False)):
        yield from _connection(f"output {place}", "computed by", alignment, *tensors)


def _connection(where: str, what: str, alignment: Alignment, ours: int, theirs: int) -> Iterator[Change]:
    origins = _origin(alignment.reference, ours), _origin(alignment.model, theirs)
    kinds = {kind for kind, _ in origins}
    if kinds == {"constant"} or kinds == {"none"}:
        return
    same_kind = len(kinds) == 1
    matched = alignment.matches if kinds == {"op"} else alignment.tensors
    if same_kind and matched.get(origins[0][1]) == origins[1][1]:
        return
    labels = [
        _origin_label(side, *origin)
        for side, origin in zip((alignment.reference, alignment.model), origins, strict=True)
    ]
    yield Change(part="ops", where=where, what=what, reference=labels[0], model=labels[1])


def _origin(side: Side, tensor: int) -> tuple[str, int]:
    """Return ("op", index), ("input", tensor), ("constant", tensor) or ("none", -1): where values come from."""
    if tensor == ABSENT:
        return "none", ABSENT
    source = side.source(tensor)
    if source in side.graph.producers:
        return "op", side.graph.producers[source].index
    return ("constant" if side.graph.tensors[source].is_constant else "input"), source


def _origin_label(side: Side, kind: str, index: int) -> str:
    if kind == "op":
        return op_label(side.graph, index)
    return "none" if kind == "none" else f"{kind} {side.graph.tensors[index].name!r}"


def tensor_changes(where: str, ours: Tensor, theirs: Tensor) -> Iterator[Change]:
    """Yield the differences in name, type and shape of two matched activations."""
    sides = [
        {"dtype": tensor.dtype, "shape": list(tensor.shape_signature), "kept between inferences": tensor.is_variable}
        for tensor in (ours, theirs)
    ]
    yield from field_changes("types", where, *sides)
    yield from field_changes("names", where, {"name": ours.name}, {"name": theirs.name})


def _options(op: Any) -> dict[str, Any]:
    """Return the options of an op of the object API, with the schema's names of fields and enums."""
    results: dict[str, Any] = {}
    for table in (op.builtinOptions, op.builtinOptions2):
        if table is not None:
            results |= {_snake_case(name): _option(name, value) for name, value in vars(table).items()}
    if op.customOptions is not None and len(op.customOptions):
        results["custom_options"] = bytes(bytearray(op.customOptions)).hex()
    return results


def _option(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [_option("", item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if hasattr(value, "__dict__"):
        return {_snake_case(key): _option(key, item) for key, item in vars(value).items()}
    return _enum(_ENUMS[name]).get(value, value) if name in _ENUMS and isinstance(value, int) else value


@cache
def _enum(name: str) -> Mapping[int, str]:
    from ai_edge_litert import schema_py_generated as generated

    return {value: key for key, value in vars(getattr(generated, name)).items() if not key.startswith("_")}


def _snake_case(name: str) -> str:
    """Return "stride_w" for "strideW"."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)

# SPDX-License-Identifier: Apache-2.0
"""Subgraphs that ops run: inline composites, and keep only the subgraphs that are needed.

A composite (STABLEHLO_COMPOSITE, from litert-torch and JAX) names a function, and a subgraph of the file decomposes it
into other ops. Interpreters without a kernel for the function run that subgraph, so inlining it is exact.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfq.errors import FlatbufferError, InputError
from tfq.tflite.edit import (
    operator_name,
    operator_names,
    pack,
    remove_unused_constants,
    remove_unused_operator_codes,
    remove_unused_tensors,
    unpack,
)
from tfq.tflite.records import ABSENT

COMPOSITE = "STABLEHLO_COMPOSITE"
_MOST_OPS = 1_000_000


def with_inlined_composites(data: bytes) -> bytes:
    """Replace every composite by the ops of its decomposition; `data` is trusted.

    The same bytes are returned if there is none. The new tensors are named after the composite's first output.

    Raises:
        InputError: A decomposition has a state, which its copies would not share.
        FlatbufferError: A composite does not fit its decomposition, or contains itself.
    """
    if COMPOSITE not in operator_names(data):
        return data
    model = unpack(data)
    for index in range(len(model.subgraphs)):
        _inline(model, index, ())
    keep_subgraphs(model, sorted({0, *(signature.subgraphIndex for signature in model.signatureDefs or [])}))
    remove_unused_tensors(model)
    remove_unused_operator_codes(model)
    remove_unused_constants(model)
    return pack(model, len(data))


def keep_subgraphs(model: Any, first: Sequence[int]) -> None:
    """Keep the subgraphs `first`, in this order, and those that their ops run; remove the others, in place.

    Args:
        model: A ModelT. Signatures of removed subgraphs are removed.
        first: Indices of subgraphs.
    """
    needed = list(dict.fromkeys(first))
    for index in needed:  # grows while it is read
        for op in model.subgraphs[index].operators:
            for _, _, called in subgraphs_of(op):
                if not 0 <= called < len(model.subgraphs):
                    _fail(f"subgraph {index}: an op runs subgraph {called}, which the file does not have")
                if called not in needed:
                    needed.append(called)
    place = {old: new for new, old in enumerate(needed)}
    for index in needed:
        for op in model.subgraphs[index].operators:
            for options, field, called in list(subgraphs_of(op)):
                if isinstance(field, tuple):
                    values = [int(value) for value in getattr(options, field[0])]
                    values[field[1]] = place[called]
                    setattr(options, field[0], values)
                else:
                    setattr(options, field, place[called])
    model.subgraphs = [model.subgraphs[index] for index in needed]
    model.signatureDefs = [item for item in model.signatureDefs or [] if item.subgraphIndex in place]
    for signature in model.signatureDefs:
        signature.subgraphIndex = place[signature.subgraphIndex]


def subgraphs_of(op: Any) -> Iterator[tuple[Any, Any, int]]:
    """Yield (options, field, subgraph) for each subgraph that an op runs; the field of a list is (name, position)."""
    for options in (op.builtinOptions, op.builtinOptions2):
        for field, value in vars(options).items() if options is not None else ():
            if field.endswith("ubgraphIndex"):
                yield options, field, int(value)
            elif field.endswith("ubgraphIndices"):
                for position, number in enumerate([] if value is None else value):
                    yield options, (field, position), int(number)


def _inline(model: Any, index: int, outer: tuple[int, ...]) -> None:
    """Inline the composites of one subgraph, in place, after those of their decompositions."""
    graph, ops = model.subgraphs[index], []
    for op in graph.operators or []:
        if operator_name(model, op) != COMPOSITE:
            ops.append(op)
            continue
        options = op.builtinOptions2
        inner = -1 if options is None else options.decompositionSubgraphIndex
        if not 0 <= inner < len(model.subgraphs) or inner in (*outer, index):
            _fail(f"subgraph {index}: a composite has the decomposition {inner}, expected another subgraph")
        _inline(model, inner, (*outer, index))
        ops += _copied(model, index, op, model.subgraphs[inner])
        if len(ops) > _MOST_OPS:
            _fail(f"subgraph {index}: its composites have more than {_MOST_OPS:,} ops")
    graph.operators = ops


def _copied(model: Any, index: int, op: Any, inner: Any) -> list[Any]:
    """Return copies of the ops of `inner` for subgraph `index`; add the tensors that it lacks."""
    graph = model.subgraphs[index]
    inputs, outputs = list(map(int, op.inputs)), list(map(int, op.outputs))
    sources, results = list(map(int, inner.inputs)), list(map(int, inner.outputs))
    if (len(inputs), len(outputs)) != (len(sources), len(results)):
        _fail(
            f"a composite has {len(inputs)} inputs and {len(outputs)} outputs, and its decomposition {len(sources)} "
            f"and {len(results)}"
        )
    prefix = _text(graph.tensors[outputs[0]].name) if outputs else "composite"
    place = {ABSENT: ABSENT, **dict(zip(sources, inputs, strict=True))}
    for output, result in zip(outputs, results, strict=True):
        if result in place:  # an input, or an output that occurs twice
            _replace_reads(model, index, output, place[result])
        else:
            place[result] = output
            constant = inner.tensors[result]
            graph.tensors[output].buffer, graph.tensors[output].quantization = constant.buffer, constant.quantization
    for number, tensor in enumerate(inner.tensors):
        if tensor.isVariable:
            raise InputError(
                f"the decomposition of a composite has the state {_text(tensor.name)!r}, which tfq cannot inline. "
                "Export the model without composites",
                field="model",
                expected="composites without state",
                got=_text(tensor.name),
                limit="composite-state",
            )
        if number not in place:
            place[number] = len(graph.tensors)
            tensor = copy.copy(tensor)
            tensor.name = f"{prefix}/{_text(tensor.name)}".encode()
            graph.tensors.append(tensor)
    copies = []
    for original in inner.operators or []:
        duplicate = copy.copy(original)
        # Options name subgraphs, which are renumbered in place.
        duplicate.builtinOptions = copy.copy(original.builtinOptions)
        duplicate.builtinOptions2 = copy.copy(original.builtinOptions2)
        for side in ("inputs", "outputs", "intermediates"):
            numbers = getattr(original, side)
            if numbers is not None:
                setattr(duplicate, side, np.array([place[int(number)] for number in numbers], np.int32))
        copies.append(duplicate)
    return copies


def _replace_reads(model: Any, index: int, old: int, new: int) -> None:
    """Let all ops, outputs and signatures of subgraph `index` read the tensor `new` instead of `old`."""
    graph = model.subgraphs[index]
    for holder, side in ((graph, "outputs"), *((op, "inputs") for op in graph.operators)):
        numbers = getattr(holder, side)
        if numbers is not None:
            setattr(
                holder, side, np.array([new if int(number) == old else int(number) for number in numbers], np.int32)
            )
    for signature in model.signatureDefs or []:
        for entry in (signature.outputs or []) if signature.subgraphIndex == index else []:
            entry.tensorIndex = new if entry.tensorIndex == old else entry.tensorIndex


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def _fail(what: str) -> None:
    raise FlatbufferError(f"{what}: the file is damaged: convert the model again", field="model", got=what)

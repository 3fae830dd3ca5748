# SPDX-License-Identifier: Apache-2.0
"""Compare what an application sees of a model: inputs, outputs and signatures."""

from collections.abc import Iterator, Mapping
from typing import Any

from tfq.auditing import IoTensor, io_table
from tfq.comparison.change import Change, field_changes
from tfq.tflite import Model, Signature, Subgraph, Tensor


def subgraph_pairs(reference: Model, model: Model) -> dict[int, int]:
    """Return {subgraph of the reference: subgraph of the model}: those of equal signatures, then those left in order.

    The main subgraphs belong together, whatever the signatures are.
    """
    pairs = {0: 0}
    others = {signature.key: signature.subgraph for signature in model.signatures}
    candidates = [(item.subgraph, others[item.key]) for item in reference.signatures if item.key in others]
    left = [index for index in range(len(model.subgraphs)) if index not in {other for _, other in candidates}]
    used = {ours for ours, _ in candidates}
    candidates += zip(
        (i for i in range(1, len(reference.subgraphs)) if i not in used), (i for i in left if i), strict=False
    )
    for ours, theirs in candidates:
        if ours not in pairs and theirs not in pairs.values():
            pairs[ours] = theirs
    return pairs


def interface_changes(reference: Model, model: Model, pairs: Mapping[int, int]) -> Iterator[Change]:
    """Yield the differences in inputs, outputs and signatures; `pairs` is the result of `subgraph_pairs`."""
    counts = [{"number of subgraphs": len(item.subgraphs)} for item in (reference, model)]
    yield from field_changes("signatures", "file", *counts)
    for ours, theirs in pairs.items():
        graphs = reference.subgraphs[ours], model.subgraphs[theirs]
        yield from field_changes("names", f"subgraph {ours}", *({"name": graph.name} for graph in graphs))
        prefix = f"subgraph {ours}, " if ours else ""
        for side in ("input", "output"):
            names = [getattr(item, f"{side}_names") if not ours else () for item in (reference, model)]
            yield from _ends(f"{prefix}{side}", graphs, f"{side}_tensors", names)
    yield from _signatures(reference, model, pairs)


def meaning_changes(contents: tuple[bytes, bytes]) -> Iterator[Change]:
    """Yield the differences in what an application must do: steps before and after the model, labels.

    They follow from the metadata of both files, whichever entry it is in.
    """
    tables = [io_table(content) for content in contents]
    for side in ("inputs", "outputs"):
        for ours, theirs in zip(getattr(tables[0], side), getattr(tables[1], side), strict=False):
            facts = [_meaning(tensor) for tensor in (ours, theirs)]
            yield from field_changes("inputs", f"{ours.side} {ours.index} {ours.name!r}", *facts)


def _meaning(tensor: IoTensor) -> dict[str, Any]:
    """Return the steps other than quantization, and the number of labels.

    The scales are compared by themselves, and so are the lines of the files with the labels.
    """
    steps = [step.formula for step in tensor.steps if step.step not in ("quantize", "dequantize")]
    name = "preprocessing" if tensor.side == "input" else "postprocessing"
    labels = tensor.labels if tensor.value_labels is None else tensor.value_labels
    return {name: "; ".join(steps) or None, "number of labels": None if labels is None else len(labels)}


def _ends(where: str, graphs: tuple[Subgraph, Subgraph], side: str, names: list[tuple[str, ...]]) -> Iterator[Change]:
    """Yield the differences of the inputs, or of the outputs, of two subgraphs. They are compared in order."""
    tensors = [getattr(graph, side) for graph in graphs]
    facts = [
        [_facts(tensor, name) for tensor, name in zip(each, listed or [t.name for t in each], strict=True)]
        for each, listed in zip(tensors, names, strict=True)
    ]
    for place in range(max(map(len, facts))):
        ours, theirs = (each[place] if place < len(each) else {} for each in facts)
        label = f"{where} {place} {(ours or theirs)['name']!r}"
        if not ours or not theirs:
            what = "removed" if ours else "added"
            forms = [f"{each['dtype']} {each['shape']}" if each else None for each in (ours, theirs)]
            yield Change(part="inputs", where=label, what=what, reference=forms[0], model=forms[1])
        else:
            yield from field_changes("inputs", label, ours, theirs)


def _facts(tensor: Tensor, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape_signature),
        "scale": _single(tensor.scale),
        "zero_point": _single(tensor.zero_point),
    }


def _single(values: tuple) -> Any:
    return list(values) if len(values) > 1 else values[0] if values else None


def _signatures(reference: Model, model: Model, pairs: Mapping[int, int]) -> Iterator[Change]:
    ours, theirs = ({item.key: item for item in each.signatures} for each in (reference, model))
    removed, added = [key for key in ours if key not in theirs], [key for key in theirs if key not in ours]
    for key in list(removed):
        graph = pairs.get(ours[key].subgraph)
        renamed = next((other for other in added if theirs[other].subgraph == graph), None)
        if renamed is not None:
            yield Change(part="signatures", where=repr(key), what="key", reference=key, model=renamed)
            yield from _names(repr(key), ours[key], theirs[renamed], (reference, model))
            removed.remove(key)
            added.remove(renamed)
    for key in removed:
        yield Change(part="signatures", where=repr(key), what="removed", reference=_described(ours[key]), model=None)
    for key in added:
        yield Change(part="signatures", where=repr(key), what="added", reference=None, model=_described(theirs[key]))
    for key in ours:
        if key in theirs:
            yield from _names(repr(key), ours[key], theirs[key], (reference, model))


def _described(signature: Signature) -> str:
    return f"subgraph {signature.subgraph}: {', '.join(signature.inputs)} -> {', '.join(signature.outputs)}"


def _names(where: str, ours: Signature, theirs: Signature, models: tuple[Model, Model]) -> Iterator[Change]:
    """Yield the inputs and outputs that have another name or another position."""
    graphs = [model.subgraphs[item.subgraph] for model, item in zip(models, (ours, theirs), strict=True)]
    for side in ("inputs", "outputs"):
        positions = []
        for graph, signature in zip(graphs, (ours, theirs), strict=True):
            ends = list(getattr(graph, side))
            names = getattr(signature, side).items()
            positions.append({name: ends.index(tensor) if tensor in ends else None for name, tensor in names})
        yield from field_changes("signatures", f"{where} {side}", *positions)

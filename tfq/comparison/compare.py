# SPDX-License-Identifier: Apache-2.0
"""Compare two flatbuffers without running them."""

import collections
import gzip
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from tfq import tflite
from tfq.artifacts import PathOrBytes, content_of, sha256
from tfq.comparison.activations import ActivationDifference, compare_activations
from tfq.comparison.alignment import align
from tfq.comparison.change import PARTS, Change
from tfq.comparison.constants import ConstantDifference, File, compare_constants
from tfq.comparison.interface import interface_changes, meaning_changes, subgraph_pairs
from tfq.comparison.metadata import file_changes, metadata_changes
from tfq.comparison.record import ComparisonRecord, Matching
from tfq.comparison.structure import structure_changes
from tfq.ptq.causes import op_label

# gzip compresses some float16 files at 0.5 MB a second.
_MOST_COMPRESSED = 1 << 26


def compare_models(reference: PathOrBytes, model: PathOrBytes) -> ComparisonRecord:
    """Return the differences between two .tflite files, which may have different schemes (float and int8).

    Compared are ops and their options, constants as real numbers, quantization parameters, inputs and outputs,
    signatures, metadata, and the files stored after the flatbuffer. Neither file is run.

    Examples:
        >>> record = tfq.compare_models("model_float32.tflite", "model_int8.tflite")
        >>> print(record.to_text())
        >>> worst = record.constants[0]
        >>> print(worst.layer, worst.sqnr_db)

    Args:
        reference: The file to compare with: its bytes or its path.
        model: The file that is compared: its bytes or its path.

    Returns:
        The differences; `num_differences` is their number, `to_text()` shows them.

    Raises:
        InputError: A file cannot be read.
        FlatbufferError: A file is not a flatbuffer, or it is damaged.
    """
    contents = content_of(reference, "reference"), content_of(model, "model")
    models = tflite.read(contents[0]), tflite.read(contents[1])
    if contents[0] == contents[1]:
        count, facts = sum(len(graph.ops) for graph in models[0].subgraphs), _facts(contents[0])
        return ComparisonRecord(
            byte_identical=True,
            files={"reference": facts, "model": facts},
            matching=Matching(reference_ops=count, model_ops=count, rules={"identical files": count}),
        )
    # Compressing takes longer than everything else, and needs no interpreter lock.
    with ThreadPoolExecutor(max_workers=2) as workers:
        facts_later = [workers.submit(_facts, content) for content in contents]
        result = _compared(contents, models)
        files = {name: later.result() for name, later in zip(("reference", "model"), facts_later, strict=True)}
    return replace(result, files=files)


def _compared(contents: tuple[bytes, bytes], models: tuple[tflite.Model, tflite.Model]) -> ComparisonRecord:
    """Return the differences of two files whose bytes differ, without their sizes."""
    pairs = subgraph_pairs(*models)
    changes = [*interface_changes(*models, pairs), *meaning_changes(contents)]
    changes += [*metadata_changes(contents, models), *file_changes(contents)]
    files = File(contents[0], tflite.unpack(contents[0])), File(contents[1], tflite.unpack(contents[1]))
    graphs = _Graphs(models, files)
    for ours, theirs in pairs.items():
        graphs.compare(ours, theirs)
    changes += graphs.changes + _unpaired(models, pairs)
    order = list(PARTS)
    return ComparisonRecord(
        byte_identical=False,
        files={},
        matching=Matching(
            reference_ops=sum(len(graph.ops) for graph in models[0].subgraphs),
            model_ops=sum(len(graph.ops) for graph in models[1].subgraphs),
            rules=dict(graphs.rules),
        ),
        changes=tuple(sorted(changes, key=lambda change: order.index(change.part))),
        constants=tuple(sorted(graphs.constants, key=lambda item: item.loss)),
        activations=tuple(sorted(graphs.activations, key=lambda item: -item.size)),
    )


def _facts(content: bytes) -> dict[str, Any]:
    """Return the sizes and the hash of a file; the size after gzip is that in the records of evaluations."""
    is_large = len(content) > _MOST_COMPRESSED
    return {
        "bytes": len(content),
        "gzip_bytes": None if is_large else len(gzip.compress(content, 9, mtime=0)),
        "gzip_bytes_reason": f"the file has more than {_MOST_COMPRESSED:,} bytes" if is_large else None,
        "sha256": sha256(content),
    }


class _Graphs:
    """Collects the differences of all pairs of subgraphs."""

    def __init__(self, models: tuple[tflite.Model, tflite.Model], files: tuple[File, File]) -> None:
        self.models, self.files = models, files
        self.rules: collections.Counter[str] = collections.Counter()
        self.changes: list[Change] = []
        self.constants: list[ConstantDifference] = []
        self.activations: list[ActivationDifference] = []

    def compare(self, ours: int, theirs: int) -> None:
        """Compare two subgraphs."""
        alignment = align(self.models[0].subgraphs[ours], self.models[1].subgraphs[theirs])
        self.rules.update(alignment.rules.values())
        edited = self.files[0].edited.subgraphs[ours], self.files[1].edited.subgraphs[theirs]
        prefix = f"subgraph {ours}, " if ours else ""
        self._add(structure_changes(alignment, edited), prefix)
        self._add(compare_constants(alignment, self.files, (ours, theirs)), prefix)
        self._add(compare_activations(alignment), prefix)

    def _add(self, items: Iterable[Change | ConstantDifference | ActivationDifference], prefix: str) -> None:
        for item in items:
            if isinstance(item, Change):
                self.changes.append(replace(item, where=prefix + item.where))
            elif isinstance(item, ConstantDifference):
                self.constants.append(replace(item, op=prefix + item.op))
            else:
                self.activations.append(replace(item, where=prefix + item.where))


def _unpaired(models: tuple[tflite.Model, tflite.Model], pairs: dict[int, int]) -> list[Change]:
    """Return the ops of subgraphs that only one of the files has."""
    results = []
    for side, (model, paired) in enumerate(zip(models, (set(pairs), set(pairs.values())), strict=True)):
        for graph in model.subgraphs:
            if graph.index not in paired:
                for op in graph.ops:
                    where = f"subgraph {graph.index}, {op_label(graph, op.index)}"
                    values = (op.name, None) if side == 0 else (None, op.name)
                    what = ("removed", "added")[side]
                    results.append(Change(part="ops", where=where, what=what, reference=values[0], model=values[1]))
    return results

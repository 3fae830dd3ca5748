# SPDX-License-Identifier: Apache-2.0
"""What pruning has brought, measured in the flatbuffers: bytes, time, instructions. And what it has not."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfq.auditing import audit_model
from tfq.compression.pruning.sparsity import sparsity_in_flatbuffer
from tfq.config import BenchmarkConfig
from tfq.errors import InputError
from tfq.evaluation import InstructionRecord, benchmark_models, count_on_runners, instructions_to_dict

UNSTRUCTURED = (
    "unstructured sparsity shrinks the compressed file, not the time: TFLite's int8 kernels multiply by zeros as by "
    "any other number. Time comes from taking whole filters out (filters.enabled)"
)
EMULATORS = ("qemu:cortex-a76",)


@dataclass(frozen=True, kw_only=True)
class FileSize:
    """Bytes of a `.tflite` as it is and after gzip -9, and the fraction of its weights that are zero."""

    model_bytes: int
    gzip_bytes: int
    sparsity: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class PruningGain:
    """A pruned flatbuffer against the dense one of the same scheme. A ratio is pruned / dense: below 1 is a gain.

    sparsity: Keras layer -> fraction of exact zeros in the pruned flatbuffer, None where they cannot be counted.
    latency: benchmark_models' ratio on this machine (ratio, low, high, confidence, reason), None where not asked for.
    instructions: emulated runner -> {"dense", "pruned", "ratio"} of counted ones, or {"not_run": reason}.
    """

    dense: FileSize
    pruned: FileSize
    sparsity: dict[str, float | None]
    latency: dict[str, Any] | None
    instructions: dict[str, dict[str, Any]]
    note: str = UNSTRUCTURED

    @property
    def gzip_ratio(self) -> float:
        """gzip bytes, pruned / dense."""
        return self.pruned.gzip_bytes / self.dense.gzip_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "dense": self.dense.to_dict(),
            "pruned": self.pruned.to_dict(),
            "gzip_ratio": self.gzip_ratio,
            "sparsity": dict(self.sparsity),
            "latency": self.latency,
            "instructions": self.instructions,
            "note": self.note,
        }

    def to_text(self) -> str:
        """For the terminal: a line a measure, and what it does not mean."""
        lines = [
            f"gzip: {self.dense.gzip_bytes:,} -> {self.pruned.gzip_bytes:,} bytes ({self.gzip_ratio:.1%}); the file "
            f"itself: {self.dense.model_bytes:,} -> {self.pruned.model_bytes:,}",
            f"zeros among the weights: {_share(self.dense.sparsity)} -> {_share(self.pruned.sparsity)}",
        ]
        if self.latency is not None:
            low, high = self.latency["low"], self.latency["high"]
            interval = self.latency["reason"] if low is None else f"{low:.3f} to {high:.3f}"
            lines.append(f"time on this machine, pruned / dense: {self.latency['ratio']:.3f} ({interval})")
        for runner, counts in self.instructions.items():
            told = (
                f"not counted: {counts['not_run']}"
                if "not_run" in counts
                else f"{counts['dense']:,} -> {counts['pruned']:,} ({counts['ratio']:.3f})"
            )
            lines.append(f"instructions an inference on {runner}: {told}")
        return "\n".join([*lines, self.note])


def pruning_gain(
    dense: bytes,
    pruned: bytes,
    *,
    data: Any = None,
    benchmark: BenchmarkConfig | None = None,
    emulators: Sequence[str] = EMULATORS,
    timed: bool = True,
) -> PruningGain:
    """Measures what pruning brought: gzip bytes, zeros, time on this machine, instructions on emulated ones.

    dense, pruned: `.tflite` bytes of one scheme (both int8), one of a model that was not pruned.
    data: a Split whose examples the models are timed with; random ones otherwise. benchmark: how long to time.
    emulators: runners to count instructions on; one that cannot run here is told with its reason. timed: False leaves
        the latency out.
    Raises InputError on damaged models, and where one file is float and the other quantized.
    """
    kinds = {name: _weight_types(content) for name, content in (("dense", dense), ("pruned", pruned))}
    if kinds["dense"] != kinds["pruned"]:
        raise InputError(
            f"pruning_gain: the dense model's weights are {', '.join(kinds['dense'])}, the pruned one's "
            f"{', '.join(kinds['pruned'])}: wanted two of one scheme, or the difference is not that of pruning"
        )
    latency = None
    if timed:
        settings = benchmark or BenchmarkConfig(ops=False, min_secs=3.0)
        record = benchmark_models({"dense": dense, "pruned": pruned}, settings, data=data)
        latency = next((dict(vars(ratio)) for ratio in record.ratios if ratio.against == "pruned"), None)
    counts = {
        name: count_on_runners(content, emulators, data) for name, content in (("dense", dense), ("pruned", pruned))
    }
    return PruningGain(
        dense=_size(dense),
        pruned=_size(pruned),
        sparsity=sparsity_in_flatbuffer(pruned),
        latency=latency,
        instructions={
            runner: _compared(counts["dense"][runner], counts["pruned"][runner]) for runner in counts["dense"]
        },
    )


def _size(model: bytes) -> FileSize:
    weights = audit_model(model).weights
    zeros = [weight.zeros for weight in weights]
    values = sum(weight.values for weight in weights)
    known = None not in zeros and values > 0
    return FileSize(
        model_bytes=len(model),
        # Without the time of day in its header, which would make the size of equal models differ.
        gzip_bytes=len(gzip.compress(model, 9, mtime=0)),
        sparsity=sum(each for each in zeros if each is not None) / values if known else None,
    )


def _weight_types(model: bytes) -> list[str]:
    return sorted({weight.dtype for weight in audit_model(model).weights})


def _compared(dense: InstructionRecord | str, pruned: InstructionRecord | str) -> dict[str, Any]:
    if isinstance(dense, str) or isinstance(pruned, str):
        reason = dense if isinstance(dense, str) else pruned
        return instructions_to_dict({"": reason})[""]
    return {
        "dense": dense.instructions,
        "pruned": pruned.instructions,
        "ratio": pruned.instructions / dense.instructions,
        "cpu": dense.cpu,
        "note": dense.note,
    }


def _share(fraction: float | None) -> str:
    return "not counted" if fraction is None else f"{fraction:.1%}"

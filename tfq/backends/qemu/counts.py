# SPDX-License-Identifier: Apache-2.0
"""Instructions of an inference, from the marks that the emulator's plugin noted (target/instructions.py sets them)."""

import statistics
from dataclasses import dataclass
from typing import Any

from tfq.errors import RunnerError

# Python adapts its bytecode to what runs, and fills its free lists; from the 11th inference on nothing of that is left.
WARMUP_RUNS = 12
COUNTED_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class InstructionCounts:
    """What one inference (one `invoke`, at the model's batch) executes.

    instructions: the median of `inferences` counted ones; lowest, highest: of these. What the marks around it cost is
    subtracted; the call of `invoke` from Python is in it, some 2,000 instructions whatever the model.
    counted_by: emulator and compiler. total_ops, delegated_ops, machine, notes: as in RunResult.
    """

    instructions: int
    lowest: int
    highest: int
    inferences: int
    batch: int
    counted_by: str
    total_ops: int | None
    delegated_ops: int | None
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_counts(text: str) -> dict[str, int]:
    """instructions, lowest, highest and inferences of the plugin's lines: "<instructions so far> <threads so far>".

    Three marks an inference: before it, after it, and another after that.
    Raises RunnerError where marks are missing, or another thread ran whose instructions would be in the counts.
    """
    lines = [line.split() for line in text.splitlines()]
    rounds = WARMUP_RUNS + COUNTED_RUNS
    if len(lines) != 3 * rounds:
        raise RunnerError(f"the emulator noted {len(lines)} marks, {3 * rounds} were set: its plugin does not work")
    threads = max(int(line[1]) for line in lines)
    if threads != 1:
        raise RunnerError(f"{threads} threads ran in the emulator: wanted one, since all are counted together")
    marks = [int(line[0]) for line in lines]
    rounds_of_marks = list(zip(marks[0::3], marks[1::3], marks[2::3], strict=True))[WARMUP_RUNS:]
    cost_of_marks = statistics.median_low([again - after for _, after, again in rounds_of_marks])
    counts = [after - before - cost_of_marks for before, after, _ in rounds_of_marks]
    return {
        "instructions": statistics.median_low(counts),
        "lowest": min(counts),
        "highest": max(counts),
        "inferences": len(counts),
    }

# SPDX-License-Identifier: Apache-2.0
"""Read what Vela writes about a compilation. Pure parsing; the formats are those of ethos-u-vela 5.2."""

import csv
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from tfq.errors import BackendError, install_hint
from tfq.tflite import Model, Op, Subgraph

# Column of the summary -> purpose in `BackendResult.memory_bytes`. Vela reports KiB.
AREAS = {
    "sram_memory_used": "sram",
    "dram_memory_used": "dram",
    "on_chip_flash_memory_used": "on_chip_flash",
    "off_chip_flash_memory_used": "off_chip_flash",
}
# Vela's name of an op that it leaves to the CPU, in the database's table "perf".
ON_CPU = "Passthrough"
# The custom op of a compiled model that stands for the ops on the NPU.
NPU_OP = "ethos-u"
_REASON = re.compile(
    r"^Warning \([^)\n]*\) operator: (?P<op>.*?), ofm: '(?P<tensor>.*?)'\n+Reason: (?P<reason>.*?)(?=\n\n|\Z)",
    re.MULTILINE | re.DOTALL,
)
# Vela prints this if a memory mode keeps constants in SRAM, and then reports them as on-chip flash.
_CONSTANTS_IN_SRAM = "Changing const_mem_area from Sram to OnChipFlash"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of a compilation.

    Attributes:
        accelerator: Vela's name of the NPU, such as "Ethos_U55_128".
        system_config: The system configuration that Vela used.
        memory_mode: The memory mode that Vela used.
        core_clock_hz: Clock of the NPU in that configuration.
        memory_bytes: Bytes by purpose, as in `BackendResult`: the areas that hold something.
        cycles: Estimated cycles of an inference on the NPU.
        npu_cycles: How many of them the NPU computes, instead of waiting for memory.
        multiply_adds: Multiply-adds on the NPU.
    """

    accelerator: str
    system_config: str
    memory_mode: str
    core_clock_hz: int
    memory_bytes: Mapping[str, int]
    cycles: int
    npu_cycles: int
    multiply_adds: int


def read_summary(text: str, log: str) -> Summary:
    """Parse the summary.

    Args:
        text: The CSV file.
        log: What Vela printed.

    Raises:
        BackendError: A column is missing.
    """
    try:
        (row,) = csv.DictReader(text.splitlines())
        sizes = {purpose: round(float(row[column]) * 1024) for column, purpose in AREAS.items()}
        return Summary(
            accelerator=row["accelerator_configuration"],
            system_config=row["system_config"],
            memory_mode=row["memory_mode"],
            core_clock_hz=round(float(row["core_clock"])),
            memory_bytes=_memory(sizes, constants_in_sram=_CONSTANTS_IN_SRAM in log),
            cycles=round(float(row["cycles_total"])),
            npu_cycles=round(float(row["cycles_npu"])),
            multiply_adds=round(float(row["nn_macs"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unknown_format("summary", error) from error


def _memory(sizes: Mapping[str, int], *, constants_in_sram: bool) -> dict[str, int]:
    if constants_in_sram:
        constants, arena = sizes["on_chip_flash"], sizes["sram"]
        sizes = {
            "sram": arena + constants,
            "sram.arena": arena,
            "sram.constants": constants,
            **{purpose: size for purpose, size in sizes.items() if purpose not in ("sram", "on_chip_flash")},
        }
    return {purpose: size for purpose, size in sizes.items() if size}


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """Vela's estimate for an op on the NPU.

    Attributes:
        cycles: Cycles on the NPU.
        multiply_adds: Multiply-adds on the NPU, as Vela counts them.
    """

    cycles: int
    multiply_adds: int


def read_op_costs(database: str) -> dict[int, OpCost]:
    """Return number of the op in the flatbuffer -> its cost, from the debug database.

    Ops that Vela leaves to the CPU or removes, such as reshapes on the NPU, are not in the result. The parts of an op
    that Vela splits are added up. The numbers are those in the op's own subgraph, which the database does not name, so
    that a model with several subgraphs has no costs by op.

    Raises:
        BackendError: A table is missing or has another form.
    """
    try:
        sources = {row["id"]: int(row["ext_key"]) for row in _table(database, "source")}
        costs: dict[int, OpCost] = {}
        for row in _table(database, "perf"):
            if row["operator"] != ON_CPU:
                index = sources[row["source_id"]]
                before = costs.get(index, OpCost(cycles=0, multiply_adds=0))
                costs[index] = OpCost(
                    cycles=before.cycles + int(row["op_cycles"]),
                    multiply_adds=before.multiply_adds + int(row["mac_count"]),
                )
        return dict(sorted(costs.items()))
    except (KeyError, ValueError) as error:
        raise _unknown_format("debug database", error) from error


def ops_on_cpu(model: Model, compiled: Model) -> list[Op]:
    """Return the ops of the main subgraph that Vela leaves to the CPU.

    The compiled model has them unchanged, between custom ops that stand for the NPU.

    Args:
        model: The model.
        compiled: What Vela made of it.

    Raises:
        BackendError: The compiled model has an op that is not in the model.
    """

    def key(graph: Subgraph, op: Op) -> tuple[object, ...]:
        return (op.name, op.custom_code, *(graph.tensors[index].name for index in op.outputs))

    graph, after = model.main_subgraph, compiled.main_subgraph
    candidates: dict[tuple[object, ...], deque[Op]] = {}
    for op in graph.ops:
        candidates.setdefault(key(graph, op), deque()).append(op)
    left = []
    for op in after.ops:
        if op.custom_code == NPU_OP:
            continue
        matching = candidates.get(key(after, op))
        if not matching:
            raise BackendError(f"Vela's output has an op {op.name} that the model does not have", got=op.name)
        left.append(matching.popleft())
    return sorted(left, key=lambda op: op.index)


def read_reasons(log: str) -> dict[str, str]:
    """Return output tensor -> why Vela leaves the op to the CPU, on one line; from what Vela printed."""
    return {
        match["tensor"]: "; ".join(line.rstrip(".") for line in match["reason"].splitlines())
        for match in _REASON.finditer(log)
    }


def _table(database: str, name: str) -> list[dict[str, str]]:
    """Return the rows of a table of the database by column. Tensor names are not escaped there."""
    start = database.find(f'<table name="{name}">\n<![CDATA[\n')
    if start < 0:
        raise ValueError(f"there is no table {name!r}")
    content = database[database.index("CDATA[\n", start) + 7 : database.index("\n]]>\n</table>", start) + 1]
    header, _, body = content.partition("\n")
    columns = [column.strip('"') for column in header.split(",")]
    number = r'"?(-?[\d.]*)"?'
    cells = [r'"(.*?)"' if column in ("operator", "name") else number for column in columns]
    pattern = re.compile(f"^{','.join(cells)}$", re.MULTILINE | re.DOTALL)
    matches = list(pattern.finditer(body))
    if "".join(f"{match.group()}\n" for match in matches) != body:
        raise ValueError(f"a row of table {name!r} has other columns than {columns}")
    return [dict(zip(columns, match.groups(), strict=True)) for match in matches]


def _unknown_format(what: str, error: Exception) -> BackendError:
    return BackendError(
        f"Vela's {what} has an unknown format ({type(error).__name__}: {error}). tfq reads that of ethos-u-vela 5.2: "
        f"{install_hint('npu')}"
    )

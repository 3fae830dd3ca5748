# SPDX-License-Identifier: Apache-2.0
"""Merge the records of all shards of a sweep into the one that a single process would have written."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfq import artifacts
from tfq.errors import InputError
from tfq.sweep.record import DONE, PointRecord, SweepResult
from tfq.sweep.summary import summarized


def shard_file(shard: tuple[int, int]) -> str:
    """Return the name of the record of shard (I, N)."""
    return f"sweep-{shard[0]}-of-{shard[1]}.json"


def read_shards(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all shards in a folder, in their order.

    Raises:
        InputError: There are none, one is missing, or they are of sweeps with another number of shards.
    """
    found = {}
    for path in sorted(folder.glob("sweep-*-of-*.json")):
        match = re.fullmatch(r"sweep-(\d+)-of-(\d+)\.json", path.name)
        if match:
            found[int(match[1]), int(match[2])] = artifacts.read_json(path, field="out")
    where = artifacts.shown(folder)
    if not found:
        raise InputError(
            f"{where} has no records of shards (sweep-1-of-N.json): run the sweep with sweep.shard=1/N and so on first",
            field="out",
            expected="sweep-1-of-N.json",
            got=str(folder),
        )
    counts = sorted({count for _, count in found})
    if len(counts) > 1:
        raise InputError(
            f"{where} has records of {' and of '.join(map(str, counts))} shards: delete those of one sweep",
            field="out",
            expected="one number of shards",
            got=counts,
        )
    (count,) = counts
    missing = [index for index in range(1, count + 1) if (index, count) not in found]
    if missing:
        names = ", ".join(f"{each}/{count}" for each in missing[:10])
        raise InputError(
            f"{where} lacks {len(missing)} of {count} shards ({names}). Run them into the same directory, then merge "
            "again",
            field="sweep.shard",
            expected=count,
            got=count - len(missing),
        )
    return [found[index, count] for index in range(1, count + 1)]


def merged(records: Sequence[Mapping[str, Any]]) -> SweepResult:
    """Return the result of a whole sweep from the records of all its shards.

    It is what one process would have computed, apart from times and, if shards ran on different machines, from what
    depends on the machine.

    Args:
        records: The records of all shards, as JSON values.

    Raises:
        InputError: They are damaged, or not of the same sweep.
    """
    try:
        return _merged(records)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"the record of a shard is damaged ({type(error).__name__}: {error}): run this shard again",
            field="out",
            expected="records of tfq sweep",
            got=type(error).__name__,
        ) from error


def _merged(records: Sequence[Mapping[str, Any]]) -> SweepResult:
    first = records[0]
    different = [
        place
        for place, record in enumerate(records, 1)
        if record.get("command") != "sweep" or record["grid_sha256"] != first["grid_sha256"]
    ]
    if different:
        raise InputError(
            f"shard {different[0]}/{len(records)} is of another sweep than shard 1: its grid, model, data, settings or "
            "version of tfq differs. Run all shards with the same ones",
            field="out",
            expected=first["grid_sha256"],
            got=records[different[0] - 1].get("grid_sha256"),
        )
    references: dict[str, PointRecord] = {}
    points: dict[str, PointRecord] = {}
    for record in records:
        points |= {values["id"]: PointRecord.from_dict(values) for values in record["points"]}
        for values in record["references"]:
            known = references.get(values["id"])
            if known is None or known.status != DONE:
                references[values["id"]] = PointRecord.from_dict(values)
    order = first["order"]
    lost = [name for name in order if name not in references and name not in points]
    if lost:
        raise ValueError(f"no shard has the point {lost[0]}")
    timings = [record["timing"] for record in records]
    return summarized(
        SweepResult(
            grid=first["grid"],
            grid_sha256=first["grid_sha256"],
            axes={axis: tuple(names) for axis, names in first["axes"].items()},
            seeds=tuple(first["seeds"]),
            num_threads=first["num_threads"],
            points=tuple(points[name] for name in order if name in points),
            references=tuple(references[name] for name in order if name in references),
            settings=first["settings"],
            order=tuple(order),
            stages=first["stages"],
            timing={
                "elapsed_seconds": sum(timing["elapsed_seconds"] for timing in timings),
                "stages": dict(sorted({key: time for each in timings for key, time in each["stages"].items()}.items())),
            },
        )
    )

# SPDX-License-Identifier: Apache-2.0
"""Read records as the baseline or the new side of the gate."""

import os
from collections.abc import Mapping
from typing import Any

from tfq.errors import InputError
from tfq.evaluation.figure_readers import Measured

COMMANDS = ("evaluate", "benchmark", "run")


def check_is_gated(command: object, shown: str, field: str) -> None:
    """Check that records of a command can be compared with a baseline.

    Args:
        command: The command in the record.
        shown: The file, for the error.
        field: The config path that named it.

    Raises:
        InputError: They cannot.
    """
    if command not in COMMANDS:
        raise InputError(
            f"{field}={shown} is a record of tfq {command}: expected one of tfq {', tfq '.join(COMMANDS)}",
            field=field,
            expected=COMMANDS,
            got=command if isinstance(command, str) else type(command).__name__,
        )


def models_of(record: Mapping[str, Any]) -> dict[str, Measured]:
    """Return the models of a record by name.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: The record is damaged.
    """
    return {"evaluate": _evaluated, "benchmark": _benchmarked, "run": _run}[record["command"]](record)


def _evaluated(record: Mapping[str, Any]) -> dict[str, Measured]:
    config = record["config"]
    name = os.path.basename(config["model"]).removesuffix(".tflite")
    return {
        name: Measured(
            name=name,
            file=config["model"],
            evaluation=record["evaluation"],
            rows=record["portability"]["rows"],
            digest=record.get("digest") or {},
            sha256=record["sha256"],
            data=config["data"],
            settings=config["evaluation"],
            cpu=_cpu(record),
        )
    }


def _benchmarked(record: Mapping[str, Any]) -> dict[str, Measured]:
    benchmark, hashes = record["benchmark"], record["sha256"]
    against = hashes.get("against") or {}
    results: dict[str, Measured] = {}
    for times in benchmark["models"]:
        name = f"{times['name']}, {times['kernels']}" if times["kernels"] else times["name"]
        results[name] = Measured(
            name=name,
            file=times["name"],
            times=times,
            ratios=_ratios(benchmark, times["name"], times["kernels"]),
            backend=benchmark["backend"],
            sha256={"model": against.get(times["name"], hashes["model"])},
            settings=record["config"]["benchmark"],
            cpu=_cpu(record),
        )
    return results


def _run(record: Mapping[str, Any]) -> dict[str, Measured]:
    config, benchmark = record["config"], record.get("benchmark") or {}
    results = {}
    for model in record["models"]:
        timed = [times for times in benchmark.get("models") or () if times["name"] == model["name"]]
        times = timed[0] if timed else {}
        results[model["name"]] = Measured(
            name=model["name"],
            file=model["file"],
            evaluation=model["evaluation"],
            rows=model["portability"]["rows"],
            digest=model.get("digest") or {},
            times={} if not times else {"p50_ms": times.get("p50_ms")},
            ratios=_ratios(benchmark, model["name"], times.get("kernels")) if times else (),
            sha256=model["sha256"],
            data=config["data"],
            settings=config["evaluation"],
            cpu=_cpu(record),
        )
    return results


def _ratios(benchmark: Mapping[str, Any], name: str, kernels: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the ratios of a model to another one."""
    ratios = benchmark.get("ratios") or ()
    return tuple(
        ratio for ratio in ratios if ratio["against"] == name != ratio["model"] and ratio["kernels"] == kernels
    )


def _cpu(record: Mapping[str, Any]) -> str | None:
    """Return the model of the CPU with the extensions that matter for int8, as text."""
    cpu = record.get("cpu") or {}
    return f"{cpu.get('model')} ({', '.join(cpu.get('isa') or ())})" if cpu else None

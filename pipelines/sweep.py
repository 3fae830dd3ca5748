#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare many models and settings: every combination of a grid, within a budget, over seeds.

    tfq sweep --grid=grid.json --model=model.keras --data=npz:examples.npz --out=out/sweep
    tfq sweep --grid=grid.json --model=model.keras --data=npz:examples.npz --out=out/sweep --dry_run
    tfq sweep --grid=grid.json --model=model.keras --data=npz:examples.npz --out=out/sweep --shard=1/8
    tfq sweep merge out/sweep

Reads a JSON grid: named axes whose values are parts of the config (models, compression, schemes, calibration,
backends), seeds, and excluded combinations. Each combination is a point: it trains or loads a model, compresses it,
converts it, evaluates it on the val and test splits, and measures its costs. Stages that points share run once. They
are stored in --out or in --store, which several sweeps may share; an interrupted sweep resumes.

Writes sweep.json, with the pages sweep.html and sweep.md, to --out: the points, Pareto fronts, and what is best within
--budget, chosen on val and reported on test, with the intervals of its differences from the others. A point that fails
is a row with its reason. --dry_run prints the points and the stages, and runs nothing.

--executor runs the tasks on this machine (also if it is empty) or on a Ray cluster. Without Ray, --shard=I/N runs one
part of the points on each of N machines that share --out, and writes sweep-I-of-N.json; `tfq sweep merge DIR` joins
these records. The exit code is 1 if a bound of --budget is set and no point
meets all of them.
"""

from collections.abc import Sequence
from pathlib import Path

from tfq import artifacts, sweep
from tfq.cli import flags, process
from tfq.config import RunConfig
from tfq.errors import InputError, RequirementError
from tfq.typing import JSON


def main(invocation: flags.Invocation) -> None:
    """Run the command with parsed flags."""
    config = invocation.config
    artifacts.check_out_is_set(config.out)
    if config.sweep.action == "merge":
        finish(invocation, *merged(invocation))
        return
    if config.sweep.dry_run:
        print(sweep.dry_run(config, allow_code=invocation.allow_code))
        return
    result = sweep.run_sweep(config, allow_code=invocation.allow_code)
    record = process.record(invocation, "sweep", **result.to_dict())
    if result.shard is None:
        finish(invocation, record, result)
        return
    path = artifacts.write_json(Path(config.out, sweep.shard_file(result.shard)), record)
    done = sum(point.status == "done" for point in result.points)
    process.show(invocation, record, f"{done} of {len(result.points)} points are done: {path}")


def merged(invocation: flags.Invocation) -> tuple[JSON, sweep.SweepResult]:
    """Return the record of the whole sweep from the records of its shards in --out."""
    if not Path(invocation.config.out).is_dir():
        raise InputError(
            f"out={invocation.config.out} is not a directory: expected the one that all shards wrote to",
            field="out",
            expected="a directory",
            got=invocation.config.out,
        )
    records = sweep.read_shards(Path(invocation.config.out))
    result = sweep.merged(records)
    first = records[0]
    config = RunConfig.from_dict({**first["config"], "sweep": {**first["config"]["sweep"], "shard": ""}})
    settings = {"config": config.to_record(), "config_hash": config.config_hash()}
    return {**first, **settings, **result.to_dict()}, result


def finish(invocation: flags.Invocation, record: JSON, result: sweep.SweepResult) -> None:
    """Write the record of a whole sweep with its pages, and fail if nothing meets the bounds."""
    process.finish(invocation, record, sweep.text_of(result))
    if result.best is not None and result.best.group is None and result.best.bounds:
        raise RequirementError(result.best.sentence)


def cli(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line (`sys.argv` if None), run the command, and exit with its exit code."""
    process.run_command(main, command="sweep", section="sweep", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    cli()

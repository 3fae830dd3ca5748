# SPDX-License-Identifier: Apache-2.0
"""Sweeps: every combination of a grid as a chain of stages, then Pareto fronts and the best within a budget."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfq.sweep.analysis import front_of, groups_of, pareto_front
    from tfq.sweep.best import best_of
    from tfq.sweep.grid import Grid, Point
    from tfq.sweep.merging import merged, read_shards, shard_file
    from tfq.sweep.record import (
        Best,
        Cost,
        Front,
        FrontMember,
        GroupRecord,
        PointRecord,
        SplitScore,
        Spread,
        SweepResult,
    )
    from tfq.sweep.run import dry_run, parse_shard, run_sweep
    from tfq.sweep.statistics import SeedDifference, seed_difference
    from tfq.sweep.summary import summarized, text_of
else:
    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)

__all__ = [
    "Best",
    "Cost",
    "Front",
    "FrontMember",
    "Grid",
    "GroupRecord",
    "Point",
    "PointRecord",
    "SeedDifference",
    "SplitScore",
    "Spread",
    "SweepResult",
    "best_of",
    "dry_run",
    "front_of",
    "groups_of",
    "merged",
    "pareto_front",
    "parse_shard",
    "read_shards",
    "run_sweep",
    "seed_difference",
    "shard_file",
    "summarized",
    "text_of",
]

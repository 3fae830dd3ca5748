# SPDX-License-Identifier: Apache-2.0
"""Settings of a sweep over many models: its grid, its budget, and where its tasks run."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting


@dataclass(frozen=True, kw_only=True)
class SweepBudgetConfig(Config):
    """The budget of a sweep: what it may spend, and the bounds that the best point must meet.

    A bound on a cost that was not measured is missed.
    """

    max_hours: float = setting(
        0, "hours after which no further point is started; 0 is unlimited. Other points are rows that say so", minimum=0
    )
    max_points: int = setting(
        0,
        "number of points to run, those with the fewest estimated training steps first; 0 is all. Other points are "
        "rows that say so",
        minimum=0,
    )
    max_model_bytes: int | None = setting(None, "largest size of the .tflite in bytes", minimum=0)
    max_gzip_bytes: int | None = setting(None, "largest size of the .tflite after gzip, in bytes", minimum=0)
    max_arena_bytes: int | None = setting(
        None, "largest tensor arena in bytes, from a backend of cost_backends that reports it (tflm)", minimum=0
    )
    max_instructions: int | None = setting(
        None, "most instructions of an inference, on the first backend of cost_backends that counts them", minimum=0
    )
    max_latency_ms: float | None = setting(
        None, "largest median time of an inference on this machine in milliseconds; needs sweep.latency", minimum=0
    )
    max_accuracy_drop: float | None = setting(
        None,
        "largest loss of the main metric against the reference point: 0.01 is one percentage point of a fraction; of "
        "another metric in its unit",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """Settings of a sweep: every combination of the axes of a grid is one point."""

    action: str = setting(
        "run", "run the points of a grid, or merge the records of its shards in out", choices=("run", "merge")
    )
    grid: str = setting("", "JSON file with the axes of the sweep, its seeds and its base settings", path_of="json")
    store: str = setting(
        "",
        "directory of the stored results, which several sweeps may share at the same time; empty is out",
        path_of="directory",
    )
    num_threads: int = setting(
        1, "threads of TensorFlow, of BLAS and of each interpreter in every task; results depend on it", minimum=1
    )
    shard: str = setting("", "I/N: only run part I of N (1 <= I <= N) of the points; empty runs all")
    dry_run: bool = setting(False, "print the points, the stages that they share and the estimated work; run nothing")
    choose_on: str = setting(
        "val",
        "split on which the fronts and the best point are chosen: val, so that the test split is unseen by the choice, "
        "or test, if there is no val",
        choices=("val", "test"),
    )
    fine_tune: bool = setting(
        False,
        "first train a model from a file further, by `training`; a model that tfq builds is always trained first",
    )
    cost_backends: tuple[str, ...] = setting(
        ("tflm", "qemu:cortex-a53"),
        "backends that report the memory or the instructions of each point; none measures neither",
        choices=("none",),
        choices_of="backend",
    )
    latency: bool = setting(False, "time each point on this machine, where other tasks may run at the same time")
    budget: SweepBudgetConfig = section(SweepBudgetConfig, "limits of the sweep, and bounds that the best point meets")

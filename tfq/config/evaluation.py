# SPDX-License-Identifier: Apache-2.0
"""What a flatbuffer computes, where, and how fast."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting


@dataclass(frozen=True, kw_only=True)
class RequireConfig(Config):
    """Bounds on an evaluation; a missed one is exit code 1."""

    min_accuracy: float | None = setting(
        None, "lowest accuracy, a fraction; of another metric, its lowest value", minimum=0, maximum=1
    )
    max_accuracy_drop: float | None = setting(
        None,
        "largest loss of accuracy against the reference: a fraction (0.005), or in the metric's own unit; of a metric "
        "that is better if lower, the largest increase",
        minimum=0,
    )
    min_agreement: float | None = setting(
        None,
        "lowest fraction of examples with the reference's class; for outputs that say a class",
        minimum=0,
        maximum=1,
    )
    min_sqnr_db: float | None = setting(
        None, "lowest SQNR of every output against the reference, in dB; for outputs of any kind"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """What a flatbuffer computes, where, and against what."""

    reference: str = setting("", "float .tflite to compare with")
    backend: str = setting("local", "where to run, as in local or qemu:cortex-a76", choices_of="backend")
    parity_backends: tuple[str, ...] = setting(
        (), "backends whose outputs are compared with those of `backend`, value by value", choices_of="backend"
    )
    parity_limit: int = setting(256, "examples for the comparison between backends", minimum=1)
    metric: str = setting(
        "",
        "what is computed against the labels; empty is the default: top1, or roc_auc for a model that reconstructs its "
        "input",
        choices_of="metric",
    )
    output: str = setting(
        "",
        "output of the metric and of agreement, by its name or number from 0; if empty, the metric chooses its own "
        "and agreement is the lowest of all outputs that say a class",
    )
    num_threads: int = setting(1, "threads of each interpreter", minimum=1)
    num_workers: int = setting(0, "interpreters that share the examples; 0 is one for each core", minimum=0)
    timeout_secs: float = setting(
        0, "longest time without any progress before a run is given up; 0 goes by the model's own size", minimum=0
    )
    xnnpack: bool = setting(True, "use XNNPACK; off runs TFLite's builtin kernels")
    limit: int = setting(0, "evaluate on the first so many examples; 0 is all", minimum=0)
    warmup_runs: int = setting(10, "untimed inferences before the timed ones", minimum=0)
    num_runs: int = setting(100, "timed inferences; 0 measures no latency", minimum=0)
    require: RequireConfig = section(RequireConfig, "bounds that must hold")


KERNELS = ("xnnpack", "builtin", "reference")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Config):
    """How long an inference takes, of one model or of several in turn."""

    against: tuple[str, ...] = setting((), "other .tflite files, timed in turn with the model; ratios are to it")
    backend: str = setting(
        "local", "where to run; an emulator counts instructions and times nothing", choices_of="backend"
    )
    kernels: tuple[str, ...] = setting(("xnnpack",), "kernels to time, in turn", choices=KERNELS)
    num_threads: int = setting(1, "threads of the interpreter", minimum=1)
    warmup_runs: int = setting(10, "untimed inferences before the timed ones", minimum=0)
    num_runs: int = setting(100, "timed inferences of each model, at least", minimum=1)
    min_secs: float = setting(1.0, "seconds of timed inferences of each model, at least", minimum=0)
    ops: bool = setting(True, "time each op as well, in inferences of their own, where the interpreter can")

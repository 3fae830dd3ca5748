# SPDX-License-Identifier: Apache-2.0
"""Settings of evaluations and benchmarks."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting
from tfq.config.robustness import RobustnessConfig


@dataclass(frozen=True, kw_only=True)
class CostRequireConfig(Config):
    """Bounds on what a model costs on a backend; the command exits with code 1 if one is missed.

    A bound on a cost that the backend does not report is missed.
    """

    max_arena_bytes: int | None = setting(
        None, "largest tensor arena in bytes, on a backend that reports it (tflm)", minimum=0
    )
    max_sram_bytes: int | None = setting(
        None, "largest SRAM use in bytes, on a backend that reports it (ethos-u55-128 and others)", minimum=0
    )
    max_flash_bytes: int | None = setting(
        None, "largest flash use in bytes, on a backend that reports it; without the code of kernels", minimum=0
    )
    min_accelerated_fraction: float | None = setting(
        None,
        "lowest fraction of the ops that run on the backend's accelerator (XNNPACK, an NPU)",
        minimum=0,
        maximum=1,
    )
    max_process_memory_bytes: int | None = setting(
        None,
        "largest peak memory of a process that runs the model, minus what it had before the model, on a backend that "
        "measures it",
        minimum=0,
    )
    max_instructions: int | None = setting(
        None, "most instructions of an inference, on a backend that counts them (qemu:cortex-a76)", minimum=0
    )
    max_model_bytes: int | None = setting(None, "largest size of the file in bytes", minimum=0)
    max_latency_ms: float | None = setting(
        None, "largest median time of an inference on this machine in milliseconds", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequireConfig(CostRequireConfig):
    """Bounds that each model of a benchmark must meet; the command exits with code 1 if one is missed."""

    max_initialization_ms: float | None = setting(
        None, "largest time to create an interpreter and allocate its tensors, in milliseconds", minimum=0
    )
    min_examples_per_second: float | None = setting(
        None, "lowest number of examples per second at the batch size of the file", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class RequireConfig(CostRequireConfig):
    """Bounds that an evaluation must meet; the command exits with code 1 if one is missed."""

    min_accuracy: float | None = setting(
        None, "lowest accuracy as a fraction, or lowest value of another metric", minimum=0, maximum=1
    )
    max_accuracy_drop: float | None = setting(
        None,
        "largest loss of accuracy against the reference: a fraction (0.005), or in the metric's unit; for a metric "
        "where lower is better, the largest increase",
        minimum=0,
    )
    metrics: tuple[str, ...] = setting(
        (),
        "bounds on metrics of evaluation.metric, in their units: f1>=0.8, ece<=0.05; or drop:f1<=0.01 for the largest "
        "loss against the reference",
    )
    min_agreement: float | None = setting(
        None,
        "lowest fraction of examples with the reference's class, for outputs that predict a class",
        minimum=0,
        maximum=1,
    )
    min_sqnr_db: float | None = setting(
        None, "lowest signal-to-quantization-noise ratio (SQNR) of every output against the reference, in dB"
    )
    max_clipped_input_fraction: float | None = setting(
        None, "largest fraction of the input values outside of the quantized range", minimum=0, maximum=1
    )
    max_gzip_bytes: int | None = setting(None, "largest size of the file after gzip, in bytes", minimum=0)
    max_total_ops: int | None = setting(None, "most ops in the file", minimum=0)
    max_float_ops: int | None = setting(None, "most ops that compute in floating point", minimum=0)
    max_difference_lsb: int | None = setting(
        None,
        "largest difference of an output from XNNPACK's on this machine in LSB, on each backend of the table",
        minimum=0,
    )
    max_different_fraction: float | None = setting(
        None,
        "largest fraction of the output values that differ from XNNPACK's, on each backend of the table",
        minimum=0,
        maximum=1,
    )
    max_robustness_drop: float | None = setting(
        None,
        "largest loss of accuracy by corruption: clean minus the mean over corruptions and severities, as a fraction",
        minimum=0,
        maximum=1,
    )
    max_robustness_extra_drop: float | None = setting(
        None,
        "largest loss of accuracy by corruption in addition to that of the reference, as a fraction",
        minimum=0,
        maximum=1,
    )
    min_same_class: float | None = setting(
        None,
        "lowest fraction of examples with the class that XNNPACK computes, on each backend of the table",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """Settings of an evaluation: backend, metric, reference, number of examples and of timed runs."""

    reference: str = setting("", "float .tflite, Keras model or SavedModel to compare with", path_of="model")
    backend: str = setting("local", "where the model runs", choices_of="backend")
    backends: tuple[str, ...] = setting(
        (),
        "backends of the portability table, which compares each with XNNPACK on this machine; empty lists all that are "
        "available here, none leaves the table out",
        choices=("none",),
        choices_of="backend",
    )
    missing_backends: str = setting(
        "fail",
        "bounds on a backend of `backends` that is not available here or does not work: fail misses them, report only "
        "lists the backend as not run",
        choices=("fail", "report"),
    )
    backends_limit: int = setting(256, "number of examples that each backend of the table runs", minimum=1)
    metric: tuple[str, ...] = setting(
        (),
        "metrics computed against the labels; the first is the main one, which bounds on the accuracy and the search "
        "use; empty is the default: top1, or roc_auc for a model that reconstructs its input",
        choices_of="metric",
    )
    output_metrics: tuple[str, ...] = setting(
        (),
        "for labels of several outputs: OUTPUT=METRIC; other outputs get the metric that their labels fit: top1, "
        "pixel_accuracy or mae",
    )
    output: str = setting(
        "",
        "name or index (from 0) of the output that the metric and the agreement use; empty lets the metric choose, "
        "and the agreement is the lowest of all outputs that predict a class",
    )
    num_threads: int = setting(1, "threads of each interpreter", minimum=1)
    num_workers: int = setting(0, "interpreters that share the examples; 0 is one per core", minimum=0)
    timeout_secs: float = setting(
        0,
        "seconds without any progress after which a run is aborted; 0 derives it from the size of the model",
        minimum=0,
    )
    xnnpack: bool = setting(True, "use XNNPACK instead of TFLite's builtin kernels")
    limit: int = setting(0, "number of examples to evaluate, from the start; 0 is all", minimum=0)
    differing_examples: int = setting(
        12,
        "number of examples listed for which the model and the reference predict different classes, maps of classes or "
        "boxes; image inputs are stored in the record as small pictures; 0 lists and stores none",
        minimum=0,
        maximum=1000,
    )
    warmup_runs: int = setting(10, "untimed inferences before the timed ones", minimum=0)
    num_runs: int = setting(100, "timed inferences; 0 measures no latency", minimum=0)
    robustness: RobustnessConfig = section(RobustnessConfig, "evaluation on corrupted inputs")
    require: RequireConfig = section(RequireConfig, "bounds that must be met")


KERNELS = ("xnnpack", "builtin", "reference")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Config):
    """Settings of a benchmark of one or more models."""

    against: tuple[str, ...] = setting(
        (),
        "other .tflite files to time alternately with the model; ratios are relative to the model",
        path_of="flatbuffer",
    )
    backend: str = setting(
        "local", "where the models run; an emulator counts instructions and measures no time", choices_of="backend"
    )
    kernels: tuple[str, ...] = setting(
        ("xnnpack",),
        "kernels to time: xnnpack, builtin (TFLite's optimized kernels without a delegate) or reference",
        choices=KERNELS,
    )
    num_threads: int = setting(1, "threads of the interpreter", minimum=1)
    batch_sizes: tuple[int, ...] = setting(
        (),
        "batch sizes of an additional table of examples per second; empty uses the file's own. Others need a file "
        "with a dynamic batch dimension",
        minimum=1,
    )
    thread_counts: tuple[int, ...] = setting(
        (), "numbers of threads of this table; empty uses benchmark.num_threads", minimum=1
    )
    warmup_runs: int = setting(10, "untimed inferences before the timed ones", minimum=0)
    num_runs: int = setting(100, "minimum number of timed inferences of each model", minimum=1)
    min_secs: float = setting(1.0, "minimum seconds of timed inferences of each model", minimum=0)
    require: BenchmarkRequireConfig = section(BenchmarkRequireConfig, "bounds on the costs of each model")
    ops: bool = setting(True, "also time each op, in separate inferences, if the interpreter supports it")

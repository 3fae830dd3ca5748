# SPDX-License-Identifier: Apache-2.0
"""The root of the config tree."""

from dataclasses import dataclass

from tfq.config.analysis import AnalysisConfig
from tfq.config.audit import AuditConfig
from tfq.config.base import Config, section, setting
from tfq.config.comparison import ComparisonConfig
from tfq.config.compression import CompressionConfig, TrainingConfig
from tfq.config.conversion import ConversionConfig
from tfq.config.data import DataConfig
from tfq.config.evaluation import BenchmarkConfig, EvaluationConfig
from tfq.config.execution import ExecutorConfig
from tfq.config.export import ExportConfig
from tfq.config.report import ReportConfig
from tfq.config.search import SearchConfig
from tfq.config.sweep import SweepConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """All settings. Each command reads its own section, and the fields that `cli.flags.COMMANDS` lists for it."""

    model: str = setting(
        "", "a .keras, .h5 or .tflite file, a SavedModel directory, or the name of a model", path_of="model"
    )
    data: DataConfig = section(DataConfig, "source and preprocessing of the examples")
    out: str = setting("", "output directory", path_of="directory")
    plugin: tuple[str, ...] = setting(
        (),
        "Python file to run first; it may register metrics, data sources, backends, targets and more, and define "
        "the custom classes of the model",
        repeatable=True,
        path_of="python",
    )
    executor: ExecutorConfig = section(ExecutorConfig, "processes and machines that share the work")
    seed: int = setting(0, "seed of initial weights, shuffling and sampling", minimum=0, maximum=2**32 - 1)
    training: TrainingConfig = section(TrainingConfig, "training of a model that tfq builds by name")
    compression: CompressionConfig = section(CompressionConfig, "pruning, clustering and quantization-aware training")
    conversion: ConversionConfig = section(ConversionConfig, "conversion to a .tflite")
    audit: AuditConfig = section(AuditConfig, "requirements on the int8 .tflite files")
    evaluation: EvaluationConfig = section(EvaluationConfig, "backends, metrics and bounds")
    benchmark: BenchmarkConfig = section(BenchmarkConfig, "latency")
    search: SearchConfig = section(SearchConfig, "search for the cheapest int8 model within a budget")
    sweep: SweepConfig = section(SweepConfig, "many models and settings, from one grid")
    analysis: AnalysisConfig = section(AnalysisConfig, "causes of the accuracy loss of an int8 .tflite")
    comparison: ComparisonConfig = section(ComparisonConfig, "differences between two files")
    export: ExportConfig = section(ExportConfig, "app bundle with metadata, sources and golden vectors")
    report: ReportConfig = section(ReportConfig, "pages of records")

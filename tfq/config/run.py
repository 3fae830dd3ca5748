# SPDX-License-Identifier: Apache-2.0
"""A whole run."""

from dataclasses import dataclass

from tfq.config.analysis import AnalysisConfig
from tfq.config.audit import AuditConfig
from tfq.config.base import Config, section, setting
from tfq.config.compression import CompressionConfig, TrainingConfig
from tfq.config.conversion import ConversionConfig
from tfq.config.data import DataConfig
from tfq.config.evaluation import BenchmarkConfig, EvaluationConfig
from tfq.config.search import SearchConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """All settings; each command reads its own section and what `cli.flags.COMMANDS` lists for it."""

    model: str = setting("", "a .keras, .h5 or .tflite file, or the name of a model that tfq builds")
    data: DataConfig = section(DataConfig, "examples")
    out: str = setting("", "directory that receives every file")
    plugin: tuple[str, ...] = setting(
        (),
        "Python file of your own, run first: it may register metrics, data sources, backends, targets and more, and "
        "defines the custom classes of the model",
        repeatable=True,
    )
    seed: int = setting(0, "seed of weights, shuffling and sampling", minimum=0, maximum=2**32 - 1)
    training: TrainingConfig = section(TrainingConfig, "training of a model built by name")
    compression: CompressionConfig = section(CompressionConfig, "pruning and QAT")
    conversion: ConversionConfig = section(ConversionConfig, "flatbuffer")
    audit: AuditConfig = section(AuditConfig, "what the int8 flatbuffers must be")
    evaluation: EvaluationConfig = section(EvaluationConfig, "backends, metrics, bounds")
    benchmark: BenchmarkConfig = section(BenchmarkConfig, "latency, side by side")
    search: SearchConfig = section(SearchConfig, "the cheapest int8 model within a budget")
    analysis: AnalysisConfig = section(AnalysisConfig, "what costs an int8 flatbuffer its accuracy")

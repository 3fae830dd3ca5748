# SPDX-License-Identifier: Apache-2.0
"""The whole of a run as one tree of frozen dataclasses. `settings` has what they are made with."""

from tfq.config.analysis import (
    FLOAT_BITS,
    GRIDS,
    AnalysisConfig,
    AnalysisRequireConfig,
    BitWidthsConfig,
    ExplainConfig,
)
from tfq.config.audit import AUDIT_SCHEMES, AuditConfig
from tfq.config.comparison import ComparisonConfig, ComparisonRequireConfig
from tfq.config.compression import (
    LOSSES,
    ClusterConfig,
    CompressionConfig,
    DistillationConfig,
    PruneConfig,
    QATConfig,
    StructuredPruningConfig,
    TeacherConfig,
    TrainConfig,
    TrainingConfig,
)
from tfq.config.conversion import (
    FEW_BIT_SCHEMES,
    IO_TYPES,
    SCHEME_IO_TYPES,
    SCHEMES,
    CalibrationConfig,
    ConversionConfig,
)
from tfq.config.data import DataConfig
from tfq.config.evaluation import (
    KERNELS,
    BenchmarkConfig,
    BenchmarkRequireConfig,
    CostRequireConfig,
    EvaluationConfig,
    RequireConfig,
)
from tfq.config.execution import ExecutorConfig
from tfq.config.export import INPUT_KINDS, TASKS, TOKENIZERS, ExportConfig
from tfq.config.report import ReportConfig
from tfq.config.robustness import RobustnessConfig
from tfq.config.run import RunConfig
from tfq.config.search import BudgetConfig, SearchConfig
from tfq.config.sweep import SweepBudgetConfig, SweepConfig

__all__ = [
    "AUDIT_SCHEMES",
    "FEW_BIT_SCHEMES",
    "FLOAT_BITS",
    "GRIDS",
    "INPUT_KINDS",
    "IO_TYPES",
    "KERNELS",
    "LOSSES",
    "SCHEMES",
    "SCHEME_IO_TYPES",
    "TASKS",
    "TOKENIZERS",
    "AnalysisConfig",
    "AnalysisRequireConfig",
    "AuditConfig",
    "BenchmarkConfig",
    "BenchmarkRequireConfig",
    "BitWidthsConfig",
    "BudgetConfig",
    "CalibrationConfig",
    "ClusterConfig",
    "ComparisonConfig",
    "ComparisonRequireConfig",
    "CompressionConfig",
    "ConversionConfig",
    "CostRequireConfig",
    "DataConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "ExecutorConfig",
    "ExplainConfig",
    "ExportConfig",
    "PruneConfig",
    "QATConfig",
    "ReportConfig",
    "RequireConfig",
    "RobustnessConfig",
    "RunConfig",
    "SearchConfig",
    "StructuredPruningConfig",
    "SweepBudgetConfig",
    "SweepConfig",
    "TeacherConfig",
    "TrainConfig",
    "TrainingConfig",
]

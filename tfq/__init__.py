# SPDX-License-Identifier: Apache-2.0
"""Compress Keras models to int8 TFLite and verify the result on every backend that will run it.

Names are loaded when first used: `import tfq` imports neither TensorFlow nor an interpreter.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "convert": "tfq.conversion:convert_model",
    "trace": "tfq.conversion:trace",
    "audit": "tfq.auditing:audit_model",
    "evaluate": "tfq.evaluation:evaluate_model",
    "analyze": "tfq.analysis:analyze",
    "find_int8": "tfq.search:find_int8",
    "prune": "tfq.compression:prune_model",
    "prune_structured": "tfq.compression:prune_structured",
    "cluster": "tfq.compression:cluster_model",
    "qat": "tfq.compression:qat_model",
    "preflight": "tfq.compression:preflight",
    "to_tf_keras": "tfq.keras_bridge:to_tf_keras",
    "return_weights": "tfq.keras_bridge:return_weights",
    "register_translator": "tfq.keras_bridge:register_translator",
    "qat_parity": "tfq.compression:qat_parity",
    "run": "tfq.workflows.run:run_recipe",
    "load_model": "tfq.keras_bridge:load_model",
    "load_split": "tfq.data:load_split",
    "Int8Evaluation": "tfq.callbacks:Int8Evaluation",
    "TFLiteExport": "tfq.callbacks:TFLiteExport",
    "TfqError": "tfq.errors:TfqError",
    "InputError": "tfq.errors:InputError",
    "AuditError": "tfq.errors:AuditError",
    "TfqWarning": "tfq.errors:TfqWarning",
    "RunConfig": "tfq.config:RunConfig",
    "DataConfig": "tfq.config:DataConfig",
    "PruneConfig": "tfq.config:PruneConfig",
    "ClusterConfig": "tfq.config:ClusterConfig",
    "StructuredPruningConfig": "tfq.config:StructuredPruningConfig",
    "QATConfig": "tfq.config:QATConfig",
    "DistillationConfig": "tfq.config:DistillationConfig",
    "CompressionConfig": "tfq.config:CompressionConfig",
    "TrainConfig": "tfq.config:TrainConfig",
    "ConversionConfig": "tfq.config:ConversionConfig",
    "AnalysisConfig": "tfq.config:AnalysisConfig",
    "BitsConfig": "tfq.config:BitsConfig",
    "AuditConfig": "tfq.config:AuditConfig",
    "CalibrationConfig": "tfq.config:CalibrationConfig",
    "SearchConfig": "tfq.config:SearchConfig",
    "BudgetConfig": "tfq.config:BudgetConfig",
    "EvaluationConfig": "tfq.config:EvaluationConfig",
    "BenchmarkConfig": "tfq.config:BenchmarkConfig",
    "benchmark": "tfq.evaluation:benchmark_models",
}

__all__ = sorted([*_PUBLIC, "__version__"])

if TYPE_CHECKING:
    from tfq.analysis.analyze import analyze as analyze
    from tfq.auditing import audit_model as audit
    from tfq.callbacks import Int8Evaluation as Int8Evaluation
    from tfq.callbacks import TFLiteExport as TFLiteExport
    from tfq.compression import prune_model as prune
    from tfq.compression import prune_structured as prune_structured
    from tfq.compression import qat_model as qat
    from tfq.compression.parity.compare import qat_parity as qat_parity
    from tfq.compression.preflight import preflight as preflight
    from tfq.config import AnalysisConfig as AnalysisConfig
    from tfq.config import AuditConfig as AuditConfig
    from tfq.config import BenchmarkConfig as BenchmarkConfig
    from tfq.config import BitsConfig as BitsConfig
    from tfq.config import BudgetConfig as BudgetConfig
    from tfq.config import CalibrationConfig as CalibrationConfig
    from tfq.config import ClusterConfig as ClusterConfig
    from tfq.config import CompressionConfig as CompressionConfig
    from tfq.config import ConversionConfig as ConversionConfig
    from tfq.config import DataConfig as DataConfig
    from tfq.config import DistillationConfig as DistillationConfig
    from tfq.config import EvaluationConfig as EvaluationConfig
    from tfq.config import PruneConfig as PruneConfig
    from tfq.config import QATConfig as QATConfig
    from tfq.config import RunConfig as RunConfig
    from tfq.config import SearchConfig as SearchConfig
    from tfq.config import StructuredPruningConfig as StructuredPruningConfig
    from tfq.config import TrainConfig as TrainConfig
    from tfq.conversion import convert_model as convert
    from tfq.conversion import trace as trace
    from tfq.data import load_split as load_split
    from tfq.errors import AuditError as AuditError
    from tfq.errors import InputError as InputError
    from tfq.errors import TfqError as TfqError
    from tfq.errors import TfqWarning as TfqWarning
    from tfq.evaluation import benchmark_models as benchmark
    from tfq.evaluation import evaluate_model as evaluate
    from tfq.keras_bridge import load_model as load_model
    from tfq.keras_bridge import register_translator as register_translator
    from tfq.keras_bridge import return_weights as return_weights
    from tfq.keras_bridge import to_tf_keras as to_tf_keras
    from tfq.workflows.run import run_recipe as run


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfq' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

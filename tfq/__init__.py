# SPDX-License-Identifier: Apache-2.0
"""Compress Keras models to int8 TFLite and verify the result on every backend that will run it.

The first block below is the one list of public names. Type checkers read it, and so does `__getattr__`, which imports a
name when it is first used. `import tfq` imports neither TensorFlow nor an interpreter.

On a terminal and in a notebook, long calls show on stderr what they are doing. The environment variable TFQ_PROGRESS=0
switches that off. Lines that TensorFlow's C++ writes to stderr during a conversion are removed;
TF_CPP_MIN_LOG_LEVEL=0 shows them.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # isort: off
    # Functions.
    from tfq.analysis.analyze import analyze as analyze
    from tfq.analysis.explain import explain as explain
    from tfq.comparison import compare_models as compare_models
    from tfq.comparison import gate_records as gate_records
    from tfq.compression import cluster_model
    from tfq.compression.preflight import preflight as preflight
    from tfq.compression import prune_model
    from tfq.compression import prune_structured as prune_structured
    from tfq.compression import qat_model
    from tfq.compression import qat_parity as qat_parity
    from tfq.conversion import convert_model
    from tfq.conversion import trace as trace
    from tfq.data import load_split as load_split
    from tfq.data import stratified as stratified
    from tfq.deploy import add_metadata as add_metadata
    from tfq.deploy import export_bundle as export_bundle
    from tfq.evaluation import audit_and_run
    from tfq.evaluation import benchmark_models
    from tfq.evaluation import evaluate_model
    from tfq.evaluation import reference_outputs as reference_outputs
    from tfq.executors import distributed as distributed
    from tfq.executors import open_executor as open_executor
    from tfq.keras_bridge import load_model as load_model
    from tfq.keras_bridge import load_saved_model as load_saved_model
    from tfq.keras_bridge import return_weights as return_weights
    from tfq.keras_bridge import to_tf_keras as to_tf_keras
    from tfq.report import build_report as build_report
    from tfq.report import write_node_data as write_node_data
    from tfq.robustness import evaluate_robustness as evaluate_robustness
    from tfq.search import find_int8 as find_int8
    from tfq.sweep import run_sweep as run_sweep
    from tfq.workflows.run import run_recipe

    # Another name is an assignment: type checkers do not take `import x as y` for a public name.
    audit = audit_and_run
    benchmark = benchmark_models
    cluster = cluster_model
    convert = convert_model
    evaluate = evaluate_model
    prune = prune_model
    qat = qat_model
    run = run_recipe

    # Keras callbacks.
    from tfq.callbacks import Int8Evaluation as Int8Evaluation
    from tfq.callbacks import TFLiteExport as TFLiteExport

    # Extension points: make an object of one of these classes and pass it to `register`.
    from tfq.backends import Backend as Backend
    from tfq.backends import BackendKind as BackendKind
    from tfq.backends import BackendResult as BackendResult
    from tfq.backends import RunRequest as RunRequest
    from tfq.evaluation.detection.decoding import Detections as Detections
    from tfq.evaluation.detection.decoding import decode_raw as decode_raw
    from tfq.evaluation.detection.metrics import detection_metric as detection_metric
    from tfq.evaluation.detection.suppression import non_max_suppression as non_max_suppression
    from tfq.evaluation.metric import Contract as Contract
    from tfq.evaluation.metric import Metric as Metric
    from tfq.evaluation.metric import MetricTable as MetricTable
    from tfq.evaluation.metric import Reconstruction as Reconstruction
    from tfq.evaluation.metric import add_states as add_states
    from tfq.evaluation.metric import concatenate_states as concatenate_states
    from tfq.auditing import Target as Target
    from tfq.robustness import Corruption as Corruption
    from tfq.compression.criteria import PruningCriterion as PruningCriterion
    from tfq.compression.structured_pruning.costs import ChannelCost as ChannelCost
    from tfq.data import DataSource as DataSource
    from tfq.executors import ExecutorKind as ExecutorKind
    from tfq.deploy import BundleContents as BundleContents
    from tfq.deploy import Candidate as Candidate
    from tfq.deploy import Platform as Platform
    from tfq.deploy import Problem as Problem
    from tfq.deploy import SelfTest as SelfTest
    from tfq.deploy import SelfTestResult as SelfTestResult
    from tfq.keras_bridge import BridgedLayer as BridgedLayer
    from tfq.keras_bridge import Translation as Translation
    from tfq.ptq.calibration import CalibrationMethod as CalibrationMethod
    from tfq.registry import register as register

    # Configuration.
    from tfq.config import AnalysisConfig as AnalysisConfig
    from tfq.config import AnalysisRequireConfig as AnalysisRequireConfig
    from tfq.config import AuditConfig as AuditConfig
    from tfq.config import BenchmarkConfig as BenchmarkConfig
    from tfq.config import BenchmarkRequireConfig as BenchmarkRequireConfig
    from tfq.config import BitWidthsConfig as BitWidthsConfig
    from tfq.config import BudgetConfig as BudgetConfig
    from tfq.config import CalibrationConfig as CalibrationConfig
    from tfq.config import ClusterConfig as ClusterConfig
    from tfq.config import ComparisonConfig as ComparisonConfig
    from tfq.config import ComparisonRequireConfig as ComparisonRequireConfig
    from tfq.config import CompressionConfig as CompressionConfig
    from tfq.config import ConversionConfig as ConversionConfig
    from tfq.config import CostRequireConfig as CostRequireConfig
    from tfq.config import DataConfig as DataConfig
    from tfq.config import DistillationConfig as DistillationConfig
    from tfq.config import EvaluationConfig as EvaluationConfig
    from tfq.config import ExplainConfig as ExplainConfig
    from tfq.config import ExecutorConfig as ExecutorConfig
    from tfq.config import ExportConfig as ExportConfig
    from tfq.config import PruneConfig as PruneConfig
    from tfq.config import QATConfig as QATConfig
    from tfq.config import RequireConfig as RequireConfig
    from tfq.config import RobustnessConfig as RobustnessConfig
    from tfq.config import RunConfig as RunConfig
    from tfq.config import SearchConfig as SearchConfig
    from tfq.config import StructuredPruningConfig as StructuredPruningConfig
    from tfq.config import SweepBudgetConfig as SweepBudgetConfig
    from tfq.config import SweepConfig as SweepConfig
    from tfq.config import TrainConfig as TrainConfig

    # Results, and what can be passed on from one function to the next.
    from tfq.analysis import Analysis as Analysis
    from tfq.analysis import Explanation as Explanation
    from tfq.auditing import AuditReport as AuditReport
    from tfq.comparison import ComparisonRecord as ComparisonRecord
    from tfq.comparison import Gate as Gate
    from tfq.compression import Preflight as Preflight
    from tfq.compression import QATParity as QATParity
    from tfq.compression import StructuredPruningResult as StructuredPruningResult
    from tfq.conversion import Trace as Trace
    from tfq.deploy import Bundle as Bundle
    from tfq.data import Split as Split
    from tfq.data import SplitStream as SplitStream
    from tfq.evaluation import BenchmarkRecord as BenchmarkRecord
    from tfq.evaluation import EvaluationRecord as EvaluationRecord
    from tfq.evaluation import ReferenceOutputs as ReferenceOutputs
    from tfq.executors import Executor as Executor
    from tfq.executors import Task as Task
    from tfq.executors import TaskFailure as TaskFailure
    from tfq.executors import TaskResult as TaskResult
    from tfq.keras_bridge import BridgeResult as BridgeResult
    from tfq.keras_bridge import SavedModel as SavedModel
    from tfq.robustness import RobustnessRecord as RobustnessRecord
    from tfq.search import SearchResult as SearchResult
    from tfq.sweep import SweepResult as SweepResult

    # Errors and warnings.
    from tfq.errors import AuditError as AuditError
    from tfq.errors import BackendError as BackendError
    from tfq.errors import FlatbufferError as FlatbufferError
    from tfq.errors import InputError as InputError
    from tfq.errors import ModelError as ModelError
    from tfq.errors import RequirementError as RequirementError
    from tfq.errors import TfqError as TfqError
    from tfq.errors import TfqWarning as TfqWarning
    from tfq.errors import VerificationError as VerificationError
else:
    # Hidden from type checkers: for them, a module with `__getattr__` has an attribute of every name.
    import functools

    @functools.cache
    def _locations() -> dict[str, tuple[str, str]]:
        """Return public name -> (module, name there): the block above, read from this file."""
        import ast

        block = next(node for node in ast.parse(__loader__.get_source(__name__)).body if isinstance(node, ast.If))
        imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
        imported = {item.name: (node.module, item.name) for node in imports for item in node.names}
        public = {item.asname: item.name for node in imports for item in node.names if item.asname}
        public |= {node.targets[0].id: node.value.id for node in block.body if isinstance(node, ast.Assign)}
        return {name: imported[source] for name, source in public.items()}

    def __getattr__(name: str) -> object:
        import importlib

        if name == "__all__":
            value = sorted([*_locations(), "__version__"])
        # Python itself asks for names like `__path__`.
        elif not name.startswith("_") and name in _locations():
            module, attribute = _locations()[name]
            value = getattr(importlib.import_module(module), attribute)
        else:
            raise AttributeError(f"module 'tfq' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __getattr__("__all__")

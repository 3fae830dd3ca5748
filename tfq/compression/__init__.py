# SPDX-License-Identifier: Apache-2.0
"""Pruning, weight clustering and quantization-aware training of tf_keras models, based on tfmot.

Importing this package does not import TensorFlow. Its functions import it when they are called.
"""

from tfq.compression.clustering.cluster import (
    ClusteringPlan,
    cluster_model,
    clustering_plan,
    measure_clusters,
    unique_weights_in_flatbuffer,
)
from tfq.compression.gate import check_same_function
from tfq.compression.parity.compare import qat_parity
from tfq.compression.parity.record import QATParity
from tfq.compression.preflight import LayerVerdict, Preflight, preflight
from tfq.compression.pruning.prunable import reason_not_prunable
from tfq.compression.pruning.prune import PruningPlan, prune_model, pruning_plan
from tfq.compression.pruning.sensitivity import SensitivityTable, sensitivity
from tfq.compression.pruning.sparsity import (
    m_by_n_groups_in_flatbuffer,
    measure_sparsity,
    measure_zero_blocks,
    sparsity_in_flatbuffer,
    zero_blocks_in_flatbuffer,
)
from tfq.compression.qat.qat import (
    Annotated,
    qat_model,
    quantized,
    untrained_qat_model,
)
from tfq.compression.structured_pruning.prune import StructuredPruningResult, count_macs, prune_structured

__all__ = [
    "Annotated",
    "ClusteringPlan",
    "LayerVerdict",
    "Preflight",
    "PruningPlan",
    "QATParity",
    "SensitivityTable",
    "StructuredPruningResult",
    "check_same_function",
    "cluster_model",
    "clustering_plan",
    "count_macs",
    "m_by_n_groups_in_flatbuffer",
    "measure_clusters",
    "measure_sparsity",
    "measure_zero_blocks",
    "preflight",
    "prune_model",
    "prune_structured",
    "pruning_plan",
    "qat_model",
    "qat_parity",
    "quantized",
    "reason_not_prunable",
    "sensitivity",
    "sparsity_in_flatbuffer",
    "unique_weights_in_flatbuffer",
    "untrained_qat_model",
    "zero_blocks_in_flatbuffer",
]

# SPDX-License-Identifier: Apache-2.0
"""Pruning and quantization-aware training: tf_keras model in, tf_keras model out, on tfmot.

Importing this room imports no TensorFlow; its functions do, when they are called.
"""

from tfq.compression.prune import PruningPlan, prune_model, pruning_plan
from tfq.compression.qat import check_quantizable, qat_model, unsupported_layers
from tfq.compression.sparsity import measure_sparsity

__all__ = [
    "PruningPlan",
    "check_quantizable",
    "measure_sparsity",
    "prune_model",
    "pruning_plan",
    "qat_model",
    "unsupported_layers",
]

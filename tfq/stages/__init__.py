# SPDX-License-Identifier: Apache-2.0
"""What each script does with a config: load, train, compress, convert, evaluate. Each stage calls its rooms."""

from tfq.stages.compression import (
    Compressed,
    check_compressible,
    compress,
    compression_suffix,
    is_compressed,
)
from tfq.stages.conversion import audit_config, compare_with_qat_model, convert
from tfq.stages.evaluation import Evaluated, evaluate
from tfq.stages.model_files import (
    check_model_file,
    is_file,
    load,
    model_name,
    read_tflite,
    save_keras,
    trace_once,
)
from tfq.stages.preflight import preflight, preflight_with_flatbuffer
from tfq.stages.splits import load_split
from tfq.stages.training import train

__all__ = [
    "Compressed",
    "Evaluated",
    "audit_config",
    "check_compressible",
    "check_model_file",
    "compare_with_qat_model",
    "compress",
    "compression_suffix",
    "convert",
    "evaluate",
    "is_compressed",
    "is_file",
    "load",
    "load_split",
    "model_name",
    "preflight",
    "preflight_with_flatbuffer",
    "read_tflite",
    "save_keras",
    "trace_once",
    "train",
]

# SPDX-License-Identifier: Apache-2.0
"""What a command or a whole run does with a config: load, train, compress, convert, evaluate, search, run."""

from tfq.workflows.compression import (
    Compressed,
    check_compressible,
    compress,
    compression_suffix,
    is_compressed,
    preflight,
    preflight_with_flatbuffer,
)
from tfq.workflows.conversion import compare_with_qat_model, convert, needs_data
from tfq.workflows.evaluation import Evaluated, evaluate
from tfq.workflows.model_files import (
    check_given,
    check_model_file,
    check_tensorflow,
    is_file,
    load,
    model_name,
    read_tflite,
    save_keras,
    trace_once,
)
from tfq.workflows.training import load_split, train

__all__ = [
    "Compressed",
    "Evaluated",
    "check_compressible",
    "check_given",
    "check_model_file",
    "check_tensorflow",
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
    "needs_data",
    "preflight",
    "preflight_with_flatbuffer",
    "read_tflite",
    "save_keras",
    "trace_once",
    "train",
]

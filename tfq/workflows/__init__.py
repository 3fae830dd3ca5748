# SPDX-License-Identifier: Apache-2.0
"""The work of each command and of a whole run, from a config: load, train, compress, convert, evaluate, search."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfq.workflows.comparison import compare_outputs, differing_examples
    from tfq.workflows.compression import (
        Compressed,
        check_compressible,
        compress,
        compression_suffix,
        is_compressed,
        preflight,
        preflight_with_flatbuffer,
        why_no_layers,
    )
    from tfq.workflows.conversion import bit_widths_on_data, compare_with_qat_model, convert, needs_data, search_on_data
    from tfq.workflows.evaluation import Evaluated, corrupted, evaluate, robustness_fields
    from tfq.workflows.export import Exported, export
    from tfq.workflows.gate import Gated, compare_with_baseline, write_baseline
    from tfq.workflows.models import (
        check_model_file,
        check_named,
        check_path,
        check_tensorflow,
        is_file,
        load,
        load_flatbuffer,
        load_split,
        model_name,
        read_flatbuffer,
        read_tflite,
        save_keras,
        trace_once,
    )
    from tfq.workflows.training import train, trained_stem
else:
    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)

__all__ = [
    "Compressed",
    "Evaluated",
    "Exported",
    "Gated",
    "bit_widths_on_data",
    "check_compressible",
    "check_model_file",
    "check_named",
    "check_path",
    "check_tensorflow",
    "compare_outputs",
    "compare_with_baseline",
    "compare_with_qat_model",
    "compress",
    "compression_suffix",
    "convert",
    "corrupted",
    "differing_examples",
    "evaluate",
    "export",
    "is_compressed",
    "is_file",
    "load",
    "load_flatbuffer",
    "load_split",
    "model_name",
    "needs_data",
    "preflight",
    "preflight_with_flatbuffer",
    "read_flatbuffer",
    "read_tflite",
    "robustness_fields",
    "save_keras",
    "search_on_data",
    "trace_once",
    "train",
    "trained_stem",
    "why_no_layers",
    "write_baseline",
]

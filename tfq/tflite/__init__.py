# SPDX-License-Identifier: Apache-2.0
"""The TFLite file format: a bounds-checked reader, records, editing, metadata.

It needs no TensorFlow, no interpreter and no config. `read` accepts untrusted bytes; the editing functions trust their
bytes (see edit.py).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfq.tflite.associated_files import append_files, associated_files, with_associated_files
    from tfq.tflite.edit import (
        add_signature,
        cut_after,
        edit_model,
        inject_ranges,
        operator_code,
        operator_name,
        operator_names,
        pack,
        read_metadata,
        read_ranges,
        remove_min_runtime_version,
        remove_unused_constants,
        remove_unused_operator_codes,
        remove_unused_tensors,
        unpack,
        write_metadata,
    )
    from tfq.tflite.float_constants import FloatConstants, with_float_constants
    from tfq.tflite.metadata import ADDRESSED_OPS
    from tfq.tflite.metadata_entry import (
        decode_model_metadata,
        encode_model_metadata,
        read_model_metadata,
        write_model_metadata,
    )
    from tfq.tflite.model_metadata import ModelMetadata, SubGraphMetadata, TensorMetadata
    from tfq.tflite.outputs import Joined, expose_tensors, join_tensors
    from tfq.tflite.reader import keeping_large_files, read
    from tfq.tflite.records import ABSENT, Model, Op, Signature, Subgraph, Tensor, constant_values
    from tfq.tflite.signatures import (
        extract_subgraph,
        listed_signatures,
        main_subgraph_note,
        merge_subgraphs,
        restore_signatures,
        select_signature,
        signature_keys,
    )
    from tfq.tflite.subgraphs import with_inlined_composites
else:
    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)

__all__ = [
    "ABSENT",
    "ADDRESSED_OPS",
    "FloatConstants",
    "Joined",
    "Model",
    "ModelMetadata",
    "Op",
    "Signature",
    "SubGraphMetadata",
    "Subgraph",
    "Tensor",
    "TensorMetadata",
    "add_signature",
    "append_files",
    "associated_files",
    "constant_values",
    "cut_after",
    "decode_model_metadata",
    "edit_model",
    "encode_model_metadata",
    "expose_tensors",
    "extract_subgraph",
    "inject_ranges",
    "join_tensors",
    "keeping_large_files",
    "listed_signatures",
    "main_subgraph_note",
    "merge_subgraphs",
    "operator_code",
    "operator_name",
    "operator_names",
    "pack",
    "read",
    "read_metadata",
    "read_model_metadata",
    "read_ranges",
    "remove_min_runtime_version",
    "remove_unused_constants",
    "remove_unused_operator_codes",
    "remove_unused_tensors",
    "restore_signatures",
    "select_signature",
    "signature_keys",
    "unpack",
    "with_associated_files",
    "with_float_constants",
    "with_inlined_composites",
    "write_metadata",
    "write_model_metadata",
]

# SPDX-License-Identifier: Apache-2.0
"""TFLite flatbuffers: bytes <-> frozen records, the audit, signature and metadata. No TensorFlow, no interpreter.

`read` and `audit_model` take bytes from anywhere; what edits trusts its bytes (see edit.py).
"""

from tfq.flatbuffer.audit import audit_model
from tfq.flatbuffer.audit_report import AuditReport, Finding, require, require_full_int8
from tfq.flatbuffer.audit_weights import Weight
from tfq.flatbuffer.edit import (
    add_signature,
    edit_model,
    expose_tensors,
    inject_ranges,
    pack,
    read_metadata,
    read_ranges,
    unpack,
    write_metadata,
)
from tfq.flatbuffer.objects import (
    forget_unused_codes,
    forget_unused_constants,
    forget_unused_tensors,
    operator_code,
    operator_name,
    operator_names,
)
from tfq.flatbuffer.reader import read
from tfq.flatbuffer.records import ABSENT, Model, Op, Signature, Subgraph, Tensor, constant_values
from tfq.flatbuffer.targets import TARGETS, Target

__all__ = [
    "ABSENT",
    "TARGETS",
    "AuditReport",
    "Finding",
    "Model",
    "Op",
    "Signature",
    "Subgraph",
    "Target",
    "Tensor",
    "Weight",
    "add_signature",
    "audit_model",
    "constant_values",
    "edit_model",
    "expose_tensors",
    "forget_unused_codes",
    "forget_unused_constants",
    "forget_unused_tensors",
    "inject_ranges",
    "operator_code",
    "operator_name",
    "operator_names",
    "pack",
    "read",
    "read_metadata",
    "read_ranges",
    "require",
    "require_full_int8",
    "unpack",
    "write_metadata",
]

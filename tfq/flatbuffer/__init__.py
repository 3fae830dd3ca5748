# SPDX-License-Identifier: Apache-2.0
"""TFLite flatbuffers: bytes <-> frozen records, the audit, signature and metadata. No TensorFlow, no interpreter.

`read` and `audit_model` take bytes from anywhere; what edits trusts its bytes (see edit.py).
"""

from tfq.flatbuffer.audit import audit_model
from tfq.flatbuffer.audit_report import AuditReport, Finding, require_full_int8
from tfq.flatbuffer.edit import add_signature, edit_model, inject_ranges, read_metadata, read_ranges, write_metadata
from tfq.flatbuffer.reader import read
from tfq.flatbuffer.records import ABSENT, Model, Op, Signature, Subgraph, Tensor, constant_values

__all__ = [
    "ABSENT",
    "AuditReport",
    "Finding",
    "Model",
    "Op",
    "Signature",
    "Subgraph",
    "Tensor",
    "add_signature",
    "audit_model",
    "constant_values",
    "edit_model",
    "inject_ranges",
    "read",
    "read_metadata",
    "read_ranges",
    "require_full_int8",
    "write_metadata",
]

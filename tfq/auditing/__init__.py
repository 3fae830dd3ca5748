# SPDX-License-Identifier: Apache-2.0
"""Static rules for .tflite files: schemes, types, targets, and the reasons of violations. It starts no interpreter."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfq.auditing.audit import audit_model
    from tfq.auditing.float_sources import float_source
    from tfq.auditing.io_table import IoTable, IoTensor, io_table
    from tfq.auditing.report import AuditReport, Execution, Finding, Weight, require, requirements_of
    from tfq.auditing.targets import Target, find_target
else:
    from tfq import lazy

    __getattr__, __dir__ = lazy.names(__name__, __loader__)

__all__ = [
    "AuditReport",
    "Execution",
    "Finding",
    "IoTable",
    "IoTensor",
    "Target",
    "Weight",
    "audit_model",
    "find_target",
    "float_source",
    "io_table",
    "require",
    "requirements_of",
]
